// What comes before and after the products and the steps: rows brought together, padded, turned, added up. One element for each call of
// an operator(), whatever the thread.
#pragma once
#include "cuda/kernels/steps.hpp"

namespace fastrnn::device {
namespace {

template <class F> __global__ void __launch_bounds__(block_threads, 3) for_each(int64_t count, F f) {
  for (int64_t i = int64_t(blockIdx.x) * block_threads + int64_t(threadIdx.x); i < count; i += int64_t(gridDim.x) * block_threads) f(i);
}

// The rows of n elements of some steps, one token after the other; zeros where a sequence has ended.
template <class Store> struct Gather {
  Rows<const Store> from;
  Store* to;
  Sequences sequences;
  int64_t n, first;  // the token they begin with

  FASTRNN_DEVICE void operator()(int64_t i) const {
    const int64_t token = first + i / n, t = token / sequences.B, b = token % sequences.B;
    const bool runs = !sequences.length || t < sequences.length[b];
    to[i] = runs ? from.at(t, b)[i % n] : Store{};
  }
};
// And back, to rows that exist for running sequences only.
template <class Store> struct Scatter {
  const Store* from;
  Rows<Store> to;
  Sequences sequences;
  int64_t n, first;

  FASTRNN_DEVICE void operator()(int64_t i) const {
    const int64_t token = first + i / n, t = token / sequences.B, b = token % sequences.B;
    if (t < sequences.length[b]) to.at(t, b)[i % n] = from[i];
  }
};

// h of the step before as its products saw it, for the tokens of some steps.
template <class Store, class Real> struct GatherBefore {
  Rows<const Store> y;
  const Real* start;  // (B,n) h of the initial state, or null: zeros
  Store* to;
  Sequences sequences;
  Noise noise;
  bool reverse;
  int64_t n, first;

  FASTRNN_DEVICE void operator()(int64_t i) const {
    const DeviceOrder order(sequences, reverse);
    const int64_t token = first + i / n, t = token / sequences.B, b = token % sequences.B, k = i % n;
    Real h = 0;
    if (order.runs(t, b) && !order.cut_before(t, b)) {
      if (!order.is_first(t, b)) h = widen(y.at(order.before(t), b)[k]);
      else if (start) h = start[b * n + k];
    }
    to[i] = narrow<Store>(order.runs(t, b) ? dropped(noise, t, b, k, h) : h);
  }
};

// Rows of n elements to rows 'pitch' apart, the rest zeros; a null source is zeros.
template <class Store> struct PadRows {
  const Store* from;
  Store* to;
  int64_t n, pitch;

  FASTRNN_DEVICE void operator()(int64_t i) const {
    const int64_t k = i % pitch;
    to[i] = from && k < n ? from[i / pitch * n + k] : Store{};
  }
};

// h (B,n) before the first step, at time t, as its products see it: rows 'pitch' apart, the rest zeros; a null source is zeros.
template <class Store, class Real> struct StartRows {
  const Real* from;
  Store* to;
  Noise noise;
  int64_t t, n, pitch;

  FASTRNN_DEVICE void operator()(int64_t i) const {
    const int64_t b = i / pitch, k = i % pitch;
    to[i] = from && k < n ? narrow<Store>(dropped(noise, t, b, k, from[b * n + k])) : Store{};
  }
};

// (rows,head) of units in heads to whole rows 'pitch' apart, of H elements and more: zeros outside a unit's own head.
template <class Store> struct Spread {
  const Store* from;
  Store* to;
  int64_t H, head, pitch;

  FASTRNN_DEVICE void operator()(int64_t i) const {
    const int64_t row = i / pitch, k = i % pitch - row % H / head * head;
    to[i] = k >= 0 && k < head ? from[row * head + k] : Store{};
  }
};

// (gates,H,P) to (P,gates,pitch): element (u, s, j) is that of gate (s + first) % G, row j, column u.
template <class Store> struct Turn {
  const Store* from;
  Store* to;
  int64_t H, P, pitch;
  int gates, first, of;

  FASTRNN_DEVICE void operator()(int64_t i) const {
    const int64_t j = i % pitch, s = i / pitch % gates, u = i / pitch / gates;
    to[i] = j < H ? from[((s + first) % of * H + j) * P + u] : Store{};
  }
};

// Dropout: what the mask keeps, scaled; zero otherwise, whatever it was.
template <class Store, class Real> struct Drop {
  const Store* from;
  const uint8_t* mask;
  Store* to;
  Real scale;

  FASTRNN_DEVICE void operator()(int64_t i) const { to[i] = mask[i] ? narrow<Store>(widen(from[i]) * scale) : Store{}; }
};

// Masks: 1 with probability 1 - drop. Philox 4x32-10 (Salmon et al. 2011), one counter for four of them.
struct DrawMask {
  uint8_t* mask;
  uint64_t seed;
  int64_t count;
  uint32_t below;  // dropped where the draw is
  bool all;

  FASTRNN_DEVICE void operator()(int64_t i) const {
    uint32_t x[4] = {uint32_t(i), uint32_t(uint64_t(i) >> 32), 0, 0};
    uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; round++) {
      const uint64_t a = uint64_t(0xD2511F53u) * x[0], b = uint64_t(0xCD9E8D57u) * x[2];
      x[0] = uint32_t(b >> 32) ^ x[1] ^ key[0];
      x[1] = uint32_t(b);
      x[2] = uint32_t(a >> 32) ^ x[3] ^ key[1];
      x[3] = uint32_t(a);
      key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
    }
    for (int k = 0; k < 4 && 4 * i + k < count; k++) mask[4 * i + k] = !all && x[k] >= below;
  }
};

// out[i] = the sum of parts[s][i], (shares,n,m), in their order; added to what out holds where 'add' is set. 'pitch': of out's rows.
template <class Out, class Real> struct AddUp {
  const Real* parts;
  Out* out;
  int64_t m, pitch, size;
  int shares;
  bool add;

  FASTRNN_DEVICE void operator()(int64_t i) const {
    Out& to = out[i / m * pitch + i % m];
    Real sum = add ? Real(widen(to)) : Real(0);
    for (int s = 0; s < shares; s++) sum += parts[s * size + i];
    to = narrow<Out>(sum);
  }
};

// Sums over a share of the rows of (rows,n), for each column: parts (shares,n).
template <class Store, class Real> struct SumShare {
  const Store* from;
  Real* parts;
  int64_t rows, n;
  int shares;

  FASTRNN_DEVICE void operator()(int64_t i) const {
    const int64_t share = i / n, each = (rows + shares - 1) / shares, first = share * each, end = first + each < rows ? first + each : rows;
    Real sum = 0;
    for (int64_t row = first; row < end; row++) sum += widen(from[row * n + i % n]);
    parts[i] = sum;
  }
};

}  // namespace
}  // namespace fastrnn::device
