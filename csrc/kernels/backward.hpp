// Backpropagation through time: one worker's share of one direction of one layer.
//
// The sweep goes back over one chunk of time; then, while the chunk's gate gradients are in the cache, the team adds its
// part of the weight gradients and forms dx. The gate gradients live in a ring of chunk_steps + 1 steps, so that the last
// step of one chunk still stands when the next begins. With token ids the gate gradients are added up by id on the way; their
// products with the input's weights and the embedding come at the end, the distinct ids taking the place of tokens.
#pragma once
#include "kernels/backward_ids.hpp"
#include "kernels/backward_noise.hpp"
#include "kernels/backward_norms.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class Cell, class V, class Real> struct Backward {
  static constexpr int N = Lanes<V>::n, G = Cell::gates, S = Cell::slots.count;
  const BackwardDirection<Real>& q;
  const Seat& seat;
  const Direction<Real>& d = q.forward;
  const Order<Real> order{d};
  Poll poll{seat};
  const int64_t T = d.schedule.T, B = d.schedule.B, I = d.I, H = d.H, P = d.P;
  const Deal rows = seat.by_rows ? Deal{seat.rank, seat.size} : Deal{0, 1};
  const int64_t row_count = rows.count(B), chunk_tokens = q.chunk_steps * B;
  const Range h_blocks = seat.by_rows ? Range{0, blocks_of<V>(H)} : share_of(blocks_of<V>(H), seat.rank, seat.size);
  const Range p_blocks = seat.by_rows ? Range{0, blocks_of<V>(P)} : share_of(blocks_of<V>(P), seat.rank, seat.size);
  const int64_t gates_row = blocks_of<V>(H) * Cell::tape * N, dgates_row = S * H + 16;

  // One pointer per row of this worker at the step at hand.
  const Real** dnext = (const Real**)(d.row_pointers + seat.rank * d.row_pointer_count);  // A of the first phase: next step's gradients
  const Real** dhere = dnext + row_count;                                    // A of the second phase, and of dh0
  const Real** dy = dhere + row_count;
  const Real** carry_in = dy + row_count;
  const Real** gates = carry_in + row_count;
  const Real** h = gates + row_count;
  const Real** h_prev = h + row_count;
  // Of the states beside h, [1], ...; [0] is spare.
  const Tables<Cell::states, const Real**> next{h_prev + row_count, row_count}, prev{next.end(row_count), row_count};
  const Tables<Cell::states, const Real**> dstate_in{prev.end(row_count), row_count};
  Real** dgates = (Real**)dstate_in.end(row_count);
  Real** dproj = dgates + row_count;
  Real** hidden = dproj + row_count;
  Real** dh0 = hidden + row_count;
  Real** few_out = dh0 + row_count;
  Real** few_to = few_out + row_count;
  const Real** few_rest = (const Real**)(few_to + row_count);
  // One pointer per token of the chunk, all rows.
  const Real** token_dgates = few_rest + row_count;
  const Real** token_dinput = token_dgates + chunk_tokens;
  const Real** token_dproj = token_dinput + chunk_tokens;
  const Real** token_x = token_dproj + chunk_tokens;
  const Real** token_h_prev = token_x + chunk_tokens;
  const Real** token_inner = token_h_prev + chunk_tokens;
  const Real** token_head = token_inner + chunk_tokens;  // what the tokens have for one head
  // Of a normalised cell, which has neither a second phase nor a projection.
  const Real** token_inputs = token_inner;
  const Real** token_state = token_dproj;
  const Real** token_products = token_head + (Cell::normalised ? chunk_tokens : 0);
  const Real** token_moments = token_products + (Cell::normalised ? chunk_tokens : 0);
  Real** token_dx = (Real**)(token_moments + chunk_tokens);  // or its row of dtable
  // Rows of the transposed gate gradients, and of the weight gradients that they give; dweight_hh in the order of the slots.
  const Real** column = (const Real**)(token_dx + chunk_tokens);
  Real** dweight_ih = (Real**)(column + S * H + P);
  Real** dweight_hh = dweight_ih + G * H;
  Real** dweight_hr = dweight_hh + G * H;

  // Whether no matrix is packed.
  const bool few = Cell::phases == 1 && !q.panel_hh;
  // Units of a head, 0 for a full matrix; and of a gate, those that a block of dh_prev comes from.
  const int64_t head = !Cell::projected && d.heads > 1 ? H / d.heads : 0, window = head ? widest_window(H, head, N) : H;
  Heads<Backward> heads{*this};
  BackwardNoise<Backward> noise{*this};
  TokenIds<Backward> ids{*this};

  FASTRNN_FN bool carries() const { return Cell::has_carry || noise.zones(0); }
  FASTRNN_FN bool meet() { return !wait(seat); }
  FASTRNN_FN Real* ring(Real* base, int64_t step, int64_t s, int64_t pitch) const {
    return base + (step % (q.chunk_steps + 1) * B + s) * pitch;
  }

  // The row of W_hh that belongs to element k of a phase's slots on the hidden side.
  FASTRNN_FN int64_t weight_row(int p, int64_t k) const {
    const int64_t row = k + (hidden_slot<Cell>(p) - Cell::slots.turn) * H;
    return row < 0 ? row + G * H : row;
  }
  FASTRNN_FN int64_t panel_start(int p) const { return blocks_of<V>(P) * Cell::phase[p].first * window * N; }

  template <int p> FASTRNN_FN void pack_phase() {
    constexpr Phase ph = Cell::phase[p];
    if constexpr (Cell::projected && p == 1) {
      auto row = [&](int64_t k) { return d.weight[weight_hr] + k * H; };
      pack_rows<V>(row, P, H, P, share_of(blocks_of<V>(H), seat.rank, seat.size), q.panel_hr, poll);
    } else if (head) {
      heads.template pack<p>();
    } else {
      auto row = [&](int64_t k) { return d.weight[weight_hh] + weight_row(p, k) * P; };
      pack_rows<V>(row, ph.gates * H, P, ph.gates * H, share_of(blocks_of<V>(P), seat.rank, seat.size), q.panel_hh + panel_start(p), poll);
    }
  }
  void pack() {
    auto row = [&](int64_t k) { return d.weight[weight_ih] + k * I; };
    if (q.panel_ih) pack_rows<V>(row, G * H, I, G * H, share_of(blocks_of<V>(I), seat.rank, seat.size), q.panel_ih, poll);
    if (!few) pack_phase<0>();
    if constexpr (Cell::phases == 2) pack_phase<1>();
    if constexpr (Cell::normalised) Norms<Backward>{*this, 0}.clear();
    const Range sums = share_of(S * H, seat.rank, seat.size);
    for (int64_t k = sums.first; k < sums.last; k++) q.column_sums[k] = 0;
    if (d.tokens) {
      const Range mine = share_of(d.tokens->distinct, seat.rank, seat.size);
      for (int64_t u = mine.first; u < mine.last; u++) copy_row<Real>(q.dtable + u * G * H, nullptr, G * H);
    }
    if (q.dz) return;
    for (int64_t k = 0; k < S * H + P; k++) column[k] = q.columns + k * q.chunk_pitch;
    for (int64_t k = 0; k < G * H; k++) dweight_ih[k] = q.dweight[weight_ih] + k * I;
    for (int64_t k = 0; k < G * H; k++) dweight_hh[k] = q.dweight[weight_hh] + weight_row(0, k) * (head ? head : P);
    for (int64_t k = 0; Cell::projected && k < P; k++) dweight_hr[k] = q.dweight[weight_hr] + k * H;
  }

  FASTRNN_FN void point(int64_t step, int64_t n) {
    const int64_t t = order.time(step);
    for (int64_t i = 0; i < n; i++) {
      const int64_t s = rows.row(i), b = d.schedule.order[s], token = order.token(t, s);
      const bool last = order.is_last(t, s), cut = !last && order.cut_after(t, s);
      dgates[i] = ring(q.dgates, step, s, dgates_row);
      dnext[i] = last || cut ? d.zeros : ring(q.dgates, step + 1, s, dgates_row) + hidden_slot<Cell>(0) * H;
      dy[i] = q.dy.base && !noise.drops() ? q.dy.at(t, b) : d.zeros;
      carry_in[i] = last ? (q.dafter[0] ? q.dafter[0] + b * P : d.zeros) : cut || !carries() ? d.zeros : q.carry + s * P;
#pragma GCC unroll 4
      for (int k = 1; k < Cell::states; k++) {
        dstate_in[k][i] = last ? (q.dafter[k] ? q.dafter[k] + b * H : d.zeros) : cut ? d.zeros : q.drunning[k] + s * H;
        next[k][i] = d.trail[k] + token * H;
        prev[k][i] = order.prev(k, t, s);
      }
      if constexpr (Cell::tape > 0) gates[i] = d.gates + token * gates_row;
      if constexpr (Cell::uses_h) h[i] = d.y.at(t, b);
      if constexpr (Cell::uses_h_prev) h_prev[i] = order.h_prev(t, s);
      if constexpr (Cell::projected) {
        dproj[i] = ring(q.dproj, step, s, P);
        dhere[i] = dproj[i];
      } else {
        dhere[i] = dgates[i] + hidden_slot<Cell>(Cell::phases - 1) * H;
      }
      hidden[i] = q.hidden.base ? q.hidden.at(t, b) : nullptr;
    }
  }

  static constexpr Range columns_of(Range blocks, int64_t n) {
    return {blocks.first * N < n ? blocks.first * N : n, blocks.last * N < n ? blocks.last * N : n};
  }

  // few_out[i], rows [from, n) of q.few: start[i] + A W_hh in this worker's columns; start null for zeros.
  FASTRNN_FN bool few_products(const Real* const* start, const Real* const* a, int64_t from, int64_t n) {
    const Range mine = columns_of(p_blocks, P);
    for (int64_t i = from; i < n; i++) {
      few_out[i] = q.few + rows.row(i) * P;
      if (mine.first < mine.last) copy_row(few_out[i] + mine.first, start ? start[i] + mine.first : nullptr, mine.last - mine.first);
    }
    // The slots' order may begin in the middle of W_hh, and then goes on at its first row.
    const int64_t K = Cell::phase[0].gates * H, first = weight_row(0, 0), turn = G * H - first < K ? G * H - first : K;
    if (!multiply_few(d.weight[weight_hh] + first * P, turn, P, a + from, n - from, mine, few_out + from, poll)) return false;
    if (turn == K) return true;
    for (int64_t i = from; i < n; i++) few_rest[i] = a[i] + turn;
    return multiply_few(d.weight[weight_hh], K - turn, P, few_rest + from, n - from, mine, few_out + from, poll);
  }

  // One phase of the step at time t; the first one sums up dL/dh. False: interrupted.
  template <int p> FASTRNN_FN bool phase(int64_t t, int64_t n, bool linked, bool back) {
    constexpr Phase ph = Cell::phase[p];
    constexpr bool through_projection = Cell::projected && p == 1, only_sums = Cell::projected && p == 0;
    const int64_t units = only_sums ? P : H;
    auto start = [&](V(&z)[1], int64_t i, int64_t block)
                     __attribute__((always_inline)) { z[0] = p == 0 || head ? load<V>(dy[i] + block * N, units - block * N) : V{}; };
    auto finish = [&](const auto& z, auto place) __attribute__((always_inline)) {
      constexpr int M = Members<decltype(z[0])>::n;
      UnitGradient<Bundle<V, M>> u{};
      u.options = &d.options;
      u.dout = z[0];
      constexpr bool second = Cell::noisy && Cell::phases == 2 && p == 1 && !through_projection;  // of a product of h_prev
      typename BackwardNoise<Backward>::Past past[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const int64_t i = place.row(m), at = place.at(m), left = place.left(m);
        if constexpr (p == 0) {
          if constexpr (Cell::noisy)
            if (noise.drops()) u.dout.v[m] = noise.reaching(t, u.dout.v[m], i, at, left);
          u.dout.v[m] = u.dout.v[m] + load<V>(carry_in[i] + at, left);
          if (hidden[i]) store(hidden[i] + at, u.dout.v[m], left);
          if constexpr (Cell::noisy) noise.part(0, t, i, u.dout.v[m], past[m].h, at, left);
        }
        if constexpr (only_sums) {
          store(dproj[i] + at, u.dout.v[m], left);
          if constexpr (Cell::noisy) noise.rejoin_h(i, u, m, past[m], at, left);
          continue;
        }
        const Real* tape = gates[i] + place.block(m) * Cell::tape * N;
#pragma GCC unroll 4
        for (int k = 0; k < Cell::tape; k++) u.tape[k].v[m] = load<V>(tape + k * N);
        if constexpr (Cell::uses_h) u.h.v[m] = load<V>(h[i] + at, left);
        if constexpr (Cell::uses_h_prev) u.h_prev.v[m] = load<V>(h_prev[i] + at, left);
#pragma GCC unroll 4
        for (int k = 1; k < Cell::states; k++) {
          u.next[k].v[m] = load<V>(next[k][i] + at, left);
          u.prev[k].v[m] = load<V>(prev[k][i] + at, left);
          u.dstate[k].v[m] = load<V>(dstate_in[k][i] + at, left);
        }
        if constexpr (Cell::noisy && Cell::states == 2) noise.part(1, t, i, u.dstate[1].v[m], past[m].c, at, left);
        if (Cell::slots.vectors && d.weight[weight_peephole])
#pragma GCC unroll 4
          for (int k = 0; k < Cell::slots.vectors; k++) u.vector[k].v[m] = load<V>(d.weight[weight_peephole] + k * H + at, left);
        if constexpr (Cell::normalised_state > 0) u.normal.v[m] = Norms<Backward>{*this, t}.value(i, at, left);
        if constexpr (Cell::has_carry && p == 1) u.carry.v[m] = load<V>(q.carry + rows.row(i) * P + at, left);
        if constexpr (second) noise.enter_second(t, i, u, m, past[m], at, left);
      }
      if constexpr (!only_sums) {
        constexpr int first_slot = Cell::phase[p].slot, end_slot = first_slot + Cell::phase[p].slots;
        Cell::template backward<p>(u);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const int64_t i = place.row(m), s = rows.row(i), at = place.at(m), left = place.left(m);
          if constexpr (second) noise.leave_second(t, i, u, m, past[m], at, left);
          else if constexpr (Cell::noisy && p == 0) noise.rejoin_h(i, u, m, past[m], at, left);
          if constexpr (Cell::noisy && Cell::states == 2)
            if (noise.zones(1)) u.dstate[1].v[m] = u.dstate[1].v[m] + past[m].c;
#pragma GCC unroll 4
          for (int k = 1; k < Cell::states; k++) store(q.drunning[k] + s * H + at, u.dstate[k].v[m], left);
          if constexpr (Cell::has_carry) store(q.carry + s * P + at, u.carry.v[m], left);
#pragma GCC unroll 8
          for (int k = first_slot; k < end_slot; k++) store(dgates[i] + (Cell::slots.plain + k) * H + at, u.dz[k].v[m], left);
        }
      }
    };
    const bool apart = head || (few && linked);
    if (head) {
      if (!heads.template products<p>(p == 0 ? dy : nullptr, p == 0 ? dnext : dhere, n, linked || p > 0) && seat.by_rows) return false;
    } else if (apart) {
      if (!few_products(dy, dnext, 0, n) && seat.by_rows) return false;
      for (int64_t i = 0; i < n; i++) dy[i] = few_out[i];
    }
    const int64_t K = through_projection ? P : (linked || p > 0) && !apart ? ph.gates * H : 0;
    const Matrix<Real> w{through_projection ? q.panel_hr : q.panel_hh + panel_start(p), nullptr, K, units,
                         (through_projection ? P : ph.gates * H) * N};
    const bool done =
        product<V, 1>(w, p == 0 ? dnext : dhere, n, only_sums ? p_blocks : h_blocks, back, start, epilogue<Cell::general>(finish), poll);
    if constexpr (Cell::normalised) return (seat.by_rows ? done : meet()) && Norms<Backward>{*this, t}.finish_step(n);
    return seat.by_rows ? done : meet();
  }

  // Adds the product of the first step, of which recurrent dropout takes a part away, apart from dh0.
  FASTRNN_FN bool initial_apart(int64_t t, int64_t from, int64_t n, int64_t first, int64_t end) {
    bool done;
    if (few && !head) {
      done = few_products(nullptr, dhere, from, n);
    } else {
      const int64_t K = Cell::phase[0].gates * H;
      for (int64_t i = from; i < n; i++) {
        few_out[i] = q.few + rows.row(i) * P;
        if (first < end) copy_row<Real>(few_out[i] + first, nullptr, end - first);
      }
      done = head ? heads.template add<0>(dhere, from, n, few_out)
                  : product_into({q.panel_hh, nullptr, K, P, K * N}, dhere + from, n - from, p_blocks, few_out + from, true, poll);
    }
    for (int64_t i = from; i < n; i++)
      for (int64_t at = first; at < end; at += N) {
        V product = load<V>((const Real*)few_out[i] + at, end - at);
        if (noise.drops()) product = noise.through(t, i, product, at, end - at);
        store(dh0[i] + at, load<V>(dh0[i] + at, end - at) + product, end - at);
      }
    return done;
  }

  // The gradients of the states before, of the rows [from, n) of this worker, whose sequence begins at t.
  FASTRNN_FN bool initial(int64_t t, int64_t from, int64_t n) {
    const int64_t p_first = p_blocks.first * N, p_end = p_blocks.last * N < P ? p_blocks.last * N : P;
    const int64_t h_first = h_blocks.first * N, h_end = h_blocks.last * N < H ? h_blocks.last * N : H;
    for (int64_t i = from; i < n; i++) {
      const int64_t s = rows.row(i), b = d.schedule.order[s];
      dhere[i] = dgates[i] + hidden_slot<Cell>(0) * H;
      dh0[i] = q.dbefore[0] + b * P;
      if (p_first < p_end) copy_row(dh0[i] + p_first, carries() ? (const Real*)q.carry + s * P + p_first : nullptr, p_end - p_first);
      for (int k = 1; k < Cell::states && h_first < h_end; k++)
        copy_row(q.dbefore[k] + b * H + h_first, (const Real*)q.drunning[k] + s * H + h_first, h_end - h_first);
    }
    const int64_t K = Cell::phase[0].gates * H;
    const bool done = noise.drops() || (few && !head) ? initial_apart(t, from, n, p_first, p_end)
                      : head ? heads.template add<0>(dhere, from, n, dh0)
                             : product_into({q.panel_hh, nullptr, K, P, K * N}, dhere + from, n - from, p_blocks, dh0 + from, true, poll);
    for (int64_t i = from; i < n; i++) {
      const int64_t s = rows.row(i), b = d.schedule.order[s];
      if (!order.cut_before(t, s)) continue;
      if (p_first < p_end) copy_row<Real>(dh0[i] + p_first, nullptr, p_end - p_first);
      for (int k = 1; k < Cell::states && h_first < h_end; k++) copy_row<Real>(q.dbefore[k] + b * H + h_first, nullptr, h_end - h_first);
    }
    return done;
  }

  // Steps [first, last), back in time.
  FASTRNN_FN bool sweep(int64_t first, int64_t last) {
    for (int64_t step = last - 1; step >= first; step--) {
      const int64_t t = order.time(step), n = rows.count(d.schedule.active[t]);
      const bool linked = d.reverse ? t > 0 : t + 1 < T && d.schedule.active[t + 1] > 0;
      point(step, n);
      if (!phase<0>(t, n, linked, step & 1)) return false;
      if constexpr (Cell::phases == 2)
        if (!phase<1>(t, n, linked, step & 1)) return false;
      const int64_t begun = !d.reverse ? (t == 0 ? 0 : n) : t + 1 < T ? rows.count(d.schedule.active[t + 1]) : 0;
      if (begun < n && !initial(t, begun, n) && seat.by_rows) return false;
    }
    return true;
  }

  FASTRNN_FN int64_t list_tokens(int64_t first, int64_t last) {
    int64_t k = 0;
    for (int64_t step = first; step < last; step++) {
      const int64_t t = order.time(step);
      for (int64_t s = 0; s < d.schedule.active[t]; s++, k++) {
        const int64_t b = d.schedule.order[s];
        token_dgates[k] = ring(q.dgates, step, s, dgates_row);
        token_dinput[k] = token_dgates[k] + Cell::slots.input * H;
        token_h_prev[k] = noise.drops() ? q.dropped + k * P : order.h_prev(t, s);
        if (d.tokens) {
          token_dx[k] = q.dtable + d.tokens->row[t * B + b] * G * H;
        } else {
          token_x[k] = d.x.at(t, b);
          token_dx[k] = q.dx.at(t, b);
        }
        if constexpr (Cell::phases == 2) token_inner[k] = d.inner + order.token(t, s) * H;
        if constexpr (Cell::projected) token_dproj[k] = ring(q.dproj, step, s, P);
        if constexpr (Cell::normalised) {
          const int64_t token = order.token(t, s);
          token_inputs[k] = d.inputs + token * G * H, token_products[k] = d.products + token * G * H;
          token_moments[k] = d.moments + token * moment_count;
          if constexpr (Cell::normalised_state > 0) token_state[k] = d.trail[Cell::normalised_state] + token * H;
        }
      }
    }
    return k;
  }

  // This worker's part of transposing or packing one row for each token.
  __attribute__((noinline)) void transpose_tokens(const Real* const* rows, int64_t tokens, int64_t n, Real* columns, Real* sums) {
    transpose_rows<V>([=](int64_t k) { return rows[k]; }, tokens, n, q.chunk_pitch, share_of(blocks_of<V>(n), seat.rank, seat.size),
                      columns, sums);
  }
  __attribute__((noinline)) void pack_tokens(const Real* const* rows, int64_t tokens, int64_t n, Real* panel) {
    pack_rows<V>([=](int64_t k) { return rows[k]; }, tokens, n, q.chunk_pitch, share_of(blocks_of<V>(n), seat.rank, seat.size), panel,
                 poll);
  }
  FASTRNN_FN void pack_chunk(int64_t tokens) {
    const int64_t slots = Cell::normalised ? Cell::slots.plain : q.dweight[weight_peephole] ? S : S - Cell::slots.vectors;
    transpose_tokens(token_dgates, tokens, slots * H, q.columns, Cell::normalised ? nullptr : q.column_sums);
    if constexpr (Cell::normalised) Norms<Backward>{*this, 0}.add_up(tokens);
    if (!d.tokens && !few) pack_tokens(token_x, tokens, I, q.x_panel);
    if (!few) head ? heads.pack_tokens(token_h_prev, tokens, q.h_panel) : pack_tokens(token_h_prev, tokens, P, q.h_panel);
    if constexpr (Cell::phases == 2)
      head ? heads.pack_tokens(token_inner, tokens, q.inner_panel) : pack_tokens(token_inner, tokens, H, q.inner_panel);
    if constexpr (Cell::projected) transpose_tokens(token_dproj, tokens, P, q.columns + S * H * q.chunk_pitch, nullptr);
  }

  // Rows of a weight gradient: columns [first, first+height) of the chunk's gate gradients times the tokens' rows, which stand
  // in a panel if there are not few.
  __attribute__((noinline)) bool weight_gradient(int64_t first, int64_t height, Real** out, const Real* const* rows, const Real* panel,
                                                 int64_t width, int64_t tokens, bool add) {
    const Range mine = share_of(height, seat.rank, seat.size, wide_rows);
    if (few) return outer_few(column + first + mine.first, rows, tokens, mine.last - mine.first, width, out + mine.first, poll);
    return product_into({panel, nullptr, tokens, width, q.chunk_pitch * N}, column + first + mine.first, mine.last - mine.first,
                        {0, blocks_of<V>(width)}, out + mine.first, add, poll);
  }
  template <int p> FASTRNN_FN bool recurrent_gradient(const Real* const* operand, const Real* panel, int64_t tokens, bool add) {
    constexpr int slot = hidden_slot<Cell>(p), gates = Cell::phase[p].gates;
    Real** const out = dweight_hh + (p == 0 ? 0 : Cell::phase[0].gates) * H;
    if (head) return heads.weight_gradient(slot, gates, out, operand, panel, tokens, add);
    return weight_gradient(slot * H, gates * H, out, operand, panel, P, tokens, add);
  }
  FASTRNN_FN bool weight_gradients(int64_t tokens, bool add) {
    bool done = (d.tokens || weight_gradient(Cell::slots.input * H, G * H, dweight_ih, token_x, q.x_panel, I, tokens, add)) &&
                recurrent_gradient<0>(token_h_prev, q.h_panel, tokens, add);
    if constexpr (Cell::projected) done = done && weight_gradient(S * H, P, dweight_hr, token_inner, q.inner_panel, H, tokens, add);
    else if constexpr (Cell::phases == 2) done = done && recurrent_gradient<1>(token_inner, q.inner_panel, tokens, add);
    return done;
  }
  __attribute__((noinline)) bool input_gradient(int64_t tokens) {
    if (few) return input_gradient_of_few(tokens);
    if (!q.panel_ih) return input_gradient_once(tokens);
    const Range mine = share_of(tokens, seat.rank, seat.size, wide_rows);
    return product_into({q.panel_ih, nullptr, G * H, I, G * H * N}, token_dinput + mine.first, mine.last - mine.first, {0, blocks_of<V>(I)},
                        token_dx + mine.first, false, poll);
  }

  FASTRNN_FN bool input_gradient_of_few(int64_t tokens) {
    const Range mine = columns_of(share_of(blocks_of<V>(I), seat.rank, seat.size), I);
    for (int64_t k = 0; k < tokens && mine.first < mine.last; k++)
      copy_row<Real>(token_dx[k] + mine.first, nullptr, mine.last - mine.first);
    return multiply_few(d.weight[weight_ih], G * H, I, token_dinput, tokens, mine, token_dx, poll);
  }

  // All tokens, a share of the input's blocks, each packed when it is needed.
  FASTRNN_FN bool input_gradient_once(int64_t tokens) {
    constexpr int64_t group = blocks_at_once(1);
    Real* const buffer = q.pack_buffer + seat.rank * group * G * H * N;
    const Range mine = share_of(blocks_of<V>(I), seat.rank, seat.size, group);
    for (int64_t block = mine.first; block < mine.last; block += group) {
      const Range some{block, block + group < mine.last ? block + group : mine.last};
      auto row = [&](int64_t k) { return d.weight[weight_ih] + k * I + block * N; };
      pack_rows<V>(row, G * H, I - block * N, G * H, {0, some.last - some.first}, buffer, poll);
      if (!product_into({buffer, nullptr, G * H, I, G * H * N, block}, token_dinput, tokens, some, token_dx, false, poll)) return false;
    }
    return true;
  }

  // What the padding and the rows of length 0 get; each row by one worker.
  void finish_rows() {
    const Deal mine{seat.rank, seat.size};
    for (int64_t i = 0; i < mine.count(B); i++) {
      const int64_t s = mine.row(i), b = d.schedule.order[s], length = d.schedule.length[s];
      if (!length) {
        copy_row(q.dbefore[0] + b * P, q.dafter[0] ? q.dafter[0] + b * P : nullptr, P);
        for (int k = 1; k < Cell::states; k++) copy_row(q.dbefore[k] + b * H, q.dafter[k] ? q.dafter[k] + b * H : nullptr, H);
      }
      for (int64_t t = length; t < T; t++) {
        if (!q.dx.starts && !d.tokens) copy_row<Real>(q.dx.at(t, b), nullptr, I);
        if (q.hidden.base && !q.hidden.starts) copy_row<Real>(q.hidden.at(t, b), nullptr, P);
      }
    }
    if (seat.rank > 0) return;
    constexpr int input = Cell::normalised ? Cell::slots.plain + Cell::slots.plain_input : Cell::slots.input;
    copy_row(q.dweight[bias_ih], q.dweight[bias_ih] ? (const Real*)q.column_sums + input * H : nullptr, q.dweight[bias_ih] ? G * H : 0);
    if (q.dweight[bias_norm_c]) copy_row(q.dweight[bias_norm_c], (const Real*)q.column_sums + (S - 1) * H, H);
    if (q.dweight[weight_peephole])
      copy_row(q.dweight[weight_peephole], (const Real*)q.column_sums + (S - Cell::slots.vectors) * H, Cell::slots.vectors * H);
    if (q.dweight[bias_hh])
      for (int64_t k = 0; k < G * H; k++) q.dweight[bias_hh][weight_row(0, k)] = q.column_sums[Cell::slots.plain * H + k];
  }

  // The gate gradients of a single step as they are, for who adds up the weights' gradients of many steps.
  __attribute__((noinline)) void hand_over(int64_t tokens) {
    const Range mine = share_of(tokens, seat.rank, seat.size);
    for (int64_t k = mine.first; k < mine.last; k++) copy_row(q.dz + k * S * H, token_dgates[k], S * H);
    input_gradient(tokens);
  }

  void run() {
    pack();
    if (!meet()) return;
    bool add = false;
    int64_t last = T;
    do {  // at least once: without a token the weight gradients are zero
      const int64_t first = last > q.chunk_steps ? last - q.chunk_steps : 0;
      sweep(first, last);
      if constexpr (Cell::noisy)
        if (noise.drops()) noise.drop_tokens(first, last);
      if (!meet()) return;
      const int64_t tokens = list_tokens(first, last);
      if (q.dz) {
        hand_over(tokens);
        meet();
        return finish_rows();
      }
      pack_chunk(tokens);
      if (!meet()) return;
      if (weight_gradients(tokens, add)) d.tokens ? ids.add(tokens) : void(input_gradient(tokens));
      if (!meet()) return;
      add = true;
      last = first;
    } while (last > 0);
    if (d.tokens) ids.finish();
    finish_rows();
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
