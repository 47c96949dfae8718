// The head part of a step: logits of the sampled rows in bounded tiles, logprobs and the choice of tokens.
#include <cmath>
#include <cstring>

#include "step.h"

namespace tuili {

void Step::run_head(Worker& worker) {
    const int tile = work_.head_rows(batch_.num_rows);
    for (int first = 0; first < batch_.num_rows; first += tile) {
        const int num_rows = std::min(tile, batch_.num_rows - first);
        normalize_sampled(worker, first, num_rows);
        project_logits(worker, first, num_rows);
        worker.stage(num_rows, [&](int index) { finish_row(scratch(worker), first + index, index); });
    }
}

// Several rows may read the same token, so its residual row stays as it is.
void Step::normalize_sampled(Worker& worker, int first_row, int num_rows) {
    const size_t row_bytes = spec_.hidden_size * sizeof(float);
    worker.stage(num_rows, [&](int index) {
        const int row = first_row + index, token = batch_.sample_rows[row];
        WorkerScratch& own = scratch(worker);
        float* x = own.head_row.data();
        std::memcpy(x, x_row(token), row_bytes);
        finish_sublayer(own, x, y_row(token), spec_.layers.back(), weights_.layers().back().mlp_post_norm);
        if (spec_.final_norm) norm_row(x, weights_.final_norm(), x);
        if (output_.hidden != nullptr) {
            std::memcpy(output_.hidden + static_cast<size_t>(row) * spec_.hidden_size, x, row_bytes);
        }
        Activations head = work_.head.view(spec_.hidden_size);
        kernels_.quantize_row(x, head, index);
    });
}

void Step::project_logits(Worker& worker, int first_row, int num_rows) {
    Activations head = work_.head.view(spec_.hidden_size);
    head.num_rows = num_rows;
    multiply(worker, {&weights_.head()}, nullptr, head, [&](int, int panel, int begin, int end, float* values) {
        const int width = std::min(kPanelCols, spec_.vocab_size - panel * kPanelCols);
        const int count = (end - begin) * kPanelCols;
        if (spec_.logit_scale != 1.0f) kernels_.multiply(values, spec_.logit_scale, count);
        if (spec_.logit_softcap > 0.0f) kernels_.softcap(values, spec_.logit_softcap, count);
        for (int index = begin; index < end; index++, values += kPanelCols) {
            if (work_.needs_logits[first_row + index]) {
                float* logits = work_.logits.data() + static_cast<size_t>(index) * spec_.vocab_size;
                std::memcpy(logits + panel * kPanelCols, values, width * sizeof(float));
            } else {
                const size_t at = static_cast<size_t>(index) * weights_.head().weight.num_panels() + panel;
                const int best = kernels_.argmax(values, width);
                work_.panel_best.data()[at] = values[best];
                work_.panel_best_offset.data()[at] = static_cast<uint8_t>(best);
            }
        }
    });
}

// The largest logit's id, of equals the lowest, from each panel's.
int Step::greedy_choice(int index) const {
    const int num_panels = weights_.head().weight.num_panels();
    const size_t row = static_cast<size_t>(index) * num_panels;
    const int panel = kernels_.argmax(work_.panel_best.data() + row, num_panels);
    if (!std::isfinite(work_.panel_best.data()[row + panel])) return -1;
    return panel * kPanelCols + work_.panel_best_offset.data()[row + panel];
}

void Step::finish_row(WorkerScratch& scratch, int row, int index) {
    if (!work_.needs_logits[row]) {
        output_.token_ids[row] = greedy_choice(index);
        return;
    }
    const auto vocab_size = static_cast<size_t>(spec_.vocab_size);
    float* logits = work_.logits.data() + index * vocab_size;
    if (output_.logits != nullptr) {
        std::memcpy(output_.logits + row * vocab_size, logits, vocab_size * sizeof(float));
    }
    if (batch_.targets[row] < 0 && !std::isfinite(kernels_.max_value(logits, spec_.vocab_size))) {
        output_.token_ids[row] = -1;
        return;
    }
    const bool chooses = batch_.targets[row] < 0, wants_logprobs = batch_.num_logprobs[row] >= 0;
    const RowSampling sampling = row_sampling(batch_.sampling, row, spec_.vocab_size);
    int id = batch_.targets[row];
    if (chooses) {
        float* adjusted = logits;
        if (wants_logprobs && !sampling.is_plain_greedy()) {  // logprobs are of the raw logits
            adjusted = scratch.adjusted.data();
            std::memcpy(adjusted, logits, vocab_size * sizeof(float));
        }
        id = scratch.sampler.choose(kernels_, sampling, adjusted, spec_.vocab_size);
    }
    output_.token_ids[row] = id;
    if (wants_logprobs) report_logprobs(scratch, row, logits, id);
}

void Step::report_logprobs(WorkerScratch& scratch, int row, const float* logits, int id) {
    const double total = log_sum_exp(kernels_, logits, spec_.vocab_size);
    auto logprob = [&](int i) { return static_cast<float>(static_cast<double>(logits[i]) - total); };
    output_.logprobs[row] = logprob(id);
    output_.ranks[row] = 1 + kernels_.count_greater(logits, logits[id], spec_.vocab_size);
    const int k = std::min(batch_.num_logprobs[row], output_.max_logprobs);
    int32_t* ids = output_.top_ids + static_cast<size_t>(row) * output_.max_logprobs;
    float* logprobs = output_.top_logprobs + static_cast<size_t>(row) * output_.max_logprobs;
    scratch.sampler.best(kernels_, logits, spec_.vocab_size, k, ids);
    for (int i = 0; i < k; i++) logprobs[i] = logprob(ids[i]);
}

}  // namespace tuili
