// The processors of this process: how many it may use, and which of its threads run on one right now.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <vector>

namespace fastrnn {

// Nanoseconds of a clock that never goes back.
int64_t now();

// Processors this process may use: its affinity mask, cut by the cgroup's CPU quota.
int available_threads();

// Counts the threads of other libraries in this process that are on a processor at this moment: OpenBLAS's spin for 27 ms
// after a product, ONNX Runtime's for tens of ms, and two threads on one processor wait for each other. A look reads the
// CPU clock of each thread twice, which takes about a microsecond a thread; a clock that goes on is that of one that runs.
class Neighbours {
 public:
  // Stops counting at 'enough'. is_ours(thread): the caller and the team's workers are no neighbours.
  template <class IsOurs> int running(IsOurs is_ours, int enough) {
    if (!read()) list(), read();
    int found = 0;
    for (const Thread& t : threads_)
      if (found < enough && !is_ours(t.id) && time_of(t.clock) > t.spent) found++;
    return found;
  }

 private:
  struct Thread {
    pid_t id;
    clockid_t clock;
    int64_t spent;  // when last read
  };
  // Nanoseconds of CPU time that it shows; -1: the thread has ended.
  static int64_t time_of(clockid_t clock);
  // False: others run now than those that are listed.
  bool read();
  void list();

  std::vector<Thread> threads_;  // of the process, as of the last listing
  int64_t count_ = -1;           // how many there were
};

}  // namespace fastrnn
