// Part of narrow.cpp: rows of float32 as sums of two bfloat16, each of which is multiplied. The sum is within 2^-16 of the number.
#pragma once
#include "kernels/narrow_int8.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

// Where the second part of a row begins, in bytes.
FASTRNN_FN int64_t second_part(int64_t K) { return narrow_pitch(2 * K); }

// Both parts of a vector, which lie 'apart' from one another.
FASTRNN_FN void store_parts(uint8_t* to, int64_t apart, V x) {
#if FASTRNN_VECTOR_BYTES == 64
  const __m256i high = (__m256i)_mm512_cvtneps_pbh((__m512)x);
  const V above = (V)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, high), 16);
  const V rest = x == above ? V{} : x - above;  // of an infinity as well
  _mm256_storeu_si256((__m256i*)to, high);
  _mm256_storeu_si256((__m256i*)(to + apart), (__m256i)_mm512_cvtneps_pbh((__m512)rest));
#else
  const bfloat16x4_t high = vcvt_bf16_f32((float32x4_t)x);
  const V above = (V)vcvt_f32_bf16(high);
  const V rest = x == above ? V{} : x - above;
  vst1_bf16((bfloat16_t*)to, high);
  vst1_bf16((bfloat16_t*)(to + apart), vcvt_bf16_f32((float32x4_t)rest));
#endif
}

// Both parts are followed by zeros.
FASTRNN_FN void split(const NarrowOperand& a) {
  const int64_t apart = second_part(a.K);
  for (int64_t i = 0; i < a.n; i++) {
    uint8_t* const to = a.prepared + i * 2 * apart;
    for (int64_t k = 0; 2 * k < apart; k += N) store_parts(to + 2 * k, apart, k < a.K ? load<V>(a.rows[i] + k, a.K - k) : V{});
  }
}

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
