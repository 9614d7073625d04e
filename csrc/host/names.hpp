// Cells by name and shapes in words, for the bindings of both devices.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/structs.hpp"

namespace fastrnn {

using Shape = std::vector<int64_t>;

inline std::string text_of(const Shape& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); i++) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + ")";
}

inline Cell cell_named(const std::string& name, bool projected) {
  if (projected && name != "lstm") throw std::invalid_argument("proj_size is for the lstm cell only");
  if (projected) return Cell::lstm_projected;
  std::string known;
  for (int i = 0; i < cell_count; i++) {
    if (Cell(i) == Cell::lstm_projected) continue;
    if (name == cell_names[i]) return Cell(i);
    known += std::string(known.empty() ? "" : ", ") + cell_names[i];
  }
  throw std::invalid_argument("cell is '" + name + "' but must be one of " + known);
}

}  // namespace fastrnn
