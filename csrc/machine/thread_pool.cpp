#include "machine/thread_pool.h"

#include <chrono>

#include "machine/platform.h"

namespace tuili {
namespace {

// Longer than items differ: who waits longer waits for a worker that lost its core to another process, and by sleeping
// leaves this core to those that would take the next one's. Spinning on, both cores are lost at every disturbance.
constexpr auto kStageSpin = std::chrono::microseconds(60);
constexpr auto kIdleSpin = std::chrono::microseconds(100);
constexpr int kHintsPerClockRead = 32;
constexpr size_t kUpcomingBytes = 12 << 10;  // of the next weights, well within the first cache
constexpr size_t kLineBytes = 64;

// A share is epoch, first, last in 16, 24 and 24 bits.
constexpr int kItemBits = 24;
constexpr uint64_t kItemMask = (uint64_t{1} << kItemBits) - 1;
static_assert(kMaxStageItems == 1 << kItemBits);

uint64_t pack_share(uint16_t epoch, uint64_t first, uint64_t last) {
    return uint64_t{epoch} << (2 * kItemBits) | first << kItemBits | last;
}
uint16_t share_epoch(uint64_t share) { return static_cast<uint16_t>(share >> (2 * kItemBits)); }

// The door is run, open, joined in 22, 1 and 9 bits.
constexpr uint32_t kJoined = 1;
constexpr uint32_t kJoinedMask = (1u << 9) - 1;
constexpr uint32_t kOpen = 1u << 9;
constexpr uint32_t kRun = 1u << 10;

// Epochs wrap: a is before b if the way from a to b is short.
bool is_before(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) < 0; }
bool is_before(uint16_t a, uint16_t b) { return static_cast<int16_t>(a - b) < 0; }

// Returns the first value of `word` that `accepts` takes: spinning first, with pause() in between, then asleep.
template <class Accepts, class Pause>
uint32_t wait_for(const std::atomic<uint32_t>& word, std::chrono::microseconds spin, Accepts accepts, Pause pause) {
    uint32_t value = word.load(std::memory_order_acquire);
    if (accepts(value)) return value;
    const auto deadline = std::chrono::steady_clock::now() + spin;
    do {
        for (int i = 0; i < kHintsPerClockRead; i++) {
            pause();
            value = word.load(std::memory_order_acquire);
            if (accepts(value)) return value;
        }
    } while (std::chrono::steady_clock::now() < deadline);
    for (; !accepts(value); value = word.load(std::memory_order_acquire)) word.wait(value, std::memory_order_acquire);
    return value;
}

}  // namespace

// Claims an item of `owner`'s share, its own from the front and others' from the back; -1 when none is left.
// Whoever comes first sets a share up for the stage, as all know its bounds.
int Worker::next_item(int owner, int num_items) {
    auto& share = pool_->team_->shares[owner].value;
    const auto epoch = static_cast<uint16_t>(epoch_);
    uint64_t value = share.load(std::memory_order_relaxed);
    for (;;) {
        uint64_t first = (value >> kItemBits) & kItemMask;
        uint64_t last = value & kItemMask;
        if (is_before(epoch, share_epoch(value))) return -1;  // the others have finished this stage
        const bool is_new = share_epoch(value) != epoch;
        if (is_new) {
            first = static_cast<uint64_t>(share_begin(num_items, owner));
            last = static_cast<uint64_t>(share_begin(num_items, owner + 1));
        }
        const bool is_empty = first >= last;
        if (is_empty && !is_new) return -1;
        const uint64_t item = owner == index ? first : last - 1;
        if (!is_empty) (owner == index ? first++ : last--);
        if (share.compare_exchange_weak(value, pack_share(epoch, first, last), std::memory_order_relaxed)) {
            return is_empty ? -1 : static_cast<int>(item);
        }
    }
}

// Adds what this worker has done and waits for the rest. Who adds the last announces the stage's completion.
void Worker::finish_stage(uint32_t num_done, uint32_t num_items, const uint8_t* upcoming) {
    auto& team = *pool_->team_;
    if (num_done > 0) {
        uint64_t value = team.done.value.load(std::memory_order_relaxed), sum;
        do {
            const bool is_first = static_cast<uint32_t>(value >> 32) != epoch_;
            sum = (is_first ? uint64_t{epoch_} << 32 : value) + num_done;
        } while (!team.done.value.compare_exchange_weak(value, sum, std::memory_order_acq_rel));
        if (static_cast<uint32_t>(sum) == num_items) {
            team.completed.value.store(epoch_, std::memory_order_seq_cst);
            team.completed.value.notify_all();
            return;
        }
    }
    size_t offset = upcoming == nullptr ? kUpcomingBytes : 0;
    auto is_done = [this](uint32_t stage) { return !is_before(stage, epoch_); };
    wait_for(team.completed.value, kStageSpin, is_done, [&] {
        if (offset == kUpcomingBytes) return spin_hint();
        __builtin_prefetch(upcoming + offset);
        offset += kLineBytes;
    });
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
    team_->door.value.fetch_add(kRun, std::memory_order_seq_cst);
    team_->door.value.notify_all();
    for (auto& thread : team_->threads) thread.join();
    team_.reset();
    process_id_ = -1;
}

void ThreadPool::spawn() {
    team_.release();  // null, or a parent's team whose threads do not exist in this process
    team_ = std::make_unique<Team>(size_);
    caller_.epoch_ = caller_.first_epoch_ = 0;
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

// A worker's life: wait for a run, join it while it may be joined, leave it.
void ThreadPool::serve(Team& team, int index) {
    FlushDenormals flush;
    Worker worker;
    worker.index = index;
    worker.pool_ = this;
    for (uint32_t last_run = 0;;) {
        auto is_new = [last_run](uint32_t door) { return door / kRun != last_run; };
        uint32_t door = wait_for(team.door.value, kIdleSpin, is_new, spin_hint);
        last_run = door / kRun;
        if (team.quit.load(std::memory_order_relaxed)) return;
        bool has_joined = false;
        while (!has_joined && (door & kOpen) != 0 && door / kRun == last_run) {
            has_joined = team.door.value.compare_exchange_weak(door, door + kJoined, std::memory_order_acquire);
        }
        if (!has_joined) continue;
        worker.epoch_ = worker.first_epoch_ = team.first_epoch;
        team.entry(team.context, worker);
        door = team.door.value.fetch_sub(kJoined, std::memory_order_seq_cst) - kJoined;
        if ((door & (kOpen | kJoinedMask)) == 0) team.door.value.notify_all();  // the caller may wait for the last
    }
}

void ThreadPool::start(Entry entry, void* context) {
    if (process_id_ != process_id()) spawn();
    FlushDenormals flush;
    auto& door = team_->door.value;
    team_->entry = entry;
    team_->context = context;
    team_->first_epoch = caller_.first_epoch_ = caller_.epoch_;
    door.store((door.load(std::memory_order_relaxed) / kRun + 1) * kRun | kOpen, std::memory_order_seq_cst);
    door.notify_all();
    entry(context, caller_);
    door.fetch_and(~kOpen, std::memory_order_seq_cst);
    wait_for(door, kStageSpin, [](uint32_t value) { return (value & kJoinedMask) == 0; }, spin_hint);
}

}  // namespace tuili
