// limpid: activations of a layer, GELU, ReLU and SiLU, and their derivatives, along rows.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>

#include "rows.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What an MLP does to every entry of its hidden layer:
///
///     gelu       x Phi(x) = x / 2 (1 + erf(x / sqrt 2))       Hendrycks & Gimpel 2016, arXiv 1606.08415
///     gelu_tanh  x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the same paper's approximation
///     relu       max(x, 0), derivative 0 at 0
///     silu       x / (1 + e^-x), also called swish
///
/// Error in float and double: at most 2 epsilon |x| of the value and 3 epsilon of the derivative
/// (tests/engine/activation_test.cpp). Minus infinity gives 0, plus infinity itself, NaN stays NaN.
enum class Activation { gelu, gelu_tanh, relu, silu };

namespace detail {

/// (a + 4) e^(a^2 / 2) Phi(-a) for 0 <= a <= largest, as a polynomial in (a - 4) / (a + 4): minimax in the relative
/// error by the exchange algorithm in 50 digits (tests/engine/activation.py). Beyond `largest` e^(-a^2 / 2) is 0 here.
template <class S>
struct NormalTail;
template <>
struct NormalTail<float> {  // 7.7e-9
  static constexpr float largest = 13.5F;
  static constexpr int degree = 9;
  static constexpr float poly[degree + 1] = {
      0.755285135477F,    -0.607896606435F,   0.387136883337F,   -0.186522950637F,   0.060404416513F,
      -0.00752839301378F, -0.00351748140361F, 0.00157430346227F, 0.000190582315707F, -0.000126832448832F};
};
template <>
struct NormalTail<double> {  // 2.0e-17
  static constexpr double largest = 38.7;
  static constexpr int degree = 22;
  static constexpr double poly[degree + 1] = {
      0.7552851304157514786411,     -0.6078966419718920440831,   0.3871374007422194002919,
      -0.1865218579596659496238,    0.06039657489067020620251,   -0.007540188966418046899705,
      -0.003479692361683645089305,  0.001630818453022157633233,  0.0001333442492669352597866,
      -0.0002310949015493579734303, -1.907847977332201081136e-6, 0.00003514455858279242357362,
      7.1498800834809966097e-7,     -5.91997538077818941023e-6,  -6.252501123088840575469e-7,
      1.021783447626968363211e-6,   2.6417069656372264036e-7,    -1.564988400006602723722e-7,
      -7.720394424622670460298e-8,  1.600314666227290235513e-8,  1.460000639725040058139e-8,
      -3.189585964703417868983e-10, -1.187407371009341853622e-9};
};

/// An activation and, where it was asked for, its derivative.
template <class P>
struct Activated {
  typename P::V value, slope;
};

/// x held within [-largest, largest]; NaN stays NaN.
template <class P>
LIMPID_INLINE typename P::V within(typename P::V x, typename P::Scalar largest) {
  using V = typename P::V;
  const V low = P::set(-largest), high = P::set(largest), above = P::max(x, low);
  return P::if_less(high, above, high, above);
}

/// 1 / (1 + exp(-z)) without overflow. 1 - logistic(z) is logistic(-z): the difference has no digits left at z = 40.
template <class S>
S logistic(S z) {
  using std::exp;
  if (z > S(0)) return S(1) / (S(1) + exp(-z));
  const S e = exp(z);
  return e / (S(1) + e);
}
/// Both in vectors: sig(z) and sig(-z).
template <class P>
struct Logistic {
  typename P::V on, off;
};
template <class P>
LIMPID_INLINE Logistic<P> logistic_of(const typename P::V& z) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V zero = P::set(S(0)), one = P::set(S(1)), e = P::exp(-P::max(z, -z));
  const V near = one / (one + e), far = e * near;
  return {P::if_less(z, zero, far, near), P::if_less(z, zero, near, far)};
}
/// x sig(w) and its derivative, of w = w(x) with derivative dw; x and w finite.
template <class P, bool Slope>
LIMPID_INLINE Activated<P> times_logistic(typename P::V lowest, typename P::V x, typename P::V w, typename P::V dw) {
  const Logistic<P> sig = logistic_of<P>(w);
  Activated<P> y{lowest * sig.on, P::set(0)};
  if constexpr (Slope) y.slope = sig.on * P::fma(x * sig.off, dw, P::set(1));
  return y;
}

