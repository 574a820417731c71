// limpid: the guard against values nobody may see: what is not finite behind a mask.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "backward_plan.hpp"
#include "many_rows.hpp"
#include "scores.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// A copy of v with zeros in the place of what is not finite: of such entries, or of the whole rows that hold one.
template <class S>
View<S> without_bad(Arena& arena, View<S> v, bool whole_rows) {
  const MutView<S> c = arena.matrix<S>(v.rows, v.cols);
  for (Index i = 0; i < v.rows; ++i) {
    const bool fine = !whole_rows || row_is_finite(v.row(i), v.cols);
    for (Index k = 0; k < v.cols; ++k) c(i, k) = fine && row_is_finite(&v(i, k), 1) ? v(i, k) : S(0);
  }
  return c;
}

/// An array as it was given to a sweep, which reads a copy without_bad where it is not fine.
template <class S>
struct Guarded {
  View<S> given = {};
  bool fine = true;
  bool row_is_fine(Index i) const { return fine || row_is_finite(given.row(i), given.cols); }
  bool entry_is_fine(Index i, Index c) const { return fine || row_is_finite(&given(i, c), 1); }
};

/// The arrays that a sweep reads beside q and k, as far as it does.
template <class S>
struct SweepArrays {
  View<S>* right = nullptr;  ///< a row for each key: of out = A right, or of dA = left right^T
  View<S>* left = nullptr;   ///< a row for each query
  View<S>* x = nullptr;      ///< a row for each query: of out = A^T x
};

/// What a Guard does whatever the modifiers. A Keeps says whether a query keeps a key.
template <class P, int M>
class GuardedArrays {
 public:
  using S = typename P::Scalar;

 protected:
  using Keeps = FunctionRef<bool(Index, Index)>;
  enum class Bad : unsigned char { nothing, sums, weights };  // of a row of A, by what it keeps

  static S nan() { return S(std::numeric_limits<double>::quiet_NaN()); }
  /// NaN into row r of out.
  static void spoil(MutView<S> out, Index r) {
    if (out.given()) std::fill(out.row(r), out.row(r) + out.cols, nan());
  }
  /// The same where row i of an array is not finite.
  static void spoil(MutView<S> out, Index r, const Guarded<S>& from, Index i) {
    for (Index c = 0; c < out.cols; ++c)
      if (!from.entry_is_fine(i, c)) out(r, c) = nan();
  }

  static Guarded<S> guarded(const Context& context, View<S>* v) {
    if (!v) return {};
    const Guarded<S> as_given{*v, all_finite<P>(context, *v)};
    if (!as_given.fine) *v = without_bad(context.arena(), *v, false);
    return as_given;
  }
  /// The queries or the keys of a map, and their halves of |row|^2, which are NaN for such rows.
  static Guarded<S> guarded(const Context& context, View<S>& rows, PartsOfScores<S>& parts,
                            const S* ScorePart<S>::*half) {
    const Guarded<S> as_given{rows, all_finite<P>(context, rows)};
    if (as_given.fine) return as_given;
    rows = without_bad(context.arena(), as_given.given, true);
    for (auto& part : parts)
      if (part.near_alone()) {
        const View<S> halves(part.*half, 1, as_given.given.rows + part.behind, 0);
        part.*half = without_bad(context.arena(), halves, false).data;
      }
    return as_given;
  }

  static Bad bad(const Few<Guarded<S>, M>& rows, const Guarded<S>& beside, Index i) {
    for (const auto& v : rows)
      if (!v.row_is_fine(i)) return Bad::weights;
    return beside.row_is_fine(i) ? Bad::nothing : Bad::sums;
  }
  void find_rows(Arena& arena, Index n, Index m, Keeps keeps) {
    rows_ = arena.take<Bad>(n), keys_ = arena.take<Index>(m);
    Bad* of_keys = arena.take<Bad>(m);
    for (Index j = 0; j < m; ++j)
      if ((of_keys[j] = bad(k_, right_, j)) != Bad::nothing) keys_[key_count_++] = j;
    for (Index i = 0; i < n; ++i) {
      const Bad own = bad(q_, left_, i);
      rows_[i] = Bad::nothing;
      for (Index j = 0; j < m && rows_[i] != own; ++j)
        if (keeps(i, j)) rows_[i] = own;
      for (Index b = 0; b < key_count_ && rows_[i] != Bad::weights; ++b)
        if (keeps(i, keys_[b])) rows_[i] = std::max(rows_[i], of_keys[keys_[b]]);
    }
  }

