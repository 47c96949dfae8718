// The head part of a step: logits of the sampled rows in bounded tiles, logprobs and the choice of tokens.
#include <cmath>
#include <cstring>

#include "step/step.h"

namespace tuili {

static_assert(kPanelCols == kLogitBlock);  // the sampler skips whole panels

void Step::run_head(Worker& worker) {
    const int tile = work_.head_rows(batch_.num_rows);
    for (int first = 0; first < batch_.num_rows; first += tile) {
        const int num_rows = std::min(tile, batch_.num_rows - first);
        normalize_sampled(worker, first, num_rows);
        if (spec_.projects_embeddings()) project_sampled(worker, num_rows);
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
        Activations input = (spec_.projects_embeddings() ? work_.unprojected : work_.head).view(spec_.hidden_size);
        kernels_.quantize_row(x, nullptr, input, index);
    });
}

// The head's input where embeddings are narrower than the model.
void Step::project_sampled(Worker& worker, int num_rows) {
    Activations input = work_.unprojected.view(spec_.hidden_size);
    input.num_rows = num_rows;
    auto row = [&](int index) { return work_.projected.data() + static_cast<size_t>(index) * work_.hidden_stride; };
    multiply(worker, {&weights_.project_out()}, nullptr, input, [&](int, const PanelTile& tile) {
        kernels_.store_tile(tile, row(tile.row) + tile.panel * kPanelCols, work_.hidden_stride);
    });
    Activations head = work_.head.view(spec_.embedding_size);
    worker.stage(num_rows, [&](int index) { kernels_.quantize_row(row(index), nullptr, head, index); });
}

void Step::project_logits(Worker& worker, int first_row, int num_rows) {
    Activations head = work_.head.view(spec_.embedding_size);
    head.num_rows = num_rows;
    multiply(worker, {&weights_.head()}, nullptr, head,
             [&](int, const PanelTile& tile) { finish_logits(scratch(worker), tile, first_row); });
}

// Stores what rows need of a panel's logits: their largest, and all of them where tokens are drawn or reported.
void Step::finish_logits(WorkerScratch& scratch, const PanelTile& tile, int first_row) {
    float* values = scratch.logits.data();
    kernels_.logit_tile(tile, spec_.logit_scale, spec_.logit_softcap, values);
    for (int i = 0; i < tile.num_rows; i++) {
        const int index = tile.row + i, row = first_row + index;
        float* own = values + i * kPanelCols;
        if (work_.masks[row] != nullptr) mask_logits(work_.masks[row][tile.panel], own, tile.width);
        if (!work_.needs_logits[row]) continue;
        float* logits = work_.logits.data() + static_cast<size_t>(index) * work_.logit_stride;
        std::memcpy(logits + tile.panel * kPanelCols, own, tile.width * sizeof(float));
    }
    const size_t at = static_cast<size_t>(tile.row) * work_.panel_stride + tile.panel;
    kernels_.best_of_rows(values, tile.num_rows, tile.width, work_.panel_best.data() + at,
                          work_.panel_best_column.data() + at, work_.panel_stride);
}

const float* Step::panel_best(int index) const {
    return work_.panel_best.data() + static_cast<size_t>(index) * work_.panel_stride;
}

// The largest logit's id, of equals the lowest, from each panel's.
int Step::greedy_choice(int index) const {
    const int panel = kernels_.argmax(panel_best(index), weights_.head().weight.num_panels());
    return panel * kPanelCols + work_.panel_best_column.data()[static_cast<size_t>(index) * work_.panel_stride + panel];
}

void Step::finish_row(WorkerScratch& scratch, int row, int index) {
    const auto vocab_size = static_cast<size_t>(spec_.vocab_size);
    float* logits = work_.logits.data() + static_cast<size_t>(index) * work_.logit_stride;
    if (wants_logits(batch_, row)) {
        std::memcpy(output_.logits + work_.logit_places[row] * vocab_size, logits, vocab_size * sizeof(float));
    }
    const float largest = kernels_.max_value(panel_best(index), weights_.head().weight.num_panels());
    if (batch_.targets[row] >= 0) {
        output_.token_ids[row] = batch_.targets[row];
    } else if (std::isfinite(largest)) {
        output_.token_ids[row] = choose(scratch, row, index, logits);
    } else {  // nothing is allowed, or the logits are no numbers
        const bool is_void = work_.masks[row] != nullptr && largest < 0.0f;
        output_.token_ids[row] = is_void ? 0 : -1;
        return;
    }
    if (batch_.num_logprobs[row] >= 0) report_logprobs(scratch, row, logits, output_.token_ids[row]);
}

int Step::choose(WorkerScratch& scratch, int row, int index, float* logits) {
    if (!work_.needs_logits[row]) return greedy_choice(index);
    RowSampling sampling = row_sampling(batch_.sampling, row, spec_.vocab_size);
    if (work_.masks[row] != nullptr) sampling.allow_mask = nullptr;    // applied already
    if (batch_.num_logprobs[row] >= 0 && sampling.changes_logits()) {  // logprobs are of the raw logits
        std::memcpy(scratch.adjusted.data(), logits, spec_.vocab_size * sizeof(float));
        logits = scratch.adjusted.data();
    }
    const Choice choice = scratch.sampler.choose(kernels_, sampling, logits, panel_best(index), spec_.vocab_size);
    output_.sampler_state[row] = choice.sampler_state;
    return choice.id;
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
