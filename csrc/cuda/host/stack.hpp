// A stack of layers and directions on a GPU: which kernels run in what order, and how a call's memory is laid out. The caller gives all
// memory; everything is launched into the caller's stream of the current device, and nothing waits. Python-free.
#pragma once
#include <vector>

#include "cuda/host/blas.hpp"
#include "cuda/kernels/kernels.hpp"
#include "host/layers.hpp"
#include "host/noise.hpp"

namespace fastrnn::cuda {

struct Network : Layered {
  Precision precision;
};

// What plans depend on.
struct Gpu {
  int processors;
  bool chains;                                 // kernels may be chained: see Launch
  Blas* blas;                                  // or null: the own product
  bool resident = true;                        // whole runs of steps may be one kernel, where it fits
  int64_t chunk_bytes = int64_t(64) << 20;  // what the rows of the time steps that are done at once may take: an L2 cache keeps them
};

// Of all T*B tokens; the same in every precision but for their sizes.
template <class Store, class Real> Saved<Store, Real> lay_out_tape(const Network&, int64_t tokens, bool dropout, Arena&);

template <class Store, class Real> struct ForwardCall {
  using Stored = Store;
  Sequences sequences;
  Rows<const Store> x;                  // (T,B,I)
  Rows<Store> y;                        // (T,B,D*P)
  States<const Real> before;            // (L*D,B,size) each, or null: zeros
  States<Real> after;                   // the same, written
  const uint8_t* masks;                 // (L-1,T,B,D*P) or null
  Real scale;                           // of what a mask keeps
  AllNoise noise;                       // of general cells
  const Parameters<const Store>* weights;  // (L*D)
  const Saved<Store, Real>* saved;      // null: inference
};

template <class Store, class Real> struct BackwardCall {
  using Stored = Store;
  ForwardCall<Store, Real> forward;  // as it ran
  Rows<const Store> dy;              // or base null: zeros
  Rows<Store> dx;                    // (T,B,I)
  Rows<Store> hidden;                // (T,B,D*P) or base null
  States<const Real> dafter;         // or null
  States<Real> dbefore;              // written
  const Parameters<Store>* gradients;   // (L*D)
};

// Each takes its scratch from the arena; with an arena of no memory it only counts, and launches nothing.
template <class K>
void forward(const K& kernels, const Network&, const Gpu&, const ForwardCall<typename K::Store, typename K::Real>&, Arena&, cudaStream_t);
template <class K>
void backward(const K& kernels, const Network&, const Gpu&, const BackwardCall<typename K::Store, typename K::Real>&, Arena&, cudaStream_t);

// Rows of the batch that a block of a step does: 8, or 32 where that still gives every processor its blocks.
int step_columns(int64_t units, int64_t B, int directions, int processors);
// How resident kernels deal out B rows of the batch, and how many directions they do at once, given the blocks for all units of one
// direction and, of tiles with few columns and with many, how many blocks a multiprocessor holds. 'wide': the latter. No groups: neither
// fits, or a block had more than two tiles.
struct ResidentRoom {
  int processors, columns[2], held[2];
};
struct ResidentPlan {
  bool wide;
  int groups, directions;
};
ResidentPlan plan_resident(int64_t unit_blocks, int64_t B, int directions, const ResidentRoom&);
// Time steps done at once, so that 'token_bytes' for each of B tokens keep to chunk_bytes.
int64_t chunk_steps(int64_t T, int64_t B, int64_t token_bytes, int64_t chunk_bytes);
// Into how many shares the own product cuts K, whose results take so many bytes each.
int product_shares(int64_t n, int64_t K, int64_t m, int64_t result_bytes, int processors);

constexpr int64_t workspace_bytes = int64_t(32) << 20;

}  // namespace fastrnn::cuda
