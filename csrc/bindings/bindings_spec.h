// A tuili.models.spec.ModelSpec and its weights, read by field name into the runtime's structs.
#pragma once
#include <nanobind/nanobind.h>

#include <vector>

#include "bindings/bindings_arrays.h"
#include "model/model_spec.h"
#include "weights/weights.h"

namespace tuili {

// A weight format by its GGUF name. Throws std::invalid_argument for one without kernels.
Format read_format(const std::string& name);

// What a spec leaves to the caller, for each layer.
struct LayerPlaces {
    std::vector<int> groups;                 // cache group
    std::vector<int> ropes;                  // rope table; -1: none
    std::vector<std::vector<float>> slopes;  // of ALiBi, one per head; empty: none
};

ModelSpec read_spec(nb::handle spec, int max_model_len, const LayerPlaces& places);

// ropes: [(float32 [dim / 2], factor)], as the spec's layers name them
std::vector<RopeFrequencies> read_ropes(ArrayReader& read, nb::list ropes, const ModelSpec& spec);

// Asks Python for the first few of a list of names, each (format name, shape, uint8 array [rows, row bytes]), and keeps
// them until the next are asked for. Called without the interpreter's lock; made and destroyed with it.
class PythonTensors {
  public:
    explicit PythonTensors(nb::callable read) : read_(std::move(read)) {}
    std::vector<SourceTensor> operator()(std::span<const std::string> names);

  private:
    nb::callable read_;
    ArrayReader arrays_;
};

}  // namespace tuili
