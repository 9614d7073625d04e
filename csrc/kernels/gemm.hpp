// The packed-panel product and its micro-kernel: Z = start + A W^T, tile by tile, with an epilogue where a tile ends.
//
// A tile is R rows of A times U unit blocks of G gates each: R*U*G vector accumulators, all in registers, so that every
// gate of a unit is at hand when the product ends. Every output element is one chain of fma over k = 0, 1, ..., whatever
// the tile's height and width: results do not depend on how rows and blocks are dealt out.
#pragma once
#include "kernels/team.hpp"
#include "kernels/vec.hpp"

namespace fastrnn::FASTRNN_ISA {

// W: 'units' rows for each of G gates, K columns; or block diagonal: each head of so many units multiplies but as many columns of its own,
// and these alone are stored.
template <class Real> struct Matrix {
  const Real* panel;    // [block][K][G][N], or null: read from the rows; of heads, [block][columns of its heads][G][N]
  const Real* rows;     // unit u of gate g starts at rows + (g * units + u) * K; of heads, * head
  int64_t K, units;
  int64_t panel_pitch;  // elements from block to block of the panel
  int64_t first = 0;    // the block with which the panel begins
  int64_t head = 0;     // 0: every unit multiplies all columns
  int64_t column = 0;   // the operand's element that column 0 multiplies
};

// What all cells share is compiled once for an instruction set, in shared.cpp.
//
// out[i] = A[i] W^T, or added to what is there; rows of w.units elements.
bool product_into(const Matrix<float>& w, const float* const* a, int64_t n, Range blocks, float* const* out, bool add, Poll& poll);
bool product_into(const Matrix<double>& w, const double* const* a, int64_t n, Range blocks, double* const* out, bool add, Poll& poll);
// Few rows, for which packing a matrix does not pay. W is given by its K rows, 'pitch' apart: out[i] += A[i] W in these columns,
// each element one chain of fma over k that begins with what is there.
bool multiply_few(const float* w, int64_t K, int64_t pitch, const float* const* a, int64_t n, Range columns, float* const* out, Poll& poll);
bool multiply_few(const double* w, int64_t K, int64_t pitch, const double* const* a, int64_t n, Range columns, double* const* out,
                  Poll& poll);
// out[i] = the sum over k < K of a[i][k] b[k], rows of 'width' elements, each element one chain of fma as well.
bool outer_few(const float* const* a, const float* const* b, int64_t K, int64_t n, int64_t width, float* const* out, Poll& poll);
bool outer_few(const double* const* a, const double* const* b, int64_t K, int64_t n, int64_t width, double* const* out, Poll& poll);
// The rows of these unit blocks, each of G gates -> the panel of them; lanes past the units are zero.
void pack_panel(const Matrix<float>& w, int G, Range blocks, float* panel, Poll& poll);
void pack_panel(const Matrix<double>& w, int G, Range blocks, double* panel, Poll& poll);

namespace {

template <class V> FASTRNN_FN int64_t blocks_of(int64_t n) { return (n + Lanes<V>::n - 1) / Lanes<V>::n; }

// ---- heads -----------------------------------------------------------------------------------------------------------
//
// A block multiplies the columns of all heads that it has units of, most often one; where there are several, the panel holds zeros for
// the columns of the others.

// Blocks that multiply the same columns, [column, column + K).
struct Window {
  Range blocks;
  int64_t column, K;
};
// The window of a block, with its neighbours among 'blocks' whose window is the same.
template <class V, class Real> FASTRNN_FN Window window_of(const Matrix<Real>& w, int64_t block, Range blocks) {
  constexpr int N = Lanes<V>::n;
  const int64_t end = (block + 1) * N < w.units ? (block + 1) * N : w.units;
  const int64_t first = block * N / w.head * w.head, last = (end - 1) / w.head * w.head;
  Window found{{block, block + 1}, first, last + w.head - first};
  if (first < last) return found;
  const int64_t from = blocks_of<V>(first), to = first + w.head < w.units ? (first + w.head) / N : blocks_of<V>(w.units);
  found.blocks = {from > blocks.first ? from : blocks.first, to < blocks.last ? to : blocks.last};
  return found;
}
// The part of a matrix that a window is.
template <class Real> FASTRNN_FN Matrix<Real> part_of(const Matrix<Real>& w, const Window& window) {
  Matrix<Real> part = w;
  part.K = window.K, part.column = window.column;
  return part;
}
// f(matrix, blocks) for the windows of a range of blocks, one after the other, until it gives false; 'back': from the last to the first.
template <class V, class Real, class F> FASTRNN_FN bool each_window(const Matrix<Real>& w, Range blocks, bool back, const F& f) {
  while (blocks.first < blocks.last) {
    const Window window = window_of<V>(w, back ? blocks.last - 1 : blocks.first, blocks);
    if (!f(part_of(w, window), window.blocks)) return false;
    if (back) blocks.last = window.blocks.first;
    else blocks.first = window.blocks.last;
  }
  return true;
}

// ---- tiles -----------------------------------------------------------------------------------------------------------

// Tiles that fill the register file: 32 vector registers with AVX-512 and on Arm, 16 otherwise.
#if FASTRNN_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int wide_rows = 6, tall_rows = 6, single_vectors = 8;
#else
constexpr int wide_rows = 3, tall_rows = 4, single_vectors = 4;
#endif
constexpr int max_rows(int vectors) { return vectors >= 4 ? wide_rows : tall_rows; }

// acc[r][u][g] += A[r] W[block u, gate g]
// Prefetches K vectors from 'ahead' on, of the next block's panel, into the second-level cache.
template <class V, int R, int U, int G, class Real>
FASTRNN_FN void multiply(const Matrix<Real>& w, const Real* const* rows, int64_t block, const Real* ahead, V (&acc)[R][U][G]) {
  constexpr int N = Lanes<V>::n;
  const Real* a[R];
  const Real* panel[U];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) a[r] = rows[r] + w.column;
#pragma GCC unroll 8
  for (int u = 0; u < U; u++) panel[u] = w.panel + (block - w.first + u) * w.panel_pitch;
  const int64_t K = w.K;
  for (int64_t k = 0; k < K; k++) {
    if constexpr (R > 1) __builtin_prefetch(ahead + k * N, 0, 2);
    V v[U][G];
#pragma GCC unroll 8
    for (int u = 0; u < U; u++)
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) v[u][g] = load<V>(panel[u] + (k * G + g) * N);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const V s = splat<V>(a[r][k]);
#pragma GCC unroll 8
      for (int u = 0; u < U; u++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) acc[r][u][g] = fma(s, v[u][g], acc[r][u][g]);
    }
  }
}

