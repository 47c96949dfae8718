// Times the loops of probe.inl on a team of threads.
#include "machine/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <vector>

#include "machine/platform.h"
#include "machine/thread_pool.h"

namespace tuili {
namespace {

constexpr size_t kPieceBytes = 65536;
constexpr size_t kSlackBytes = 8192;  // read_bytes prefetches past its end
constexpr int kRounds = 20000;
constexpr int kItemsPerThread = 16;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The median of the rates that `pass` (returns how much it did) reaches within `seconds`.
template <class Pass>
double median_rate(double seconds, Pass pass) {
    std::vector<double> rates;
    const double deadline = now() + seconds;
    do {
        const double start = now();
        const double done = pass();
        rates.push_back(done / (now() - start));
    } while (now() < deadline);
    const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
    std::nth_element(rates.begin(), middle, rates.end());
    return *middle;
}

template <class Operations>
double median_operations(ThreadPool& pool, double seconds, Operations operations) {
    const int num_items = pool.size() * kItemsPerThread;
    return median_rate(seconds, [&] {
        double each = 0.0;
        pool.run([&](Worker& worker) {
            worker.stage(num_items, [&](int item) {
                const double done = operations(kRounds);
                if (item == 0) each = done;
            });
        });
        return each * num_items;
    });
}

}  // namespace

double read_bandwidth(const Kernels& kernels, int num_threads, size_t num_bytes, double seconds) {
    const int num_pieces = static_cast<int>(std::max<size_t>(1, (num_bytes + kPieceBytes - 1) / kPieceBytes));
    const Pages pages(num_pieces * kPieceBytes + kSlackBytes);
    ThreadPool pool(num_threads);
    pool.run([&](Worker& worker) {  // whoever reads a piece first has written it: its memory is near
        worker.stage(num_pieces, [&](int piece) { memset(pages.data() + piece * kPieceBytes, piece, kPieceBytes); });
    });
    std::atomic<int32_t> sink{0};
    return median_rate(seconds, [&] {
        pool.run([&](Worker& worker) {
            int32_t sum = 0;
            worker.stage(num_pieces, [&](int piece) {
                sum += kernels.read_bytes(pages.data() + piece * kPieceBytes, kPieceBytes);
            });
            sink.fetch_add(sum, std::memory_order_relaxed);
        });
        return static_cast<double>(num_pieces) * kPieceBytes;
    });
}

PeakOperations peak_operations(const Kernels& kernels, int num_threads, double seconds) {
    ThreadPool pool(num_threads);
    return {
        .int8 = median_operations(pool, seconds / 2, kernels.dot_operations),
        .float32 = median_operations(pool, seconds / 2, kernels.fma_operations),
    };
}

}  // namespace tuili
