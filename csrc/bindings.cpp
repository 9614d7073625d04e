// Python's side of the core, and the only file that sees Python: extents, dtypes, contiguity, allocation, the GIL.
// checks.py words errors for users; what is refused here is what memory safety needs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "arrays.hpp"
#include "ceilings.hpp"
#include "gil.hpp"
#include "product.hpp"
#include "stack.hpp"

namespace py = pybind11;
using namespace fastrnn;

namespace {

// ---- network -------------------------------------------------------------------------------------------------------

struct CoreTape {
  Network network;
  bool f64;
  int64_t T, B;
  bool batch_first, dropout;
  double scale;
  py::object x, y, h0, c0, lengths, reset, masks;
  Memory memory;

  int64_t nbytes() const { return memory.bytes(); }
};

Cell cell_named(const std::string& name, bool projected) {
  if (projected && name != "lstm") throw py::value_error("proj_size is for the lstm cell only");
  if (projected) return Cell::lstm_projected;
  std::string known;
  for (int i = 0; i < cell_count; i++) {
    if (Cell(i) == Cell::lstm_projected) continue;
    if (name == cell_names[i]) return Cell(i);
    known += std::string(known.empty() ? "" : ", ") + cell_names[i];
  }
  throw py::value_error("cell is '" + name + "' but must be one of " + known);
}

// What the list of cells says of this one; the same for every instruction set and dtype.
const Kernel<float>& facts(const Network& n) { return *n.isa->f32->cell[int(n.cell)]; }
bool has_c(const Network& n) { return facts(n).has_c; }

struct CoreNetwork {
  Network n;
  bool f64, bias;

  CoreNetwork(const std::string& cell, const std::string& dtype, int64_t input_size, int64_t hidden_size, int64_t proj_size,
              int64_t num_layers, bool bidirectional, bool bias_, std::optional<std::string> isa)
      : n{&choose_isa(isa ? isa->c_str() : nullptr),
          cell_named(cell, proj_size > 0),
          input_size,
          hidden_size,
          proj_size > 0 ? proj_size : hidden_size,
          num_layers,
          bidirectional ? 2 : 1},
        f64(dtype == "float64"),
        bias(bias_) {
    if (!f64 && dtype != "float32") throw py::value_error("dtype must be float32 or float64");
    if (input_size < 1 || hidden_size < 1 || num_layers < 1 || proj_size < 0) throw py::value_error("sizes must be positive");
    const int64_t widest = std::max(input_size, times(2, std::max(n.H, n.P)));
    times(times(times(4, plus(n.H, 64)), plus(widest, 64)), times(16, num_layers));
  }

  Shape state_shape(int64_t B, int64_t size) const { return {n.L * n.D, B, size}; }

  // PyTorch's arrays in PyTorch's order; 'each' sees the shape and name of every one, layer by layer.
  template <class Each> void for_each_parameter(Each each) const {
    const int64_t GH = facts(n).gates * n.H;
    for (int64_t i = 0; i < n.L * n.D; i++) {
      each(i, "weight_ih", Shape{GH, n.input_size(i / n.D)});
      each(i, "weight_hh", Shape{GH, n.P});
      if (bias) each(i, "bias_ih", Shape{GH}), each(i, "bias_hh", Shape{GH});
      if (facts(n).projected) each(i, "weight_hr", Shape{n.P, n.H});
    }
  }
  template <class Real> static void put(Parameters<Real>& to, const std::string& name, const Real* p) {
    (name == "weight_ih"   ? to.weight_ih
     : name == "weight_hh" ? to.weight_hh
     : name == "bias_ih"   ? to.bias_ih
     : name == "bias_hh"   ? to.bias_hh
                           : to.weight_hr) = p;
  }
  template <class Real> std::vector<Parameters<Real>> read(const py::sequence& arrays, std::vector<py::array>& keep) const {
    std::vector<Parameters<Real>> weights(size_t(n.L * n.D), Parameters<Real>{});
    size_t next = 0;
    for_each_parameter([&](int64_t i, const char* name, const Shape& shape) {
      if (next >= arrays.size()) throw py::value_error("too few parameters");
      keep.push_back(the_array<Real>(name, py::object(arrays[next++]), shape));
      put(weights[i], name, static_cast<const Real*>(keep.back().data()));
    });
    if (next != arrays.size()) throw py::value_error("too many parameters");
    return weights;
  }

