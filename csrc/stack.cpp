#include "stack.hpp"

#include <algorithm>
#include <cstring>
#include <optional>

#include "plan.hpp"

namespace fastrnn {

// ---- what a call needs ---------------------------------------------------------------------------------------------

namespace {

template <class Real> const Kernel<Real>& kernel_of(const Network& n) { return *table_of<Real>(*n.isa).cell[int(n.cell)]; }

int64_t round_up(int64_t n, int64_t to) { return plus(n, to - 1) / to * to; }

template <class Real> Load load_of(const Network& n, const ForwardCall<Real>& call, bool backward) {
  const Kernel<Real>& k = kernel_of<Real>(n);
  const int64_t T = call.batch->schedule().T, tokens = call.batch->tokens();
  const double rows = T ? double(tokens) / double(T) : 0;
  const int64_t I = !call.tokens   ? n.I
                    : !call.x.base ? 0
                                   : int64_t(double(n.I) * double(call.tokens->distinct) / double(std::max<int64_t>(tokens, 1)));
  return {k.lanes, k.gates, k.phases, int(sizeof(Real)), I, n.H, n.P, n.L, T, n.D, rows, backward};
}

int64_t projection_steps(int64_t T, int64_t rows, int64_t token_bytes) {
  const int64_t tokens = std::clamp<int64_t>((int64_t(768) << 10) / std::max<int64_t>(token_bytes, 1), 64, 384);
  return std::max<int64_t>(1, std::min(T, tokens / std::max<int64_t>(rows, 1)));
}
// Depends on T and B only: the order of the sums in a weight gradient must not hang on the threads.
int64_t gradient_steps(int64_t T, int64_t B) { return std::max<int64_t>(1, std::min(T, 384 / std::max<int64_t>(B, 1))); }

template <class Real> Panels<Real> take_panels(const Network& n, int64_t I, bool input, bool recurrent, Arena& arena) {
  const Kernel<Real>& k = kernel_of<Real>(n);
  const int64_t h = round_up(n.H, k.lanes), G = k.gates;
  Panels<Real> p{};
  p.bias = arena.take<Real>(times(h, G));
  p.bias_hidden = arena.take<Real>(h);
  if (input) p.ih = arena.take<Real>(times(times(h, G), I));
  if (recurrent) p.hh = arena.take<Real>(times(times(h, G), n.P));
  if (recurrent && k.projected) p.hr = arena.take<Real>(times(round_up(n.P, k.lanes), n.H));
  return p;
}

// Below this many rows packed weights would be read no more often than packing reads them.
constexpr int64_t rows_worth_packing = 5;
// Up to so many tokens backward packs nothing, if the cell has one phase: with AVX2, 32 tokens gain 1.1 to 1.5 by that, one 2 to 4.
constexpr int64_t few_tokens = 32;
// A table of the distinct tokens' projections, read all over, costs more than chunks of them all that are read in order; it
// pays if a token occurs so many times.
constexpr int64_t worth_a_table = 2;
// Packed gates of so many blocks are multiplied at once, at most: gemm.hpp's blocks_at_once.
constexpr int64_t vectors_at_once = 4;

template <class Real>
void take_forward(const Network& n, const Plan& plan, int64_t tokens, bool frozen, Arena& arena, Direction<Real>& d) {
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
    d.room_size = packs && (input_once || recurrent_once) ? times(vectors_at_once * k.lanes, std::max({d.I, n.H, n.P})) : 0;
    if (d.room_size) d.room = arena.take<Real>(times(d.room_size, plan.size));
  }
  const int64_t gate_row = k.gates * k.lanes, chunk_tokens = times(d.chunk_steps, rows);
  if (table) {
    d.table = arena.take<Real>(times(times(h / k.lanes, d.tokens->distinct), gate_row));
  } else {
    d.projection_size = times(times(blocks, chunk_tokens), gate_row);
    d.projection = arena.take<Real>(times(d.projection_size, plan.size));
  }
  d.table_size = plus(times(8, rows), table ? std::max(chunk_tokens, d.tokens->distinct) : chunk_tokens);
  d.tables = arena.take<const void*>(times(d.table_size, plan.size));
  if (!d.training && k.phases == 2) {
    d.inner = arena.take<Real>(times(B, n.H));
    if (k.tape && !k.projected) d.gates = arena.take<Real>(times(times(B, h), k.tape));
  }
}

template <class Real> void take_backward(const Network& n, const Plan& plan, Arena& arena, Gradients<Real>& q) {
  const Kernel<Real>& k = kernel_of<Real>(n);
  Direction<Real>& d = q.forward;
  const int64_t T = d.schedule.T, B = d.schedule.B, N = k.lanes, GH = times(k.gates, n.H), SH = times(k.slots, n.H);
  const int64_t h = round_up(n.H, N), p = round_up(n.P, N), rows = plan.by_rows ? (B + plan.size - 1) / plan.size : B;
  q.chunk_steps = gradient_steps(T, B);
  const int64_t tokens = times(q.chunk_steps, B);
  q.chunk_pitch = round_up(tokens, N) + N;
  const int64_t multiplied = d.tokens ? d.tokens->distinct : times(T, B);
  const bool input_once = multiplied <= tokens && (plan.size == 1 || d.I >= plan.size * vectors_at_once * N);
  const bool few = times(T, B) <= few_tokens && k.phases == 1;
  if (few) q.few = arena.take<Real>(times(B, n.P));
  else if (input_once) q.room = arena.take<Real>(times(times(vectors_at_once * N, GH), plan.size));
  else q.panel_ih = arena.take<Real>(times(round_up(d.I, N), GH));
  if (!few) q.panel_hh = arena.take<Real>(times(p, GH));
  q.dgates = arena.take<Real>(times(plus(tokens, B), SH + 16));
  q.carry = arena.take<Real>(times(B, n.P));
  if (k.has_c) q.dc = arena.take<Real>(times(B, n.H));
  q.columns = arena.take<Real>(times(SH + n.P, q.chunk_pitch));
  if (!few && !q.dz) q.x_panel = arena.take<Real>(times(round_up(d.I, N), q.chunk_pitch));
  if (!few && !q.dz) q.h_panel = arena.take<Real>(times(p, q.chunk_pitch));
  q.column_sums = arena.take<Real>(SH);
  if (d.tokens) q.dtable = arena.take<Real>(times(d.tokens->distinct, GH));
  if (k.phases == 2) q.inner_panel = arena.take<Real>(times(h, q.chunk_pitch));
  if (k.projected) {
    q.panel_hr = arena.take<Real>(times(h, n.P));
    q.dproj = arena.take<Real>(times(plus(tokens, B), n.P));
  }
  d.table_size = plus(plus(times(16, rows), times(7, tokens)), times(2, plus(plus(SH, GH), n.P)));
  d.tables = arena.take<const void*>(times(d.table_size, plan.size));
}

// What both ways of a call share: the layers' inputs and outputs, and the directions as the kernels want them.
template <class Real> struct Layers {
  const Network& n;
  const ForwardCall<Real>& call;
  const int64_t B = call.batch->schedule().B, tokens = call.batch->tokens(), width = n.D * n.P;

  // Rows of so many elements without padding, in the order of the schedule: what lies between two layers.
  Rows<Real> by_token(Real* base, int64_t size) const {
    return {base, 0, size, call.batch->schedule().offset, call.batch->schedule().place};
  }
  Rows<Real> between(Real* base) const { return by_token(base, width); }
  static Rows<const Real> to_read(Rows<Real> r) { return {r.base, r.time, r.batch, r.starts, r.place}; }
  template <class T> static Rows<T> side(Rows<T> r, int64_t offset) {
    if (r.base) r.base += offset;
    return r;
  }

  Direction<Real> direction(int64_t l, int side_index, Rows<const Real> x, Rows<Real> y) const {
    const Kernel<Real>& k = kernel_of<Real>(n);
    const int64_t i = l * n.D + side_index;
    Direction<Real> d{};
    d.schedule = call.batch->schedule();
    d.I = n.input_size(l), d.H = n.H, d.P = n.P;
    d.reverse = side_index == 1;
    d.training = call.saved != nullptr;
    if (call.weights) {
      const Parameters<Real>& w = call.weights[i];
      d.weight_ih = w.weight_ih, d.weight_hh = w.weight_hh, d.weight_hr = w.weight_hr, d.bias_ih = w.bias_ih, d.bias_hh = w.bias_hh;
    }
    if (call.frozen) d.panels = call.frozen[i];
    if (l == 0) d.tokens = call.tokens;
    d.x = x, d.y = side(y, side_index * n.P);
    d.h0 = call.h0 ? call.h0 + i * B * n.P : nullptr;
    d.c0 = call.c0 ? call.c0 + i * B * n.H : nullptr;
    d.hn = call.hn ? call.hn + i * B * n.P : nullptr;
    d.cn = k.has_c && call.cn ? call.cn + i * B * n.H : nullptr;
    if (call.saved) d.gates = call.saved->sides[i].gates, d.c = call.saved->sides[i].c, d.inner = call.saved->sides[i].inner;
    return d;
  }
  int64_t zero_row() const { return std::max({n.I, width, n.H, times(kernel_of<Real>(n).slots, n.H)}) + 16; }
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

// The threads of a call and the barriers they meet at.
struct Crew {
  Load load;
  HostThreads host;
  Plan alone, wanted;  // the best plans for one thread and for all that may be used
  std::optional<Gang> gang;
  Plan plan{};
  Control control{};
  Barrier all{}, team[2]{};

  Crew(const Load& l, int threads, HostThreads h)
      : load(l), host(h), alone(plan_of(load, 1)), wanted(threads > 1 ? plan_of(load, threads) : alone) {
    lease();
  }
  void lease() {
    gang.emplace(wanted.teams * wanted.size, alone.microseconds, host);
    make_plan();
  }
  // The threads that the best plan wants may be had or not; with fewer there is another best plan.
  void make_plan() {
    plan = gang->size() == wanted.teams * wanted.size ? wanted : plan_of(load, gang->size());
    all.size = plan.teams * plan.size;
    team[0].size = team[1].size = plan.size;
  }
  Team place(int rank) { return {rank % plan.size, plan.size, plan.by_rows, rank == 0, &team[rank / plan.size], &control}; }
  // Directions of this rank: all of them one after the other, or its team's only.
  Range directions(int rank, int D) const { return plan.teams == 1 ? Range{0, D} : Range{rank / plan.size, rank / plan.size + 1}; }
};

// Runs a job's workers, its scratch laid out anew where fewer threads come than it was planned for; true: interrupted.
template <class Job> bool run_crew(Job& job, Interrupt interrupt) {
  Crew& crew = job.crew;
  crew.control = {interrupt.asked, interrupt.context, 0, 0};
  while (!crew.gang->run([](void* self, int rank) { static_cast<Job*>(self)->worker(rank); }, &job, crew.control)) {
    crew.make_plan();
    job.prepare();
  }
  return crew.control.stop != 0;
}

}  // namespace

// ---- tape ----------------------------------------------------------------------------------------------------------

template <class Real> Saved<Real> lay_out_tape(const Network& n, const Batch& batch, bool dropout, Arena& arena) {
  const Kernel<Real>& k = kernel_of<Real>(n);
  const int64_t tokens = batch.tokens(), h = round_up(n.H, k.lanes);
  const int64_t output = times(tokens, times(n.D, n.P));
  Saved<Real> saved;
  for (int64_t i = 0; i < n.L * n.D; i++)
    saved.sides.push_back({k.tape ? arena.take<Real>(times(times(tokens, h), k.tape)) : nullptr,
                           k.has_c ? arena.take<Real>(times(tokens, n.H)) : nullptr,
                           k.phases == 2 ? arena.take<Real>(times(tokens, n.H)) : nullptr});
  for (int64_t l = 0; l + 1 < n.L; l++) {
    saved.outputs.push_back(arena.take<Real>(output));
    saved.dropped.push_back(dropout ? arena.take<Real>(output) : nullptr);
  }
  return saved;
}

// ---- forward -------------------------------------------------------------------------------------------------------

namespace {

// The directions of a call, and what each needs of its scratch.
template <class Real> struct ForwardWork {
  Network n;
  ForwardCall<Real> call;
  std::vector<Direction<Real>> directions{};  // (L*D)

  void lay_out(const Plan& plan, Arena& arena) {
    const Layers<Real> layers{n, call};
    directions.clear();
    directions.reserve(size_t(n.L * n.D));
    Real* const zeros = arena.take<Real>(layers.zero_row());
    if (zeros) std::memset(zeros, 0, layers.zero_row() * sizeof(Real));
    Real* between[2] = {};
    if (!call.saved)
      for (int i = 0; i < std::min<int64_t>(n.L - 1, 2); i++) between[i] = arena.take<Real>(times(layers.tokens, layers.width));
    const int64_t mark = arena.mark();
    Rows<const Real> x = call.x;
    for (int64_t l = 0; l < n.L; l++) {
      arena.back_to(mark);
      Rows<Real> y = call.y;
      if (l + 1 < n.L) y = layers.between(call.saved ? call.saved->outputs[l] : between[l % 2]);
      for (int side = 0; side < n.D; side++) {
        directions.push_back(layers.direction(l, side, x, y));
        directions.back().zeros = zeros;
        take_forward<Real>(n, plan, call.batch->tokens(), call.frozen, arena, directions.back());
      }
      if (l + 1 < n.L) x = Layers<Real>::to_read(call.masks.base ? layers.between(call.saved->dropped[l]) : y);
    }
  }
};

}  // namespace

template <class Real> struct ForwardRun<Real>::Job {
  ForwardWork<Real> work;
  const Kernel<Real>& kernel = kernel_of<Real>(work.n);
  Crew crew;
  Memory memory;

  Job(const Network& n, const ForwardCall<Real>& call, int threads) : work{n, call}, crew(load_of<Real>(n, call, false), threads, n.host) {
    prepare();
  }

  void prepare() {
    memory = laid_out([this](Arena& arena) { work.lay_out(crew.plan, arena); }, true);
  }

  void again(const ForwardCall<Real>& call) {
    work.call = call;
    const Plan before = crew.plan;
    crew.lease();
    const bool same = before.teams == crew.plan.teams && before.size == crew.plan.size && before.by_rows == crew.plan.by_rows;
    if (!same) {
      Arena count(nullptr);
      work.lay_out(crew.plan, count);
      if (count.most() > memory.bytes()) return prepare();
    }
    Arena arena(memory.data());
    work.lay_out(crew.plan, arena);
  }

  void worker(int rank) {
    if (rank >= crew.all.size) return;
    const Network& n = work.n;
    const ForwardCall<Real>& call = work.call;
    const Team team = crew.place(rank);
    const Range sides = crew.directions(rank, n.D);
    for (int64_t l = 0; l < n.L; l++) {
      for (int64_t side = sides.first; side < sides.last; side++) {
        const Direction<Real>& d = work.directions[l * n.D + side];
        if (!call.frozen) {
          kernel.pack(d, team);
          if (wait(team)) break;
        }
        kernel.forward(d, team);
      }
      if (wait(crew.all, crew.control, rank == 0)) return;
      if (!call.masks.base || l + 1 == n.L) continue;
      const Layers<Real> layers{n, call};
      const Rows<Real> from = layers.between(call.saved->outputs[l]), to = layers.between(call.saved->dropped[l]);
      const Rows<const uint8_t> mask = Layers<Real>::side(call.masks, l * call.masks_layer);
      for_each_token(call.batch->schedule(), share_of(layers.tokens, rank, crew.all.size),
                     [&](int64_t t, int64_t b) { drop<Real>(from.at(t, b), mask.at(t, b), call.scale, to.at(t, b), layers.width); });
      if (wait(crew.all, crew.control, rank == 0)) return;
    }
  }
};

template <class Real>
ForwardRun<Real>::ForwardRun(const Network& n, const ForwardCall<Real>& call, int threads) : job_(new Job(n, call, threads)) {}
template <class Real> ForwardRun<Real>::~ForwardRun() = default;
template <class Real> double ForwardRun<Real>::microseconds() const { return job_->crew.alone.microseconds; }
template <class Real> bool ForwardRun<Real>::run(Interrupt interrupt) { return run_crew(*job_, interrupt); }
template <class Real> void ForwardRun<Real>::again(const ForwardCall<Real>& call) { job_->again(call); }
template <class Real> int64_t ForwardRun<Real>::bytes() const { return job_->memory.bytes(); }

// ---- backward ------------------------------------------------------------------------------------------------------

namespace {

// The same of the way back, and where the gradients between two layers lie.
template <class Real> struct BackwardWork {
  Network n;
  BackwardCall<Real> call;
  std::vector<Gradients<Real>> gradients{};    // (L*D)
  std::vector<Rows<Real>> dx{}, dx_reverse{};  // (L) what the two directions of a layer give

  void lay_out(const Plan& plan, Arena& arena) {
    const Layers<Real> layers{n, call.forward};
    const int64_t B = layers.B;
    gradients.assign(size_t(n.L * n.D), Gradients<Real>{});
    dx.assign(size_t(n.L), Rows<Real>{});
    dx_reverse.assign(size_t(n.L), Rows<Real>{});
    Real* const zeros = arena.take<Real>(layers.zero_row());
    if (zeros) std::memset(zeros, 0, layers.zero_row() * sizeof(Real));
    Real* between[2] = {};
    for (int i = 0; i < std::min<int64_t>(n.L - 1, 2); i++) between[i] = arena.take<Real>(times(layers.tokens, layers.width));
    Real* reverse = n.D == 2 ? arena.take<Real>(times(layers.tokens, n.L > 1 ? std::max(n.I, layers.width) : n.I)) : nullptr;
    const int64_t mark = arena.mark();
    for (int64_t l = n.L - 1; l >= 0; l--) {
      arena.back_to(mark);
      const int64_t I = n.input_size(l);
      dx[l] = l ? layers.between(between[(l - 1) % 2]) : call.dx;
      dx_reverse[l] = l == 0 && call.forward.tokens ? Rows<Real>{reverse, I, 0} : layers.by_token(reverse, I);
      const Saved<Real>& saved = *call.forward.saved;
      const Rows<const Real> x =
          l ? Layers<Real>::to_read(layers.between(call.forward.masks.base ? saved.dropped[l - 1] : saved.outputs[l - 1])) : call.forward.x;
      const Rows<Real> y = l + 1 < n.L ? layers.between(saved.outputs[l]) : call.forward.y;
      const Rows<const Real> dy = l + 1 < n.L ? Layers<Real>::to_read(dx[l + 1]) : call.dy;
      for (int side = 0; side < n.D; side++) {
        const int64_t i = l * n.D + side;
        Gradients<Real>& q = gradients[i];
        q.forward = layers.direction(l, side, x, y);
        q.forward.zeros = zeros;
        q.dy = Layers<Real>::side(dy, side * n.P);
        q.dx = side ? dx_reverse[l] : dx[l];
        if (l + 1 == n.L) q.hidden = Layers<Real>::side(call.hidden, side * n.P);
        q.dhn = call.dhn ? call.dhn + i * B * n.P : nullptr;
        q.dcn = call.dcn ? call.dcn + i * B * n.H : nullptr;
        q.dh0 = call.dh0 ? call.dh0 + i * B * n.P : nullptr;
        q.dc0 = call.dc0 ? call.dc0 + i * B * n.H : nullptr;
        const Parameters<Real>& g = call.gradients[i];
        q.dweight_ih = const_cast<Real*>(g.weight_ih), q.dweight_hh = const_cast<Real*>(g.weight_hh);
        q.dweight_hr = const_cast<Real*>(g.weight_hr);
        q.dbias_ih = const_cast<Real*>(g.bias_ih), q.dbias_hh = const_cast<Real*>(g.bias_hh);
        q.dz = call.dz;
        take_backward<Real>(n, plan, arena, q);
      }
    }
  }

  // Adds what the reverse direction gave and undoes dropout, row by row: dx of layer l becomes dy of the layer below.
  void combine(int64_t l, int rank, int workers) {
    if (l == 0 && call.forward.tokens) return combine_distinct(rank, workers);
    const int64_t I = n.input_size(l);
    const Rows<const uint8_t> mask =
        l && call.forward.masks.base ? Layers<Real>::side(call.forward.masks, (l - 1) * call.forward.masks_layer) : Rows<const uint8_t>{};
    const Range mine = share_of(call.forward.batch->tokens(), rank, workers);
    for_each_token(call.forward.batch->schedule(), mine, [&](int64_t t, int64_t b) {
      Real* const to = dx[l].at(t, b);
      if (n.D == 2) {
        const Real* other = dx_reverse[l].at(t, b);
        for (int64_t i = 0; i < I; i++) to[i] += other[i];
      }
      if (mask.base) drop<Real>(to, mask.at(t, b), call.forward.scale, to, I);
    });
  }

  void combine_distinct(int rank, int workers) {
    const Range mine = share_of(call.dx.base ? call.forward.tokens->distinct : 0, rank, workers);
    for (int64_t u = mine.first; u < mine.last; u++)
      for (int64_t i = 0; i < n.I; i++) dx[0].at(u, 0)[i] += dx_reverse[0].at(u, 0)[i];
  }
};

}  // namespace

template <class Real> struct BackwardRun<Real>::Job {
  BackwardWork<Real> work;
  const Kernel<Real>& kernel = kernel_of<Real>(work.n);
  Crew crew;
  Memory memory;

  Job(const Network& n, const BackwardCall<Real>& call, int threads)
      : work{n, call}, crew(load_of<Real>(n, call.forward, true), threads, n.host) {
    prepare();
  }

  void prepare() {
    memory = laid_out([this](Arena& arena) { work.lay_out(crew.plan, arena); }, true);
  }

  void worker(int rank) {
    if (rank >= crew.all.size) return;
    const Network& n = work.n;
    const Team team = crew.place(rank);
    const Range sides = crew.directions(rank, n.D);
    for (int64_t l = n.L - 1; l >= 0; l--) {
      for (int64_t side = sides.first; side < sides.last; side++) kernel.backward(work.gradients[l * n.D + side], team);
      if (wait(crew.all, crew.control, rank == 0)) return;
      if (n.D == 1 && !(l && work.call.forward.masks.base)) continue;
      work.combine(l, rank, crew.all.size);
      if (wait(crew.all, crew.control, rank == 0)) return;
    }
  }
};

template <class Real>
BackwardRun<Real>::BackwardRun(const Network& n, const BackwardCall<Real>& call, int threads) : job_(new Job(n, call, threads)) {}
template <class Real> BackwardRun<Real>::~BackwardRun() = default;
template <class Real> double BackwardRun<Real>::microseconds() const { return job_->crew.alone.microseconds; }
template <class Real> bool BackwardRun<Real>::run(Interrupt interrupt) { return run_crew(*job_, interrupt); }

// ---- frozen weights, sizes -----------------------------------------------------------------------------------------

template <class Real> FrozenWeights<Real>::FrozenWeights(const Network& n, const Parameters<Real>* weights) {
  auto lay_out = [&](Arena& arena) {
    panels_.clear();
    for (int64_t i = 0; i < n.L * n.D; i++) panels_.push_back(take_panels<Real>(n, n.input_size(i / n.D), true, true, arena));
  };
  memory_ = laid_out(lay_out, false);
  Control control{};
  Barrier alone{};
  alone.size = 1;
  const Team team{0, 1, true, false, &alone, &control};
  for (int64_t i = 0; i < n.L * n.D; i++) {
    Direction<Real> d{};
    d.I = n.input_size(i / n.D), d.H = n.H, d.P = n.P;
    d.weight_ih = weights[i].weight_ih, d.weight_hh = weights[i].weight_hh, d.weight_hr = weights[i].weight_hr;
    d.bias_ih = weights[i].bias_ih, d.bias_hh = weights[i].bias_hh;
    d.panels = panels_[i];
    kernel_of<Real>(n).pack(d, team);
  }
}

template <class Real> int64_t scratch_bytes(const Network& n, const Batch& batch, bool training) {
  const Plan alone{1, 1, true, 0};
  Arena tape(nullptr), forward(nullptr), backward(nullptr);
  const Saved<Real> saved = training ? lay_out_tape<Real>(n, batch, false, tape) : Saved<Real>{};
  const std::vector<Parameters<Real>> none(size_t(n.L * n.D), Parameters<Real>{});
  BackwardCall<Real> call{};
  call.forward.batch = &batch;
  call.forward.saved = training ? &saved : nullptr;
  call.gradients = none.data();
  ForwardWork<Real>{n, call.forward}.lay_out(alone, forward);
  if (training) BackwardWork<Real>{n, call}.lay_out(alone, backward);
  return std::max(forward.most(), backward.most());
}

template Saved<float> lay_out_tape(const Network&, const Batch&, bool, Arena&);
template Saved<double> lay_out_tape(const Network&, const Batch&, bool, Arena&);
template class ForwardRun<float>;
template class ForwardRun<double>;
template class BackwardRun<float>;
template class BackwardRun<double>;
template class FrozenWeights<float>;
template class FrozenWeights<double>;
template int64_t scratch_bytes<float>(const Network&, const Batch&, bool);
template int64_t scratch_bytes<double>(const Network&, const Batch&, bool);

}  // namespace fastrnn
