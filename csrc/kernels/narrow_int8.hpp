// Part of narrow.cpp: rows of float32 as integers, and the sums of products of int8, in vectors.
#pragma once
#include "kernels/team.hpp"
#include "kernels/vec.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

using V = VectorOf<float>::type;
using Bits = Lanes<V>::Bits;
constexpr int N = Lanes<V>::n;

#if FASTRNN_VECTOR_BYTES > 0
typedef int32_t I32 __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
FASTRNN_FN V to_float(I32 x) { return __builtin_convertvector(x, V); }
#else
using I32 = int32_t;
FASTRNN_FN V to_float(I32 x) { return float(x); }
#endif

// The lowest byte of each lane; compilers find no good way themselves.
FASTRNN_FN void store_low_bytes(uint8_t* to, Bits x) {
#if FASTRNN_VECTOR_BYTES == 64
  _mm_storeu_si128((__m128i*)to, _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)x));  // the unmasked form trips -Wuninitialized
#elif FASTRNN_VECTOR_BYTES == 32
  const __m256i fours = _mm256_shuffle_epi8((__m256i)x, _mm256_set1_epi32(0x0c080400));
  _mm_storel_epi64((__m128i*)to, _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1)));
#elif FASTRNN_VECTOR_BYTES == 16
  const uint16x4_t halves = vmovn_u32((uint32x4_t)x);
  vst1_lane_u32((uint32_t*)to, vreinterpret_u32_u8(vmovn_u16(vcombine_u16(halves, halves))), 0);
#else
  *to = uint8_t(x);
#endif
}

template <class To, class From> FASTRNN_FN To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}
template <class T> FASTRNN_FN T read(const void* p) {
  T x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

// Four: four integers of a row, as a factor for every lane. dot(sum, a, w): to each lane's sum come its four weights times those.

#if defined(FASTRNN_VNNI)
#define FASTRNN_UNSIGNED_FACTORS  // one factor has no sign: the row's integers have 128 added, which NarrowPanel::offset makes up for
constexpr int int8_speed = 4, int8_rows = FASTRNN_VECTOR_BYTES == 64 ? 6 : 3;
using Four = I32;
FASTRNN_FN Four four(const uint8_t* p) { return read<int32_t>(p) - I32{}; }
#if FASTRNN_VECTOR_BYTES == 64
FASTRNN_FN I32 dot(I32 sum, Four a, I32 w) { return (I32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)w); }
#else
FASTRNN_FN I32 dot(I32 sum, Four a, I32 w) { return (I32)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)w); }
#endif

#elif FASTRNN_VECTOR_BYTES == 64
// vpmaddubsw adds pairs of products in 16 bits. 2 * 127 * 127 fits; 2 * 255 * 127 would not: so the sign goes to the weight.
constexpr int int8_speed = 1, int8_rows = 5;
struct Four {
  __m512i magnitude;
  __mmask64 negative;
};
FASTRNN_FN Four four(const uint8_t* p) {
  const __m512i a = _mm512_set1_epi32(read<int32_t>(p));
  return {_mm512_abs_epi8(a), _mm512_movepi8_mask(a)};
}
FASTRNN_FN I32 dot(I32 sum, Four a, I32 w) {
  const __m512i turned = _mm512_mask_sub_epi8((__m512i)w, a.negative, _mm512_setzero_si512(), (__m512i)w);
  return sum + (I32)_mm512_madd_epi16(_mm512_maddubs_epi16(a.magnitude, turned), _mm512_set1_epi16(1));
}

#elif FASTRNN_VECTOR_BYTES == 32
constexpr int int8_speed = 1, int8_rows = 2;
struct Four {
  __m256i magnitude, value;
};
FASTRNN_FN Four four(const uint8_t* p) {
  const __m256i a = _mm256_set1_epi32(read<int32_t>(p));
  return {_mm256_abs_epi8(a), a};
}
FASTRNN_FN I32 dot(I32 sum, Four a, I32 w) {  // vpmaddubsw as above
  return sum + (I32)_mm256_madd_epi16(_mm256_maddubs_epi16(a.magnitude, _mm256_sign_epi8((__m256i)w, a.value)), _mm256_set1_epi16(1));
}

