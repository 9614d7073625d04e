// The time loop, forward: one worker's share of one direction of one layer.
#pragma once
#include "kernels/cells.hpp"
#include "kernels/gemm.hpp"
#include "kernels/narrow.hpp"
#include "kernels/noise.hpp"
#include "kernels/norms.hpp"
#include "kernels/timeline.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

// The rows s that fall to a worker: dealt out like cards, so that every worker gets long and short sequences.
struct Deal {
  int64_t first, stride;
  FASTRNN_FN int64_t row(int64_t i) const { return first + i * stride; }
  FASTRNN_FN int64_t count(int64_t n) const { return n > first ? (n - first + stride - 1) / stride : 0; }
};

// Maps row s of the schedule (sorted by falling length) at step t to the caller's memory, where it is batch row b.
template <class Real> struct Order : Timeline<Order<Real>> {
  const Direction<Real>& d;

  FASTRNN_FN explicit Order(const Direction<Real>& direction) : d(direction) {}
  FASTRNN_FN int64_t steps() const { return d.schedule.T; }
  FASTRNN_FN bool reverse() const { return d.reverse; }
  FASTRNN_FN int64_t length(int64_t s) const { return d.schedule.length[s]; }
  FASTRNN_FN bool reset(int64_t t, int64_t s) const { return d.schedule.reset.base && *d.schedule.reset.at(t, d.schedule.order[s]); }
  FASTRNN_FN int64_t token(int64_t t, int64_t s) const { return d.schedule.offset[t] + s; }
  FASTRNN_FN const uint8_t* kept(int64_t t, int64_t s) const { return d.noise.kept.at(t, d.schedule.order[s]); }
  FASTRNN_FN Zone zone(int state, int64_t t, int64_t s) const {
    const Rows<const uint8_t>& mask = d.noise.zoned[state];
    return {mask.base ? mask.at(t, d.schedule.order[s]) : nullptr, d.options.zoneout[state]};
  }

  FASTRNN_FN const Real* x(int64_t t, int64_t s) const {
    const int64_t b = d.schedule.order[s];
    return d.tokens ? d.x.at(d.tokens->row[t * d.schedule.B + b], 0) : d.x.at(t, b);
  }
  FASTRNN_FN const Real* h_prev(int64_t t, int64_t s) const {
    const int64_t b = d.schedule.order[s];
    if (this->cut_before(t, s)) return d.zeros;
    if (this->is_first(t, s)) return d.before[0] ? d.before[0] + b * d.P : d.zeros;
    return d.y.at(this->before(t), b);
  }
  // Another state of the step before: on the tape, or in 'after' as it runs.
  FASTRNN_FN const Real* prev(int state, int64_t t, int64_t s) const {
    const int64_t b = d.schedule.order[s];
    if (this->cut_before(t, s)) return d.zeros;
    if (this->is_first(t, s)) return d.before[state] ? d.before[state] + b * d.H : d.zeros;
    return d.trail[state] ? d.trail[state] + token(this->before(t), s) * d.H : d.after[state] + b * d.H;
  }
};

// A pointer for each row, in tables of one kind that lie behind one another.
template <int n, class Pointer> struct Tables {
  Pointer at[n];
  FASTRNN_FN Tables(Pointer first, int64_t rows) {
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) at[i] = first + i * rows;
  }
  FASTRNN_FN Pointer operator[](int i) const { return at[i]; }
  FASTRNN_FN Pointer end(int64_t rows) const { return at[n - 1] + rows; }
};

template <class Real> FASTRNN_FN void copy_row(Real* to, const Real* from, int64_t n) {
  if (to == from) return;
  if (from) __builtin_memcpy(to, from, n * sizeof(Real));
  else __builtin_memset(to, 0, n * sizeof(Real));
}

