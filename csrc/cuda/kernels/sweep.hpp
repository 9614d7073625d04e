// What kernels are told. Plain structs; every pointer is to the GPU's memory.
//
// Letters as in structs.hpp. Token (t, b) has number t * B + b: sequences that have ended still have tokens, which are zeros. A row that
// other kernels multiply is padded with zeros to whole pieces of 16 bytes: pad(n) elements.
#pragma once
#include "kernels/structs.hpp"

namespace fastrnn::cuda {

// Which rows run when.
struct Sequences {
  int64_t T, B;
  const int64_t* length;      // (B) or null: all run to the end
  Rows<const uint8_t> reset;  // (T,B,1) or base null
};

// A matrix whose rows are whole pieces apart; 'row' elements from one to the next.
template <class Store> struct Padded {
  Store* base;
  int64_t row;
};

// Of a normalised cell: the gains of both sides (G*H), gain and bias of the state (H), or null.
template <class Store> struct NormWeights {
  const Store *ih, *hh, *c, *bias_c;
};
// And its tape, or null: W_ih x and W_hh h normalised, (tokens,G*H) each, and the statistics (tokens,moment_count).
template <class Store, class Real> struct NormTape {
  Store *inputs, *products;
  Real* moments;
};

// One direction of a layer, forward.
template <class Store, class Real> struct Side {
  bool reverse;
  CellOptions options;
  Noise noise;  // of a cell that may have it
  Padded<const Store> weight[2];  // of each phase: (G*H,P), all gates, zeros outside a unit's head; (P,H) for a projection
  const Store* vectors;           // (vectors,H), or null: zeros
  const Store *bias_ih, *bias_hh;  // (G*H) or null
  NormWeights<Store> norms;
  const Real* z;                   // (tokens of the chunk, G*H) W_ih x, of a normalised cell normalised
  int64_t z_first;                 // the token it begins with
  Store* recurrent;                // [2](B,pad(P)) h of the last step, and of this one: they take turns
  Store* inner;                    // (B,pad(H)) what the second phase multiplies
  Real* kept;                      // (B,tape,H) the tape from phase to phase, of cells with two
  Real* products;                  // (B,G*H) W_hh h of this step, of normalised cells
  States<Real> state;              // (B,size) each, as they run: the final ones in the end
  Rows<Store> y;                   // (T,B,P) written, zero past the length
  Store* tape_gates;               // (tokens,tape,H) or null
  States<Real> trail;              // (tokens,H) of the states beside h, or null
  Store* tape_inner;               // (tokens,H) or null
  NormTape<Store, Real> norm_tape;
};

template <class Store, class Real> struct Sweep {
  Sequences sequences;
  int64_t H, P;
  int64_t head;  // units of a head, each of which multiplies the elements of its own alone; 0 without heads
  Side<Store, Real> side[2];
};

// The same, backward.
template <class Store, class Real> struct BackSide {
  bool reverse;
  CellOptions options;
  Noise noise;
  const Store* vectors;
  NormWeights<Store> norms;
  Padded<const Store> weight[2];  // of each phase, transposed: (P, gates of the phase in the order of the slots, pad(H)); (H,pad(P))
  Rows<const Store> y;            // as forward wrote it
  Rows<const Store> dy;           // (T,B,P) or base null: zeros
  Rows<Store> hidden;             // (T,B,P) dL/dh_t, written, or base null
  States<const Real> before;      // (B,size) each, or null: zeros
  const Store* tape_gates;
  States<Real> trail;
  NormTape<Store, Real> norm_tape;
  Store* recurrent;  // [2](B,slots,pad(H)) gate gradients of the step after, and of this one: they take turns; of normalised cells those
                     // of the recurrent product alone
  Real* plain;  // (B,slots from 'plain' on,H) gradients of the normalised sums of this step
  Store* projected;  // (B,pad(P)) dL/dh of this step, with a projection
  States<Real> dstate;  // (B,size) each: of the final states at first, of the initial ones in the end; of h between them the part of
                        // dL/dh_prev that passes by the product
  Store* dgates;  // (tokens of the chunk, slots, H) written; of normalised cells the terms of the gradients of gains behind them
  Store* dprojected;  // (tokens of the chunk, P) dL/dh, with a projection
  int64_t first;  // the token of the chunk that these begin with
};

template <class Store, class Real> struct BackSweep {
  Sequences sequences;
  int64_t H, P;
  int64_t head;  // units of a head, each of which multiplies the elements of its own alone; 0 without heads
  BackSide<Store, Real> side[2];
};

// Columns of a block's tile: rows of the batch. 8 or 32, in float64 8 or 16. Of a resident kernel 8, or 16 or 32.
struct StepLaunch {
  int directions, columns;
  bool chained;
};

// Steps that one launch runs through, its blocks at once on the GPU; see resident.hpp. Block i has the units of i % unit blocks, and of
// the batch's tiles number i / unit blocks and every groups-th after it.
constexpr int forward_units = 8;  // of a block
struct Residence {
  int64_t first, last;  // steps
  int directions, columns, groups, chunk_bytes;  // chunk_bytes: see ResidentTile
  unsigned* done;  // (directions, tiles of the batch) how often a block was done with a step, over all steps; zero before the first one
};

// C (n,m) = A (n,K) B (K,m). Element (row, k) of a factor lies at base[row * row_stride + k * k_stride]; one of the strides is 1.
template <class Store> struct Factor {
  const Store* base;
  int64_t row_stride, k_stride;
};

template <class Store> struct MatrixProduct {
  Factor<Store> a;  // (n,K)
  Factor<Store> b;  // (m,K): B transposed
  int64_t n, K, m;
  int64_t pitch;  // elements from one row of C to the next
  bool add;  // to what C holds
};

}  // namespace fastrnn::cuda
