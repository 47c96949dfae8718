// _native.kernels, second part: the functions over one row and attention, by instruction set, for tests.
// Knows NumPy arrays and kernels.h; not models or threads.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model/rope_table.h"
#include "step/attention_plan.h"
#include "step/workspace.h"

namespace nb = nanobind;

namespace tuili {
namespace {

using Row = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using WritableRow = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WritableRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Heads = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using WritableHeads = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

const Kernels& table(const std::string& isa) {
    const Kernels* kernels = kernels_for(isa.c_str());
    if (kernels == nullptr) throw std::invalid_argument("isa: this build or CPU has no " + isa);
    return *kernels;
}

int length(const Row& row) { return static_cast<int>(row.size()); }

void same_length(size_t a, size_t b) {
    if (a != b) throw std::invalid_argument("rows differ in length");
}

void rms_norm(const std::string& isa, const Row& x, const Row& gain, float eps, const WritableRow& out) {
    same_length(x.size(), gain.size());
    same_length(x.size(), out.size());
    table(isa).rms_norm(x.data(), gain.data(), eps, length(x), out.data());
}

void layer_norm(const std::string& isa, const Row& x, const Row& gain, const Row& bias, float eps,
                const WritableRow& out) {
    same_length(x.size(), gain.size());
    same_length(x.size(), bias.size());
    same_length(x.size(), out.size());
    table(isa).layer_norm(x.data(), gain.data(), bias.data(), eps, length(x), out.data());
}

// Rows of float32 in panels: what the epilogues take and leave.
struct Tiles {
    Tiles(const float* values, int rows, int columns) : num_rows(rows), cols(columns) {
        const int num_panels = (cols + kPanelCols - 1) / kPanelCols;
        panels.resize(static_cast<size_t>(num_panels) * num_rows * kPanelCols);
        for (int i = 0; i < num_rows * cols; i++) {
            const int row = i / cols, col = i % cols;
            panels[(col / kPanelCols * num_rows + row) * kPanelCols + col % kPanelCols] = values[i];
        }
    }
    PanelTile tile(int panel, const float* factors, const float* bias) const {
        const float* values = panels.data() + static_cast<size_t>(panel) * num_rows * kPanelCols;
        const int width = std::min(kPanelCols, cols - panel * kPanelCols);
        return {values, num_rows, 0, panel, width, factors, bias == nullptr ? nullptr : bias + panel * kPanelCols};
    }
    int num_rows, cols;
    std::vector<float> panels;
};

Activations float_rows(float* rows, int num_rows, int cols) {
    Activations x;
    x.num_rows = x.row_stride = num_rows;
    x.cols = cols;
    x.f32 = rows;
    return x;
}

void activation(const std::string& isa, int kind, const WritableRow& x) {
    const Tiles tiles(x.data(), 1, static_cast<int>(x.size()));
    Activations next = float_rows(x.data(), 1, tiles.cols);
    for (int panel = 0; panel * kPanelCols < tiles.cols; panel++) {
        table(isa).activated_tile(kind, tiles.tile(panel, nullptr, nullptr), next);
    }
}

void gated_activation(const std::string& isa, int kind, const WritableRow& gate, const Row& up) {
    same_length(gate.size(), up.size());
    const Tiles gates(gate.data(), 1, static_cast<int>(gate.size())), ups(up.data(), 1, length(up));
    Activations next = float_rows(gate.data(), 1, gates.cols);
    for (int panel = 0; panel * kPanelCols < gates.cols; panel++) {
        table(isa).gated_tile(kind, gates.tile(panel, nullptr, nullptr), ups.tile(panel, nullptr, nullptr), next);
    }
}

// x [rows, cols] += (values * factors + bias) * scale; next = x * gain; next_factors [rows] = rsqrt(mean(x^2) + eps).
void add_output(const std::string& isa, const Rows& values, const Row& factors, const Row& bias, float scale,
                const WritableRows& x, const Row& gain, float eps, const WritableRows& next,
                const WritableRow& next_factors) {
    const auto num_rows = static_cast<int>(values.shape(0)), cols = static_cast<int>(values.shape(1));
    const size_t padded = (values.shape(1) + kPanelCols - 1) / kPanelCols * kPanelCols;
    same_length(factors.size(), values.shape(0));
    same_length(next_factors.size(), values.shape(0));
    same_length(bias.size(), padded);
    same_length(gain.size(), padded);
    same_length(x.size(), values.size());
    same_length(next.size(), values.size());
    const Tiles tiles(values.data(), num_rows, cols);
    Activations input = float_rows(next.data(), num_rows, cols);
    std::vector<float> square_sums(padded / kPanelCols * num_rows);
    input.square_sum = square_sums.data();
    for (int panel = 0; panel * kPanelCols < cols; panel++) {
        table(isa).add_tile(tiles.tile(panel, factors.data(), bias.data()), scale, x.data() + panel * kPanelCols, cols,
                            gain.data(), &input);
    }
    table(isa).norm_factors(input, eps, next_factors.data());
}

void softcap(const std::string& isa, const WritableRow& x, float cap) {
    const Tiles tiles(x.data(), 1, static_cast<int>(x.size()));
    for (int panel = 0; panel * kPanelCols < tiles.cols; panel++) {
        const PanelTile tile = tiles.tile(panel, nullptr, nullptr);
        float out[kPanelCols];
        table(isa).logit_tile(tile, 1.0f, cap, out);
        std::memcpy(x.data() + panel * kPanelCols, out, tile.width * sizeof(float));
    }
}

// (largest, its column) of each row of up to 32 values.
nb::tuple best_of_row(const std::string& isa, const Row& x) {
    if (x.size() > kPanelCols) throw std::invalid_argument("a row of a tile has at most 32 values");
    const Tiles tiles(x.data(), 1, length(x));
    float best = 0.0f;
    uint8_t column = 0;
    table(isa).best_of_rows(tiles.panels.data(), 1, tiles.cols, &best, &column, 1);
    return nb::make_tuple(best, static_cast<int>(column));
}

void rope(const std::string& isa, const WritableRow& head, const Row& cos, const Row& sin) {
    same_length(cos.size(), sin.size());
    if (head.size() < 2 * cos.size()) throw std::invalid_argument("the head is shorter than the rotation");
    table(isa).rope(head.data(), cos.data(), sin.data(), 2 * length(cos));
}

// cos and sin, rows of dim / 2 for as many positions as they hold, as a model on `num_threads` makes them in two steps.
void rope_rows(const Row& frequencies, double factor, int num_threads, const WritableRow& cos, const WritableRow& sin) {
    same_length(cos.size(), sin.size());
    const int num_positions = static_cast<int>(cos.size() / frequencies.size());
    ThreadPool pool(num_threads);
    RopeTable rows({{frequencies.data(), frequencies.data() + frequencies.size()}, factor}, num_positions);
    rows.extend(num_positions / 3, pool);
    rows.extend(num_positions, pool);
    std::copy_n(rows.cos, cos.size(), cos.data());
    std::copy_n(rows.sin, sin.size(), sin.data());
}

// (max, argmax, sum of exp(x - max), how many are greater than `threshold`)
nb::tuple reductions(const std::string& isa, const Row& x, float threshold) {
    const Kernels& k = table(isa);
    const float max = k.max_value(x.data(), length(x));
    return nb::make_tuple(max, k.argmax(x.data(), length(x)), k.sum_exp(x.data(), max, length(x)),
                          k.count_greater(x.data(), threshold, length(x)));
}

void exp_weights(const std::string& isa, const Row& x, float temperature, const WritableRow& out) {
    same_length(x.size(), out.size());
    const Kernels& k = table(isa);
    k.exp_weights(x.data(), k.max_value(x.data(), length(x)), temperature, length(x), out.data());
}

// The largest of each 32 values into out [ceil(n / 32)]; returns the sum of exp_weights in double.
double block_sums(const std::string& isa, const Row& x, float temperature, const WritableRow& out) {
    same_length((x.size() + kPanelCols - 1) / kPanelCols, out.size());
    const Kernels& k = table(isa);
    k.block_max(x.data(), length(x), out.data());
    return k.sum_weights(x.data(), k.max_value(out.data(), static_cast<int>(out.size())), temperature, length(x));
}

// A cache of one kv head whose blocks lie in reverse order, each with a NaN in every slot not written.
class ReversedCache {
  public:
    ReversedCache(const Kernels& kernels, CacheFormat format, const Heads& keys, const Heads& values, int block_size)
        : stride_(cache_plane_bytes(format, static_cast<int>(keys.shape(2)), block_size)) {
        const auto num_tokens = static_cast<int>(keys.shape(0)), head_dim = static_cast<int>(keys.shape(2));
        const int num_blocks = (num_tokens + block_size - 1) / block_size;
        bytes_.assign(stride_ * num_blocks, 0xFF);
        for (int i = 0; i < num_blocks; i++) table_.push_back(num_blocks - 1 - i);
        for (int t = 0; t < num_tokens; t++) {
            kernels.cache_append(format, keys.data() + t * head_dim, values.data() + t * head_dim, head_dim, block_size,
                                 t % block_size, bytes_.data() + table_[t / block_size] * stride_);
        }
    }

