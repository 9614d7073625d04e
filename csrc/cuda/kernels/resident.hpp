// A run of time steps in one launch, of cells with one phase. A block has 8 units, or 16, with all their gates, keeps their rows of W_hh in
// shared memory, or their columns in backward, and goes through the steps; h, or the gate gradients, go from block to block through global
// memory. All blocks must be on the GPU at once. The arithmetic is that of steps.hpp, in the same order: results are the same bits.
//
// Blocks of one tile of the batch and one direction wait for each other, by a counter of those that are done with a step. Two places for
// h that take turns are enough: a block writes h of step t + 1 when all have written that of t, and who has done that has read that of t
// - 1.
#pragma once
#include "cuda/kernels/steps.hpp"

namespace fastrnn::device {
namespace {

// A block's product with 8 G rows that stay in shared memory, followed there by the columns' chunks on their way and the sums. Four warps
// have a share of k each, of N / across columns.
template <class T, int G, int N, int across> struct ResidentTile {
  using Product = ProductOf<T>;
  using Store = typename T::Store;
  using Real = typename T::Real;
  static constexpr int rows = 8 * G, MT = (G + 1) / 2, columns = N, each = N / across, NT = each / 8, splits = 4, depth = 4;
  static constexpr int threads = 32 * splits * across;
  // Rows are filled up with zeros to whole strides: as in Tile each warp has one share of a stride.
  static constexpr int stride = 256, piece = 16 / sizeof(Store);
  using Shared = Sums<Real, 16 * MT, columns, splits>;

  static constexpr int64_t row_bytes(int64_t K) { return (K * int64_t(sizeof(Store)) + stride - 1) / stride * stride; }
  static constexpr int64_t shared_bytes(int64_t K, int64_t chunk) {
    return rows * (row_bytes(K) + Product::padding) + depth * columns * (chunk + Product::padding) + Shared::bytes;
  }
  // Bytes of a chunk: all of K is on its way at once if 'most' bytes have room for it. 0: nothing fits.
  static constexpr int64_t best_chunk(int64_t K, int64_t most) {
    int64_t chunk = (row_bytes(K) / depth + stride - 1) / stride * stride;
    while (chunk && shared_bytes(K, chunk) > most) chunk -= stride;
    return chunk;
  }

  const int64_t K;  // of a row
  const int chunk_bytes, row_pitch, pitch;
  char* const shared = shared_memory();
  char* const chunks = shared + rows * row_pitch;
  const Shared sums{chunks + depth * columns * pitch};

  FASTRNN_DEVICE ResidentTile(int64_t k, int64_t widest, int chunk)
      : K(k), chunk_bytes(chunk), row_pitch(int(row_bytes(widest)) + Product::padding), pitch(chunk + Product::padding) {}

  // Brings the rows; row(i) as in Tile.
  template <class Row> FASTRNN_DEVICE void keep(const Row& row, const Span& span) const {
    for (int i = 0; i < rows; i++) {
      const Store* const from = row(i);
      for (int at = int(threadIdx.x); at < int(row_bytes(K) / 16); at += threads)
        copy_later(shared + i * row_pitch + at * 16, from && at * piece < K ? from + span.at(at * piece) : nullptr);
    }
    end_group();
    wait_for_all_but<0>();
    __syncthreads();
  }

  // The product with 'columns' rows of h, or zeros without any; column(j) is where one begins, or null.
  template <class Column> FASTRNN_DEVICE void run(bool any, const Column& column, const Span& span) const {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, split = warp % splits, side = warp / splits;
    const int bytes = any ? int(row_bytes(K)) : 0, count = (bytes + chunk_bytes - 1) / chunk_bytes;
    const auto bytes_of = [&](int c) { return bytes - c * chunk_bytes < chunk_bytes ? bytes - c * chunk_bytes : chunk_bytes; };
    const auto load = [&](int c) {
      const int first = c * chunk_bytes / int(sizeof(Store));
      for (int i = warp; i < columns; i += threads / 32) {
        const int j = (i + int(blockIdx.x)) % columns;  // not all blocks the same row at once
        const Store* const from = column(j);
        char* const to = chunks + (c % depth * columns + j) * pitch;
        for (int at = lane; at < bytes_of(c) / 16; at += 32) {
          const int64_t k = first + at * piece;
          copy_later(to + at * 16, from && k < K ? from + span.at(k) : nullptr);
        }
      }
    };
    Real all[MT][NT][4] = {};
    for (int c = 0; c < depth; c++) {
      if (c < count) load(c);
      end_group();
    }
    for (int c = 0; c < count; c++) {
      wait_for_all_but<depth - 1>();
      __syncthreads();
      const char* const left = shared + c * chunk_bytes;
      const char* const right = chunks + (c % depth * columns + side * each) * pitch;
#pragma unroll 4
      for (int first = 0; first < bytes_of(c); first += stride)
#pragma unroll
        for (int step = 0; step < stride / Product::step_bytes / splits; step++) {
          const int at = first + (step * splits + split) * Product::step_bytes;
          Product::template run<G>(all, left + at, row_pitch, right + at, pitch, lane);
        }
      if (c + depth < count) {
        __syncthreads();
        load(c + depth);
      }
      end_group();
    }
    sums.put(all, split, side * each, lane);
    __syncthreads();
  }
};

template <class Cell, class T, int N> using ResidentForward = ResidentTile<T, Cell::phase[0].gates, N, N == 32 ? 2 : 1>;
// More units share what they all read of the gate gradients, unless that is more than fits.
template <class T> constexpr int backward_units = sizeof(typename T::Store) == 2 ? 16 : 8;
template <class T, int N> using ResidentBackward = ResidentTile<T, backward_units<T> / 8, N, N / 8>;

template <class Cell, class T, int N>
__global__ void __launch_bounds__(ResidentForward<Cell, T, N>::threads, 1)
    resident_forward(cuda::Sweep<typename T::Store, typename T::Real> s, cuda::Residence residence) {
  using Store = typename T::Store;
  using Real = typename T::Real;
  static_assert(Cell::phases == 1, "one exchange a step");
  using Product = ResidentForward<Cell, T, N>;
  constexpr int units_each = cuda::forward_units, gates = Cell::phase[0].gates;
  static_assert(units_each * N <= Product::threads, "a thread for each unit and row");

  const cuda::Side<Store, Real>& side = s.side[blockIdx.z];
  const DeviceOrder order(s.sequences, side.reverse);
  const int64_t B = s.sequences.B, H = s.H, row = pad<Store>(H), tiles = (B + N - 1) / N;
  const int64_t unit_blocks = (H + units_each - 1) / units_each, first_unit = int64_t(blockIdx.x) % unit_blocks * units_each;
  const int i = int(threadIdx.x), u = i % units_each, j = i / units_each;
  const Span window = window_of<Store>(first_unit / 16 * 16, H, s.head, 0);

  const Product product(window.width ? window.width : row, row, residence.chunk_bytes);
  product.keep(
      [&](int r) -> const Store* {
        const int64_t gate = r / units_each, unit = first_unit + r % units_each;
        return unit < H ? side.weight[0].base + (gate * H + unit) * side.weight[0].row : nullptr;
      },
      window);

  Biases<gates, Real> bias;
  if (first_unit + u < H) bias.read(side, 0, H, first_unit + u);

  for (int64_t step = residence.first; step < residence.last; step++)
    for (int64_t tile = int64_t(blockIdx.x) / unit_blocks; tile < tiles; tile += residence.groups) {
      const int64_t t = order.time(step), first_row = tile * N, end = first_row + N < B ? first_row + N : B;
      const int64_t unit = first_unit + u, b = first_row + j;
      const bool mine = j < N && unit < H && b < B;
      unsigned* const done = residence.done + int64_t(blockIdx.z) * tiles + tile;
      ForwardUnit<Cell, 0, T> here{s, side, order, bias, step, t, mine ? unit : 0, mine ? b : 0};
      if (mine) here.read_inputs(), here.read_states();
      if (i == 0) wait_for_count(done, unsigned(step * unit_blocks));
      __syncthreads();
      const Store* const before = side.recurrent + step % 2 * B * row;
      product.run(
          order.any_runs(t, first_row, end),
          [&](int k) -> const Store* {
            const int64_t b = first_row + k;
            return b < B && !order.cut_before(t, b) ? before + b * row : nullptr;
          },
          window);
      if (mine) {
        here.compute([&](int g) { return product.sums.at(g * units_each + u, j); });
        here.write_h();
      }
      __syncthreads();
      if (i == 0) count_one(done);
      if (mine) here.write_y(), here.write_kept();
    }
}

template <class Cell, class T, int N>
__global__ void __launch_bounds__(ResidentBackward<T, N>::threads, 1)
    resident_backward(cuda::BackSweep<typename T::Store, typename T::Real> s, cuda::Residence residence) {
  using Store = typename T::Store;
  using Real = typename T::Real;
  static_assert(Cell::phases == 1, "one exchange a step");
  using Product = ResidentBackward<T, N>;
  constexpr int units_each = backward_units<T>;
  static_assert(units_each * N <= Product::threads, "a thread for each unit and row");

  const cuda::BackSide<Store, Real>& side = s.side[blockIdx.z];
  const DeviceOrder order(s.sequences, side.reverse);
  const int64_t B = s.sequences.B, H = s.H, row = pad<Store>(H), wide = ring_slots<Cell> * row, tiles = (B + N - 1) / N;
  const int64_t unit_blocks = (H + units_each - 1) / units_each, first_unit = int64_t(blockIdx.x) % unit_blocks * units_each;
  const int i = int(threadIdx.x), u = i % units_each, j = i / units_each;
  const Span window = window_of<Store>(first_unit / 16 * 16, H, s.head, row);

  const Product product(Cell::gates * (window.width ? window.width : row), Cell::gates * row, residence.chunk_bytes);
  product.keep([&](int r) { return first_unit + r < H ? side.weight[0].base + (first_unit + r) * side.weight[0].row : nullptr; }, window);

  for (int64_t step = residence.last - 1; step >= residence.first; step--)
    for (int64_t tile = int64_t(blockIdx.x) / unit_blocks; tile < tiles; tile += residence.groups) {
      const int64_t t = order.time(step), first_row = tile * N, end = first_row + N < B ? first_row + N : B;
      const int64_t unit = first_unit + u, b = first_row + j;
      const bool mine = j < N && unit < H && b < B;
      unsigned* const done = residence.done + int64_t(blockIdx.z) * tiles + tile;
      BackwardUnit<Cell, 0, T> at{s, side, order, step, t, mine ? unit : 0, mine ? b : 0};
      if (mine) at.read();
      if (i == 0) wait_for_count(done, unsigned((s.sequences.T - 1 - step) * unit_blocks));
      __syncthreads();
      const Store* const later = side.recurrent + (step + 1) % 2 * B * wide + hidden_slot<Cell>(0) * row;
      product.run(
          order.any_runs(t, first_row, end),
          [&](int k) -> const Store* {
            const int64_t b = first_row + k;
            return b < B && !order.cut_off_after(t, b) ? later + b * wide : nullptr;
          },
          window);
      if (mine) {
        at.compute(product.sums.at(u, j));
        at.write_gradients();
      }
      __syncthreads();
      if (i == 0) count_one(done);
      if (mine) at.write_rest();
    }
}

}  // namespace
}  // namespace fastrnn::device
