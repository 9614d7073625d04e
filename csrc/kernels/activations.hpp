// The activation functions of ONNX and their slopes, chosen at run time by cells that let the user choose.
//
// sigmoid and tanh, which nearly all take, run inline on bundles; the rest, out of line, vector by vector.
#pragma once
#include "kernels/structs.hpp"
#include "kernels/vec.hpp"

namespace fastrnn::FASTRNN_ISA {
namespace {

#ifdef __CUDACC__
#define FASTRNN_RARE __device__ __noinline__
#else
#define FASTRNN_RARE __attribute__((noinline))
#endif

// f(x) and df/dx.
template <class V> struct Activated {
  V y, slope;
};

// e^x - 1 for x <= 0, small x with their relative accuracy.
template <class V> FASTRNN_FN V exp_minus_one_of_negative(V x) {
  V power, f, q;
  exp_parts<true>(at_least(x, -Exp2<typename Lanes<V>::Real>::sigmoid_limit), 1, power, f, q);
  return fma(power, f * q, power - 1);
}

// log(1 + x) for 0 <= x <= 1 by the series of 2 artanh(x / (2 + x)), whose argument is at most 1/3.
template <class V> FASTRNN_FN V log_of_one_plus(const V& x) {
  using Real = typename Lanes<V>::Real;
  constexpr int terms = sizeof(Real) == 4 ? 8 : 17;
  const V s = divide(x, x + 2), square = s * s;
  V sum = splat<V>(Real(1) / (2 * terms - 1));
#pragma GCC unroll 17
  for (int k = terms - 2; k >= 0; k--) sum = fma(sum, square, splat<V>(Real(1) / (2 * k + 1)));
  return 2 * s * sum;
}

// log(1 + e^x).
template <class V> FASTRNN_FN V softplus(const V& x) { return at_least(x, 0) + log_of_one_plus(exp_of_negative(-1 * magnitude(x))); }
// log(sigmoid(x)), far below zero too.
template <class V> FASTRNN_FN V log_sigmoid(const V& x) { return -1 * softplus(-1 * x); }

template <class V> FASTRNN_RARE Activated<V> rare_activation(ActivationKind kind, typename Lanes<V>::Real alpha,
                                                             typename Lanes<V>::Real beta, V x) {
  const V zero{}, one = splat<V>(1), steep = splat<V>(alpha);
  switch (kind) {
    case ActivationKind::relu: return {relu(x), pass_positive(x, one)};
    case ActivationKind::affine: return {fma(steep, x, splat<V>(beta)), steep};
    case ActivationKind::leaky_relu: return {x < 0 ? alpha * x : x, x <= 0 ? steep : one};
    case ActivationKind::thresholded_relu: return {x <= alpha ? zero : x, x <= alpha ? zero : one};
    case ActivationKind::scaled_tanh: {
      const V t = tanh(beta * x);
      return {alpha * t, alpha * beta * (1 - t * t)};
    }
    case ActivationKind::hard_sigmoid: {
      const V y = fma(steep, x, splat<V>(beta));
      return {at_most(at_least(y, 0), 1), y <= 0 ? zero : y >= 1 ? zero : steep};
    }
    case ActivationKind::elu: {
      const V em1 = exp_minus_one_of_negative(at_most(x, 0));
      return {x < 0 ? alpha * em1 : x, x <= 0 ? alpha * (em1 + 1) : one};
    }
    case ActivationKind::softsign: {
      const V below = 1 + magnitude(x);  // its reciprocal may be subnormal, which is zero here
      return {x / below, (1 / below) * (1 / below)};
    }
    case ActivationKind::softplus: return {softplus(x), sigmoid(x)};
    default: return {x, one};  // sigmoid and tanh never come here
  }
}

// x as it enters an activation: within +-clip.
template <class V> FASTRNN_FN V clipped(const V& x, double clip) {
  using Real = typename Lanes<V>::Real;
  return at_most(at_least(x, Real(-clip)), Real(clip));
}
template <class V> FASTRNN_FN V pass_unclipped(V x, typename Lanes<V>::Real clip, V slope) {
  return x > clip ? V{} : x < -clip ? V{} : slope;
}
template <class V, int M>
FASTRNN_FN Bundle<V, M> pass_unclipped(const Bundle<V, M>& x, typename Lanes<V>::Real clip, const Bundle<V, M>& slope) {
  return map([clip](V a, V b) { return pass_unclipped(a, clip, b); }, x, slope);
}

template <class V> FASTRNN_FN Activated<V> chosen(const Activation& a, const V& x) {
  using Real = typename Lanes<V>::Real;
  return rare_activation<V>(a.kind, Real(a.alpha), Real(a.beta), x);
}
template <class V, int M> FASTRNN_FN Activated<Bundle<V, M>> chosen(const Activation& a, const Bundle<V, M>& x) {
  Activated<Bundle<V, M>> all;
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    const Activated<V> one = chosen(a, x.v[m]);
    all.y.v[m] = one.y, all.slope.v[m] = one.slope;
  }
  return all;
}

// f of the clipped x.
template <class V> FASTRNN_FN V activate(const Activation& a, double clip, const V& x) {
  const V within = clipped(x, clip);
  if (a.kind == ActivationKind::sigmoid) return sigmoid(within);
  if (a.kind == ActivationKind::tanh) return tanh(within);
  return chosen(a, within).y;
}
// The same with its slope in x, which is zero where x was clipped.
template <class V> FASTRNN_FN Activated<V> activate_with_slope(const Activation& a, double clip, const V& x) {
  const V within = clipped(x, clip);
  Activated<V> f;
  if (a.kind == ActivationKind::sigmoid) {
    f.y = sigmoid(within);
    f.slope = f.y * (1 - f.y);
  } else if (a.kind == ActivationKind::tanh) {
    f.y = tanh(within);
    f.slope = 1 - f.y * f.y;
  } else {
    f = chosen(a, within);
  }
  f.slope = pass_unclipped(x, typename Lanes<V>::Real(clip), f.slope);
  return f;
}

}  // namespace
}  // namespace fastrnn::FASTRNN_ISA
