// What the forward pass does with narrow weights in place of gemm.hpp's product: some blocks of it at a time are computed by
// NarrowProducts and written to memory, whence the cells' epilogues read them. So these are compiled for few shapes, and the products
// once for all cells.
#pragma once
#include "kernels/gemm.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

// M results, members 'pitch' apart in z, on top of what 'start' gives.
template <bool down, bool whole, int M, class V, int G, class Start, class Finish>
FASTRNN_FN void finish_narrow(const float* z, int64_t pitch, int64_t row, int64_t block, int64_t units, const Start& start,
                              const Finish& finish) {
  constexpr int N = Lanes<V>::n;
  Bundle<V, M> sums[G];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    V one[G];
    start(one, down ? row + m : row, down ? block : block + m);
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) sums[g].v[m] = one[g] + load<V>(z + m * pitch + g * N);
  }
  finish(sums, Results<N, down, whole>{row, block, units});
}

// As product() in gemm.hpp.
template <class V, int G, class Start, class Finish>
__attribute__((noinline)) bool narrow_product(const NarrowProducts& by, const NarrowPanel& w, int64_t K, int64_t units,
                                              const float* const* a, int64_t n, Range blocks, bool back, NarrowRoom& room,
                                              const Start& start, const Finish& finish, Poll& poll) {
  constexpr int N = Lanes<V>::n, width = G * N, side_by_side = G <= 2 ? 4 : 2, below = 4;
  const int64_t whole_blocks = units / N;
  for (int64_t first = 0; first < n; first += narrow_rows) {
    const int64_t count = n - first < narrow_rows ? n - first : narrow_rows;
    const NarrowOperand operand{a + first, count, K, room.prepared, room.scale};
    by.prepare(w.format, operand);
    const int64_t at_once = count == 1 ? 16 : narrow_products / (count * width),
                  groups = (blocks.last - blocks.first + at_once - 1) / at_once;
    for (int64_t i = 0; i < groups; i++) {
      int64_t block = blocks.first + (back ? groups - 1 - i : i) * at_once;
      const int64_t last = block + at_once < blocks.last ? block + at_once : blocks.last, pitch = count * width;
      by.multiply(w, G, block, last, operand, room.products);
      const float* z = room.products;
      if (count == 1)
        for (; block + side_by_side <= last && block + side_by_side <= whole_blocks; block += side_by_side, z += side_by_side * pitch)
          finish_narrow<false, true, side_by_side, V, G>(z, pitch, first, block, units, start, finish);
      for (; block < last; block++, z += pitch) {
        int64_t row = 0;
        if (block < whole_blocks)
          for (; row + below <= count; row += below)
            finish_narrow<true, true, below, V, G>(z + row * width, width, first + row, block, units, start, finish);
        for (; row < count; row++) finish_narrow<true, false, 1, V, G>(z + row * width, width, first + row, block, units, start, finish);
      }
      if (poll.stop(2. * double(count) * double(K) * width * double(at_once))) return false;
    }
  }
  return true;
}

// Column k of the gates of a block, of a matrix with K columns: what a one-hot row gives.
template <class V, int G> FASTRNN_FN void narrow_column(const NarrowPanel& w, int64_t K, int64_t block, int64_t k, V (&column)[G]) {
  constexpr int N = Lanes<V>::n;
  const int64_t depth = depth_of(w.format), groups = (K + depth - 1) / depth;
  for (int g = 0; g < G; g++) {
    const int64_t at = ((block * groups + k / depth) * G + g) * N * depth + k % depth;
    float lanes[N];
    for (int lane = 0; lane < N; lane++) {
      if (w.format == Format::int8) {
        lanes[lane] = float(127 * ((const int8_t*)w.data)[at + lane * depth]) * (1.f / 127 * w.scale[(block * G + g) * N + lane]);
      } else {
        const uint32_t bits = uint32_t(((const uint16_t*)w.data)[at + lane * depth]) << 16;
        __builtin_memcpy(&lanes[lane], &bits, sizeof bits);
      }
    }
    column[g] = load<V>(lanes);
  }
}

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
