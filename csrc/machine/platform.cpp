// Linux first; other systems get the portable branch of each function.
#include "machine/platform.h"

#include <cstring>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tuili {

#if defined(__unix__) || defined(__APPLE__)
Pages::Pages(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(address, bytes, MADV_HUGEPAGE);
#endif
    data_ = static_cast<uint8_t*>(address);
}

Pages::~Pages() {
    if (data_ != nullptr) munmap(data_, size_);
}

void Pages::give_back(size_t first, size_t last) {
    const size_t page = sysconf(_SC_PAGESIZE);
    first = (first + page - 1) / page * page;
    last = last / page * page;
    if (first >= last) return;
#if defined(__linux__)
    madvise(data_ + first, last - first, MADV_DONTNEED);
#elif defined(MADV_FREE)
    madvise(data_ + first, last - first, MADV_FREE);
#endif
}

int64_t process_id() { return getpid(); }
#else
Pages::Pages(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    data_ = static_cast<uint8_t*>(::operator new(bytes, std::align_val_t(4096)));
    std::memset(data_, 0, bytes);
}

Pages::~Pages() { ::operator delete(data_, std::align_val_t(4096)); }

void Pages::give_back(size_t, size_t) {}

int64_t process_id() { return 0; }
#endif

#if defined(__x86_64__)
namespace {
constexpr uint32_t kFlushToZero = 0x8000;
constexpr uint32_t kDenormalsAreZero = 0x0040;
}  // namespace

FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero); }
FlushDenormals::~FlushDenormals() { _mm_setcsr(saved_); }

std::string cpu_name() {
    char name[49] = {};
    unsigned int registers[4];
    if (__get_cpuid_max(0x80000000u, nullptr) < 0x80000004u) return {};
    for (unsigned int leaf = 0; leaf < 3; leaf++) {
        __get_cpuid(0x80000002u + leaf, &registers[0], &registers[1], &registers[2], &registers[3]);
        std::memcpy(name + 16 * leaf, registers, 16);
    }
    std::string text = name;
    size_t first = text.find_first_not_of(' ');
    return first == std::string::npos ? std::string() : text.substr(first, text.find_last_not_of(' ') - first + 1);
}

std::vector<std::string> cpu_features() {
    std::vector<std::string> found;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) found.emplace_back("avx2");
    if (__builtin_cpu_supports("fma")) found.emplace_back("fma");
    if (__builtin_cpu_supports("avx512f")) found.emplace_back("avx512f");
    if (__builtin_cpu_supports("avx512bw")) found.emplace_back("avx512bw");
    if (__builtin_cpu_supports("avx512vnni")) found.emplace_back("avx512vnni");
    if (__builtin_cpu_supports("avx512bf16")) found.emplace_back("avx512bf16");
    unsigned int eax = 0, ebx, ecx, edx;
    if (__builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1))
        found.emplace_back("avx_vnni");
    return found;
}
#else
FlushDenormals::FlushDenormals() = default;
FlushDenormals::~FlushDenormals() = default;
std::string cpu_name() { return {}; }
std::vector<std::string> cpu_features() { return {}; }
#endif

}  // namespace tuili
