// The Python module _native: a model, and what this machine is. Knows NumPy arrays and the names of tuili's dataclass
// fields; computes nothing. Arrays are checked for dtype and shape here, for values in batch.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "bindings/bindings_arrays.h"
#include "bindings/bindings_spec.h"
#include "machine/platform.h"
#include "step/model.h"

namespace nb = nanobind;

namespace tuili {

void bind_kernels(nb::module_& module);
void bind_probes(nb::module_& module);
void bind_weights(nb::module_& module);
void bind_rows(nb::module_& module);

namespace {

template <class T>
using Output = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

// Reads SamplingArrays of `num_rows` rows.
SamplingInput read_sampling(ArrayReader& read, nb::handle s, int num_rows, nb::handle allow_mask, int vocab_size) {
    const int64_t rows = num_rows, mask_words = (int64_t{vocab_size} + 31) / 32;
    const auto history = read.array<int32_t>(s, "history_ids", {kAny});
    const auto bias = read.array<int32_t>(s, "bias_ids", {kAny});
    const auto chain = read.array<int32_t>(s, "chain_kinds", {kAny});
    const auto dry = read.array<int32_t>(s, "dry_ids", {kAny});
    return SamplingInput{
        .temperature = read.array<float>(s, "temperature", {rows}).data,
        .top_k = read.array<int32_t>(s, "top_k", {rows}).data,
        .top_p = read.array<float>(s, "top_p", {rows}).data,
        .min_p = read.array<float>(s, "min_p", {rows}).data,
        .repetition_penalty = read.array<float>(s, "repetition_penalty", {rows}).data,
        .presence_penalty = read.array<float>(s, "presence_penalty", {rows}).data,
        .frequency_penalty = read.array<float>(s, "frequency_penalty", {rows}).data,
        .seed = read.array<uint64_t>(s, "seed", {rows}).data,
        .sample_index = read.array<int32_t>(s, "sample_index", {rows}).data,
        .position = read.array<int32_t>(s, "position", {rows}).data,
        .history_start = read.array<int32_t>(s, "history_start", {rows + 1}).data,
        .history_ids = history.data,
        .history_counts = read.array<int32_t>(s, "history_counts", {history.size(0)}).data,
        .num_history = static_cast<int>(history.size(0)),
        .bias_start = read.array<int32_t>(s, "bias_start", {rows + 1}).data,
        .bias_ids = bias.data,
        .bias_values = read.array<float>(s, "bias_values", {bias.size(0)}).data,
        .num_bias = static_cast<int>(bias.size(0)),
        .chain_start = read.array<int32_t>(s, "chain_start", {rows + 1}).data,
        .chain_kinds = chain.data,
        .chain_values = read.array<float>(s, "chain_values", {chain.size(0), 3}).data,
        .num_chain = static_cast<int>(chain.size(0)),
        .dry_start = read.array<int32_t>(s, "dry_start", {rows + 1}).data,
        .dry_ids = dry.data,
        .dry_values = read.array<float>(s, "dry_values", {dry.size(0)}).data,
        .num_dry = static_cast<int>(dry.size(0)),
        .sampler_state = read.array<float>(s, "sampler_state", {rows}).data,
        .allow_mask =
            allow_mask.is_none() ? nullptr : read.value<uint32_t>(allow_mask, "allow_mask", {rows, mask_words}).data,
    };
}

BatchInput read_batch(ArrayReader& read, nb::handle batch, const ModelSpec& spec) {
    const auto input_ids = read.array<int32_t>(batch, "input_ids", {kAny});
    const auto seq_lens = read.array<int32_t>(batch, "seq_lens", {kAny});
    const auto sample_rows = read.array<int32_t>(batch, "sample_rows", {kAny});
    const int64_t tokens = input_ids.size(0), sequences = seq_lens.size(0), rows = sample_rows.size(0);
    const int64_t groups = spec.num_cache_groups;
    const auto tables = read.array<int32_t>(batch, "block_tables", {groups, sequences, kAny});
    const auto copies = read.array<int32_t>(batch, "block_copies", {kAny, 3});
    if (tokens == 0 || sequences == 0) throw std::invalid_argument("a batch must hold at least one token");
    const nb::object sampling = batch.attr("sampling"), allow_mask = batch.attr("allow_mask");
    const nb::object want_logits = batch.attr("want_logits");
    return BatchInput{
        .num_tokens = static_cast<int>(tokens),
        .num_sequences = static_cast<int>(sequences),
        .num_rows = static_cast<int>(rows),
        .max_blocks = static_cast<int>(tables.size(2)),
        .num_copies = static_cast<int>(copies.size(0)),
        .input_ids = input_ids.data,
        .positions = read.array<int32_t>(batch, "positions", {tokens}).data,
        .query_start = read.array<int32_t>(batch, "query_start", {sequences + 1}).data,
        .seq_lens = seq_lens.data,
        .block_tables = tables.data,
        .slot_mapping = read.array<int32_t>(batch, "slot_mapping", {groups, tokens}).data,
        .block_copies = copies.data,
        .slots = read.array<int32_t>(batch, "slots", {sequences}).data,
        .carry = read.array<bool>(batch, "carry", {sequences}).data,
        .sample_rows = sample_rows.data,
        .targets = read.array<int32_t>(batch, "targets", {rows}).data,
        .num_logprobs = read.array<int32_t>(batch, "num_logprobs", {rows}).data,
        .want_logits = want_logits.is_none() ? nullptr : read.value<bool>(want_logits, "want_logits", {rows}).data,
        .sampling = read_sampling(read, sampling, static_cast<int>(rows), allow_mask, spec.vocab_size),
    };
}

int64_t count_wanted(const BatchInput& batch) {
    return batch.want_logits == nullptr ? 0 : std::count(batch.want_logits, batch.want_logits + batch.num_rows, true);
}

template <class T>
T* output(const Output<T>& array, const char* name, std::initializer_list<int64_t> shape) {
    check_shape(array, name, shape);
    return array.data();
}

// A step whose arrays have been read: the values in them may change between runs, where they lie may not.
class Step {
  public:
    Step(nb::object model, nb::handle batch, const Output<int32_t>& token_ids, const Output<float>& logprobs,
         const Output<int32_t>& ranks, const Output<int32_t>& top_ids, const Output<float>& top_logprobs,
         const Output<float>& sampler_state, const std::optional<Output<float>>& logits,
         const std::optional<Output<float>>& hidden)
        : owner_(std::move(model)),
          model_(nb::cast<Model&>(owner_)),
          input_(read_batch(read_, batch, model_.spec())),
          kept_(token_ids, logprobs, ranks, top_ids, top_logprobs, sampler_state, logits, hidden) {
        const int64_t rows = input_.num_rows, k = top_ids.ndim() == 2 ? top_ids.shape(1) : 0;
        const int64_t vocab_size = model_.spec().vocab_size, hidden_size = model_.spec().hidden_size;
        result_ = StepOutput{
            .token_ids = output(token_ids, "token_ids", {rows}),
            .logprobs = output(logprobs, "logprobs", {rows}),
            .ranks = output(ranks, "ranks", {rows}),
            .max_logprobs = static_cast<int>(k),
            .top_ids = output(top_ids, "top_ids", {rows, k}),
            .top_logprobs = output(top_logprobs, "top_logprobs", {rows, k}),
            .sampler_state = output(sampler_state, "sampler_state", {rows}),
            .logits = logits ? output(*logits, "logits", {count_wanted(input_), vocab_size}) : nullptr,
            .hidden = hidden ? output(*hidden, "hidden", {rows, hidden_size}) : nullptr,
        };
    }

