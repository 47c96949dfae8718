// _native.kernels: packing and kernels one call at a time, by instruction set, for tests and benchmarks.
// Knows NumPy arrays and kernels.h; not models or threads.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace nb = nanobind;

namespace tuili {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <class T>
using Aligned = std::unique_ptr<T[], Free>;

template <class T>
Aligned<T> allocate(size_t count) {
    const size_t num_bytes = (count * sizeof(T) + 63) / 64 * 64;
    auto* p = static_cast<T*>(std::aligned_alloc(64, num_bytes ? num_bytes : 64));
    if (!p) throw std::bad_alloc();
    return Aligned<T>(p);
}

template <class T>
nb::object array(Aligned<T> data, std::initializer_list<size_t> shape) {
    T* p = data.release();
    nb::capsule owner(p, [](void* q) noexcept { std::free(q); });
    return nb::cast(nb::ndarray<nb::numpy, T>(p, shape, owner));
}

Format format_of(const std::string& name) {
    const auto* found = std::find(std::begin(kFormatNames), std::end(kFormatNames), name);
    if (found == std::end(kFormatNames)) throw std::invalid_argument("format " + name + " has no kernel");
    return static_cast<Format>(found - std::begin(kFormatNames));
}

const Kernels& kernels_of(const std::string& isa) {
    if (const Kernels* kernels = kernels_for(isa.c_str())) return *kernels;
    throw std::invalid_argument("instruction set " + isa + " is not available here");
}

int checked_size(size_t size) {
    if (size > std::numeric_limits<int>::max()) throw std::invalid_argument("an array has too many rows or columns");
    return static_cast<int>(size);
}

// A weight matrix in panels.
class Matrix {
  public:
    Matrix(const std::string& format, Bytes source, int cols) {
        matrix_.format = format_of(format);
        matrix_.rows = checked_size(source.shape(0));
        matrix_.cols = cols;
        const size_t row_bytes = source_row_bytes(matrix_.format, cols);
        if (cols <= 0 || row_bytes == 0 || row_bytes != source.shape(1))
            throw std::invalid_argument("a row of " + std::to_string(cols) + " " + format + " weights is " +
                                        std::to_string(row_bytes) + " bytes, not " + std::to_string(source.shape(1)));
        matrix_.panel_bytes = packed_panel_bytes(matrix_.format, cols);
        panels_ = allocate<uint8_t>(matrix_.panel_bytes * matrix_.num_panels());
        for (int p = 0; p < matrix_.num_panels(); p++) {
            const int num_rows = std::min(kPanelCols, matrix_.rows - p * kPanelCols);
            pack_panel(matrix_.format, source.data() + static_cast<size_t>(p) * kPanelCols * row_bytes, row_bytes,
                       num_rows, cols, panels_.get() + p * matrix_.panel_bytes);
        }
        matrix_.panels = panels_.get();
    }

    const PackedMatrix& packed() const { return matrix_; }
    size_t num_bytes() const { return matrix_.panel_bytes * matrix_.num_panels(); }

    nb::object unpack(int row) const {
        if (row < 0 || row >= matrix_.rows) throw nb::index_error("row is outside the matrix");
        auto out = allocate<float>(matrix_.cols);
        unpack_row(matrix_, row, out.get());
        return array(std::move(out), {static_cast<size_t>(matrix_.cols)});
    }

  private:
    PackedMatrix matrix_;
    Aligned<uint8_t> panels_;
};

// Rows of activations in every form, quantized by one instruction set.
class Inputs {
  public:
    Inputs(const std::string& isa, Floats values) {
        x_.num_rows = checked_size(values.shape(0));
        x_.row_stride = x_.num_rows;
        x_.cols = checked_size(values.shape(1));
        f32_ = allocate<float>(values.size());
        x_.f32 = f32_.get();
        x_.bf16 = (bf16_ = allocate<uint16_t>((x_.cols + kGroup - 1) / kGroup * values.shape(0) * kGroup)).get();
        if (x_.cols % kGroup == 0) allocate_groups();
        const Kernels& kernels = kernels_of(isa);
        for (int r = 0; r < x_.num_rows; r++)
            kernels.quantize_row(values.data() + static_cast<size_t>(r) * x_.cols, nullptr, x_, r);
    }

    const Activations& activations() const { return x_; }

    // q int8 [cols / 32, rows, 32], scale, scaled_sum float32, sum, half_sum int32 [cols / 32, rows]
    nb::tuple groups() const {
        if (!x_.q)
            throw std::invalid_argument("rows of " + std::to_string(x_.cols) + " values are not whole groups of 32");
        const size_t groups = x_.cols / kGroup, rows = x_.num_rows;
        return nb::make_tuple(copy(x_.q, {groups, rows, kGroup}), copy(x_.scale, {groups, rows}),
                              copy(x_.scaled_sum, {groups, rows}), copy(x_.sum, {groups, rows}),
                              copy(x_.half_sum, {groups, rows}));
    }

