// IEEE binary16 in software. Static, so that translation units of different instruction sets share no code.
#pragma once
#include <cstdint>

namespace tuili {

static inline float float_from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// Exact.
static inline float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
    const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return float_from_bits(sign | 0x7F800000 | mantissa << 13);
    if (exponent) return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

// To nearest even; infinite beyond 65504. Not for NaN.
static inline uint16_t float_to_half(float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7C00);
    if (magnitude < 0x38800000) {  // adding 2^23 leaves units of 2^-24, rounded, in the low bits
        const float shifted = float_from_bits(magnitude) * 0x1p24f + 0x1p23f;
        return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) & 0xFFFF));
    }
    const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

}  // namespace tuili
