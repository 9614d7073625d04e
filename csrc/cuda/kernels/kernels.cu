// The kernels of one precision, and how they are launched: compiled once for each with
//   FASTRNN_ISA=device  FASTRNN_VECTOR_BYTES=0    FASTRNN_PRECISION   struct of numbers.hpp    FASTRNN_KERNELS   name of the table below
#include "cuda/kernels/kernels.hpp"

#include <map>
#include <mutex>
#include <utility>

#include "cuda/kernels/launch.hpp"
#include "cuda/kernels/norms.hpp"
#include "cuda/kernels/products.hpp"
#include "cuda/kernels/resident.hpp"
#include "cuda/kernels/rows.hpp"

namespace fastrnn::cuda {
namespace {

using T = FASTRNN_PRECISION;
using Store = T::Store;
using Real = T::Real;
using device::block_threads;

int64_t tiles(int64_t n, int64_t each) { return (n + each - 1) / each; }

// ---- steps ---------------------------------------------------------------------------------------------------------

constexpr int row_shared = block_threads * int(sizeof(Real));
constexpr int wide_step = sizeof(Real) == 8 ? 16 : 32;  // columns; of more double sums than that there is no room in registers

template <class Cell, int p, int N> void forward_phase(const Sweep<Store, Real>& s, int64_t step, const StepLaunch& l,
                                                       cudaStream_t stream) {
  using Product = device::Tile<T, Cell::phase[p].gates, N>;
  const int64_t units = Cell::projected && p == 1 ? s.P : s.H;
  const Launch how{tiles(units, 16) * tiles(s.sequences.B, N), block_threads, l.directions, Product::shared_bytes, l.chained};
  launch<device::step_forward<Cell, p, T, N>>(how, stream, s, step);
}
template <class Cell, int N> void forward_columns(const Sweep<Store, Real>& s, int64_t step, int phase, const StepLaunch& l,
                                                  cudaStream_t stream) {
  if (phase == 0) return forward_phase<Cell, 0, N>(s, step, l, stream);
  if constexpr (Cell::phases == 2) forward_phase<Cell, 1, N>(s, step, l, stream);
}
// A block for each row of the batch.
template <auto kernel, class Sweeps> void each_row(const Sweeps& s, int64_t step, const StepLaunch& l, cudaStream_t stream) {
  launch<kernel>({s.sequences.B, block_threads, l.directions, row_shared, l.chained}, stream, s, step);
}
template <class Cell> void forward(const Sweep<Store, Real>& s, int64_t step, int number, const StepLaunch& l, cudaStream_t stream) {
  if constexpr (Cell::normalised)
    if (number == 1) return each_row<device::row_forward<Cell, T>>(s, step, l, stream);
  if (l.columns == 8) forward_columns<Cell, 8>(s, step, number, l, stream);
  else forward_columns<Cell, wide_step>(s, step, number, l, stream);
}

template <class Cell, int p, int N>
void backward_phase(const BackSweep<Store, Real>& s, int64_t step, bool initial, const StepLaunch& l, cudaStream_t stream) {
  using Product = device::Tile<T, 1, N>;
  const Launch how{tiles(p == 0 ? s.P : s.H, 16) * tiles(s.sequences.B, N), block_threads, l.directions, Product::shared_bytes, l.chained};
  launch<device::step_backward<Cell, p, T, N>>(how, stream, s, step, initial);
}
template <class Cell, int N>
void backward_columns(const BackSweep<Store, Real>& s, int64_t step, int phase, bool initial, const StepLaunch& l, cudaStream_t stream) {
  if (phase == 0) return backward_phase<Cell, 0, N>(s, step, initial, l, stream);
  if constexpr (Cell::phases == 2) backward_phase<Cell, 1, N>(s, step, initial, l, stream);
}
template <class Cell>
void backward(const BackSweep<Store, Real>& s, int64_t step, int number, bool initial, const StepLaunch& l, cudaStream_t stream) {
  if constexpr (Cell::normalised)
    if (number == 1) return each_row<device::row_backward<Cell, T>>(s, step, l, stream);
  if (l.columns == 8) backward_columns<Cell, 8>(s, step, number, initial, l, stream);
  else backward_columns<Cell, wide_step>(s, step, number, initial, l, stream);
}

// ---- runs of steps -------------------------------------------------------------------------------------------------

int64_t padded(int64_t n) {
  constexpr int64_t piece = 16 / sizeof(Store);
  return tiles(n, piece) * piece;
}

template <class Tile, auto kernel> int held_of(int64_t K, int* chunk_bytes) {
  struct Found {
    int chunk_bytes, held;
  };
  static std::mutex lock;
  static std::map<std::pair<int, int64_t>, Found> known;  // by device and K, which are few: every call asks
  int device;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard<std::mutex> mine(lock);
  auto at = known.find({device, K});
  if (at == known.end()) {
    const int chunk = int(Tile::best_chunk(K, most_shared()));
    const int held = chunk ? blocks_held<kernel>(Tile::threads, Tile::shared_bytes(K, chunk)) : 0;
    at = known.emplace(std::make_pair(device, K), Found{chunk, held}).first;
  }
  *chunk_bytes = at->second.chunk_bytes;
  return at->second.held;
}
template <class Tile, auto kernel, class Sweeps> void run_resident(const Sweeps& s, int64_t K, int units, const Residence& r,
                                                                   cudaStream_t stream) {
  const int64_t shared = Tile::shared_bytes(K, r.chunk_bytes);
  launch<kernel>({tiles(s.H, units) * r.groups, Tile::threads, r.directions, shared, false, true}, stream, s, r);
}

// As measured on an H100.
constexpr int forward_columns_of[] = {8, sizeof(Store) == 2 ? 16 : 32}, backward_columns_of[] = {8, 16};

template <class Cell, int i> constexpr auto forward_kernel = device::resident_forward<Cell, T, forward_columns_of[i]>;
template <class Cell, int i> using ForwardTile = device::ResidentForward<Cell, T, forward_columns_of[i]>;
template <class Cell> int forward_held(int64_t H, int i, int* chunk_bytes) {
  if (i == 0) return held_of<ForwardTile<Cell, 0>, forward_kernel<Cell, 0>>(padded(H), chunk_bytes);
  return held_of<ForwardTile<Cell, 1>, forward_kernel<Cell, 1>>(padded(H), chunk_bytes);
}
template <class Cell> void resident_forward(const Sweep<Store, Real>& s, const Residence& r, cudaStream_t stream) {
  if (r.columns == forward_columns_of[0])
    run_resident<ForwardTile<Cell, 0>, forward_kernel<Cell, 0>>(s, padded(s.H), forward_units, r, stream);
  else run_resident<ForwardTile<Cell, 1>, forward_kernel<Cell, 1>>(s, padded(s.H), forward_units, r, stream);
}

template <class Cell, int i> constexpr auto backward_kernel = device::resident_backward<Cell, T, backward_columns_of[i]>;
template <int i> using BackwardTile = device::ResidentBackward<T, backward_columns_of[i]>;
template <class Cell> int backward_held(int64_t H, int i, int* chunk_bytes) {
  if (i == 0) return held_of<BackwardTile<0>, backward_kernel<Cell, 0>>(Cell::gates * padded(H), chunk_bytes);
  return held_of<BackwardTile<1>, backward_kernel<Cell, 1>>(Cell::gates * padded(H), chunk_bytes);
}
template <class Cell> void resident_backward(const BackSweep<Store, Real>& s, const Residence& r, cudaStream_t stream) {
  const int64_t K = Cell::gates * padded(s.H);
  if (r.columns == backward_columns_of[0])
    run_resident<BackwardTile<0>, backward_kernel<Cell, 0>>(s, K, device::backward_units<T>, r, stream);
  else run_resident<BackwardTile<1>, backward_kernel<Cell, 1>>(s, K, device::backward_units<T>, r, stream);
}

template <class Cell> constexpr PhaseFacts facts(int p) {
  return p < Cell::phases ? PhaseFacts{Cell::phase[p].first, Cell::phase[p].gates, device::hidden_slot<Cell>(p)} : PhaseFacts{};
}
template <class Cell> constexpr CellKernels<Store, Real> cell_kernels() {
  CellKernels<Store, Real> all = {Cell::gates,
                                  Cell::tape,
                                  Cell::phases,
                                  Cell::states,
                                  device::norms_of<Cell>(),
                                  Cell::normalised ? 2 : Cell::phases,
                                  Cell::slots,
                                  device::ring_slots<Cell>,
                                  device::gradient_slots<Cell>,
                                  Cell::projected,
                                  {facts<Cell>(0), facts<Cell>(Cell::phases - 1)},
                                  forward<Cell>,
                                  backward<Cell>,
                                  {},
                                  {}};
  if constexpr (Cell::phases == 1 && !Cell::normalised) {
    all.resident_forward = {forward_units, {forward_columns_of[0], forward_columns_of[1]}, forward_held<Cell>, resident_forward<Cell>};
    all.resident_backward = {
        device::backward_units<T>, {backward_columns_of[0], backward_columns_of[1]}, backward_held<Cell>, resident_backward<Cell>};
  }
  return all;
}

// ---- rows ----------------------------------------------------------------------------------------------------------

template <class F> void run(int64_t count, const F& f, cudaStream_t stream) {
  constexpr int64_t most = 8192;  // blocks; each then goes round
  const int64_t blocks = tiles(count, block_threads);
  launch<device::for_each<F>>({blocks < most ? blocks : most, block_threads, 1, 0, false}, stream, count, f);
}

template <class Out> void add_up(const Real* parts, Out* out, int64_t n, int64_t m, int64_t pitch, int shares, bool add,
                                 cudaStream_t stream) {
  run(n * m, device::AddUp<Out, Real>{parts, out, m, pitch, n * m, shares, add}, stream);
}

template <class Out> void product_into(const MatrixProduct<Store>& p, Out* c, int shares, Real* parts, cudaStream_t stream) {
  const Launch how{tiles(p.n, 64) * tiles(p.m, 64) * shares, block_threads, 1, device::Tile<T, 4, 64>::shared_bytes, false};
  launch<device::product<T, Out>>(how, stream, p, shares, c, parts);
  if (shares > 1) add_up(parts, c, p.n, p.m, p.pitch, shares, p.add, stream);
}
void product(const MatrixProduct<Store>& p, void* c, bool wide, int shares, Real* parts, cudaStream_t stream) {
  if (wide) product_into(p, static_cast<Real*>(c), shares, parts, stream);
  else product_into(p, static_cast<Store*>(c), shares, parts, stream);
}

void gather(const Sequences& s, Rows<const Store> from, Store* to, int64_t n, int64_t first, int64_t tokens, cudaStream_t stream) {
  run(tokens * n, device::Gather<Store>{from, to, s, n, first}, stream);
}
void scatter(const Sequences& s, const Store* from, Rows<Store> to, int64_t n, int64_t tokens, cudaStream_t stream) {
  run(tokens * n, device::Scatter<Store>{from, to, s, n, 0}, stream);
}
void gather_before(const Sequences& s, const Noise& noise, bool reverse, Rows<const Store> y, const Real* start, Store* to, int64_t P,
                   int64_t first, int64_t tokens, cudaStream_t stream) {
  run(tokens * P, device::GatherBefore<Store, Real>{y, start, to, s, noise, reverse, P, first}, stream);
}
void normalise(Real* rows, Store* to, Real* moments, int64_t count, int64_t n, cudaStream_t stream) {
  launch<device::normalise_inputs<Store, Real>>({count, block_threads, 1, row_shared, false}, stream, rows, to, moments, n);
}
void pad(const Store* from, Store* to, int64_t rows, int64_t n, int64_t pitch, cudaStream_t stream) {
  run(rows * pitch, device::PadRows<Store>{from, to, n, pitch}, stream);
}
void pad_state(const Real* from, Store* to, const Noise& noise, int64_t t, int64_t B, int64_t n, int64_t pitch, cudaStream_t stream) {
  run(B * pitch, device::StartRows<Store, Real>{from, to, noise, t, n, pitch}, stream);
}
void spread(const Store* from, Store* to, int64_t rows, int64_t H, int64_t head, int64_t pitch, cudaStream_t stream) {
  run(rows * pitch, device::Spread<Store>{from, to, H, head, pitch}, stream);
}
void turn(const Store* from, Store* to, int64_t H, int64_t P, int64_t pitch, int gates, int first, int of, cudaStream_t stream) {
  run(P * gates * pitch, device::Turn<Store>{from, to, H, P, pitch, gates, first, of}, stream);
}
void drop(const Store* from, const uint8_t* mask, Store* to, Real scale, int64_t count, cudaStream_t stream) {
  run(count, device::Drop<Store, Real>{from, mask, to, scale}, stream);
}
void sum_columns(const Store* from, Real* parts, Real* sums, int64_t rows, int64_t n, int shares, bool add, cudaStream_t stream) {
  run(shares * n, device::SumShare<Store, Real>{from, parts, rows, n, shares}, stream);
  add_up(parts, sums, 1, n, n, shares, add, stream);
}
void narrow(const Real* from, Store* to, int64_t count, cudaStream_t stream) { add_up(from, to, 1, count, count, 1, false, stream); }

}  // namespace

using device::Lstm, device::LstmGeneral;  // whom the list names inside another
#define FASTRNN_CELL(name, type) cell_kernels<device::type>(),
extern const Kernels<Store, Real> FASTRNN_KERNELS;
const Kernels<Store, Real> FASTRNN_KERNELS = {{FASTRNN_CELLS(FASTRNN_CELL)},
                                              product,
                                              gather,
                                              scatter,
                                              gather_before,
                                              normalise,
                                              pad,
                                              pad_state,
                                              spread,
                                              turn,
                                              drop,
                                              sum_columns,
                                              narrow};

#ifdef FASTRNN_ONCE
int kernels_architecture() {
  cudaFuncAttributes a{};
  const cudaError_t status = cudaFuncGetAttributes(&a, (const void*)device::step_forward<device::Lstm, 0, T, 8>);
  if (status != cudaSuccess) cudaGetLastError();
  return status == cudaSuccess ? a.ptxVersion : 0;
}
void draw_masks(uint8_t* masks, int64_t count, double drop, uint64_t seed, cudaStream_t stream) {
  const double below = drop * 4294967296.;
  run(tiles(count, 4), device::DrawMask{masks, seed, count, below < 4294967295. ? uint32_t(below) : 0xffffffffu, drop >= 1}, stream);
}
#endif

}  // namespace fastrnn::cuda
