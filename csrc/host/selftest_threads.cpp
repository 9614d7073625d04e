// The part of the self-test about threads: every edge of the policy, who is seen as a neighbour, and hosts of all kinds.
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <thread>
#include <vector>

#include "host/policy.hpp"
#include "host/processors.hpp"
#include "host/selftest.hpp"
#include "host/threads.hpp"

using namespace fastrnn;

namespace {

// ---- the policy ----------------------------------------------------------------------------------------------------

constexpr int64_t us = 1000, ms = 1000 * us;
constexpr double long_call = 5000, middling = 200, short_call = 40;  // us

// A policy, and what it sees of a world that the test sets.
struct World {
  Policy policy{100 * us};
  int free = INT_MAX, looks = 0;
  bool asleep = false;

  Policy::Decision ask(int64_t t, double microseconds, int wanted = 2) {
    return policy.before(t, wanted, microseconds, [&](bool) { return asleep; }, [&] { return looks++, free; });
  }
  int size(int64_t t, double microseconds, int wanted = 2) { return ask(t, microseconds, wanted).size; }
  // A call of two threads that took 10 ms.
  void ended(int64_t t, bool crowded) { policy.after(t, 10 * ms, crowded ? 9 * ms : 1 * ms, 2, 300 * us); }
};

void check_crowded() {
  World w;
  int64_t t = 1000 * ms;
  check(w.size(t, long_call) == 2, "policy: a team where all is free");
  w.ended(t, false);
  check(w.size(t, long_call) == 2, "policy: a team after a call that was not crowded");
  for (const int64_t rest : {2, 4, 8, 16, 32, 64, 128, 250, 250}) {
    w.ended(t, true);
    check(w.size(t + rest * ms - 1, long_call) == 1, "policy: alone for " + std::to_string(rest) + " ms");
    t += rest * ms;
    check(w.size(t, long_call) == 2, "policy: a team after " + std::to_string(rest) + " ms");
  }
  w.ended(t, false);
  w.ended(t, true);
  check(w.size(t + 2 * ms - 1, long_call) == 1 && w.size(t + 2 * ms, long_call) == 2, "policy: a good call ends the doubling");
  w.policy.after(t, 10 * ms, 5 * ms + 100 * us, 2, 300 * us);
  check(w.size(t, long_call) == 2, "policy: a start within the slack is not crowded");
}

void check_taken() {
  World w;
  int64_t t = 1000 * ms;
  w.free = 1;
  for (const int64_t rest : {1, 2, 4, 8, 16, 16}) {
    w.looks = 0;
    check(w.size(t, middling) == 1 && w.looks == 1, "policy: alone where neighbours run");
    check(w.size(t + rest * ms - 1, middling) == 1 && w.looks == 1, "policy: no look for " + std::to_string(rest) + " ms");
    t += rest * ms;
  }
  w.free = INT_MAX;
  check(w.size(t, middling) == 2, "policy: a team when the neighbours are gone");
  w.free = 1;
  t += Policy::look_holds;
  check(w.size(t, middling) == 1, "policy: alone again");
  w.free = INT_MAX;
  check(w.size(t + ms, middling) == 2, "policy: a free look ended the doubling");
  w.free = 1, t += 100 * ms;
  check(w.size(t, middling) == 1, "policy: taken once more");
  w.free = INT_MAX;
  check(w.size(t + 1, long_call) == 2, "policy: a long call looks at once");
  w.looks = 0;
  check(w.size(t + 2, middling) == 2 && w.looks == 0, "policy: others trust that look");
  check(w.size(t + 1 + Policy::look_holds, middling) == 2 && w.looks == 1, "policy: not for long");
  w.free = 5, t += 100 * ms;
  check(w.size(t, long_call, 8) == 5 && w.size(t, long_call, 3) == 3, "policy: as many as the neighbours leave");
  w.free = -3;
  check(w.size(t, long_call, 8) == 1, "policy: more neighbours than processors");
}

void check_short_calls() {
  World w;
  int64_t t = 1000 * ms;
  w.asleep = true;
  Policy::Decision d = w.ask(t, short_call);
  check(d.size == 1 && !d.wake && w.looks == 0, "policy: a short call does not wait for sleepers");
  d = w.ask(t + 100 * us, short_call);
  check(d.size == 1 && d.wake, "policy: in a stream it wakes them");
  w.asleep = false;
  check(w.size(t + 200 * us, short_call) == 2, "policy: the next one has them");
  w.asleep = true, t += 100 * ms;
  d = w.ask(t, short_call);
  check(d.size == 1 && !d.wake, "policy: a stream ends with a pause");
  check(w.size(t, middling) == 2, "policy: a longer call waits for them");
  w.free = 1, t += 100 * ms;
  check(w.size(t, middling) == 1, "policy: taken");
  w.ask(t, short_call);
  d = w.ask(t + 50 * us, short_call);
  check(d.size == 1 && !d.wake, "policy: where neighbours run nobody is woken");
  w.asleep = false;
  w.ended(t, true);
  check(w.size(t + ms, short_call) == 1, "policy: short calls rest, too");
}

// ---- hosts ---------------------------------------------------------------------------------------------------------

using Part = void (*)(int64_t, int64_t, void*);

// So many threads, each of which takes as many items as any.
template <int most> int share_out(int64_t begin, int64_t end, int64_t, Part f, void* context) {
  const int64_t n = end - begin, threads = n < most ? n : most, each = (n + threads - 1) / threads;
  std::vector<std::thread> others;
  for (int64_t first = begin + each; first < end; first += each)
    others.emplace_back([=] { f(first, first + each < end ? first + each : end, context); });
  f(begin, begin + each, context);
  for (std::thread& other : others) other.join();
  return 0;
}
int refuse(int64_t, int64_t, int64_t, Part, void*) { return 1; }

// What a lease of four threads runs on this host: calls of rank 0 in this thread, of all other ranks once.
void check_host(const std::string& name, HostThreads host, int expected) {
  struct Seen {
    std::atomic<int> ranks[4] = {};
    std::thread::id caller = std::this_thread::get_id();
    std::atomic<bool> first_is_caller{false};
  } seen;
  Control control{};
  Lease lease(4, 1e6, host);
  auto job = [](void* p, int rank) {
    Seen& s = *static_cast<Seen*>(p);
    s.ranks[rank]++;
    if (rank == 0) s.first_is_caller = std::this_thread::get_id() == s.caller;
  };
  int rounds = 0;
  while (!lease.run(job, &seen, control)) rounds++;
  int right = 0;
  for (int rank = 0; rank < 4; rank++) right += seen.ranks[rank] == (rank < expected ? 1 : 0);
  check(lease.size() == expected && right == 4 && seen.first_is_caller && rounds <= 1,
        "host: " + name + " gives " + std::to_string(lease.size()) + " of " + std::to_string(expected) + " threads");
}

}  // namespace

