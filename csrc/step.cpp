#include "step.h"

#include <cstring>

namespace tuili {
namespace {

constexpr int kMaxPartRows = 4 * kRowTile;

// Sublayers whose output is normed as a whole before it joins the residual stream.
bool norms_output(const LayerSpec& layer) {
    return layer.norms == NormPlacement::kSandwich || layer.norms == NormPlacement::kOutput;
}

int panel_width(int cols, int panel) { return std::min(kPanelCols, cols - panel * kPanelCols); }

}  // namespace

Step::RowParts::RowParts(int rows) : num_rows(rows), count((rows + kMaxPartRows - 1) / kMaxPartRows) {
    count = std::max(count, 1);
    size = (rows + count - 1) / count;
}

void Step::run(Worker& worker) {
    if (batch_.num_copies > 0) {
        worker.stage(1, [&](int) {  // in order: a block may be copied on after it was copied to
            for (int i = 0; i < batch_.num_copies; i++) {
                const int32_t* copy = batch_.block_copies + 3 * i;
                cache_.copy_block(copy[0], copy[1], copy[2]);
            }
        });
    }
    embed(worker);
    for (int layer = 0; layer < static_cast<int>(spec_.layers.size()); layer++) run_layer(worker, layer);
    if (batch_.num_rows > 0) run_head(worker);
}

void Step::embed(Worker& worker) {
    worker.stage(batch_.num_tokens, [&](int token) {
        float* x = x_row(token);
        unpack_row(weights_.embeddings(), work_.input_ids[token], x);
        if (spec_.embedding_scale != 1.0f) kernels_.multiply(x, spec_.embedding_scale, spec_.hidden_size);
        begin_sublayer(scratch(worker), token, layer_weights(0).attn_norm);
    });
}

void Step::run_layer(Worker& worker, int layer) {
    const LayerSpec& spec = layer_spec(layer);
    const LayerWeights& w = layer_weights(layer);
    project_qkv(worker, layer);
    attend(worker, layer);
    project_attention(worker, layer);
    worker.stage(batch_.num_tokens, [&](int token) {
        finish_sublayer(scratch(worker), x_row(token), y_row(token), spec, w.attn_post_norm);
        begin_sublayer(scratch(worker), token, w.mlp_norm);
    });
    run_mlp(worker, layer);
    if (is_last_layer(layer)) return;  // the head finishes the rows it samples
    worker.stage(batch_.num_tokens, [&](int token) {
        finish_sublayer(scratch(worker), x_row(token), y_row(token), spec, w.mlp_post_norm);
        begin_sublayer(scratch(worker), token, layer_weights(layer + 1).attn_norm);
    });
}

void Step::norm_row(const float* x, const Norm& norm, float* out) const {
    if (spec_.norm == NormKind::kRms) {
        kernels_.rms_norm(x, norm.gain, spec_.norm_eps, spec_.hidden_size, out);
    } else {
        kernels_.layer_norm(x, norm.gain, norm.bias, spec_.norm_eps, spec_.hidden_size, out);
    }
}

void Step::begin_sublayer(WorkerScratch& scratch, int token, const Norm& norm) {
    const float* input = x_row(token);
    if (norm.gain != nullptr) {
        norm_row(input, norm, scratch.row.data());
        input = scratch.row.data();
    }
    Activations hidden = work_.hidden.view(spec_.hidden_size);
    kernels_.quantize_row(input, hidden, token);
}

// What add_output left to do for a whole row.
void Step::finish_sublayer(WorkerScratch& scratch, float* x, const float* y, const LayerSpec& layer, const Norm& norm) {
    if (layer.norms == NormPlacement::kPost) norm_row(x, norm, x);
    if (!norms_output(layer)) return;
    norm_row(y, norm, scratch.row.data());
    kernels_.add_scaled(x, scratch.row.data(), layer.residual_scale, spec_.hidden_size);
}

void Step::add_output(const LayerSpec& layer, int panel, int token, const float* values) {
    const int col = panel * kPanelCols, width = panel_width(spec_.hidden_size, panel);
    if (norms_output(layer)) {
        std::memcpy(y_row(token) + col, values, width * sizeof(float));
    } else {
        kernels_.add_scaled(x_row(token) + col, values, layer.residual_scale, width);
    }
}

void Step::multiply_panel(const Linear& linear, int panel, const Activations& x, int begin, int end, float* out,
                          const uint8_t* next) const {
    kernels_.matmul_panel(linear.weight, panel, x, begin, end, out, next);
    if (linear.bias == nullptr) return;
    for (int i = 0; i < end - begin; i++) {
        kernels_.add_scaled(out + i * kPanelCols, linear.bias + panel * kPanelCols, 1.0f, kPanelCols);
    }
}

void Step::project_qkv(Worker& worker, int layer) {
    const AttentionSpec& a = layer_spec(layer).attention;
    const LayerWeights& w = layer_weights(layer);
    const int starts[3] = {0, a.q_size(), a.q_size() + a.kv_size()};
    const Linear* linears[3] = {&w.q, &w.k, &w.v};
    const Activations hidden = work_.hidden.view(spec_.hidden_size);
    multiply(worker, {&w.q, &w.k, &w.v}, &w.o, hidden,
             [&](int index, int panel, int begin, int end, const float* values) {
                 const int width = panel_width(linears[index]->weight.rows, panel);
                 for (int token = begin; token < end; token++, values += kPanelCols) {
                     std::memcpy(qkv_row(token) + starts[index] + panel * kPanelCols, values, width * sizeof(float));
                 }
             });
}

void Step::project_attention(Worker& worker, int layer) {
    const LayerSpec& spec = layer_spec(layer);
    const LayerWeights& w = layer_weights(layer);
    const Activations input = work_.attention.view(spec.attention.q_size());
    multiply(worker, {&w.o}, spec.mlp.gated ? &w.gate : &w.up, input,
             [&](int, int panel, int begin, int end, const float* values) {
                 for (int token = begin; token < end; token++, values += kPanelCols)
                     add_output(spec, panel, token, values);
             });
}

void Step::run_mlp(Worker& worker, int layer) {
    const LayerSpec& spec = layer_spec(layer);
    const LayerWeights& w = layer_weights(layer);
    const Activations hidden = work_.hidden.view(spec_.hidden_size);
    if (spec.mlp.gated) {
        const RowParts parts(batch_.num_tokens);
        const int num_items = w.up.weight.num_panels() * parts.count;
        worker.stage(num_items, [&](int item) {
            const uint8_t* following = worker.ends_own_share(num_items, item) ? own_panels(worker, &w.down) : nullptr;
            const int part = item % parts.count, part_end = parts.begin(part + 1);
            for (int begin = parts.begin(part); begin < part_end; begin += kRowTile) {
                const int end = std::min(begin + kRowTile, part_end);
                gate_panel(scratch(worker), layer, item / parts.count, begin, end, following);
            }
        });
    } else {
        multiply(worker, {&w.up}, &w.down, hidden, [&](int, int panel, int begin, int end, float* values) {
            kernels_.activation(spec.mlp.activation, values, (end - begin) * kPanelCols);
            store_mlp_rows(spec, panel, begin, end, values);
        });
    }
    const Activations inner = work_.mlp.view(spec.mlp.intermediate_size);
    const Linear* following = is_last_layer(layer) ? &weights_.head() : &layer_weights(layer + 1).q;
    multiply(worker, {&w.down}, following, inner, [&](int, int panel, int begin, int end, const float* values) {
        for (int token = begin; token < end; token++, values += kPanelCols) add_output(spec, panel, token, values);
    });
}

// The same columns of gate and up, combined while they are in cache.
void Step::gate_panel(WorkerScratch& scratch, int layer, int panel, int begin, int end, const uint8_t* following) {
    const LayerSpec& spec = layer_spec(layer);
    const PackedMatrix& gate_weight = layer_weights(layer).gate.weight;
    const PackedMatrix& up_weight = layer_weights(layer).up.weight;
    const Activations hidden = work_.hidden.view(spec_.hidden_size);
    const bool is_last = panel + 1 == up_weight.num_panels();
    const uint8_t* next_gate = is_last ? nullptr : gate_weight.panels + (panel + 1) * gate_weight.panel_bytes;
    const uint8_t* next_up = is_last ? nullptr : up_weight.panels + (panel + 1) * up_weight.panel_bytes;
    float* gate = scratch.panels.data();
    float* up = gate + kRowTile * kPanelCols;
    multiply_panel(layer_weights(layer).gate, panel, hidden, begin, end, gate, next_gate);
    multiply_panel(layer_weights(layer).up, panel, hidden, begin, end, up, following ? following : next_up);
    kernels_.gated_activation(spec.mlp.activation, gate, up, (end - begin) * kPanelCols);
    store_mlp_rows(spec, panel, begin, end, gate);
}

// A panel is a group of the next matrix's input.
void Step::store_mlp_rows(const LayerSpec& layer, int panel, int begin, int end, const float* values) {
    Activations inner = work_.mlp.view(layer.mlp.intermediate_size);
    const int width = panel_width(inner.cols, panel);
    for (int token = begin; token < end; token++, values += kPanelCols) {
        if (inner.q != nullptr && width == kPanelCols) kernels_.quantize_group(values, inner, panel, token);
        if (inner.f32 == nullptr) continue;
        float* row = inner.f32 + static_cast<size_t>(token) * inner.cols;
        std::memcpy(row + panel * kPanelCols, values, width * sizeof(float));
    }
}

}  // namespace tuili
