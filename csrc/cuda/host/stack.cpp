#include "cuda/host/run.hpp"

namespace fastrnn::cuda {

namespace {

// ---- forward -------------------------------------------------------------------------------------------------------

template <class K> struct ForwardRun : Run<K> {
  using Base = Run<K>;
  using Store = typename Base::Store;
  using Real = typename Base::Real;
  using Base::arena, Base::B, Base::call, Base::cell, Base::gpu, Base::H, Base::k, Base::n, Base::P, Base::runs, Base::stream, Base::T;

  Sweep<Store, Real> sweep;
  Rows<const Store> x;
  Store* gathered[2];
  Real* z[2];
  int64_t chunk;

  // As it stands, if its rows are whole pieces apart.
  Padded<const Store> padded_weight(const Store* w, int64_t rows, int64_t size) {
    if (size % piece<Store> == 0 && (w == nullptr || whole(w))) return {w, size};
    Store* const to = arena.template take<Store>(times(rows, padded<Store>(size)));
    if (runs) k.pad(w, to, rows, size, padded<Store>(size), stream);
    return {to, padded<Store>(size)};
  }

  void prepare(Side<Store, Real>& s, int64_t l, int d, Rows<Store> y) {
    const int64_t i = l * n.D + d, h_row = padded<Store>(P), inner_row = padded<Store>(H);
    const Parameters<const Store> w = call.weights ? call.weights[i] : Parameters<const Store>{};
    s = {};
    s.reverse = d == 1;
    s.options = n.options[d];
    s.vectors = w[weight_peephole];
    s.weight[0] = n.heads > 1 ? this->whole_rows(w[weight_hh], padded<Store>(P)) : padded_weight(w[weight_hh], this->GH, P);
    s.weight[1] = cell.projected ? padded_weight(w[weight_hr], P, H) : s.weight[0];
    s.bias_ih = w[bias_ih], s.bias_hh = w[bias_hh];
    s.recurrent = arena.template take<Store>(times(2 * B, h_row));
    if (cell.phases == 2) s.inner = arena.template take<Store>(times(B, inner_row));
    if (cell.phases == 2 && !cell.projected) s.kept = arena.template take<Real>(times(times(B, cell.tape), H));
    if (cell.norms) s.norms = this->norms_of(w), s.products = arena.template take<Real>(times(B, this->GH));
    s.y = side_of(y, d * P);
    if (call.saved) {
      const auto& saved = call.saved->sides[size_t(i)];
      s.tape_gates = saved.gates, s.trail = saved.trail, s.tape_inner = saved.inner;
      s.norm_tape = {saved.inputs, saved.products, saved.moments};
    }
    if (!runs) return;
    const States<const Real> before = this->states_of(call.before, i);
    s.state = this->states_of(call.after, i);
    s.noise = call.noise.of(i);
    this->zero(s.recurrent, 2 * B * h_row * int64_t(sizeof(Store)));
    k.pad_state(before[0], s.recurrent, T ? s.noise : Noise{}, s.reverse ? T - 1 : 0, B, P, h_row, stream);
    if (s.inner) this->zero(s.inner, B * inner_row * int64_t(sizeof(Store)));
    this->start(s.state, before);
  }

  // W_ih x of steps [first, last).
  void project(int64_t l, int d, int64_t first, int64_t last) {
    const int64_t I = n.input_size(l), from = this->lowest(d == 1, first, last) * B, count = (last - first) * B;
    const auto rows = this->matrix(x, I, false, gathered[d], from, count);
    sweep.side[d].z = z[d], sweep.side[d].z_first = from;
    const Store* const w = call.weights ? call.weights[l * n.D + d][weight_ih] : nullptr;
    this->multiply({{rows.base, rows.pitch, 1}, {w, I, 1}, count, I, this->GH, this->GH, false}, z[d], true);
    if (!cell.norms) return;
    const NormTape<Store, Real>& tape = sweep.side[d].norm_tape;
    k.normalise(z[d], tape.inputs ? tape.inputs + from * this->GH : nullptr, tape.moments ? tape.moments + from * moment_count : nullptr,
                count, this->GH, stream);
  }

  void layer(int64_t l, Rows<Store> y) {
    const int64_t I = n.input_size(l);
    sweep.sequences = call.sequences, sweep.H = H, sweep.P = P, sweep.head = this->head();
    for (int d = 0; d < n.D; d++) prepare(sweep.side[d], l, d, y);
    chunk = chunk_steps(T, B, times(this->GH, sizeof(Real) * n.D), gpu.chunk_bytes);
    for (int d = 0; d < n.D; d++) {
      z[d] = arena.template take<Real>(times(times(chunk, B), this->GH));
      gathered[d] = this->is_matrix(x, I) ? nullptr : arena.template take<Store>(times(times(chunk, B), I));
    }
    const auto stay = this->stay(cell.resident_forward, chunk);
    if (!runs) return;
    for (int64_t first = 0; first < T; first += chunk) {
      const int64_t last = std::min(first + chunk, T);
      for (int d = 0; d < n.D; d++) project(l, d, first, last);
      if (stay.plan.groups) {
        this->run_steps(cell.resident_forward, stay, sweep, first, last);
        continue;
      }
      bool chained = false;  // the first step must see what came before it
      for (int64_t step = first; step < last; step++)
        for (int p = 0; p < cell.launches; p++) {
          StepLaunch how = this->step_launch(this->phase_units(p, true));
          how.chained = chained;
          cell.forward(sweep, step, p, how, stream);
          chained = gpu.chains;
        }
    }
  }

  void run() {
    this->workspace = arena.template take<char>(workspace_bytes);
    walk_forward(n, call, call.masks, this->tokens, arena, this->lie(), [&](int64_t l, const auto& from, const auto& y) {
      x = from;
      layer(l, y);
      if (l + 1 < n.L) drop(l);
    });
  }
  void drop(int64_t l) {
    if (!call.masks || !runs) return;
    const int64_t output = times(this->tokens, this->width);
    k.drop(call.saved->outputs[size_t(l)], call.masks + l * output, call.saved->dropped[size_t(l)], call.scale, output, stream);
  }
};

// ---- backward ------------------------------------------------------------------------------------------------------

template <class K> struct BackwardRun : Run<K> {
  using Base = Run<K>;
  using Store = typename Base::Store;
  using Real = typename Base::Real;
  using Base::arena, Base::B, Base::call, Base::cell, Base::gpu, Base::GH, Base::H, Base::k, Base::n, Base::P, Base::runs, Base::SH,
      Base::stream, Base::T;
  const BackwardCall<Store, Real>& back;

  // Weight gradients are added up in Real over the chunks; where that is Store, in place.
  struct SideScratch {
    Real *dih, *dhh, *dhr, *sums;
    Store *x, *before;
  };
  BackSweep<Store, Real> sweep;
  SideScratch scratch[2];
  Rows<const Store> x;
  Store* dx;  // (T,B,I) of the layer at hand
  int64_t chunk;
  static constexpr int sum_shares = 64;
  static constexpr bool in_place = sizeof(Store) == sizeof(Real);

  BackwardRun(const K& kernels, const Network& network, const Gpu& g, const BackwardCall<Store, Real>& b, Arena& a, cudaStream_t s)
      : Base{kernels, network, g, b.forward, a, s}, back(b) {}

  // For phase p the gates of the hidden side in the order of the slots: slot s belongs to gate (s + shift) % G.
  int shift() const { return cell.gates - cell.slots.turn; }

  void prepare(BackSide<Store, Real>& s, int64_t l, int d, Rows<const Store> y, Rows<const Store> dy) {
    const int64_t i = l * n.D + d, inner_row = padded<Store>(H), wide = times(cell.ring, inner_row);
    const Parameters<const Store> w = call.weights ? call.weights[i] : Parameters<const Store>{};
    const bool top = l + 1 == n.L;
    const Store* const hh = n.heads > 1 ? this->whole_rows(w[weight_hh], P).base : w[weight_hh];
    s = {};
    s.reverse = d == 1;
    s.options = n.options[d];
    s.vectors = w[weight_peephole];
    for (int p = 0; p < cell.phases; p++) {
      const PhaseFacts& ph = cell.phase[p];
      const bool projects = cell.projected && p == 1;
      const int64_t row = projects ? padded<Store>(P) : times(ph.gates, inner_row), rows = projects ? H : P;
      Store* const to = arena.template take<Store>(times(rows, row));
      if (runs && projects) k.turn(w[weight_hr], to, P, H, row, 1, 0, 1, stream);
      else if (runs) k.turn(hh, to, H, P, inner_row, ph.gates, ph.hidden_slot + shift(), cell.gates, stream);
      s.weight[p] = {to, row};
    }
    s.recurrent = arena.template take<Store>(times(2 * B, wide));
    if (cell.projected) s.projected = arena.template take<Store>(times(B, padded<Store>(P)));
    if (cell.norms)
      s.norms = this->norms_of(w), s.plain = arena.template take<Real>(times(B, times(cell.slots.count - cell.slots.plain, H)));
    s.y = side_of(y, d * P), s.dy = side_of(dy, d * P);
    if (top) s.hidden = side_of(back.hidden, d * P);
    s.dgates = arena.template take<Store>(times(times(chunk, B), SH));
    if (cell.projected) s.dprojected = arena.template take<Store>(times(times(chunk, B), P));
    if (!runs) return;
    const auto& saved = call.saved->sides[size_t(i)];
    s.tape_gates = saved.gates, s.trail = saved.trail, s.norm_tape = {saved.inputs, saved.products, saved.moments};
    s.before = this->states_of(call.before, i);
    s.noise = call.noise.of(i);
    s.dstate = this->states_of(back.dbefore, i);
    this->zero(s.recurrent, 2 * B * wide * int64_t(sizeof(Store)));
    if (s.projected) this->zero(s.projected, B * padded<Store>(P) * int64_t(sizeof(Store)));
    this->start(s.dstate, this->states_of(back.dafter, i));
  }

  Real* accumulator(Store* gradient, int64_t count) {
    if constexpr (in_place) return gradient;
    return arena.template take<Real>(count);
  }
  void prepare_gradients(int64_t l, int d) {
    const int64_t I = n.input_size(l), rows = times(chunk, B);
    const Parameters<Store> g = back.gradients ? back.gradients[l * n.D + d] : Parameters<Store>{};
    SideScratch& s = scratch[d];
    s = {};
    s.dih = accumulator(g[weight_ih], times(GH, I)), s.dhh = accumulator(g[weight_hh], times(GH, this->columns_hh));
    if (cell.projected) s.dhr = accumulator(g[weight_hr], times(P, H));
    s.sums = arena.template take<Real>(SH);
    if (!this->is_matrix(x, I) || call.sequences.length) s.x = arena.template take<Store>(times(rows, I));
    s.before = arena.template take<Store>(times(rows, P));
  }

  // dweight_hh, a run of gates whose slots lie side by side at a time; the second phase's gates multiplied another operand.
  void recurrent_gradient(int d, int64_t count, const Store* inner, bool add) {
    for (int p = 0; p < (cell.projected ? 1 : cell.phases); p++) {
      const PhaseFacts& ph = cell.phase[p];
      const Store* const operand = p == 0 ? scratch[d].before : inner;
      if (n.heads > 1) {
        gradient_of_heads(d, count, operand, ph, add);
        continue;
      }
      for (int gate = ph.first; gate < ph.first + ph.gates;) {
        const int slot = (gate + cell.slots.turn) % cell.gates, run = std::min(ph.first + ph.gates - gate, cell.gates - slot);
        this->multiply({{sweep.side[d].dgates + slot * H, 1, SH}, {operand, 1, P}, run * H, count, P, P, add},
                       scratch[d].dhh + gate * H * P, true);
        gate += run;
      }
    }
  }

  void gradient_of_heads(int d, int64_t count, const Store* operand, const PhaseFacts& ph, bool add) {
    const int64_t head = this->columns_hh;
    for (int gate = ph.first; gate < ph.first + ph.gates; gate++)
      for (int64_t unit = 0; unit < H; unit += head) {
        const int64_t slot = (gate + cell.slots.turn) % cell.gates;
        this->multiply({{sweep.side[d].dgates + slot * H + unit, 1, SH}, {operand + unit, 1, P}, head, count, head, head, add},
                       scratch[d].dhh + (gate * H + unit) * head, true);
      }
  }

  // What the steps [first, last) give to the gradients, and their dx.
  void gradients(int64_t l, int d, int64_t first, int64_t last, bool add) {
    const int64_t I = n.input_size(l), from = this->lowest(d == 1, first, last) * B, count = (last - first) * B;
    const BackSide<Store, Real>& s = sweep.side[d];
    const SideScratch& to = scratch[d];
    const Store* const of_input = s.dgates + cell.slots.input * H;
    const auto rows = this->matrix(x, I, true, to.x, from, count);
    const auto& saved = call.saved->sides[size_t(l * n.D + d)];
    const Store* const inner = saved.inner ? saved.inner + from * H : nullptr;
    k.gather_before(call.sequences, s.noise, s.reverse, s.y, s.before[0], to.before, P, from, count, stream);
    this->multiply({{of_input, 1, SH}, {rows.base, 1, rows.pitch}, GH, count, I, I, add}, to.dih, true);
    recurrent_gradient(d, count, inner, add);
    if (cell.projected) this->multiply({{s.dprojected, 1, P}, {inner, 1, H}, P, count, H, H, add}, to.dhr, true);
    k.sum_columns(s.dgates, reinterpret_cast<Real*>(this->workspace), to.sums, count, SH, shares_of_sums(), add, stream);
    this->multiply({{of_input, SH, 1}, {call.weights[l * n.D + d][weight_ih], 1, I}, count, GH, I, I, n.D == 2}, dx + from * I, false);
  }
  int shares_of_sums() const {
    return int(std::clamp<int64_t>(workspace_bytes / std::max<int64_t>(1, times(SH, sizeof(Real))), 1, sum_shares));
  }

  void hand_over(const Real* from, Store* to, int64_t count) {
    if (!to || (const void*)from == (const void*)to) return;
    if constexpr (in_place) this->copy(to, from, count * int64_t(sizeof(Store)));
    else k.narrow(from, to, count, stream);
  }
  void finish(int64_t l, int d) {
    const Parameters<Store>& g = back.gradients[l * n.D + d];
    const SideScratch& s = scratch[d];
    hand_over(s.dih, g[weight_ih], GH * n.input_size(l));
    hand_over(s.dhh, g[weight_hh], GH * this->columns_hh);
    if (cell.projected) hand_over(s.dhr, g[weight_hr], P * H);
    const Slots& slots = cell.slots;
    hand_over(s.sums + (cell.norms ? slots.plain + slots.plain_input : slots.input) * H, g[bias_ih], GH);
    hand_over(s.sums + (slots.count - slots.vectors) * H, g[weight_peephole], slots.vectors * H);
    for (int slot = 0; slot < cell.gates; slot++)
      hand_over(s.sums + (slots.plain + slot) * H, g[bias_hh] ? g[bias_hh] + (slot + shift()) % cell.gates * H : nullptr, H);
    if (!cell.norms) return;
    const Real* const gains = s.sums + slots.count * H;
    hand_over(gains, g[weight_norm_hh], GH), hand_over(gains + GH, g[weight_norm_ih], GH);
    if (cell.norms > 1) hand_over(gains + 2 * GH, g[weight_norm_c], H), hand_over(gains - H, g[bias_norm_c], H);
  }

  void steps(int64_t first, int64_t last) {
    bool chained = false;
    for (int64_t step = last - 1; step >= first; step--)
      for (int p = 0; p < cell.launches; p++) {
        StepLaunch how = this->step_launch(this->phase_units(p, false));
        how.chained = chained;
        cell.backward(sweep, step, p, false, how, stream);
        chained = gpu.chains;
      }
  }

  void layer(int64_t l, Rows<const Store> y, Rows<const Store> dy) {
    sweep.sequences = call.sequences, sweep.H = H, sweep.P = P, sweep.head = this->head();
    const int64_t per_token = plus(times(SH + 2 * P, sizeof(Store) * n.D), times(n.input_size(l), sizeof(Store)));
    chunk = chunk_steps(T, B, per_token, gpu.chunk_bytes);
    for (int d = 0; d < n.D; d++) {
      prepare(sweep.side[d], l, d, y, dy);
      prepare_gradients(l, d);
    }
    const auto stay = this->stay(cell.resident_backward, chunk);
    if (!runs) return;
    if (n.D == 2) this->zero(dx, this->tokens * n.input_size(l) * int64_t(sizeof(Store)));  // both directions add, in any order
    int64_t last = T;
    bool add = false;
    do {  // at least once: without a token the gradients are zero
      const int64_t first = std::max<int64_t>(0, last - chunk);
      for (int d = 0; d < n.D; d++) sweep.side[d].first = this->lowest(d == 1, first, last) * B;
      if (stay.plan.groups) this->run_steps(cell.resident_backward, stay, sweep, first, last);
      else steps(first, last);
      for (int d = 0; d < n.D; d++) gradients(l, d, first, last, add);
      add = true;
      last = first;
    } while (last > 0);
    // Its operand are the gate gradients of step 0, which lie where step 1 would look for those of the step after.
    cell.backward(sweep, 1, 0, true, this->step_launch(P), stream);
    for (int d = 0; d < n.D; d++) finish(l, d);
  }

  void run() {
    this->workspace = arena.template take<char>(workspace_bytes);
    const bool direct = !back.dx.starts;
    const Rows<Store> dense = contiguous(direct ? back.dx.base : arena.template take<Store>(times(this->tokens, n.I)), B, n.I);
    walk_backward(n, back, dense, call.masks, this->tokens, arena, this->lie(),
                  [&](int64_t l, const auto& from, const auto& y, const auto& dy, const auto& to) {
                    x = from, dx = to.base;
                    layer(l, to_read(y), dy);
                    const int64_t output = times(this->tokens, this->width);
                    if (runs && l && call.masks) k.drop(dx, call.masks + (l - 1) * output, dx, call.scale, output, stream);
                  });
    if (runs && !direct) k.scatter(call.sequences, dense.base, back.dx, n.I, this->tokens, stream);
  }
};

}  // namespace

// ---- what callers see ----------------------------------------------------------------------------------------------

template <class Store, class Real> Saved<Store, Real> lay_out_tape(const Network& n, int64_t tokens, bool dropout, Arena& arena) {
  return lay_out_tape<Store, Real>(kernels_float32.cell[int(n.cell)], n, n.H, tokens, dropout, arena);
}

template <class K>
void forward(const K& kernels, const Network& n, const Gpu& gpu, const ForwardCall<typename K::Store, typename K::Real>& call, Arena& arena,
             cudaStream_t stream) {
  ForwardRun<K> run{{kernels, n, gpu, call, arena, stream}, {}, {}, {}, {}, 0};
  run.run();
}
template <class K>
void backward(const K& kernels, const Network& n, const Gpu& gpu, const BackwardCall<typename K::Store, typename K::Real>& call,
              Arena& arena, cudaStream_t stream) {
  BackwardRun<K>(kernels, n, gpu, call, arena, stream).run();
}

#define FASTRNN_INSTANTIATE(Store, Real)                                                                                                 \
  template Saved<Store, Real> lay_out_tape(const Network&, int64_t, bool, Arena&);                                                       \
  template void forward(const Kernels<Store, Real>&, const Network&, const Gpu&, const ForwardCall<Store, Real>&, Arena&, cudaStream_t); \
  template void backward(const Kernels<Store, Real>&, const Network&, const Gpu&, const BackwardCall<Store, Real>&, Arena&, cudaStream_t);
FASTRNN_INSTANTIATE(float, float)
FASTRNN_INSTANTIATE(Bfloat16, float)
FASTRNN_INSTANTIATE(Float16, float)
FASTRNN_INSTANTIATE(double, double)

}  // namespace fastrnn::cuda