#elif FASTRNN_VECTOR_BYTES == 16
constexpr int int8_rows = 4;
using Four = int8x16_t;
FASTRNN_FN Four four(const uint8_t* p) { return vreinterpretq_s8_s32(vdupq_n_s32(read<int32_t>(p))); }
#if defined(FASTRNN_DOTPROD)
constexpr int int8_speed = 4;
FASTRNN_FN I32 dot(I32 sum, Four a, I32 w) { return (I32)vdotq_s32((int32x4_t)sum, (int8x16_t)w, a); }
#else
constexpr int int8_speed = 1;
FASTRNN_FN I32 dot(I32 sum, Four a, I32 w) {
  const int8x16_t factors = (int8x16_t)w;
  const int16x8_t low = vmull_s8(vget_low_s8(factors), vget_low_s8(a)), high = vmull_high_s8(factors, a);
  return (I32)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));  // 2 * 127 * 127 fits in 16 bits
}
#endif

#else
constexpr int int8_speed = 1, int8_rows = 2;
struct Four {
  int8_t at[4];
};
FASTRNN_FN Four four(const uint8_t* p) { return read<Four>(p); }
FASTRNN_FN I32 dot(I32 sum, Four a, I32 w) {
  const Four factors = bits_as<Four>(w);
  for (int i = 0; i < 4; i++) sum += int32_t(a.at[i]) * int32_t(factors.at[i]);
  return sum;
}
#endif

// What sums count: the product of what the integers of both rows count.
FASTRNN_FN V scaled(I32 sum, V scale) { return fma(to_float(sum), scale, V{}); }

// R rows times U blocks of G gates; the panel of one block after the other.
struct Int8 {
  static constexpr int64_t depth = depth_of(Format::int8);
  template <int R, int U, int G>
  static FASTRNN_FN void multiply(const NarrowPanel& w, int64_t block, const NarrowOperand& a, int64_t row, V (&z)[R][U][G]) {
    const int64_t groups = (a.K + depth - 1) / depth, pitch = narrow_pitch(a.K);
    const char* panel = w.data + block * groups * G * N * depth;
    const uint8_t* integers[R];
    I32 sum[R][U][G];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      integers[r] = a.prepared + (row + r) * pitch;
#pragma GCC unroll 8
      for (int u = 0; u < U; u++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) {
#if defined(FASTRNN_UNSIGNED_FACTORS)
          sum[r][u][g] = read<I32>(w.offset + ((block + u) * G + g) * N);
#else
          sum[r][u][g] = I32{};
#endif
        }
    }
    for (int64_t k = 0; k < groups; k++) {
      I32 factors[U][G];
#pragma GCC unroll 8
      for (int u = 0; u < U; u++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) factors[u][g] = read<I32>(panel + ((u * groups + k) * G + g) * N * depth);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const Four values = four(integers[r] + k * depth);
#pragma GCC unroll 8
        for (int u = 0; u < U; u++)
#pragma GCC unroll 8
          for (int g = 0; g < G; g++) sum[r][u][g] = dot(sum[r][u][g], values, factors[u][g]);
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; u++)
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) {
        const V scale = load<V>(w.scale + ((block + u) * G + g) * N);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) z[r][u][g] = scaled(sum[r][u][g], a.scale[row + r] * scale);
      }
  }
};

// flip: 128 to add 128 to the integers. They are followed by zeros, up to so many bytes in all.
FASTRNN_FN void quantise(const NarrowOperand& a, uint8_t flip, int64_t bytes) {
  constexpr uint32_t no_sign = 0x7fffffff, infinity = 0x7f800000, least = 0x0d800000;  // 2^-100: what is below counts as zero
  for (int64_t i = 0; i < a.n; i++) {
    const float* x = a.rows[i];
    Bits lanes{};
    for (int64_t k = 0; k < a.K; k += N) {
      const Bits magnitude = bits_as<Bits>(load<V>(x + k, a.K - k)) & no_sign;
      lanes = magnitude > lanes ? magnitude : lanes;
    }
    uint32_t all[N], most = 0;
    __builtin_memcpy(all, &lanes, sizeof all);
    for (int lane = 0; lane < N; lane++) most = all[lane] > most ? all[lane] : most;
    const float largest = bits_as<float>(most);
    const bool counts = most >= least && most < infinity;
    a.scale[i] = counts ? largest / 127 : most < infinity ? 0.f : __builtin_nanf("");
    const float steps = counts ? 127 / largest : 0.f;
    uint8_t* const to = a.prepared + i * narrow_pitch(a.K);
    for (int64_t k = 0; k < bytes; k += N) {
      // The sum has the rounded integer in its low bits.
      const V x = k < a.K ? load<V>(a.rows[i] + k, a.K - k) : V{};
      store_low_bytes(to + k, bits_as<Bits>(x * steps + Exp2<float>::round) ^ flip);
    }
  }
}

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
