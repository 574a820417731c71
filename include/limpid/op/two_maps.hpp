// limpid: the difference of two softmax maps on shared values, with a weight a row: what differential and gated share.
//
// H = w1 o (A1 V) - w2 o (A2 V), then the head's RMS norm. Differential attention is (1, lambda), its second version
// (1, sigmoid(z)), gated attention (sigmoid(z), sigmoid(-z)); dw1_i = <dH_i, (A1 V)_i>, dw2_i = -<dH_i, (A2 V)_i>.
// That the three are one recipe is our own remark.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../call/operator.hpp"
#include "../engine/activation.hpp"
#include "../score/dot.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What becomes of a head's output: nothing, or (1 - lambda_init) gamma o H / sqrt(mean(H^2) + eps).
enum class HeadNorm { none, rms };

/// What the looks inside (map_block, map_left, map_right, map_entropy, .map) look at: the effective map w1 A1 - w2 A2,
/// whose entries may be negative, or one of the two maps, whose rows are distributions.
enum class Shown { effective, first, second };

struct TwoMapOptions {
  std::optional<double> scale = default_scale;  ///< default 1 / sqrt(d), d the width of one branch
  double lambda_init = 0.8;                     ///< a constant; the norm's factor is 1 - lambda_init
  HeadNorm norm = HeadNorm::rms;
  double eps = 1e-5;
  Shown shown = Shown::effective;  ///< may be changed between forward and looking: op.options.shown = Shown::first
};

namespace detail {

/// One number a query for each map.
template <class S>
struct RowWeights {
  const S *first, *second;
};

/// The head's norm: y = u o (r h), r = 1 / sqrt(mean(h^2) + eps), u = (1 - lambda_init) gamma. RMS normalisation
/// (Zhang, Sennrich 2019, arXiv 1910.07467) of a head as in Ye et al. 2024, arXiv 2410.05258, eq. 3, and its official
/// code.
template <class P>
class RmsNorm {
 public:
  using S = typename P::Scalar;

  RmsNorm(Arena& arena, Index width, View<S> gamma, const TwoMapOptions& options)
      : width_(width), c_(S(1) - S(options.lambda_init)), eps_(S(options.eps)), u_(arena.take<S>(width)) {
    for (Index c = 0; c < width; ++c) u_[c] = gamma.given() ? c_ * gamma(0, c) : c_;
  }

  void forward(MutView<S> h) const {
    for (Index i = 0; i < h.rows; ++i) {
      S* x = h.row(i);
      const Scale r = inverse(x);
      for_lanes<P>(width_, [&](auto policy, Index c) {
        using L = decltype(policy);
        L::store(x + c, L::load(u_ + c) * (L::set(r.inverse) * scaled(L(), x, c, r.unit)));
      });
    }
  }

  /// h becomes dh = r (u o dy - <u o dy, r h> r h / width), and dgamma (may be empty) = sum of c dy o (r h), rows for
  /// which skip(i) left out of both.
  template <class Skip>
  void backward(const Context& context, MutView<S> h, View<S> dy, MutView<S> dgamma, const Skip& skip) const {
    constexpr Index block = 64;  // rows summed in S before they go to the wide sum; a task
    const Index blocks = (h.rows + block - 1) / block;
    const MutView<S> parts = context.arena().matrix<S>(dgamma.given() ? blocks : 0, width_);
    context.run(blocks, [&](Index t, Arena&) {
      S* part = dgamma.given() ? parts.row(t) : nullptr;
      if (part) clear(part, width_);
      for (Index i = t * block; i < std::min(h.rows, (t + 1) * block); ++i)
        backward_row(h.row(i), dy.row(i), part, skip(i));
    });
    if (!dgamma.given()) return;
    for (Index c = 0; c < width_; ++c) {
      Accumulator<S> sum = 0;
      for (Index t = 0; t < blocks; ++t) sum += Accumulator<S>(parts(t, c));
      dgamma(0, c) = S(sum);
    }
  }

