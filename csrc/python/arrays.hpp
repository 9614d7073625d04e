// Part of module.cpp: NumPy arrays checked as far as memory safety needs, and turned into pointers.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <type_traits>

#include "host/memory.hpp"
#include "host/names.hpp"
#include "python/dlpack.hpp"

namespace fastrnn {
namespace {

namespace py = pybind11;

// An aligned array of T in the machine's byte order.
template <class T> bool is_array_of(py::handle h) {
  const auto& api = py::detail::npy_api::get();
  if (!api.PyArray_Check_(h.ptr())) return false;
  const auto* array = py::detail::array_proxy(h.ptr());
  const auto* type = py::detail::array_descriptor_proxy(array->descr);
  if (!(array->flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) return false;
  const bool usual = type->kind == (std::is_floating_point_v<T> ? 'f' : 0) && type->byteorder == '=';
  if (usual) return type->type_num == (sizeof(T) == 4 ? py::detail::npy_api::NPY_FLOAT_ : py::detail::npy_api::NPY_DOUBLE_);
  if (!std::is_floating_point_v<T> && type->kind == 'f') return false;  // asked of every x, and check_ is slow
  return py::array_t<T>::check_(h);
}

// The object itself; of a DLPack capsule of memory on the CPU an array over it, which keeps the capsule.
py::object as_array(py::handle h) {
  if (!PyCapsule_CheckExact(h.ptr())) return py::reinterpret_borrow<py::object>(h);
  const auto* m = static_cast<const DlpackManaged*>(PyCapsule_GetPointer(h.ptr(), "dltensor"));
  if (!m) throw py::error_already_set();
  const Dlpack* const d = &m->tensor;
  constexpr const char* kinds = "iuf   b";
  if (d->device.kind != 1 || d->type.lanes != 1 || d->type.kind > 6 || kinds[d->type.kind] == ' ')
    throw py::type_error("a DLPack capsule must hold real numbers that NumPy has, in the CPU's memory");
  const int64_t size = d->type.bits / 8;
  Shape shape(d->shape, d->shape + d->dimensions), strides(shape.size());
  int64_t run = size;
  for (size_t i = shape.size(); i-- > 0; run *= shape[i]) strides[i] = d->strides ? d->strides[i] * size : run;
  if (!d->data && run) throw py::value_error("a DLPack capsule holds no memory");
  return py::array(py::dtype(kinds[d->type.kind] + std::to_string(size)), shape, strides, static_cast<char*>(d->data) + d->offset, h);
}

template <class Sizes> bool has_shape(const py::array& a, const Sizes& shape) {
  if (a.ndim() != py::ssize_t(shape.size())) return false;
  for (size_t i = 0; i < shape.size(); i++)
    if (a.shape(i) != shape.begin()[i]) return false;
  return true;
}
bool is_contiguous(const py::array& a) { return a.flags() & py::array::c_style; }

// The array behind h, which must be of T and of that shape.
template <class T> py::array the_array(const char* name, py::handle h, const Shape& shape, bool contiguous = true, bool writable = false) {
  if (!is_array_of<T>(h))
    throw py::type_error(std::string(name) + " must be an aligned array of " + py::str(py::dtype::of<T>()).template cast<std::string>());
  auto a = py::reinterpret_borrow<py::array>(h);
  if (!has_shape(a, shape))
    throw py::value_error(std::string(name) + " has shape " + text_of(Shape(a.shape(), a.shape() + a.ndim())) + " but must have " +
                          text_of(shape));
  if (contiguous && !is_contiguous(a)) throw py::value_error(std::string(name) + " must be C-contiguous");
  if (writable && !a.writeable()) throw py::value_error(std::string(name) + " must be writable");
  return a;
}
template <class T> const T* pointer(const char* name, py::handle h, const Shape& shape) {
  return h.is_none() ? nullptr : static_cast<const T*>(the_array<T>(name, h, shape).data());
}

}  // namespace
}  // namespace fastrnn
