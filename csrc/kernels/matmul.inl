// One panel of a packed weight matrix times rows of activations, cut into tiles. Knows formats; not models or threads.
#pragma once
#include "kernels/kernels.h"
#include "kernels/matmul_tile.inl"
#include "kernels/matmul_unpacked.inl"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

template <Format kFormat, int kRows>
TUILI_INLINE void multiply_rows(const uint8_t* panel, const Activations& x, int row, float* out, Stream& stream) {
    for (int column = 0; column < kPanelCols; column += tile_vectors(kFormat, kRows) * kLanes) {
        if constexpr (kFormat <= Format::kBF16)
            multiply_float_tile<kFormat, kRows>(panel, column, x, row, out, stream);
        else
            multiply_tile<kFormat, kRows>(panel, column, x, row, out, stream);
        stream.blocks_to_skip++;
    }
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
    if constexpr (gains_by_unpacking(kFormat)) {
        const int num_rows = (row_end - row) / kUnpackedRows * kUnpackedRows;
        if (num_rows >= kMinUnpackedRows) {
            multiply_unpacked<kFormat>(panel, x, row, num_rows, out, stream);
            row += num_rows;
            out += num_rows * kPanelCols;
            stream.next = nullptr;  // fetched
        }
    }
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
    constexpr decltype(&multiply<Format::kF32>) kProducts[] = {
        multiply<Format::kF32>,  multiply<Format::kF16>,    multiply<Format::kBF16>,   multiply<Format::kQ4_0>,
        multiply<Format::kQ4_1>, multiply<Format::kQ5_0>,   multiply<Format::kQ5_1>,   multiply<Format::kQ8_0>,
        multiply<Format::kQ2_K>, multiply<Format::kQ3_K>,   multiply<Format::kQ4_K>,   multiply<Format::kQ5_K>,
        multiply<Format::kQ6_K>, multiply<Format::kIQ4_NL>, multiply<Format::kIQ4_XS>,
    };
    kProducts[static_cast<int>(w.format)](first, x, row_begin, row_end, out, stream);
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
