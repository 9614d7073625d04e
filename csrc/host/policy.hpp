// When a team is worth its threads. Times and what was seen come in, decisions go out: nothing here waits, starts or asks.
//
//            a call was crowded: for 2 ms, twice as long each time, at most 250 ms
//   +------+ ------------------------------------------------------------------------> +---------------------+
//   |      | <------------------------------------------------------------------------ | CROWDED: one thread |
//   |      |   the time is over                                                         +---------------------+
//   | TEAM |
//   |      |   other threads of the process run: for 1 ms, twice as long each time, at most 16 ms
//   |      | ------------------------------------------------------------------------> +-------------------------+
//   |      | <------------------------------------------------------------------------ | TAKEN: what they leave  |
//   +------+   the time is over or a call is long, and a look finds processors free    +-------------------------+
//
// In TEAM, a short call whose workers sleep runs on one thread, and in a stream of such calls it wakes them for the next.
// Crowded is a call that took longer than its caller alone would have: other processes want the processors, or others of
// this one that a look did not find. A team call that was not ends the doubling; so does a look that finds all free.
#pragma once
#include <algorithm>
#include <cstdint>

namespace fastrnn {

class Policy {
 public:
  static constexpr double worth_waking = 150;    // us of one thread's work from where sleeping workers are waited for
  static constexpr double worth_a_look = 400;    // us of work from where looking at the neighbours costs next to nothing
  static constexpr int64_t look_holds = 200'000; // ns for which shorter calls trust the last look
  static constexpr int64_t least_crowded = 2'000'000, most_crowded = 250'000'000;  // ns
  static constexpr int64_t least_taken = 1'000'000, most_taken = 16'000'000;       // ns

  struct Decision {
    int size;   // of the team; 1: the caller alone
    bool wake;  // the workers, for the next call
  };

  // patience: ns between two short calls of one stream, beyond what the first takes.
  explicit Policy(int64_t patience) : patience_(patience) {}

  // At time t, of a call that would like 'wanted' threads and takes one that many microseconds. asleep(stream): whether
  // workers sleep, as far as one knows, in a stream of short calls or not. free(): how many processors the other threads of
  // this process leave, any number if none of them runs.
  template <class Asleep, class Free> Decision before(int64_t t, int wanted, double microseconds, Asleep asleep, Free free) {
    if (t < crowded_until_) return {1, false};
    if (microseconds <= worth_waking) {
      const bool stream = t - last_short_ < patience_ + int64_t(microseconds * 1e3), taken = t < seen_until_ && free_ < wanted;
      last_short_ = t;
      if (asleep(stream)) return {1, stream && !taken};
    }
    if (t >= seen_until_ || microseconds > worth_a_look) look(t, free(), wanted);
    return {std::max(std::min(wanted, free_), 1), false};
  }

  // A call of a team, over at time t, took so many ns, for 'waited' of which its caller stood waiting. 'slack': ns that
  // may pass at its start and end for other reasons.
  void after(int64_t t, int64_t took, int64_t waited, int size, int64_t slack) {
    // Alone, the caller would have been busy 'size' times as long as it was.
    const bool crowded = took > int64_t(size) * (took - waited) + slack;
    crowded_ = crowded ? std::min(2 * crowded_, most_crowded) : least_crowded / 2;
    crowded_until_ = crowded ? t + crowded_ : 0;
  }

 private:
  void look(int64_t t, int free, int wanted) {
    free_ = free;
    taken_ = free < wanted ? std::min(2 * taken_, most_taken) : least_taken / 2;
    seen_until_ = t + (free < wanted ? taken_ : look_holds);
  }

  int64_t patience_;
  int64_t crowded_ = least_crowded / 2, crowded_until_ = 0;  // the last rest, and its end
  int64_t taken_ = least_taken / 2, seen_until_ = 0;         // the last rest of that kind, and until when the look counts
  int free_ = 0;             // processors that the last look found free
  int64_t last_short_ = 0;   // when the last short call came
};

}  // namespace fastrnn
