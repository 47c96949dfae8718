// simd.h for AVX2 with FMA and F16C, with or without AVX-VNNI: two 256-bit registers per vector.
#pragma once
#include <immintrin.h>

namespace tuili::TUILI_ISA_NAMESPACE {

struct F32x16 {
    __m256 low, high;
};
struct I32x16 {
    __m256i low, high;
};
struct Mask16 {
    __m256 low, high;  // all ones or all zeros per lane
};

TUILI_INLINE __m256i lanes_below(int count) {  // -1 in lanes i < count
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
TUILI_INLINE __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
TUILI_INLINE __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
TUILI_INLINE __m128i load_64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }

// --- memory -----------------------------------------------------------------------------------------------------
// `count` of a partial load or store is 0..16; lanes past it read as zero and are not written.
TUILI_INLINE F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
TUILI_INLINE I32x16 broadcast_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
TUILI_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
TUILI_INLINE I32x16 load_int(const int32_t* p) { return {load_256(p), load_256(p + 8)}; }
TUILI_INLINE void store(float* p, F32x16 a) {
    _mm256_storeu_ps(p, a.low);
    _mm256_storeu_ps(p + 8, a.high);
}
TUILI_INLINE void store_int(int32_t* p, I32x16 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.high);
}
TUILI_INLINE F32x16 load_partial(const float* p, int count) {
    return {_mm256_maskload_ps(p, lanes_below(count)), _mm256_maskload_ps(p + 8, lanes_below(count - 8))};
}
TUILI_INLINE void store_partial(float* p, F32x16 a, int count) {
    _mm256_maskstore_ps(p, lanes_below(count), a.low);
    _mm256_maskstore_ps(p + 8, lanes_below(count - 8), a.high);
}
TUILI_INLINE F32x16 load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
TUILI_INLINE I32x16 load_u8(const uint8_t* p) {
    return {_mm256_cvtepu8_epi32(load_64(p)), _mm256_cvtepu8_epi32(load_64(p + 8))};
}
TUILI_INLINE I32x16 load_i8(const int8_t* p) {
    return {_mm256_cvtepi8_epi32(load_64(p)), _mm256_cvtepi8_epi32(load_64(p + 8))};
}
TUILI_INLINE I32x16 load_u16(const uint16_t* p) {
    return {_mm256_cvtepu16_epi32(load_128(p)), _mm256_cvtepu16_epi32(load_128(p + 8))};
}
// The low 8 or 16 bits of each lane.
TUILI_INLINE __m256i pack_low16(I32x16 a) {
    const __m256i mask = _mm256_set1_epi32(0xFFFF);
    const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask));
    return _mm256_permute4x64_epi64(packed, 0xD8);
}
TUILI_INLINE void store_low8(void* p, I32x16 a) {
    const __m256i words = _mm256_and_si256(pack_low16(a), _mm256_set1_epi16(0xFF));
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(static_cast<__m128i*>(p), bytes);
}
TUILI_INLINE void store_low16(void* p, I32x16 a) { _mm256_storeu_si256(static_cast<__m256i*>(p), pack_low16(a)); }
TUILI_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// --- float ------------------------------------------------------------------------------------------------------
TUILI_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
TUILI_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
TUILI_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
TUILI_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
TUILI_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {  // a * b + c
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
// sum + a * factor, for many sums at once: as instructions, since the compiler moves broadcasts forward until sums no
// longer fit the registers.
TUILI_INLINE F32x16 add_product(F32x16 sum, F32x16 a, float factor) {
    const __m256 all = _mm256_set1_ps(factor);
    asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum.low) : "x"(a.low), "x"(all));
    asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum.high) : "x"(a.high), "x"(all));
    return sum;
}
TUILI_INLINE F32x16 max(F32x16 a, F32x16 b) {  // a > b ? a : b
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
TUILI_INLINE F32x16 min(F32x16 a, F32x16 b) {  // a < b ? a : b
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
TUILI_INLINE F32x16 sqrt(F32x16 a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }
TUILI_INLINE F32x16 round_even(F32x16 a) {
    constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, kMode), _mm256_round_ps(a.high, kMode)};
}

