#include "step/attention_plan.h"

#include <algorithm>
#include <cstdint>

#include "kernels/kernels.h"

namespace tuili {
namespace {

constexpr int64_t kUnitsPerWorker = 4;  // a task that is more than its share of so many would keep others waiting

int64_t work_of(const AttentionTask& task) { return int64_t{task.num_queries} * task.num_chunks(); }

}  // namespace

void AttentionPlan::build(const BatchInput& batch, int group, int window, int block_size,
                          const AttentionLimits& limits) {
    parts_.clear();
    members_.clear();
    pieces_.clear();
    num_states_ = 0;
    num_kv_heads_ = limits.num_kv_heads;
    cut_tasks(batch, window, limits.task_queries);
    int64_t work = 0;
    for (const AttentionTask& task : tasks_) work += work_of(task) * num_kv_heads_;
    auto is_large = [&](const AttentionTask& task) {
        return limits.num_workers > 1 && work_of(task) * kUnitsPerWorker * limits.num_workers > work;
    };
    const int32_t* tables = batch.block_tables + static_cast<size_t>(group) * batch.num_sequences * batch.max_blocks;
    if (window == 0 && has_own_keys_) share_chunks(batch, tables, block_size, limits.shared_queries);
    for (size_t i = 0; i < tasks_.size(); i++) {
        AttentionTask& task = tasks_[i];
        const auto index = static_cast<int>(i);
        if (task.num_chunks() > 1 && is_large(task)) split(task);
        if (task.first_piece < 0) {
            add_part(&index, 1, -1);
            continue;
        }
        for (int chunk = task.first_chunk; chunk < task.end_chunk; chunk++) {
            if (piece(task, chunk).part < 0) add_part(&index, 1, chunk);
        }
    }
    if (tasks_.size() * num_kv_heads_ > num_pending_) {
        num_pending_ = tasks_.size() * num_kv_heads_;
        pending_ = std::make_unique<std::atomic<int>[]>(num_pending_);
    }
    for (size_t i = 0; i < tasks_.size() * num_kv_heads_; i++) pending_[i] = tasks_[i / num_kv_heads_].num_chunks();
}

void AttentionPlan::cut_tasks(const BatchInput& batch, int window, int task_queries) {
    tasks_.clear();
    for (int s = 0; s < batch.num_sequences; s++) {
        const int end = batch.query_start[s + 1];
        for (int token = batch.query_start[s]; token < end; token += task_queries) {
            const int count = std::min(task_queries, end - token), position = batch.positions[token];
            const int oldest = window > 0 ? std::max(position - window + 1, 0) : 0;
            const int end_chunk = (position + count - 1) / kAttentionChunk + 1;
            tasks_.push_back({s, token, count, position, oldest / kAttentionChunk, end_chunk});
        }
    }
    has_own_keys_ = static_cast<int>(tasks_.size()) == batch.num_sequences;
}

// Finds chunks that several tasks have in the same blocks: tasks are sorted by their tables, so that those which begin
// alike are neighbours.
void AttentionPlan::share_chunks(const BatchInput& batch, const int32_t* tables, int block_size, int shared_queries) {
    const int chunk_blocks = kAttentionChunk / block_size;
    auto table = [&](int task) { return tables + static_cast<size_t>(tasks_[task].sequence) * batch.max_blocks; };
    auto num_old_blocks = [&](int task) { return tasks_[task].first_position / kAttentionChunk * chunk_blocks; };
    candidates_.clear();
    for (int i = 0; i < static_cast<int>(tasks_.size()); i++) {
        if (tasks_[i].first_position >= kAttentionChunk) candidates_.push_back(i);
    }
    if (candidates_.size() < 2) return;
    std::sort(candidates_.begin(), candidates_.end(), [&](int a, int b) {
        return std::lexicographical_compare(table(a), table(a) + num_old_blocks(a), table(b),
                                            table(b) + num_old_blocks(b));
    });
    common_.assign(candidates_.size(), 0);  // chunks that a candidate has in common with the one before it
    for (size_t i = 1; i < candidates_.size(); i++) {
        const int a = candidates_[i - 1], b = candidates_[i];
        const int limit = std::min(num_old_blocks(a), num_old_blocks(b));
        const auto equal = std::mismatch(table(a), table(a) + limit, table(b)).first - table(a);
        common_[i] = static_cast<int>(equal) / chunk_blocks;
    }
    const int longest = *std::max_element(common_.begin(), common_.end());
    for (int chunk = 0; chunk < longest; chunk++) {
        for (size_t i = 0; i < candidates_.size();) {
            run_.assign(1, candidates_[i++]);
            while (i < candidates_.size() && common_[i] > chunk) run_.push_back(candidates_[i++]);
            if (run_.size() > 1) share_run(run_, chunk, shared_queries);
        }
    }
}

void AttentionPlan::share_run(const std::vector<int>& run, int chunk, int shared_queries) {
    for (int index : run) split(tasks_[index]);
    for (size_t begin = 0, end = 0; begin < run.size(); begin = end) {
        int num_queries = 0;
        while (end < run.size() && (end == begin || num_queries + tasks_[run[end]].num_queries <= shared_queries)) {
            num_queries += tasks_[run[end++]].num_queries;
        }
        add_part(run.data() + begin, static_cast<int>(end - begin), chunk);
    }
}

// Gives every chunk of the task a part of its own, unless it has.
void AttentionPlan::split(AttentionTask& task) {
    if (task.first_piece >= 0) return;
    task.first_piece = static_cast<int>(pieces_.size());
    pieces_.resize(pieces_.size() + task.num_chunks(), {-1, 0});
}

void AttentionPlan::add_part(const int* members, int num_members, int chunk) {
    AttentionPart part{static_cast<int>(members_.size()), num_members, 0, chunk, num_states_};
    for (int i = 0; i < num_members; i++) {
        const AttentionTask& task = tasks_[members[i]];
        members_.push_back(members[i]);
        if (chunk >= 0) {
            pieces_[task.first_piece + chunk - task.first_chunk] = {static_cast<int>(parts_.size()), part.num_queries};
        }
        part.num_queries += task.num_queries;
    }
    if (chunk >= 0) num_states_ += part.num_queries;
    parts_.push_back(part);
}

bool AttentionPlan::finishes(int task, int kv_head) {
    std::atomic<int>& pending = pending_[static_cast<size_t>(task) * num_kv_heads_ + kv_head];
    if (pending.fetch_sub(1, std::memory_order_acq_rel) > 1) return false;
    pending.store(tasks_[task].num_chunks(), std::memory_order_relaxed);
    return true;
}

}  // namespace tuili
