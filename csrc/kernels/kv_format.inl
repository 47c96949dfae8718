// The number formats of the key/value cache, for one instruction set: how a token is written, how queries are brought
// to the form that multiplies it, and how a vector of it adds to sums. Knows a plane's layout (kernels.h); no softmax.
//
// A lane holds a pair: dimensions 2i and 2i + 1 of one token's key, or tokens 2i and 2i + 1 of one value's dimension.
// `factors` are a packed query or a row of weights; what they hold per pair is the format's own.
#pragma once
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

constexpr int kTileTokens = 16;
constexpr int kPairLanes = 16;  // of a vector

// Keys and values as bfloat16, multiplied as floats: the even and the odd elements of the pairs one after the other.
struct Bf16Cache {
    using Sum = F32x16;
    using Lanes = F32x16;
    static constexpr int kElementBytes = 2;
    static constexpr int kSteps = 2;
    static constexpr bool kCanHoldNan = true;  // where nothing was written
    static constexpr bool kKeepsLanes = false;

    static TUILI_INLINE Sum zero() { return broadcast(0.0f); }
    template <int kStep>
    static TUILI_INLINE Lanes load_pairs(const uint8_t* p) {
        const I32x16 pairs = TUILI_ISA_NAMESPACE::load_pairs(p);
        return kStep == 0 ? even_of_pairs(pairs) : odd_of_pairs(pairs);
    }
    static TUILI_INLINE Lanes load_even(const uint8_t* p) { return load_pairs<0>(p); }
    template <int kStep>
    static TUILI_INLINE Sum add(Lanes lanes, const float* factors, int pair, Sum sum) {
        return add_product(sum, lanes, factors[2 * pair + kStep]);
    }
    static TUILI_INLINE F32x16 score(Sum sum, float, const float*) { return sum; }
    static TUILI_INLINE F32x16 weighted(Sum sum, float) { return sum; }

    static void pack_query(const float* query, float scale, int head_dim, float* packed) {
        for (int d = 0; d < padded_head_dim(head_dim); d += 16) {
            const int count = head_dim - d < 16 ? head_dim - d : 16;
            store(packed + d, load_partial(query + d, count) * broadcast(scale));
        }
    }
    // What is added up for softmax.
    static TUILI_INLINE F32x16 as_weight(F32x16 p) { return p; }
    // Brings weights [begin, end) of a row, zero where nothing is to be seen, to the form of factors.
    static TUILI_INLINE float pack_weights(float*, const float* const*, int, int) { return 1.0f; }
};

#if defined(TUILI_ISA_BF16)
// Keys and values as bfloat16, multiplied by queries and weights rounded to it, both elements of a pair at once.
struct Bf16PairCache {
    using Sum = F32x16;
    using Lanes = I32x16;
    static constexpr int kElementBytes = 2;
    static constexpr int kSteps = 1;
    static constexpr bool kCanHoldNan = true;
    static constexpr bool kKeepsLanes = true;

    static TUILI_INLINE Sum zero() { return broadcast(0.0f); }
    template <int kStep>
    static TUILI_INLINE Lanes load_pairs(const uint8_t* p) {
        return TUILI_ISA_NAMESPACE::load_pairs(p);
    }
    static TUILI_INLINE Lanes load_even(const uint8_t* p) { return load_pairs<0>(p) & broadcast_int(0xFFFF); }
    template <int kStep>
    static TUILI_INLINE Sum add(Lanes lanes, const float* factors, int pair, Sum sum) {
        return add_bf16_products(sum, lanes, broadcast_pair(factors + pair));
    }
    static TUILI_INLINE F32x16 score(Sum sum, float, const float*) { return sum; }
    static TUILI_INLINE F32x16 weighted(Sum sum, float) { return sum; }

