// limpid: an operator of a user's own that lacks one part of the interface.
// SPDX-License-Identifier: MIT
// refused alone: an operator offers backward\(const BackwardPass<P>&, in, keep, dout, grad\) const
// refused alone: an operator says what it keeps for backward, template <class T> struct Keep with static visit
// refused alone: an operator over OneMap offers map\(const Pass<P>&, in, keep\) const, a shown_map
// refused alone: a weight function offers template <class P> typename P::V slope\(typename P::V w\) const
#include <limpid/limpid.hpp>

struct Weight {
  static constexpr bool normalised = false;
  template <class P>
  typename P::V weight(typename P::V s) const {
    return P::max(s, P::set(0));
  }
#if LIMPID_MISTAKE != 4
  template <class P>
  typename P::V slope(typename P::V w) const {
    return P::if_less(P::set(0), w, P::set(1), P::set(0));
  }
#endif
};

struct Mine : limpid::OverScores<limpid::DotScore<limpid::Chain<>>>, limpid::OneMap<Mine> {
#if LIMPID_MISTAKE != 2
  template <class T>
  struct Keep {
    template <class F, class... K>
    static void visit(F&&, const auto&, K&&...) {}
  };
#endif
  template <class In>
  void check(const limpid::Dims& dims, const In& head) const {
    score.check(name, dims, head);
  }
  template <class P, class S = typename P::Scalar>
  void forward(const limpid::Pass<P>& pass, const Args<limpid::View<S>>& in, limpid::MutView<S> out,
               const auto&) const {
    limpid::engine::smooth<P>(pass.context, scores(pass, in), in.v, out, {});
  }
  auto scores(const auto& pass, const auto& in) const {
    return limpid::engine::with_weight(score.prepare(pass.arena(), in, pass.at).scores, Weight());
  }
#if LIMPID_MISTAKE != 3
  auto map(const auto& pass, const auto& in, const auto&) const { return limpid::shown_map(scores(pass, in)); }
#endif
#if LIMPID_MISTAKE != 1
  template <class P, class S = typename P::Scalar>
  void backward(const limpid::BackwardPass<P>&, const Args<limpid::View<S>>&, const auto&, limpid::View<S>,
                const Args<limpid::MutView<S>>&) const {}
#endif
};

void run(const limpid::Mat<float>& q, const limpid::Mat<float>& k, const limpid::Mat<float>& v,
         limpid::Mat<float>& out) {
  limpid::forward(Mine{{{limpid::chain()}, "mine"}, {}}, limpid::qkv(q, k, v), out);
}
