// The large products: C (n,m) = A (n,K) B (K,m), any layout, any size. What cuBLASLt does where there is one; see
// blas.hpp.
#pragma once
#include "cuda/kernels/sweep.hpp"
#include "cuda/kernels/tile.hpp"

namespace fastrnn::device {
namespace {

// Chunk c of up to 'count' rows of a factor, whatever its layout; beyond 'height' rows, and beyond K, zeros.
template <class Tile> FASTRNN_DEVICE void load_factor(char* to, int count, const cuda::Factor<typename Tile::Store>& f, int64_t first,
                                                      int64_t height, int64_t c, int64_t K) {
  using Store = typename Tile::Store;
  if (f.k_stride == 1 && f.row_stride % Tile::piece == 0 && K % Tile::piece == 0 && uint64_t(f.base) % 16 == 0) {
    Tile::load(to, count, c, K, [&](int i) { return first + i < height ? f.base + (first + i) * f.row_stride : nullptr; });
    return;
  }
  for (int at = int(threadIdx.x); at < count * Tile::chunk; at += block_threads) {
    const int i = f.k_stride == 1 ? at / Tile::chunk : at % count, k = f.k_stride == 1 ? at % Tile::chunk : at / count;
    const int64_t row = first + i, column = c * Tile::chunk + k;
    const bool inside = row < height && column < K;
    reinterpret_cast<Store*>(to + i * Tile::pitch)[k] = inside ? f.base[row * f.row_stride + column * f.k_stride] : Store{};
  }
}

// A block does 64 x 64 elements of C over a share of K. With one share C itself is written; otherwise 'parts' (shares,n,m).
template <class T, class Out>
__global__ void __launch_bounds__(block_threads, 2)
    product(cuda::MatrixProduct<typename T::Store> p, int shares, Out* c, typename T::Real* parts) {
  using Product = Tile<T, 4, 64>;
  using Real = typename T::Real;
  const int64_t across = (p.m + 63) / 64, index = int64_t(blockIdx.x) / shares, share = int64_t(blockIdx.x) % shares;
  const int64_t first_m = index % across * 64, first_n = index / across * 64;
  const int64_t chunks = Product::chunks_of(p.K), each = (chunks + shares - 1) / shares, begin = share * each;
  const int64_t mine = begin + each < chunks ? each : begin < chunks ? chunks - begin : 0;
  const Product tile;
  tile.run(
      mine, [&](char* to, int64_t i) { load_factor<Product>(to, 64, p.b, first_m, p.m, begin + i, p.K); },
      [&](char* to, int64_t i) { load_factor<Product>(to, 64, p.a, first_n, p.n, begin + i, p.K); });
  for (int i = int(threadIdx.x); i < 64 * 64; i += block_threads) {
    const int64_t row = first_n + i / 64, column = first_m + i % 64;
    if (row >= p.n || column >= p.m) continue;
    Real sum = tile.at(i % 64, i / 64);
    if (shares > 1) {
      parts[(share * p.n + row) * p.m + column] = sum;
    } else {
      Out& to = c[row * p.pitch + column];
      if (p.add) sum += widen(to);
      to = narrow<Out>(sum);
    }
  }
}

}  // namespace
}  // namespace fastrnn::device