// A row of h as the recurrent products see it with recurrent dropout.
template <class V, class Real> FASTRNN_FN void drop_row(Real* to, const Real* from, const uint8_t* kept, double scale, int64_t n) {
  for (int64_t at = 0; at < n; at += Lanes<V>::n) store(to + at, dropped(kept + at, scale, load<V>(from + at, n - at), n - at), n - at);
}

// The weights of the forward sweep, with their panels where these are packed beforehand.
template <class Cell, class V, class Real> FASTRNN_FN Matrix<Real> input_matrix(const Direction<Real>& d) {
  return {d.panels.ih, d.weight[weight_ih], d.I, d.H, d.I * Cell::gates * Lanes<V>::n};
}
// weight_hh, or weight_hr in a projected cell's second phase.
template <class Cell, class V, int p, class Real> FASTRNN_FN Matrix<Real> recurrent_matrix(const Direction<Real>& d) {
  constexpr Phase phase = Cell::phase[p];
  constexpr int N = Lanes<V>::n;
  if constexpr (Cell::projected && p == 1) {
    return {d.panels.hr, d.weight[weight_hr], d.H, d.P, d.H * N};
  } else {
    const int64_t head = d.heads > 1 ? d.H / d.heads : 0, K = head ? widest_window(d.H, head, N) : d.P;
    const int64_t before = blocks_of<V>(d.H) * K * phase.first * N;
    return {d.panels.hh ? d.panels.hh + before : nullptr,
            d.weight[weight_hh] + phase.first * d.H * (head ? head : d.P),
            K,
            d.H,
            K * phase.gates * N,
            0,
            head};
  }
}

// This worker's part of packing the forward weights; biases are packed by whoever has the blocks.
template <class Cell, class V, class Real> void pack_forward(const Direction<Real>& d, const Seat& seat) {
  constexpr int N = Lanes<V>::n, G = Cell::gates;
  const Range blocks = share_of(blocks_of<V>(d.H), seat.rank, seat.size);
  Poll poll(seat);
  for (int64_t block = blocks.first; block < blocks.last; block++) {
    const int64_t left = d.H - block * N;
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) {
      const int64_t row = g * d.H + block * N;
      const V input = d.weight[bias_ih] ? load<V>(d.weight[bias_ih] + row, left) : V{},
              hidden = d.weight[bias_hh] ? load<V>(d.weight[bias_hh] + row, left) : V{};
      const bool apart = Cell::hidden_apart && g == G - 1;
      store(d.panels.bias + (block * G + g) * N, apart ? input : input + hidden);
      if (apart) store(d.panels.bias_hidden + block * N, hidden);
    }
    for (int k = 0; k < vectors_of<Cell>(); k++) {
      const Real* const vector = vector_of<Cell>(d, k);
      store(d.panels.vectors + (block * vectors_of<Cell>() + k) * N, vector ? load<V>(vector + block * N, left) : V{});
    }
  }
  auto pack_share = [&](const Matrix<Real>& w, int gates) {
    const Range mine = share_of(blocks_of<V>(w.units), seat.rank, seat.size);
    if (!w.panel) return;
    if (!w.head) return pack_panel(w, gates, mine, const_cast<Real*>(w.panel) + mine.first * w.panel_pitch, poll);
    for (int64_t block = mine.first; block < mine.last; block++) {
      const Range one{block, block + 1};
      pack_panel(part_of(w, window_of<V>(w, block, one)), gates, one, const_cast<Real*>(w.panel) + block * w.panel_pitch, poll);
    }
  };
  pack_share(input_matrix<Cell, V>(d), G);
  pack_share(recurrent_matrix<Cell, V, 0>(d), Cell::phase[0].gates);
  if constexpr (Cell::phases == 2) pack_share(recurrent_matrix<Cell, V, 1>(d), Cell::phase[1].gates);
}