// The same from unpacked rows: one dot product per lane. For calls too short to pay for packing.
template <class V, int R, int G, class Real>
FASTRNN_FN void multiply_rows(const Matrix<Real>& w, const Real* const* rows, int64_t block, V (&acc)[R][1][G]) {
  constexpr int N = Lanes<V>::n;
  Real dots[R][G][N] = {};
  const int64_t first = block * N, count = w.units - first < N ? w.units - first : N;
  const int64_t K = w.head ? w.head : w.K;
  for (int64_t lane = 0; lane < count; lane++) {
    const Real* unit = w.rows + (first + lane) * K;
    const int64_t column = w.head ? (first + lane) / w.head * w.head : 0;
    V total[R][G] = {};
    int64_t k = 0;
    for (; k + N <= K; k += N) {
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) {
        const V v = load<V>(unit + g * w.units * K + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) total[r][g] = fma(load<V>(rows[r] + column + k), v, total[r][g]);
      }
    }
    if (k < K) {
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) {
        const V v = load<V>(unit + g * w.units * K + k, K - k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) total[r][g] = fma(load<V>(rows[r] + column + k, K - k), v, total[r][g]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) dots[r][g][lane] = sum(total[r][g]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) acc[r][0][g] = acc[r][0][g] + load<V>(dots[r][g]);
}

// Where the M results of one call of an epilogue belong: M rows of one block ('down'), or M blocks of one row. 'whole': no lane
// is padding.
template <int lanes, bool down, bool whole> struct Results {
  int64_t row_, block_, units;
  FASTRNN_FN int64_t row(int m) const { return down ? row_ + m : row_; }
  FASTRNN_FN int64_t block(int m) const { return down ? block_ : block_ + m; }
  FASTRNN_FN int64_t at(int m) const { return block(m) * lanes; }
  FASTRNN_FN int64_t left(int m) const { return whole ? lanes : units - at(m); }  // units from there on
};

// Keeps the compiler from unrolling a loop of so many rounds, each of which is a whole epilogue.
FASTRNN_FN int known_at_run_time(int n) {
  asm("" : "+r"(n));
  return n;
}

// finish(z, place) for M results in one bundle, or one by one in the last block, whose spare lanes are padding.
template <bool down, class V, int M, int G, class Finish>
FASTRNN_FN void finish_group(const Bundle<V, M> (&z)[G], int64_t row, int64_t block, int64_t units, const Finish& finish) {
  constexpr int N = Lanes<V>::n;
  if ((down ? block + 1 : block + M) * N <= units) return finish(z, Results<N, down, true>{row, block, units});
  const int count = known_at_run_time(M);
  for (int m = 0; m < count; m++) {
    Bundle<V, 1> one[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) one[g].v[0] = z[g].v[m];
    finish(one, Results<N, down, false>{down ? row + m : row, down ? block : block + m, units});
  }
}

// An epilogue of which there are few copies, for two results at a time: those of general cells would be larger than they are fast.
template <class Finish> struct InPairs {
  const Finish& finish;
  template <class V, int M, int G, int N, bool down, bool whole>
  FASTRNN_FN void operator()(const Bundle<V, M> (&z)[G], Results<N, down, whole> place) const {
    if constexpr (M > 1) {
      const int pairs = known_at_run_time(M / 2);
      for (int m = 0; m < pairs; m++) some<2>(z, 2 * m, place);
    }
    if constexpr (M % 2 == 1) some<1>(z, M - 1, place);
  }

 private:
  template <int count, class V, int M, int G, class Place> FASTRNN_FN void some(const Bundle<V, M> (&z)[G], int first, Place place) const {
    Bundle<V, count> few[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; g++)
#pragma GCC unroll 2
      for (int m = 0; m < count; m++) few[g].v[m] = z[g].v[first + m];
    apart(few, Place{place.row(first), place.block(first), place.units});
  }
  template <class Z, class Place> __attribute__((noinline)) void apart(const Z& z, Place place) const { finish(z, place); }
};
template <bool general, class Finish> FASTRNN_FN decltype(auto) epilogue(const Finish& finish) {
  if constexpr (general) return InPairs<Finish>{finish};
  else return (finish);
}

template <class V, int R, int U, int G, bool packed, class Real, class Start, class Finish>
__attribute__((noinline)) void tile(const Matrix<Real>& w, const Real* const* a, int64_t row, int64_t block, const Real* ahead,
                                    const Start& start, const Finish& finish) {
  V acc[R][U][G];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int u = 0; u < U; u++) start(acc[r][u], row + r, block + u);
  if constexpr (packed) multiply<V, R, U, G>(w, a + row, block, ahead, acc);
  else multiply_rows<V, R, G>(w, a + row, block, acc);
  if constexpr (R == 1) {
    Bundle<V, U> z[G];
#pragma GCC unroll 8
    for (int u = 0; u < U; u++)
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) z[g].v[u] = acc[0][u][g];
    finish_group<false>(z, row, block, w.units, finish);
  } else {
    Bundle<V, R> z[U][G];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int u = 0; u < U; u++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) z[u][g].v[r] = acc[r][u][g];
    const int groups = known_at_run_time(U);
    for (int u = 0; u < groups; u++) finish_group<true>(z[u], row, block + u, w.units, finish);
  }
}

