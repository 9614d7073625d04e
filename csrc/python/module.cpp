// Python's side of the core, and the only file that sees Python: extents, dtypes, contiguity, allocation, the GIL.
// checks.py words errors for users; what is refused here is what memory safety needs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "host/processors.hpp"
#include "host/product.hpp"
#include "python/arrays.hpp"
#include "python/ceilings.hpp"
#include "python/network.hpp"
#include "python/steps.hpp"

namespace py = pybind11;
using namespace fastrnn;

namespace {

// ---- frozen --------------------------------------------------------------------------------------------------------

// A step made ready for B rows: the next one with as many takes it again, and allocates nothing.
template <class Real> struct Prepared {
  int64_t B;
  int threads;
  Batch batch;
  ForwardRun<Real> run;

  Prepared(const Stack& n, ForwardCall<Real> call, int64_t rows, int on)
      : B(rows), threads(on), batch(1, B, nullptr, {nullptr, 0, 0}), run(n, (call.batch = &batch, call), threads) {}
};

template <class Real> struct CoreFrozen {
  CoreNetwork network;
  FrozenWeights<Real> weights;
  mutable std::unique_ptr<Prepared<Real>> ready{};  // taken and put back by who holds the GIL; a caller beside it makes its own
};
constexpr int64_t most_to_keep_ready = int64_t(8) << 20;

struct Frozen {
  std::variant<CoreFrozen<float>, CoreFrozen<double>> core;
};

// Not of a class derived from it, which may hold more than numbers: a mask, units.
bool is_bare(py::handle h) { return Py_TYPE(h.ptr()) == py::detail::npy_api::get().PyArray_Type_; }

// An array of Real, contiguous, of that shape; null pointer for None. False: something else.
template <class Real> bool plain(py::handle h, std::initializer_list<int64_t> shape, bool writable, const Real*& p) {
  p = nullptr;
  if (h.is_none()) return true;
  if (!is_array_of<Real>(h) || !(writable || is_bare(h))) return false;
  const auto a = py::reinterpret_borrow<py::array>(h);
  if (!has_shape(a, shape) || !is_contiguous(a) || (writable && !a.writeable())) return false;
  p = static_cast<const Real*>(a.data());
  return true;
}

template <class Real> void step_with(const CoreFrozen<Real>& f, ForwardCall<Real> call, int64_t B, int threads) {
  std::unique_ptr<Prepared<Real>> ready = std::move(f.ready);
  if (ready && ready->B == B && ready->threads == threads) {
    call.batch = &ready->batch;
    ready->run.again(call);
  } else {
    ready.reset(new Prepared<Real>(f.network.n, call, B, threads));
  }
  run_released(ready->run);
  if (ready->run.bytes() <= most_to_keep_ready) f.ready = std::move(ready);
}

// What a step reads or writes, at most: x or y, and the states.
template <class Real> struct Spans {
  const Real* at[1 + max_states];
  int64_t size[1 + max_states];
};

// Whether what is written overlaps anything else that is used; a state may be written where it is read.
template <class Real> bool overlap(const Spans<Real>& written, const Spans<Real>& read, int count) {
  auto meet = [](const Real* a, int64_t n, const Real* b, int64_t m) { return a && b && a < b + m && b < a + n; };
  for (int i = 0; i < count; i++)
    for (int k = 0; k < count; k++) {
      const bool same = i == k && i > 0 && written.at[i] == read.at[k];
      if (!same && meet(written.at[i], written.size[i], read.at[k], read.size[k])) return true;
      if (i < k && meet(written.at[i], written.size[i], written.at[k], written.size[k])) return true;
    }
  return false;
}

// One step. The state is an array, or a tuple of those of a cell that has several, in state and state_out; fresh arrays where out or
// state_out is None. None: some argument is not as it must be.
template <class Real> py::object step(const CoreFrozen<Real>& f, py::handle x, py::handle state, py::handle out, py::handle state_out,
                                      int threads) {
  const Stack& n = f.network.n;
  const int states = int(f.network.states()), count = 1 + states;
  if (n.D != 1 || !is_array_of<Real>(x) || !is_bare(x)) return py::none();
  const auto xa = py::reinterpret_borrow<py::array>(x);
  if (xa.ndim() != 2 || !is_contiguous(xa) || xa.shape(1) != n.I) return py::none();
  const int64_t B = xa.shape(0);
  Spans<Real> read{{static_cast<const Real*>(xa.data())}, {B * n.I}}, written{{}, {B * n.P}};
  // Reads the members of a state; false if it is no state of this cell.
  auto members = [&](py::handle whole, bool writable, Spans<Real>& to) {
    const bool several = states > 1 && !whole.is_none();
    if (several && (!PyTuple_Check(whole.ptr()) || PyTuple_GET_SIZE(whole.ptr()) != states)) return false;
    for (int i = 0; i < states; i++) {
      const py::handle one = several ? py::handle(PyTuple_GET_ITEM(whole.ptr(), i)) : whole;
      if (!plain<Real>(one, {n.L, B, n.state_size(i)}, writable, to.at[1 + i])) return false;
      if (writable && !whole.is_none() && !to.at[1 + i]) return false;
      to.size[1 + i] = n.L * B * n.state_size(i);
    }
    return true;
  };
  if (!members(state, false, read) || !members(state_out, true, written) || !plain<Real>(out, {B, n.P}, true, written.at[0]) ||
      overlap(written, read, count))
    return py::none();
  if (states > 2 && read.at[3] && std::any_of(read.at[3], read.at[3] + read.size[3], [](Real value) { return value < 0; }))
    return py::none();  // n, of a cell that has one: h is divided by it
  py::object y = py::reinterpret_borrow<py::object>(out), next = py::reinterpret_borrow<py::object>(state_out);
  if (!written.at[0]) {
    py::array_t<Real> fresh({B, n.P});
    written.at[0] = fresh.data();
    y = fresh;
  }
  ForwardCall<Real> c{};
  for (int i = 0; i < states; i++) c.before[i] = read.at[1 + i], c.after[i] = const_cast<Real*>(written.at[1 + i]);
  if (next.is_none()) {
    py::tuple fresh = f.network.new_states(B, c.after);
    next = states > 1 ? py::object(fresh) : py::object(fresh[0]);
  }
  c.x = {read.at[0], 0, n.I};
  c.y = {const_cast<Real*>(written.at[0]), 0, n.P};
  c.frozen = f.weights.panels();
  step_with(f, c, B, threads);
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

// The array that a result is to be written to, or a new one.
template <class Real> py::array result(const char* name, py::handle out, const Shape& shape) {
  times(times(shape[0], shape[1]), sizeof(Real));
  return out.is_none() ? py::array(py::array_t<Real>(shape)) : the_array<Real>(name, out, shape, true, true);
}

template <class Real>
py::array product(py::handle a, bool a_transposed, py::handle b, bool b_transposed, int threads, py::handle out, bool add,
                  HostThreads host) {
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
  if (add && out.is_none()) throw py::value_error("there is nothing to add to");
  p.add = add;
  py::array c = result<Real>("out", out, {p.n, p.m});
  p.c = static_cast<Real*>(c.mutable_data());
  ProductRun<Real> run(choose_isa(nullptr), p, threads, host);
  run_released(run);
  return c;
}

template <class Real>
py::tuple softmax(py::handle logits, py::handle classes, double smoothing, double scale, int threads, py::handle out) {
  const auto array = py::reinterpret_borrow<py::array>(logits);
  if (array.ndim() != 2 || array.shape(1) < 1) throw py::value_error("logits must be a matrix of at least one class");
  Softmax<Real> s{};
  s.n = array.shape(0), s.m = array.shape(1);
  s.smoothing = smoothing, s.scale = scale;
  s.logits = pointer<Real>("logits", logits, {s.n, s.m});
  // a copy: nobody may change what was checked
  const int64_t* given = pointer<int64_t>("classes", classes, {s.n});
  const std::vector<int64_t> checked(given, given + s.n);
  for (const int64_t one : checked)
    if (one < 0 || one >= s.m) throw py::index_error("classes must lie in 0.." + std::to_string(s.m - 1));
  s.classes = checked.data();
  py::array_t<double> losses(s.n);
  py::array gradients = result<Real>("out", out, {s.n, s.m});
  s.losses = losses.mutable_data(), s.gradients = static_cast<Real*>(gradients.mutable_data());
  SoftmaxRun<Real> run(choose_isa(nullptr), s, threads);
  run_released(run);
  return py::make_tuple(losses, gradients);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.attr("__version__") = FASTRNN_VERSION;

  // The address is that of a function that keeps what HostThreads asks for.
  py::class_<HostThreads>(m, "HostThreads")
      .def(py::init([](uintptr_t address) {
             if (!address) throw py::value_error("parallel_for must be the address of a function");
             watch_forks();
             return HostThreads{reinterpret_cast<decltype(HostThreads::parallel_for)>(address)};
           }),
           py::arg("parallel_for"));

  py::class_<CoreTape>(m, "Tape").def_property_readonly("nbytes", &CoreTape::nbytes);

  py::class_<Frozen>(m, "Frozen")
      .def_property_readonly("nbytes",
                             [](const Frozen& f) { return std::visit([](const auto& core) { return core.weights.bytes(); }, f.core); })
      .def(
          "forward",
          [](const Frozen& f, py::object x, py::object states, py::object lengths, py::object reset, bool batch_first, int threads,
             py::object embedding) {
            return std::visit(
                [&](const auto& core) {
                  const Given given = core.network.given(x, embedding, states, lengths, reset, batch_first);
                  return py::tuple(
                      core.network.forward(py::list(), given, false, py::none(), core.weights.panels(), threads)[py::slice(0, 2, 1)]);
                },
                f.core);
          },
          py::arg("x"), py::arg("states"), py::arg("lengths"), py::arg("reset"), py::arg("batch_first"), py::arg("threads"),
          py::arg("embedding") = py::none())
      .def(
          "step",
          [](const Frozen& f, py::handle x, py::handle state, py::handle out, py::handle state_out, int threads) {
            return std::visit([&](const auto& core) { return step(core, x, state, out, state_out, threads); }, f.core);
          },
          py::arg("x"), py::arg("state"), py::arg("out"), py::arg("state_out"), py::arg("threads"));

  py::class_<CoreNetwork>(m, "Network")
      .def(py::init<const std::string&, const std::string&, int64_t, int64_t, int64_t, int64_t, bool, bool, const std::optional<General>&,
                    std::optional<std::string>, std::optional<HostThreads>, int64_t>(),
           py::arg("cell"), py::arg("dtype"), py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size"), py::arg("num_layers"),
           py::arg("bidirectional"), py::arg("bias"), py::kw_only(), py::arg("general") = py::none(), py::arg("isa") = py::none(),
           py::arg("host") = py::none(), py::arg("heads") = 1)
      .def_property_readonly("isa", [](const CoreNetwork& self) { return self.n.isa->name; })
      .def(
          "forward",
          [](const CoreNetwork& self, const py::sequence& parameters, py::object x, py::object states, py::object lengths, py::object reset,
             bool training, bool batch_first, int threads, py::object embedding, py::object drawn, py::object room) {
            return self.by_dtype([&](auto real) {
              const Given given = self.given(x, embedding, states, lengths, reset, batch_first, training ? drawn : py::none());
              return self.forward<decltype(real)>(parameters, given, training, as_array(room), nullptr, threads);
            });
          },
          py::arg("parameters"), py::arg("x"), py::arg("states"), py::arg("lengths"), py::arg("reset"), py::arg("training"),
          py::arg("batch_first"), py::arg("threads"), py::arg("embedding") = py::none(), py::arg("drawn") = py::none(),
          py::arg("room") = py::none())
      .def("tape_room", &CoreNetwork::tape_room, py::arg("dropout"))
      .def(
          "tape",
          [](const CoreNetwork& self, py::object x, py::object y, py::object states, py::object lengths, py::object reset, bool batch_first,
             py::object room, py::object drawn) {
            const Given given = self.given(x, py::none(), states, lengths, reset, batch_first, drawn);
            return self.new_tape(given.sequences(), given, as_array(y), as_array(room));
          },
          py::arg("x"), py::arg("y"), py::arg("states"), py::arg("lengths"), py::arg("reset"), py::kw_only(), py::arg("batch_first"),
          py::arg("room"), py::arg("drawn") = py::none())
      .def(
          "backward",
          [](const CoreNetwork& self, const py::sequence& parameters, const CoreTape& tape, py::object dy, py::object dstates, bool hidden,
             int threads) {
            return self.by_dtype([&](auto real) {
              return self.backward<decltype(real)>(parameters, tape, as_array(dy), self.given_states(dstates), hidden, threads);
            });
          },
          py::arg("parameters"), py::arg("tape"), py::arg("dy"), py::arg("dstates"), py::arg("hidden"), py::arg("threads"))
      .def(
          "freeze",
          [](const CoreNetwork& self, const py::sequence& parameters, std::optional<std::pair<std::string, std::string>> formats,
             std::optional<std::string> products, std::optional<py::sequence> scales) {
            std::optional<NarrowFormats> narrow;
            if (formats) {
              if (self.f64) throw py::value_error("float64 weights are not kept in fewer bits");
              if (self.n.heads > 1) throw py::value_error("weights of heads are not kept in fewer bits");
              narrow = NarrowFormats{format_named(formats->first), format_named(formats->second),
                                     &choose_products(*self.n.isa, products ? products->c_str() : nullptr)};
            }
            return self.by_dtype([&](auto real) {
              using Real = decltype(real);
              std::vector<py::array> keep;
              const auto weights = self.read<Real>(parameters, keep);
              std::vector<Parameters<const float>> counts;
              if (scales) counts = self.read_counts(*scales, keep);
              return Frozen{CoreFrozen<Real>{
                  self, FrozenWeights<Real>(self.n, weights.data(), narrow ? &*narrow : nullptr, scales ? counts.data() : nullptr)}};
            });
          },
          py::arg("parameters"), py::arg("formats") = py::none(), py::arg("products") = py::none(), py::arg("scales") = py::none())
      .def(
          "memory",
          [](const CoreNetwork& self, int64_t T, int64_t B, bool training, bool dropout, std::optional<int64_t> ids, py::object lengths) {
            return self.by_dtype([&](auto real) { return self.memory<decltype(real)>(T, B, training, dropout, ids, lengths); });
          },
          py::arg("T"), py::arg("B"), py::arg("training"), py::arg("dropout"), py::arg("ids") = py::none(),
          py::arg("lengths") = py::none());

  py::class_<Tensors>(m, "Tensors").def(py::init<py::handle, py::tuple>(), py::arg("exchange"), py::arg("types"));

  py::class_<CoreCell>(m, "Cell")
      .def(py::init<const CoreNetwork&, const Tensors&>(), py::arg("network"), py::arg("tensors"))
      .def("slots", &CoreCell::slots)
      .def("tape_bytes", &CoreCell::tape_bytes, py::arg("B"))
      .def("step", &CoreCell::step, py::arg("x"), py::arg("states"), py::arg("weights"), py::arg("ends"), py::arg("y"), py::arg("tape"),
           py::arg("threads"))
      .def("step_backward", &CoreCell::step_backward, py::arg("x"), py::arg("states"), py::arg("weights"), py::arg("y"), py::arg("tape"),
           py::arg("seeds"), py::arg("dx"), py::arg("dstates"), py::arg("dweights"), py::arg("dz"), py::arg("threads"));

  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa* isa = isas; isa->name; isa++)
      if (isa->supported()) names.push_back(isa->name);
    return names;
  });
  // The versions of products with weights in fewer bits that an instruction set has on this CPU, the best first.
  m.def("products", [](const std::string& isa) { return names_of_products(choose_isa(isa.c_str())); }, py::arg("isa"));
  m.def("cells", [] { return std::vector<std::string>(cell_names, cell_names + cell_count); });
  // (gates, states, parameters): states as (name, axis), parameters as (name, axes, whether it is a bias).
  m.def(
      "describe",
      [](const std::string& name, bool projection, bool peephole) {
        const Kernel<float>& k = *choose_isa("scalar").f32->cell[int(cell_named(name, projection, peephole || is_general(name)))];
        auto word = [](Extent axis) { return std::string(extent_names[int(axis)]); };
        std::vector<std::pair<std::string, std::string>> states;
        for (const StateShape& s : states_of(k.states)) states.emplace_back(s.name, word(s.size));
        std::vector<std::tuple<std::string, std::vector<std::string>, bool>> parameters;
        for_each_parameter({true, projection, peephole, k.norms}, [&](const ParameterShape& p) {
          std::vector<std::string> axes;
          for (int i = 0; i < p.dimensions; i++) axes.push_back(word(p.axes[i]));
          parameters.emplace_back(p.name, axes, is_bias(p.which));
        });
        return std::make_tuple(k.gates, states, parameters);
      },
      py::arg("cell"), py::arg("projection"), py::arg("peephole"));
  m.def("available_threads", &available_threads);
  m.def("fill_memory", &fill_memory, py::arg("on"));
  m.def("yield_when_crowded", &yield_when_crowded, py::arg("on"));
  m.def(
      "product",
      [](py::array a, bool a_transposed, py::array b, bool b_transposed, int threads, py::object out, bool add,
         std::optional<HostThreads> host) {
        const HostThreads lent = host.value_or(HostThreads{});
        return is_array_of<double>(a) ? product<double>(a, a_transposed, b, b_transposed, threads, out, add, lent)
                                      : product<float>(a, a_transposed, b, b_transposed, threads, out, add, lent);
      },
      py::arg("a"), py::arg("a_transposed"), py::arg("b"), py::arg("b_transposed"), py::arg("threads"), py::arg("out") = py::none(),
      py::arg("add") = false, py::arg("host") = py::none());
  m.def(
      "softmax",
      [](py::array logits, py::array classes, double smoothing, double scale, int threads, py::object out) {
        return is_array_of<double>(logits) ? softmax<double>(logits, classes, smoothing, scale, threads, out)
                                           : softmax<float>(logits, classes, smoothing, scale, threads, out);
      },
      py::arg("logits"), py::arg("classes"), py::arg("smoothing"), py::arg("scale"), py::arg("threads"), py::arg("out") = py::none());
  m.def("activation", &activation, py::arg("isa"), py::arg("name"), py::arg("x"));
  define_ceilings(m);
}
