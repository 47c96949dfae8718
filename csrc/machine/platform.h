// What differs between operating systems and processors: large memory, the denormal mode, the hint of
// a spin loop, who this CPU is. The only C++ file with system calls. Knows no models and no threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace tuili {

// Zeroed anonymous memory, page aligned, on huge pages where the system offers them.
class Pages {
  public:
    Pages() = default;
    explicit Pages(size_t bytes);  // throws std::bad_alloc
    ~Pages();
    Pages(Pages&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Pages& operator=(Pages&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }
    // The system takes back the whole pages in [first, last), bytes from the start, where it can: their content is
    // lost.
    void give_back(size_t first, size_t last);

  private:
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

// While it lives, this thread's arithmetic treats denormals as zero (they would slow products tenfold).
class FlushDenormals {
  public:
    FlushDenormals();
    ~FlushDenormals();
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

  private:
    uint32_t saved_ = 0;
};

// Tells the core that this is a spin loop.
inline void spin_hint() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Changes in a forked child, whose threads are gone.
int64_t process_id();

// The processor's name as it gives it, or an empty string.
std::string cpu_name();

// Names of the vector extensions that this CPU and operating system run, in a fixed order.
std::vector<std::string> cpu_features();

}  // namespace tuili
