#include "model/batch.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace tuili {
namespace {

[[noreturn]] void refuse(const char* field, int index, int64_t value, const std::string& allowed) {
    throw std::invalid_argument(std::string(field) + "[" + std::to_string(index) + "] is " + std::to_string(value) +
                                ", allowed is " + allowed);
}

std::string range(int64_t low, int64_t end) {
    return std::string("[").append(std::to_string(low)).append(", ").append(std::to_string(end)).append(")");
}

void check_range(const char* field, const int32_t* values, int count, int64_t low, int64_t end) {
    for (int i = 0; i < count; i++) {
        if (values[i] < low || values[i] >= end) refuse(field, i, values[i], range(low, end));
    }
}

// start [count + 1] must rise from 0 to total.
void check_starts(const char* field, const int32_t* start, int count, int total) {
    if (start[0] != 0) refuse(field, 0, start[0], "0");
    for (int i = 0; i < count; i++) {
        if (start[i + 1] < start[i]) refuse(field, i + 1, start[i + 1], "at least " + std::to_string(start[i]));
    }
    if (start[count] != total) refuse(field, count, start[count], std::to_string(total));
}

void check_sequences(const BatchInput& b, const ModelSpec& spec) {
    check_starts("query_start", b.query_start, b.num_sequences, b.num_tokens);
    check_range("seq_lens", b.seq_lens, b.num_sequences, 1, int64_t{spec.max_model_len} + 1);
    for (int s = 0; s < b.num_sequences; s++) {
        const int first = b.query_start[s], end = b.query_start[s + 1];
        if (first == end) refuse("query_start", s + 1, end, "more than " + std::to_string(first));
        for (int t = first; t < end; t++) {
            const int position = b.seq_lens[s] - (end - t);
            if (position < 0 || b.positions[t] != position) {
                refuse("positions", t, b.positions[t], std::to_string(position) + " (seq_lens less what follows)");
            }
        }
    }
}

// Every block that a query of the sequence may look at must exist.
void check_tables(const BatchInput& b, const ModelSpec& spec, const KvCache& cache) {
    for (int group = 0; group < spec.num_cache_groups; group++) {
        const int window = cache_group_window(spec, group), num_blocks = cache.num_blocks(group);
        for (int s = 0; s < b.num_sequences; s++) {
            const int first_position = b.positions[b.query_start[s]];
            const int oldest = window > 0 ? std::max(first_position - window + 1, 0) : 0;
            const int last_block = (b.seq_lens[s] - 1) / cache.block_size();
            if (last_block >= b.max_blocks) refuse("block_tables: seq_lens", s, b.seq_lens[s], "what the tables hold");
            const int32_t* table = b.block_tables + (static_cast<size_t>(group) * b.num_sequences + s) * b.max_blocks;
            for (int i = oldest / cache.block_size(); i <= last_block; i++) {
                if (table[i] < 0 || table[i] >= num_blocks) refuse("block_tables", i, table[i], range(0, num_blocks));
            }
        }
    }
}

void check_cache_writes(const BatchInput& b, const ModelSpec& spec, const KvCache& cache) {
    for (int group = 0; group < spec.num_cache_groups; group++) {
        const int64_t num_slots = int64_t{cache.num_blocks(group)} * cache.block_size();
        const int32_t* slots = b.slot_mapping + static_cast<size_t>(group) * b.num_tokens;
        check_range("slot_mapping", slots, b.num_tokens, 0, num_slots);
    }
    for (int i = 0; i < b.num_copies; i++) {
        const int32_t* copy = b.block_copies + 3 * i;
        check_range("block_copies group", copy, 1, 0, spec.num_cache_groups);
        check_range("block_copies", copy + 1, 2, 0, cache.num_blocks(copy[0]));
    }
}

}  // namespace

void check_batch(const BatchInput& b, const ModelSpec& spec, const KvCache& cache) {
    constexpr int kMaxSlots = 1 << 20;
    if (!cache.is_allocated()) throw std::invalid_argument("the cache is not allocated");
    check_range("input_ids", b.input_ids, b.num_tokens, 0, spec.vocab_size);
    check_sequences(b, spec);
    check_tables(b, spec, cache);
    check_cache_writes(b, spec, cache);
    check_range("slots", b.slots, b.num_sequences, 0, kMaxSlots);
    check_range("sample_rows", b.sample_rows, b.num_rows, 0, b.num_tokens);
    for (int r = 1; r < b.num_rows; r++) {
        if (b.sample_rows[r] < b.sample_rows[r - 1]) refuse("sample_rows", r, b.sample_rows[r], "ascending");
    }
    check_range("targets", b.targets, b.num_rows, -1, spec.vocab_size);
    check_range("num_logprobs", b.num_logprobs, b.num_rows, -1, int64_t{spec.vocab_size} + 1);
    check_sampling(b.sampling, b.num_rows, spec.vocab_size);
}

void check_sampling(const SamplingInput& s, int num_rows, int vocab_size) {
    check_starts("history_start", s.history_start, num_rows, s.num_history);
    check_range("history_ids", s.history_ids, s.num_history, 0, vocab_size);
    check_starts("bias_start", s.bias_start, num_rows, s.num_bias);
    check_range("bias_ids", s.bias_ids, s.num_bias, 0, vocab_size);
    check_starts("chain_start", s.chain_start, num_rows, s.num_chain);
    check_range("chain_kinds", s.chain_kinds, s.num_chain, 0, static_cast<int64_t>(SamplerKind::kCount));
    check_starts("dry_start", s.dry_start, num_rows, s.num_dry);
    check_range("dry_ids", s.dry_ids, s.num_dry, 0, vocab_size);
    for (int r = 0; r < num_rows; r++) {
        if (!(s.temperature[r] >= 0.0f)) throw std::invalid_argument("temperature must be >= 0");
        if (!(s.repetition_penalty[r] > 0.0f)) throw std::invalid_argument("repetition_penalty must be > 0");
        if (s.top_k[r] < 0) refuse("top_k", r, s.top_k[r], "at least 0");
        if (!(s.top_p[r] > 0.0f)) throw std::invalid_argument("top_p must be > 0");
    }
}

}  // namespace tuili
