// Part of backward.hpp: with token ids the gate gradients are added up by id; their products with the input's weights and the embedding
// come at the end.
#pragma once
#include "kernels/forward.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class Backward> struct TokenIds;
template <template <class, class, class> class Backward, class Cell, class V, class Real> struct TokenIds<Backward<Cell, V, Real>> {
  static constexpr int N = Lanes<V>::n, G = Cell::gates;
  Backward<Cell, V, Real>& b;

  // A chunk's tokens, in their order, added to the rows of their ids: a share of the columns.
  FASTRNN_FN void add(int64_t tokens) {
    const Range mine = share_of(G * b.H, b.seat.rank, b.seat.size, N);
    for (int64_t k = 0; k < tokens; k++)
      for (int64_t at = mine.first; at < mine.last; at += N) {
        Real* const to = b.token_dx[k] + at;
        store(to, load<V>(to, mine.last - at) + load<V>(b.token_dinput[k] + at, mine.last - at), mine.last - at);
      }
  }

  // dW_ih and dx from the sums by id.
  void finish() {
    if (!b.d.x.base) return one_hot();
    int64_t first = 0;
    do {  // at least once, as in run()
      const int64_t left = b.d.tokens->distinct - first, n = left < b.chunk_tokens ? left : b.chunk_tokens;
      for (int64_t k = 0; k < n; k++) {
        b.token_dinput[k] = b.q.dtable + (first + k) * G * b.H;
        b.token_x[k] = b.d.x.at(first + k, 0);
        b.token_dx[k] = b.q.dx.at(first + k, 0);
      }
      b.transpose_tokens(b.token_dinput, n, G * b.H, b.q.columns, nullptr);
      if (!b.few) b.pack_tokens(b.token_x, n, b.I, b.q.x_panel);
      if (!b.meet()) return;
      if (b.weight_gradient(0, G * b.H, b.dweight_ih, b.token_x, b.q.x_panel, b.I, n, first > 0)) b.input_gradient(n);
      if (!b.meet()) return;
      first += n;
    } while (first < b.d.tokens->distinct);
  }
  FASTRNN_FN void one_hot() {
    const Range mine = share_of(G * b.H, b.seat.rank, b.seat.size);
    for (int64_t k = mine.first; k < mine.last; k++) {
      copy_row<Real>(b.dweight_ih[k], nullptr, b.I);
      for (int64_t u = 0; u < b.d.tokens->distinct; u++) b.dweight_ih[k][b.d.tokens->id[u]] = b.q.dtable[u * G * b.H + k];
      if (b.poll.stop(double(b.I) * packing_work)) return;
    }
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
