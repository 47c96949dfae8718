// One panel of a packed weight matrix times rows of activations. Knows packed_layout.h; not models or threads.
//
// Lanes are output columns. Per 32-group of k and per row: an exact int32 sum of u8 codes x s8 activations that
// starts at -offset * sum(q), then acc = fma(sum, d * scale, acc), once per weight scale of the group, and, for
// formats with a min, acc = fma(min, scaled_sum, acc). Groups ascend; the sequence is the same for every tile height.
#pragma once
#include "kernels.h"
#include "packed_layout.h"
#include "simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

// A tile is up to tile_rows(format) rows high and tile_vectors(format, rows) registers wide, a panel kPanelVectors:
// what the registers hold without spilling; few rows make a wide tile, for the sums' latency and the weights' cache
// lines.
constexpr int kPanelVectors = kPanelCols / kLanes;
#if defined(TUILI_ISA_AVX512)
constexpr int tile_rows(Format format) { return packed_layout(format).has_min() ? 5 : 6; }
constexpr int tile_vectors(Format, int) { return 2; }
#elif defined(TUILI_ISA_AVX2)
constexpr int tile_rows(Format format) { return format <= Format::kBF16 ? 4 : 6; }
constexpr int tile_vectors(Format format, int rows) {
    const int sums = format <= Format::kBF16 ? 12 : 6;
    return rows * 4 <= sums ? 4 : rows * 2 <= sums ? 2 : 1;
}
#else
constexpr int tile_rows(Format) { return 1; }
constexpr int tile_vectors(Format, int) { return 1; }
#endif
constexpr size_t kLookahead = 8192;

// Prefetches the weight stream. One pass over a panel fetches kLookahead bytes ahead: later in this panel or, past its
// end, in the next one. Where rows need several passes, each fetches its share of the blocks of the next panel, so that
// memory is busy throughout.
struct Stream {
    const uint8_t* end;   // of this panel
    const uint8_t* next;  // null: nothing follows
    size_t panel_bytes;
    int num_passes = 1;
    int blocks_to_skip = 0;

    TUILI_INLINE void prefetch_ahead(const uint8_t* position, int num_bytes) {
        const size_t left = static_cast<size_t>(end - position);
        if (num_passes > 1) {
            if (!next || blocks_to_skip-- > 0) return;
            blocks_to_skip = num_passes - 1;
            return prefetch_lines(next + (panel_bytes - left), num_bytes);
        }
        if (left <= kLookahead && !next) return;
        prefetch_lines(left > kLookahead ? position + kLookahead : next + (kLookahead - left), num_bytes);
    }
    static TUILI_INLINE void prefetch_lines(const uint8_t* first, int num_bytes) {
        for (int i = 0; i < num_bytes; i += 64) prefetch(first + i);
    }
};

// The fields of a block, one register of columns at a time; v is which.
template <Format kFormat>
struct Block {
    static constexpr PackedLayout kLayout = packed_layout(kFormat);
    static constexpr int kParts = kLayout.has_half_scales() ? 2 : 1;  // scales per group
    static constexpr int kStepBytes = kPanelCols * 4;
    static constexpr int kMaxCode = kLayout.has_uneven_levels ? 255 : (1 << kLayout.code_bits) - 1;

    const uint8_t* header;
    const uint8_t* data;
    const uint8_t* scales;

    TUILI_INLINE explicit Block(const uint8_t* run)
        : header(run),
          data(run + kLayout.header_bytes()),
          scales(kLayout.keeps_scales_in_header() ? run + 2 * kPanelCols : data) {}

    TUILI_INLINE void advance() {
        data += kLayout.block_bytes();
        scales += kLayout.keeps_scales_in_header() ? kPanelCols : kLayout.block_bytes();
    }

