// Float weights to a quantized format's bytes, on all threads of a pool. Knows rows of numbers; not models or files.
#pragma once
#include <cstddef>

#include "kernels/kernels.h"
#include "machine/thread_pool.h"

namespace tuili {

// `num_weights` weights of a float format `source`, rows after rows of whole blocks, to `target`'s blocks. Returns
// whether all were finite and stay so; `out` holds nonsense otherwise.
bool quantize_weights(Format target, Format source, const uint8_t* data, size_t num_weights, const Kernels& kernels,
                      ThreadPool& pool, uint8_t* out);

}  // namespace tuili
