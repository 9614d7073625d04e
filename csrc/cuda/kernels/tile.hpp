// One block's share of a product: 16 MT rows times N columns, both read along k, in chunks that go through shared memory.
#pragma once
#include "cuda/kernels/arithmetic.hpp"
#include "kernels/vec.hpp"

namespace fastrnn::device {
namespace {

constexpr int block_threads = 128;
// Blocks that a processor must have registers for: what the compiler may use of them for one.
constexpr int blocks_at_once = 2;

// Where element k of a row lies: 'width' elements from 'first' on, then as many 'pitch' further on, and so on; width 0: all, one after the
// other. Whole pieces each.
struct Span {
  int64_t first, width, pitch;
  FASTRNN_DEVICE int64_t at(int64_t k) const { return width ? first + k / width * pitch + k % width : k; }
};

// What the warps add up, in shared memory: one sum from each share of k.
template <class Real, int rows, int columns, int splits> struct Sums {
  static constexpr int pitch = rows + 4, bytes = splits * columns * pitch * int(sizeof(Real));
  char* const base;

  template <int MT, int NT> FASTRNN_DEVICE void put(const Real (&sums)[MT][NT][4], int split, int first, int lane) const {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) place(split, m * 16 + i / 2 * 8 + lane / 4, first + n * 8 + lane % 4 * 2 + i % 2) = sums[m][n][i];
  }
  FASTRNN_DEVICE Real& place(int split, int i, int j) const { return reinterpret_cast<Real*>(base)[(split * columns + j) * pitch + i]; }
  // The product's element in row i and column j; added up in the same order whatever the block.
  FASTRNN_DEVICE Real at(int i, int j) const {
    Real sum = place(0, i, j);
#pragma unroll
    for (int split = 1; split < splits; split++) sum += place(split, i, j);
    return sum;
  }
};

template <class T, int MT, int N> struct Tile {
  using Product = ProductOf<T>;
  using Store = typename T::Store;
  using Real = typename T::Real;

  // The four warps share the k of a chunk, and in large tiles the columns. A step's sums do not depend on the tile's size.
  static constexpr int rows = 16 * MT, columns = N, across = N >= 64 ? 4 : 1, NT = N / (8 * across), splits = 4 / across;
  static constexpr int chunk_bytes = 256, piece = 16 / sizeof(Store), pieces = chunk_bytes / 16, chunk = piece * pieces;
  static constexpr int pitch = chunk_bytes + Product::padding, stage_bytes = (rows + columns) * pitch;
  // Chunks in flight: what two blocks of a step have room for.
  static constexpr int room = 96 * 1024 / stage_bytes, stages = room < 2 ? 2 : room < 4 ? room : 4;
  using Shared = Sums<Real, rows, columns, splits>;
  static constexpr int shared_bytes = stages * stage_bytes > Shared::bytes ? stages * stage_bytes : Shared::bytes;

  char* const shared = shared_memory();

  FASTRNN_DEVICE char* stage(int64_t c) const { return shared + c % stages * stage_bytes; }

  static FASTRNN_DEVICE int64_t chunks_of(int64_t K) { return (K + chunk - 1) / chunk; }

  // Copies chunk c of 'count' rows; row(i) is where row i begins, aligned to 16 bytes, or null for zeros. K is whole pieces.
  template <class Row> static FASTRNN_DEVICE void load(char* to, int count, int64_t c, int64_t K, const Row& row, const Span& span = {}) {
    const int at = int(threadIdx.x) % pieces;
    const int64_t k = c * chunk + at * piece, column = span.at(k);
    for (int i = int(threadIdx.x) / pieces; i < count; i += block_threads / pieces) {
      const Store* const from = k < K ? row(i) : nullptr;
      copy_later(to + i * pitch + at * 16, from ? from + column : nullptr);
    }
  }

  // Adds up over the chunks. rows(to, c) and columns(to, c) bring chunk c into shared memory; rows may be read before the kernel ahead in
  // the stream has ended, columns may not. The sums are left in shared memory, see at().
  template <class LoadRows, class LoadColumns> FASTRNN_DEVICE void run(int64_t chunks, const LoadRows& load_rows,
                                                                       const LoadColumns& load_columns) const {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, split = warp % splits, side = warp / splits;
    Real sums[MT][NT][4] = {};
    for (int64_t c = 0; c < stages && c < chunks; c++) load_rows(stage(c), c);
    wait_for_last_kernel();
    for (int64_t c = 0; c < stages; c++) {
      if (c < chunks) load_columns(stage(c) + rows * pitch, c);
      end_group();
    }
    for (int64_t c = 0; c < chunks; c++) {
      wait_for_all_but<stages - 1>();
      __syncthreads();
      const char* const from = stage(c);
#pragma unroll
      for (int step = 0; step < chunk_bytes / Product::step_bytes / splits; step++) {
        const int at = (step * splits + split) * Product::step_bytes;
        Product::template run<2 * MT>(sums, from + at, pitch, from + (rows + side * NT * 8) * pitch + at, pitch, lane);
      }
      __syncthreads();
      if (c + stages < chunks) {
        load_rows(stage(c), c + stages);
        load_columns(stage(c) + rows * pitch, c + stages);
      }
      end_group();
    }
    wait_for_all_but<0>();
    Shared{shared}.put(sums, split, side * NT * 8, lane);
    __syncthreads();
  }
  // The same where K is whole pieces and row(i), column(j) tell where a row begins.
  template <class Row, class Column> FASTRNN_DEVICE void run_rows(int64_t K, const Row& row, const Column& column, const Span& span) const {
    run(
        chunks_of(K), [&](char* to, int64_t c) { load(to, rows, c, K, row, span); },
        [&](char* to, int64_t c) { load(to, columns, c, K, column, span); });
  }

  FASTRNN_DEVICE Real at(int i, int j) const { return Shared{shared}.at(i, j); }
};

}  // namespace
}  // namespace fastrnn::device
