// Weights to levels and scales, sixteen groups at a time, one to a lane. The twin of tuili.quant.fitting and of the
// formats' encoders, operation for operation: sums run over a group's members in order, and nothing is fused.
#pragma once
#include "kernels/half.h"
#include "kernels/simd.h"
#include "kernels/weight_block.h"

namespace tuili::TUILI_ISA_NAMESPACE {

enum class Fit : uint8_t { kPeak, kRange, kBytes, kSigned, kWithMin, kUneven };

struct FitRule {
    Fit fit;
    int top;        // signed levels are -top .. top - 1, others 0 .. top
    int share_top;  // shared scales likewise; 0: none
    float first = 0.0f;
    int num_candidates = 0;
};

constexpr FitRule fit_rule(Format format) {
    switch (format) {
        case Format::kQ4_0:
            return {Fit::kPeak, 8, 0};
        case Format::kQ5_0:
            return {Fit::kPeak, 16, 0};
        case Format::kQ4_1:
            return {Fit::kRange, 15, 0};
        case Format::kQ5_1:
            return {Fit::kRange, 31, 0};
        case Format::kQ2_K:
            return {Fit::kWithMin, 3, 15, -0.5f, 16};
        case Format::kQ3_K:
            return {Fit::kSigned, 4, 32};
        case Format::kQ4_K:
            return {Fit::kWithMin, 15, 63, -1.0f, 21};
        case Format::kQ5_K:
            return {Fit::kWithMin, 31, 63, -0.5f, 16};
        case Format::kQ6_K:
            return {Fit::kSigned, 32, 128};
        case Format::kIQ4_NL:
            return {Fit::kUneven, 16, 0};
        case Format::kIQ4_XS:
            return {Fit::kUneven, 16, 32};
        default:
            return {Fit::kBytes, 127, 0};
    }
}

constexpr float kUnevenValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Member k of every group.
template <int kSize>
struct Members {
    alignas(64) float values[kSize][kFitGroups];
    TUILI_INLINE F32x16 operator[](int k) const { return load(values[k]); }
};

// 16 scales or mins, to be shared and read one by one.
struct PerGroup {
    alignas(64) float values[kFitGroups];
    TUILI_INLINE F32x16 lanes() const { return load(values); }
};

// a / b, and 0 where b is not above 1e-30 in magnitude.
TUILI_INLINE F32x16 quotient(F32x16 a, F32x16 b) {
    const Mask16 usable = less(broadcast(1e-30f), abs(b));
    return select(usable, a / select(usable, b, broadcast(1.0f)), broadcast(0.0f));
}
TUILI_INLINE float quotient(float a, float b) { return __builtin_fabsf(b) > 1e-30f ? a / b : 0.0f; }

TUILI_INLINE F32x16 clamp(F32x16 x, float low, float high) { return min(max(x, broadcast(low)), broadcast(high)); }

// The value of largest magnitude, the first on a tie.
template <int kSize>
F32x16 peak_of(const Members<kSize>& x) {
    F32x16 peak = x[0];
    for (int k = 1; k < kSize; k++) peak = select(less(abs(peak), abs(x[k])), x[k], peak);
    return peak;
}

// The better of two scales, by what each takes from the squared error.
struct BestScale {
    F32x16 scale = broadcast(0.0f), gain = broadcast(0.0f);
    TUILI_INLINE void consider(F32x16 products, F32x16 squares) {
        const F32x16 found = quotient(products, squares);
        const F32x16 found_gain = products * found;
        scale = select(less(gain, found_gain), found, scale);
        gain = max(found_gain, gain);
    }
};

template <int kSize>
F32x16 fit_signed(const Members<kSize>& x, int top) {
    const F32x16 inverse_peak = quotient(broadcast(1.0f), peak_of(x));
    BestScale best;
    for (int step = -9; step <= 9; step++) {
        const F32x16 inverse = broadcast(-(static_cast<float>(top) + 0.1f * static_cast<float>(step))) * inverse_peak;
        F32x16 products = broadcast(0.0f), squares = broadcast(0.0f);
        for (int k = 0; k < kSize; k++) {
            const F32x16 level =
                clamp(round_even(inverse * x[k]), static_cast<float>(-top), static_cast<float>(top - 1));
            const F32x16 weighted = x[k] * x[k] * level;
            products = products + weighted * x[k];
            squares = squares + weighted * level;
        }
        best.consider(products, squares);
    }
    return best.scale;
}

// The uneven value nearest to y, and its index.
TUILI_INLINE F32x16 nearest_uneven(F32x16 y, F32x16& index) {
    F32x16 value = broadcast(kUnevenValues[0]);
    index = broadcast(0.0f);
#pragma GCC unroll 15
    for (int i = 0; i < 15; i++) {
        const Mask16 above = less(broadcast((kUnevenValues[i] + kUnevenValues[i + 1]) / 2.0f), y);
        value = select(above, broadcast(kUnevenValues[i + 1]), value);
        index = select(above, broadcast(static_cast<float>(i + 1)), index);
    }
    return value;
}

template <int kSize>
F32x16 fit_uneven(const Members<kSize>& x) {
    const F32x16 inverse_peak = quotient(broadcast(1.0f), peak_of(x));
    BestScale best;
    for (int step = -7; step <= 7; step++) {
        const F32x16 inverse = broadcast(kUnevenValues[0] + static_cast<float>(step)) * inverse_peak;
        F32x16 products = broadcast(0.0f), squares = broadcast(0.0f);
        for (int k = 0; k < kSize; k++) {
            F32x16 index;
            const F32x16 level = nearest_uneven(inverse * x[k], index);
            const F32x16 weighted = x[k] * x[k] * level;
            products = products + weighted * x[k];
            squares = squares + weighted * level;
        }
        best.consider(products, squares);
    }
    return best.scale;
}

// Sums over a group that no candidate changes, and what they are of.
template <int kSize>
struct WeightedGroup {
    Members<kSize> weights;
    F32x16 low, range, sum_w, sum_wx, sum_wxx;