    static void pack_query(const float* query, float scale, int head_dim, float* packed) {
        for (int d = 0; d < padded_head_dim(head_dim); d += 16) {
            const int count = head_dim - d < 16 ? head_dim - d : 16;
            store_bf16(reinterpret_cast<uint16_t*>(packed) + d, load_partial(query + d, count) * broadcast(scale));
        }
    }
    static TUILI_INLINE F32x16 as_weight(F32x16 p) { return as_float(shift_left<16>(to_bf16(p))); }
    static TUILI_INLINE float pack_weights(float* weights, const float* const*, int begin, int end) {
        for (int i = begin * kTileTokens; i < end * kTileTokens; i += 16) {  // in place, as below
            store_low16(reinterpret_cast<uint16_t*>(weights) + i, shift_right<16>(as_int(load(weights + i))));
        }
        return 1.0f;
    }
};
#endif

// Keys and values as int8 with one scale per token, queries and weights as int16: sums are exact.
struct Int8Cache {
    using Sum = I32x16;
    using Lanes = I32x16;
    static constexpr int kElementBytes = 1;
    static constexpr int kSteps = 1;
    static constexpr bool kCanHoldNan = false;
    static constexpr bool kKeepsLanes = false;
    static constexpr float kMaxFactor = 32767.0f;  // times 127 times 512 dimensions or 256 tokens stays below 2^31

    static TUILI_INLINE Sum zero() { return broadcast_int(0); }
    template <int kStep>
    static TUILI_INLINE Lanes load_pairs(const uint8_t* p) {
        return widen_i8_pairs(p);
    }
    static TUILI_INLINE Lanes load_even(const uint8_t* p) { return load_pairs<0>(p); }
    template <int kStep>
    static TUILI_INLINE Sum add(Lanes lanes, const float* factors, int pair, Sum sum) {
        int32_t two;
        memcpy(&two, factors + pair, sizeof two);
        return add_pair_products(sum, lanes, broadcast_int(two));
    }
    static TUILI_INLINE F32x16 score(Sum sum, float query_scale, const float* key_scales) {
        return to_float(sum) * (load(key_scales) * broadcast(query_scale));
    }
    static TUILI_INLINE F32x16 weighted(Sum sum, float factor) { return to_float(sum) * broadcast(factor); }

    static TUILI_INLINE void store_factors(float* factors, int index, F32x16 values) {
        store_low16(reinterpret_cast<uint16_t*>(factors) + index, to_int(values));
    }

    static void pack_query(const float* query, float scale, int head_dim, float* packed) {
        F32x16 largest = broadcast(0.0f);
        for (int d = 0; d < head_dim; d += 16) {
            largest = max(largest, abs(load_partial(query + d, head_dim - d < 16 ? head_dim - d : 16)));
        }
        const float limit = reduce_max(largest);
        const F32x16 inverse = broadcast(limit > 0.0f ? kMaxFactor / limit : 0.0f);
        for (int d = 0; d < head_dim; d += 16) {
            const int count = head_dim - d < 16 ? head_dim - d : 16;
            store_factors(packed, d, load_partial(query + d, count) * inverse);
        }
        packed[padded_head_dim(head_dim)] = limit / kMaxFactor * scale;
    }
    static TUILI_INLINE F32x16 as_weight(F32x16 p) { return p; }
    // Returns what a sum over the packed weights is to be multiplied by.
    static TUILI_INLINE float pack_weights(float* weights, const float* const* value_scales, int begin, int end) {
        F32x16 largest = broadcast(0.0f);
        for (int tile = begin; tile < end; tile++) {
            const F32x16 p = load(weights + tile * kTileTokens);
            // a scale that nobody wrote may be no number
            const F32x16 w = select(less(broadcast(0.0f), p), p * load(value_scales[tile]), broadcast(0.0f));
            store(weights + tile * kTileTokens, w);
            largest = max(largest, w);
        }
        const float limit = reduce_max(largest);
        const F32x16 inverse = broadcast(limit > 0.0f ? kMaxFactor / limit : 0.0f);
        for (int tile = begin; tile < end; tile++) {  // in place: written bytes lie before those still to be read
            store_factors(weights, tile * kTileTokens, load(weights + tile * kTileTokens) * inverse);
        }
        return limit / kMaxFactor;
    }
};

