#include "sampling/sampler_chain.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace tuili {
namespace {

constexpr double kLn2 = 0.693147180559945309417;
constexpr double kMinTemperature = 0.01;  // of a dynamic temperature
constexpr size_t kMirostatM = 100;        // candidates that mirostat 1 looks at
constexpr double kAdaptiveWidth = 0.3, kAdaptivePeak = 5.0, kAdaptiveSharpness = 10.0;  // of adaptive-p's logits
constexpr size_t kFirstRanks = 256;  // candidates put in order at first, where few are likely to be enough

// How many candidates keep the surprise near mu if weights fall as Zipf's law, fitted to the best logits.
double zipf_count(const double* best, size_t count, double mu, int vocab_size) {
    if (count < 2) return 1.0;
    double products = 0.0, squares = 0.0;
    for (size_t i = 0; i + 1 < count; i++) {
        const double step = std::log(static_cast<double>(i + 2) / static_cast<double>(i + 1));
        products += step * (best[i] - best[i + 1]);
        squares += step * step;
    }
    const double exponent = products / squares, epsilon = exponent - 1.0, log_size = std::log(vocab_size);
    const double share = std::abs(epsilon) < 1e-9 ? 1.0 / log_size : epsilon / -std::expm1(-epsilon * log_size);
    const double power = std::log(share) + mu * kLn2;
    if (exponent == 0.0) return power < 0.0 ? 1.0 : vocab_size;
    return std::floor(std::clamp(std::exp(std::min(power / exponent, 30.0)), 1.0, static_cast<double>(vocab_size)));
}

}  // namespace

Choice SamplerChain::choose(const Kernels& kernels, const RowSampling& row, const float* logits, int vocab_size) {
    vocab_size_ = vocab_size;
    ids_.clear();
    logits_.clear();
    for (int id = 0; id < vocab_size; id++) {
        if (!(logits[id] > kLowest)) continue;
        ids_.push_back(id);
        logits_.push_back(logits[id]);
    }
    for (int i = 0; i < row.num_chain; i++) {
        apply(kernels, row, static_cast<SamplerKind>(row.chain_kinds[i]),
              row.chain_values + 3 * static_cast<size_t>(i));
    }
    if (row.temperature == 0.0f) {
        return {ids_[std::max_element(logits_.begin(), logits_.end()) - logits_.begin()]};
    }
    const auto drawn = static_cast<size_t>(draw(kernels, row));
    Choice choice{ids_[drawn]};
    choice.sampler_state = static_cast<float>(next_state(row, drawn));
    return choice;
}

// What the last step carries on once candidate `drawn` was chosen.
double SamplerChain::next_state(const RowSampling& row, size_t drawn) const {
    const float* values = row.chain_values + 3 * static_cast<size_t>(row.num_chain - 1);
    const double state = row.sampler_state, first = values[0], rate = values[1];
    switch (static_cast<SamplerKind>(row.chain_kinds[row.num_chain - 1])) {
        case SamplerKind::kMirostat1:
        case SamplerKind::kMirostat2:
            return state - rate * ((std::log(total_) - shifted(drawn)) / kLn2 - first);
        case SamplerKind::kAdaptiveP:
            return rate * state + (1.0 - rate) * shares_[drawn];
        default:
            return std::numeric_limits<double>::quiet_NaN();
    }
}

void SamplerChain::apply(const Kernels& kernels, const RowSampling& row, SamplerKind kind, const float* values) {
    switch (kind) {
        case SamplerKind::kPenalties:
            return penalize(row);
        case SamplerKind::kDry:
            return subtract_dry(row);
        case SamplerKind::kTopNSigma:
            return keep_sigmas(values[0]);
        case SamplerKind::kTopK:
            return keep_best(values[0]);
        case SamplerKind::kTypicalP:
            return keep_typical(kernels, values[0], values[1]);
        case SamplerKind::kTopP:
            rank_by_logit();
            return keep_mass(kernels, values[0], values[1]);
        case SamplerKind::kMinP:
            return keep_share(values[0], values[1]);
        case SamplerKind::kXtc:
            return drop_top(kernels, row, values);
        case SamplerKind::kTemperature:
            return divide(kernels, values[0], values[1], values[2]);
        case SamplerKind::kMirostat1:
            return keep_zipf(row.sampler_state);
        case SamplerKind::kMirostat2:
            return keep_unsurprising(kernels, row.sampler_state);
        case SamplerKind::kAdaptiveP:
            return favour_near(kernels, std::clamp(2.0 * double{values[0]} - double{row.sampler_state}, 0.0, 1.0));
        case SamplerKind::kCount:
            return;
    }
}

