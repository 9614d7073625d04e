// The kernels without Python: forward against a textbook loop, gradients against differences, every instruction set
// against the scalar one, thread counts against each other bit by bit. For sanitizers, valgrind and emulators.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "host/memory.hpp"
#include "host/selftest.hpp"
#include "host/stack.hpp"

using namespace fastrnn;
using Array = std::vector<double>;

namespace {

int checks = 0, failures = 0;

}  // namespace

void check(bool right, const std::string& what) {
  checks++;
  if (right) return;
  failures++;
  std::printf("FAILED %s\n", what.c_str());
}

namespace {

// Scalar code, or, where the build has none, the last of its instruction sets: what the others are compared with.
const Isa& plainest() {
  const Isa* last = isas;
  for (const Isa* isa = isas; isa->name; isa++)
    if (isa->supported()) last = isa;
  return *last;
}

struct Case {
  Cell cell;
  int64_t T, B, I, H, L;
  int D;
  bool ragged, resets, bias;
  int64_t ids = 0;  // so many rows of x are an embedding, and the input is ids of them
  HostThreads host = {};
  int64_t heads = 1;

  int64_t P() const { return kernel().projected ? (H + 1) / 2 : H; }
  bool general() const { return cell >= Cell::rnn_general; }
  int64_t peepholes() const { return kernel().slots.vectors; }
  int norms() const { return kernel().norms; }
  const Kernel<double>& kernel() const { return *plainest().f64->cell[int(cell)]; }
  bool has_c() const { return kernel().states > 1; }
  int64_t beside() const { return std::max(kernel().states - 1, 1); }  // states beside h that there is room for
  bool exponential() const { return cell == Cell::slstm_exponential; }
  int gates() const { return kernel().gates; }
  // relu has a kink, which spoils differences; tests/ take the complex step.
  bool smooth() const { return cell != Cell::rnn_relu; }
  Stack network(const Isa& isa) const { return {{cell, I, H, P(), L, D, {options, options}, heads}, &isa, host}; }
  // One of each, and two that are not of the usual: what sigma and tanh of other cells become. Smooth, and no clipping, which has a kink.
  static constexpr CellOptions options{
      1e9, false, true, {{ActivationKind::softplus, 0, 0}, {ActivationKind::scaled_tanh, 1.2, 0.8}, {ActivationKind::sigmoid, 0, 0}}};
  double gate(double z) const { return general() ? std::log1p(std::exp(z)) : 1 / (1 + std::exp(-z)); }
  double candidate(double z) const { return general() ? 1.2 * std::tanh(0.8 * z) : std::tanh(z); }
  double of_c(double z) const { return general() ? 1 / (1 + std::exp(-z)) : std::tanh(z); }
  std::string text() const {
    return std::string(cell_names[int(cell)]) + " T=" + std::to_string(T) + " B=" + std::to_string(B) + " I=" + std::to_string(I) +
           " H=" + std::to_string(H) + " L=" + std::to_string(L) + " D=" + std::to_string(D) + (ragged ? " ragged" : "") +
           (resets ? " resets" : "") + (ids ? " ids=" + std::to_string(ids) : "") + (heads > 1 ? " heads=" + std::to_string(heads) : "");
  }
};

// Everything a case is run on, and in the same shape everything that backward gives.
struct Values {
  Array x, h0, c0;  // c0: the states beside h, one after the other
  std::vector<Array> weights;  // for each layer and direction, in the order of Parameter

