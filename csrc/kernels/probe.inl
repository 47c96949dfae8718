// The fastest loops this instruction set has for reading, integer dot products and float multiply-adds: what a machine
// can do, for kernels to be compared with. Knows registers; not models or threads.
#pragma once
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace tuili::TUILI_ISA_NAMESPACE {

#if defined(TUILI_ISA_AVX512)
constexpr int kChains = 12;  // independent sums: enough to hide latency, few enough for the registers
#elif defined(TUILI_ISA_AVX2)
constexpr int kChains = 10;
#else
constexpr int kChains = 1;
#endif
constexpr size_t kReadAhead = 4096;
constexpr int kReadBytes = 64;

// Reads num_bytes (a multiple of 256) from 64-byte aligned memory; returns a value that depends on all of them.
inline int32_t read_bytes(const uint8_t* data, size_t num_bytes) {
    I32x16 sums[4] = {broadcast_int(0), broadcast_int(0), broadcast_int(0), broadcast_int(0)};
    for (size_t i = 0; i < num_bytes; i += 4 * kReadBytes) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            prefetch(data + i + kReadAhead + j * kReadBytes);
            sums[j] = sums[j] ^ load_int(reinterpret_cast<const int32_t*>(data + i + j * kReadBytes));
        }
    }
    return reduce_add((sums[0] ^ sums[1]) ^ (sums[2] ^ sums[3]));
}

// Multiplies and adds of u8 x s8 in `rounds` of independent dot products, counted as two operations each.
inline double dot_operations(int rounds) {
    alignas(64) uint8_t zeros[64] = {};
    Codes codes = load_codes(zeros);
    Quad quad = load_quad(reinterpret_cast<const int8_t*>(zeros));
    hide(quad);
    Dot<15, 0> sums[kChains];
#pragma GCC unroll 12
    for (int j = 0; j < kChains; j++) sums[j].start(0);
    for (int i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < kChains; j++) {
            hide(codes);
            sums[j].add(codes, quad);
            sums[j].hide();
        }
    }
    return 2.0 * 4 * kLanes * kChains * rounds;
}

// The same for float32.
inline double fma_operations(int rounds) {
    F32xN a = broadcast_n(0.0f), sums[kChains];
#pragma GCC unroll 12
    for (int j = 0; j < kChains; j++) {
        sums[j] = a;
        hide(sums[j]);
    }
    for (int i = 0; i < rounds; i++) {
        hide(a);
#pragma GCC unroll 12
        for (int j = 0; j < kChains; j++) sums[j] = fma(a, a, sums[j]);
    }
#pragma GCC unroll 12
    for (int j = 0; j < kChains; j++) hide(sums[j]);
    return 2.0 * kLanes * kChains * rounds;
}

}  // namespace tuili::TUILI_ISA_NAMESPACE
