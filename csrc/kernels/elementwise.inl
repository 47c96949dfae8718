// Norms, activations, rotary embedding and other functions over one row, for one instruction set.
// Knows vectors of floats; not where they come from.
#pragma once
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

// The order of models.spec.Activation.
enum ActivationKind { kSilu, kGelu, kGeluTanh, kRelu, kRelu2 };

// Calls body(offset, count) for 16 lanes at a time; only the last count may be less.
template <class Body>
TUILI_INLINE void for_lanes(int n, Body body) {
    int i = 0;
    for (; i + 16 <= n; i += 16) body(i, 16);
    if (i < n) body(i, n - i);
}

TUILI_INLINE F32x16 load_lanes(const float* p, int count) { return count == 16 ? load(p) : load_partial(p, count); }
TUILI_INLINE void store_lanes(float* p, F32x16 a, int count) {
    if (count == 16) {
        store(p, a);
    } else {
        store_partial(p, a, count);
    }
}

// Up to 32 consecutive values: `width` of them are read and written, the others are zero.
struct Pair {
    F32x16 first, second;
};
TUILI_INLINE Pair load_pair(const float* p, int width) {
    if (width == 32) return {load(p), load(p + 16)};
    const int rest = width < 16 ? 0 : width - 16;
    return {load_partial(p, width - rest), load_partial(p + 16, rest)};
}
TUILI_INLINE void store_pair(float* p, F32x16 first, F32x16 second, int width) {
    const int rest = width < 16 ? 0 : width - 16;
    store_lanes(p, first, width - rest);
    store_lanes(p + 16, second, rest);
}

// Sum of term(offset, count) over a row: four interleaved accumulators, then one tree.
template <class Term>
TUILI_INLINE float sum_terms(int n, Term term) {
    F32x16 sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
    int i = 0;
    for (; i + 64 <= n; i += 64) {
        for (int j = 0; j < 4; j++) sums[j] = sums[j] + term(i + 16 * j, 16);
    }
    for (int j = 0; i < n; i += 16, j++) sums[j] = sums[j] + term(i, n - i < 16 ? n - i : 16);
    return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

TUILI_INLINE F32x16 inverse_root(F32x16 mean_square, float eps) {
    return broadcast(1.0f) / sqrt(mean_square + broadcast(eps));
}

inline void rms_norm(const float* x, const float* gain, float eps, int n, float* out) {
    const float sum = sum_terms(n, [&](int i, int count) {
        const F32x16 v = load_lanes(x + i, count);
        return v * v;
    });
    const F32x16 factor = inverse_root(broadcast(sum / static_cast<float>(n)), eps);
    for_lanes(n, [&](int i, int count) {
        store_lanes(out + i, load_lanes(x + i, count) * factor * load_lanes(gain + i, count), count);
    });
}

inline void layer_norm(const float* x, const float* gain, const float* bias, float eps, int n, float* out) {
    const auto size = static_cast<float>(n);
    const float mean = sum_terms(n, [&](int i, int count) { return load_lanes(x + i, count); }) / size;
    const float variance = sum_terms(n, [&](int i, int count) {
        const F32x16 v = load_lanes(x + i, count) - broadcast(mean);
        return select(first_lanes(count), v * v, broadcast(0.0f));
    });
    const F32x16 factor = inverse_root(broadcast(variance / size), eps);
    for_lanes(n, [&](int i, int count) {
        const F32x16 normed = (load_lanes(x + i, count) - broadcast(mean)) * factor;
        const F32x16 shift = bias == nullptr ? broadcast(0.0f) : load_lanes(bias + i, count);
        store_lanes(out + i, fma(normed, load_lanes(gain + i, count), shift), count);
    });
}

// erf within 1.5e-7 (Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26).
TUILI_INLINE F32x16 error_function(F32x16 x) {
    const F32x16 a = abs(x);
    const F32x16 t = broadcast(1.0f) / fma(a, broadcast(0.3275911f), broadcast(1.0f));
    F32x16 p = broadcast(1.061405429f);
    p = fma(p, t, broadcast(-1.453152027f));
    p = fma(p, t, broadcast(1.421413741f));
    p = fma(p, t, broadcast(-0.284496736f));
    p = fma(p, t, broadcast(0.254829592f));
    const F32x16 magnitude = broadcast(1.0f) - p * t * exp(-(a * a));
    return as_float(as_int(magnitude) | (as_int(x) & broadcast_int(INT32_MIN)));
}

template <int kKind>
TUILI_INLINE F32x16 activate(F32x16 x) {
    const F32x16 zero = broadcast(0.0f), one = broadcast(1.0f), half = broadcast(0.5f);
    if constexpr (kKind == kSilu) return x * sigmoid(x);
    if constexpr (kKind == kGelu) return half * x * (one + error_function(x * broadcast(0.707106781f)));
    if constexpr (kKind == kGeluTanh) {
        const F32x16 inner = fma(x * x * x, broadcast(0.044715f), x) * broadcast(0.797884561f);
        return half * x * (one + tanh(inner));
    }
    const F32x16 positive = select(less(zero, x), x, zero);
    if constexpr (kKind == kRelu2) return positive * positive;
    return positive;
}

// Calls body.operator()<kind>() for a kind known at run time.
template <class Body>
TUILI_INLINE void with_activation(int kind, Body body) {
    switch (kind) {
        case kSilu:
            return body.template operator()<kSilu>();
        case kGelu:
            return body.template operator()<kGelu>();
        case kGeluTanh:
            return body.template operator()<kGeluTanh>();
        case kRelu:
            return body.template operator()<kRelu>();
        default:
            return body.template operator()<kRelu2>();
    }
}

inline void add_scaled(float* x, const float* y, float scale, int n) {
    for_lanes(n, [&](int i, int count) {
        store_lanes(x + i, fma(load_lanes(y + i, count), broadcast(scale), load_lanes(x + i, count)), count);
    });
}

inline void multiply(float* x, float factor, int n) {
    for_lanes(n, [&](int i, int count) { store_lanes(x + i, load_lanes(x + i, count) * broadcast(factor), count); });
}

inline void rope(float* head, const float* cos, const float* sin, int dim) {
    const int half = dim / 2;
    for_lanes(half, [&](int i, int count) {
        const F32x16 a = load_lanes(head + i, count), b = load_lanes(head + half + i, count);
        const F32x16 c = load_lanes(cos + i, count), s = load_lanes(sin + i, count);
        store_lanes(head + i, fma(a, c, -(b * s)), count);
        store_lanes(head + half + i, fma(b, c, a * s), count);
    });
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