  std::vector<Array*> arrays() {
    std::vector<Array*> all{&x, &h0, &c0};
    for (Array& w : weights) all.push_back(&w);
    return all;
  }
};
struct Output {
  Array y, hn, cn;
};
struct Problem {
  Case c;
  Values in;
  Output d;  // the loss is the sum of outputs times these
  std::vector<int64_t> lengths;
  std::vector<uint8_t> reset;
};

Problem make(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  auto fill = [&](int64_t n, double scale) {
    Array a(static_cast<size_t>(n));
    for (double& v : a) v = scale * uniform(random);
    return a;
  };
  const int64_t states = c.L * c.D * c.B, GH = c.gates() * c.H, width = c.D * c.P();
  Problem p{c,
            {fill(c.T * c.B * c.I, 1), fill(states * c.P(), 1), fill(states * c.H * c.beside(), 1), {}},
            {fill(c.T * c.B * width, 1), fill(states * c.P(), 1), fill(states * c.H * c.beside(), 1)},
            {},
            {}};
  for (int64_t i = 0; i < c.L * c.D; i++)
    for (int64_t n :
         {GH * (i / c.D ? width : c.I), GH * c.P() / c.heads, c.bias ? GH : 0, c.bias ? GH : 0, c.P() * c.H, c.peepholes() * c.H,
          c.norms() ? GH : 0, c.norms() ? GH : 0, c.norms() > 1 ? c.H : 0, c.norms() > 1 && c.bias ? c.H : 0})
      p.in.weights.push_back(fill(n, 1 / std::sqrt(double(c.H))));
  // what c is divided by
  for (int64_t i = 0; c.beside() == 3 && i < states * c.H; i++) p.in.c0[states * c.H + i] = 0.5 + std::fabs(p.in.c0[states * c.H + i]);
  for (int64_t b = 0; c.ragged && b < c.B; b++) p.lengths.push_back(b == 0 ? c.T : int64_t(random() % unsigned(c.T + 1)));
  for (int64_t i = 0; c.resets && i < c.T * c.B; i++) p.reset.push_back(random() % 4 == 0);
  return p;
}

// The case on one instruction set. Outputs and gradients start as NaN: whatever is not written shows.
template <class Real>
void run(const Problem& p, const Isa& isa, int threads, bool frozen, Output& out, Values* gradients,
         const NarrowFormats* formats = nullptr) {
  const Case& c = p.c;
  const Stack n = c.network(isa);
  auto narrow = [](const Array& a) { return std::vector<Real>(a.begin(), a.end()); };
  auto blank = [](const Array& a) { return std::vector<Real>(a.size(), Real(NAN)); };
  auto read = [](std::vector<Real>& v) { return v.empty() ? nullptr : v.data(); };
  std::vector<std::vector<Real>> w, dw;
  for (const Array& a : p.in.weights) w.push_back(narrow(a)), dw.push_back(blank(a));
  std::vector<Parameters<const Real>> weights;
  std::vector<Parameters<Real>> into;
  for (size_t i = 0; i < w.size(); i += parameter_count) {
    weights.push_back({}), into.push_back({});
    for (int k = 0; k < parameter_count; k++) weights.back()[k] = read(w[i + size_t(k)]), into.back()[k] = read(dw[i + size_t(k)]);
  }
  const Batch batch(c.T, c.B, c.ragged ? p.lengths.data() : nullptr, {c.resets ? p.reset.data() : nullptr, c.B, 1});
  auto x = narrow(p.in.x), h0 = narrow(p.in.h0), c0 = narrow(p.in.c0), y = blank(p.d.y), hn = blank(p.d.hn), cn = blank(p.d.cn);
  const int64_t width = c.D * c.P();
  ForwardCall<Real> call{};
  call.batch = &batch;
  call.x = {x.data(), c.B * c.I, c.I};
  std::vector<int64_t> ids(size_t(c.T * c.B));
  for (size_t i = 0; c.ids && i < ids.size(); i++) ids[i] = int64_t(i * i) % c.ids;
  const TokenIds counted(batch.schedule(), {ids.data(), c.B, 1}, c.ids + 1);
  const DistinctIds tokens = counted.tokens();
  if (c.ids) call.tokens = &tokens, call.x = {x.data(), 0, c.I, tokens.id};
  call.y = {y.data(), c.B * width, width};
  auto place = [&](auto& states, std::vector<Real>& h, std::vector<Real>& beside) {
    states[0] = h.data();
    for (int k = 1; k < c.kernel().states; k++) states[k] = beside.data() + (k - 1) * int64_t(beside.size()) / c.beside();
  };
  place(call.before, h0, c0), place(call.after, hn, cn);
  call.weights = weights.data();
  std::unique_ptr<FrozenWeights<Real>> packed;
  if (frozen) packed.reset(new FrozenWeights<Real>(n, weights.data(), formats)), call.frozen = packed->panels(), call.weights = nullptr;
  Saved<Real, Real> saved;
  Memory memory;
  if (gradients)
    memory = laid_out([&](Arena& arena) { saved = lay_out_tape<Real>(n, batch.tokens(), false, arena); }, false), call.saved = &saved;
  ForwardRun<Real>(n, call, threads).run({nullptr, nullptr});
  out.y.assign(y.begin(), y.end()), out.hn.assign(hn.begin(), hn.end()), out.cn.assign(cn.begin(), cn.end());
  if (!gradients) return;
  auto dy = narrow(p.d.y), dhn = narrow(p.d.hn), dcn = narrow(p.d.cn), dx = blank(p.in.x), dh0 = blank(p.in.h0), dc0 = blank(p.in.c0);
  BackwardCall<Real> back{};
  back.forward = call;
  back.dy = {dy.data(), c.B * width, width};
  back.dx = {dx.data(), c.B * c.I, c.I};
  if (c.ids) dx.assign(dx.size(), 0), back.dx = {dx.data(), 0, c.I, tokens.id};
  place(back.dafter, dhn, dcn), place(back.dbefore, dh0, dc0);
  back.gradients = into.data();
  BackwardRun<Real>(n, back, threads).run({nullptr, nullptr});
  auto widen = [](const std::vector<Real>& v) { return Array(v.begin(), v.end()); };
  *gradients = {widen(dx), widen(dh0), widen(dc0), {}};
  for (const auto& v : dw) gradients->weights.push_back(widen(v));
}

// One layer, one direction, dense: the textbook.
static_assert(cell_count == int(Cell::lstm_projected_general) + 1, "textbook() has to know a new cell");
Output textbook(const Problem& p) {
  const Case& c = p.c;
  const int64_t H = c.H, P = c.P(), G = c.gates();
  const Array &ih = p.in.weights[0], &hh = p.in.weights[1], &bi = p.in.weights[2], &bh = p.in.weights[3], &hr = p.in.weights[4],
              &peephole = p.in.weights[5];
  auto normalise = [](Array& v, const Array& gain, const Array& bias) {
    double mean = 0, variance = 0;
    for (const double one : v) mean += one / double(v.size());
    for (const double one : v) variance += (one - mean) * (one - mean) / double(v.size());
    for (size_t i = 0; i < v.size(); i++)
      v[i] = gain[i] * (v[i] - mean) / std::sqrt(variance + norm_epsilon) + (bias.empty() ? 0 : bias[i]);
  };
  Output o{Array(p.d.y.size()), p.in.h0, p.in.c0};
  for (int64_t b = 0; b < c.B; b++) {
    auto state = [&](int64_t k) { return Array(p.in.c0.begin() + (k * c.B + b) * H, p.in.c0.begin() + (k * c.B + b + 1) * H); };
    Array h(p.in.h0.begin() + b * P, p.in.h0.begin() + (b + 1) * P), s = state(0), m(H), n = state(c.beside() / 2),
                                                                     most = state(c.beside() - 1);
    for (int64_t t = 0; t < c.T; t++) {
      Array a(G * H), z(G * H);
      auto hidden = [&](int64_t row, auto value) {
        double sum = bh.empty() || c.norms() ? 0 : bh[row];
        const int64_t own = P / c.heads,
                      first = row % H / own * own;  // columns of the unit's head; without a projection if there are several
        for (int64_t k = 0; k < own; k++) sum += hh[row * own + k] * value(c.heads > 1 ? first + k : k);
        return sum;
      };
      for (int64_t row = 0; row < G * H; row++) {
        a[row] = bi.empty() || c.norms() ? 0 : bi[row];
        for (int64_t k = 0; k < c.I; k++) a[row] += ih[row * c.I + k] * p.in.x[(t * c.B + b) * c.I + k];
        z[row] = hidden(row, [&](int64_t k) { return h[k]; });
      }
      if (c.norms()) normalise(a, p.in.weights[weight_norm_ih], bi), normalise(z, p.in.weights[weight_norm_hh], bh);
      Array next(H);
      for (int64_t u = 0; u < H; u++) {
        if (G == 1)
          next[u] = c.cell == Cell::rnn_relu ? std::max(0., a[u] + z[u]) : c.general() ? c.gate(a[u] + z[u]) : std::tanh(a[u] + z[u]);
        if (G == 3) {
          const double update = c.gate(a[H + u] + z[H + u]);
          const bool after = c.cell == Cell::gru || c.cell == Cell::gru_norm || c.cell == Cell::gru_general;
          const double candidate =
              after ? c.gate(a[u] + z[u]) * z[2 * H + u] : hidden(2 * H + u, [&](int64_t k) { return c.gate(a[k] + z[k]) * h[k]; });
          next[u] = (1 - update) * c.candidate(a[2 * H + u] + candidate) + update * h[u];
        }
        if (c.beside() == 3) {
          const double in = a[u] + z[u], forget = a[H + u] + z[H + u];
          const double kept = (c.exponential() ? forget : -std::log1p(std::exp(-forget))) + most[u], before = most[u] = std::max(in, kept);
          s[u] = std::exp(kept - before) * s[u] + std::exp(in - before) * c.candidate(a[2 * H + u] + z[2 * H + u]);
          n[u] = std::exp(kept - before) * n[u] + std::exp(in - before);
          next[u] = c.gate(a[3 * H + u] + z[3 * H + u]) * s[u] / n[u];
        } else if (G == 4) {
          auto seen = [&](int64_t which, double cell) { return peephole.empty() ? 0 : peephole[which * H + u] * cell; };
          const double in = c.gate(a[u] + z[u] + seen(0, s[u])), forget = c.gate(a[H + u] + z[H + u] + seen(1, s[u]));
          s[u] = forget * s[u] + in * c.candidate(a[2 * H + u] + z[2 * H + u]);
          m[u] = next[u] = c.gate(a[3 * H + u] + z[3 * H + u] + seen(2, s[u])) * c.of_c(s[u]);
        }
      }
      if (c.norms() > 1) {
        Array normal = s;
        normalise(normal, p.in.weights[weight_norm_c], p.in.weights[bias_norm_c]);
        for (int64_t u = 0; u < H; u++) next[u] *= std::tanh(normal[u]) / std::tanh(s[u]);
      }
      h = next;
      if (c.kernel().projected) {
        h.assign(P, 0);
        for (int64_t r = 0; r < P; r++)
          for (int64_t u = 0; u < H; u++) h[r] += hr[r * H + u] * m[u];
      }
      std::copy(h.begin(), h.end(), o.y.begin() + (t * c.B + b) * P);
    }
    std::copy(h.begin(), h.end(), o.hn.begin() + b * P);
    for (int64_t k = 0; k < c.beside(); k++) {
      const Array& last = k == 0 ? s : k == 1 ? n : most;
      std::copy(last.begin(), last.end(), o.cn.begin() + (k * c.B + b) * H);
    }
  }
  return o;
}

double loss(const Problem& p, const Output& o) {
  double sum = 0;
  for (size_t i = 0; i < o.y.size(); i++) sum += o.y[i] * p.d.y[i];
  for (size_t i = 0; i < o.hn.size(); i++) sum += o.hn[i] * p.d.hn[i];
  for (size_t i = 0; p.c.has_c() && i < o.cn.size(); i++) sum += o.cn[i] * p.d.cn[i];
  return sum;
}

// Largest difference as a part of the largest magnitude; NaN anywhere is infinite.
double distance(const Array& a, const Array& b) {
  double most = 0, scale = 1e-300;
  for (size_t i = 0; i < a.size(); i++) {
    if (!(std::fabs(a[i] - b[i]) < 1e300)) return INFINITY;
    most = std::max(most, std::fabs(a[i] - b[i]));
    scale = std::max(scale, std::fabs(b[i]));
  }
  return a.size() == b.size() ? most / scale : INFINITY;
}
double distance(const Case& c, Output& a, Output& b) {
  return std::max({distance(a.y, b.y), distance(a.hn, b.hn), c.has_c() ? distance(a.cn, b.cn) : 0.});
}
double distance(const Case& c, Values& a, Values& b) {
  double most = 0;
  const auto left = a.arrays(), right = b.arrays();
  for (size_t i = 0; i < left.size(); i++) {
    const bool unused = (i == 2 && !c.has_c()) || (i > 2 && (i - 3) % parameter_count == weight_hr && !c.kernel().projected);
    if (!unused) most = std::max(most, distance(*left[i], *right[i]));
  }
  return most;
}

void check_gradient(const Problem& p, const Isa& scalar, Values& gradient) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> uniform(-1, 1);
  Problem plus = p, minus = p;
  double expected = 0;
  const double step = 1e-6;
  const auto g = gradient.arrays(), up = plus.in.arrays(), down = minus.in.arrays();
  for (size_t i = 0; i < g.size(); i++)
    for (size_t k = 0; k < g[i]->size(); k++) {
      if (std::isnan((*g[i])[k]) && ((i == 2 && !p.c.has_c()) || i > 2)) continue;  // an array this cell has not
      const double v = uniform(random);
      expected += (*g[i])[k] * v;
      (*up[i])[k] += step * v, (*down[i])[k] -= step * v;
    }
  Output high, low;
  run<double>(plus, scalar, 1, false, high, nullptr);
  run<double>(minus, scalar, 1, false, low, nullptr);
  const double found = (loss(p, high) - loss(p, low)) / (2 * step);
  check(std::fabs(found - expected) < 1e-6 * (1 + std::fabs(expected)),
        p.c.text() + ": gradient " + std::to_string(expected) + " difference " + std::to_string(found));
}