void SamplerChain::penalize(const RowSampling& row) {
    for (int i = 0; i < row.num_history; i++) {
        if (float* l = find(row.history_ids[i])) *l = penalized(row, *l, row.history_counts[i]);
    }
}

void SamplerChain::subtract_dry(const RowSampling& row) {
    for (int i = 0; i < row.num_dry; i++) {
        if (float* l = find(row.dry_ids[i])) *l = bounded(*l - row.dry_values[i]);
    }
}

void SamplerChain::keep_sigmas(double count) {
    const auto size = static_cast<double>(logits_.size());
    double sum = 0.0, squares = 0.0;
    for (float l : logits_) sum += static_cast<double>(l);
    const double mean = sum / size;
    for (float l : logits_) squares += (static_cast<double>(l) - mean) * (static_cast<double>(l) - mean);
    const auto largest = static_cast<double>(*std::max_element(logits_.begin(), logits_.end()));
    const double lowest = largest - count * std::sqrt(squares / size);
    keep_if([&](size_t i) { return static_cast<double>(logits_[i]) >= lowest; });
}

void SamplerChain::keep_best(double count) {
    if (count >= static_cast<double>(logits_.size())) return;
    rank_by_logit();
    rank_until(static_cast<size_t>(count));
    keep_ranked(0, static_cast<size_t>(count));
}

void SamplerChain::keep_typical(const Kernels& kernels, double mass, double min_keep) {
    weigh(kernels);
    const double mean = mean_shifted();
    keys_.resize(logits_.size());
    for (size_t i = 0; i < keys_.size(); i++) keys_[i] = std::abs(shifted(i) - mean);
    num_ranked_ = 0;
    keep_mass(kernels, mass, min_keep);
}

void SamplerChain::keep_share(double share, double min_keep) {
    largest_ = *std::max_element(logits_.begin(), logits_.end());
    const double lowest = std::log(share);
    size_t count = 0;
    for (size_t i = 0; i < logits_.size(); i++) count += shifted(i) >= lowest;
    if (static_cast<double>(count) < min_keep) return keep_best(min_keep);
    keep_if([&](size_t i) { return shifted(i) >= lowest; });
}

void SamplerChain::drop_top(const Kernels& kernels, const RowSampling& row, const float* values) {
    const double probability = values[0], threshold = values[1], min_keep = values[2];
    if (uniform(row.seed, row.position, row.sample_index, 1) >= probability) return;
    weigh(kernels);
    size_t count = 0;
    for (float w : weights_) count += static_cast<double>(w) >= threshold * total_;
    if (count < 2 || static_cast<double>(weights_.size() - (count - 1)) < min_keep) return;
    rank_by_logit();
    rank_until(count - 1);
    keep_ranked(count - 1, weights_.size());
}

void SamplerChain::divide(const Kernels& kernels, double temperature, double range, double exponent) {
    const auto t = static_cast<float>(dynamic(kernels, temperature, range, exponent));
    for (float& l : logits_) l = bounded(l / t);
}

// The temperature by the entropy of the candidates, in [temperature - range, temperature + range].
double SamplerChain::dynamic(const Kernels& kernels, double temperature, double range, double exponent) {
    if (range == 0.0 || logits_.size() < 2) return temperature;
    weigh(kernels);
    const double entropy = std::log(total_) - mean_shifted();
    const double share = std::clamp(entropy / std::log(static_cast<double>(logits_.size())), 0.0, 1.0);
    const double low = std::max(temperature - range, 0.0), high = temperature + range;
    return std::max(low + (high - low) * std::pow(share, exponent), kMinTemperature);
}

void SamplerChain::keep_zipf(double mu) {
    rank_by_logit();
    const size_t count = std::min(kMirostatM, logits_.size());
    rank_until(count);
    double best[kMirostatM];
    for (size_t i = 0; i < count; i++) best[i] = -keys_[order_[i]];
    keep_best(zipf_count(best, count, mu, vocab_size_));
}

void SamplerChain::keep_unsurprising(const Kernels& kernels, double mu) {
    weigh(kernels);
    const double log_total = std::log(total_);
    const auto is_kept = [&](size_t i) { return (log_total - shifted(i)) / kLn2 <= mu; };
    bool keeps_any = false;
    for (size_t i = 0; i < logits_.size() && !keeps_any; i++) keeps_any = is_kept(i);
    if (keeps_any) return keep_if(is_kept);
    keep_best(1.0);
}

