// Attention over the paged cache, for one instruction set: one chunk of keys at a time. Knows the layout of a plane;
// not sequences, threads or how the cache is allocated.
//
// A row's bits never depend on the other rows of the unit: scores accumulate over head_dim in order, sums over
// tokens in ascending order, and a masked token contributes exactly zero. Only keys and values that some row of
// the unit sees are used, so blocks behind a window and slots not written yet are never read as numbers.
#pragma once
#include "kernels/kernels.h"
#include "kernels/kv_format.inl"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

constexpr int kChunkTiles = kAttentionChunk / kTileTokens;
constexpr int kTilePairs = kTileTokens / 2;
constexpr int kRowBlock = 6;  // rows in registers together
#if defined(TUILI_ISA_AVX512)
constexpr int kAccumulators = 24;
constexpr bool kFewRegisters = false;
#else
constexpr int kAccumulators = 6;  // of two registers each
constexpr bool kFewRegisters = true;
#endif

// Vectors of tokens or of head dimensions in registers beside so many rows.
constexpr int lane_block(int rows) {
    const int fitting = kAccumulators / rows;
    return fitting >= 4 ? 4 : fitting >= 2 ? 2 : 1;
}

// The part of a chunk that some row of a unit sees.
struct ChunkView {
    int start;       // first position of the chunk
    int first, end;  // visible offsets [first, end) within it
    const uint8_t* keys[kChunkTiles];
    const uint8_t* values[kChunkTiles];
    const float* key_scales[kChunkTiles];
    const float* value_scales[kChunkTiles];

    int first_tile() const { return first / kTileTokens; }
    int end_tile() const { return (end + kTileTokens - 1) / kTileTokens; }
};

TUILI_INLINE int first_visible(const AttentionUnit& unit, int position) {
    return unit.window > 0 && position >= unit.window ? position - unit.window + 1 : 0;
}

TUILI_INLINE int clamp_to_chunk(int offset) {
    return offset < 0 ? 0 : offset > kAttentionChunk ? kAttentionChunk : offset;
}

inline ChunkView view_chunk(const AttentionUnit& unit, int chunk) {
    ChunkView view;
    view.start = chunk * kAttentionChunk;
    view.first = clamp_to_chunk(first_visible(unit, unit.first_position) - view.start);
    view.end = clamp_to_chunk(unit.last_position + 1 - view.start);
    const int element_bytes = cache_element_bytes(unit.format);
    const size_t key_bytes = static_cast<size_t>(even_head_dim(unit.head_dim)) * element_bytes;
    const size_t value_bytes = static_cast<size_t>(padded_head_dim(unit.head_dim)) * element_bytes;
    const int block_tiles = unit.block_size / kTileTokens;
    const int32_t* blocks = unit.block_table + chunk * (kChunkTiles / block_tiles);
    for (int tile = view.first_tile(); tile < view.end_tile(); tile++) {
        uint8_t* plane = unit.cache + blocks[tile / block_tiles] * unit.block_stride;
        const int offset = tile % block_tiles * kTileTokens;
        const float* scales = cache_scales(plane, unit.head_dim, unit.block_size);
        view.keys[tile] = plane + offset * key_bytes;
        view.values[tile] = plane + unit.block_size * key_bytes + offset * value_bytes;
        view.key_scales[tile] = scales + offset;
        view.value_scales[tile] = scales + unit.block_size + offset;
    }
    return view;
}

// What is read next, tile by tile, so that it is fetched while this is computed; null entries: nothing.
struct Ahead {
    const uint8_t* tiles[kChunkTiles] = {};
};

// Calls body.operator()<count>() for a count in 1..kMax known at run time.
template <int kMax, class Body>
TUILI_INLINE void with_count(int count, Body body) {
    if constexpr (kMax > 1) {
        if (count < kMax) return with_count<kMax - 1>(count, body);
    }
    body.template operator()<kMax>();
}

// Where lanes are not kept, what is loaded is cheaper to load again for the next vector or step than to keep: registers
// belong to the sums.
TUILI_INLINE void reload() { asm volatile("" ::: "memory"); }

