// Part of cuda/bindings.cpp: a network's calls on arrays in a GPU's memory.
#pragma once
#include "cuda/host/stack.hpp"
#include "cuda/python/arrays.hpp"
#include "host/description.hpp"
#include "python/gil.hpp"

namespace fastrnn::cuda {
namespace {

// What is kept for each device, from when it is first prepared.
struct Prepared {
  Gpu gpu;
  std::unique_ptr<Blas> blas;
};
std::vector<std::unique_ptr<Prepared>>& prepared() {
  static auto* all = new std::vector<std::unique_ptr<Prepared>>;  // never destroyed: at exit there may be no driver any more
  return *all;
}

// ---- networks ------------------------------------------------------------------------------------------------------

using MaybeArray = std::optional<Array>;
using GivenStates = std::vector<MaybeArray>;  // none at all: zeros; each may be missing as well
using NewStates = std::vector<Array>;

struct CoreNetwork {
  Network n;
  Has has;
  int device;

  CoreNetwork(const std::string& cell, const std::string& precision, int64_t input_size, int64_t hidden_size, int64_t proj_size,
              int64_t num_layers, bool bidirectional, bool bias, int device_, const std::optional<General>& general, int64_t heads)
      : n{cell_named(cell, proj_size > 0, general.has_value()),
          precision_named(precision),
          input_size,
          hidden_size,
          proj_size > 0 ? proj_size : hidden_size,
          num_layers,
          bidirectional ? 2 : 1},
        has{bias, proj_size > 0, general && std::get<2>(*general)},
        device(device_) {
    for (int side = 0; general && side < n.D; side++) n.options[side] = options_of(*general, side);
    if (input_size < 1 || hidden_size < 1 || num_layers < 1 || proj_size < 0) throw py::value_error("sizes must be positive");
    n.heads = heads_of(heads, n.H, has.projection);
    times(times(times(4, plus(n.H, 64)), plus(std::max(input_size, times(2, n.H)), 64)), times(16, num_layers));
    if (size_t(device) >= prepared().size() || !prepared()[size_t(device)]) throw py::value_error("the device was not prepared");
  }

