// limpid: boosting residuals, the classical schemes that run an attention filter again on a mix of input and estimate.
// SPDX-License-Identifier: MIT
#pragma once

#include "recurrence.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What an estimate u becomes in one step; see boosting().
enum class BoostingScheme { diffusion, l2boost, sos };

struct BoostingOptions {
  BoostingScheme scheme = BoostingScheme::l2boost;
  Index steps = 1;
  bool skip = false;  ///< add V to the result: the residual connection
};

/// Inputs of boosting and their gradients: the map's, then tau and rho, 1 x 1 or H x 1, default 1. rho belongs to sos.
///     limpid::forward(op, {limpid::qkv(q, k, v), tau}, out);
///     limpid::backward(op, {limpid::qkv(q, k, v), tau}, saved, dout, {limpid::grads(dq, dk, dv), dtau});
template <class MapArgs, class T>
struct BoostingArgs : MapArgs {
  T tau{}, rho{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    MapArgs::visit(f, a...);
    f("tau", Role::head, a.tau...);
    f("rho", Role::head, a.rho...);
  }
  static BoostingArgs from_qkv(T q, T k, T v) { return {MapArgs(QKV<T>{q, k, v}), {}, {}}; }
};

/// Boosting over any family of scores; see boosting().
template <class Score>
struct Boosting : OverScores<Score> {
  BoostingOptions options;
  using OverScores<Score>::score;
  using OverScores<Score>::name;

  template <class T>
  using Args = BoostingArgs<typename Score::template Args<T>, T>;
  template <class T>
  using Keep = detail::RecurrenceKeep<T>;

  static constexpr bool needs_whole_map = true;
  Index steps() const { return options.steps; }
  template <class In>
  void check(const Dims& dims, const In& head) const {
    detail::check_square(name, dims);
    detail::check_steps(name, "steps", options.steps);
    detail::check_scalar(name, "tau", head.tau);
    detail::check_scalar(name, "rho", head.rho);
    if (head.rho.given() && options.scheme != BoostingScheme::sos)
      detail::raise(std::string(name) + ": rho is given, but only the scheme sos has one");
    detail::check_parameters(name, "tau", head.tau), detail::check_parameters(name, "rho", head.rho);
    const auto r = recurrence(head);
    if (!detail::stays_in_range(r))
      detail::raise(std::string(name) + ": tau is " + detail::number_text(r.s) + ", rho " +
                    detail::number_text(head.rho.given() ? head.rho(0, 0) : decltype(r.s)(1)) + " and steps " +
                    detail::text_of(options.steps) + ", wanted numbers whose products and powers do not overflow");
    score.check(name, dims, head);
  }
  template <class In, class S = typename decltype(In::q)::Scalar>
  detail::Recurrence<S> recurrence(const In& in) const {
    const S tau = in.tau.given() ? in.tau(0, 0) : S(1), rho = in.rho.given() ? in.rho(0, 0) : S(1);
    detail::Recurrence<S> r;
    r.steps = options.steps, r.skip = options.skip;
    r.smooth_first = options.scheme != BoostingScheme::diffusion;
    r.s = tau;
    switch (options.scheme) {
      case BoostingScheme::diffusion:  // u_t = (1 - tau) u_{t-1} + tau A u_{t-1}
        r.x = S(0), r.y = S(1), r.z = S(1) - tau, r.dz_ds = S(-1);
        break;
      case BoostingScheme::l2boost:  // u_t = u_{t-1} + tau A (V - u_{t-1})
        r.x = S(1), r.y = S(-1), r.z = S(1);
        break;
      case BoostingScheme::sos:  // u_t = tau A (V + rho u_{t-1}) - (tau rho + tau - 1) u_{t-1}
        r.x = S(1), r.y = rho, r.z = S(1) - tau - tau * rho, r.dz_ds = S(-1) - rho, r.dz_dy = -tau;
        break;
    }
    return r;
  }

  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    const auto prepared = score.prepare(pass.arena(), in, pass.at);
    detail::recurrence_forward<P>(pass.context, recurrence(in), prepared.scores, detail::Lse<const S>(),
                                  engine::lse_of(keep.lse), in.v, out, keep.kept);
  }

  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    MapBackward map(pass, score, in, engine::lse_of(keep.lse), grad);
    detail::RecurrenceGradient<S> scalars;
    scalars.wanted = grad.tau.given() || grad.rho.given();
    detail::recurrence_backward<P>(pass, recurrence(in), map.plan, in.v, keep.kept, dout, grad.v, scalars);
    map.deliver();
    if (grad.tau.given()) grad.tau(0, 0) = S(scalars.ds);
    if (grad.rho.given()) grad.rho(0, 0) = S(scalars.dy);
  }

  /// out = E x and out = E^T g, E the effective map.
  template <class P, class S = typename P::Scalar>
  void apply(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> x, MutView<S> out) const {
    const auto prepared = score.prepare(pass.arena(), in, pass.at);
    detail::recurrence_forward<P>(pass.context, recurrence(in), prepared.scores, engine::lse_of(keep.lse),
                                  detail::Lse<S>(), x, out, MutView<S>());
  }
  template <class P, class S = typename P::Scalar>
  void apply_transposed(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> g,
                        MutView<S> out) const {
    const auto prepared = score.prepare(pass.arena(), in, pass.at);
    detail::recurrence_transposed<P>(pass.context, recurrence(in), prepared.scores, engine::lse_of(keep.lse), g, out);
  }
  /// A block of E, from (q0, k0), as large as out.
  template <class P, class S = typename P::Scalar>
  void map_block(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0, Index k0,
                 MutView<S> out) const {
    const auto prepared = score.prepare(pass.arena(), in, pass.at);
    detail::recurrence_block<P>(pass.context, recurrence(in), prepared.scores, engine::lse_of(keep.lse), q0, k0, out);
  }
};

