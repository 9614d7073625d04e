// A stack of layers and directions over the kernels of forward.hpp and backward.hpp: room, threads, order of work.
// No Python; throws std::bad_alloc and std::overflow_error before a kernel runs, never after.
#pragma once
#include <memory>
#include <vector>

#include "host/batch.hpp"
#include "host/layers.hpp"
#include "host/narrow.hpp"
#include "host/noise.hpp"
#include "host/threads.hpp"

namespace fastrnn {

struct Stack : Layered {
  const Isa* isa;
  HostThreads host = {};  // or nobody's: the process's own team runs the calls

  // What a panel of weight_hh, of vectors of so many lanes, has room for: the columns that one block of units multiplies.
  int64_t columns_hh(int lanes) const { return heads > 1 ? widest_window(H, H / heads, lanes) : P; }
};

// The gates of whole vectors of units.
template <class Real> Saved<Real, Real> lay_out_tape(const Stack& n, int64_t tokens, bool dropout, Arena& arena);

template <class Real> struct ForwardCall {
  using Stored = Real;
  const Batch* batch;
  const DistinctIds* tokens;  // of the first layer, or null
  Rows<const Real> x;    // (T,B,I); with tokens the embedding's rows that they name, or base null: one-hot
  Rows<Real> y;
  States<const Real> before;  // (L*D,B,size) each, or null: zeros
  States<Real> after;         // the same, written
  Rows<const uint8_t> masks;        // of layer 0: (T,B,D*P), or base null
  int64_t masks_layer;              // elements from layer to layer
  Real scale;                       // of what a mask keeps
  AllNoise noise;                   // of general cells
  const Parameters<const Real>* weights;  // (L*D)
  const Panels<Real>* frozen;       // (L*D) or null
  const Saved<Real, Real>* saved;         // null: inference
};

template <class Real> struct BackwardCall {
  using Stored = Real;
  ForwardCall<Real> forward;  // as it ran
  Rows<const Real> dy;        // or base null
  Rows<Real> dx, hidden;      // hidden: or base null; dx is to x as it is
  States<const Real> dafter;  // or null
  States<Real> dbefore;
  const Parameters<Real>* gradients;  // (L*D), written
  Real* dz;                           // one time step of one layer: its gate gradients in place of the weights', or null
};

// A call made ready: all memory is there. run() needs no interpreter; true: interrupted. Where the host lends fewer threads than
// were planned with, run() lays its scratch out anew and may throw as the constructor does, before a kernel runs.
template <class Real> class ForwardRun {
 public:
  ForwardRun(const Stack& n, const ForwardCall<Real>& call, int threads);
  ~ForwardRun();
  double microseconds() const;  // predicted, for one thread
  bool run(Interrupt interrupt);
  // After run(), for another run with other arrays of the same shapes: nothing is allocated, if as many threads are lent.
  void again(const ForwardCall<Real>& call);
  int64_t bytes() const;  // of scratch

 private:
  struct Job;
  std::unique_ptr<Job> job_;
};
template <class Real> class BackwardRun {
 public:
  BackwardRun(const Stack& n, const BackwardCall<Real>& call, int threads);
  ~BackwardRun();
  double microseconds() const;
  bool run(Interrupt interrupt);

 private:
  struct Job;
  std::unique_ptr<Job> job_;
};

// All weights packed for forward calls. narrow: in these formats, of float32 weights; or null. counts: of int8 matrices (rows) what an
// integer of a row counts, of each direction of each layer; or null, also for single ones, which are then as pack_narrow says.
template <class Real> class FrozenWeights {
 public:
  FrozenWeights(const Stack& n, const Parameters<const Real>* weights, const NarrowFormats* narrow = nullptr,
                const Parameters<const float>* counts = nullptr);
  const Panels<Real>* panels() const { return panels_.data(); }
  int64_t bytes() const { return memory_.bytes(); }

 private:
  Memory memory_;
  std::vector<Panels<Real>> panels_;
};

// Bytes of scratch that a call takes with one thread.
template <class Real> int64_t scratch_bytes(const Stack& n, const Batch& batch, bool training);

}  // namespace fastrnn