// sums[r][v] += the pairs at lanes[v] times pair `pair` of row r's factors.
template <class Cache, int kStep, int kRows, int kVectors>
TUILI_INLINE void add_step(const uint8_t* const* lanes, const float* factors, size_t stride, int pair,
                           typename Cache::Sum (&sums)[kRows][kVectors]) {
    if constexpr (Cache::kKeepsLanes) {
        typename Cache::Lanes vectors[kVectors];
        for (int v = 0; v < kVectors; v++) vectors[v] = Cache::template load_pairs<kStep>(lanes[v]);
        for (int r = 0; r < kRows; r++) {
            for (int v = 0; v < kVectors; v++) {
                sums[r][v] = Cache::template add<kStep>(vectors[v], factors + r * stride, pair, sums[r][v]);
            }
        }
        return;
    }
    for (int v = 0; v < kVectors; v++) {
        if (v > 0) reload();
        const auto vector = Cache::template load_pairs<kStep>(lanes[v]);
        for (int r = 0; r < kRows; r++) {
            sums[r][v] = Cache::template add<kStep>(vector, factors + r * stride, pair, sums[r][v]);
        }
    }
}

template <class Cache, int kRows, int kVectors>
TUILI_INLINE void add_pairs(const uint8_t* const* lanes, const float* factors, size_t stride, int pair,
                            typename Cache::Sum (&sums)[kRows][kVectors]) {
    add_step<Cache, 0>(lanes, factors, stride, pair, sums);
    if constexpr (Cache::kSteps == 2) {
        if (kFewRegisters) reload();
        add_step<Cache, 1>(lanes, factors, stride, pair, sums);
    }
}

template <class Cache, int kRows, int kVectors>
TUILI_INLINE void clear(typename Cache::Sum (&sums)[kRows][kVectors]) {
    for (auto& row : sums)
        for (auto& sum : row) sum = Cache::zero();
}

// scores[r][16 * tile ..] = query r times the keys of tiles [tile, tile + kTiles).
template <class Cache, int kRows, int kTiles>
TUILI_INLINE void score_tiles(const AttentionUnit& unit, const ChunkView& view, const Ahead* ahead, int row, int tile,
                              float* scores) {
    constexpr int kBytes = 2 * kPairLanes * Cache::kElementBytes;
    const size_t stride = query_row_floats(unit.head_dim);
    const float* queries = unit.queries + row * stride;
    typename Cache::Sum sums[kRows][kTiles];
    clear<Cache>(sums);
    const uint8_t* keys[kTiles];
    for (int t = 0; t < kTiles; t++) keys[t] = view.keys[tile + t];
    const int num_pairs = even_head_dim(unit.head_dim) / 2;
    for (int pair = 0; pair < num_pairs; pair++) {
        add_pairs<Cache>(keys, queries, stride, pair, sums);
        for (int t = 0; t < kTiles; t++) {
            if (ahead != nullptr) prefetch(ahead->tiles[tile + t] + pair * kBytes);
            keys[t] += kBytes;
        }
    }
    for (int r = 0; r < kRows; r++) {
        const float query_scale = queries[r * stride + padded_head_dim(unit.head_dim)];
        for (int t = 0; t < kTiles; t++) {
            store(scores + r * kAttentionChunk + (tile + t) * kTileTokens,
                  Cache::score(sums[r][t], query_scale, view.key_scales[tile + t]));
        }
    }
}

template <class Cache, int kRows>
void score_rows(const AttentionUnit& unit, const ChunkView& view, const Ahead* ahead, int row, float* scores) {
    constexpr int kTiles = lane_block(kRows);
    int tile = view.first_tile();
    for (; tile + kTiles <= view.end_tile(); tile += kTiles) {
        score_tiles<Cache, kRows, kTiles>(unit, view, ahead, row, tile, scores);
    }
    for (; tile < view.end_tile(); tile++) score_tiles<Cache, kRows, 1>(unit, view, ahead, row, tile, scores);
}

// How far the keys of a tile are from a query, times its head's slope; both null where there is no ALiBi.
struct DistanceBias {
    const float* slope;
    int distance;  // of the chunk's first key
};

alignas(64) constexpr float kLaneIndex[kTileTokens] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Scores of one tile as they count: capped, less by distance, -inf outside [first, end).
TUILI_INLINE F32x16 visible_scores(const AttentionUnit& unit, const DistanceBias& bias, const float* scores, int offset,
                                   int first, int end) {
    F32x16 s = load(scores + offset);
    if (unit.logit_softcap > 0.0f) s = broadcast(unit.logit_softcap) * tanh(s / broadcast(unit.logit_softcap));
    if (bias.slope != nullptr) {
        const F32x16 nearness = load(kLaneIndex) - broadcast(static_cast<float>(bias.distance - offset));
        s = fma(nearness, broadcast(*bias.slope), s);
    }
    if (offset >= first && offset + kTileTokens <= end) return s;
    const F32x16 lowest = broadcast(-__builtin_inff());
    const int hidden = first - offset, shown = end - offset;
    s = select(first_lanes(shown < 0 ? 0 : shown > kTileTokens ? kTileTokens : shown), s, lowest);
    return select(first_lanes(hidden < 0 ? 0 : hidden > kTileTokens ? kTileTokens : hidden), lowest, s);
}

