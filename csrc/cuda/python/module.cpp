// Python's side of the GPU: the module fastrnn._cuda, which is loaded when it is first asked for. The package's Python checks and words
// errors for users; what is refused here is what memory safety needs.
#include <dlfcn.h>

#include <cstdlib>

#include "cuda/python/network.hpp"

namespace fastrnn::cuda {
namespace {

// ---- devices -------------------------------------------------------------------------------------------------------

#ifdef FASTRNN_ARCHITECTURES
constexpr const char* compiled_for = FASTRNN_ARCHITECTURES;
#else
constexpr const char* compiled_for = "80";
#endif

// Do kernels compiled for those architectures, CMake's with commas between them, run on a GPU of that compute capability? Code runs on
// later GPUs of the same generation; PTX, which "90" and "90-virtual" have, on all later ones. What is no number may be anything.
bool runs_on(const std::string& architectures, int major, int minor) {
  const int capability = 10 * major + minor;
  if (major < 8) return false;
  for (size_t at = 0; at < architectures.size();) {
    const size_t end = std::min(architectures.find(',', at), architectures.size());
    const std::string one = architectures.substr(at, end - at);
    at = end + 1;
    char* after;
    const int number = int(std::strtol(one.c_str(), &after, 10));
    if (number == 0) return true;
    const bool code = one.find("-virtual") == std::string::npos, ptx = one.find("-real") == std::string::npos;
    const bool special = *after == 'a' || *after == 'f';  // for this GPU alone
    if (code && number / 10 == major && (special ? number == capability : number <= capability)) return true;
    if (ptx && !special && number <= capability) return true;
  }
  return false;
}

// null: there is at least one GPU that the kernels here run on.
std::optional<std::string> why_not() {
  int count = 0, driver = 0, runtime = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&runtime);
    const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
    if (!driver) return "there is no NVIDIA driver on this machine";
    return "CUDA " + version(runtime) + " cannot use the driver, which is for CUDA " + version(driver) + ": " + cudaGetErrorString(status);
  }
  if (count == 0) return "the NVIDIA driver sees no GPU";
  std::string found;
  for (int i = 0; i < count; i++) {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, i);
    if (runs_on(compiled_for, major, minor)) return std::nullopt;
    found += (i ? ", " : "") + std::to_string(major) + "." + std::to_string(minor);
  }
  return "the GPU module was compiled for " + std::string(compiled_for) + ", which GPUs of compute capability " + found +
         " do not run: build fastrnn on this machine, or with FASTRNN_CUDA_ARCHS";
}

py::list devices() {
  py::list list;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return cudaGetLastError(), list;
  for (int i = 0; i < count; i++) {
    cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, i), "cudaGetDeviceProperties");
    py::dict d;
    d["name"] = std::string(p.name);
    d["compute_capability"] = std::to_string(p.major) + "." + std::to_string(p.minor);
    d["multiprocessors"] = p.multiProcessorCount;
    d["memory"] = int64_t(p.totalGlobalMem);
    d["prepared"] = size_t(i) < prepared().size() && prepared()[size_t(i)];
    d["cublaslt"] = d["prepared"].cast<bool>() && prepared()[size_t(i)]->blas ? py::object(py::int_(prepared()[size_t(i)]->blas->version()))
                                                                              : py::none();
    list.append(d);
  }
  return list;
}

// Before the first network of a device: its size, and cuBLASLt of that path if there is one. What is wrong with it, in words.
std::optional<std::string> prepare(int device, const std::optional<std::string>& blas) {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (device < 0 || device >= count) throw py::value_error("there is no GPU " + std::to_string(device));
  auto& all = prepared();
  if (all.size() < size_t(count)) all.resize(size_t(count));
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
  if (!runs_on(compiled_for, p.major, p.minor))
    throw py::value_error("the GPU module was compiled for " + std::string(compiled_for) + " and does not run on " + p.name);
  const OnDevice here(device);
  auto ready = std::make_unique<Prepared>();
  // Kernels compiled for older GPUs cannot wait for the one ahead of them, also where they run on a newer one.
  ready->gpu.processors = p.multiProcessorCount, ready->gpu.chains = p.major >= 9 && kernels_architecture() >= 90;
  ready->gpu.blas = nullptr;
  std::optional<std::string> wrong;
  make_pool(device);
  if (blas) {
    try {
      ready->blas = std::make_unique<Blas>(*blas);
      ready->gpu.blas = ready->blas.get();
    } catch (const std::runtime_error& error) { wrong = error.what(); }
  }
  all[size_t(device)] = std::move(ready);
  return wrong;
}
// For tests: smaller chunks of time.
void set_chunk_bytes(int device, int64_t bytes) { prepared().at(size_t(device))->gpu.chunk_bytes = bytes; }
// For tests: time steps one by one.
void set_resident(int device, bool on) { prepared().at(size_t(device))->gpu.resident = on; }
bool is_loaded(const std::string& library) {
  void* const found = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (found) dlclose(found);
  return found != nullptr;
}

