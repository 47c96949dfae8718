// GGUF rows into panels and back. Knows GGUF's block layouts (ggml's block_q4_0 ... block_q6_K) and
// packed_layout.h; not instruction sets. Source pointers may be unaligned.
#include <cstring>

#include "packed_layout.h"

namespace tuili {
namespace {

int float_width(Format format) { return format == Format::kF32 ? 4 : 2; }

uint16_t read_u16(const uint8_t* p) {
    uint16_t value;
    memcpy(&value, p, 2);
    return value;
}

float float_from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// IEEE binary16 to binary32, exact.
float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
    const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return float_from_bits(sign | 0x7F800000 | mantissa << 13);
    if (exponent) return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

// One 32-group of a row: what its block of the panel takes from this row.
struct Group {
    uint8_t codes[kGroup];
    uint16_t half = 0, half_min = 0;       // kHalf, kHalfMin
    uint8_t scale[2] = {0, 0};             // kSuperMin: scale, min; kSuperSigned: both halves
    uint16_t super = 0, super_second = 0;  // d, -dmin
};

// --- GGUF -> Group ------------------------------------------------------------------------------------------------
void split_nibbles(const uint8_t* nibbles, uint8_t* codes) {
    for (int i = 0; i < 16; i++) {
        codes[i] = nibbles[i] & 15;
        codes[i + 16] = nibbles[i] >> 4;
    }
}

void add_fifth_bits(const uint8_t* p, uint8_t* codes) {
    uint32_t bits;
    memcpy(&bits, p, 4);
    for (int i = 0; i < kGroup; i++) codes[i] |= (bits >> i & 1) << 4;
}

// block_q4_0, q4_1, q5_0, q5_1: d [m] [high bits] nibbles.
Group read_nibble_group(PackedLayout layout, const uint8_t* block) {
    Group group;
    group.half = read_u16(block);
    block += 2;
    if (layout.has_min()) {
        group.half_min = read_u16(block);
        block += 2;
    }
    const uint8_t* nibbles = layout.code_bits == 5 ? block + 4 : block;
    split_nibbles(nibbles, group.codes);
    if (layout.code_bits == 5) add_fifth_bits(block, group.codes);
    return group;
}

Group read_q8_0_group(const uint8_t* block) {
    Group group;
    group.half = read_u16(block);
    for (int i = 0; i < kGroup; i++) group.codes[i] = block[2 + i] ^ 0x80;
    return group;
}

// block_q4_K, q5_K: d, dmin, 12 bytes of 6-bit scales and mins, [high bits], nibbles. `index`: which 32 of the 256.
Group read_super_min_group(PackedLayout layout, const uint8_t* block, int index) {
    Group group;
    group.super = read_u16(block);
    group.super_second = read_u16(block + 2) ^ 0x8000;
    const uint8_t* s = block + 4;
    if (index < 4) {
        group.scale[0] = s[index] & 63;
        group.scale[1] = s[index + 4] & 63;
    } else {
        group.scale[0] = (s[index + 4] & 15) | (s[index - 4] >> 6) << 4;
        group.scale[1] = s[index + 4] >> 4 | (s[index] >> 6) << 4;
    }
    const uint8_t* high = block + 16;
    const uint8_t* nibbles = high + (layout.code_bits == 5 ? 32 : 0) + index / 2 * 32;
    for (int i = 0; i < kGroup; i++) group.codes[i] = nibbles[i] >> index % 2 * 4 & 15;
    if (layout.code_bits == 5)
        for (int i = 0; i < kGroup; i++) group.codes[i] |= (high[i] >> index & 1) << 4;
    return group;
}

// block_q6_K: nibbles [128], high pairs [64], s8 scales [16], d. `index`: which 32 of the 256.
Group read_q6_k_group(const uint8_t* block, int index) {
    Group group;
    const int quarter = index % 4;
    const uint8_t* nibbles = block + index / 4 * 64 + quarter % 2 * 32;
    const uint8_t* pairs = block + 128 + index / 4 * 32;
    for (int i = 0; i < kGroup; i++)
        group.codes[i] = (nibbles[i] >> quarter / 2 * 4 & 15) | (pairs[i] >> quarter * 2 & 3) << 4;
    memcpy(group.scale, block + 192 + index * 2, 2);
    group.super = read_u16(block + 208);
    return group;
}

Group read_group(PackedLayout layout, const uint8_t* row, int index) {
    const int per_block = layout.blocks_per_run();
    const uint8_t* block = row + static_cast<size_t>(index / per_block) * layout.source_bytes;
    switch (layout.scales) {
        case Scales::kSuperMin:
            return read_super_min_group(layout, block, index % per_block);
        case Scales::kSuperSigned:
            return read_q6_k_group(block, index % per_block);
        default:
            return layout.code_bits == 8 ? read_q8_0_group(block) : read_nibble_group(layout, block);
    }
}

// --- Group <-> panel ----------------------------------------------------------------------------------------------
// Where group `index` of a column lies in its panel.
struct Place {
    PackedLayout layout;
    size_t header;
    size_t block;
    int column;

