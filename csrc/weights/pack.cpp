// GGUF rows into panels and back. Knows GGUF's block layouts (ggml's block_q4_0 ... block_iq4_xs) and
// packed_layout.h; not instruction sets. Source pointers may be unaligned.
#include <algorithm>
#include <cstring>

#include "kernels/half.h"
#include "kernels/packed_layout.h"

namespace tuili {
namespace {

int float_width(Format format) { return format == Format::kF32 ? 4 : 2; }

// BF16 has k and k + 1 of a column beside each other, the others [k][32 columns].
constexpr int float_step(Format format) { return format == Format::kBF16 ? 2 : 1; }

uint16_t read_u16(const uint8_t* p) {
    uint16_t value;
    memcpy(&value, p, 2);
    return value;
}

uint32_t read_u32(const uint8_t* p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

// One 32-group of a row: what its block of the panel takes from this row. Codes are in the panel's order already: a
// quad is four codes' bits in the four bytes of a word, byte 0 first.
struct Group {
    uint32_t quads[8];                     // pairs: the first two; nibbles: four; bytes: all
    uint32_t planes[2];                    // 3 and 5 bits: the first; 6 bits: both
    uint16_t half = 0, half_min = 0;       // kHalf, kHalfMin
    uint8_t scale[2] = {0, 0};             // kSuperMin: scale, min; per 16: both halves; kSuperSigned: the first
    uint16_t super = 0, super_second = 0;  // d, -dmin
};

// --- GGUF -> Group ------------------------------------------------------------------------------------------------
constexpr uint32_t kNibbleOfEach = 0x0F0F0F0F, kPairOfEach = 0x03030303, kBitOfEach = 0x01010101;

// Codes 0..15 and 16..31 of 32 bytes that hold a code in their low or high nibbles.
inline void read_strided_nibbles(const uint8_t* bytes, int shift, uint32_t* quads) {
    for (int t = 0; t < 4; t++) {
        const uint32_t low = read_u32(bytes + 4 * t) >> shift & kNibbleOfEach;
        const uint32_t high = read_u32(bytes + 16 + 4 * t) >> shift & kNibbleOfEach;
        quads[t] = low | high << 4;
    }
}

// Pairs of codes 0..31 of 32 bytes that hold them at `shift`, into two arrays of pairs.
inline void read_strided_pairs(const uint8_t* bytes, int shift, uint32_t* pairs) {
    for (int array = 0; array < 2; array++) {
        pairs[array] = 0;
        for (int j = 0; j < 4; j++) {
            const uint32_t quad = read_u32(bytes + 16 * array + 4 * j) >> shift;
            pairs[array] |= (quad & kPairOfEach) << 2 * j;
        }
    }
}

// Bit `shift` of each of 32 bytes into a plane.
inline uint32_t read_strided_bits(const uint8_t* bytes, int shift) {
    uint32_t plane = 0;
    for (int t = 0; t < 8; t++) plane |= (read_u32(bytes + 4 * t) >> shift & kBitOfEach) << t;
    return plane;
}

// 32 bits, code k's at place k, into a plane: byte b takes bits b, b + 4, b + 8, ...
inline uint32_t plane_of_bits(uint32_t bits) {
    uint32_t plane = 0;
    for (int b = 0; b < 4; b++) {
        uint32_t x = bits >> b & 0x11111111;
        x = (x | x >> 3) & 0x03030303;
        x = (x | x >> 6) & 0x000F000F;
        plane |= ((x | x >> 12) & 0xFF) << 8 * b;
    }
    return plane;
}

// block_q4_0, q4_1, q5_0, q5_1, iq4_nl: d [m] [high bits] nibbles, paired as the panel pairs them.
template <PackedLayout layout>
inline Group read_nibble_group(const uint8_t* block) {
    Group group;
    group.half = read_u16(block);
    block += 2;
    if constexpr (layout.has_min()) {
        group.half_min = read_u16(block);
        block += 2;
    }
    if constexpr (layout.code_bits == 5) {
        group.planes[0] = plane_of_bits(read_u32(block));
        block += 4;
    }
    memcpy(group.quads, block, 16);
    return group;
}

inline Group read_q8_0_group(const uint8_t* block) {
    Group group;
    group.half = read_u16(block);
    for (int t = 0; t < 8; t++) group.quads[t] = read_u32(block + 2 + 4 * t) ^ 0x80808080;
    return group;
}

// block_q4_K, q5_K: d, dmin, 12 bytes of 6-bit scales and mins, [high bits], nibbles. `index`: which 32 of the 256.
template <PackedLayout layout>
inline Group read_super_min_group(const uint8_t* block, int index) {
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
    const uint8_t* nibbles = high + (layout.code_bits == 5 ? 32 : 0);
    read_strided_nibbles(nibbles + index / 2 * 32, index % 2 * 4, group.quads);
    if constexpr (layout.code_bits == 5) group.planes[0] = read_strided_bits(high, index);
    return group;
}

// block_q2_K: scales and mins [16], pairs [64], d, dmin. `index`: which 32 of the 256.
inline Group read_q2_k_group(const uint8_t* block, int index) {
    Group group;
    memcpy(group.scale, block + index * 2, 2);
    read_strided_pairs(block + 16 + index / 4 * 32, index % 4 * 2, group.quads);
    group.super = read_u16(block + 80);
    group.super_second = read_u16(block + 82) ^ 0x8000;
    return group;
}

// block_q3_K: third bits [32], pairs [64], 16 scales of 6 bits [12], d. `index`: which 32 of the 256.
inline Group read_q3_k_group(const uint8_t* block, int index) {
    Group group;
    read_strided_pairs(block + 32 + index / 4 * 32, index % 4 * 2, group.quads);
    group.planes[0] = read_strided_bits(block, index);
    const uint8_t* s = block + 96;
    for (int half = 0; half < 2; half++) {
        const int i = 2 * index + half;
        const int scale = (s[i % 8] >> i / 8 * 4 & 15) | (s[8 + i % 4] >> i / 4 * 2 & 3) << 4;
        group.scale[half] = static_cast<uint8_t>(scale - 32);
    }
    group.super = read_u16(block + 108);
    return group;
}

// block_iq4_xs: d, upper pairs of 8 scales [2], their nibbles [4], nibbles [128]. `index`: which 32 of the 256.
inline Group read_iq4_xs_group(const uint8_t* block, int index) {
    Group group;
    group.super = read_u16(block);
    const int scale = (block[4 + index / 2] >> index % 2 * 4 & 15) | (read_u16(block + 2) >> index * 2 & 3) << 4;
    group.scale[0] = static_cast<uint8_t>(scale - 32);
    memcpy(group.quads, block + 8 + index * 16, 16);
    return group;
}

// block_q6_K: nibbles [128], high pairs [64], s8 scales [16], d. `index`: which 32 of the 256.
inline Group read_q6_k_group(const uint8_t* block, int index) {
    Group group;
    const int quarter = index % 4;
    read_strided_nibbles(block + index / 4 * 64 + quarter % 2 * 32, quarter / 2 * 4, group.quads);
    read_strided_pairs(block + 128 + index / 4 * 32, quarter * 2, group.planes);
    memcpy(group.scale, block + 192 + index * 2, 2);
    group.super = read_u16(block + 208);
    return group;
}

// Group `index` of a GGUF block.
template <PackedLayout layout>
inline Group read_group(const uint8_t* block, int index) {
    if constexpr (layout.scales == Scales::kSuperMin) return read_super_min_group<layout>(block, index);
    if constexpr (layout.scales == Scales::kSuperMin16) return read_q2_k_group(block, index);
    if constexpr (layout.scales == Scales::kSuperSigned) return read_iq4_xs_group(block, index);
    if constexpr (layout.scales == Scales::kSuperSigned16 && layout.code_bits == 3)
        return read_q3_k_group(block, index);
    if constexpr (layout.scales == Scales::kSuperSigned16 && layout.code_bits == 6)
        return read_q6_k_group(block, index);
    if constexpr (layout.code_bits == 8) return read_q8_0_group(block);
    if constexpr (!layout.is_super() && layout.code_bits < 8) return read_nibble_group<layout>(block);
}

// --- Group <-> panel ----------------------------------------------------------------------------------------------
// Where group `index` of a column lies in its panel.
struct Place {
    PackedLayout layout;
    size_t header;
    size_t block;
    size_t scales;
    int column;

    Place(PackedLayout layout, int index, int column) : layout(layout), column(column) {
        const int in_run = index % layout.blocks_per_run();
        header = static_cast<size_t>(index / layout.blocks_per_run()) * layout.run_bytes();
        block = header + layout.header_bytes() + static_cast<size_t>(in_run) * layout.block_bytes();
        scales = layout.keeps_scales_in_header() ? header + (2 + in_run) * kPanelCols : block;
    }

    // A column's 4 bytes in vector `v` of an array of vector pairs that starts `offset` into the block.
    size_t quad(int offset, int pair) const {
        return block + offset + (pair * 2 + column / 16) * kVectorBytes + column % 16 * 4;
    }
    // Byte `i` of code `step`'s quad holds it beside those of other steps: its `bits` bits there.
    int bits_of(int offset, int bits, int step, int i, const uint8_t* panel) const {
        // Nibbles pair steps t and t + 4, pairs and bits lie in order.
        const int array = bits == 4 ? step % 4 : step * bits / 8, place = bits == 4 ? step / 4 * 4 : step * bits % 8;
        return panel[quad(offset, array) + i] >> place & ((1 << bits) - 1);
    }
};

// Column c of a block, and its share of the header before the block's run.
template <PackedLayout layout>
inline void put_scales(const Group& group, int c, int index, uint8_t* header, uint8_t* block) {
    if constexpr (layout.is_super()) {
        memcpy(header + 2 * c, &group.super, 2);
        if constexpr (layout.has_min()) memcpy(header + 2 * (kPanelCols + c), &group.super_second, 2);
        if constexpr (layout.keeps_scales_in_header()) {
            header[(2 + index) * kPanelCols + c] = group.scale[0];
        } else {
            block[c] = group.scale[0];
            block[kPanelCols + c] = group.scale[1];
        }
    } else {
        memcpy(block + 2 * c, &group.half, 2);
        if constexpr (layout.has_min()) memcpy(block + 2 * (kPanelCols + c), &group.half_min, 2);
    }
}

template <PackedLayout layout>
inline void put_codes(const Group& group, int c, uint8_t* block) {
    uint8_t* quads = block + layout.scale_bytes() + c / 16 * kVectorBytes + c % 16 * 4;
    for (int t = 0; t < layout.base_bits(); t++) memcpy(quads + t * 2 * kVectorBytes, &group.quads[t], 4);
    uint8_t* planes = quads + layout.base_bytes();
    for (int p = 0; p < layout.plane_bits(); p++) memcpy(planes + p * 2 * kVectorBytes, &group.planes[p], 4);
}

template <Format format>
void pack_rows(const uint8_t* source, size_t source_row_bytes, int num_rows, int cols, uint8_t* panel) {
    constexpr PackedLayout layout = packed_layout(format);
    const int num_runs = cols / (kGroup * layout.blocks_per_run());
    for (int c = 0; c < num_rows; c++) {
        const uint8_t* row = source + c * source_row_bytes;
        uint8_t* header = panel;
        for (int run = 0; run < num_runs; run++, row += layout.source_bytes, header += layout.run_bytes()) {
            uint8_t* block = header + layout.header_bytes();
            for (int index = 0; index < layout.blocks_per_run(); index++, block += layout.block_bytes()) {
                const Group group = read_group<layout>(row, index);
                put_scales<layout>(group, c, index, header, block);
                put_codes<layout>(group, c, block);
            }
        }
    }
}

void get_codes(const Place& at, const uint8_t* panel, uint8_t* codes) {
    const PackedLayout& layout = at.layout;
    const int base = layout.scale_bytes(), planes = base + layout.base_bytes();
    for (int i = 0; i < kGroup; i++) {
        int code = at.bits_of(base, layout.base_bits(), i / 4, i % 4, panel);
        if (const int bits = layout.plane_bits())
            code |= at.bits_of(planes, bits, i / 4, i % 4, panel) << layout.base_bits();
        codes[i] = layout.has_uneven_levels ? kUnevenLevels[code] : static_cast<uint8_t>(code);
    }
}

float half_at(const uint8_t* panel, size_t offset) { return half_to_float(read_u16(panel + offset)); }

// Scale and min of code i's half of a group; exact.
void scale_of(const Place& at, const uint8_t* panel, int i, float* scale, float* min) {
    const PackedLayout& layout = at.layout;
    const int c = at.column;
    const bool super = layout.is_super();
    const size_t halves = super ? at.header : at.block;
    const float d = half_at(panel, halves + 2 * c);
    const float m = layout.has_min() ? half_at(panel, halves + 2 * (kPanelCols + c)) : 0.0f;
    const uint8_t* bytes = panel + at.scales + (layout.has_half_scales() ? i / 16 * kPanelCols : 0) + c;
    switch (layout.scales) {
        case Scales::kHalf:
        case Scales::kHalfMin:
            *scale = d, *min = m;
            break;
        case Scales::kSuperMin:
            *scale = d * bytes[0], *min = m * bytes[kPanelCols];
            break;
        case Scales::kSuperMin16:
            *scale = d * (bytes[0] & 15), *min = m * (bytes[0] >> 4);
            break;
        case Scales::kSuperSigned16:
        case Scales::kSuperSigned:
            *scale = d * static_cast<int8_t>(bytes[0]), *min = m;
            break;
    }
}

// Every product below is exact, so only the addition of a min rounds, as in the formats' definitions.
void unpack_group(const Place& at, const uint8_t* panel, float* out) {
    uint8_t codes[kGroup];
    get_codes(at, panel, codes);
    for (int half = 0; half < 2; half++) {
        float scale, min;
        scale_of(at, panel, 16 * half, &scale, &min);
        for (int i = 16 * half; i < 16 * half + 16; i++) {
            const float product = scale * static_cast<float>(codes[i] - at.layout.code_offset);
            out[i] = at.layout.has_min() ? product + min : product;
        }
    }
}

size_t float_place(int step, int k, int column) {
    return (static_cast<size_t>(k / step) * kPanelCols + column) * step + k % step;
}

template <class T, int kStep>
void pack_float_rows(const uint8_t* source, size_t source_row_bytes, int num_rows, int cols, uint8_t* panel) {
    constexpr int kRun = 64;  // elements of a row at a time: what they fill of the panel stays in the nearest cache
    for (int first = 0; first < cols; first += kRun) {
        const int last = std::min(first + kRun, cols);
        for (int c = 0; c < num_rows; c++) {
            const uint8_t* row = source + c * source_row_bytes;
            for (int k = first; k < last; k++) {
                memcpy(panel + float_place(kStep, k, c) * sizeof(T), row + k * sizeof(T), sizeof(T));
            }
        }
    }
}

void unpack_float_row(Format format, const uint8_t* panel, int column, int cols, float* out) {
    const int width = float_width(format);
    for (int k = 0; k < cols; k++) {
        const uint8_t* p = panel + float_place(float_step(format), k, column) * width;
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
    const int step = float_step(format);
    if (is_float(format))
        return static_cast<size_t>((cols + step - 1) / step * step) * kPanelCols * float_width(format);
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
    if (num_rows < kPanelCols || cols % float_step(format) != 0) memset(panel, 0, packed_panel_bytes(format, cols));
    constexpr decltype(&pack_rows<Format::kQ4_0>) kPackers[] = {
        pack_float_rows<uint32_t, 1>, pack_float_rows<uint16_t, 1>, pack_float_rows<uint16_t, 2>,
        pack_rows<Format::kQ4_0>,     pack_rows<Format::kQ4_1>,     pack_rows<Format::kQ5_0>,
        pack_rows<Format::kQ5_1>,     pack_rows<Format::kQ8_0>,     pack_rows<Format::kQ2_K>,
        pack_rows<Format::kQ3_K>,     pack_rows<Format::kQ4_K>,     pack_rows<Format::kQ5_K>,
        pack_rows<Format::kQ6_K>,     pack_rows<Format::kIQ4_NL>,   pack_rows<Format::kIQ4_XS>,
    };
    kPackers[static_cast<int>(format)](source, source_row_bytes, num_rows, cols, panel);
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
