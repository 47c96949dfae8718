#include "weights/weight_quantizer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "kernels/half.h"
#include "kernels/weight_block.h"

namespace tuili {
namespace {

constexpr int kMaxFitWeights = 512;
constexpr int kFitsPerItem = 32;

// Weights [first, first + count) as float32, zeros up to `padded`. Returns whether all are finite.
bool load_weights(Format format, const uint8_t* data, size_t first, int count, int padded, float* out) {
    bool is_finite = true;
    for (int i = 0; i < count; i++) {
        uint32_t bits = 0;
        if (format == Format::kF32) {
            memcpy(&bits, data + (first + i) * 4, 4);
        } else {
            uint16_t narrow;
            memcpy(&narrow, data + (first + i) * 2, 2);
            bits = format == Format::kBF16 ? static_cast<uint32_t>(narrow) << 16
                                           : __builtin_bit_cast(uint32_t, half_to_float(narrow));
        }
        is_finite &= (bits & 0x7F800000) != 0x7F800000;
        memcpy(out + i, &bits, 4);
    }
    std::fill(out + count, out + padded, 0.0f);
    return is_finite;
}

constexpr bool has_min(Format format) {
    return format == Format::kQ4_1 || format == Format::kQ5_1 || format == Format::kQ2_K || format == Format::kQ4_K ||
           format == Format::kQ5_K;
}

bool is_finite_half(uint16_t half) { return (half & 0x7C00) != 0x7C00; }

// Weights beyond what float16 scales reach have none.
bool has_finite_scales(Format format, const WeightBlock& block) {
    return is_finite_half(block.d) && (!has_min(format) || is_finite_half(block.dmin));
}

}  // namespace

bool quantize_weights(Format target, Format source, const uint8_t* data, size_t num_weights, const Kernels& kernels,
                      ThreadPool& pool, uint8_t* out) {
    const int width = fit_weights(target), block = block_weights(target);
    const size_t per_item = static_cast<size_t>(width) * kFitsPerItem, block_bytes = source_row_bytes(target, block);
    std::atomic<bool> is_finite{true};
    const auto fit = [&](size_t first) {
        alignas(64) float values[kMaxFitWeights] = {};
        WeightBlock blocks[kFitGroups];
        const int count = static_cast<int>(std::min<size_t>(width, num_weights - first));
        if (!load_weights(source, data, first, count, width, values)) is_finite = false;
        kernels.fit_blocks(target, values, blocks);
        for (int b = 0; b * block < count; b++) {
            if (!has_finite_scales(target, blocks[b])) is_finite = false;
            write_block(target, blocks[b], out + (first / block + b) * block_bytes);
        }
    };
    pool.run([&](Worker& worker) {
        worker.stage(static_cast<int>((num_weights + per_item - 1) / per_item), [&](int item) {
            const size_t begin = item * per_item, end = std::min(begin + per_item, num_weights);
            for (size_t first = begin; first < end; first += width) fit(first);
        });
    });
    return is_finite;
}

}  // namespace tuili
