// One phase of one time step of a layer: the recurrent product with the cell as its epilogue, forward and, mirrored below it, backward.
// A block has 16 units and N rows of the batch; blocks of both directions run in one launch.
#pragma once
#include "cuda/kernels/noise.hpp"
#include "cuda/kernels/sweep.hpp"
#include "cuda/kernels/tile.hpp"
#include "kernels/cells.hpp"
#include "kernels/timeline.hpp"

namespace fastrnn::device {
namespace {

using cuda::Sequences;

template <class Store> FASTRNN_DEVICE int64_t pad(int64_t n) {
  constexpr int64_t piece = 16 / sizeof(Store);
  return (n + piece - 1) / piece * piece;
}

struct DeviceOrder : Timeline<DeviceOrder> {
  const Sequences& sequences;
  const bool backwards;

  FASTRNN_DEVICE DeviceOrder(const Sequences& s, bool reverse) : sequences(s), backwards(reverse) {}
  FASTRNN_DEVICE int64_t steps() const { return sequences.T; }
  FASTRNN_DEVICE bool reverse() const { return backwards; }
  // Lengths that lie on the GPU were looked at by nobody.
  FASTRNN_DEVICE int64_t length(int64_t b) const {
    const int64_t n = sequences.length ? sequences.length[b] : sequences.T;
    return n < 0 ? 0 : n > sequences.T ? sequences.T : n;
  }
  FASTRNN_DEVICE bool reset(int64_t t, int64_t b) const { return sequences.reset.base && *sequences.reset.at(t, b); }
  FASTRNN_DEVICE bool runs(int64_t t, int64_t b) const { return t < length(b); }
  // Does nothing reach step t from the one after, but the final state?
  FASTRNN_DEVICE bool cut_off_after(int64_t t, int64_t b) const { return !is_last(t, b) && cut_after(t, b); }
  FASTRNN_DEVICE bool any_runs(int64_t t, int64_t first, int64_t last) const {
    if (!sequences.length) return true;
    for (int64_t b = first; b < last; b++)
      if (t < sequences.length[b]) return true;
    return false;
  }
};

// Where this block's 16 units and N rows begin.
template <int N> struct Place {
  int64_t unit, row, rows_end;
  FASTRNN_DEVICE Place(int64_t units, int64_t B) {
    const int64_t tiles = (units + 15) / 16;
    unit = int64_t(blockIdx.x) % tiles * 16;
    row = int64_t(blockIdx.x) / tiles * N;
    rows_end = row + N < B ? row + N : B;
  }
};

// Row i of a tile of weights: gate i / 16 of unit i % 16. 'height' rows from one gate to the next.
template <class Store> FASTRNN_DEVICE const Store* weight_row(const cuda::Padded<const Store>& w, int first_gate, int64_t height,
                                                              int64_t unit, int i) {
  const int64_t u = unit + i % 16;
  return u < height ? w.base + ((first_gate + i / 16) * height + u) * w.row : nullptr;
}

// The elements of h, or of a gate's gradients, that the block's units multiply: those of their heads, all without heads. 'pitch' from one
// gate to the next.
template <class Store> FASTRNN_DEVICE Span window_of(int64_t unit, int64_t units, int64_t head, int64_t pitch) {
  constexpr int64_t piece = 16 / sizeof(Store);
  if (!head) return {};
  const int64_t end = unit + 16 < units ? unit + 16 : units, first = unit / head * head / piece * piece;
  return {first, pad<Store>((end - 1) / head * head + head) - first, pitch};
}

// A unit's elements of the parameters that have one for each.
template <class Cell, class Unit, class Store> FASTRNN_DEVICE void load_vectors(Unit& u, const Store* vectors, int64_t H, int64_t unit) {
  if (!vectors) return;
#pragma unroll
  for (int k = 0; k < Cell::slots.vectors; k++) u.vector[k] = widen(vectors[k * H + unit]);
}

// Gate gradients of a unit that go from step to step, and those that are kept of a token: with the terms of gains, behind all others.
template <class Cell> constexpr int ring_slots = Cell::normalised ? Cell::gates : Cell::slots.count;
template <class Cell> constexpr int gains = Cell::normalised ? 2 * Cell::gates + (Cell::normalised_state ? 1 : 0) : 0;
template <class Cell> constexpr int gradient_slots = Cell::slots.count + gains<Cell>;

template <class Real> struct Moments {
  Real mean, rate;
  FASTRNN_DEVICE Real normal(Real x) const { return (x - mean) * rate; }
};
// Of the state that is normalised, with gain and bias.
template <class Store, class Real> FASTRNN_DEVICE Real scaled(const cuda::NormWeights<Store>& w, int64_t unit, Real value) {
  return fma(Real(widen(w.c[unit])), value, w.bias_c ? Real(widen(w.bias_c[unit])) : Real(0));
}

// ---- forward -------------------------------------------------------------------------------------------------------

// The biases of a unit.
template <int gates, class Real> struct Biases {
  Real ih[gates] = {}, hh[gates] = {};
  template <class Side> FASTRNN_DEVICE void read(const Side& side, int first_gate, int64_t H, int64_t unit) {
#pragma unroll
    for (int g = 0; g < gates; g++) {
      if (side.bias_ih) ih[g] = widen(side.bias_ih[(first_gate + g) * H + unit]);
      if (side.bias_hh) hh[g] = widen(side.bias_hh[(first_gate + g) * H + unit]);
    }
  }
};

// One unit of one row at one step: what it needs is read, then it is computed, then written. h goes first: others wait for it. Nothing is
// computed from what is read before the product is there, so that nothing waits for it.
template <class Cell, int p, class T> struct ForwardUnit {
  using Store = typename T::Store;
  using Real = typename T::Real;
  static constexpr int gates = Cell::phase[p].gates, first_gate = Cell::phase[p].first;
  static constexpr bool projects = Cell::projected && p == 1, last = p == Cell::phases - 1, keeps = Cell::phases == 2 && !Cell::projected;

  const cuda::Sweep<Store, Real>& s;
  const cuda::Side<Store, Real>& side;
  const DeviceOrder& order;
  const Biases<gates, Real>& bias;
  const int64_t step, t, unit, b;
  const int64_t B = s.sequences.B, H = s.H, P = s.P, token = t * B + b;
  const bool runs = order.runs(t, b), cut = runs && order.cut_before(t, b);
  Unit<Real> u{};
  Real x_side[gates] = {}, h_before = {};  // the latter for zoneout

  static FASTRNN_DEVICE bool apart(int g) { return Cell::hidden_apart && g == gates - 1; }

  // W_ih x, which no step writes.
  FASTRNN_DEVICE void read_inputs() {
    if (!runs || projects) return;
#pragma unroll
    for (int g = 0; g < gates; g++) x_side[g] = side.z[(token - side.z_first) * Cell::gates * H + (first_gate + g) * H + unit];
  }
  // What this same unit left in the step before, or in the phase before.
  FASTRNN_DEVICE void read_states() {
    if (!runs) return;
    u.options = &side.options;
    load_vectors<Cell>(u, side.vectors, H, unit);
    if (Cell::uses_h_prev && !cut) u.h_prev = side.state[0][b * P + unit];
    if (Cell::noisy && last && !cut) h_before = side.state[0][b * P + unit];
    // What a first phase makes of it is multiplied.
    if (Cell::noisy && Cell::phases == 2 && p == 0 && !Cell::projected) u.h_prev = dropped(side.noise, t, b, unit, u.h_prev);
#pragma unroll
    for (int k = 1; k < (p == 0 ? Cell::states : 0); k++)
      if (!cut) u.prev[k] = side.state[k][b * H + unit];
    if (keeps && p > 0)
#pragma unroll
      for (int k = 0; k < Cell::tape; k++) u.tape[k] = kept()[k * H];
  }
  FASTRNN_DEVICE Real* kept() const { return keeps ? side.kept + b * Cell::tape * H + unit : nullptr; }

  // sum(g): the recurrent product's element of gate g.
  template <class Sum> FASTRNN_DEVICE void compute(const Sum& sum) {
    if (!runs) return;
#pragma unroll
    for (int g = 0; g < gates; g++) {
      Real z = sum(g), x = x_side[g];
      if (side.bias_ih) x += bias.ih[g];
      if (side.bias_hh && !projects) (apart(g) ? z : x) += bias.hh[g];
      u.z[g] = projects || apart(g) ? z : x + z;
      if (!projects && apart(g)) u.x_side = x;
    }
    Cell::template forward<p>(u);
    if constexpr (Cell::noisy) zone_out();
  }
  FASTRNN_DEVICE void zone_out() {
    if (last)
      if (const UnitZone zone(side, 0, t, b, unit); zone.any()) u.out = zone.staying(h_before) + zone.passing(u.out);
    if (p == 0 && Cell::states == 2)
      if (const UnitZone zone(side, 1, t, b, unit); zone.any()) u.next[1] = zone.staying(u.prev[1]) + zone.passing(u.next[1]);
  }
  // What the next step multiplies, of which recurrent dropout takes a part away.
  FASTRNN_DEVICE Real seen_next() const {
    const Real h = runs ? u.out : side.state[0][b * P + unit];
    return step + 1 < order.steps() ? dropped(side.noise, order.time(step + 1), b, unit, h) : h;
  }

  FASTRNN_DEVICE void write_h() const {
    Store* const after = side.recurrent + (step + 1) % 2 * B * pad<Store>(P);
    const Store* const before = side.recurrent + step % 2 * B * pad<Store>(P);
    const int64_t at = b * pad<Store>(P) + unit;
    if (last && Cell::noisy && side.noise.kept.base) after[at] = narrow<Store>(seen_next());
    else if (last) after[at] = runs ? narrow<Store>(u.out) : before[at];
    else if (runs) side.inner[b * pad<Store>(H) + unit] = narrow<Store>(u.out);
  }
  FASTRNN_DEVICE void write_y() const {
    if (!last) return;
    if (runs) side.state[0][b * P + unit] = u.out;
    if (runs || !side.y.starts) side.y.at(t, b)[unit] = narrow<Store>(runs ? u.out : Real(0));
  }
  FASTRNN_DEVICE void write_kept() const {
    if (Cell::phases == 2 && !last && side.tape_inner) side.tape_inner[token * H + unit] = narrow<Store>(runs ? u.out : Real(0));
    if (!runs) return;
#pragma unroll
    for (int k = 1; k < (p == 0 ? Cell::states : 0); k++) {
      side.state[k][b * H + unit] = u.next[k];
      if (side.trail[k]) side.trail[k][token * H + unit] = u.next[k];
    }
#pragma unroll
    for (int k = 0; k < (projects ? 0 : Cell::tape); k++) {
      if (keeps && !last) kept()[k * H] = u.tape[k];
      else if (side.tape_gates) side.tape_gates[(token * Cell::tape + k) * H + unit] = narrow<Store>(u.tape[k]);
    }
  }
};

template <class Cell, int p, class T, int N>
__global__ void __launch_bounds__(block_threads, blocks_at_once)
    step_forward(cuda::Sweep<typename T::Store, typename T::Real> s, int64_t step) {
  using Store = typename T::Store;
  using Real = typename T::Real;
  constexpr Phase phase = Cell::phase[p];
  constexpr bool projects = Cell::projected && p == 1;
  using Product = Tile<T, phase.gates, N>;
  let_next_kernel_start();

  const cuda::Side<Store, Real>& side = s.side[blockIdx.z];
  const DeviceOrder order(s.sequences, side.reverse);
  const int64_t B = s.sequences.B, H = s.H, P = s.P, units = projects ? P : H, t = order.time(step);
  const Place<N> place(units, B);
  const Store* const before = side.recurrent + step % 2 * B * pad<Store>(P);

  const Product product;
  const auto weight = [&](int i) { return weight_row(side.weight[p], phase.first, units, place.unit, i); };
  const auto operand = [&](int j) -> const Store* {
    const int64_t b = place.row + j;
    if (b >= B) return nullptr;
    if (p == 1) return side.inner + b * pad<Store>(H);
    return order.cut_before(t, b) ? nullptr : before + b * pad<Store>(P);
  };
  const Span window = window_of<Store>(place.unit, units, projects ? 0 : s.head, 0);
  const int64_t K = window.width ? window.width : p == 1 ? pad<Store>(H) : pad<Store>(P);
  product.run_rows(order.any_runs(t, place.row, place.rows_end) ? K : 0, weight, operand, window);

  for (int i = int(threadIdx.x); i < 16 * N; i += block_threads) {
    const int64_t unit = place.unit + i % 16, b = place.row + i / 16;
    if (unit >= units || b >= B) continue;
    if constexpr (Cell::normalised) {  // row_forward goes on
#pragma unroll
      for (int g = 0; g < Cell::gates; g++) side.products[(b * Cell::gates + g) * H + unit] = product.at(g * 16 + i % 16, i / 16);
      continue;
    }
    Biases<phase.gates, Real> bias;
    if (!projects) bias.read(side, phase.first, H, unit);
    ForwardUnit<Cell, p, T> here{s, side, order, bias, step, t, unit, b};
    here.read_inputs(), here.read_states();
    here.compute([&](int g) { return product.at(g * 16 + i % 16, i / 16); });
    here.write_h(), here.write_y(), here.write_kept();
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

// One unit of one row at one step, as in forward. The gate gradients, or dL/dh before a projection, go first.
template <class Cell, int p, class T> struct BackwardUnit {
  using Store = typename T::Store;
  using Real = typename T::Real;
  static constexpr bool only_sums = Cell::projected && p == 0;
  static constexpr int slot = Cell::phase[p].slot, slots_end = slot + Cell::phase[p].slots;

  const cuda::BackSweep<Store, Real>& s;
  const cuda::BackSide<Store, Real>& side;
  const DeviceOrder& order;
  const int64_t step, t, unit, b;
  const int64_t B = s.sequences.B, H = s.H, P = s.P, token = t * B + b, in_chunk = token - side.first;
  const bool runs = order.runs(t, b), cut = order.cut_off_after(t, b);
  const bool first = order.is_first(t, b), cut_off = order.cut_before(t, b);
  UnitGradient<Real> u{};
  Store tape[Cell::tape + 1] = {}, h{}, h_prev{}, dy{};  // as they are stored
  Real dh{}, dout{}, past_h{};  // dout: dL/dh; past_h: what of it zoneout leads past the cell

  // All but the product: what no step writes, and what this same unit left in the step after, or in the phase before.
  FASTRNN_DEVICE void read() {
    if (!runs) return;
    if (p == 0) {
      dh = side.dstate[0][b * P + unit];
      if (side.dy.base) dy = side.dy.at(t, b)[unit];
    }
    if (only_sums) return;
    u.options = &side.options;
    load_vectors<Cell>(u, side.vectors, H, unit);
#pragma unroll
    for (int k = 0; k < Cell::tape; k++) tape[k] = side.tape_gates[(token * Cell::tape + k) * H + unit];
    if (Cell::uses_h) h = side.y.at(t, b)[unit];
    if (Cell::uses_h_prev && !cut_off) {
      if (!first) h_prev = side.y.at(order.before(t), b)[unit];
      else if (side.before[0]) u.h_prev = side.before[0][b * P + unit];
    }
#pragma unroll
    for (int k = 1; k < Cell::states; k++) {
      u.next[k] = side.trail[k][token * H + unit];
      if (!cut_off) {
        if (!first) u.prev[k] = side.trail[k][(order.before(t) * B + b) * H + unit];
        else if (side.before[k]) u.prev[k] = side.before[k][b * H + unit];
      }
      if (!cut) u.dstate[k] = side.dstate[k][b * H + unit];
    }
    if (Cell::has_carry && p == 1) u.carry = side.dstate[0][b * P + unit];
    if constexpr (Cell::normalised_state > 0) {
      const Real* const m = side.norm_tape.moments + token * moment_count;
      u.normal = scaled(side.norms, unit, Moments<Real>{m[mean_c], m[rate_c]}.normal(u.next[Cell::normalised_state]));
    }
  }
  FASTRNN_DEVICE void take_tape() {
#pragma unroll
    for (int k = 0; k < Cell::tape; k++) u.tape[k] = widen(tape[k]);
  }

  FASTRNN_DEVICE void compute(Real sum) {
    if (!runs) return;
    u.dout = sum;
    // The product is of the step after.
    if (Cell::noisy && p == 0 && step + 1 < order.steps()) u.dout = dropped(side.noise, order.time(step + 1), b, unit, u.dout);
    if (p == 0 && side.dy.base) u.dout += widen(dy);
    if (p == 0 && !cut) u.dout += dh;
    dout = u.dout;
    if (Cell::noisy && p == 0)
      if (const UnitZone zone(side, 0, t, b, unit); zone.any()) past_h = zone.staying(u.dout), u.dout = zone.passing(u.dout);
    if constexpr (!only_sums) {
      take_tape();
      if (Cell::uses_h) u.h = widen(h);
      if (Cell::uses_h_prev && !cut_off && !first) u.h_prev = widen(h_prev);
      if constexpr (Cell::noisy) cell_in_noise();
      else Cell::template backward<p>(u);
    }
  }
  FASTRNN_DEVICE void cell_in_noise() {
    constexpr bool sees_dropped = Cell::phases == 2 && p == 1 && !Cell::projected;  // this phase sees h_prev through the step's mask
    const Real carried = u.carry;
    Real past_c = 0;
    if (Cell::states == 2)
      if (const UnitZone zone(side, 1, t, b, unit); zone.any()) past_c = zone.staying(u.dstate[1]), u.dstate[1] = zone.passing(u.dstate[1]);
    const bool drops = sees_dropped && side.noise.kept.base;
    if (drops) u.carry = 0, u.h_prev = dropped(side.noise, t, b, unit, u.h_prev);
    Cell::template backward<p>(u);
    if (drops) u.carry = carried + dropped(side.noise, t, b, unit, u.carry);
    if (Cell::states == 2) u.dstate[1] += past_c;
  }

  FASTRNN_DEVICE void write_gradients() const {
    if constexpr (Cell::normalised) {  // row_backward goes on
#pragma unroll
      for (int k = slot; k < (runs ? slots_end : slot); k++)
        side.plain[(b * (Cell::slots.count - Cell::slots.plain) + k) * H + unit] = u.dz[k];
      return;
    }
    const int64_t wide = ring_slots<Cell> * pad<Store>(H), at = b * wide + unit;
    const Store* const later = side.recurrent + (step + 1) % 2 * B * wide;
    Store* const here = side.recurrent + step % 2 * B * wide;
    if (only_sums && runs) side.projected[b * pad<Store>(P) + unit] = narrow<Store>(u.dout);
    if (only_sums) return;
#pragma unroll
    for (int k = slot; k < slots_end; k++) here[at + k * pad<Store>(H)] = runs ? narrow<Store>(u.dz[k]) : later[at + k * pad<Store>(H)];
  }
  FASTRNN_DEVICE void write_rest() const {
    if (p == 0 && side.hidden.base && (runs || !side.hidden.starts)) side.hidden.at(t, b)[unit] = narrow<Store>(dout);
    if (only_sums) side.dprojected[in_chunk * P + unit] = narrow<Store>(runs ? u.dout : Real(0));
    if (runs && (p == 0 || Cell::has_carry)) side.dstate[0][b * P + unit] = (Cell::has_carry ? u.carry : Real(0)) + past_h;
    if (only_sums) return;
    Store* const dgates = side.dgates + in_chunk * gradient_slots<Cell> * H + unit;
#pragma unroll
    for (int k = slot; k < (Cell::normalised ? slot : slots_end); k++) dgates[k * H] = narrow<Store>(runs ? u.dz[k] : Real(0));
    if (runs && !Cell::normalised_state) write_states();
  }
  FASTRNN_DEVICE void write_states() const {
#pragma unroll
    for (int k = 1; k < Cell::states; k++) side.dstate[k][b * H + unit] = first && cut_off ? Real(0) : u.dstate[k];
  }
};

// With 'initial' no step but what comes before the first: the gradient of the initial h, of phase 0 only.
template <class Cell, int p, class T, int N>
__global__ void __launch_bounds__(block_threads, blocks_at_once)
    step_backward(cuda::BackSweep<typename T::Store, typename T::Real> s, int64_t step, bool initial) {
  using Store = typename T::Store;
  using Real = typename T::Real;
  constexpr Phase phase = Cell::phase[p];
  constexpr bool through_projection = Cell::projected && p == 1;
  using Product = Tile<T, 1, N>;
  let_next_kernel_start();

  const cuda::BackSide<Store, Real>& side = s.side[blockIdx.z];
  const DeviceOrder order(s.sequences, side.reverse);
  const int64_t B = s.sequences.B, H = s.H, P = s.P, units = p == 0 ? P : H, t = initial ? 0 : order.time(step);
  const int64_t wide = ring_slots<Cell> * pad<Store>(H);
  const Place<N> place(units, B);
  const Span window = window_of<Store>(place.unit, units, Cell::projected ? 0 : s.head, pad<Store>(H));
  const int64_t K = through_projection ? pad<Store>(P) : phase.gates * (window.width ? window.width : pad<Store>(H));
  const Store* const later = side.recurrent + (step + 1) % 2 * B * wide;
  const Store* const here = side.recurrent + step % 2 * B * wide;

  const Product product;
  const auto weight = [&](int i) { return weight_row(side.weight[p], 0, units, place.unit, i); };
  const auto operand = [&](int j) -> const Store* {
    const int64_t b = place.row + j;
    if (b >= B) return nullptr;
    if (through_projection) return side.projected + b * pad<Store>(P);
    if (p == 0 && !initial && order.cut_off_after(t, b)) return nullptr;
    return (p == 0 ? later : here) + b * wide + hidden_slot<Cell>(p) * pad<Store>(H);
  };
  product.run_rows(initial || order.any_runs(t, place.row, place.rows_end) ? K : 0, weight, operand, window);

  for (int i = int(threadIdx.x); i < 16 * N; i += block_threads) {
    const int64_t unit = place.unit + i % 16, b = place.row + i / 16;
    if (unit >= units || b >= B) continue;
    const Real sum = product.at(i % 16, i / 16);
    if (initial) {
      const int64_t length = order.length(b);
      const int64_t begins = side.reverse ? length - 1 : 0;
      const bool cut = length && order.cut_before(begins, b);
      Real& dh = side.dstate[0][b * P + unit];
      dh = cut ? Real(0) : dh + (Cell::noisy && length ? dropped(side.noise, begins, b, unit, sum) : sum);
      continue;
    }
    BackwardUnit<Cell, p, T> at{s, side, order, step, t, unit, b};
    at.read();
    at.compute(sum);
    at.write_gradients(), at.write_rest();
  }
}

}  // namespace
}  // namespace fastrnn::device