 private:
  /// One row of it; dgamma (may be null) is added to.
  void backward_row(S* x, const S* g, S* dgamma, bool skip) const {
    if (skip) return clear(x, width_);
    const Scale r = inverse(x);
    for_lanes<P>(width_, [&](auto policy, Index c) {  // r h in the place of h
      using L = decltype(policy);
      const auto y = L::set(r.inverse) * scaled(L(), x, c, r.unit);
      L::store(x + c, y);
      if (dgamma) L::store(dgamma + c, L::fma(L::set(c_) * L::load(g + c), y, L::load(dgamma + c)));
    });
    const S along = sum_lanes<P>(width_,
                                 [&](auto policy, Index c) {
                                   using L = decltype(policy);
                                   return L::load(u_ + c) * L::load(g + c) * L::load(x + c);
                                 }) /
                    S(double(width_));
    for_lanes<P>(width_, [&](auto policy, Index c) {
      using L = decltype(policy);
      const auto d = L::load(u_ + c) * L::load(g + c) - L::set(along) * L::load(x + c);
      L::store(x + c, L::set(r.unit) * (L::set(r.inverse) * d));
    });
  }
  /// r is inverse times unit, a power of two: 1 but where squares would leave the scalar's range.
  struct Scale {
    S inverse, unit;
  };
  /// Kept: a compiler that may reassociate would multiply units first, which leaves the range.
  template <class L>
  LIMPID_INLINE static auto scaled(L, const S* x, Index c, S unit) {
    return L::pin(L::set(unit) * L::load(x + c));
  }
  Scale inverse(const S* x) const {
    using std::sqrt;
    const auto of = [&](S unit, S added) {
      const S mean = sum_lanes<P>(width_,
                                  [&](auto policy, Index c) {
                                    using L = decltype(policy);
                                    const auto y = scaled(L(), x, c, unit);
                                    return y * y;
                                  }) /
                         S(double(width_)) +
                     added;
      return std::pair<Scale, S>({mean == S(0) ? S(0) : S(1) / sqrt(mean), unit}, mean);  // zeros stay, without eps too
    };
    const auto [plain, mean] = of(S(1), eps_);
    if constexpr (std::is_floating_point_v<S>) {
      using Limits = std::numeric_limits<S>;
      if (mean > Limits::min() / Limits::epsilon() && mean < Limits::max() * Limits::epsilon()) return plain;
      S largest(0);
      for (Index c = 0; c < width_; ++c) largest = std::max(largest, std::abs(x[c]));
      if (!(largest > S(0) && row_is_finite(x, width_))) return plain;
      int exponent = 0;
      std::frexp(std::max(largest, sqrt(eps_)), &exponent);
      exponent = std::clamp(-exponent, Limits::min_exponent, Limits::max_exponent - 2);
      return of(std::ldexp(S(1), exponent), std::ldexp(eps_, 2 * exponent)).first;
    }
    return plain;
  }

  Index width_;
  S c_, eps_;
  S* u_;
};

}  // namespace detail

/// An operator of two maps. Mix says where the row weights come from: its Args, check, weights(in, options) with
/// first(i) and second(i), and pull, the way back from d w1_i = delta1_i and d w2_i = -delta2_i.
///
///     A_b = softmax_rows(scale Q_b K_b^T),   H = w1 o (A1 V) - w2 o (A2 V),   Y = norm(H)
///     dH from dY,   P = dH V^T,   delta_b,i = <dH_i, (A_b V)_i>
///     dS1 = w1 A1 o (P - delta1),   dS2 = -w2 A2 o (P - delta2),   dV = A1^T (w1 o dH) - A2^T (w2 o dH)
///
/// q n x 2d a head, its branches side by side, [q1 q2]; k m x 2d, [k1 k2], or m x d, one key for both branches;
/// v m x dv.
template <class Mix, class Mods>
struct TwoMaps {
  Mods mods;
  TwoMapOptions options;
  const char* name;

  static constexpr bool reads_pages = true;
  template <class T>
  using Args = typename Mix::template Args<T>;

  template <class T>
  struct Keep {
    T lse, first, second;  // lse of both maps; A1 V and A2 V
    template <class F, class... K>
    static void visit(F&& f, const auto& head, K&&... k) {
      f(Kept::stat, 4, false, k.lse...);
      f(Kept::rows, head.v.cols, false, k.first...);
      f(Kept::rows, head.v.cols, false, k.second...);
    }
  };