// Rows [row, last) in tiles of nearly equal height, at most R. While they go by, the panel of block 'next' comes nearer.
template <class V, int R, int U, int G, bool packed, class Real, class Start, class Finish>
FASTRNN_FN void tiles(const Matrix<Real>& w, const Real* const* a, Range rows, int64_t block, int64_t next, const Start& start,
                      const Finish& finish) {
  const int64_t n = rows.last - rows.first, count = (n + R - 1) / R;
  int64_t row = rows.first;
  for (int64_t i = 0; i < count; i++) {
    const int64_t height = n * (i + 1) / count - n * i / count, part = i < U * G ? i : 0;
    const Real* ahead = nullptr;
    if constexpr (packed) ahead = w.panel + (next - w.first + part / G) * w.panel_pitch + part % G * w.K * Lanes<V>::n;
    switch (height) {
      case 1: tile<V, 1, U, G, packed>(w, a, row, block, ahead, start, finish); break;
      case 2:
        if constexpr (R >= 2) tile<V, 2, U, G, packed>(w, a, row, block, ahead, start, finish);
        break;
      case 3:
        if constexpr (R >= 3) tile<V, 3, U, G, packed>(w, a, row, block, ahead, start, finish);
        break;
      case 4:
        if constexpr (R >= 4) tile<V, 4, U, G, packed>(w, a, row, block, ahead, start, finish);
        break;
      case 5:
        if constexpr (R >= 5) tile<V, 5, U, G, packed>(w, a, row, block, ahead, start, finish);
        break;
      case 6:
        if constexpr (R >= 6) tile<V, 6, U, G, packed>(w, a, row, block, ahead, start, finish);
        break;
    }
    row += height;
  }
}

