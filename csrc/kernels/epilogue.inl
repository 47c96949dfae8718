// What is done to a finished tile of a product while it is in cache, for one instruction set: norm factor and bias,
// then storing, the residual sum, activations or the head's reductions. Knows tiles; not models or threads.
#pragma once
#include "kernels/elementwise.inl"
#include "kernels/kernels.h"
#include "kernels/quantize.inl"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

// Row i of a tile. Columns past its width are what zero weights give.
TUILI_INLINE Pair tile_row(const PanelTile& tile, int i) {
    const float* values = tile.values + i * kPanelCols;
    Pair row = {load(values), load(values + 16)};
    if (tile.factors) {
        const F32x16 factor = broadcast(tile.factors[i]);
        row = {row.first * factor, row.second * factor};
    }
    if (tile.bias) row = {row.first + load(tile.bias), row.second + load(tile.bias + 16)};
    return row;
}

inline void store_tile(const PanelTile& tile, float* out, size_t stride) {
    for (int i = 0; i < tile.num_rows; i++, out += stride) {
        const Pair row = tile_row(tile, i);
        store_pair(out, row.first, row.second, tile.width);
    }
}

inline void add_tile(const PanelTile& tile, float scale, float* x, size_t stride, const float* gain,
                     Activations* next) {
    const F32x16 factor = broadcast(scale);
    for (int i = 0; i < tile.num_rows; i++, x += stride) {
        const Pair row = tile_row(tile, i), before = load_pair(x, tile.width);
        const F32x16 first = fma(row.first, factor, before.first), second = fma(row.second, factor, before.second);
        store_pair(x, first, second, tile.width);
        if (next) put_group(first, second, gain, *next, tile.panel, tile.row + i, tile.width);
    }
}

inline void gated_tile(int kind, const PanelTile& gate, const PanelTile& up, Activations& next) {
    with_activation(kind, [&]<int kKind>() {
        for (int i = 0; i < gate.num_rows; i++) {
            const Pair g = tile_row(gate, i), u = tile_row(up, i);
            put_group(activate<kKind>(g.first) * u.first, activate<kKind>(g.second) * u.second, nullptr, next,
                      gate.panel, gate.row + i, gate.width);
        }
    });
}

inline void activated_tile(int kind, const PanelTile& tile, Activations& next) {
    with_activation(kind, [&]<int kKind>() {
        for (int i = 0; i < tile.num_rows; i++) {
            const Pair row = tile_row(tile, i);
            put_group(activate<kKind>(row.first), activate<kKind>(row.second), nullptr, next, tile.panel, tile.row + i,
                      tile.width);
        }
    });
}

TUILI_INLINE F32x16 cap_logit(F32x16 logit, float softcap) {
    return softcap > 0.0f ? broadcast(softcap) * tanh(logit / broadcast(softcap)) : logit;
}

inline void logit_tile(const PanelTile& tile, float scale, float softcap, float* out) {
    const F32x16 factor = broadcast(scale);
    for (int i = 0; i < tile.num_rows; i++, out += kPanelCols) {
        const Pair row = tile_row(tile, i);
        store(out, cap_logit(row.first * factor, softcap));
        store(out + 16, cap_logit(row.second * factor, softcap));
    }
}

inline void best_of_rows(const float* values, int num_rows, int width, float* best, uint8_t* column, size_t stride) {
    const F32x16 lowest = broadcast(-__builtin_inff());
    const int rest = width < 16 ? 0 : width - 16;
    for (int i = 0; i < num_rows; i++, values += kPanelCols) {
        const F32x16 first = select(first_lanes(width - rest), load(values), lowest);
        const F32x16 second = select(first_lanes(rest), load(values + 16), lowest);
        const float largest = reduce_max(max(first, second));
        const uint32_t hits = bits(equal(first, broadcast(largest))) | bits(equal(second, broadcast(largest))) << 16;
        best[i * stride] = largest;
        column[i * stride] = static_cast<uint8_t>(hits == 0 ? 0 : __builtin_ctz(hits));  // 0: nothing but NaN
    }
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
