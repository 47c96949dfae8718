// Some rows of activations times some registers of columns of a packed panel, summed over k. Knows tiles and the memory
// they stream; not how rows are cut into them.
//
// Lanes are output columns. Per 32-group of k and per row: an exact int32 sum of u8 codes x s8 activations that
// starts at -offset * sum(q), then acc = fma(sum, d * scale, acc), once per weight scale of the group, and, for
// formats with a min, acc = fma(min, scaled_sum, acc). Groups ascend; the sequence is the same for every tile height.
#pragma once
#include "kernels/kernels.h"
#include "kernels/matmul_block.inl"
#include "kernels/simd.h"

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

// kRows rows x kVectors registers of one output panel, accumulated over k.
template <class B, int kRows, int kVectors>
struct Tile {
    using Sum = Dot<B::kShape.max_code, B::kShape.offset>;

    F32xN acc[kRows][kVectors];

    // Adds one step to the sums. q: this group's activations of the first row.
    template <int kStep>
    static TUILI_INLINE void add_step(Sum (&sums)[kRows][kVectors], const B& block, const int8_t* q) {
        Codes codes[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) codes[v] = block.template codes<kStep>(v);
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
        if constexpr (B::kShape.parts == 2) add_part<1>(block, x, at);
        if constexpr (B::kShape.has_min) add_min<0>(block, x, at);
        if constexpr (B::kShape.has_min && B::kShape.parts == 2) add_min<1>(block, x, at);
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
        if constexpr (B::kShape.parts == 2)
            add_steps<4 * kPart, 4 * kPart + 1, 4 * kPart + 2, 4 * kPart + 3>(sums, block, q);
        else if constexpr (B::kShape.pairs_steps)
            add_steps<0, 4, 1, 5, 2, 6, 3, 7>(sums, block, q);
        else
            add_steps<0, 1, 2, 3, 4, 5, 6, 7>(sums, block, q);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) {
            const F32xN scale = block.scale(kPart, v);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++)
                acc[r][v] = fma(to_float(sums[r][v].total(offset_sum<kPart>(x, at + r))),
                                scale * broadcast_n(x.scale[at + r]), acc[r][v]);
        }
    }

    // Sum of the activations under one scale.
    template <int kPart>
    static TUILI_INLINE int32_t q_sum(const Activations& x, size_t at) {
        if constexpr (B::kShape.parts == 1) return x.sum[at];
        return kPart == 0 ? x.half_sum[at] : x.sum[at] - x.half_sum[at];
    }
    // Unused, and not read, where codes have no offset.
    template <int kPart>
    static TUILI_INLINE int32_t offset_sum(const Activations& x, size_t at) {
        if constexpr (B::kShape.offset == 0) return 0;
        return q_sum<kPart>(x, at);
    }
    template <int kPart>
    static TUILI_INLINE float scaled_sum(const Activations& x, size_t at) {
        if constexpr (B::kShape.parts == 1) return x.scaled_sum[at];
        return x.scale[at] * static_cast<float>(q_sum<kPart>(x, at));
    }

    template <int kPart>
    TUILI_INLINE void add_min(const B& block, const Activations& x, size_t at) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) {
            const F32xN min = block.min(kPart, v);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++) acc[r][v] = fma(min, broadcast_n(scaled_sum<kPart>(x, at + r)), acc[r][v]);
        }
    }
};

template <int kRows, int kVectors>
TUILI_INLINE void clear_tile(F32xN (&acc)[kRows][kVectors]) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) acc[r][v] = broadcast_n(0.0f);
}

template <int kRows, int kVectors>
TUILI_INLINE void load_tile(const float* from, F32xN (&acc)[kRows][kVectors]) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) acc[r][v] = load_n(from + r * kPanelCols + v * kLanes);
}

template <int kRows, int kVectors>
TUILI_INLINE void store_tile(const F32xN (&acc)[kRows][kVectors], float* out) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) store(out + r * kPanelCols + v * kLanes, acc[r][v]);
}

