// A panel times many rows where taking codes apart costs about as much as multiplying them: a stretch of the panel is
// unpacked once, into level 1 cache, for all tiles of rows. Knows tiles; the bits are those of the packed ones.
#pragma once
#include "kernels/kernels.h"
#include "kernels/matmul_tile.inl"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

constexpr int kUnpackedRows = 4;  // of a tile; sums and codes fill the registers, float sums wait in memory
constexpr int kUnpackedVectors = 2;
constexpr int kStretch = kSuperGroups;  // blocks unpacked at once

// Whether rows of this format are worth unpacking a panel for, and from how many on.
#if defined(TUILI_ISA_AVX2)
constexpr bool gains_by_unpacking(Format format) { return format > Format::kBF16 && format != Format::kQ8_0; }
#else
constexpr bool gains_by_unpacking(Format) { return false; }
#endif
constexpr int kMinUnpackedRows = 2 * kUnpackedRows;

constexpr BlockShape unpacked_shape(BlockShape shape) {
    shape.pairs_steps = false;
    return shape;
}

// A byte to a code; scales and mins as floats.
template <BlockShape kShape>
struct UnpackedBlock {
    alignas(64) uint8_t steps[8][kStepBytes];
    alignas(64) float scales[kShape.parts][kPanelCols];
    alignas(64) float mins[kShape.has_min ? kShape.parts : 1][kPanelCols];
};

// The fields of an unpacked block from some column on.
template <BlockShape kBlockShape>
struct UnpackedColumns {
    static constexpr BlockShape kShape = kBlockShape;
    const UnpackedBlock<kShape>& block;
    int first_column;

    template <int kStep>
    TUILI_INLINE Codes codes(int v) const {
        return load_codes(block.steps[kStep] + (first_column + v * kLanes) * 4);
    }
    TUILI_INLINE F32xN scale(int part, int v) const { return load_n(block.scales[part] + first_column + v * kLanes); }
    TUILI_INLINE F32xN min(int part, int v) const { return load_n(block.mins[part] + first_column + v * kLanes); }
};

template <Format kFormat>
using Unpacked = UnpackedBlock<unpacked_shape(Block<kFormat>::kShape)>;

template <int... kSteps, Format kFormat>
TUILI_INLINE void unpack_steps(const Block<kFormat>& block, int v, Unpacked<kFormat>& out) {
    (store_codes(out.steps[kSteps] + v * kLanes * 4, block.template codes<kSteps>(v)), ...);
}

template <Format kFormat>
TUILI_INLINE void unpack_block(const Block<kFormat>& block, Unpacked<kFormat>& out) {
    constexpr BlockShape kShape = Block<kFormat>::kShape;
    for (int v = 0; v < kPanelVectors; v++) {
        unpack_steps<0, 1, 2, 3, 4, 5, 6, 7>(block, v, out);
        for (int part = 0; part < kShape.parts; part++) {
            store(out.scales[part] + v * kLanes, block.scale(part, v));
            if constexpr (kShape.has_min) store(out.mins[part] + v * kLanes, block.min(part, v));
        }
    }
}

// Returns the end of what was unpacked: num_blocks blocks, whole runs.
template <Format kFormat>
const uint8_t* unpack(const uint8_t* panel, int num_blocks, Unpacked<kFormat>* out, Stream& stream) {
    constexpr PackedLayout layout = packed_layout(kFormat);
    for (int run = 0; run < num_blocks; run += layout.blocks_per_run()) {
        Block<kFormat> block(panel, 0);
        stream.prefetch_ahead(panel, layout.run_bytes());
        panel += layout.run_bytes();
        for (int b = 0; b < layout.blocks_per_run(); b++) {
            unpack_block(block, *out++);
            block.advance();
        }
    }
    return panel;
}

// Adds the products of a stretch with kUnpackedRows rows to out.
template <BlockShape kShape>
void add_stretch(const UnpackedBlock<kShape>* blocks, int num_blocks, const Activations& x, size_t first, float* out) {
    for (int column = 0; column < kPanelCols; column += kUnpackedVectors * kLanes) {
        Tile<UnpackedColumns<kShape>, kUnpackedRows, kUnpackedVectors> tile;
        load_tile(out + column, tile.acc);
        size_t at = first;
        for (int b = 0; b < num_blocks; b++) {
            tile.add_group({blocks[b], column}, x, at);
            at += x.row_stride;
        }
        store_tile(tile.acc, out + column);
    }
}

// num_rows: whole tiles.
template <Format kFormat>
void multiply_unpacked(const uint8_t* panel, const Activations& x, int row, int num_rows, float* out, Stream stream) {
    Unpacked<kFormat> blocks[kStretch];
    const int num_groups = x.cols / kGroup;
    memset(out, 0, static_cast<size_t>(num_rows) * kPanelCols * sizeof(float));
    for (int group = 0; group < num_groups; group += kStretch) {
        const int num_blocks = num_groups - group < kStretch ? num_groups - group : kStretch;
        panel = unpack<kFormat>(panel, num_blocks, blocks, stream);
        const size_t first = static_cast<size_t>(group) * x.row_stride + row;
        for (int r = 0; r < num_rows; r += kUnpackedRows) {
            add_stretch(blocks, num_blocks, x, first + r, out + r * kPanelCols);
        }
    }
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
