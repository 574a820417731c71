// limpid: the boosting residual round any sublayer: an estimate u travels from block to block beside the tokens.
// SPDX-License-Identifier: MIT
#pragma once

#include "../op/recurrence.hpp"
#include "linear.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What a boosting block reads, and where its gradients go: x and u n x D, tau and rho 1 x 1. Empty: u = 0 (the first
/// block), tau = 1, rho = 0 (the ordinary residual, where training had best start).
template <class T>
struct BoostingBlockArgs {
  T x{}, u{}, tau{}, rho{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("x", a.x...), f("u", a.u...), f("tau", a.tau...), f("rho", a.rho...);
  }
};

/// What a boosting block keeps: the sublayer's input and output. One call at a time, as Saved.
template <class S>
struct BoostingBlockSaved {
  Mat<S> s, z;
  bool filled = false;
  mutable detail::Turn turn;
};

namespace detail {

template <class S>
struct BoostingBlockNumbers {
  S tau = S(1), rho = S(0), kappa = S(0);
  explicit BoostingBlockNumbers(const BoostingBlockArgs<View<S>>& in) {
    check_number("boosting block", "tau", in.tau), check_number("boosting block", "rho", in.rho);
    if (in.tau.given()) tau = in.tau(0, 0);
    if (in.rho.given()) rho = in.rho(0, 0);
    check_parameters("boosting block", "tau", in.tau), check_parameters("boosting block", "rho", in.rho);
    kappa = tau * rho + tau - S(1);
    if (!are_factors(tau, rho, kappa))
      raise("boosting block: tau is " + number_text(tau) + " and rho " + number_text(rho) +
            ", wanted numbers that are at most " + number_text(largest_factor<S>()) + " in size, their product too");
  }
};

template <class S>
void check_like(const char* name, View<S> v, View<S> x) {
  if (v.given()) check_like_x("boosting block", name, v, x);
}

}  // namespace detail

/// The boosting residual, SOS (strengthen, operate, subtract; Romano & Elad 2015, arXiv 1502.06220) across blocks, our
/// reading of the boosting residual in arXiv 2506.10371, whose own scheme we could not read:
///
///     s = x + rho u,   z = f(s),   u_next = tau z - kappa u,   out = x + u_next,     kappa = tau rho + tau - 1
///
/// f(View<S> s, MutView<S> z) is the whole sublayer, n x D to n x D. tau = 1, rho = 0:
/// out = x + f(x). out and u_next are n x D and must not overlap the inputs. saved
/// takes s and z for the backward pass. O(n D) besides f. Throws ShapeError.
template <class F, class Out, class Next>
void boosting_block(const BoostingBlockArgs<View<detail::ScalarOf<Out>>>& in, F&& f, Out&& out_, Next&& u_next_,
                    BoostingBlockSaved<detail::ScalarOf<Out>>* saved = nullptr, const LayerCall& call = {}) {
  using S = detail::ScalarOf<Out>;
  using P = detail::Native<S>;
  const MutView<S> out(std::forward<Out>(out_)), u_next(std::forward<Next>(u_next_));
  const detail::BoostingBlockNumbers<S> c(in);
  detail::check_like<S>("u", in.u, in.x);
  if (!out.given() && in.x.rows > 0) detail::raise("boosting block: out is not given");
  detail::check_like<S>("out", out, in.x);
  detail::check_like<S>("u_next", u_next, in.x);
  detail::refuse_overlaps("boosting block", detail::arrays({{"out", out}, {"u_next", u_next}}), detail::fields_of(in));
  const Index n = in.x.rows, width = in.x.cols;
  const S fed_back = in.u.given() ? c.rho : S(0), subtracted = in.u.given() ? -c.kappa : S(0);
  using Saved = BoostingBlockSaved<S>;
  const detail::ForwardScope<Saved> scope("boosting block", {1, saved, call.workspace, call.executor});
  const MutView<S> s = scope.room(&Saved::s, n, width), z = scope.room(&Saved::z, n, width);
  detail::combine<P>(scope.context, S(1), in.x, fed_back, in.u, s);
  f(View<S>(s), z);
  const MutView<S> next = u_next.given() ? u_next : out;  // the last block's estimate is of no use to anybody
  detail::combine<P>(scope.context, c.tau, z, subtracted, in.u, next);
  detail::combine<P>(scope.context, S(1), in.x, S(1), next, out);
  scope.done();
}

