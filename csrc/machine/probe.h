// What this machine can do at most, measured: the ceiling that a kernel's speed is compared with.
// Knows kernels.h and threads; not models.
#pragma once
#include <cstddef>

#include "kernels/kernels.h"

namespace tuili {

// Bytes per second that `num_threads` threads read together from one buffer of num_bytes (rounded up to whole pieces
// of 64 KiB), the median over the passes that fit into `seconds`; one at least. Throws std::bad_alloc.
double read_bandwidth(const Kernels& kernels, int num_threads, size_t num_bytes, double seconds);

// Operations per second (a multiply and an add are two) of `num_threads` threads together in registers, the median over
// `seconds`: u8 x s8 products with the widest exact sum this instruction set keeps, and float32 multiply-adds.
struct PeakOperations {
    double int8;
    double float32;
};
PeakOperations peak_operations(const Kernels& kernels, int num_threads, double seconds);

}  // namespace tuili
