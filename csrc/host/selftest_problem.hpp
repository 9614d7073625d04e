// Part of selftest.cpp: drawn problems, how they are run, and the textbook.
#pragma once
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "host/memory.hpp"
#include "host/stack.hpp"

namespace fastrnn {
namespace {

using Array = std::vector<double>;

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

}  // namespace
}  // namespace fastrnn
