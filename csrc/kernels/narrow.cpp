// Products with matrices of bfloat16 and int8: the whole of NarrowProducts. Compiled once for each instruction set and once more
// for each of its extensions that has instructions for them, as a namespace FASTRNN_ISA of its own:
//   FASTRNN_VNNI, FASTRNN_DOTPROD   dot products of four int8, of x86 and of Arm    FASTRNN_AMX   the matrix unit as well
//   FASTRNN_BFDOT   products of bfloat16 of Arm
//
// bfloat16 are the upper halves of float32: a shift makes factors of them, and the rest is as with float32 weights, but for AMX and for
// Arm's instructions, which multiply bfloat16 with bfloat16: there rows are sums of two of these. Of int8 and int8
// a row's products are added up exactly; then the sum is scaled by what the integers of both rows count.
#include "kernels/narrow_int8.hpp"
#if defined(FASTRNN_AMX)
#include "kernels/narrow_tiles.hpp"
#elif defined(FASTRNN_BFDOT)
#include "kernels/narrow_split.hpp"
#endif

namespace fastrnn::FASTRNN_ISA {
namespace {

// ---- bfloat16 ------------------------------------------------------------------------------------------------------

#if defined(FASTRNN_BFDOT)

FASTRNN_FN bfloat16x8_t bfloats(Bits x) { return vreinterpretq_bf16_u32((uint32x4_t)x); }
FASTRNN_FN Bits low_halves(Bits x, Bits y) { return (Bits)vzip1q_u64((uint64x2_t)x, (uint64x2_t)y); }
FASTRNN_FN Bits high_halves(Bits x, Bits y) { return (Bits)vzip2q_u64((uint64x2_t)x, (uint64x2_t)y); }

// Four columns at a time. bfmmla multiplies two rows with two units; of one row alone bfdot has the same bits, as bfmmla is defined as
// one after the other.
struct BFloat16 {
  static constexpr int64_t depth = depth_of(Format::bfloat16);
  template <int R, int U, int G>
  static FASTRNN_FN void multiply(const NarrowPanel& w, int64_t block, const NarrowOperand& a, int64_t row, V (&z)[R][U][G]) {
    constexpr int pairs = (R + 1) / 2;
    const int64_t groups = (a.K + depth - 1) / depth, apart = second_part(a.K);
    const char* const panel = w.data + block * groups * G * N * 4;
    const uint8_t* const first = a.prepared + row * 2 * apart;
    V sum[pairs][U][G][2] = {};  // rows 2p and 2p + 1 with units 0 and 1, and with 2 and 3
    for (int64_t k = 0; k < groups; k += 2)  // beyond the last group rows are zero
#pragma GCC unroll 8
      for (int u = 0; u < U; u++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) {
          const char* const at = panel + ((u * groups + k) * G + g) * N * 4;
          const Bits one = read<Bits>(at), two = read<Bits>(at + G * N * 4);
#pragma GCC unroll 4
          for (int p = 0; p < pairs; p++)
#pragma GCC unroll 2
            for (int part = 0; part < 2; part++) {
              const uint8_t* const x = first + 2 * p * 2 * apart + part * apart + k * 4;
              V(&s)[2] = sum[p][u][g];
              if constexpr (R == 1) {
                s[0] = (V)vbfdotq_f32((float32x4_t)s[0], bfloats(one), bfloats(read<uint32_t>(x) - Bits{}));
                s[0] = (V)vbfdotq_f32((float32x4_t)s[0], bfloats(two), bfloats(read<uint32_t>(x + 4) - Bits{}));
              } else {
                const uint8_t* const other = 2 * p + 1 < R ? x + 2 * apart : x;
                const auto rows = vreinterpretq_bf16_u64(vcombine_u64(vcreate_u64(read<uint64_t>(x)), vcreate_u64(read<uint64_t>(other))));
                s[0] = (V)vbfmmlaq_f32((float32x4_t)s[0], rows, bfloats((Bits)vzip1q_u32((uint32x4_t)one, (uint32x4_t)two)));
                s[1] = (V)vbfmmlaq_f32((float32x4_t)s[1], rows, bfloats((Bits)vzip2q_u32((uint32x4_t)one, (uint32x4_t)two)));
              }
            }
        }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int u = 0; u < U; u++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) {
          const V(&s)[2] = sum[r / 2][u][g];
          const Bits left = bits_as<Bits>(s[0]), right = bits_as<Bits>(s[1]);
          z[r][u][g] = R == 1 ? s[0] : bits_as<V>(r % 2 ? high_halves(left, right) : low_halves(left, right));
        }
  }
};

#else

struct BFloat16 {
  static constexpr int64_t depth = depth_of(Format::bfloat16);
  template <int R, int U, int G>
  static FASTRNN_FN void multiply(const NarrowPanel& w, int64_t block, const NarrowOperand& a, int64_t row, V (&z)[R][U][G]) {
    const int64_t groups = (a.K + depth - 1) / depth;
    const char* panel = w.data + block * groups * G * N * 4;
    // Column k of the rows times that of the weights, each made of its pair when it is multiplied: so few registers hold factors.
    auto add = [&](int64_t k, auto factor) __attribute__((always_inline)) {
      V values[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) values[r] = splat<V>(a.rows[row + r][k]);
#pragma GCC unroll 8
      for (int u = 0; u < U; u++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) {
          const V weight = bits_as<V>(factor(read<Bits>(panel + ((u * groups + k / depth) * G + g) * N * 4)));
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) z[r][u][g] = fma(values[r], weight, z[r][u][g]);
        }
    };
    for (int64_t k = 0; k < a.K; k += depth) {
      add(k, [](Bits pair) { return pair << 16; });
      if (k + 1 < a.K) add(k + 1, [](Bits pair) { return pair & 0xffff0000u; });
    }
  }
};