    // Step t's codes: kLanes columns x 4 k.
    template <int kStep>
    TUILI_INLINE Codes codes(int v) const {
        const uint8_t* first = data + kLayout.scale_bytes() + v * kLanes * 4;
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
        if constexpr (!kLayout.is_super()) return load_f16_n(reinterpret_cast<const uint16_t*>(scales) + v * kLanes);
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
        if constexpr (!kLayout.is_super()) return load_f16_n(reinterpret_cast<const uint16_t*>(scales) + column);
    }

    TUILI_INLINE F32xN super(int field, int v) const {
        return load_f16_n(reinterpret_cast<const uint16_t*>(header) + field * kPanelCols + v * kLanes);
    }
};

// kRows rows x kVectors registers of one output panel, accumulated over k.
template <Format kFormat, int kRows, int kFirstVector>
struct Tile {
    using B = Block<kFormat>;
    using Sum = Dot<B::kMaxCode, B::kLayout.code_offset>;
    static constexpr PackedLayout kLayout = B::kLayout;
    static constexpr int kVectors = tile_vectors(kFormat, kRows);

    F32xN acc[kRows][kVectors];

    // Adds one step to the sums. q: this group's activations of the first row.
    template <int kStep>
    static TUILI_INLINE void add_step(Sum (&sums)[kRows][kVectors], const B& block, const int8_t* q) {
        Codes codes[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) codes[v] = block.template codes<kStep>(kFirstVector + v);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) {
            const Quad quad = load_quad(q + r * kGroup + kStep * 4);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; v++) sums[r][v].add(codes[v], quad);
        }
    }

    template <int... kSteps>
    static TUILI_INLINE void add_steps(Sum (&sums)[kRows][kVectors], const B& block, const int8_t* q) {
        constexpr int kStepsPerWiden = Sum::kStepsPerWiden < static_cast<int>(sizeof...(kSteps))
                                           ? Sum::kStepsPerWiden
                                           : static_cast<int>(sizeof...(kSteps));
        int done = 0;
        const auto widen = [&]() __attribute__((always_inline)) {
            if (++done % kStepsPerWiden) return;
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; v++) sums[r][v].widen();
        };
        ((add_step<kSteps>(sums, block, q), widen()), ...);
    }

    TUILI_INLINE void add_group(const B& block, const Activations& x, size_t at) {
        add_part<0>(block, x, at);
        if constexpr (B::kParts == 2) add_part<1>(block, x, at);
        if constexpr (kLayout.has_min()) add_min<0>(block, x, at);
        if constexpr (kLayout.has_min() && B::kParts == 2) add_min<1>(block, x, at);
    }

    // One scale's share of a group: all of its 32 k, or a half where scales are per 16.
    template <int kPart>
    TUILI_INLINE void add_part(const B& block, const Activations& x, size_t at) {
        Sum sums[kRows][kVectors];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; v++) sums[r][v].start(offset_sum<kPart>(x, at + r));
        const int8_t* q = x.q + at * kGroup;
        if constexpr (B::kParts == 2)
            add_steps<4 * kPart, 4 * kPart + 1, 4 * kPart + 2, 4 * kPart + 3>(sums, block, q);
        else if constexpr (kLayout.base_bits() == 8)
            add_steps<0, 1, 2, 3, 4, 5, 6, 7>(sums, block, q);
        else  // a nibble vector serves steps t and t + 4: take them together
            add_steps<0, 4, 1, 5, 2, 6, 3, 7>(sums, block, q);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) {
            const F32xN scale = block.scale(kPart, kFirstVector + v);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++)
                acc[r][v] = fma(to_float(sums[r][v].total(offset_sum<kPart>(x, at + r))),
                                scale * broadcast_n(x.scale[at + r]), acc[r][v]);
        }
    }

    // Sum of the activations under one scale.
    template <int kPart>
    static TUILI_INLINE int32_t q_sum(const Activations& x, size_t at) {
        if constexpr (B::kParts == 1) return x.sum[at];
        return kPart == 0 ? x.half_sum[at] : x.sum[at] - x.half_sum[at];
    }
    // Unused, and not read, where codes have no offset.
    template <int kPart>
    static TUILI_INLINE int32_t offset_sum(const Activations& x, size_t at) {
        if constexpr (kLayout.code_offset == 0) return 0;
        return q_sum<kPart>(x, at);
    }
    template <int kPart>
    static TUILI_INLINE float scaled_sum(const Activations& x, size_t at) {
        if constexpr (B::kParts == 1) return x.scaled_sum[at];
        return x.scale[at] * static_cast<float>(q_sum<kPart>(x, at));
    }

    template <int kPart>
    TUILI_INLINE void add_min(const B& block, const Activations& x, size_t at) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) {
            const F32xN min = block.min(kPart, kFirstVector + v);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++) acc[r][v] = fma(min, broadcast_n(scaled_sum<kPart>(x, at + r)), acc[r][v]);
        }
    }
};

