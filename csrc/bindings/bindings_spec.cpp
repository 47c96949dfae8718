#include "bindings/bindings_spec.h"

#include <nanobind/stl/string.h>

#include <algorithm>

namespace tuili {
namespace {

template <class T>
T field(nb::handle owner, const char* name) {
    return nb::cast<T>(owner.attr(name));
}

// None is 0.
template <class T>
T optional_field(nb::handle owner, const char* name) {
    const nb::object value = owner.attr(name);
    return value.is_none() ? T{} : nb::cast<T>(value);
}

// The index of a literal among its allowed values, in the order of the enumeration it becomes.
int literal(nb::handle owner, const char* name, std::initializer_list<const char*> allowed) {
    const auto value = field<std::string>(owner, name);
    const auto found = std::find(allowed.begin(), allowed.end(), value);
    if (found == allowed.end()) throw std::invalid_argument(std::string(name) + " is " + value);
    return static_cast<int>(found - allowed.begin());
}

AttentionSpec read_attention(nb::handle a, const LayerPlaces& places, size_t layer) {
    const nb::object rope = a.attr("rope"), scaling = a.attr("query_scaling");
    return AttentionSpec{
        .num_heads = field<int>(a, "num_heads"),
        .num_kv_heads = field<int>(a, "num_kv_heads"),
        .head_dim = field<int>(a, "head_dim"),
        .scale = field<float>(a, "scale"),
        .rope_dim = rope.is_none() ? 0 : field<int>(rope, "dim"),
        .rope_table = places.ropes.at(layer),
        .q_bias = field<bool>(a, "q_bias"),
        .k_bias = field<bool>(a, "k_bias"),
        .v_bias = field<bool>(a, "v_bias"),
        .out_bias = field<bool>(a, "out_bias"),
        .qk_norm = static_cast<QkNorm>(literal(a, "qk_norm", {"none", "head", "each_head", "full"})),
        .sliding_window = optional_field<int>(a, "sliding_window"),
        .logit_softcap = optional_field<float>(a, "logit_softcap"),
        .sinks = field<bool>(a, "sinks"),
        .query_scaling_beta = scaling.is_none() ? 0.0f : field<float>(scaling, "beta"),
        .query_scaling_length = scaling.is_none() ? 1 : field<int>(scaling, "original_max_position"),
        .alibi_slopes = places.slopes.at(layer),
        .cache_group = places.groups.at(layer),
    };
}

MlpSpec read_mlp(nb::handle m) {
    return MlpSpec{
        .intermediate_size = field<int>(m, "intermediate_size"),
        .activation = literal(m, "activation", {"silu", "gelu", "gelu_tanh", "relu", "relu2"}),
        .gated = field<bool>(m, "gated"),
        .bias = field<bool>(m, "bias"),
    };
}

LayerSpec read_layer(nb::handle layer, const LayerPlaces& places, size_t index) {
    const bool is_parallel = field<bool>(layer, "parallel");
    const int norms = literal(layer, "norms", {"pre", "post", "sandwich", "output"});
    return LayerSpec{
        .attention = read_attention(layer.attr("mixer"), places, index),
        .mlp = read_mlp(layer.attr("mlp")),
        .norms = is_parallel ? NormPlacement::kPre : static_cast<NormPlacement>(norms),
        .parallel = is_parallel,
        .parallel_norms = is_parallel ? field<int>(layer, "parallel_norms") : 1,
        .residual_scale = field<float>(layer, "residual_scale"),
    };
}

// Rows of the table of learned positions, 0 for any other kind.
int num_positions(nb::handle spec, int max_model_len) {
    if (literal(spec, "position", {"rope", "learned", "alibi", "none"}) != 1) return 0;
    const int max_position = field<int>(spec, "max_position");
    if (max_model_len > max_position) throw std::invalid_argument("max_model_len exceeds the learned positions");
    return max_position + field<int>(spec, "position_offset");
}

void check_attention(const AttentionSpec& a, size_t layer, int num_ropes) {
    const bool has_heads = a.num_kv_heads > 0 && a.num_heads > 0 && a.num_heads % a.num_kv_heads == 0 && a.head_dim > 0;
    const bool has_slopes = a.alibi_slopes.empty() || static_cast<int>(a.alibi_slopes.size()) == a.num_heads;
    const bool has_rope = a.rope_dim == 0 ? a.rope_table == -1 : a.rope_table >= 0 && a.rope_table < num_ropes;
    const bool has_sizes = a.rope_dim % 2 == 0 && a.rope_dim <= a.head_dim && a.sliding_window >= 0;
    if (!has_heads || !has_rope || !has_slopes || !has_sizes || a.query_scaling_length < 1) {
        throw std::invalid_argument("layers[" + std::to_string(layer) + "]: heads, positions or window do not fit");
    }
}

SourceTensor read_tensor(ArrayReader& read, const std::string& name, nb::handle tensor) {
    const auto shape = nb::cast<nb::tuple>(tensor[1]);
    const bool is_matrix = shape.size() == 2;
    if (!is_matrix && shape.size() != 1) throw std::invalid_argument(name + " is neither matrix nor vector");
    const auto bytes = read.value<uint8_t>(tensor[2], name.c_str(), {kAny, kAny});
    return SourceTensor{
        .format = read_format(nb::cast<std::string>(tensor[0])),
        .rows = is_matrix ? nb::cast<int>(shape[0]) : 1,
        .cols = nb::cast<int>(shape[is_matrix ? 1 : 0]),
        .data = bytes.data,
        .num_bytes = static_cast<size_t>(bytes.size(0) * bytes.size(1)),
    };
}

}  // namespace

Format read_format(const std::string& name) {
    const auto* found = std::find(std::begin(kFormatNames), std::end(kFormatNames), name);
    if (found == std::end(kFormatNames)) throw std::invalid_argument("weight format " + name + " is not implemented");
    return static_cast<Format>(found - std::begin(kFormatNames));
}

ModelSpec read_spec(nb::handle spec, int max_model_len, const LayerPlaces& places) {
    const auto& groups = places.groups;
    if (groups.empty() || groups.size() != places.ropes.size() || groups.size() != places.slopes.size() ||
        *std::min_element(groups.begin(), groups.end()) < 0) {
        throw std::invalid_argument("layer_groups, layer_ropes and layer_slopes must have an entry for each layer");
    }
    const int hidden_size = field<int>(spec, "hidden_size"),
              embedding_size = optional_field<int>(spec, "embedding_size");
    ModelSpec out{
        .vocab_size = field<int>(spec, "vocab_size"),
        .hidden_size = hidden_size,
        .max_model_len = max_model_len,
        .layers = {},
        .norm = static_cast<NormKind>(literal(spec, "norm", {"rms", "layer"})),
        .norm_eps = field<float>(spec, "norm_eps"),
        .norm_bias = field<bool>(spec, "norm_bias"),
        .final_norm = field<bool>(spec, "final_norm"),
        .num_positions = num_positions(spec, max_model_len),
        .position_offset = field<int>(spec, "position_offset"),
        .embedding_size = embedding_size == 0 ? hidden_size : embedding_size,
        .embedding_norm = field<bool>(spec, "embedding_norm"),
        .embedding_scale = field<float>(spec, "embedding_scale"),
        .logit_scale = field<float>(spec, "logit_scale"),
        .logit_softcap = optional_field<float>(spec, "logit_softcap"),
        .lm_head_bias = field<bool>(spec, "lm_head_bias"),
        .tie_word_embeddings = field<bool>(spec, "tie_word_embeddings"),
        .num_cache_groups = 1 + *std::max_element(groups.begin(), groups.end()),
    };
    for (nb::handle layer : spec.attr("layers")) out.layers.push_back(read_layer(layer, places, out.layers.size()));
    const int num_ropes = 1 + *std::max_element(places.ropes.begin(), places.ropes.end());
    for (size_t i = 0; i < out.layers.size(); i++) check_attention(out.layers[i].attention, i, num_ropes);
    return out;
}

std::vector<SourceTensor> PythonTensors::operator()(std::span<const std::string> names) {
    const nb::gil_scoped_acquire lock;
    arrays_ = ArrayReader();  // the last tensors go before the next ones come
    nb::list wanted;
    for (const auto& name : names) wanted.append(name);
    std::vector<SourceTensor> out;
    for (nb::handle tensor : read_(wanted)) {
        if (out.size() == names.size()) throw std::invalid_argument("more tensors were read than wanted");
        out.push_back(read_tensor(arrays_, names[out.size()], tensor));
    }
    if (out.empty()) throw std::invalid_argument(names[0] + " was not read");
    return out;
}

std::vector<RopeFrequencies> read_ropes(ArrayReader& read, nb::list ropes, const ModelSpec& spec) {
    std::vector<RopeFrequencies> out;
    for (nb::handle entry : ropes) {
        const auto radians = read.value<float>(entry[0], "rope frequencies", {kAny});
        out.push_back({{radians.data, radians.data + radians.size(0)}, nb::cast<double>(entry[1])});
    }
    for (const auto& layer : spec.layers) {
        const auto& a = layer.attention;
        if (a.rope_dim == 0) continue;
        const auto table = static_cast<size_t>(a.rope_table);
        if (table >= out.size() || static_cast<int>(2 * out[table].radians.size()) != a.rope_dim) {
            throw std::invalid_argument("ropes: a layer's table is missing or has another dimension than its heads");
        }
    }
    return out;
}

}  // namespace tuili
