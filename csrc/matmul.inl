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

#if defined(TUILI_ISA_AVX512)
constexpr int kTileVectors = 2;  // vectors of 16 columns per tile
constexpr int kTileRows = 6;
#elif defined(TUILI_ISA_AVX2)
constexpr int kTileVectors = 1;
constexpr int kTileRows = 4;
#else
constexpr int kTileVectors = 1;
constexpr int kTileRows = 1;
#endif
constexpr size_t kLookahead = 8192;

// Prefetches the weight stream kLookahead bytes ahead: later in this panel or, past its end, in the next one.
struct Stream {
    const uint8_t* end;   // of this panel
    const uint8_t* next;  // null: nothing follows
    bool active;

    TUILI_INLINE void prefetch_ahead(const uint8_t* position, int num_bytes) const {
        if (!active) return;
        const size_t left = static_cast<size_t>(end - position);
        if (left <= kLookahead && !next) return;
        const uint8_t* ahead = left > kLookahead ? position + kLookahead : next + (kLookahead - left);
        for (int i = 0; i < num_bytes; i += 64) prefetch(ahead + i);
    }
};

// The fields of a block, as vectors over 16 columns; v = 0, 1 is which 16.
template <Format kFormat>
struct Block {
    static constexpr PackedLayout kLayout = packed_layout(kFormat);
    static constexpr int kParts = kLayout.scales == Scales::kSuperSigned ? 2 : 1;  // scales per group
    static constexpr int kMaxCode = (1 << kLayout.code_bits) - 1;

    const uint8_t* header;
    const uint8_t* data;

    // Step t's codes: 16 columns x 4 k.
    template <int kStep>
    TUILI_INLINE Codes codes(int v) const {
        const uint8_t* first = data + kLayout.scale_bytes();
        if constexpr (kLayout.code_bits == 8) return load_codes(first + (kStep * 2 + v) * kVectorBytes);
        const Codes both = load_codes(first + (kStep % 4 * 2 + v) * kVectorBytes);
        const Codes nibbles = kStep < 4 ? low_nibbles(both) : high_nibbles(both);
        const uint8_t* planes = first + kLayout.nibble_bytes();
        if constexpr (kLayout.code_bits == 5)
            return with_top<0x10, 4 - kStep>(nibbles, load_codes(planes + v * kVectorBytes));
        if constexpr (kLayout.code_bits == 6)
            return with_top<0x30, 4 - kStep % 4 * 2>(nibbles, load_codes(planes + (kStep / 4 * 2 + v) * kVectorBytes));
        return nibbles;
    }

    TUILI_INLINE F32x16 scale(int part, int v) const {
        const int column = v * 16;
        if constexpr (kLayout.scales == Scales::kSuperMin)
            return super(0, v) * to_float(load_u8(data + column));
        else if constexpr (kLayout.scales == Scales::kSuperSigned)
            return super(0, v) * to_float(load_i8(reinterpret_cast<const int8_t*>(data) + part * kPanelCols + column));
        else
            return load_f16(reinterpret_cast<const uint16_t*>(data) + column);
    }

    TUILI_INLINE F32x16 min(int v) const {
        const int column = kPanelCols + v * 16;
        if constexpr (kLayout.scales == Scales::kSuperMin)
            return super(1, v) * to_float(load_u8(data + column));
        else
            return load_f16(reinterpret_cast<const uint16_t*>(data) + column);
    }

    TUILI_INLINE F32x16 super(int field, int v) const {
        return load_f16(reinterpret_cast<const uint16_t*>(header) + field * kPanelCols + v * 16);
    }
};

// kRows rows x kTileVectors vectors of one output panel, accumulated over k.
template <Format kFormat, int kRows, int kFirstVector>
struct Tile {
    using B = Block<kFormat>;
    using Sum = Dot<B::kMaxCode>;
    static constexpr PackedLayout kLayout = B::kLayout;

    F32x16 acc[kRows][kTileVectors];

