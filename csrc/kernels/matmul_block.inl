// One block of a packed panel, read a register of columns at a time. Knows packed_layout.h; not activations.
#pragma once
#include "kernels/kernels.h"
#include "kernels/packed_layout.h"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

constexpr int kStepBytes = kPanelCols * 4;

// What multiplying a block depends on, wherever its fields are.
struct BlockShape {
    int max_code;
    int offset;
    int parts;  // scales per group
    bool has_min;
    bool pairs_steps;  // steps t and t + 4 lie in the same bytes
};

constexpr BlockShape packed_shape(const PackedLayout& layout) {
    return {layout.has_uneven_levels ? 255 : (1 << layout.code_bits) - 1, layout.code_offset,
            layout.has_half_scales() ? 2 : 1, layout.has_min(), layout.base_bits() != 8};
}

// The fields of a block from some column on; v counts registers from there.
template <Format kFormat>
struct Block {
    static constexpr PackedLayout kLayout = packed_layout(kFormat);
    static constexpr BlockShape kShape = packed_shape(kLayout);
    static constexpr int kScaleSize = kLayout.is_super() ? 1 : 2;

    const uint8_t* header;
    const uint8_t* scales;
    const uint8_t* data;

    TUILI_INLINE Block(const uint8_t* run, int first_column)
        : header(run + 2 * first_column),
          scales(run + (kLayout.keeps_scales_in_header() ? 2 * kPanelCols : kLayout.header_bytes()) +
                 kScaleSize * first_column),
          data(run + kLayout.header_bytes() + kLayout.scale_bytes() + 4 * first_column) {}

    TUILI_INLINE void advance() {
        scales += kLayout.keeps_scales_in_header() ? kPanelCols : kLayout.block_bytes();
        data += kLayout.block_bytes();
    }

    // Step t's codes: kLanes columns x 4 k.
    template <int kStep>
    TUILI_INLINE Codes codes(int v) const {
        const uint8_t* first = data + v * kLanes * 4;
        const uint8_t* planes = first + kLayout.base_bytes();
        constexpr int kPair = kStep / 4 * kStepBytes;
        if constexpr (kLayout.base_bits() == 8) {
            return load_codes(first + kStep * kStepBytes);
        } else if constexpr (kLayout.base_bits() == 2) {
            const Codes pairs = bit_field<kStep % 4 * 2, 2>(load_codes(first + kPair));
            if constexpr (kLayout.plane_bits() == 0) return pairs;
            return with_top<0x04, 2 - kStep>(pairs, load_codes(planes));
        } else {
            const Codes nibbles = bit_field<kStep / 4 * 4, 4>(load_codes(first + kStep % 4 * kStepBytes));
            if constexpr (kLayout.has_uneven_levels) return look_up(kUnevenLevels, nibbles);
            if constexpr (kLayout.plane_bits() == 1) return with_top<0x10, 4 - kStep>(nibbles, load_codes(planes));
            if constexpr (kLayout.plane_bits() == 2)
                return with_top<0x30, 4 - kStep % 4 * 2>(nibbles, load_codes(planes + kPair));
            return nibbles;
        }
    }

    TUILI_INLINE F32xN scale(int part, int v) const {
        const uint8_t* bytes = scales + part * kPanelCols + v * kLanes;
        if constexpr (!kLayout.is_super()) return half(scales, v * kLanes);
        if constexpr (kLayout.scales == Scales::kSuperMin) return super(0, v) * to_float(load_u8_n(bytes));
        if constexpr (kLayout.scales == Scales::kSuperMin16) return super(0, v) * to_float(load_low_nibbles_n(bytes));
        if constexpr (kLayout.scales >= Scales::kSuperSigned16)
            return super(0, v) * to_float(load_i8_n(reinterpret_cast<const int8_t*>(bytes)));
    }

    TUILI_INLINE F32xN min(int part, int v) const {
        const int column = kPanelCols + v * kLanes;
        if constexpr (kLayout.scales == Scales::kSuperMin) return super(1, v) * to_float(load_u8_n(scales + column));
        if constexpr (kLayout.scales == Scales::kSuperMin16)
            return super(1, v) * to_float(load_high_nibbles_n(scales + part * kPanelCols + v * kLanes));
        if constexpr (!kLayout.is_super()) return half(scales, column);
    }

    TUILI_INLINE F32xN super(int field, int v) const { return half(header, field * kPanelCols + v * kLanes); }

    static TUILI_INLINE F32xN half(const uint8_t* first, int column) {
        return load_f16_n(reinterpret_cast<const uint16_t*>(first) + column);
    }
};

}  // namespace tuili::TUILI_ISA_NAMESPACE
