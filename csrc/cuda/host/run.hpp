// Part of stack.cpp: what the two ways of a call share.
#pragma once
#include <algorithm>

#include "cuda/host/stack.hpp"

namespace fastrnn::cuda {
namespace {

template <class T> constexpr int64_t piece = 16 / int64_t(sizeof(T));
template <class T> int64_t padded(int64_t n) { return plus(n, piece<T> - 1) / piece<T> * piece<T>; }
bool whole(const void* p) { return uintptr_t(p) % 16 == 0; }

template <class T> Rows<T> contiguous(T* base, int64_t B, int64_t n) { return {base, B * n, n}; }

// What both ways of a call share: the rows of all layers, and the small steps between the kernels.
template <class K> struct Run {
  using Store = typename K::Store;
  using Real = typename K::Real;
  const K& k;
  const Network& n;
  const Gpu& gpu;
  const ForwardCall<Store, Real>& call;
  Arena& arena;
  cudaStream_t stream;
  const bool runs = arena.deals();
  const CellKernels<Store, Real>& cell = k.cell[int(n.cell)];
  const Sequences& sequences = call.sequences;
  const int64_t T = sequences.T, B = sequences.B, H = n.H, P = n.P, width = n.D * n.P, tokens = times(T, B);
  const int64_t GH = times(cell.gates, H), SH = times(cell.gradients, H), columns_hh = P / n.heads;
  char* workspace = nullptr;

  void copy(void* to, const void* from, int64_t bytes) {
    if (!runs || !bytes) return;
    if (from) check(cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
    else zero(to, bytes);
  }
  void zero(void* to, int64_t bytes) {
    if (runs && bytes) check(cudaMemsetAsync(to, 0, size_t(bytes), stream), "cudaMemsetAsync");
  }

  // C (n,m) = A B with C of Store, or of Real if it is 'wide'.
  void multiply(const MatrixProduct<Store>& p, void* c, bool wide) {
    if (!runs) return;
    if (gpu.blas && p.n && p.K && p.m && gpu.blas->multiply(p, c, wide, n.precision, workspace, workspace_bytes, stream)) return;
    const int shares = product_shares(p.n, p.K, p.m, times(times(p.n, p.m), sizeof(Real)), gpu.processors);
    k.product(p, c, wide, shares, reinterpret_cast<Real*>(workspace), stream);
  }

  auto lie() const {
    return [this](Store* base) { return contiguous(base, B, width); };
  }

  // Rows of some tokens as one matrix; copied to 'room' if they are not that, or hold what must not count.
  struct Matrix {
    const Store* base;
    int64_t pitch;
  };
  int64_t pitch_of(const Rows<const Store>& rows) const { return B == 1 ? rows.time : rows.batch; }
  bool is_matrix(const Rows<const Store>& rows, int64_t size) const {
    return !rows.starts && pitch_of(rows) >= size && (T == 1 || B == 1 || rows.time == B * rows.batch);
  }
  Matrix matrix(const Rows<const Store>& rows, int64_t size, bool clean, Store* room, int64_t first, int64_t count) {
    if (is_matrix(rows, size) && !(clean && sequences.length)) return {rows.base + first * pitch_of(rows), pitch_of(rows)};
    if (runs) k.gather(sequences, rows, room, size, first, count, stream);
    return {room, size};
  }

  template <class T> States<T> states_of(const States<T>& all, int64_t i) const { return states_of_side(n, cell.states, all, i, B); }
  void start(const States<Real>& to, const States<const Real>& from) {
    for (int state = 0; state < cell.states; state++) copy(to[state], from[state], B * n.state_size(state) * int64_t(sizeof(Real)));
  }

  // weight_hh of heads with all of its columns.
  Padded<const Store> whole_rows(const Store* w, int64_t pitch) {
    Store* const to = arena.template take<Store>(times(GH, pitch));
    if (runs) k.spread(w, to, GH, H, columns_hh, pitch, stream);
    return {to, pitch};
  }
  int64_t head() const { return n.heads > 1 ? columns_hh : 0; }

  NormWeights<Store> norms_of(const Parameters<const Store>& w) const {
    return {w[weight_norm_ih], w[weight_norm_hh], w[weight_norm_c], w[bias_norm_c]};
  }

  StepLaunch step_launch(int64_t units) const { return {n.D, step_columns(units, B, n.D, gpu.processors), false}; }

  // Runs of steps in one launch; one step alone is as well a kernel of its own.
  struct Stay {
    ResidentPlan plan;
    Residence how;
    int64_t tiles;  // of a direction, at most
  };
  template <class Sweeps> Stay stay(const ResidentKernel<Sweeps>& kernel, int64_t chunk) {
    if (cell.launches > 1) return {};
    const int64_t blocks = (H + kernel.units - 1) / kernel.units, tiles = (B + 7) / 8;
    Stay s{{}, {}, tiles};
    s.how.done = arena.template take<unsigned>(times(n.D, tiles));
    zero(s.how.done, n.D * tiles * int64_t(sizeof(unsigned)));
    if (!gpu.resident || !runs || B == 0 || chunk <= 1) return s;
    ResidentRoom room{gpu.processors, {kernel.columns[0], kernel.columns[1]}, {}};
    int chunk_bytes[2];
    for (int i : {0, 1}) room.held[i] = kernel.held(H, i, &chunk_bytes[i]);
    s.plan = plan_resident(blocks, B, n.D, room);
    s.how.directions = s.plan.directions, s.how.groups = s.plan.groups;
    s.how.columns = room.columns[s.plan.wide], s.how.chunk_bytes = chunk_bytes[s.plan.wide];
    return s;
  }
  // All directions at once, or one after the other.
  template <class Sweeps> void run_steps(const ResidentKernel<Sweeps>& kernel, const Stay& s, Sweeps sweep, int64_t first, int64_t last) {
    Residence how = s.how;
    how.first = first, how.last = last;
    for (int d = 0; d < n.D; d += s.plan.directions) {
      sweep.side[0] = sweep.side[d];
      how.done = s.how.done + d * s.tiles;
      kernel.run(sweep, how, stream);
    }
  }
  int64_t phase_units(int p, bool forward) const {
    const bool to_projection = forward ? p == 1 : p == 0;
    return cell.projected && to_projection ? P : H;
  }
  // The lowest time of steps [first, last).
  int64_t lowest(bool reverse, int64_t first, int64_t last) const { return reverse ? T - last : first; }
};

}  // namespace
}  // namespace fastrnn::cuda
