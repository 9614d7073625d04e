#include "api/stream.hpp"

#include <cstring>
#include <new>

#include "host/layout.hpp"

namespace fastrnn {
namespace {

constexpr Plan alone{1, 1, true, 0};

// What a stream keeps of one part of its model.
template <class Real> struct Place {
  const Part<Real>* part;
  Direction<Real>* directions;  // (L*D) of a recurrent part
  Rows<Real> y;                 // of all parts but the last, whose is the caller's
  void (*forward)(const Direction<Real>&, const Seat&);  // of a recurrent part
};

template <class Real> class StreamOf final : public Stream {
 public:
  // Lays out everything; with an arena that only counts, nothing is written.
  StreamOf(const Model& model, int64_t batch, int64_t steps, Arena& arena)
      : functions_(table_of<Real>(*model.isa).functions), parts_(model.parts<Real>()), B_(batch) {
    steps_ = steps, causal_ = model.causal;
    places_ = arena.take<Place<Real>>(int64_t(parts_.size()));
    lay_out_schedule(arena);
    int64_t widest = 1, row = 1;
    for (size_t i = 0; i < parts_.size(); i++) {
      const Part<Real>& part = parts_[i];
      Direction<Real>* const directions = part.stacked() ? arena.take<Direction<Real>>(times(part.stack.L, part.stack.D)) : nullptr;
      if (places_) places_[i] = {&part, directions, {}, part.stacked() ? forward_of(part.stack, part.frozen->panels()) : nullptr};
      widest = std::max(widest, part.outputs);
      row = std::max({row, part.outputs, part.stack.H});
      state_size_ = plus(state_size_, part.state_size(B_));
    }
    state_ = arena.take<Real>(state_size_);
    zeros_ = arena.take<Real>(plus(row, 16));
    for (Real*& one : between_) one = arena.take<Real>(times(times(steps, B_), widest));
    if (arena.deals()) std::memset(zeros_, 0, size_t(row + 16) * sizeof(Real)), reset();
    lay_out_parts(arena);
  }

  void run(const void* x, int64_t T, void* y) override {
    const int64_t inputs = parts_[0].takes_ids() ? 1 : parts_[0].inputs, item = parts_[0].takes_ids() ? 8 : sizeof(Real);
    for (int64_t first = 0; first < T; first += steps_) {
      const int64_t n = std::min(steps_, T - first);
      set_length(n);
      piece(static_cast<const char*>(x) + first * B_ * inputs * item, n, static_cast<Real*>(y) + first * B_ * parts_.back().outputs);
    }
  }
  void reset() override { std::memset(state_, 0, size_t(state_size_) * sizeof(Real)); }
  void get_state(void* state) const override { std::memcpy(state, state_, size_t(state_size_) * sizeof(Real)); }
  void set_state(const void* state) override { std::memcpy(state_, state, size_t(state_size_) * sizeof(Real)); }

 private:
  // All sequences of a piece are equally long: the schedule is the batch in its own order.
  void lay_out_schedule(Arena& arena) {
    int64_t *order = arena.take<int64_t>(B_), *active = arena.take<int64_t>(steps_), *offset = arena.take<int64_t>(steps_);
    length_ = arena.take<int64_t>(B_);
    schedule_ = {steps_, B_, order, order, length_, active, offset, {nullptr, 0, 0}};
    if (!arena.deals()) return;
    for (int64_t b = 0; b < B_; b++) order[b] = b, length_[b] = steps_;
    for (int64_t t = 0; t < steps_; t++) active[t] = B_, offset[t] = t * B_;
  }

  // Layers read one of two blocks and write the other; one after the other they work in the same memory.
  void lay_out_parts(Arena& arena) {
    const int64_t scratch = arena.mark();
    int64_t state = 0, turn = 0;
    Rows<Real> x{nullptr, 0, 0};
    for (size_t i = 0; i < parts_.size(); i++) {
      const Part<Real>& part = parts_[i];
      for (int64_t l = 0; part.stacked() && l < part.stack.L; l++) {
        const Rows<Real> y = rows(between_[turn++ % 2], part.outputs);
        for (int side = 0; side < part.stack.D; side++) {
          arena.back_to(scratch);
          const Direction<Real> d = direction(part, l, side, state, x, y, arena);
          if (places_) places_[i].directions[l * part.stack.D + side] = d;
        }
        x = y;
      }
      if (!part.stacked()) x = rows(between_[turn++ % 2], part.outputs);
      if (places_) places_[i].y = x;
      state += part.state_size(B_);
    }
  }
  Direction<Real> direction(const Part<Real>& part, int64_t l, int side, int64_t state, Rows<Real> x, Rows<Real> y, Arena& arena) const {
    const Stack& n = part.stack;
    const int64_t i = l * n.D + side;
    Direction<Real> d{};
    d.schedule = schedule_;
    d.I = n.input_size(l), d.H = n.H, d.P = n.P, d.heads = n.heads;
    d.reverse = side == 1, d.options = n.options[side];
    d.panels = part.frozen->panels()[i];
    d.x = to_read(x), d.y = side_of(y, side * n.P);
    d.zeros = zeros_;
    for (int k = 0; k < part.states(); k++) {
      const int64_t size = B_ * n.state_size(k);
      d.before[k] = d.after[k] = state_ ? state_ + state + i * size : nullptr;
      state += n.L * n.D * size;
    }
    take_forward<Real>(n, alone, steps_ * B_, true, arena, d);
    return d;
  }
  Rows<Real> rows(Real* base, int64_t size) const { return {base, B_ * size, size}; }

  void set_length(int64_t T) {
    if (T == schedule_.T) return;
    schedule_.T = T;
    for (int64_t b = 0; b < B_; b++) length_[b] = T;
    for (size_t i = 0; i < parts_.size(); i++)
      for (int64_t k = 0; places_[i].directions && k < parts_[i].stack.L * parts_[i].stack.D; k++) places_[i].directions[k].schedule.T = T;
  }

  void piece(const void* x, int64_t T, Real* y) {
    Rows<const Real> from{static_cast<const Real*>(x), B_ * parts_[0].inputs, parts_[0].inputs};
    for (size_t i = 0; i < parts_.size(); i++) {
      const Part<Real>& part = parts_[i];
      const Rows<Real> to = i + 1 < parts_.size() ? places_[i].y : rows(y, part.outputs);
      if (part.stacked()) run_stack(places_[i], from, to);
      else if (part.takes_ids()) look_up(part, static_cast<const int64_t*>(x), T * B_, to.base);
      else functions_.linear({part.weight.data(), part.bias.data(), from.base, to.base, T * B_, part.inputs, part.outputs});
      from = to_read(to);
    }
  }
  // An id that is none of the vocabulary's is a row of zeros: there is no time to say so.
  void look_up(const Part<Real>& part, const int64_t* ids, int64_t count, Real* to) const {
    for (int64_t k = 0; k < count; k++) {
      const bool known = ids[k] >= 0 && ids[k] < part.inputs;
      std::memcpy(to + k * part.outputs, known ? part.weight.data() + ids[k] * part.outputs : zeros_, size_t(part.outputs) * sizeof(Real));
    }
  }
  void run_stack(const Place<Real>& place, Rows<const Real> x, Rows<Real> y) {
    const Stack& n = place.part->stack;
    for (int64_t l = 0; l < n.L; l++)
      for (int side = 0; side < n.D; side++) {
        Direction<Real>& d = place.directions[l * n.D + side];
        if (l == 0) d.x = x;
        if (l + 1 == n.L) d.y = side_of(y, side * n.P);
        place.forward(d, seat_);
        d.back ^= d.schedule.T & 1;
      }
  }

  const Functions<Real>& functions_;
  const std::vector<Part<Real>>& parts_;
  int64_t B_;
  Schedule schedule_{};
  int64_t* length_ = nullptr;
  Place<Real>* places_ = nullptr;
  Real *state_ = nullptr, *zeros_ = nullptr, *between_[2] = {};
  Control control_{};
  Barrier barrier_{{}, 1, 0, 0, 0, {}};
  const Seat seat_{0, 1, true, false, &barrier_, &control_};
};

template <class Real> void lay_out(const Model& model, int64_t batch, int64_t steps, Arena& arena, Stream** made) {
  char* const place = arena.take<char>(sizeof(StreamOf<Real>));
  if (place) *made = new (place) StreamOf<Real>(model, batch, steps, arena);
  else StreamOf<Real>(model, batch, steps, arena);
}

}  // namespace

int64_t stream_bytes(const Model& model, int64_t batch, int64_t steps) {
  Arena count(nullptr);
  model.by_dtype([&](auto real) { lay_out<decltype(real)>(model, batch, steps, count, nullptr); });
  return count.most();
}

Stream* make_stream(const Model& model, int64_t batch, int64_t steps, char* block) {
  Arena arena(block);
  Stream* made = nullptr;
  model.by_dtype([&](auto real) { lay_out<decltype(real)>(model, batch, steps, arena, &made); });
  return made;
}

}  // namespace fastrnn
