// Part of module.cpp: a network's calls on NumPy arrays, and the tape that they leave for backward.
#pragma once
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>

#include "host/description.hpp"
#include "host/stack.hpp"
#include "python/arrays.hpp"
#include "python/general.hpp"
#include "python/gil.hpp"

namespace fastrnn {
namespace {

// ---- sequences -----------------------------------------------------------------------------------------------------

// What runs when, and how arrays of one row per time step and sequence lie: (T,B,n) with free strides but unit stride in a
// row, with batch_first made as (B,T,n); or packed, (tokens,n), the rows of one time step after the other, the longest first.
class Sequences {
 public:
  // x: or token ids (T,B), int64.
  Sequences(py::handle x, py::handle lengths, py::handle reset, bool batch_first)
      : batch_first_(batch_first), packed_(!is_array_of<int64_t>(x) && dimensions(x) == 2), batch_(batch_of(x, lengths, reset, packed_)) {
    if (!is_array_of<int64_t>(x)) return;
    const auto ids = the_array<int64_t>("ids", x, {T(), B()}, false);
    if (ids.strides(0) % 8 || ids.strides(1) % 8) throw py::value_error("ids must lie whole elements apart");
    ids_ = Rows<const int64_t>{static_cast<const int64_t*>(ids.data()), ids.strides(0) / 8, ids.strides(1) / 8};
  }

  const Batch& batch() const { return batch_; }
  int64_t T() const { return batch_.schedule().T; }
  int64_t B() const { return batch_.schedule().B; }
  bool of_ids() const { return ids_.has_value(); }
  TokenIds token_ids(int64_t vocabulary) const { return TokenIds(batch_.schedule(), ids_.value(), vocabulary); }

  template <class Real> Rows<const Real> read(const char* name, py::handle h, int64_t n) const {
    if (h.is_none()) return {nullptr, 0, 0};
    return rows<const Real, Real>(name, the_array<Real>(name, h, packed_ ? Shape{batch_.tokens(), n} : Shape{T(), B(), n}, false));
  }
  template <class Real> py::array_t<Real> make(int64_t n) const {
    times(times(times(T(), B()), n), sizeof(Real));
    return py::array_t<Real>(shape(n));
  }
  // Of an array that make() made.
  template <class Real> Rows<Real> write(const char* name, py::handle h, int64_t n) const {
    return rows<Real, Real>(name, the_array<Real>(name, h, shape(n)), batch_first_ && !packed_);
  }
  // (T,B,n), or of packed sequences (tokens,n), whatever the layout of x.
  Shape contiguous_shape(int64_t n) const { return packed_ ? Shape{batch_.tokens(), n} : Shape{T(), B(), n}; }
  Rows<const uint8_t> flags(const bool* base, int64_t n) const {
    const auto at = reinterpret_cast<const uint8_t*>(base);
    return packed_ ? Rows<const uint8_t>{at, 0, n, batch_.schedule().offset} : Rows<const uint8_t>{at, B() * n, n};
  }

 private:
  static int64_t dimensions(py::handle x) {
    const auto n = py::isinstance<py::array>(x) ? py::reinterpret_borrow<py::array>(x).ndim() : 0;
    if (n != 2 && n != 3) throw py::value_error("x must be an array (T,B,I) or packed (tokens,I)");
    return n;
  }
  static Batch batch_of(py::handle x, py::handle lengths, py::handle reset, bool packed) {
    const auto a = py::reinterpret_borrow<py::array>(x);
    if (!packed && a.ndim() < 2) throw py::value_error("ids must be an array (T,B)");
    if (packed && !is_array_of<int64_t>(lengths)) throw py::type_error("packed sequences need their lengths, int64");
    const int64_t B = packed ? py::reinterpret_borrow<py::array>(lengths).size() : a.shape(1);
    const int64_t* given = pointer<int64_t>("lengths", lengths, {B});
    const int64_t T = !packed ? a.shape(0) : B ? given[0] : 0;
    for (int64_t b = 0; given && b < B; b++)
      if (given[b] < 0 || given[b] > (packed && b ? given[b - 1] : T))
        throw py::value_error("lengths must lie in 0..T, of packed sequences falling");
    if (packed && B && T > a.shape(0)) throw py::value_error("packed sequences are longer than x");
    Rows<const uint8_t> cuts{nullptr, 0, 0};
    if (!reset.is_none()) {
      const py::array r = the_array<bool>("reset", reset, {T, B}, false);
      cuts = {static_cast<const uint8_t*>(r.data()), r.strides(0), r.strides(1)};
    }
    return Batch(T, B, given, cuts);
  }
  Shape shape(int64_t n) const { return packed_ ? Shape{batch_.tokens(), n} : batch_first_ ? Shape{B(), T(), n} : Shape{T(), B(), n}; }

