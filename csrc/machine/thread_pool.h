// A team of persistent threads that work through stages of numbered items; a stage begins when all items of the last
// one are done. The caller is worker 0. Idle workers spin briefly, then sleep. Knows nothing of what is computed.
//
// Nobody waits for a thread, only for items: a worker that wakes late, or that the system runs elsewhere, holds nothing
// back but what it has in hand; the others do its share, and it joins in wherever they are.
#pragma once
#include <atomic>
#include <cassert>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace tuili {

constexpr int kMaxThreads = 256;
constexpr int kMaxStageItems = 1 << 24;
constexpr uint32_t kMaxStages = 1 << 15;  // of a run

class ThreadPool;

// One thread's place in the team during a run.
class Worker {
  public:
    int index = 0;

    // Calls work(item) for some of the items [0, num_items), num_items < 2^24, and returns when all are done by
    // whichever workers. Every worker of a run makes the same calls in the same order, less than 2^15 of them, and may
    // find all done. While it waits for the others it prefetches from `upcoming`, unless null: what it reads next.
    template <class Work>
    void stage(int num_items, Work&& work, const uint8_t* upcoming = nullptr);

    // A stage's items are handed out from shares [share_begin(n, i), share_begin(n, i + 1)) of workers i, and every
    // worker begins with its own.
    int share_begin(int num_items, int worker) const;
    bool ends_own_share(int num_items, int item) const { return item + 1 == share_begin(num_items, index + 1); }

  private:
    friend class ThreadPool;
    int next_item(int owner, int num_items);
    void finish_stage(uint32_t num_done, uint32_t num_items, const uint8_t* upcoming);

    ThreadPool* pool_ = nullptr;
    uint32_t epoch_ = 0;        // stages begun, over all runs
    uint32_t first_epoch_ = 0;  // before this run
};

class ThreadPool {
  public:
    explicit ThreadPool(int num_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }

    // Runs body(worker) on worker 0 and on every other that is there in time, and returns when all have left it.
    // `body` must not throw and must do everything it does in stages. One caller at a time. In a forked child the
    // threads are started anew.
    template <class Body>
    void run(Body&& body) {
        start([](void* context, Worker& worker) { (*static_cast<Body*>(context))(worker); }, &body);
    }

  private:
    friend class Worker;
    using Entry = void (*)(void*, Worker&);

    template <class T>
    struct alignas(64) Padded {
        std::atomic<T> value{0};
    };
    struct Team {
        explicit Team(int size) : shares(size) {}
        std::vector<Padded<uint64_t>> shares;  // of each worker: items of a stage that nobody has claimed
        Padded<uint64_t> done;                 // a stage and how many of its items are done
        Padded<uint32_t> completed;            // the last stage of which all are done
        Padded<uint32_t> door;                 // run number, whether it may be joined, how many have joined
        std::atomic<bool> quit{false};
        Entry entry = nullptr;
        void* context = nullptr;
        uint32_t first_epoch = 0;
        std::vector<std::thread> threads;
    };

    void start(Entry entry, void* context);
    void spawn();
    void stop();
    void serve(Team& team, int index);

    int size_;
    int64_t process_id_ = -1;  // where the team's threads live
    std::unique_ptr<Team> team_;
    Worker caller_;
};

inline int Worker::share_begin(int num_items, int worker) const {
    const int64_t size = pool_->size();
    return static_cast<int>((int64_t{num_items} * worker + size - 1) / size);
}

template <class Work>
void Worker::stage(int num_items, Work&& work, const uint8_t* upcoming) {
    epoch_++;
    assert(num_items < kMaxStageItems && epoch_ - first_epoch_ < kMaxStages);
    if (num_items == 0) return;
    const int size = pool_->size();
    uint32_t num_done = 0;
    for (int offset = 0; offset < size; offset++) {
        const int owner = (index + offset) % size;
        for (int item; (item = next_item(owner, num_items)) >= 0; num_done++) work(item);
    }
    finish_stage(num_done, static_cast<uint32_t>(num_items), upcoming);
}

}  // namespace tuili