    // Adds one step to the sums. q: this group's activations of the first row.
    template <int kStep>
    static TUILI_INLINE void add_step(Sum (&sums)[kRows][kTileVectors], const B& block, const int8_t* q) {
        Codes codes[kTileVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kTileVectors; v++) codes[v] = block.template codes<kStep>(kFirstVector + v);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) {
            const Quad quad = load_quad(q + r * kGroup + kStep * 4);
#pragma GCC unroll 2
            for (int v = 0; v < kTileVectors; v++) sums[r][v].add(codes[v], quad);
        }
    }

    template <int... kSteps>
    static TUILI_INLINE void add_steps(Sum (&sums)[kRows][kTileVectors], const B& block, const int8_t* q) {
        int done = 0;
        const auto widen = [&]() __attribute__((always_inline)) {
            if (++done % Sum::kStepsPerWiden) return;
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++)
#pragma GCC unroll 2
                for (int v = 0; v < kTileVectors; v++) sums[r][v].widen();
        };
        ((add_step<kSteps>(sums, block, q), widen()), ...);
    }

    TUILI_INLINE void add_group(const B& block, const Activations& x, size_t at) {
        add_part<0>(block, x, at);
        if constexpr (B::kParts == 2) add_part<1>(block, x, at);
        if constexpr (kLayout.has_min()) add_min(block, x, at);
    }

    // One scale's share of a group: all of its 32 k, or a half where scales are per 16.
    template <int kPart>
    TUILI_INLINE void add_part(const B& block, const Activations& x, size_t at) {
        Sum sums[kRows][kTileVectors];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++)
#pragma GCC unroll 2
            for (int v = 0; v < kTileVectors; v++) sums[r][v].start(-kLayout.code_offset * q_sum<kPart>(x, at + r));
        const int8_t* q = x.q + at * kGroup;
        if constexpr (B::kParts == 2)
            add_steps<4 * kPart, 4 * kPart + 1, 4 * kPart + 2, 4 * kPart + 3>(sums, block, q);
        else if constexpr (kLayout.code_bits == 8)
            add_steps<0, 1, 2, 3, 4, 5, 6, 7>(sums, block, q);
        else  // a nibble vector serves steps t and t + 4: take them together
            add_steps<0, 4, 1, 5, 2, 6, 3, 7>(sums, block, q);
#pragma GCC unroll 2
        for (int v = 0; v < kTileVectors; v++) {
            const F32x16 scale = block.scale(kPart, kFirstVector + v);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++)
                acc[r][v] = fma(to_float(sums[r][v].total()), scale * broadcast(x.scale[at + r]), acc[r][v]);
        }
    }

    // Sum of the activations under one scale; unused, and not read, where codes have no offset.
    template <int kPart>
    static TUILI_INLINE int32_t q_sum(const Activations& x, size_t at) {
        if constexpr (kLayout.code_offset == 0) return 0;
        if constexpr (B::kParts == 1) return x.sum[at];
        return kPart == 0 ? x.half_sum[at] : x.sum[at] - x.half_sum[at];
    }

    TUILI_INLINE void add_min(const B& block, const Activations& x, size_t at) {
#pragma GCC unroll 2
        for (int v = 0; v < kTileVectors; v++) {
            const F32x16 min = block.min(kFirstVector + v);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++) acc[r][v] = fma(min, broadcast(x.scaled_sum[at + r]), acc[r][v]);
        }
    }
};

template <int kFirstVector, int kRows>
TUILI_INLINE void store_tile(const F32x16 (&acc)[kRows][kTileVectors], float* out) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < kTileVectors; v++) store(out + r * kPanelCols + (kFirstVector + v) * 16, acc[r][v]);
}

template <Format kFormat, int kRows, int kFirstVector>
void multiply_tile(const uint8_t* panel, const Activations& x, int row, float* out, const Stream& stream) {
    constexpr PackedLayout layout = packed_layout(kFormat);
    const int num_runs = x.cols / kGroup / layout.blocks_per_run();
    Tile<kFormat, kRows, kFirstVector> tile;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < kTileVectors; v++) tile.acc[r][v] = broadcast(0.0f);
    size_t at = row;
    for (int run = 0; run < num_runs; run++) {
        Block<kFormat> block{panel, panel + layout.header_bytes()};
        for (int b = 0; b < layout.blocks_per_run(); b++) {
            stream.prefetch_ahead(block.data, layout.block_bytes());
            tile.add_group(block, x, at);
            block.data += layout.block_bytes();
            at += x.row_stride;
        }
        panel += layout.run_bytes();
    }
    store_tile<kFirstVector>(tile.acc, out);
}

