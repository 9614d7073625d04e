// What the cells of an instruction set share, and its table: the cells, the plain matrix product of the read-out, and the
// activations of whole arrays, so that tests can measure their error over the whole range.
#include "kernels/gemm.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class V, class Real>
FASTRNN_FN bool multiply_into(const Matrix<Real>& w, const Real* const* a, int64_t n, Range blocks, Real* const* out, bool add,
                              Poll& poll) {
  auto start = [](V(&z)[1], int64_t, int64_t) __attribute__((always_inline)) { z[0] = V{}; };
  auto finish = [&](const auto& z, auto place) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int m = 0; m < Members<decltype(z[0])>::n; m++) {
      Real* to = out[place.row(m)] + place.at(m);
      store(to, add ? load<V>(to, place.left(m)) + z[0].v[m] : z[0].v[m], place.left(m));
    }
  };
  return product<V, 1>(w, a, n, blocks, false, start, finish, poll);
}

// K rows of W at once, which one pass over a row of 'out' adds.
template <int K, class V, class Real>
FASTRNN_FN void add_rows(const Real* w, int64_t pitch, const Real* a, Range columns, Real* out) {
  constexpr int N = Lanes<V>::n;
  V s[K];
#pragma GCC unroll 8
  for (int k = 0; k < K; k++) s[k] = splat<V>(a[k]);
  int64_t at = columns.first;
  for (; at + N <= columns.last; at += N) {
    V sum = load<V>(out + at);
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) sum = fma(s[k], load<V>(w + k * pitch + at), sum);
    store(out + at, sum);
  }
  const int64_t left = columns.last - at;
  if (left <= 0) return;
  V sum = load<V>(out + at, left);
#pragma GCC unroll 8
  for (int k = 0; k < K; k++) sum = fma(s[k], load<V>(w + k * pitch + at, left), sum);
  store(out + at, sum, left);
}

template <class V, class Real>
FASTRNN_FN bool multiply_few_of(const Real* w, int64_t K, int64_t pitch, const Real* const* a, int64_t n, Range columns, Real* const* out,
                                Poll& poll) {
  constexpr int at_once = 8;
  int64_t k = 0;
  for (; k + at_once <= K; k += at_once) {
    for (int64_t i = 0; i < n; i++) add_rows<at_once, V>(w + k * pitch, pitch, a[i] + k, columns, out[i]);
    if (poll.stop(2. * at_once * double(n) * double(columns.last - columns.first))) return false;
  }
  for (; k < K; k++)
    for (int64_t i = 0; i < n; i++) add_rows<1, V>(w + k * pitch, pitch, a[i] + k, columns, out[i]);
  return true;
}

// out = (add: out +) the sum of K rows of b, each times its element of a.
template <int K, bool add, class V, class Real> FASTRNN_FN void outer_rows(const Real* a, const Real* const* b, int64_t width, Real* out) {
  constexpr int N = Lanes<V>::n;
  V s[K];
  const Real* rows[K];
#pragma GCC unroll 8
  for (int k = 0; k < K; k++) s[k] = splat<V>(a[k]), rows[k] = b[k];
  int64_t at = 0;
  for (; at + N <= width; at += N) {
    V sum = add ? load<V>(out + at) : V{};
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) sum = fma(s[k], load<V>(rows[k] + at), sum);
    store(out + at, sum);
  }
  const int64_t left = width - at;
  if (left <= 0) return;
  V sum = add ? load<V>(out + at, left) : V{};
#pragma GCC unroll 8
  for (int k = 0; k < K; k++) sum = fma(s[k], load<V>(rows[k] + at, left), sum);
  store(out + at, sum, left);
}