// Fewer bits: near the exact result, with the same bits for any number of threads and from every version of int8's products.
void check_narrow(const Problem& p, const Isa& isa, Output& wide) {
  Output first[format_count];
  const double wider = p.c.general() || p.c.beside() > 1 ? 3 : 1;  // some gates are not bounded, and neither are states and errors
  for (const NarrowCandidate* candidate = isa.products; candidate->products; candidate++) {
    if (!candidate->supported()) continue;
    for (int f = 0; f < format_count; f++) {
      const NarrowFormats formats{Format(f), Format(f), candidate->products};
      const std::string text = p.c.text() + ": " + candidate->products->name + (f ? " int8" : " bfloat16");
      Output one, other;
      run<float>(p, isa, 1, true, one, nullptr, &formats);
      const double off = distance(p.c, one, wide);
      check(off < wider * (f ? 0.05 : 0.01), text + " is off by " + std::to_string(off));
      for (int threads : {2, 3}) {
        run<float>(p, isa, threads, true, other, nullptr, &formats);
        check(distance(p.c, other, one) == 0, text + " threads");
      }
      if (candidate == isa.products || first[f].y.empty()) first[f] = one;
      // Of bfloat16 some versions multiply sums of two, within 2^-16 of the numbers.
      const double apart = distance(p.c, first[f], one);
      check(f ? apart == 0 : apart < wider * 1e-4, text + " is off another version by " + std::to_string(apart));
    }
  }
}

