// The threads behind Gang: started when first wanted, then spinning briefly and sleeping on a futex between calls. They are
// never joined: a process that ends takes them along, and a forked child starts its own.
#include "gang.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

namespace fastrnn {
namespace {

constexpr int max_threads = 1024;
constexpr int64_t patience = 100'000;           // ns between calls before a worker sleeps: in a busy loop the next comes sooner
constexpr int64_t politeness = 30'000;          // ns at a barrier before a thread gives way to others
constexpr int64_t awakening = 300'000;          // ns that a sleeping worker may take to come without being thought crowded out
constexpr double worth_waking = 150;            // us of one thread's work
constexpr int64_t least_rest = 2'000'000, most_rest = 250'000'000;  // ns of single calls after a crowded one

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

struct Worker;

struct Threads {
  int leased = 0;  // 1 while a caller's job runs; no mutex: a signal handler may call during its own thread's call
  std::vector<Worker*> workers;
  void (*job)(void*, int) = nullptr;
  void* context = nullptr;
  alignas(128) int running = 0;  // workers that have not finished the job

  // A team whose processors are taken by others is slower than its caller alone, many times so if it meets often.
  int64_t rest = least_rest, single_until = 0;
  int64_t last_short = 0;  // when the last call came that was not worth an awakening

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
};

Threads* threads = nullptr;
bool yields = true;

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
  for (int64_t span = patience;; span = patience + int64_t(2e3 * worth_waking)) {
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

// Whether a call that takes one thread that long had better not wait for the others. A short call does not wait for sleepers,
// but in a stream of such calls it wakes them for the next one.
bool better_alone(Threads& team, int size, double microseconds) {
  const int64_t t = now();
  if (t < team.single_until) return true;
  if (microseconds > worth_waking) return false;
  const bool stream = t - team.last_short < patience + int64_t(microseconds * 1e3);
  team.last_short = t;
  const int count = std::min(size - 1, int(team.workers.size()));
  if (std::none_of(team.workers.begin(), team.workers.begin() + count, [](const Worker* w) { return is_asleep(*w); })) return false;
  if (stream) open_job(team), wake(team, count);
  return true;
}

int64_t number_in(const std::string& path, int which) {
  FILE* f = fopen(path.c_str(), "r");
  if (!f) return 0;
  char text[2][32] = {"", ""};
  const int fields = fscanf(f, "%31s %31s", text[0], text[1]);
  fclose(f);
  return fields > which ? atoll(text[which]) : 0;  // "max" and -1: no limit
}

int processors(int64_t quota, int64_t period) {
  if (quota <= 0 || period <= 0) return INT_MAX;
  const int64_t n = quota / period + (quota % period != 0);
  return n < INT_MAX ? int(n) : INT_MAX;
}

// The least CPU quota of a control group and those above it, in version 2 (cpu.max) or 1 (cpu.cfs_*).
int quota_of(const char* mount, std::string group, bool second) {
  int least = INT_MAX;
  for (;; group.erase(group.rfind('/'))) {
    const std::string at = mount + (group == "/" ? "" : group);
    const int n = second ? processors(number_in(at + "/cpu.max", 0), number_in(at + "/cpu.max", 1))
                         : processors(number_in(at + "/cpu.cfs_quota_us", 0), number_in(at + "/cpu.cfs_period_us", 0));
    if (n < least) least = n;
    if (group.rfind('/') == std::string::npos) return least;
  }
}

int processors_by_quota() {
  FILE* f = fopen("/proc/self/cgroup", "r");
  if (!f) return INT_MAX;
  int least = INT_MAX;
  char line[4096];
  while (fgets(line, sizeof line, f)) {  // "0::/a/b" in version 2, "4:cpu,cpuacct:/a/b" in version 1
    line[strcspn(line, "\n")] = 0;
    char* names = strchr(line, ':');
    char* group = names ? strchr(names + 1, ':') : nullptr;
    if (!group) continue;
    *group++ = 0, names++;
    const bool second = !*names, cpu = (std::string(",") + names + ",").find(",cpu,") != std::string::npos;
    if (!second && !cpu) continue;
    for (const char* mount :
         {second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu", second ? "/sys/fs/cgroup/unified" : "/sys/fs/cgroup/cpu,cpuacct"}) {
      const int n = quota_of(mount, group, second);
      if (n < least) least = n;
    }
  }
  fclose(f);
  return least;
}

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

Gang::Gang(int wanted, double microseconds) : size_(1) {
  if (wanted <= 1 || __atomic_exchange_n(&the_threads().leased, 1, __ATOMIC_ACQUIRE)) return;
  leased_ = true;
  Threads& team = *threads;
  const int size = std::min(wanted, max_threads);
  if (yields && better_alone(team, size, microseconds)) {
    release();
    return;
  }
  while (int(team.workers.size()) < size - 1 && start_worker(team)) {}
  size_ = std::min(int(team.workers.size()) + 1, size);
}

Gang::~Gang() { release(); }

void Gang::release() {
  if (leased_) __atomic_store_n(&threads->leased, 0, __ATOMIC_RELEASE);
  leased_ = false;
}

void Gang::run(void (*job)(void*, int), void* context, Control& control) {
  if (size_ == 1) return job(context, 0);
  Threads& team = *threads;
  const int64_t start = now();
  team.job = job;
  team.context = context;
  open_job(team);
  __atomic_store_n(&team.running, size_ - 1, __ATOMIC_RELAXED);
  for (int i = 0; i < size_ - 1; i++) __atomic_add_fetch(&team.workers[i]->epoch, 1, __ATOMIC_SEQ_CST);
  const bool woken = wake(team, size_ - 1);
  job(context, 0);
  for (int left; (left = __atomic_load_n(&team.running, __ATOMIC_ACQUIRE)) > 0;) control.waited += spin_while(&team.running, left);
  // Alone, the caller would have been busy 'size' times as long as it was.
  const int64_t took = now() - start, busy = took - control.waited;
  const bool crowded = took > int64_t(size_) * busy + (woken ? awakening : 20'000);
  team.rest = crowded ? std::min(2 * team.rest, most_rest) : least_rest;
  team.single_until = crowded ? now() + team.rest : 0;
  release();
}

void yield_when_crowded(bool on) { yields = on; }

int available_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : int(sysconf(_SC_NPROCESSORS_ONLN));
  const int quota = processors_by_quota();
  if (quota < n) n = quota;
  return n > 1 ? n : 1;
}

}  // namespace fastrnn
