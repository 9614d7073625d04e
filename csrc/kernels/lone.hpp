// One short sequence of a frozen layer, or one step of it: the chains of forward.hpp without what lies between them, in which tiny
// layers would spend most of their time. Every sum is the one that forward.hpp adds up, so that results are the same.
#pragma once
#include "kernels/forward.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class Cell, class V, class Real> struct Lone {
  static constexpr int N = Lanes<V>::n, G = Cell::gates;
  static constexpr int at_once = single_vectors / (G >= 4 ? 4 : 2);  // blocks; then half as many, while there are more
  static constexpr bool possible = Cell::phases == 1 && !Cell::general && !Cell::normalised;
  static constexpr int64_t most_units = 128, most_inputs = 8;  // larger products want to be dealt out as forward.hpp does
  const Direction<Real>& d;
  const Seat& seat;
  const Order<Real> order{d};
  const int64_t blocks = blocks_of<V>(d.H);
  const Matrix<Real> input = input_matrix<Cell, V>(d), recurrent = recurrent_matrix<Cell, V, 0>(d);

  static bool fits(const Direction<Real>& d, const Seat& seat) {
    return d.heads == 1 && d.schedule.B == 1 && seat.size == 1 && !d.training && !d.tokens && d.panels.ih && d.panels.hh &&
           d.H <= most_units && d.schedule.T > 0 && d.schedule.length[0] == d.schedule.T && (d.schedule.T == 1 || d.I <= most_inputs);
  }

  // The step's rows: of x, of the states before it, and of those that it makes.
  struct Rows {
    const Real* x;
    const Real* prev[Cell::states];
    Real* next[Cell::states];
    Real* whole;  // h once more, in whole vectors: what the next step reads at once, which processors do not like to do of parts
    Real* end;    // h at the end of the last step, or null
  };

  template <int U, class Place> FASTRNN_FN void finish(const Bundle<V, U> (&z)[G], const V (&x_side)[U], const Rows& rows, Place place) {
    Unit<Bundle<V, U>> u{};
    u.options = &d.options;
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) u.z[g] = z[g];
#pragma GCC unroll 8
    for (int m = 0; m < U; m++) {
      const int64_t at = place.at(m), left = place.left(m);
      if constexpr (Cell::hidden_apart) u.x_side.v[m] = x_side[m];
      if constexpr (Cell::uses_h_prev) u.h_prev.v[m] = load<V>(rows.prev[0] + at, left);
#pragma GCC unroll 4
      for (int k = 1; k < Cell::states; k++) u.prev[k].v[m] = load<V>(rows.prev[k] + at, left);
    }
    Cell::template forward<0>(u);
#pragma GCC unroll 8
    for (int m = 0; m < U; m++) {
      store(rows.next[0] + place.at(m), u.out.v[m], place.left(m));
      if (rows.whole) store(rows.whole + place.at(m), u.out.v[m]);
      if (rows.end) store(rows.end + place.at(m), u.out.v[m], place.left(m));
#pragma GCC unroll 4
      for (int k = 1; k < Cell::states; k++) store(rows.next[k] + place.at(m), u.next[k].v[m], place.left(m));
    }
  }

  template <int U> FASTRNN_FN void some_blocks(int64_t block, const Rows& rows) {
    V acc[1][U][G], x_side[U] = {};
#pragma GCC unroll 8
    for (int u = 0; u < U; u++)
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) acc[0][u][g] = load<V>(d.panels.bias + ((block + u) * G + g) * N);
    multiply<V, 1, U, G>(input, &rows.x, block, (const Real*)nullptr, acc);
    if constexpr (Cell::hidden_apart) {
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) x_side[u] = acc[0][u][G - 1], acc[0][u][G - 1] = load<V>(d.panels.bias_hidden + (block + u) * N);
    }
    multiply<V, 1, U, G>(recurrent, &rows.prev[0], block, (const Real*)nullptr, acc);
    Bundle<V, U> z[G];
#pragma GCC unroll 8
    for (int u = 0; u < U; u++)
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) z[g].v[u] = acc[0][u][g];
    if ((block + U) * N <= d.H) finish(z, x_side, rows, Results<N, false, true>{0, block, d.H});
    else finish(z, x_side, rows, Results<N, false, false>{0, block, d.H});
  }
  // In alternating directions, as in product().
  template <int U> FASTRNN_FN void all_blocks(int64_t first, bool back, const Rows& rows) {
    const int64_t count = (blocks - first) / U, rest = first + count * U;
    if constexpr (U > 1)
      if (back) all_blocks<U / 2>(rest, back, rows);
    for (int64_t i = 0; i < count; i++) some_blocks<U>(first + (back ? count - 1 - i : i) * U, rows);
    if constexpr (U > 1)
      if (!back) all_blocks<U / 2>(rest, back, rows);
  }

  void run() {
    Poll poll(seat);
    const double work = 2. * double(d.I + d.P) * double(d.H) * G;
    const int64_t T = d.schedule.T;
    Real* const whole[2] = {d.projection, d.projection + blocks * N};  // where there are several steps; there is room for two
    // Then no other blocks read the h before the step, in whose place 'end' may be, when it is written.
    const bool all_at_once = blocks <= at_once && (blocks & (blocks - 1)) == 0;
    Rows rows{};
    for (int64_t step = 0; step < T; step++) {
      const int64_t t = order.time(step);
      rows.x = d.x.at(t, 0), rows.next[0] = d.y.at(t, 0);
      rows.prev[0] = step && !order.cut_before(t, 0) ? whole[(step - 1) % 2] : order.h_prev(t, 0);
      rows.whole = T > 1 ? whole[step % 2] : nullptr;
      rows.end = step + 1 == T && all_at_once ? d.after[0] : nullptr;
#pragma GCC unroll 4
      for (int k = 1; k < Cell::states; k++) rows.prev[k] = order.prev(k, t, 0), rows.next[k] = d.after[k];
      all_blocks<at_once>(0, (step & 1) != int64_t(d.back), rows);
      if (poll.stop(work)) return;
    }
    for (int64_t at = 0; at < d.P && !rows.end; at += N) store(d.after[0] + at, load<V>(rows.next[0] + at, d.P - at), d.P - at);
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
