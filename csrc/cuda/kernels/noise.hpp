// Zoneout and recurrent dropout of one unit of one row.
#pragma once
#include "cuda/kernels/device.hpp"
#include "kernels/noise.hpp"
#include "kernels/structs.hpp"

namespace fastrnn::device {
namespace {

// What the recurrent products of time t see of h_prev, and the gradient of one from that of the other.
template <class Real> FASTRNN_DEVICE Real dropped(const Noise& noise, int64_t t, int64_t b, int64_t unit, Real x) {
  return noise.kept.base ? dropped(noise.kept.at(t, b) + unit, noise.scale, x, 1) : x;
}

// What part of a state stays.
struct UnitZone {
  Zone zone;

  template <class Side> FASTRNN_DEVICE UnitZone(const Side& side, int state, int64_t t, int64_t b, int64_t unit)
      : zone{nullptr, side.options.zoneout[state]} {
    const Rows<const uint8_t>& mask = side.noise.zoned[state];
    if (any() && mask.base) zone.mask = mask.at(t, b) + unit;
  }
  FASTRNN_DEVICE bool any() const { return zone.rate > 0; }
  template <class Real> FASTRNN_DEVICE Real staying(Real x) const { return zone.staying(x, 0, 1); }
  template <class Real> FASTRNN_DEVICE Real passing(Real x) const { return zone.passing(x, 0, 1); }
};

}  // namespace
}  // namespace fastrnn::device
