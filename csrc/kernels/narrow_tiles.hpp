// Part of narrow.cpp: products with the matrix unit of AMX. Its tiles have 16 rows of 64 bytes: one holds up to 16 rows of the
// batch and 64 or 32 columns of these, another the same columns of one vector of units as a narrow panel has them.
#pragma once
#include "kernels/narrow_split.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

constexpr int tile_rows = 16, tile_bytes = 64, max_gates = 4;

// Tiles 0 to 3 are sums, 4 and 5 the batch's, 6 and 7 the weights'.
FASTRNN_FN void configure_tiles(int64_t rows) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int i = 0; i < 8; i++) config.bytes[i] = tile_bytes, config.rows[i] = uint8_t(i < 6 ? rows : tile_rows);
  asm volatile("" ::"r"(&config) : "memory");  // all of it has been written: the intrinsic tells the compiler of 8 bytes only
  _tile_loadconfig(&config);
}

// Up to 16 rows times 4 vectors of units, whose panels are given; sums[v] has its rows so many bytes apart.
template <Format format>
FASTRNN_FN void multiply_tiles(const uint8_t* a, int64_t a_pitch, int64_t K, const char* const* panels, int64_t pitch, float* const* sums,
                               int64_t sum_pitch) {
  constexpr int64_t columns = format == Format::int8 ? 64 : 32;
  asm volatile("" ::: "memory");  // what the tiles read has been written
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < K; k += columns) {
    const int64_t at = k / columns * tile_rows * pitch;
    const uint8_t* const here = a + k / columns * tile_bytes;
    _tile_loadd(4, here, a_pitch);
    if constexpr (format == Format::bfloat16) _tile_loadd(5, here + second_part(K), a_pitch);
#define FASTRNN_MULTIPLY(v, w)            \
  _tile_loadd(6, panels[v] + at, pitch);  \
  _tile_loadd(7, panels[w] + at, pitch);  \
  if constexpr (format == Format::int8) { \
    _tile_dpbssd(v, 4, 6);                \
    _tile_dpbssd(w, 4, 7);                \
  } else {                                \
    _tile_dpbf16ps(v, 4, 6);              \
    _tile_dpbf16ps(w, 4, 7);              \
    _tile_dpbf16ps(v, 5, 6);              \
    _tile_dpbf16ps(w, 5, 7);              \
  }
    FASTRNN_MULTIPLY(0, 1)
    FASTRNN_MULTIPLY(2, 3)
#undef FASTRNN_MULTIPLY
  }
  _tile_stored(0, sums[0], sum_pitch);
  _tile_stored(1, sums[1], sum_pitch);
  _tile_stored(2, sums[2], sum_pitch);
  _tile_stored(3, sums[3], sum_pitch);
}

// As NarrowProducts::multiply.
template <Format format>
FASTRNN_FN void multiply_by_tiles(const NarrowPanel& w, int gates, int64_t first, int64_t last, const NarrowOperand& a, float* z) {
  constexpr int N = Lanes<V>::n;
  constexpr int64_t depth = depth_of(format);
  const int64_t groups = (a.K + depth - 1) / depth, w_pitch = gates * tile_bytes;
  const int64_t a_pitch = format == Format::int8 ? narrow_pitch(a.K) : 2 * second_part(a.K);
  // Tiles of equal heights: the last one repeats some rows.
  const int64_t count = (a.n + tile_rows - 1) / tile_rows, height = (a.n + count - 1) / count;
  configure_tiles(height);
  float unused[max_gates * tile_rows * N];  // where there are fewer than 4 vectors left
  for (int64_t vector = first * gates; vector < last * gates; vector += 4) {
    const char* panels[4];
    float* sums[4];
    const int64_t left = last * gates - vector;
    for (int64_t v = 0; v < 4; v++) {
      const int64_t which = vector + (v < left ? v : 0), block = which / gates, gate = which % gates;
      panels[v] = w.data + block * groups * w_pitch + gate * tile_bytes;
      sums[v] = v < left ? z + ((block - first) * a.n * gates + gate) * N : unused;
    }
    for (int64_t i = 0; i < count; i++) {
      const int64_t row = i * height + height <= a.n ? i * height : a.n - height;
      float* to[4];
      for (int64_t v = 0; v < 4; v++) to[v] = sums[v] + (v < left ? row * gates * N : 0);
      multiply_tiles<format>(a.prepared + row * a_pitch, a_pitch, a.K, panels, w_pitch, to, gates * tile_bytes);
      if constexpr (format == Format::int8)
        for (int64_t v = 0; v < 4 && v < left; v++) {
          const V scale = load<V>(w.scale + (vector + v) * N);
          for (int64_t r = 0; r < height; r++) {
            float* const sum = to[v] + r * gates * N;
            store(sum, scaled(read<I32>(sum), a.scale[row + r] * scale));
          }
        }
    }
  }
  _tile_release();
}

// Products of tiles with nothing between them, so often; the multiplications done.
FASTRNN_FN int64_t tile_products(Format format, int64_t iterations) {
  configure_tiles(tile_rows);
  for (int64_t k = 0; k < iterations; k++)
    if (format == Format::int8) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  _tile_release();
  return 4 * tile_rows * tile_rows * (tile_bytes / (format == Format::int8 ? 1 : 2)) * iterations;
}

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
