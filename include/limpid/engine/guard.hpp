// limpid: the guards against values nobody may see: what is not finite behind a mask.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "backward_plan.hpp"
#include "many_rows.hpp"
#include "scores.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// A copy of v with zeros in the place of what is not finite: of such entries, or of the rows that hold one.
template <class S>
View<S> without_bad_entries(Arena& arena, View<S> v) {
  const MutView<S> c = arena.matrix<S>(v.rows, v.cols);
  for (Index i = 0; i < v.rows; ++i)
    for (Index k = 0; k < v.cols; ++k) c(i, k) = row_is_finite(&v(i, k), 1) ? v(i, k) : S(0);
  return c;
}
template <class S>
View<S> without_bad_rows(Arena& arena, View<S> v) {
  const MutView<S> c = arena.matrix<S>(v.rows, v.cols);
  for (Index i = 0; i < v.rows; ++i) {
    const bool fine = row_is_finite(v.row(i), v.cols);
    for (Index k = 0; k < v.cols; ++k) c(i, k) = fine ? v(i, k) : S(0);
  }
  return c;
}

/// Scores of such copies, halves of |row|^2 included, which are NaN for such rows.
template <class S, class Mods>
void without_bad_queries(Arena& arena, Scores<S, Mods>& scores) {
  scores.q = without_bad_rows(arena, scores.q);
  for (auto& part : scores.parts)
    if (part.near_alone())
      part.half_q = without_bad_entries(arena, View<S>(part.half_q, 1, scores.n() + part.behind, 0)).data;
}
template <class S, class Mods>
void without_bad_keys(Arena& arena, Scores<S, Mods>& scores) {
  scores.k = without_bad_rows(arena, scores.k);
  for (auto& part : scores.parts)
    if (part.near_alone())
      part.half_k = without_bad_entries(arena, View<S>(part.half_k, 1, scores.m() + part.behind, 0)).data;
}

/// A masked key must not be seen, whatever it holds: 0 * NaN would show it. Where a pair can be
/// masked, keys and values are looked through; if one is not finite, the sweep works on copies with
/// zeros in its place, and `poison` then writes NaN exactly where a query that keeps such a key
/// would have had it: everywhere for a key, in its column for an entry of a value. Queries
/// likewise, where a score function may add minus infinity: NaN - inf would not be a masked score.
template <class P, class Mods>
class KeyGuard {
 public:
  using S = typename P::Scalar;

  KeyGuard(const Context& context, Scores<S, Mods>& scores, View<S>& x)
      : scores_(&scores), bad_k_(scores.k), bad_x_(x) {
    Arena& arena = context.arena();
    const auto clean = [&](View<S> v) { return all_finite<P>(context, v); };
    scores.settle(arena);
    if (!scores.can_mask()) return;
    if (Mods::per_pair && !clean(scores.q)) {
      queries_ = arena.take<Index>(scores.n());
      for (Index i = 0; i < scores.n(); ++i)
        if (!row_is_finite(scores.q.row(i), scores.q.cols)) queries_[query_count_++] = i;
      without_bad_queries(arena, scores);
    }
    const bool fine_k = clean(bad_k_), fine_x = clean(bad_x_);
    if (fine_k && fine_x) return;
    keys_ = arena.take<Index>(scores.m());
    for (Index j = 0; j < scores.m(); ++j)
      if (!row_is_finite(bad_k_.row(j), bad_k_.cols) || !row_is_finite(bad_x_.row(j), bad_x_.cols)) keys_[count_++] = j;
    if (!fine_k) without_bad_keys(arena, scores);
    if (!fine_x) x = without_bad_entries(arena, bad_x_);
  }

  bool found() const { return count_ > 0 || query_count_ > 0; }
  void poison(MutView<S> out, Lse<S> lse) const {
    const S nan = S(std::numeric_limits<double>::quiet_NaN());
    const auto spoil_lse = [&](Index i) {
      if (lse.given()) lse.top[i] = lse.inverse[i] = nan;
    };
    for (Index b = 0; b < count_; ++b) {
      const Index j = keys_[b];
      const bool whole = !row_is_finite(bad_k_.row(j), bad_k_.cols);
      for (Index i = 0; i < out.rows; ++i) {
        if (!keeps(i, j)) continue;
        if (whole) spoil_lse(i);
        for (Index c = 0; c < out.cols; ++c)
          if (whole || !row_is_finite(&bad_x_(j, c), 1)) out(i, c) = nan;
      }
    }
    for (Index b = 0; b < query_count_; ++b) {
      const Index i = queries_[b];
      bool any = false;
      for (Index j = 0; j < scores_->m() && !any; ++j) any = keeps(i, j);
      if (!any) continue;
      spoil_lse(i);
      for (Index c = 0; c < out.cols; ++c) out(i, c) = nan;
    }
  }

