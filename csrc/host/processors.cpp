#include "host/processors.hpp"

#include <dirent.h>
#include <sched.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace fastrnn {
namespace {

constexpr const char* threads_folder = "/proc/self/task";
constexpr size_t most_neighbours = 256;  // looked at; a process with more is too dear to look at

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

int64_t nanoseconds(clockid_t clock) {
  timespec t;
  return clock_gettime(clock, &t) == 0 ? int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec : -1;
}

// The CPU clock of a thread, as pthread_getcpuclockid makes it of a thread that one has the handle of.
clockid_t cpu_clock_of(pid_t thread) { return clockid_t((~uint32_t(thread) << 3) | 6); }

}  // namespace

int64_t now() { return nanoseconds(CLOCK_MONOTONIC); }

int available_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : int(sysconf(_SC_NPROCESSORS_ONLN));
  const int quota = processors_by_quota();
  if (quota < n) n = quota;
  return n > 1 ? n : 1;
}

int64_t Neighbours::time_of(clockid_t clock) { return nanoseconds(clock); }

bool Neighbours::read() {
  struct stat folder;
  if (stat(threads_folder, &folder) != 0) return true;  // no /proc, no neighbours
  bool all = int64_t(folder.st_nlink) == count_;        // a link for each thread, and two
  for (Thread& t : threads_) all &= (t.spent = time_of(t.clock)) >= 0;
  return all;
}

void Neighbours::list() {
  threads_.clear();
  DIR* const folder = opendir(threads_folder);
  if (!folder) return;
  count_ = 2;
  while (const dirent* entry = readdir(folder)) {
    const pid_t thread = atoi(entry->d_name);
    if (thread <= 0) continue;
    count_++;
    if (threads_.size() < most_neighbours) threads_.push_back({thread, cpu_clock_of(thread), 0});
  }
  closedir(folder);
}

}  // namespace fastrnn
