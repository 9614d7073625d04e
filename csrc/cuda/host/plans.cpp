// How a call's work is cut.
#include <algorithm>

#include "cuda/host/stack.hpp"

namespace fastrnn::cuda {

int step_columns(int64_t units, int64_t B, int directions, int processors) {
  const int64_t blocks = (units + 15) / 16 * ((B + 7) / 8) * directions;
  return blocks <= 2 * int64_t(processors) ? 8 : 32;
}

namespace {

ResidentPlan deal_out(int64_t unit_blocks, int64_t B, const ResidentRoom& room) {
  int64_t most[2], tiles[2];
  for (int i : {0, 1}) {
    most[i] = int64_t(room.processors) * room.held[i] / unit_blocks;
    tiles[i] = (B + room.columns[i] - 1) / room.columns[i];
  }
  const bool wide = tiles[0] > most[0] && most[1] > 0;  // small tiles where each has a block of its own
  const int64_t groups = std::min(tiles[wide], most[wide]);
  return {wide, tiles[wide] > 2 * groups ? 0 : int(groups), 0};  // one tile after the other: the step kernels have more at once
}

}  // namespace

ResidentPlan plan_resident(int64_t unit_blocks, int64_t B, int directions, const ResidentRoom& room) {
  ResidentPlan plan = deal_out(unit_blocks * directions, B, room);
  plan.directions = directions;
  if (plan.groups || directions == 1) return plan;
  return plan_resident(unit_blocks, B, 1, room);
}

int64_t chunk_steps(int64_t T, int64_t B, int64_t token_bytes, int64_t chunk_bytes) {
  return std::max<int64_t>(1, std::min(T, chunk_bytes / std::max<int64_t>(1, times(B, token_bytes))));
}

int product_shares(int64_t n, int64_t K, int64_t m, int64_t result_bytes, int processors) {
  const int64_t tiles = ((n + 63) / 64) * ((m + 63) / 64), fill = 2 * int64_t(processors) / std::max<int64_t>(1, tiles);
  const int64_t room = workspace_bytes / std::max<int64_t>(1, result_bytes);
  return int(std::clamp<int64_t>(std::min({fill, room, K / 512}), 1, 64));
}

}  // namespace fastrnn::cuda
