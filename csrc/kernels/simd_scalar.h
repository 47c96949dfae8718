// simd.h in portable C++: sixteen scalars per vector. The slow twin of the others, bit for bit.
#pragma once

namespace tuili::TUILI_ISA_NAMESPACE {

struct F32x16 {
    float v[16];
};
struct I32x16 {
    int32_t v[16];
};
struct Mask16 {
    uint32_t v;  // bit i: lane i
};

template <class V, class F>
TUILI_INLINE V make_lanes(F f) {
    V out;
    for (int i = 0; i < 16; i++) out.v[i] = f(i);
    return out;
}
template <class F>
TUILI_INLINE Mask16 make_mask(F f) {
    Mask16 out{0};
    for (int i = 0; i < 16; i++) out.v |= static_cast<uint32_t>(f(i)) << i;
    return out;
}
TUILI_INLINE int32_t float_bits(float x) { return __builtin_bit_cast(int32_t, x); }
TUILI_INLINE float bits_float(uint32_t x) { return __builtin_bit_cast(float, x); }
TUILI_INLINE int32_t wrap(uint32_t x) { return static_cast<int32_t>(x); }

// IEEE binary16 to binary32, without depending on the denormal mode.
TUILI_INLINE float half_bits_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
    const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return bits_float(sign | 0x7F800000 | mantissa << 13 | (mantissa ? 0x400000u : 0u));
    if (exponent) return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

// --- memory -----------------------------------------------------------------------------------------------------
// `count` of a partial load or store is 0..16; lanes past it read as zero and are not written.
TUILI_INLINE F32x16 broadcast(float x) {
    return make_lanes<F32x16>([&](int) { return x; });
}
TUILI_INLINE I32x16 broadcast_int(int32_t x) {
    return make_lanes<I32x16>([&](int) { return x; });
}
TUILI_INLINE F32x16 load(const float* p) {
    return make_lanes<F32x16>([&](int i) { return p[i]; });
}
TUILI_INLINE I32x16 load_int(const int32_t* p) {
    return make_lanes<I32x16>([&](int i) { return p[i]; });
}
TUILI_INLINE void store(float* p, F32x16 a) { memcpy(p, a.v, sizeof a.v); }
TUILI_INLINE void store_int(int32_t* p, I32x16 a) { memcpy(p, a.v, sizeof a.v); }
TUILI_INLINE F32x16 load_partial(const float* p, int count) {
    return make_lanes<F32x16>([&](int i) { return i < count ? p[i] : 0.0f; });
}
TUILI_INLINE void store_partial(float* p, F32x16 a, int count) {
    for (int i = 0; i < count; i++) p[i] = a.v[i];
}
TUILI_INLINE F32x16 load_f16(const uint16_t* p) {
    return make_lanes<F32x16>([&](int i) { return half_bits_to_float(p[i]); });
}
TUILI_INLINE I32x16 load_u8(const uint8_t* p) {
    return make_lanes<I32x16>([&](int i) { return p[i]; });
}
TUILI_INLINE I32x16 load_i8(const int8_t* p) {
    return make_lanes<I32x16>([&](int i) { return p[i]; });
}
TUILI_INLINE I32x16 load_u16(const uint16_t* p) {
    return make_lanes<I32x16>([&](int i) { return p[i]; });
}
// The low 8 or 16 bits of each lane.
TUILI_INLINE void store_low8(void* p, I32x16 a) {
    for (int i = 0; i < 16; i++) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(a.v[i]);
}
TUILI_INLINE void store_low16(void* p, I32x16 a) {
    for (int i = 0; i < 16; i++) static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>(a.v[i]);
}
TUILI_INLINE void prefetch(const void*) {}

// --- float ------------------------------------------------------------------------------------------------------
TUILI_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
    return make_lanes<F32x16>([&](int i) { return a.v[i] + b.v[i]; });
}
TUILI_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
    return make_lanes<F32x16>([&](int i) { return a.v[i] - b.v[i]; });
}
TUILI_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
    return make_lanes<F32x16>([&](int i) { return a.v[i] * b.v[i]; });
}
TUILI_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
    return make_lanes<F32x16>([&](int i) { return a.v[i] / b.v[i]; });
}
TUILI_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {  // a * b + c
    return make_lanes<F32x16>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
TUILI_INLINE F32x16 add_product(F32x16 sum, F32x16 a, float factor) { return fma(a, broadcast(factor), sum); }
TUILI_INLINE F32x16 max(F32x16 a, F32x16 b) {
    return make_lanes<F32x16>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
TUILI_INLINE F32x16 min(F32x16 a, F32x16 b) {
    return make_lanes<F32x16>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
TUILI_INLINE F32x16 sqrt(F32x16 a) {
    return make_lanes<F32x16>([&](int i) { return __builtin_sqrtf(a.v[i]); });
}
TUILI_INLINE F32x16 round_even(F32x16 a) {
    return make_lanes<F32x16>([&](int i) { return __builtin_rintf(a.v[i]); });
}

// --- integer and conversions (arithmetic wraps) -----------------------------------------------------------------
TUILI_INLINE I32x16 operator+(I32x16 a, I32x16 b) {
    return make_lanes<I32x16>([&](int i) { return wrap(uint32_t(a.v[i]) + uint32_t(b.v[i])); });
}
TUILI_INLINE I32x16 operator-(I32x16 a, I32x16 b) {
    return make_lanes<I32x16>([&](int i) { return wrap(uint32_t(a.v[i]) - uint32_t(b.v[i])); });
}
TUILI_INLINE I32x16 operator*(I32x16 a, I32x16 b) {
    return make_lanes<I32x16>([&](int i) { return wrap(uint32_t(a.v[i]) * uint32_t(b.v[i])); });
}
TUILI_INLINE I32x16 operator&(I32x16 a, I32x16 b) {
    return make_lanes<I32x16>([&](int i) { return a.v[i] & b.v[i]; });
}
TUILI_INLINE I32x16 operator|(I32x16 a, I32x16 b) {
    return make_lanes<I32x16>([&](int i) { return a.v[i] | b.v[i]; });
}
TUILI_INLINE I32x16 operator^(I32x16 a, I32x16 b) {
    return make_lanes<I32x16>([&](int i) { return a.v[i] ^ b.v[i]; });
}
TUILI_INLINE I32x16 upper_halves(I32x16 a) { return a & broadcast_int(static_cast<int32_t>(0xFFFF0000)); }
template <int kBits>
TUILI_INLINE I32x16 shift_left(I32x16 a) {
    return make_lanes<I32x16>([&](int i) { return wrap(uint32_t(a.v[i]) << kBits); });
}
template <int kBits>
TUILI_INLINE I32x16 shift_right(I32x16 a) {  // logical
    return make_lanes<I32x16>([&](int i) { return wrap(uint32_t(a.v[i]) >> kBits); });
}
TUILI_INLINE I32x16 to_int(F32x16 a) {  // to nearest even; out of range: INT32_MIN
    return make_lanes<I32x16>([&](int i) {
        const float r = __builtin_rintf(a.v[i]);
        return r >= -0x1p31f && r < 0x1p31f ? static_cast<int32_t>(r) : INT32_MIN;
    });
}
TUILI_INLINE F32x16 to_float(I32x16 a) {
    return make_lanes<F32x16>([&](int i) { return static_cast<float>(a.v[i]); });
}
TUILI_INLINE I32x16 as_int(F32x16 a) { return __builtin_bit_cast(I32x16, a); }
TUILI_INLINE F32x16 as_float(I32x16 a) { return __builtin_bit_cast(F32x16, a); }

// --- masks ------------------------------------------------------------------------------------------------------
// Comparisons with NaN are false. Bit i of bits() is lane i.
TUILI_INLINE Mask16 less(F32x16 a, F32x16 b) {
    return make_mask([&](int i) { return a.v[i] < b.v[i]; });
}
TUILI_INLINE Mask16 equal(F32x16 a, F32x16 b) {
    return make_mask([&](int i) { return a.v[i] == b.v[i]; });
}
TUILI_INLINE Mask16 less(I32x16 a, I32x16 b) {
    return make_mask([&](int i) { return a.v[i] < b.v[i]; });
}
TUILI_INLINE Mask16 equal(I32x16 a, I32x16 b) {
    return make_mask([&](int i) { return a.v[i] == b.v[i]; });
}
TUILI_INLINE Mask16 first_lanes(int count) { return {(1u << count) - 1}; }  // count 0..16
TUILI_INLINE uint32_t bits(Mask16 m) { return m.v; }
TUILI_INLINE F32x16 select(Mask16 m, F32x16 yes, F32x16 no) {
    return make_lanes<F32x16>([&](int i) { return m.v >> i & 1 ? yes.v[i] : no.v[i]; });
}
TUILI_INLINE I32x16 select(Mask16 m, I32x16 yes, I32x16 no) {
    return make_lanes<I32x16>([&](int i) { return m.v >> i & 1 ? yes.v[i] : no.v[i]; });
}

// --- reductions -------------------------------------------------------------------------------------------------
TUILI_INLINE float reduce_add(F32x16 a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] = a.v[i] + a.v[i + half];
    return a.v[0];
}
TUILI_INLINE float reduce_max(F32x16 a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
}
TUILI_INLINE int32_t reduce_add(I32x16 a) {
    uint32_t total = 0;
    for (int i = 0; i < 16; i++) total += static_cast<uint32_t>(a.v[i]);
    return wrap(total);
}
TUILI_INLINE I32x16 max(I32x16 a, I32x16 b) {
    return make_lanes<I32x16>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
TUILI_INLINE int32_t reduce_max(I32x16 a) {
    int32_t best = a.v[0];
    for (int i = 1; i < 16; i++) best = a.v[i] > best ? a.v[i] : best;
    return best;
}

// --- one register of columns ------------------------------------------------------------------------------------
// What matmul computes with: kLanes columns of a panel.
constexpr int kLanes = 16;
using F32xN = F32x16;
using I32xN = I32x16;
TUILI_INLINE F32xN broadcast_n(float x) { return broadcast(x); }
TUILI_INLINE F32xN load_n(const float* p) { return load(p); }
TUILI_INLINE F32xN load_f16_n(const uint16_t* p) { return load_f16(p); }
TUILI_INLINE F32xN load_even_bf16_n(const uint16_t* p) {  // of pairs
    return make_lanes<F32xN>([&](int i) { return bits_float(static_cast<uint32_t>(p[2 * i]) << 16); });
}
TUILI_INLINE F32xN load_odd_bf16_n(const uint16_t* p) {
    return make_lanes<F32xN>([&](int i) { return bits_float(static_cast<uint32_t>(p[2 * i + 1]) << 16); });
}
TUILI_INLINE I32xN load_u8_n(const uint8_t* p) { return load_u8(p); }
TUILI_INLINE I32xN load_i8_n(const int8_t* p) { return load_i8(p); }
TUILI_INLINE I32xN load_low_nibbles_n(const uint8_t* p) { return load_u8(p) & broadcast_int(15); }
TUILI_INLINE I32xN load_high_nibbles_n(const uint8_t* p) { return shift_right<4>(load_u8(p)); }

// --- s8 pairs x s16 pairs --------------------------------------------------------------------------------------------
// 32 bytes -> 16 lanes of two 16-bit words.
TUILI_INLINE I32x16 widen_i8_pairs(const uint8_t* p) {
    return make_lanes<I32x16>([&](int i) {
        const auto low = static_cast<uint16_t>(static_cast<int8_t>(p[2 * i]));
        return static_cast<int32_t>(static_cast<uint32_t>(static_cast<int8_t>(p[2 * i + 1])) << 16 | low);
    });
}
// sum + a.low * b.low + a.high * b.high per lane.
TUILI_INLINE I32x16 add_pair_products(I32x16 sum, I32x16 a, I32x16 b) {
    return make_lanes<I32x16>([&](int i) {
        const int32_t low = static_cast<int16_t>(a.v[i]) * static_cast<int16_t>(b.v[i]);
        return sum.v[i] + low + (a.v[i] >> 16) * (b.v[i] >> 16);
    });
}

// --- u8 codes x s8 activations ------------------------------------------------------------------------------------
struct Codes {
    uint8_t v[64];  // 16 columns x 4 consecutive k
};
struct Quad {
    int8_t v[4];  // 4 consecutive activations, for every column
};
template <class F>
TUILI_INLINE Codes make_codes(F f) {
    Codes out;
    for (int i = 0; i < 64; i++) out.v[i] = static_cast<uint8_t>(f(i));
    return out;
}
TUILI_INLINE Codes load_codes(const uint8_t* p) {
    return make_codes([&](int i) { return p[i]; });
}
TUILI_INLINE void store_codes(uint8_t* p, Codes a) { memcpy(p, a.v, sizeof a.v); }
TUILI_INLINE Quad load_quad(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
// Bits [kShift, kShift + kBits) of each byte.
template <int kShift, int kBits>
TUILI_INLINE Codes bit_field(Codes a) {
    return make_codes([&](int i) { return a.v[i] >> kShift & ((1 << kBits) - 1); });
}
// table[a] per byte; a < 16.
TUILI_INLINE Codes look_up(const uint8_t* table, Codes a) {
    return make_codes([&](int i) { return table[a.v[i]]; });
}

// base | (plane shifted left by kShift, or right if negative) & kMask, per byte.
template <int kMask, int kShift>
TUILI_INLINE Codes with_top(Codes base, Codes plane) {
    return make_codes([&](int i) {
        const int shifted =
            kShift > 0 ? plane.v[i] << (kShift > 0 ? kShift : 0) : plane.v[i] >> (kShift < 0 ? -kShift : 0);
        return base.v[i] | (shifted & kMask);
    });
}

// Hides where a value comes from, so that the compiler neither hoists nor drops what uses it.
template <class V>
TUILI_INLINE void hide(V& a) {
    asm volatile("" : "+m"(a));
}

// Sum of (code - kOffset) * activation per column, exact; q_sum is the sum of the activations. Call widen() after every
// kStepsPerWiden steps and before total().
template <int kMaxCode, int kOffset>
struct Dot {
    static constexpr int kStepsPerWiden = 8;
    I32x16 sum;
    TUILI_INLINE void start(int32_t q_sum) { sum = broadcast_int(-kOffset * q_sum); }
    TUILI_INLINE void add(Codes w, Quad a) {
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < 4; k++) sum.v[i] += w.v[4 * i + k] * a.v[k];
    }
    TUILI_INLINE void widen() {}
    TUILI_INLINE I32xN total(int32_t) const { return sum; }
    TUILI_INLINE void hide() { asm volatile("" : "+m"(sum)); }
};

}  // namespace tuili::TUILI_ISA_NAMESPACE
