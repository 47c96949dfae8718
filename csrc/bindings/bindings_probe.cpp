// _native.read_bandwidth and _native.peak_ops: what this machine can do at most. Computes nothing.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "machine/probe.h"
#include "machine/thread_pool.h"

namespace nb = nanobind;

namespace tuili {
namespace {

constexpr double kMaxSeconds = 60;
constexpr size_t kMaxProbeBytes = size_t{1} << 36;  // items of a stage are counted in 24 bits

const Kernels& checked(const std::optional<std::string>& isa, int num_threads, double seconds) {
    if (num_threads < 1 || num_threads > kMaxThreads) throw std::invalid_argument("num_threads is out of range");
    if (!(seconds >= 0 && seconds <= kMaxSeconds)) throw std::invalid_argument("seconds is out of range");
    const Kernels* kernels = isa ? kernels_for(isa->c_str()) : &best_kernels();
    if (kernels == nullptr) throw std::invalid_argument("isa: this build or CPU has no " + *isa);
    return *kernels;
}

double probe_bandwidth(int num_threads, size_t num_bytes, double seconds, const std::optional<std::string>& isa) {
    const Kernels& kernels = checked(isa, num_threads, seconds);
    if (num_bytes > kMaxProbeBytes) throw std::invalid_argument("num_bytes is out of range");
    nb::gil_scoped_release release;
    return read_bandwidth(kernels, num_threads, num_bytes, seconds);
}

nb::dict probe_peak(int num_threads, double seconds, const std::optional<std::string>& isa) {
    const Kernels& kernels = checked(isa, num_threads, seconds);
    PeakOperations peak{};
    {
        nb::gil_scoped_release release;
        peak = peak_operations(kernels, num_threads, seconds);
    }
    nb::dict out;
    out["int8"] = peak.int8;
    out["float32"] = peak.float32;
    return out;
}

}  // namespace

void bind_probes(nb::module_& module) {
    module.def("read_bandwidth", probe_bandwidth, nb::arg("num_threads"), nb::arg("num_bytes"), nb::arg("seconds"),
               nb::arg("isa") = nb::none(),
               "Bytes per second that the threads together read from one buffer of num_bytes.");
    module.def("peak_ops", probe_peak, nb::arg("num_threads"), nb::arg("seconds"), nb::arg("isa") = nb::none(),
               "Operations per second of the threads together: 'int8' dot products and 'float32' multiply-adds.");
}

}  // namespace tuili
