// The team of threads as kernels see it: who does what part, how they meet, how a call is interrupted. The threads
// themselves are threads.hpp's.
#pragma once
#include "kernels/structs.hpp"

namespace fastrnn {

// 'interrupted' is asked by the calling thread every few milliseconds of work, and its answer kept in 'stop'.
struct Control {
  bool (*interrupted)(void* context);
  void* context;
  int stop;
  int64_t waited;  // nanoseconds that the calling thread stood at barriers
};

// All workers leave a barrier with the same answer, so that an interrupted team stops at one place. Padded, so that no other
// data shares the cache line that waiters watch; not by alignas, since aligned memory is slow to get.
struct Barrier {
  char before[128];
  int size, arrived, epoch, stopped;
  char after[112];
};

struct Range {
  int64_t first, last;
};

// The rest of spin_while: goes on for a moment, then gives way, for a team may be larger than the machine.
int64_t wait_longer(const int* word, int old);

namespace {

FASTRNN_INLINE void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits for *word to leave 'old'; nanoseconds of it beyond the first few thousand.
FASTRNN_INLINE int64_t spin_while(const int* word, int old) {
  for (int spins = 0; spins < 64; spins++) {
    if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != old) return 0;
    pause();
  }
  return wait_longer(word, old);
}

FASTRNN_INLINE bool stopped(const Control& control) { return __atomic_load_n(&control.stop, __ATOMIC_RELAXED) != 0; }

// True: the call was interrupted. 'caller': by the calling thread.
FASTRNN_INLINE bool wait(Barrier& barrier, Control& control, bool caller) {
  if (barrier.size == 1) return stopped(control);
  const int epoch = __atomic_load_n(&barrier.epoch, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&barrier.arrived, 1, __ATOMIC_ACQ_REL) == barrier.size) {
    barrier.stopped = stopped(control);
    __atomic_store_n(&barrier.arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier.epoch, epoch + 1, __ATOMIC_RELEASE);
  } else {
    const int64_t waited = spin_while(&barrier.epoch, epoch);
    if (caller) control.waited += waited;
  }
  return barrier.stopped;
}
FASTRNN_INLINE bool wait(const Seat& seat) { return wait(*seat.barrier, *seat.control, seat.asks); }

// The part of [0, n) that falls to one of 'size' workers, a multiple of 'grain' but for the last.
FASTRNN_INLINE Range share_of(int64_t n, int rank, int size, int64_t grain = 1) {
  const int64_t grains = (n + grain - 1) / grain;
  const int64_t first = grains * rank / size * grain, last = grains * (rank + 1) / size * grain;
  return {first < n ? first : n, last < n ? last : n};
}

}  // namespace

// Counts the work of one worker and lets the calling thread ask now and then whether to go on.
struct Poll {
  Control* control;
  bool asks;
  double spent = 0;

  FASTRNN_INLINE Poll(const Seat& seat) : control(seat.control), asks(seat.asks) {}
  FASTRNN_INLINE bool stop(double flops) {
    if (stopped(*control)) return true;
    spent += flops + 4000;  // even a tile of nothing takes some time
    if (!asks || spent < 2e8) return false;
    spent = 0;
    if (!control->interrupted || !control->interrupted(control->context)) return false;
    __atomic_store_n(&control->stop, 1, __ATOMIC_RELAXED);
    return true;
  }
};

}  // namespace fastrnn
