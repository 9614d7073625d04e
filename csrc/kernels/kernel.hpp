// What one cell in one dtype offers, as functions. With FASTRNN_FORWARD_ONLY there is no backward pass.
#pragma once
#include "kernels/lone.hpp"
#ifndef FASTRNN_FORWARD_ONLY
#include "kernels/backward.hpp"
#endif

namespace fastrnn::FASTRNN_ISA {
namespace {

template <class C, class Real> struct FunctionsOf {
  using V = typename VectorOf<Real>::type;
  static_assert(C::gates <= 4 && C::slots.count - C::slots.plain <= max_slots && C::tape <= 4 && C::states <= max_states,
                "Unit and UnitGradient in cells.hpp have room for so many");

  static void pack(const Direction<Real>& d, const Seat& seat) { pack_forward<C, V>(d, seat); }

  static void forward(const Direction<Real>& d, const Seat& seat) {
    FlushToZero mode;
    if constexpr (Lone<C, V, Real>::possible)
      if (Lone<C, V, Real>::fits(d, seat)) return Lone<C, V, Real>{d, seat}.run();
    Forward<C, V, Real>{d, seat}.run();
  }

#ifdef FASTRNN_FORWARD_ONLY
  static constexpr void (*backward)(const BackwardDirection<Real>&, const Seat&) = nullptr;
#else
  static void backward(const BackwardDirection<Real>& q, const Seat& seat) {
    FlushToZero mode;
    Backward<C, V, Real>{q, seat}.run();
  }
#endif

  static constexpr Kernel<Real> kernel() {
    return {Lanes<V>::n,   C::gates, C::phase[0].gates, C::tape, C::phases, C::states, vectors_of<C>(),
            norms_of<C>(), C::slots, C::projected,      pack,    forward,   backward};
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