  template <class T_, class Element> Rows<T_> rows(const char* name, const py::array& a, bool exchanged = false) const {
    const int64_t size = sizeof(Element), t = exchanged ? 1 : 0, b = packed_ ? 0 : 1 - t, k = a.ndim() - 1;
    if (a.size() && ((a.shape(k) > 1 && a.strides(k) != size) || a.strides(t) % size || a.strides(b) % size))
      throw py::value_error(std::string(name) + " must have unit stride in its last axis");
    const auto base = const_cast<T_*>(static_cast<const Element*>(a.data()));
    if (packed_) return {base, 0, a.strides(0) / size, batch_.schedule().offset};
    return {base, a.strides(t) / size, a.strides(b) / size};
  }

  bool batch_first_, packed_;
  Batch batch_;
  std::optional<Rows<const int64_t>> ids_;
};

Shape plus_axis(int64_t n, const Shape& shape) {
  Shape longer{n};
  longer.insert(longer.end(), shape.begin(), shape.end());
  return longer;
}

// ---- tape ----------------------------------------------------------------------------------------------------------

// What training draws: None, or (masks of dropout, what they scale by, noise). noise: None, or (kept, whether it has a mask for each time,
// scale, zoned of h, zoned of c), as AllNoise. Masks are arrays of bool, or None; they are held here, whatever holds them there.
struct Drawn {
  struct Noise {
    py::object kept, zoned[2];
    bool by_time;
    double scale;
  };
  py::object masks = py::none();
  double scale = 1;
  std::optional<Noise> noise{};

  Drawn() = default;
  explicit Drawn(const py::object& given) {
    if (given.is_none()) return;
    try {
      const auto [of_dropout, of_kept, noisy] = py::cast<std::tuple<py::object, double, py::object>>(given);
      masks = as_array(of_dropout), scale = of_kept;
      if (noisy.is_none()) return;
      const auto [kept, by_time, factor, h, c] = py::cast<std::tuple<py::object, bool, double, py::object, py::object>>(noisy);
      noise = Noise{as_array(kept), {as_array(h), as_array(c)}, by_time, factor};
    } catch (const py::cast_error&) {
      throw py::type_error("drawn must be (masks, scale, noise), and noise (kept, by_time, scale, zoned of h, zoned of c)");
    }
  }
};

// What a call computes with beside the parameters. The tape keeps it, since backward reads it again.
struct Given {
  py::object x, embedding;
  std::vector<py::object> states;  // empty: zeros
  py::object lengths, reset;
  bool batch_first;
  Drawn drawn{};

  Sequences sequences() const { return Sequences(x, lengths, reset, batch_first); }
  bool dropout() const { return !drawn.masks.is_none(); }

  // For a tape that answers for what the caller may write to before backward: its small arrays. Masks are nobody else's.
  Given owned() const {
    auto copy = [](const py::object& a) { return a.is_none() ? a : py::object(a.attr("copy")()); };
    Given mine = *this;
    for (py::object& state : mine.states) state = copy(state);
    mine.lengths = copy(lengths), mine.reset = copy(reset);
    return mine;
  }
};

// Its memory is its own, or an array that the caller gave room in.
struct CoreTape {
  Stack network;
  bool f64;
  int64_t T, B;
  Given given;
  py::object y, room;
  Memory memory;

