// limpid: softmax attention, the plain filter over any family of scores. Also what nlm and bilateral are made of.
// SPDX-License-Identifier: MIT
#pragma once

#include "../call/operator.hpp"
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
struct Softmax : OverScores<Score>, OneMap<Softmax<Score>> {
  using OverScores<Score>::score;
  /// Rows of the map that keep a key sum to 1: what a sink gets is no entry of it.
  static constexpr bool rows_sum_to_one = !std::remove_cvref_t<decltype(score.mods)>::sinks;
  static constexpr bool reads_pages = requires { requires Score::keys_as_given; };
  template <class T>
  using Args = typename Score::template Args<T>;

  template <class T>
  struct Keep {
    T lse, out;
    template <class F, class... K>
    static void visit(F&& f, const auto& head, K&&... k) {
      f(Kept::stat, 2, /*needed=*/false, k.lse...);
      f(Kept::rows, head.v.cols, /*needed=*/false, k.out...);
    }
  };

  template <class In>
  void check(const Dims& dims, const In& head) const {
    score.check(this->name, dims, head);
  }

  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    const auto prepared = score.prepare(pass.arena(), in, pass.at);
    engine::smooth<P>(pass.context, prepared.scores, in.v, out, engine::lse_of(keep.lse), keep.out);
  }

  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    MapBackward backward_map(pass, score, in, engine::lse_of(keep.lse), grad);
    backward_map.of_values(dout, in.v, grad.v, keep.out);  // dA = dout V^T, dV = A^T dout, delta_i = <dout_i, out_i>
    backward_map.finish();                                 // dS = A o (dA - delta 1^T) and what follows from it
  }

  /// The map, and the entropy of its rows.
  template <class P, class S = typename P::Scalar>
  auto map(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep) const {
    return shown_map(score.prepare(pass.arena(), in, pass.at).scores, engine::lse_of(keep.lse));
  }
  template <class P, class S = typename P::Scalar>
  void entropy(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, S* out) const {
    const auto shown = map(pass, in, keep);
    engine::entropy<P>(pass.context, shown.scores, shown.lse, out);
  }
};

/// Scaled dot-product attention. softmax(), softmax(causal()), softmax(chain(cap, causal() & pad), {.scale = 0.125}).
inline auto softmax(SoftmaxOptions options = {}) {
  return Softmax<DotScore<Chain<>>>{{{chain(), options.scale}, "softmax"}, {}};  // OverScores{score, name}, OneMap
}
template <class M>
requires(!std::is_same_v<M, SoftmaxOptions>) auto softmax(const M& modifiers, SoftmaxOptions options = {}) {
  using Mods = decltype(chain(modifiers));
  return Softmax<DotScore<Mods>>{{{chain(modifiers), options.scale}, "softmax"}, {}};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
