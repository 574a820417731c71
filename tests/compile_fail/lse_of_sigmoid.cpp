// limpid: an operator whose weights are no softmax, with a log-sum-exp left over of the one it was copied from.
// SPDX-License-Identifier: MIT
// refused: weights that are not normalised have no log-sum-exp: write \{\} in its place, and no field lse in Keep
// refused: weights that are not normalised have no log-sum-exp: write \{\} in its place, and no field lse in Keep
// refused: weights that are not normalised have no log-sum-exp: write \{\} in its place, and no field lse in Keep
#include <limpid/limpid.hpp>

using namespace limpid;

struct Mine : OverScores<DotScore<Chain<>>>, OneMap<Mine> {
  template <class T>
  struct Keep {
    T lse;
    static void visit(auto&& f, const auto&, auto&&... k) { f(Kept::stat, 2, false, k.lse...); }
  };
  template <class In>
  void check(const Dims& dims, const In& head) const {
    score.check(name, dims, head);
  }
  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    static_cast<void>(keep);
#if LIMPID_MISTAKE == 1
    engine::smooth<P>(pass.context, scores(pass, in), in.v, out, engine::lse_of(keep.lse));
#else
    engine::smooth<P>(pass.context, scores(pass, in), in.v, out, {});
#endif
  }
  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    static_cast<void>(keep);
#if LIMPID_MISTAKE == 2
    MapBackward map(pass, score, in, engine::lse_of(keep.lse), grad, SigmoidWeight());
#else
    MapBackward map(pass, score, in, {}, grad, SigmoidWeight());
#endif
    map.of_values(dout, in.v, grad.v);
    map.finish();
  }
  auto map(const auto& pass, const auto& in, const auto& keep) const {
    static_cast<void>(keep);
#if LIMPID_MISTAKE == 3
    return shown_map(scores(pass, in), engine::lse_of(keep.lse));
#else
    return shown_map(scores(pass, in));
#endif
  }
  auto scores(const auto& pass, const auto& in) const {
    return engine::with_weight(score.prepare(pass.arena(), in, pass.at).scores, SigmoidWeight());
  }
};

void run(const Mat<float>& q, const Mat<float>& k, const Mat<float>& v, Mat<float>& out, Mat<float>& dq, Mat<float>& dk,
         Mat<float>& dv) {
  const Mine op{{{chain()}, "mine"}, {}};
  Saved<Mine, float> saved;
  forward(op, qkv(q, k, v), out, {.saved = &saved});
  backward(op, qkv(q, k, v), saved, out, grads(dq, dk, dv));
}