template <int kFirstVector, int kRows, int kVectors>
TUILI_INLINE void store_tile(const F32xN (&acc)[kRows][kVectors], float* out) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) store(out + r * kPanelCols + (kFirstVector + v) * kLanes, acc[r][v]);
}

template <Format kFormat, int kRows, int kFirstVector>
void multiply_tile(const uint8_t* panel, const Activations& x, int row, float* out, Stream stream) {
    constexpr PackedLayout layout = packed_layout(kFormat);
    constexpr int kVectors = tile_vectors(kFormat, kRows);
    const int num_runs = x.cols / kGroup / layout.blocks_per_run();
    Tile<kFormat, kRows, kFirstVector> tile;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) tile.acc[r][v] = broadcast_n(0.0f);
    size_t at = row;
    for (int run = 0; run < num_runs; run++) {
        Block<kFormat> block(panel);
        for (int b = 0; b < layout.blocks_per_run(); b++) {
            // A header lies before its run's first block.
            if (b == 0)
                stream.prefetch_ahead(panel, layout.header_bytes() + layout.block_bytes());
            else
                stream.prefetch_ahead(block.data, layout.block_bytes());
            tile.add_group(block, x, at);
            block.advance();
            at += x.row_stride;
        }
        panel += layout.run_bytes();
    }
    store_tile<kFirstVector>(tile.acc, out);
}

// --- float formats: one fma per weight, k ascending ---------------------------------------------------------------
template <Format kFormat>
TUILI_INLINE F32xN load_weights(const uint8_t* p) {
    if constexpr (kFormat == Format::kF32) return load_n(reinterpret_cast<const float*>(p));
    if constexpr (kFormat == Format::kF16) return load_f16_n(reinterpret_cast<const uint16_t*>(p));
    if constexpr (kFormat == Format::kBF16) return load_bf16_n(reinterpret_cast<const uint16_t*>(p));
}

template <Format kFormat, int kRows, int kFirstVector>
void multiply_float_tile(const uint8_t* panel, const Activations& x, int row, float* out, Stream stream) {
    constexpr int kVectors = tile_vectors(kFormat, kRows);
    constexpr int kWidth = kFormat == Format::kF32 ? 4 : 2;
    const float* values = x.f32 + static_cast<size_t>(row) * x.cols;
    F32xN acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) acc[r][v] = broadcast_n(0.0f);
    for (int k = 0; k < x.cols; k++) {
        stream.prefetch_ahead(panel, kPanelCols * kWidth);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) {
            const F32xN weights = load_weights<kFormat>(panel + (kFirstVector + v) * kLanes * kWidth);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++)
                acc[r][v] = fma(weights, broadcast_n(values[static_cast<size_t>(r) * x.cols + k]), acc[r][v]);
        }
        panel += kPanelCols * kWidth;
    }
    store_tile<kFirstVector>(acc, out);
}

