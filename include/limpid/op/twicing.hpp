// limpid: twicing attention, (2A - A^2) V: what smoothing takes away is smoothed once more and put back.
// SPDX-License-Identifier: MIT
#pragma once

#include "recurrence.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

struct TwicingOptions {
  Index order = 1;   ///< how often the residual is added; 1 is the paper's, 0 is the plain map
  double alpha = 1;  ///< how much of it; 1 is the paper's
};

/// Twicing over any family of scores; see twicing().
template <class Score>
struct Twicing : OverScores<Score> {
  Index order = 1;
  double alpha = 1;
  using OverScores<Score>::score;
  using OverScores<Score>::name;

  template <class T>
  using Args = typename Score::template Args<T>;
  template <class T>
  using Keep = detail::RecurrenceKeep<T>;

  static constexpr bool needs_whole_map = true;
  Index steps() const { return order; }
  template <class In>
  void check(const Dims& dims, const In& head) const {
    detail::check_square(name, dims);
    detail::check_steps(name, "order", order);
    using S = typename decltype(In::q)::Scalar;
    detail::check_factor<S>(name, "alpha", alpha);
    if (!detail::stays_in_range(recurrence<S>()))
      detail::raise(std::string(name) + ": alpha is " + detail::number_text(alpha) + " and order " +
                    detail::text_of(order) + ", wanted (1 - alpha)^order to be at most " +
                    detail::number_text(detail::largest_factor<S>()) + " in size");
    score.check(name, dims, head);
  }
  /// u_0 = A V, u_t = u_{t-1} + alpha A (V - u_{t-1}), out = u_order.
  template <class S>
  detail::Recurrence<S> recurrence() const {
    detail::Recurrence<S> r;
    r.steps = order, r.smooth_first = true;
    r.s = S(alpha), r.x = S(1), r.y = S(-1), r.z = S(1);
    return r;
  }

  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    const auto prepared = score.prepare(pass.arena(), in, pass.at);
    detail::recurrence_forward<P>(pass.context, recurrence<S>(), prepared.scores, detail::Lse<const S>(),
                                  engine::lse_of(keep.lse), in.v, out, keep.kept);
  }

  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    MapBackward map(pass, score, in, engine::lse_of(keep.lse), grad);
    detail::RecurrenceGradient<S> none;
    detail::recurrence_backward<P>(pass, recurrence<S>(), map.plan, in.v, keep.kept, dout, grad.v, none);
    map.deliver();
  }

  /// out = E x and out = E^T g, E the effective map.
  template <class P, class S = typename P::Scalar>
  void apply(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> x, MutView<S> out) const {
    const auto prepared = score.prepare(pass.arena(), in, pass.at);
    detail::recurrence_forward<P>(pass.context, recurrence<S>(), prepared.scores, engine::lse_of(keep.lse),
                                  detail::Lse<S>(), x, out, MutView<S>());
  }
  template <class P, class S = typename P::Scalar>
  void apply_transposed(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> g,
                        MutView<S> out) const {
    const auto prepared = score.prepare(pass.arena(), in, pass.at);
    detail::recurrence_transposed<P>(pass.context, recurrence<S>(), prepared.scores, engine::lse_of(keep.lse), g, out);
  }
  /// A block of E, from (q0, k0), as large as out.
  template <class P, class S = typename P::Scalar>
  void map_block(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0, Index k0,
                 MutView<S> out) const {
    const auto prepared = score.prepare(pass.arena(), in, pass.at);
    detail::recurrence_block<P>(pass.context, recurrence<S>(), prepared.scores, engine::lse_of(keep.lse), q0, k0, out);
  }
};

/// Twicing attention (Abdullaev & Nguyen 2025, "Transformer Meets Twicing", arXiv 2503.00687) over any square map A:
///
///     u_0 = A V,   u_t = u_{t-1} + alpha A (V - u_{t-1}),   out = u_order = E V      order 1, alpha 1: E = 2A - A^2
///
/// The residual V - A V, which plain attention drops, is smoothed by the same map and added back. order and alpha are
/// our extension; at alpha = 1, E = I - (I - A)^(order + 1). Backward (ours), order 1, alpha 1, G = dout, R = V - A V:
///
///     H = A^T G,   dV = H + A^T (G - H),   dA = [G, G - H] [R, V]^T,   delta_i = <g_i, out_i> - <h_i, (A V)_i>
///
/// and dS, dq, dk and the rest as the map's own. Write twicing(nlm()), twicing(softmax(causal())) or, the same,
/// twicing(causal()), with options as in twicing(causal(), {.order = 2}). Inputs are the map's, with n = m.
/// The effective map E (map_block, map_left, map_right, Call::map) has rows that sum to 1 where no row of A is empty,
/// but entries of either sign; relevance sent down with backward is that of A.
///
/// Kept: the row log-sum-exp, u_0 and every A (V - u_t). Cost: order + 1 times plain forward (4 n^2 (d + dv) flop at
/// order 1); backward order sweeps of A^T and a pull_back of inner width (order + 1) dv, which does one more: 16
/// against 10 n^2 d flop at order 1 and dv = d. Memory O(n (d + (order + 1) dv)). Golden cases: double within 1e-15 of
/// the largest entry, float within 3 times the error of the plain float formula. Throws ShapeError where shapes do not
/// fit, n and m differ, order is negative or above 2^20, or alpha so large that (1 - alpha)^order overflows.
///
/// Limits: eigenvalues go l -> 1 - (1 - l)^2. This sharpens a spectrum in [0, 1], as nlm() with k = q has; a softmax
/// map may have negative eigenvalues, and these grow, at worst from -1 to -3.
template <class Score>
auto twicing(const Softmax<Score>& map, TwicingOptions options = {}) {
  return Twicing<Score>{{map.score, "twicing"}, options.order, options.alpha};
}
/// twicing(softmax(modifiers), options)
template <class M>
requires(!std::is_same_v<M, TwicingOptions>) auto twicing(const M& modifiers, TwicingOptions options = {}) {
  return twicing(softmax(modifiers), options);
}
inline auto twicing(TwicingOptions options = {}) { return twicing(softmax(), options); }

}  // namespace LIMPID_ABI
}  // namespace limpid