#endif

// ---- tiles of vectors ----------------------------------------------------------------------------------------------

#if defined(FASTRNN_BFDOT)
constexpr int bfloat16_rows = 4, single_products = 8;
#elif FASTRNN_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int bfloat16_rows = 5, single_products = 8;
#else
constexpr int bfloat16_rows = 3, single_products = 4;
#endif
constexpr int larger(int a, int b) { return a > b ? a : b; }

template <class Kind, int R, int U, int G>
__attribute__((noinline)) void tile(const NarrowPanel& w, int64_t block, const NarrowOperand& a, int64_t row, float* z, int64_t pitch) {
  V sum[R][U][G] = {};
  Kind::template multiply<R, U, G>(w, block, a, row, sum);
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int u = 0; u < U; u++)
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) store(z + u * pitch + (r * G + g) * N, sum[r][u][g]);
}

// All rows times U blocks, R at a time, then the rest.
constexpr int fewer_rows(int R) { return R > 4 ? R - 2 : R - 1; }
template <class Kind, int R, int U, int G>
FASTRNN_FN void rows(const NarrowPanel& w, int64_t block, const NarrowOperand& a, int64_t& row, float* z) {
  const int64_t pitch = a.n * G * N;
  for (; row + R <= a.n; row += R) tile<Kind, R, U, G>(w, block, a, row, z + row * G * N, pitch);
  if constexpr (R > 1) rows<Kind, fewer_rows(R), U, G>(w, block, a, row, z);
}

// Blocks, U at a time, then half as many.
template <class Kind, int R, int U, int G>
FASTRNN_FN void blocks(const NarrowPanel& w, int64_t& first, int64_t last, const NarrowOperand& a, float*& z) {
  for (; first + U <= last; first += U, z += U * a.n * G * N) {
    int64_t row = 0;
    rows<Kind, R, U, G>(w, first, a, row, z);
  }
  if constexpr (U > 1) blocks<Kind, R, U / 2, G>(w, first, last, a, z);
}

