// limpid: filters that run a map again and again, u_t = s A (x V + y u_{t-1}) + z u_{t-1}: twicing and boosting.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>

#include "softmax.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// A polynomial of a square map, as a recurrence with the same numbers in every step t = 1..steps:
///
///     u_0 = A V (smooth_first) or V,    w_t = x V + y u_{t-1},    u_t = s A w_t + z u_{t-1},    out = u_steps  [+ V]
template <class S>
struct Recurrence {
  Index steps = 1;
  bool smooth_first = true, skip = false;
  S s = S(1), x = S(1), y = S(-1), z = S(1);
  S dz_ds = S(0), dz_dy = S(0);  // where z hangs on s (the step size) and y (the feedback)

  /// How many maps are at work, hence how many blocks of columns dA = left right^T has.
  Index sweeps() const { return steps + (smooth_first ? 1 : 0); }
};

/// Gradients of s and y of a Recurrence, summed over all tokens.
template <class S>
struct RecurrenceGradient {
  bool wanted = false;
  Accumulator<S> ds = 0, dy = 0;
};

/// to = a x + b y, in place where they are the same rows. What counts by exactly 0 is not looked at: it may hold
/// anything.
template <class P>
void combine(const Context& context, typename P::Scalar a, View<typename P::Scalar> x, typename P::Scalar b,
             View<typename P::Scalar> y, MutView<typename P::Scalar> to) {
  using S = typename P::Scalar;
  for_rows(context, to.rows, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      if (a != S(0) && b != S(0))
        combine_row<P>(a, x.row(i), b, y.row(i), to.row(i), to.cols);
      else if (a != S(0))
        scale_row<P>(a, x.row(i), to.row(i), to.cols);
      else if (b != S(0))
        scale_row<P>(b, y.row(i), to.row(i), to.cols);
      else
        clear(to.row(i), to.cols);
    }
  });
}

/// out_i = <g_i, v_i>; a row of zeros in g passes nothing, whatever v holds there.
template <class P, class S = typename P::Scalar>
void gradient_row_dots(const Context& context, View<S> g, View<S> v, S* out) {
  for_rows(context, g.rows, [&](Index begin, Index end) {
    row_dots<P>(g.block(begin, 0, end - begin, g.cols), v.block(begin, 0, end - begin, v.cols), out + begin);
    for (Index i = begin; i < end; ++i) {
      if (row_is_finite(out + i, 1)) continue;
      bool zero = true;
      for (Index j = 0; j < g.cols; ++j) zero = zero && g(i, j) == S(0);
      if (zero) out[i] = S(0);
    }
  });
}

/// Block t of an array that keeps what belongs to every step side by side.
template <class V>
V kept_step(const V& all, Index t, Index dv) {
  return all.block(0, t * dv, all.rows, dv);
}

/// w_t = x V + y u_{t-1}, in `to` unless it is one of them.
template <class P, class S = typename P::Scalar>
View<S> recurrence_input(const Context& context, const Recurrence<S>& r, View<S> v, View<S> before, MutView<S> to) {
  if (r.x == S(0) && r.y == S(1)) return before;
  if (r.x == S(1) && r.y == S(0)) return v;
  combine<P>(context, r.x, v, r.y, before, to);
  return to;
}

