// A model's weights as the runtime wants them: matrices repacked into panels in one arena, vectors as float32.
// Knows canonical tensor names; not files, and keeps no pointer into what it was given.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels.h"
#include "model_spec.h"
#include "platform.h"
#include "thread_pool.h"

namespace tuili {

// A tensor as its file holds it: rows of `cols` weights. Vectors are one row of float32.
struct SourceTensor {
    Format format = Format::kF32;
    int rows = 0;
    int cols = 0;
    const uint8_t* data = nullptr;
    size_t num_bytes = 0;
};

using SourceTensors = std::unordered_map<std::string, SourceTensor>;

struct Linear {
    PackedMatrix weight;
    const float* bias = nullptr;  // padded with zeros to whole panels; null: none
};

struct Norm {
    const float* gain = nullptr;  // null: no norm at this place
    const float* bias = nullptr;
};

struct LayerWeights {
    Norm attn_norm, attn_post_norm, mlp_norm, mlp_post_norm;
    Linear q, k, v, o, gate, up, down;
    const float* q_norm = nullptr;
    const float* k_norm = nullptr;
};

// Rotary tables: float32 [max_model_len][dim / 2] each, cos then sin.
struct RopeTable {
    int dim = 0;
    const float* cos = nullptr;
    const float* sin = nullptr;
};

struct SourceRopeTable {
    int dim = 0;
    const float* cos = nullptr;
    const float* sin = nullptr;
};

class Weights {
  public:
    // Packs on all threads of the pool. Throws std::invalid_argument naming a tensor that is missing, unused or
    // of another shape than the spec's, and std::bad_alloc.
    Weights(const ModelSpec& spec, const SourceTensors& sources, const std::vector<SourceRopeTable>& rope_tables,
            ThreadPool& pool);

    const std::vector<LayerWeights>& layers() const { return layers_; }
    const PackedMatrix& embeddings() const { return embeddings_; }
    const Norm& final_norm() const { return final_norm_; }
    const Linear& head() const { return head_; }
    const RopeTable& rope(const AttentionSpec& attention) const { return rope_tables_[attention.rope_table]; }
    size_t num_bytes() const { return arena_.size(); }

  private:
    Pages arena_;
    std::vector<LayerWeights> layers_;
    std::vector<RopeTable> rope_tables_;
    PackedMatrix embeddings_;
    Norm final_norm_;
    Linear head_;
};

}  // namespace tuili
