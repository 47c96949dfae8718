#include "kernels/weight_block.h"

#include <cstring>

namespace tuili {
namespace {

void put_half(uint16_t half, uint8_t* out) { memcpy(out, &half, 2); }

// Low nibbles of codes i and i + span share a byte, in runs of 2 * span.
void put_nibbles(const uint8_t* codes, int count, int span, uint8_t* out) {
    for (int run = 0; run < count; run += 2 * span) {
        for (int i = 0; i < span; i++) {
            const int low = codes[run + i] & 15, high = codes[run + span + i] & 15;
            *out++ = static_cast<uint8_t>(low | high << 4);
        }
    }
}

// Bits [shift, shift + 2) of codes i, i + 32, i + 64, i + 96 share a byte, in runs of 128.
void put_pairs(const uint8_t* codes, int shift, uint8_t* out) {
    for (int run = 0; run < 256; run += 128) {
        for (int i = 0; i < 32; i++) {
            int byte = 0;
            for (int j = 0; j < 4; j++) byte |= (codes[run + 32 * j + i] >> shift & 3) << 2 * j;
            *out++ = static_cast<uint8_t>(byte);
        }
    }
}

// Bit `shift` of codes i, i + 32, i + 64, ... share a byte.
void put_strided_bits(const uint8_t* codes, int shift, uint8_t* out) {
    for (int i = 0; i < 32; i++) {
        int byte = 0;
        for (int j = 0; j < 8; j++) byte |= (codes[32 * j + i] >> shift & 1) << j;
        out[i] = static_cast<uint8_t>(byte);
    }
}

// Bit 4 of 32 codes, in order.
void put_fifth_bits(const uint8_t* codes, uint8_t* out) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) bits |= static_cast<uint32_t>(codes[i] >> 4) << i;
    memcpy(out, &bits, 4);
}

// Eight 6-bit scales and mins in 12 bytes.
void put_scales_and_mins(const WeightBlock& block, uint8_t* out) {
    for (int i = 0; i < 4; i++) {
        const int scale = block.scales[i], min = block.mins[i];
        const int later_scale = block.scales[i + 4], later_min = block.mins[i + 4];
        out[i] = static_cast<uint8_t>(scale | later_scale >> 4 << 6);
        out[i + 4] = static_cast<uint8_t>(min | later_min >> 4 << 6);
        out[i + 8] = static_cast<uint8_t>((later_scale & 15) | later_min << 4);
    }
}

// d [m] [fifth bits] nibbles.
void write_plain(const WeightBlock& block, bool has_min, bool has_fifth_bits, uint8_t* out) {
    put_half(block.d, out);
    out += 2;
    if (has_min) put_half(block.dmin, out), out += 2;
    if (has_fifth_bits) put_fifth_bits(block.codes, out), out += 4;
    put_nibbles(block.codes, 32, 16, out);
}

void write_q8_0(const WeightBlock& block, uint8_t* out) {
    put_half(block.d, out);
    memcpy(out + 2, block.codes, 32);
}

void write_q2_k(const WeightBlock& block, uint8_t* out) {
    for (int i = 0; i < 16; i++) out[i] = static_cast<uint8_t>(block.scales[i] | block.mins[i] << 4);
    put_pairs(block.codes, 0, out + 16);
    put_half(block.d, out + 80);
    put_half(block.dmin, out + 82);
}

void write_q3_k(const WeightBlock& block, uint8_t* out) {
    put_strided_bits(block.codes, 2, out);
    put_pairs(block.codes, 0, out + 32);
    memset(out + 96, 0, 12);
    for (int i = 0; i < 16; i++) {
        const int raised = block.scales[i] + 32;
        out[96 + i % 8] |= static_cast<uint8_t>((raised & 15) << i / 8 * 4);
        out[104 + i % 4] |= static_cast<uint8_t>(raised >> 4 << i / 4 * 2);
    }
    put_half(block.d, out + 108);
}

void write_q4_k(const WeightBlock& block, uint8_t* out) {
    put_half(block.d, out);
    put_half(block.dmin, out + 2);
    put_scales_and_mins(block, out + 4);
    put_nibbles(block.codes, 256, 32, out + 16);
}

void write_q5_k(const WeightBlock& block, uint8_t* out) {
    put_half(block.d, out);
    put_half(block.dmin, out + 2);
    put_scales_and_mins(block, out + 4);
    put_strided_bits(block.codes, 4, out + 16);
    put_nibbles(block.codes, 256, 32, out + 48);
}

void write_q6_k(const WeightBlock& block, uint8_t* out) {
    put_nibbles(block.codes, 256, 64, out);
    put_pairs(block.codes, 4, out + 128);
    memcpy(out + 192, block.scales, 16);
    put_half(block.d, out + 208);
}

void write_iq4_xs(const WeightBlock& block, uint8_t* out) {
    put_half(block.d, out);
    memset(out + 2, 0, 6);
    for (int i = 0; i < 8; i++) {
        const int raised = block.scales[i] + 32;
        out[2 + i / 4] |= static_cast<uint8_t>(raised >> 4 << i % 4 * 2);
        out[4 + i / 2] |= static_cast<uint8_t>((raised & 15) << i % 2 * 4);
    }
    put_nibbles(block.codes, 256, 16, out + 8);
}

}  // namespace

void write_block(Format format, const WeightBlock& block, uint8_t* out) {
    switch (format) {
        case Format::kF32:
        case Format::kF16:
        case Format::kBF16:
            __builtin_unreachable();
        case Format::kQ4_0:
        case Format::kIQ4_NL:
            return write_plain(block, false, false, out);
        case Format::kQ4_1:
            return write_plain(block, true, false, out);
        case Format::kQ5_0:
            return write_plain(block, false, true, out);
        case Format::kQ5_1:
            return write_plain(block, true, true, out);
        case Format::kQ8_0:
            return write_q8_0(block, out);
        case Format::kQ2_K:
            return write_q2_k(block, out);
        case Format::kQ3_K:
            return write_q3_k(block, out);
        case Format::kQ4_K:
            return write_q4_k(block, out);
        case Format::kQ5_K:
            return write_q5_k(block, out);
        case Format::kQ6_K:
            return write_q6_k(block, out);
        case Format::kIQ4_XS:
            return write_iq4_xs(block, out);
    }
}

}  // namespace tuili
