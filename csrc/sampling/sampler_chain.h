// A row's chain of samplers, one after another, over its candidates, as docs/sampling.md defines them. Knows numbers;
// not models, batches or threads.
#pragma once
#include <cstddef>
#include <vector>

#include "kernels/kernels.h"
#include "sampling/row_sampling.h"

namespace tuili {

// Scratch of one thread.
class SamplerChain {
  public:
    // Chooses from logits [vocab_size], bias and mask applied, of which the largest is finite.
    Choice choose(const Kernels& kernels, const RowSampling& row, const float* logits, int vocab_size);

  private:
    void apply(const Kernels& kernels, const RowSampling& row, SamplerKind kind, const float* values);
    void penalize(const RowSampling& row);
    void subtract_dry(const RowSampling& row);
    void keep_sigmas(double count);
    void keep_best(double count);
    void keep_typical(const Kernels& kernels, double mass, double min_keep);
    void keep_share(double share, double min_keep);
    void drop_top(const Kernels& kernels, const RowSampling& row, const float* values);
    void divide(const Kernels& kernels, double temperature, double range, double exponent);
    double dynamic(const Kernels& kernels, double temperature, double range, double exponent);
    void keep_zipf(double mu);
    void keep_unsurprising(const Kernels& kernels, double mu);
    void favour_near(const Kernels& kernels, double wanted);
    int draw(const Kernels& kernels, const RowSampling& row);
    double next_state(const RowSampling& row, size_t drawn) const;

    float* find(int id);
    void weigh(const Kernels& kernels);
    double shifted(size_t i) const { return static_cast<double>(logits_[i]) - static_cast<double>(largest_); }
    double mean_shifted() const;
    void rank_by_logit();
    void rank_until(size_t count);
    void keep_mass(const Kernels& kernels, double mass, double min_keep);
    void keep_ranked(size_t first, size_t end);
    template <class Predicate>
    void keep_if(Predicate predicate);

    int vocab_size_ = 0;
    // Candidates, by ascending id: at least one, and every logit finite.
    std::vector<int> ids_;
    std::vector<float> logits_;
    // Of the candidates at the last weigh().
    std::vector<float> weights_;  // exp(logit - largest)
    float largest_ = 0.0f;
    double total_ = 0.0;
    std::vector<double> shares_;  // probabilities before adaptive-p
    // Indices of candidates by ascending key, equals by index; in order up to num_ranked_.
    std::vector<double> keys_;
    std::vector<int> order_;
    size_t num_ranked_ = 0;
    std::vector<unsigned char> kept_;
};

}  // namespace tuili
