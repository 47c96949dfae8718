// What one instruction set offers: the packed weight layout, the activation layout and a table of
// functions over both. Every entry is compiled once per instruction set from the same .inl files
// (isa_*.cpp); kernels_for() chooses at run time.
// Knows shapes and bytes; not models, threads or Python.
//
// Numerics contract: a row's result never depends on the other rows of the call, on how rows are
// tiled or on which thread runs a panel. Integer sums within a 32-group are exact; the float sum runs
// over groups in ascending k, one fixed sequence of multiplies and fused multiply-adds.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tuili {

constexpr int kPanelCols = 32;        // output columns (weight rows) of a panel
constexpr int kGroup = 32;            // activations share one scale per this many
constexpr int kAttentionChunk = 256;  // attention reduces over chunks at absolute multiples of this

// clang-format off
enum class Format : uint8_t {
    kF32, kF16, kBF16, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K, kIQ4_NL, kIQ4_XS
};
inline constexpr const char* kFormatNames[] = {
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS"
};
// clang-format on

// Float formats multiply float32 activations (BF16: see Kernels::rounds_to_bf16); the others multiply int8 groups.
inline bool is_float(Format f) { return f <= Format::kBF16; }

// A weight matrix [rows, cols], repacked into ceil(rows / 32) panels, each contiguous over cols.
// Rows past the end have zero scales. `panels` is 64-byte aligned, and so is panel_bytes.
struct PackedMatrix {
    Format format = Format::kF32;
    int rows = 0;
    int cols = 0;
    size_t panel_bytes = 0;
    const uint8_t* panels = nullptr;
    int num_panels() const { return (rows + kPanelCols - 1) / kPanelCols; }
    const uint8_t* panel(int index) const { return panels + index * panel_bytes; }
};

// A batch of input rows, in every form; a form that no consumer needs is null.
// Group-major, so that two threads that produce different groups never share a cache line.
struct Activations {
    int num_rows = 0;
    int row_stride = 0;  // rows allocated per group, >= num_rows
    int cols = 0;
    int8_t* q = nullptr;          // [cols / 32][row_stride][32]
    float* scale = nullptr;       // [cols / 32][row_stride] max|x| / 127
    float* scaled_sum = nullptr;  // [cols / 32][row_stride] scale * sum(q)
    int32_t* sum = nullptr;       // [cols / 32][row_stride] sum(q)
    int32_t* half_sum = nullptr;  // [cols / 32][row_stride] sum of the first 16 q; needed where scales are per 16
    float* f32 = nullptr;         // [num_rows][cols]
    uint16_t* bf16 = nullptr;     // [ceil(cols / 32)][row_stride][32] rounded to bfloat16, zeros past cols
    // [ceil(cols / 32)][row_stride] sum of squares before the norm's gain, where products are still to be multiplied
    // by the row's RMS factor; null: the rows are what the matrix expects.
    float* square_sum = nullptr;
};

// A product's rows [row, row + num_rows) of one panel on their way through an epilogue: column c of the i-th is
// values[i][c] * factors[i] + bias[c].
struct PanelTile {
    const float* values;  // [num_rows][32]
    int num_rows;
    int row;
    int panel;
    int width;             // columns that the matrix has, 1..32
    const float* factors;  // [num_rows], or null: ones
    const float* bias;     // [32], zeros past width; or null: zeros
};

// How keys and values are kept: bfloat16, or int8 with a float32 scale per token and kv head.
enum class CacheFormat : uint8_t { kBf16, kInt8 };

// Rows of queries that read the same keys: the query heads of one kv head, for one token or several. Row r is query
// r / group_size, head r % group_size. Queries with different tables may share a unit where their tables agree.
struct AttentionUnit {
    const float* queries;      // [num_rows][query_row_floats(head_dim)], from pack_query
    const int32_t* positions;  // [num_rows / group_size] absolute
    int num_rows;
    int group_size;  // query heads per kv head
    int head_dim;
    int first_position, last_position;  // the smallest and the largest of positions
    int window;                         // a query sees positions > position - window; 0: all
    float logit_softcap;                // 0: none
    const float* slopes;                // [group_size] of ALiBi, or null: none
    CacheFormat format;
    const int32_t* block_table;
    int block_size;       // 16, 32, 64, 128 or 256
    uint8_t* cache;       // this layer's and kv head's plane of block 0
    size_t block_stride;  // bytes between blocks
};

