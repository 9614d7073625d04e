// Part of backward.hpp: the way of a gradient through the normalisations. With v' = (v - mean) * rate and LN = gain * v' + bias,
//   dv = rate * (g - mean(g) - v' * mean(g * v')),  g = gain * dLN;  dgain = sum of dLN * v' over tokens;  dbias = sum of dLN.
#pragma once
#include "kernels/norms.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <template <class, class, class> class Backward, class Cell, class V, class Real> struct Norms<Backward<Cell, V, Real>> {
  static constexpr int N = Lanes<V>::n, G = Cell::gates, state = Cell::normalised_state, turn = Cell::slots.turn;
  static constexpr int plain = Cell::slots.plain, plain_input = plain + Cell::slots.plain_input, of_state = Cell::slots.count - 1;
  Backward<Cell, V, Real>& b;
  const int64_t t;  // time, in a step
  const Direction<Real>& d = b.d;
  const int64_t H = b.H, GH = G * H;

  FASTRNN_FN const Real* moments(int64_t i) const { return d.moments + b.order.token(t, b.rows.row(i)) * moment_count; }
  FASTRNN_FN static Moments<Real> hidden_of(const Real* m) { return {m[mean_hh], m[rate_hh]}; }
  FASTRNN_FN static Moments<Real> state_of(const Real* m) { return {m[mean_c], m[rate_c]}; }
  // The gate of W_hh that slot j of the hidden side belongs to.
  FASTRNN_FN static constexpr int gate_of(int j) { return (j + G - turn) % G; }

  // The normalised state of row i, as forward had it.
  FASTRNN_FN V value(int64_t i, int64_t at, int64_t left) const {
    const V bias = d.weight[bias_norm_c] ? load<V>(d.weight[bias_norm_c] + at, left) : V{};
    return fma(load<V>(d.weight[weight_norm_c] + at, left), normal<V>(b.next[state][i] + at, left, state_of(moments(i))), bias);
  }

  // f(at, left) for this worker's units, a vector of them at a time.
  template <class F> FASTRNN_FN void each_vector(const F& f) const {
    const int64_t end = b.h_blocks.last * N < H ? b.h_blocks.last * N : H;
    int64_t at = b.h_blocks.first * N;
    for (; at + N <= end; at += N) f(at, int64_t(N));
    if (at < end) f(at, end - at);
  }

  // H numbers of a row: dLN, gain, and v with what normalises it; 'rate' is what dv is multiplied by.
  struct Part {
    const Real *dout, *gain, *v;
    Moments<Real> m;
    Real rate;
    FASTRNN_FN V g(int64_t at, int64_t left) const { return load<V>(dout + at, left) * load<V>(gain + at, left); }
    FASTRNN_FN V value(int64_t at, int64_t left) const { return normal<V>(v + at, left, m); }
  };
  // What they need of all numbers of the row, which stand in so many parts: the means of g and of g * v'.
  struct Means {
    Real g, along;
  };
  template <class Each> FASTRNN_FN Means means_of(int parts, const Each& each) const {
    V g[2]{}, along[2]{};
    for (int k = 0; k < parts; k++) {
      const Part p = each(k);
      auto add = [&](int i, int64_t at, int64_t left) __attribute__((always_inline)) {
        const V one = p.g(at, left);
        g[i] = g[i] + one, along[i] = fma(one, p.value(at, left), along[i]);
      };
      int64_t at = 0;
      for (; at + 2 * N <= H; at += 2 * N) add(0, at, N), add(1, at + N, N);
      for (; at < H; at += N) add(0, at, H - at);
    }
    return {sum(g[0] + g[1]) / Real(parts * H), sum(along[0] + along[1]) / Real(parts * H)};
  }
  FASTRNN_FN V passed(const Part& p, int64_t at, int64_t left, Means means) const {
    return splat<V>(p.rate) * fnma(p.value(at, left), splat<V>(means.along), p.g(at, left) - splat<V>(means.g));
  }

  // From the gradient of the normalised state of row i to those of the gates that it is made of.
  __attribute__((noinline)) void through_state(int64_t i) const {
    constexpr int end = Cell::phase[0].slot;
    Real* const running = b.q.drunning[state] + b.rows.row(i) * H;
    const Moments<Real> m = state_of(moments(i));
    const Part p{b.dgates[i] + of_state * H, d.weight[weight_norm_c], b.next[state][i], m, m.rate};
    const Means means = means_of(1, [&](int) __attribute__((always_inline)) { return p; });
    each_vector([&](int64_t at, int64_t left) __attribute__((always_inline)) {
      UnitGradient<V> u{};
      const Real* const tape = b.gates[i] + at * Cell::tape;
#pragma GCC unroll 4
      for (int k = 0; k < Cell::tape; k++) u.tape[k] = load<V>(tape + k * N);
      u.prev[state] = load<V>(b.prev[state][i] + at, left);
      u.dstate[state] = load<V>((const Real*)running + at, left) + passed(p, at, left, means);
      Cell::template backward<1>(u);
      store(running + at, u.dstate[state], left);
#pragma GCC unroll 4
      for (int k = 0; k < end; k++) store(b.dgates[i] + (plain + k) * H + at, u.dz[k], left);
    });
  }

  // From the gradients of the gates of row i to those of the products: slots from 'to' on, of the parts that each(slot) names.
  template <class Each> FASTRNN_FN void through_product(int64_t i, int to, const Each& each) const {
    const Means means = means_of(G, each);
    for (int j = 0; j < G; j++) {
      const Part p = each(j);
      Real* const out = b.dgates[i] + (to + j) * H;
      each_vector([&](int64_t at, int64_t left) __attribute__((always_inline)) { store(out + at, passed(p, at, left, means), left); });
    }
  }
  __attribute__((noinline)) void through_products(int64_t i) const {
    const int64_t token = b.order.token(t, b.rows.row(i));
    const Moments<Real> m = hidden_of(moments(i)), as_it_is{0, 1};  // the inputs on the tape are normalised already
    through_product(i, 0, [&](int j) __attribute__((always_inline)) {
      const int64_t row = gate_of(j) * H;
      return Part{b.dgates[i] + (plain + j) * H, d.weight[weight_norm_hh] + row, d.products + token * GH + row, m, m.rate};
    });
    through_product(i, Cell::slots.input, [&](int g) __attribute__((always_inline)) {
      return Part{b.dgates[i] + (plain_input + g) * H, d.weight[weight_norm_ih] + g * H, d.inputs + token * GH + g * H, as_it_is,
                  moments(i)[rate_ih]};
    });
  }

  // What follows the epilogue of a step of n rows. False: interrupted.
  FASTRNN_FN bool finish_step(int64_t n) const {
    if constexpr (state > 0) {
      for (int64_t i = 0; i < n; i++) through_state(i);
      if (!b.seat.by_rows && !b.meet()) return false;
    }
    for (int64_t i = 0; i < n; i++) through_products(i);
    return b.seat.by_rows || b.meet();
  }

  // The gradients of gains begin with zeros.
  void clear() const {
    if (!b.q.dweight[weight_norm_ih]) return;
    const Range gates = share_of(GH, b.seat.rank, b.seat.size), units = share_of(H, b.seat.rank, b.seat.size);
    copy_row<Real>(b.q.dweight[weight_norm_ih] + gates.first, nullptr, gates.last - gates.first);
    copy_row<Real>(b.q.dweight[weight_norm_hh] + gates.first, nullptr, gates.last - gates.first);
    if (state) copy_row<Real>(b.q.dweight[weight_norm_c] + units.first, nullptr, units.last - units.first);
  }

  // Adds up the gradients of gains and biases: a share of the units, all tokens in their order, some at once.
  __attribute__((noinline)) void add_up(int64_t tokens) const {
    constexpr int64_t at_once = 8;
    const Range blocks = share_of(blocks_of<V>(H), b.seat.rank, b.seat.size);
    for (int64_t k = 0; k < tokens; k += at_once) {
      const Range some{k, k + at_once < tokens ? k + at_once : tokens};
      for (int slot = plain; slot <= of_state; slot++)
        for (int64_t block = blocks.first; block < blocks.last; block++) add_up(slot, block * N, H - block * N, some);
    }
  }
  FASTRNN_FN void add_up(int slot, int64_t at, int64_t left, Range tokens) const {
    const bool of_c = state && slot == of_state, hidden = !of_c && slot - plain < G, input = !of_c && slot >= plain_input;
    const int64_t hidden_at = hidden ? gate_of(slot - plain) * H + at : at, input_at = input ? (slot - plain_input) * H + at : 0;
    V bias{}, of_hidden{}, of_input{};
    for (int64_t k = tokens.first; k < tokens.last; k++) {
      const V dz = load<V>(b.token_dgates[k] + slot * H + at, left);
      const Real* const m = b.token_moments[k];
      bias = bias + dz;
      if (of_c) of_hidden = fma(dz, normal<V>(b.token_state[k] + at, left, state_of(m)), of_hidden);
      if (hidden) of_hidden = fma(dz, normal<V>(b.token_products[k] + hidden_at, left, hidden_of(m)), of_hidden);
      if (input) of_input = fma(dz, load<V>(b.token_inputs[k] + input_at, left), of_input);
    }
    auto add = [&](Real* to, V sum) __attribute__((always_inline)) { store(to, load<V>(to, left) + sum, left); };
    add(b.q.column_sums + slot * H + at, bias);
    if (of_c) add(b.q.dweight[weight_norm_c] + at, of_hidden);
    if (hidden) add(b.q.dweight[weight_norm_hh] + hidden_at, of_hidden);
    if (input) add(b.q.dweight[weight_norm_ih] + input_at, of_input);
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
