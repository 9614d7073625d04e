// Zoneout and recurrent dropout of general cells, of some units of one row. Masks are selects: what is not taken does not matter.
#pragma once
#include "kernels/vec.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

// The first count flags as numbers.
template <class V> FASTRNN_FN V numbers_of(const uint8_t* flags, int64_t count) {
  constexpr int N = Lanes<V>::n;
  typename Lanes<V>::Real numbers[N] = {};
  if (count >= N) {
    for (int k = 0; k < N; k++) numbers[k] = flags[k];
  } else {
    for (int k = 0; k < count; k++) numbers[k] = flags[k];
  }
  return load<V>((const typename Lanes<V>::Real*)numbers);
}

// Dropout of x: what is kept is scaled.
template <class V> FASTRNN_FN V dropped(const uint8_t* kept, double scale, V x, int64_t count) {
  return where_zero(numbers_of<V>(kept, count), V{}, V(x * typename Lanes<V>::Real(scale)));
}

// A state after zoneout is staying(state before) + passing(state of the cell): by the mask, or by the rate where there is none.
struct Zone {
  const uint8_t* mask;  // non-zero: the state stays; or null
  double rate;

  template <class V> FASTRNN_FN V staying(V x, int64_t at, int64_t count) const {
    return mask ? where_zero(numbers_of<V>(mask + at, count), V{}, x) : V(x * typename Lanes<V>::Real(rate));
  }
  template <class V> FASTRNN_FN V passing(V x, int64_t at, int64_t count) const {
    return mask ? where_zero(numbers_of<V>(mask + at, count), x, V{}) : V(x * (1 - typename Lanes<V>::Real(rate)));
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
