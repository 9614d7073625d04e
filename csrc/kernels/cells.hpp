// The equations: every cell once, forward and, mirrored below it, backward.
//
// V is a scalar, a vector of units side by side or a bundle of such vectors. A cell is a list of phases; each is a product with the
// recurrent weights and the pointwise epilogue that consumes it. forward.hpp and backward.hpp run the phases over time. The operators
// are in vec.hpp; infinities and NaN have to come out as in the textbook. CONTRIBUTING.md tells how to add a cell.
#pragma once
#include "kernels/activations.hpp"
#include "kernels/structs.hpp"
#include "kernels/vec.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

// A product: gates first .. first+gates-1 of weight_hh times h_prev. The second phase multiplies what the first one left
// in 'inner'; its matrix is weight_hr where the cell is projected. Its epilogue in backward fills the gradient slots
// slot .. slot+slots-1, of a normalised cell counted from 'plain'.
struct Phase {
  int first, gates, slot, slots;
};

constexpr int max_slots = 7;

// What forward sees of one unit at one step.
template <class V> struct Unit {
  V z[4];           // pre-activations of the phase's gates, both sides added
  V x_side;         // input side of the gate that keeps its hidden side apart
  V h_prev, prev[max_states];  // prev[1], ...: the states beside h
  V out;                       // result: h, or 'inner' after the first of two phases
  V next[max_states];          // result: next[1], ...
  V tape[4];        // saved for backward, kept from phase to phase
  V vector[3];      // the unit's elements of the cell's vectors
  const CellOptions* options;
};

// What backward sees of the same unit.
template <class V> struct UnitGradient {
  V dout;                      // dL/dout of the phase: everything that reaches it
  V h, h_prev, next[max_states], prev[max_states], tape[4];
  V dstate[max_states];        // [1], ... in: the gradient from the step after; out: for the step before
  V carry;                     // result: the part of dL/dh_prev that passes by the product; kept from phase to phase
  V normal;                    // the normalised state
  V dz[max_slots];             // result: dL/dz by slot
  V vector[3];
  const CellOptions* options;
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
  static constexpr bool general = false;      // may heed the options; its epilogue is large, and all tiles share one copy of it
  static constexpr bool noisy = false;  // may have zoneout and recurrent dropout, which forward.hpp and backward.hpp apply around it
  static constexpr bool hidden_apart = false;  // z of the last gate is its hidden side alone, x_side the other
  static constexpr bool normalised = false;    // both products are, each row of them as a whole, before the epilogue sees their sum
  static constexpr int normalised_state = 0;   // the state whose new value is too; forward<1> makes h of it, and backward<1> goes on
                                               // where the gradient has passed it
};

// What Panels::vectors and Kernel::norms say of a cell.
template <class Cell> FASTRNN_FN constexpr int norms_of() { return Cell::normalised ? Cell::normalised_state ? 2 : 1 : 0; }
template <class Cell> FASTRNN_FN constexpr int vectors_of() {
  return Cell::normalised ? 2 * Cell::gates + (Cell::normalised_state ? 2 : 0) : Cell::slots.vectors;
}

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

