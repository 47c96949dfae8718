// The attention part of a step: norms and rotation of heads, the cache, parts of queries and keys.
#include <cmath>
#include <cstring>

#include "step/step.h"

namespace tuili {
namespace {

// Rows of `state` from `row` on.
AttentionState rows_from(const AttentionState& state, int row, int head_dim) {
    return {state.weighted + static_cast<size_t>(row) * padded_head_dim(head_dim), state.max + row, state.sum + row};
}

bool has_floats_only(const Activations& x) { return x.q == nullptr && x.bf16 == nullptr; }

}  // namespace

// Where attention puts its output: straight into the next matrix's input where that is float32.
float* Step::attention_row(int layer, int token) const {
    const Activations view = work_.attention.view(layer_spec(layer).attention.q_size());
    float* rows = view.f32 != nullptr ? view.f32 : work_.attention_out.data();
    return rows + static_cast<size_t>(token) * view.cols;
}

void Step::attend(Worker& worker, int layer) {
    const AttentionSpec& a = layer_spec(layer).attention;
    const AttentionPlan& plan = work_.plans[a.cache_group];
    if (!writes_own_keys(layer)) {
        worker.stage(batch_.num_tokens, [&](int token) { prepare_token(layer, token); });
    }
    const auto num_parts = static_cast<int>(plan.parts().size());
    worker.stage(num_parts * a.num_kv_heads,
                 [&](int item) { run_part(scratch(worker), layer, item / num_parts, item % num_parts); });
    Activations output = work_.attention.view(a.q_size());
    if (has_floats_only(output) || a.group_size() * a.head_dim % kGroup == 0) return;
    output.f32 = nullptr;  // written already
    worker.stage(batch_.num_tokens,
                 [&](int token) { kernels_.quantize_row(attention_row(layer, token), nullptr, output, token); });
}

// Whether the part that reads a token's key can write it first; otherwise all must be there before.
bool Step::writes_own_keys(int layer) const {
    const AttentionSpec& a = layer_spec(layer).attention;
    return work_.plans[a.cache_group].has_own_keys() && a.qk_norm != QkNorm::kFull;
}

// out <- x, a head of queries or keys or all of them, normed; they may be the same.
void Step::norm_heads(const float* x, const float* gain, int size, float* out) const {
    if (spec_.norm == NormKind::kRms) {
        kernels_.rms_norm(x, gain, spec_.norm_eps, size, out);
    } else {
        kernels_.layer_norm(x, gain, nullptr, spec_.norm_eps, size, out);
    }
}

// head <- source, normed and rotated; they may be the same.
void Step::rotate_and_norm(int layer, const float* gain, int token, const float* source, float* head) const {
    const AttentionSpec& a = layer_spec(layer).attention;
    if (a.qk_norm == QkNorm::kHead || a.qk_norm == QkNorm::kEachHead) {
        norm_heads(source, gain, a.head_dim, head);
    } else if (source != head) {
        std::memcpy(head, source, a.head_dim * sizeof(float));
    }
    if (a.rope_dim == 0) return;
    const RopeTable& table = weights_.rope(a);
    const size_t row = static_cast<size_t>(batch_.positions[token]) * (a.rope_dim / 2);
    kernels_.rope(head, table.cos + row, table.sin + row, a.rope_dim);
}

// Writes a token's key and value of one kv head into the cache.
void Step::append_key(int layer, int token, int kv_head) {
    const AttentionSpec& a = layer_spec(layer).attention;
    float* key = qkv_row(token) + a.q_size() + kv_head * a.head_dim;
    const int own_gain = a.qk_norm == QkNorm::kEachHead ? kv_head * a.head_dim : 0;
    rotate_and_norm(layer, layer_weights(layer).k_norm + own_gain, token, key, key);
    const int32_t slot = batch_.slot_mapping[static_cast<size_t>(a.cache_group) * batch_.num_tokens + token];
    uint8_t* plane = cache_.plane(layer, kv_head) + slot / cache_.block_size() * cache_.block_stride(layer);
    kernels_.cache_append(cache_.format(), key, key + a.kv_size(), a.head_dim, cache_.block_size(),
                          slot % cache_.block_size(), plane);
}

void Step::prepare_token(int layer, int token) {
    const AttentionSpec& a = layer_spec(layer).attention;
    if (a.qk_norm == QkNorm::kFull) {
        float* query = qkv_row(token);
        float* key = query + a.q_size();
        norm_heads(query, layer_weights(layer).q_norm, a.q_size(), query);
        norm_heads(key, layer_weights(layer).k_norm, a.kv_size(), key);
    }
    for (int kv_head = 0; kv_head < a.num_kv_heads; kv_head++) append_key(layer, token, kv_head);
}

// What scores of a query at `position` are multiplied by.
float Step::query_scale(const AttentionSpec& attention, int position) const {
    if (attention.query_scaling_beta == 0.0f) return attention.scale;
    const int turns = position / attention.query_scaling_length;
    return attention.scale * static_cast<float>(1.0 + attention.query_scaling_beta * std::log1p(turns));
}

// One token's queries of one kv head, as attention reads them.
void Step::pack_queries(WorkerScratch& scratch, int layer, int token, int kv_head, float* packed) const {
    const AttentionSpec& a = layer_spec(layer).attention;
    const size_t first = static_cast<size_t>(kv_head) * a.group_size() * a.head_dim;
    const float *queries = qkv_row(token) + first, *gains = layer_weights(layer).q_norm;
    const size_t own_gains = a.qk_norm == QkNorm::kEachHead ? a.head_dim : 0;
    if (own_gains > 0) gains += first;
    const float scale = query_scale(a, batch_.positions[token]);
    float* head = scratch.head.data();
    for (int g = 0; g < a.group_size(); g++) {
        rotate_and_norm(layer, gains + g * own_gains, token, queries + static_cast<size_t>(g) * a.head_dim, head);
        kernels_.pack_query(cache_.format(), head, scale, a.head_dim, packed + g * query_row_floats(a.head_dim));
    }
}

// The keys of a part; its queries are not set.
AttentionUnit Step::part_keys(int layer, int kv_head, const AttentionPart& part) const {
    const AttentionSpec& a = layer_spec(layer).attention;
    const AttentionPlan& plan = work_.plans[a.cache_group];
    AttentionUnit unit{};
    const size_t table = static_cast<size_t>(a.cache_group) * batch_.num_sequences + plan.member(part, 0).sequence;
    unit.num_rows = part.num_queries * a.group_size();
    unit.group_size = a.group_size();
    unit.head_dim = a.head_dim;
    unit.first_position = plan.member(part, 0).first_position;
    for (int i = 0; i < part.num_members; i++) {
        const AttentionTask& task = plan.member(part, i);
        unit.first_position = std::min(unit.first_position, task.first_position);
        unit.last_position = std::max(unit.last_position, task.last_position());
    }
    unit.window = a.sliding_window;
    unit.logit_softcap = a.logit_softcap;
    unit.slopes = a.alibi_slopes.empty() ? nullptr : a.alibi_slopes.data() + kv_head * a.group_size();
    unit.format = cache_.format();
    unit.block_table = batch_.block_tables + table * batch_.max_blocks;
    unit.block_size = cache_.block_size();
    unit.cache = cache_.plane(layer, kv_head);
    unit.block_stride = cache_.block_stride(layer);
    return unit;
}

// Prepares the part's queries and those of its keys that are new.
AttentionUnit Step::prepare_part(WorkerScratch& scratch, int layer, int kv_head, const AttentionPart& part) {
    const AttentionSpec& a = layer_spec(layer).attention;
    const AttentionPlan& plan = work_.plans[a.cache_group];
    AttentionUnit unit = part_keys(layer, kv_head, part);
    float* packed = scratch.queries.data();
    int32_t* position = scratch.positions.data();
    for (int i = 0; i < part.num_members; i++) {
        const AttentionTask& task = plan.member(part, i);
        for (int token = task.first_token; token < task.first_token + task.num_queries; token++) {
            *position = batch_.positions[token];
            pack_queries(scratch, layer, token, kv_head, packed);
            const bool is_here = part.chunk < 0 || *position / kAttentionChunk == part.chunk;
            if (is_here && writes_own_keys(layer)) append_key(layer, token, kv_head);
            packed += a.group_size() * query_row_floats(a.head_dim);
            position++;
        }
    }
    unit.queries = scratch.queries.data();
    unit.positions = scratch.positions.data();
    return unit;
}

void Step::run_part(WorkerScratch& scratch, int layer, int kv_head, int index) {
    const AttentionSpec& a = layer_spec(layer).attention;
    AttentionPlan& plan = work_.plans[a.cache_group];
    const AttentionPart& part = plan.parts()[index];
    const AttentionUnit unit = prepare_part(scratch, layer, kv_head, part);
    AttentionUnit next{};
    int next_chunk = 0;
    const bool is_last = index + 1 == static_cast<int>(plan.parts().size());
    const bool has_next = !is_last || kv_head + 1 < a.num_kv_heads;
    if (has_next) {
        const AttentionPart& following = plan.parts()[is_last ? 0 : index + 1];
        next = part_keys(layer, is_last ? kv_head + 1 : kv_head, following);
        next_chunk = following.chunk < 0 ? plan.member(following, 0).first_chunk : following.chunk;
    }
    const AttentionUnit* next_keys = has_next ? &next : nullptr;
    if (part.chunk < 0) {
        run_task(scratch, layer, kv_head, plan.member(part, 0), unit, next_keys, next_chunk);
        return;
    }
    kernels_.attention_chunk(unit, part.chunk, part_state(layer, kv_head, part), next_keys, next_chunk);
    for (int i = 0; i < part.num_members; i++) {
        if (plan.finishes(plan.member_index(part, i), kv_head)) merge_task(layer, kv_head, plan.member(part, i));
    }
}

void Step::run_task(WorkerScratch& scratch, int layer, int kv_head, const AttentionTask& task,
                    const AttentionUnit& unit, const AttentionUnit* next, int next_chunk) {
    const AttentionState state = attention_state(scratch.state.data(), unit.num_rows, unit.head_dim);
    const AttentionState chunk_state = attention_state(scratch.chunk.data(), unit.num_rows, unit.head_dim);
    for (int chunk = task.first_chunk; chunk < task.end_chunk; chunk++) {
        const bool is_first = chunk == task.first_chunk, is_last = chunk + 1 == task.end_chunk;
        kernels_.attention_chunk(unit, chunk, is_first ? state : chunk_state, is_last ? next : &unit,
                                 is_last ? next_chunk : chunk + 1);
        if (!is_first) kernels_.attention_merge(state, chunk_state, unit.num_rows, unit.head_dim);
    }
    finish_task(state, layer, kv_head, task);
}

// The states of a part that is one chunk.
AttentionState Step::part_state(int layer, int kv_head, const AttentionPart& part) const {
    const AttentionSpec& a = layer_spec(layer).attention;
    const int first = kv_head * work_.plans[a.cache_group].num_states() + part.first_state;
    const size_t row_floats = attention_state_floats(work_.max_group_size, work_.max_head_dim);
    return attention_state(work_.partials.data() + first * row_floats, part.num_queries * a.group_size(), a.head_dim);
}

// The last of a task's parts to be done merges them all, in the order of their chunks.
void Step::merge_task(int layer, int kv_head, const AttentionTask& task) {
    const AttentionSpec& a = layer_spec(layer).attention;
    const AttentionPlan& plan = work_.plans[a.cache_group];
    auto state_of = [&](int chunk) {
        const AttentionPiece& piece = plan.piece(task, chunk);
        const AttentionState state = part_state(layer, kv_head, plan.parts()[piece.part]);
        return rows_from(state, piece.first_query * a.group_size(), a.head_dim);
    };
    const AttentionState state = state_of(task.first_chunk);
    for (int chunk = task.first_chunk + 1; chunk < task.end_chunk; chunk++) {
        kernels_.attention_merge(state, state_of(chunk), task.num_queries * a.group_size(), a.head_dim);
    }
    finish_task(state, layer, kv_head, task);
}

void Step::finish_task(const AttentionState& state, int layer, int kv_head, const AttentionTask& task) {
    const AttentionSpec& a = layer_spec(layer).attention;
    const int cols = a.group_size() * a.head_dim;
    float* out = attention_row(layer, task.first_token) + kv_head * cols;
    Activations output = work_.attention.view(a.q_size());
    const float* sinks = layer_weights(layer).sinks;
    if (sinks != nullptr) sinks += kv_head * a.group_size();
    const int num_rows = task.num_queries * a.group_size();
    kernels_.attention_finish(state, num_rows, a.group_size(), a.head_dim, sinks, out, output.cols);
    if (has_floats_only(output) || cols % kGroup != 0) return;
    for (int i = 0; i < task.num_queries; i++) {
        const float* row = out + static_cast<size_t>(i) * output.cols;
        for (int group = 0; group < cols / kGroup; group++) {
            kernels_.quantize_group(row + group * kGroup, output, kv_head * cols / kGroup + group,
                                    task.first_token + i);
        }
    }
}

}  // namespace tuili
