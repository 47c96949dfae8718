// One forward step over a checked batch: the order of stages and what each does with a row, a panel or a unit.
// Every stage splits into items that any worker may do with the same result. Knows no Python and allocates nothing.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "kernels/kernels.h"
#include "machine/thread_pool.h"
#include "model/batch.h"
#include "model/kv_cache.h"
#include "model/model_spec.h"
#include "step/workspace.h"
#include "weights/weights.h"

namespace tuili {

class Step {
  public:
    // `workspace` has room for the batch (see Model::execute); input_ids and tasks are set.
    Step(const ModelSpec& spec, const Weights& weights, const Kernels& kernels, const BatchInput& batch,
         const StepOutput& output, KvCache& cache, Workspace& workspace)
        : spec_(spec),
          weights_(weights),
          kernels_(kernels),
          batch_(batch),
          output_(output),
          cache_(cache),
          work_(workspace) {}

    // Every worker of the pool calls this.
    void run(Worker& worker);

  private:
    // Rows [0, num_rows) in equal parts of whole row tiles' size at most.
    struct RowParts {
        explicit RowParts(int num_rows);
        int begin(int part) const { return std::min(part * size, num_rows); }
        int num_rows, count, size;
    };

    // step.cpp
    void embed(Worker& worker);
    void project_embeddings(Worker& worker);
    void embed_token(WorkerScratch& scratch, int token);
    void run_layer(Worker& worker, int layer);
    void begin_layer(WorkerScratch& scratch, int token, int layer);
    void begin_sublayer(WorkerScratch& scratch, int token, const Norm& norm, const ActivationBuffer& into);
    void finish_sublayer(WorkerScratch& scratch, float* x, const float* y, const LayerSpec& layer, const Norm& norm);
    void add_output(const LayerSpec& layer, const PanelTile& tile, const Norm* next);
    Activations mlp_input(int layer) const;
    void project_qkv(Worker& worker, int layer);
    void project_attention(Worker& worker, int layer);
    void run_mlp(Worker& worker, int layer);
    void gate(Worker& worker, int layer);
    void norm_row(const float* x, const Norm& norm, float* out) const;
    bool defers(const Norm& norm) const { return spec_.norm == NormKind::kRms && norm.gain != nullptr; }
    bool fuses_residual(const LayerSpec& layer) const;
    bool fuses_next_layer(int layer) const;
    Activations sublayer_input(const Norm& norm, const ActivationBuffer& from) const;

    // step_attention.cpp
    void attend(Worker& worker, int layer);
    bool writes_own_keys(int layer) const;
    void norm_heads(const float* x, const float* gain, int size, float* out) const;
    void rotate_and_norm(int layer, const float* gain, int token, const float* source, float* head) const;
    float query_scale(const AttentionSpec& attention, int position) const;
    void append_key(int layer, int token, int kv_head);
    void prepare_token(int layer, int token);
    void pack_queries(WorkerScratch& scratch, int layer, int token, int kv_head, float* packed) const;
    AttentionUnit part_keys(int layer, int kv_head, const AttentionPart& part) const;
    AttentionUnit prepare_part(WorkerScratch& scratch, int layer, int kv_head, const AttentionPart& part);
    void run_part(WorkerScratch& scratch, int layer, int kv_head, int index);
    void run_task(WorkerScratch& scratch, int layer, int kv_head, const AttentionTask& task, const AttentionUnit& unit,
                  const AttentionUnit* next, int next_chunk);
    AttentionState part_state(int layer, int kv_head, const AttentionPart& part) const;
    void merge_task(int layer, int kv_head, const AttentionTask& task);
    void finish_task(const AttentionState& state, int layer, int kv_head, const AttentionTask& task);

    // step_head.cpp
    void run_head(Worker& worker);
    void normalize_sampled(Worker& worker, int first_row, int num_rows);
    void project_sampled(Worker& worker, int num_rows);
    void project_logits(Worker& worker, int first_row, int num_rows);
    void finish_logits(WorkerScratch& scratch, const PanelTile& tile, int first_row);
    void finish_row(WorkerScratch& scratch, int row, int index);
    int choose(WorkerScratch& scratch, int row, int index, float* logits);
    void report_logprobs(WorkerScratch& scratch, int row, const float* logits, int id);
    int greedy_choice(int index) const;
    const float* panel_best(int index) const;

