// Part of forward.hpp and backward.hpp: what a normalised cell does between its products and its epilogue.
//
// Whoever needs the statistics of a row forms them from all of it, always in the same order: results do not depend on who has which
// blocks, and where units are dealt out the only price is a barrier. The mean comes first, then the squares of what differs from it.
#pragma once
#include "kernels/cells.hpp"
#include "kernels/gemm.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class Real> struct Moments {
  Real mean, rate;
};

// The sum of a row of n numbers: add(total, at, left) gives total and what lanes [at, at + N) add, of which 'left' are there.
template <class V, class Add> FASTRNN_FN typename Lanes<V>::Real sum_of_row(int64_t n, const Add& add) {
  constexpr int N = Lanes<V>::n, chains = 4;
  V total[chains]{};
  int64_t at = 0;
  for (; at + chains * N <= n; at += chains * N)
#pragma GCC unroll 4
    for (int i = 0; i < chains; i++) total[i] = add(total[i], at + i * N, int64_t(N));
  for (; at < n; at += N) total[0] = add(total[0], at, n - at);
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

template <class V, class Real> __attribute__((noinline)) Moments<Real> moments_of(const Real* row, int64_t n) {
  const Real mean =
      sum_of_row<V>(n, [=](V total, int64_t at, int64_t left) __attribute__((always_inline)) { return total + load<V>(row + at, left); }) /
      Real(n);
  const V around = splat<V>(mean);
  Real means[Lanes<V>::n];  // of the last lanes, where there may be fewer numbers
  store(means, around);
  const Real squares = sum_of_row<V>(n, [&](V total, int64_t at, int64_t left) __attribute__((always_inline)) {
    const V away = load<V>(row + at, left) - (left >= Lanes<V>::n ? around : load<V>(means, left));
    return fma(away, away, total);
  });
  const Real variance = squares / Real(n) + Real(norm_epsilon);
  if constexpr (sizeof(Real) == 4) return {mean, 1 / __builtin_sqrtf(variance)};
  else return {mean, 1 / __builtin_sqrt(variance)};
}
template <class V, class Real> FASTRNN_FN V normal(const Real* row, int64_t left, Moments<Real> m) {
  return (load<V>(row, left) - splat<V>(m.mean)) * splat<V>(m.rate);
}

// The part of Panels::vectors that is k; null: zeros.
template <class Cell, class Real> FASTRNN_FN const Real* vector_of(const Direction<Real>& d, int k) {
  constexpr int G = Cell::gates;
  if constexpr (Cell::normalised) {
    if (k >= 2 * G) return d.weight[k == 2 * G ? weight_norm_c : bias_norm_c];
    return d.weight[k < G ? weight_norm_ih : weight_norm_hh] + k % G * d.H;
  } else {
    return d.weight[weight_peephole] ? d.weight[weight_peephole] + k * d.H : nullptr;
  }
}

// ---- forward -------------------------------------------------------------------------------------------------------

// One step at time t of a Forward.
template <class Forward> struct Norms;
template <template <class, class, class, bool> class Forward, class Cell, class V, class Real, bool narrow>
struct Norms<Forward<Cell, V, Real, narrow>> {
  static constexpr int N = Lanes<V>::n, G = Cell::gates, vectors = vectors_of<Cell>(), at_once = 2;
  Forward<Cell, V, Real, narrow>& f;
  const int64_t t;
  const Direction<Real>& d = f.d;
  const int64_t H = d.H, GH = G * H;

  // Rows of products and moments.
  FASTRNN_FN int64_t slot(int64_t i) const { return d.training ? f.order.token(t, f.rows.row(i)) : f.rows.row(i); }
  FASTRNN_FN Real* product(int64_t i) const { return d.products + slot(i) * GH; }
  FASTRNN_FN void keep(int64_t i, Moment first, Moments<Real> m) const {
    if (!d.moments || (!f.seat.by_rows && f.seat.rank > 0)) return;
    Real* const to = d.moments + slot(i) * moment_count + first;
    to[0] = m.mean, to[1] = m.rate;
  }
  FASTRNN_FN V vector(int64_t block, int k) const { return load<V>(d.panels.vectors + (block * vectors + k) * N); }
  FASTRNN_FN bool meet(bool done) const { return f.seat.by_rows ? done : !wait(f.seat); }

  // some(tag, block) for this worker's blocks, several at once where no lane is padding.
  template <class Some> FASTRNN_FN void each_block(const Some& some) const {
    int64_t block = f.blocks.first;
    for (; block + at_once <= f.blocks.last && (block + at_once) * N <= H; block += at_once)
      some(Bundle<V, at_once>{}, Results<N, false, true>{0, block, H});
    for (; block < f.blocks.last; block++) some(Bundle<V, 1>{}, Results<N, false, false>{0, block, H});
  }

  // z of row i from its product, and what the epilogue makes of it.
  template <class Finish> __attribute__((noinline)) void gates(int64_t i, const Finish& finish) const {
    const Real* const row = product(i);
    const Moments<Real> m = moments_of<V>(row, GH);
    keep(i, mean_hh, m);
    each_block([&](auto bundle, auto place) __attribute__((always_inline)) {
      constexpr int M = sizeof bundle / sizeof(V);
      Bundle<V, M> z[G];
#pragma GCC unroll 8
      for (int k = 0; k < M; k++)
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
          const bool apart = Cell::hidden_apart && g == G - 1;
          const int64_t block = place.block(k);
          const V other = apart ? load<V>(d.panels.bias_hidden + block * N) : f.input_side(i, block, g, place.left(k));
          z[g].v[k] = fma(vector(block, G + g), normal<V>(row + g * H + place.at(k), place.left(k), m), other);
        }
      place.row_ = i;
      finish(z, place);
    });
  }

  // h of row i from the state that is normalised.
  __attribute__((noinline)) void output(int64_t i) const {
    const Real* const row = f.next[Cell::normalised_state][i];
    const Moments<Real> m = moments_of<V>(row, H);
    keep(i, mean_c, m);
    each_block([&](auto bundle, auto place) __attribute__((always_inline)) {
      constexpr int M = sizeof bundle / sizeof(V);
      Unit<Bundle<V, M>> u{};
#pragma GCC unroll 8
      for (int k = 0; k < M; k++) {
        const Real* const tape = f.gates[i] + place.block(k) * Cell::tape * N;
#pragma GCC unroll 4
        for (int j = 0; j < Cell::tape; j++) u.tape[j].v[k] = load<V>(tape + j * N);
        const V value = normal<V>(row + place.at(k), place.left(k), m);
        u.z[0].v[k] = fma(vector(place.block(k), 2 * G), value, vector(place.block(k), 2 * G + 1));
      }
      Cell::template forward<1>(u);
#pragma GCC unroll 8
      for (int k = 0; k < M; k++) store(f.next[0][i] + place.at(k), u.out.v[k], place.left(k));
    });
  }

  // The step of n rows: multiply(start, finish) is its product, 'finish' the epilogue of its gates. False: interrupted.
  template <class Multiply, class Finish> FASTRNN_FN bool step(int64_t n, const Multiply& multiply, const Finish& finish) {
    auto start = [&](V(&z)[G], int64_t, int64_t) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) z[g] = V{};
    };
    auto keep_product = [&](const auto& z, auto place) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int m = 0; m < Members<decltype(z[0])>::n; m++) {
        Real* const to = product(place.row(m)) + place.at(m);
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) store(to + g * H, z[g].v[m], place.left(m));
      }
    };
    if (!meet(multiply(start, keep_product))) return false;
    for (int64_t i = 0; i < n; i++) gates(i, finish);
    if constexpr (Cell::normalised_state > 0) {
      if (!meet(true)) return false;
      for (int64_t i = 0; i < n; i++) output(i);
    }
    return meet(true);
  }

  // W_ih x of one token, normalised.
  static __attribute__((noinline)) Real normalise(const Real* from, int64_t n, Real* to) {
    const Moments<Real> m = moments_of<V>(from, n);
    for (int64_t at = 0; at < n; at += N) store(to + at, normal<V>(from + at, n - at, m), n - at);
    return m.rate;
  }
};

// The input's side of steps [first, last), whose products stand in the projection; onto the tape where there is one. False: interrupted.
template <class Cell, class V, class Real, class Forward> FASTRNN_FN bool normalise_inputs(Forward& f, int64_t first, int64_t last) {
  const Direction<Real>& d = f.d;
  const int64_t GH = Cell::gates * d.H;
  if (!f.seat.by_rows && wait(f.seat)) return false;
  int64_t k = 0;
  for (int64_t step = first; step < last; step++) {
    const int64_t t = f.order.time(step), n = f.rows.count(d.schedule.active[t]);
    for (int64_t i = 0; i < n; i++, k++) {
      if (!f.seat.by_rows && k % f.seat.size != f.seat.rank) continue;
      const int64_t s = f.rows.row(i), token = f.order.token(t, s);
      Real* const from = f.projection + (d.token_projection ? d.tokens->row[t * d.schedule.B + d.schedule.order[s]] : k) * GH;
      const Real rate = Norms<Forward>::normalise(from, GH, d.training ? d.inputs + token * GH : from);
      if (d.training) d.moments[token * moment_count + rate_ih] = rate;
    }
  }
  return f.seat.by_rows || !wait(f.seat);
}

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
