// sigmoid and tanh of whole arrays for one instruction set, so that tests can measure their error over the whole range.
#include "vec.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class Real, bool is_tanh> void apply(const Real* x, Real* y, int64_t n) {
  using V = typename VectorOf<Real>::type;
  FlushToZero mode;
  for (int64_t i = 0; i < n; i += Lanes<V>::n) {
    const V v = load<V>(x + i, n - i);
    store(y + i, is_tanh ? tanh(v) : sigmoid(v), n - i);
  }
}

}  // namespace

extern const Activations<float> activations_f32;
extern const Activations<double> activations_f64;
const Activations<float> activations_f32 = {apply<float, false>, apply<float, true>};
const Activations<double> activations_f64 = {apply<double, false>, apply<double, true>};

}  // namespace fastrnn::FASTRNN_ISA
