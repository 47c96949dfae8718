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
        kernels_.quantize_row(x, nullptr, head, index);
    });
}

void Step::project_logits(Worker& worker, int first_row, int num_rows) {
    Activations head = work_.head.view(spec_.hidden_size);
    head.num_rows = num_rows;
    const size_t num_panels = weights_.head().weight.num_panels();
    multiply(worker, {&weights_.head()}, nullptr, head, [&](int, const PanelTile& tile) {
        float* values = scratch(worker).logits.data();
        kernels_.logit_tile(tile, spec_.logit_scale, spec_.logit_softcap, values);
        const size_t at = tile.row * num_panels + tile.panel;
        kernels_.best_of_rows(values, tile.num_rows, tile.width, work_.panel_best.data() + at,
                              work_.panel_best_column.data() + at, num_panels);
        for (int index = tile.row; index < tile.row + tile.num_rows; index++, values += kPanelCols) {
            if (!work_.needs_logits[first_row + index]) continue;
            float* logits = work_.logits.data() + static_cast<size_t>(index) * spec_.vocab_size;
            std::memcpy(logits + tile.panel * kPanelCols, values, tile.width * sizeof(float));
        }
    });
}

// The largest logit's id, of equals the lowest, from each panel's.
int Step::greedy_choice(int index) const {
    const int num_panels = weights_.head().weight.num_panels();
    const size_t row = static_cast<size_t>(index) * num_panels;
    const int panel = kernels_.argmax(work_.panel_best.data() + row, num_panels);
    if (!std::isfinite(work_.panel_best.data()[row + panel])) return -1;
    return panel * kPanelCols + work_.panel_best_column.data()[row + panel];
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
