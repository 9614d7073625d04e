#include "host/narrow.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "host/memory.hpp"

namespace fastrnn {
namespace {

uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Writes a row to its lane, 'step' bytes from one group of columns to the next; returns what one of its integers counts: what was
// given, or what makes the largest one 127.
float quantise_row(const float* row, const float* given, int64_t K, int64_t step, char* lane, int32_t& sum) {
  float largest = 0;
  for (int64_t k = 0; !given && k < K; k++) largest = std::max(largest, std::fabs(row[k]));
  const float scale = given ? *given : largest / 127;
  const double range = given ? double(scale) * 127 : double(largest);
  sum = 0;
  for (int64_t k = 0; k < K; k++) {
    const double exact = std::fpclassify(scale) == FP_NORMAL ? double(row[k]) / range * 127 : 0;
    const auto integer = int8_t(std::lrint(std::clamp(exact, -127., 127.)));
    std::memcpy(lane + k / 4 * step + k % 4, &integer, 1);
    sum += integer;
  }
  return scale;
}

constexpr int64_t most_columns = 131072;             // sums of so many products of int8 fit in 32 bits
constexpr float rounds_to_infinity = 3.3961776e38f;  // in bfloat16, as does what lies above

}  // namespace

std::string unfit(Format format, const float* values, int64_t count, int64_t K) {
  const char* const name = format == Format::int8 ? "int8" : "bfloat16";
  const float below = format == Format::int8 ? INFINITY : rounds_to_infinity;
  if (!std::all_of(values, values + count, [&](float value) { return std::fabs(value) < below; }))
    return std::string("has numbers that are not finite in ") + name;
  if (format == Format::int8 && K > most_columns)
    return "has " + std::to_string(K) + " columns, and int8 takes at most " + std::to_string(most_columns);
  return {};
}

const NarrowProducts& choose_products(const Isa& isa, const char* name) {
  for (const NarrowCandidate* c = isa.products; c->products; c++)
    if (c->supported() && (!name || !std::strcmp(name, c->products->name))) return *c->products;
  throw std::invalid_argument(std::string("products '") + (name ? name : "") + "' are not among those of " + isa.name);
}

std::vector<std::string> names_of_products(const Isa& isa) {
  std::vector<std::string> names;
  for (const NarrowCandidate* c = isa.products; c->products; c++)
    if (c->supported()) names.push_back(c->products->name);
  return names;
}

NarrowSizes narrow_sizes(Format format, int64_t K, int64_t units, int gates, int lanes) {
  const int64_t depth = depth_of(format), rows = times(plus(units, lanes - 1) / lanes * lanes, gates);
  const int64_t read_beyond = 16 * 4 * int64_t(gates) * lanes;  // by tiles of 16 groups of columns
  return {plus(times(times(rows, plus(K, depth - 1) / depth), 4), read_beyond), format == Format::int8 ? rows : 0};
}

void pack_narrow(Format format, const float* rows, const float* counts, int64_t K, int64_t units, int gates, int lanes, char* data,
                 float* scale, int32_t* offset) {
  const NarrowSizes sizes = narrow_sizes(format, K, units, gates, lanes);
  std::memset(data, 0, size_t(sizes.data));
  if (sizes.numbers)
    std::memset(scale, 0, size_t(sizes.numbers) * sizeof *scale), std::memset(offset, 0, size_t(sizes.numbers) * sizeof *offset);
  const int64_t groups = (K + depth_of(format) - 1) / depth_of(format), step = int64_t(gates) * lanes * 4;
  for (int64_t unit = 0; unit < units; unit++)
    for (int g = 0; g < gates; g++) {
      const float* const row = rows + (g * units + unit) * K;
      const int64_t block = unit / lanes, at = (block * gates + g) * lanes + unit % lanes;
      char* const lane = data + block * groups * step + (g * lanes + unit % lanes) * 4;
      if (format == Format::int8) {
        int32_t sum;
        scale[at] = quantise_row(row, counts ? counts + g * units + unit : nullptr, K, step, lane, sum);
        offset[at] = -128 * sum;
        continue;
      }
      for (int64_t k = 0; k < K; k++) {
        const uint16_t bits = to_bfloat16(row[k]);
        std::memcpy(lane + k / 2 * step + k % 2 * 2, &bits, sizeof bits);
      }
    }
}

}  // namespace fastrnn
