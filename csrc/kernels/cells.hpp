// The equations: every cell once, forward and, mirrored below it, backward.
//
// V is a scalar, a vector of units side by side or a bundle of such vectors. A cell is a list of phases; each is a product with the
// recurrent weights and the pointwise epilogue that consumes it. forward.hpp and backward.hpp run the phases over time. The operators
// are in vec.hpp; infinities and NaN have to come out as in the textbook. CONTRIBUTING.md tells how to add a cell.
#pragma once
#include "kernels/structs.hpp"
#include "kernels/vec.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

// A product: gates first .. first+gates-1 of weight_hh times h_prev. The second phase multiplies what the first one left
// in 'inner'; its matrix is weight_hr where the cell is projected. Its epilogue in backward fills the gradient slots
// slot .. slot+slots-1.
struct Phase {
  int first, gates, slot, slots;
};

// What forward sees of one unit at one step.
template <class V> struct Unit {
  V z[4];           // pre-activations of the phase's gates, both sides added
  V x_side;         // input side of the gate that keeps its hidden side apart
  V h_prev, prev[max_states];  // prev[1], ...: the states beside h
  V out;                       // result: h, or 'inner' after the first of two phases
  V next[max_states];          // result: next[1], ...
  V tape[4];        // saved for backward, kept from phase to phase
};

// What backward sees of the same unit.
template <class V> struct UnitGradient {
  V dout;                      // dL/dout of the phase: everything that reaches it
  V h, h_prev, next[max_states], prev[max_states], tape[4];
  V dstate[max_states];        // [1], ... in: the gradient from the step after; out: for the step before
  V carry;                     // result: the part of dL/dh_prev that passes by the product; kept from phase to phase
  V dz[4];                     // result: dL/dz by slot
};

// Common to all: gates in PyTorch's order, at most four; 'slots' as structs.hpp has them. A gate that keeps its hidden side apart has two
// gate gradients, and the slots are so arranged that the gates of either side lie side by side: one product then reads them all.
struct CellDefaults {
  static constexpr int phases = 1;
  static constexpr int tape = 0;    // vectors of Unit::tape that are kept for backward
  static constexpr int states = 1;  // h, and what is beside it
  static constexpr bool has_carry = false;    // backward leaves a part of dL/dh_prev in 'carry'; else it is dropped
  static constexpr bool projected = false;    // the second phase multiplies by weight_hr
  static constexpr bool uses_h = false, uses_h_prev = false;  // these members are loaded; else they hold nothing
  static constexpr bool hidden_apart = false;  // z of the last gate is its hidden side alone, x_side the other
};

// First slot of a phase's gates on the hidden side, which its recurrent product consumes.
template <class Cell> FASTRNN_FN constexpr int hidden_slot(int phase) { return Cell::slots.turn ? 0 : Cell::phase[phase].first; }

// h = f(z),  z = W_ih x + b_ih + W_hh h_prev + b_hh,  f = tanh or relu
template <bool use_relu> struct Rnn : CellDefaults {
  static constexpr int gates = 1;
  static constexpr Slots slots{1};
  static constexpr bool uses_h = true;
  static constexpr Phase phase[] = {{0, 1, 0, 1}};

  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    if constexpr (use_relu) u.out = relu(u.z[0]);
    else u.out = tanh(u.z[0]);
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    if constexpr (use_relu) u.dz[0] = pass_positive(u.h, u.dout);
    else u.dz[0] = u.dout * (1 - u.h * u.h);
  }
};