    void run() {
        nb::gil_scoped_release release;
        model_.execute(input_, result_);
    }

    // Whether every array is read where it lies, so that the step may run again with other values in them.
    bool is_view() const { return !read_.has_copies(); }

  private:
    nb::object owner_;
    Model& model_;
    ArrayReader read_;
    BatchInput input_;
    StepOutput result_{};
    std::tuple<Output<int32_t>, Output<float>, Output<int32_t>, Output<int32_t>, Output<float>, Output<float>,
               std::optional<Output<float>>, std::optional<Output<float>>>
        kept_;
};

void sample(Model& model, nb::handle logits, nb::handle sampling, nb::handle allow_mask, const Output<int32_t>& ids,
            const Output<float>& sampler_state) {
    ArrayReader read;
    const int vocab_size = model.spec().vocab_size;
    const auto rows = read.value<float>(logits, "logits", {kAny, vocab_size});
    const auto num_rows = static_cast<int>(rows.size(0));
    const SamplingInput input = read_sampling(read, sampling, num_rows, allow_mask, vocab_size);
    int32_t* out = output(ids, "ids", {num_rows});
    float* state = output(sampler_state, "sampler_state", {num_rows});
    nb::gil_scoped_release release;
    model.sample(rows.data, num_rows, input, out, state);
}

void load(Model* self, nb::handle spec, int max_model_len, const std::vector<int>& layer_groups,
          const std::vector<int>& layer_ropes, const std::vector<std::vector<float>>& layer_slopes, nb::list ropes,
          nb::callable read_tensors, const std::optional<std::string>& isa, int num_threads) {
    if (num_threads < 1 || num_threads > kMaxThreads) throw std::invalid_argument("num_threads is out of range");
    const Kernels* kernels = isa ? kernels_for(isa->c_str()) : &best_kernels();
    if (kernels == nullptr) throw std::invalid_argument("isa: this build or CPU has no " + *isa);
    ArrayReader read;
    const ModelSpec native = read_spec(spec, max_model_len, {layer_groups, layer_ropes, layer_slopes});
    const auto frequencies = read_ropes(read, ropes, native);
    PythonTensors tensors(std::move(read_tensors));
    nb::gil_scoped_release release;
    new (self) Model(native, std::ref(tensors), frequencies, *kernels, num_threads);
}

bool has_isa(const std::string& name) { return kernels_for(name.c_str()) != nullptr; }

CacheFormat cache_format(const std::string& name) {
    if (name == "bfloat16") return CacheFormat::kBf16;
    if (name == "int8") return CacheFormat::kInt8;
    throw std::invalid_argument("kv_cache_dtype: no cache format " + name);
}

size_t block_bytes(const Model& model, const std::string& format, int group, int block_size) {
    return cache_block_bytes(model.spec(), cache_format(format), group, block_size);
}

size_t plane_bytes(const std::string& format, int head_dim, int block_size) {
    if (head_dim < 1 || block_size < 1) throw std::invalid_argument("head_dim and block_size must be positive");
    return cache_plane_bytes(cache_format(format), head_dim, block_size);
}

void allocate_cache(Model& model, const std::string& format, int block_size, const std::vector<int>& num_blocks) {
    const CacheFormat known = cache_format(format);
    nb::gil_scoped_release release;
    model.allocate_cache(known, block_size, num_blocks);
}

void give_back_blocks(Model& model, int group, const std::vector<int>& blocks) {
    nb::gil_scoped_release release;
    model.give_back_blocks(group, blocks);
}

}  // namespace
}  // namespace tuili

