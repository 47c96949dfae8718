#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tuili {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int kBlock = 256;  // ids looked at together where most are to be skipped

void apply_mask(const uint32_t* mask, float* logits, int n) {
    for (int base = 0; base < n; base += 32) {
        const uint32_t word = mask[base / 32];
        if (word == 0xFFFFFFFFu) continue;
        for (int i = base; i < std::min(base + 32, n); i++) {
            if ((word >> (i - base) & 1) == 0) logits[i] = kLowest;
        }
    }
}

void apply_penalties(const RowSampling& row, float* logits) {
    for (int i = 0; i < row.num_history; i++) {
        float& l = logits[row.history_ids[i]];
        const int count = row.history_counts[i];
        l = l > 0.0f ? l / row.repetition_penalty : l * row.repetition_penalty;
        l -= row.frequency_penalty * static_cast<float>(count) + (count > 0 ? row.presence_penalty : 0.0f);
    }
}

// In float64, in eight interleaved sums that need not wait for each other.
double sum_of(const float* weights, int n) {
    double sums[8] = {};
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        for (int j = 0; j < 8; j++) sums[j] += static_cast<double>(weights[i + j]);
    }
    for (; i < n; i++) sums[0] += static_cast<double>(weights[i]);
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace

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

RowSampling row_sampling(const SamplingInput& in, int r, int vocab_size) {
    const int history = in.history_start[r], bias = in.bias_start[r];
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
        .allow_mask = in.allow_mask == nullptr ? nullptr : in.allow_mask + r * mask_words,
    };
}

double log_sum_exp(const Kernels& kernels, const float* logits, int n) {
    const float largest = kernels.max_value(logits, n);
    return static_cast<double>(largest) + std::log(kernels.sum_exp(logits, largest, n));
}

int Sampler::choose(const Kernels& kernels, const RowSampling& row, float* logits, int n) {
    for (int i = 0; i < row.num_bias; i++) logits[row.bias_ids[i]] += row.bias_values[i];
    if (row.allow_mask != nullptr) apply_mask(row.allow_mask, logits, n);
    apply_penalties(row, logits);
    if (row.temperature == 0.0f) return kernels.argmax(logits, n);
    const float largest = kernels.max_value(logits, n);
    if (!std::isfinite(largest)) return kernels.argmax(logits, n);

    weights_.resize(n);
    kernels.exp_weights(logits, largest, row.temperature, n, weights_.data());
    if (row.min_p > 0.0f) {
        for (float& w : weights_) w = w < row.min_p ? 0.0f : w;
    }
    const double u = uniform(row.seed, row.position, row.sample_index, 0);
    if ((row.top_k == 0 || row.top_k >= n) && row.top_p >= 1.0f) {
        return draw(u);
    }
    const double total = keep_nucleus(row.top_p, collect(kernels, row, n));
    std::sort(candidates_.begin(), candidates_.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    double sum = 0.0;
    for (const auto& c : candidates_) {
        sum += static_cast<double>(c.weight);
        if (sum > u * total) return c.id;
    }
    return candidates_.back().id;
}

// The first id whose running sum exceeds u times the total; blocks are skipped by their sums.
int Sampler::draw(double u) {
    const auto n = static_cast<int>(weights_.size());
    block_sums_.clear();
    double total = 0.0;
    for (int base = 0; base < n; base += kBlock) {
        block_sums_.push_back(sum_of(weights_.data() + base, std::min(kBlock, n - base)));
        total += block_sums_.back();
    }
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
    int id = static_cast<int>(chosen) * kBlock;
    for (int i = id; i < std::min(static_cast<int>(chosen + 1) * kBlock, n); i++) {
        if (weights_[i] > 0.0f) id = i;
        before += static_cast<double>(weights_[i]);
        if (before > u * total) return i;
    }
    return id;
}

// Fills candidates_, best first, with the top k ids, or with a superset of the nucleus where all ids count: those above
// a threshold that is lowered until enough of them, or enough of the weight, lie above it. Returns the weight in the
// running for the nucleus.
double Sampler::collect(const Kernels& kernels, const RowSampling& row, int n) {
    const auto k = static_cast<size_t>(row.top_k > 0 && row.top_k < n ? row.top_k : 0);
    double total = k == 0 ? sum_of(weights_.data(), n) : 0.0;
    for (float threshold = 0x1p-5f;; threshold = threshold < 0x1p-100f ? 0.0f : threshold * 0x1p-5f) {
        const double mass = collect_above(kernels, threshold, n);
        if (threshold == 0.0f || (k > 0 ? candidates_.size() >= k : mass >= total * row.top_p)) break;
    }
    std::sort(candidates_.begin(), candidates_.end(), precedes);
    if (k == 0) return total;
    if (candidates_.size() > k) candidates_.resize(k);
    for (const auto& c : candidates_) total += static_cast<double>(c.weight);
    return total;
}

double Sampler::collect_above(const Kernels& kernels, float threshold, int n) {
    candidates_.clear();
    double mass = 0.0;
    for (int base = 0; base < n; base += kBlock) {
        const int end = std::min(base + kBlock, n);
        if (kernels.count_greater(weights_.data() + base, threshold, end - base) == 0) continue;
        for (int i = base; i < end; i++) {
            if (!(weights_[i] > threshold)) continue;
            candidates_.push_back({weights_[i], i});
            mass += static_cast<double>(weights_[i]);
        }
    }
    return mass;
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
