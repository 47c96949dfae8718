// How one row's token is to be chosen, and what comes of it: a row of a SamplingInput.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "model/batch.h"

namespace tuili {

constexpr float kLowest = -std::numeric_limits<float>::infinity();  // of an id that is not allowed

struct RowSampling {
    float temperature;
    int top_k;
    float top_p;
    float min_p;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    uint64_t seed;
    uint32_t sample_index;
    uint32_t position;
    const int32_t* history_ids;
    const int32_t* history_counts;
    int num_history;
    const int32_t* bias_ids;
    const float* bias_values;
    int num_bias;
    const int32_t* chain_kinds;
    const float* chain_values;  // [num_chain][3]
    int num_chain;
    const int32_t* dry_ids;
    const float* dry_values;
    int num_dry;
    float sampler_state;
    const uint32_t* allow_mask;  // of this row, or null

    bool changes_logits() const { return num_history > 0 || num_bias > 0 || allow_mask != nullptr; }
    // The largest raw logit, of those allowed, is the choice.
    bool is_plain_greedy() const { return temperature == 0.0f && num_history == 0 && num_bias == 0 && num_chain == 0; }
};

RowSampling row_sampling(const SamplingInput& input, int row, int vocab_size);

// A logit as near as a float can say: never infinite, so that samplers can reckon with it.
inline float bounded(float logit) {
    constexpr float kMost = std::numeric_limits<float>::max();
    return std::clamp(logit, -kMost, kMost);
}

// The finite logit of an id seen before, after the row's penalties; count: how often it is in the output.
float penalized(const RowSampling& row, float logit, int count);

// A row's token, and what its last step carries to the next: NaN where that carries nothing.
struct Choice {
    int id;
    float sampler_state = std::numeric_limits<float>::quiet_NaN();
};

// In [0, 1): Philox4x32-10 keyed by seed, counted by (position, sample_index, purpose, 0).
double uniform(uint64_t seed, uint32_t position, uint32_t sample_index, uint32_t purpose);

}  // namespace tuili
