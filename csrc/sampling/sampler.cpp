#include "sampling/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

namespace tuili {
namespace {

constexpr int kBlock = 256;  // ids summed together

void apply_penalties(const RowSampling& row, float* logits) {
    for (int i = 0; i < row.num_history; i++) {
        float& l = logits[row.history_ids[i]];
        if (l > kLowest) l = penalized(row, l, row.history_counts[i]);
    }
}

int first_largest(const Kernels& kernels, const float* logits, const float* block_max, int n) {
    const int block = kernels.argmax(block_max, (n + kLogitBlock - 1) / kLogitBlock) * kLogitBlock;
    return block + kernels.argmax(logits + block, std::min(kLogitBlock, n - block));
}

}  // namespace

void mask_logits(uint32_t word, float* logits, int n) {
    for (uint32_t hidden = ~word; hidden != 0; hidden &= hidden - 1) {
        const int i = std::countr_zero(hidden);
        if (i < n) logits[i] = kLowest;
    }
}

double log_sum_exp(const Kernels& kernels, const float* logits, int n) {
    const float largest = kernels.max_value(logits, n);
    return static_cast<double>(largest) + std::log(kernels.sum_exp(logits, largest, n));
}

Choice Sampler::choose(const Kernels& kernels, const RowSampling& row, float* logits, const float* block_max, int n) {
    const int num_blocks = (n + kLogitBlock - 1) / kLogitBlock;
    for (int i = 0; i < row.num_bias; i++) logits[row.bias_ids[i]] += row.bias_values[i];
    for (int i = 0; row.allow_mask != nullptr && i < num_blocks; i++) {
        mask_logits(row.allow_mask[i], logits + i * kLogitBlock, n - i * kLogitBlock);
    }
    if (row.num_chain == 0) apply_penalties(row, logits);
    if (block_max == nullptr || row.changes_logits()) {
        block_max_.resize(num_blocks);
        kernels.block_max(logits, n, block_max_.data());
        block_max = block_max_.data();
    }
    const Logits all{logits, block_max, n, kernels.max_value(block_max, num_blocks)};
    if (!std::isfinite(all.largest)) return {first_largest(kernels, logits, block_max, n)};
    if (row.num_chain > 0) return chain_.choose(kernels, row, logits, n);
    return {choose_by_default(kernels, row, all)};
}

int Sampler::choose_by_default(const Kernels& kernels, const RowSampling& row, const Logits& logits) {
    if (row.temperature == 0.0f) return first_largest(kernels, logits.values, logits.block_max, logits.size);
    const double u = uniform(row.seed, row.position, row.sample_index, 0);
    const bool limits_count = row.top_k > 0 && row.top_k < logits.size;
    if (!limits_count && row.top_p >= 1.0f && row.min_p <= 0.0f) return draw(kernels, row, logits, u);
    const bool limits_weight = limits_count || row.min_p > 0.0f;
    double total = limits_weight ? collect(kernels, row, logits) : collect_nucleus(kernels, row, logits);
    total = keep_nucleus(row.top_p, total);
    std::sort(candidates_.begin(), candidates_.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    double sum = 0.0;
    for (const auto& c : candidates_) {
        sum += static_cast<double>(c.weight);
        if (sum > u * total) return c.id;
    }
    if (!candidates_.empty()) return candidates_.back().id;
    return first_largest(kernels, logits.values, logits.block_max, logits.size);
}

// Fills block_sums_ with the weight of every 256 ids and returns the total.
double Sampler::sum_blocks(const Kernels& kernels, const RowSampling& row, const Logits& logits) {
    block_sums_.clear();
    double total = 0.0;
    for (int base = 0; base < logits.size; base += kBlock) {
        const int count = std::min(kBlock, logits.size - base);
        block_sums_.push_back(kernels.sum_weights(logits.values + base, logits.largest, row.temperature, count));
        total += block_sums_.back();
    }
    return total;
}

// The first id whose running sum exceeds u times the total; blocks are skipped by their sums.
int Sampler::draw(const Kernels& kernels, const RowSampling& row, const Logits& logits, double u) {
    const double total = sum_blocks(kernels, row, logits);
    // The block in which the threshold falls, or, should rounding leave it at the very end, the last that weighs
    // anything.
    double before = 0.0, sum = 0.0;
    size_t chosen = 0;
    for (size_t block = 0; block < block_sums_.size() && !(sum > u * total); block++) {
        if (block_sums_[block] == 0.0) continue;
        chosen = block;
        before = sum;
        sum += block_sums_[block];
    }
    const int base = static_cast<int>(chosen) * kBlock, count = std::min(kBlock, logits.size - base);
    weights_.resize(count);
    kernels.exp_weights(logits.values + base, logits.largest, row.temperature, count, weights_.data());
    int last = 0;
    for (int i = 0; i < count; i++) {
        if (weights_[i] > 0.0f) last = i;
        before += static_cast<double>(weights_[i]);
        if (before > u * total) return base + i;
    }
    return base + last;
}

// The k-th largest of the blocks' maxima: no more than the k-th largest logit.
float Sampler::block_rank(const Logits& logits, int k) {
    if (k > logits.num_blocks()) return kLowest;
    weights_.assign(logits.block_max, logits.block_max + logits.num_blocks());
    for (float& w : weights_) w = std::isnan(w) ? kLowest : w;
    std::nth_element(weights_.begin(), weights_.begin() + (k - 1), weights_.end(), std::greater<>());
    return weights_[k - 1];
}

// Fills candidates_, in ascending order of ids, with all ids whose logits are at least `floor`, and others whose weight
// is above zero and at least min_weight; returns the weight of all.
double Sampler::gather(const Kernels& kernels, const RowSampling& row, const Logits& logits, float floor,
                       float min_weight) {
    // Logits this close to the floor may share its weight after rounding.
    const float slack = 1e-3f * row.temperature + 1e-5f * std::max(std::abs(logits.largest), std::abs(floor));
    const float lowest = floor - slack;
    candidates_.clear();
    weights_.clear();
    for (int block = 0; block < logits.num_blocks(); block++) {
        if (logits.block_max[block] < lowest) continue;
        const int end = std::min((block + 1) * kLogitBlock, logits.size);
        for (int id = block * kLogitBlock; id < end; id++) {
            if (!(logits.values[id] >= lowest)) continue;
            candidates_.push_back({0.0f, id});
            weights_.push_back(logits.values[id]);
        }
    }
    kernels.exp_weights(weights_.data(), logits.largest, row.temperature, static_cast<int>(weights_.size()),
                        weights_.data());
    size_t count = 0;
    double total = 0.0;
    for (size_t i = 0; i < weights_.size(); i++) {
        if (!(weights_[i] > 0.0f) || weights_[i] < min_weight) continue;
        candidates_[count++] = {weights_[i], candidates_[i].id};
        total += static_cast<double>(weights_[i]);
    }
    candidates_.resize(count);
    return total;
}

// Fills candidates_, best first, with what min_p and top_k leave, and returns their weight.
double Sampler::collect(const Kernels& kernels, const RowSampling& row, const Logits& logits) {
    const bool limits_count = row.top_k > 0 && row.top_k < logits.size;
    float floor = limits_count ? block_rank(logits, row.top_k) : kLowest;
    if (row.min_p > 0.0f) floor = std::max(floor, logits.largest + row.temperature * std::log(row.min_p));
    double total = gather(kernels, row, logits, floor, row.min_p);
    if (!limits_count && row.top_p >= 1.0f) return total;
    std::sort(candidates_.begin(), candidates_.end(), precedes);
    if (!limits_count || candidates_.size() <= static_cast<size_t>(row.top_k)) return total;
    candidates_.resize(row.top_k);
    total = 0.0;
    for (const auto& c : candidates_) total += static_cast<double>(c.weight);
    return total;
}

// Fills candidates_, best first, with a superset of the nucleus: the ids above a weight that is lowered until enough of
// the total lies above it. Returns the total of all ids.
double Sampler::collect_nucleus(const Kernels& kernels, const RowSampling& row, const Logits& logits) {
    const double total = sum_blocks(kernels, row, logits), wanted = total * static_cast<double>(row.top_p);
    for (float weight = 0x1p-5f;; weight = weight < 0x1p-100f ? 0.0f : weight * 0x1p-5f) {
        const float floor = weight == 0.0f ? kLowest : logits.largest + row.temperature * std::log(weight);
        if (gather(kernels, row, logits, floor, weight) >= wanted || weight == 0.0f) break;
    }
    std::sort(candidates_.begin(), candidates_.end(), precedes);
    return total;
}

// Cuts candidates_ to the shortest prefix that reaches top_p of `total`; returns its weight.
double Sampler::keep_nucleus(float top_p, double total) {
    if (top_p >= 1.0f) return total;
    double sum = 0.0;
    size_t count = 0;
    while (count < candidates_.size()) {
        sum += static_cast<double>(candidates_[count++].weight);
        if (sum >= total * static_cast<double>(top_p)) break;
    }
    candidates_.resize(count);
    return sum;
}

void Sampler::best(const Kernels& kernels, const float* logits, int n, int k, int32_t* ids) {
    candidates_.clear();
    k = std::min(k, n);
    if (k == 0) return;
    float floor = kLowest;
    bool has_floor = false;
    for (int base = 0; base < n; base += kBlock) {
        const int end = std::min(base + kBlock, n);
        if (has_floor && kernels.count_greater(logits + base, floor, end - base) == 0) continue;
        for (int i = base; i < end; i++) {
            const float logit = std::isnan(logits[i]) ? kLowest : logits[i];
            if (!has_floor || logit > floor) candidates_.push_back({logit, i});
        }
        if (candidates_.size() >= static_cast<size_t>(2 * k + kBlock) || end == n) {
            const size_t kept = std::min(candidates_.size(), static_cast<size_t>(k));
            std::nth_element(candidates_.begin(), candidates_.begin() + (kept - 1), candidates_.end(), precedes);
            candidates_.resize(kept);
            if (kept == static_cast<size_t>(k)) {
                floor = candidates_.back().weight;
                has_floor = true;
            }
        }
    }
    std::sort(candidates_.begin(), candidates_.end(), precedes);
    for (int i = 0; i < k; i++) ids[i] = candidates_[i].id;
}

}  // namespace tuili