// A softmax under way over the rows of a unit: of one chunk, or of all chunks merged so far.
struct AttentionState {
    float* weighted;  // [num_rows][padded_head_dim] sum of exp(score - max) * value
    float* max;       // [num_rows] largest score, -inf where nothing is visible
    float* sum;       // [num_rows] sum of exp(score - max)
};

inline int padded_head_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

inline int even_head_dim(int head_dim) { return (head_dim + 1) / 2 * 2; }
inline int cache_element_bytes(CacheFormat format) { return format == CacheFormat::kInt8 ? 1 : 2; }

// A packed query: its factors, then its scale where the format has one.
inline size_t query_row_floats(int head_dim) { return static_cast<size_t>(padded_head_dim(head_dim)) + 16; }

// A plane is one block of one layer and kv head: keys [block_size / 16][even_head_dim / 2][16 tokens][2], then values
// [block_size / 2][padded_head_dim][2 tokens]; int8 has scales of keys and of values, [2][block_size] floats, after it.
inline float* cache_scales(uint8_t* plane, int head_dim, int block_size) {
    return reinterpret_cast<float*>(plane + static_cast<size_t>(block_size) *
                                                (even_head_dim(head_dim) + padded_head_dim(head_dim)));
}
inline size_t cache_plane_bytes(CacheFormat format, int head_dim, int block_size) {
    const int values = even_head_dim(head_dim) + padded_head_dim(head_dim);
    const size_t scales = format == CacheFormat::kInt8 ? 2 * sizeof(float) : 0;
    return block_size * (values * cache_element_bytes(format) + scales);
}

struct WeightBlock;

struct Kernels {
    const char* isa;

    // Whether bfloat16 is multiplied by bfloat16, in pairs: weights in BF16 by rounded activations (Activations::bf16),
    // keys by rounded queries, values by rounded softmax weights, whose sum is theirs, too. Otherwise what multiplies
    // bfloat16 is float32.
    bool rounds_to_bf16 = false;

    // out[r - row_begin][0..31] = panel `panel` times rows [row_begin, row_end) of x. No bias, no residual.
    // `next` is where this thread's weight stream goes on (prefetch hint), or null.
    void (*matmul_panel)(const PackedMatrix& w, int panel, const Activations& x, int row_begin, int row_end, float* out,
                         const uint8_t* next);

    // One 32-group of one row: values [32] -> q, scale, scaled_sum, sum, and bf16, at (group, row) of x, where they are
    // not null.
    void (*quantize_group)(const float* values, Activations& x, int group, int row);

    // values [cols] of one row, times gain [cols] unless null -> all forms of x that are not null.
    void (*quantize_row)(const float* values, const float* gain, Activations& x, int row);

    // factors[r] = rsqrt(mean of squares of row r + eps) from x.square_sum, groups in ascending order.
    void (*norm_factors)(const Activations& x, float eps, float* factors);

    // Epilogues. A panel of outputs is a group of the next matrix's input.
    // out[i][0..width) = tile
    void (*store_tile)(const PanelTile& tile, float* out, size_t stride);
    // x[i][0..width) += tile * scale; then, unless next is null, x times gain (null: ones) -> group of next.
    void (*add_tile)(const PanelTile& tile, float scale, float* x, size_t stride, const float* gain, Activations* next);
    // act(gate) * up -> group of next; activation is a models.spec Activation in declaration order.
    void (*gated_tile)(int activation, const PanelTile& gate, const PanelTile& up, Activations& next);
    void (*activated_tile)(int activation, const PanelTile& tile, Activations& next);
    // out[i][0..32) = softcap(tile * scale); softcap 0: none
    void (*logit_tile)(const PanelTile& tile, float scale, float softcap, float* out);
    // The largest of each row's first `width` values [num_rows][32] and its column, the lowest among equals, `stride`
    // entries apart.
    void (*best_of_rows)(const float* values, int num_rows, int width, float* best, uint8_t* column, size_t stride);

