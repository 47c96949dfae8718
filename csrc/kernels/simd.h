// Sixteen-lane vectors for one instruction set, chosen by the including translation unit, which defines
// TUILI_ISA_NAMESPACE and one of TUILI_ISA_AVX512, TUILI_ISA_AVX2, TUILI_ISA_SCALAR; TUILI_ISA_BF16 where products of
// bfloat16 pairs are wanted. Knows lanes; not formats or models.
//
// Every function gives the same bits on every instruction set: lanes never mix, reductions follow one tree
// (16 -> 8 -> 4 -> 2 -> 1, lane i with lane i + half), fma is fused everywhere, and max, min, comparisons and
// conversions treat NaN alike. Nothing here may emit code shared between translation units, hence the
// per-instruction-set namespace and builtins instead of inline standard library functions.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// Vectors must stay in registers; scalars and instrumented code need not, and would take minutes to compile.
#if defined(TUILI_ISA_SCALAR) || defined(__SANITIZE_ADDRESS__)
#define TUILI_INLINE inline
#else
#define TUILI_INLINE inline __attribute__((always_inline))
#endif

#if defined(TUILI_ISA_AVX512)
#include "kernels/simd_avx512.h"
#elif defined(TUILI_ISA_AVX2)
#include "kernels/simd_avx2.h"
#else
#include "kernels/simd_scalar.h"
#endif

namespace tuili::TUILI_ISA_NAMESPACE {

TUILI_INLINE F32x16 operator-(F32x16 a) { return as_float(as_int(a) ^ broadcast_int(INT32_MIN)); }
TUILI_INLINE F32x16 abs(F32x16 a) { return as_float(as_int(a) & broadcast_int(INT32_MAX)); }

// bfloat16 values at p, widened, and floats rounded to nearest even (NaN stays NaN).
TUILI_INLINE F32x16 load_bf16(const uint16_t* p) { return as_float(shift_left<16>(load_u16(p))); }
TUILI_INLINE I32x16 to_bf16(F32x16 a) {
    const I32x16 u = as_int(a);
    const I32x16 odd = shift_right<16>(u) & broadcast_int(1);
    const I32x16 rounded = shift_right<16>(u + broadcast_int(0x7FFF) + odd);
    return select(equal(a, a), rounded, shift_right<16>(u) | broadcast_int(0x40));
}
TUILI_INLINE void store_bf16(uint16_t* p, F32x16 a) { store_low16(p, to_bf16(a)); }

// Two bfloat16 values in each lane, and such a pair in every lane.
TUILI_INLINE I32x16 load_pairs(const void* p) { return load_int(static_cast<const int32_t*>(p)); }
TUILI_INLINE I32x16 broadcast_pair(const void* p) {
    int32_t two;
    memcpy(&two, p, sizeof two);
    return broadcast_int(two);
}
TUILI_INLINE F32x16 even_of_pairs(I32x16 pairs) { return as_float(shift_left<16>(pairs)); }
TUILI_INLINE F32x16 odd_of_pairs(I32x16 pairs) { return as_float(upper_halves(pairs)); }

#if defined(TUILI_ISA_BF16) && !defined(TUILI_ISA_AVX512)
// sum + a.odd * b.odd, rounded, + a.even * b.even: what AVX-512 BF16 computes, where no denormals come up.
TUILI_INLINE F32x16 add_bf16_products(F32x16 sum, I32x16 a, I32x16 b) {
    return fma(even_of_pairs(a), even_of_pairs(b), fma(odd_of_pairs(a), odd_of_pairs(b), sum));
}
#endif

// e^x within 1 ulp; exactly 0 below -87.33 (no denormal results), inf above 88.72, NaN for NaN.
// x = n ln 2 + r; e^r = 1 + r + r^2 P(r) with P a near-minimax fit of degree 4 on |r| <= ln(2) / 2.
TUILI_INLINE F32x16 exp(F32x16 x) {
    const F32x16 n = round_even(x * broadcast(1.44269502f));
    F32x16 r = fma(n, broadcast(-0.693147182f), x);
    r = fma(n, broadcast(1.90465421e-9f), r);
    F32x16 p = broadcast(0.00138143184f);
    p = fma(p, r, broadcast(0.00836885128f));
    p = fma(p, r, broadcast(0.0416684011f));
    p = fma(p, r, broadcast(0.166665195f));
    p = fma(p, r, broadcast(0.499999934f));
    p = fma(p * r, r, r) + broadcast(1.0f);
    const F32x16 y = as_float(as_int(p) + shift_left<23>(to_int(n)));
    const F32x16 low = select(less(x, broadcast(-87.33f)), broadcast(0.0f), y);
    return select(less(broadcast(88.72283f), x), broadcast(__builtin_inff()), low);
}

// 1 / (1 + e^-x)
TUILI_INLINE F32x16 sigmoid(F32x16 x) { return broadcast(1.0f) / (broadcast(1.0f) + exp(-x)); }

// tanh(x) within 2 ulp: an odd polynomial near zero, where 1 - 2 / (e^2x + 1) would cancel.
TUILI_INLINE F32x16 tanh(F32x16 x) {
    const F32x16 a = abs(x);
    const F32x16 z = x * x;
    F32x16 p = broadcast(-0.00571703656f);
    p = fma(p, z, broadcast(0.020650579f));
    p = fma(p, z, broadcast(-0.0537434953f));
    p = fma(p, z, broadcast(0.133314912f));
    p = fma(p, z, broadcast(-0.333332839f));
    const F32x16 near = fma(p * z, x, x);
    const F32x16 far = broadcast(1.0f) - broadcast(2.0f) / (exp(a + a) + broadcast(1.0f));
    const I32x16 sign = as_int(x) & broadcast_int(INT32_MIN);
    return select(less(a, broadcast(0.625f)), near, as_float(as_int(far) | sign));
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
