// Part of module.cpp: one time step of a cell on tensors of PyTorch, for whom arrays would take longer than the step.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <optional>

#include "python/network.hpp"

namespace fastrnn {
namespace {

// Reads tensors by the C functions that DLPack has a type of tensors offer (__dlpack_c_exchange_api__).
class Tensors {
 public:
  // types: those whose objects are dense memory if they say so; no subclass of them.
  Tensors(py::handle exchange, py::tuple types) : types_(std::move(types)) {
    const auto* api = static_cast<const DlpackExchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (!api) throw py::error_already_set();
    if (api->major != 1 || !api->view) throw py::value_error("this version of DLPack's C functions is not known");
    view_ = api->view;
  }

  bool look(py::handle h, Dlpack& d) const {
    bool known = false;
    for (py::handle type : types_) known |= reinterpret_cast<PyObject*>(Py_TYPE(h.ptr())) == type.ptr();
    if (!known) return false;
    if (view_(h.ptr(), &d)) {
      PyErr_Clear();
      return false;
    }
    return d.device.kind == 1 && d.type.lanes == 1 && d.data;  // without memory: B = 0, or FSDP has freed it
  }

  // The numbers of a contiguous tensor of T in that shape; null if h is anything else.
  template <class T> T* read(py::handle h, std::initializer_list<int64_t> shape) const {
    Dlpack d;
    if (!look(h, d) || d.type.kind != (std::is_floating_point_v<T> ? 2 : 1) || d.type.bits != 8 * sizeof(T)) return nullptr;
    if (d.dimensions != int32_t(shape.size())) return nullptr;
    int64_t run = 1;
    for (size_t i = shape.size(); i-- > 0; run *= d.shape[i]) {
      if (d.shape[i] != shape.begin()[i]) return nullptr;
      if (d.strides && d.shape[i] > 1 && d.strides[i] != run) return nullptr;
    }
    // Memory may hold the numbers with their signs changed, which DLPack has no word for.
    const auto negative = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(h.ptr(), is_neg_.ptr()));
    if (negative.ptr() != Py_False) {
      PyErr_Clear();
      return nullptr;
    }
    return reinterpret_cast<T*>(static_cast<char*>(d.data) + d.offset);
  }

 private:
  py::tuple types_;
  py::object is_neg_ = py::reinterpret_steal<py::object>(PyUnicode_InternFromString("is_neg"));
  int (*view_)(void*, Dlpack*) = nullptr;
};

// Adds up whether all tensors that a step wants were there.
template <class Real> struct StepReader {
  const Tensors& tensors;
  bool good = true;

  Real* operator()(py::handle h, std::initializer_list<int64_t> shape) {
    Real* const p = good ? tensors.read<Real>(h, shape) : nullptr;
    good &= p != nullptr;
    return p;
  }
  Real* maybe(py::handle h, std::initializer_list<int64_t> shape) { return h.is_none() ? nullptr : (*this)(h, shape); }
};

// A cell: one layer in one direction without a projection.
class CoreCell {
 public:
  CoreCell(const CoreNetwork& network, const Tensors& tensors) : core_(network), tensors_(tensors) {
    if (n().L != 1 || n().D != 1 || facts(n()).projected || core_.has.peephole || facts(n()).norms || n().heads > 1)
      throw py::value_error("a cell has one layer, one direction, no projection, no peepholes, no layer normalisation, no heads");
  }

  // Of the gate gradients dz (B,slots*H) of a step: slots; the first of the input's side, in the order of the gates; and the
  // slot of the hidden side, of which slots 0, 1, ... are, that belongs to gate 0, from where they go round.
  std::tuple<int, int, int> slots() const { return {facts(n()).slots.count, facts(n()).slots.input, facts(n()).slots.turn}; }
  // At least one: a tensor of none has no memory.
  int64_t tape_bytes(int64_t B) const { return std::max<int64_t>(core_.tape_bytes(B, false), 1); }

  // Writes the next state to ends and, with a tape, y, which backward reads. False: some tensor is not as it must be.
  bool step(py::handle x, const py::tuple& states, const py::tuple& weights, const py::tuple& ends, py::handle y, py::handle tape,
            int threads) const {
    return core_.by_dtype([&](auto real) { return forward<decltype(real)>(x, states, weights, ends, y, tape, threads); });
  }

  // seeds: the gradients of the next state, None for zeros; dstates: as the state. Either dweights or dz is written.
  bool step_backward(py::handle x, const py::tuple& states, const py::tuple& weights, py::handle y, py::handle tape, const py::tuple& seeds,
                     py::handle dx, const py::tuple& dstates, const py::tuple& dweights, py::handle dz, int threads) const {
    return core_.by_dtype(
        [&](auto real) { return backward<decltype(real)>(x, states, weights, y, tape, seeds, dx, dstates, dweights, dz, threads); });
  }

 private:
  const Stack& n() const { return core_.n; }
  size_t members() const { return core_.states(); }

