// A tuili.models.spec.ModelSpec and its weights, read by field name into the runtime's structs.
#pragma once
#include <nanobind/nanobind.h>

#include <vector>

#include "bindings_arrays.h"
#include "model_spec.h"
#include "weights.h"

namespace tuili {

// layer_groups and layer_ropes give each layer's cache group and rope table (-1: none).
ModelSpec read_spec(nb::handle spec, int max_model_len, const std::vector<int>& layer_groups,
                    const std::vector<int>& layer_ropes);

// tensors: name -> (format name, shape, uint8 array of the bytes)
SourceTensors read_tensors(ArrayReader& read, nb::dict tensors);

// ropes: [(cos, sin)], float32 [max_model_len, dim / 2], as the spec's layers name them
std::vector<SourceRopeTable> read_rope_tables(ArrayReader& read, nb::list ropes, const ModelSpec& spec);

}  // namespace tuili