    // Blocks wholly before `position` get table entry -1.
    void forget_before(int position, int block_size) {
        for (int i = 0; (i + 1) * block_size <= position; i++) table_[i] = -1;
    }

    const int32_t* table() const { return table_.data(); }
    uint8_t* bytes() { return bytes_.data(); }
    size_t stride() const { return stride_; }

  private:
    size_t stride_;
    std::vector<uint8_t> bytes_;
    std::vector<int32_t> table_;
};

void run_unit(const Kernels& kernels, const AttentionUnit& unit, float* out) {
    const int rows = unit.num_rows;
    std::vector<float> state(attention_state_floats(rows, unit.head_dim)), chunk(state.size());
    const AttentionState total = attention_state(state.data(), rows, unit.head_dim);
    const AttentionState part = attention_state(chunk.data(), rows, unit.head_dim);
    const int oldest = unit.window > 0 ? std::max(unit.first_position - unit.window + 1, 0) : 0;
    const int first = oldest / kAttentionChunk, last = unit.last_position / kAttentionChunk;
    for (int c = first; c <= last; c++) {
        kernels.attention_chunk(unit, c, c == first ? total : part, c < last ? &unit : nullptr, c + 1);
        if (c > first) kernels.attention_merge(total, part, rows, unit.head_dim);
    }
    kernels.attention_finish(total, rows, unit.group_size, unit.head_dim, nullptr, out,
                             static_cast<size_t>(unit.group_size) * unit.head_dim);
}

// queries [Q, heads, head_dim] are the last Q of the tokens of keys, values [T, 1, head_dim]; out like queries.
void attention(const std::string& isa, const std::string& format, const Heads& queries, const Heads& keys,
               const Heads& values, int block_size, int window, float scale, float logit_softcap,
               const WritableHeads& out) {
    const auto num_queries = static_cast<int>(queries.shape(0)), num_tokens = static_cast<int>(keys.shape(0));
    const bool fits = keys.shape(1) == 1 && values.shape(1) == 1 && keys.shape(2) == queries.shape(2) &&
                      values.shape(2) == keys.shape(2) && values.shape(0) == keys.shape(0);
    if (!fits || num_queries > num_tokens || out.size() != queries.size() || queries.size() == 0 || block_size <= 0 ||
        block_size % 16 != 0) {
        throw std::invalid_argument("shapes of queries, keys, values and out do not fit");
    }
    const Kernels& kernels = table(isa);
    const CacheFormat cache_format = format == "int8" ? CacheFormat::kInt8 : CacheFormat::kBf16;
    ReversedCache cache(kernels, cache_format, keys, values, block_size);
    const auto group_size = static_cast<int>(queries.shape(1)), head_dim = static_cast<int>(queries.shape(2));
    const int first_position = num_tokens - num_queries, num_rows = num_queries * group_size;
    if (window > 0) cache.forget_before(first_position - window + 1, block_size);
    std::vector<float> packed(num_rows * query_row_floats(head_dim));
    for (int r = 0; r < num_rows; r++) {
        kernels.pack_query(cache_format, queries.data() + static_cast<size_t>(r) * head_dim, scale, head_dim,
                           packed.data() + r * query_row_floats(head_dim));
    }
    std::vector<int32_t> positions(num_queries);
    for (int q = 0; q < num_queries; q++) positions[q] = first_position + q;
    run_unit(kernels,
             AttentionUnit{
                 .queries = packed.data(),
                 .positions = positions.data(),
                 .num_rows = num_rows,
                 .group_size = group_size,
                 .head_dim = head_dim,
                 .first_position = first_position,
                 .last_position = num_tokens - 1,
                 .window = window,
                 .logit_softcap = logit_softcap,
                 .slopes = nullptr,
                 .format = cache_format,
                 .block_table = cache.table(),
                 .block_size = block_size,
                 .cache = cache.bytes(),
                 .block_stride = cache.stride(),
             },
             out.data());
}

using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// How sequences with one new token each are cut: (chunk or -1, sequences) of every part.
std::vector<std::pair<int, std::vector<int>>> attention_parts(const Ints& positions, const Tables& block_tables,
                                                              int block_size, int window, int num_workers) {
    const auto num_sequences = static_cast<int>(positions.size());
    if (block_tables.shape(0) != positions.size()) throw std::invalid_argument("tables and positions differ in number");
    std::vector<int32_t> starts(num_sequences + 1);
    for (int s = 0; s <= num_sequences; s++) starts[s] = s;
    BatchInput batch{};
    batch.num_tokens = batch.num_sequences = num_sequences;
    batch.max_blocks = static_cast<int>(block_tables.shape(1));
    batch.positions = positions.data();
    batch.query_start = starts.data();
    batch.block_tables = block_tables.data();
    AttentionPlan plan;
    plan.build(batch, 0, window, block_size, {8, 16, 1, num_workers});
    std::vector<std::pair<int, std::vector<int>>> parts;
    for (const AttentionPart& part : plan.parts()) {
        parts.emplace_back(part.chunk, std::vector<int>());
        for (int i = 0; i < part.num_members; i++) parts.back().second.push_back(plan.member(part, i).sequence);
    }
    return parts;
}

}  // namespace

void bind_rows(nb::module_& m) {
    m.def("rms_norm", rms_norm, nb::arg("isa"), nb::arg("x"), nb::arg("gain"), nb::arg("eps"),
          nb::arg("out").noconvert());
    m.def("layer_norm", layer_norm, nb::arg("isa"), nb::arg("x"), nb::arg("gain"), nb::arg("bias"), nb::arg("eps"),
          nb::arg("out").noconvert());
    m.def("activation", activation, nb::arg("isa"), nb::arg("kind"), nb::arg("x").noconvert());
    m.def("gated_activation", gated_activation, nb::arg("isa"), nb::arg("kind"), nb::arg("gate").noconvert(),
          nb::arg("up"));
    m.def("add_output", add_output, nb::arg("isa"), nb::arg("values"), nb::arg("factors"), nb::arg("bias"),
          nb::arg("scale"), nb::arg("x").noconvert(), nb::arg("gain"), nb::arg("eps"), nb::arg("next").noconvert(),
          nb::arg("next_factors").noconvert());
    m.def("best_of_row", best_of_row, nb::arg("isa"), nb::arg("x"));
    m.def("softcap", softcap, nb::arg("isa"), nb::arg("x").noconvert(), nb::arg("cap"));
    m.def("rope", rope, nb::arg("isa"), nb::arg("head").noconvert(), nb::arg("cos"), nb::arg("sin"));
    m.def("rope_rows", rope_rows, nb::arg("frequencies"), nb::arg("factor"), nb::arg("num_threads"),
          nb::arg("cos").noconvert(), nb::arg("sin").noconvert());
    m.def("reductions", reductions, nb::arg("isa"), nb::arg("x"), nb::arg("threshold"));
    m.def("exp_weights", exp_weights, nb::arg("isa"), nb::arg("x"), nb::arg("temperature"), nb::arg("out").noconvert());
    m.def("block_sums", block_sums, nb::arg("isa"), nb::arg("x"), nb::arg("temperature"), nb::arg("out").noconvert());
    m.def("attention", attention, nb::arg("isa"), nb::arg("format"), nb::arg("queries"), nb::arg("keys"),
          nb::arg("values"), nb::arg("block_size"), nb::arg("window"), nb::arg("scale"), nb::arg("logit_softcap"),
          nb::arg("out").noconvert());
    m.def("attention_parts", attention_parts, nb::arg("positions"), nb::arg("block_tables"), nb::arg("block_size"),
          nb::arg("window"), nb::arg("num_workers"));
}

}  // namespace tuili