NB_MODULE(_native, module) {
    using namespace tuili;
    nb::class_<Model>(module, "Model")
        .def("__init__", load, nb::arg("spec"), nb::kw_only(), nb::arg("max_model_len"), nb::arg("layer_groups"),
             nb::arg("layer_ropes"), nb::arg("layer_slopes"), nb::arg("ropes"), nb::arg("read_tensors"),
             nb::arg("isa").none(), nb::arg("num_threads"))
        .def("cache_block_bytes", block_bytes, nb::arg("format"), nb::arg("group"), nb::arg("block_size"))
        .def("allocate_cache", allocate_cache, nb::arg("format"), nb::arg("block_size"), nb::arg("num_blocks"))
        .def("give_back_blocks", give_back_blocks, nb::arg("group"), nb::arg("blocks"))
        .def("sample", sample, nb::arg("logits"), nb::arg("sampling"), nb::arg("allow_mask").none(),
             nb::arg("ids").noconvert(), nb::arg("sampler_state").noconvert())
        .def_prop_ro("isa", &Model::isa)
        .def_prop_ro("num_threads", &Model::num_threads)
        .def_prop_ro("weight_bytes", &Model::weight_bytes);
    using Ints = Output<int32_t>;
    using Floats = Output<float>;
    nb::class_<Step>(module, "Step")
        .def(nb::init<nb::object, nb::handle, const Ints&, const Floats&, const Ints&, const Ints&, const Floats&,
                      const Floats&, const std::optional<Floats>&, const std::optional<Floats>&>(),
             nb::arg("model"), nb::arg("batch"), nb::arg("token_ids").noconvert(), nb::arg("logprobs").noconvert(),
             nb::arg("ranks").noconvert(), nb::arg("top_ids").noconvert(), nb::arg("top_logprobs").noconvert(),
             nb::arg("sampler_state").noconvert(), nb::arg("logits").noconvert().none(),
             nb::arg("hidden").noconvert().none())
        .def("run", &Step::run)
        .def_prop_ro("is_view", &Step::is_view);
    module.def("cpu_name", &cpu_name);
    module.def("cpu_features", &cpu_features);
    module.attr("MAX_THREADS") = kMaxThreads;
    module.def("has_isa", has_isa, nb::arg("name"));
    module.def("best_isa", [] { return best_kernels().isa; });
    module.def("cache_plane_bytes", plane_bytes, nb::arg("format"), nb::arg("head_dim"), nb::arg("block_size"));
    bind_probes(module);
    bind_weights(module);
    nb::module_ kernels = module.def_submodule("kernels", "Single kernels, for tests and benchmarks.");
    bind_kernels(kernels);
    module.attr("packed_bytes") = kernels.attr("packed_bytes");
    bind_rows(kernels);
}
