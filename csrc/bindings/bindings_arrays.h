// NumPy arrays as pointers, with dtype, shape and alignment checked and named in errors.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace tuili {

namespace nb = nanobind;

constexpr int64_t kAny = -1;  // any extent

constexpr int kMaxAxes = 3;

template <class T>
struct ArrayView {
    const T* data;
    std::array<int64_t, kMaxAxes> shape;
    int64_t size(int axis) const { return shape[axis]; }
};

template <class Array>
bool is_contiguous(const Array& array) {
    int64_t stride = 1;
    for (size_t axis = array.ndim(); axis-- > 0; stride *= static_cast<int64_t>(array.shape(axis))) {
        if (array.shape(axis) != 1 && array.stride(axis) != stride) return array.size() == 0;
    }
    return true;
}

inline std::string shape_text(std::initializer_list<int64_t> shape) {
    std::string text = "[";
    for (int64_t n : shape) {
        if (text.size() > 1) text += ", ";
        text += n == kAny ? "any" : std::to_string(n);
    }
    text += "]";
    return text;
}

// Throws std::invalid_argument naming the array, what its shape is and must be.
template <class Array>
void check_shape(const Array& array, const char* name, std::initializer_list<int64_t> shape) {
    bool fits = array.ndim() == shape.size();
    for (size_t axis = 0; fits && axis < array.ndim(); axis++) {
        const auto extent = static_cast<int64_t>(array.shape(axis));
        const int64_t wanted = shape.begin()[axis];
        fits = (wanted == kAny || wanted == extent) && extent < INT32_MAX;
    }
    if (fits) return;
    std::string found = "[";
    for (size_t axis = 0; axis < array.ndim(); axis++) {
        if (axis > 0) found += ", ";
        found += std::to_string(array.shape(axis));
    }
    found += "]";
    throw std::invalid_argument(std::string(name) + " has shape " + found + ", not " + shape_text(shape));
}

// Reads arrays and keeps them alive, or copies of those it had to make contiguous.
class ArrayReader {
  public:
    template <class T>
    ArrayView<T> array(nb::handle owner, const char* name, std::initializer_list<int64_t> shape) {
        return value<T>(owner.attr(name), name, shape);
    }

    template <class T>
    ArrayView<T> value(nb::handle object, const char* name, std::initializer_list<int64_t> shape) {
        nb::ndarray<nb::ro, nb::device::cpu> any;
        if (!nb::try_cast(object, any) || any.dtype() != nb::dtype<T>()) {
            const nb::object type = nb::getattr(object, "dtype", object.type());
            const auto found = nb::cast<std::string>(nb::str(type));
            throw std::invalid_argument(std::string(name) + " has dtype " + found + ", not " + dtype_name<T>());
        }
        check_shape(any, name, shape);
        if (reinterpret_cast<uintptr_t>(any.data()) % alignof(T) != 0) {
            throw std::invalid_argument(std::string(name) + " is not aligned to its type");
        }
        ArrayView<T> view{static_cast<const T*>(any.data()), {}};
        for (size_t axis = 0; axis < any.ndim(); axis++) view.shape[axis] = static_cast<int64_t>(any.shape(axis));
        if (is_contiguous(any)) {
            kept_.push_back(nb::borrow(object));
        } else {
            has_copies_ = true;
            auto copy = nb::cast<nb::ndarray<const T, nb::c_contig, nb::device::cpu>>(object);
            view.data = copy.data();
            kept_.push_back(nb::cast(std::move(copy)));
        }
        return view;
    }

    bool has_copies() const { return has_copies_; }

  private:
    template <class T>
    static const char* dtype_name() {
        if constexpr (std::is_same_v<T, bool>) return "bool";
        if constexpr (std::is_same_v<T, uint8_t>) return "uint8";
        if constexpr (std::is_same_v<T, int32_t>) return "int32";
        if constexpr (std::is_same_v<T, uint32_t>) return "uint32";
        if constexpr (std::is_same_v<T, uint64_t>) return "uint64";
        return "float32";
    }

    std::vector<nb::object> kept_;
    bool has_copies_ = false;
};

}  // namespace tuili
