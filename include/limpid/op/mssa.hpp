// limpid: multi-head subspace self-attention (MSSA): one array is query, key and value.
// SPDX-License-Identifier: MIT
#pragma once

#include "../engine/peak.hpp"
#include "softmax.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What becomes of a row of softmax weights P: softmax, A = P; threshold, A = tau where P > tau, else 0.
enum class Phi { softmax, threshold };

struct MssaOptions {
  std::optional<double> scale = default_scale;  ///< default 1 / sqrt(p), the networks'; the theory has 1
  Phi phi = Phi::softmax;
  double tau = 0;  ///< threshold only, in (0, 1]
};

/// Inputs of mssa() and their gradients. y (B n) x (H p), the tokens' coordinates in the heads' subspaces. cache,
/// optional, (B m) x (H p): keys and values in the place of y, of which y holds the last n rows (decoding: earlier
/// tokens and the present ones in one array).
template <class T>
struct MssaArgs {
  T y{}, cache{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("y", Role::query, a.y...);
    f("cache", Role::key, a.cache...);
  }
};

/// The operator; see mssa().
template <class Mods>
struct Mssa {
  DotScore<Mods> score;
  Phi phi = Phi::softmax;
  double tau = 0;
  const char* name = "mssa";
  static constexpr bool keys_are_values = true;

  template <class T>
  using Args = MssaArgs<T>;

  template <class T>
  struct Keep {
    T lse, peak, out;  // peak: the key that passes, or -1 (threshold with tau >= 1/2); out: softmax
    template <class F, class... K>
    static void visit_for(const Mssa& op, F&& f, const auto& head, K&&... k) {
      f(Kept::stat, 2, op.phi == Phi::threshold, k.lse...);
      if (op.one_passes()) f(Kept::stat, 1, true, k.peak...);
      if (op.phi == Phi::softmax) f(Kept::rows, head.y.cols, false, k.out...);
    }
  };
  /// Weights above 1/2: at most one in a row, and it is the largest.
  bool one_passes() const { return phi == Phi::threshold && tau >= 0.5; }