// Rows [row, row + kRows) times the columns from `column` on, which are all where a tile is as wide as a panel.
template <Format kFormat, int kRows>
void multiply_tile(const uint8_t* panel, int column, const Activations& x, int row, float* out, Stream stream) {
    constexpr PackedLayout layout = packed_layout(kFormat);
    constexpr int kVectors = tile_vectors(kFormat, kRows);
    const int first_column = kVectors == kPanelVectors ? 0 : column;
    const int num_runs = x.cols / kGroup / layout.blocks_per_run();
    Tile<Block<kFormat>, kRows, kVectors> tile;
    clear_tile(tile.acc);
    size_t at = row;
    for (int run = 0; run < num_runs; run++) {
        Block<kFormat> block(panel, first_column);
        for (int b = 0; b < layout.blocks_per_run(); b++) {
            const int header_bytes = b == 0 ? layout.header_bytes() : 0;  // it lies before its run's first block
            stream.prefetch_ahead(panel, header_bytes + layout.block_bytes());
            panel += header_bytes + layout.block_bytes();
            tile.add_group(block, x, at);
            block.advance();
            at += x.row_stride;
        }
    }
    store_tile(tile.acc, out + first_column);
}

// --- float formats: one fma per weight, k ascending ---------------------------------------------------------------
constexpr int float_step(Format format) { return format == Format::kBF16 ? 2 : 1; }  // k that lie beside each other
constexpr int step_bytes(Format format) { return format == Format::kF16 ? 2 : 4; }   // of a column

// Of those k the one at kPart.
template <Format kFormat, int kPart>
TUILI_INLINE F32xN load_weights(const uint8_t* p) {
    if constexpr (kFormat == Format::kF32) return load_n(reinterpret_cast<const float*>(p));
    if constexpr (kFormat == Format::kF16) return load_f16_n(reinterpret_cast<const uint16_t*>(p));
    if constexpr (kFormat == Format::kBF16 && kPart == 0) return load_even_bf16_n(reinterpret_cast<const uint16_t*>(p));
    if constexpr (kFormat == Format::kBF16 && kPart == 1) return load_odd_bf16_n(reinterpret_cast<const uint16_t*>(p));
}

// Adds the products of one k; values: the first row's activations from the step on.
template <Format kFormat, int kPart, int kRows, int kVectors>
TUILI_INLINE void add_weights(F32xN (&acc)[kRows][kVectors], const uint8_t* weights, const float* values,
                              size_t stride) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
        const F32xN columns = load_weights<kFormat, kPart>(weights + v * kLanes * step_bytes(kFormat));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) acc[r][v] = fma(columns, broadcast_n(values[r * stride + kPart]), acc[r][v]);
    }
}

template <Format kFormat, int kRows>
void multiply_float_tile(const uint8_t* panel, int column, const Activations& x, int row, float* out, Stream stream) {
    constexpr int kVectors = tile_vectors(kFormat, kRows);
    constexpr int kStep = float_step(kFormat), kStepBytes = kPanelCols * step_bytes(kFormat);
    const int first_column = kVectors == kPanelVectors ? 0 : column;
    const auto stride = static_cast<size_t>(x.cols);
    const float* values = x.f32 + row * stride;
    F32xN acc[kRows][kVectors];
    clear_tile(acc);
    int k = 0;
    for (; k + kStep <= x.cols; k += kStep) {
        stream.prefetch_ahead(panel, kStepBytes);
        const uint8_t* weights = panel + first_column * step_bytes(kFormat);
        add_weights<kFormat, 0>(acc, weights, values + k, stride);
        if constexpr (kStep == 2) add_weights<kFormat, 1>(acc, weights, values + k, stride);
        panel += kStepBytes;
    }
    if (k < x.cols) add_weights<kFormat, 0>(acc, panel + first_column * step_bytes(kFormat), values + k, stride);
    store_tile(acc, out + first_column);
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