// Scores of one row -> exp(score - max), zero where the query must not look; returns max and sum.
template <class Cache>
void softmax_row(const AttentionUnit& unit, const ChunkView& view, int row, float* scores, float* row_max,
                 float* row_sum) {
    const int position = unit.positions[row / unit.group_size];
    const DistanceBias bias = {unit.slopes == nullptr ? nullptr : unit.slopes + row % unit.group_size,
                               position - view.start};
    const int first = clamp_to_chunk(first_visible(unit, position) - view.start);
    const int end = clamp_to_chunk(position + 1 - view.start);
    F32x16 largest = broadcast(-__builtin_inff());
    for (int tile = view.first_tile(); tile < view.end_tile(); tile++) {
        const F32x16 s = visible_scores(unit, bias, scores, tile * kTileTokens, first, end);
        largest = max(largest, s);
        store(scores + tile * kTileTokens, s);
    }
    *row_max = reduce_max(largest);
    const bool sees_nothing = first >= end;
    const F32x16 shift = broadcast(sees_nothing ? 0.0f : *row_max);
    F32x16 sum = broadcast(0.0f);
    for (int tile = view.first_tile(); tile < view.end_tile(); tile++) {
        const F32x16 p = Cache::as_weight(exp(load(scores + tile * kTileTokens) - shift));
        sum = sum + p;
        store(scores + tile * kTileTokens, p);
    }
    *row_sum = reduce_add(sum);
}

// weighted[r][d ..] = sum over visible tokens of weight[r][token] * value[token][d ..], kVectors * 16 dimensions.
template <class Cache, int kRows, int kVectors>
TUILI_INLINE void weigh_values(const AttentionUnit& unit, const ChunkView& view, const Ahead* ahead, int d,
                               const float* weights, const float* factors, float* weighted) {
    constexpr int kLaneBytes = 2 * Cache::kElementBytes;
    const int padded = padded_head_dim(unit.head_dim);
    typename Cache::Sum sums[kRows][kVectors];
    clear<Cache>(sums);
    const int end_pair = Cache::kCanHoldNan ? view.end / 2 : (view.end + 1) / 2;
    const uint8_t* lanes[kVectors];
    auto seek = [&](int pair) {
        const size_t offset = static_cast<size_t>(pair % kTilePairs * padded + d) * kLaneBytes;
        for (int v = 0; v < kVectors; v++) {
            lanes[v] = view.values[pair / kTilePairs] + offset + v * kPairLanes * kLaneBytes;
        }
        return offset;
    };
    const size_t pair_bytes = static_cast<size_t>(padded) * kLaneBytes;
    for (int pair = view.first / 2; pair < end_pair;) {
        const int tile = pair / kTilePairs, tile_end = (tile + 1) * kTilePairs;
        const int stop = tile_end < end_pair ? tile_end : end_pair;
        for (size_t offset = seek(pair); pair < stop; pair++, offset += pair_bytes) {
            add_pairs<Cache>(lanes, weights, kAttentionChunk, pair, sums);
            for (int v = 0; v < kVectors; v++) {
                if (ahead != nullptr) prefetch(ahead->tiles[tile] + offset + v * kPairLanes * kLaneBytes);
                lanes[v] += pair_bytes;
            }
        }
    }
    if (end_pair * 2 < view.end) {  // the other token of the last pair is not there
        seek(end_pair);
        for (int v = 0; v < kVectors; v++) {
            const auto even = Cache::load_even(lanes[v]);
            for (int r = 0; r < kRows; r++) {
                sums[r][v] = Cache::template add<0>(even, weights + r * kAttentionChunk, end_pair, sums[r][v]);
            }
        }
    }
    for (int r = 0; r < kRows; r++) {
        for (int v = 0; v < kVectors; v++) {
            store(weighted + r * padded + d + 16 * v, Cache::weighted(sums[r][v], factors[r]));
        }
    }
}

template <class Cache, int kRows>
void weigh_rows(const AttentionUnit& unit, const ChunkView& view, const Ahead* ahead, const float* weights,
                const float* factors, float* weighted) {
    constexpr int kVectors = lane_block(kRows);
    const int padded = padded_head_dim(unit.head_dim);
    int d = 0;
    for (; d + 16 * kVectors <= padded; d += 16 * kVectors) {
        weigh_values<Cache, kRows, kVectors>(unit, view, ahead, d, weights, factors, weighted);
    }
    for (; d < padded; d += 16) weigh_values<Cache, kRows, 1>(unit, view, ahead, d, weights, factors, weighted);
}