  template <class In>
  void check(const Dims& dims, const In& head) const {
    const std::string op = name;
    if (dims.kv_heads != dims.heads)
      detail::raise(op + ": kv_heads is " + detail::text_of(dims.kv_heads) + " and heads " +
                    detail::text_of(dims.heads) + ", wanted the same, as one array is query, key and value");
    if (head.cache.given()) {
      detail::check_qk(name, dims, head.y.cols, head.cache.cols);
      if (dims.m < dims.n)
        detail::raise(op + ": cache has " + detail::text_of(dims.m) + " rows an item and y " + detail::text_of(dims.n) +
                      ", wanted y to be the last rows of cache");
    }
    detail::check_scale<typename decltype(In::y)::Scalar>(name, "scale", score.scale);
    if (phi == Phi::threshold && !(tau > 0 && tau <= 1))
      detail::raise(op + ": tau is " + std::to_string(tau) + ", wanted a number in (0, 1]");
  }
  template <class In>
  Index out_width(const In& head) const {
    return head.y.cols;
  }
  const auto& modifiers() const { return score.mods; }
  auto& modifiers() { return score.mods; }

  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    const View<S> y = keys(in);
    const auto scores = prepared(pass.context, in, pass.at);
    if (phi == Phi::softmax) {
      engine::smooth<P>(pass.context, scores, y, out, engine::lse_of(keep.lse), keep.out);
      return;
    }
    S* weight = pass.arena().template take<S>(out.rows);
    Index* key = pass.arena().template take<Index>(out.rows);
    detail::row_peaks<P>(pass.context, scores, engine::lse_of(keep.lse), weight, key);
    if (one_passes())
      for (Index i = 0; i < out.rows; ++i) keep.peak(0, i) = weight[i] > S(tau) ? S(double(key[i])) : S(-1);
    Keep<View<S>> known;
    known.lse = keep.lse, known.peak = keep.peak;
    apply(pass, in, known, y, out);
    for (Index i = 0; i < out.rows; ++i)
      if (const S inverse = keep.lse(1, i); inverse != inverse)  // a kept key that is not finite
        for (Index c = 0; c < out.cols; ++c) out(i, c) = inverse;
  }

  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    const View<S> y = keys(in);
    if (phi == Phi::threshold) {  // no path through the scores: phi is piecewise constant
      const detail::Context serial(pass.arena());
      const MutView<S> dkeys = in.cache.given() ? grad.cache : grad.y;
      if (in.cache.given() && grad.y.given() && !pass.accumulate.q) grad.y.fill(S(0));
      if (dkeys.given() && !(in.cache.given() ? pass.accumulate.kv : pass.accumulate.q)) dkeys.fill(S(0));
      const RelevanceRequest<S>& asked = pass.relevance;
      for (Index r = 0; asked.c && r < asked.rows; ++r) detail::clear(asked.c + r * asked.c_stride, y.rows);
      each_pair<P>(serial, in, keep, pass.at, {0, in.y.rows}, {0, y.rows}, [&](Index i, Index j) {
        if (dkeys.given())
          engine::add_scaled_row<P>(dkeys.row(j), S(tau), dout.row(i), dkeys.row(j), y.cols);  // dV = A^T dout
        if (!asked.c) return;
        const S x = S(tau) * detail::dot(dout.row(i), y.row(j), y.cols);
        for (Index r = 0; r < asked.rows; ++r)
          asked.c[r * asked.c_stride + j] += asked.w[r * asked.w_stride + i] * part_of(asked.part_of(r), x);
      });
      return;
    }
    // q = k = v = y: the three paths into one gradient
    Arena& arena = pass.arena();
    const bool tied = !in.cache.given();
    const MutView<S> dkeys = !tied ? grad.cache : (grad.y.given() ? arena.matrix<S>(y.rows, y.cols) : MutView<S>());
    S* delta = arena.take<S>(in.y.rows);
    engine::row_dots<P>(pass.context, dout, keep.out, delta);
    engine::BackwardPlan<S, Mods, 1> plan;
    plan.maps[0] = {
        prepared(pass.context, in, pass.at), engine::lse_of(keep.lse), delta, nullptr, grad.y, dkeys, nullptr};
    plan.left = dout, plan.right = y;                 // dA = dout Y^T
    plan.x = dout, plan.dv = dkeys;                   // dY = A^T dout, on top of
    plan.accumulate_q = pass.accumulate.q;            // dY = scale dS Y
    plan.accumulate_k = !tied && pass.accumulate.kv;  // dY = scale dS^T Y, delivered before the values' part
    plan.accumulate_v = true;
    plan.relevance = pass.relevance;
    engine::pull_back<P>(pass.context, plan, pass.collected);
    if (tied && grad.y.given()) engine::copy_or_add_scaled<P>(dkeys, S(1), grad.y, true);
  }

  /// out = A x, and out = A^T g.
  template <class P, class S = typename P::Scalar>
  void apply(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> x, MutView<S> out) const {
    if (phi == Phi::softmax)
      return engine::smooth_with_lse<P>(pass.context, prepared(pass.context, in, pass.at), engine::lse_of(keep.lse), x,
                                        out);
    out.fill(S(0));
    each_pair<P>(pass.context, in, keep, pass.at, {0, in.y.rows}, {0, x.rows}, [&](Index i, Index j) {
      engine::add_scaled_row<P>(out.row(i), S(tau), x.row(j), out.row(i), x.cols);
    });
  }
  template <class P, class S = typename P::Scalar>
  void apply_transposed(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> g,
                        MutView<S> out) const {
    if (phi == Phi::softmax)
      return engine::smooth_transposed<P>(pass.context, prepared(pass.context, in, pass.at), engine::lse_of(keep.lse),
                                          g, out);
    out.fill(S(0));
    const detail::Context serial(pass.arena());
    each_pair<P>(serial, in, keep, pass.at, {0, g.rows}, {0, out.rows}, [&](Index i, Index j) {
      engine::add_scaled_row<P>(out.row(j), S(tau), g.row(i), out.row(j), g.cols);
    });
  }
  /// A block of the map, from (q0, k0), as large as out.
  template <class P, class S = typename P::Scalar>
  void map_block(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0, Index k0,
                 MutView<S> out) const {
    if (phi == Phi::softmax)
      return engine::map_block<P>(pass.context, prepared(pass.context, in, pass.at), engine::lse_of(keep.lse), q0, k0,
                                  out);
    out.fill(S(0));
    each_pair<P>(pass.context, in, keep, pass.at, {q0, q0 + out.rows}, {k0, k0 + out.cols},
                 [&](Index i, Index j) { out(i - q0, j - k0) = S(tau); });
  }
  /// Of the softmax rows, before a threshold.
  template <class P, class S = typename P::Scalar>
  void entropy(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, S* out) const {
    engine::entropy<P>(pass.context, prepared(pass.context, in, pass.at), engine::lse_of(keep.lse), out);
  }

 private:
  template <class In>
  static auto keys(const In& in) {
    return in.cache.given() ? in.cache : in.y;
  }
  template <class S>
  auto prepared(const engine::Context& context, const Args<View<S>>& in, const At& at) const {
    return score.prepare(context.arena(), QKV<View<S>>{in.y, keys(in), keys(in)}, at).scores;
  }

  /// f(i, j) for every pair of the block that passes the threshold, the keys of a row in order; rows may run in
  /// parallel.
  template <class P, class S, class F>
  void each_pair(const engine::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, const At& at,
                 Interval queries, Interval among, F&& f) const {
    if (one_passes()) {
      for (Index i = queries.begin; i < queries.end; ++i) {
        const Index j = static_cast<Index>(keep.peak(0, i));
        if (j >= among.begin && j < among.end) f(i, j);
      }
      return;
    }
    engine::visit_pairs<P>(context, prepared(context, in, at), engine::lse_of(keep.lse), queries, among,
                           [&](Index i, Index j, const S& weight) {
                             if (weight > S(tau)) f(i, j);
                           });
  }

  template <class S>
  static S part_of(Part part, S x) {
    switch (part) {
      case Part::pos:
        return x < S(0) ? S(0) : x;  // a NaN has to show
      case Part::neg:
        return x > S(0) ? S(0) : -x;
      case Part::abs:
        return x < S(0) ? -x : x;
      case Part::signed_:
        break;
    }
    return x;
  }
};