  char* data() const { return room.is_none() ? memory.data() : static_cast<char*>(py::array(room).mutable_data()); }
  int64_t nbytes() const { return room.is_none() ? memory.bytes() : int64_t(py::array(room).nbytes()); }
};

// What the list of cells says of this one; the same for every instruction set and dtype.
const Kernel<float>& facts(const Stack& n) { return *n.isa->f32->cell[int(n.cell)]; }

// ---- network -------------------------------------------------------------------------------------------------------

struct CoreNetwork {
  Stack n;
  bool f64, is_general;
  Has has;

  CoreNetwork(const std::string& cell, const std::string& dtype, int64_t input_size, int64_t hidden_size, int64_t proj_size,
              int64_t num_layers, bool bidirectional, bool bias, const std::optional<General>& general, std::optional<std::string> isa,
              std::optional<HostThreads> host, int64_t heads)
      : n{{cell_named(cell, proj_size > 0, general.has_value()), input_size, hidden_size, proj_size > 0 ? proj_size : hidden_size,
           num_layers, bidirectional ? 2 : 1},
          &choose_isa(isa ? isa->c_str() : nullptr),
          host.value_or(HostThreads{})},
        f64(dtype == "float64"),
        is_general(general.has_value()),
        has{bias, proj_size > 0, general && general->peephole, facts(n).norms} {
    for (int side = 0; general && side < n.D; side++) n.options[side] = options_of(*general, side);
    if (!f64 && dtype != "float32") throw py::value_error("dtype must be float32 or float64");
    if (input_size < 1 || hidden_size < 1 || num_layers < 1 || proj_size < 0) throw py::value_error("sizes must be positive");
    n.heads = heads_of(heads, n.H, has.projection);
    const int64_t widest = std::max(input_size, times(2, std::max(n.H, n.P)));
    times(times(times(4, plus(n.H, 64)), plus(widest, 64)), times(16, num_layers));
  }

  // f with a number of the network's dtype.
  template <class F> auto by_dtype(F f) const { return f64 ? f(double()) : f(float()); }

  size_t states() const { return size_t(facts(n).states); }
  Shape state_shape(int64_t B, size_t state) const { return {n.L * n.D, B, n.state_size(int(state))}; }
  // The states that were given, or none at all for zeros; each may be None as well.
  std::vector<py::object> given_states(py::handle given) const {
    std::vector<py::object> found;
    if (given.is_none()) return found;
    for (py::handle state : py::reinterpret_borrow<py::sequence>(given)) found.push_back(as_array(state));
    if (!found.empty() && found.size() != states()) throw py::value_error("there must be " + std::to_string(states()) + " states, or none");
    return found;
  }
  template <class Real>
  States<const Real> read_states(const char* what, const std::vector<py::object>& given, int64_t B) const {
    States<const Real> at{};
    for (size_t i = 0; i < given.size(); i++) at[int(i)] = pointer<Real>(what, given[i], state_shape(B, i));
    return at;
  }
  // New states, and where they lie.
  template <class Real> py::tuple new_states(int64_t B, States<Real>& at) const {
    py::tuple made(states());
    for (size_t i = 0; i < states(); i++) {
      py::array_t<Real> state(state_shape(B, i));
      at[int(i)] = state.mutable_data();
      made[i] = state;
    }
    return made;
  }

  // 'each' sees every parameter and its shape, layer by layer.
  template <class Each> void for_each_parameter(Each each) const {
    for (int64_t i = 0; i < n.L * n.D; i++)
      fastrnn::for_each_parameter(has, [&](const ParameterShape& p) { each(i, p, shape_of(p, n, i / n.D, facts(n).gates)); });
  }
  template <class Real> std::vector<Parameters<const Real>> read(const py::sequence& arrays, std::vector<py::array>& keep) const {
    std::vector<Parameters<const Real>> weights(size_t(n.L * n.D), Parameters<const Real>{});
    size_t next = 0;
    for_each_parameter([&](int64_t i, const ParameterShape& p, const Shape& shape) {
      if (next >= arrays.size()) throw py::value_error("too few parameters");
      keep.push_back(the_array<Real>(p.name, as_array(py::object(arrays[next++])), shape));
      weights[i][p.which] = static_cast<const Real*>(keep.back().data());
    });
    if (next != arrays.size()) throw py::value_error("too many parameters");
    return weights;
  }