// i = e^(z_i - m);  f = e^min(k - m, 0);  g = tanh(.);  o = sigma(.);  c = f c_prev + i g;  n = f n_prev + i;  h = o c / n
// k = log f + m_prev with log f = z_f, or log sigma(z_f);  m = max(z_i, k), and z_i where n_prev = 0, which holds nothing yet.
// The sLSTM of xLSTM (Beck et al. 2024): the stabiliser m keeps the powers in range and cancels out of h.
template <bool exponential> struct Slstm : CellDefaults {
  static constexpr bool general = true;
  static constexpr int gates = 4, tape = 4;
  static constexpr Slots slots{4};
  static constexpr int states = 4, c = 1, n = 2, m = 3;
  static constexpr Phase phase[] = {{0, 4, 0, 4}};

  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    V log_f = u.z[1];
    if constexpr (!exponential) log_f = log_sigmoid(u.z[1]);
    const V z_i = u.z[0], k = log_f + u.prev[m], g = tanh(u.z[2]), o = sigmoid(u.z[3]);
    u.next[m] = where_zero(u.prev[n], z_i, where_greater(k, z_i, k, z_i));
    u.tape[0] = z_i - u.next[m], u.tape[1] = k - u.next[m], u.tape[2] = g, u.tape[3] = o;
    const V i = exp_of_negative(u.tape[0]), f = exp_of_negative(at_most(u.tape[1], 0));
    u.next[c] = fma(f, u.prev[c], i * g);
    u.next[n] = fma(f, u.prev[n], i);
    u.out = o * quotient(u.next[c], u.next[n]);
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    const V z_i = u.tape[0], k = u.tape[1], g = u.tape[2], o = u.tape[3];  // z_i and k as seen from m
    const V i = exp_of_negative(z_i), f = exp_of_negative(at_most(k, 0));
    const V ratio = quotient(u.next[c], u.next[n]), dratio = quotient(u.dout * o, u.next[n]);
    const V dc = u.dstate[c] + dratio, dn = u.dstate[n] - dratio * ratio, dm = u.dstate[m];
    const V by_i = fma(dc, g, dn) * i, by_f = where_greater(k, V{}, V{}, fma(dc, u.prev[c], dn * u.prev[n]) * f);
    // m is k, or it is z_i: that one takes what reaches m.
    const V dk = where_greater(V{}, z_i, dm - by_i, by_f);
    u.dz[0] = where_greater(V{}, z_i, by_i, dm - by_f);
    if constexpr (exponential) u.dz[1] = dk;
    else u.dz[1] = dk * (1 - exp_of_negative(at_most(k + u.next[m] - u.prev[m], 0)));  // the slope of log sigma is 1 - sigma
    u.dz[2] = dc * i * (1 - g * g);
    u.dz[3] = u.dout * ratio * o * (1 - o);
    u.dstate[c] = dc * f, u.dstate[n] = dn * f, u.dstate[m] = dk;
  }
};

// An LSTM with h = W_hr (o tanh(c)) (Sak et al. 2014): 'inner' is o tanh(c), the second phase is the projection.
template <class Whole> struct Projected : Whole {
  static constexpr int phases = 2;
  static constexpr bool projected = true;
  static constexpr Phase phase[] = {{0, 4, 0, 0}, {0, 1, 0, Whole::slots.count}};

  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    if constexpr (p == 0) Whole::template forward<0>(u);
    else u.out = u.z[0];
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    if constexpr (p == 1) Whole::template backward<0>(u);  // phase 0 only completes dh, which the product with W_hr consumes
  }
};

// ---- normalised cells ------------------------------------------------------------------------------------------------------
//
// Layer normalisation (Ba et al. 2016, supplement): LN(v) = gain * (v - mean(v)) / sqrt(variance(v) + epsilon) + bias over all G*H
// numbers of W_ih x, over those of W_hh h_prev and over c; the biases are b_ih, b_hh and one of its own. norms.hpp has the statistics
// and their derivative: the equations here begin with the normalised sums.

// The GRU of reset after the product, of LN(W_ih x) and LN(W_hh h_prev).
struct GruNorm : Gru {
  static constexpr bool normalised = true;
  static constexpr Slots slots{10, 3, 1, 0, 6, 1};
};