/// Multi-head subspace self-attention without its projections (those are MssaLayer's): query, key and value are one
/// array.
///
///     S = scale Y Y^T,   P = softmax_rows(S),   A = P  or  A_ij = tau [P_ij > tau],   out = A Y
///     dS = P o (dout Y^T - delta 1^T),   dY = A^T dout + scale (dS Y + dS^T Y);   threshold: dY = A^T dout
///
/// "Attention-Only Transformers via Unrolled Subspace Denoising" (Wang, Lu, Yu, Pai, Qu, Ma, ICML 2025, arXiv
/// 2506.03790, eq. 3 to 5; the operator is older: CRATE, arXiv 2306.01129). y n x p, out n x p; see MssaArgs for the
/// cache. The threshold sets survivors to tau, as in the theory; it is constant almost everywhere, so scores, scale and
/// tau get no gradient, and no straight-through estimate is made. The gradients and the fused threshold are ours.
/// mssa(), mssa(causal(), {.scale = 1}), mssa({.scale = 1, .phi = Phi::threshold, .tau = 0.6}).
///
/// Kept: softmax, the row log-sum-exp and out; threshold, the log-sum-exp and with tau >= 1/2 the one key that passes
/// (it is the row's largest, so one pass with the place of the maximum and no values: 2 n m p flop forward, O(n p)
/// backward). tau < 1/2 takes two passes over the scores forward and one backward, which runs on one worker a head.
/// Softmax costs what plain attention costs; the scores' symmetry is not used. Self-scores are often the largest of a
/// row: big norms make A nearly I. A row that keeps no key gives zeros and passes no gradient. Throws ShapeError where
/// shapes do not fit, for grouped heads and for tau outside (0, 1].
template <class M>
requires(!std::is_same_v<M, MssaOptions>) auto mssa(const M& modifiers, MssaOptions options = {}) {
  using Mods = decltype(chain(modifiers));
  return Mssa<Mods>{{chain(modifiers), options.scale}, options.phi, options.tau};
}
inline auto mssa(MssaOptions options = {}) { return mssa(chain(), options); }

}  // namespace LIMPID_ABI
}  // namespace limpid
