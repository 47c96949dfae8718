// A team of persistent threads that work in lockstep: stages of numbered items, a barrier after each.
// The caller is worker 0. Idle workers spin briefly, then sleep. Knows nothing of what is computed.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace tuili {

constexpr int kMaxThreads = 256;

class ThreadPool;

// One thread's place in the team during a run.
class Worker {
  public:
    int index = 0;

    // Calls work(item) for this worker's share of the items [0, num_items), num_items < 2^24, then waits until
    // all items of all workers are done. Every worker of a run makes the same calls in the same order.
    template <class Work>
    void stage(int num_items, Work&& work);

  private:
    friend class ThreadPool;
    int next_item(int owner, uint32_t num_items);
    void barrier();

    ThreadPool* pool_ = nullptr;
    uint32_t epoch_ = 0;  // stages begun
};

class ThreadPool {
  public:
    explicit ThreadPool(int num_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }

    // Runs body(worker) on all workers and returns when all are done. `body` must not throw.
    // One caller at a time. In a forked child the threads are started anew.
    template <class Body>
    void run(Body&& body) {
        start([](void* context, Worker& worker) { (*static_cast<Body*>(context))(worker); }, &body);
    }

  private:
    friend class Worker;
    using Entry = void (*)(void*, Worker&);

    // Items [first, last) of the stage `epoch` that nobody has claimed, in one word so that a claim is one exchange.
    struct alignas(64) Share {
        std::atomic<uint64_t> value{0};
    };
    struct alignas(64) Flag {
        std::atomic<uint32_t> value{0};
    };
    struct Team {
        explicit Team(int size) : shares(size), arrived(size) {}
        std::vector<Share> shares;
        std::vector<Flag> arrived;
        Flag generation;  // runs begun
        std::atomic<bool> quit{false};
        Entry entry = nullptr;
        void* context = nullptr;
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

template <class Work>
void Worker::stage(int num_items, Work&& work) {
    epoch_++;
    const int size = pool_->size();
    for (int offset = 0; offset < size; offset++) {
        const int owner = (index + offset) % size;
        for (int item; (item = next_item(owner, static_cast<uint32_t>(num_items))) >= 0;) work(item);
    }
    barrier();
}

}  // namespace tuili