// Logits that are the larger the nearer a candidate's probability is to the wanted one.
void SamplerChain::favour_near(const Kernels& kernels, double wanted) {
    weigh(kernels);
    shares_.resize(logits_.size());
    for (size_t i = 0; i < logits_.size(); i++) {
        shares_[i] = static_cast<double>(weights_[i]) / total_;
        const double away = std::abs(shares_[i] - wanted) / kAdaptiveWidth;
        logits_[i] = static_cast<float>(kAdaptivePeak - kAdaptiveSharpness * away * away / (1.0 + away));
    }
}

// The first candidate whose running sum exceeds u times the total.
int SamplerChain::draw(const Kernels& kernels, const RowSampling& row) {
    weigh(kernels);
    const double threshold = uniform(row.seed, row.position, row.sample_index, 0) * total_;
    double sum = 0.0;
    int last = 0;
    for (size_t i = 0; i < weights_.size(); i++) {
        if (weights_[i] > 0.0f) last = static_cast<int>(i);
        sum += static_cast<double>(weights_[i]);
        if (sum > threshold) return static_cast<int>(i);
    }
    return last;
}

float* SamplerChain::find(int id) {
    const auto at = std::lower_bound(ids_.begin(), ids_.end(), id);
    return at != ids_.end() && *at == id ? &logits_[at - ids_.begin()] : nullptr;
}

void SamplerChain::weigh(const Kernels& kernels) {
    const auto count = static_cast<int>(logits_.size());
    weights_.resize(logits_.size());
    largest_ = kernels.max_value(logits_.data(), count);
    kernels.exp_weights(logits_.data(), largest_, 1.0f, count, weights_.data());
    total_ = 0.0;
    for (float w : weights_) total_ += static_cast<double>(w);
}

// The weighted mean of the logarithms of the weights.
double SamplerChain::mean_shifted() const {
    double sum = 0.0;
    for (size_t i = 0; i < weights_.size(); i++) sum += static_cast<double>(weights_[i]) * shifted(i);
    return sum / total_;
}

void SamplerChain::rank_by_logit() {
    keys_.resize(logits_.size());
    for (size_t i = 0; i < keys_.size(); i++) keys_[i] = -static_cast<double>(logits_[i]);
    num_ranked_ = 0;
}

// Puts the first `count` of order_ in order.
void SamplerChain::rank_until(size_t count) {
    if (num_ranked_ == 0) {
        order_.resize(keys_.size());
        std::iota(order_.begin(), order_.end(), 0);
    }
    if (count <= num_ranked_) return;
    const auto precedes = [&](int a, int b) { return keys_[a] < keys_[b] || (keys_[a] == keys_[b] && a < b); };
    const auto first = order_.begin() + static_cast<std::ptrdiff_t>(num_ranked_);
    const auto end = order_.begin() + static_cast<std::ptrdiff_t>(std::min(count, order_.size()));
    if (end != order_.end()) std::nth_element(first, end, order_.end(), precedes);
    std::sort(first, end, precedes);
    num_ranked_ = static_cast<size_t>(end - order_.begin());
}

// Keeps the shortest run of candidates in the order of keys_ that reaches `mass` of all, and at least min_keep.
void SamplerChain::keep_mass(const Kernels& kernels, double mass, double min_keep) {
    weigh(kernels);
    size_t count = 0;
    double sum = 0.0;
    while (count < weights_.size()) {
        if (count == num_ranked_) rank_until(std::max(kFirstRanks, 4 * num_ranked_));
        sum += static_cast<double>(weights_[order_[count++]]);
        if (sum >= mass * total_ && static_cast<double>(count) >= min_keep) break;
    }
    keep_ranked(0, count);
}

// Keeps the candidates at [first, end) of order_.
void SamplerChain::keep_ranked(size_t first, size_t end) {
    kept_.assign(logits_.size(), 0);
    for (size_t i = first; i < end; i++) kept_[order_[i]] = 1;
    keep_if([&](size_t i) { return kept_[i] != 0; });
}

// Where none is to be kept, all are: something must be left to choose.
template <class Predicate>
void SamplerChain::keep_if(Predicate predicate) {
    size_t count = 0;
    for (size_t i = 0; i < ids_.size(); i++) {
        if (!predicate(i)) continue;
        ids_[count] = ids_[i];
        logits_[count++] = logits_[i];
    }
    if (count == 0) return;
    ids_.resize(count);
    logits_.resize(count);
}

}  // namespace tuili
