// The memory a step works in: grown when a step needs more than any before, otherwise reused. Rows are tokens
// unless said otherwise. Knows sizes; not what is computed.
#pragma once
#include <memory>
#include <new>
#include <vector>

#include "kernels/kernels.h"
#include "model/model_spec.h"
#include "sampling/sampler.h"
#include "step/attention_plan.h"
#include "weights/weights.h"

namespace tuili {

// Uninitialized memory on a cache line boundary. Growing loses what was there.
template <class T>
class Buffer {
  public:
    void reserve(size_t count) {
        if (count <= capacity_) return;
        data_.reset();
        capacity_ = 0;
        data_.reset(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(kLine))));
        capacity_ = count;
    }
    T* data() const { return data_.get(); }

  private:
    static constexpr size_t kLine = 64;
    struct Free {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t(kLine)); }
    };
    std::unique_ptr<T, Free> data_;
    size_t capacity_ = 0;
};

// The forms of its input that a matrix format multiplies.
struct ActivationForms {
    bool has_groups = false;     // int8
    bool has_half_sums = false;  // int8, for scales per 16
    bool has_floats = false;
    bool has_bf16 = false;
    bool has_square_sums = false;  // RMS factors are applied after the product

    void add(const Linear& consumer, const Kernels& kernels);
};

class ActivationBuffer {
  public:
    void configure(int max_cols, const ActivationForms& forms);
    // Makes room for `num_rows` rows of undefined content.
    void reserve(int num_rows);
    // The buffer as rows of `cols`, which may differ between layers.
    Activations view(int cols) const;

  private:
    ActivationForms forms_;
    Activations view_;
    Buffer<int8_t> groups_;
    Buffer<uint16_t> bf16_;
    Buffer<float> scales_, scaled_sums_, floats_, square_sums_;
    Buffer<int32_t> sums_, half_sums_;
};

// What one thread needs for itself.
struct WorkerScratch {
    Buffer<float> panels;         // [2][kRowTile][32]
    Buffer<float> logits;         // [kRowTile][32]
    Buffer<float> factors;        // [num_tokens]
    Buffer<float> row, head_row;  // [hidden or embedding size, the larger]
    Buffer<float> queries;        // [max_part_rows][query_row_floats] packed
    Buffer<float> head;           // [max_head_dim] a query on its way there
    Buffer<int32_t> positions;    // [max_part_rows] of queries
    Buffer<float> state, chunk;   // attention states of a task
    Buffer<float> adjusted;       // [vocab] logits while sampling changes them
    Sampler sampler;
};

constexpr int kRowTile = 60;        // rows that share a panel's time in cache; whole tiles of 4, 5, 6 and 12
constexpr int kAttentionRows = 24;  // rows of an attention task, unless one query has more heads than that
constexpr int kSharedRows = 96;     // rows of several tasks that read the same keys

// Floats of an AttentionState.
size_t attention_state_floats(int num_rows, int head_dim);
AttentionState attention_state(float* memory, int num_rows, int head_dim);

class Workspace {
  public:
    Workspace(const ModelSpec& spec, const Weights& weights, const Kernels& kernels, int num_threads);

    void reserve_tokens(int num_tokens);
    // At most this many of the sampled rows go through the head together.
    int head_rows(int num_rows) const;
    void reserve_head(int num_rows);
    // Cuts the batch's attention and makes room for the states in between.
    void plan_attention(const BatchInput& batch, const ModelSpec& spec, int block_size);

    // Entries from a row to the next; see row_stride().
    int hidden_stride = 0;
    int qkv_stride = 0;
    int logit_stride = 0;
    int panel_stride = 0;
    int max_group_size = 1;
    int max_part_rows = 1;
    int max_head_dim = 0;
    int max_kv_heads = 0;
    Buffer<float> x;              // [num_tokens][hidden_stride] residual stream
    Buffer<float> y;              // [num_tokens][hidden_stride] output of a sublayer that is normed before it is added
    Buffer<float> qkv;            // [num_tokens][qkv_stride] queries, keys, values
    Buffer<float> attention_out;  // [num_tokens][q_size]
    ActivationBuffer hidden, attention, mlp, head;
    ActivationBuffer mlp_hidden;             // input of an MLP that has a norm of its own beside the attention's
    ActivationBuffer embedded, unprojected;  // inputs of the embedding's projections
    Buffer<float> projected;                 // [head rows][hidden_stride] what comes out of the last one
    Buffer<float> partials;                  // attention states of chunks
    Buffer<float> logits;                    // [head rows][logit_stride]
    Buffer<float> panel_best;                // [head rows][panel_stride] largest logit of a panel
    Buffer<uint8_t> panel_best_column;       // where
    std::vector<int32_t> input_ids;          // with carried tokens filled in
    std::vector<uint8_t> needs_logits;       // [num_rows] 0: the largest logit's id is all that is wanted
    std::vector<size_t> logit_places;        // [num_rows] of those that want their logits: how many before do
    std::vector<const uint32_t*> masks;  // [num_rows] of ids allowed, for the head's epilogue; null: none, or not there
    std::vector<AttentionPlan> plans;    // by cache group
    std::vector<WorkerScratch> workers;

  private:
    void measure(const ModelSpec& spec);
    void configure_activations(const ModelSpec& spec, const Weights& weights, const Kernels& kernels);

    int hidden_size_;
    int embedding_size_;
    int vocab_size_;
    int max_q_size_ = 0;
    int max_intermediate_size_ = 0;
};

}  // namespace tuili
