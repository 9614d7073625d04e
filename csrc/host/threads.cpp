// The threads behind Lease: started when first wanted, then spinning briefly and sleeping on a futex between calls. They are
// never joined: a process that ends takes them along, and a forked child starts its own. Or the host's, for calls of its own.
#include "host/threads.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <new>
#include <vector>

#include "host/policy.hpp"
#include "host/processors.hpp"

namespace fastrnn {
namespace {

constexpr int max_threads = 1024;
constexpr int64_t patience = 100'000;          // ns between calls before a worker sleeps: in a busy loop the next comes sooner
constexpr int64_t host_patience = 1'000'000;   // the same of OpenMP's workers, which spin for some ms
constexpr int64_t politeness = 30'000;         // ns at a barrier before a thread gives way to others
constexpr int64_t awakening = 300'000;         // ns that a sleeping worker may take to come without being thought crowded out
constexpr int64_t arrival = 20'000;            // the same of one that spins

struct Worker;

struct Threads {
  int leased = 0;  // 1 while a caller's job runs; no mutex: a signal handler may call during its own thread's call
  bool forked = false;
  std::vector<Worker*> workers;
  void (*job)(void*, int) = nullptr;
  void* context = nullptr;
  alignas(128) int running = 0;  // workers that have not finished the job

  Policy policy{patience}, host_policy{host_patience};
  Neighbours neighbours;
  int available = 0;  // processors, once asked

  int jobs = 0;                    // so far; names the one at hand
  int claimed[CPU_SETSIZE] = {};   // the last job that a thread of the team did on that processor

  Threads() { workers.reserve(max_threads); }
};

struct alignas(128) Worker {
  Threads* team;
  int rank;
  unsigned epoch = 0;  // one more for every job; the futex word
  int sleeping = 0;
  int placed = 0;  // the last job for which it claimed a processor
  pid_t thread = 0;
};

Threads* threads = nullptr;
bool yields = true;

pid_t this_thread() { return pid_t(syscall(SYS_gettid)); }

// True: nobody of the team has it for this job.
bool claim(Threads& team, int job, int processor) {
  if (processor < 0 || processor >= CPU_SETSIZE) return true;
  return __atomic_exchange_n(&team.claimed[processor], job, __ATOMIC_ACQ_REL) != job;
}

// Two threads of a team on one processor would wait for each other in turn, and the system takes milliseconds to part them:
// who comes second moves to a free one.
void take_place(Worker& w) {
  Threads& team = *w.team;
  const int job = __atomic_load_n(&team.jobs, __ATOMIC_ACQUIRE);
  if (w.placed == job) return;
  w.placed = job;
  if (claim(team, job, sched_getcpu())) return;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
  for (int processor = 0; processor < CPU_SETSIZE; processor++) {
    if (!CPU_ISSET(processor, &allowed) || !claim(team, job, processor)) continue;
    cpu_set_t there;
    CPU_ZERO(&there);
    CPU_SET(processor, &there);
    if (sched_setaffinity(0, sizeof there, &there) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
    return;
  }
}

// Spins, then sleeps until the next job; who is woken without one spins again, longer than the short call that woke it takes.
void sleep_while(Worker& w, unsigned seen) {
  for (int64_t span = patience;; span = patience + int64_t(2e3 * Policy::worth_waking)) {
    for (const int64_t start = now(); now() - start < span;)
      for (int spins = 0; spins < 16; spins++) {
        if (__atomic_load_n(&w.epoch, __ATOMIC_ACQUIRE) != seen) return;
        pause();
      }
    __atomic_store_n(&w.sleeping, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&w.epoch, __ATOMIC_SEQ_CST) == seen) syscall(SYS_futex, &w.epoch, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    __atomic_store_n(&w.sleeping, 0, __ATOMIC_SEQ_CST);
    take_place(w);
    if (__atomic_load_n(&w.epoch, __ATOMIC_ACQUIRE) != seen) return;
  }
}

bool is_asleep(const Worker& w) { return __atomic_load_n(&w.sleeping, __ATOMIC_SEQ_CST); }

// Wakes those of the first 'count' workers that sleep; true: there was one.
bool wake(Threads& team, int count) {
  bool any = false;
  for (int i = 0; i < count; i++) {
    if (!is_asleep(*team.workers[i])) continue;
    syscall(SYS_futex, &team.workers[i]->epoch, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
    any = true;
  }
  if (any) sched_yield();  // who was woken on this processor runs here only long enough to move away
  return any;
}

// The caller's claim opens a new job.
void open_job(Threads& team) {
  __atomic_store_n(&team.jobs, team.jobs + 1, __ATOMIC_RELEASE);
  claim(team, team.jobs, sched_getcpu());
}

void* work(void* argument) {
  Worker& w = *static_cast<Worker*>(argument);
  __atomic_store_n(&w.thread, this_thread(), __ATOMIC_RELEASE);
  for (unsigned seen = 0;;) {
    sleep_while(w, seen);
    seen++;
    take_place(w);
    w.team->job(w.team->context, w.rank);
    __atomic_sub_fetch(&w.team->running, 1, __ATOMIC_RELEASE);
  }
  return nullptr;
}

// False: the system has no more threads or memory to give.
bool start_worker(Threads& team) {
  auto* w = new (std::nothrow) Worker{&team, int(team.workers.size()) + 1};
  if (!w) return false;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, 1 << 20);
  pthread_t id;
  // Signals are for the interpreter's threads.
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &old);
  const bool started = pthread_create(&id, &attributes, work, w) == 0;
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  pthread_attr_destroy(&attributes);
  if (started) team.workers.push_back(w);
  else delete w;
  return started;
}

// The child has none of the parent's workers, and the lease may be held by a thread that is not there. An OpenMP region
// would wait for the parent's threads for ever.
void after_fork_in_child() {
  threads = new Threads;
  threads->forked = true;
}

Threads& the_threads() {
  static const bool made = [] {
    threads = new Threads;
    pthread_atfork(nullptr, nullptr, after_fork_in_child);
    return true;
  }();
  (void)made;
  return *threads;
}

// ---- the team's policy ---------------------------------------------------------------------------------------------

// Processors that other threads of this process leave.
int processors_free(Threads& team) {
  if (!team.available) team.available = available_threads();
  const pid_t caller = this_thread();
  auto is_ours = [&](pid_t thread) {
    return thread == caller || std::any_of(team.workers.begin(), team.workers.end(),
                                           [&](const Worker* w) { return __atomic_load_n(&w->thread, __ATOMIC_ACQUIRE) == thread; });
  };
  const int taken = team.neighbours.running(is_ours, team.available);
  return taken ? team.available - taken : INT_MAX;
}

// Threads for a call that wants so many of the process's own.
int own_size(Threads& team, int wanted, double microseconds) {
  const int count = std::min(wanted - 1, int(team.workers.size()));
  auto asleep = [&](bool) {
    return std::any_of(team.workers.begin(), team.workers.begin() + count, [](const Worker* w) { return is_asleep(*w); });
  };
  const Policy::Decision d = team.policy.before(now(), wanted, microseconds, asleep, [&] { return processors_free(team); });
  if (d.wake) open_job(team), wake(team, count);
  return d.size;
}

// The same of the host's, who runs parallel regions of its own: its workers spin after them and are no neighbours.
int host_size(Threads& team, int wanted, double microseconds) {
  auto asleep = [](bool stream) { return !stream; };
  return team.host_policy.before(now(), wanted, microseconds, asleep, [] { return INT_MAX; }).size;
}

// ---- the host's threads --------------------------------------------------------------------------------------------

// A job on them. Every part of the loop is a thread of the team, but how many come is not known before all have come: the
// parts add up to the whole then, and each of them knows the team's size before it does anything.
struct HostJob {
  void (*job)(void*, int);
  void* context;
  int wanted;
  pid_t caller;
  int64_t waited = 0, ended = 0;  // of the calling thread; when it was done
  int ranks = 0, others = 0, parts = 0;

