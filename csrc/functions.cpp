// The table of one instruction set: its cells, the plain matrix product of the read-out, and the activations of whole
// arrays, so that tests can measure their error over the whole range.
#include "gemm.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class Real, bool is_tanh> void apply(const Real* x, Real* y, int64_t n) {
  using V = typename VectorOf<Real>::type;
  FlushToZero mode;
  for (int64_t i = 0; i < n; i += Lanes<V>::n) {
    const V v = load<V>(x + i, n - i);
    store(y + i, is_tanh ? tanh(v) : sigmoid(v), n - i);
  }
}

constexpr int64_t depth = 512;  // of one pass over K: what a pass reads of A and of a panel stays in the cache

template <class Real> void product(const Product<Real>& p, const Team& team) {
  using V = typename VectorOf<Real>::type;
  constexpr int N = Lanes<V>::n;
  FlushToZero mode;
  Poll poll(team);
  const Range blocks = share_of(blocks_of<V>(p.m), team.rank, team.size), rows = share_of(p.n, team.rank, team.size, wide_rows);
  const int64_t columns_pitch = (p.K + N) / N * N;
  const Real** a = (const Real**)p.tables;
  Real** c = (Real**)(a + p.n);
  for (int64_t i = rows.first; i < rows.last; i++) c[i] = p.c + i * p.m;
  if (p.b_transposed) pack_panel<V>(p.b, p.m, p.K, 0, 1, blocks, p.panel, poll);
  else pack_rows<V>([&](int64_t k) { return p.b + k * p.m; }, p.K, p.m, p.K, blocks, p.panel, poll);
  if (p.a_transposed)
    transpose_rows<V>([&](int64_t k) { return p.a + k * p.n; }, p.K, p.n, columns_pitch, share_of(blocks_of<V>(p.n), team.rank, team.size),
                      p.columns, (Real*)nullptr);
  if (wait(team)) return;
  for (int64_t k = 0; k == 0 || k < p.K; k += depth) {
    for (int64_t i = rows.first; i < rows.last; i++) a[i] = (p.a_transposed ? p.columns + i * columns_pitch : p.a + i * p.K) + k;
    const Matrix<Real> w{p.panel + k * N, nullptr, p.K - k < depth ? p.K - k : depth, p.m, p.K * N};
    if (!product_into<V>(w, a + rows.first, rows.last - rows.first, {0, blocks_of<V>(p.m)}, c + rows.first, k > 0, poll)) return;
  }
}

template <class Real> constexpr Functions<Real> functions() {
  return {Lanes<typename VectorOf<Real>::type>::n, apply<Real, false>, apply<Real, true>, product<Real>};
}

}  // namespace

#define FASTRNN_DECLARE(name, type)      \
  extern const Kernel<float> name##_f32; \
  extern const Kernel<double> name##_f64;
#define FASTRNN_F32(name, type) &name##_f32,
#define FASTRNN_F64(name, type) &name##_f64,
FASTRNN_CELLS(FASTRNN_DECLARE)

extern const KernelTable<float> table_f32;
extern const KernelTable<double> table_f64;
const KernelTable<float> table_f32 = {{FASTRNN_CELLS(FASTRNN_F32)}, functions<float>()};
const KernelTable<double> table_f64 = {{FASTRNN_CELLS(FASTRNN_F64)}, functions<double>()};

}  // namespace fastrnn::FASTRNN_ISA