template <class P, Activation A, bool Slope>
LIMPID_INLINE Activated<P> activated(typename P::V x) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V zero = P::set(S(0)), one = P::set(S(1));
  if constexpr (A == Activation::relu) {
    return {P::max(x, zero), P::if_less(zero, x, one, zero)};
  } else if constexpr (P::lanes == 1) {  // any scalar, by its own functions
    using std::erf, std::exp;
    if (x == minus_infinity<S>()) return {zero, zero};
    if (x == -minus_infinity<S>()) return {x, one};
    if constexpr (A == Activation::gelu) {
      const V phi = (one + erf(x * S(0.707106781186547524400844362104849039L))) / S(2);
      return {x * phi, phi + x * exp(-x * x / S(2)) * S(0.398942280401432677939946059934381868L)};
    } else {
      const S c = S(1.59576912160573071175978423973752747L), cubic = S(0.044715L);
      const V w = A == Activation::silu ? x : c * x * (one + cubic * x * x);
      const V dw = A == Activation::silu ? one : c * (one + S(3) * cubic * x * x);
      const V e = exp(w < zero ? w : -w), near = one / (one + e), far = e * near;
      const V sig = w < zero ? far : near;
      // where e is 0, w and dw may have overflown
      return {x * sig, e == zero ? sig : sig * (one + x * (w < zero ? near : far) * dw)};
    }
  } else if constexpr (A == Activation::gelu) {
    using Tail = NormalTail<S>;
    const V c = within<P>(x, Tail::largest), a = P::max(c, -c), four = P::set(S(4));
    const V e = P::exp(P::set(S(-0.5)) * (a * a)), r = one / (a + four), t = (a - four) * r;
    V p = P::set(Tail::poly[Tail::degree]);
    LIMPID_UNROLL(16)
    for (int i = Tail::degree - 1; i >= 0; --i) p = P::fma(p, t, P::set(Tail::poly[i]));
    const V tail = e * (p * r), phi = P::if_less(x, zero, tail, one - tail);
    Activated<P> y{P::max(x, P::set(-Tail::largest)) * phi, zero};
    if constexpr (Slope) y.slope = P::fma(c * e, P::set(S(0.398942280401432677939946059934381868L)), phi);
    return y;
  } else if constexpr (A == Activation::gelu_tanh) {
    constexpr S largest = NormalTail<S>::largest, c1 = S(1.59576912160573071175978423973752747L),
                c3 = S(0.0713548162726008727823087522798635362L);
    const V c = within<P>(x, largest), square = c * c;
    return times_logistic<P, Slope>(P::max(x, P::set(-largest)), c, c * P::fma(square, P::set(c3), P::set(c1)),
                                    P::fma(square, P::set(3 * c3), P::set(c1)));
  } else {
    constexpr S largest = sizeof(S) == 4 ? S(88) : S(709);  // e^-largest is 0
    const V c = within<P>(x, largest);
    return times_logistic<P, Slope>(P::max(x, P::set(-largest)), c, c, one);
  }
}

/// f of whole vectors of the inputs gives those of the outputs; the last ones are filled up with zeros, so that an
/// entry has the same bits wherever it stands in a row. An output may be an input.
template <class P, std::size_t In, std::size_t Out, class F>
LIMPID_INLINE void by_vectors(Index count, const std::array<const typename P::Scalar*, In>& in,
                              const std::array<typename P::Scalar*, Out>& out, const F& f) {
  using S = typename P::Scalar;
  using V = typename P::V;
  std::array<V, In> from;
  Index c = 0;
  for (; c + P::lanes <= count; c += P::lanes) {
    for (std::size_t i = 0; i < In; ++i) from[i] = P::load(in[i] + c);
    const std::array<V, Out> to = f(from);
    for (std::size_t i = 0; i < Out; ++i) P::store(out[i] + c, to[i]);
  }
  if (c == count) return;
  S part[P::lanes];
  for (std::size_t i = 0; i < In; ++i) {
    for (Index l = 0; l < P::lanes; ++l) part[l] = c + l < count ? in[i][c + l] : S(0);
    from[i] = P::load(part);
  }
  const std::array<V, Out> to = f(from);
  for (std::size_t i = 0; i < Out; ++i) {
    P::store(part, to[i]);
    std::copy(part, part + (count - c), out[i] + c);
  }
}

