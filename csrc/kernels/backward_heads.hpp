// Part of backward.hpp: the products with a block-diagonal W_hh. They stand apart from the epilogue, which then multiplies nothing.
#pragma once
#include "kernels/forward.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class Backward> struct Heads;
template <template <class, class, class> class Backward, class Cell, class V, class Real> struct Heads<Backward<Cell, V, Real>> {
  static constexpr int N = Lanes<V>::n;
  Backward<Cell, V, Real>& b;

  // W_hh of a phase, for gate g of its slots, as the product for these columns of dh_prev: [block][gate][unit of the block's heads][N].
  template <int p> FASTRNN_FN Matrix<Real> matrix(int g) const {
    constexpr int gates = Cell::phase[p].gates;
    return {b.q.panel_hh + b.panel_start(p) + g * b.window * N, nullptr, b.window, b.H, b.window * gates * N, 0, b.head};
  }
  template <int p> FASTRNN_FN const Real* rows(int g) const { return b.d.weight[weight_hh] + b.weight_row(p, g * b.H) * b.head; }

  // This worker's part of packing it.
  template <int p> __attribute__((noinline)) void pack() {
    const Range mine = share_of(blocks_of<V>(b.P), b.seat.rank, b.seat.size);
    for (int g = 0; g < Cell::phase[p].gates; g++) {
      const Matrix<Real> w = matrix<p>(g);
      for (int64_t block = mine.first; block < mine.last; block++) {
        const Window units = window_of<V>(w, block, {block, block + 1});
        Real* to = const_cast<Real*>(w.panel) + block * w.panel_pitch;
        for (int64_t unit = units.column; unit < units.column + units.K; unit++, to += N) {
          // the unit's row lies at the columns of its head, of which some are the block's
          const int64_t begin = unit / b.head * b.head, end = begin + b.head, column = block * N;
          const int64_t first = begin > column ? begin : column, last = end < column + N ? end : column + N;
          store(to, V{});
          copy_row(to + (first - column), rows<p>(g) + unit * b.head + (first - begin), last - first);
        }
        if (b.poll.stop(double(units.K) * N * packing_work)) return;
      }
    }
  }

  // out[i], rows [from, n): plus A W_hh of a phase in this worker's columns, gate by gate.
  template <int p> __attribute__((noinline)) bool add(const Real* const* a, int64_t from, int64_t n, Real* const* out) {
    for (int g = 0; g < Cell::phase[p].gates; g++) {
      if (b.few) {
        if (!add_few(rows<p>(g), a, g * b.H, from, n, out)) return false;
        continue;
      }
      auto add_part = [&](Matrix<Real> w, Range blocks) {
        w.column += g * b.H;
        return product_into(w, a + from, n - from, blocks, out + from, true, b.poll);
      };
      if (!each_window<V>(matrix<p>(g), b.p_blocks, false, add_part)) return false;
    }
    return true;
  }
  FASTRNN_FN bool add_few(const Real* w, const Real* const* a, int64_t at, int64_t from, int64_t n, Real* const* out) {
    const Range mine = b.columns_of(b.p_blocks, b.P);
    for (int64_t begin = mine.first / b.head * b.head; begin < mine.last; begin += b.head) {
      for (int64_t i = from; i < n; i++) b.few_rest[i] = a[i] + at + begin, b.few_to[i] = out[i] + begin;
      const Range columns{mine.first > begin ? mine.first - begin : 0, mine.last < begin + b.head ? mine.last - begin : b.head};
      if (!multiply_few(w + begin * b.head, b.head, b.head, b.few_rest + from, n - from, columns, b.few_to + from, b.poll)) return false;
    }
    return true;
  }

  // What the epilogue of a phase begins with, in b.dy: start, or zeros with a null one, and where steps are linked A W_hh.
  template <int p> FASTRNN_FN bool products(const Real* const* start, const Real* const* a, int64_t n, bool linked) {
    const Range mine = b.columns_of(b.p_blocks, b.P);
    for (int64_t i = 0; i < n; i++) {
      b.few_out[i] = b.q.few + b.rows.row(i) * b.P;
      if (mine.first < mine.last) copy_row(b.few_out[i] + mine.first, start ? start[i] + mine.first : nullptr, mine.last - mine.first);
    }
    const bool done = !linked || add<p>(a, 0, n, b.few_out);
    for (int64_t i = 0; i < n; i++) b.dy[i] = b.few_out[i];
    return done;
  }

  // This worker's part of packing what weight_gradient multiplies by: a panel for each head.
  FASTRNN_FN int64_t panel_size() const { return blocks_of<V>(b.head) * b.q.chunk_pitch * N; }
  __attribute__((noinline)) void pack_tokens(const Real* const* operand, int64_t tokens, Real* panel) {
    const Range mine = share_of(b.d.heads, b.seat.rank, b.seat.size), all{0, blocks_of<V>(b.head)};
    for (int64_t k = mine.first; k < mine.last; k++) {
      auto row = [&](int64_t token) { return operand[token] + k * b.head; };
      pack_rows<V>(row, tokens, b.head, b.q.chunk_pitch, all, panel + k * panel_size(), b.poll);
    }
  }

  // Rows of dW_hh, of slots [slot, slot + count): each head's times what its units saw.
  __attribute__((noinline)) bool weight_gradient(int slot, int count, Real** out, const Real* const* operand, const Real* panel,
                                                 int64_t tokens, bool add) {
    const Range mine = share_of(count * b.H, b.seat.rank, b.seat.size, wide_rows), all{0, blocks_of<V>(b.head)};
    for (int64_t row = mine.first; row < mine.last;) {
      const int64_t end = row / b.head * b.head + b.head, height = (end < mine.last ? end : mine.last) - row, k = row % b.H / b.head;
      const Real* const* const columns = b.column + slot * b.H + row;
      bool done;
      if (b.few) {
        for (int64_t token = 0; token < tokens; token++) b.token_head[token] = operand[token] + k * b.head;
        done = outer_few(columns, b.token_head, tokens, height, b.head, out + row, b.poll);
      } else {
        const Matrix<Real> seen{panel + k * panel_size(), nullptr, tokens, b.head, b.q.chunk_pitch * N};
        done = product_into(seen, columns, height, all, out + row, add, b.poll);
      }
      if (!done) return false;
      row += height;
    }
    return true;
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
