// The body of every isa_*.cpp: one instruction set's kernels and their table.
#include "kernels/simd.h"
//
#include "kernels/kernels.h"
//
#include "kernels/attention.inl"
#include "kernels/elementwise.inl"
#include "kernels/epilogue.inl"
#include "kernels/matmul.inl"
#include "kernels/probe.inl"
#include "kernels/quantize.inl"
#include "kernels/sampling.inl"
#include "kernels/weight_fit.inl"

#define TUILI_STRING_OF(x) #x
#define TUILI_STRING(x) TUILI_STRING_OF(x)

namespace tuili {

const Kernels& TUILI_ISA_TABLE() {
    using namespace TUILI_ISA_NAMESPACE;
    static constexpr Kernels table = {
        .isa = TUILI_STRING(TUILI_ISA_NAMESPACE),
        .matmul_panel = matmul_panel,
        .quantize_group = quantize_group,
        .quantize_row = quantize_row,
        .norm_factors = norm_factors,
        .store_tile = store_tile,
        .add_tile = add_tile,
        .gated_tile = gated_tile,
        .activated_tile = activated_tile,
        .logit_tile = logit_tile,
        .best_of_rows = best_of_rows,
        .rms_norm = rms_norm,
        .layer_norm = layer_norm,
        .add_scaled = add_scaled,
        .rope = rope,
        .cache_append = cache_append,
        .pack_query = pack_query,
        .attention_chunk = attention_chunk,
        .attention_merge = attention_merge,
        .attention_finish = attention_finish,
        .max_value = max_value,
        .argmax = argmax,
        .sum_exp = sum_exp,
        .exp_weights = exp_weights,
        .sum_weights = sum_weights,
        .block_max = block_max,
        .count_greater = count_greater,
        .multiply = multiply,
        .fit_blocks = fit_blocks,
        .read_bytes = read_bytes,
        .dot_operations = dot_operations,
        .fma_operations = fma_operations,
    };
    return table;
}

}  // namespace tuili