template <bool add, class V, class Real>
FASTRNN_FN void outer_part(const Real* a, const Real* const* b, int64_t K, int64_t width, Real* out) {
  switch (K) {
    case 1: return outer_rows<1, add, V>(a, b, width, out);
    case 2: return outer_rows<2, add, V>(a, b, width, out);
    case 3: return outer_rows<3, add, V>(a, b, width, out);
    case 4: return outer_rows<4, add, V>(a, b, width, out);
    case 5: return outer_rows<5, add, V>(a, b, width, out);
    case 6: return outer_rows<6, add, V>(a, b, width, out);
    case 7: return outer_rows<7, add, V>(a, b, width, out);
    case 8: return outer_rows<8, add, V>(a, b, width, out);
  }
}

template <class V, class Real>
FASTRNN_FN bool outer_few_of(const Real* const* a, const Real* const* b, int64_t K, int64_t n, int64_t width, Real* const* out,
                             Poll& poll) {
  constexpr int64_t at_once = 8;
  for (int64_t i = 0; i < n; i++) {
    if (!K)
      for (int64_t at = 0; at < width; at++) out[i][at] = 0;
    outer_part<false, V>(a[i], b, K < at_once ? K : at_once, width, out[i]);
    for (int64_t k = at_once; k < K; k += at_once) outer_part<true, V>(a[i] + k, b + k, K - k < at_once ? K - k : at_once, width, out[i]);
    if (poll.stop(2. * double(K + 4) * double(width))) return false;
  }
  return true;
}

// Lanes [lanes) of a block, rows of K columns from that of lane 0 on -> [K][G][N] of one gate; the other lanes are zero.
template <class V, class Real> FASTRNN_FN void pack_lanes(const Real* rows, int64_t K, Range lanes, int G, Real* to) {
  constexpr int N = Lanes<V>::n;
  for (int64_t k = 0; k < K; k += N) {
    const int64_t depth = K - k < N ? K - k : N;
    V m[N];
#pragma GCC unroll 16
    for (int lane = 0; lane < N; lane++) m[lane] = lane >= lanes.first && lane < lanes.last ? load<V>(rows + lane * K + k, depth) : V{};
    if constexpr (N > 1) transpose(m);
    if (depth == N) {
#pragma GCC unroll 16
      for (int i = 0; i < N; i++) store(to + (k + i) * G * N, m[i]);
    } else {
      for (int64_t i = 0; i < depth; i++) store(to + (k + i) * G * N, m[i]);
    }
  }
}

template <class V, class Real>
FASTRNN_FN void pack_blocks(const Matrix<Real>& w, int G, Range blocks, Real* panel, Poll& poll) {
  constexpr int N = Lanes<V>::n;
  const int64_t K = w.K, units = w.units, head = w.head ? w.head : K;
  for (int64_t block = blocks.first; block < blocks.last; block++) {
    const int64_t first = block * N, count = units - first < N ? units - first : N;
    if (poll.stop(double(K) * G * N * packing_work)) return;
    for (int g = 0; g < G; g++) {
      const Real* from = w.rows + (g * units + first) * head;
      Real* to = panel + ((block - blocks.first) * K * G + g) * N;
      // the heads of the window one after the other; without heads it is all columns at once
      for (int64_t k = 0; k < K; k += head) {
        const int64_t begin = w.column + k - first, end = begin + head;
        const Range all{0, count}, own{begin > 0 ? begin : 0, end < count ? end : count};
        pack_lanes<V>(from, head, w.head ? own : all, G, to + k * G * N);
      }
    }
  }
}

}  // namespace

