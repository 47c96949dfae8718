// How a panel stores a quantized format: the bytes of a block (32 columns x 32 k) and of the header before
// each run of blocks that share super scales. Known to the packer and to the matmul kernels alone.
//
//   panel  = runs, ascending in k;  run = header, then kBlocksPerRun blocks
//   header = kSuperMin, kSuperMin16: f16 d [32], f16 -dmin [32]     kSuperSigned16: f16 d [32]
//            kSuperSigned: f16 d [32], s8 scale [8 blocks][32]     others: none
//   block  = scales, pairs, nibbles or bytes, planes
//   scales = kHalf: f16 [32]    kHalfMin: f16 scale [32], f16 min [32]
//            kSuperMin: u8 scale [32], u8 min [32]    kSuperMin16: u8 scale | min << 4 [2 halves of k][32]
//            kSuperSigned16: s8 [2 halves of k][32]    kSuperSigned: none
//   codes in steps of 4 k: step t holds k = 4t .. 4t+3; a vector is 16 columns x those 4 k, 64 bytes
//   pairs   [2][2 vectors][64], bits 2j, 2j+1 of pair array p are step 4p + j (2 and 3 bits)
//   nibbles [4 t][2 vectors][64]: low nibble step t, high nibble step t + 4 (4, 5 and 6 bits)
//   bytes   [8 t][2 vectors][64]: step t (8 bits)
//   planes  3 and 5 bits: [2 vectors][64], bit t of a byte is step t's top bit
//           6 bits: as pairs, the top two bits
#pragma once
#include "kernels/kernels.h"

namespace tuili {

enum class Scales : uint8_t {
    kHalf,           // weight = d * (code - offset)
    kHalfMin,        // weight = d * code + m
    kSuperMin,       // weight = d * scale * code - dmin * min: exact u8 scale, min per 32, f16 d, dmin per 256
    kSuperMin16,     // the same with 4-bit scale and min per 16
    kSuperSigned16,  // weight = d * scale * (code - offset): exact s8 scale per 16, f16 d per 256
    kSuperSigned,    // the same with a scale per 32
};

constexpr int kSuperGroups = 8;  // 32-groups that share a super scale
constexpr int kVectorBytes = 64;

// Where codes are not levels but choose one: code i stands for kUnevenLevels[i] - 128.
alignas(16) inline constexpr uint8_t kUnevenLevels[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                          129, 141, 153, 166, 181, 197, 217, 241};

struct PackedLayout {
    Scales scales = Scales::kHalf;
    int code_bits = 0;
    int code_offset = 0;
    int source_bytes = 0;  // of a GGUF block: kSuperGroups groups where super scales exist, else one
    bool has_uneven_levels = false;

    constexpr bool is_super() const { return scales >= Scales::kSuperMin; }
    constexpr bool has_min() const {
        return scales == Scales::kHalfMin || scales == Scales::kSuperMin || scales == Scales::kSuperMin16;
    }
    constexpr bool has_half_scales() const { return scales == Scales::kSuperMin16 || scales == Scales::kSuperSigned16; }
    constexpr bool keeps_scales_in_header() const { return scales == Scales::kSuperSigned; }
    constexpr int blocks_per_run() const { return is_super() ? kSuperGroups : 1; }
    constexpr int header_bytes() const {
        if (!is_super()) return 0;
        return (has_min() ? 128 : 64) + (keeps_scales_in_header() ? kSuperGroups * kPanelCols : 0);
    }
    constexpr int scale_bytes() const { return scales == Scales::kHalfMin ? 128 : keeps_scales_in_header() ? 0 : 64; }
    // Codes' lower bits, whole fractions of a byte; the rest are planes.
    constexpr int base_bits() const { return code_bits == 8 ? 8 : code_bits < 4 ? 2 : 4; }
    constexpr int base_bytes() const { return base_bits() * 128; }
    constexpr int plane_bits() const { return code_bits - base_bits(); }
    constexpr int block_bytes() const { return scale_bytes() + code_bits * 128; }
    constexpr int run_bytes() const { return header_bytes() + blocks_per_run() * block_bytes(); }
};

// For the quantized formats; the float formats are [k][32 columns] at their own width, BF16 [k / 2][32 columns][2] with
// zeros past the last k.
constexpr PackedLayout packed_layout(Format format) {
    switch (format) {
        case Format::kQ4_0:
            return {Scales::kHalf, 4, 8, 18};
        case Format::kQ4_1:
            return {Scales::kHalfMin, 4, 0, 20};
        case Format::kQ5_0:
            return {Scales::kHalf, 5, 16, 22};
        case Format::kQ5_1:
            return {Scales::kHalfMin, 5, 0, 24};
        case Format::kQ8_0:
            return {Scales::kHalf, 8, 128, 34};
        case Format::kQ2_K:
            return {Scales::kSuperMin16, 2, 0, 84};
        case Format::kQ3_K:
            return {Scales::kSuperSigned16, 3, 4, 110};
        case Format::kQ4_K:
            return {Scales::kSuperMin, 4, 0, 144};
        case Format::kQ5_K:
            return {Scales::kSuperMin, 5, 0, 176};
        case Format::kQ6_K:
            return {Scales::kSuperSigned16, 6, 32, 210};
        case Format::kIQ4_NL:
            return {Scales::kHalf, 4, 128, 18, true};
        case Format::kIQ4_XS:
            return {Scales::kSuperSigned, 4, 128, 136, true};
        default:
            return {};
    }
}

}  // namespace tuili
