// How a call is shared out among threads: a cost model chooses between directions side by side, batch rows, hidden units.
#pragma once
#include <cstdint>

namespace fastrnn {

// What a call has to do. rows: how many run at a step, on average.
struct Load {
  int lanes, gates, phases, item_size;
  int64_t I, H, P, L, T, B;
  int D;
  double rows;
  bool backward;
};

// Teams that work side by side (1, or one for each direction) and the workers of each. They share out batch rows, which
// never meet, or hidden units: then each keeps its part of the weights in its own cache and all meet after every phase.
struct Plan {
  int teams, size;
  bool by_rows;
  double microseconds;  // predicted
};

// The best plan for up to so many threads. Predictions hold within a factor of two or so; a plan with more threads has to
// promise a clear gain.
Plan plan_of(const Load& load, int threads);

}  // namespace fastrnn
