// A run of time steps in one launch, of cells with one phase. A block has some units with all their gates, keeps their rows of W_hh in
// shared memory, or their columns in backward, and goes through the steps; h, or the gate gradients, go from block to block through global
// memory. All blocks must be on the GPU at once. The arithmetic is that of steps.hpp, in the same order: results are the same bits.
//
// Blocks of one tile of the batch and one direction wait for each other, by a counter of those that are done with a step. Two places for h
// that take turns are enough: a block writes h of step t + 1 when all have written that of t, and who has done that has read that of t - 1.
#pragma once
#include "cuda/kernels/steps.hpp"

namespace fastrnn::device {
namespace {

// A block's product with rows that stay in shared memory, followed there by the columns' chunks on their way and the sums.
template <class T, int MT, int N> struct ResidentTile {
  using Product = ProductOf<T>;
  using Store = typename T::Store;
  using Real = typename T::Real;
  static constexpr int rows = 16 * MT, columns = N, NT = N / 8, splits = 4, depth = 4;
  // Rows are filled up with zeros to whole strides: as in Tile each warp has one share of a stride.
  static constexpr int stride = 256, chunk_bytes = 2 * stride, piece = 16 / sizeof(Store), pieces = chunk_bytes / 16,
                       chunk = piece * pieces;
  static constexpr int pitch = chunk_bytes + Product::padding, stage_bytes = columns * pitch;
  using Shared = Sums<Real, rows, columns, splits>;

  static constexpr int64_t row_bytes(int64_t K) { return (K * int64_t(sizeof(Store)) + stride - 1) / stride * stride; }
  static constexpr int64_t shared_bytes(int64_t K) {
    return rows * (row_bytes(K) + Product::padding) + depth * stage_bytes + Shared::bytes;
  }

  const int64_t K;  // of a row
  const int row_pitch;  // bytes
  char* const shared = shared_memory();
  char* const chunks = shared + rows * row_pitch;
  const Shared sums{chunks + depth * stage_bytes};

  FASTRNN_DEVICE explicit ResidentTile(int64_t k, int64_t widest) : K(k), row_pitch(int(row_bytes(widest)) + Product::padding) {}

  // Brings the rows; row(i) as in Tile.
  template <class Row> FASTRNN_DEVICE void keep(const Row& row, const Span& span) const {
    const int each = int(row_bytes(K) / 16);
    for (int i = 0; i < rows; i++) {
      const Store* const from = row(i);
      for (int at = int(threadIdx.x); at < each; at += block_threads)
        copy_later(shared + i * row_pitch + at * 16, from && at * piece < K ? from + span.at(at * piece) : nullptr);
    }
    end_group();
    wait_for_all_but<0>();
    __syncthreads();
  }

  // The product with 'columns' rows of h, or zeros with a K of 0; column(j) is where one begins, or null.
  template <class Column> FASTRNN_DEVICE void run(bool any, const Column& column, const Span& span) const {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, bytes = any ? int(row_bytes(K)) : 0;
    const int count = (bytes + chunk_bytes - 1) / chunk_bytes;
    const auto load = [&](int c) {
      const int at = int(threadIdx.x) % pieces, k = c * chunk + at * piece;
      if (c * chunk_bytes + at * 16 >= bytes) return;
      for (int j = int(threadIdx.x) / pieces; j < columns; j += block_threads / pieces) {
        const Store* const from = k < K ? column(j) : nullptr;
        copy_later(chunks + c % depth * stage_bytes + j * pitch + at * 16, from ? from + span.at(k) : nullptr);
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
      const char* const right = chunks + c % depth * stage_bytes;
      const auto strides = [&](auto whole) {
#pragma unroll
        for (int step = 0; step < (whole ? chunk_bytes : stride) / Product::step_bytes / splits; step++) {
          const int at = (step * splits + warp) * Product::step_bytes;
          Product::run(all, left + at, row_pitch, right + at, pitch, lane);
        }
      };
      if ((c + 1) * chunk_bytes <= bytes) strides(std::true_type{});
      else strides(std::false_type{});
      if (c + depth < count) {
        __syncthreads();
        load(c + depth);
      }
      end_group();
    }
    sums.put(all, warp, 0, lane);
    __syncthreads();
  }
};

template <class Cell, class T, int N> using ResidentForward = ResidentTile<T, (Cell::phase[0].gates * cuda::forward_units + 15) / 16, N>;
template <class T> using ResidentBackward = ResidentTile<T, 1, 8>;

template <class Cell, class T, int N>
__global__ void __launch_bounds__(block_threads, 1)
    resident_forward(cuda::Sweep<typename T::Store, typename T::Real> s, cuda::Residence residence) {
  using Store = typename T::Store;
  using Real = typename T::Real;
  static_assert(Cell::phases == 1, "one exchange a step");
  constexpr Phase phase = Cell::phase[0];
  constexpr int units_each = cuda::forward_units;

  const cuda::Side<Store, Real>& side = s.side[blockIdx.z];
  const DeviceOrder order(s.sequences, side.reverse);
  const int64_t B = s.sequences.B, H = s.H, row = pad<Store>(H), tiles = (B + N - 1) / N;
  const int64_t unit_blocks = (H + units_each - 1) / units_each, first_unit = int64_t(blockIdx.x) % unit_blocks * units_each;
  const int i = int(threadIdx.x), u = i % units_each, j = i / units_each;
  const Span window = window_of<Store>(first_unit / 16 * 16, H, s.head, 0);

  const ResidentForward<Cell, T, N> product(window.width ? window.width : row, row);
  product.keep(
      [&](int r) -> const Store* {
        const int64_t gate = r / units_each, unit = first_unit + r % units_each;
        return gate < phase.gates && unit < H ? side.weight[0].base + (gate * H + unit) * side.weight[0].row : nullptr;
      },
      window);

  for (int64_t step = residence.first; step < residence.last; step++)
    for (int64_t tile = int64_t(blockIdx.x) / unit_blocks; tile < tiles; tile += residence.groups) {
      const int64_t t = order.time(step), first_row = tile * N, end = first_row + N < B ? first_row + N : B;
      const int64_t unit = first_unit + u, b = first_row + j;
      const bool mine = j < N && unit < H && b < B;
      unsigned* const arrived = residence.arrived + int64_t(blockIdx.z) * tiles + tile;
      ForwardUnit<Cell, 0, T> here{s, side, order, step, t, mine ? unit : 0, mine ? b : 0};
      if (mine) here.read_inputs(), here.read_states();
      if (i == 0) wait_for_count(arrived, unsigned(step * unit_blocks));
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
      if (i == 0) count_one(arrived);
      if (mine) here.write_rest();
    }
}

template <class Cell, class T>
__global__ void __launch_bounds__(block_threads, 1)
    resident_backward(cuda::BackSweep<typename T::Store, typename T::Real> s, cuda::Residence residence) {
  using Store = typename T::Store;
  using Real = typename T::Real;
  static_assert(Cell::phases == 1, "one exchange a step");
  constexpr int units_each = cuda::backward_units, N = 8;
  static_assert(units_each * N == block_threads, "a thread for each unit and row");

  const cuda::BackSide<Store, Real>& side = s.side[blockIdx.z];
  const DeviceOrder order(s.sequences, side.reverse);
  const int64_t B = s.sequences.B, H = s.H, row = pad<Store>(H), wide = Cell::slots.count * row, tiles = (B + N - 1) / N;
  const int64_t unit_blocks = (H + units_each - 1) / units_each, first_unit = int64_t(blockIdx.x) % unit_blocks * units_each;
  const int i = int(threadIdx.x), u = i % units_each, j = i / units_each;
  const Span window = window_of<Store>(first_unit, H, s.head, row);

  const ResidentBackward<T> product(Cell::gates * (window.width ? window.width : row), Cell::gates * row);
  product.keep([&](int r) { return weight_row(side.weight[0], 0, H, first_unit, r); }, window);

  for (int64_t step = residence.last - 1; step >= residence.first; step--)
    for (int64_t tile = int64_t(blockIdx.x) / unit_blocks; tile < tiles; tile += residence.groups) {
      const int64_t t = order.time(step), first_row = tile * N, end = first_row + N < B ? first_row + N : B;
      const int64_t unit = first_unit + u, b = first_row + j;
      const bool mine = unit < H && b < B;
      unsigned* const arrived = residence.arrived + int64_t(blockIdx.z) * tiles + tile;
      BackwardUnit<Cell, 0, T> at{s, side, order, step, t, mine ? unit : 0, mine ? b : 0};
      if (mine) at.read();
      if (i == 0) wait_for_count(arrived, unsigned((s.sequences.T - 1 - step) * unit_blocks));
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
      if (i == 0) count_one(arrived);
      if (mine) at.write_rest();
    }
}

}  // namespace
}  // namespace fastrnn::device
