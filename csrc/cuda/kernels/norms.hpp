// What a normalised cell does between its product and the next: a block for each row of the batch, since the statistics are of whole rows.
// The step kernel leaves the product, or the gradient of the normalised sums, in scratch; the equations stand in kernels/norms.hpp and
// kernels/backward_norms.hpp. On the tape are normalised values, without gain and bias, and the moments of the state.
#pragma once
#include "cuda/kernels/steps.hpp"

namespace fastrnn::device {
namespace {

// The sum of value(part, k) over parts of n numbers, in an order that depends on n alone. What the block wrote before is there.
template <class Real, class Value> FASTRNN_DEVICE Real sum_over(int parts, int64_t n, const Value& value) {
  Real* const room = reinterpret_cast<Real*>(shared_memory());
  const int i = int(threadIdx.x);
  __syncthreads();
  Real sum = 0;
  for (int part = 0; part < parts; part++)
    for (int64_t k = i; k < n; k += block_threads) sum += value(part, k);
  room[i] = sum;
  for (int half = block_threads / 2; half; half /= 2) {
    __syncthreads();
    if (i < half) room[i] += room[i + half];
  }
  __syncthreads();
  return room[0];
}

template <class Real> FASTRNN_DEVICE Moments<Real> moments_of(const Real* row, int64_t n) {
  const Real mean = sum_over<Real>(1, n, [&](int, int64_t k) { return row[k]; }) / Real(n);
  const Real squares = sum_over<Real>(1, n, [&](int, int64_t k) { return (row[k] - mean) * (row[k] - mean); });
  return {mean, 1 / root(squares / Real(n) + Real(norm_epsilon))};
}

// A row of W_ih x for each block: normalised in place, and put on the tape where there is one.
template <class Store, class Real>
__global__ void __launch_bounds__(block_threads, blocks_at_once) normalise_inputs(Real* rows, Store* to, Real* moments, int64_t n) {
  const int64_t number = blockIdx.x;
  Real* const row = rows + number * n;
  const Moments<Real> m = moments_of(row, n);
  for (int64_t k = threadIdx.x; k < n; k += block_threads) {
    row[k] = m.normal(row[k]);
    if (to) to[number * n + k] = narrow<Store>(row[k]);
  }
  if (moments && threadIdx.x == 0) moments[number * moment_count + rate_ih] = m.rate;
}

// ---- forward -------------------------------------------------------------------------------------------------------

template <class Cell, class T> struct ForwardRow {
  using Store = typename T::Store;
  using Real = typename T::Real;
  static constexpr int G = Cell::gates, state = Cell::normalised_state;

  const cuda::Sweep<Store, Real>& s;
  const cuda::Side<Store, Real>& side;
  const DeviceOrder& order;
  const int64_t step, b, t = order.time(step), H = s.H, token = t * s.sequences.B + b;
  const bool runs = order.runs(t, b);
  Real* const product = side.products + b * G * H;

  FASTRNN_DEVICE ForwardUnit<Cell, 0, T> unit_at(int64_t unit, const Biases<G, Real>& bias) const {
    return {s, side, order, bias, step, t, unit, b};
  }
  FASTRNN_DEVICE void keep(Moment first, const Moments<Real>& m) const {
    if (!side.norm_tape.moments || threadIdx.x > 0) return;
    Real* const to = side.norm_tape.moments + token * moment_count + first;
    to[0] = m.mean, to[1] = m.rate;
  }

  // The gates; h too where no state is normalised, or nothing runs.
  FASTRNN_DEVICE void gates() const {
    const Moments<Real> m = runs ? moments_of(product, G * H) : Moments<Real>{};
    if (runs) keep(mean_hh, m);
    for (int64_t unit = threadIdx.x; unit < H; unit += block_threads) {
      Biases<G, Real> bias;
      bias.read(side, 0, H, unit);
      ForwardUnit<Cell, 0, T> here = unit_at(unit, bias);
      here.read_inputs(), here.read_states();
#pragma unroll
      for (int g = 0; g < G; g++) here.x_side[g] *= widen(side.norms.ih[g * H + unit]);
      here.compute([&](int g) {
        const Real value = m.normal(product[g * H + unit]);
        if (side.norm_tape.products) side.norm_tape.products[token * G * H + g * H + unit] = narrow<Store>(value);
        return widen(side.norms.hh[g * H + unit]) * value;
      });
      if (!state || !runs) here.write_h(), here.write_y();
      if (runs) here.write_kept();
      if (state && runs)  // for the output, in the place of what this thread has read
#pragma unroll
        for (int k = 0; k < Cell::tape; k++) product[k * H + unit] = here.u.tape[k];
    }
  }
  // h, from the state that is normalised.
  FASTRNN_DEVICE void output() const {
    const Real* const row = side.state[state] + b * H;
    const Moments<Real> m = moments_of(row, H);
    keep(mean_c, m);
    for (int64_t unit = threadIdx.x; unit < H; unit += block_threads) {
      const Biases<G, Real> none{};
      ForwardUnit<Cell, 0, T> here = unit_at(unit, none);
#pragma unroll
      for (int k = 0; k < Cell::tape; k++) here.u.tape[k] = product[k * H + unit];
      here.u.z[0] = scaled(side.norms, unit, m.normal(row[unit]));
      Cell::template forward<1>(here.u);
      here.write_h(), here.write_y();
    }
  }
};

template <class Cell, class T>
__global__ void __launch_bounds__(block_threads, blocks_at_once)
    row_forward(cuda::Sweep<typename T::Store, typename T::Real> s, int64_t step) {
  let_next_kernel_start();
  wait_for_last_kernel();
  const auto& side = s.side[blockIdx.z];
  const DeviceOrder order(s.sequences, side.reverse);
  const ForwardRow<Cell, T> row{s, side, order, step, int64_t(blockIdx.x)};
  row.gates();
  if (Cell::normalised_state && row.runs) row.output();
}

// ---- backward ------------------------------------------------------------------------------------------------------

template <class Cell, class T> struct BackwardRow {
  using Store = typename T::Store;
  using Real = typename T::Real;
  static constexpr int G = Cell::gates, state = Cell::normalised_state, turn = Cell::slots.turn, count = Cell::slots.count,
                       plain = Cell::slots.plain, plain_input = Cell::slots.plain_input, of_state = count - 1 - plain;

  const cuda::BackSweep<Store, Real>& s;
  const cuda::BackSide<Store, Real>& side;
  const DeviceOrder& order;
  const int64_t step, b, t = order.time(step), H = s.H, B = s.sequences.B, token = t * B + b;
  const bool runs = order.runs(t, b);
  Real* const sums = side.plain + b * (count - plain) * H;  // gradients of the normalised sums
  Store* const dgates = side.dgates + (token - side.first) * gradient_slots<Cell> * H;
  const Real* const moments = side.norm_tape.moments + token * moment_count;

  // dv = rate * (g - mean of g - v' * mean of g v')
  struct Means {
    Real g, along;
    FASTRNN_DEVICE Real passed(Real rate, Real g_here, Real value) const { return rate * (g_here - g - value * along); }
  };
  template <class G_, class Value> FASTRNN_DEVICE Means means_of(int parts, const G_& g, const Value& value) const {
    const Real n = Real(parts * H);
    return {sum_over<Real>(parts, H, g) / n, sum_over<Real>(parts, H, [&](int j, int64_t k) { return g(j, k) * value(j, k); }) / n};
  }
  // The gradient of a gain, and of what it scales; slots of the gains come last, in the order of the gates.
  FASTRNN_DEVICE void put(int slot, int64_t unit, Real x) const { dgates[slot * H + unit] = narrow<Store>(x); }

  // From the gradient of the normalised state to those of the gates that it is made of.
  FASTRNN_DEVICE void through_state() const {
    const Moments<Real> m{moments[mean_c], moments[rate_c]};
    const Real* const row = side.trail[state] + token * H;
    const auto g = [&](int, int64_t k) { return sums[of_state * H + k] * widen(side.norms.c[k]); };
    const auto value = [&](int, int64_t k) { return m.normal(row[k]); };
    const Means means = means_of(1, g, value);
    for (int64_t unit = threadIdx.x; unit < H; unit += block_threads) {
      BackwardUnit<Cell, 0, T> here{s, side, order, step, t, unit, b};
      here.read(), here.take_tape();
      here.u.dstate[state] += means.passed(m.rate, g(0, unit), value(0, unit));
      Cell::template backward<1>(here.u);
      here.write_states();
#pragma unroll
      for (int k = 0; k < Cell::phase[0].slot; k++) sums[k * H + unit] = here.u.dz[k];
      put(count + 2 * G, unit, sums[of_state * H + unit] * value(0, unit));
    }
  }
  // From the gradients of the normalised sums to those of the products.
  FASTRNN_DEVICE void through_products() const {
    const Store *const hidden = side.norm_tape.products + token * G * H, *const inputs = side.norm_tape.inputs + token * G * H;
    const auto gate = [](int j) { return (j + G - turn) % G; };
    const auto g_h = [&](int j, int64_t k) { return sums[j * H + k] * widen(side.norms.hh[gate(j) * H + k]); };
    const auto value_h = [&](int j, int64_t k) { return Real(widen(hidden[gate(j) * H + k])); };
    const auto g_x = [&](int j, int64_t k) { return sums[(plain_input + j) * H + k] * widen(side.norms.ih[j * H + k]); };
    const auto value_x = [&](int j, int64_t k) { return Real(widen(inputs[j * H + k])); };
    const Means of_h = means_of(G, g_h, value_h), of_x = means_of(G, g_x, value_x);
    Store* const ring = side.recurrent + (step % 2 * B + b) * G * pad<Store>(H);
    for (int64_t unit = threadIdx.x; unit < H; unit += block_threads)
#pragma unroll
      for (int j = 0; j < G; j++) {
        const Real dproduct = of_h.passed(moments[rate_hh], g_h(j, unit), value_h(j, unit));
        ring[j * pad<Store>(H) + unit] = narrow<Store>(dproduct);
        put(j, unit, dproduct);
        put(Cell::slots.input + j, unit, of_x.passed(moments[rate_ih], g_x(j, unit), value_x(j, unit)));
        put(count + gate(j), unit, sums[j * H + unit] * value_h(j, unit));
        put(count + G + j, unit, sums[(plain_input + j) * H + unit] * value_x(j, unit));
      }
    for (int64_t i = threadIdx.x; i < (count - plain) * H; i += block_threads) dgates[plain * H + i] = narrow<Store>(sums[i]);
  }
  // A row that has ended hands on what it found.
  FASTRNN_DEVICE void stay() const {
    const int64_t ring = G * pad<Store>(H);
    const Store* const later = side.recurrent + ((step + 1) % 2 * B + b) * ring;
    for (int64_t i = threadIdx.x; i < ring; i += block_threads) side.recurrent[(step % 2 * B + b) * ring + i] = later[i];
    for (int64_t i = threadIdx.x; i < gradient_slots<Cell> * H; i += block_threads) dgates[i] = Store{};
  }
};

template <class Cell, class T>
__global__ void __launch_bounds__(block_threads, blocks_at_once)
    row_backward(cuda::BackSweep<typename T::Store, typename T::Real> s, int64_t step) {
  let_next_kernel_start();
  wait_for_last_kernel();
  const auto& side = s.side[blockIdx.z];
  const DeviceOrder order(s.sequences, side.reverse);
  const BackwardRow<Cell, T> row{s, side, order, step, int64_t(blockIdx.x)};
  if (!row.runs) return row.stay();
  if constexpr (Cell::normalised_state > 0) row.through_state();
  row.through_products();
}

}  // namespace
}  // namespace fastrnn::device
