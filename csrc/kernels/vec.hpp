// One vector type for scalars and SIMD: V is Real itself (N = 1) or a GCC/Clang vector of N lanes.
// The build of each instruction set defines FASTRNN_ISA (a namespace) and FASTRNN_VECTOR_BYTES (64: AVX-512, 32: AVX2 and FMA, 16: NEON,
// 0: scalar). Kernels ask these and not the compiler's own macros, which say what a whole file is compiled for.
#pragma once
#include <cstdint>

#include "kernels/structs.hpp"

#if FASTRNN_VECTOR_BYTES >= 32
#include <immintrin.h>
#elif FASTRNN_VECTOR_BYTES == 16
#include <arm_neon.h>
#endif

#define FASTRNN_FN FASTRNN_INLINE

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class V> struct Lanes;
template <> struct Lanes<float> {
  using Real = float;
  using Bits = uint32_t;
  static constexpr int n = 1;
};
template <> struct Lanes<double> {
  using Real = double;
  using Bits = uint64_t;
  static constexpr int n = 1;
};

#if FASTRNN_VECTOR_BYTES > 0
typedef float F32 __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
typedef double F64 __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
typedef uint32_t U32 __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
typedef uint64_t U64 __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
template <> struct Lanes<F32> {
  using Real = float;
  using Bits = U32;
  static constexpr int n = FASTRNN_VECTOR_BYTES / 4;
};
template <> struct Lanes<F64> {
  using Real = double;
  using Bits = U64;
  static constexpr int n = FASTRNN_VECTOR_BYTES / 8;
};
template <class Real> struct VectorOf;
template <> struct VectorOf<float> {
  using type = F32;
};
template <> struct VectorOf<double> {
  using type = F64;
};
#else
template <class Real> struct VectorOf {
  using type = Real;
};
#endif

// M vectors that go through the same operations side by side: M independent chains, which hide each other's latency.
// All functions below that take a vector take a bundle too.
template <class V, int M> struct Bundle {
  V v[M];
};
template <class V, int M> struct Lanes<Bundle<V, M>> : Lanes<V> {};
template <class Reference> struct Members;
template <class V, int M> struct Members<const Bundle<V, M>&> {
  static constexpr int n = M;
};

// f of the members, one by one.
template <class F, class V, int M, class... More> FASTRNN_FN Bundle<V, M> map(const F& f, const Bundle<V, M>& a, const More&... more) {
  Bundle<V, M> result;
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) result.v[m] = f(a.v[m], more.v[m]...);
  return result;
}
#define FASTRNN_OPERATOR(op)                                                                                        \
  template <class V, int M> FASTRNN_FN Bundle<V, M> operator op(const Bundle<V, M>& a, const Bundle<V, M>& b) {     \
    return map([](V x, V y) { return x op y; }, a, b);                                                              \
  }                                                                                                                 \
  template <class V, int M> FASTRNN_FN Bundle<V, M> operator op(typename Lanes<V>::Real a, const Bundle<V, M>& b) { \
    return map([a](V y) { return a op y; }, b);                                                                     \
  }                                                                                                                 \
  template <class V, int M> FASTRNN_FN Bundle<V, M> operator op(const Bundle<V, M>& a, typename Lanes<V>::Real b) { \
    return map([b](V x) { return x op b; }, a);                                                                     \
  }
FASTRNN_OPERATOR(+)
FASTRNN_OPERATOR(-)
FASTRNN_OPERATOR(*)
#undef FASTRNN_OPERATOR

// ---- load and store ------------------------------------------------------------------------------------------------

template <class V, class Real> FASTRNN_FN V load(const Real* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class Real> FASTRNN_FN void store(Real* p, V v) { __builtin_memcpy(p, &v, sizeof v); }

#if FASTRNN_VECTOR_BYTES == 32
// All bits of the first count lanes, for masked loads and stores.
FASTRNN_FN __m256i first_lanes(int64_t count, float) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FASTRNN_FN __m256i first_lanes(int64_t count, double) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
#endif

// The first count lanes; the others are zero, and their memory is not touched.
template <class V, class Real> FASTRNN_FN V load(const Real* p, int64_t count) {
  if (count >= Lanes<V>::n) return load<V>(p);
#if FASTRNN_VECTOR_BYTES == 64
  if constexpr (sizeof(Real) == 4) return (V)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
  if constexpr (sizeof(Real) == 8) return (V)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), p);