// Blocks [blocks.first, blocks.last), U at a time while they last, then half as many; 'back': from the last to the first.
template <class V, int R, int U, int G, class Real, class Start, class Finish>
FASTRNN_FN bool sweep(const Matrix<Real>& w, const Real* const* a, Range rows, Range blocks, bool back, const Start& start,
                      const Finish& finish, Poll& poll) {
  const double work = 2. * double(rows.last - rows.first) * w.K * G * Lanes<V>::n;
  const int64_t count = (blocks.last - blocks.first) / U;
  const Range rest{blocks.first + count * U, blocks.last};
  if constexpr (U > 1)
    if (back && !sweep<V, R, U / 2, G>(w, a, rows, rest, back, start, finish, poll)) return false;
  for (int64_t i = 0; i < count; i++) {
    const int64_t block = blocks.first + (back ? count - 1 - i : i) * U;
    tiles<V, R, U, G, true>(w, a, rows, block, i + 1 == count ? block : back ? block - U : block + U, start, finish);
    if (poll.stop(U * work)) return false;
  }
  if constexpr (U > 1)
    if (!back && !sweep<V, R, U / 2, G>(w, a, rows, rest, back, start, finish, poll)) return false;
  return true;
}

constexpr int blocks_at_once(int G) { return G == 1 ? 4 : G == 2 ? 2 : 1; }

// For every row r in [0, n) and block b of the range: start(z, r, b); z[g] += A[r] W[b, g]; finish(z, r, b).
// a[r] is the row's operand. Consecutive steps walk the panel in alternating directions ('back'), so that what was read last
// is still in the cache. False: interrupted.
template <class V, int G, class Real, class Start, class Finish>
__attribute__((noinline)) bool product(const Matrix<Real>& w, const Real* const* a, int64_t n, Range blocks, bool back, const Start& start,
                                       const Finish& finish, Poll& poll) {
  constexpr int U = blocks_at_once(G), single = G <= 2 ? single_vectors / G : single_vectors / 4;
  if (n == 1) return sweep<V, 1, single, G>(w, a, {0, 1}, blocks, back, start, finish, poll);
  constexpr int64_t band = 384;  // rows of A that stay in the second-level cache while the panels pass by
  for (int64_t row = 0; row < n; row += band)
    if (!sweep<V, max_rows(U * G), U, G>(w, a, {row, row + band < n ? row + band : n}, blocks, back, start, finish, poll)) return false;
  return true;
}