bool product_into(const Matrix<float>& w, const float* const* a, int64_t n, Range blocks, float* const* out, bool add, Poll& poll) {
  return multiply_into<VectorOf<float>::type>(w, a, n, blocks, out, add, poll);
}
bool product_into(const Matrix<double>& w, const double* const* a, int64_t n, Range blocks, double* const* out, bool add, Poll& poll) {
  return multiply_into<VectorOf<double>::type>(w, a, n, blocks, out, add, poll);
}
bool multiply_few(const float* w, int64_t K, int64_t pitch, const float* const* a, int64_t n, Range columns, float* const* out,
                  Poll& poll) {
  return multiply_few_of<VectorOf<float>::type>(w, K, pitch, a, n, columns, out, poll);
}
bool multiply_few(const double* w, int64_t K, int64_t pitch, const double* const* a, int64_t n, Range columns, double* const* out,
                  Poll& poll) {
  return multiply_few_of<VectorOf<double>::type>(w, K, pitch, a, n, columns, out, poll);
}
bool outer_few(const float* const* a, const float* const* b, int64_t K, int64_t n, int64_t width, float* const* out, Poll& poll) {
  return outer_few_of<VectorOf<float>::type>(a, b, K, n, width, out, poll);
}
bool outer_few(const double* const* a, const double* const* b, int64_t K, int64_t n, int64_t width, double* const* out, Poll& poll) {
  return outer_few_of<VectorOf<double>::type>(a, b, K, n, width, out, poll);
}
void pack_panel(const Matrix<float>& w, int G, Range blocks, float* panel, Poll& poll) {
  pack_blocks<VectorOf<float>::type>(w, G, blocks, panel, poll);
}
void pack_panel(const Matrix<double>& w, int G, Range blocks, double* panel, Poll& poll) {
  pack_blocks<VectorOf<double>::type>(w, G, blocks, panel, poll);
}

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

// Rows [rows) of C, from all of A's rows and of the panel.
template <class V, class Real> FASTRNN_FN bool product_of(const Product<Real>& p, Range rows, const Seat& seat, Poll& poll) {
  constexpr int N = Lanes<V>::n;
  const Real** a = (const Real**)p.row_pointers;
  Real** c = (Real**)(a + p.n);
  const int64_t pitch = (p.K + N) / N * N, count = rows.last - rows.first;
  Real* const columns = p.a_transposed ? p.columns + seat.rank * product_rows * (p.K + N) : nullptr;
  if (p.a_transposed)
    transpose_rows<V>([&](int64_t k) { return p.a + k * p.n + rows.first; }, p.K, count, pitch, {0, blocks_of<V>(count)}, columns,
                      (Real*)nullptr);
  for (int64_t k = 0; k == 0 || k < p.K; k += depth) {
    for (int64_t i = rows.first; i < rows.last; i++) {
      a[i] = (p.a_transposed ? columns + (i - rows.first) * pitch : p.a + i * p.K) + k;
      c[i] = p.c + i * p.m;
    }
    const Matrix<Real> w{p.panel + k * N, nullptr, p.K - k < depth ? p.K - k : depth, p.m, p.K * N};
    if (!product_into(w, a + rows.first, count, {0, blocks_of<V>(p.m)}, c + rows.first, p.add || k > 0, poll)) return false;
  }
  return true;
}

template <class Real> void product(const Product<Real>& p, const Seat& seat) {
  using V = typename VectorOf<Real>::type;
  constexpr int N = Lanes<V>::n;
  FlushToZero mode;
  Poll poll(seat);
  const Range blocks = share_of(blocks_of<V>(p.m), seat.rank, seat.size), rows = share_of(p.n, seat.rank, seat.size, wide_rows);
  if (p.b_transposed) pack_panel({nullptr, p.b, p.K, p.m, 0}, 1, blocks, p.panel + blocks.first * p.K * N, poll);
  else pack_rows<V>([&](int64_t k) { return p.b + k * p.m; }, p.K, p.m, p.K, blocks, p.panel, poll);
  if (wait(seat)) return;
  const int64_t at_once = p.a_transposed ? product_rows : rows.last - rows.first;
  for (int64_t row = rows.first; row < rows.last; row += at_once)
    if (!product_of<V>(p, {row, row + at_once < rows.last ? row + at_once : rows.last}, seat, poll)) return;
}

