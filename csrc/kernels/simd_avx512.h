// simd.h for AVX-512 (F, BW, VL, DQ, VNNI, and BF16 where it is asked for): one 512-bit register per vector.
#pragma once
#include <immintrin.h>

#ifndef TUILI_REGISTER  // an emulation keeps vectors in memory
#define TUILI_REGISTER "+v"
#endif

namespace tuili::TUILI_ISA_NAMESPACE {

struct F32x16 {
    __m512 v;
};
struct I32x16 {
    __m512i v;
};
struct Mask16 {
    __mmask16 v;
};

// --- memory -----------------------------------------------------------------------------------------------------
// `count` of a partial load or store is 0..16; lanes past it read as zero and are not written.
TUILI_INLINE F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
TUILI_INLINE I32x16 broadcast_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
TUILI_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
TUILI_INLINE I32x16 load_int(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
TUILI_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
TUILI_INLINE void store_int(int32_t* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
TUILI_INLINE F32x16 load_partial(const float* p, int count) {
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p)};
}
TUILI_INLINE void store_partial(float* p, F32x16 a, int count) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), a.v);
}
TUILI_INLINE F32x16 load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
TUILI_INLINE I32x16 load_u8(const uint8_t* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
TUILI_INLINE I32x16 load_i8(const int8_t* p) {
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
TUILI_INLINE I32x16 load_u16(const uint16_t* p) {
    return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// The low 8 or 16 bits of each lane.
TUILI_INLINE void store_low8(void* p, I32x16 a) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
TUILI_INLINE void store_low16(void* p, I32x16 a) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
TUILI_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// --- float ------------------------------------------------------------------------------------------------------
TUILI_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
TUILI_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
TUILI_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
TUILI_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
TUILI_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
TUILI_INLINE F32x16 add_product(F32x16 sum, F32x16 a, float factor) { return fma(a, broadcast(factor), sum); }
TUILI_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }  // a > b ? a : b
TUILI_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }  // a < b ? a : b
TUILI_INLINE F32x16 sqrt(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
TUILI_INLINE F32x16 round_even(F32x16 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// --- integer and conversions ------------------------------------------------------------------------------------
TUILI_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
TUILI_INLINE I32x16 operator-(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
TUILI_INLINE I32x16 operator*(I32x16 a, I32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
TUILI_INLINE I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
TUILI_INLINE I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
TUILI_INLINE I32x16 operator^(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
TUILI_INLINE I32x16 upper_halves(I32x16 a) { return a & broadcast_int(static_cast<int32_t>(0xFFFF0000)); }
template <int kBits>
TUILI_INLINE I32x16 shift_left(I32x16 a) {
    return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
TUILI_INLINE I32x16 shift_right(I32x16 a) {  // logical
    return {_mm512_srli_epi32(a.v, kBits)};
}
TUILI_INLINE I32x16 to_int(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest even; out of range: INT32_MIN
TUILI_INLINE F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
TUILI_INLINE I32x16 as_int(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
TUILI_INLINE F32x16 as_float(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }

// --- masks ------------------------------------------------------------------------------------------------------
// Comparisons with NaN are false. Bit i of bits() is lane i.
TUILI_INLINE Mask16 less(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
TUILI_INLINE Mask16 equal(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
TUILI_INLINE Mask16 less(I32x16 a, I32x16 b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
TUILI_INLINE Mask16 equal(I32x16 a, I32x16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
TUILI_INLINE Mask16 first_lanes(int count) { return {static_cast<__mmask16>((1u << count) - 1)}; }  // count 0..16
TUILI_INLINE uint32_t bits(Mask16 m) { return m.v; }
TUILI_INLINE F32x16 select(Mask16 m, F32x16 yes, F32x16 no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }
TUILI_INLINE I32x16 select(Mask16 m, I32x16 yes, I32x16 no) { return {_mm512_mask_blend_epi32(m.v, no.v, yes.v)}; }

// --- reductions -------------------------------------------------------------------------------------------------
TUILI_INLINE float reduce_add(F32x16 a) {
    const __m256 low = _mm512_castps512_ps256(a.v);
    const __m256 e = _mm256_add_ps(low, _mm512_extractf32x8_ps(a.v, 1));
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
TUILI_INLINE float reduce_max(F32x16 a) {
    const __m256 low = _mm512_castps512_ps256(a.v);
    const __m256 e = _mm256_max_ps(low, _mm512_extractf32x8_ps(a.v, 1));
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
TUILI_INLINE int32_t reduce_add(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }
TUILI_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
TUILI_INLINE int32_t reduce_max(I32x16 a) { return _mm512_reduce_max_epi32(a.v); }

// --- one register of columns ------------------------------------------------------------------------------------
// What matmul computes with: kLanes columns of a panel.
constexpr int kLanes = 16;
using F32xN = F32x16;
using I32xN = I32x16;
TUILI_INLINE F32xN broadcast_n(float x) { return broadcast(x); }
TUILI_INLINE F32xN load_n(const float* p) { return load(p); }
TUILI_INLINE F32xN load_f16_n(const uint16_t* p) { return load_f16(p); }
TUILI_INLINE F32xN load_even_bf16_n(const uint16_t* p) {  // of pairs
    return as_float(shift_left<16>(load_int(reinterpret_cast<const int32_t*>(p))));
}
TUILI_INLINE F32xN load_odd_bf16_n(const uint16_t* p) {
    const I32x16 upper = broadcast_int(static_cast<int32_t>(0xFFFF0000));
    return as_float(load_int(reinterpret_cast<const int32_t*>(p)) & upper);
}
TUILI_INLINE I32xN load_u8_n(const uint8_t* p) { return load_u8(p); }
TUILI_INLINE I32xN load_i8_n(const int8_t* p) { return load_i8(p); }
TUILI_INLINE I32xN load_low_nibbles_n(const uint8_t* p) { return load_u8(p) & broadcast_int(15); }
TUILI_INLINE I32xN load_high_nibbles_n(const uint8_t* p) { return shift_right<4>(load_u8(p)); }

// --- s8 pairs x s16 pairs --------------------------------------------------------------------------------------------
// 32 bytes -> 16 lanes of two 16-bit words.
TUILI_INLINE I32x16 widen_i8_pairs(const uint8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// sum + a.low * b.low + a.high * b.high per lane.
TUILI_INLINE I32x16 add_pair_products(I32x16 sum, I32x16 a, I32x16 b) { return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)}; }

#if defined(TUILI_ISA_BF16)
// sum + a.odd * b.odd, rounded, + a.even * b.even, of bfloat16 values; denormals count as zeros.
TUILI_INLINE F32x16 add_bf16_products(F32x16 sum, I32x16 a, I32x16 b) {
    return {_mm512_dpbf16_ps(sum.v, __builtin_bit_cast(__m512bh, a.v), __builtin_bit_cast(__m512bh, b.v))};
}
#endif

// --- u8 codes x s8 activations ------------------------------------------------------------------------------------
struct Codes {
    __m512i v;  // 16 columns x 4 consecutive k, unsigned bytes
};
struct Quad {
    __m512i v;  // 4 consecutive activations, for every column
};
TUILI_INLINE Codes load_codes(const uint8_t* p) { return {_mm512_load_si512(p)}; }
TUILI_INLINE void store_codes(uint8_t* p, Codes a) { _mm512_storeu_si512(p, a.v); }
TUILI_INLINE Quad load_quad(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return {_mm512_set1_epi32(four)};
}
// Bits [kShift, kShift + kBits) of each byte.
template <int kShift, int kBits>
TUILI_INLINE Codes bit_field(Codes a) {
    const __m512i shifted = kShift ? _mm512_srli_epi16(a.v, kShift) : a.v;
    return {_mm512_and_si512(shifted, _mm512_set1_epi8((1 << kBits) - 1))};
}
// table[a] per byte; a < 16.
TUILI_INLINE Codes look_up(const uint8_t* table, Codes a) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), a.v)};
}

// base | (plane shifted left by kShift, or right if negative) & kMask, per byte.
template <int kMask, int kShift>
TUILI_INLINE Codes with_top(Codes base, Codes plane) {
    __m512i shifted = plane.v;
    if constexpr (kShift > 0) shifted = _mm512_slli_epi16(plane.v, kShift);
    if constexpr (kShift < 0) shifted = _mm512_srli_epi16(plane.v, -kShift);
    return {_mm512_ternarylogic_epi32(base.v, shifted, _mm512_set1_epi8(kMask), 0xF8)};
}

// Hides where a value comes from, so that the compiler neither hoists nor drops what uses it.
TUILI_INLINE void hide(F32x16& a) { asm volatile("" : TUILI_REGISTER(a.v)); }
TUILI_INLINE void hide(I32x16& a) { asm volatile("" : TUILI_REGISTER(a.v)); }
TUILI_INLINE void hide(Codes& a) { asm volatile("" : TUILI_REGISTER(a.v)); }
TUILI_INLINE void hide(Quad& a) { asm volatile("" : TUILI_REGISTER(a.v)); }

// Sum of (code - kOffset) * activation per column, exact; q_sum is the sum of the activations. Call widen() after every
// kStepsPerWiden steps and before total().
template <int kMaxCode, int kOffset>
struct Dot {
    static constexpr int kStepsPerWiden = 8;
    __m512i sum;
    TUILI_INLINE void start(int32_t q_sum) { sum = _mm512_set1_epi32(-kOffset * q_sum); }
    TUILI_INLINE void add(Codes w, Quad a) { sum = _mm512_dpbusd_epi32(sum, w.v, a.v); }
    TUILI_INLINE void widen() {}
    TUILI_INLINE I32xN total(int32_t) const { return {sum}; }
    TUILI_INLINE void hide() { asm volatile("" : TUILI_REGISTER(sum)); }
};

}  // namespace tuili::TUILI_ISA_NAMESPACE