// product from the unpacked rows of W, for a matrix that is read once: its blocks are packed as they come, one group after the
// other into the same buffer, and are still in the cache when they are multiplied.
template <class V, int G, class Real, class Start, class Finish>
FASTRNN_FN bool product_once(const Matrix<Real>& w, Real* pack_buffer, const Real* const* a, int64_t n, Range blocks, const Start& start,
                             const Finish& finish, Poll& poll) {
  for (int64_t block = blocks.first; block < blocks.last; block += blocks_at_once(G)) {
    const Range group{block, block + blocks_at_once(G) < blocks.last ? block + blocks_at_once(G) : blocks.last};
    pack_panel(w, G, group, pack_buffer, poll);
    Matrix<Real> packed = w;
    packed.panel = pack_buffer, packed.panel_pitch = w.K * G * Lanes<V>::n, packed.first = block;
    if (!product<V, G>(packed, a, n, group, false, start, finish, poll)) return false;
  }
  return true;
}

// product from the unpacked rows of W, for rows too few to pay for packing.
template <class V, int G, class Real, class Start, class Finish>
FASTRNN_FN bool product_of_rows(const Matrix<Real>& w, const Real* const* a, int64_t n, Range blocks, const Start& start,
                                const Finish& finish, Poll& poll) {
  for (int64_t block = blocks.first; block < blocks.last; block++) {
    tiles<V, 2, 1, G, false>(w, a, {0, n}, block, block, start, finish);
    if (poll.stop(2. * double(n) * double(w.head ? w.head : w.K) * G * Lanes<V>::n)) return false;
  }
  return true;
}

// ---- packing -------------------------------------------------------------------------------------------------------

constexpr double packing_work = 16;  // to move an element takes as long as that many multiplications and additions

// Rows of length n, given by pointer -> [block][pitch][N] with row k at depth k: the panel of their transpose.
template <class V, class Real, class Row>
FASTRNN_FN void pack_rows(Row row, int64_t count, int64_t n, int64_t pitch, Range blocks, Real* panel, Poll& poll) {
  constexpr int N = Lanes<V>::n;
  for (int64_t k = 0; k < count; k++) {
    const Real* from = row(k);
    if (poll.stop(double(blocks.last - blocks.first) * N * packing_work)) return;
    for (int64_t block = blocks.first; block < blocks.last; block++)
      store(panel + (block * pitch + k) * N, load<V>(from + block * N, n - block * N));
  }
}

// Columns [blocks] of rows given by pointer, in unit blocks -> columns[n][pitch]; adds the sum of every column to sums.
template <class V, class Real, class Row>
FASTRNN_FN void transpose_rows(Row row, int64_t count, int64_t n, int64_t pitch, Range blocks, Real* columns, Real* sums) {
  constexpr int N = Lanes<V>::n;
  for (int64_t block = blocks.first; block < blocks.last; block++) {
    const int64_t width = n - block * N < N ? n - block * N : N;
    V total{};
    for (int64_t k = 0; k < count; k += N) {
      V m[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; i++) m[i] = k + i < count ? load<V>(row(k + i) + block * N, width) : V{};
#pragma GCC unroll 16
      for (int i = 0; i < N; i++) total = total + m[i];
      if constexpr (N > 1) transpose(m);
      if (width == N) {
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) store(columns + (block * N + i) * pitch + k, m[i]);
      } else {
        for (int64_t i = 0; i < width; i++) store(columns + (block * N + i) * pitch + k, m[i]);
      }
    }
    if (sums) store(sums + block * N, load<V>(sums + block * N, width) + total, width);
  }
}

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
