// Cells by name and shapes in words, for the bindings of both devices.
#pragma once
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/structs.hpp"

namespace fastrnn {

using Shape = std::vector<int64_t>;

inline std::string text_of(const Shape& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); i++) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + ")";
}

// 'rnn_tanh' as it is; with a projection and as a general cell it has names of its own.
inline Cell cell_named(const std::string& name, bool projected, bool general) {
  if (projected && name != "lstm") throw std::invalid_argument("proj_size is for the lstm cell only");
  const std::string family = general && name.rfind("rnn_", 0) == 0 ? "rnn" : name;
  const std::string full = family + (projected ? "_projected" : "") + (general ? "_general" : "");
  std::string known;
  for (int i = 0; i < cell_count; i++) {
    if (full == cell_names[i]) return Cell(i);
    known += std::string(known.empty() ? "" : ", ") + cell_names[i];
  }
  throw std::invalid_argument("cell is '" + full + "' but must be one of " + known);
}

// What the bindings are told of a general cell: the activations of one direction or of two, each as (name, alpha, beta).
// Then zoneout of h and of c.
using General = std::tuple<double, bool, bool, std::vector<std::vector<std::tuple<std::string, double, double>>>,
                           std::pair<double, double>>;  // clip, coupled, peephole

inline Format format_named(const std::string& name) {
  if (name != "bfloat16" && name != "int8") throw std::invalid_argument("weights '" + name + "' are neither bfloat16 nor int8");
  return name == "int8" ? Format::int8 : Format::bfloat16;
}

inline ActivationKind activation_named(const std::string& name) {
  constexpr const char* names[] = {"sigmoid",     "tanh",         "relu", "affine",   "leaky_relu", "thresholded_relu",
                                   "scaled_tanh", "hard_sigmoid", "elu",  "softsign", "softplus"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (name == names[i]) return ActivationKind(i);
  throw std::invalid_argument("activation '" + name + "' is not known");
}
inline CellOptions options_of(const General& general, int direction) {
  const auto& [clip, coupled, peephole, activations, zoneout] = general;
  if (activations.empty()) throw std::invalid_argument("a general cell needs its activations");
  CellOptions options{clip, coupled, peephole, {}, {zoneout.first, zoneout.second}};
  const auto& mine = activations[size_t(direction) < activations.size() ? size_t(direction) : 0];
  if (mine.empty() || mine.size() > size_t(max_activations)) throw std::invalid_argument("a cell has one to three activations");
  for (size_t i = 0; i < mine.size(); i++)
    options.activation[i] = {activation_named(std::get<0>(mine[i])), std::get<1>(mine[i]), std::get<2>(mine[i])};
  return options;
}

// The number of heads, if a layer may have so many.
inline int64_t heads_of(int64_t heads, int64_t H, bool projected) {
  if (heads < 1 || H % heads != 0) throw std::invalid_argument("heads must divide hidden_size");
  if (heads > 1 && projected) throw std::invalid_argument("heads are for layers without a projection");
  return heads;
}

}  // namespace fastrnn
