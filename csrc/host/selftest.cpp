// The kernels without Python: forward against a textbook loop, gradients against differences, every instruction set
// against the scalar one, thread counts against each other bit by bit. For sanitizers, valgrind and emulators.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "host/memory.hpp"
#include "host/selftest.hpp"
#include "host/selftest_problem.hpp"
#include "host/stack.hpp"

using namespace fastrnn;

namespace {

int checks = 0, failures = 0;

}  // namespace

void check(bool right, const std::string& what) {
  checks++;
  if (right) return;
  failures++;
  std::printf("FAILED %s\n", what.c_str());
}

namespace {

void check_gradient(const Problem& p, const Isa& scalar, Values& gradient) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> uniform(-1, 1);
  Problem plus = p, minus = p;
  double expected = 0;
  const double step = 1e-6;
  const auto g = gradient.arrays(), up = plus.in.arrays(), down = minus.in.arrays();
  for (size_t i = 0; i < g.size(); i++)
    for (size_t k = 0; k < g[i]->size(); k++) {
      if (std::isnan((*g[i])[k]) && ((i == 2 && !p.c.has_c()) || i > 2)) continue;  // an array this cell has not
      const double v = uniform(random);
      expected += (*g[i])[k] * v;
      (*up[i])[k] += step * v, (*down[i])[k] -= step * v;
    }
  Output high, low;
  run<double>(plus, scalar, 1, false, high, nullptr);
  run<double>(minus, scalar, 1, false, low, nullptr);
  const double found = (loss(p, high) - loss(p, low)) / (2 * step);
  check(std::fabs(found - expected) < 1e-6 * (1 + std::fabs(expected)),
        p.c.text() + ": gradient " + std::to_string(expected) + " difference " + std::to_string(found));
}

// Fewer bits: near the exact result, with the same bits for any number of threads and from every version of int8's products.
void check_narrow(const Problem& p, const Isa& isa, Output& wide) {
  Output first[format_count];
  const double wider = p.c.general() || p.c.beside() > 1 ? 3 : 1;  // some gates are not bounded, and neither are states and errors
  for (const NarrowCandidate* candidate = isa.products; candidate->products; candidate++) {
    if (!candidate->supported()) continue;
    for (int f = 0; f < format_count; f++) {
      const NarrowFormats formats{Format(f), Format(f), candidate->products};
      const std::string text = p.c.text() + ": " + candidate->products->name + (f ? " int8" : " bfloat16");
      Output one, other;
      run<float>(p, isa, 1, true, one, nullptr, &formats);
      const double off = distance(p.c, one, wide);
      check(off < wider * (f ? 0.05 : 0.01), text + " is off by " + std::to_string(off));
      for (int threads : {2, 3}) {
        run<float>(p, isa, threads, true, other, nullptr, &formats);
        check(distance(p.c, other, one) == 0, text + " threads");
      }
      if (candidate == isa.products || first[f].y.empty()) first[f] = one;
      // Of bfloat16 some versions multiply sums of two, within 2^-16 of the numbers.
      const double apart = distance(p.c, first[f], one);
      check(f ? apart == 0 : apart < wider * 1e-4, text + " is off another version by " + std::to_string(apart));
    }
  }
}

void check_case(const Case& c, const Isa& scalar) {
  const Problem p = make(c, 11);
  Output wide;
  Values gradient;
  run<double>(p, scalar, 1, false, wide, &gradient);
  if (c.L * c.D == 1 && !c.ragged && !c.resets && !c.ids) {
    Output book = textbook(p);
    check(distance(c, wide, book) < 1e-12, c.text() + ": textbook");
  }
  if (c.smooth()) check_gradient(p, scalar, gradient);
  for (const Isa* isa = isas; isa->name; isa++) {
    if (!isa->supported()) continue;
    Output one, other, narrow;
    Values g_one, g_other, g_narrow;
    run<double>(p, *isa, 1, false, one, &g_one);
    check(distance(c, one, wide) < 1e-12 && distance(c, g_one, gradient) < 1e-11, c.text() + ": " + isa->name);
    run<float>(p, *isa, 1, false, narrow, &g_narrow);
    // The size of a single input is lost on a product that is normalised: its gradient is nothing but rounding.
    if (!c.norms() || c.I > 1)
      check(distance(c, narrow, wide) < 1e-5 && distance(c, g_narrow, gradient) < 1e-4, c.text() + ": " + isa->name + " float32");
    for (int threads : {2, 3, 8}) {
      run<double>(p, *isa, threads, false, other, &g_other);
      check(distance(c, other, one) == 0 && distance(c, g_other, g_one) == 0, c.text() + ": " + isa->name + " threads");
    }
    run<double>(p, *isa, 2, true, other, nullptr);
    check(distance(c, other, wide) < 1e-12, c.text() + ": " + isa->name + " frozen");
    if (c.heads == 1) check_narrow(p, *isa, wide);
  }
}

