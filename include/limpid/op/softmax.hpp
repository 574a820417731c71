// limpid: softmax attention, the plain filter over any family of scores. Also what nlm and bilateral are made of.
// SPDX-License-Identifier: MIT
#pragma once

#include "../call/backward.hpp"
#include "../engine/probe.hpp"
#include "../engine/pull_back.hpp"
#include "../engine/smooth.hpp"
#include "../engine/smooth_transposed.hpp"
#include "../score/dot.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Scaled dot-product attention, or any family of scores in its place:
///
///     A = softmax_rows(S),   out = A V                            (Vaswani et al. 2017, arXiv 1706.03762, eq. 1)
///     delta_i = <dout_i, out_i>,   dS = A o (dout V^T - delta 1^T),   dV = A^T dout
///
/// q n x d, k m x d, v m x dv, out n x dv. Kept: the row log-sum-exp and out. Cost 2 n m (d + dv) flop forward,
/// 2 n m (3 d + 2 dv) backward, memory O((n + m)(d + dv)). A row that keeps no key gives zeros and passes no gradient.
/// Throws ShapeError where shapes do not fit. Error: float within 2 x that of the naive float formula, double within
/// 1e-10 of the largest entry (tests/contract).
template <class Score>
struct Softmax {
  Score score;
  const char* name = "softmax";

  template <class T>
  using Args = typename Score::template Args<T>;

  template <class T>
  struct Keep {
    T lse, out;
    template <class F, class... K>
    static void visit(F&& f, const auto& head, K&&... k) {
      f(Kept::stat, 2, false, k.lse...);
      f(Kept::rows, head.v.cols, false, k.out...);
    }
  };

  template <class In>
  void check(const Dims& dims, const In& head) const {
    score.check(name, dims, head);
  }
  template <class In>
  Index out_width(const In& head) const {
    return head.v.cols;
  }
  const auto& modifiers() const { return score.mods; }
  auto& modifiers() { return score.mods; }

  template <class P, class S>
  void forward(const detail::Context& context, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep,
               const At& at) const {
    const auto prepared = score.prepare(context.arena(), in, at);
    detail::smooth<P>(context, prepared.scores, in.v, out, detail::lse_of(keep.lse));
    if (keep.out.given()) detail::copy<S>(out, keep.out);
  }

  template <class P, class S>
  void backward(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad, detail::Accumulation accumulate, const At& at, S* sinks,
                const detail::Emission<S>& emission) const {
    Arena& arena = context.arena();
    const auto prepared = score.prepare(arena, in, at);
    const auto to = score.targets(arena, in, prepared, grad);
    S* delta = arena.take<S>(in.q.rows);
    detail::row_dots<P>(dout, keep.out, delta);
    auto plan = detail::plan_of(prepared.scores, detail::lse_of(keep.lse), delta, to, accumulate, emission);
    plan.left = dout, plan.right = in.v;         // dA = dout V^T
    plan.x = dout, plan.dv = grad.v;             // dV = A^T dout
    detail::pull_back<P>(context, plan, sinks);  // dS = A o (dA - delta 1^T) and what follows from it
    score.finish(in, prepared, to, grad, accumulate);
  }

  /// out = A x, and out = A^T g: the map at work without the map.
  template <class P, class S>
  void apply(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> x,
             MutView<S> out, const At& at) const {
    detail::smooth_known<P>(context, score.prepare(context.arena(), in, at).scores, detail::lse_of(keep.lse), x, out);
  }
  template <class P, class S>
  void apply_transposed(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> g,
                        MutView<S> out, const At& at) const {
    detail::smooth_transposed<P>(context, score.prepare(context.arena(), in, at).scores, detail::lse_of(keep.lse), g,
                                 out);
  }
  /// A block of the map, from (q0, k0), as large as out.
  template <class P, class S>
  void map_block(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0, Index k0,
                 MutView<S> out, const At& at) const {
    detail::map_block<P>(context, score.prepare(context.arena(), in, at).scores, detail::lse_of(keep.lse), q0, k0, out);
  }
  template <class P, class S>
  void entropy(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, S* out,
               const At& at) const {
    detail::entropy<P>(context, score.prepare(context.arena(), in, at).scores, detail::lse_of(keep.lse), out);
  }
};

/// Scaled dot-product attention. softmax(), softmax(causal()), softmax(chain(cap, causal() & pad), {.scale = 0.125}).
inline auto softmax(SoftmaxOptions options = {}) { return Softmax<DotScore<Chain<>>>{{chain(), options.scale}}; }
template <class M>
requires(!std::is_same_v<M, SoftmaxOptions>) auto softmax(const M& modifiers, SoftmaxOptions options = {}) {
  using Mods = decltype(chain(modifiers));
  return Softmax<DotScore<Mods>>{{chain(modifiers), options.scale}};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