  // A new state and where it lies, or None and null.
  template <class Real> static std::pair<py::object, Real*> new_state(bool wanted, const Shape& shape) {
    if (!wanted) return {py::none(), nullptr};
    py::array_t<Real> state(shape);
    return {state, state.mutable_data()};
  }

  // Everything of a forward call but the outputs.
  template <class Real> ForwardCall<Real> call(const Batch& batch, py::handle x, py::handle h0, py::handle c0) const {
    const int64_t T = batch.schedule().T, B = batch.schedule().B;
    ForwardCall<Real> c{};
    c.batch = &batch;
    c.x = rows_in<Real>("x", x, {T, B, n.I});
    c.h0 = pointer<Real>("h0", h0, state_shape(B, n.P));
    c.c0 = has_c(n) ? pointer<Real>("c0", c0, state_shape(B, n.H)) : nullptr;
    return c;
  }
  static Batch batch_of(int64_t T, int64_t B, py::handle lengths, py::handle reset) {
    const int64_t* given = pointer<int64_t>("lengths", lengths, {B});
    for (int64_t b = 0; given && b < B; b++)
      if (given[b] < 0 || given[b] > T) throw py::value_error("lengths must lie in 0..T");
    Rows<const uint8_t> cuts{nullptr, 0, 0};
    if (!reset.is_none()) cuts = rows_of<const uint8_t, uint8_t>("reset", the_array<bool>("reset", reset, {T, B}, false));
    return Batch(T, B, given, cuts);
  }
  static std::pair<int64_t, int64_t> time_and_batch(py::handle x) {
    if (!py::isinstance<py::array>(x) || py::reinterpret_borrow<py::array>(x).ndim() != 3) throw py::value_error("x must be a 3-D array");
    auto a = py::reinterpret_borrow<py::array>(x);
    return {a.shape(0), a.shape(1)};
  }

  // The caller may write to its small arrays before backward, which reads them again; lengths even size the tape.
  static py::object own(py::handle a) { return a.is_none() ? py::object(py::none()) : a.attr("copy")(); }

  template <class Real>
  py::tuple forward(const py::sequence& parameters, py::object x, py::object h0, py::object c0, py::object lengths, py::object reset,
                    py::object masks, double scale, bool training, bool batch_first, int threads, const Panels<Real>* frozen) const {
    const auto [T, B] = time_and_batch(x);
    const Batch batch = batch_of(T, B, lengths, reset);
    ForwardCall<Real> c = call<Real>(batch, x, h0, c0);
    std::vector<Parameters<Real>> weights;
    std::vector<py::array> keep;
    if (frozen) c.frozen = frozen;
    else weights = read<Real>(parameters, keep), c.weights = weights.data();
    auto y = new_rows<Real>(T, B, n.D * n.P, batch_first);
    c.y = rows_of<Real, Real>("y", y, batch_first);
    py::array_t<Real> hn(state_shape(B, n.P));
    const auto [cn, cn_at] = new_state<Real>(has_c(n), state_shape(B, n.H));
    c.hn = hn.mutable_data(), c.cn = cn_at;
    Saved<Real> saved;
    std::unique_ptr<CoreTape> tape;
    if (training) {
      const bool dropout = !masks.is_none();
      if (dropout) c.masks = reinterpret_cast<const uint8_t*>(pointer<bool>("masks", masks, {n.L - 1, T, B, n.D * n.P}));
      c.scale = Real(scale);
      tape.reset(
          new CoreTape{n, f64, T, B, batch_first, dropout, scale, x, y, own(h0), own(c0), own(lengths), own(reset), masks, Memory()});
      tape->memory = laid_out([&](Arena& arena) { saved = lay_out_tape<Real>(n, batch, dropout, arena); }, false);
      c.saved = &saved;
    }
    ForwardRun<Real> run(n, c, threads);
    run_released(run);
    return py::make_tuple(y, hn, cn, tape ? py::cast(std::move(tape)) : py::object(py::none()));
  }

