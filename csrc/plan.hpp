// How a call is shared out among threads: a cost model chooses between directions side by side, batch rows, hidden units.
#pragma once
#include <cstdint>

namespace fastrnn {

// Operations that a vector lane does in a microsecond, about.
constexpr double flops_of_a_lane = 9e3;

// What a call has to do. rows: how many run at a step, on average.
struct Load {
  int lanes, gates, phases, item_size;
  int64_t I, H, P, L, T;
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
// promise a clear gain. What it chooses, and the gain over one thread that it predicts, for an LSTM of I = H with AVX-512 in
// float32; two threads were measured, more are arithmetic:
//
//                            2 threads       16 threads       64 threads
//   H=64    B=1              one             one              one
//   H=64    B=16             2 rows     2.0  16 rows     7.5  16 rows     7.5
//   H=256   B=1              2 units    1.8  16 units    5.9  16 units    5.9
//   H=256   B=16             2 rows     2.0  16 units   12.8  16 units   12.8
//   H=256   B=128            2 rows     2.0  16 rows    16.0  64 rows    52.1
//   H=256   B=1,   two ways  2 units    1.8  2x8 units   9.8  2x16 units 11.7
//   H=1024  B=1              2 units    2.0  16 units   30.5  64 units   63.9
//   H=1024  B=16             2 rows     2.0  16 units   15.8  64 units   55.9
Plan plan_of(const Load& load, int threads);

}  // namespace fastrnn
