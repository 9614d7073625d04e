// The plain structs that the layers of fastrnn hand to each other. No Python, no containers.
//
// Letters: T time, B batch, I input, H hidden, P projection size (H without a projection), G gates, N lanes of a vector,
// D directions, L layers. A unit block is N hidden units side by side; blocks(n) = ceil(n / N).
#pragma once
#include <cstdint>

// Members and functions that kernel units share with others are always inlined: an out-of-line copy compiled for a
// newer instruction set must never be the one that the linker keeps.
#ifdef __CUDACC__
#define FASTRNN_INLINE __host__ __device__ __forceinline__
#else
#define FASTRNN_INLINE inline __attribute__((always_inline))
#endif

namespace fastrnn {

// The list of cells: name, and struct in cells.hpp. CMake reads it too, for one kernel unit each. Those called general heed CellOptions.
#define FASTRNN_CELLS(X)                      \
  X(rnn_tanh, Rnn<false>)                     \
  X(rnn_relu, Rnn<true>)                      \
  X(gru, Gru)                                 \
  X(gru_original, GruOriginal)                \
  X(lstm, Lstm)                               \
  X(lstm_projected, Projected<Lstm>)          \
  X(slstm, Slstm<false>)                      \
  X(slstm_exponential, Slstm<true>)           \
  X(gru_norm, GruNorm)                        \
  X(lstm_norm, LstmNorm)                      \
  X(rnn_general, RnnGeneral)                  \
  X(gru_general, GruGeneral)                  \
  X(gru_original_general, GruOriginalGeneral) \
  X(lstm_general, LstmGeneral)                \
  X(lstm_projected_general, Projected<LstmGeneral>)

#define FASTRNN_NAME(name, type) name,
#define FASTRNN_TEXT(name, type) #name,
enum class Cell { FASTRNN_CELLS(FASTRNN_NAME) };
constexpr const char* cell_names[] = {FASTRNN_CELLS(FASTRNN_TEXT)};
constexpr int cell_count = sizeof(cell_names) / sizeof(cell_names[0]);

// The activation functions of ONNX, with alpha and beta where they have them.
#define FASTRNN_ACTIVATIONS(X) \
  X(sigmoid) X(tanh) X(relu) X(affine) X(leaky_relu) X(thresholded_relu) X(scaled_tanh) X(hard_sigmoid) X(elu) X(softsign) X(softplus)
#define FASTRNN_ACTIVATION(name) name,
#define FASTRNN_ACTIVATION_TEXT(name) #name,
enum class ActivationKind { FASTRNN_ACTIVATIONS(FASTRNN_ACTIVATION) };
constexpr const char* activation_names[] = {FASTRNN_ACTIVATIONS(FASTRNN_ACTIVATION_TEXT)};
struct Activation {
  ActivationKind kind;
  double alpha, beta;
};
constexpr int max_activations = 3;

// What a general cell lets the user choose, of one direction.
struct CellOptions {
  double clip;    // what enters an activation is kept within +-clip
  bool coupled;   // f = 1 - i
  bool peephole;  // the gates see c; else no product with it is formed, which of an infinite c would be NaN
  Activation activation[max_activations];  // of the gates, of the candidate, of c; an RNN has the first alone
  double zoneout[2] = {};  // of h and of c: how likely the state before stays; without masks it stays in this part
};

// Element k of row (t, b) is base[t * time + b * batch + k]. Packed rows have no padding between them: there starts[t] rows
// come before those of t, and only rows that run exist, b as number place[b] of them (place null: as number b).
template <class Real> struct Rows {
  Real* base;
  int64_t time, batch;
  const int64_t* starts = nullptr;
  const int64_t* place = nullptr;
  FASTRNN_INLINE Real* at(int64_t t, int64_t b) const {
    return base + (starts ? (starts[t] + (place ? place[b] : b)) * batch : t * time + b * batch);
  }
};

// What training does at random to the states of a general cell, drawn by the caller: flags by time and batch row.
struct Noise {
  Rows<const uint8_t> kept;      // (T,B,P), or the same for all times: what the recurrent products see of h_prev; or base null: all
  double scale;                  // of what is kept
  Rows<const uint8_t> zoned[2];  // of h (T,B,P), of c (T,B,H): non-zero where the state before stays; or base null
};

// Which batch rows run at which time. Rows are ordered by falling length, so that the running ones are always a prefix.
// The token (t, s), row s of that order at time t, has number offset[t] + s on the tape: padding takes no room.
struct Schedule {
  int64_t T, B;
  const int64_t* order;     // (B) the batch row behind s
  const int64_t* place;     // (B) the s of a batch row
  const int64_t* length;    // (B) length of row order[s], falling
  const int64_t* active;    // (T) how many rows run at t
  const int64_t* offset;    // (T) tokens before t
  Rows<const uint8_t> reset;  // (T,B,1) or base null: non-zero cuts the sequence between t-1 and t
};

// Token ids in place of x: row u of x belongs to the u-th id that occurs, however many tokens have it.
struct DistinctIds {
  int64_t distinct;    // U ids occur
  const int64_t* id;   // (U) each once, in the order in which they come
  const int64_t* row;  // (T,B) u of each token that runs
};

// How a frozen layer may keep its matrices in fewer bits than those of float32.
enum class Format { bfloat16, int8 };
constexpr int format_count = 2;
FASTRNN_INLINE constexpr int depth_of(Format f) { return f == Format::int8 ? 4 : 2; }  // columns that lie side by side in a panel

// A matrix in fewer bits, packed. Rows have zeros at their end up to a multiple of the depth.
struct NarrowPanel {
  Format format;
  const char* data;       // [block][ceil(K / depth)][gates][N][depth]
  const float* scale;     // int8: [block][gates][N] what a row's integers count
  const int32_t* offset;  // int8: [block][gates][N] -128 times the sum of a row's integers
};

struct NarrowProducts;

// The forward weights, packed for the panel product; kept by a frozen layer, scratch otherwise.
template <class Real> struct Panels {
  Real* ih;           // [blocks(H)][I][G][N]
  Real* hh;           // for each phase: [blocks(H)][P, or the widest window of heads][gates of the phase][N]
  Real* hr;           // [blocks(P)][H][N], with a projection
  Real* bias;         // [blocks(H)][G][N], bias_ih + bias_hh where both add up
  Real* bias_hidden;  // [blocks(H)][N], bias_hh of the gate that must keep it apart
  Real* vectors;      // [blocks(H)][vectors][N], of cells with parameters of one element per unit; zeros where the layer has none.
                  // A normalised cell's: the gains of the input's side, of the hidden side, of a state and that one's bias

  const NarrowProducts* narrow;  // null, or what multiplies these in place of ih, hh and hr; float32 only
  NarrowPanel narrow_ih;
  NarrowPanel narrow_hh[2];  // for each phase; weight_hr in a projected cell's second
};

// Of n units in heads: the columns that the panel of a block has room for.
FASTRNN_INLINE int64_t widest_window(int64_t n, int64_t head, int64_t lanes) {
  if (head % lanes == 0) return head;
  const int64_t touched = lanes % head == 0 ? lanes / head : (lanes + head - 2) / head + 1;
  return touched * head < n ? touched * head : n;
}

// A layer's parameters in one direction, in PyTorch's order; host/description.hpp has their shapes.
enum Parameter {
  weight_ih,
  weight_hh,
  bias_ih,
  bias_hh,
  weight_hr,
  weight_peephole,
  weight_norm_ih,
  weight_norm_hh,
  weight_norm_c,
  bias_norm_c,
  parameter_count
};

// Where the gate gradients stand that backward keeps of a unit and a token.
struct Slots {
  int count;  // in all
  int input = 0;  // first of those of the input's side, which are in the order of the gates
  int turn = 0;  // those of the hidden side begin with slot 0, and gate g has slot (g + turn) % gates
  int vectors = 0;  // the last ones, whose sums over all tokens are the gradients of parameters of one element per unit
  // Of a normalised cell, the gradients of what its products give stand first, those of the normalised sums from 'plain' on: the hidden
  // side's at once, the input's from plain + plain_input, and at last, where a state is normalised, that of its normalised value.
  int plain = 0, plain_input = 0;
};

// A row is normalised by its mean and variance, which this keeps from being 0.
constexpr double norm_epsilon = 1e-5;
// What the tape keeps of the statistics of a token; a rate is 1 / sqrt(variance + epsilon).
enum Moment { rate_ih, mean_hh, rate_hh, mean_c, rate_c, moment_count };

// Pointers to arrays of one kind. Element: Real, or const Real where they are only read.
template <class Element, int n> struct Pointers {
  Element* at[n];
  FASTRNN_INLINE Element*& operator[](int i) { return at[i]; }
  FASTRNN_INLINE Element* operator[](int i) const { return at[i]; }
};
// The parameters or their gradients; null where the cell has none.
template <class Element> using Parameters = Pointers<Element, parameter_count>;
// The states or their gradients: h, of size P, and the others of the cell, of size H.
constexpr int max_states = 4;
template <class Element> using States = Pointers<Element, max_states>;

// One direction of one layer, forward. The caller owns every pointer.
template <class Real> struct Direction {
  Schedule schedule;
  int64_t I, H, P, heads;  // heads: W_hh is block diagonal with so many blocks, 1 for a full matrix
  bool reverse, training;
  bool back;  // of one sequence: the first step walks the panels from their end, where the last step of the call before it stopped
  CellOptions options;
  Noise noise;

  Parameters<const Real> weight;  // (G*H,I), (G*H,P/heads), (G*H), (G*H), (P,H), (3,H); null where the layer has none
  Panels<Real> panels;  // bias and bias_hidden always; others null where packing would not pay (a matrix read once, few tokens)

  const DistinctIds* tokens;  // or null
  Rows<const Real> x;  // (T,B,I); with tokens (U,1,I), or base null: the identity, which makes them one-hot
  Rows<Real> y;  // (T,B,P) written, zero past the length; also where h_prev is read
  States<const Real> before;  // (B,size) each, or null: zeros
  States<Real> after;  // (B,size) each, h written at the very end; in inference the others run in it; each may be that of 'before'

  Real* gates;  // [token][blocks(H)][tape vectors][N] tape; in inference [row s], where a second phase reads it
  States<Real> trail;  // [token](H) tape of the states beside h, null in inference
  Real* inner;  // [token](H) tape: what the second phase multiplies; in inference [row s]
  Real* products;  // [token](G*H) tape of a normalised cell: W_hh h_prev as it is; in inference [row s]
  Real* inputs;  // [token](G*H) tape of a normalised cell: W_ih x normalised, without gain and bias; null in inference
  Real* moments;  // [token](moment_count) tape of a normalised cell; null in inference

  // scratch
  const Real* zeros;  // a zero row, long enough for any operand
  Real* projection;  // per worker: [blocks][chunk_rows][G][N]; normalised cells: [chunk_rows](G*H), of all who share the units
  int64_t projection_size;  // elements of one worker's share
  Real* token_projection;  // of the whole team: [blocks(H)][U][G][N], the projection of the distinct tokens, or null; normalised cells:
                           // (U,G*H)
  const void** row_pointers;  // per worker: row pointers
  int64_t row_pointer_count;  // pointers of one worker's share
  int64_t chunk_steps;  // time steps that are projected at once
  Real* pack_buffer;  // per worker: [blocks at once][K][G][N] for matrices packed as they are read, or null
  int64_t pack_buffer_size;  // elements of one worker's share
  Real* dropped;  // per worker: [row](P) of h_prev what the recurrent products see, with recurrent dropout
  int64_t dropped_size;  // elements of one worker's share
  char* narrow_room;  // per worker, with narrow weights: a NarrowRoom
  int64_t narrow_room_size;  // bytes of one worker's share
};

// One direction of one layer, backward. dX is the gradient of the loss with respect to X, of the same shape.
template <class Real> struct BackwardDirection {
  Direction<Real> forward;  // as it ran; panels unused

  Rows<const Real> dy;  // (T,B,P) or base null: zeros
  Rows<Real> dx;  // (T,B,I) written, zero past the length; with tokens (U,1,I), or base null
  Rows<Real> hidden;  // (T,B,P) or base null: dL/dh_t, zero past the length
  States<const Real> dafter;  // (B,size) each, or null: zeros
  States<Real> dbefore;  // (B,size) each, written
  Parameters<Real> dweight;  // of the shapes of the parameters, written
  Real* dz;  // (B,slots*H) written in place of all of these for a single time step, or null

  // scratch of the whole team
  Real* panel_ih;  // [blocks(I)][G*H][N], or null: packed as it is read, in 'room'
  Real* panel_hh;  // for each phase: [blocks(P)][gates*H, or of the widest window of heads][N]; null where there are few tokens, and no
                   // panel is packed
  Real* panel_hr;  // [blocks(H)][P][N], with a projection
  Real* dgates;  // ring of chunk_steps + 1 steps: [step][row s](slots*H + pad)
  Real* dproj;  // [step][row s](P) total dh, with a projection
  Real* carry;  // [row s](P) the part of dh that passes by the product
  States<Real> drunning;  // [row s](H) of the states beside h
  Real* columns;  // [slots*H + P][chunk_pitch] the chunk's gate gradients, transposed
  Real* x_panel;  // [blocks(I)][chunk_pitch][N]
  Real* h_panel;  // for each head: [blocks(P / heads)][chunk_pitch][N]
  Real* inner_panel;  // [blocks(H)][chunk_pitch][N], cells with a second phase; or for each head
  Real* few;  // [row s](P) products of few tokens, of heads, or with recurrent dropout
  Real* dropped;  // [token of a chunk](P) of h_prev what the recurrent products saw, with recurrent dropout
  Real* column_sums;  // (slots*H)
  Real* dtable;  // (U,G*H) sums over the tokens of each id, or null without tokens
  Real* pack_buffer;  // per worker: [blocks at once][G*H][N], or null
  int64_t chunk_steps, chunk_pitch;  // time steps and tokens (rounded up to N) of one chunk of weight gradients
};

struct Barrier;
struct Control;

// One worker of the team that runs a direction.
struct Seat {
  int rank, size;
  bool by_rows;  // batch rows are dealt out and never meet; otherwise hidden units are, and every phase ends in a barrier
  bool asks;  // the calling thread, the only one that may ask whether to go on
  Barrier* barrier;
  Control* control;
};

// What one cell in one dtype for one instruction set offers.
template <class Real> struct Kernel {
  int lanes, gates, first_gates, tape, phases, states;  // first_gates: of the first phase
  int vectors, norms;  // of Panels::vectors; 1: the products are normalised, 2: and a state
  Slots slots;
  bool projected;
  void (*pack)(const Direction<Real>&, const Seat&);
  void (*forward)(const Direction<Real>&, const Seat&);
  void (*backward)(const BackwardDirection<Real>&, const Seat&);
};

constexpr int64_t product_rows = 192;  // of A that a worker of a product transposes at once

// C (n,m) = A (n,K) B (K,m), plain contiguous matrices; a transposed one is stored the other way round.
template <class Real> struct Product {
  const Real *a, *b;
  Real* c;
  int64_t n, K, m;
  bool a_transposed, b_transposed;
  bool add;  // to what C holds
  Real* columns;  // per worker: (product_rows, K + N) scratch where a is transposed
  Real* panel;  // [blocks(m)][K][N] scratch
  const void** row_pointers;  // (2 * n) scratch
};

// y (n,m) = x (n,K) W^T + bias, on one thread.
template <class Real> struct Linear {
  const Real *weight, *bias;  // (m,K), (m) or null
  const Real* x;
  Real* y;
  int64_t n, K, m;
};

// Softmax and cross entropy of rows of logits: losses, and gradients times 'scale'. The target of a row is 1 - smoothing +
// smoothing / m for its class and smoothing / m for each other one. The gradients may take the place of the logits.
template <class Real> struct Softmax {
  const Real* logits;  // (n,m)
  const int64_t* classes;  // (n)
  int64_t n, m;
  double smoothing, scale;
  double* losses;  // (n)
  Real* gradients;  // (n,m)
};

// What an instruction set offers beside its cells.
template <class Real> struct Functions {
  int lanes;
  void (*sigmoid)(const Real* x, Real* y, int64_t n);
  void (*tanh)(const Real* x, Real* y, int64_t n);
  void (*product)(const Product<Real>&, const Seat&);
  void (*softmax)(const Softmax<Real>&, const Seat&);
  void (*linear)(const Linear<Real>&);
  // What a core can do at most, for benchmarks to be held against. Both give what they did, in operations and in bytes.
  double (*fma_loop)(int64_t iterations);
  double (*read_loop)(const Real* x, int64_t n, int64_t passes);
};

template <class Real> struct KernelTable {
  const Kernel<Real>* cell[cell_count];
  Functions<Real> functions;
};

// Rows of float32 that a narrow matrix multiplies.
struct NarrowOperand {
  const float* const* rows;
  int64_t n, K;
  uint8_t* prepared;  // (n * narrow_row(format, K)) what 'prepare' makes of the rows
  float* scale;  // int8: (n) what a row's integers count
};
FASTRNN_INLINE int64_t narrow_pitch(int64_t bytes) { return (bytes + 63) / 64 * 64; }
FASTRNN_INLINE int64_t narrow_row(Format format, int64_t K) { return format == Format::int8 ? narrow_pitch(K) : 2 * narrow_pitch(2 * K); }

// What a worker needs for products with narrow matrices, of so many rows at once.
constexpr int64_t narrow_rows = 64, narrow_products = 64 * narrow_rows;
struct NarrowRoom {
  float products[narrow_products];  // of some blocks: [block][row][gates][N]
  float scale[narrow_rows];
  uint8_t prepared[64];  // narrow_rows * narrow_row(format, K) of them, of the longest row
};

// Products with narrow matrices, which the forward pass of every cell calls. An instruction set may have several of them, for
// processors with and without an extension; those of int8 have the same results.
struct NarrowProducts {
  const char* name;
  int speed[format_count];  // multiplications and additions in the time of one of float32, about
  // Fills in 'prepared' and 'scale', where the format wants them. In int8 the scale of a row with an infinity or a NaN is NaN.
  void (*prepare)(Format, const NarrowOperand&);
  // z[block - first][row][gates][N] = rows times these blocks of a matrix
  void (*multiply)(const NarrowPanel&, int gates, int64_t first, int64_t last, const NarrowOperand&, float* z);
  // Nothing but independent products in registers, so often; the multiplications and additions done, or 0: they are those of float32.
  double (*peak)(Format, int64_t iterations);
};

struct NarrowCandidate {
  bool (*supported)();
  const NarrowProducts* products;
};

// The forward pass with narrow weights, of every cell.
struct NarrowTable {
  void (*forward[cell_count])(const Direction<float>&, const Seat&);
};

struct Isa {
  const char* name;
  bool (*supported)();
  const KernelTable<float>* f32;
  const KernelTable<double>* f64;
  const NarrowTable* narrow;
  const NarrowCandidate* products;  // the best first; ends with null
};

// Every instruction set of this build, best first; ends with a null name.
extern const Isa isas[];

template <class Real> const KernelTable<Real>& table_of(const Isa& isa);
template <> FASTRNN_INLINE const KernelTable<float>& table_of(const Isa& isa) { return *isa.f32; }
template <> FASTRNN_INLINE const KernelTable<double>& table_of(const Isa& isa) { return *isa.f64; }

// The instruction set of that name, or the best one with a null name. FASTRNN_ISA in the environment overrides the latter.
// Throws std::invalid_argument that names what there is.
const Isa& choose_isa(const char* name);

}  // namespace fastrnn
