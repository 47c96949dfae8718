// Chooses an instruction set's kernels by what this build holds and this CPU and operating system run.
#ifdef TUILI_X86
#include <cpuid.h>
#endif

#include <cstring>
#include <initializer_list>

#include "kernels/kernels.h"

namespace tuili {

const Kernels& scalar_kernels();
const Kernels& scalar_bf16_kernels();

#ifdef TUILI_X86
const Kernels& avx2_kernels();
const Kernels& avx_vnni_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_bf16_kernels();

namespace {

// __builtin_cpu_supports also asks XGETBV whether the operating system saves the registers.
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#ifdef TUILI_EMULATE
bool runs_avx_vnni() { return runs_avx2(); }
bool runs_avx512() { return runs_avx2(); }
bool runs_avx512_bf16() { return runs_avx2(); }
#else
bool runs_avx_vnni() {
    unsigned int eax = 0, ebx, ecx, edx;
    return runs_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}

bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

bool runs_avx512_bf16() { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

}  // namespace
#endif

const Kernels* kernels_for(const char* isa) {
#ifdef TUILI_X86
    if (!strcmp(isa, "avx512_bf16")) return runs_avx512_bf16() ? &avx512_bf16_kernels() : nullptr;
    if (!strcmp(isa, "avx512")) return runs_avx512() ? &avx512_kernels() : nullptr;
    if (!strcmp(isa, "avx_vnni")) return runs_avx_vnni() ? &avx_vnni_kernels() : nullptr;
    if (!strcmp(isa, "avx2")) return runs_avx2() ? &avx2_kernels() : nullptr;
#endif
    if (!strcmp(isa, "scalar_bf16")) return &scalar_bf16_kernels();
    return strcmp(isa, "scalar") ? nullptr : &scalar_kernels();
}

const Kernels& best_kernels() {
    for (const char* isa : {"avx512_bf16", "avx512", "avx_vnni", "avx2"})
        if (const Kernels* kernels = kernels_for(isa)) return *kernels;
    return scalar_kernels();
}

}  // namespace tuili