  bool keeps(Index i, Index j) const { return scores_->keeps(i, j); }

 private:
  const Scores<S, Mods>* scores_;
  View<S> bad_k_, bad_x_;
  Index *keys_ = nullptr, *queries_ = nullptr;
  Index count_ = 0, query_count_ = 0;
};

/// As KeyGuard, for sums over queries: a row of g that keeps no key passes nothing, whatever it or its query holds, and
/// an entry of g that is not finite spoils its column alone.
template <class P, class Mods>
class RowGuard {
 public:
  using S = typename P::Scalar;

  RowGuard(const Context& context, Scores<S, Mods>& scores, Lse<const S>& lse, View<S>& g)
      : scores_(&scores), bad_g_(g) {
    Arena& arena = context.arena();
    using std::isnan;
    if (!scores.can_mask()) return;
    bool clean = all_finite<P>(context, g) && all_finite<P>(context, scores.q);
    const auto unknown = [&](Index i) { return are_normalised<Mods> && isnan(lse.inverse[i]); };
    for (Index i = 0; i < g.rows; ++i) clean = clean && !unknown(i);
    if (clean) return;
    rows_ = arena.take<Index>(g.rows);
    whole_ = arena.take<bool>(g.rows);
    S *top = arena.take<S>(g.rows), *inverse = arena.take<S>(g.rows);
    for (Index i = 0; i < g.rows; ++i) {
      const bool whole = unknown(i) || !row_is_finite(scores.q.row(i), scores.q.cols);
      if (whole || !row_is_finite(g.row(i), g.cols)) rows_[count_] = i, whole_[count_++] = whole;
      if constexpr (are_normalised<Mods>) {
        top[i] = whole ? -minus_infinity<S>() : lse.top[i];
        inverse[i] = whole ? S(0) : lse.inverse[i];
      }
    }
    without_bad_queries(arena, scores);
    g = without_bad_entries(arena, g), lse = {top, inverse};
  }

  /// NaN into out = A^T g wherever such a row keeps a key.
  void poison(MutView<S> out) const {
    const S nan = S(std::numeric_limits<double>::quiet_NaN());
    for (Index b = 0; b < count_; ++b)
      for (Index j = 0; j < out.rows; ++j) {
        if (!scores_->keeps(rows_[b], j)) continue;
        for (Index c = 0; c < out.cols; ++c)
          if (whole_[b] || !row_is_finite(&bad_g_(rows_[b], c), 1)) out(j, c) = nan;
      }
  }

 private:
  const Scores<S, Mods>* scores_;
  View<S> bad_g_;
  Index* rows_ = nullptr;
  bool* whole_ = nullptr;  // the weights themselves are NaN
  Index count_ = 0;
};

/// As KeyGuard, for the backward pass. What is not finite is replaced by zeros, and `poison`
/// writes NaN where it would have come: a row of dS where a query, its dout, or a key or
/// value that it keeps is not finite; where it is a query or key, its weights too, which dV
/// hangs on. A query with nothing to keep, or a masked key, passes nothing whatever it holds.
template <class P, int M, class Mods>
class PullGuard {
 public:
  using S = typename P::Scalar;

