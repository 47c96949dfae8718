#include "step/step.h"

namespace tuili {
namespace {

constexpr int kMaxPartRows = 4 * kRowTile;
constexpr int kFetchedRows = 32;

// Sublayers whose output is normed as a whole before it joins the residual stream.
bool norms_output(const LayerSpec& layer) {
    return layer.norms == NormPlacement::kSandwich || layer.norms == NormPlacement::kOutput;
}

void fetch(const void* data, size_t num_bytes) {
    for (size_t i = 0; i < num_bytes; i += 64) __builtin_prefetch(static_cast<const uint8_t*>(data) + i);
}

// Few rows: they come from other cores' caches at once, rather than one by one as the product gets there.
void fetch_rows(const Activations& x) {
    const size_t count = static_cast<size_t>(x.cols / kGroup) * x.row_stride;
    if (x.bf16 != nullptr) fetch(x.bf16, count * kGroup * sizeof(uint16_t));
    if (x.q == nullptr) return;
    fetch(x.q, count * kGroup);
    fetch(x.scale, count * sizeof(float));
    fetch(x.sum, count * sizeof(int32_t));
    fetch(x.scaled_sum, count * sizeof(float));
}

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
    if (spec_.projects_embeddings()) project_embeddings(worker);
    worker.stage(batch_.num_tokens, [&](int token) {
        WorkerScratch& own = scratch(worker);
        embed_token(own, token);
        begin_layer(own, token, 0);
    });
}

// x <- the projected embeddings of all tokens.
void Step::project_embeddings(Worker& worker) {
    Activations embedded = work_.embedded.view(spec_.embedding_size);
    worker.stage(batch_.num_tokens, [&](int token) {
        float* row = scratch(worker).row.data();
        unpack_row(weights_.embeddings(), work_.input_ids[token], row);
        if (spec_.embedding_scale != 1.0f) kernels_.multiply(row, spec_.embedding_scale, spec_.embedding_size);
        kernels_.quantize_row(row, nullptr, embedded, token);
    });
    multiply(worker, {&weights_.project_in()}, nullptr, embedded, [&](int, const PanelTile& tile) {
        kernels_.store_tile(tile, x_row(tile.row) + tile.panel * kPanelCols, work_.hidden_stride);
    });
}

void Step::embed_token(WorkerScratch& scratch, int token) {
    float* x = x_row(token);
    if (!spec_.projects_embeddings()) {
        unpack_row(weights_.embeddings(), work_.input_ids[token], x);
        if (spec_.embedding_scale != 1.0f) kernels_.multiply(x, spec_.embedding_scale, spec_.hidden_size);
    }
    if (spec_.num_positions > 0) {
        unpack_row(weights_.positions(), batch_.positions[token] + spec_.position_offset, scratch.row.data());
        kernels_.add_scaled(x, scratch.row.data(), 1.0f, spec_.hidden_size);
    }
    if (spec_.embedding_norm) norm_row(x, weights_.embedding_norm(), x);
}

void Step::run_layer(Worker& worker, int layer) {
    const LayerSpec& spec = layer_spec(layer);
    const LayerWeights& w = layer_weights(layer);
    project_qkv(worker, layer);
    attend(worker, layer);
    project_attention(worker, layer);
    if (!fuses_residual(spec) && !spec.parallel) {
        worker.stage(
            batch_.num_tokens,
            [&](int token) {
                finish_sublayer(scratch(worker), x_row(token), y_row(token), spec, w.attn_post_norm);
                begin_sublayer(scratch(worker), token, w.mlp_norm, work_.hidden);
            },
            own_panels(worker, spec.mlp.gated ? &w.gate : &w.up));
    }
    run_mlp(worker, layer);
    if (is_last_layer(layer) || fuses_next_layer(layer)) return;  // the head finishes the rows it samples
    worker.stage(
        batch_.num_tokens,
        [&](int token) {
            finish_sublayer(scratch(worker), x_row(token), y_row(token), spec, w.mlp_post_norm);
            begin_layer(scratch(worker), token, layer + 1);
        },
        own_panels(worker, &layer_weights(layer + 1).q));
}

// Whether no norm must see a whole row between a sublayer's output and the next one's input.
bool Step::fuses_residual(const LayerSpec& layer) const {
    return layer.norms == NormPlacement::kPre && spec_.norm == NormKind::kRms;
}

// Whether a layer's last product leaves the next one's input complete.
bool Step::fuses_next_layer(int layer) const {
    return fuses_residual(layer_spec(layer)) && layer_spec(layer + 1).parallel_norms == 1;
}

// The rows that a sublayer behind `norm` multiplies. An RMS norm's factor is left to the product's epilogue.
Activations Step::sublayer_input(const Norm& norm, const ActivationBuffer& from) const {
    Activations input = from.view(spec_.hidden_size);
    if (!defers(norm)) input.square_sum = nullptr;
    return input;
}

// Beside the attention, the MLP reads the same rows, or those of its own norm.
Activations Step::mlp_input(int layer) const {
    const LayerSpec& spec = layer_spec(layer);
    const LayerWeights& w = layer_weights(layer);
    if (spec.parallel_norms == 2) return sublayer_input(w.mlp_norm, work_.mlp_hidden);
    return sublayer_input(spec.parallel ? w.attn_norm : w.mlp_norm, work_.hidden);
}

void Step::norm_row(const float* x, const Norm& norm, float* out) const {
    if (spec_.norm == NormKind::kRms) {
        kernels_.rms_norm(x, norm.gain, spec_.norm_eps, spec_.hidden_size, out);
    } else {
        kernels_.layer_norm(x, norm.gain, norm.bias, spec_.norm_eps, spec_.hidden_size, out);
    }
}

void Step::begin_layer(WorkerScratch& scratch, int token, int layer) {
    const LayerWeights& w = layer_weights(layer);
    begin_sublayer(scratch, token, w.attn_norm, work_.hidden);
    if (layer_spec(layer).parallel_norms == 2) begin_sublayer(scratch, token, w.mlp_norm, work_.mlp_hidden);
}

void Step::begin_sublayer(WorkerScratch& scratch, int token, const Norm& norm, const ActivationBuffer& into) {
    Activations input = sublayer_input(norm, into);
    if (norm.gain == nullptr || defers(norm)) return kernels_.quantize_row(x_row(token), norm.gain, input, token);
    norm_row(x_row(token), norm, scratch.row.data());
    kernels_.quantize_row(scratch.row.data(), nullptr, input, token);
}

// What add_output left to do for a whole row.
void Step::finish_sublayer(WorkerScratch& scratch, float* x, const float* y, const LayerSpec& layer, const Norm& norm) {
    if (layer.norms == NormPlacement::kPost) norm_row(x, norm, x);
    if (!norms_output(layer)) return;
    norm_row(y, norm, scratch.row.data());
    kernels_.add_scaled(x, scratch.row.data(), layer.residual_scale, spec_.hidden_size);
}

// next: the norm of the sublayer that follows, where its input is complete then; or null.
void Step::add_output(const LayerSpec& layer, const PanelTile& tile, const Norm* next) {
    const int col = tile.panel * kPanelCols;
    if (norms_output(layer)) return kernels_.store_tile(tile, y_row(tile.row) + col, work_.hidden_stride);
    float* x = x_row(tile.row) + col;
    if (next == nullptr) {
        return kernels_.add_tile(tile, layer.residual_scale, x, work_.hidden_stride, nullptr, nullptr);
    }
    Activations input = sublayer_input(*next, work_.hidden);
    kernels_.add_tile(tile, layer.residual_scale, x, work_.hidden_stride, next->gain, &input);
}

const float* Step::begin_product(WorkerScratch& scratch, const Activations& x) const {
    if (x.num_rows <= kFetchedRows) fetch_rows(x);
    if (x.square_sum == nullptr) return nullptr;
    kernels_.norm_factors(x, spec_.norm_eps, scratch.factors.data());
    return scratch.factors.data();
}

PanelTile Step::multiply_panel(const Linear& linear, int panel, const Activations& x, const float* factors, int begin,
                               int end, float* out, const uint8_t* next) const {
    kernels_.matmul_panel(linear.weight, panel, x, begin, end, out, next);
    return PanelTile{
        .values = out,
        .num_rows = end - begin,
        .row = begin,
        .panel = panel,
        .width = std::min(kPanelCols, linear.weight.rows - panel * kPanelCols),
        .factors = factors == nullptr ? nullptr : factors + begin,
        .bias = linear.bias == nullptr ? nullptr : linear.bias + panel * kPanelCols,
    };
}

void Step::project_qkv(Worker& worker, int layer) {
    const AttentionSpec& a = layer_spec(layer).attention;
    const LayerWeights& w = layer_weights(layer);
    const int starts[3] = {0, a.q_size(), a.q_size() + a.kv_size()};
    const Activations input = sublayer_input(w.attn_norm, work_.hidden);
    multiply(worker, {&w.q, &w.k, &w.v}, &w.o, input, [&](int index, const PanelTile& tile) {
        kernels_.store_tile(tile, qkv_row(tile.row) + starts[index] + tile.panel * kPanelCols, work_.qkv_stride);
    });
}

void Step::project_attention(Worker& worker, int layer) {
    const LayerSpec& spec = layer_spec(layer);
    const LayerWeights& w = layer_weights(layer);
    const Activations input = work_.attention.view(spec.attention.q_size());
    const Norm* next = fuses_residual(spec) && !spec.parallel ? &w.mlp_norm : nullptr;
    multiply(worker, {&w.o}, spec.mlp.gated ? &w.gate : &w.up, input,
             [&](int, const PanelTile& tile) { add_output(spec, tile, next); });
}

void Step::run_mlp(Worker& worker, int layer) {
    const LayerSpec& spec = layer_spec(layer);
    const LayerWeights& w = layer_weights(layer);
    Activations inner = work_.mlp.view(spec.mlp.intermediate_size);
    if (spec.mlp.gated) {
        gate(worker, layer);
    } else {
        multiply(worker, {&w.up}, &w.down, mlp_input(layer),
                 [&](int, const PanelTile& tile) { kernels_.activated_tile(spec.mlp.activation, tile, inner); });
    }
    const LayerWeights* next = is_last_layer(layer) ? nullptr : &layer_weights(layer + 1);
    const Norm* next_norm = next != nullptr && fuses_next_layer(layer) ? &next->attn_norm : nullptr;
    multiply(worker, {&w.down}, next == nullptr ? &weights_.head() : &next->q, inner,
             [&](int, const PanelTile& tile) { add_output(spec, tile, next_norm); });
}

// The same columns of gate and up, combined while they are in cache.
void Step::gate(Worker& worker, int layer) {
    const LayerWeights& w = layer_weights(layer);
    const int activation = layer_spec(layer).mlp.activation, num_panels = w.up.weight.num_panels();
    const Activations x = mlp_input(layer);
    Activations inner = work_.mlp.view(layer_spec(layer).mlp.intermediate_size);
    const RowParts parts(x.num_rows);
    WorkerScratch& own = scratch(worker);
    float *gate_out = own.panels.data(), *up_out = gate_out + kRowTile * kPanelCols;
    const float* factors = nullptr;
    bool has_begun = false;
    const auto run_item = [&](int item) {
        if (!has_begun) factors = begin_product(own, x);
        has_begun = true;
        const int panel = item / parts.count, part = item % parts.count, part_end = parts.begin(part + 1);
        const uint8_t* next_gate = panel + 1 < num_panels ? w.gate.weight.panel(panel + 1) : nullptr;
        const uint8_t* next_up = panel + 1 < num_panels ? w.up.weight.panel(panel + 1) : nullptr;
        if (worker.ends_own_share(num_panels * parts.count, item)) next_up = own_panels(worker, &w.down);
        for (int begin = parts.begin(part); begin < part_end; begin += kRowTile) {
            const int end = std::min(begin + kRowTile, part_end);
            kernels_.gated_tile(activation, multiply_panel(w.gate, panel, x, factors, begin, end, gate_out, next_gate),
                                multiply_panel(w.up, panel, x, factors, begin, end, up_out, next_up), inner);
        }
    };
    worker.stage(num_panels * parts.count, run_item, own_panels(worker, &w.down));
}

}  // namespace tuili