// The LSTM of LN(W_ih x) + LN(W_hh h_prev), with h = o tanh(LN(c)).
struct LstmNorm : Lstm {
  static constexpr bool normalised = true;
  static constexpr int normalised_state = c;
  static constexpr Slots slots{13, 4, 0, 0, 8, 0};
  static constexpr Phase phase[] = {{0, 4, 3, 2}};  // its first part: o and LN(c)

  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    if constexpr (p == 0) {
      const V i = sigmoid(u.z[0]), f = sigmoid(u.z[1]), g = tanh(u.z[2]), o = sigmoid(u.z[3]);
      u.next[c] = fma(f, u.prev[c], i * g);
      u.tape[0] = i, u.tape[1] = f, u.tape[2] = g, u.tape[3] = o;
    } else {  // z = LN(c)
      u.out = u.tape[3] * tanh(u.z[0]);
    }
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    const V i = u.tape[0], f = u.tape[1], g = u.tape[2], o = u.tape[3];
    if constexpr (p == 0) {
      const V tanh_c = tanh(u.normal);
      u.dz[3] = u.dout * tanh_c * o * (1 - o);
      u.dz[4] = u.dout * o * (1 - tanh_c * tanh_c);
    } else {
      const V dc = u.dstate[c];
      u.dz[0] = dc * g * i * (1 - i);
      u.dz[1] = dc * u.prev[c] * f * (1 - f);
      u.dz[2] = dc * i * (1 - g * g);
      u.dstate[c] = dc * f;
    }
  }
};

// ---- general cells: activations, clipping, peepholes and the coupled gate of ONNX, chosen at run time ----------------------
//
// Their tape holds what enters the activations: clipping and slopes cannot be read off the results.

// h = f(z)
struct RnnGeneral : CellDefaults {
  static constexpr bool general = true, noisy = true;
  static constexpr int gates = 1, tape = 1;
  static constexpr Slots slots{1};
  static constexpr Phase phase[] = {{0, 1, 0, 1}};

  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    u.tape[0] = u.z[0];
    u.out = activate(u.options->activation[0], u.options->clip, u.z[0]);
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    u.dz[0] = u.dout * activate_with_slope(u.options->activation[0], u.options->clip, u.tape[0]).slope;
  }
};

// r, z = f(.);  n = g(W_in x + b_in + r * (W_hn h_prev + b_hn));  h = (1 - z) n + z h_prev
struct GruGeneral : Gru {
  static constexpr bool general = true, noisy = true;
  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    const CellOptions& o = *u.options;
    const V r = activate(o.activation[0], o.clip, u.z[0]), z = activate(o.activation[0], o.clip, u.z[1]);
    const V into_n = fma(r, u.z[2], u.x_side), n = activate(o.activation[1], o.clip, into_n);
    u.out = fma(z, u.h_prev - n, n);
    u.tape[0] = u.z[0], u.tape[1] = u.z[1], u.tape[2] = into_n, u.tape[3] = u.z[2];
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    const CellOptions& o = *u.options;
    const Activated<V> r = activate_with_slope(o.activation[0], o.clip, u.tape[0]),
                       z = activate_with_slope(o.activation[0], o.clip, u.tape[1]),
                       n = activate_with_slope(o.activation[1], o.clip, u.tape[2]);
    const V dn = u.dout * (1 - z.y) * n.slope;
    u.dz[0] = dn * r.y;
    u.dz[1] = dn * u.tape[3] * r.slope;
    u.dz[2] = u.dout * (u.h_prev - n.y) * z.slope;
    u.dz[3] = dn;
    u.carry = u.dout * z.y;
  }
};

// r, z = f(.);  n = g(W_in x + b_in + W_hn (r * h_prev) + b_hn);  h = (1 - z) n + z h_prev
struct GruOriginalGeneral : GruOriginal {
  static constexpr bool general = true, noisy = true;
  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    const CellOptions& o = *u.options;
    if constexpr (p == 0) {
      u.tape[0] = u.z[0], u.tape[1] = u.z[1];
      u.out = activate(o.activation[0], o.clip, u.z[0]) * u.h_prev;
    } else {
      const V z = activate(o.activation[0], o.clip, u.tape[1]), n = activate(o.activation[1], o.clip, u.z[0]);
      u.tape[2] = u.z[0];
      u.out = fma(z, u.h_prev - n, n);
    }
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    const CellOptions& o = *u.options;
    if constexpr (p == 0) {
      const Activated<V> z = activate_with_slope(o.activation[0], o.clip, u.tape[1]),
                         n = activate_with_slope(o.activation[1], o.clip, u.tape[2]);
      u.dz[1] = u.dout * (u.h_prev - n.y) * z.slope;
      u.dz[2] = u.dout * (1 - z.y) * n.slope;
      u.carry = u.dout * z.y;
    } else {  // dout = d(r * h_prev)
      const Activated<V> r = activate_with_slope(o.activation[0], o.clip, u.tape[0]);
      u.dz[0] = u.dout * u.h_prev * r.slope;
      u.carry = fma(u.dout, r.y, u.carry);
    }
  }
};