    // out = x * rsqrt(mean(x^2) + eps) * gain, one fixed reduction tree.
    void (*rms_norm)(const float* x, const float* gain, float eps, int n, float* out);

    // out = (x - mean) * rsqrt(variance + eps) * gain + bias; bias may be null.
    void (*layer_norm)(const float* x, const float* gain, const float* bias, float eps, int n, float* out);

    // x[n] += y[n] * scale
    void (*add_scaled)(float* x, const float* y, float scale, int n);

    // Rotates the first `dim` values of a head in half-split layout; cos, sin: [dim / 2].
    void (*rope)(float* head, const float* cos, const float* sin, int dim);

    // Writes one token's key and value [head_dim] at `offset` of a block's plane, rounded to nearest even.
    void (*cache_append)(CacheFormat format, const float* key, const float* value, int head_dim, int block_size,
                         int offset, uint8_t* plane);

    // query [head_dim], rotated, times `scale` -> packed [query_row_floats(head_dim)].
    void (*pack_query)(CacheFormat format, const float* query, float scale, int head_dim, float* packed);

    // The part of the keys at positions [256 * chunk, 256 * (chunk + 1)), computed from nothing.
    // `next` and `next_chunk` say whose keys are read next (prefetch hint; queries and positions are not read), or
    // null.
    void (*attention_chunk)(const AttentionUnit& unit, int chunk, const AttentionState& state,
                            const AttentionUnit* next, int next_chunk);
    // state <- state and chunk. Merging in ascending chunk order defines the result.
    void (*attention_merge)(const AttentionState& state, const AttentionState& chunk, int num_rows, int head_dim);
    // out [num_rows / group_size][out_stride] <- weighted / sum; head g at offset g * head_dim. sinks [group_size]: one
    // more score per head, whose weight goes nowhere; null: none.
    void (*attention_finish)(const AttentionState& state, int num_rows, int group_size, int head_dim,
                             const float* sinks, float* out, size_t out_stride);

    // Sampling primitives over one row of logits [n].
    float (*max_value)(const float* x, int n);
    int (*argmax)(const float* x, int n);  // lowest index among equals
    double (*sum_exp)(const float* x, float max, int n);
    void (*exp_weights)(const float* x, float max, float temperature, int n, float* out);  // exp(x / t - max / t)
    double (*sum_weights)(const float* x, float max, float temperature, int n);
    void (*block_max)(const float* x, int n, float* out);  // [ceil(n / 32)]
    int (*count_greater)(const float* x, float threshold, int n);
    void (*multiply)(float* x, float factor, int n);

    // Fits a quantized format to 16 groups of weights, whole blocks (weight_block.h).
    void (*fit_blocks)(Format format, const float* values, WeightBlock* out);

    // What the machine can do at most (probe.inl): a value that depends on all num_bytes (a multiple of 256, 64-byte
    // aligned, prefetched up to 4 KiB past the end), and operations done in `rounds` of register work.
    int32_t (*read_bytes)(const uint8_t* data, size_t num_bytes);
    double (*dot_operations)(int rounds);
    double (*fma_operations)(int rounds);
};

// The table of an instruction set by name ("avx512_bf16", "avx512", "avx_vnni", "avx2", "scalar", "scalar_bf16"), or
// null when this build or CPU lacks it.
const Kernels* kernels_for(const char* isa);

// The best that this CPU runs.
const Kernels& best_kernels();

// Bytes of a 32-row panel of `cols` columns, a multiple of 64.
size_t packed_panel_bytes(Format format, int cols);

// Bytes of one row of `cols` weights as GGUF stores it; 0 when cols is not whole groups.
size_t source_row_bytes(Format format, int cols);

// Repacks rows [32 * panel, 32 * panel + num_rows) given as GGUF stores them, num_rows <= 32.
void pack_panel(Format format, const uint8_t* source, size_t source_row_bytes, int num_rows, int cols, uint8_t* panel);

// One weight row back to float32 [cols] (embedding lookup), bit-equal to the format's definition.
void unpack_row(const PackedMatrix& w, int row, float* out);

}  // namespace tuili