// --- integer and conversions ------------------------------------------------------------------------------------
TUILI_INLINE I32x16 operator+(I32x16 a, I32x16 b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
TUILI_INLINE I32x16 operator-(I32x16 a, I32x16 b) {
    return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
TUILI_INLINE I32x16 operator*(I32x16 a, I32x16 b) {
    return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
}
TUILI_INLINE I32x16 operator&(I32x16 a, I32x16 b) {
    return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
TUILI_INLINE I32x16 operator|(I32x16 a, I32x16 b) {
    return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}
TUILI_INLINE I32x16 operator^(I32x16 a, I32x16 b) {
    return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}
// Bits 16 to 31 of each lane, in place. The mask stays in memory: beside many sums there is no register for it.
TUILI_INLINE I32x16 upper_halves(I32x16 a) {
    alignas(32) static constexpr uint16_t kUpper[16] = {0, 0xFFFF, 0, 0xFFFF, 0, 0xFFFF, 0, 0xFFFF,
                                                        0, 0xFFFF, 0, 0xFFFF, 0, 0xFFFF, 0, 0xFFFF};
    asm("vpand %1, %0, %0" : "+x"(a.low) : "m"(kUpper));
    asm("vpand %1, %0, %0" : "+x"(a.high) : "m"(kUpper));
    return a;
}
template <int kBits>
TUILI_INLINE I32x16 shift_left(I32x16 a) {
    return {_mm256_slli_epi32(a.low, kBits), _mm256_slli_epi32(a.high, kBits)};
}
template <int kBits>
TUILI_INLINE I32x16 shift_right(I32x16 a) {  // logical
    return {_mm256_srli_epi32(a.low, kBits), _mm256_srli_epi32(a.high, kBits)};
}
TUILI_INLINE I32x16 to_int(F32x16 a) {  // to nearest even; out of range: INT32_MIN
    return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)};
}
TUILI_INLINE F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
TUILI_INLINE I32x16 as_int(F32x16 a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
TUILI_INLINE F32x16 as_float(I32x16 a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }

// --- masks ------------------------------------------------------------------------------------------------------
// Comparisons with NaN are false. Bit i of bits() is lane i.
TUILI_INLINE Mask16 less(F32x16 a, F32x16 b) {
    return {_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ)};
}
TUILI_INLINE Mask16 equal(F32x16 a, F32x16 b) {
    return {_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ)};
}
TUILI_INLINE Mask16 as_mask(__m256i low, __m256i high) { return {_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)}; }
TUILI_INLINE Mask16 less(I32x16 a, I32x16 b) {
    return as_mask(_mm256_cmpgt_epi32(b.low, a.low), _mm256_cmpgt_epi32(b.high, a.high));
}
TUILI_INLINE Mask16 equal(I32x16 a, I32x16 b) {
    return as_mask(_mm256_cmpeq_epi32(a.low, b.low), _mm256_cmpeq_epi32(a.high, b.high));
}
TUILI_INLINE Mask16 first_lanes(int count) { return as_mask(lanes_below(count), lanes_below(count - 8)); }  // 0..16
TUILI_INLINE uint32_t bits(Mask16 m) {
    return static_cast<uint32_t>(_mm256_movemask_ps(m.low) | _mm256_movemask_ps(m.high) << 8);
}
TUILI_INLINE F32x16 select(Mask16 m, F32x16 yes, F32x16 no) {
    return {_mm256_blendv_ps(no.low, yes.low, m.low), _mm256_blendv_ps(no.high, yes.high, m.high)};
}
TUILI_INLINE I32x16 select(Mask16 m, I32x16 yes, I32x16 no) { return as_int(select(m, as_float(yes), as_float(no))); }