/// out = E v. known: the log-sum-exp, if it is; else it is found and written to lse. kept (may be empty): u_0, then
/// every A w_t.
template <class P, class Mods, class S = typename P::Scalar>
void recurrence_forward(const Context& context, const Recurrence<S>& r, const Scores<S, Mods>& scores,
                        Lse<const S> known, Lse<S> lse, View<S> v, MutView<S> out, MutView<S> kept) {
  Arena& arena = context.arena();
  ArenaScope scope(arena);
  const Index n = v.rows, dv = v.cols;
  const auto sweep = [&](View<S> x, MutView<S> to) {
    if (known.given()) return smooth_with_lse<P>(context, scores, known, x, to);
    smooth<P>(context, scores, x, to, lse);
    known = lse;
  };
  const MutView<S> w = arena.matrix<S>(n, dv), own = arena.matrix<S>(n, dv);
  if (r.smooth_first) {
    sweep(v, out);  // out holds the last u_t
  } else {
    copy_rows<S>(context, v, out);
    if (r.sweeps() == 0 && !known.given()) sweep(v.block(0, 0, n, 0), own.block(0, 0, n, 0));  // only the log-sum-exp
  }
  if (kept.given()) copy_rows<S>(context, out, kept_step(kept, 0, dv));
  for (Index t = 1; t <= r.steps; ++t) {
    const MutView<S> aw = kept.given() ? kept_step(kept, t, dv) : own;
    sweep(recurrence_input<P, S>(context, r, v, out, w), aw);
    combine<P>(context, r.s, aw, r.z, out, out);  // u_t = s A w_t + z u_{t-1}
  }
  if (r.skip) combine<P>(context, S(1), out, S(1), v, out);
}

/// out = E^T g with the log-sum-exp known.
template <class P, class Mods, class S = typename P::Scalar>
void recurrence_transposed(const Context& context, const Recurrence<S>& r, const Scores<S, Mods>& scores,
                           Lse<const S> lse, View<S> g, MutView<S> out) {
  Arena& arena = context.arena();
  ArenaScope scope(arena);
  const MutView<S> now = arena.matrix<S>(g.rows, g.cols), h = arena.matrix<S>(g.rows, g.cols);
  copy_rows<S>(context, g, now);
  if (r.skip)
    copy_rows<S>(context, g, out);
  else
    out.fill(S(0));
  for (Index t = r.steps; t >= 1; --t) {
    smooth_transposed<P>(context, scores, lse, now, h);
    combine<P>(context, r.s * r.x, h, S(1), out, out);
    combine<P>(context, r.z, now, r.s * r.y, h, now);
  }
  if (r.smooth_first) {
    smooth_transposed<P>(context, scores, lse, now, h);
    combine<P>(context, S(1), h, S(1), out, out);
  } else {
    combine<P>(context, S(1), now, S(1), out, out);
  }
}