// --- rows into tiles ----------------------------------------------------------------------------------------------
template <Format kFormat, int kRows, int kFirstVector = 0>
TUILI_INLINE void multiply_rows(const uint8_t* panel, const Activations& x, int row, float* out, Stream& stream) {
    if constexpr (kFormat <= Format::kBF16)
        multiply_float_tile<kFormat, kRows, kFirstVector>(panel, x, row, out, stream);
    else
        multiply_tile<kFormat, kRows, kFirstVector>(panel, x, row, out, stream);
    stream.blocks_to_skip++;
    constexpr int kNextVector = kFirstVector + tile_vectors(kFormat, kRows);
    if constexpr (kNextVector < kPanelVectors) multiply_rows<kFormat, kRows, kNextVector>(panel, x, row, out, stream);
}

template <Format kFormat, int kRows = tile_rows(kFormat)>
TUILI_INLINE void multiply_num_rows(int num_rows, const uint8_t* panel, const Activations& x, int row, float* out,
                                    Stream& stream) {
    if (num_rows == kRows) return multiply_rows<kFormat, kRows>(panel, x, row, out, stream);
    if constexpr (kRows > 1) multiply_num_rows<kFormat, kRows - 1>(num_rows, panel, x, row, out, stream);
}

// Splits the rows into the fewest tiles, of heights that differ by at most one.
template <Format kFormat>
void multiply(const uint8_t* panel, const Activations& x, int row, int row_end, float* out, Stream stream) {
    constexpr int kTileRows = tile_rows(kFormat);
    int num_tiles = (row_end - row + kTileRows - 1) / kTileRows;
    const int rows_per_tile = num_tiles ? (row_end - row) / num_tiles : 0;
    stream.num_passes = num_tiles * kPanelVectors / tile_vectors(kFormat, rows_per_tile);
    for (; num_tiles > 0; num_tiles--) {
        const int num_rows = (row_end - row) / num_tiles;
        multiply_num_rows<kFormat>(num_rows, panel, x, row, out, stream);
        row += num_rows;
        out += num_rows * kPanelCols;
    }
}

void matmul_panel(const PackedMatrix& w, int panel, const Activations& x, int row_begin, int row_end, float* out,
                  const uint8_t* next) {
    const uint8_t* first = w.panels + static_cast<size_t>(panel) * w.panel_bytes;
    const Stream stream{first + w.panel_bytes, next, w.panel_bytes};
    switch (w.format) {
        case Format::kF32:
            return multiply<Format::kF32>(first, x, row_begin, row_end, out, stream);
        case Format::kF16:
            return multiply<Format::kF16>(first, x, row_begin, row_end, out, stream);
        case Format::kBF16:
            return multiply<Format::kBF16>(first, x, row_begin, row_end, out, stream);
        case Format::kQ4_0:
            return multiply<Format::kQ4_0>(first, x, row_begin, row_end, out, stream);
        case Format::kQ4_1:
            return multiply<Format::kQ4_1>(first, x, row_begin, row_end, out, stream);
        case Format::kQ5_0:
            return multiply<Format::kQ5_0>(first, x, row_begin, row_end, out, stream);
        case Format::kQ5_1:
            return multiply<Format::kQ5_1>(first, x, row_begin, row_end, out, stream);
        case Format::kQ8_0:
            return multiply<Format::kQ8_0>(first, x, row_begin, row_end, out, stream);
        case Format::kQ2_K:
            return multiply<Format::kQ2_K>(first, x, row_begin, row_end, out, stream);
        case Format::kQ3_K:
            return multiply<Format::kQ3_K>(first, x, row_begin, row_end, out, stream);
        case Format::kQ4_K:
            return multiply<Format::kQ4_K>(first, x, row_begin, row_end, out, stream);
        case Format::kQ5_K:
            return multiply<Format::kQ5_K>(first, x, row_begin, row_end, out, stream);
        case Format::kQ6_K:
            return multiply<Format::kQ6_K>(first, x, row_begin, row_end, out, stream);
        case Format::kIQ4_NL:
            return multiply<Format::kIQ4_NL>(first, x, row_begin, row_end, out, stream);
        case Format::kIQ4_XS:
            return multiply<Format::kIQ4_XS>(first, x, row_begin, row_end, out, stream);
    }
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
