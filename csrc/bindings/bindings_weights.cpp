// _native.quantize_weights: NumPy bytes in, NumPy bytes out. Computes nothing.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "bindings/bindings_spec.h"
#include "kernels/weight_block.h"
#include "machine/thread_pool.h"
#include "weights/weight_quantizer.h"

namespace tuili {
namespace {

namespace nb = nanobind;
using Source = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Target = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check_rows(const char* name, size_t found, size_t expected) {
    if (found == expected && expected > 0) return;
    throw std::invalid_argument(std::string(name) + " has rows of " + std::to_string(found) + " bytes, not " +
                                std::to_string(expected));
}

bool quantize(const std::string& target_name, const std::string& source_name, const Source& data, int cols,
              const Target& out, int num_threads, const std::string& isa) {
    const Format target = read_format(target_name), source = read_format(source_name);
    const Kernels* kernels = isa.empty() ? &best_kernels() : kernels_for(isa.c_str());
    if (kernels == nullptr) throw std::invalid_argument("instruction set " + isa + " is not available here");
    if (is_float(target) || !is_float(source))
        throw std::invalid_argument(source_name + " cannot be quantized to " + target_name);
    check_rows("data", data.shape(1), source_row_bytes(source, cols));
    check_rows("out", out.shape(1), source_row_bytes(target, cols));
    if (data.shape(0) != out.shape(0)) throw std::invalid_argument("data and out differ in rows");
    const size_t num_weights = data.shape(0) * cols;
    if (num_weights / fit_weights(target) >= size_t{kMaxStageItems}) throw std::invalid_argument("data is too large");
    nb::gil_scoped_release release;
    ThreadPool pool(std::clamp(num_threads, 1, kMaxThreads));
    return quantize_weights(target, source, data.data(), num_weights, *kernels, pool, out.data());
}

}  // namespace

void bind_weights(nb::module_& module) {
    module.def("quantize_weights", quantize, nb::arg("target"), nb::arg("source"), nb::arg("data"), nb::arg("cols"),
               nb::arg("out").noconvert(), nb::arg("num_threads"), nb::arg("isa") = "");
}

}  // namespace tuili
