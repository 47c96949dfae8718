#include "sampling/row_sampling.h"

#include <algorithm>
#include <cstddef>

namespace tuili {

double uniform(uint64_t seed, uint32_t position, uint32_t sample_index, uint32_t purpose) {
    uint32_t x[4] = {position, sample_index, purpose, 0};
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const uint64_t a = uint64_t{0xD2511F53u} * x[0];
        const uint64_t b = uint64_t{0xCD9E8D57u} * x[2];
        const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ key[0], static_cast<uint32_t>(b),
                                  static_cast<uint32_t>(a >> 32) ^ x[3] ^ key[1], static_cast<uint32_t>(a)};
        std::copy(next, next + 4, x);
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    const uint64_t bits = (static_cast<uint64_t>(x[0]) << 21) ^ (x[1] >> 11);
    return static_cast<double>(bits) * 0x1p-53;
}

float penalized(const RowSampling& row, float logit, int count) {
    const float repeated = logit > 0.0f ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    const float presence = count > 0 ? row.presence_penalty : 0.0f;
    return bounded(repeated - (row.frequency_penalty * static_cast<float>(count) + presence));
}

RowSampling row_sampling(const SamplingInput& in, int r, int vocab_size) {
    const int history = in.history_start[r], bias = in.bias_start[r], chain = in.chain_start[r], dry = in.dry_start[r];
    const size_t mask_words = (static_cast<size_t>(vocab_size) + 31) / 32;
    return RowSampling{
        .temperature = in.temperature[r],
        .top_k = in.top_k[r],
        .top_p = in.top_p[r],
        .min_p = in.min_p[r],
        .repetition_penalty = in.repetition_penalty[r],
        .presence_penalty = in.presence_penalty[r],
        .frequency_penalty = in.frequency_penalty[r],
        .seed = in.seed[r],
        .sample_index = static_cast<uint32_t>(in.sample_index[r]),
        .position = static_cast<uint32_t>(in.position[r]),
        .history_ids = in.history_ids + history,
        .history_counts = in.history_counts + history,
        .num_history = in.history_start[r + 1] - history,
        .bias_ids = in.bias_ids + bias,
        .bias_values = in.bias_values + bias,
        .num_bias = in.bias_start[r + 1] - bias,
        .chain_kinds = in.chain_kinds + chain,
        .chain_values = in.chain_values + 3 * static_cast<size_t>(chain),
        .num_chain = in.chain_start[r + 1] - chain,
        .dry_ids = in.dry_ids + dry,
        .dry_values = in.dry_values + dry,
        .num_dry = in.dry_start[r + 1] - dry,
        .sampler_state = in.sampler_state[r],
        .allow_mask = in.allow_mask == nullptr ? nullptr : in.allow_mask + r * mask_words,
    };
}

}  // namespace tuili