  // What an integer of each row counts, of matrices of int8, in the order of the parameters; None where nothing is said.
  std::vector<Parameters<const float>> read_counts(const py::sequence& given, std::vector<py::array>& keep) const {
    std::vector<Parameters<const float>> counts(size_t(n.L * n.D), Parameters<const float>{});
    size_t next = 0;
    for_each_parameter([&](int64_t i, const ParameterShape& p, const Shape& shape) {
      if (next >= given.size()) throw py::value_error("too few scales");
      const py::object one = given[next++];
      if (one.is_none()) return;
      keep.push_back(the_array<float>(p.name, one, {shape[0]}));
      counts[i][p.which] = static_cast<const float*>(keep.back().data());
    });
    if (next != given.size()) throw py::value_error("too many scales");
    return counts;
  }

  // The rows (V,I) that ids name; V is I and there are none where the ids are one-hot.
  Shape embedding_shape(py::handle embedding) const {
    if (embedding.is_none()) return {n.I, n.I};
    if (!py::isinstance<py::array>(embedding)) throw py::type_error("embedding must be an array");
    const auto e = py::reinterpret_borrow<py::array>(embedding);
    return {e.ndim() ? e.shape(0) : 0, n.I};
  }
  struct Vocabulary {
    std::optional<TokenIds> ids;
    DistinctIds tokens{};
  };
  Vocabulary vocabulary(const Sequences& s, py::handle embedding) const {
    if (!s.of_ids()) return {};
    Vocabulary v{s.token_ids(embedding_shape(embedding)[0])};
    v.tokens = v.ids->tokens();
    return v;
  }

  Given given(py::object x, py::object embedding, py::object states, py::object lengths, py::object reset, bool batch_first,
              const py::object& drawn = py::none()) const {
    return {as_array(x), embedding, given_states(states), as_array(lengths), as_array(reset), batch_first, Drawn(drawn)};
  }

  // Everything of a forward call but the outputs.
  template <class Real> ForwardCall<Real> call(const Sequences& s, const Given& g, const Vocabulary& v) const {
    ForwardCall<Real> c{};
    c.batch = &s.batch();
    if (s.of_ids()) {
      c.tokens = &v.tokens;
      c.x = {pointer<Real>("embedding", g.embedding, embedding_shape(g.embedding)), 0, n.I, v.tokens.id};
    } else {
      c.x = s.read<Real>("x", g.x, n.I);
    }
    c.before = read_states<Real>("state", g.states, s.B());
    const Shape of_masks = s.contiguous_shape(n.D * n.P);
    c.masks = s.flags(pointer<bool>("masks", g.drawn.masks, plus_axis(n.L - 1, of_masks)), n.D * n.P);
    c.masks_layer = 1;
    for (const auto size : of_masks) c.masks_layer *= size;
    c.scale = Real(g.drawn.scale);
    if (g.drawn.noise) c.noise = read_noise(s, *g.drawn.noise);
    return c;
  }

  AllNoise read_noise(const Sequences& s, const Drawn::Noise& noise) const {
    AllNoise found{};
    if (!is_general) throw py::value_error("only general cells have noise");
    auto flags = [&](const char* name, const py::object& array, int64_t size, bool each_time, int64_t& side) {
      const Shape shape = each_time ? s.contiguous_shape(size) : Shape{s.B(), size};
      side = 1;
      for (const auto extent : shape) side *= extent;
      const bool* const base = pointer<bool>(name, array, plus_axis(n.L * n.D, shape));
      return each_time ? s.flags(base, size) : Rows<const uint8_t>{reinterpret_cast<const uint8_t*>(base), 0, size};
    };
    found.first.scale = noise.scale;
    found.first.kept = flags("kept", noise.kept, n.P, noise.by_time, found.kept_side);
    found.first.zoned[0] = flags("zoned", noise.zoned[0], n.P, true, found.zoned_side[0]);
    if (states() > 1) found.first.zoned[1] = flags("zoned", noise.zoned[1], n.H, true, found.zoned_side[1]);
    return found;
  }