// --- reductions -------------------------------------------------------------------------------------------------
TUILI_INLINE float reduce_add(F32x16 a) {
    const __m256 e = _mm256_add_ps(a.low, a.high);
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
TUILI_INLINE float reduce_max(F32x16 a) {
    const __m256 e = _mm256_max_ps(a.low, a.high);
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
TUILI_INLINE int32_t reduce_add(I32x16 a) {
    const __m256i e = _mm256_add_epi32(a.low, a.high);
    const __m128i q = _mm_add_epi32(_mm256_castsi256_si128(e), _mm256_extracti128_si256(e, 1));
    const __m128i d = _mm_add_epi32(q, _mm_unpackhi_epi64(q, q));
    return _mm_cvtsi128_si32(_mm_add_epi32(d, _mm_shuffle_epi32(d, 1)));
}
TUILI_INLINE I32x16 max(I32x16 a, I32x16 b) {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
}
TUILI_INLINE int32_t reduce_max(I32x16 a) {
    const __m256i e = _mm256_max_epi32(a.low, a.high);
    const __m128i q = _mm_max_epi32(_mm256_castsi256_si128(e), _mm256_extracti128_si256(e, 1));
    const __m128i d = _mm_max_epi32(q, _mm_unpackhi_epi64(q, q));
    return _mm_cvtsi128_si32(_mm_max_epi32(d, _mm_shuffle_epi32(d, 1)));
}

// --- one register of columns ------------------------------------------------------------------------------------
// What matmul computes with: kLanes columns of a panel, so that a tile can be narrow and high.
constexpr int kLanes = 8;
struct F32xN {
    __m256 v;
};
struct I32xN {
    __m256i v;
};
TUILI_INLINE F32xN broadcast_n(float x) { return {_mm256_set1_ps(x)}; }
TUILI_INLINE F32xN load_n(const float* p) { return {_mm256_loadu_ps(p)}; }
TUILI_INLINE void store(float* p, F32xN a) { _mm256_storeu_ps(p, a.v); }
TUILI_INLINE F32xN load_f16_n(const uint16_t* p) { return {_mm256_cvtph_ps(load_128(p))}; }
TUILI_INLINE F32xN load_even_bf16_n(const uint16_t* p) {  // of pairs
    return {_mm256_castsi256_ps(_mm256_slli_epi32(load_256(p), 16))};
}
TUILI_INLINE F32xN load_odd_bf16_n(const uint16_t* p) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(load_256(p), upper))};
}
TUILI_INLINE I32xN load_u8_n(const uint8_t* p) { return {_mm256_cvtepu8_epi32(load_64(p))}; }
TUILI_INLINE I32xN load_i8_n(const int8_t* p) { return {_mm256_cvtepi8_epi32(load_64(p))}; }
TUILI_INLINE I32xN load_low_nibbles_n(const uint8_t* p) {
    return {_mm256_and_si256(_mm256_cvtepu8_epi32(load_64(p)), _mm256_set1_epi32(15))};
}
TUILI_INLINE I32xN load_high_nibbles_n(const uint8_t* p) {
    return {_mm256_srli_epi32(_mm256_cvtepu8_epi32(load_64(p)), 4)};
}
TUILI_INLINE F32xN to_float(I32xN a) { return {_mm256_cvtepi32_ps(a.v)}; }
TUILI_INLINE F32xN operator*(F32xN a, F32xN b) { return {_mm256_mul_ps(a.v, b.v)}; }
TUILI_INLINE F32xN fma(F32xN a, F32xN b, F32xN c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }

// --- s8 pairs x s16 pairs --------------------------------------------------------------------------------------------
// 32 bytes -> 16 lanes of two 16-bit words.
TUILI_INLINE I32x16 widen_i8_pairs(const uint8_t* p) {
    return {_mm256_cvtepi8_epi16(load_128(p)), _mm256_cvtepi8_epi16(load_128(p + 16))};
}
// sum + a.low * b.low + a.high * b.high per lane.
TUILI_INLINE I32x16 add_pair_products(I32x16 sum, I32x16 a, I32x16 b) {
    return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low)),
            _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high))};
}

// --- u8 codes x s8 activations ------------------------------------------------------------------------------------
struct Codes {
    __m256i v;  // kLanes columns x 4 consecutive k, unsigned bytes
};
struct Quad {
    __m256i v;  // 4 consecutive activations, for every column
};
TUILI_INLINE Codes load_codes(const uint8_t* p) { return {load_256(p)}; }
TUILI_INLINE void store_codes(uint8_t* p, Codes a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
TUILI_INLINE Quad load_quad(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return {_mm256_set1_epi32(four)};
}
// Bits [kShift, kShift + kBits) of each byte.
template <int kShift, int kBits>
TUILI_INLINE Codes bit_field(Codes a) {
    const __m256i shifted = kShift ? _mm256_srli_epi16(a.v, kShift) : a.v;
    return {_mm256_and_si256(shifted, _mm256_set1_epi8((1 << kBits) - 1))};
}
// table[a] per byte; a < 16.
TUILI_INLINE Codes look_up(const uint8_t* table, Codes a) {
    return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_128(table)), a.v)};
}