  // How many sequences x holds; none if it is no tensor of numbers like that.
  std::optional<int64_t> batch_of(py::handle x) const {
    Dlpack d;
    if (!tensors_.look(x, d) || d.dimensions != 2) return std::nullopt;
    return d.shape[0];
  }

  template <class Element, class Real> Parameters<Element> parameters(const py::tuple& arrays, StepReader<Real>& read) const {
    const int64_t rows = facts(n()).gates * n().H;
    read.good &= arrays.size() == (core_.has.bias ? 4u : 2u);
    if (!read.good) return {};
    Parameters<Element> found{};
    found[weight_ih] = read(arrays[0], {rows, n().I}), found[weight_hh] = read(arrays[1], {rows, n().H});
    if (core_.has.bias) found[bias_ih] = read(arrays[2], {rows}), found[bias_hh] = read(arrays[3], {rows});
    return found;
  }
  template <class Real>
  void read_state(const py::tuple& states, int64_t B, StepReader<Real>& read, ForwardCall<Real>& c) const {
    read.good &= states.empty() || states.size() == members();
    if (states.empty() || !read.good) return;
    for (size_t i = 0; i < members(); i++) c.before[int(i)] = read(states[i], {B, n().H});
  }
  char* tape_of(py::handle tape, const Batch& batch) const {
    Dlpack d;
    if (!tensors_.look(tape, d) || d.dimensions != 1 || d.shape[0] < core_.tape_bytes(batch.tokens(), false)) return nullptr;
    return reinterpret_cast<char*>(tensors_.read<uint8_t>(tape, {d.shape[0]}));
  }

  template <class Real>
  bool forward(py::handle x, const py::tuple& states, const py::tuple& weights, const py::tuple& ends, py::handle y, py::handle tape,
               int threads) const {
    const auto B = batch_of(x);
    if (!B) return false;
    StepReader<Real> read{tensors_};
    const Batch batch(1, *B, nullptr, {nullptr, 0, 0});
    ForwardCall<Real> c{};
    c.batch = &batch;
    c.x = {read(x, {*B, n().I}), 0, n().I};
    read_state(states, *B, read, c);
    const Parameters<const Real> w = parameters<const Real>(weights, read);
    c.weights = &w;
    if (!read.good || ends.size() != members()) return false;
    for (size_t i = 0; i < members(); i++) c.after[int(i)] = read(ends[i], {*B, n().H});
    c.y = {tape.is_none() ? c.after[0] : read(y, {*B, n().H}), 0, n().H};
    Saved<Real, Real> saved;
    if (!tape.is_none()) {
      char* const memory = tape_of(tape, batch);
      if (!memory) return false;
      Arena arena(memory);
      saved = lay_out_tape<Real>(n(), batch.tokens(), false, arena);
      c.saved = &saved;
    }
    if (!read.good) return false;
    ForwardRun<Real> run(n(), c, threads);
    run_released(run);
    return true;
  }

  template <class Real>
  bool backward(py::handle x, const py::tuple& states, const py::tuple& weights, py::handle y, py::handle tape, const py::tuple& seeds,
                py::handle dx, const py::tuple& dstates, const py::tuple& dweights, py::handle dz, int threads) const {
    const auto B = batch_of(x);
    if (!B || seeds.size() != members() || dstates.size() != members()) return false;
    StepReader<Real> read{tensors_};
    const Batch batch(1, *B, nullptr, {nullptr, 0, 0});
    const int64_t H = n().H;
    BackwardCall<Real> c{};
    c.forward.batch = &batch;
    c.forward.x = {read(x, {*B, n().I}), 0, n().I};
    c.forward.y = {read(y, {*B, H}), 0, H};
    read_state(states, *B, read, c.forward);
    const Parameters<const Real> w = parameters<const Real>(weights, read);
    c.forward.weights = &w;
    c.dy = {read.maybe(seeds[0], {*B, H}), 0, H};
    c.dx = {read(dx, {*B, n().I}), 0, n().I};
    for (size_t i = 0; i < members(); i++) {
      if (i) c.dafter[int(i)] = read.maybe(seeds[i], {*B, H});  // that of h is dy
      c.dbefore[int(i)] = read(dstates[i], {*B, H});
    }
    c.dz = read.maybe(dz, {*B, facts(n()).slots.count * H});
    const Parameters<Real> into = c.dz ? Parameters<Real>{} : parameters<Real>(dweights, read);
    c.gradients = &into;
    char* const memory = read.good ? tape_of(tape, batch) : nullptr;
    if (!memory) return false;
    Arena arena(memory);
    const Saved<Real, Real> saved = lay_out_tape<Real>(n(), batch.tokens(), false, arena);
    c.forward.saved = &saved;
    BackwardRun<Real> run(n(), c, threads);
    run_released(run);
    return true;
  }

  CoreNetwork core_;
  Tensors tensors_;
};

}  // namespace
}  // namespace fastrnn