int lend_all(int64_t begin, int64_t end, int64_t grain, Part f, void* context) { return share_out<64>(begin, end, grain, f, context); }
int lend_three(int64_t begin, int64_t end, int64_t grain, Part f, void* context) { return share_out<3>(begin, end, grain, f, context); }
int lend_none(int64_t begin, int64_t end, int64_t, Part f, void* context) { return f(begin, end, context), 0; }

void check_policy() {
  check_crowded();
  check_taken();
  check_short_calls();
}

void check_neighbours() {
  Neighbours neighbours;
  const auto me = [](pid_t thread) { return thread == pid_t(syscall(SYS_gettid)); };
  // Most looks find none. Single ones may find a thread on its way to sleep or to its end, or one of an emulator's own.
  const auto none = [&](auto is_ours) {
    int found = 0;
    for (int i = 0; i < 20; i++, usleep(100)) found += neighbours.running(is_ours, 1);
    return found < 10;
  };
  check(none(me), "neighbours: none runs");
  std::atomic<bool> runs{true}, here{false};
  std::atomic<pid_t> its{0};
  std::thread spinner([&] {
    its = pid_t(syscall(SYS_gettid));
    here = true;
    while (runs) {}
    while (!runs) usleep(1000);
  });
  while (!here) {}
  int found = 0;
  if (available_threads() > 1) {  // with one processor it cannot run while this thread looks
    // Without a pause: who wakes up is often put on the processor of the spinner, which then does not run while it is looked at.
    for (const int64_t start = now(); !found && now() - start < 10'000 * ms;) found = neighbours.running(me, 8);
    check(found == 1, "neighbours: one that spins is seen");
  }
  check(none([&](pid_t thread) { return me(thread) || thread == its; }), "neighbours: not if it is ours");
  check(neighbours.running(me, 0) == 0, "neighbours: counted up to what is enough");
  runs = false;
  usleep(20'000);
  check(none(me), "neighbours: one that sleeps is not");
  runs = true;
  spinner.join();
  check(none(me), "neighbours: one that ended is not");
}

void check_host_threads() {
  check_host("as many as wanted", {lend_all}, 4);
  check_host("three, of two items or none", {lend_three}, 2);
  check_host("two", {share_out<2>}, 2);
  check_host("a loop inside another", {lend_none}, 1);
  check_host("a refusal", {refuse}, 1);
  const Lease busy(4, 1e6, {lend_all});
  check_host("one whose lease is out", {lend_all}, 1);
}
