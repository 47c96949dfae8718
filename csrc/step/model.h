// A loaded model: weights, cache, threads and scratch, and the three things it can do. Not thread safe.
// Knows no Python; the caller's arrays are read and written during a call and not kept.
#pragma once
#include <mutex>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "machine/thread_pool.h"
#include "model/batch.h"
#include "model/kv_cache.h"
#include "model/model_spec.h"
#include "step/workspace.h"
#include "weights/weights.h"

namespace tuili {

class Model {
  public:
    // Copies everything out of what `read_tensors` gives. Throws std::invalid_argument (see Weights) and
    // std::bad_alloc.
    Model(const ModelSpec& spec, const TensorReader& read_tensors, const std::vector<RopeFrequencies>& ropes,
          const Kernels& kernels, int num_threads);

    // Replaces the cache by an empty one of num_blocks[group] blocks. Throws std::bad_alloc; there is none then.
    void allocate_cache(CacheFormat format, int block_size, const std::vector<int>& num_blocks);

    // Gives the memory of blocks, in ascending order, back to the system; their content is lost. Throws
    // std::invalid_argument for a block or group that there is not.
    void give_back_blocks(int group, const std::vector<int>& blocks);

    // Runs one step. Throws std::invalid_argument when a value of the batch is out of range.
    void execute(const BatchInput& batch, const StepOutput& output);

    // Chooses ids [num_rows] from given logits [num_rows][vocab]; sampler_state [num_rows] as in StepOutput.
    void sample(const float* logits, int num_rows, const SamplingInput& sampling, int32_t* ids, float* sampler_state);

    const ModelSpec& spec() const { return spec_; }
    const char* isa() const { return kernels_.isa; }
    int num_threads() const { return pool_.size(); }
    size_t weight_bytes() const { return weights_.num_bytes(); }

  private:
    void prepare(const BatchInput& batch);
    void resolve_input_ids(const BatchInput& batch);
    void remember_choices(const BatchInput& batch, const StepOutput& output);

    ModelSpec spec_;
    const Kernels& kernels_;
    ThreadPool pool_;
    Weights weights_;
    KvCache cache_;
    Workspace workspace_;
    std::vector<int32_t> last_tokens_;  // by slot; -1: none sampled yet
    std::mutex mutex_;                  // calls come without the interpreter's lock
};

}  // namespace tuili
