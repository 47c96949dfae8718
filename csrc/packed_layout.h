// How a panel stores a quantized format: the bytes of a block (32 columns x 32 k) and of the header before
// each run of blocks that share super scales. Known to the packer and to the matmul kernels alone.
//
//   panel  = runs, ascending in k;  run = header, then kBlocksPerRun blocks
//   header = kSuperMin: f16 d [32], f16 -dmin [32]     kSuperSigned: f16 d [32]     others: none
//   block  = scales, nibbles or bytes, planes
//   scales = kHalf: f16 [32]    kHalfMin: f16 scale [32], f16 min [32]
//            kSuperMin: u8 scale [32], u8 min [32]    kSuperSigned: s8 [2 halves of k][32]
//   codes in steps of 4 k: step t holds k = 4t .. 4t+3; a vector is 16 columns x those 4 k, 64 bytes
//   nibbles [4 t][2 vectors][64]: low nibble step t, high nibble step t + 4 (4, 5 and 6 bits)
//   bytes   [8 t][2 vectors][64]: step t (8 bits)
//   planes  5 bits: [2 vectors][64], bit t of a byte is step t's top bit
//           6 bits: [2][2 vectors][64], bits 2j, 2j+1 of plane p are step 4p + j's top bits
#pragma once
#include "kernels.h"

namespace tuili {

enum class Scales : uint8_t {
    kHalf,         // weight = d * (code - offset)
    kHalfMin,      // weight = d * code + m
    kSuperMin,     // weight = d * scale * code - dmin * min: exact u8 scale, min per 32, f16 d, dmin per 256
    kSuperSigned,  // weight = d * scale * (code - offset): exact s8 scale per 16, f16 d per 256
};

constexpr int kSuperGroups = 8;  // 32-groups that share a super scale
constexpr int kVectorBytes = 64;

struct PackedLayout {
    Scales scales = Scales::kHalf;
    int code_bits = 0;
    int code_offset = 0;
    int source_bytes = 0;  // of a GGUF block: kSuperGroups groups where super scales exist, else one

    constexpr bool is_super() const { return scales == Scales::kSuperMin || scales == Scales::kSuperSigned; }
    constexpr bool has_min() const { return scales == Scales::kHalfMin || scales == Scales::kSuperMin; }
    constexpr int blocks_per_run() const { return is_super() ? kSuperGroups : 1; }
    constexpr int header_bytes() const { return !is_super() ? 0 : has_min() ? 128 : 64; }
    constexpr int scale_bytes() const { return scales == Scales::kHalfMin ? 128 : 64; }
    constexpr int nibble_bytes() const { return code_bits < 8 ? 512 : 1024; }
    constexpr int plane_bytes() const { return code_bits < 8 ? (code_bits - 4) * 128 : 0; }
    constexpr int block_bytes() const { return scale_bytes() + nibble_bytes() + plane_bytes(); }
    constexpr int run_bytes() const { return header_bytes() + blocks_per_run() * block_bytes(); }
};

// For the quantized formats; the float formats are [k][32 columns] at their own width.
constexpr PackedLayout packed_layout(Format format) {
    switch (format) {
        case Format::kQ4_0:
            return {Scales::kHalf, 4, 8, 18};
        case Format::kQ4_1:
            return {Scales::kHalfMin, 4, 0, 20};
        case Format::kQ5_0:
            return {Scales::kHalf, 5, 16, 22};
        case Format::kQ5_1:
            return {Scales::kHalfMin, 5, 0, 24};
        case Format::kQ8_0:
            return {Scales::kHalf, 8, 128, 34};
        case Format::kQ4_K:
            return {Scales::kSuperMin, 4, 0, 144};
        case Format::kQ5_K:
            return {Scales::kSuperMin, 5, 0, 176};
        case Format::kQ6_K:
            return {Scales::kSuperSigned, 6, 32, 210};
        default:
            return {};
    }
}

}  // namespace tuili