// narrow: with the narrow panels in place of the full ones.
template <class Cell, class V, class Real, bool narrow = false> struct Forward {
  static constexpr int N = Lanes<V>::n, G = Cell::gates;
  const Direction<Real>& d;
  const Seat& seat;
  const Order<Real> order{d};
  Poll poll{seat};
  const Deal rows = seat.by_rows ? Deal{seat.rank, seat.size} : Deal{0, 1};
  const int64_t row_count = rows.count(d.schedule.B);
  const Range blocks = seat.by_rows ? Range{0, blocks_of<V>(d.H)} : share_of(blocks_of<V>(d.H), seat.rank, seat.size);
  const Range out_blocks = seat.by_rows ? Range{0, blocks_of<V>(d.P)} : share_of(blocks_of<V>(d.P), seat.rank, seat.size);
  // bias + W_ih x as [block][row][G][N]: of this worker's blocks and a chunk's tokens, or of all blocks and distinct tokens.
  // Of a normalised cell as [row](G*H), for the whole team where units are dealt out.
  Real* const projection =
      d.token_projection ? d.token_projection : d.projection + (Cell::normalised && !seat.by_rows ? 0 : seat.rank * d.projection_size);
  const int64_t projection_row = Cell::normalised ? G * d.H : G * N;
  const int64_t projection_pitch = (d.token_projection ? d.tokens->distinct : d.chunk_steps * row_count) * G * N;
  const int64_t projection_first = d.token_projection ? 0 : blocks.first;
  const int64_t gates_row = blocks_of<V>(d.H) * Cell::tape * N;

  // One pointer per row of this worker at the step at hand.
  const Tables<Cell::states, const Real**> prev{(const Real**)(d.row_pointers + seat.rank * d.row_pointer_count), row_count};  // [0]: h
  const Real** inner_in = prev.end(row_count);
  const Tables<Cell::states, Real**> next{(Real**)(inner_in + row_count), row_count};  // [0]: y
  Real** inner = next.end(row_count);
  Real** gates = inner + row_count;
  const Real** projected = (const Real**)(gates + row_count);  // in the projection's first block
  const Real** seen = projected + row_count;                   // what the products see of h_prev with recurrent dropout
  const Real** x = seen + (drops() ? row_count : 0);           // of the chunk's tokens

  FASTRNN_FN bool drops() const { return Cell::noisy && d.noise.kept.base; }  // recurrent dropout

  // The n rows that run at t, whose projection begins at token 'first' of the chunk.
  FASTRNN_FN void point(int64_t t, int64_t n, int64_t first) {
    const int64_t* const row_of = d.token_projection ? d.tokens->row + t * d.schedule.B : nullptr;
    const Real* const here = d.token_projection ? projection : projection + first * projection_row;
    for (int64_t i = 0; i < n; i++) {
      const int64_t s = rows.row(i), b = d.schedule.order[s], slot = d.training ? order.token(t, s) : s;
      prev[0][i] = order.h_prev(t, s);
      next[0][i] = d.y.at(t, b);
#pragma GCC unroll 4
      for (int k = 1; k < Cell::states; k++) {
        prev[k][i] = order.prev(k, t, s);
        next[k][i] = d.trail[k] ? d.trail[k] + slot * d.H : d.after[k] + b * d.H;
      }
      if constexpr (Cell::phases == 2) inner_in[i] = inner[i] = d.inner + slot * d.H;
      gates[i] = d.gates ? d.gates + slot * gates_row : nullptr;
      projected[i] = here + (row_of ? row_of[b] : i) * projection_row;
      if (Cell::normalised && d.training) projected[i] = d.inputs + slot * projection_row;
      if (!drops()) continue;
      Real* const to = d.dropped + seat.rank * d.dropped_size + i * d.P;
      drop_row<V>(to, prev[0][i], order.kept(t, s), d.noise.scale, d.P);
      seen[i] = to;
    }
  }

  template <int gate_count, class Start, class Finish>
  FASTRNN_FN bool multiply_by(const Matrix<Real>& w, const NarrowPanel& panel, const Real* const* a, int64_t n, Range share, bool back,
                              const Start& start, const Finish& finish) {
    if constexpr (narrow) {
      NarrowRoom& room = *(NarrowRoom*)(d.narrow_room + seat.rank * d.narrow_room_size);
      return narrow_product<V, gate_count>(*d.panels.narrow, panel, w.K, w.units, a, n, share, back, room, start, finish, poll);
    } else {
      if (!w.panel && !d.pack_buffer) return product_of_rows<V, gate_count>(w, a, n, share, start, finish, poll);
      if (w.panel && !w.head) return product<V, gate_count>(w, a, n, share, back, start, finish, poll);
      if (!w.head) return product_once<V, gate_count>(w, d.pack_buffer + seat.rank * d.pack_buffer_size, a, n, share, start, finish, poll);
      return each_window<V>(w, share, back && w.panel, [&](const Matrix<Real>& part, Range some) __attribute__((always_inline)) {
        if (w.panel) return product<V, gate_count>(part, a, n, some, back, start, finish, poll);
        return product_once<V, gate_count>(part, d.pack_buffer + seat.rank * d.pack_buffer_size, a, n, some, start, finish, poll);
      });
    }
  }

  // W_ih x of a row of the projection, all gates of a block of units.
  template <class Gate> FASTRNN_FN void keep_unnormalised(int64_t row, int64_t at, int64_t left, const Gate& gate) {
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) store(projection + row * projection_row + g * d.H + at, gate(g), left);
  }
  // The projection of n rows of x.
  __attribute__((noinline)) bool project(int64_t n, Range share) {
    auto start = [&](V(&z)[G], int64_t, int64_t block) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) z[g] = Cell::normalised ? V{} : load<V>(d.panels.bias + (block * G + g) * N);
    };
    auto finish = [&](const auto& z, auto place) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int m = 0; m < Members<decltype(z[0])>::n; m++) {
        if constexpr (Cell::normalised) {
          keep_unnormalised(place.row(m), place.at(m), place.left(m), [&](int g) __attribute__((always_inline)) { return z[g].v[m]; });
          continue;
        }
        Real* to = projection + (place.block(m) - projection_first) * projection_pitch + place.row(m) * G * N;
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) store(to + g * N, z[g].v[m]);
      }
    };
    return multiply_by<G>(input_matrix<Cell, V>(d), d.panels.narrow_ih, x, n, share, false, start, finish);
  }
  FASTRNN_FN bool project_steps(int64_t first, int64_t last) {
    int64_t tokens = 0;
    for (int64_t step = first; step < last; step++) {
      const int64_t t = order.time(step), n = rows.count(d.schedule.active[t]);
      for (int64_t i = 0; i < n; i++) x[tokens++] = order.x(t, rows.row(i));
    }
    return project(tokens, blocks);
  }

  // The table of the distinct tokens; every worker does a share of the blocks. False: interrupted.
  FASTRNN_FN bool project_distinct() {
    const int64_t distinct = d.tokens->distinct;
    const Range share = share_of(blocks_of<V>(d.H), seat.rank, seat.size);
    if (!d.x.base) {
      for (int64_t block = share.first; block < share.last; block++) {
        for (int64_t u = 0; u < distinct; u++) {
          V column[G];
          if constexpr (narrow) {
            narrow_column<V, G>(d.panels.narrow_ih, d.I, block, d.tokens->id[u], column);
          } else {
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) column[g] = load<V>(d.panels.ih + ((block * d.I + d.tokens->id[u]) * G + g) * N);
          }
          if constexpr (Cell::normalised) {
            keep_unnormalised(u, block * N, d.H - block * N, [&](int g) __attribute__((always_inline)) { return column[g]; });
            continue;
          }
#pragma GCC unroll 4
          for (int g = 0; g < G; g++)
            store(d.token_projection + ((block * distinct + u) * G + g) * N, load<V>(d.panels.bias + (block * G + g) * N) + column[g]);
        }
        if (poll.stop(double(distinct) * G * N * packing_work)) break;
      }
      return !wait(seat);
    }
    for (int64_t u = 0; u < distinct; u++) x[u] = d.x.at(u, 0);
    project(distinct, share);
    return !wait(seat);
  }

  // Zoneout of what a phase has made of the states at time t.
  template <int p, int M, class Place> FASTRNN_FN void zone_out(Unit<Bundle<V, M>>& u, Place place, int64_t t) {
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const int64_t i = place.row(m), s = rows.row(i), at = place.at(m), left = place.left(m);
      if (p == Cell::phases - 1 && d.options.zoneout[0] > 0) {
        const Zone zone = order.zone(0, t, s);
        u.out.v[m] = zone.staying(load<V>(prev[0][i] + at, left), at, left) + zone.passing(u.out.v[m], at, left);
      }
      if constexpr (p == 0 && Cell::states == 2)
        if (d.options.zoneout[1] > 0) {
          const Zone zone = order.zone(1, t, s);
          u.next[1].v[m] = zone.staying(u.prev[1].v[m], at, left) + zone.passing(u.next[1].v[m], at, left);
        }
    }
  }

  // What gate g of a block gets from the input's side, with all biases that are added to it.
  FASTRNN_FN V input_side(int64_t i, int64_t block, int g, int64_t left) const {
    if constexpr (Cell::normalised) {
      const V gain = load<V>(d.panels.vectors + (block * vectors_of<Cell>() + g) * N);
      return fma(gain, load<V>(projected[i] + g * d.H + block * N, left), load<V>(d.panels.bias + (block * G + g) * N));
    } else {
      return load<V>(projected[i] + (block - projection_first) * projection_pitch + g * N);
    }
  }

  // The rows of the table, each by one worker of the team; in training each token has its own on the tape. False: interrupted.
  FASTRNN_FN bool normalise_distinct() {
    const Range mine = share_of(d.tokens->distinct, seat.rank, seat.size);
    for (int64_t u = mine.first; u < mine.last; u++) {
      Real* const row = d.token_projection + u * projection_row;
      Norms<Forward>::normalise(row, projection_row, row);
    }
    return !wait(seat);
  }

  // One phase of the step at time t, of n rows. False: interrupted.
  template <int p> FASTRNN_FN bool phase(int64_t t, int64_t n, bool back) {
    constexpr Phase ph = Cell::phase[p];
    constexpr bool projects = Cell::projected && p == 1, last = p == Cell::phases - 1;
    auto tape = [&](int64_t i, int64_t block) __attribute__((always_inline)) { return gates[i] + block * Cell::tape * N; };
    const Real* const* const operand = p > 0 ? inner_in : drops() ? seen : prev[0];
    const Real* const* const h_prev = p == 0 && Cell::phases == 2 ? operand : prev[0];  // what a first phase makes of it is multiplied
    auto start = [&](V(&z)[ph.gates], int64_t i, int64_t block) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int g = 0; g < ph.gates; g++) z[g] = projects ? V{} : input_side(i, block, ph.first + g, N);
      if constexpr (Cell::hidden_apart) z[ph.gates - 1] = load<V>(d.panels.bias_hidden + block * N);
    };
    auto finish = [&](const auto& z, auto place) __attribute__((always_inline)) {
      constexpr int M = Members<decltype(z[0])>::n;
      Unit<Bundle<V, M>> u{};
      u.options = &d.options;
#pragma GCC unroll 4
      for (int g = 0; g < Cell::phase[p].gates; g++) u.z[g] = z[g];
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const int64_t i = place.row(m), at = place.at(m), left = place.left(m);
        if constexpr (Cell::hidden_apart) u.x_side.v[m] = input_side(i, place.block(m), G - 1, left);
        if constexpr (Cell::uses_h_prev) u.h_prev.v[m] = load<V>(h_prev[i] + at, left);
        if constexpr (p == 0)
#pragma GCC unroll 4
          for (int k = 1; k < Cell::states; k++) u.prev[k].v[m] = load<V>(prev[k][i] + at, left);
        if constexpr (Cell::slots.vectors > 0 && !projects)
#pragma GCC unroll 4
          for (int k = 0; k < Cell::slots.vectors; k++)
            u.vector[k].v[m] = load<V>(d.panels.vectors + (place.block(m) * Cell::slots.vectors + k) * N);
        if constexpr (p > 0 && !projects)
#pragma GCC unroll 4
          for (int k = 0; k < Cell::tape; k++) u.tape[k].v[m] = load<V>(tape(i, place.block(m)) + k * N);
      }
      Cell::template forward<p>(u);
      if constexpr (Cell::noisy) zone_out<p, M>(u, place, t);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const int64_t i = place.row(m), at = place.at(m), left = place.left(m);
        store((last ? next[0][i] : inner[i]) + at, u.out.v[m], left);
        if constexpr (p == 0)
