// Numbers on the GPU: from storage to what is computed in and back, and how a warp multiplies.
#pragma once
#include "cuda/kernels/device.hpp"
#include "cuda/kernels/numbers.hpp"
#include "kernels/vec.hpp"

namespace fastrnn::device {
namespace {

using cuda::Bfloat16;
using cuda::Float16;

FASTRNN_DEVICE float widen(float x) { return x; }
FASTRNN_DEVICE double widen(double x) { return x; }
FASTRNN_DEVICE float widen(Float16 x) { return from_float16(x.bits); }
FASTRNN_DEVICE float widen(Bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, 4);
  return wide;
}
template <class Store> struct Narrow;
template <> struct Narrow<float> {
  static FASTRNN_DEVICE float from(float x) { return x; }
};
template <> struct Narrow<double> {
  static FASTRNN_DEVICE double from(double x) { return x; }
};
template <> struct Narrow<Bfloat16> {
  static FASTRNN_DEVICE Bfloat16 from(float x) { return {to_bfloat16(x)}; }
};
template <> struct Narrow<Float16> {
  static FASTRNN_DEVICE Float16 from(float x) { return {to_float16(x)}; }
};
template <class Store, class Real> FASTRNN_DEVICE Store narrow(Real x) { return Narrow<Store>::from(x); }

struct alignas(16) Piece {
  uint32_t bits[4];
};
FASTRNN_DEVICE Piece piece_at(const char* p) { return *reinterpret_cast<const Piece*>(p); }

// A warp's product of MT tiles of 16 rows, of which the first G eights are there, with NT tiles of 8 columns, over the k of one step:
// step_bytes of each row. Lane l holds in sums[m][n] the elements (l / 4, 2 (l % 4)) and the one to its right, and the two that are 8 rows
// below. Rows, and columns, lie 'padding' bytes beyond a multiple of 128 apart, so that a quarter of a warp reads all banks of shared
// memory once.

// Matrix instructions. Which k of the step is which k of the instruction does not matter as long as both factors agree: a lane's 16
// bytes serve two instructions.
template <class Multiply> struct TensorCores {
  static constexpr int step_bytes = 64, padding = 64;
  using Real = float;
  template <int G, int MT, int NT> static FASTRNN_DEVICE void run(float (&sums)[MT][NT][4], const char* rows, int row_pitch,
                                                                  const char* columns, int pitch, int lane) {
    Piece b[NT];
#pragma unroll
    for (int n = 0; n < NT; n++) b[n] = piece_at(columns + (n * 8 + lane / 4) * pitch + lane % 4 * 16);
#pragma unroll
    for (int m = 0; m < MT; m++) {
      const Piece upper = piece_at(rows + (m * 16 + lane / 4) * row_pitch + lane % 4 * 16);
      const Piece lower = 2 * m + 1 < G ? piece_at(rows + (m * 16 + 8 + lane / 4) * row_pitch + lane % 4 * 16) : Piece{};
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i += 2)
          Multiply::run(sums[m][n], upper.bits[i], lower.bits[i], upper.bits[i + 1], lower.bits[i + 1], b[n].bits[i], b[n].bits[i + 1]);
    }
  }
};

// Plain multiplications and additions, each rounded as IEEE 754 wants it.
template <class Real_> struct Exact {
  using Real = Real_;
  static constexpr int step_bytes = 16, padding = 16, each = 16 / sizeof(Real);
  struct alignas(16) Numbers {
    Real x[each];
  };
  static FASTRNN_DEVICE Numbers numbers_at(const char* p) { return *reinterpret_cast<const Numbers*>(p); }

  template <int G, int MT, int NT> static FASTRNN_DEVICE void run(Real (&sums)[MT][NT][4], const char* rows, int row_pitch,
                                                                  const char* columns, int pitch, int lane) {
    Numbers b[NT][2];
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int j = 0; j < 2; j++) b[n][j] = numbers_at(columns + (n * 8 + lane % 4 * 2 + j) * pitch);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int i = 0; i < 2 && 2 * m + i < G; i++) {
        const Numbers a = numbers_at(rows + (m * 16 + i * 8 + lane / 4) * row_pitch);
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int j = 0; j < 2; j++)
#pragma unroll
            for (int k = 0; k < each; k++) sums[m][n][2 * i + j] = fma(a.x[k], b[n][j].x[k], sums[m][n][2 * i + j]);
      }
  }
};

template <class T> struct ProductOf;
template <> struct ProductOf<cuda::Float32> : Exact<float> {};
template <> struct ProductOf<cuda::Float64> : Exact<double> {};
template <> struct ProductOf<cuda::Tf32> : TensorCores<MultiplyTf32> {};
template <> struct ProductOf<cuda::Bf16> : TensorCores<MultiplyBfloat16> {};
template <> struct ProductOf<cuda::Fp16> : TensorCores<MultiplyFloat16> {};

}  // namespace
}  // namespace fastrnn::device
