// Activations to the forms that matrices multiply: int8 with a scale per 32 values, bfloat16. Knows rows and groups;
// not weights.
//
// m = max|x|; scale = m / 127; q = x * (127 / m) rounded to nearest even, so |q| <= 127.
// A group with m < 1e-30 counts as zero: 127 / m must not overflow, nor results depend on the denormal mode.
// A group that holds NaN or infinity gets scale NaN and q = 0, so its row comes out as NaN and no other row does.
#pragma once
#include "kernels/elementwise.inl"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

// The codes of one group, 16 each, and what is derived from them.
TUILI_INLINE void store_group(Activations& x, size_t at, I32x16 q0, I32x16 q1, float scale) {
    store_low8(x.q + at * kGroup, q0);
    store_low8(x.q + at * kGroup + 16, q1);
    const int32_t half = reduce_add(q0);
    const int32_t sum = half + reduce_add(q1);
    x.scale[at] = scale;
    x.scaled_sum[at] = scale * static_cast<float>(sum);
    x.sum[at] = sum;
    if (x.half_sum) x.half_sum[at] = half;
}

TUILI_INLINE void quantize(F32x16 v0, F32x16 v1, Activations& x, size_t at) {
    // Magnitudes compare as integers, where NaN is above infinity.
    const float m = __builtin_bit_cast(float, reduce_max(max(as_int(abs(v0)), as_int(abs(v1)))));
    const I32x16 zero = broadcast_int(0);
    if (m < 1e-30f) return store_group(x, at, zero, zero, 0.0f);
    if (!(m < __builtin_inff())) return store_group(x, at, zero, zero, __builtin_nanf(""));
    const F32x16 inverse = broadcast(127.0f / m);
    store_group(x, at, to_int(v0 * inverse), to_int(v1 * inverse), m / 127.0f);
}

TUILI_INLINE void round_group(F32x16 v0, F32x16 v1, Activations& x, size_t at) {
    store_bf16(x.bf16 + at * kGroup, v0);
    store_bf16(x.bf16 + at * kGroup + 16, v1);
}

inline void quantize_group(const float* values, Activations& x, int group, int row) {
    const size_t at = static_cast<size_t>(group) * x.row_stride + row;
    const F32x16 v0 = load(values), v1 = load(values + 16);
    if (x.bf16) round_group(v0, v1, x, at);
    if (x.q) quantize(v0, v1, x, at);
}

// One group of one row into all forms of x; values past `width` do not count. gain [cols] may be null.
TUILI_INLINE void put_group(F32x16 v0, F32x16 v1, const float* gain, Activations& x, int group, int row, int width) {
    const size_t at = static_cast<size_t>(group) * x.row_stride + row;
    if (x.square_sum) x.square_sum[at] = reduce_add(fma(v1, v1, v0 * v0));
    if (gain) {
        v0 = v0 * load(gain + group * kGroup);
        v1 = v1 * load(gain + group * kGroup + 16);
    }
    if (x.f32) store_pair(x.f32 + static_cast<size_t>(row) * x.cols + group * kGroup, v0, v1, width);
    if (x.q && width == kGroup) quantize(v0, v1, x, at);
    if (!x.bf16) return;
    if (width < kGroup) {
        const F32x16 zero = broadcast(0.0f);
        v0 = select(first_lanes(width < 16 ? width : 16), v0, zero);
        v1 = select(first_lanes(width < 16 ? 0 : width - 16), v1, zero);
    }
    round_group(v0, v1, x, at);
}

inline void quantize_row(const float* values, const float* gain, Activations& x, int row) {
    for (int group = 0; group * kGroup < x.cols; group++) {
        const int width = x.cols - group * kGroup < kGroup ? x.cols - group * kGroup : kGroup;
        const Pair v = load_pair(values + group * kGroup, width);
        put_group(v.first, v.second, gain, x, group, row, width);
    }
}

inline void norm_factors(const Activations& x, float eps, float* factors) {
    const int num_groups = (x.cols + kGroup - 1) / kGroup;
    const F32x16 size = broadcast(static_cast<float>(x.cols));
    for_lanes(x.num_rows, [&](int row, int count) {
        F32x16 sum = broadcast(0.0f);
        for (int group = 0; group < num_groups; group++) {
            sum = sum + load_lanes(x.square_sum + static_cast<size_t>(group) * x.row_stride + row, count);
        }
        store_lanes(factors + row, inverse_root(sum / size, eps), count);
    });
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