    WorkerScratch& scratch(const Worker& worker) { return work_.workers[worker.index]; }
    const LayerSpec& layer_spec(int layer) const { return spec_.layers[layer]; }
    const LayerWeights& layer_weights(int layer) const { return weights_.layers()[layer]; }
    bool is_last_layer(int layer) const { return layer + 1 == static_cast<int>(spec_.layers.size()); }
    float* x_row(int token) const { return work_.x.data() + static_cast<size_t>(token) * work_.hidden_stride; }
    float* y_row(int token) const { return work_.y.data() + static_cast<size_t>(token) * work_.hidden_stride; }
    float* qkv_row(int token) const { return work_.qkv.data() + static_cast<size_t>(token) * work_.qkv_stride; }
    float* attention_row(int layer, int token) const;

    // Fetches the rows of x; returns their norm factors, or null where they are what the matrix expects.
    const float* begin_product(WorkerScratch& scratch, const Activations& x) const;

    // Panel `panel` of `linear` times rows [begin, end) of x into out [end - begin][32].
    PanelTile multiply_panel(const Linear& linear, int panel, const Activations& x, const float* factors, int begin,
                             int end, float* out, const uint8_t* next) const;

    // Runs matrices over the same rows as one stage and hands each tile to epilogue(index of the linear, tile).
    // `following` is the matrix that comes next, for the prefetch across the end of the stage; null: none.
    template <class Epilogue>
    void multiply(Worker& worker, std::initializer_list<const Linear*> linears, const Linear* following,
                  const Activations& x, Epilogue&& epilogue);

    // Where this worker's share of a matrix begins; null for null.
    static const uint8_t* own_panels(const Worker& worker, const Linear* linear);

    const ModelSpec& spec_;
    const Weights& weights_;
    const Kernels& kernels_;
    const BatchInput& batch_;
    const StepOutput& output_;
    KvCache& cache_;
    Workspace& work_;
};

inline const uint8_t* Step::own_panels(const Worker& worker, const Linear* linear) {
    if (linear == nullptr) return nullptr;
    const PackedMatrix& w = linear->weight;
    return w.panel(worker.share_begin(w.num_panels(), worker.index));
}

template <class Epilogue>
void Step::multiply(Worker& worker, std::initializer_list<const Linear*> linears, const Linear* following,
                    const Activations& x, Epilogue&& epilogue) {
    const RowParts parts(x.num_rows);
    int num_panels = 0;
    for (const Linear* linear : linears) num_panels += linear->weight.num_panels();
    WorkerScratch& own = scratch(worker);
    const float* factors = nullptr;
    bool has_begun = false;
    const auto run_item = [&](int item) {
        // Not before an item is claimed: only then is the stage under way, and x stays as it is.
        if (!has_begun) factors = begin_product(own, x);
        has_begun = true;
        int index = 0, panel = item / parts.count;
        for (const Linear* linear : linears) {
            if (panel < linear->weight.num_panels()) break;
            panel -= linear->weight.num_panels();
            index++;
        }
        const Linear& linear = **(linears.begin() + index);
        const uint8_t* next = linear.weight.panel(panel + 1);
        if (worker.ends_own_share(num_panels * parts.count, item)) {
            next = own_panels(worker, following);
        } else if (panel + 1 == linear.weight.num_panels()) {
            next = nullptr;
        }
        const int part_end = parts.begin(item % parts.count + 1);
        for (int begin = parts.begin(item % parts.count); begin < part_end; begin += kRowTile) {
            const int end = std::min(begin + kRowTile, part_end);
            epilogue(index, multiply_panel(linear, panel, x, factors, begin, end, own.panels.data(), next));
        }
    };
    worker.stage(num_panels * parts.count, run_item, own_panels(worker, following));
}

}  // namespace tuili
