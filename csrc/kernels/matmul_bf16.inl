// One panel of bfloat16 weights times rows of activations rounded to bfloat16, two k at a time. Knows the panel's
// layout; not models or threads.
//
// Lanes are output columns. A column's sum takes one pair after the other, k ascending by pairs, whatever the tile.
#pragma once
#include "kernels/kernels.h"
#include "kernels/matmul_tile.inl"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

#if defined(TUILI_ISA_AVX512)
constexpr int kPairRows = 12;  // rows of a tile; two registers of columns each
#else
constexpr int kPairRows = 1;
#endif
constexpr int kPairVectors = kPanelCols / 16;
constexpr int kPairBytes = kPanelCols * 4;  // of a panel

template <int kRows>
void multiply_pairs(const uint8_t* panel, const Activations& x, int row, float* out, Stream stream) {
    F32x16 acc[kRows][kPairVectors];
    for (auto& sums : acc)
        for (auto& sum : sums) sum = broadcast(0.0f);
    const int num_pairs = (x.cols + 1) / 2;
    const uint16_t* values = x.bf16 + static_cast<size_t>(row) * kGroup;
    for (int first = 0; first < num_pairs; first += kGroup / 2) {
        const int count = num_pairs - first < kGroup / 2 ? num_pairs - first : kGroup / 2;
        for (int pair = 0; pair < count; pair++) {
            stream.prefetch_ahead(panel, kPairBytes);
            I32x16 weights[kPairVectors];
            for (int v = 0; v < kPairVectors; v++) weights[v] = load_pairs(panel + 64 * v);
#pragma GCC unroll 12
            for (int r = 0; r < kRows; r++) {
                const I32x16 factors = broadcast_pair(values + r * kGroup + 2 * pair);
                for (int v = 0; v < kPairVectors; v++) acc[r][v] = add_bf16_products(acc[r][v], weights[v], factors);
            }
            panel += kPairBytes;
        }
        values += static_cast<size_t>(x.row_stride) * kGroup;
    }
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kPairVectors; v++) store(out + r * kPanelCols + 16 * v, acc[r][v]);
}

template <int kRows = kPairRows>
TUILI_INLINE void multiply_num_pair_rows(int num_rows, const uint8_t* panel, const Activations& x, int row, float* out,
                                         const Stream& stream) {
    if (num_rows == kRows) return multiply_pairs<kRows>(panel, x, row, out, stream);
    if constexpr (kRows > 1) multiply_num_pair_rows<kRows - 1>(num_rows, panel, x, row, out, stream);
}

// Splits the rows into the fewest tiles, of heights that differ by at most one.
inline void matmul_bf16_panel(const PackedMatrix& w, int panel, const Activations& x, int row, int row_end, float* out,
                              const uint8_t* next) {
    const uint8_t* first = w.panels + static_cast<size_t>(panel) * w.panel_bytes;
    int num_tiles = (row_end - row + kPairRows - 1) / kPairRows;
    Stream stream{first + w.panel_bytes, next, w.panel_bytes, num_tiles};
    for (; num_tiles > 0; num_tiles--) {
        const int num_rows = (row_end - row) / num_tiles;
        multiply_num_pair_rows(num_rows, first, x, row, out, stream);
        stream.blocks_to_skip++;
        row += num_rows;
        out += num_rows * kPanelCols;
    }
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
