// Zoneout and recurrent dropout of one unit of one row, as kernels/noise.hpp has them. Masks are selects.
#pragma once
#include "cuda/kernels/numbers.hpp"
#include "kernels/structs.hpp"

namespace fastrnn::device {
namespace {

// What the recurrent products of time t see of h_prev, and the gradient of one from that of the other.
template <class Real> FASTRNN_DEVICE Real dropped(const Noise& noise, int64_t t, int64_t b, int64_t unit, Real x) {
  if (!noise.kept.base) return x;
  return noise.kept.at(t, b)[unit] ? x * Real(noise.scale) : Real(0);
}

// A state after zoneout is staying(state before) + passing(state of the cell): by the mask, or by the rate where there is none.
template <class Real> struct Zone {
  const bool any, masked;
  bool stays = false;
  Real rate;

  template <class Side> FASTRNN_DEVICE Zone(const Side& side, int state, int64_t t, int64_t b, int64_t unit)
      : any(side.options.zoneout[state] > 0), masked(side.noise.zoned[state].base), rate(Real(side.options.zoneout[state])) {
    if (any && masked) stays = side.noise.zoned[state].at(t, b)[unit];
  }
  FASTRNN_DEVICE Real staying(Real x) const { return masked ? stays ? x : Real(0) : x * rate; }
  FASTRNN_DEVICE Real passing(Real x) const { return masked ? stays ? Real(0) : x : x * (1 - rate); }
};

}  // namespace
}  // namespace fastrnn::device
