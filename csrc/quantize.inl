// Activations to int8, one scale per 32 values. Knows rows and groups; not weights.
//
// m = max|x|; scale = m / 127; q = x * (127 / m) rounded to nearest even, so |q| <= 127.
// A group with m < 1e-30 counts as zero: 127 / m must not overflow, nor results depend on the denormal mode.
// A group that holds NaN or infinity gets scale NaN and q = 0, so its row comes out as NaN and no other row does.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

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

void quantize_group(const float* values, Activations& x, int group, int row) {
    const size_t at = static_cast<size_t>(group) * x.row_stride + row;
    const F32x16 v0 = load(values), v1 = load(values + 16);
    // Magnitudes compare as integers, where NaN is above infinity.
    const float m = __builtin_bit_cast(float, reduce_max(max(as_int(abs(v0)), as_int(abs(v1)))));
    const I32x16 zero = broadcast_int(0);
    if (m < 1e-30f) return store_group(x, at, zero, zero, 0.0f);
    if (!(m < __builtin_inff())) return store_group(x, at, zero, zero, __builtin_nanf(""));
    const F32x16 inverse = broadcast(127.0f / m);
    store_group(x, at, to_int(v0 * inverse), to_int(v1 * inverse), m / 127.0f);
}

void quantize_row(const float* values, Activations& x, int row) {
    if (x.f32) memcpy(x.f32 + static_cast<size_t>(row) * x.cols, values, sizeof(float) * x.cols);
    if (!x.q) return;
    for (int group = 0; group < x.cols / kGroup; group++) quantize_group(values + group * kGroup, x, group, row);
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
