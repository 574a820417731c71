// limpid: an operator of a user's own that lacks one function of the interface.
// SPDX-License-Identifier: MIT
// refused: an operator offers backward\(const BackwardPass<P>&, in, keep, dout, grad\) const
#include <limpid/limpid.hpp>

struct Mine : limpid::OverScores<limpid::DotScore<limpid::Chain<>>>, limpid::OneMap<Mine> {
  template <class T>
  struct Keep {
    template <class F, class... K>
    static void visit(F&&, const auto&, K&&...) {}
  };
  template <class In>
  void check(const limpid::Dims& dims, const In& head) const {
    score.check(name, dims, head);
  }
  template <class P, class S = typename P::Scalar>
  void forward(const limpid::Pass<P>& pass, const Args<limpid::View<S>>& in, limpid::MutView<S> out,
               const Keep<limpid::MutView<S>>&) const {
    limpid::engine::smooth<P>(pass.context, score.prepare(pass.arena(), in, pass.at).scores, in.v, out, {});
  }
  auto map(const auto& pass, const auto& in, const auto&) const {
    return limpid::shown_map(score.prepare(pass.arena(), in, pass.at).scores);
  }
#if !LIMPID_MISTAKE
  template <class P, class S = typename P::Scalar>
  void backward(const limpid::BackwardPass<P>&, const Args<limpid::View<S>>&, const Keep<limpid::View<S>>&,
                limpid::View<S>, const Args<limpid::MutView<S>>&) const {}
#endif
};

void run(const limpid::Mat<float>& q, const limpid::Mat<float>& k, const limpid::Mat<float>& v,
         limpid::Mat<float>& out) {
  limpid::forward(Mine{{{limpid::chain()}, "mine"}, {}}, limpid::qkv(q, k, v), out);
}