  PullGuard(const Context& context, BackwardPlan<S, Mods, M>& plan)
      : plan_(plan), bad_left_(plan.left), bad_right_(plan.right), bad_x_(plan.x) {
    Arena& arena = context.arena();
    for (auto& map : plan.maps) map.scores.settle(arena);
    if (std::none_of(plan.maps.begin(), plan.maps.end(), [](const auto& map) { return map.scores.can_mask(); })) return;
    bool clean = all_finite<P>(context, plan.left) && all_finite<P>(context, plan.right);
    if (plan.dv.given()) clean = clean && all_finite<P>(context, plan.x);
    for (const auto& map : plan.maps)
      clean = clean && all_finite<P>(context, map.scores.q) && all_finite<P>(context, map.scores.k);
    if (clean) return;
    const Index n = plan.left.rows, m = plan.right.rows;
    state_ = arena.take<State>(n);
    bool *bad_key = arena.take<bool>(m), *bad_value = arena.take<bool>(m);
    for (Index j = 0; j < m; ++j) {
      bad_value[j] = !row_is_finite(plan.right.row(j), plan.right.cols);
      bad_key[j] = false;
      for (const auto& map : plan.maps) bad_key[j] |= !row_is_finite(map.scores.k.row(j), map.scores.k.cols);
    }
    for (Index i = 0; i < n; ++i) {
      bool odd = false;
      for (const auto& map : plan.maps) odd |= !row_is_finite(map.scores.q.row(i), map.scores.q.cols);
      const bool odd_left = !row_is_finite(plan.left.row(i), plan.left.cols);
      state_[i] = State::fine;
      for (Index j = 0; j < m && state_[i] != State::no_weights; ++j)
        if ((odd || odd_left || bad_key[j] || bad_value[j]) && plan.maps[0].scores.keeps(i, j))
          state_[i] = odd || bad_key[j] ? State::no_weights : State::no_gradient;
    }
    plan.left = without_bad_entries(arena, plan.left);
    plan.right = without_bad_entries(arena, plan.right);
    if (plan.dv.given()) plan.x = without_bad_entries(arena, plan.x);
    for (auto& map : plan.maps) {
      without_bad_queries(arena, map.scores);
      without_bad_keys(arena, map.scores);
      if constexpr (!are_normalised<Mods>) continue;  // what bad rows would give is written over
      S *top = arena.take<S>(n), *inverse = arena.take<S>(n), *delta = arena.take<S>(n);
      for (Index i = 0; i < n; ++i) {
        const bool out = state_[i] == State::no_weights;
        top[i] = out ? -minus_infinity<S>() : map.lse.top[i];
        inverse[i] = out ? S(0) : map.lse.inverse[i];
        delta[i] = out ? S(0) : (state_[i] == State::fine ? map.delta[i] : nan());
      }
      map.lse = {top, inverse}, map.delta = delta;
    }
  }

  void poison(S* collected) const {
    if (!state_) return;
    const auto& scores = plan_.maps[0].scores;
    const auto spoil = [&](MutView<S> v, Index row) {
      if (v.given())
        for (Index c = 0; c < v.cols; ++c) v(row, c) = nan();
    };
    for (Index i = 0; i < plan_.left.rows; ++i) {
      const bool weights = state_[i] != State::no_weights, gradient = state_[i] == State::fine;
      const bool left = row_is_finite(bad_left_.row(i), bad_left_.cols);
      const bool x = !plan_.dv.given() || row_is_finite(bad_x_.row(i), bad_x_.cols);
      if (gradient && x) continue;
      if (!gradient)
        for (const auto& map : plan_.maps) spoil(map.dq, i);
      for (Index j = 0; j < plan_.right.rows; ++j) {
        if (!scores.keeps(i, j)) continue;
        if (!weights)
          spoil(plan_.dv, j);
        else if (!x)
          for (Index c = 0; c < plan_.dv.cols; ++c)
            if (!row_is_finite(&bad_x_(i, c), 1)) plan_.dv(j, c) = nan();
        if (gradient) continue;
        for (const auto& map : plan_.maps) {
          spoil(map.dk, j);
          if (map.dbias) map.dbias[j] = nan();
        }
        if (plan_.relevance.c && !(weights && left && row_is_finite(bad_right_.row(j), bad_right_.cols)))
          plan_.relevance.c[j] = nan();
        if (Mods::collects_gradient && scores.mods->wants_gradient())
          scores.mods->pull(S(0), nan(), scores.place(i, j), collected);
      }
      if (!gradient)
        for (const auto& moment : plan_.moments)
          if (moment.sum) *moment.sum = Accumulator<S>(nan());
    }
  }

 private:
  enum class State : unsigned char { fine, no_gradient, no_weights };  // of a query's row

  static S nan() { return S(std::numeric_limits<double>::quiet_NaN()); }

  BackwardPlan<S, Mods, M>& plan_;
  View<S> bad_left_, bad_right_, bad_x_;
  State* state_ = nullptr;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
