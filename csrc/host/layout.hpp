// Part of stack.cpp and frozen.cpp: what a call needs of scratch, and its directions as the kernels want them.
#pragma once
#include <algorithm>

#include "host/narrow.hpp"
#include "host/plan.hpp"
#include "host/stack.hpp"

namespace fastrnn {

namespace {

template <class Real> const Kernel<Real>& kernel_of(const Stack& n) { return *table_of<Real>(*n.isa).cell[int(n.cell)]; }

// The kernel that runs a forward call; frozen: the call's packed weights, whose format does not change, or null.
template <class Real> auto forward_of(const Stack& n, const Panels<Real>* frozen) {
  if constexpr (sizeof(Real) == sizeof(float))
    if (frozen && frozen->narrow) return n.isa->narrow->forward[int(n.cell)];
  return kernel_of<Real>(n).forward;
}

int64_t round_up(int64_t n, int64_t to) { return plus(n, to - 1) / to * to; }

template <class Real> Load load_of(const Stack& n, const ForwardCall<Real>& call, bool backward) {
  const Kernel<Real>& k = kernel_of<Real>(n);
  const int64_t T = call.batch->schedule().T, tokens = call.batch->tokens();
  const double rows = T ? double(tokens) / double(T) : 0;
  const int64_t I = !call.tokens   ? n.I
                    : !call.x.base ? 0
                                   : int64_t(double(n.I) * double(call.tokens->distinct) / double(std::max<int64_t>(tokens, 1)));
  const NarrowProducts* const narrow = call.frozen ? call.frozen->narrow : nullptr;
  const Format format = narrow ? call.frozen->narrow_hh[0].format : Format{};
  const int bytes = !narrow ? int(sizeof(Real)) : format == Format::int8 ? 1 : 2, speed = narrow ? narrow->speed[int(format)] : 1;
  return {k.lanes, k.gates, k.phases + k.norms, bytes, speed, I, n.H, n.P, n.heads, n.L, T, n.D, rows, backward};
}

inline int64_t projection_steps(int64_t T, int64_t rows, int64_t token_bytes) {
  const int64_t tokens = std::clamp<int64_t>((int64_t(768) << 10) / std::max<int64_t>(token_bytes, 1), 64, 384);
  return std::max<int64_t>(1, std::min(T, tokens / std::max<int64_t>(rows, 1)));
}
// Depends on T and B only: the order of the sums in a weight gradient must not hang on the threads.
// A normalised cell keeps three times as much of a token.
inline int64_t gradient_steps(int64_t T, int64_t B, bool normalised) {
  return std::max<int64_t>(1, std::min(T, (normalised ? 128 : 384) / std::max<int64_t>(B, 1)));
}

inline NarrowPanel take_narrow(Format format, int64_t K, int64_t units, int gates, int lanes, Arena& arena) {
  const NarrowSizes sizes = narrow_sizes(format, K, units, gates, lanes);
  NarrowPanel p{format, arena.take<char>(sizes.data), nullptr, nullptr};
  if (sizes.numbers) p.scale = arena.take<float>(sizes.numbers), p.offset = arena.take<int32_t>(sizes.numbers);
  return p;
}
// Beside those of take_panels, which are then none but the biases and the like.
template <class Real> void take_narrow_panels(const Stack& n, int64_t I, const NarrowFormats& formats, Arena& arena, Panels<Real>& p) {
  const Kernel<Real>& k = kernel_of<Real>(n);
  p.narrow = formats.products;
  p.narrow_ih = take_narrow(formats.ih, I, n.H, k.gates, k.lanes, arena);
  p.narrow_hh[0] = take_narrow(formats.hh, n.P, n.H, k.first_gates, k.lanes, arena);
  if (k.projected) p.narrow_hh[1] = take_narrow(formats.hh, n.H, n.P, 1, k.lanes, arena);
  else if (k.phases == 2) p.narrow_hh[1] = take_narrow(formats.hh, n.P, n.H, k.gates - k.first_gates, k.lanes, arena);
}

// counts: of each matrix what the integers of its rows count, or null.
inline void pack_narrow_panels(const Stack& n, const Direction<float>& d, const Parameters<const float>& counts) {
  const Kernel<float>& k = kernel_of<float>(n);
  auto pack = [&](const NarrowPanel& p, Parameter which, int64_t row, int64_t K, int64_t units, int gates) {
    pack_narrow(p.format, d.weight[which] + row * K, counts[which] ? counts[which] + row : nullptr, K, units, gates, k.lanes,
                const_cast<char*>(p.data), const_cast<float*>(p.scale), const_cast<int32_t*>(p.offset));
  };
  pack(d.panels.narrow_ih, weight_ih, 0, d.I, n.H, k.gates);
  pack(d.panels.narrow_hh[0], weight_hh, 0, n.P, n.H, k.first_gates);
  if (k.projected) pack(d.panels.narrow_hh[1], weight_hr, 0, n.H, n.P, 1);
  else if (k.phases == 2) pack(d.panels.narrow_hh[1], weight_hh, k.first_gates * n.H, n.P, n.H, k.gates - k.first_gates);
}

template <class Real> Panels<Real> take_panels(const Stack& n, int64_t I, bool input, bool recurrent, Arena& arena) {
  const Kernel<Real>& k = kernel_of<Real>(n);
  const int64_t h = round_up(n.H, k.lanes), G = k.gates;
  Panels<Real> p{};
  p.bias = arena.take<Real>(times(h, G));
  p.bias_hidden = arena.take<Real>(h);
  if (k.vectors) p.vectors = arena.take<Real>(times(h, k.vectors));
  if (input) p.ih = arena.take<Real>(times(times(h, G), I));
  if (recurrent) p.hh = arena.take<Real>(times(times(h, G), n.columns_hh(k.lanes)));
  if (recurrent && k.projected) p.hr = arena.take<Real>(times(round_up(n.P, k.lanes), n.H));
  return p;
}

// Below this many rows packed weights would be read no more often than packing reads them.
constexpr int64_t rows_worth_packing = 5;
// Up to so many tokens backward packs nothing, if the cell has one phase: with AVX2, 32 tokens gain 1.1 to 1.5 by that, one 2 to 4.
constexpr int64_t few_tokens = 32;
// Projecting only the distinct ids saves products, but its result is read at random: worth it where each id occurs at least this
// often on average.
constexpr int64_t worth_a_table = 2;
// Packed gates of so many blocks are multiplied at once, at most: gemm.hpp's blocks_at_once.
constexpr int64_t vectors_at_once = 4;

template <class Real>
void take_forward(const Stack& n, const Plan& plan, int64_t tokens, bool frozen, Arena& arena, Direction<Real>& d) {
  const Kernel<Real>& k = kernel_of<Real>(n);
  const int64_t T = d.schedule.T, B = d.schedule.B, h = round_up(n.H, k.lanes);
  const int64_t rows = plan.by_rows ? (B + plan.size - 1) / plan.size : B;
  const int64_t blocks = plan.by_rows ? h / k.lanes : (h / k.lanes + plan.size - 1) / plan.size;
  d.chunk_steps = projection_steps(T, rows, h * k.gates * int64_t(sizeof(Real)));
  const bool one_hot = d.tokens && !d.x.base, table = one_hot || (d.tokens && worth_a_table * d.tokens->distinct <= tokens);
  if (!frozen) {
    // A matrix that its one reader uses once needs no panel of its own.
    const bool packs = tokens >= rows_worth_packing, shared = plan.by_rows && plan.size > 1;
    const bool input_once = !one_hot && (table || (!shared && d.chunk_steps >= T)), recurrent_once = !shared && T == 1;
    d.panels = take_panels<Real>(n, d.I, one_hot || (packs && !input_once), packs && !recurrent_once, arena);
    d.pack_buffer_size = packs && (input_once || recurrent_once) ? times(vectors_at_once * k.lanes, std::max({d.I, n.H, n.P})) : 0;
    if (d.pack_buffer_size) d.pack_buffer = arena.take<Real>(times(d.pack_buffer_size, plan.size));
  }
  const int64_t gate_row = k.gates * k.lanes, chunk_tokens = times(d.chunk_steps, rows);
  if (table) {
    d.token_projection = arena.take<Real>(times(times(h / k.lanes, d.tokens->distinct), gate_row));
  } else {
    d.projection_size = times(times(blocks, chunk_tokens), gate_row);
    d.projection = arena.take<Real>(times(d.projection_size, plan.size));
  }
  d.row_pointer_count = plus(times(4 + 2 * k.states, rows), table ? std::max(chunk_tokens, d.tokens->distinct) : chunk_tokens);
  if (d.noise.kept.base) {
    d.row_pointer_count = plus(d.row_pointer_count, rows);
    d.dropped_size = times(rows, n.P);
    d.dropped = arena.take<Real>(times(d.dropped_size, plan.size));
  }
  d.row_pointers = arena.take<const void*>(times(d.row_pointer_count, plan.size));
  if (d.panels.narrow) {
    const int64_t row = std::max(narrow_row(d.panels.narrow_ih.format, d.I), narrow_row(d.panels.narrow_hh[0].format, std::max(n.H, n.P)));
    d.narrow_room_size = plus(sizeof(NarrowRoom), times(narrow_rows, row));
    d.narrow_room = arena.take<char>(times(d.narrow_room_size, plan.size));
  }
  if (!d.training && k.norms) d.products = arena.take<Real>(times(B, times(k.gates, n.H)));
  if (!d.training && k.norms == 2) d.gates = arena.take<Real>(times(times(B, h), k.tape));
  if (!d.training && k.phases == 2) {
    d.inner = arena.take<Real>(times(B, n.H));
    if (k.tape && !k.projected) d.gates = arena.take<Real>(times(times(B, h), k.tape));
  }
}

template <class Real> void take_backward(const Stack& n, const Plan& plan, Arena& arena, BackwardDirection<Real>& q) {
  const Kernel<Real>& k = kernel_of<Real>(n);
  Direction<Real>& d = q.forward;
  const int64_t T = d.schedule.T, B = d.schedule.B, N = k.lanes, GH = times(k.gates, n.H), SH = times(k.slots.count, n.H);
  const int64_t h = round_up(n.H, N), p = round_up(n.P, N), of_heads = times(n.heads, round_up(n.P / n.heads, N));
  const int64_t rows = plan.by_rows ? (B + plan.size - 1) / plan.size : B;
  q.chunk_steps = gradient_steps(T, B, k.norms > 0);
  const int64_t tokens = times(q.chunk_steps, B);
  q.chunk_pitch = round_up(tokens, N) + N;
  const int64_t multiplied = d.tokens ? d.tokens->distinct : times(T, B);
  const bool input_once = multiplied <= tokens && (plan.size == 1 || d.I >= plan.size * vectors_at_once * N);
  const bool few = times(T, B) <= few_tokens && k.phases == 1;
  if (few || n.heads > 1 || d.noise.kept.base) q.few = arena.take<Real>(times(B, n.P));
  if (d.noise.kept.base) q.dropped = arena.take<Real>(times(tokens, n.P));
  if (!few && input_once) q.pack_buffer = arena.take<Real>(times(times(vectors_at_once * N, GH), plan.size));
  else if (!few) q.panel_ih = arena.take<Real>(times(round_up(d.I, N), GH));
  if (!few) q.panel_hh = arena.take<Real>(times(p, n.heads > 1 ? times(k.gates, n.columns_hh(k.lanes)) : GH));
  q.dgates = arena.take<Real>(times(plus(tokens, B), SH + 16));
  q.carry = arena.take<Real>(times(B, n.P));
  for (int i = 1; i < k.states; i++) q.drunning[i] = arena.take<Real>(times(B, n.H));
  q.columns = arena.take<Real>(times((k.norms ? times(k.slots.plain, n.H) : SH) + n.P, q.chunk_pitch));
  if (!few && !q.dz) q.x_panel = arena.take<Real>(times(round_up(d.I, N), q.chunk_pitch));
  if (!few && !q.dz) q.h_panel = arena.take<Real>(times(of_heads, q.chunk_pitch));
  q.column_sums = arena.take<Real>(SH);
  if (d.tokens) q.dtable = arena.take<Real>(times(d.tokens->distinct, GH));
  if (k.phases == 2) q.inner_panel = arena.take<Real>(times(std::max(h, of_heads), q.chunk_pitch));
  if (k.projected) {
    q.panel_hr = arena.take<Real>(times(h, n.P));
    q.dproj = arena.take<Real>(times(plus(tokens, B), n.P));
  }
  d.row_pointer_count = plus(plus(times(14 + 3 * k.states, rows), times(k.norms ? 10 : 8, tokens)), times(2, plus(plus(SH, GH), n.P)));
  d.row_pointers = arena.take<const void*>(times(d.row_pointer_count, plan.size));
}

// What both ways of a call share: the layers' inputs and outputs, and the directions as the kernels want them.
template <class Real> struct Layers {
  const Stack& n;
  const ForwardCall<Real>& call;
  const int64_t B = call.batch->schedule().B, tokens = call.batch->tokens(), width = n.D * n.P;

  // Rows of so many elements without padding, in the order of the schedule: what lies between two layers.
  Rows<Real> by_token(Real* base, int64_t size) const {
    return {base, 0, size, call.batch->schedule().offset, call.batch->schedule().place};
  }
  Rows<Real> between(Real* base) const { return by_token(base, width); }
  auto lie() const {
    return [this](Real* base) { return between(base); };
  }

  Direction<Real> direction(int64_t l, int side_index, Rows<const Real> x, Rows<Real> y) const {
    const Kernel<Real>& k = kernel_of<Real>(n);
    const int64_t i = l * n.D + side_index;
    Direction<Real> d{};
    d.schedule = call.batch->schedule();
    d.I = n.input_size(l), d.H = n.H, d.P = n.P, d.heads = n.heads;
    d.reverse = side_index == 1;
    d.options = n.options[side_index];
    d.noise = call.noise.of(i);
    d.training = call.saved != nullptr;
    if (call.weights) d.weight = call.weights[i];
    if (call.frozen) d.panels = call.frozen[i];
    if (l == 0) d.tokens = call.tokens;
    d.x = x, d.y = side_of(y, side_index * n.P);
    d.before = states_of_side(n, k.states, call.before, i, B), d.after = states_of_side(n, k.states, call.after, i, B);
    if (!call.saved) return d;
    const auto& saved = call.saved->sides[size_t(i)];
    d.gates = saved.gates, d.trail = saved.trail, d.inner = saved.inner;
    d.products = saved.products, d.inputs = saved.inputs, d.moments = saved.moments;
    return d;
  }
  int64_t zero_row() const { return std::max({n.I, width, n.H, times(kernel_of<Real>(n).slots.count, n.H)}) + 16; }
};

// A row of what dropout may zero: kept elements scaled, the others zero whatever they held.
template <class Real> void drop(const Real* from, const uint8_t* mask, Real scale, Real* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) to[i] = mask[i] ? from[i] * scale : Real(0);
}

// f(t, b) for each token of a range, in the order of the schedule.
template <class F> void for_each_token(const Schedule& schedule, Range tokens, F f) {
  int64_t t = std::upper_bound(schedule.offset, schedule.offset + schedule.T, tokens.first) - schedule.offset - 1;
  for (int64_t token = tokens.first; token < tokens.last; t++)
    for (int64_t s = token - schedule.offset[t]; s < schedule.active[t] && token < tokens.last; s++, token++) f(t, schedule.order[s]);
}

}  // namespace
}  // namespace fastrnn
