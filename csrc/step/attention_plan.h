// How the attention of a step is cut into parts that workers take. Knows tokens, block tables and chunks; not layers,
// heads or arithmetic. How it is cut never shows in the result.
#pragma once
#include <atomic>
#include <memory>
#include <vector>

#include "model/batch.h"

namespace tuili {

// A run of consecutive queries of one sequence that attend together.
struct AttentionTask {
    int sequence;
    int first_token;
    int num_queries;
    int first_position;
    int first_chunk, end_chunk;  // that some query sees
    int first_piece = -1;        // index of first_chunk's piece, the others follow; -1: one part does all chunks

    int num_chunks() const { return end_chunk - first_chunk; }
    int last_position() const { return first_position + num_queries - 1; }
};

// Where the result of one chunk for one task is, among the states of its part.
struct AttentionPiece {
    int part;
    int first_query;
};

// Either all chunks of one task, or one chunk for the tasks that have the same blocks there.
struct AttentionPart {
    int first_member, num_members;  // among AttentionPlan::members
    int num_queries;                // of all members
    int chunk;                      // -1: all
    int first_state;                // queries of the parts before it that have states
};

struct AttentionLimits {
    int task_queries;    // of a task
    int shared_queries;  // of a part of several tasks
    int num_kv_heads;    // the most of any layer
    int num_workers;
};

// One cache group's part of a step.
class AttentionPlan {
  public:
    // `window` is the group's, 0 for none.
    void build(const BatchInput& batch, int group, int window, int block_size, const AttentionLimits& limits);

    const std::vector<AttentionTask>& tasks() const { return tasks_; }
    const std::vector<AttentionPart>& parts() const { return parts_; }
    const AttentionTask& member(const AttentionPart& part, int i) const {
        return tasks_[members_[part.first_member + i]];
    }
    int member_index(const AttentionPart& part, int i) const { return members_[part.first_member + i]; }
    const AttentionPiece& piece(const AttentionTask& task, int chunk) const {
        return pieces_[task.first_piece + chunk - task.first_chunk];
    }
    // Queries, over all parts, whose states must be kept until their task's last part is done.
    int num_states() const { return num_states_; }

    // No task reads a key that belongs to another task's tokens of this step.
    bool has_own_keys() const { return has_own_keys_; }

    // Counts a finished part of a task for one kv head; true for the last, after which counting starts anew.
    bool finishes(int task, int kv_head);

  private:
    void cut_tasks(const BatchInput& batch, int window, int task_queries);
    void share_chunks(const BatchInput& batch, const int32_t* tables, int block_size, int shared_queries);
    void share_run(const std::vector<int>& run, int chunk, int shared_queries);
    void add_part(const int* members, int num_members, int chunk);
    void split(AttentionTask& task);

    std::vector<AttentionTask> tasks_;
    std::vector<AttentionPart> parts_;
    std::vector<int> members_;
    std::vector<AttentionPiece> pieces_;
    std::vector<int> candidates_, common_, run_;   // while sharing is looked for
    std::unique_ptr<std::atomic<int>[]> pending_;  // [tasks][kv heads]
    size_t num_pending_ = 0;
    int num_kv_heads_ = 0;
    int num_states_ = 0;
    bool has_own_keys_ = true;
};

}  // namespace tuili
