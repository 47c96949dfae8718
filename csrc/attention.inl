// Attention over the paged bfloat16 cache, for one instruction set: one chunk of keys at a time. Knows the layout
// of a plane; not sequences, threads or how the cache is allocated.
//
// A row's bits never depend on the other rows of the unit: scores accumulate over head_dim in order, sums over
// tokens in ascending order, and a masked token contributes exactly zero. Only keys and values that some row of
// the unit sees are used, so blocks behind a window and slots not written yet are never read as numbers.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

constexpr int kTileTokens = 16;
constexpr int kChunkTiles = kAttentionChunk / kTileTokens;
#if defined(TUILI_ISA_AVX512)
constexpr int kRowBlock = 6;   // rows in registers together
constexpr int kLaneBlock = 4;  // vectors of tokens or of head dimensions beside them
#else
constexpr int kRowBlock = 2;
constexpr int kLaneBlock = 2;
#endif

inline void cache_append(const float* key, const float* value, int head_dim, int block_size, int offset,
                         uint16_t* plane) {
    const int padded = padded_head_dim(head_dim);
    uint16_t* keys = plane + static_cast<size_t>(offset / kTileTokens) * head_dim * kTileTokens + offset % kTileTokens;
    uint16_t* values = plane + static_cast<size_t>(block_size) * head_dim + static_cast<size_t>(offset) * padded;
    for (int d = 0; d < head_dim; d += 16) {
        const int count = head_dim - d < 16 ? head_dim - d : 16;
        uint16_t narrow[16];
        store_bf16(narrow, load_partial(key + d, count));
        for (int i = 0; i < count; i++) keys[(d + i) * kTileTokens] = narrow[i];
        store_bf16(values + d, load_partial(value + d, count));
    }
}

// The part of a chunk that some row of a unit sees.
struct ChunkView {
    int start;       // first position of the chunk
    int first, end;  // visible offsets [first, end) within it
    const uint16_t* keys[kChunkTiles];
    const uint16_t* values[kChunkTiles];

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
    view.end = clamp_to_chunk(unit.first_position + unit.num_queries - view.start);
    const int padded = padded_head_dim(unit.head_dim);
    const size_t values_start = static_cast<size_t>(unit.block_size) * unit.head_dim;
    for (int tile = view.first_tile(); tile < view.end_tile(); tile++) {
        const int position = view.start + tile * kTileTokens;
        const auto offset = static_cast<size_t>(position % unit.block_size);
        const uint16_t* plane = unit.cache + unit.block_table[position / unit.block_size] * unit.block_stride;
        view.keys[tile] = plane + offset * unit.head_dim;
        view.values[tile] = plane + values_start + offset * padded;
    }
    return view;
}

// Calls body.operator()<count>() for a count in 1..kMax known at run time.
template <int kMax, class Body>
TUILI_INLINE void with_count(int count, Body body) {
    if constexpr (kMax > 1) {
        if (count < kMax) return with_count<kMax - 1>(count, body);
    }
    body.template operator()<kMax>();
}

// scores[r][t * 16 ..] = query r times the keys of tile t, for kRows rows and kTiles tiles.
template <int kRows, int kTiles>
TUILI_INLINE void score_tiles(const float* const* queries, const uint16_t* const* keys, int head_dim, float* scores) {
    F32x16 sums[kRows][kTiles];
    for (auto& row : sums)
        for (auto& sum : row) sum = broadcast(0.0f);
    for (int d = 0; d < head_dim; d++) {
        F32x16 key[kTiles];
        for (int t = 0; t < kTiles; t++) key[t] = load_bf16(keys[t] + d * kTileTokens);
        for (int r = 0; r < kRows; r++) {
            const F32x16 query = broadcast(queries[r][d]);
            for (int t = 0; t < kTiles; t++) sums[r][t] = fma(key[t], query, sums[r][t]);
        }
    }
    for (int r = 0; r < kRows; r++)
        for (int t = 0; t < kTiles; t++) store(scores + r * kAttentionChunk + t * kTileTokens, sums[r][t]);
}

template <int kRows>
void score_rows(const AttentionUnit& unit, const ChunkView& view, int row, float* scores) {
    const float* queries[kRows];
    for (int r = 0; r < kRows; r++) {
        const int query = (row + r) / unit.group_size, head = (row + r) % unit.group_size;
        queries[r] = unit.queries + query * unit.query_stride + static_cast<size_t>(head) * unit.head_dim;
    }
    int tile = view.first_tile();
    for (; tile + kLaneBlock <= view.end_tile(); tile += kLaneBlock) {
        score_tiles<kRows, kLaneBlock>(queries, view.keys + tile, unit.head_dim, scores + tile * kTileTokens);
    }
    for (; tile < view.end_tile(); tile++) {
        score_tiles<kRows, 1>(queries, view.keys + tile, unit.head_dim, scores + tile * kTileTokens);
    }
}

