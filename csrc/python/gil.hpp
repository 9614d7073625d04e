// Part of module.cpp: a run without the GIL, and Ctrl-C during it.
#pragma once
#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

#include "host/threads.hpp"

namespace fastrnn {
namespace {

namespace py = pybind11;

constexpr double worth_releasing = 50;  // us: taking the GIL back may cost a contended call far more than that
constexpr double worth_asking = 5000;   // us: what is over sooner need not be interrupted

// At interpreter exit Python up to 3.13 ends a daemon thread that asks for the GIL by unwinding it, which would drop
// references on the way without the GIL. Such a thread sleeps here until the process is gone, as from 3.14 on.
void take_gil(PyThreadState* state) {
  try {
    PyEval_RestoreThread(state);
  } catch (abi::__forced_unwind&) {
    for (;;) ::pause();
  }
}

// f() without the GIL.
template <class F> void released(const F& f) {
  PyThreadState* const state = PyEval_SaveThread();
  try {
    f();
  } catch (...) {
    take_gil(state);
    throw;
  }
  take_gil(state);
}

struct Asking {
  PyThreadState* state;
  std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();
};

// Taking the GIL back from a busy thread costs 5 ms: not more often than every tenth of a second.
[[maybe_unused]] bool signals_pending(void* asking) {
  auto& [state, last] = *static_cast<Asking*>(asking);
  const auto now = std::chrono::steady_clock::now();
  if (now - last < std::chrono::milliseconds(100)) return false;
  last = now;
  if (state) take_gil(state);
  const bool pending = PyErr_CheckSignals() != 0;
  if (state) state = PyEval_SaveThread();
  return pending;
}

// Only the main thread gets signals.
template <class Run> void run_released(Run& run) {
  Asking asking{run.microseconds() > worth_releasing ? PyEval_SaveThread() : nullptr};
  const bool asks = run.microseconds() > worth_asking && syscall(SYS_gettid) == getpid();
  bool interrupted = false;
  try {
    interrupted = run.run({asks ? signals_pending : nullptr, &asking});
  } catch (...) {
    if (asking.state) take_gil(asking.state);
    throw;
  }
  if (asking.state) take_gil(asking.state);
  if (interrupted) throw py::error_already_set();
}

}  // namespace
}  // namespace fastrnn