  template <class Real>
  py::tuple backward(const py::sequence& parameters, const CoreTape& tape, py::object dy, py::object dhn, py::object dcn, bool hidden,
                     int threads) const {
    if (tape.f64 != f64 || tape.network.isa != n.isa || tape.network.cell != n.cell || tape.network.I != n.I || tape.network.H != n.H ||
        tape.network.P != n.P || tape.network.L != n.L || tape.network.D != n.D)
      throw py::value_error("the tape is of another network");
    const int64_t T = tape.T, B = tape.B;
    const Batch batch = batch_of(T, B, tape.lengths, tape.reset);
    std::vector<py::array> keep;
    const std::vector<Parameters<Real>> weights = read<Real>(parameters, keep);
    Arena arena(tape.memory.data());
    const Saved<Real> saved = lay_out_tape<Real>(n, batch, tape.dropout, arena);
    BackwardCall<Real> c{};
    c.forward = call<Real>(batch, tape.x, tape.h0, tape.c0);
    c.forward.weights = weights.data();
    c.forward.saved = &saved;
    const Shape y_shape = tape.batch_first ? Shape{B, T, n.D * n.P} : Shape{T, B, n.D * n.P};
    c.forward.y = rows_of<Real, Real>("y", the_array<Real>("y", tape.y, y_shape), tape.batch_first);
    if (tape.dropout) c.forward.masks = reinterpret_cast<const uint8_t*>(pointer<bool>("masks", tape.masks, {n.L - 1, T, B, n.D * n.P}));
    c.forward.scale = Real(tape.scale);
    c.dy = rows_in<Real>("dy", dy, {T, B, n.D * n.P});
    c.dhn = pointer<Real>("dhn", dhn, state_shape(B, n.P));
    c.dcn = has_c(n) ? pointer<Real>("dcn", dcn, state_shape(B, n.H)) : nullptr;
    auto dx = new_rows<Real>(T, B, n.I, tape.batch_first);
    c.dx = rows_of<Real, Real>("dx", dx, tape.batch_first);
    py::object hidden_out = py::none();
    if (hidden) {
      hidden_out = new_rows<Real>(T, B, n.D * n.P, tape.batch_first);
      c.hidden = rows_of<Real, Real>("hidden", py::cast<py::array>(hidden_out), tape.batch_first);
    }
    py::array_t<Real> dh0(state_shape(B, n.P));
    const auto [dc0, dc0_at] = new_state<Real>(has_c(n), state_shape(B, n.H));
    c.dh0 = dh0.mutable_data(), c.dc0 = dc0_at;
    std::vector<Parameters<Real>> into(size_t(n.L * n.D), Parameters<Real>{});
    py::list gradients;
    for_each_parameter([&](int64_t i, const char* name, const Shape& shape) {
      py::array_t<Real> g(shape);
      put<Real>(into[i], name, g.data());
      gradients.append(g);
    });
    c.gradients = into.data();
    BackwardRun<Real> run(n, c, threads);
    run_released(run);
    return py::make_tuple(dx, dh0, dc0, gradients, hidden_out);
  }

  template <class Real> py::tuple memory(int64_t T, int64_t B, bool training, bool dropout) const {
    if (T < 0 || B < 0) throw py::value_error("T and B must not be negative");
    const int64_t x = times(times(T, B), n.I), y = times(times(T, B), n.D * n.P),
                  states = times(n.L * n.D, times(B, n.P + (has_c(n) ? n.H : 0)));
    const Batch batch(T, B);
    Arena tape(nullptr);
    if (training) lay_out_tape<Real>(n, batch, dropout, tape);
    int64_t parameters = 0;
    if (training) for_each_parameter([&](int64_t, const char*, const Shape& s) { parameters += s[0] * (s.size() > 1 ? s[1] : 1); });
    const int64_t outputs = times(plus(plus(y, states), training ? plus(plus(x, states), parameters) : 0), sizeof(Real));
    return py::make_tuple(outputs, tape.most(), scratch_bytes<Real>(n, batch, training));
  }