  template <class In>
  void check(const Dims& dims, const In& head) const {
    using detail::text_of;
    const detail::Name op = name;
    if (head.q.cols % 2 != 0)
      detail::raise(op + ": q has width " + text_of(head.q.cols) +
                    " a head, wanted an even one: two branches side by side");
    if (head.k.cols != head.q.cols && 2 * head.k.cols != head.q.cols)
      detail::raise(op + ": q has width " + text_of(head.q.cols) + " a head and k has " + text_of(head.k.cols) +
                    ", wanted the same, or half for one key to both branches (" + text_of(dims.heads) + " heads, " +
                    text_of(dims.kv_heads) + " key heads)");
    if (head.gamma.given() && options.norm == HeadNorm::none) detail::raise(op + ": gamma is given, but norm is none");
    if (head.gamma.given() && head.gamma.cols != head.v.cols)
      detail::raise(op + ": gamma has " + text_of(head.gamma.cols) + " columns, wanted " + text_of(head.v.cols) +
                    ", the width of v");
    using S = typename decltype(In::q)::Scalar;
    detail::check_finite<S>(op, "eps", options.eps, options.eps >= 0, "a finite number, 0 or more");
    detail::check_factor<S>(op, "lambda_init", options.lambda_init);
    detail::check_scale<S>(name, "scale", options.scale);
    Mix::check(name, head);
  }
  template <class In>
  Index out_width(const In& head) const {
    return head.v.cols;
  }
  const auto& modifiers() const { return mods; }
  auto& modifiers() { return mods; }

  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    Arena& arena = pass.arena();
    const auto maps = scores<S>(in, pass.at);
    const MutView<S> o1 = keep.first.given() ? keep.first : out;
    const MutView<S> o2 = keep.second.given() ? keep.second : arena.template matrix<S>(out.rows, out.cols);
    // a row without keys is zeros, which only weights that are not finite would show in: it counts by 0
    auto w = weights<S>(arena, in, {});
    MutView<S> lse = keep.lse;
    if (!lse.given() && !(detail::row_is_finite(w.first, out.rows) && detail::row_is_finite(w.second, out.rows)))
      lse = arena.template matrix<S>(4, out.rows);
    engine::smooth_both<P>(pass.context, maps, in.v, o1, engine::lse_of(lse, 0), o2, engine::lse_of(lse, 1));
    if (lse.given()) w = weights<S>(arena, in, View<S>(lse));
    const detail::RmsNorm<P> norm(arena, out.cols, in.gamma, options);
    detail::for_rows(pass.context, out.rows, [&](Index begin, Index end) {
      const auto rows = [&](const auto& v) { return v.block(begin, 0, end - begin, v.cols); };
      detail::weighted_difference<P>(w.first + begin, rows(o1), w.second + begin, rows(o2), rows(out));
      if (options.norm == HeadNorm::rms) norm.forward(rows(out));  // Y = norm(H), H = w1 o O1 - w2 o O2
    });
  }

  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    Arena& arena = pass.arena();
    const Index n = dout.rows, d = in.q.cols / 2, m = in.k.rows;
    const auto maps = scores<S>(in, pass.at);
    const auto w = weights<S>(arena, in, keep.lse);

    View<S> dh = dout;
    if (options.norm == HeadNorm::rms) {
      dh = through_norm(pass, in, keep, w, 0, dout, grad.gamma);
    } else if (!detail::row_is_finite(w.first, n) || !detail::row_is_finite(w.second, n)) {
      dh = without_bad_weights<S>(arena, w, dout);
    }

    S *delta[2], *minus = arena.template take<S>(n);
    for (Index b = 0; b < 2; ++b) {  // d w1_i = <dH_i, O1_i>, d w2_i = -<dH_i, O2_i>
      delta[b] = arena.template take<S>(n);
      engine::row_dots<P>(pass.context, dh, b == 0 ? keep.first : keep.second, delta[b]);
      for (Index i = 0; i < n; ++i)
        if (empty(keep.lse, b, i)) delta[b][i] = S(0);
    }
    Mix::template pull<S>(in, w, n, delta[0], delta[1], grad, pass.accumulate);
    for (Index i = 0; i < n; ++i) minus[i] = -w.second[i];

    // One key for both branches: the second share of its gradient is added afterwards.
    const bool apart = one_key(in) && grad.k.given();
    const MutView<S> dk2 = apart ? arena.template matrix<S>(m, d) : grad.k.block(0, one_key(in) ? 0 : d, m, d);
    engine::BackwardPlan<S, Mods, 2> plan;
    plan.maps[0] = {maps[0],
                    engine::lse_of(keep.lse, 0),
                    delta[0],
                    Mix::first_is_one ? nullptr : w.first,
                    grad.q.block(0, 0, n, d),
                    grad.k.block(0, 0, m, d),
                    nullptr};
    plan.maps[1] = {maps[1], engine::lse_of(keep.lse, 1), delta[1], minus, grad.q.block(0, d, n, d), dk2, nullptr};
    plan.left = dh, plan.right = in.v;  // P = dH V^T
    plan.x = dh, plan.dv = grad.v;      // dV = (w1 A1 - w2 A2)^T dH
    plan.accumulate_q = pass.accumulate.q;
    plan.accumulate_k = plan.accumulate_v = pass.accumulate.kv;
    plan.relevance = pass.relevance;
    if (apart && pass.accumulate.kv) dk2.fill(S(0));
    engine::pull_back<P>(pass.context, plan, pass.collected);  // dS1, dS2 and what follows from them
    if (apart) engine::copy_or_add<S>(dk2, grad.k, true);
  }

  /// out = E x and out = E^T g, E the map that is shown.
  template <class P, class S = typename P::Scalar>
  void apply(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> x, MutView<S> out) const {
    const auto maps = scores<S>(in, pass.at);
    const Index only = options.shown == Shown::second ? 1 : 0;
    engine::smooth_with_lse<P>(pass.context, maps[std::size_t(only)], engine::lse_of(keep.lse, only), x, out);
    if (options.shown != Shown::effective) return;
    const MutView<S> second = pass.arena().template matrix<S>(out.rows, out.cols);
    engine::smooth_with_lse<P>(pass.context, maps[1], engine::lse_of(keep.lse, 1), x, second);
    const auto w = weights<S>(pass.arena(), in, keep.lse);
    detail::weighted_difference<P>(w.first, out, w.second, second, out);
  }
  template <class P, class S = typename P::Scalar>
  void apply_transposed(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> g,
                        MutView<S> out) const {
    const auto maps = scores<S>(in, pass.at);
    const Index only = options.shown == Shown::second ? 1 : 0;
    if (options.shown != Shown::effective)
      return engine::smooth_transposed<P>(pass.context, maps[std::size_t(only)], engine::lse_of(keep.lse, only), g,
                                          out);
    const auto w = weights<S>(pass.arena(), in, keep.lse);
    const MutView<S> weighted = pass.arena().template matrix<S>(g.rows, g.cols);
    for (Index b = 0; b < 2; ++b) {
      for (Index i = 0; i < g.rows; ++i) {
        const S f = b == 0 ? w.first[i] : -w.second[i];
        f == S(0) ? detail::clear(weighted.row(i), g.cols)  // g may be NaN there
                  : detail::scale_row<P>(f, g.row(i), weighted.row(i), g.cols);
      }
      engine::smooth_transposed<P>(pass.context, maps[std::size_t(b)], engine::lse_of(keep.lse, b), weighted, out,
                                   b == 1);
    }
  }
  /// A block of the map that is shown, from (q0, k0), as large as out.
  template <class P, class S = typename P::Scalar>
  void map_block(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0, Index k0,
                 MutView<S> out) const {
    const auto maps = scores<S>(in, pass.at);
    const Index only = options.shown == Shown::second ? 1 : 0;
    engine::map_block<P>(pass.context, maps[std::size_t(only)], engine::lse_of(keep.lse, only), q0, k0, out);
    if (options.shown != Shown::effective) return;
    const MutView<S> second = pass.arena().template matrix<S>(out.rows, out.cols);
    engine::map_block<P>(pass.context, maps[1], engine::lse_of(keep.lse, 1), q0, k0, second);
    const auto w = weights<S>(pass.arena(), in, keep.lse);
    detail::weighted_difference<P>(w.first + q0, out, w.second + q0, second, out);
  }
  /// The gradient with respect to H, rows q0 and on of it, of dout, these rows of that with respect to Y.
  template <class P, class S = typename P::Scalar>
  View<S> map_gradient(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0,
                       View<S> dout) const {
    if (options.norm == HeadNorm::none) return dout;
    return through_norm(pass, in, keep, weights<S>(pass.arena(), in, keep.lse), q0, dout, {});
  }
  /// Of one of the two maps: the rows of their difference are no distributions.
  template <class P, class S = typename P::Scalar>
  void entropy(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, S* out) const {
    if (options.shown == Shown::effective)
      detail::raise(detail::Name(name) +
                    ": the effective map has negative entries and no entropy, wanted shown = first or second");
    const Index only = options.shown == Shown::second ? 1 : 0;
    engine::entropy<P>(pass.context, scores<S>(in, pass.at)[std::size_t(only)], engine::lse_of(keep.lse, only), out);
  }

 private:
  template <class In>
  static bool one_key(const In& in) {
    return in.k.cols != in.q.cols;
  }
  template <class S, class In>
  detail::Few<detail::Scores<S, Mods>, 2> scores(const In& in, const At& at) const {
    const Index d = in.q.cols / 2;
    const S c = detail::scale_of<S>(options.scale, d);
    const auto branch = [&](Index b) {
      return detail::Scores<S, Mods>{in.q.block(0, b * d, in.q.rows, d),
                                     in.k.block(0, one_key(in) ? 0 : b * d, in.k.rows, d),
                                     c,
                                     nullptr,
                                     &mods,
                                     at};
    };
    return {branch(0), branch(1)};
  }

  /// Rows q0 and on of dH from those of dY: Y = norm(H), H = w1 o O1 - w2 o O2. dgamma may be empty.
  template <class P, class S = typename P::Scalar>
  View<S> through_norm(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep,
                       const detail::RowWeights<S>& w, Index q0, View<S> dy, MutView<S> dgamma) const {
    const MutView<S> h = pass.arena().template matrix<S>(dy.rows, dy.cols);
    detail::for_rows(pass.context, dy.rows, [&](Index begin, Index end) {
      const auto rows = [&](const auto& v) { return v.block(q0 + begin, 0, end - begin, v.cols); };
      detail::weighted_difference<P>(w.first + q0 + begin, rows(keep.first), w.second + q0 + begin, rows(keep.second),
                                     h.block(begin, 0, end - begin, h.cols));
    });
    detail::RmsNorm<P>(pass.arena(), dy.cols, in.gamma, options).backward(pass.context, h, dy, dgamma, [&](Index i) {
      return empty(keep.lse, 0, q0 + i) && empty(keep.lse, 1, q0 + i);
    });
    return h;
  }

  template <class S>
  static bool empty(View<S> lse, Index b, Index i) {
    return lse(2 * b, i) == -detail::minus_infinity<S>();  // see detail::lse_of
  }
  /// Row weights; where the log-sum-exp is given, zero where a map's row keeps no key, whatever its gate holds.
  template <class S, class In>
  detail::RowWeights<S> weights(Arena& arena, const In& in, View<S> lse) const {
    const Index n = in.q.rows;
    const auto given = Mix::template weights<S>(in, options);
    S *first = arena.take<S>(n), *second = arena.take<S>(n);
    for (Index i = 0; i < n; ++i) {
      first[i] = lse.given() && empty(lse, 0, i) ? S(0) : given.first(i);
      second[i] = lse.given() && empty(lse, 1, i) ? S(0) : given.second(i);
    }
    return {first, second};
  }
  /// A row whose weight is not finite has no gradient to give: NaN, which pull_back knows how to keep from masked keys.
  template <class S>
  static View<S> without_bad_weights(Arena& arena, const detail::RowWeights<S>& w, View<S> dout) {
    const MutView<S> copy = arena.matrix<S>(dout.rows, dout.cols);
    for (Index i = 0; i < dout.rows; ++i) {
      const bool fine = detail::row_is_finite(w.first + i, 1) && detail::row_is_finite(w.second + i, 1);
      for (Index c = 0; c < dout.cols; ++c)
        copy(i, c) = fine ? dout(i, c) : S(std::numeric_limits<double>::quiet_NaN());
    }
    return copy;
  }
};

}  // namespace LIMPID_ABI
}  // namespace limpid
