// Chooses one token from one row of logits as docs/sampling.md defines it, and reports logprobs.
// Knows numbers; not models, batches or threads.
#pragma once
#include <cstdint>
#include <vector>

#include "batch.h"
#include "kernels.h"

namespace tuili {

// One row of a SamplingInput.
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
    const uint32_t* allow_mask;  // of this row, or null

    // The largest raw logit is the choice.
    bool is_plain_greedy() const {
        return temperature == 0.0f && num_history == 0 && num_bias == 0 && allow_mask == nullptr;
    }
};

RowSampling row_sampling(const SamplingInput& input, int row, int vocab_size);

// In [0, 1): Philox4x32-10 keyed by seed, counted by (position, sample_index, purpose, 0).
double uniform(uint64_t seed, uint32_t position, uint32_t sample_index, uint32_t purpose);

// Scratch of one thread.
class Sampler {
  public:
    // Makes room once, so that choosing allocates nothing.
    void reserve(int vocab_size) {
        weights_.reserve(vocab_size);
        block_sums_.reserve(vocab_size);
        candidates_.reserve(vocab_size);
    }

    // Applies bias, mask, penalties and temperature to `logits` [vocab_size] in place and chooses.
    int choose(const Kernels& kernels, const RowSampling& row, float* logits, int vocab_size);

    // The k best ids by logit, equals by lowest id.
    void best(const Kernels& kernels, const float* logits, int vocab_size, int k, int32_t* ids);

  private:
    struct Candidate {
        float weight;
        int id;
    };
    static bool precedes(const Candidate& a, const Candidate& b) {
        return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
    }

    int draw(double u);
    double collect(const Kernels& kernels, const RowSampling& row, int vocab_size);
    double collect_above(const Kernels& kernels, float threshold, int vocab_size);
    double keep_nucleus(float top_p, double total);

    std::vector<float> weights_;
    std::vector<double> block_sums_;
    std::vector<Candidate> candidates_;
};

// Log of the sum of exp over a row.
double log_sum_exp(const Kernels& kernels, const float* logits, int n);

}  // namespace tuili