  template <class F> auto by_dtype(F f) const { return f64 ? f(double()) : f(float()); }
};

// ---- frozen --------------------------------------------------------------------------------------------------------

template <class Real> struct CoreFrozen {
  CoreNetwork network;
  FrozenWeights<Real> weights;
};

struct Frozen {
  std::variant<CoreFrozen<float>, CoreFrozen<double>> core;
};

// An array of Real, contiguous, of that shape; null pointer for None. False: something else.
template <class Real> bool plain(py::handle h, const Shape& shape, bool writable, const Real*& p) {
  p = nullptr;
  if (h.is_none()) return true;
  if (!is_array_of<Real>(h)) return false;
  const auto a = py::reinterpret_borrow<py::array>(h);
  if (!has_shape(a, shape) || !is_contiguous(a) || (writable && !a.writeable())) return false;
  p = static_cast<const Real*>(a.data());
  return true;
}

template <class Real> bool overlap(const Real* a, int64_t n, const Real* b, int64_t m) { return a && b && a < b + m && b < a + n; }

// One step. h, or the pair (h, c) of an LSTM, in state and state_out; fresh arrays where out or state_out is None.
// None: some argument is not as it must be.
template <class Real> py::object step(const CoreFrozen<Real>& f, py::handle x, py::handle state, py::handle out, py::handle state_out,
                                      int threads) {
  const Network& n = f.network.n;
  const bool pair = has_c(n);
  if (n.D != 1 || !is_array_of<Real>(x)) return py::none();
  const auto xa = py::reinterpret_borrow<py::array>(x);
  if (xa.ndim() != 2 || !is_contiguous(xa) || xa.shape(1) != n.I) return py::none();
  const int64_t B = xa.shape(0);
  const Shape h_shape{n.L, B, n.P}, c_shape{n.L, B, n.H};
  // Splits a state into its members; false if it is no state of this cell.
  auto members = [&](py::handle s, py::handle& h, py::handle& c) {
    h = s, c = Py_None;
    if (!pair || s.is_none()) return true;
    if (!PyTuple_Check(s.ptr()) || PyTuple_GET_SIZE(s.ptr()) != 2) return false;
    h = PyTuple_GET_ITEM(s.ptr(), 0), c = PyTuple_GET_ITEM(s.ptr(), 1);
    return true;
  };
  py::handle h0, c0, hn, cn;
  const Real *h0_at, *c0_at, *hn_at, *cn_at, *out_at;
  if (!members(state, h0, c0) || !members(state_out, hn, cn) || !plain<Real>(h0, h_shape, false, h0_at) ||
      !plain<Real>(c0, c_shape, false, c0_at) || !plain<Real>(hn, h_shape, true, hn_at) || !plain<Real>(cn, c_shape, true, cn_at) ||
      !plain<Real>(out, {B, n.P}, true, out_at))
    return py::none();
  if (!state_out.is_none() && (!hn_at || (pair && !cn_at))) return py::none();
  const Real* x_at = static_cast<const Real*>(xa.data());
  const int64_t h_size = n.L * B * n.P, c_size = n.L * B * n.H, y_size = B * n.P, x_size = B * n.I;
  if (overlap(out_at, y_size, x_at, x_size) || overlap(out_at, y_size, h0_at, h_size) || overlap(out_at, y_size, c0_at, c_size) ||
      overlap(out_at, y_size, hn_at, h_size) || overlap(out_at, y_size, cn_at, c_size) || overlap(hn_at, h_size, x_at, x_size) ||
      overlap(cn_at, c_size, x_at, x_size) || overlap(hn_at, h_size, cn_at, c_size) || overlap(hn_at, h_size, c0_at, c_size) ||
      overlap(cn_at, c_size, h0_at, h_size) || (hn_at != h0_at && overlap(hn_at, h_size, h0_at, h_size)) ||
      (cn_at != c0_at && overlap(cn_at, c_size, c0_at, c_size)))
    return py::none();
  py::object y = py::reinterpret_borrow<py::object>(out), next = py::reinterpret_borrow<py::object>(state_out);
  if (!out_at) {
    py::array_t<Real> fresh({B, n.P});
    out_at = fresh.data();
    y = fresh;
  }
  if (!hn_at) {
    py::array_t<Real> h(h_shape);
    hn_at = h.data();
    if (pair) {
      py::array_t<Real> c(c_shape);
      cn_at = c.data();
      next = py::make_tuple(h, c);
    } else {
      next = h;
    }
  }
  const Batch batch(1, B, nullptr, {nullptr, 0, 0});
  ForwardCall<Real> c{};
  c.batch = &batch;
  c.x = {x_at, 0, n.I};
  c.y = {const_cast<Real*>(out_at), 0, n.P};
  c.h0 = h0_at, c.c0 = c0_at;
  c.hn = const_cast<Real*>(hn_at), c.cn = const_cast<Real*>(cn_at);
  c.frozen = f.weights.panels();
  ForwardRun<Real> run(n, c, threads);
  run_released(run);
  return py::make_tuple(y, next);
}

template <class Real> void activate(const Functions<Real>& table, const std::string& name, const Real* x, Real* y, int64_t n) {
  (name == "tanh" ? table.tanh : table.sigmoid)(x, y, n);
}

py::array activation(const std::string& isa, const std::string& name, py::array x) {
  if (name != "tanh" && name != "sigmoid") throw py::value_error("name must be sigmoid or tanh");
  const Isa& chosen = choose_isa(isa.c_str());
  if (!is_contiguous(x)) throw py::value_error("x must be C-contiguous");
  const Shape shape(x.shape(), x.shape() + x.ndim());
  if (is_array_of<float>(x)) {
    py::array_t<float> y(shape);
    activate(chosen.f32->functions, name, static_cast<const float*>(x.data()), y.mutable_data(), x.size());
    return y;
  }
  if (!is_array_of<double>(x)) throw py::type_error("x must be float32 or float64");
  py::array_t<double> y(shape);
  activate(chosen.f64->functions, name, static_cast<const double*>(x.data()), y.mutable_data(), x.size());
  return y;
}

template <class Real> py::array product(py::handle a, bool a_transposed, py::handle b, bool b_transposed, int threads) {
  auto extents = [](py::handle h) {
    const auto array = py::reinterpret_borrow<py::array>(h);
    if (array.ndim() != 2) throw py::value_error("a and b must be matrices");
    return Shape{array.shape(0), array.shape(1)};
  };
  const Shape sa = extents(a), sb = extents(b);
  Product<Real> p{};
  p.a_transposed = a_transposed, p.b_transposed = b_transposed;
  p.n = sa[a_transposed], p.K = sa[!a_transposed], p.m = sb[!b_transposed];
  p.a = pointer<Real>("a", a, a_transposed ? Shape{p.K, p.n} : Shape{p.n, p.K});
  p.b = pointer<Real>("b", b, b_transposed ? Shape{p.m, p.K} : Shape{p.K, p.m});
  times(times(p.n, p.m), sizeof(Real));
  py::array_t<Real> c(Shape{p.n, p.m});
  p.c = c.mutable_data();
  ProductRun<Real> run(choose_isa(nullptr), p, threads);
  run_released(run);
  return c;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.attr("__version__") = FASTRNN_VERSION;

  py::class_<CoreTape>(m, "Tape").def_property_readonly("nbytes", &CoreTape::nbytes);

  py::class_<Frozen>(m, "Frozen")
      .def_property_readonly("nbytes",
                             [](const Frozen& f) { return std::visit([](const auto& core) { return core.weights.bytes(); }, f.core); })
      .def(
          "forward",
          [](const Frozen& f, py::object x, py::object h0, py::object c0, py::object lengths, py::object reset, bool batch_first,
             int threads) {
            return std::visit(
                [&](const auto& core) {
                  return py::tuple(core.network.forward(py::list(), x, h0, c0, lengths, reset, py::none(), 1, false, batch_first, threads,
                                                        core.weights.panels())[py::slice(0, 3, 1)]);
                },
                f.core);
          },
          py::arg("x"), py::arg("h0"), py::arg("c0"), py::arg("lengths"), py::arg("reset"), py::arg("batch_first"), py::arg("threads"))
      .def(
          "step",
          [](const Frozen& f, py::handle x, py::handle state, py::handle out, py::handle state_out, int threads) {
            return std::visit([&](const auto& core) { return step(core, x, state, out, state_out, threads); }, f.core);
          },
          py::arg("x"), py::arg("state"), py::arg("out"), py::arg("state_out"), py::arg("threads"));

  py::class_<CoreNetwork>(m, "Network")
      .def(py::init<const std::string&, const std::string&, int64_t, int64_t, int64_t, int64_t, bool, bool, std::optional<std::string>>(),
           py::arg("cell"), py::arg("dtype"), py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size"), py::arg("num_layers"),
           py::arg("bidirectional"), py::arg("bias"), py::arg("isa") = py::none())
      .def_property_readonly("isa", [](const CoreNetwork& self) { return self.n.isa->name; })
      .def(
          "forward",
          [](const CoreNetwork& self, const py::sequence& parameters, py::object x, py::object h0, py::object c0, py::object lengths,
             py::object reset, py::object masks, double scale, bool training, bool batch_first, int threads) {
            return self.by_dtype([&](auto real) {
              return self.forward<decltype(real)>(parameters, x, h0, c0, lengths, reset, masks, scale, training, batch_first, threads,
                                                  nullptr);
            });
          },
          py::arg("parameters"), py::arg("x"), py::arg("h0"), py::arg("c0"), py::arg("lengths"), py::arg("reset"), py::arg("masks"),
          py::arg("scale"), py::arg("training"), py::arg("batch_first"), py::arg("threads"))
      .def(
          "backward",
          [](const CoreNetwork& self, const py::sequence& parameters, const CoreTape& tape, py::object dy, py::object dhn, py::object dcn,
             bool hidden, int threads) {
            return self.by_dtype([&](auto real) { return self.backward<decltype(real)>(parameters, tape, dy, dhn, dcn, hidden, threads); });
          },
          py::arg("parameters"), py::arg("tape"), py::arg("dy"), py::arg("dhn"), py::arg("dcn"), py::arg("hidden"), py::arg("threads"))
      .def(
          "freeze",
          [](const CoreNetwork& self, const py::sequence& parameters) {
            return self.by_dtype([&](auto real) {
              using Real = decltype(real);
              std::vector<py::array> keep;
              return Frozen{CoreFrozen<Real>{self, FrozenWeights<Real>(self.n, self.read<Real>(parameters, keep).data())}};
            });
          },
          py::arg("parameters"))
      .def(
          "memory",
          [](const CoreNetwork& self, int64_t T, int64_t B, bool training, bool dropout) {
            return self.by_dtype([&](auto real) { return self.memory<decltype(real)>(T, B, training, dropout); });
          },
          py::arg("T"), py::arg("B"), py::arg("training"), py::arg("dropout"));

  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa* isa = isas; isa->name; isa++)
      if (isa->supported()) names.push_back(isa->name);
    return names;
  });
  m.def("available_threads", &available_threads);
  m.def("yield_when_crowded", &yield_when_crowded, py::arg("on"));
  m.def(
      "product",
      [](py::array a, bool a_transposed, py::array b, bool b_transposed, int threads) {
        return is_array_of<double>(a) ? product<double>(a, a_transposed, b, b_transposed, threads)
                                      : product<float>(a, a_transposed, b, b_transposed, threads);
      },
      py::arg("a"), py::arg("a_transposed"), py::arg("b"), py::arg("b_transposed"), py::arg("threads"));
  m.def("activation", &activation, py::arg("isa"), py::arg("name"), py::arg("x"));
  define_ceilings(m);
}