// r, z = sigma(.);  n = tanh(W_in x + b_in + r * (W_hn h_prev + b_hn));  h = (1 - z) n + z h_prev
// Reset after the product: cuDNN, PyTorch. The gradient of n has two sides, hence four slots: n_hidden, r, z, n_input.
struct Gru : CellDefaults {
  static constexpr int gates = 3, tape = 4;
  static constexpr Slots slots{4, 1, 1};
  static constexpr bool has_carry = true, uses_h_prev = true, hidden_apart = true;
  static constexpr Phase phase[] = {{0, 3, 0, 4}};

  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    const V r = sigmoid(u.z[0]), z = sigmoid(u.z[1]), n = tanh(fma(r, u.z[2], u.x_side));
    u.out = fma(z, u.h_prev - n, n);
    u.tape[0] = r, u.tape[1] = z, u.tape[2] = n, u.tape[3] = u.z[2];
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    const V r = u.tape[0], z = u.tape[1], n = u.tape[2], n_hidden = u.tape[3];
    const V dn = u.dout * (1 - z) * (1 - n * n);
    u.dz[0] = dn * r;
    u.dz[1] = dn * n_hidden * r * (1 - r);
    u.dz[2] = u.dout * (u.h_prev - n) * z * (1 - z);
    u.dz[3] = dn;
    u.carry = u.dout * z;
  }
};

// r, z = sigma(.);  n = tanh(W_in x + b_in + W_hn (r * h_prev) + b_hn);  h = (1 - z) n + z h_prev
// Reset before the product (Cho et al. 2014): the candidate's product needs r * h_prev of all units, a second phase.
struct GruOriginal : CellDefaults {
  static constexpr int gates = 3, tape = 3, phases = 2;
  static constexpr Slots slots{3};
  static constexpr bool has_carry = true, uses_h_prev = true;
  static constexpr Phase phase[] = {{0, 2, 1, 2}, {2, 1, 0, 1}};

  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    if constexpr (p == 0) {
      u.tape[0] = sigmoid(u.z[0]), u.tape[1] = sigmoid(u.z[1]);
      u.out = u.tape[0] * u.h_prev;
    } else {
      u.tape[2] = tanh(u.z[0]);
      u.out = fma(u.tape[1], u.h_prev - u.tape[2], u.tape[2]);
    }
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    const V r = u.tape[0], z = u.tape[1], n = u.tape[2];
    if constexpr (p == 0) {
      u.dz[1] = u.dout * (u.h_prev - n) * z * (1 - z);
      u.dz[2] = u.dout * (1 - z) * (1 - n * n);
      u.carry = u.dout * z;
    } else {  // dout = d(r * h_prev)
      u.dz[0] = u.dout * u.h_prev * r * (1 - r);
      u.carry = fma(u.dout, r, u.carry);
    }
  }
};

// i, f, o = sigma(.);  g = tanh(.);  c = f c_prev + i g;  h = o tanh(c)
struct Lstm : CellDefaults {
  static constexpr int gates = 4, tape = 4;
  static constexpr Slots slots{4};
  static constexpr int states = 2, c = 1;
  static constexpr Phase phase[] = {{0, 4, 0, 4}};

  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    const V i = sigmoid(u.z[0]), f = sigmoid(u.z[1]), g = tanh(u.z[2]), o = sigmoid(u.z[3]);
    u.next[c] = fma(f, u.prev[c], i * g);
    u.out = o * tanh(u.next[c]);
    u.tape[0] = i, u.tape[1] = f, u.tape[2] = g, u.tape[3] = o;
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    const V i = u.tape[0], f = u.tape[1], g = u.tape[2], o = u.tape[3], tanh_c = tanh(u.next[c]);
    const V dc = fma(u.dout * o, 1 - tanh_c * tanh_c, u.dstate[c]);
    u.dz[0] = dc * g * i * (1 - i);
    u.dz[1] = dc * u.prev[c] * f * (1 - f);
    u.dz[2] = dc * i * (1 - g * g);
    u.dz[3] = u.dout * tanh_c * o * (1 - o);
    u.dstate[c] = dc * f;
  }
};

// The same with h = W_hr (o tanh(c)) (Sak et al. 2014): 'inner' is o tanh(c), the second phase is the projection.
struct LstmProjected : Lstm {
  static constexpr int phases = 2;
  static constexpr bool projected = true;
  static constexpr Phase phase[] = {{0, 4, 0, 0}, {0, 1, 0, 4}};

  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    if constexpr (p == 0) Lstm::forward<0>(u);
    else u.out = u.z[0];
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    if constexpr (p == 1) Lstm::backward<0>(u);  // phase 0 only completes dh, which the product with W_hr consumes
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