/// f(constant) of the activation that is asked for.
template <class F>
LIMPID_INLINE void with_activation(Activation a, const F& f) {
  using A = Activation;
  switch (a) {
    case A::gelu:
      return f(std::integral_constant<A, A::gelu>());
    case A::gelu_tanh:
      return f(std::integral_constant<A, A::gelu_tanh>());
    case A::relu:
      return f(std::integral_constant<A, A::relu>());
    case A::silu:
      return f(std::integral_constant<A, A::silu>());
  }
}

/// y = act(x), or act(x) o gate where there is a gate; y may be x.
template <class P, class S = typename P::Scalar>
LIMPID_NOINLINE void activate_row(Activation act, const S* x, const std::type_identity_t<S>* gate, S* y, Index count) {
  using V = typename P::V;
  with_activation(act, [&](auto which) {
    constexpr Activation A = decltype(which)::value;
    if (gate)
      by_vectors<P, 2, 1>(count, {x, gate}, {y}, [](const std::array<V, 2>& in) {
        return std::array<V, 1>{activated<P, A, false>(in[0]).value * in[1]};
      });
    else
      by_vectors<P, 1, 1>(count, {x}, {y}, [](const std::array<V, 1>& in) {
        return std::array<V, 1>{activated<P, A, false>(in[0]).value};
      });
  });
}
/// y = act(x) and dx = dy o act'(x) in one pass; dx may be dy.
template <class P, class S = typename P::Scalar>
LIMPID_NOINLINE void activate_backward_row(Activation act, const S* x, const S* dy, S* y, S* dx, Index count) {
  using V = typename P::V;
  with_activation(act, [&](auto which) {
    constexpr Activation A = decltype(which)::value;
    by_vectors<P, 2, 2>(count, {x, dy}, {y, dx}, [](const std::array<V, 2>& in) {
      const Activated<P> a = activated<P, A, true>(in[0]);
      return std::array<V, 2>{a.value, in[1] * a.slope};
    });
  });
}
/// y = act(x) o gate, dx = dy o gate o act'(x), dgate = dy o act(x); dx may be dy.
template <class P, class S = typename P::Scalar>
LIMPID_NOINLINE void activate_gated_backward_row(Activation act, const S* x, const S* gate, const S* dy, S* y, S* dx,
                                                 S* dgate, Index count) {
  using V = typename P::V;
  with_activation(act, [&](auto which) {
    constexpr Activation A = decltype(which)::value;
    by_vectors<P, 3, 3>(count, {x, gate, dy}, {y, dx, dgate}, [](const std::array<V, 3>& in) {
      const Activated<P> a = activated<P, A, true>(in[0]);
      return std::array<V, 3>{a.value * in[1], in[2] * in[1] * a.slope, in[2] * a.value};
    });
  });
}

/// y = x o sig(z); y may be x.
template <class P, class S = typename P::Scalar>
LIMPID_NOINLINE void gate_row(const S* z, const S* x, S* y, Index count) {
  using V = typename P::V;
  by_vectors<P, 2, 1>(count, {z, x}, {y},
                      [](const std::array<V, 2>& in) { return std::array<V, 1>{in[1] * logistic_of<P>(in[0]).on}; });
}
/// y = x o sig(z), dx = dy o sig(z), dz = dy o x o sig'(z) in one pass; dx may be dy.
template <class P, class S = typename P::Scalar>
LIMPID_NOINLINE void gate_backward_row(const S* z, const S* x, const S* dy, S* y, S* dx, S* dz, Index count) {
  using V = typename P::V;
  by_vectors<P, 3, 3>(count, {z, x, dy}, {y, dx, dz}, [](const std::array<V, 3>& in) {
    const Logistic<P> gate = logistic_of<P>(in[0]);
    const V through = in[2] * gate.on;
    return std::array<V, 3>{in[1] * gate.on, through, through * in[1] * gate.off};
  });
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
