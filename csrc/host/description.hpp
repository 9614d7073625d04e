// What a layer has, as lists that the bindings of both devices and Python read: parameters and states.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/structs.hpp"

namespace fastrnn {

// The axes of parameters and states: the layer's inputs (I, above the first layer D*P), H, P, G*H.
enum class Extent { inputs, hidden, output, gates };
constexpr const char* extent_names[] = {"inputs", "hidden", "output", "gates"};

struct ParameterShape {
  Parameter which;
  const char* name;
  std::vector<Extent> axes;
};

// In PyTorch's order.
inline std::vector<ParameterShape> parameters_of(bool bias, bool projected) {
  std::vector<ParameterShape> all{{weight_ih, "weight_ih", {Extent::gates, Extent::inputs}},
                                  {weight_hh, "weight_hh", {Extent::gates, Extent::output}}};
  if (bias) all.push_back({bias_ih, "bias_ih", {Extent::gates}}), all.push_back({bias_hh, "bias_hh", {Extent::gates}});
  if (projected) all.push_back({weight_hr, "weight_hr", {Extent::output, Extent::hidden}});
  return all;
}

struct StateShape {
  const char* name;
  Extent size;
};
// c is the only one that a cell has beside h so far.
inline std::vector<StateShape> states_of(int states) {
  std::vector<StateShape> all{{"h", Extent::output}};
  if (states > 1) all.push_back({"c", Extent::hidden});
  return all;
}

// The sizes behind the axes, of a layer of either device's stack.
template <class Stack> std::vector<int64_t> sizes_of(const std::vector<Extent>& axes, const Stack& n, int64_t layer, int64_t gates) {
  std::vector<int64_t> sizes;
  for (const Extent axis : axes)
    sizes.push_back(axis == Extent::inputs   ? n.input_size(layer)
                    : axis == Extent::hidden ? n.H
                    : axis == Extent::output ? n.P
                                             : gates * n.H);
  return sizes;
}

}  // namespace fastrnn
