// Noise of all directions of a call, on every device.
#pragma once
#include "kernels/structs.hpp"

namespace fastrnn {

struct AllNoise {
  Noise first;  // of direction 0
  int64_t kept_side, zoned_side[2];  // elements from direction to direction

  Noise of(int64_t side) const {
    Noise n = first;
    if (n.kept.base) n.kept.base += side * kept_side;
    for (int state = 0; state < 2; state++)
      if (n.zoned[state].base) n.zoned[state].base += side * zoned_side[state];
    return n;
  }
};

}  // namespace fastrnn