  private:
    void allocate_groups() {
        const size_t count = static_cast<size_t>(x_.cols / kGroup) * x_.row_stride;
        x_.q = (q_ = allocate<int8_t>(count * kGroup)).get();
        x_.scale = (scale_ = allocate<float>(count)).get();
        x_.scaled_sum = (scaled_sum_ = allocate<float>(count)).get();
        x_.sum = (sum_ = allocate<int32_t>(count)).get();
        x_.half_sum = (half_sum_ = allocate<int32_t>(count)).get();
    }

    template <class T>
    static nb::object copy(const T* data, std::initializer_list<size_t> shape) {
        size_t count = 1;
        for (size_t n : shape) count *= n;
        auto out = allocate<T>(count);
        memcpy(out.get(), data, count * sizeof(T));
        return array(std::move(out), shape);
    }

    Activations x_;
    Aligned<float> f32_, scale_, scaled_sum_;
    Aligned<uint16_t> bf16_;
    Aligned<int8_t> q_;
    Aligned<int32_t> sum_, half_sum_;
};

// Rows [row_begin, row_end) of x times the transposed matrix: float32 [row_end - row_begin, matrix.rows].
nb::object matmul(const std::string& isa, const Matrix& matrix, const Inputs& inputs, int row_begin, int row_end) {
    const PackedMatrix& w = matrix.packed();
    const Activations& x = inputs.activations();
    if (x.cols != w.cols) throw std::invalid_argument("the inputs and the matrix differ in cols");
    if (row_begin < 0 || row_begin > row_end || row_end > x.num_rows)
        throw std::invalid_argument("rows are out of range");
    const Kernels& kernels = kernels_of(isa);
    const size_t num_rows = row_end - row_begin;
    auto tile = allocate<float>(num_rows * kPanelCols);
    auto out = allocate<float>(num_rows * w.rows);
    for (int p = 0; p < w.num_panels(); p++) {
        const uint8_t* next = p + 1 < w.num_panels() ? w.panels + (p + 1) * w.panel_bytes : nullptr;
        kernels.matmul_panel(w, p, x, row_begin, row_end, tile.get(), next);
        const size_t cols = std::min(kPanelCols, w.rows - p * kPanelCols);
        for (size_t r = 0; r < num_rows; r++)
            memcpy(out.get() + r * w.rows + p * kPanelCols, tile.get() + r * kPanelCols, cols * sizeof(float));
    }
    return array(std::move(out), {num_rows, static_cast<size_t>(w.rows)});
}

size_t packed_bytes(const std::string& format, int rows, int cols) {
    if (rows < 1 || cols < 1) throw std::invalid_argument("rows and cols must be positive");
    const PackedMatrix matrix{.format = format_of(format), .rows = rows, .cols = cols};
    return packed_panel_bytes(matrix.format, cols) * matrix.num_panels();
}

nb::tuple available_isas() {
    nb::list names;
    for (const char* isa : {"scalar", "avx2", "avx_vnni", "avx512", "avx512_bf16"})
        if (kernels_for(isa)) names.append(isa);
    return nb::tuple(names);
}

}  // namespace

void bind_kernels(nb::module_& module) {
    module.def("available_isas", available_isas,
               "The instruction sets of this build that this machine runs, slowest first.");
    nb::class_<Matrix>(module, "Matrix", "A weight matrix, repacked from GGUF rows uint8 [rows, row_bytes].")
        .def(nb::init<const std::string&, Bytes, int>(), nb::arg("format"), nb::arg("source"), nb::arg("cols"))
        .def("unpack", &Matrix::unpack, nb::arg("row"), "One row as float32 [cols].")
        .def_prop_ro("num_bytes", &Matrix::num_bytes);
    nb::class_<Inputs>(module, "Inputs", "Rows of activations, float32 [rows, cols] and quantized.")
        .def(nb::init<const std::string&, Floats>(), nb::arg("isa"), nb::arg("values"))
        .def("groups", &Inputs::groups, "(q, scale, scaled_sum, sum, half_sum), group-major.");
    module.def("matmul", matmul, nb::arg("isa"), nb::arg("matrix"), nb::arg("inputs"), nb::arg("row_begin"),
               nb::arg("row_end"), "Rows of the inputs times the transposed matrix: float32 [rows, matrix rows].");
    module.def("packed_bytes", packed_bytes, nb::arg("format"), nb::arg("rows"), nb::arg("cols"),
               "What Matrix.num_bytes will be of such a matrix.");
}

}  // namespace tuili
