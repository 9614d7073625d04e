// Part of backward.hpp: zoneout and recurrent dropout of general cells, on the way back.
#pragma once
#include "kernels/backward_heads.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class Backward> struct BackwardNoise;
template <template <class, class, class> class Backward, class Cell, class V, class Real> struct BackwardNoise<Backward<Cell, V, Real>> {
  Backward<Cell, V, Real>& b;

  // Functions, so that the other cells are compiled without what these ask for.
  FASTRNN_FN bool drops() const { return Cell::noisy && b.d.noise.kept.base; }  // recurrent dropout
  FASTRNN_FN bool zones(int state) const { return Cell::noisy && b.d.options.zoneout[state] > 0; }

  // The gradient of h_prev from that of what the products of a step saw of it.
  FASTRNN_FN V through(int64_t t, int64_t i, V gradient, int64_t at, int64_t left) const {
    return dropped(b.order.kept(t, b.rows.row(i)) + at, b.d.noise.scale, gradient, left);
  }
  // What reaches h at t by y and by the product of the next step.
  FASTRNN_FN V reaching(int64_t t, V product, int64_t i, int64_t at, int64_t left) const {
    const int64_t s = b.rows.row(i);
    const V dy = b.q.dy.base ? load<V>(b.q.dy.at(t, b.d.schedule.order[s]) + at, left) : V{};
    return b.order.is_last(t, s) ? dy : dy + through(b.d.reverse ? t - 1 : t + 1, i, product, at, left);
  }

  // What passes by the cell: of the gradients of h and c what zoneout leads past it, and what a second phase finds of dL/dh_prev.
  struct Past {
    V h{}, c{};
  };
  // Takes that part out of the gradient of a state.
  FASTRNN_FN void part(int state, int64_t t, int64_t i, V& gradient, V& past, int64_t at, int64_t left) const {
    if (!zones(state)) return;
    const Zone zone = b.order.zone(state, t, b.rows.row(i));
    past = zone.staying(gradient, at, left), gradient = zone.passing(gradient, at, left);
  }
  // A second phase sees h_prev through the step's mask.
  template <class Gradient> FASTRNN_FN void enter_second(int64_t t, int64_t i, Gradient& u, int m, Past& past, int64_t at,
                                                         int64_t left) const {
    if (!drops()) return;
    past.h = u.carry.v[m], u.carry.v[m] = V{};
    u.h_prev.v[m] = through(t, i, u.h_prev.v[m], at, left);
  }
  template <class Gradient> FASTRNN_FN void leave_second(int64_t t, int64_t i, Gradient& u, int m, const Past& past, int64_t at,
                                                         int64_t left) const {
    if (drops()) u.carry.v[m] = past.h + through(t, i, u.carry.v[m], at, left);
  }
  // Brings the parts together behind the first phase, or the only one.
  template <class Gradient> FASTRNN_FN void rejoin_h(int64_t i, Gradient& u, int m, const Past& past, int64_t at, int64_t left) const {
    if (!zones(0)) return;
    u.carry.v[m] = u.carry.v[m] + past.h;
    if (!Cell::has_carry) store(b.q.carry + b.rows.row(i) * b.P + at, u.carry.v[m], left);
  }

  // This worker's part of what the recurrent products of a chunk saw of h_prev.
  __attribute__((noinline)) void drop_tokens(int64_t first, int64_t last) {
    int64_t k = 0;
    for (int64_t step = first; step < last; step++) {
      const int64_t t = b.order.time(step);
      for (int64_t s = 0; s < b.d.schedule.active[t]; s++, k++)
        if (k % b.seat.size == b.seat.rank)
          drop_row<V>(b.q.dropped + k * b.P, b.order.h_prev(t, s), b.order.kept(t, s), b.d.noise.scale, b.P);
    }
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
