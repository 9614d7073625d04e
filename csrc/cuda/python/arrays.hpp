// Part of cuda/bindings.cpp: arrays in a GPU's memory, whoever owns them, checked as far as memory safety needs.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "cuda/host/runtime.hpp"
#include "cuda/kernels/numbers.hpp"
#include "host/memory.hpp"
#include "host/names.hpp"
#include "python/dlpack.hpp"

namespace fastrnn::cuda {
namespace {

namespace py = pybind11;

// ---- numbers -------------------------------------------------------------------------------------------------------

struct Kind {
  const char* name;      // as NumPy has it, or bfloat16
  const char* typestr;   // of __cuda_array_interface__
  uint8_t code, bits;    // of DLPack
};
constexpr Kind kinds[] = {{"float32", "<f4", 2, 32}, {"float64", "<f8", 2, 64}, {"float16", "<f2", 2, 16}, {"bfloat16", "<V2", 4, 16},
                          {"int64", "<i8", 0, 64},   {"int32", "<i4", 0, 32},   {"bool", "|b1", 6, 8},     {"uint8", "|u1", 1, 8}};

const Kind* kind_named(const std::string& name) {
  for (const Kind& kind : kinds)
    if (name == kind.name) return &kind;
  throw py::type_error("no arrays of " + name + " are known on a GPU");
}
template <class T> const char* name_of;
template <> constexpr const char* name_of<float> = "float32";
template <> constexpr const char* name_of<double> = "float64";
template <> constexpr const char* name_of<Float16> = "float16";
template <> constexpr const char* name_of<Bfloat16> = "bfloat16";
template <> constexpr const char* name_of<int64_t> = "int64";
template <> constexpr const char* name_of<uint8_t> = "uint8";
template <> constexpr const char* name_of<bool> = "bool";

int64_t size_of(const Shape& shape) {
  int64_t n = 1;
  for (int64_t extent : shape) n = times(n, extent);
  return n;
}
Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size());
  int64_t run = 1;
  for (size_t i = shape.size(); i-- > 0; run *= shape[i]) strides[i] = run;
  return strides;
}

// ---- devices and streams -------------------------------------------------------------------------------------------

// Makes a device the current one for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice"), changed_ = true;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

