#include "step/workspace.h"

#include <algorithm>

#include "kernels/packed_layout.h"
#include "model/kv_cache.h"

namespace tuili {
namespace {

constexpr size_t kMaxLogits = size_t{8} << 20;  // floats of logits held at once
constexpr int kMinHeadRows = 8;
constexpr int kMaxHeadRows = 128;

// Rows allocated per group such that consecutive groups do not fall on the same cache sets.
int spread_stride(int num_rows) { return num_rows <= 32 ? (num_rows + 1) / 2 * 2 : (num_rows + 121) / 128 * 128 + 6; }

// Rows that are visited panel by panel must not all fall on the same cache sets: an odd number of lines each.
int row_stride(int num_values) { return ((num_values + 15) / 16 | 1) * 16; }

}  // namespace

void ActivationForms::add(const Linear& consumer, const Kernels& kernels) {
    if (consumer.weight.panels == nullptr) return;
    const Format format = consumer.weight.format;
    const bool is_rounded = format == Format::kBF16 && kernels.rounds_to_bf16;
    has_bf16 |= is_rounded;
    has_floats |= is_float(format) && !is_rounded;
    has_groups |= !is_float(format);
    has_half_sums |= packed_layout(format).has_half_scales();
}

void ActivationBuffer::configure(int max_cols, const ActivationForms& forms) {
    forms_ = forms;
    view_.cols = max_cols;
}

Activations ActivationBuffer::view(int cols) const {
    Activations view = view_;
    view.cols = cols;
    return view;
}

void ActivationBuffer::reserve(int num_rows) {
    view_.num_rows = num_rows;
    view_.row_stride = spread_stride(num_rows);
    if (forms_.has_floats) {
        floats_.reserve(static_cast<size_t>(num_rows) * view_.cols);
        view_.f32 = floats_.data();
    }
    const size_t num_groups = static_cast<size_t>((view_.cols + kGroup - 1) / kGroup) * view_.row_stride;
    if (forms_.has_bf16) {
        bf16_.reserve(num_groups * kGroup);
        view_.bf16 = bf16_.data();
    }
    if (forms_.has_square_sums) {
        square_sums_.reserve(num_groups);
        view_.square_sum = square_sums_.data();
    }
    if (!forms_.has_groups) return;
    const size_t count = static_cast<size_t>(view_.cols / kGroup) * view_.row_stride;
    groups_.reserve(count * kGroup);
    scales_.reserve(count);
    scaled_sums_.reserve(count);
    sums_.reserve(count);
    view_.q = groups_.data();
    view_.scale = scales_.data();
    view_.scaled_sum = scaled_sums_.data();
    view_.sum = sums_.data();
    if (!forms_.has_half_sums) return;
    half_sums_.reserve(count);
    view_.half_sum = half_sums_.data();
}

size_t attention_state_floats(int num_rows, int head_dim) {
    return static_cast<size_t>(num_rows) * (padded_head_dim(head_dim) + 2);
}

AttentionState attention_state(float* memory, int num_rows, int head_dim) {
    float* max = memory + static_cast<size_t>(num_rows) * padded_head_dim(head_dim);
    return {memory, max, max + num_rows};
}

Workspace::Workspace(const ModelSpec& spec, const Weights& weights, const Kernels& kernels, int num_threads)
    : workers(num_threads),
      hidden_size_(spec.hidden_size),
      embedding_size_(spec.embedding_size),
      vocab_size_(spec.vocab_size) {
    measure(spec);
    configure_activations(spec, weights, kernels);
    for (auto& worker : workers) {
        worker.panels.reserve(2 * kRowTile * kPanelCols);
        worker.logits.reserve(kRowTile * kPanelCols);
        worker.row.reserve(std::max(hidden_size_, embedding_size_));
        worker.head_row.reserve(std::max(hidden_size_, embedding_size_));
        worker.queries.reserve(max_part_rows * query_row_floats(max_head_dim));
        worker.head.reserve(max_head_dim);
        worker.positions.reserve(max_part_rows);
        worker.state.reserve(attention_state_floats(max_part_rows, max_head_dim));
        worker.chunk.reserve(attention_state_floats(max_part_rows, max_head_dim));
    }
}

void Workspace::measure(const ModelSpec& spec) {
    for (const auto& layer : spec.layers) {
        const auto& a = layer.attention;
        qkv_stride = std::max(qkv_stride, a.q_size() + 2 * a.kv_size());
        max_q_size_ = std::max(max_q_size_, a.q_size());
        max_group_size = std::max(max_group_size, a.group_size());
        max_head_dim = std::max(max_head_dim, a.head_dim);
        max_kv_heads = std::max(max_kv_heads, a.num_kv_heads);
        max_intermediate_size_ = std::max(max_intermediate_size_, layer.mlp.intermediate_size);
    }
    qkv_stride = row_stride(qkv_stride);
    hidden_stride = row_stride(std::max(spec.hidden_size, spec.embedding_size));
    logit_stride = row_stride(spec.vocab_size);
    panel_stride = row_stride((spec.vocab_size + kPanelCols - 1) / kPanelCols);
    max_part_rows = std::max(kSharedRows, max_group_size);
    plans.resize(spec.num_cache_groups);
}

void Workspace::configure_activations(const ModelSpec& spec, const Weights& weights, const Kernels& kernels) {
    ActivationForms hidden_forms, attention_forms, mlp_forms, head_forms, embedded_forms, unprojected_forms;
    for (const auto& layer : weights.layers()) {
        for (const auto* consumer : {&layer.q, &layer.k, &layer.v, &layer.gate, &layer.up})
            hidden_forms.add(*consumer, kernels);
        attention_forms.add(layer.o, kernels);
        mlp_forms.add(layer.down, kernels);
    }
    head_forms.add(weights.head(), kernels);
    embedded_forms.add(weights.project_in(), kernels);
    unprojected_forms.add(weights.project_out(), kernels);
    hidden_forms.has_square_sums = spec.norm == NormKind::kRms;
    hidden.configure(spec.hidden_size, hidden_forms);
    attention.configure(max_q_size_, attention_forms);
    mlp.configure(max_intermediate_size_, mlp_forms);
    head.configure(spec.embedding_size, head_forms);
    embedded.configure(spec.embedding_size, embedded_forms);
    unprojected.configure(spec.hidden_size, unprojected_forms);
    const bool has_two = std::any_of(spec.layers.begin(), spec.layers.end(),
                                     [](const LayerSpec& layer) { return layer.parallel_norms == 2; });
    mlp_hidden.configure(spec.hidden_size, has_two ? hidden_forms : ActivationForms());
}

void Workspace::reserve_tokens(int num_tokens) {
    const auto count = static_cast<size_t>(num_tokens);
    x.reserve(count * hidden_stride);
    y.reserve(count * hidden_stride);
    qkv.reserve(count * qkv_stride);
    attention_out.reserve(count * max_q_size_);
    hidden.reserve(num_tokens);
    attention.reserve(num_tokens);
    mlp.reserve(num_tokens);
    mlp_hidden.reserve(num_tokens);
    embedded.reserve(num_tokens);
    for (auto& worker : workers) worker.factors.reserve(count);
}

int Workspace::head_rows(int num_rows) const {
    const auto fitting = static_cast<int>(kMaxLogits / static_cast<size_t>(vocab_size_));
    return std::min(num_rows, std::clamp(fitting, kMinHeadRows, kMaxHeadRows));
}

void Workspace::reserve_head(int num_rows) {
    head.reserve(num_rows);
    unprojected.reserve(num_rows);
    if (embedding_size_ != hidden_size_) projected.reserve(static_cast<size_t>(num_rows) * hidden_stride);
    const bool has_logits =
        std::any_of(needs_logits.begin(), needs_logits.end(), [](uint8_t need) { return need != 0; });
    if (has_logits) logits.reserve(static_cast<size_t>(num_rows) * logit_stride);
    panel_best.reserve(static_cast<size_t>(num_rows) * panel_stride);
    panel_best_column.reserve(static_cast<size_t>(num_rows) * panel_stride);
    for (auto& worker : workers) {
        if (!has_logits) break;
        worker.adjusted.reserve(vocab_size_);
        worker.sampler.reserve(vocab_size_);
    }
}

void Workspace::plan_attention(const BatchInput& batch, const ModelSpec& spec, int block_size) {
    const AttentionLimits limits{
        .task_queries = std::max(1, kAttentionRows / max_group_size),
        .shared_queries = std::max(1, kSharedRows / max_group_size),
        .num_kv_heads = max_kv_heads,
        .num_workers = static_cast<int>(workers.size()),
    };
    for (int group = 0; group < spec.num_cache_groups; group++) {
        plans[group].build(batch, group, cache_group_window(spec, group), block_size, limits);
        partials.reserve(static_cast<size_t>(plans[group].num_states()) * max_kv_heads *
                         attention_state_floats(max_group_size, max_head_dim));
    }
}

}  // namespace tuili
