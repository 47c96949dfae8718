// Reductions over a row of logits, for one instruction set. Knows numbers; docs/sampling.md and sampler.cpp
// know what they are for.
#pragma once
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

TUILI_INLINE F32x16 load_or_lowest(const float* x, int n) {
    return n >= 16 ? load(x) : select(first_lanes(n), load_partial(x, n), broadcast(-__builtin_inff()));
}

inline float max_value(const float* x, int n) {
    F32x16 best[4];
    for (auto& b : best) b = broadcast(-__builtin_inff());
    int i = 0;
    for (; i + 64 <= n; i += 64) {
        for (int j = 0; j < 4; j++) best[j] = max(best[j], load(x + i + 16 * j));
    }
    for (; i < n; i += 16) best[0] = max(best[0], load_or_lowest(x + i, n - i));
    return reduce_max(max(max(best[0], best[1]), max(best[2], best[3])));
}

inline int argmax(const float* x, int n) {
    const F32x16 best = broadcast(max_value(x, n));
    for (int i = 0; i < n; i += 16) {
        const int count = n - i < 16 ? n - i : 16;
        const uint32_t hits = bits(equal(load_or_lowest(x + i, n - i), best)) & ((1u << count) - 1);
        if (hits != 0) return i + __builtin_ctz(hits);
    }
    return 0;  // nothing but NaN
}

// Floats are summed over 128 values at most, then in double.
inline double sum_exp(const float* x, float max, int n) {
    const F32x16 largest = broadcast(max);
    double total = 0.0;
    for (int i = 0; i < n; i += 128) {
        F32x16 sum = broadcast(0.0f);
        for (int j = i; j < n && j < i + 128; j += 16) sum = sum + exp(load_or_lowest(x + j, n - j) - largest);
        total += static_cast<double>(reduce_add(sum));
    }
    return total;
}

inline void exp_weights(const float* x, float max, float temperature, int n, float* out) {
    const F32x16 t = broadcast(temperature);
    const F32x16 largest = broadcast(max) / t;
    for (int i = 0; i < n; i += 16) {
        const F32x16 weight = exp(load_or_lowest(x + i, n - i) / t - largest);
        if (n - i >= 16) {
            store(out + i, weight);
        } else {
            store_partial(out + i, weight, n - i);
        }
    }
}

// Sum of exp_weights, in double: eight interleaved sums.
inline double sum_weights(const float* x, float max, float temperature, int n) {
    const F32x16 t = broadcast(temperature);
    const F32x16 largest = broadcast(max) / t;
    double sums[8] = {};
    for (int i = 0; i < n; i += 16) {
        float weights[16];
        store(weights, exp(load_or_lowest(x + i, n - i) / t - largest));
        for (int j = 0; j < 16; j++) sums[j % 8] += static_cast<double>(weights[j]);
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// The largest of each 32 values.
inline void block_max(const float* x, int n, float* out) {
    for (int i = 0; i < n; i += 32) {
        const F32x16 second = n - i > 16 ? load_or_lowest(x + i + 16, n - i - 16) : broadcast(-__builtin_inff());
        out[i / 32] = reduce_max(max(load_or_lowest(x + i, n - i), second));
    }
}

inline int count_greater(const float* x, float threshold, int n) {
    int count = 0;
    for (int i = 0; i < n; i += 16) {
        const uint32_t lanes = n - i < 16 ? (1u << (n - i)) - 1 : 0xFFFFu;
        count += __builtin_popcount(bits(less(broadcast(threshold), load_or_lowest(x + i, n - i))) & lanes);
    }
    return count;
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