/// The backward pass: one sweep of A^T a step and one pull_back, which does the last A^T. G_T = dout, H_t = A^T G_t:
///
///     forward  w_t = x V + y u_{t-1}          u_t = s A w_t + z u_{t-1}
///     dA += s G_t w_t^T,   delta_i += s <G_t, A w_t>_i,   dV += s x H_t,   G_{t-1} = z G_t + s y H_t
///     ds += <G_t, A w_t> = <H_t, w_t>  (no division: s may be 0),   dy += s <H_t, u_{t-1}>,   plus <G_t, u_{t-1}> dz
///
/// kept is the forward pass's; from it the u_t come out again, bit for bit. delta is summed from the A w_t in the order
/// in which dA is summed from the w_t: where a row has one key alone both are the same number, and dS is 0. plan says
/// where dq and dk go and is completed here; dv may be empty.
template <class P, class Mods, class S = typename P::Scalar>
void recurrence_backward(const BackwardPass<P>& pass, const Recurrence<S>& r, BackwardPlan<S, Mods, 1> plan, View<S> v,
                         View<S> kept, View<S> dout, MutView<S> dv, RecurrenceGradient<S>& scalars) {
  const Context& context = pass.context;
  Arena& arena = pass.arena();
  const Index n = v.rows, width = v.cols, sweeps = r.sweeps(), first = r.smooth_first ? 0 : 1;
  const MutView<S> left = arena.matrix<S>(n, sweeps * width), right = arena.matrix<S>(n, sweeps * width);
  const MutView<S> h = arena.matrix<S>(n, width), sum = arena.matrix<S>(dv.given() ? n : 0, width);
  const MutView<S> g_start = arena.matrix<S>(r.smooth_first ? 0 : n, width);         // G_0 where no sweep wants it
  const MutView<S> u = arena.matrix<S>(n, std::max<Index>(0, r.steps - 1) * width);  // u_1 .. u_{T-1}
  const bool scaled = r.s != S(1) && r.steps > 0;
  const MutView<S> smoothed = scaled ? arena.matrix<S>(n, sweeps * width) : MutView<S>();  // s A w_t
  S* delta = arena.take<S>(n);

  const auto of = [&](const MutView<S>& m, Index t) { return kept_step(m, t - first, width); };
  const auto gradient = [&](Index t) { return t < first ? g_start : of(left, t); };  // G_t
  const auto step = [&](Index t) { return t == 0 ? kept_step(kept, 0, width) : View<S>(kept_step(u, t - 1, width)); };
  const auto by_rows = [&](const auto& f) {  // f(a context of one worker, what takes its rows out of an array)
    constexpr Index rows = 64;
    context.run((n + rows - 1) / rows, [&](Index task, Arena& own) {
      const Index begin = task * rows, count = std::min(rows, n - begin);
      f(Context(own), [&](const auto& all) { return all.block(begin, 0, count, all.cols); });
    });
  };
  const auto of_steps = [&](View<S> g, View<S> u_rows) {  // <G, u>; a query without keys whose u is 0 passes nothing
    Accumulator<S> sum = 0;
    if (r.dz_ds == S(0) && r.dz_dy == S(0)) return sum;
    for (Index i = 0; i < n; ++i) {
      const S* u_row = u_rows.row(i);
      if (plan.maps[0].lse.inverse[i] == S(0) &&
          std::all_of(u_row, u_row + width, [](const S& x) { return x == S(0); }))
        continue;
      sum += inner_product<S>(g.block(i, 0, 1, width), u_rows.block(i, 0, 1, width));
    }
    return sum;
  };
  const auto descend = [&](Index t) {  // what H_t = A^T G_t says, once it is known
    if (scalars.wanted) {
      const Accumulator<S> hv = r.x == S(0) ? Accumulator<S>(0) : inner_product<S>(h, v);
      const Accumulator<S> hu = inner_product<S>(h, step(t - 1)), gu = of_steps(gradient(t), step(t - 1));
      scalars.ds += Accumulator<S>(r.x) * hv + Accumulator<S>(r.y) * hu + Accumulator<S>(r.dz_ds) * gu;
      scalars.dy += Accumulator<S>(r.s) * hu + Accumulator<S>(r.dz_dy) * gu;
    }
    by_rows([&](const Context& alone, const auto& in) {
      if (dv.given()) combine<P>(alone, r.s * r.x, in(h), S(1), in(sum), in(sum));
      combine<P>(alone, r.z, in(gradient(t)), r.s * r.y, in(h), in(gradient(t - 1)));
    });
  };

  by_rows([&](const Context& alone, const auto& in) {
    for (Index t = 1; t < r.steps; ++t)
      combine<P>(alone, r.s, in(kept_step(kept, t, width)), r.z, in(step(t - 1)), in(kept_step(u, t - 1, width)));
    for (Index t = 1; t <= r.steps; ++t) {
      const MutView<S> to = in(of(right, t));
      const View<S> w = recurrence_input<P, S>(alone, r, in(v), in(step(t - 1)), to);
      if (scaled) {
        combine<P>(alone, r.s, w, S(0), w, to);
        combine<P>(alone, r.s, in(kept_step(kept, t, width)), S(0), w, in(of(smoothed, t)));
      } else if (w.data != to.data) {
        copy<S>(w, to);
      }
    }
    if (r.smooth_first) {  // u_0 = A V
      copy<S>(in(v), in(of(right, 0)));
      if (scaled) copy<S>(in(kept_step(kept, 0, width)), in(of(smoothed, 0)));
    }
    copy<S>(in(dout), in(gradient(r.steps)));
    if (dv.given()) r.skip ? copy<S>(in(dout), in(sum)) : in(sum).fill(S(0));
  });
  for (Index t = r.steps; t >= 1; --t) {
    if (t == first) break;  // pull_back does this sweep
    smooth_transposed<P>(context, plan.maps[0].scores, plan.maps[0].lse, gradient(t), h);
    descend(t);
  }
  gradient_row_dots<P, S>(context, left, scaled ? View<S>(smoothed) : kept.block(0, first * width, n, sweeps * width),
                          delta);

  plan.maps[0].delta = delta;
  plan.left = left, plan.right = right;
  if (sweeps > 0 && (dv.given() || (!r.smooth_first && scalars.wanted))) {
    plan.x = left.block(0, 0, n, width);  // the earliest G_t
    plan.dv = h;
  }
  plan.accumulate_v = false;
  pull_back<P>(context, plan, pass.collected);
  if (!r.smooth_first && r.steps > 0 && plan.dv.given()) descend(1);
  if (dv.given()) {
    by_rows([&](const Context& alone, const auto& in) {
      combine<P>(alone, S(1), in(r.smooth_first ? h : g_start), S(1), in(sum), in(sum));
      copy_or_add<S>(in(sum), in(dv), pass.accumulate.kv);
    });
  }
}