  void poison_rows(MutView<S> out, Lse<S> lse, Keeps keeps) const {
    for (Index i = 0; i < out.rows; ++i) {
      if (rows_[i] == Bad::weights) {
        spoil(out, i);
        if (lse.given()) lse.top[i] = lse.inverse[i] = nan();
      } else if (rows_[i] == Bad::sums) {
        for (Index b = 0; b < key_count_; ++b)
          if (keeps(i, keys_[b])) spoil(out, i, right_, keys_[b]);
      }
    }
  }
  void poison_columns(MutView<S> out, Index n, Keeps keeps) const {
    for (Index i = 0; i < n; ++i) {
      const bool weights = rows_[i] == Bad::weights;
      if (!weights && x_.row_is_fine(i)) continue;
      for (Index j = 0; j < out.rows; ++j)
        if (keeps(i, j)) weights ? spoil(out, j) : spoil(out, j, x_, i);
    }
  }

  Few<Guarded<S>, M> q_, k_;
  Guarded<S> left_, right_, x_;
  Bad* rows_ = nullptr;  // null: all that was looked through is finite
  Index* keys_ = nullptr;
  Index key_count_ = 0;
};

/// What is not finite has to show in all that counts it, and in nothing else: 0 * NaN would show what a masked key, or
/// a query that keeps no key, holds, and NaN - inf is no masked score. Where a pair can be masked, what a sweep reads
/// is looked through; if something is not finite, the sweep works on copies with zeros in its place, and `poison` then
/// writes NaN where it would have come. A query that is not finite and keeps a key, or a key that is kept, spoils a
/// row's weights and all that is made of them; an entry of another array the sums that it is part of, its column alone.
/// Queries are looked through in a backward pass, whose dK is made of them, or where a score function may mask.
template <class P, class Mods, int M = 1>
class Guard : GuardedArrays<P, M> {
  using Base = GuardedArrays<P, M>;
  using Base::guarded, Base::nan, Base::spoil;
  using Base::q_, Base::k_, Base::left_, Base::right_, Base::x_, Base::rows_;
  using typename Base::Bad;

 public:
  using S = typename P::Scalar;
  using Map = Scores<S, Mods>;

  /// All maps are of the same pairs. Whatever is not finite is replaced in them and in the arrays.
  Guard(const Context& context, const Few<Map*, M>& maps, const SweepArrays<S>& arrays = {}) : map_(maps[0]) {
    Arena& arena = context.arena();
    bool can_mask = false;
    for (Map* map : maps) map->settle(arena), can_mask = can_mask || map->can_mask();
    if (!can_mask || map_->unguarded) return;
    right_ = guarded(context, arrays.right), left_ = guarded(context, arrays.left), x_ = guarded(context, arrays.x);
    bool fine = right_.fine && left_.fine && x_.fine;
    for (std::size_t t = 0; t < M; ++t) {
      Map& map = *maps[t];
      if (Mods::per_pair || arrays.left) q_[t] = guarded(context, map.q, map.parts, &ScorePart<S>::half_q);
      k_[t] = guarded(context, map.k, map.parts, &ScorePart<S>::half_k);
      fine = fine && q_[t].fine && k_[t].fine;
    }
    if (!fine) this->find_rows(arena, map_->n(), map_->m(), KeepsOf{map_});
  }

  /// Of out = A right, and the log-sum-exp of its rows.
  void poison(MutView<S> out, Lse<S> lse) const {
    if (rows_) this->poison_rows(out, lse, KeepsOf{map_});
  }

  /// Of out = A^T x.
  void poison_transposed(MutView<S> out) const {
    if (rows_) this->poison_columns(out, map_->n(), KeepsOf{map_});
  }

  /// Of a backward pass: dV = A^T x, and all that is made of dS, whose rows are NaN where those of A or of dA are.
  void poison(const BackwardPlan<S, Mods, M>& plan, S* collected) const {
    if (!rows_) return;
    if (plan.dv.given()) poison_transposed(plan.dv);
    for (Index i = 0; i < map_->n(); ++i) {
      if (rows_[i] == Bad::nothing) continue;
      for (const auto& map : plan.maps) spoil(map.dq, i);
      for (Index j = 0; j < map_->m(); ++j) {
        if (!map_->keeps(i, j)) continue;
        for (const auto& map : plan.maps) {
          spoil(map.dk, j);
          if (map.dbias) map.dbias[j] = nan();
        }
        if (plan.relevance.c && (rows_[i] == Bad::weights || !left_.row_is_fine(i) || !right_.row_is_fine(j)))
          for (Index r = 0; r < plan.relevance.rows; ++r) plan.relevance.c[r * plan.relevance.c_stride + j] = nan();
        if (Mods::collects_gradient && map_->mods->wants_gradient())
          map_->mods->pull(S(0), nan(), map_->place(i, j), collected);
      }
      for (const auto& moment : plan.moments)
        if (moment.sum) *moment.sum = Accumulator<S>(nan());
    }
  }

 private:
  struct KeepsOf {
    const Map* map;
    bool operator()(Index i, Index j) const { return map->keeps(i, j); }
  };
  const Map* map_;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
