// One step's inputs and outputs: the arrays of backend.py's Batch, SamplingArrays and StepResult as pointers.
// Arrays are the caller's and live for the step. Nothing in them is trusted before check_batch.
#pragma once
#include <cstdint>
#include <vector>

#include "model/kv_cache.h"
#include "model/model_spec.h"

namespace tuili {

// backend.py's SamplerKind.
enum class SamplerKind : int32_t {
    kPenalties,
    kDry,
    kTopNSigma,
    kTopK,
    kTypicalP,
    kTopP,
    kMinP,
    kXtc,
    kTemperature,
    kMirostat1,
    kMirostat2,
    kAdaptiveP,
    kCount,
};

// R rows; sparse parts are CSR. Shapes are the binding's concern, values check_sampling's.
struct SamplingInput {
    const float* temperature;
    const int32_t* top_k;
    const float* top_p;
    const float* min_p;
    const float* repetition_penalty;
    const float* presence_penalty;
    const float* frequency_penalty;
    const uint64_t* seed;
    const int32_t* sample_index;
    const int32_t* position;
    const int32_t* history_start;
    const int32_t* history_ids;
    const int32_t* history_counts;
    int num_history;
    const int32_t* bias_start;
    const int32_t* bias_ids;
    const float* bias_values;
    int num_bias;
    const int32_t* chain_start;
    const int32_t* chain_kinds;
    const float* chain_values;  // [num_chain][3]
    int num_chain;
    const int32_t* dry_start;
    const int32_t* dry_ids;
    const float* dry_values;
    int num_dry;
    const float* sampler_state;
    const uint32_t* allow_mask;  // [R][ceil(vocab / 32)], or null
};

struct BatchInput {
    int num_tokens;
    int num_sequences;
    int num_rows;
    int max_blocks;
    int num_copies;
    const int32_t* input_ids;
    const int32_t* positions;
    const int32_t* query_start;
    const int32_t* seq_lens;
    const int32_t* block_tables;  // [groups][num_sequences][max_blocks]
    const int32_t* slot_mapping;  // [groups][num_tokens]
    const int32_t* block_copies;  // [num_copies][3]
    const int32_t* slots;
    const bool* carry;
    const int32_t* sample_rows;
    const int32_t* targets;
    const int32_t* num_logprobs;
    const bool* want_logits;  // [R], or null
    SamplingInput sampling;
};

// Whether a row's raw logits are to be handed out.
inline bool wants_logits(const BatchInput& batch, int row) {
    return batch.want_logits != nullptr && batch.want_logits[row];
}

struct StepOutput {
    int32_t* token_ids;
    float* logprobs;
    int32_t* ranks;
    int max_logprobs;      // K
    int32_t* top_ids;      // [R][K]
    float* top_logprobs;   // [R][K]
    float* sampler_state;  // [R]
    float* logits;         // [W][vocab] of the W rows that want them, or null
    float* hidden;         // [R][hidden], or null
};

// Throws std::invalid_argument naming field, index, value and range of whatever would read or write out of bounds.
void check_batch(const BatchInput& batch, const ModelSpec& spec, const KvCache& cache);
void check_sampling(const SamplingInput& sampling, int num_rows, int vocab_size);

}  // namespace tuili
