// The attention part of a step: norms and rotation of heads, the cache, units of queries.
#include "step.h"

namespace tuili {

// Where attention puts its output: straight into the next matrix's input where that is float32.
float* Step::attention_row(int layer, int token) const {
    const Activations view = work_.attention.view(layer_spec(layer).attention.q_size());
    float* rows = view.f32 != nullptr ? view.f32 : work_.attention_out.data();
    return rows + static_cast<size_t>(token) * view.cols;
}

void Step::attend(Worker& worker, int layer) {
    const AttentionSpec& a = layer_spec(layer).attention;
    const auto num_tasks = static_cast<int>(work_.tasks.size());
    if (work_.splits_chunks) {
        attend_by_chunk(worker, layer);
    } else {
        // A unit that holds all new tokens of its sequence can prepare its own heads; otherwise all must be ready
        // first.
        const bool is_self_sufficient = num_tasks == batch_.num_sequences && a.qk_norm != QkNorm::kFull;
        if (!is_self_sufficient) worker.stage(batch_.num_tokens, [&](int token) { prepare_token(layer, token); });
        worker.stage(num_tasks * a.num_kv_heads, [&](int item) {
            const AttentionTask& task = work_.tasks[item / a.num_kv_heads];
            const int kv_head = item % a.num_kv_heads;
            for (int i = 0; is_self_sufficient && i < task.num_queries; i++) {
                prepare_heads(layer, task.first_token + i, kv_head);
            }
            run_unit(scratch(worker), layer, task, kv_head);
        });
    }
    Activations output = work_.attention.view(a.q_size());
    if (output.q == nullptr || a.group_size() * a.head_dim % kGroup == 0) return;
    output.f32 = nullptr;  // written already
    worker.stage(batch_.num_tokens,
                 [&](int token) { kernels_.quantize_row(attention_row(layer, token), nullptr, output, token); });
}

// Few units with long contexts: chunks are computed side by side and merged in order, to the same bits.
void Step::attend_by_chunk(Worker& worker, int layer) {
    const AttentionSpec& a = layer_spec(layer).attention;
    const auto num_units = static_cast<int>(work_.tasks.size()) * a.num_kv_heads;
    const int max_chunks = work_.max_chunks;
    auto partial = [&](int unit_index, int chunk) {
        const size_t index = static_cast<size_t>(unit_index) * max_chunks + chunk;
        float* memory = work_.partials.data() + index * work_.state_floats();
        return attention_state(memory, work_.max_unit_rows, a.head_dim);
    };
    worker.stage(batch_.num_tokens, [&](int token) { prepare_token(layer, token); });
    worker.stage(num_units * max_chunks, [&](int item) {
        const int unit_index = item / max_chunks, chunk = item % max_chunks;
        const AttentionTask& task = work_.tasks[unit_index / a.num_kv_heads];
        const AttentionUnit u = unit(layer, task, unit_index % a.num_kv_heads);
        if (chunk < first_chunk(u) || chunk > last_chunk(u)) return;
        kernels_.attention_chunk(u, chunk, partial(unit_index, chunk), scratch(worker).scores.data());
    });
    worker.stage(num_units, [&](int item) {
        const AttentionTask& task = work_.tasks[item / a.num_kv_heads];
        const int kv_head = item % a.num_kv_heads;
        const AttentionUnit u = unit(layer, task, kv_head);
        const AttentionState state = partial(item, first_chunk(u));
        for (int chunk = first_chunk(u) + 1; chunk <= last_chunk(u); chunk++) {
            kernels_.attention_merge(state, partial(item, chunk), u.num_rows(), a.head_dim);
        }
        finish_unit(state, u, layer, task, kv_head);
    });
}

int Step::first_chunk(const AttentionUnit& unit) {
    const int oldest = unit.window > 0 ? std::max(unit.first_position - unit.window + 1, 0) : 0;
    return oldest / kAttentionChunk;
}

int Step::last_chunk(const AttentionUnit& unit) {
    return (unit.first_position + unit.num_queries - 1) / kAttentionChunk;
}

void Step::rotate_and_norm(int layer, const float* gain, int token, float* head) {
    const AttentionSpec& a = layer_spec(layer).attention;
    if (a.qk_norm == QkNorm::kHead) kernels_.rms_norm(head, gain, spec_.norm_eps, a.head_dim, head);
    if (a.rope_dim == 0) return;
    const RopeTable& table = weights_.rope(a);
    const size_t row = static_cast<size_t>(batch_.positions[token]) * (a.rope_dim / 2);
    kernels_.rope(head, table.cos + row, table.sin + row, a.rope_dim);
}

// Makes one kv head and its query heads ready, and writes the key and value into the cache.
void Step::prepare_heads(int layer, int token, int kv_head) {
    const AttentionSpec& a = layer_spec(layer).attention;
    const LayerWeights& w = layer_weights(layer);
    float* queries = qkv_row(token) + static_cast<size_t>(kv_head) * a.group_size() * a.head_dim;
    for (int g = 0; g < a.group_size(); g++) rotate_and_norm(layer, w.q_norm, token, queries + g * a.head_dim);
    float* key = qkv_row(token) + a.q_size() + kv_head * a.head_dim;
    rotate_and_norm(layer, w.k_norm, token, key);
    const int32_t slot = batch_.slot_mapping[static_cast<size_t>(a.cache_group) * batch_.num_tokens + token];
    uint16_t* plane = cache_.plane(layer, kv_head) + slot / cache_.block_size() * cache_.block_stride(layer);
    kernels_.cache_append(key, key + a.kv_size(), a.head_dim, cache_.block_size(), slot % cache_.block_size(), plane);
}

void Step::prepare_token(int layer, int token) {
    const AttentionSpec& a = layer_spec(layer).attention;
    if (a.qk_norm == QkNorm::kFull) {
        float* query = qkv_row(token);
        float* key = query + a.q_size();
        kernels_.rms_norm(query, layer_weights(layer).q_norm, spec_.norm_eps, a.q_size(), query);
        kernels_.rms_norm(key, layer_weights(layer).k_norm, spec_.norm_eps, a.kv_size(), key);
    }
    for (int kv_head = 0; kv_head < a.num_kv_heads; kv_head++) prepare_heads(layer, token, kv_head);
}

AttentionUnit Step::unit(int layer, const AttentionTask& task, int kv_head) const {
    const AttentionSpec& a = layer_spec(layer).attention;
    const size_t table = static_cast<size_t>(a.cache_group) * batch_.num_sequences + task.sequence;
    return AttentionUnit{
        .queries = qkv_row(task.first_token) + static_cast<size_t>(kv_head) * a.group_size() * a.head_dim,
        .query_stride = static_cast<size_t>(work_.qkv_stride),
        .num_queries = task.num_queries,
        .group_size = a.group_size(),
        .head_dim = a.head_dim,
        .first_position = task.first_position,
        .window = a.sliding_window,
        .scale = a.scale,
        .logit_softcap = a.logit_softcap,
        .block_table = batch_.block_tables + table * batch_.max_blocks,
        .block_size = cache_.block_size(),
        .cache = cache_.plane(layer, kv_head),
        .block_stride = cache_.block_stride(layer),
    };
}

void Step::run_unit(WorkerScratch& scratch, int layer, const AttentionTask& task, int kv_head) {
    const AttentionUnit u = unit(layer, task, kv_head);
    const AttentionState state = attention_state(scratch.state.data(), work_.max_unit_rows, u.head_dim);
    const AttentionState chunk_state = attention_state(scratch.chunk.data(), work_.max_unit_rows, u.head_dim);
    kernels_.attention_chunk(u, first_chunk(u), state, scratch.scores.data());
    for (int chunk = first_chunk(u) + 1; chunk <= last_chunk(u); chunk++) {
        kernels_.attention_chunk(u, chunk, chunk_state, scratch.scores.data());
        kernels_.attention_merge(state, chunk_state, u.num_rows(), u.head_dim);
    }
    finish_unit(state, u, layer, task, kv_head);
}

void Step::finish_unit(const AttentionState& state, const AttentionUnit& unit, int layer, const AttentionTask& task,
                       int kv_head) {
    const int cols = unit.group_size * unit.head_dim;
    float* out = attention_row(layer, task.first_token) + kv_head * cols;
    Activations output = work_.attention.view(layer_spec(layer).attention.q_size());
    kernels_.attention_finish(state, unit, out, output.cols);
    if (output.q == nullptr || cols % kGroup != 0) return;
    for (int i = 0; i < unit.num_queries; i++) {
        const float* row = out + static_cast<size_t>(i) * output.cols;
        for (int group = 0; group < cols / kGroup; group++) {
            kernels_.quantize_group(row + group * kGroup, output, kv_head * cols / kGroup + group,
                                    task.first_token + i);
        }
    }
}

}  // namespace tuili