  static Precision precision_named(const std::string& name) {
#define FASTRNN_MATCH(precision, type) \
  if (name == #precision) return Precision::precision;
    FASTRNN_PRECISIONS(FASTRNN_MATCH)
#undef FASTRNN_MATCH
    throw py::value_error("there is no precision " + name);
  }

  // f with the kernels of the network's precision.
  template <class F> auto by_precision(F f) const {
    switch (n.precision) {
      case Precision::float32: return f(kernels_float32);
      case Precision::tf32: return f(kernels_tf32);
      case Precision::bfloat16: return f(kernels_bfloat16);
      case Precision::float16: return f(kernels_float16);
      case Precision::float64: return f(kernels_float64);
    }
    throw std::logic_error("no such precision");
  }
  const CellKernels<float, float>& facts() const { return kernels_float32.cell[int(n.cell)]; }
  const Gpu& gpu() const { return prepared()[size_t(device)]->gpu; }

  // Where given or new states lie.
  template <class Real, class Arrays> States<Real> state_pointers(const char* what, const Arrays& arrays, int64_t B) const {
    constexpr bool written = !std::is_const_v<Real>;
    States<Real> at{};
    if (!written && arrays.empty()) return at;
    if (arrays.size() != size_t(facts().states))
      throw py::value_error("there must be " + std::to_string(facts().states) + " states" + (written ? "" : ", or none"));
    for (int i = 0; i < facts().states; i++)
      at[i] = pointer_to<Real>(what, arrays[size_t(i)], {n.L * n.D, B, i ? n.H : n.P}, device, written);
    return at;
  }

  template <class Store> std::vector<Parameters<Store>> weights(const std::vector<Array>& arrays, bool written) const {
    std::vector<Parameters<Store>> all;
    size_t next = 0;
    for (int64_t i = 0; i < n.L * n.D; i++) {
      all.push_back({});
      for_each_parameter(has, [&](const ParameterShape& p) {
        if (next >= arrays.size()) throw py::value_error("too few parameters");
        all.back()[p.which] = pointer_to<Store>(p.name, arrays[next++], shape_of(p, n, i / n.D, facts().gates), device, written);
      });
    }
    if (next != arrays.size()) throw py::value_error("too many parameters");
    return all;
  }

  // What runs when, and how the arrays of one row for each token lie: (T,B,n), or packed (rows,n) with starts (T), the rows before those
  // of each time; packed sequences have falling lengths.
  struct Tokens {
    Sequences sequences;
    const int64_t* starts;
    int64_t rows;
    int device;

    template <class T> Rows<T> read(const char* name, const MaybeArray& a, int64_t size, bool written) const {
      if (!a) return {nullptr, 0, 0};
      if (starts) {
        T* const base = pointer_to<T>(name, *a, {rows, size}, device, written, true);
        return {base, 0, a->strides[0], starts};
      }
      T* const base = pointer_to<T>(name, *a, {sequences.T, sequences.B, size}, device, written, true);
      return {base, a->strides[0], a->strides[1]};
    }
  };
  Tokens tokens(const Array& x, const MaybeArray& starts, const MaybeArray& lengths, const MaybeArray& reset) const {
    Tokens t{{}, nullptr, 0, device};
    if (x.shape.size() != (starts ? 2u : 3u)) throw py::value_error("x must be (T,B,I), or packed (rows,I)");
    if (starts) {
      if (!lengths || lengths->shape.size() != 1 || starts->shape.size() != 1) throw py::value_error("packed rows need lengths and starts");
      t.rows = x.shape[0];
      t.sequences.T = starts->shape[0], t.sequences.B = lengths->shape[0];
      t.starts = pointer_to<const int64_t>("starts", *starts, {t.sequences.T}, device, false);
    } else {
      t.sequences.T = x.shape[0], t.sequences.B = x.shape[1];
    }
    const int64_t T = t.sequences.T, B = t.sequences.B;
    times(times(T, B), 64);
    t.sequences.length = pointer_to<const int64_t>("lengths", lengths, {B}, device, false);
    if (reset) {
      if (reset->shape != Shape{T, B}) throw py::value_error("reset must have shape " + text_of({T, B}));
      if (std::string(reset->kind->name) != "bool" && std::string(reset->kind->name) != "uint8")
        throw py::type_error("reset must hold bool");
      if (reset->device != device) throw py::value_error("reset must be on the network's device");
      t.sequences.reset = {static_cast<const uint8_t*>(reset->data), reset->strides[0], reset->strides[1]};
    }
    return t;
  }

  struct Inputs {
    const Array &x, &y;
    const GivenStates& states;
    const MaybeArray& masks;
    double scale;
  };
  // Everything of a call but the final states.
  template <class K> ForwardCall<typename K::Store, typename K::Real> call(const Tokens& t, const Inputs& in, bool writes) const {
    using Real = typename K::Real;
    const int64_t B = t.sequences.B;
    ForwardCall<typename K::Store, Real> c{};
    c.sequences = t.sequences;
    c.x = t.read<const typename K::Store>("x", in.x, n.I, false);
    c.y = t.read<typename K::Store>("y", in.y, n.D * n.P, writes);
    c.before = state_pointers<const Real>("states", in.states, B);
    if (in.masks) c.masks = pointer_to<const uint8_t>("masks", *in.masks, {n.L - 1, t.sequences.T, B, n.D * n.P}, device, false);
    c.scale = Real(in.scale);
    return c;
  }

  int64_t tape_bytes(int64_t T, int64_t B, bool dropout) const {
    Arena arena(nullptr);
    by_precision([&](const auto& k) {
      using K = std::decay_t<decltype(k)>;
      lay_out_tape<typename K::Store, typename K::Real>(n, T, B, dropout, arena);
    });
    return arena.most();
  }
  // Room for a tape: so many bytes for each of T*B tokens, and so many more.
  std::pair<int64_t, int64_t> tape_room(bool dropout) const {
    const int64_t tokens = 128, bytes = tape_bytes(tokens, 1, dropout), arrays = (1 + facts().states) * n.L * n.D + 2 * n.L;
    return {(bytes + tokens - 1) / tokens, times(128, arrays)};
  }
  template <class K> Saved<typename K::Store, typename K::Real> on_tape(const Array& tape, const Tokens& t, bool dropout,
                                                                        bool written) const {
    const int64_t bytes = tape_bytes(t.sequences.T, t.sequences.B, dropout);
    char* const base = reinterpret_cast<char*>(pointer_to<uint8_t>("tape", tape, {bytes}, device, written));
    if (uintptr_t(base) % 16) throw py::value_error("tape is not aligned");
    Arena arena(base);
    return lay_out_tape<typename K::Store, typename K::Real>(n, t.sequences.T, t.sequences.B, dropout, arena);
  }

  // Counts the scratch of work(arena), has it made by 'allocate', a function of bytes that returns an array of uint8, and works.
  template <class Work> void with_scratch(const py::function& allocate, const Work& work) const {
    Arena count(nullptr);
    work(count);
    const auto room = allocate(count.most()).cast<Array>();
    char* const base = reinterpret_cast<char*>(pointer_to<uint8_t>("scratch", room, {count.most()}, device, true));
    if (uintptr_t(base) % 16) throw py::value_error("scratch is not aligned");
    const OnDevice here(device);
    released([&] {
      Arena arena(base);
      work(arena);
    });
  }

  void forward(uintptr_t stream, const std::vector<Array>& parameters, const Array& x, const Array& y, const GivenStates& states,
               const NewStates& ends, const MaybeArray& starts, const MaybeArray& lengths, const MaybeArray& reset, const MaybeArray& masks,
               double scale, const MaybeArray& tape, const py::function& allocate) const {
    by_precision([&](const auto& k) {
      using K = std::decay_t<decltype(k)>;
      using Store = typename K::Store;
      using Real = typename K::Real;
      const Tokens t = tokens(x, starts, lengths, reset);
      auto c = call<K>(t, {x, y, states, masks, scale}, true);
      const auto w = weights<const Store>(parameters, false);
      c.weights = w.data();
      c.after = state_pointers<Real>("ends", ends, t.sequences.B);
      Saved<Store, Real> saved;
      if (tape) saved = on_tape<K>(*tape, t, masks.has_value(), true), c.saved = &saved;
      else if (masks) throw py::value_error("dropout needs a tape");
      with_scratch(allocate, [&, on = gpu()](Arena& arena) { cuda::forward(k, n, on, c, arena, stream_of(stream)); });
    });
  }

  void backward(uintptr_t stream, const std::vector<Array>& parameters, const Array& tape, const Array& x, const Array& y,
                const GivenStates& states, const MaybeArray& starts, const MaybeArray& lengths, const MaybeArray& reset,
                const MaybeArray& masks, double scale, const MaybeArray& dy, const GivenStates& dstates, const Array& dx,
                const NewStates& begins, const std::vector<Array>& gradients, const MaybeArray& hidden,
                const py::function& allocate) const {
    by_precision([&](const auto& k) {
      using K = std::decay_t<decltype(k)>;
      using Store = typename K::Store;
      using Real = typename K::Real;
      const Tokens t = tokens(x, starts, lengths, reset);
      BackwardCall<Store, Real> c{};
      c.forward = call<K>(t, {x, y, states, masks, scale}, false);
      const auto w = weights<const Store>(parameters, false);
      c.forward.weights = w.data();
      const auto saved = on_tape<K>(tape, t, masks.has_value(), false);
      c.forward.saved = &saved;
      c.dy = t.read<const Store>("dy", dy, n.D * n.P, false);
      c.dx = t.read<Store>("dx", dx, n.I, true);
      if (!starts && !dx.contiguous()) throw py::value_error("dx must be contiguous");
      if (hidden && starts) throw py::value_error("hidden is not for packed rows");
      c.hidden = t.read<Store>("hidden", hidden, n.D * n.P, true);
      c.dafter = state_pointers<const Real>("dstates", dstates, t.sequences.B);
      c.dbefore = state_pointers<Real>("begins", begins, t.sequences.B);
      const auto into = weights<Store>(gradients, true);
      c.gradients = into.data();
      with_scratch(allocate, [&, on = gpu()](Arena& arena) { cuda::backward(k, n, on, c, arena, stream_of(stream)); });
    });
  }
};

}  // namespace
}  // namespace fastrnn::cuda