/// A block of E from (q0, k0), as large as out: from columns or rows of the identity, whichever are fewer.
template <class P, class Mods, class S = typename P::Scalar>
void recurrence_block(const Context& context, const Recurrence<S>& r, const Scores<S, Mods>& scores, Lse<const S> lse,
                      Index q0, Index k0, MutView<S> out) {
  constexpr Index at_once = 64;
  const bool by_columns = out.cols <= out.rows;
  const Index n = scores.n(), count = by_columns ? out.cols : out.rows, first = by_columns ? k0 : q0;
  for (Index c = 0; c < count; c += at_once) {
    ArenaScope scope(context.arena());
    const Index some = std::min(at_once, count - c);
    const MutView<S> unit = context.arena().template matrix<S>(n, some);
    const MutView<S> result = context.arena().template matrix<S>(n, some);
    unit.fill(S(0));
    for (Index i = 0; i < some; ++i) unit(first + c + i, i) = S(1);
    if (by_columns) {
      recurrence_forward<P>(context, r, scores, lse, Lse<S>(), View<S>(unit), result, MutView<S>());
      for (Index i = 0; i < out.rows; ++i)
        for (Index j = 0; j < some; ++j) out(i, c + j) = result(q0 + i, j);
    } else {
      recurrence_transposed<P>(context, r, scores, lse, View<S>(unit), result);
      for (Index i = 0; i < some; ++i)
        for (Index j = 0; j < out.cols; ++j) out(c + i, j) = result(k0 + j, i);
    }
  }
}

/// The log-sum-exp; u_0 and every A w_t side by side.
template <class T>
struct RecurrenceKeep {
  T lse, kept;
  template <class Op, class F, class... K>
  static void visit_for(const Op& op, F&& f, const auto& head, K&&... k) {
    f(Kept::stat, 2, true, k.lse...);
    f(Kept::rows, (op.steps() + 1) * head.v.cols, false, k.kept...);
  }
};

/// Whether steps stay in range of the scalar where the map has the eigenvalues 0 and 1, as maps nearly have: elsewhere,
/// what rounding leaves in such a direction would overflow after so many.
template <class S>
bool stays_in_range(const Recurrence<S>& r) {
  if (r.steps == 0) return true;
  if (!are_factors(r.z, r.s, r.s * r.x, r.s * r.y)) return false;
  if constexpr (std::is_constructible_v<double, S> && std::numeric_limits<S>::is_specialized) {
    const double growth = std::max({1.0, std::abs(double(r.z)), std::abs(double(r.s * r.y + r.z))});
    return double(r.steps) * std::log2(growth) <= std::log2(largest_factor<S>());
  }
  return true;
}

inline void check_square(const char* op, const Dims& dims) {
  if (dims.n != dims.m)
    raise(std::string(op) + ": q has n = " + text_of(dims.n) + " tokens an item and k has m = " + text_of(dims.m) +
          ", wanted the same: the map is applied to its own output");
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