#elif FASTRNN_VECTOR_BYTES == 32
  if constexpr (sizeof(Real) == 4) return (V)_mm256_maskload_ps(p, first_lanes(count, Real()));
  if constexpr (sizeof(Real) == 8) return (V)_mm256_maskload_pd(p, first_lanes(count, Real()));
#endif
  V v{};
  __builtin_memcpy(&v, p, count * sizeof(Real));
  return v;
}
template <class V, class Real> FASTRNN_FN void store(Real* p, V v, int64_t count) {
  if (count >= Lanes<V>::n) return store(p, v);
#if FASTRNN_VECTOR_BYTES == 64
  if constexpr (sizeof(Real) == 4) return _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
  if constexpr (sizeof(Real) == 8) return _mm512_mask_storeu_pd(p, (__mmask8)((1u << count) - 1), (__m512d)v);
#elif FASTRNN_VECTOR_BYTES == 32
  if constexpr (sizeof(Real) == 4) return _mm256_maskstore_ps(p, first_lanes(count, Real()), (__m256)v);
  if constexpr (sizeof(Real) == 8) return _mm256_maskstore_pd(p, first_lanes(count, Real()), (__m256d)v);
#endif
  __builtin_memcpy(p, &v, count * sizeof(Real));
}
template <class V> FASTRNN_FN V splat(typename Lanes<V>::Real x) { return x - V{}; }

// ---- arithmetic ----------------------------------------------------------------------------------------------------

// a * b + c, rounded once where the instruction set can; never left to the compiler's choice (-ffp-contract=off).
#if FASTRNN_VECTOR_BYTES >= 32 || defined(__aarch64__) || defined(__CUDACC__)
#define FASTRNN_EXACT_FMA
FASTRNN_FN float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FASTRNN_FN double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
FASTRNN_FN float fma(float a, float b, float c) { return a * b + c; }
FASTRNN_FN double fma(double a, double b, double c) { return a * b + c; }
#endif

// at_most(x, hi): hi where x > hi, x elsewhere and where x is NaN. On x86 min and max return their second operand for NaN.
template <class V> FASTRNN_FN V at_most(V x, typename Lanes<V>::Real hi) { return x > hi ? splat<V>(hi) : x; }
template <class V> FASTRNN_FN V at_least(V x, typename Lanes<V>::Real lo) { return x < lo ? splat<V>(lo) : x; }
#if FASTRNN_VECTOR_BYTES == 64
template <> FASTRNN_FN F32 at_most(F32 x, float hi) { return (F32)_mm512_maskz_min_ps(0xffff, (__m512)splat<F32>(hi), (__m512)x); }
template <> FASTRNN_FN F32 at_least(F32 x, float lo) { return (F32)_mm512_maskz_max_ps(0xffff, (__m512)splat<F32>(lo), (__m512)x); }
template <> FASTRNN_FN F64 at_most(F64 x, double hi) { return (F64)_mm512_maskz_min_pd(0xff, (__m512d)splat<F64>(hi), (__m512d)x); }
template <> FASTRNN_FN F64 at_least(F64 x, double lo) { return (F64)_mm512_maskz_max_pd(0xff, (__m512d)splat<F64>(lo), (__m512d)x); }
#elif FASTRNN_VECTOR_BYTES == 32
template <> FASTRNN_FN F32 at_most(F32 x, float hi) { return (F32)_mm256_min_ps((__m256)splat<F32>(hi), (__m256)x); }
template <> FASTRNN_FN F32 at_least(F32 x, float lo) { return (F32)_mm256_max_ps((__m256)splat<F32>(lo), (__m256)x); }
template <> FASTRNN_FN F64 at_most(F64 x, double hi) { return (F64)_mm256_min_pd((__m256d)splat<F64>(hi), (__m256d)x); }
template <> FASTRNN_FN F64 at_least(F64 x, double lo) { return (F64)_mm256_max_pd((__m256d)splat<F64>(lo), (__m256d)x); }
#endif