// ---- memory --------------------------------------------------------------------------------------------------------

void copy_in(const Array& to, const py::array& from, uintptr_t stream) {
  if (!(from.flags() & py::array::c_style) || from.nbytes() != to.bytes() || !to.contiguous()) throw py::value_error("cannot copy that");
  const OnDevice here(to.device);
  check(cudaMemcpyAsync(to.data, from.data(), size_t(from.nbytes()), cudaMemcpyHostToDevice, stream_of(stream)), "cudaMemcpyAsync");
}
// Waits for the stream: the array is then complete.
void copy_out(const Array& from, py::array& to, uintptr_t stream) {
  if (!(to.flags() & py::array::c_style) || to.nbytes() != from.bytes() || !from.contiguous()) throw py::value_error("cannot copy that");
  void* const data = to.mutable_data();
  released([&] {
    const OnDevice here(from.device);
    check(cudaMemcpyAsync(data, from.data, size_t(from.bytes()), cudaMemcpyDeviceToHost, stream_of(stream)), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");
  });
}
void masks_into(const Array& masks, double drop, uint64_t seed, uintptr_t stream) {
  uint8_t* const data = pointer_to<uint8_t>("masks", masks, masks.shape, masks.device, true);
  const OnDevice here(masks.device);
  draw_masks(data, size_of(masks.shape), drop, seed, stream_of(stream));
}

// What is launched into 'later' from now on waits for what was launched into 'earlier'.
void wait_for(int device, uintptr_t earlier, uintptr_t later) {
  const OnDevice here(device);
  cudaEvent_t written;
  check(cudaEventCreateWithFlags(&written, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  const cudaError_t recorded = cudaEventRecord(written, stream_of(earlier));
  const cudaError_t waits = recorded == cudaSuccess ? cudaStreamWaitEvent(stream_of(later), written, 0) : recorded;
  cudaEventDestroy(written);
  check(waits, "cudaStreamWaitEvent");
}
// What was launched on a device, or into a stream of it, is done.
void synchronize(int device, std::optional<uintptr_t> stream) {
  const OnDevice here(device);
  released([&] {
    if (stream) check(cudaStreamSynchronize(stream_of(*stream)), "cudaStreamSynchronize");
    else check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  });
}
int device_of(uintptr_t pointer) {
  cudaPointerAttributes attributes;
  check(cudaPointerGetAttributes(&attributes, reinterpret_cast<const void*>(pointer)), "cudaPointerGetAttributes");
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged)
    throw py::value_error("the array is not in a GPU's memory");
  return attributes.device;
}

// A consumer's stream waits for ours; 'stream' as the protocol numbers them.
py::capsule to_dlpack(const Array& a, std::optional<int64_t> stream) {
  const int64_t to = stream.value_or(1);
  if (to != -1 && a.owned) {
    const uintptr_t theirs = to == 1 || to == 0 ? 0 : uintptr_t(to);
    if (theirs != a.stream) wait_for(a.device, a.stream, theirs);
  }
  struct Exported {
    DlpackManaged managed;
    Array array;
  };
  auto* const e = new Exported{{}, a};
  e->managed.tensor = {a.data,
                       {dlpack_cuda, a.device},
                       int32_t(a.shape.size()),
                       {a.kind->code, a.kind->bits, 1},
                       e->array.shape.data(),
                       e->array.strides.data(),
                       0};
  e->managed.context = e;
  e->managed.deleter = [](DlpackManaged* m) {
    if (!Py_IsInitialized()) return;  // the process ends
    const py::gil_scoped_acquire held;
    delete static_cast<Exported*>(m->context);
  };
  return py::capsule(&e->managed, "dltensor", [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // whoever took it answers for it
    auto* const m = static_cast<DlpackManaged*>(PyCapsule_GetPointer(capsule, "dltensor"));
    m->deleter(m);
  });
}

}  // namespace
}  // namespace fastrnn::cuda

using namespace fastrnn;
using namespace fastrnn::cuda;