  void lay_out_any_tape(int64_t tokens, bool dropout, Arena& arena) const {
    by_dtype([&](auto real) { lay_out_tape<decltype(real)>(n, tokens, dropout, arena); });
  }
  int64_t tape_bytes(int64_t tokens, bool dropout) const {
    return bytes_of([&](Arena& arena) { lay_out_any_tape(tokens, dropout, arena); });
  }
  std::pair<int64_t, int64_t> tape_room(bool dropout) const {
    return room_of_tape([&](int64_t tokens, Arena& arena) { lay_out_any_tape(tokens, dropout, arena); });
  }
  // Who gives room answers for what is given.
  std::unique_ptr<CoreTape> new_tape(const Sequences& s, const Given& given, const py::object& y, const py::object& room) const {
    std::unique_ptr<CoreTape> tape(new CoreTape{n, f64, s.T(), s.B(), room.is_none() ? given.owned() : given, y, room, Memory()});
    const int64_t bytes = tape_bytes(s.batch().tokens(), given.dropout());
    if (room.is_none()) {
      tape->memory = Memory(bytes, false);
    } else {
      const auto a = py::array_t<uint8_t>::check_(room) ? py::array(room) : py::array();
      if (a.ndim() != 1 || !is_contiguous(a) || !a.writeable() || a.nbytes() < bytes)
        throw py::value_error("room must be a writable uint8 array of at least " + std::to_string(bytes) + " bytes");
    }
    return tape;
  }

  // y and the final states, by packed weights or the parameters; with 'training' the tape as well.
  template <class Real> py::tuple forward(const py::sequence& parameters, const Given& given, bool training, const py::object& room,
                                          const Panels<Real>* frozen, int threads) const {
    const Sequences s = given.sequences();
    const Vocabulary v = vocabulary(s, given.embedding);
    ForwardCall<Real> c = call<Real>(s, given, v);
    std::vector<Parameters<const Real>> weights;
    std::vector<py::array> keep;
    if (frozen) c.frozen = frozen;
    else weights = read<Real>(parameters, keep), c.weights = weights.data();
    auto y = s.make<Real>(n.D * n.P);
    c.y = s.write<Real>("y", y, n.D * n.P);
    const py::tuple ends = new_states(s.B(), c.after);
    Saved<Real, Real> saved;
    std::unique_ptr<CoreTape> tape;
    if (training) {
      tape = new_tape(s, given, y, room);
      use_huge_pages(tape->data(), tape->nbytes());
      Arena arena(tape->data());
      saved = lay_out_tape<Real>(n, s.batch().tokens(), given.dropout(), arena);
      c.saved = &saved;
    }
    ForwardRun<Real> run(n, c, threads);
    run_released(run);
    return py::make_tuple(y, ends, tape ? py::cast(std::move(tape)) : py::object(py::none()));
  }