// --- float formats: one fma per weight, k ascending ---------------------------------------------------------------
template <Format kFormat>
TUILI_INLINE F32x16 load_weights(const uint8_t* p) {
    if constexpr (kFormat == Format::kF32) return load(reinterpret_cast<const float*>(p));
    if constexpr (kFormat == Format::kF16) return load_f16(reinterpret_cast<const uint16_t*>(p));
    if constexpr (kFormat == Format::kBF16) return load_bf16(reinterpret_cast<const uint16_t*>(p));
}

template <Format kFormat, int kRows, int kFirstVector>
void multiply_float_tile(const uint8_t* panel, const Activations& x, int row, float* out, const Stream& stream) {
    constexpr int kWidth = kFormat == Format::kF32 ? 4 : 2;
    const float* values = x.f32 + static_cast<size_t>(row) * x.cols;
    F32x16 acc[kRows][kTileVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < kTileVectors; v++) acc[r][v] = broadcast(0.0f);
    for (int k = 0; k < x.cols; k++) {
        stream.prefetch_ahead(panel, kPanelCols * kWidth);
#pragma GCC unroll 2
        for (int v = 0; v < kTileVectors; v++) {
            const F32x16 weights = load_weights<kFormat>(panel + (kFirstVector + v) * 16 * kWidth);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++)
                acc[r][v] = fma(weights, broadcast(values[static_cast<size_t>(r) * x.cols + k]), acc[r][v]);
        }
        panel += kPanelCols * kWidth;
    }
    store_tile<kFirstVector>(acc, out);
}

// --- rows into tiles ----------------------------------------------------------------------------------------------
template <Format kFormat, int kRows, int kFirstVector = 0>
TUILI_INLINE void multiply_rows(const uint8_t* panel, const Activations& x, int row, float* out, Stream stream) {
    if constexpr (kFormat <= Format::kBF16)
        multiply_float_tile<kFormat, kRows, kFirstVector>(panel, x, row, out, stream);
    else
        multiply_tile<kFormat, kRows, kFirstVector>(panel, x, row, out, stream);
    stream.active = false;
    if constexpr (kFirstVector + kTileVectors < 2)
        multiply_rows<kFormat, kRows, kFirstVector + kTileVectors>(panel, x, row, out, stream);
}

template <Format kFormat, int kRows = kTileRows>
TUILI_INLINE void multiply_num_rows(int num_rows, const uint8_t* panel, const Activations& x, int row, float* out,
                                    const Stream& stream) {
    if (num_rows == kRows) return multiply_rows<kFormat, kRows>(panel, x, row, out, stream);
    if constexpr (kRows > 1) multiply_num_rows<kFormat, kRows - 1>(num_rows, panel, x, row, out, stream);
}

// Splits the rows into the fewest tiles, of heights that differ by at most one.
template <Format kFormat>
void multiply(const uint8_t* panel, const Activations& x, int row, int row_end, float* out, Stream stream) {
    int num_tiles = (row_end - row + kTileRows - 1) / kTileRows;
    for (; num_tiles > 0; num_tiles--) {
        const int num_rows = (row_end - row) / num_tiles;
        multiply_num_rows<kFormat>(num_rows, panel, x, row, out, stream);
        row += num_rows;
        out += num_rows * kPanelCols;
        stream.active = false;
    }
}

void matmul_panel(const PackedMatrix& w, int panel, const Activations& x, int row_begin, int row_end, float* out,
                  const uint8_t* next) {
    const uint8_t* first = w.panels + static_cast<size_t>(panel) * w.panel_bytes;
    const Stream stream{first + w.panel_bytes, next, true};
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
        case Format::kQ4_K:
            return multiply<Format::kQ4_K>(first, x, row_begin, row_end, out, stream);
        case Format::kQ5_K:
            return multiply<Format::kQ5_K>(first, x, row_begin, row_end, out, stream);
        case Format::kQ6_K:
            return multiply<Format::kQ6_K>(first, x, row_begin, row_end, out, stream);
    }
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