template <class Kind, int R, int G>
FASTRNN_FN void multiply_gates(const NarrowPanel& w, int64_t first, int64_t last, const NarrowOperand& a, float* z) {
  constexpr int at_once = G == 1 ? 4 : G == 2 ? 2 : 1;
  if (a.n == 1) blocks<Kind, 1, larger(1, G == 3 ? single_products / 4 : single_products / G), G>(w, first, last, a, z);
  else blocks<Kind, R, at_once, G>(w, first, last, a, z);
}

template <class Kind, int R>
FASTRNN_FN void multiply_kind(const NarrowPanel& w, int gates, int64_t first, int64_t last, const NarrowOperand& a, float* z) {
  switch (gates) {
    case 1: return multiply_gates<Kind, R, 1>(w, first, last, a, z);
    case 2: return multiply_gates<Kind, R, 2>(w, first, last, a, z);
    case 3: return multiply_gates<Kind, R, 3>(w, first, last, a, z);
    case 4: return multiply_gates<Kind, R, 4>(w, first, last, a, z);
  }
}

#if defined(FASTRNN_UNSIGNED_FACTORS)
constexpr uint8_t int8_flip = 128;
#else
constexpr uint8_t int8_flip = 0;
#endif
#if defined(FASTRNN_AMX)
constexpr int bfloat16_speed = 4;
// To set tiles up takes as long as some products with vectors. Sums of bfloat16 are not the same in tiles: there the number of rows
// must not decide.
FASTRNN_FN bool by_tiles(Format format, const NarrowOperand& a) { return format == Format::int8 ? a.n > 1 && a.K >= 96 : a.K >= 64; }
#else
constexpr int bfloat16_speed = 1;
#endif

void prepare(Format format, const NarrowOperand& a) {
#if defined(FASTRNN_AMX)
  if (by_tiles(format, a)) return format == Format::int8 ? quantise(a, 0, narrow_pitch(a.K)) : split(a);
#endif
#if defined(FASTRNN_BFDOT)
  if (format == Format::bfloat16) return split(a);
#endif
  if (format == Format::int8) quantise(a, int8_flip, a.K);
}

void multiply(const NarrowPanel& w, int gates, int64_t first, int64_t last, const NarrowOperand& a, float* z) {
#if defined(FASTRNN_AMX)
  if (by_tiles(w.format, a)) {
    if (w.format == Format::int8) return multiply_by_tiles<Format::int8>(w, gates, first, last, a, z);
    return multiply_by_tiles<Format::bfloat16>(w, gates, first, last, a, z);
  }
#endif
  if (w.format == Format::int8) multiply_kind<Int8, int8_rows>(w, gates, first, last, a, z);
  else multiply_kind<BFloat16, bfloat16_rows>(w, gates, first, last, a, z);
}

// What is multiplied is read anew each time: else the compiler would multiply once.
double peak(Format format, int64_t iterations) {
#if defined(FASTRNN_AMX)
  const int64_t products = tile_products(format, iterations);
#else
  if (format != Format::int8) return 0;
  constexpr int chains = 12;
  int8_t weights[4 * N] = {1}, values[4] = {1};
  I32 sums[chains] = {}, total{};
  for (int64_t k = 0; k < iterations; k++) {
    asm volatile("" ::"r"(weights), "r"(values) : "memory");
    const I32 factors = read<I32>(weights);
    const Four four_values = four((const uint8_t*)values);
#pragma GCC unroll 16
    for (int i = 0; i < chains; i++) sums[i] = dot(sums[i], four_values, factors);
  }
#pragma GCC unroll 16
  for (int i = 0; i < chains; i++) total = total + sums[i];
  __builtin_memcpy(weights, &total, sizeof total);
  asm volatile("" ::"r"(weights) : "memory");
  const int64_t products = chains * 4 * N * iterations;
#endif
  return 2. * double(products);
}

#define FASTRNN_STRING(x) #x
#define FASTRNN_NAME_OF(x) FASTRNN_STRING(x)

}  // namespace

extern const NarrowProducts narrow_products;
const NarrowProducts narrow_products = {FASTRNN_NAME_OF(FASTRNN_ISA), {bfloat16_speed, int8_speed}, prepare, multiply, peak};

}  // namespace fastrnn::FASTRNN_ISA