cudaStream_t stream_of(uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

// ---- arrays --------------------------------------------------------------------------------------------------------

constexpr int dlpack_cuda = 2, dlpack_managed = 13;
#ifdef FASTRNN_EMULATE
constexpr int dlpack_emulated = 1;  // the CPU's
#else
constexpr int dlpack_emulated = dlpack_cuda;
#endif

// The memory of our arrays on each device: a pool of our own, which keeps what was given back. Made once, with the device prepared.
std::vector<cudaMemPool_t>& pools() {
  static auto* all = new std::vector<cudaMemPool_t>;
  return *all;
}
void make_pool(int device) {
  if (pools().size() <= size_t(device)) pools().resize(size_t(device) + 1);
  if (pools()[size_t(device)]) return;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  uint64_t threshold = UINT64_MAX;
  check(cudaMemPoolCreate(&pools()[size_t(device)], &properties), "cudaMemPoolCreate");
  check(cudaMemPoolSetAttribute(pools()[size_t(device)], cudaMemPoolAttrReleaseThreshold, &threshold), "cudaMemPoolSetAttribute");
}

// Memory that an array of ours owns: taken from the device's pool in the order of a stream, and given back in it. What lasts, as
// parameters do, is read in many streams: it is given back when the device has done everything.
struct Owned {
  void* data = nullptr;
  int device;
  cudaStream_t stream;
  bool lasts = false;

  Owned(int64_t bytes, int device_, cudaStream_t stream_) : device(device_), stream(stream_) {
    const OnDevice here(device);
    if (size_t(device) >= pools().size() || !pools()[size_t(device)]) throw py::value_error("the device was not prepared");
    const cudaError_t status = cudaMallocFromPoolAsync(&data, size_t(bytes ? bytes : 1), pools()[size_t(device)], stream);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw std::bad_alloc();
    }
    check(status, "cudaMallocFromPoolAsync");
  }
  ~Owned() {
    int before;
    if (cudaGetDevice(&before) != cudaSuccess) return;  // the process ends
    cudaSetDevice(device);
    if (lasts) cudaDeviceSynchronize();
    cudaFreeAsync(data, stream);
    cudaSetDevice(before);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
};

struct Array {
  void* data;
  Shape shape, strides;  // strides in elements
  const Kind* kind;
  int device;
  bool writable;
  py::object owner;              // of memory that others own
  std::shared_ptr<Owned> owned;  // of our own
  uintptr_t stream;              // in whose order our own is written

  int64_t itemsize() const { return kind->bits / 8; }
  int64_t bytes() const { return times(size_of(shape), itemsize()); }
  bool contiguous() const {
    int64_t run = 1;
    for (size_t i = shape.size(); i-- > 0; run *= shape[i])
      if (shape[i] > 1 && strides[i] != run) return size_of(shape) == 0;
    return true;
  }
  int64_t extent(size_t axis) const { return shape[axis]; }

  static Array empty(const Shape& shape, const std::string& dtype, int device, uintptr_t stream) {
    const Kind* const kind = kind_named(dtype);
    for (int64_t extent : shape)
      if (extent < 0) throw py::value_error("an array cannot have the shape " + text_of(shape));
    auto owned = std::make_shared<Owned>(times(size_of(shape), kind->bits / 8), device, stream_of(stream));
    return {owned->data, shape, contiguous_strides(shape), kind, device, true, py::none(), owned, stream};
  }

  static Array from_dlpack(const py::capsule& capsule) {
    auto* const managed = static_cast<DlpackManaged*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!managed) throw py::error_already_set();
    const Dlpack& t = managed->tensor;
    if (t.device.kind != dlpack_cuda && t.device.kind != dlpack_managed && t.device.kind != dlpack_emulated)
      throw py::type_error("the array is not in a GPU's memory");
    const Kind* kind = nullptr;
    for (const Kind& k : kinds)
      if (t.type.lanes == 1 && k.code == t.type.kind && k.bits == t.type.bits) kind = &k;
    if (!kind) throw py::type_error("the array holds numbers that are not known here");
    Shape shape(t.shape, t.shape + t.dimensions);
    Shape strides = t.strides ? Shape(t.strides, t.strides + t.dimensions) : contiguous_strides(shape);
    char* const data = static_cast<char*>(t.data) + t.offset;
    return {data, std::move(shape), std::move(strides), kind, t.device.id, true, capsule, nullptr, 0};
  }

  static Array from_interface(const py::dict& interface, int device, const py::object& owner) {
    const auto typestr = interface["typestr"].cast<std::string>();
    const Kind* kind = nullptr;
    for (const Kind& k : kinds)
      if (typestr == k.typestr && k.code != 4) kind = &k;
    if (!kind) throw py::type_error("__cuda_array_interface__ holds numbers of type " + typestr + ", which are not known here");
    if (interface.contains("mask") && !interface["mask"].is_none()) throw py::type_error("arrays with a mask are not supported");
    const auto shape = interface["shape"].cast<Shape>();
    Shape strides = contiguous_strides(shape);
    if (interface.contains("strides") && !interface["strides"].is_none()) {
      strides = interface["strides"].cast<Shape>();
      if (strides.size() != shape.size()) throw py::value_error("__cuda_array_interface__ has other strides than axes");
      for (int64_t& s : strides) {
        if (s % (kind->bits / 8)) throw py::value_error("the array's elements do not lie whole elements apart");
        s /= kind->bits / 8;
      }
    }
    const auto where = interface["data"].cast<std::pair<uintptr_t, bool>>();
    return {reinterpret_cast<void*>(where.first), shape, strides, kind, device, !where.second, owner, nullptr, 0};
  }

  Array lasting() const {
    if (owned) owned->lasts = true;
    return *this;
  }
  Array swapped() const {
    Array a = *this;
    if (shape.size() < 2) throw py::value_error("an array needs two axes to swap");
    std::swap(a.shape[0], a.shape[1]);
    std::swap(a.strides[0], a.strides[1]);
    return a;
  }
  // (T,...) as (T,1,...).
  Array with_batch() const {
    Array a = *this;
    if (shape.empty()) throw py::value_error("an array needs an axis to put one behind it");
    a.shape.insert(a.shape.begin() + 1, 1);
    a.strides.insert(a.strides.begin() + 1, strides[0]);
    return a;
  }
  // The same memory in another shape; of a contiguous array.
  Array reshaped(const Shape& to) const {
    if (!contiguous() || size_of(to) != size_of(shape)) throw py::value_error("cannot see " + text_of(shape) + " as " + text_of(to));
    Array a = *this;
    a.shape = to, a.strides = contiguous_strides(to);
    return a;
  }

  py::dict interface() const {
    if (kind->code == 4) throw py::attribute_error("__cuda_array_interface__ has no bfloat16: use __dlpack__");
    Shape in_bytes = strides;
    for (int64_t& s : in_bytes) s *= itemsize();
    py::dict d;
    d["shape"] = py::tuple(py::cast(shape));
    d["strides"] = py::tuple(py::cast(in_bytes));
    d["typestr"] = kind->typestr;
    d["data"] = py::make_tuple(size_of(shape) ? reinterpret_cast<uintptr_t>(data) : 0, !writable);
    d["version"] = 3;
    d["stream"] = stream ? stream : uintptr_t(1);
    return d;
  }
};

// An array as it must be: numbers of T, of that shape, on that device; contiguous unless 'rows', whose last axis must be.
template <class T> T* pointer_to(const char* name, const Array& a, const Shape& shape, int device, bool written, bool rows = false) {
  using Element = std::remove_const_t<T>;
  if (std::string(a.kind->name) != name_of<Element>)
    throw py::type_error(std::string(name) + " must hold " + name_of<Element> + ", not " + a.kind->name);
  if (a.shape != shape) throw py::value_error(std::string(name) + " has shape " + text_of(a.shape) + " but must have " + text_of(shape));
  if (a.device != device)
    throw py::value_error(std::string(name) + " is on device " + std::to_string(a.device) + " but must be on " + std::to_string(device));
  if (size_of(shape) && uintptr_t(a.data) % sizeof(Element)) throw py::value_error(std::string(name) + " is not aligned");
  if (size_of(shape) && !a.data) throw py::value_error(std::string(name) + " has no memory");
  const bool good = rows ? !shape.empty() && (shape.back() <= 1 || a.strides.back() == 1) : a.contiguous();
  if (!good && size_of(shape))
    throw py::value_error(std::string(name) + (rows ? " must have unit stride in its last axis" : " must be contiguous"));
  if (written && !a.writable) throw py::value_error(std::string(name) + " must be writable");
  return static_cast<T*>(a.data);
}
template <class T>
T* pointer_to(const char* name, const std::optional<Array>& a, const Shape& shape, int device, bool written, bool rows = false) {
  return a ? pointer_to<T>(name, *a, shape, device, written, rows) : nullptr;
}

}  // namespace
}  // namespace fastrnn::cuda
