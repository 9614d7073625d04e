// Part of backward.hpp: zoneout and recurrent dropout of general cells, on the way back.
#pragma once
#include "kernels/backward_heads.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class Backward> struct BackwardNoise;
template <template <class, class, class> class Backward, class Cell, class V, class Real> struct BackwardNoise<Backward<Cell, V, Real>> {
  Backward<Cell, V, Real>& b;
  int64_t now = 0;  // the time of the step at hand

  // Functions, so that the other cells are compiled without what these ask for.
  FASTRNN_FN bool drops() const { return Cell::noisy && b.d.noise.kept.base; }  // recurrent dropout
  FASTRNN_FN bool zones_h() const { return Cell::noisy && b.d.options.zoneout[0] > 0; }
  FASTRNN_FN bool zones_c() const { return Cell::noisy && b.d.options.zoneout[1] > 0; }

  FASTRNN_FN Zone zone(int state, int64_t i) const { return b.order.zone(state, now, b.rows.row(i)); }

  // The gradient of h_prev from that of what the products of a step saw of it.
  FASTRNN_FN V through(int64_t t, int64_t i, V gradient, int64_t at, int64_t left) const {
    return dropped(b.order.kept(t, b.rows.row(i)) + at, b.d.noise.scale, gradient, left);
  }
  // What reaches h by y and by the product of the next step.
  FASTRNN_FN V reaching(V product, int64_t i, int64_t at, int64_t left) const {
    const int64_t s = b.rows.row(i);
    const V dy = b.q.dy.base ? load<V>(b.q.dy.at(now, b.d.schedule.order[s]) + at, left) : V{};
    return b.order.is_last(now, s) ? dy : dy + through(b.d.reverse ? now - 1 : now + 1, i, product, at, left);
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