#if FASTRNN_VECTOR_BYTES == 64
FASTRNN_FN F32 fma(F32 a, F32 b, F32 c) { return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
FASTRNN_FN F64 fma(F64 a, F64 b, F64 c) { return (F64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif FASTRNN_VECTOR_BYTES == 32
FASTRNN_FN F32 fma(F32 a, F32 b, F32 c) { return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
FASTRNN_FN F64 fma(F64 a, F64 b, F64 c) { return (F64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#elif FASTRNN_VECTOR_BYTES == 16
FASTRNN_FN F32 fma(F32 a, F32 b, F32 c) { return (F32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
FASTRNN_FN F64 fma(F64 a, F64 b, F64 c) { return (F64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#endif

// c - a * b, rounded like fma.
template <class V> FASTRNN_FN V fnma(V a, V b, V c) { return fma(-a, b, c); }
#if FASTRNN_VECTOR_BYTES == 64
FASTRNN_FN F32 fnma(F32 a, F32 b, F32 c) { return (F32)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c); }
FASTRNN_FN F64 fnma(F64 a, F64 b, F64 c) { return (F64)_mm512_fnmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif FASTRNN_VECTOR_BYTES == 32
FASTRNN_FN F32 fnma(F32 a, F32 b, F32 c) { return (F32)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c); }
FASTRNN_FN F64 fnma(F64 a, F64 b, F64 c) { return (F64)_mm256_fnmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#endif

// 1 / b and a / b for normal b whose inverse is normal too. The hardware divides 512-bit vectors slowly: there its estimate
// of 14 bits is refined, which doubles them each time; within 1 ULP.
template <class V> FASTRNN_FN V reciprocal(V b) { return 1 / b; }
template <class V> FASTRNN_FN V divide(V a, V b) { return a / b; }
template <class V> FASTRNN_FN V quotient(V a, V b) { return a / b; }  // of any numbers
#if FASTRNN_VECTOR_BYTES == 64
template <> FASTRNN_FN F32 reciprocal(F32 b) {
  const F32 y = (F32)_mm512_maskz_rcp14_ps(0xffff, (__m512)b);  // the unmasked form trips -Wuninitialized
  return fma(fnma(b, y, splat<F32>(1)), y, y);
}
template <> FASTRNN_FN F64 reciprocal(F64 b) {
  F64 y = (F64)_mm512_maskz_rcp14_pd(0xff, (__m512d)b);
  y = fma(fnma(b, y, splat<F64>(1)), y, y);
  return fma(fnma(b, y, splat<F64>(1)), y, y);
}
template <class V> FASTRNN_FN V refined_quotient(V a, V b) {
  const V y = reciprocal(b), q = a * y;
  return fma(fnma(b, q, a), y, q);
}
template <> FASTRNN_FN F32 divide(F32 a, F32 b) { return refined_quotient(a, b); }
template <> FASTRNN_FN F64 divide(F64 a, F64 b) { return refined_quotient(a, b); }
#endif

// ---- activations ---------------------------------------------------------------------------------------------------

// 2^f - 1 = f q(f) on |f| <= 1/2; q interpolates at Chebyshev nodes, relative error below.
template <class Real> struct Exp2;
template <> struct Exp2<float> {  // 1.3e-8
  static constexpr int terms = 6;
  static FASTRNN_FN constexpr float q(int i) {
    constexpr float values[] = {0.69314718802622878106f,   0.24022650760568126945f,   0.055503571142190778186f,
                                0.0096180825572778514913f, 0.0013390863364671234381f, 0.00015453162945120690177f};
    return values[i];
  }
  static constexpr float log2e = 1.4426950216293335f, log2e_low = 1.925963033500011e-08f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // n * ln2_high is exact
  static constexpr float round = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float sigmoid_limit = 87.f, tanh_limit = 9.25f;
};
template <> struct Exp2<double> {  // 2.1e-17
  static constexpr int terms = 11;
  static FASTRNN_FN constexpr double q(int i) {
    constexpr double values[] = {0.69314718055994530942,   0.2402265069591009822,     0.055504108664821594339,    0.0096181291076068885273,
                                 0.001333355814641693531,  0.00015403530441736050155, 0.000015252733829836118394, 1.3215442587921689653e-6,
                                 1.0178062445845773521e-7, 7.0725859492692236999e-9,  4.4549605981865183938e-10};
    return values[i];
  }
  static constexpr double log2e = 1.4426950408889634, log2e_low = 2.0355273740931033e-17;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double round = 6755399441055744.;  // 1.5 * 2^52
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double sigmoid_limit = 708., tanh_limit = 19.5;
};

// 2^n from n + Exp2::round.
template <class V> FASTRNN_FN V power_of_two(V shifted) {
  using E = Exp2<typename Lanes<V>::Real>;
  typename Lanes<V>::Bits bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + E::bias) << E::mantissa;
  V power;
  __builtin_memcpy(&power, &bits, sizeof bits);
  return power;
}

template <class V> FASTRNN_FN V relu(V x) { return x < 0 ? V{} : x; }
// x where h is positive or NaN, zero elsewhere.
template <class V> FASTRNN_FN V pass_positive(V h, V x) { return h <= 0 ? V{} : x; }
// x where the condition holds, y elsewhere.
template <class V> FASTRNN_FN V where_greater(V a, V b, V x, V y) { return a > b ? x : y; }
template <class V> FASTRNN_FN V where_zero(V a, V x, V y) { return a == 0 ? x : y; }
template <class V> FASTRNN_FN V magnitude(V x) { return x < 0 ? -x : x; }

// The same for bundles.
template <class V, int M> FASTRNN_FN Bundle<V, M> fma(const Bundle<V, M>& a, const Bundle<V, M>& b, const Bundle<V, M>& c) {
  return map([](V x, V y, V z) { return fma(x, y, z); }, a, b, c);
}
template <class V, int M> FASTRNN_FN Bundle<V, M> at_most(const Bundle<V, M>& a, typename Lanes<V>::Real hi) {
  return map([hi](V x) { return at_most(x, hi); }, a);
}
template <class V, int M> FASTRNN_FN Bundle<V, M> at_least(const Bundle<V, M>& a, typename Lanes<V>::Real lo) {
  return map([lo](V x) { return at_least(x, lo); }, a);
}
template <class V, int M> FASTRNN_FN Bundle<V, M> reciprocal(const Bundle<V, M>& a) {
  return map([](V x) { return reciprocal(x); }, a);
}
template <class V, int M> FASTRNN_FN Bundle<V, M> divide(const Bundle<V, M>& a, const Bundle<V, M>& b) {
  return map([](V x, V y) { return divide(x, y); }, a, b);
}
template <class V, int M> FASTRNN_FN Bundle<V, M> quotient(const Bundle<V, M>& a, const Bundle<V, M>& b) {
  return map([](V x, V y) { return quotient(x, y); }, a, b);
}
template <class V, int M> FASTRNN_FN Bundle<V, M> power_of_two(const Bundle<V, M>& a) {
  return map([](V x) { return power_of_two(x); }, a);
}
template <class V, int M> FASTRNN_FN Bundle<V, M> relu(const Bundle<V, M>& a) {
  return map([](V x) { return relu(x); }, a);
}
template <class V, int M> FASTRNN_FN Bundle<V, M> pass_positive(const Bundle<V, M>& h, const Bundle<V, M>& a) {
  return map([](V x, V y) { return pass_positive(x, y); }, h, a);
}
template <class V, int M>
FASTRNN_FN Bundle<V, M> where_greater(const Bundle<V, M>& a, const Bundle<V, M>& b, const Bundle<V, M>& x, const Bundle<V, M>& y) {
  return map([](V p, V q, V s, V t) { return where_greater(p, q, s, t); }, a, b, x, y);
}
template <class V, int M> FASTRNN_FN Bundle<V, M> where_zero(const Bundle<V, M>& a, const Bundle<V, M>& x, const Bundle<V, M>& y) {
  return map([](V p, V s, V t) { return where_zero(p, s, t); }, a, x, y);
}
template <class V, int M> FASTRNN_FN Bundle<V, M> magnitude(const Bundle<V, M>& a) {
  return map([](V x) { return magnitude(x); }, a);
}

// e^(factor * x) = 2^n (1 + f q) with n an integer and |f| <= 1/2: gives 2^n, f and q. factor is a power of two or its
// negative. Without the tail of log2 e the power is off by |x| / 2^24 of itself (2^53 in double), which tanh does not feel.
template <bool tail, class V> FASTRNN_FN void exp_parts(const V& x, typename Lanes<V>::Real factor, V& power, V& f, V& q) {
  using E = Exp2<typename Lanes<V>::Real>;
  const V shifted = fma(x, splat<V>(factor * E::log2e), splat<V>(E::round));
  const V n = shifted - E::round;
#ifdef FASTRNN_EXACT_FMA
  f = fma(x, splat<V>(factor * E::log2e), -1 * n);
  if constexpr (tail) f = fma(x, splat<V>(factor * E::log2e_low), f);
#else
  f = (factor * x - n * E::ln2_high - n * E::ln2_low) * E::log2e;
#endif
  q = splat<V>(E::q(E::terms - 1));
#pragma GCC unroll 16
  for (int i = E::terms - 2; i >= 0; i--) q = fma(q, f, splat<V>(E::q(i)));
  power = power_of_two(shifted);
}

// e^x for x <= 0; zero below the smallest normal number.
template <class V> FASTRNN_FN V exp_of_negative(V x) {
  constexpr auto limit = -Exp2<typename Lanes<V>::Real>::sigmoid_limit;
  V power, f, q;
  exp_parts<true>(at_least(x, limit), 1, power, f, q);
  return x < limit ? V{} : power * fma(f, q, splat<V>(1));
}
template <class V, int M> FASTRNN_FN Bundle<V, M> exp_of_negative(const Bundle<V, M>& a) {
  return map([](V x) { return exp_of_negative(x); }, a);
}

// 1 / (1 + e^-x), within 3 ULP. Beyond +-sigmoid_limit it is that of the limit.
template <class V> FASTRNN_FN V sigmoid(const V& x) {
  using E = Exp2<typename Lanes<V>::Real>;
  V power, f, q;
  exp_parts<true>(at_most(at_least(x, -E::sigmoid_limit), E::sigmoid_limit), -1, power, f, q);
  return reciprocal(fma(power, fma(f, q, splat<V>(1)), splat<V>(1)));
}

// (e^2x - 1) / (e^2x + 1), within 4 ULP: e^2x - 1 is formed without cancellation, so small x keep their relative accuracy.
template <class V> FASTRNN_FN V tanh(const V& x) {
  using E = Exp2<typename Lanes<V>::Real>;
  V power, f, q;
  exp_parts<false>(at_most(at_least(x, -E::tanh_limit), E::tanh_limit), 2, power, f, q);
  const V em1 = fma(power, f * q, power - 1);
  return divide(em1, em1 + 2);
}

#ifndef __CUDACC__  // what follows only processors use

// ---- across lanes --------------------------------------------------------------------------------------------------

template <int... i> struct Indices {};
template <int n, int... i> struct MakeIndices : MakeIndices<n - 1, n - 1, i...> {};
template <int... i> struct MakeIndices<0, i...> {
  using type = Indices<i...>;
};

// Adds the upper half of 2 * half lanes to the lower one, then the next smaller halves, down to a lane.
template <int half, class V, int... i> FASTRNN_FN V folded(V v, Indices<i...> lanes) {
  if constexpr (half > 0) v = folded<half / 2>(v + __builtin_shufflevector(v, v, ((i + half) % int(sizeof...(i)))...), lanes);
  return v;
}
template <class V> FASTRNN_FN typename Lanes<V>::Real sum(V v) {
  constexpr int n = Lanes<V>::n;
  if constexpr (n == 1) return v;
  else return folded<n / 2>(v, typename MakeIndices<n>::type())[0];
}

// Exchanges the off-diagonal s x s blocks of a pair of rows s apart.
template <int s, class V, int... i> FASTRNN_FN void exchange(V& a, V& b, Indices<i...>) {
  const V low = __builtin_shufflevector(a, b, ((i & s) ? int(sizeof...(i)) + i - s : i)...);
  b = __builtin_shufflevector(a, b, ((i & s) ? int(sizeof...(i)) + i : i + s)...);
  a = low;
}
template <class V, int s = 1> FASTRNN_FN void transpose(V (&m)[Lanes<V>::n]) {
  constexpr int n = Lanes<V>::n;
  if constexpr (s < n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; i++)
      if (!(i & s)) exchange<s>(m[i], m[i + s], typename MakeIndices<n>::type());
    transpose<V, 2 * s>(m);
  }
}

// ---- floating point mode -------------------------------------------------------------------------------------------

// Subnormal numbers, which vanishing gradients are made of, cost up to 20 times a normal operation: they are zero here.
struct FlushToZero {
#if defined(__x86_64__)
  unsigned saved = __builtin_ia32_stmxcsr();
  FASTRNN_INLINE FlushToZero() { __builtin_ia32_ldmxcsr(saved | 0x8040u); }
  FASTRNN_INLINE ~FlushToZero() { __builtin_ia32_ldmxcsr(saved); }
#elif defined(__aarch64__)
  uint64_t saved;
  FASTRNN_INLINE FlushToZero() {
    asm volatile("mrs %0, fpcr" : "=r"(saved));
    asm volatile("msr fpcr, %0" ::"r"(saved | (uint64_t(1) << 24)));
  }
  FASTRNN_INLINE ~FlushToZero() { asm volatile("msr fpcr, %0" ::"r"(saved)); }
#endif
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;
};

#endif

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