// The values that this chunk reads after its keys, and the keys that come after its values. Where nothing comes, the
// hint points at what is in cache anyway.
inline void look_ahead(const ChunkView& view, const AttentionUnit* next, int next_chunk, Ahead& values, Ahead& keys) {
    for (int tile = view.first_tile(); tile < view.end_tile(); tile++) {
        values.tiles[tile] = keys.tiles[tile] = view.values[tile];
    }
    if (next == nullptr) return;
    const ChunkView following = view_chunk(*next, next_chunk);
    for (int tile = following.first_tile(); tile < following.end_tile(); tile++) {
        keys.tiles[tile] = following.keys[tile];
    }
}

template <class Cache>
void chunk_of_format(const AttentionUnit& unit, int chunk, const AttentionState& state, const AttentionUnit* next,
                     int next_chunk) {
    const ChunkView view = view_chunk(unit, chunk);
    const int padded = padded_head_dim(unit.head_dim);
    const int num_blocks = (unit.num_rows + kRowBlock - 1) / kRowBlock;
    const int block_rows = (unit.num_rows + num_blocks - 1) / num_blocks;
    Ahead values, keys;
    look_ahead(view, next, next_chunk, values, keys);
    alignas(64) float scores[kRowBlock * kAttentionChunk];
    for (int row = 0; row < unit.num_rows; row += block_rows) {
        const int count = unit.num_rows - row < block_rows ? unit.num_rows - row : block_rows;
        const bool is_first = row == 0;  // later rows find everything in cache
        float factors[kRowBlock];
        with_count<kRowBlock>(count, [&]<int kRows>() {
            score_rows<Cache, kRows>(unit, view, is_first ? &values : nullptr, row, scores);
        });
        for (int r = 0; r < count; r++) {
            float* weights = scores + r * kAttentionChunk;
            softmax_row<Cache>(unit, view, row + r, weights, state.max + row + r, state.sum + row + r);
            factors[r] = Cache::pack_weights(weights, view.value_scales, view.first_tile(), view.end_tile());
        }
        float* weighted = state.weighted + static_cast<size_t>(row) * padded;
        with_count<kRowBlock>(count, [&]<int kRows>() {
            weigh_rows<Cache, kRows>(unit, view, is_first ? &keys : nullptr, scores, factors, weighted);
        });
    }
}

inline void attention_chunk(const AttentionUnit& unit, int chunk, const AttentionState& state,
                            const AttentionUnit* next, int next_chunk) {
    const auto run = unit.format == CacheFormat::kInt8 ? chunk_of_format<Int8Cache> : chunk_of_format<Bf16Cache>;
    run(unit, chunk, state, next, next_chunk);
}

inline void attention_merge(const AttentionState& state, const AttentionState& chunk, int num_rows, int head_dim) {
    const int padded = padded_head_dim(head_dim);
    const float lowest = -__builtin_inff();
    for (int r = 0; r < num_rows; r++) {
        float* into = state.weighted + static_cast<size_t>(r) * padded;
        const float* from = chunk.weighted + static_cast<size_t>(r) * padded;
        if (chunk.max[r] == lowest) continue;
        const bool is_first = state.max[r] == lowest;
        const float largest = chunk.max[r] > state.max[r] ? chunk.max[r] : state.max[r];
        const F32x16 keep = is_first ? broadcast(0.0f) : exp(broadcast(state.max[r]) - broadcast(largest));
        const F32x16 take = exp(broadcast(chunk.max[r]) - broadcast(largest));
        for (int d = 0; d < padded; d += 16) store(into + d, fma(load(into + d), keep, load(from + d) * take));
        store_partial(state.sum + r, fma(broadcast(state.sum[r]), keep, broadcast(chunk.sum[r]) * take), 1);
        state.max[r] = largest;
    }
}

inline void attention_finish(const AttentionState& state, int num_rows, int group_size, int head_dim,
                             const float* sinks, float* out, size_t out_stride) {
    const int padded = padded_head_dim(head_dim);
    for (int r = 0; r < num_rows; r++) {
        const float* row = state.weighted + static_cast<size_t>(r) * padded;
        float* head = out + (r / group_size) * out_stride + static_cast<size_t>(r % group_size) * head_dim;
        F32x16 total = broadcast(state.sum[r]);
        if (sinks != nullptr) total = total + exp(broadcast(sinks[r % group_size]) - broadcast(state.max[r]));
        const F32x16 factor = broadcast(1.0f) / total;
        for (int d = 0; d < head_dim; d += 16) {
            store_partial(head + d, load(row + d) * factor, head_dim - d < 16 ? head_dim - d : 16);
        }
    }
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
