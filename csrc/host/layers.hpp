// What a stack of layers is on every device: its sizes, its tape, and what lies between its layers.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "host/memory.hpp"
#include "kernels/structs.hpp"

namespace fastrnn {

struct Layered {
  Cell cell;
  int64_t I, H, P, L;  // P == H without a projection
  int D;
  CellOptions options[2] = {};  // of each direction, for general cells
  int64_t heads = 1;            // blocks on the diagonal of weight_hh, which divide H; more than one without a projection

  int64_t input_size(int64_t layer) const { return layer ? D * P : I; }
  int64_t state_size(int state) const { return state ? H : P; }
};

// Store: what activations are kept as. Real: what is computed in, and states.
// What forward saves for backward: per layer and direction the cell's tape, per layer but the last its output.
template <class Store, class Real> struct Saved {
  struct Side {
    Store* gates;        // the tape of each token and unit, in an order of the device's own
    States<Real> trail;  // [token](H) of the states beside h
    Store* inner;        // [token](H) what the second phase multiplied
    // Of a normalised cell, [token](G*H): W_ih x normalised, W_hh h_prev as it is or, on a GPU, normalised; and [token](moment_count).
    Store *inputs, *products;
    Real* moments;
  };
  std::vector<Side> sides;      // (L*D)
  std::vector<Store*> outputs;  // (L-1) [token](D*P)
  std::vector<Store*> dropped;  // (L-1) the same after dropout, or null
};

// Facts: what the device's list says of the cell. units: those that it keeps the gates of, H or more.
template <class Store, class Real, class Facts>
Saved<Store, Real> lay_out_tape(const Facts& cell, const Layered& n, int64_t units, int64_t tokens, bool dropout, Arena& arena) {
  const int64_t rows = times(tokens, n.H), products = times(rows, cell.gates), output = times(tokens, times(n.D, n.P));
  Saved<Store, Real> saved;
  for (int64_t i = 0; i < n.L * n.D; i++) {
    typename Saved<Store, Real>::Side side{};
    if (cell.tape) side.gates = arena.take<Store>(times(times(tokens, units), cell.tape));
    for (int state = 1; state < cell.states; state++) side.trail[state] = arena.take<Real>(rows);
    if (cell.phases == 2) side.inner = arena.take<Store>(rows);
    if (cell.norms) {
      side.inputs = arena.take<Store>(products), side.products = arena.take<Store>(products);
      side.moments = arena.take<Real>(times(tokens, int(moment_count)));
    }
    saved.sides.push_back(side);
  }
  for (int64_t l = 0; l + 1 < n.L; l++) {
    saved.outputs.push_back(arena.take<Store>(output));
    saved.dropped.push_back(dropout ? arena.take<Store>(output) : nullptr);
  }
  return saved;
}

// Room for a tape, of any number of tokens: so many bytes for each of them, and so many more. lay_out(tokens, arena) is its layout.
template <class LayOut> std::pair<int64_t, int64_t> room_of_tape(const LayOut& lay_out) {
  constexpr int64_t tokens = Arena::alignment;  // so that no array is rounded up
  Arena arena(nullptr);
  lay_out(tokens, arena);
  return {(arena.most() + tokens - 1) / tokens, times(Arena::alignment, arena.arrays())};
}

// ---- walks ---------------------------------------------------------------------------------------------------------

// The rows of so many elements that lie between two layers, where two of them take turns.
template <class Store> struct Between {
  Store* at[2] = {};
  void take(const Layered& n, int64_t elements, Arena& arena) {
    for (int i = 0; i < std::min<int64_t>(n.L - 1, 2); i++) at[i] = arena.take<Store>(elements);
  }
  Store* of(int64_t layer) const { return at[layer % 2]; }
};

template <class T> Rows<const T> to_read(Rows<T> r) { return {r.base, r.time, r.batch, r.starts, r.place}; }
template <class T> Rows<T> side_of(Rows<T> r, int64_t offset) {
  if (r.base) r.base += offset;
  return r;
}

// From the first layer to the last. lie(base): rows of tokens as they lie between layers; tokens: how many. Call has x and y, of the whole
// stack, and 'saved', or null. layer(l, x, y) may take from the arena what it gives back at its end.
template <class Call, class Lie, class Layer>
void walk_forward(const Layered& n, const Call& call, bool dropout, int64_t tokens, Arena& arena, const Lie& lie, const Layer& layer) {
  Between<typename Call::Stored> between;
  if (!call.saved) between.take(n, times(tokens, n.D * n.P), arena);
  const int64_t mark = arena.mark();
  auto x = call.x;
  for (int64_t l = 0; l < n.L; l++) {
    arena.back_to(mark);
    const bool top = l + 1 == n.L;
    const auto y = top ? call.y : lie(call.saved ? call.saved->outputs[size_t(l)] : between.of(l));
    layer(l, x, y);
    if (!top) x = to_read(dropout ? lie(call.saved->dropped[size_t(l)]) : y);
  }
}

// And back: layer(l, x, y, dy, dx). first: the gradient of the whole stack's x.
template <class Call, class Dx, class Lie, class Layer> void walk_backward(const Layered& n, const Call& call, const Dx& first,
                                                                           bool dropout, int64_t tokens, Arena& arena, const Lie& lie,
                                                                           const Layer& layer) {
  const auto& forward = call.forward;
  Between<typename Call::Stored> between;
  between.take(n, times(tokens, n.D * n.P), arena);
  const int64_t mark = arena.mark();
  for (int64_t l = n.L - 1; l >= 0; l--) {
    arena.back_to(mark);
    const auto& saved = *forward.saved;
    const bool top = l + 1 == n.L;
    const auto x = l == 0 ? forward.x : to_read(lie(dropout ? saved.dropped[size_t(l - 1)] : saved.outputs[size_t(l - 1)]));
    const auto y = top ? forward.y : lie(saved.outputs[size_t(l)]);
    const auto dy = top ? call.dy : to_read(lie(between.of(l)));
    layer(l, x, y, dy, l ? lie(between.of(l - 1)) : first);
  }
}

// Of states (L*D,B,size), those of direction i.
template <class T> States<T> states_of_side(const Layered& n, int states, const States<T>& all, int64_t i, int64_t B) {
  States<T> found{};
  for (int state = 0; state < states; state++)
    if (all[state]) found[state] = all[state] + i * B * n.state_size(state);
  return found;
}

}  // namespace fastrnn