// Callers of one frozen layer at once: one of them gets the threads, and all the same bits.
void check_callers() {
  const Case c{Cell::lstm, 40, 24, 16, 48, 1, 1, false, false, true};
  const Problem p = make(c, 5);
  Output alone, results[3];
  run<double>(p, choose_isa(nullptr), 1, true, alone, nullptr);
  std::vector<std::thread> callers;
  for (Output& result : results)
    callers.emplace_back([&] {
      for (int i = 0; i < 10; i++) run<double>(p, choose_isa(nullptr), 2, true, result, nullptr);
    });
  for (std::thread& caller : callers) caller.join();
  for (Output& result : results) check(distance(c, result, alone) == 0, c.text() + ": callers at once");
}

// Forward and backward on threads that a host lends, as many as are wanted or fewer: the same bits.
void check_lent() {
  for (const int64_t B : {2, 24}) {  // hidden units or batch rows dealt out
    Case c{Cell::gru_original, 40, B, 16, 130, 2, 2, true, true, true};
    Problem p = make(c, 6);
    Output alone, lent;
    Values expected, found;
    run<double>(p, choose_isa(nullptr), 1, false, alone, &expected);
    for (const HostThreads host : {HostThreads{lend_all}, HostThreads{lend_three}, HostThreads{lend_none}}) {
      p.c.host = host;
      run<double>(p, choose_isa(nullptr), 4, false, lent, &found);
      check(distance(c, lent, alone) == 0 && distance(c, found, expected) == 0, c.text() + ": on a host's threads");
    }
  }
}

// A call that is told to stop says so, at whatever barrier its workers stand.
void check_interruption() {
  const Isa& isa = choose_isa(nullptr);
  for (int64_t B : {1, 64}) {  // hidden units or batch rows dealt out
    const Stack n{{Cell::gru_original, 128, 256, 256, 2, 1}, &isa};
    const Batch batch(4000 / B, B, nullptr, {nullptr, 0, 0});
    const int64_t T = batch.schedule().T;
    std::vector<float> x(size_t(T * B * n.I)), y(size_t(T * B * n.H)), hn(size_t(2 * B * n.H)), w(size_t(3 * n.H * n.H));
    const std::vector<Parameters<const float>> weights(2, {{w.data(), w.data(), w.data(), w.data(), nullptr}});
    ForwardCall<float> call{};
    call.batch = &batch;
    call.x = {x.data(), B * n.I, n.I}, call.y = {y.data(), B * n.H, n.H}, call.after[0] = hn.data(), call.weights = weights.data();
    int asked = 0;
    auto stop = [](void* times_asked) { return ++*static_cast<int*>(times_asked) > 1; };
    check(ForwardRun<float>(n, call, 2).run({stop, &asked}) && asked == 2, "interruption with B=" + std::to_string(B));
  }
}

void check_sizes() {
  bool refused = false;
  try {
    times(int64_t(1) << 40, int64_t(1) << 40);
  } catch (const std::overflow_error&) { refused = true; }
  check(refused, "a product past int64 is refused");
  refused = false;
  try {
    choose_isa("none");
  } catch (const std::invalid_argument&) { refused = true; }
  check(refused, "an unknown instruction set is refused");
}

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && !std::strcmp(argv[1], "--quick");
  const Isa& scalar = plainest();
  fill_memory(true);
  check_policy();
  check_neighbours();
  yield_when_crowded(false);  // from here on teams are what is asked for
  check_host_threads();
  for (int i = 0; i < cell_count; i++) {
    const Cell cell = Cell(i);
    std::vector<Case> cases = {
        {cell, 1, 1, 1, 1, 1, 1, false, false, true},   {cell, 3, 2, 5, 7, 1, 1, false, false, true},
        {cell, 5, 7, 3, 17, 1, 1, false, false, false}, {cell, 6, 5, 4, 9, 2, 2, true, true, true},
        {cell, 9, 3, 8, 33, 1, 2, true, true, true},    {cell, 0, 2, 3, 4, 1, 1, false, false, true},
        {cell, 9, 5, 4, 19, 2, 2, true, true, true, 6}, {cell, 2, 9, 4, 19, 1, 1, false, true, true, 18},
    };
    if (cases[0].general()) {  // which share all but their equations with the cells before
      cases = {cases[1], cases[3], cases[6]};
    } else if (!quick) {
      cases.push_back({cell, 30, 40, 20, 48, 1, 1, true, true, true});
      cases.push_back({cell, 30, 40, 20, 48, 1, 1, true, true, true, 70});
      cases.push_back({cell, 500, 1, 16, 100, 1, 1, false, false, true});
      cases.push_back({cell, 4, 1, 96, 200, 2, 1, false, true, true});
    }
    if (!cases[0].kernel().projected)
      for (Case c : {Case{cell, 3, 2, 5, 12, 1, 1, false, false, true}, {cell, 9, 5, 4, 36, 2, 2, true, true, true, 6}})
        c.heads = 3, cases.push_back(c);
    for (const Case& c : cases) check_case(c, scalar);
  }
  check_callers();
  check_lent();
  check_interruption();
  check_sizes();
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures ? 1 : 0;
}
