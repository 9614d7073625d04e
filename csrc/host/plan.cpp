#include "host/plan.hpp"

#include <algorithm>

namespace fastrnn {
namespace {

// Of one core and of two that meet, measured on server processors of some years; microseconds.
constexpr double second_level_cache = 1.5e6, bytes_from_it = 1e5, bytes_from_beyond = 4e4;
constexpr double barrier_base_us = 0.6, barrier_each_us = 0.05;  // two were measured; more take turns at the barrier's counter
constexpr double unoverlapped_fraction = 0.4;  // the part of the shorter of computing and reading that does not hide behind the longer
constexpr double wake_up_us = 3, step_of_a_row = 0.02;
constexpr double worth_sharing = 20, clear_gain = 0.87, better_share = 0.96;  // the last two against what was best before

// Microseconds of one time step of one direction, through all layers, for the busiest worker.
double step_of(const Load& load, int size, bool by_rows) {
  const double T = double(std::max<int64_t>(load.T, 1)), rows = by_rows ? double((int64_t(load.rows + 0.5) + size - 1) / size) : load.rows;
  const int64_t blocks = (load.H + load.lanes - 1) / load.lanes;
  const double part = by_rows ? 1 : double((blocks + size - 1) / size) / double(blocks);
  auto weights = [&](int64_t columns) { return double(load.gates) * double(load.H) * double(columns) * part; };
  auto inputs = [&](int64_t layer) { return layer ? load.D * load.P : load.I; };

  // The recurrent weights are read at every step, the others once in a sequence. With one step all are read in turn.
  const int64_t recurrent = load.P / load.heads;
  double resident = weights(recurrent);
  for (int64_t l = 0; l < load.L && load.T == 1; l++) resident += weights(inputs(l) + (l ? recurrent : 0));
  const double bytes_per_us = resident * load.item_size < second_level_cache ? bytes_from_it : bytes_from_beyond;
  auto product = [&](double elements, double reads) {
    const double compute = 2 * elements * rows / (flops_of_a_lane * load.lanes * load.speed),
                 read = elements * load.item_size * reads / bytes_per_us;
    return std::max(compute, read) + unoverlapped_fraction * std::min(compute, read);
  };
  double step = 0;
  for (int64_t l = 0; l < load.L; l++)
    step += product(weights(recurrent), 1) + product(weights(inputs(l)), 1 / T) + 0.1 + step_of_a_row * rows +
            (by_rows ? 0 : (barrier_base_us + barrier_each_us * size) * load.phases);
  return step;
}

}  // namespace

Plan plan_of(const Load& load, int threads) {
  const double passes = load.backward ? 2 : 1;
  auto predicted = [&](int teams, int size, bool by_rows) {
    return double(load.T) * load.D / teams * step_of(load, size, by_rows) * passes + (teams * size > 1 ? wake_up_us : 0);
  };
  const Plan alone{1, 1, true, predicted(1, 1, true)};
  if (threads <= 1 || alone.microseconds < worth_sharing) return alone;
  const int64_t rows = int64_t(load.rows + 0.5), blocks = (load.H + load.lanes - 1) / load.lanes;
  Plan best = alone;
  auto consider = [&](int teams, int64_t size, bool by_rows) {
    if (size < 1 || size > threads / teams || size > (by_rows ? rows : blocks) || (teams == 1 && size == 1)) return;
    const Plan plan{teams, int(size), by_rows, predicted(teams, int(size), by_rows)};
    const double enough = best.teams * best.size == 1 ? clear_gain : better_share;
    if (plan.microseconds < enough * best.microseconds) best = plan;
  };
  for (int teams = 1; teams <= load.D; teams++) {
    const int most = threads / teams;
    for (int64_t size = 1; size < most; size *= 2) consider(teams, size, true), consider(teams, size, false);
    consider(teams, std::min<int64_t>(most, rows), true);
    consider(teams, std::min<int64_t>(most, blocks), false);
  }
  return best;
}

}  // namespace fastrnn