/// Boosting of an attention filter with a fixed map A, T = steps:
///
///     diffusion  u_0 = V,     u_t = u_{t-1} + tau (A u_{t-1} - u_{t-1})      = ((1 - tau) I + tau A)^t V
///     l2boost    u_0 = A V,   u_t = u_{t-1} + tau A (V - u_{t-1})            = (I - (I - A)^(t + 1)) V at tau = 1
///     sos        u_0 = A V,   u_t = tau A (V + rho u_{t-1}) - (tau rho + tau - 1) u_{t-1}
///     out = u_T  [+ V with skip]
///
/// The idea of boosting the residuals of an attention filter is that of "Revisiting Transformers with Insights from
/// Image Filtering and Boosting" (Abdullaev, Tkachenko, Nguyen, arXiv 2506.10371); the schemes are the classical ones
/// of the denoising literature: Tukey's twicing or L2 boosting (also Osher's Bregman iteration, as A is linear),
/// diffusion, and SOS (Romano & Elad 2015, arXiv 1502.06220). The choice of family, the defaults and the gradients are
/// our own, and no scheme here is claimed to be that paper's. With G_T = dout and H_t = A^T G_t, for t = T .. 1:
///
///     diffusion  dA += tau G_t u_{t-1}^T               G_{t-1} = (1 - tau) G_t + tau H_t       dV = G_0
///     l2boost    dA += tau G_t (V - u_{t-1})^T         G_{t-1} = G_t - tau H_t                 dV += tau H_t
///     sos        dA += tau G_t (V + rho u_{t-1})^T     G_{t-1} = tau rho H_t - kappa G_t       dV += tau H_t
///     start of l2boost and sos: dV += A^T G_0, dA += G_0 V^T
///     dtau, drho from <H_t, w_t>, which is <G_t, A w_t> without a division by tau: tau = 0 is fine
///
/// Inputs: BoostingArgs, n = m. Stability, for eigenvalues of A in [0, 1]: diffusion 0 <= tau <= 1, l2boost 0 <= tau <=
/// 2, sos 0 < tau < 2 / (1 + rho) for rho > 0. A softmax map may have negative eigenvalues, which l2boost amplifies.
/// Kept: the row log-sum-exp, u_0 and every A w_t. Cost: T + 1 sweeps forward (diffusion T); backward one A^T a sweep,
/// the last in a pull_back of inner width (sweeps) dv. Memory O(n (d + (T + 1) dv)). Effective map and relevance as in
/// twicing(). Golden cases: double within 2e-14 of the largest entry, float within 3 times the error of the plain float
/// formula (gradients of tau and rho, sums that mostly cancel, are as exact as its on average). Throws ShapeError where
/// shapes do not fit, n and m differ, steps is negative or above 2^20, tau or rho is not finite or so large that steps
/// overflow, or rho is given to a scheme without one.
template <class Score>
auto boosting(const Softmax<Score>& map, BoostingOptions options = {}) {
  return Boosting<Score>{{map.score, "boosting"}, options};
}
/// boosting(softmax(modifiers), options)
template <class M>
requires(!std::is_same_v<M, BoostingOptions>) auto boosting(const M& modifiers, BoostingOptions options = {}) {
  return boosting(softmax(modifiers), options);
}
inline auto boosting(BoostingOptions options = {}) { return boosting(softmax(), options); }

}  // namespace LIMPID_ABI
}  // namespace limpid