  template <class Real>
  py::tuple backward(const py::sequence& parameters, const CoreTape& tape, py::object dy, const std::vector<py::object>& dstates,
                     bool hidden, int threads) const {
    if (tape.f64 != f64 || tape.network.isa != n.isa || tape.network.cell != n.cell || tape.network.I != n.I || tape.network.H != n.H ||
        tape.network.P != n.P || tape.network.L != n.L || tape.network.D != n.D || tape.network.heads != n.heads)
      throw py::value_error("the tape is of another network");
    const Given& given = tape.given;
    const Sequences s = given.sequences();
    if (s.T() != tape.T || s.B() != tape.B || tape_bytes(s.batch().tokens(), given.dropout()) > tape.nbytes())
      throw py::value_error("x has another shape than when the tape was made");
    std::vector<py::array> keep;
    const std::vector<Parameters<const Real>> weights = read<Real>(parameters, keep);
    Arena arena(tape.data());
    const Saved<Real, Real> saved = lay_out_tape<Real>(n, s.batch().tokens(), given.dropout(), arena);
    BackwardCall<Real> c{};
    const Vocabulary v = vocabulary(s, given.embedding);
    c.forward = call<Real>(s, given, v);
    c.forward.weights = weights.data();
    c.forward.saved = &saved;
    c.forward.y = s.write<Real>("y", tape.y, n.D * n.P);
    c.dy = s.read<Real>("dy", dy, n.D * n.P);
    c.dafter = read_states<Real>("dstate", dstates, s.B());
    py::object dx = py::none();
    if (!s.of_ids()) {
      dx = s.make<Real>(n.I);
      c.dx = s.write<Real>("dx", dx, n.I);
    } else if (!given.embedding.is_none()) {
      // zeros that cost nothing until they are looked at: most ids may not occur
      dx = py::module_::import("numpy").attr("zeros")(embedding_shape(given.embedding), py::dtype::of<Real>());
      c.dx = {static_cast<Real*>(py::array(dx).mutable_data()), 0, n.I, v.tokens.id};
    }
    py::object hidden_out = py::none();
    if (hidden) {
      hidden_out = s.make<Real>(n.D * n.P);
      c.hidden = s.write<Real>("hidden", hidden_out, n.D * n.P);
    }
    const py::tuple begins = new_states(s.B(), c.dbefore);
    std::vector<Parameters<Real>> into(size_t(n.L * n.D), Parameters<Real>{});
    py::list gradients;
    for_each_parameter([&](int64_t i, const ParameterShape& p, const Shape& shape) {
      py::array_t<Real> g(shape);
      into[i][p.which] = g.mutable_data();
      gradients.append(g);
    });
    c.gradients = into.data();
    BackwardRun<Real> run(n, c, threads);
    run_released(run);
    return py::make_tuple(dx, begins, gradients, hidden_out);
  }

  // ids: rows of the embedding, 0 where there is none, or nothing where x holds features.
  // lengths: (B,) or None.
  template <class Real>
  py::tuple memory(int64_t T, int64_t B, bool training, bool dropout, std::optional<int64_t> ids, py::handle lengths) const {
    if (T < 0 || B < 0) throw py::value_error("T and B must not be negative");
    const int64_t* const given = pointer<int64_t>("lengths", lengths, {B});
    for (int64_t b = 0; given && b < B; b++)
      if (given[b] < 0 || given[b] > T) throw py::value_error("lengths must lie in 0..T");
    const int64_t x = times(ids ? *ids : times(T, B), n.I), y = times(times(T, B), n.D * n.P),
                  states = times(n.L * n.D, times(B, n.P + (facts(n).states - 1) * n.H));
    const Batch batch = given ? Batch(T, B, given, {nullptr, 0, 0}) : Batch(T, B);
    int64_t parameters = 0;
    if (training)
      for_each_parameter([&](int64_t, const ParameterShape&, const Shape& s) { parameters += s[0] * (s.size() > 1 ? s[1] : 1); });
    const int64_t outputs = times(plus(plus(y, states), training ? plus(plus(x, states), parameters) : 0), sizeof(Real));
    // rows for the distinct ids, at most: of the table, which pays from two tokens each, and of its gradient
    const int64_t tokens = batch.tokens(), distinct = !ids ? 0 : std::min(*ids ? *ids : n.I, training ? tokens : tokens / 2);
    const int64_t rows = times(times(distinct, facts(n).gates * n.H), sizeof(Real));
    return py::make_tuple(outputs, training ? tape_bytes(tokens, dropout) : 0, plus(scratch_bytes<Real>(n, batch, training), rows));
  }
};

}  // namespace
}  // namespace fastrnn