    explicit WeightedGroup(const Members<kSize>& x) {
        F32x16 squares = broadcast(0.0f), high = x[0];
        low = x[0];
        for (int k = 0; k < kSize; k++) {
            squares = squares + x[k] * x[k];
            low = min(low, x[k]);
            high = max(high, x[k]);
        }
        low = min(low, broadcast(0.0f));
        range = high - low;
        const F32x16 spread = sqrt(squares / broadcast(static_cast<float>(kSize)));
        sum_w = sum_wx = sum_wxx = broadcast(0.0f);
        for (int k = 0; k < kSize; k++) {
            const F32x16 w = spread + abs(x[k]);
            store(weights.values[k], w);
            sum_w = sum_w + w;
            sum_wx = sum_wx + w * x[k];
            sum_wxx = sum_wxx + w * x[k] * x[k];
        }
    }
};

// Scales, and mins >= 0, for weights scale * level - min.
template <int kSize>
F32x16 fit_with_min(const Members<kSize>& x, const FitRule& rule, F32x16& minimum) {
    const WeightedGroup<kSize> g(x);
    const F32x16 zero = broadcast(0.0f), two = broadcast(2.0f);
    const F32x16 inverse_range = quotient(broadcast(1.0f), g.range);
    F32x16 scale = g.range / broadcast(static_cast<float>(rule.top)), best = broadcast(__builtin_inff());
    minimum = zero - g.low;  // never -0
    for (int step = 0; step < rule.num_candidates; step++) {
        const float steps = static_cast<float>(rule.top) + rule.first + 0.1f * static_cast<float>(step);
        const F32x16 inverse = broadcast(steps) * inverse_range;
        F32x16 sum_wl = zero, sum_wll = zero, sum_wlx = zero;
        for (int k = 0; k < kSize; k++) {
            const F32x16 level = clamp(round_even(inverse * (x[k] - g.low)), 0.0f, static_cast<float>(rule.top));
            const F32x16 weighted = g.weights[k] * level;
            sum_wl = sum_wl + weighted;
            sum_wll = sum_wll + weighted * level;
            sum_wlx = sum_wlx + weighted * x[k];
        }
        const F32x16 determinant = g.sum_w * sum_wll - sum_wl * sum_wl;
        F32x16 s = quotient(g.sum_w * sum_wlx - g.sum_wx * sum_wl, determinant);
        F32x16 m = quotient(sum_wll * g.sum_wx - sum_wl * sum_wlx, determinant);
        s = select(less(zero, m), quotient(sum_wlx, sum_wll), s);
        m = min(m, zero);
        const F32x16 error =
            g.sum_wxx + s * (s * sum_wll - two * sum_wlx) + m * (m * g.sum_w + two * (s * sum_wl - g.sum_wx));
        const F32x16 found = select(less(zero, s), error, broadcast(__builtin_inff()));
        const Mask16 is_better = less(found, best);
        scale = select(is_better, s, scale);
        minimum = select(is_better, zero - m, minimum);
        best = select(is_better, found, best);
    }
    return scale;
}

// Scales >= 0 [count] become integers 0 .. top under one float16.
inline uint16_t share(float* scales, int count, int top, int8_t* shares) {
    float largest = scales[0];
    for (int i = 1; i < count; i++) largest = scales[i] > largest ? scales[i] : largest;
    const uint16_t factor = float_to_half(largest / static_cast<float>(top));
    const float inverse = quotient(static_cast<float>(top), largest);
    for (int i = 0; i < count; i++) {
        const float rounded = __builtin_rintf(inverse * scales[i]);
        const float share = rounded < static_cast<float>(top) ? rounded : static_cast<float>(top);
        shares[i] = static_cast<int8_t>(share);
        scales[i] = half_to_float(factor) * share;
    }
    return factor;
}

// Scales of any sign [count] become integers -top .. top - 1 under one float16; the one of largest magnitude -top.
inline uint16_t share_signed(float* scales, int count, int top, int8_t* shares) {
    float peak = scales[0];
    for (int i = 1; i < count; i++) peak = __builtin_fabsf(scales[i]) > __builtin_fabsf(peak) ? scales[i] : peak;
    const uint16_t factor = float_to_half(peak / static_cast<float>(-top));
    const float inverse = quotient(static_cast<float>(-top), peak);
    for (int i = 0; i < count; i++) {
        float share = __builtin_rintf(inverse * scales[i]);
        share = share > static_cast<float>(-top) ? share : static_cast<float>(-top);
        share = share < static_cast<float>(top - 1) ? share : static_cast<float>(top - 1);
        shares[i] = static_cast<int8_t>(share);
        scales[i] = half_to_float(factor) * share;
    }
    return factor;
}

// The integers of `num_blocks` blocks, and the scales they stand for in the place of those found.
inline void share_scales(const FitRule& rule, int num_blocks, PerGroup& scales, PerGroup& mins, WeightBlock* out) {
    const int count = kFitGroups / num_blocks;
    for (int b = 0; b < num_blocks; b++) {
        float* first = scales.values + b * count;
        if (rule.fit != Fit::kWithMin) {
            out[b].d = share_signed(first, count, rule.share_top, out[b].scales);
            continue;
        }
        out[b].d = share(first, count, rule.share_top, out[b].scales);
        int8_t shares[kFitGroups];
        out[b].dmin = share(mins.values + b * count, count, rule.share_top, shares);
        for (int i = 0; i < count; i++) out[b].mins[i] = static_cast<uint8_t>(shares[i]);
    }
}

// Codes of member k of all groups, given what the scales and mins became.
template <Fit kFit>
TUILI_INLINE F32x16 fitted_code(F32x16 x, F32x16 scale, F32x16 min, float top) {
    if constexpr (kFit == Fit::kWithMin) return clamp(round_even(quotient(x + min, scale)), 0.0f, top);
    if constexpr (kFit == Fit::kSigned) return clamp(round_even(quotient(x, scale)), -top, top - 1.0f) + broadcast(top);
    F32x16 index;
    nearest_uneven(quotient(x, scale), index);
    return index;
}

template <int kSize>
TUILI_INLINE void put_codes(I32x16 codes, int k, int num_blocks, WeightBlock* out) {
    uint8_t bytes[kFitGroups];
    store_low8(bytes, codes);
    const int count = kFitGroups / num_blocks;
    for (int g = 0; g < kFitGroups; g++) out[g / count].codes[g % count * kSize + k] = bytes[g];
}

template <Format kFormat, int kSize>
void fit_shared(const Members<kSize>& x, WeightBlock* out) {
    constexpr FitRule rule = fit_rule(kFormat);
    constexpr int num_blocks = fit_weights(kFormat) / block_weights(kFormat);
    PerGroup scales, mins{};
    F32x16 min = broadcast(0.0f);
    if constexpr (rule.fit == Fit::kSigned) store(scales.values, fit_signed(x, rule.top));
    if constexpr (rule.fit == Fit::kUneven) store(scales.values, fit_uneven(x));
    if constexpr (rule.fit == Fit::kWithMin) store(scales.values, fit_with_min(x, rule, min));
    store(mins.values, min);
    if constexpr (rule.share_top > 0) {
        share_scales(rule, num_blocks, scales, mins, out);
    } else {
        for (int g = 0; g < kFitGroups; g++) {
            out[g].d = float_to_half(scales.values[g]);
            scales.values[g] = half_to_float(out[g].d);
        }
    }
    for (int k = 0; k < kSize; k++) {
        const F32x16 code = fitted_code<rule.fit>(x[k], scales.lanes(), mins.lanes(), static_cast<float>(rule.top));
        put_codes<kSize>(to_int(code), k, num_blocks, out);
    }
}

// 1 / scale, and 0 where that is infinite.
TUILI_INLINE F32x16 reciprocal(F32x16 scale) {
    const F32x16 inverse = broadcast(1.0f) / scale;
    return select(less(abs(inverse), broadcast(__builtin_inff())), inverse, broadcast(0.0f));
}

// x >= 0 without its fraction.
TUILI_INLINE F32x16 truncate(F32x16 x) {
    const F32x16 rounded = round_even(x);
    return select(less(x, rounded), rounded - broadcast(1.0f), rounded);
}

// The formats of 32 with a scale, or a scale and a min, of their own, as ggml's reference finds them.
template <Format kFormat>
void fit_plain(const Members<kGroup>& x, WeightBlock* out) {
    constexpr FitRule rule = fit_rule(kFormat);
    const float top = static_cast<float>(rule.top);
    const F32x16 peak = peak_of(x);
    F32x16 low = x[0], high = x[0];
    for (int k = 1; k < kGroup; k++) low = min(low, x[k]), high = max(high, x[k]);
    F32x16 scale;
    if constexpr (rule.fit == Fit::kPeak) scale = peak / broadcast(-top);
    if constexpr (rule.fit == Fit::kRange) scale = (high - low) / broadcast(top);
    if constexpr (rule.fit == Fit::kBytes) scale = abs(peak) / broadcast(top);
    const F32x16 inverse = reciprocal(scale), zero = broadcast(0.0f);
    for (int k = 0; k < kGroup; k++) {
        F32x16 code;
        if constexpr (rule.fit == Fit::kBytes) {  // halves go away from zero
            const F32x16 level = x[k] * inverse, size = abs(level);
            const F32x16 whole = truncate(size);
            const Mask16 is_below = less(size - whole, broadcast(0.5f));
            const F32x16 rounded = min(select(is_below, whole, whole + broadcast(1.0f)), broadcast(top));
            code = select(less(level, zero), -rounded, rounded);
        } else if constexpr (rule.fit == Fit::kPeak) {
            code = min(truncate(max(x[k] * inverse + broadcast(top + 0.5f), zero)), broadcast(2.0f * top - 1.0f));
        } else {
            code = min(truncate((x[k] - low) * inverse + broadcast(0.5f)), broadcast(top));
        }
        put_codes<kGroup>(to_int(code), k, kFitGroups, out);
    }
    PerGroup scales, mins;
    store(scales.values, scale);
    store(mins.values, low);
    for (int g = 0; g < kFitGroups; g++) {
        out[g].d = float_to_half(scales.values[g]);
        out[g].dmin = float_to_half(mins.values[g]);
    }
}

template <Format kFormat>
void fit_format(const float* values, WeightBlock* out) {
    constexpr int kSize = fit_group_size(kFormat);
    constexpr bool kIsPlain = fit_rule(kFormat).fit <= Fit::kBytes;
    Members<kSize> x;
    for (int g = 0; g < kFitGroups; g++) {
        for (int k = 0; k < kSize; k++) {
            const float value = values[g * kSize + k];
            x.values[k][g] = !kIsPlain && __builtin_fabsf(value) < 0x1p-30f ? 0.0f : value;
        }
    }
    if constexpr (kIsPlain)
        fit_plain<kFormat>(x, out);
    else
        fit_shared<kFormat>(x, out);
}

inline void fit_blocks(Format format, const float* values, WeightBlock* out) {
    constexpr decltype(&fit_format<Format::kQ4_0>) kFits[] = {
        fit_format<Format::kQ4_0>, fit_format<Format::kQ4_1>, fit_format<Format::kQ5_0>,   fit_format<Format::kQ5_1>,
        fit_format<Format::kQ8_0>, fit_format<Format::kQ2_K>, fit_format<Format::kQ3_K>,   fit_format<Format::kQ4_K>,
        fit_format<Format::kQ5_K>, fit_format<Format::kQ6_K>, fit_format<Format::kIQ4_NL>, fit_format<Format::kIQ4_XS>,
    };
    kFits[static_cast<int>(format) - static_cast<int>(Format::kQ4_0)](values, out);
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
