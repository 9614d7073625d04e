// Part of cuda/bindings.cpp: a network's calls on arrays in a GPU's memory.
#pragma once
#include "cuda/host/stack.hpp"
#include "cuda/python/arrays.hpp"
#include "host/description.hpp"
#include "python/general.hpp"
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

// ---- calls ---------------------------------------------------------------------------------------------------------

using MaybeArray = std::optional<Array>;
using GivenStates = std::vector<MaybeArray>;  // none at all: zeros; each may be missing as well
using NewStates = std::vector<Array>;

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

// The mask of recurrent dropout, whether it has one for each time, the scale of what it keeps; and those of zoneout of h and of c.
using GivenNoise = std::optional<std::tuple<MaybeArray, bool, double, MaybeArray, MaybeArray>>;
// What training draws: the masks of dropout, what they scale by, and noise.
using Drawn = std::tuple<MaybeArray, double, GivenNoise>;

// The arguments of a call, which it holds; their contents must stay until backward is done.
struct CoreCall {
  Network network;
  int device;
  Tokens tokens;
  Array x;
  GivenStates states;
  MaybeArray starts, lengths, reset, masks;
  double scale;
  GivenNoise noise;
};

// ---- networks ------------------------------------------------------------------------------------------------------

struct CoreNetwork {
  Network n;
  Has has;
  int device;
  bool is_general;

