#include "weights.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace tuili {
namespace {

constexpr size_t kAlignment = 64;

size_t align(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// First notes what goes where, then allocates once, then copies and packs in parallel.
class Packer {
  public:
    explicit Packer(const SourceTensors& sources) : sources_(sources) {}

    void matrix(const std::string& name, int rows, int cols, PackedMatrix* out) {
        const SourceTensor& source = take(name, rows, cols);
        const size_t row_bytes = source_row_bytes(source.format, cols);
        if (row_bytes == 0 || source.num_bytes != row_bytes * rows) {
            throw std::invalid_argument(name + ": " + std::to_string(source.num_bytes) + " bytes are not " +
                                        std::to_string(rows) + " rows of " + std::to_string(row_bytes));
        }
        *out = PackedMatrix{source.format, rows, cols, packed_panel_bytes(source.format, cols), nullptr};
        matrices_.push_back({out, &source, reserve(out->panel_bytes * out->num_panels())});
    }

    void vector(const std::string& name, int size, const float** out) {
        const SourceTensor& source = take(name, 1, size);
        if (source.format != Format::kF32 || source.num_bytes != size * sizeof(float)) {
            throw std::invalid_argument(name + " must be float32");
        }
        floats(reinterpret_cast<const float*>(source.data), size, out);
    }

    // Zeros follow up to a whole panel, so that panels may read past the end.
    void floats(const float* values, size_t count, const float** out) {
        vectors_.push_back({out, values, count, reserve((count + kPanelCols) * sizeof(float))});
    }

    Pages pack(ThreadPool& pool) {
        check_all_used();
        Pages arena(num_bytes_);
        for (const auto& v : vectors_) {
            std::memcpy(arena.data() + v.offset, v.values, v.count * sizeof(float));
            *v.out = reinterpret_cast<const float*>(arena.data() + v.offset);
        }
        for (const auto& m : matrices_) m.out->panels = arena.data() + m.offset;
        pool.run([&](Worker& worker) {
            for (const auto& m : matrices_) {
                worker.stage(m.out->num_panels(), [&](int panel) { pack_one(m, panel, arena.data() + m.offset); });
            }
        });
        return arena;
    }

  private:
    struct Matrix {
        PackedMatrix* out;
        const SourceTensor* source;
        size_t offset;
    };
    struct Vector {
        const float** out;
        const float* values;
        size_t count;
        size_t offset;
    };

    const SourceTensor& take(const std::string& name, int rows, int cols) {
        auto found = sources_.find(name);
        if (found == sources_.end()) throw std::invalid_argument(name + " is missing");
        const SourceTensor& source = found->second;
        if (source.rows != rows || source.cols != cols) {
            throw std::invalid_argument(name + " must be [" + std::to_string(rows) + ", " + std::to_string(cols) +
                                        "], got [" + std::to_string(source.rows) + ", " + std::to_string(source.cols) +
                                        "]");
        }
        num_taken_++;
        return source;
    }

    void check_all_used() const {
        if (num_taken_ != sources_.size()) {
            throw std::invalid_argument("the model uses " + std::to_string(num_taken_) + " tensors, got " +
                                        std::to_string(sources_.size()));
        }
    }

    size_t reserve(size_t bytes) {
        const size_t offset = num_bytes_;
        num_bytes_ += align(bytes);
        return offset;
    }

    static void pack_one(const Matrix& m, int panel, uint8_t* panels) {
        const int first = panel * kPanelCols;
        const int num_rows = std::min(kPanelCols, m.out->rows - first);
        const size_t row_bytes = source_row_bytes(m.out->format, m.out->cols);
        pack_panel(m.out->format, m.source->data + first * row_bytes, row_bytes, num_rows, m.out->cols,
                   panels + panel * m.out->panel_bytes);
    }

    const SourceTensors& sources_;
    std::vector<Matrix> matrices_;
    std::vector<Vector> vectors_;
    size_t num_bytes_ = 0;
    size_t num_taken_ = 0;
};

void add_norm(Packer& packer, const ModelSpec& spec, const std::string& name, Norm* out) {
    packer.vector(name + ".weight", spec.hidden_size, &out->gain);
    if (spec.norm_bias) packer.vector(name + ".bias", spec.hidden_size, &out->bias);
}

void add_linear(Packer& packer, const std::string& name, int rows, int cols, bool has_bias, Linear* out) {
    packer.matrix(name + ".weight", rows, cols, &out->weight);
    if (has_bias) packer.vector(name + ".bias", rows, &out->bias);
}

void add_attention(Packer& packer, const AttentionSpec& a, int hidden, const std::string& prefix, LayerWeights* out) {
    add_linear(packer, prefix + "q_proj", a.q_size(), hidden, a.q_bias, &out->q);
    add_linear(packer, prefix + "k_proj", a.kv_size(), hidden, a.k_bias, &out->k);
    add_linear(packer, prefix + "v_proj", a.kv_size(), hidden, a.v_bias, &out->v);
    add_linear(packer, prefix + "o_proj", hidden, a.q_size(), a.out_bias, &out->o);
    if (a.qk_norm == QkNorm::kNone) return;
    const bool is_full = a.qk_norm == QkNorm::kFull;
    packer.vector(prefix + "q_norm.weight", is_full ? a.q_size() : a.head_dim, &out->q_norm);
    packer.vector(prefix + "k_norm.weight", is_full ? a.kv_size() : a.head_dim, &out->k_norm);
}

void add_mlp(Packer& packer, const MlpSpec& m, int hidden, const std::string& prefix, LayerWeights* out) {
    if (m.gated) add_linear(packer, prefix + "gate_proj", m.intermediate_size, hidden, m.bias, &out->gate);
    add_linear(packer, prefix + "up_proj", m.intermediate_size, hidden, m.bias, &out->up);
    add_linear(packer, prefix + "down_proj", hidden, m.intermediate_size, m.bias, &out->down);
}

void add_layer(Packer& packer, const ModelSpec& spec, const LayerSpec& layer, const std::string& prefix,
               LayerWeights* out) {
    const bool has_pre = layer.norms == NormPlacement::kPre || layer.norms == NormPlacement::kSandwich;
    const bool has_post = layer.norms != NormPlacement::kPre;
    if (has_pre) add_norm(packer, spec, prefix + "attn_norm", &out->attn_norm);
    add_attention(packer, layer.attention, spec.hidden_size, prefix, out);
    if (has_post) add_norm(packer, spec, prefix + "attn_post_norm", &out->attn_post_norm);
    if (has_pre) add_norm(packer, spec, prefix + "mlp_norm", &out->mlp_norm);
    add_mlp(packer, layer.mlp, spec.hidden_size, prefix, out);
    if (has_post) add_norm(packer, spec, prefix + "mlp_post_norm", &out->mlp_post_norm);
}

}  // namespace

Weights::Weights(const ModelSpec& spec, const SourceTensors& sources, const std::vector<SourceRopeTable>& rope_tables,
                 ThreadPool& pool)
    : layers_(spec.layers.size()), rope_tables_(rope_tables.size()) {
    Packer packer(sources);
    packer.matrix("embed_tokens.weight", spec.vocab_size, spec.hidden_size, &embeddings_);
    for (size_t i = 0; i < layers_.size(); i++) {
        add_layer(packer, spec, spec.layers[i], "layers." + std::to_string(i) + ".", &layers_[i]);
    }
    if (spec.final_norm) add_norm(packer, spec, "norm", &final_norm_);
    if (!spec.tie_word_embeddings) packer.matrix("lm_head.weight", spec.vocab_size, spec.hidden_size, &head_.weight);
    if (spec.lm_head_bias) packer.vector("lm_head.bias", spec.vocab_size, &head_.bias);
    for (size_t i = 0; i < rope_tables_.size(); i++) {
        const size_t count = static_cast<size_t>(spec.max_model_len) * (rope_tables[i].dim / 2);
        rope_tables_[i].dim = rope_tables[i].dim;
        packer.floats(rope_tables[i].cos, count, &rope_tables_[i].cos);
        packer.floats(rope_tables[i].sin, count, &rope_tables_[i].sin);
    }
    arena_ = packer.pack(pool);
    if (spec.tie_word_embeddings) head_.weight = embeddings_;
}

}  // namespace tuili