// i, f = f(. + p c_prev), or f = 1 - i;  g = g(.);  c = f c_prev + i g;  o = f(. + p c);  h = o h(c)  (Gers and Schmidhuber 2000)
struct LstmGeneral : Lstm {
  static constexpr bool general = true, noisy = true;
  static constexpr Slots slots{7, 0, 0, 3};  // the last three: the gradients of the peepholes
  static constexpr Phase phase[] = {{0, 4, 0, 7}};

  template <int p, class V> static FASTRNN_FN void forward(Unit<V>& u) {
    const CellOptions& o = *u.options;
    const V into_i = seen(o, u.vector[0], u.prev[c], u.z[0]), into_f = seen(o, u.vector[1], u.prev[c], u.z[1]);
    const V i = activate(o.activation[0], o.clip, into_i), g = activate(o.activation[1], o.clip, u.z[2]);
    const V f = o.coupled ? 1 - i : activate(o.activation[0], o.clip, into_f);
    u.next[c] = fma(f, u.prev[c], i * g);
    const V into_o = seen(o, u.vector[2], u.next[c], u.z[3]);
    u.out = activate(o.activation[0], o.clip, into_o) * activate(o.activation[2], o.clip, u.next[c]);
    u.tape[0] = into_i, u.tape[1] = into_f, u.tape[2] = u.z[2], u.tape[3] = into_o;
  }
  template <int p, class V> static FASTRNN_FN void backward(UnitGradient<V>& u) {
    const CellOptions& o = *u.options;
    const Activated<V> i = activate_with_slope(o.activation[0], o.clip, u.tape[0]),
                       g = activate_with_slope(o.activation[1], o.clip, u.tape[2]),
                       out = activate_with_slope(o.activation[0], o.clip, u.tape[3]);
    V next_c = u.next[c];
    if (o.zoneout[c] > 0) {  // which came after the c that h and o saw
      const V kept = o.coupled ? 1 - i.y : activate(o.activation[0], o.clip, u.tape[1]);
      next_c = fma(kept, u.prev[c], i.y * g.y);
    }
    const Activated<V> h = activate_with_slope(o.activation[2], o.clip, next_c);
    u.dz[3] = u.dout * h.y * out.slope;
    const V dc = seen(o, u.dz[3], u.vector[2], fma(u.dout * out.y, h.slope, u.dstate[c]));
    u.dz[2] = dc * i.y * g.slope;
    V f, di = dc * g.y;
    if (o.coupled) {
      f = 1 - i.y;
      di = di - dc * u.prev[c];
      u.dz[1] = V{};
    } else {
      const Activated<V> forget = activate_with_slope(o.activation[0], o.clip, u.tape[1]);
      f = forget.y;
      u.dz[1] = dc * u.prev[c] * forget.slope;
    }
    u.dz[0] = di * i.slope;
    u.dz[4] = u.dz[0] * u.prev[c], u.dz[5] = u.dz[1] * u.prev[c], u.dz[6] = u.dz[3] * next_c;
    u.dstate[c] = seen(o, u.dz[1], u.vector[1], seen(o, u.dz[0], u.vector[0], dc * f));
  }

  // sum + a b, of a peephole.
  template <class V> static FASTRNN_FN V seen(const CellOptions& o, const V& a, const V& b, const V& sum) {
    return o.peephole ? fma(a, b, sum) : sum;
  }
};

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