/// Gradients of a boosting block from g = dout and w = du_next (empty: 0, as in the last block):
///
///     e = g + w,   dz = tau e,   ds = vjp(s, dz),   dx = g + ds,   du = rho ds - kappa e
///     drho = <ds - tau e, u>,   dtau = <e, z - (rho + 1) u>
///
/// vjp(View<S> s, View<S> dz, MutView<S> ds) writes the sublayer's vector-Jacobian product and, on its way, the
/// gradients of its own parameters. Empty gradients are not computed; call.accumulate adds to them. Throws ShapeError
/// where shapes do not fit, no forward call has filled saved, or a gradient shares memory with an input, dout, du_next
/// or another one.
template <class S, class Vjp>
void boosting_block_backward(const std::type_identity_t<BoostingBlockArgs<View<S>>>& in,
                             const BoostingBlockSaved<S>& saved, Vjp&& vjp, const std::type_identity_t<View<S>>& dout,
                             const std::type_identity_t<View<S>>& du_next,
                             const std::type_identity_t<BoostingBlockArgs<MutView<S>>>& grad,
                             const LayerCall& call = {}) {
  using P = detail::Native<S>;
  const detail::BoostingBlockNumbers<S> c(in);
  const detail::SavedTurn saved_turn(&saved, false, "boosting block");
  const View<S> s(saved.s), z(saved.z);
  if (s.rows != in.x.rows || s.cols != in.x.cols)
    detail::raise("boosting block: saved is of " + detail::shape_text(s.rows, s.cols) + ", wanted " +
                  detail::shape_text(in.x.rows, in.x.cols) + " as x; a forward call fills it");
  detail::check_filled("boosting block", saved);
  if (!dout.given() && in.x.rows > 0) detail::raise("boosting block: dout is not given");
  detail::check_like<S>("dout", dout, in.x);
  detail::check_like<S>("du_next", du_next, in.x);
  detail::check_like<S>("gradient of x", grad.x, in.x);
  detail::check_like<S>("gradient of u", grad.u, in.x);
  detail::check_bias<S>("boosting block", "gradient of tau", grad.tau, 1);
  detail::check_bias<S>("boosting block", "gradient of rho", grad.rho, 1);
  detail::refuse_overlaps(
      "boosting block", detail::fields_of(grad, detail::gradient_of),
      detail::joined(detail::fields_of(in), detail::arrays({{"dout", dout}, {"du_next", du_next}})));
  detail::with_context(call, [&](const detail::Context& context) {
    Arena& arena = context.arena();
    const Index n = in.x.rows, width = in.x.cols;
    const MutView<S> e = arena.matrix<S>(n, width), dz = arena.matrix<S>(n, width), ds = arena.matrix<S>(n, width);
    const auto add = [&](MutView<S> to, S a, View<S> x, S b, View<S> y) {
      if (!to.given()) return;
      if (!call.accumulate) return detail::combine<P>(context, a, x, b, y, to);
      detail::combine<P>(context, a, x, S(1), to, to);
      detail::combine<P>(context, b, y, S(1), to, to);
    };
    // out = x + u_next
    detail::combine<P>(context, S(1), dout, du_next.given() ? S(1) : S(0), du_next, e);
    // u_next = tau z - kappa u,   z = f(s)
    detail::combine<P>(context, c.tau, e, S(0), e, dz);
    vjp(s, View<S>(dz), ds);
    // s = x + rho u
    add(grad.x, S(1), dout, S(1), ds);
    add(grad.u, c.rho, ds, -c.kappa, e);
    const auto wide = [](S x) { return detail::Accumulator<S>(x); };
    const bool fed = in.u.given();
    if (grad.tau.given()) {
      const auto g = detail::inner_product<S>(e, z) - (fed ? (wide(c.rho) + 1) * detail::inner_product<S>(e, in.u) : 0);
      grad.tau(0, 0) = S(g) + (call.accumulate ? grad.tau(0, 0) : S(0));
    }
    if (grad.rho.given()) {
      const auto g = fed ? detail::inner_product<S>(ds, in.u) - wide(c.tau) * detail::inner_product<S>(e, in.u) : 0;
      grad.rho(0, 0) = S(g) + (call.accumulate ? grad.rho(0, 0) : S(0));
    }
  });
}

}  // namespace LIMPID_ABI
}  // namespace limpid
