// The threads that a call runs on: the process's own team, or threads that the host program lends.
#pragma once
#include "kernels/team.hpp"

namespace fastrnn {

// How a call asks whether to go on; null: never.
struct Interrupt {
  bool (*asked)(void* context);
  void* context;
};

// The threads of a program that fastrnn runs in, PyTorch's, lent by a function like its torch_parallel_for: calls
// f(first, last, context) for parts of [begin, end), one part a thread and all of them at once, in the calling thread as
// well, and returns when all have returned; or once for the whole, where there is one thread or a loop of this kind around.
// An OpenMP region does that. A pool that may run one part after the other does not: barriers would wait for ever.
struct HostThreads {
  int (*parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context);
};

// Leases up to 'wanted' threads (including the caller) for work estimated at so many microseconds on one thread: of the
// process's own team, or the host's, if it lends any. size is 1 while another caller holds the lease, and where the policy says
// so (policy.hpp).
class Lease {
 public:
  Lease(int wanted, double microseconds, HostThreads host);
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  int size() const { return size_; }
  // Runs job(context, rank) for each rank in [0, size), rank 0 the caller, and gives the lease back: true. False: the host
  // lent fewer threads than it has, nothing was run, and size() now says how many there are. To be called until true.
  bool run(void (*job)(void* context, int rank), void* context, Control& control);

 private:
  void release();
  int size_;
  bool leased_ = false;
  HostThreads host_;
};

// Off, a team is formed whatever the policy says: for tests, which must not depend on what else the machine does.
void yield_when_crowded(bool on);

// Called before the host's threads are used for the first time: a child that this process forks must never use them.
void watch_forks();

}  // namespace fastrnn