    Place(PackedLayout layout, int index, int column) : layout(layout), column(column) {
        header = static_cast<size_t>(index / layout.blocks_per_run()) * layout.run_bytes();
        block = header + layout.header_bytes() +
                static_cast<size_t>(index % layout.blocks_per_run()) * layout.block_bytes();
    }

    // A column's 4 bytes in vector `v` of an array of vector pairs that starts `offset` into the block.
    size_t quad(int offset, int pair) const {
        return block + offset + (pair * 2 + column / 16) * kVectorBytes + column % 16 * 4;
    }
    int nibbles() const { return layout.scale_bytes(); }
    int planes() const { return layout.scale_bytes() + layout.nibble_bytes(); }
    int pairs_of_bits() const { return layout.code_bits == 6 ? 2 : 1; }  // bits per code in a plane
    int steps_per_plane() const { return 8 / pairs_of_bits(); }
};

void put_scales(const Place& at, const Group& group, uint8_t* panel) {
    uint8_t* block = panel + at.block;
    const int c = at.column;
    switch (at.layout.scales) {
        case Scales::kHalf:
            memcpy(block + 2 * c, &group.half, 2);
            return;
        case Scales::kHalfMin:
            memcpy(block + 2 * c, &group.half, 2);
            memcpy(block + 2 * (kPanelCols + c), &group.half_min, 2);
            return;
        case Scales::kSuperMin:
            memcpy(panel + at.header + 2 * (kPanelCols + c), &group.super_second, 2);
            [[fallthrough]];
        case Scales::kSuperSigned:
            memcpy(panel + at.header + 2 * c, &group.super, 2);
            block[c] = group.scale[0];
            block[kPanelCols + c] = group.scale[1];
    }
}

void put_codes(const Place& at, const uint8_t* codes, uint8_t* panel) {
    const int bits = at.layout.code_bits;
    if (bits == 8) {
        for (int t = 0; t < 8; t++) memcpy(panel + at.quad(at.nibbles(), t), codes + 4 * t, 4);
        return;
    }
    uint8_t nibbles[16];
    for (int i = 0; i < 16; i++) nibbles[i] = (codes[i] & 15) | codes[i + 16] << 4;
    for (int t = 0; t < 4; t++) memcpy(panel + at.quad(at.nibbles(), t), nibbles + 4 * t, 4);
    if (bits == 4) return;
    const int width = at.pairs_of_bits(), steps = at.steps_per_plane();
    for (int plane = 0; plane < 8 / steps; plane++) {
        uint8_t top[4] = {0, 0, 0, 0};
        for (int i = 0; i < 4 * steps; i++) top[i % 4] |= codes[plane * 4 * steps + i] >> 4 << i / 4 * width;
        memcpy(panel + at.quad(at.planes(), plane), top, 4);
    }
}

void get_codes(const Place& at, const uint8_t* panel, uint8_t* codes) {
    const int bits = at.layout.code_bits;
    for (int i = 0; i < kGroup; i++) {
        const int step = i / 4;
        if (bits == 8) {
            codes[i] = panel[at.quad(at.nibbles(), step) + i % 4];
            continue;
        }
        codes[i] = panel[at.quad(at.nibbles(), step % 4) + i % 4] >> step / 4 * 4 & 15;
        if (bits == 4) continue;
        const int width = at.pairs_of_bits(), steps = at.steps_per_plane();
        const int top = panel[at.quad(at.planes(), step / steps) + i % 4] >> step % steps * width;
        codes[i] |= (top & ((1 << width) - 1)) << 4;
    }
}

float half_at(const uint8_t* panel, size_t offset) { return half_to_float(read_u16(panel + offset)); }

// Every product below is exact, so only the addition of a min rounds, as in the formats' definitions.
void unpack_group(const Place& at, const uint8_t* panel, float* out) {
    uint8_t codes[kGroup];
    get_codes(at, panel, codes);
    const uint8_t* block = panel + at.block;
    const int c = at.column;
    const size_t first_half = 2 * c, second_half = 2 * (kPanelCols + c);
    if (at.layout.has_min()) {
        const bool super = at.layout.is_super();
        const size_t base = super ? at.header : at.block;
        const float d = half_at(panel, base + first_half), m = half_at(panel, base + second_half);
        const float scale = super ? d * block[c] : d, min = super ? m * block[kPanelCols + c] : m;
        for (int i = 0; i < kGroup; i++) out[i] = scale * static_cast<float>(codes[i]) + min;
        return;
    }
    for (int i = 0; i < kGroup; i++) {
        const float level = static_cast<float>(codes[i] - at.layout.code_offset);
        if (at.layout.is_super()) {
            const auto s = static_cast<int8_t>(block[i / 16 * kPanelCols + c]);
            out[i] = half_at(panel, at.header + first_half) * static_cast<float>(s) * level;
        } else {
            out[i] = half_at(panel, at.block + first_half) * level;
        }
    }
}

void pack_float_panel(int width, const uint8_t* source, size_t source_row_bytes, int num_rows, int cols,
                      uint8_t* panel) {
    for (int c = 0; c < num_rows; c++) {
        const uint8_t* row = source + c * source_row_bytes;
        for (int k = 0; k < cols; k++)
            memcpy(panel + (static_cast<size_t>(k) * kPanelCols + c) * width, row + static_cast<size_t>(k) * width,
                   width);
    }
}

void unpack_float_row(Format format, const uint8_t* panel, int column, int cols, float* out) {
    const int width = float_width(format);
    for (int k = 0; k < cols; k++) {
        const uint8_t* p = panel + (static_cast<size_t>(k) * kPanelCols + column) * width;
        if (format == Format::kF32)
            memcpy(out + k, p, 4);
        else if (format == Format::kF16)
            out[k] = half_to_float(read_u16(p));
        else
            out[k] = float_from_bits(static_cast<uint32_t>(read_u16(p)) << 16);
    }
}

}  // namespace

size_t packed_panel_bytes(Format format, int cols) {
    if (is_float(format)) return static_cast<size_t>(cols) * kPanelCols * float_width(format);
    const PackedLayout layout = packed_layout(format);
    return static_cast<size_t>(cols / (kGroup * layout.blocks_per_run())) * layout.run_bytes();
}

size_t source_row_bytes(Format format, int cols) {
    if (is_float(format)) return static_cast<size_t>(cols) * float_width(format);
    const PackedLayout layout = packed_layout(format);
    const int block = kGroup * layout.blocks_per_run();
    return cols % block ? 0 : static_cast<size_t>(cols / block) * layout.source_bytes;
}

void pack_panel(Format format, const uint8_t* source, size_t source_row_bytes, int num_rows, int cols, uint8_t* panel) {
    if (num_rows < kPanelCols) memset(panel, 0, packed_panel_bytes(format, cols));
    if (is_float(format)) return pack_float_panel(float_width(format), source, source_row_bytes, num_rows, cols, panel);
    const PackedLayout layout = packed_layout(format);
    for (int c = 0; c < num_rows; c++) {
        const uint8_t* row = source + c * source_row_bytes;
        for (int index = 0; index < cols / kGroup; index++) {
            const Group group = read_group(layout, row, index);
            const Place at(layout, index, c);
            put_scales(at, group, panel);
            put_codes(at, group.codes, panel);
        }
    }
}

void unpack_row(const PackedMatrix& w, int row, float* out) {
    const uint8_t* panel = w.panels + static_cast<size_t>(row / kPanelCols) * w.panel_bytes;
    const int column = row % kPanelCols;
    if (is_float(w.format)) return unpack_float_row(w.format, panel, column, w.cols, out);
    const PackedLayout layout = packed_layout(w.format);
    for (int index = 0; index < w.cols / kGroup; index++)
        unpack_group(Place(layout, index, column), panel, out + index * kGroup);
}

}  // namespace tuili
