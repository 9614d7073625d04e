// What a layer has, as lists that the bindings of both devices and Python read: parameters and states.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/structs.hpp"

namespace fastrnn {

// The axes of parameters and states: the layer's inputs (I, above the first layer D*P), H, P, G*H, the peepholes of a unit, P / heads.
enum class Extent { inputs, hidden, output, gates, peepholes, head };
constexpr const char* extent_names[] = {"inputs", "hidden", "output", "gates", "peepholes", "head"};
constexpr int64_t peepholes = 3;  // of i, f and o

// What decides which parameters a layer has. norms: the kernel's.
struct Has {
  bool bias, projection, peephole;
  int norms = 0;
};

struct ParameterShape {
  Parameter which;
  const char* name;
  Extent axes[2];
  int dimensions;
};

// In PyTorch's order.
constexpr ParameterShape all_parameters[] = {{weight_ih, "weight_ih", {Extent::gates, Extent::inputs}, 2},
                                             {weight_hh, "weight_hh", {Extent::gates, Extent::head}, 2},
                                             {bias_ih, "bias_ih", {Extent::gates}, 1},
                                             {bias_hh, "bias_hh", {Extent::gates}, 1},
                                             {weight_hr, "weight_hr", {Extent::output, Extent::hidden}, 2},
                                             {weight_peephole, "weight_peephole", {Extent::peepholes, Extent::hidden}, 2},
                                             {weight_norm_ih, "weight_norm_ih", {Extent::gates}, 1},
                                             {weight_norm_hh, "weight_norm_hh", {Extent::gates}, 1},
                                             {weight_norm_c, "weight_norm_c", {Extent::hidden}, 1},
                                             {bias_norm_c, "bias_norm_c", {Extent::hidden}, 1}};
constexpr bool is_bias(Parameter p) { return p == bias_ih || p == bias_hh || p == bias_norm_c; }

constexpr bool has_parameter(const Has& has, Parameter p) {
  switch (p) {
    case bias_ih:
    case bias_hh: return has.bias;
    case weight_hr: return has.projection;
    case weight_peephole: return has.peephole;
    case weight_norm_ih:
    case weight_norm_hh: return has.norms > 0;
    case weight_norm_c: return has.norms > 1;
    case bias_norm_c: return has.norms > 1 && has.bias;
    default: return true;
  }
}

// f(parameter) for those that a layer has.
template <class F> void for_each_parameter(const Has& has, F f) {
  for (const ParameterShape& p : all_parameters)
    if (has_parameter(has, p.which)) f(p);
}

struct StateShape {
  const char* name;
  Extent size;
};
// A cell has the first so many of these.
constexpr StateShape all_states[max_states] = {{"h", Extent::output}, {"c", Extent::hidden}, {"n", Extent::hidden}, {"m", Extent::hidden}};
inline std::vector<StateShape> states_of(int states) { return {all_states, all_states + states}; }

// The shape of a parameter in a layer of either device's stack.
template <class Stack> std::vector<int64_t> shape_of(const ParameterShape& p, const Stack& n, int64_t layer, int64_t gates) {
  const int64_t sizes[] = {n.input_size(layer), n.H, n.P, gates * n.H, peepholes, n.P / n.heads};  // by Extent
  std::vector<int64_t> shape;
  for (int i = 0; i < p.dimensions; i++) shape.push_back(sizes[int(p.axes[i])]);
  return shape;
}

}  // namespace fastrnn
