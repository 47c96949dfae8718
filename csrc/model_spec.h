// What the C++ runtime must know of a model: models/spec.py's values, resolved to numbers and flags.
// Field names follow spec.py. Optional values: 0 stands for None where 0 has no meaning of its own.
#pragma once
#include <string>
#include <vector>

namespace tuili {

enum class NormKind { kRms, kLayer };
enum class QkNorm { kNone, kHead, kFull };
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
    int cache_group = 0;         // which block table its keys and values are under

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
    float embedding_scale = 1.0f;
    float logit_scale = 1.0f;
    float logit_softcap = 0.0f;  // 0: none
    bool lm_head_bias = false;
    bool tie_word_embeddings = false;
    int num_cache_groups = 1;
};

}  // namespace tuili
