#include "weights/weights.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace tuili {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPieceBytes = size_t{64} << 20;

// First notes what is wanted, then reads a few tensors at a time and packs each in parallel.
class Packer {
  public:
    void matrix(const std::string& name, int rows, int cols, PackedMatrix* out) {
        names_.push_back(name);
        places_.push_back({rows, cols, out, nullptr});
    }

    void vector(const std::string& name, int size, const float** out) {
        names_.push_back(name);
        places_.push_back({1, size, nullptr, out});
    }

    void pack(const TensorReader& read, ThreadPool& pool, Arena& arena) const {
        for (size_t i = 0; i < names_.size();) {
            for (const SourceTensor& source : read(std::span(names_).subspan(i))) {
                check_shape(names_[i], places_[i], source);
                if (places_[i].matrix != nullptr) {
                    pack_matrix(names_[i], source, pool, arena, places_[i].matrix);
                } else {
                    *places_[i].vector = copy_vector(names_[i], source, arena);
                }
                i++;
            }
        }
    }

  private:
    struct Place {
        int rows, cols;
        PackedMatrix* matrix;  // null: a vector
        const float** vector;
    };

    static void check_shape(const std::string& name, const Place& place, const SourceTensor& source) {
        if (source.rows == place.rows && source.cols == place.cols) return;
        throw std::invalid_argument(name + " must be [" + std::to_string(place.rows) + ", " +
                                    std::to_string(place.cols) + "], got [" + std::to_string(source.rows) + ", " +
                                    std::to_string(source.cols) + "]");
    }

    static void pack_matrix(const std::string& name, const SourceTensor& source, ThreadPool& pool, Arena& arena,
                            PackedMatrix* out) {
        const size_t row_bytes = source_row_bytes(source.format, source.cols);
        if (row_bytes == 0 || source.num_bytes != row_bytes * source.rows) refuse_bytes(name, source, row_bytes);
        *out = {source.format, source.rows, source.cols, packed_panel_bytes(source.format, source.cols), nullptr};
        uint8_t* panels = arena.allocate(out->panel_bytes * out->num_panels());
        out->panels = panels;
        pool.run([&](Worker& worker) {
            worker.stage(out->num_panels(), [&](int panel) {
                const int first = panel * kPanelCols;
                pack_panel(source.format, source.data + first * row_bytes, row_bytes,
                           std::min(kPanelCols, source.rows - first), source.cols, panels + panel * out->panel_bytes);
            });
        });
    }

    // Zeros follow up to a whole panel, so that panels may read past the end.
    static const float* copy_vector(const std::string& name, const SourceTensor& source, Arena& arena) {
        const size_t num_bytes = source.cols * sizeof(float);
        if (source.format != Format::kF32 || source.num_bytes != num_bytes) refuse_bytes(name, source, num_bytes);
        uint8_t* values = arena.allocate(num_bytes + kPanelCols * sizeof(float));
        std::memcpy(values, source.data, num_bytes);
        return reinterpret_cast<const float*>(values);
    }

    [[noreturn]] static void refuse_bytes(const std::string& name, const SourceTensor& source, size_t row_bytes) {
        throw std::invalid_argument(name + ": " + std::to_string(source.num_bytes) + " bytes are not " +
                                    std::to_string(source.rows) + " rows of " + std::to_string(row_bytes));
    }

    std::vector<std::string> names_;
    std::vector<Place> places_;
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
    if (a.sinks) packer.vector(prefix + "sinks.weight", a.num_heads, &out->sinks);
    if (a.qk_norm == QkNorm::kNone) return;
    const bool is_shared = a.qk_norm == QkNorm::kHead;
    packer.vector(prefix + "q_norm.weight", is_shared ? a.head_dim : a.q_size(), &out->q_norm);
    packer.vector(prefix + "k_norm.weight", is_shared ? a.head_dim : a.kv_size(), &out->k_norm);
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
    const bool has_mlp_norm = has_pre && (!layer.parallel || layer.parallel_norms == 2);
    if (has_mlp_norm) add_norm(packer, spec, prefix + "mlp_norm", &out->mlp_norm);
    add_mlp(packer, layer.mlp, spec.hidden_size, prefix, out);
    if (has_post) add_norm(packer, spec, prefix + "mlp_post_norm", &out->mlp_post_norm);
}

}  // namespace

uint8_t* Arena::allocate(size_t bytes) {
    const size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (pieces_.empty() || num_used_ + size > pieces_.back().size()) {
        pieces_.emplace_back(std::max(size, kPieceBytes));
        num_used_ = 0;
    }
    uint8_t* start = pieces_.back().data() + num_used_;
    num_used_ += size;
    num_bytes_ += size;
    return start;
}

Weights::Weights(const ModelSpec& spec, const TensorReader& read, const std::vector<RopeFrequencies>& ropes,
                 ThreadPool& pool)
    : layers_(spec.layers.size()) {
    Packer packer;
    packer.matrix("embed_tokens.weight", spec.vocab_size, spec.embedding_size, &embeddings_);
    if (spec.num_positions > 0) {
        packer.matrix("embed_positions.weight", spec.num_positions, spec.hidden_size, &positions_);
    }
    if (spec.embedding_norm) add_norm(packer, spec, "embed_norm", &embedding_norm_);
    if (spec.projects_embeddings()) {
        add_linear(packer, "project_in", spec.hidden_size, spec.embedding_size, false, &project_in_);
        add_linear(packer, "project_out", spec.embedding_size, spec.hidden_size, false, &project_out_);
    }
    for (size_t i = 0; i < layers_.size(); i++) {
        add_layer(packer, spec, spec.layers[i], "layers." + std::to_string(i) + ".", &layers_[i]);
    }
    if (spec.final_norm) add_norm(packer, spec, "norm", &final_norm_);
    if (!spec.tie_word_embeddings) packer.matrix("lm_head.weight", spec.vocab_size, spec.embedding_size, &head_.weight);
    if (spec.lm_head_bias) packer.vector("lm_head.bias", spec.vocab_size, &head_.bias);
    for (const auto& rope : ropes) rope_tables_.emplace_back(rope, spec.max_model_len);
    packer.pack(read, pool, arena_);
    if (spec.tie_word_embeddings) head_.weight = embeddings_;
}

void Weights::extend_ropes(int num_positions, ThreadPool& pool) {
    for (auto& table : rope_tables_) table.extend(num_positions, pool);
}

}  // namespace tuili
