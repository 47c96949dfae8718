// The body of every isa_*_bf16.cpp: another table's kernels, but for those that multiply pairs of bfloat16.
#define TUILI_ISA_BF16
#include "kernels/simd.h"
//
#include "kernels/kernels.h"
//
#include "kernels/attention.inl"
#include "kernels/matmul_bf16.inl"

#define TUILI_STRING_OF(x) #x
#define TUILI_STRING(x) TUILI_STRING_OF(x)

namespace tuili {

const Kernels& TUILI_ISA_BASE();

namespace TUILI_ISA_NAMESPACE {
namespace {

void multiply_panel(const PackedMatrix& w, int panel, const Activations& x, int row_begin, int row_end, float* out,
                    const uint8_t* next) {
    const auto run = w.format == Format::kBF16 ? matmul_bf16_panel : TUILI_ISA_BASE().matmul_panel;
    run(w, panel, x, row_begin, row_end, out, next);
}

void pack_pairs(CacheFormat format, const float* query, float scale, int head_dim, float* packed) {
    if (format != CacheFormat::kBf16) return TUILI_ISA_BASE().pack_query(format, query, scale, head_dim, packed);
    Bf16PairCache::pack_query(query, scale, head_dim, packed);
}

void attend_chunk(const AttentionUnit& unit, int chunk, const AttentionState& state, const AttentionUnit* next,
                  int next_chunk) {
    const bool has_pairs = unit.format == CacheFormat::kBf16;
    const auto run = has_pairs ? chunk_of_format<Bf16PairCache> : TUILI_ISA_BASE().attention_chunk;
    run(unit, chunk, state, next, next_chunk);
}

Kernels make_table() {
    Kernels table = TUILI_ISA_BASE();
    table.isa = TUILI_STRING(TUILI_ISA_NAMESPACE);
    table.rounds_to_bf16 = true;
    table.matmul_panel = multiply_panel;
    table.pack_query = pack_pairs;
    table.attention_chunk = attend_chunk;
    return table;
}

}  // namespace
}  // namespace TUILI_ISA_NAMESPACE

const Kernels& TUILI_ISA_TABLE() {
    static const Kernels table = TUILI_ISA_NAMESPACE::make_table();
    return table;
}

}  // namespace tuili
