// What the kernels of one precision offer to the host: kernels.cu, once for each. Everything is launched into a stream of the current
// device and returns at once.
#pragma once
#include "cuda/host/runtime.hpp"
#include "cuda/kernels/numbers.hpp"
#include "cuda/kernels/sweep.hpp"

namespace fastrnn::cuda {

struct PhaseFacts {
  int first, gates, hidden_slot;  // see cells.hpp; slot of the first gate on the hidden side
};

// Kernels that go through a run of steps, with tiles of few columns and of many.
template <class Sweeps> struct ResidentKernel {
  int units;        // of a block
  int columns[2];   // of a tile
  // For H units and columns[i]: blocks that a multiprocessor holds at once, 0 if none; and how large the chunks are then.
  int (*held)(int64_t H, int i, int* chunk_bytes);
  void (*run)(const Sweeps&, const Residence&, cudaStream_t);
};

template <class Store, class Real> struct CellKernels {
  int gates, tape, phases, states, norms;  // norms: as Kernel of structs.hpp has it
  int launches;                            // of a step: one for each phase; for a normalised cell the product and its rows
  Slots slots;
  int ring, gradients;  // gate gradients that go from step to step, and that are kept of a token
  bool projected;
  PhaseFacts phase[2];
  void (*forward)(const Sweep<Store, Real>&, int64_t step, int launch, const StepLaunch&, cudaStream_t);
  void (*backward)(const BackSweep<Store, Real>&, int64_t step, int launch, bool initial, const StepLaunch&, cudaStream_t);
  // Of cells with one launch for a step; else null.
  ResidentKernel<Sweep<Store, Real>> resident_forward;
  ResidentKernel<BackSweep<Store, Real>> resident_backward;
};

template <class Store_, class Real_> struct Kernels {
  using Store = Store_;
  using Real = Real_;
  CellKernels<Store, Real> cell[cell_count];
  // C is Store, or with 'wide' Real. 'shares' of K are added up in 'parts' (shares,n,m) first.
  void (*product)(const MatrixProduct<Store>&, void* c, bool wide, int shares, Real* parts, cudaStream_t);
  void (*gather)(const Sequences&, Rows<const Store>, Store* to, int64_t n, int64_t first, int64_t tokens, cudaStream_t);
  void (*scatter)(const Sequences&, const Store* from, Rows<Store>, int64_t n, int64_t tokens, cudaStream_t);
  // h of the step before, of some tokens: (tokens,P); 'start' is that of the initial state, or null
  void (*gather_before)(const Sequences&, const Noise&, bool reverse, Rows<const Store> y, const Real* start, Store* to, int64_t P,
                        int64_t first, int64_t tokens, cudaStream_t);
  // rows of n, in place and onto the tape, if there is one
  void (*normalise)(Real* rows, Store* to, Real* moments, int64_t count, int64_t n, cudaStream_t);
  void (*pad)(const Store* from, Store* to, int64_t rows, int64_t n, int64_t pitch, cudaStream_t);
  // h (B,n) as the step at time t sees it; null: zeros
  void (*pad_state)(const Real* from, Store* to, const Noise&, int64_t t, int64_t B, int64_t n, int64_t pitch, cudaStream_t);
  void (*spread)(const Store* from, Store* to, int64_t rows, int64_t H, int64_t head, int64_t pitch, cudaStream_t);
  // (of,H,P) to (P,gates,pitch): gate (s + first) % of at s
  void (*turn)(const Store* from, Store* to, int64_t H, int64_t P, int64_t pitch, int gates, int first, int of, cudaStream_t);
  void (*drop)(const Store* from, const uint8_t* mask, Store* to, Real scale, int64_t count, cudaStream_t);
  void (*sum_columns)(const Store* from, Real* parts, Real* sums, int64_t rows, int64_t n, int shares, bool add, cudaStream_t);
  void (*narrow)(const Real* from, Store* to, int64_t count, cudaStream_t);
};

// The architecture that the kernels of this module which run on the current device were compiled for, as __CUDA_ARCH__ / 10; 0 if
// none does. In the float32 unit, as the next.
int kernels_architecture();
// Masks of dropout.
void draw_masks(uint8_t* masks, int64_t count, double drop, uint64_t seed, cudaStream_t);

extern const Kernels<float, float> kernels_float32, kernels_tf32;
extern const Kernels<Bfloat16, float> kernels_bfloat16;
extern const Kernels<Float16, float> kernels_float16;
extern const Kernels<double, double> kernels_float64;

}  // namespace fastrnn::cuda
