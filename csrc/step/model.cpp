#include "step/model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "step/step.h"

namespace tuili {

Model::Model(const ModelSpec& spec, const TensorReader& read_tensors, const std::vector<RopeFrequencies>& ropes,
             const Kernels& kernels, int num_threads)
    : spec_(spec),
      kernels_(kernels),
      pool_(num_threads),
      weights_(spec_, read_tensors, ropes, pool_),
      workspace_(spec_, weights_, kernels_, num_threads) {}

void Model::allocate_cache(CacheFormat format, int block_size, const std::vector<int>& num_blocks) {
    const std::lock_guard lock(mutex_);
    cache_ = KvCache();  // the old one goes before the new one comes
    cache_ = KvCache(spec_, format, block_size, num_blocks);
}

void Model::give_back_blocks(int group, const std::vector<int>& blocks) {
    const std::lock_guard lock(mutex_);
    if (group < 0 || group >= spec_.num_cache_groups || !cache_.is_allocated())
        throw std::invalid_argument("there is no cache group " + std::to_string(group));
    for (size_t i = 0; i < blocks.size();) {
        const int first = blocks[i];
        int last = first;
        while (i < blocks.size() && blocks[i] == last) i++, last++;  // a run, which shares no page with others inside
        if (first < 0 || last > cache_.num_blocks(group)) throw std::invalid_argument("blocks are out of range");
        cache_.give_back_blocks(group, first, last);
    }
}

void Model::execute(const BatchInput& batch, const StepOutput& output) {
    const std::lock_guard lock(mutex_);
    check_batch(batch, spec_, cache_);
    prepare(batch);
    Step step(spec_, weights_, kernels_, batch, output, cache_, workspace_);
    pool_.run([&](Worker& worker) { step.run(worker); });
    remember_choices(batch, output);
}

void Model::sample(const float* logits, int num_rows, const SamplingInput& sampling, int32_t* ids,
                   float* sampler_state) {
    const std::lock_guard lock(mutex_);
    check_sampling(sampling, num_rows, spec_.vocab_size);
    workspace_.needs_logits.assign(num_rows, 1);
    workspace_.reserve_head(workspace_.head_rows(num_rows));
    pool_.run([&](Worker& worker) {
        worker.stage(num_rows, [&](int row) {
            WorkerScratch& scratch = workspace_.workers[worker.index];
            const size_t vocab_size = spec_.vocab_size;
            std::memcpy(scratch.adjusted.data(), logits + row * vocab_size, vocab_size * sizeof(float));
            const RowSampling params = row_sampling(sampling, row, spec_.vocab_size);
            const Choice choice =
                scratch.sampler.choose(kernels_, params, scratch.adjusted.data(), nullptr, spec_.vocab_size);
            ids[row] = choice.id;
            sampler_state[row] = choice.sampler_state;
        });
    });
}

void Model::prepare(const BatchInput& batch) {
    resolve_input_ids(batch);
    weights_.extend_ropes(1 + *std::max_element(batch.positions, batch.positions + batch.num_tokens), pool_);
    workspace_.reserve_tokens(batch.num_tokens);
    workspace_.plan_attention(batch, spec_, cache_.block_size());
    workspace_.needs_logits.resize(batch.num_rows);
    workspace_.logit_places.resize(batch.num_rows);
    workspace_.masks.resize(batch.num_rows);
    size_t num_wanted = 0;
    for (int row = 0; row < batch.num_rows; row++) {
        const bool is_bare = batch.targets[row] < 0 && batch.num_logprobs[row] < 0 && !wants_logits(batch, row);
        const RowSampling sampling = row_sampling(batch.sampling, row, spec_.vocab_size);
        workspace_.logit_places[row] = num_wanted;
        num_wanted += wants_logits(batch, row);
        workspace_.needs_logits[row] = !(is_bare && sampling.is_plain_greedy());
        workspace_.masks[row] = is_bare ? sampling.allow_mask : nullptr;
    }
    if (batch.num_rows > 0) workspace_.reserve_head(workspace_.head_rows(batch.num_rows));
}

void Model::resolve_input_ids(const BatchInput& batch) {
    workspace_.input_ids.assign(batch.input_ids, batch.input_ids + batch.num_tokens);
    for (int s = 0; s < batch.num_sequences; s++) {
        if (!batch.carry[s]) continue;
        const auto slot = static_cast<size_t>(batch.slots[s]);
        const int32_t token = slot < last_tokens_.size() ? last_tokens_[slot] : -1;
        if (token < 0) throw std::invalid_argument("carry: slot " + std::to_string(slot) + " has sampled nothing yet");
        workspace_.input_ids[batch.query_start[s + 1] - 1] = token;
    }
}

// What `carry` refers to: a slot's choice at the last token of its sequence.
void Model::remember_choices(const BatchInput& batch, const StepOutput& output) {
    int s = 0;
    for (int row = 0; row < batch.num_rows; row++) {
        while (batch.sample_rows[row] >= batch.query_start[s + 1]) s++;
        if (batch.targets[row] >= 0 || batch.sample_rows[row] != batch.query_start[s + 1] - 1) continue;
        const auto slot = static_cast<size_t>(batch.slots[s]);
        if (slot >= last_tokens_.size()) last_tokens_.resize(slot + 1, -1);
        last_tokens_[slot] = output.token_ids[row];
    }
}

}  // namespace tuili
