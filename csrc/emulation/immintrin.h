// Stands in for <immintrin.h> where AVX-512 and AVX-VNNI kernels are compiled for a processor that has only AVX2:
// SIMDe's emulation, and below what it lacks. For tests; slow.
#pragma once
#define SIMDE_ENABLE_NATIVE_ALIASES
// clang-format off: the processor's own first, then what stands in for the rest
#include_next <immintrin.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
// clang-format on
#include <cstring>

#define TUILI_REGISTER "+m"

namespace tuili_emulation {

// Both halves of a 512-bit register.
template <class Half, class Whole>
struct Halves {
    Half low, high;
    explicit Halves(Whole a) { memcpy(this, &a, sizeof a); }
    Halves(Half first, Half second) : low(first), high(second) {}
    operator Whole() const {
        Whole out;
        memcpy(&out, this, sizeof out);
        return out;
    }
};
using Floats = Halves<__m256, simde__m512>;
using Ints = Halves<__m256i, simde__m512i>;

template <class Narrow>
void store_narrow(Narrow* out, simde__m512i a) {
    int wide[16];
    memcpy(wide, &a, sizeof a);
    for (int i = 0; i < 16; i++) out[i] = static_cast<Narrow>(wide[i]);
}
inline __m256i narrow_to_16(simde__m512i a) {
    __m256i out;
    store_narrow(reinterpret_cast<short*>(&out), a);
    return out;
}
inline __m128i narrow_to_8(simde__m512i a) {
    __m128i out;
    store_narrow(reinterpret_cast<signed char*>(&out), a);
    return out;
}
inline __m128i upper(__m128i a) { return _mm_unpackhi_epi64(a, a); }
inline __m128i upper(__m256i a) { return _mm256_extracti128_si256(a, 1); }

template <class Combine>
int reduce(simde__m512i a, Combine combine) {
    int lanes[16];
    memcpy(lanes, &a, sizeof a);
    for (int i = 1; i < 16; i++) lanes[0] = combine(lanes[0], lanes[i]);
    return lanes[0];
}
inline unsigned less_mask(simde__m512i a, simde__m512i b) {
    int x[16], y[16];
    memcpy(x, &a, sizeof a);
    memcpy(y, &b, sizeof b);
    unsigned mask = 0;
    for (int i = 0; i < 16; i++) mask |= static_cast<unsigned>(x[i] < y[i]) << i;
    return mask;
}
inline simde__m512 load_masked(unsigned mask, const float* p) {
    float out[16];
    for (int i = 0; i < 16; i++) out[i] = mask >> i & 1 ? p[i] : 0.0f;
    simde__m512 a;
    memcpy(&a, out, sizeof a);
    return a;
}
inline void store_masked(float* p, unsigned mask, simde__m512 a) {
    float lanes[16];
    memcpy(lanes, &a, sizeof a);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) p[i] = lanes[i];
}

// u8 x s8 quads added to 32-bit lanes, wrapping.
inline __m256i dot_bytes(__m256i sum, __m256i a, __m256i b) {
    unsigned lanes[8];
    unsigned char x[32];
    signed char y[32];
    memcpy(lanes, &sum, sizeof lanes);
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 32; i++) lanes[i / 4] += static_cast<unsigned>(x[i] * y[i]);
    memcpy(&sum, lanes, sizeof lanes);
    return sum;
}

inline float flush_denormal(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }
inline float bf16_value(unsigned short x) {
    const unsigned bits = static_cast<unsigned>(x) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return flush_denormal(value);
}

// Intel's operation of VDPBF16PS: the odd elements' product first, two fused multiply-adds, denormals flushed.
inline simde__m512 dot_bf16(simde__m512 sum, __m512bh a, __m512bh b) {
    float lanes[16];
    unsigned short x[32], y[32];
    memcpy(lanes, &sum, sizeof lanes);
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 16; i++) {
        const float odd = __builtin_fmaf(bf16_value(x[2 * i + 1]), bf16_value(y[2 * i + 1]), flush_denormal(lanes[i]));
        lanes[i] = __builtin_fmaf(bf16_value(x[2 * i]), bf16_value(y[2 * i]), flush_denormal(odd));
        lanes[i] = flush_denormal(lanes[i]);
    }
    memcpy(&sum, lanes, sizeof lanes);
    return sum;
}

}  // namespace tuili_emulation

#define _mm512_cvtepi32_ps(a)                                                             \
    simde__m512(tuili_emulation::Floats(_mm256_cvtepi32_ps(tuili_emulation::Ints(a).low), \
                                        _mm256_cvtepi32_ps(tuili_emulation::Ints(a).high)))
#define _mm512_cvtps_epi32(a)                                                              \
    simde__m512i(tuili_emulation::Ints(_mm256_cvtps_epi32(tuili_emulation::Floats(a).low), \
                                       _mm256_cvtps_epi32(tuili_emulation::Floats(a).high)))
#define _mm512_cvtepi8_epi32(a) \
    simde__m512i(tuili_emulation::Ints(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(tuili_emulation::upper(a))))
#define _mm512_cvtepu8_epi32(a) \
    simde__m512i(tuili_emulation::Ints(_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(tuili_emulation::upper(a))))
#define _mm512_cvtepu16_epi32(a)                                                         \
    simde__m512i(tuili_emulation::Ints(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)), \
                                       _mm256_cvtepu16_epi32(tuili_emulation::upper(a))))
#define _mm512_cvtph_ps(a)                                                          \
    simde__m512(tuili_emulation::Floats(_mm256_cvtph_ps(_mm256_castsi256_si128(a)), \
                                        _mm256_cvtph_ps(tuili_emulation::upper(a))))
#define _mm512_cvtepi32_epi16(a) tuili_emulation::narrow_to_16(a)
#define _mm512_cvtepi32_epi8(a) tuili_emulation::narrow_to_8(a)
#define _mm512_reduce_add_epi32(a) \
    tuili_emulation::reduce(a, [](int x, int y) { return static_cast<int>(static_cast<unsigned>(x) + y); })
#define _mm512_reduce_max_epi32(a) tuili_emulation::reduce(a, [](int x, int y) { return x > y ? x : y; })
#define _mm512_cmplt_epi32_mask(a, b) static_cast<__mmask16>(tuili_emulation::less_mask(a, b))
#define _mm512_maskz_loadu_ps(mask, p) tuili_emulation::load_masked(mask, p)
#define _mm512_mask_storeu_ps(p, mask, a) tuili_emulation::store_masked(p, mask, a)
#define _mm256_dpbusd_avx_epi32(sum, a, b) tuili_emulation::dot_bytes(sum, a, b)
#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps(sum, a, b) tuili_emulation::dot_bf16(sum, a, b)
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(a, half) ((half) ? tuili_emulation::Floats(a).high : tuili_emulation::Floats(a).low)
