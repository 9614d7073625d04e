// How a call is shared out among threads: a cost model chooses between directions side by side, batch rows, hidden units.
#pragma once
#include <cstdint>

namespace fastrnn {

// Operations that a vector lane does in a microsecond, about.
constexpr double flops_of_a_lane = 9e3;

// What a call has to do. item_size: bytes of a weight; speed: products with narrow weights in the time of one of full ones; rows: how many
// run at a step, on average.
struct Load {
  int lanes, gates, phases, item_size, speed;
  int64_t I, H, P, heads, L, T;
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
//   H=64    B=16             2 rows     1.9  16 rows     7.1  16 rows     7.1
//   H=256   B=1              2 units    1.8  16 units    6.2  16 units    6.2
//   H=256   B=16             2 rows     1.9  16 units   12.9  16 units   12.9
//   H=256   B=128            2 rows     2.0  16 rows    15.0  64 rows    44.9
//   H=256   B=1,   two ways  2x1        2.0  2x8 units  10.1  2x16 units 12.5
//   H=1024  B=1              2 units    2.0  16 units   29.3  64 units   64.0
//   H=1024  B=16             2 units    2.0  16 units   16.6  64 units   59.1
Plan plan_of(const Load& load, int threads);

}  // namespace fastrnn
