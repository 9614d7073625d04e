#include "host/stack.hpp"

#include <cstring>
#include <optional>

#include "host/layout.hpp"
#include "host/plan.hpp"

namespace fastrnn {
namespace {

// The threads of a call and the barriers they meet at.
struct Team {
  Load load;
  HostThreads host;
  Plan alone, wanted;  // the best plans for one thread and for all that may be used
  std::optional<Lease> lease;
  Plan plan{};
  Control control{};
  Barrier all{}, each[2]{};  // where all meet, and those of one direction

  Team(const Load& l, int threads, HostThreads h)
      : load(l), host(h), alone(plan_of(load, 1)), wanted(threads > 1 ? plan_of(load, threads) : alone) {
    take_lease();
  }
  void take_lease() {
    lease.emplace(wanted.teams * wanted.size, alone.microseconds, host);
    make_plan();
  }
  // The threads that the best plan wants may be had or not; with fewer there is another best plan.
  void make_plan() {
    plan = lease->size() == wanted.teams * wanted.size ? wanted : plan_of(load, lease->size());
    all.size = plan.teams * plan.size;
    each[0].size = each[1].size = plan.size;
  }
  Seat seat(int rank) { return {rank % plan.size, plan.size, plan.by_rows, rank == 0, &each[rank / plan.size], &control}; }
  // Directions of this rank: all of them one after the other, or one of two.
  Range directions(int rank, int D) const { return plan.teams == 1 ? Range{0, D} : Range{rank / plan.size, rank / plan.size + 1}; }
};

// Runs a job's workers, its scratch laid out anew where fewer threads come than it was planned for; true: interrupted.
template <class Job> bool run_team(Job& job, Interrupt interrupt) {
  Team& team = job.team;
  team.control = {interrupt.asked, interrupt.context, 0, 0};
  while (!team.lease->run([](void* self, int rank) { static_cast<Job*>(self)->worker(rank); }, &job, team.control)) {
    team.make_plan();
    job.prepare();
  }
  return team.control.stop != 0;
}

}  // namespace

// ---- tape ----------------------------------------------------------------------------------------------------------

template <class Real> Saved<Real, Real> lay_out_tape(const Stack& n, int64_t tokens, bool dropout, Arena& arena) {
  const Kernel<Real>& k = kernel_of<Real>(n);
  return lay_out_tape<Real, Real>(k, n, round_up(n.H, k.lanes), tokens, dropout, arena);
}

// ---- forward -------------------------------------------------------------------------------------------------------

namespace {

// The directions of a call, and what each needs of its scratch.
template <class Real> struct ForwardWork {
  Stack n;
  ForwardCall<Real> call;
  std::vector<Direction<Real>> directions{};  // (L*D)

  void lay_out(const Plan& plan, Arena& arena) {
    const Layers<Real> layers{n, call};
    directions.clear();
    directions.reserve(size_t(n.L * n.D));
    Real* const zeros = arena.take<Real>(layers.zero_row());
    if (zeros) std::memset(zeros, 0, layers.zero_row() * sizeof(Real));
    walk_forward(n, call, call.masks.base, layers.tokens, arena, layers.lie(), [&](int64_t l, const auto& x, const auto& y) {
      for (int side = 0; side < n.D; side++) {
        directions.push_back(layers.direction(l, side, x, y));
        directions.back().zeros = zeros;
        take_forward<Real>(n, plan, layers.tokens, call.frozen, arena, directions.back());
      }
    });
  }
};

}  // namespace

template <class Real> struct ForwardRun<Real>::Job {
  ForwardWork<Real> work;
  const Kernel<Real>& kernel = kernel_of<Real>(work.n);
  void (*const forward)(const Direction<Real>&, const Seat&) = forward_of(work.n, work.call.frozen);
  Team team;
  Memory memory;

  Job(const Stack& n, const ForwardCall<Real>& call, int threads) : work{n, call}, team(load_of<Real>(n, call, false), threads, n.host) {
    prepare();
  }

  void prepare() {
    memory = laid_out([this](Arena& arena) { work.lay_out(team.plan, arena); }, true);
  }

  void again(const ForwardCall<Real>& call) {
    work.call = call;
    const Plan before = team.plan;
    team.take_lease();
    const bool same = before.teams == team.plan.teams && before.size == team.plan.size && before.by_rows == team.plan.by_rows;
    if (!same) {
      Arena count(nullptr);
      work.lay_out(team.plan, count);
      if (count.most() > memory.bytes()) return prepare();
    }
    Arena arena(memory.data());
    work.lay_out(team.plan, arena);
  }

  void worker(int rank) {
    if (rank >= team.all.size) return;
    const Stack& n = work.n;
    const ForwardCall<Real>& call = work.call;
    const Seat seat = team.seat(rank);
    const Range sides = team.directions(rank, n.D);
    for (int64_t l = 0; l < n.L; l++) {
      for (int64_t side = sides.first; side < sides.last; side++) {
        const Direction<Real>& d = work.directions[l * n.D + side];
        if (!call.frozen) {
          kernel.pack(d, seat);
          if (wait(seat)) break;
        }
        forward(d, seat);
      }
      if (wait(team.all, team.control, rank == 0)) return;
      if (!call.masks.base || l + 1 == n.L) continue;
      const Layers<Real> layers{n, call};
      const Rows<Real> from = layers.between(call.saved->outputs[l]), to = layers.between(call.saved->dropped[l]);
      const Rows<const uint8_t> mask = side_of(call.masks, l * call.masks_layer);
      for_each_token(call.batch->schedule(), share_of(layers.tokens, rank, team.all.size),
                     [&](int64_t t, int64_t b) { drop<Real>(from.at(t, b), mask.at(t, b), call.scale, to.at(t, b), layers.width); });
      if (wait(team.all, team.control, rank == 0)) return;
    }
  }
};

template <class Real>
ForwardRun<Real>::ForwardRun(const Stack& n, const ForwardCall<Real>& call, int threads) : job_(new Job(n, call, threads)) {}
template <class Real> ForwardRun<Real>::~ForwardRun() = default;
template <class Real> double ForwardRun<Real>::microseconds() const { return job_->team.alone.microseconds; }
template <class Real> bool ForwardRun<Real>::run(Interrupt interrupt) { return run_team(*job_, interrupt); }
template <class Real> void ForwardRun<Real>::again(const ForwardCall<Real>& call) { job_->again(call); }
template <class Real> int64_t ForwardRun<Real>::bytes() const { return job_->memory.bytes(); }

// ---- backward ------------------------------------------------------------------------------------------------------

namespace {

// The same of the way back, and where the gradients between two layers lie.
template <class Real> struct BackwardWork {
  Stack n;
  BackwardCall<Real> call;
  std::vector<BackwardDirection<Real>> gradients{};    // (L*D)
  std::vector<Rows<Real>> dx{}, dx_reverse{};  // (L) what the two directions of a layer give

  void lay_out(const Plan& plan, Arena& arena) {
    const Layers<Real> layers{n, call.forward};
    gradients.assign(size_t(n.L * n.D), BackwardDirection<Real>{});
    dx.assign(size_t(n.L), Rows<Real>{});
    dx_reverse.assign(size_t(n.L), Rows<Real>{});
    Real* const zeros = arena.take<Real>(layers.zero_row());
    if (zeros) std::memset(zeros, 0, layers.zero_row() * sizeof(Real));
    Real* reverse = n.D == 2 ? arena.take<Real>(times(layers.tokens, n.L > 1 ? std::max(n.I, layers.width) : n.I)) : nullptr;
    walk_backward(n, call, call.dx, call.forward.masks.base, layers.tokens, arena, layers.lie(),
                  [&](int64_t l, const auto& x, const auto& y, const auto& dy, const auto& to) {
                    dx[l] = to;
                    const int64_t I = n.input_size(l);
                    dx_reverse[l] = l == 0 && call.forward.tokens ? Rows<Real>{reverse, I, 0} : layers.by_token(reverse, I);
                    for (int side = 0; side < n.D; side++) {
                      BackwardDirection<Real>& q = gradients[l * n.D + side];
                      q.forward = layers.direction(l, side, x, y);
                      q.forward.zeros = zeros;
                      direction(q, l, side, dy);
                      take_backward<Real>(n, plan, arena, q);
                    }
                  });
  }

  void direction(BackwardDirection<Real>& q, int64_t l, int side, const Rows<const Real>& dy) const {
    const int64_t i = l * n.D + side, B = call.forward.batch->schedule().B;
    const int states = kernel_of<Real>(n).states;
    q.dy = side_of(dy, side * n.P);
    q.dx = side ? dx_reverse[l] : dx[l];
    if (l + 1 == n.L) q.hidden = side_of(call.hidden, side * n.P);
    q.dafter = states_of_side(n, states, call.dafter, i, B);
    q.dbefore = states_of_side(n, states, call.dbefore, i, B);
    q.dweight = call.gradients[i];
    q.dz = call.dz;
  }

  // Adds what the reverse direction gave and undoes dropout, row by row: dx of layer l becomes dy of the layer below.
  void combine(int64_t l, int rank, int workers) {
    if (l == 0 && call.forward.tokens) return combine_distinct(rank, workers);
    const int64_t I = n.input_size(l);
    const Rows<const uint8_t> mask =
        l && call.forward.masks.base ? side_of(call.forward.masks, (l - 1) * call.forward.masks_layer) : Rows<const uint8_t>{};
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
  Team team;
  Memory memory;

  Job(const Stack& n, const BackwardCall<Real>& call, int threads)
      : work{n, call}, team(load_of<Real>(n, call.forward, true), threads, n.host) {
    prepare();
  }

  void prepare() {
    memory = laid_out([this](Arena& arena) { work.lay_out(team.plan, arena); }, true);
  }

  void worker(int rank) {
    if (rank >= team.all.size) return;
    const Stack& n = work.n;
    const Seat seat = team.seat(rank);
    const Range sides = team.directions(rank, n.D);
    for (int64_t l = n.L - 1; l >= 0; l--) {
      for (int64_t side = sides.first; side < sides.last; side++) kernel.backward(work.gradients[l * n.D + side], seat);
      if (wait(team.all, team.control, rank == 0)) return;
      if (n.D == 1 && !(l && work.call.forward.masks.base)) continue;
      work.combine(l, rank, team.all.size);
      if (wait(team.all, team.control, rank == 0)) return;
    }
  }
};

template <class Real>
BackwardRun<Real>::BackwardRun(const Stack& n, const BackwardCall<Real>& call, int threads) : job_(new Job(n, call, threads)) {}
template <class Real> BackwardRun<Real>::~BackwardRun() = default;
template <class Real> double BackwardRun<Real>::microseconds() const { return job_->team.alone.microseconds; }
template <class Real> bool BackwardRun<Real>::run(Interrupt interrupt) { return run_team(*job_, interrupt); }

// ---- sizes ---------------------------------------------------------------------------------------------------------

template <class Real> int64_t scratch_bytes(const Stack& n, const Batch& batch, bool training) {
  const Plan alone{1, 1, true, 0};
  Arena tape(nullptr), forward(nullptr), backward(nullptr);
  const Saved<Real, Real> saved = training ? lay_out_tape<Real>(n, batch.tokens(), false, tape) : Saved<Real, Real>{};
  const std::vector<Parameters<Real>> none(size_t(n.L * n.D), Parameters<Real>{});
  BackwardCall<Real> call{};
  call.forward.batch = &batch;
  call.forward.saved = training ? &saved : nullptr;
  call.gradients = none.data();
  ForwardWork<Real>{n, call.forward}.lay_out(alone, forward);
  if (training) BackwardWork<Real>{n, call}.lay_out(alone, backward);
  return std::max(forward.most(), backward.most());
}

template Saved<float, float> lay_out_tape(const Stack&, int64_t, bool, Arena&);
template Saved<double, double> lay_out_tape(const Stack&, int64_t, bool, Arena&);
template class ForwardRun<float>;
template class ForwardRun<double>;
template class BackwardRun<float>;
template class BackwardRun<double>;
template int64_t scratch_bytes<float>(const Stack&, const Batch&, bool);
template int64_t scratch_bytes<double>(const Stack&, const Batch&, bool);

}  // namespace fastrnn
