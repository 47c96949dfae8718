#include "thread_pool.h"

#include <chrono>

#include "platform.h"

namespace tuili {
namespace {

constexpr auto kIdleSpin = std::chrono::microseconds(100);
constexpr int kHintsPerClockRead = 32;

// A share packs epoch, first and last into 64 bits.
constexpr int kItemBits = 24;
constexpr uint64_t kItemMask = (uint64_t{1} << kItemBits) - 1;

uint64_t pack(uint16_t epoch, uint64_t first, uint64_t last) {
    return uint64_t{epoch} << (2 * kItemBits) | first << kItemBits | last;
}

// Waits until `flag` has reached `target` (modulo 2^32): spinning first, then asleep.
void wait_until(const std::atomic<uint32_t>& flag, uint32_t target) {
    auto reached = [target](uint32_t value) { return static_cast<int32_t>(value - target) >= 0; };
    uint32_t value = flag.load(std::memory_order_acquire);
    if (reached(value)) return;
    const auto deadline = std::chrono::steady_clock::now() + kIdleSpin;
    do {
        for (int i = 0; i < kHintsPerClockRead; i++) {
            spin_hint();
            value = flag.load(std::memory_order_acquire);
            if (reached(value)) return;
        }
    } while (std::chrono::steady_clock::now() < deadline);
    for (; !reached(value); value = flag.load(std::memory_order_acquire)) flag.wait(value, std::memory_order_acquire);
}

}  // namespace

// Claims an item of `owner`'s share, its own from the front and others' from the back; -1 when none is left.
// Whoever comes first sets a share up for the stage: all know its bounds, and the barrier before this stage
// guarantees that nobody still works on the last one.
int Worker::next_item(int owner, uint32_t num_items) {
    auto& share = pool_->team_->shares[owner].value;
    const auto size = static_cast<uint64_t>(pool_->size());
    const auto epoch = static_cast<uint16_t>(epoch_);
    uint64_t value = share.load(std::memory_order_relaxed);
    for (;;) {
        uint64_t first = (value >> kItemBits) & kItemMask;
        uint64_t last = value & kItemMask;
        if (static_cast<uint16_t>(value >> (2 * kItemBits)) != epoch) {
            first = num_items * static_cast<uint64_t>(owner) / size;
            last = num_items * (static_cast<uint64_t>(owner) + 1) / size;
        }
        const bool is_empty = first >= last;
        const bool is_own = owner == index;
        uint64_t item = is_own ? first : last - 1;
        if (is_empty && static_cast<uint16_t>(value >> (2 * kItemBits)) == epoch) return -1;
        if (!is_empty) (is_own ? first++ : last--);
        if (share.compare_exchange_weak(value, pack(epoch, first, last), std::memory_order_relaxed)) {
            return is_empty ? -1 : static_cast<int>(item);
        }
    }
}

void Worker::barrier() {
    auto& arrived = pool_->team_->arrived;
    auto& mine = arrived[index].value;
    mine.store(epoch_, std::memory_order_seq_cst);
    mine.notify_all();
    for (int other = 0; other < pool_->size(); other++) {
        if (other != index) wait_until(arrived[other].value, epoch_);
    }
}

ThreadPool::ThreadPool(int num_threads) : size_(num_threads) { caller_.pool_ = this; }

ThreadPool::~ThreadPool() {
    if (team_ == nullptr) return;
    if (process_id_ == process_id()) {
        stop();
    } else {
        team_.release();  // a forked child: these threads do not exist here and cannot be joined
    }
}

void ThreadPool::stop() {
    team_->quit.store(true, std::memory_order_relaxed);
    team_->generation.value.fetch_add(1, std::memory_order_seq_cst);
    team_->generation.value.notify_all();
    for (auto& thread : team_->threads) thread.join();
    team_.reset();
    process_id_ = -1;
}

void ThreadPool::spawn() {
    team_.release();  // null, or a parent's team whose threads do not exist in this process
    team_ = std::make_unique<Team>(size_);
    caller_.epoch_ = 0;
    process_id_ = process_id();
    try {
        for (int index = 1; index < size_; index++) {
            team_->threads.emplace_back([this, team = team_.get(), index] { serve(*team, index); });
        }
    } catch (...) {
        stop();
        throw;
    }
}

void ThreadPool::serve(Team& team, int index) {
    FlushDenormals flush;
    Worker worker;
    worker.index = index;
    worker.pool_ = this;
    for (uint32_t run = 1;; run++) {
        wait_until(team.generation.value, run);
        if (team.quit.load(std::memory_order_relaxed)) return;
        team.entry(team.context, worker);
        worker.stage(0, [](int) {});
    }
}

void ThreadPool::start(Entry entry, void* context) {
    if (process_id_ != process_id()) spawn();
    FlushDenormals flush;
    team_->entry = entry;
    team_->context = context;
    team_->generation.value.fetch_add(1, std::memory_order_seq_cst);
    team_->generation.value.notify_all();
    entry(context, caller_);
    caller_.stage(0, [](int) {});
}

}  // namespace tuili