  CoreNetwork(const std::string& cell, const std::string& precision, int64_t input_size, int64_t hidden_size, int64_t proj_size,
              int64_t num_layers, bool bidirectional, bool bias, int device_, const std::optional<General>& general, int64_t heads)
      : n{{cell_named(cell, proj_size > 0, general.has_value()), input_size, hidden_size, proj_size > 0 ? proj_size : hidden_size,
           num_layers, bidirectional ? 2 : 1},
          precision_named(precision)},
        has{bias, proj_size > 0, general && general->peephole, facts().norms},
        device(device_),
        is_general(general.has_value()) {
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
      at[i] = pointer_to<Real>(what, arrays[size_t(i)], {n.L * n.D, B, n.state_size(i)}, device, written);
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

  CoreCall call(const Array& x, const GivenStates& states, const MaybeArray& starts, const MaybeArray& lengths, const MaybeArray& reset,
                const std::optional<Drawn>& drawn) const {
    const auto [masks, scale, noise] = drawn.value_or(Drawn(std::nullopt, 1, std::nullopt));
    const CoreCall made{n, device, tokens(x, starts, lengths, reset), x, states, starts, lengths, reset, masks, scale, noise};
    by_precision([&](const auto& k) { read_call<std::decay_t<decltype(k)>>(made); });  // refuses what does not fit
    return made;
  }
  // Everything of a call but its outputs.
  template <class K> ForwardCall<typename K::Store, typename K::Real> read_call(const CoreCall& from) const {
    using Real = typename K::Real;
    const auto& [T, B, length, reset] = from.tokens.sequences;
    ForwardCall<typename K::Store, Real> c{};
    c.sequences = from.tokens.sequences;
    c.x = from.tokens.template read<const typename K::Store>("x", from.x, n.I, false);
    c.before = state_pointers<const Real>("states", from.states, B);
    if (from.masks) c.masks = pointer_to<const uint8_t>("masks", *from.masks, {n.L - 1, T, B, n.D * n.P}, device, false);
    c.scale = Real(from.scale);
    c.noise = read_noise(from);
    return c;
  }
  AllNoise read_noise(const CoreCall& from) const {
    AllNoise found{};
    if (!from.noise) return found;
    if (!is_general) throw py::value_error("only general cells have noise");
    const auto& [T, B, length, reset] = from.tokens.sequences;
    const auto& [kept, by_time, scale, h, c] = *from.noise;
    auto flags = [&, T = T, B = B](const char* name, const MaybeArray& a, int64_t size, bool each_time, int64_t& side) {
      const int64_t row = times(B, size);
      side = each_time ? times(T, row) : row;
      const Shape shape = each_time ? Shape{n.L * n.D, T, B, size} : Shape{n.L * n.D, B, size};
      return Rows<const uint8_t>{a ? pointer_to<const uint8_t>(name, *a, shape, device, false) : nullptr, each_time ? row : 0, size};
    };
    found.first.scale = scale;
    found.first.kept = flags("kept", kept, n.P, by_time, found.kept_side);
    found.first.zoned[0] = flags("zoned", h, n.P, true, found.zoned_side[0]);
    if (facts().states > 1) found.first.zoned[1] = flags("zoned", c, n.H, true, found.zoned_side[1]);
    return found;
  }

  void lay_out_any_tape(int64_t tokens, bool dropout, Arena& arena) const {
    by_precision([&](const auto& k) {
      using K = std::decay_t<decltype(k)>;
      lay_out_tape<typename K::Store, typename K::Real>(n, tokens, dropout, arena);
    });
  }
  std::pair<int64_t, int64_t> tape_room(bool dropout) const {
    return room_of_tape([&](int64_t tokens, Arena& arena) { lay_out_any_tape(tokens, dropout, arena); });
  }
  template <class K> Saved<typename K::Store, typename K::Real> on_tape(const CoreCall& call, char* base) const {
    if (uintptr_t(base) % 16) throw py::value_error("tape is not aligned");
    const Sequences& s = call.tokens.sequences;
    Arena arena(base);
    return lay_out_tape<typename K::Store, typename K::Real>(n, times(s.T, s.B), call.masks.has_value(), arena);
  }
  char* tape_at(const CoreCall& call, const Array& tape, bool written) const {
    return reinterpret_cast<char*>(pointer_to<uint8_t>("tape", tape, {tape_bytes(call)}, device, written));
  }
  int64_t tape_bytes(const CoreCall& call) const {
    const Sequences& s = call.tokens.sequences;
    return bytes_of([&](Arena& arena) { lay_out_any_tape(times(s.T, s.B), call.masks.has_value(), arena); });
  }
  void refuse_foreign(const CoreCall& call) const {
    const Network& own = call.network;
    if (call.device != device || own.cell != n.cell || own.precision != n.precision || own.I != n.I || own.H != n.H || own.P != n.P ||
        own.L != n.L || own.D != n.D)
      throw py::value_error("the call is of another network");
  }

  static void refuse_dropout(const CoreCall& call, bool training) {
    if ((call.masks || call.noise) && !training) throw py::value_error("dropout needs a tape");
  }

  // Bytes of scratch that a call takes: forward, with a tape or without, and backward.
  int64_t forward_bytes(const std::vector<Array>& parameters, const CoreCall& call, bool training) const {
    refuse_foreign(call), refuse_dropout(call, training);
    Arena count(nullptr);
    by_precision([&](const auto& k) {
      using K = std::decay_t<decltype(k)>;
      auto c = read_call<K>(call);
      const auto w = weights<const typename K::Store>(parameters, false);
      c.weights = w.data();
      const auto saved = training ? on_tape<K>(call, nullptr) : Saved<typename K::Store, typename K::Real>{};
      if (training) c.saved = &saved;
      cuda::forward(k, n, gpu(), c, count, stream_of(0));
    });
    return count.most();
  }
  int64_t backward_bytes(const CoreCall& call) const {
    refuse_foreign(call);
    Arena count(nullptr);
    by_precision([&](const auto& k) {
      using K = std::decay_t<decltype(k)>;
      BackwardCall<typename K::Store, typename K::Real> c{};
      c.forward = read_call<K>(call);
      c.dx.starts = call.tokens.starts;
      const auto saved = on_tape<K>(call, nullptr);
      c.forward.saved = &saved;
      cuda::backward(k, n, gpu(), c, count, stream_of(0));
    });
    return count.most();
  }
  // Runs work(arena) on scratch, which must have what it takes.
  template <class Work> void with_scratch(const Array& scratch, const Work& work) const {
    Arena count(nullptr);
    work(count);
    if (scratch.shape.size() != 1 || scratch.shape[0] < count.most())
      throw py::value_error("scratch must have " + std::to_string(count.most()) + " bytes");
    char* const base = reinterpret_cast<char*>(pointer_to<uint8_t>("scratch", scratch, scratch.shape, device, true));
    if (uintptr_t(base) % 16) throw py::value_error("scratch is not aligned");
    const OnDevice here(device);
    released([&] {
      Arena arena(base);
      work(arena);
    });
  }

  void forward(uintptr_t stream, const std::vector<Array>& parameters, const CoreCall& call, const Array& y, const NewStates& ends,
               const MaybeArray& tape, const Array& scratch) const {
    refuse_foreign(call);
    refuse_dropout(call, tape.has_value());
    by_precision([&](const auto& k) {
      using K = std::decay_t<decltype(k)>;
      using Store = typename K::Store;
      using Real = typename K::Real;
      auto c = read_call<K>(call);
      c.y = call.tokens.template read<Store>("y", y, n.D * n.P, true);
      const auto w = weights<const Store>(parameters, false);
      c.weights = w.data();
      c.after = state_pointers<Real>("ends", ends, call.tokens.sequences.B);
      Saved<Store, Real> saved;
      if (tape) saved = on_tape<K>(call, tape_at(call, *tape, true)), c.saved = &saved;
      with_scratch(scratch, [&, on = gpu()](Arena& arena) { cuda::forward(k, n, on, c, arena, stream_of(stream)); });
    });
  }

  void backward(uintptr_t stream, const std::vector<Array>& parameters, const CoreCall& call, const Array& y, const Array& tape,
                const MaybeArray& dy, const GivenStates& dstates, const Array& dx, const NewStates& begins,
                const std::vector<Array>& gradients, const MaybeArray& hidden, const Array& scratch) const {
    refuse_foreign(call);
    by_precision([&](const auto& k) {
      using K = std::decay_t<decltype(k)>;
      using Store = typename K::Store;
      using Real = typename K::Real;
      const Tokens& t = call.tokens;
      BackwardCall<Store, Real> c{};
      c.forward = read_call<K>(call);
      c.forward.y = t.template read<Store>("y", y, n.D * n.P, false);
      const auto w = weights<const Store>(parameters, false);
      c.forward.weights = w.data();
      const auto saved = on_tape<K>(call, tape_at(call, tape, false));
      c.forward.saved = &saved;
      c.dy = t.template read<const Store>("dy", dy, n.D * n.P, false);
      c.dx = t.template read<Store>("dx", dx, n.I, true);
      if (!t.starts && !dx.contiguous()) throw py::value_error("dx must be contiguous");
      if (hidden && t.starts) throw py::value_error("hidden is not for packed rows");
      c.hidden = t.template read<Store>("hidden", hidden, n.D * n.P, true);
      c.dafter = state_pointers<const Real>("dstates", dstates, t.sequences.B);
      c.dbefore = state_pointers<Real>("begins", begins, t.sequences.B);
      const auto into = weights<Store>(gradients, true);
      c.gradients = into.data();
      with_scratch(scratch, [&, on = gpu()](Arena& arena) { cuda::backward(k, n, on, c, arena, stream_of(stream)); });
    });
  }
};

}  // namespace
}  // namespace fastrnn::cuda