void check_case(const Case& c, const Isa& scalar) {
  const Problem p = make(c, 11);
  Output wide;
  Values gradient;
  run<double>(p, scalar, 1, false, wide, &gradient);
  if (c.L * c.D == 1 && !c.ragged && !c.resets && !c.ids) {
    Output book = textbook(p);
    check(distance(c, wide, book) < 1e-12, c.text() + ": textbook");
  }
  if (c.smooth()) check_gradient(p, scalar, gradient);
  for (const Isa* isa = isas; isa->name; isa++) {
    if (!isa->supported()) continue;
    Output one, other, narrow;
    Values g_one, g_other, g_narrow;
    run<double>(p, *isa, 1, false, one, &g_one);
    check(distance(c, one, wide) < 1e-12 && distance(c, g_one, gradient) < 1e-11, c.text() + ": " + isa->name);
    run<float>(p, *isa, 1, false, narrow, &g_narrow);
    // The size of a single input is lost on a product that is normalised: its gradient is nothing but rounding.
    if (!c.norms() || c.I > 1)
      check(distance(c, narrow, wide) < 1e-5 && distance(c, g_narrow, gradient) < 1e-4, c.text() + ": " + isa->name + " float32");
    for (int threads : {2, 3, 8}) {
      run<double>(p, *isa, threads, false, other, &g_other);
      check(distance(c, other, one) == 0 && distance(c, g_other, g_one) == 0, c.text() + ": " + isa->name + " threads");
    }
    run<double>(p, *isa, 2, true, other, nullptr);
    check(distance(c, other, wide) < 1e-12, c.text() + ": " + isa->name + " frozen");
    if (c.heads == 1) check_narrow(p, *isa, wide);
  }
}

