// Weights packed once for many calls: all that a model that only runs needs of the host beside its own memory.
#include "host/layout.hpp"
#include "host/stack.hpp"

namespace fastrnn {

template <class Real>
FrozenWeights<Real>::FrozenWeights(const Stack& n, const Parameters<const Real>* weights, const NarrowFormats* narrow,
                                   const Parameters<const float>* counts) {
  auto lay_out = [&](Arena& arena) {
    panels_.clear();
    for (int64_t i = 0; i < n.L * n.D; i++) {
      const int64_t I = n.input_size(i / n.D);
      panels_.push_back(take_panels<Real>(n, I, !narrow, !narrow, arena));
      if (narrow) take_narrow_panels(n, I, *narrow, arena, panels_.back());
    }
  };
  memory_ = laid_out(lay_out, false);
  Control control{};
  Barrier alone{};
  alone.size = 1;
  const Seat seat{0, 1, true, false, &alone, &control};
  for (int64_t i = 0; i < n.L * n.D; i++) {
    Direction<Real> d{};
    d.I = n.input_size(i / n.D), d.H = n.H, d.P = n.P, d.heads = n.heads;
    d.weight = weights[i];
    d.panels = panels_[i];
    kernel_of<Real>(n).pack(d, seat);
    if constexpr (sizeof(Real) == sizeof(float))
      if (narrow) pack_narrow_panels(n, d, counts ? counts[i] : Parameters<const float>{});
  }
}

template class FrozenWeights<float>;
template class FrozenWeights<double>;

}  // namespace fastrnn