#pragma GCC unroll 4
          for (int k = 1; k < Cell::states; k++) store(next[k][i] + at, u.next[k].v[m], left);
      }
      if (projects || !d.gates) return;
#pragma GCC unroll 8
      for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int k = 0; k < Cell::tape; k++) store(tape(place.row(m), place.block(m)) + k * N, u.tape[k].v[m]);
    };
    const Range share = projects ? out_blocks : blocks;
    auto multiply = [&](const auto& begin, const auto& end) __attribute__((always_inline)) {
      return multiply_by<ph.gates>(recurrent_matrix<Cell, V, p>(d), d.panels.narrow_hh[p], operand, n, share, back, begin, end);
    };
    if constexpr (Cell::normalised) return Norms<Forward>{*this, t}.step(n, multiply, finish);
    const bool done = multiply(start, epilogue<Cell::general>(finish));
    return seat.by_rows ? done : !wait(seat);
  }

  bool sweep() {
    const int64_t T = d.schedule.T;
    if (d.token_projection && !project_distinct()) return false;
    if constexpr (Cell::normalised)
      if (d.token_projection && !d.training && !normalise_distinct()) return false;
    for (int64_t first = 0; first < T; first += d.chunk_steps) {
      const int64_t last = first + d.chunk_steps < T ? first + d.chunk_steps : T;
      if (!d.token_projection && !project_steps(first, last) && seat.by_rows) return false;
      if constexpr (Cell::normalised)
        if ((!d.token_projection || d.training) && !normalise_inputs<Cell, V, Real>(*this, first, last)) return false;
      int64_t token = 0;
      for (int64_t step = first; step < last; step++) {
        const int64_t t = order.time(step), n = rows.count(d.schedule.active[t]);
        point(t, n, token);
        if (!phase<0>(t, n, step & 1)) return false;
        if constexpr (Cell::phases == 2)
          if (!phase<1>(t, n, step & 1)) return false;
        token += n;
      }
    }
    return true;
  }

  // Final states, and zeros where y is padding; each row by one worker.
  void finish_rows() {
    const Deal mine{seat.rank, seat.size};
    for (int64_t i = 0; i < mine.count(d.schedule.B); i++) {
      const int64_t s = mine.row(i), b = d.schedule.order[s], length = d.schedule.length[s], last = d.reverse ? 0 : length - 1;
      copy_row(d.after[0] + b * d.P, length ? (const Real*)d.y.at(last, b) : d.before[0] ? d.before[0] + b * d.P : nullptr, d.P);
      for (int k = 1; k < Cell::states; k++) {
        Real* const to = d.after[k] + b * d.H;
        if (!length) copy_row(to, d.before[k] ? d.before[k] + b * d.H : nullptr, d.H);
        else if (d.trail[k]) copy_row(to, (const Real*)d.trail[k] + order.token(last, s) * d.H, d.H);
      }
      for (int64_t t = length; t < d.schedule.T && !d.y.starts; t++) copy_row<Real>(d.y.at(t, b), nullptr, d.P);
    }
  }

  void run() {
    if (sweep()) finish_rows();
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