// Where the parts of one token lie in a plane.
template <class Cache>
struct TokenSlot {
    uint8_t* key;    // dimensions 2i, 2i + 1 at i * kTileTokens * 2 elements
    uint8_t* value;  // dimension i at 2i elements

    TokenSlot(uint8_t* plane, int head_dim, int block_size, int offset) {
        const int even = even_head_dim(head_dim), padded = padded_head_dim(head_dim);
        const int key_start = offset / kTileTokens * even * kTileTokens + offset % kTileTokens * 2;
        const int value_start = block_size * even + offset / 2 * 2 * padded + offset % 2;
        key = plane + static_cast<size_t>(key_start) * Cache::kElementBytes;
        value = plane + static_cast<size_t>(value_start) * Cache::kElementBytes;
    }

    // 16 dimensions from d on, of which those past head_dim are zero.
    template <class Element>
    TUILI_INLINE void write(int d, int head_dim, const Element* keys, const Element* values) const {
        for (int i = 0; i < 16 && d + i < head_dim; i += 2) {
            memcpy(key + (d + i) * kTileTokens * sizeof(Element), keys + i, 2 * sizeof(Element));
        }
        for (int i = 0; i < 16; i++) memcpy(value + (d + i) * 2 * sizeof(Element), values + i, sizeof(Element));
    }
};

inline void append_bf16(const float* key, const float* value, int head_dim, int block_size, int offset,
                        uint8_t* plane) {
    const TokenSlot<Bf16Cache> slot(plane, head_dim, block_size, offset);
    for (int d = 0; d < head_dim; d += 16) {
        const int count = head_dim - d < 16 ? head_dim - d : 16;
        uint16_t keys[16], values[16];
        store_bf16(keys, load_partial(key + d, count));
        store_bf16(values, load_partial(value + d, count));
        slot.write(d, head_dim, keys, values);
    }
}

// max|x| / 127 of a head, and its reciprocal.
TUILI_INLINE float int8_scale(const float* x, int head_dim) {
    F32x16 largest = broadcast(0.0f);
    for (int d = 0; d < head_dim; d += 16) {
        largest = max(largest, abs(load_partial(x + d, head_dim - d < 16 ? head_dim - d : 16)));
    }
    return reduce_max(largest) / 127.0f;
}

inline void append_int8(const float* key, const float* value, int head_dim, int block_size, int offset,
                        uint8_t* plane) {
    const TokenSlot<Int8Cache> slot(plane, head_dim, block_size, offset);
    const float scales[2] = {int8_scale(key, head_dim), int8_scale(value, head_dim)};
    const F32x16 key_factor = broadcast(scales[0] > 0.0f ? 1.0f / scales[0] : 0.0f);
    const F32x16 value_factor = broadcast(scales[1] > 0.0f ? 1.0f / scales[1] : 0.0f);
    for (int d = 0; d < head_dim; d += 16) {
        const int count = head_dim - d < 16 ? head_dim - d : 16;
        int8_t keys[16], values[16];
        store_low8(keys, to_int(load_partial(key + d, count) * key_factor));
        store_low8(values, to_int(load_partial(value + d, count) * value_factor));
        slot.write(d, head_dim, keys, values);
    }
    float* token_scales = cache_scales(plane, head_dim, block_size);
    token_scales[offset] = scales[0];
    token_scales[block_size + offset] = scales[1];
}

inline void cache_append(CacheFormat format, const float* key, const float* value, int head_dim, int block_size,
                         int offset, uint8_t* plane) {
    const auto append = format == CacheFormat::kInt8 ? append_int8 : append_bf16;
    append(key, value, head_dim, block_size, offset, plane);
}

inline void pack_query(CacheFormat format, const float* query, float scale, int head_dim, float* packed) {
    const auto pack = format == CacheFormat::kInt8 ? Int8Cache::pack_query : Bf16Cache::pack_query;
    pack(query, scale, head_dim, packed);
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