// Scores of one row -> exp(score - max), zero where the query must not look; returns max and sum.
inline void softmax_row(const AttentionUnit& unit, const ChunkView& view, int position, float* scores, float* row_max,
                        float* row_sum) {
    const F32x16 lowest = broadcast(-__builtin_inff());
    const int first = clamp_to_chunk(first_visible(unit, position) - view.start);
    const int end = clamp_to_chunk(position + 1 - view.start);
    F32x16 largest = lowest;
    for (int tile = view.first_tile(); tile < view.end_tile(); tile++) {
        const int offset = tile * kTileTokens;
        F32x16 s = load(scores + offset) * broadcast(unit.scale);
        if (unit.logit_softcap > 0.0f) s = broadcast(unit.logit_softcap) * tanh(s / broadcast(unit.logit_softcap));
        const int hidden = first - offset, shown = end - offset;
        if (shown < kTileTokens) s = select(first_lanes(shown < 0 ? 0 : shown), s, lowest);
        if (hidden > 0) s = select(first_lanes(hidden > kTileTokens ? kTileTokens : hidden), lowest, s);
        largest = max(largest, s);
        store(scores + offset, s);
    }
    *row_max = reduce_max(largest);
    const bool sees_nothing = first >= end;
    const F32x16 shift = broadcast(sees_nothing ? 0.0f : *row_max);
    F32x16 sum = broadcast(0.0f);
    for (int tile = view.first_tile(); tile < view.end_tile(); tile++) {
        const F32x16 p = exp(load(scores + tile * kTileTokens) - shift);
        sum = sum + p;
        store(scores + tile * kTileTokens, p);
    }
    *row_sum = reduce_add(sum);
}

// weighted[r][d..] = sum over visible tokens of scores[r][token] * value[token][d..], kVectors * 16 dimensions.
template <int kRows, int kVectors>
TUILI_INLINE void weigh_values(const ChunkView& view, int padded, int d, const float* scores, float* weighted) {
    F32x16 sums[kRows][kVectors];
    for (auto& row : sums)
        for (auto& sum : row) sum = broadcast(0.0f);
    for (int tile = view.first_tile(); tile < view.end_tile(); tile++) {
        const int base = tile * kTileTokens;
        const int first = view.first > base ? view.first : base;
        const int end = view.end < base + kTileTokens ? view.end : base + kTileTokens;
        const uint16_t* values = view.values[tile] + d;
        for (int token = first; token < end; token++) {
            const uint16_t* row = values + (token - base) * padded;
            F32x16 value[kVectors];
            for (int j = 0; j < kVectors; j++) value[j] = load_bf16(row + 16 * j);
            for (int r = 0; r < kRows; r++) {
                const F32x16 p = broadcast(scores[r * kAttentionChunk + token]);
                for (int j = 0; j < kVectors; j++) sums[r][j] = fma(p, value[j], sums[r][j]);
            }
        }
    }
    for (int r = 0; r < kRows; r++)
        for (int j = 0; j < kVectors; j++) store(weighted + r * padded + d + 16 * j, sums[r][j]);
}

template <int kRows>
void weigh_rows(const ChunkView& view, int padded, const float* scores, float* weighted) {
    int d = 0;
    for (; d + 16 * kLaneBlock <= padded; d += 16 * kLaneBlock) {
        weigh_values<kRows, kLaneBlock>(view, padded, d, scores, weighted);
    }
    for (; d < padded; d += 16) weigh_values<kRows, 1>(view, padded, d, scores, weighted);
}

inline void attention_chunk(const AttentionUnit& unit, int chunk, const AttentionState& state, float* scores) {
    const ChunkView view = view_chunk(unit, chunk);
    const int padded = padded_head_dim(unit.head_dim);
    for (int row = 0; row < unit.num_rows(); row += kRowBlock) {
        const int count = unit.num_rows() - row < kRowBlock ? unit.num_rows() - row : kRowBlock;
        float* block = scores + row * kAttentionChunk;
        with_count<kRowBlock>(count, [&]<int kRows>() { score_rows<kRows>(unit, view, row, block); });
        for (int r = 0; r < count; r++) {
            const int position = unit.first_position + (row + r) / unit.group_size;
            softmax_row(unit, view, position, block + r * kAttentionChunk, state.max + row + r, state.sum + row + r);
        }
        float* weighted = state.weighted + static_cast<size_t>(row) * padded;
        with_count<kRowBlock>(count, [&]<int kRows>() { weigh_rows<kRows>(view, padded, block, weighted); });
    }
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

inline void attention_finish(const AttentionState& state, const AttentionUnit& unit, float* out, size_t out_stride) {
    const int padded = padded_head_dim(unit.head_dim);
    for (int r = 0; r < unit.num_rows(); r++) {
        const float* row = state.weighted + static_cast<size_t>(r) * padded;
        float* head =
            out + (r / unit.group_size) * out_stride + static_cast<size_t>(r % unit.group_size) * unit.head_dim;
        const F32x16 factor = broadcast(1.0f) / broadcast(state.sum[r]);
        for (int d = 0; d < unit.head_dim; d += 16) {
            const int count = unit.head_dim - d < 16 ? unit.head_dim - d : 16;
            store_partial(head + d, load(row + d) * factor, count);
        }
    }
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