// base | (plane shifted left by kShift, or right if negative) & kMask, per byte.
template <int kMask, int kShift>
TUILI_INLINE Codes with_top(Codes base, Codes plane) {
    __m256i shifted = plane.v;
    if constexpr (kShift > 0) shifted = _mm256_slli_epi16(plane.v, kShift);
    if constexpr (kShift < 0) shifted = _mm256_srli_epi16(plane.v, -kShift);
    return {_mm256_or_si256(base.v, _mm256_and_si256(shifted, _mm256_set1_epi8(kMask)))};
}

// Hides where a value comes from, so that the compiler neither hoists nor drops what uses it.
TUILI_INLINE void hide(F32xN& a) { asm volatile("" : "+x"(a.v)); }
TUILI_INLINE void hide(I32xN& a) { asm volatile("" : "+x"(a.v)); }
TUILI_INLINE void hide(Codes& a) { asm volatile("" : "+x"(a.v)); }
TUILI_INLINE void hide(Quad& a) { asm volatile("" : "+x"(a.v)); }

#if defined(TUILI_ISA_AVX_VNNI)
// Sum of (code - kOffset) * activation per column, exact; q_sum is the sum of the activations. Call widen() after every
// kStepsPerWiden steps and before total().
template <int kMaxCode, int kOffset>
struct Dot {
    static constexpr int kStepsPerWiden = 8;
    __m256i sum;
    TUILI_INLINE void start(int32_t q_sum) { sum = _mm256_set1_epi32(-kOffset * q_sum); }
    TUILI_INLINE void add(Codes w, Quad a) { sum = _mm256_dpbusd_avx_epi32(sum, w.v, a.v); }
    TUILI_INLINE void widen() {}
    TUILI_INLINE I32xN total(int32_t) const { return {sum}; }
    TUILI_INLINE void hide() { asm volatile("" : "+x"(sum)); }
};
#else
// Sum of (code - kOffset) * activation per column, exact; activations are -127 .. 127 and q_sum is their sum. Call
// widen() after every kStepsPerWiden steps and before total(). Pairs of products add up in 16 bits, as many steps as
// cannot overflow.
template <int kMaxCode, int kOffset>
struct Dot {
    static constexpr int kStepsPerWiden = kMaxCode <= 15 ? 8 : kMaxCode == 31 ? 4 : 2;
    static_assert(kMaxCode * 127 * 2 * kStepsPerWiden <= INT16_MAX);
    __m256i sum, narrow;
    TUILI_INLINE void start(int32_t) { sum = narrow = _mm256_setzero_si256(); }
    TUILI_INLINE void add(Codes w, Quad a) {
        narrow = _mm256_add_epi16(narrow, _mm256_maddubs_epi16(w.v, a.v));
        asm("" : "+x"(narrow));  // or the compiler puts the additions off and runs out of registers
    }
    TUILI_INLINE void widen() {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
        asm("" : "+x"(sum));
        narrow = _mm256_setzero_si256();
    }
    TUILI_INLINE I32xN total(int32_t q_sum) const {
        constexpr int kShift = __builtin_ctz(kOffset | 1 << 16);
        static_assert(kOffset == 0 || kOffset == 1 << kShift);
        if constexpr (kOffset == 0) return {sum};
        return {_mm256_sub_epi32(sum, _mm256_slli_epi32(_mm256_set1_epi32(q_sum), kShift))};
    }
    TUILI_INLINE void hide() { asm volatile("" : "+x"(narrow)); }
};

// Bytes: |code - 128| * +-activation. A pair reaches 2 * 128 * 127, so it fits 16 bits, but no two pairs do.
template <>
struct Dot<255, 128> {
    static constexpr int kStepsPerWiden = 8;
    __m256i sum;
    TUILI_INLINE void start(int32_t) { sum = _mm256_setzero_si256(); }
    TUILI_INLINE void add(Codes w, Quad a) {
        const __m256i level = _mm256_xor_si256(w.v, _mm256_set1_epi8(-128));
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(level), _mm256_sign_epi8(a.v, level));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        asm("" : "+x"(sum));
    }
    TUILI_INLINE void widen() {}
    TUILI_INLINE I32xN total(int32_t) const { return {sum}; }
};
#endif

}  // namespace tuili::TUILI_ISA_NAMESPACE