// The largest of m >= 1 numbers; a NaN may or may not be passed by.
template <class V, class Real> FASTRNN_FN Real largest(const Real* x, int64_t m) {
  constexpr int N = Lanes<V>::n;
  Real most = x[0];
  if (m < N) {
    for (int64_t k = 1; k < m; k++) most = x[k] > most ? x[k] : most;
    return most;
  }
  V found = load<V>(x);
  for (int64_t k = 0; k < m; k += N) {
    const V v = load<V>(x + (k + N <= m ? k : m - N));
    found = v > found ? v : found;
  }
  Real lanes[N];
  store(lanes, found);
  for (int i = 0; i < N; i++) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

// f(k, left) for each vector of m numbers gives what is added up, in double from time to time.
template <class V, class F> FASTRNN_FN double sum_of(int64_t m, const F& f) {
  constexpr int N = Lanes<V>::n;
  double total = 0;
  for (int64_t first = 0; first < m; first += 64 * N) {
    V part{};
    for (int64_t k = first; k < m && k < first + 64 * N; k += N) part = part + f(k, m - k);
    total += double(sum(part));
  }
  return total;
}

template <class Real> void softmax(const Softmax<Real>& s, const Seat& seat) {
  using V = typename VectorOf<Real>::type;
  constexpr int N = Lanes<V>::n;
  FlushToZero mode;
  Poll poll(seat);
  const Range mine = share_of(s.n, seat.rank, seat.size);
  for (int64_t row = mine.first; row < mine.last; row++) {
    const Real* z = s.logits + row * s.m;
    Real* g = s.gradients + row * s.m;
    const Real most = largest<V>(z, s.m);
    double chosen = double(z[s.classes[row]] - most);
    if (s.smoothing != 0) {
      const double mean = sum_of<V>(s.m, [&](int64_t k, int64_t left) { return load<V>(z + k, left); }) / double(s.m);
      chosen = (1 - s.smoothing) * chosen + s.smoothing * (mean - double(most));
    }
    const double sum = sum_of<V>(s.m, [&](int64_t k, int64_t left) {
      store(g + k, exp_of_negative(load<V>(z + k, left) - most), left);
      return load<V>(g + k, left);  // zero where there is no element
    });
    s.losses[row] = __builtin_log(sum) - chosen;
    const V factor = splat<V>(Real(s.scale / sum)), everywhere = splat<V>(Real(s.scale * s.smoothing / double(s.m)));
    for (int64_t k = 0; k < s.m; k += N) store(g + k, load<V>(g + k, s.m - k) * factor - everywhere, s.m - k);
    g[s.classes[row]] -= Real(s.scale * (1 - s.smoothing));
    if (poll.stop(double(s.m) * 40)) return;
  }
}

// As multiply_rows adds them up.
template <class V, class Real> FASTRNN_FN Real dot(const Real* a, const Real* b, int64_t n) {
  constexpr int N = Lanes<V>::n;
  V total{};
  int64_t k = 0;
  for (; k + N <= n; k += N) total = fma(load<V>(a + k), load<V>(b + k), total);
  if (k < n) total = fma(load<V>(a + k, n - k), load<V>(b + k, n - k), total);
  return sum(total);
}

// From the rows as they are: few of them, for a read-out after each step.
template <class Real> void linear(const Linear<Real>& l) {
  using V = typename VectorOf<Real>::type;
  constexpr int64_t few_outputs = 4;
  if (l.m <= few_outputs) {
    for (int64_t i = 0; i < l.n; i++)
      for (int64_t o = 0; o < l.m; o++) l.y[i * l.m + o] = (l.bias ? l.bias[o] : Real(0)) + dot<V>(l.weight + o * l.K, l.x + i * l.K, l.K);
    return;
  }
  constexpr int N = Lanes<V>::n, group = 32;
  Control control{};
  Barrier alone{{}, 1, 0, 0, 0, {}};
  Poll poll(Seat{0, 1, true, false, &alone, &control});
  const Real* rows[group];
  for (int64_t first = 0; first < l.n; first += group) {
    const int64_t count = l.n - first < group ? l.n - first : group;
    for (int64_t i = 0; i < count; i++) rows[i] = l.x + (first + i) * l.K;
    auto start = [&](V(&z)[1], int64_t, int64_t block)
                     __attribute__((always_inline)) { z[0] = l.bias ? load<V>(l.bias + block * N, l.m - block * N) : V{}; };
    auto finish = [&](const auto& z, auto place) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int m = 0; m < Members<decltype(z[0])>::n; m++)
        store(l.y + (first + place.row(m)) * l.m + place.at(m), z[0].v[m], place.left(m));
    };
    product_of_rows<V, 1>(Matrix<Real>{nullptr, l.weight, l.K, l.m, 0}, rows, count, {0, blocks_of<V>(l.m)}, start, finish, poll);
  }
}

