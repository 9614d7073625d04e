// Weights in fewer bits: choosing what multiplies them, and packing.
#pragma once
#include <string>
#include <vector>

#include "kernels/structs.hpp"

namespace fastrnn {

// What a frozen layer keeps its matrices as.
struct NarrowFormats {
  Format ih, hh;  // hh: also of weight_hr
  const NarrowProducts* products;
};

// The products of that name that this CPU runs with an instruction set, or the best ones with a null name. Throws std::invalid_argument.
const NarrowProducts& choose_products(const Isa& isa, const char* name);
std::vector<std::string> names_of_products(const Isa& isa);

// Bytes of a panel's data, and packed numbers of its scale and of its offset, 0 where it has none.
struct NarrowSizes {
  int64_t data, numbers;
};
NarrowSizes narrow_sizes(Format format, int64_t K, int64_t units, int gates, int lanes);

// Rows of float32: of unit u and gate g the one with number g * units + u, K columns each. Rounds to nearest: to bfloat16, or to
// multiples within +-127 of what 'counts' says of each row; null: of the 127th part of the row's largest magnitude. data, scale and
// offset: as NarrowPanel has them.
void pack_narrow(Format format, const float* rows, const float* counts, int64_t K, int64_t units, int gates, int lanes, char* data,
                 float* scale, int32_t* offset);

// Why a matrix of so many elements in rows of K cannot be kept so; empty if it can.
std::string unfit(Format format, const float* values, int64_t count, int64_t K);

}  // namespace fastrnn
