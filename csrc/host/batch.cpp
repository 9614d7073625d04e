#include "host/batch.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fastrnn {

Batch::Batch(int64_t T, int64_t B, const int64_t* lengths, Rows<const uint8_t> reset) {
  data_.resize(size_t(plus(times(3, B), times(2, T))));
  int64_t *order = data_.data(), *place = order + B, *length = place + B, *active = length + B, *offset = active + T;
  for (int64_t b = 0; b < B; b++) order[b] = b;
  if (lengths) std::stable_sort(order, order + B, [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  for (int64_t s = 0; s < B; s++) place[order[s]] = s, length[s] = lengths ? lengths[order[s]] : T;
  int64_t running = B;
  for (int64_t t = 0; t < T; t++) {
    while (running > 0 && length[running - 1] <= t) running--;
    active[t] = running;
    offset[t] = tokens_;
    tokens_ = plus(tokens_, running);
  }
  schedule_ = {T, B, order, place, length, active, offset, reset};
}

TokenIds::TokenIds(const Schedule& schedule, Rows<const int64_t> ids, int64_t vocabulary) : row_(size_t(times(schedule.T, schedule.B))) {
  std::vector<int64_t> seen(size_t(vocabulary), -1);
  for (int64_t t = 0; t < schedule.T; t++)
    for (int64_t s = 0; s < schedule.active[t]; s++) {
      const int64_t b = schedule.order[s], id = *ids.at(t, b);
      if (id < 0 || id >= vocabulary) throw std::out_of_range("ids must lie in 0.." + std::to_string(vocabulary - 1));
      if (seen[id] < 0) seen[id] = int64_t(id_.size()), id_.push_back(id);
      row_[t * schedule.B + b] = seen[id];
    }
}

}  // namespace fastrnn