PYBIND11_MODULE(_cuda, m) {
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const std::overflow_error& e) { PyErr_SetString(PyExc_OverflowError, e.what()); }
  });
  m.def("why_not", why_not);
  m.def("runs_on", runs_on);
  m.def("devices", devices);
  m.def("prepare", prepare, py::arg("device"), py::arg("blas"));
  m.def("is_loaded", is_loaded);
  m.def("copy_in", copy_in);
  m.def("copy_out", copy_out);
  m.def("draw_masks", masks_into);
  m.def("wait_for", wait_for);
  m.def("device_of", device_of);
  m.def("synchronize", synchronize, py::arg("device"), py::arg("stream") = py::none());
  m.def("set_chunk_bytes", set_chunk_bytes);
  m.def("set_resident", set_resident);
  m.def("plan_resident",
        [](int64_t unit_blocks, int64_t B, int directions, int processors, std::pair<int, int> columns, std::pair<int, int> held) {
          const ResidentRoom room{processors, {columns.first, columns.second}, {held.first, held.second}};
          const ResidentPlan plan = plan_resident(unit_blocks, B, directions, room);
          return std::make_tuple(plan.wide, plan.groups, plan.directions);
        });
  m.def("step_columns", step_columns);
  m.def("chunk_steps", chunk_steps);
  m.def("product_shares", product_shares);
#ifdef FASTRNN_EMULATE
  m.attr("emulated") = true;
#else
  m.attr("emulated") = false;
#endif

  py::class_<Array>(m, "Array")
      .def_static("empty", &Array::empty, py::arg("shape"), py::arg("dtype"), py::arg("device"), py::arg("stream"))
      .def("lasting", &Array::lasting)
      .def_static("from_dlpack", &Array::from_dlpack)
      .def_static("from_interface", &Array::from_interface)
      .def("swapped", &Array::swapped)
      .def("with_batch", &Array::with_batch)
      .def("reshaped", &Array::reshaped)
      .def_property_readonly("shape", [](const Array& a) { return py::tuple(py::cast(a.shape)); })
      .def_property_readonly("strides", [](const Array& a) { return py::tuple(py::cast(a.strides)); })
      .def_property_readonly("dtype", [](const Array& a) { return a.kind->name; })
      .def_property_readonly("nbytes", &Array::bytes)
      .def_property_readonly("contiguous", &Array::contiguous)
      .def_readonly("device", &Array::device)
      .def_readonly("stream", &Array::stream)
      .def_readonly("owner", &Array::owner)
      .def_property_readonly("pointer", [](const Array& a) { return reinterpret_cast<uintptr_t>(a.data); })
      .def_property_readonly("__cuda_array_interface__", &Array::interface)
      .def("__dlpack_device__", [](const Array& a) { return py::make_tuple(dlpack_cuda, a.device); })
      .def(
          "__dlpack__", [](const Array& a, std::optional<int64_t> stream, const py::kwargs&) { return to_dlpack(a, stream); },
          py::kw_only(), py::arg("stream") = py::none());

  py::class_<CoreCall>(m, "Call");

  py::class_<CoreNetwork>(m, "Network")
      .def(py::init<const std::string&, const std::string&, int64_t, int64_t, int64_t, int64_t, bool, bool, int,
                    const std::optional<General>&, int64_t>(),
           py::arg("cell"), py::arg("precision"), py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size"),
           py::arg("num_layers"), py::arg("bidirectional"), py::arg("bias"), py::arg("device"), py::kw_only(),
           py::arg("general") = py::none(), py::arg("heads") = 1)
      .def("call", &CoreNetwork::call, py::arg("x"), py::arg("states"), py::arg("starts"), py::arg("lengths"), py::arg("reset"),
           py::arg("drawn") = py::none())
      .def("tape_bytes", &CoreNetwork::tape_bytes, py::arg("call"))
      .def("tape_room", &CoreNetwork::tape_room, py::arg("dropout"))
      .def("forward_bytes", &CoreNetwork::forward_bytes, py::arg("parameters"), py::arg("call"), py::arg("training"))
      .def("backward_bytes", &CoreNetwork::backward_bytes, py::arg("call"))
      .def("forward", &CoreNetwork::forward, py::arg("stream"), py::arg("parameters"), py::arg("call"), py::arg("y"), py::arg("ends"),
           py::arg("tape"), py::arg("scratch"))
      .def("backward", &CoreNetwork::backward, py::arg("stream"), py::arg("parameters"), py::arg("call"), py::arg("y"), py::arg("tape"),
           py::arg("dy"), py::arg("dstates"), py::arg("dx"), py::arg("begins"), py::arg("gradients"), py::arg("hidden"),
           py::arg("scratch"));
}