// Callers of one frozen layer at once: one of them gets the threads, and all the same bits.
void check_callers() {
  const Case c{Cell::lstm, 40, 24, 16, 48, 1, 1, false, false, true};
  const Problem p = make(c, 5);
  Output alone, results[3];
  run<double>(p, choose_isa(nullptr), 1, true, alone, nullptr);
  std::vector<std::thread> callers;
  for (Output& result : results)
    callers.emplace_back([&] {
      for (int i = 0; i < 10; i++) run<double>(p, choose_isa(nullptr), 2, true, result, nullptr);
    });
  for (std::thread& caller : callers) caller.join();
  for (Output& result : results) check(distance(c, result, alone) == 0, c.text() + ": callers at once");
}

// Forward and backward on threads that a host lends, as many as are wanted or fewer: the same bits.
void check_lent() {
  for (const int64_t B : {2, 24}) {  // hidden units or batch rows dealt out
    Case c{Cell::gru_original, 40, B, 16, 130, 2, 2, true, true, true};
    Problem p = make(c, 6);
    Output alone, lent;
    Values expected, found;
    run<double>(p, choose_isa(nullptr), 1, false, alone, &expected);
    for (const HostThreads host : {HostThreads{lend_all}, HostThreads{lend_three}, HostThreads{lend_none}}) {
      p.c.host = host;
      run<double>(p, choose_isa(nullptr), 4, false, lent, &found);
      check(distance(c, lent, alone) == 0 && distance(c, found, expected) == 0, c.text() + ": on a host's threads");
    }
  }
}

