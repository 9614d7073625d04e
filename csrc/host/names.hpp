// Cells by name and shapes in words, for the bindings of both devices.
#pragma once
#include <iterator>
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

constexpr char of_general[] = "_general", of_projection[] = "_projected";
inline bool ends_with(const std::string& name, const std::string& end) {
  return name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}
inline bool is_general(const std::string& cell) { return ends_with(cell, of_general); }

// 'rnn_tanh' as it is; with a projection and as a general cell it has names of its own, of which the latter may be given, too.
inline Cell cell_named(const std::string& name, bool projected, bool general) {
  if (is_general(name) && !general) throw std::invalid_argument("the cell " + name + " needs to be told its activations");
  std::string full = is_general(name) ? name.substr(0, name.size() - (sizeof of_general - 1)) : name;
  if (!projected && ends_with(full, of_projection)) throw std::invalid_argument("the cell " + name + " needs its proj_size");
  if (projected && full != "lstm") throw std::invalid_argument("proj_size is for the lstm cell only");
  if (general && full.rfind("rnn_", 0) == 0) full = "rnn";
  full += std::string(projected ? of_projection : "") + (general ? of_general : "");
  std::string known;
  for (int i = 0; i < cell_count; i++) {
    if (full == cell_names[i]) return Cell(i);
    known += std::string(known.empty() ? "" : ", ") + cell_names[i];
  }
  throw std::invalid_argument("cell is '" + full + "' but must be one of " + known);
}

// What is said of a general cell.
struct ChosenActivation {
  std::string name;
  double alpha, beta;
};
struct General {
  double clip;
  bool coupled, peephole;
  std::vector<std::vector<ChosenActivation>> activations;  // of one direction or of two, one for each use
  double zoneout[2];  // of h and of c
};

inline Format format_named(const std::string& name) {
  if (name != "bfloat16" && name != "int8") throw std::invalid_argument("weights '" + name + "' are neither bfloat16 nor int8");
  return name == "int8" ? Format::int8 : Format::bfloat16;
}

inline ActivationKind activation_named(const std::string& name) {
  for (int i = 0; i < int(std::size(activation_names)); i++)
    if (name == activation_names[i]) return ActivationKind(i);
  throw std::invalid_argument("activation '" + name + "' is not known");
}
inline CellOptions options_of(const General& general, int direction) {
  if (general.activations.empty()) throw std::invalid_argument("a general cell needs its activations");
  CellOptions options{general.clip, general.coupled, general.peephole, {}, {general.zoneout[0], general.zoneout[1]}};
  const auto& mine = general.activations[size_t(direction) < general.activations.size() ? size_t(direction) : 0];
  if (mine.empty() || mine.size() > size_t(max_activations)) throw std::invalid_argument("a cell has one to three activations");
  for (size_t i = 0; i < mine.size(); i++) options.activation[i] = {activation_named(mine[i].name), mine[i].alpha, mine[i].beta};
  return options;
}

// The number of heads, if a layer may have so many.
inline int64_t heads_of(int64_t heads, int64_t H, bool projected) {
  if (heads < 1 || H % heads != 0) throw std::invalid_argument("heads must divide hidden_size");
  if (heads > 1 && projected) throw std::invalid_argument("heads are for layers without a projection");
  return heads;
}

}  // namespace fastrnn
