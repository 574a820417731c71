// limpid: example 10. An operator of your own, outside of the library: unsharp masking, the blur being softmax
// attention,
//     out = V + c (V - A V) = E V,   dA = -c dout V^T,   dV = (1 + c) dout - c A^T dout.
// What each member is given and who adds to what is told in limpid/call/interface.hpp.
// SPDX-License-Identifier: MIT
#include <cstdio>
#include <limpid/check/promises.hpp>
#include <limpid/limpid.hpp>

using namespace limpid;

struct Unsharp : OverScores<DotScore<Chain<>>> {  // brings score, name, Args (q, k, v), out_width, modifiers
  double c;

  template <class T>
  struct Keep {  // from forward for backward: what makes weights of scores again, and A V
    T lse, blurred;
    static void visit(auto&& f, const auto& head, auto&&... k) {
      f(Kept::stat, 2, /*needed=*/false, k.lse...), f(Kept::rows, head.v.cols, /*needed=*/true, k.blurred...);
    }
  };
  template <class In>
  void check(const Dims& dims, const In& head) const {
    score.check(name, dims, head);
    if (dims.n != dims.m) throw ShapeError("unsharp: n and m differ, wanted a query for every value");
  }
  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    engine::smooth<P>(pass.context, scores(pass, in), in.v, keep.blurred, engine::lse_of(keep.lse));
    sharpen<S>(in.v, keep.blurred, out);
  }
  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    const MutView<S> g = pass.arena().template matrix<S>(dout.rows, dout.cols);
    S* delta = pass.arena().template take<S>(dout.rows);
    engine::copy_or_add_scaled<P>(dout, S(-c), g, false);
    engine::row_dots<P>(g, keep.blurred, delta);
    MapBackward map(pass, score, in, engine::lse_of(keep.lse), grad);
    map.plan.left = g, map.plan.right = in.v, map.plan.maps[0].delta = delta;  // dA = g V^T, delta_i = <g_i, (A V)_i>
    map.plan.x = g, map.plan.dv = grad.v;                                      // dV = A^T g
    map.finish();
    if (grad.v.given()) engine::copy_or_add_scaled<P>(dout, S(1 + c), grad.v, true);
  }
  // What the looks inside show, and rollout and relevance go through: E = (1 + c) I - c A.
  template <class P, class S, class In, class Keep>
  void apply(const Pass<P>& pass, const In& in, const Keep& keep, View<S> x, MutView<S> out) const {
    engine::smooth_with_lse<P>(pass.context, scores(pass, in), engine::lse_of(keep.lse), x, out);
    sharpen<S>(x, out, out);
  }
  template <class P, class S, class In, class Keep>
  void apply_transposed(const Pass<P>& pass, const In& in, const Keep& keep, View<S> g, MutView<S> out) const {
    engine::smooth_transposed<P>(pass.context, scores(pass, in), engine::lse_of(keep.lse), g, out);
    sharpen<S>(g, out, out);
  }
  template <class P, class S, class In, class Keep>
  void map_block(const Pass<P>& pass, const In& in, const Keep& keep, Index q0, Index k0, MutView<S> out) const {
    engine::map_block<P>(pass.context, scores(pass, in), engine::lse_of(keep.lse), q0, k0, out);
    for (Index i = 0; i < out.rows; ++i)
      for (Index j = 0; j < out.cols; ++j) out(i, j) = S(q0 + i == k0 + j) * S(1 + c) - S(c) * out(i, j);
  }
  auto scores(const auto& pass, const auto& in) const { return score.prepare(pass.arena(), in, pass.at).scores; }
  template <class S>
  void sharpen(View<S> x, View<S> blurred, MutView<S> out) const {
    for (Index i = 0; i < out.rows; ++i)
      for (Index j = 0; j < out.cols; ++j) out(i, j) = x(i, j) + S(c) * (x(i, j) - blurred(i, j));
  }
};

int main() {
  const Mat<double> q = Mat<double>::Random(12, 8), k = Mat<double>::Random(12, 8), v = Mat<double>::Random(12, 6);
  std::printf("%s", check_promises(Unsharp{{{chain()}, "unsharp"}, 0.5}, qkv(q, k, v), 1, 2).text().c_str());
}

// prints: kept:   gradients are those of central differences
// prints: kept:   asking changes no bit of the output
// prints: kept:   the bits do not depend on the executor
// prints: kept:   a slice of a larger array has the bits of its copy
// prints: kept:   a head has the bits it has alone
// prints: kept:   map_block, map_left and map_right show one map
// prints: kept:   a wrong shape is refused, and out is left as it was