// A call that is told to stop says so, at whatever barrier its workers stand.
void check_interruption() {
  const Isa& isa = choose_isa(nullptr);
  for (int64_t B : {1, 64}) {  // hidden units or batch rows dealt out
    const Stack n{{Cell::gru_original, 128, 256, 256, 2, 1}, &isa};
    const Batch batch(4000 / B, B, nullptr, {nullptr, 0, 0});
    const int64_t T = batch.schedule().T;
    std::vector<float> x(size_t(T * B * n.I)), y(size_t(T * B * n.H)), hn(size_t(2 * B * n.H)), w(size_t(3 * n.H * n.H));
    const std::vector<Parameters<const float>> weights(2, {{w.data(), w.data(), w.data(), w.data(), nullptr}});
    ForwardCall<float> call{};
    call.batch = &batch;
    call.x = {x.data(), B * n.I, n.I}, call.y = {y.data(), B * n.H, n.H}, call.after[0] = hn.data(), call.weights = weights.data();
    int asked = 0;
    auto stop = [](void* times_asked) { return ++*static_cast<int*>(times_asked) > 1; };
    check(ForwardRun<float>(n, call, 2).run({stop, &asked}) && asked == 2, "interruption with B=" + std::to_string(B));
  }
}

void check_sizes() {
  bool refused = false;
  try {
    times(int64_t(1) << 40, int64_t(1) << 40);
  } catch (const std::overflow_error&) { refused = true; }
  check(refused, "a product past int64 is refused");
  refused = false;
  try {
    choose_isa("none");
  } catch (const std::invalid_argument&) { refused = true; }
  check(refused, "an unknown instruction set is refused");
}

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && !std::strcmp(argv[1], "--quick");
  const Isa& scalar = plainest();
  fill_memory(true);
  check_policy();
  check_neighbours();
  yield_when_crowded(false);  // from here on teams are what is asked for
  check_host_threads();
  for (int i = 0; i < cell_count; i++) {
    const Cell cell = Cell(i);
    std::vector<Case> cases = {
        {cell, 1, 1, 1, 1, 1, 1, false, false, true},   {cell, 3, 2, 5, 7, 1, 1, false, false, true},
        {cell, 5, 7, 3, 17, 1, 1, false, false, false}, {cell, 6, 5, 4, 9, 2, 2, true, true, true},
        {cell, 9, 3, 8, 33, 1, 2, true, true, true},    {cell, 0, 2, 3, 4, 1, 1, false, false, true},
        {cell, 9, 5, 4, 19, 2, 2, true, true, true, 6}, {cell, 2, 9, 4, 19, 1, 1, false, true, true, 18},
    };
    if (cases[0].general()) {  // which share all but their equations with the cells before
      cases = {cases[1], cases[3], cases[6]};
    } else if (!quick) {
      cases.push_back({cell, 30, 40, 20, 48, 1, 1, true, true, true});
      cases.push_back({cell, 30, 40, 20, 48, 1, 1, true, true, true, 70});
      cases.push_back({cell, 500, 1, 16, 100, 1, 1, false, false, true});
      cases.push_back({cell, 4, 1, 96, 200, 2, 1, false, true, true});
    }
    if (!cases[0].kernel().projected)
      for (Case c : {Case{cell, 3, 2, 5, 12, 1, 1, false, false, true}, {cell, 9, 5, 4, 36, 2, 2, true, true, true, 6}})
        c.heads = 3, cases.push_back(c);
    for (const Case& c : cases) check_case(c, scalar);
  }
  check_callers();
  check_lent();
  check_interruption();
  check_sizes();
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures ? 1 : 0;
}
