// The threads behind Gang: started when first wanted, then spinning briefly and sleeping on a futex between calls. They are
// never joined: a process that ends takes them along, and a forked child starts its own.
#include "gang.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

namespace fastrnn {
namespace {

constexpr int max_threads = 1024;
constexpr int spins_before_sleep = 20000;  // some 100 us: the next call of a busy loop comes sooner

struct Worker;

struct Threads {
  std::mutex lease;  // held by the caller whose job runs
  std::vector<Worker*> workers;
  void (*job)(void*, int) = nullptr;
  void* context = nullptr;
  alignas(128) int running = 0;  // workers that have not finished the job
};

struct alignas(128) Worker {
  Threads* team;
  int rank;
  int epoch = 0;  // one more for every job; the futex word
  int sleeping = 0;
};

Threads* threads = nullptr;

void sleep_while(Worker& w, int seen) {
  for (int spins = 0; spins < spins_before_sleep; spins++) {
    if (__atomic_load_n(&w.epoch, __ATOMIC_ACQUIRE) != seen) return;
    pause();
  }
  __atomic_store_n(&w.sleeping, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&w.epoch, __ATOMIC_SEQ_CST) == seen) syscall(SYS_futex, &w.epoch, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
  __atomic_store_n(&w.sleeping, 0, __ATOMIC_SEQ_CST);
}

void* work(void* argument) {
  Worker& w = *static_cast<Worker*>(argument);
  for (int seen = 0;;) {
    sleep_while(w, seen);
    seen++;
    w.team->job(w.team->context, w.rank);
    __atomic_sub_fetch(&w.team->running, 1, __ATOMIC_RELEASE);
  }
  return nullptr;
}

// False: the system has no more threads to give.
bool start_worker(Threads& team) {
  auto* w = new Worker{&team, int(team.workers.size()) + 1};
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

// The child has none of the parent's workers, and the lease may be held by a thread that is not there.
void after_fork_in_child() { threads = new Threads; }

Threads& the_threads() {
  static const bool made = [] {
    threads = new Threads;
    pthread_atfork(nullptr, nullptr, after_fork_in_child);
    return true;
  }();
  (void)made;
  return *threads;
}

// "max 100000" or "200000 100000": quota and period in microseconds. 0: no limit.
int processors_by_quota(const char* path) {
  FILE* f = fopen(path, "r");
  if (!f) return 0;
  char quota[32] = "";
  long long period = 0;
  const int fields = fscanf(f, "%31s %lld", quota, &period);
  fclose(f);
  if (fields != 2 || period <= 0 || !strcmp(quota, "max")) return 0;
  const long long value = atoll(quota);
  return value > 0 ? int((value + period - 1) / period) : 0;
}

}  // namespace

Gang::Gang(int wanted) : size_(1) {
  if (wanted <= 1 || !the_threads().lease.try_lock()) return;
  Threads& team = *threads;
  const int size = wanted < max_threads ? wanted : max_threads;
  while (int(team.workers.size()) < size - 1 && start_worker(team)) {}
  size_ = int(team.workers.size()) + 1 < size ? int(team.workers.size()) + 1 : size;
  if (size_ == 1) team.lease.unlock();
}

Gang::~Gang() {
  if (size_ > 1) threads->lease.unlock();
}

void Gang::run(void (*job)(void*, int), void* context) {
  if (size_ > 1) {
    Threads& team = *threads;
    team.job = job;
    team.context = context;
    __atomic_store_n(&team.running, size_ - 1, __ATOMIC_RELAXED);
    for (int i = 0; i < size_ - 1; i++) {
      Worker& w = *team.workers[i];
      __atomic_add_fetch(&w.epoch, 1, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(&w.sleeping, __ATOMIC_SEQ_CST)) syscall(SYS_futex, &w.epoch, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
    }
  }
  job(context, 0);
  if (size_ > 1)
    for (int left; (left = __atomic_load_n(&threads->running, __ATOMIC_ACQUIRE)) > 0;) spin_while(&threads->running, left);
}

int available_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : int(sysconf(_SC_NPROCESSORS_ONLN));
  const int quota = processors_by_quota("/sys/fs/cgroup/cpu.max");
  if (quota > 0 && quota < n) n = quota;
  return n > 1 ? n : 1;
}

}  // namespace fastrnn
