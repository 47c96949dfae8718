// What the C++ runtime must know of a model: models/spec.py's values, resolved to numbers and flags.
// Field names follow spec.py. Optional values: 0 stands for None where 0 has no meaning of its own.
#pragma once
#include <string>
#include <vector>

namespace tuili {

enum class NormKind { kRms, kLayer };
enum class QkNorm { kNone, kHead, kEachHead, kFull };
enum class NormPlacement { kPre, kPost, kSandwich, kOutput };

struct AttentionSpec {
    int num_heads = 0;
    int num_kv_heads = 0;
    int head_dim = 0;
    float scale = 1.0f;
    int rope_dim = 0;     // 0: no rotary embedding
    int rope_table = -1;  // index into the rope tables given with the weights
    bool q_bias = false;
    bool k_bias = false;
    bool v_bias = false;
    bool out_bias = false;
    QkNorm qk_norm = QkNorm::kNone;
    int sliding_window = 0;      // 0: none
    float logit_softcap = 0.0f;  // 0: none
    bool sinks = false;
    float query_scaling_beta = 0.0f;  // 0: none
    int query_scaling_length = 0;
    std::vector<float> alibi_slopes;  // [num_heads], or empty: no ALiBi
    int cache_group = 0;              // which block table its keys and values are under

    int q_size() const { return num_heads * head_dim; }
    int kv_size() const { return num_kv_heads * head_dim; }
    int group_size() const { return num_heads / num_kv_heads; }
};

struct MlpSpec {
    int intermediate_size = 0;
    int activation = 0;  // index into spec.py's Activation, in declaration order
    bool gated = true;
    bool bias = false;
};

struct LayerSpec {
    AttentionSpec attention;
    MlpSpec mlp;
    NormPlacement norms = NormPlacement::kPre;
    bool parallel = false;
    int parallel_norms = 1;
    float residual_scale = 1.0f;
};

struct ModelSpec {
    int vocab_size = 0;
    int hidden_size = 0;
    int max_model_len = 0;
    std::vector<LayerSpec> layers;
    NormKind norm = NormKind::kRms;
    float norm_eps = 1e-6f;
    bool norm_bias = false;
    bool final_norm = true;
    int num_positions = 0;  // rows of the learned positions' table; 0: none
    int position_offset = 0;
    int embedding_size = 0;  // hidden_size, unless embeddings are projected
    bool embedding_norm = false;
    float embedding_scale = 1.0f;
    float logit_scale = 1.0f;
    float logit_softcap = 0.0f;  // 0: none
    bool lm_head_bias = false;
    bool tie_word_embeddings = false;
    int num_cache_groups = 1;

    bool projects_embeddings() const { return embedding_size != hidden_size; }
};

}  // namespace tuili