// More chains than two units with a latency of four have in flight; they converge to 2.
template <class Real> double fma_loop(int64_t iterations) {
  using V = typename VectorOf<Real>::type;
  constexpr int chains = 12;
  volatile Real half = Real(0.5), sink;
  const V factor = splat<V>(half);
  V x[chains], total{};
#pragma GCC unroll 16
  for (int i = 0; i < chains; i++) x[i] = splat<V>(Real(i));
  for (int64_t k = 0; k < iterations; k++)
#pragma GCC unroll 16
    for (int i = 0; i < chains; i++) x[i] = fma(x[i], factor, splat<V>(1));
#pragma GCC unroll 16
  for (int i = 0; i < chains; i++) total = total + x[i];
  sink = sum(total);
  (void)sink;
  return 2. * chains * Lanes<V>::n * double(iterations);
}

template <class Real> double read_loop(const Real* x, int64_t n, int64_t passes) {
  using V = typename VectorOf<Real>::type;
  constexpr int N = Lanes<V>::n, width = 8;
  volatile Real sink;
  V total[width] = {};
  const int64_t step = N * width, whole = n / step * step;
  for (int64_t pass = 0; pass < passes; pass++)
    for (int64_t i = 0; i < whole; i += step)
#pragma GCC unroll 8
      for (int j = 0; j < width; j++) total[j] = total[j] + load<V>(x + i + j * N);
#pragma GCC unroll 8
  for (int j = 1; j < width; j++) total[0] = total[0] + total[j];
  sink = sum(total[0]);
  (void)sink;
  return double(whole) * sizeof(Real) * double(passes);
}

template <class Real> constexpr Functions<Real> functions() {
  return {Lanes<typename VectorOf<Real>::type>::n,
          apply<Real, false>,
          apply<Real, true>,
          product<Real>,
          softmax<Real>,
          linear<Real>,
          fma_loop<Real>,
          read_loop<Real>};
}

}  // namespace

#define FASTRNN_DECLARE(name, type)       \
  extern const Kernel<float> name##_f32;  \
  extern const Kernel<double> name##_f64; \
  void name##_narrow(const Direction<float>&, const Seat&);
#define FASTRNN_F32(name, type) &name##_f32,
#define FASTRNN_F64(name, type) &name##_f64,
#define FASTRNN_NARROW(name, type) name##_narrow,
FASTRNN_CELLS(FASTRNN_DECLARE)

extern const KernelTable<float> table_f32;
extern const KernelTable<double> table_f64;
extern const NarrowTable narrow_table;
const KernelTable<float> table_f32 = {{FASTRNN_CELLS(FASTRNN_F32)}, functions<float>()};
const KernelTable<double> table_f64 = {{FASTRNN_CELLS(FASTRNN_F64)}, functions<double>()};
const NarrowTable narrow_table = {{FASTRNN_CELLS(FASTRNN_NARROW)}};

}  // namespace fastrnn::FASTRNN_ISA