  void part(int count) {
    const bool calling = this_thread() == caller;
    const int rank = calling ? 0 : __atomic_add_fetch(&others, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&ranks, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&parts, count, __ATOMIC_ACQ_REL);
    for (int so_far; (so_far = __atomic_load_n(&parts, __ATOMIC_ACQUIRE)) < wanted;) {
      const int64_t spent = spin_while(&parts, so_far);
      if (calling) waited += spent;
    }
    if (__atomic_load_n(&ranks, __ATOMIC_RELAXED) == wanted) job(context, rank);
    if (calling) ended = now();
  }
};

}  // namespace

int64_t wait_longer(const int* word, int old) {
  const int64_t start = now();
  for (int64_t waited = 0;; waited = now() - start) {
    for (int spins = 0; spins < 16; spins++) {
      if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != old) return now() - start;
      pause();
    }
    if (waited > politeness) sched_yield();
  }
}

Lease::Lease(int wanted, double microseconds, HostThreads host) : size_(1), host_(host) {
  if (wanted <= 1 || __atomic_exchange_n(&the_threads().leased, 1, __ATOMIC_ACQUIRE)) return;
  leased_ = true;
  Threads& team = *threads;
  if (team.forked) host_ = {};
  int size = std::min(wanted, max_threads);
  if (yields) size = host_.parallel_for ? host_size(team, size, microseconds) : own_size(team, size, microseconds);
  if (size == 1) {
    release();
    return;
  }
  if (!host_.parallel_for) {
    while (int(team.workers.size()) < size - 1 && start_worker(team)) {}
    size = std::min(int(team.workers.size()) + 1, size);
  }
  size_ = size;
}

Lease::~Lease() { release(); }

void Lease::release() {
  if (leased_) __atomic_store_n(&threads->leased, 0, __ATOMIC_RELEASE);
  leased_ = false;
}

bool Lease::run(void (*job)(void*, int), void* context, Control& control) {
  if (size_ == 1) {
    job(context, 0);
    return true;
  }
  Threads& team = *threads;
  const int64_t start = now();
  if (host_.parallel_for) {
    HostJob host{job, context, size_, this_thread()};
    auto part = [](int64_t first, int64_t last, void* self) { static_cast<HostJob*>(self)->part(int(last - first)); };
    const bool refused = host_.parallel_for(0, size_, 1, part, &host) != 0;
    if (host.ranks < size_) {
      size_ = refused ? 1 : host.ranks;
      return false;
    }
    const int64_t end = now();
    control.waited += host.waited + end - host.ended;
    team.host_policy.after(end, end - start, control.waited, size_, awakening);
  } else {
    team.job = job;
    team.context = context;
    open_job(team);
    __atomic_store_n(&team.running, size_ - 1, __ATOMIC_RELAXED);
    for (int i = 0; i < size_ - 1; i++) __atomic_add_fetch(&team.workers[i]->epoch, 1, __ATOMIC_SEQ_CST);
    const bool woken = wake(team, size_ - 1);
    job(context, 0);
    for (int left; (left = __atomic_load_n(&team.running, __ATOMIC_ACQUIRE)) > 0;) control.waited += spin_while(&team.running, left);
    const int64_t end = now();
    team.policy.after(end, end - start, control.waited, size_, woken ? awakening : arrival);
  }
  release();
  return true;
}

void yield_when_crowded(bool on) { yields = on; }

void watch_forks() { the_threads(); }

}  // namespace fastrnn
