// A model's weights as the runtime wants them: matrices repacked into panels in one arena, vectors as float32.
// Knows canonical tensor names; not files, and keeps no pointer into what it was given.
#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "machine/platform.h"
#include "machine/thread_pool.h"
#include "model/model_spec.h"
#include "model/rope_table.h"

namespace tuili {

// A tensor as its file holds it: rows of `cols` weights. Vectors are one row of float32.
struct SourceTensor {
    Format format = Format::kF32;
    int rows = 0;
    int cols = 0;
    const uint8_t* data = nullptr;
    size_t num_bytes = 0;
};

// Gives the first few tensors of `names`, at least one, valid until it is called again: what is read but not packed yet
// stays small, and the reader is called seldom.
using TensorReader = std::function<std::vector<SourceTensor>(std::span<const std::string> names)>;

// Memory that grows in large pieces and goes as a whole. What is allocated is zeroed and aligned to 64 bytes.
class Arena {
  public:
    uint8_t* allocate(size_t bytes);  // throws std::bad_alloc
    size_t num_bytes() const { return num_bytes_; }

  private:
    std::vector<Pages> pieces_;
    size_t num_bytes_ = 0;  // allocated, of all pieces
    size_t num_used_ = 0;   // of the last piece
};

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
    const float* sinks = nullptr;
};

class Weights {
  public:
    // Reads every tensor of the spec once and packs it on all threads of the pool. Throws std::invalid_argument
    // naming a tensor that is not what the spec implies, std::bad_alloc, and what `read` throws.
    Weights(const ModelSpec& spec, const TensorReader& read, const std::vector<RopeFrequencies>& ropes,
            ThreadPool& pool);

    // Before a step: positions [0, num_positions) of every rotary table are there afterwards.
    void extend_ropes(int num_positions, ThreadPool& pool);

    const std::vector<LayerWeights>& layers() const { return layers_; }
    const PackedMatrix& embeddings() const { return embeddings_; }
    const PackedMatrix& positions() const { return positions_; }
    const Norm& embedding_norm() const { return embedding_norm_; }
    const Linear& project_in() const { return project_in_; }
    const Linear& project_out() const { return project_out_; }
    const Norm& final_norm() const { return final_norm_; }
    const Linear& head() const { return head_; }
    const RopeTable& rope(const AttentionSpec& attention) const { return rope_tables_[attention.rope_table]; }
    size_t num_bytes() const { return arena_.num_bytes(); }

  private:
    Arena arena_;
    std::vector<LayerWeights> layers_;
    std::vector<RopeTable> rope_tables_;
    PackedMatrix embeddings_, positions_;
    Norm embedding_norm_, final_norm_;
    Linear project_in_, project_out_;
    Linear head_;
};

}  // namespace tuili
