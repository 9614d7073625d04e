// A model as a file describes it: its parts in order, their weights packed.
#pragma once
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "host/stack.hpp"

namespace fastrnn {

template <class Real> struct Part {
  enum Kind { embedding, recurrent, linear } kind;
  int64_t inputs, outputs;  // of one row
  // of a recurrent one
  Stack stack{};
  std::unique_ptr<FrozenWeights<Real>> frozen{};
  // of the others: (V,I), or (outputs,inputs) and a bias (outputs) or none
  std::vector<Real> weight{}, bias{};

  bool stacked() const { return kind == recurrent; }
  bool takes_ids() const { return kind == embedding; }
  int states() const { return table_of<Real>(*stack.isa).cell[int(stack.cell)]->states; }
  // Elements of all its states for so many sequences.
  int64_t state_size(int64_t B) const {
    return stacked() ? times(times(stack.L * stack.D, B), plus(stack.P, times(states() - 1, stack.H))) : 0;
  }
};

// What is wrong with a model's bytes: damaged, or of a kind that is not for this library.
struct BadModel : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct UnsupportedModel : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Of either dtype; the other's parts are empty.
struct Model {
  const Isa* isa = nullptr;
  bool f64 = false, causal = true;
  std::vector<Part<float>> narrow{};
  std::vector<Part<double>> wide{};

  template <class Real> const std::vector<Part<Real>>& parts() const {
    if constexpr (sizeof(Real) == 4) return narrow;
    else return wide;
  }
  // f with a number of the dtype.
  template <class F> auto by_dtype(F f) const { return f64 ? f(double()) : f(float()); }
};

// What to keep the matrices of recurrent layers as, in place of what the file holds.
struct KeptAs {
  Format ih, hh;  // hh: also of weight_hr
};
// Throws BadModel, UnsupportedModel, std::bad_alloc.
std::unique_ptr<Model> read_model(const char* bytes, size_t size, const std::optional<KeptAs>& kept_as);

}  // namespace fastrnn
