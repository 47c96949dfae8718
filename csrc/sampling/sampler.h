// Chooses one token from one row of logits as docs/sampling.md defines it, and reports logprobs.
// Knows numbers; not models, batches or threads.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "sampling/row_sampling.h"
#include "sampling/sampler_chain.h"

namespace tuili {

constexpr int kLogitBlock = 32;  // ids whose largest logit decides whether they are looked at

// Sets the logits of the 32 ids of a mask's word that are not allowed to -inf; n: ids that exist.
void mask_logits(uint32_t word, float* logits, int n);

// Scratch of one thread.
class Sampler {
  public:
    // Makes room once, so that choosing allocates nothing.
    void reserve(int vocab_size) {
        weights_.reserve(vocab_size);
        block_max_.reserve(vocab_size / kLogitBlock + 1);
        block_sums_.reserve(vocab_size);
        candidates_.reserve(vocab_size);
    }

    // Applies bias, mask and penalties to `logits` [vocab_size] in place and chooses.
    // block_max [ceil(vocab_size / 32)]: the largest logit of each 32 ids, or null where nobody knows it.
    Choice choose(const Kernels& kernels, const RowSampling& row, float* logits, const float* block_max,
                  int vocab_size);

    // The k best ids by logit, equals by lowest id.
    void best(const Kernels& kernels, const float* logits, int vocab_size, int k, int32_t* ids);

  private:
    struct Candidate {
        float weight;
        int id;
    };
    // Adjusted logits and where they are large.
    struct Logits {
        const float* values;
        const float* block_max;
        int size;
        float largest;
        int num_blocks() const { return (size + kLogitBlock - 1) / kLogitBlock; }
    };
    static bool precedes(const Candidate& a, const Candidate& b) {
        return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
    }

    int choose_by_default(const Kernels& kernels, const RowSampling& row, const Logits& logits);
    int draw(const Kernels& kernels, const RowSampling& row, const Logits& logits, double u);
    double sum_blocks(const Kernels& kernels, const RowSampling& row, const Logits& logits);
    double collect(const Kernels& kernels, const RowSampling& row, const Logits& logits);
    double collect_nucleus(const Kernels& kernels, const RowSampling& row, const Logits& logits);
    double gather(const Kernels& kernels, const RowSampling& row, const Logits& logits, float floor, float min_weight);
    float block_rank(const Logits& logits, int k);
    double keep_nucleus(float top_p, double total);

    std::vector<float> weights_, block_max_;
    std::vector<double> block_sums_;
    std::vector<Candidate> candidates_;
    SamplerChain chain_;
};

// Log of the sum of exp over a row.
double log_sum_exp(const Kernels& kernels, const float* logits, int n);

}  // namespace tuili
