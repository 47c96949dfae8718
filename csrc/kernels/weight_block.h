// A block of weights as a quantized format stores it, before its bits are put together. Knows fields; not how they are
// found or laid out.
#pragma once
#include "kernels/kernels.h"

namespace tuili {

constexpr int kFitGroups = 16;  // groups fitted at once, one to a lane

// Codes from 0 for the lowest level, bytes of Q8_0 as they are. 32 codes, or 256 under shared scales.
struct WeightBlock {
    uint8_t codes[256];
    int8_t scales[16];  // integers, of each group
    uint8_t mins[16];
    uint16_t d;     // float16 scale, or what `scales` are multiples of
    uint16_t dmin;  // float16 min, or what `mins` are multiples of
};

constexpr bool has_shared_scales(Format format) {
    return (format >= Format::kQ2_K && format <= Format::kQ6_K) || format == Format::kIQ4_XS;
}
constexpr int block_weights(Format format) { return has_shared_scales(format) ? 256 : 32; }
// Weights that share one scale.
constexpr int fit_group_size(Format format) {
    return format == Format::kQ2_K || format == Format::kQ3_K || format == Format::kQ6_K ? 16 : 32;
}
// What one call of fit_blocks takes, whole blocks.
constexpr int fit_weights(Format format) { return kFitGroups * fit_group_size(format); }

// Writes a block as GGUF stores it.
void write_block(Format format, const WeightBlock& block, uint8_t* out);

}  // namespace tuili
