// limpid: the context of a sweep (scratch memory, who runs the tasks), and the guard against values nobody may see.
// SPDX-License-Identifier: MIT
#pragma once

#include "executor.hpp"
#include "rows.hpp"
#include "scores.hpp"
#include "workspace.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Where a sweep takes scratch from and who runs its tasks. Either the sweep runs on one worker, or it spreads.
class Context {
 public:
  explicit Context(Arena& arena) : arena_(&arena) {}
  Context(Workspace& workspace, ExecutorRef executor)
      : arena_(&workspace.common()), workspace_(&workspace), executor_(executor) {}

  Arena& arena() const { return *arena_; }
  /// Whether tasks may run at the same time.
  bool spreads() const { return workspace_ != nullptr && executor_.workers() > 1; }
  /// task(t, arena) for every t in [0, count); what a task takes from the arena is given back when it ends.
  template <class Task>
  void run(Index count, Task&& task) const {
    if (!spreads()) {
      for (Index t = 0; t < count; ++t) {
        ArenaScope scope(*arena_);
        task(t, *arena_);
      }
      return;
    }
    executor_.run(count, [&](Index t, int worker) {
      Arena& own = workspace_->worker(worker);
      ArenaScope scope(own);
      task(t, own);
    });
    workspace_->level();
  }

 private:
  Arena* arena_;
  Workspace* workspace_ = nullptr;
  ExecutorRef executor_;
};

template <class P>
bool all_finite(View<typename P::Scalar> v) {
  using S = typename P::Scalar;
  constexpr int G = P::strands;
  const Index strand = v.rows / G;
  // a nought that the compiler does not know: told that signs of zeros do not matter, it would leave out x * 0
  const typename P::V nought = P::keep(P::set(S(0)));
  const S none = P::sum(nought);
  typename P::V zero[G];
  LIMPID_UNROLL(4)
  for (int g = 0; g < G; ++g) zero[g] = nought;
  S rest(0);
  const auto row = [&](Index i, auto sides) {  // of each strand, or alone
    Index j = 0;
    for (; j + P::lanes <= v.cols; j += P::lanes) {
      LIMPID_UNROLL(4)
      for (int g = 0; g < decltype(sides)::value; ++g)
        zero[g] = P::fma(P::load(v.row(i + g * strand) + j), nought, zero[g]);
    }
    for (; j < v.cols; ++j)
      for (int g = 0; g < decltype(sides)::value; ++g) rest += v(i + g * strand, j) * none;
  };
  for (Index i = 0; i < strand; ++i) row(i, std::integral_constant<int, G>());
  for (Index i = G * strand; i < v.rows; ++i) row(i, std::integral_constant<int, 1>());
  LIMPID_UNROLL(4)
  for (int g = 0; g < G; ++g) rest += P::sum(zero[g]);
  return !(rest != S(0));
}

/// <a, b>, lanes along the entries.
template <class P>
typename P::Scalar vector_dot(const typename P::Scalar* a, const typename P::Scalar* b, Index count) {
  typename P::V sum = P::set(typename P::Scalar(0));
  Index j = 0;
  for (; j + P::lanes <= count; j += P::lanes) sum = P::fma(P::load(a + j), P::load(b + j), sum);
  return P::sum(sum) + dot(a + j, b + j, count - j);
}

/// Both for callers outside of the engine, who know no policy.
template <class S>
S squared_norm(View<S> x, Index i) {
  return vector_dot<Native<S>>(x.row(i), x.row(i), x.cols);
}
template <class S>
bool holds_finite(View<S> x) {
  return all_finite<Native<S>>(x);
}

/// out_i = <a_i, b_i> for every row, each summed in the order of the register tile: where one weight is all but 1, the
/// rows of out and of v are equal there, and delta takes all of dA away, to the last bit.
template <class P>
LIMPID_NOINLINE void row_dots(View<typename P::Scalar> a, View<typename P::Scalar> b, typename P::Scalar* out) {
  using S = typename P::Scalar;
  using V = typename P::V;
  constexpr Index w = P::lanes;
  for (Index i = 0; i < a.rows; i += w) {
    const Index rows = std::min(w, a.rows - i);
    const auto row = [&](View<S> of, Index r) { return of.row(r < rows ? i + r : i); };
    V sum = P::set(S(0));
    Index c = 0;
    for (; c + w <= a.cols; c += w) {
      V x[w], y[w];
      LIMPID_UNROLL(16)
      for (Index r = 0; r < w; ++r) {
        x[r] = P::load(row(a, r) + c), y[r] = P::load(row(b, r) + c);
        P::fetch(row(a, r) + c, w * a.stride), P::fetch(row(b, r) + c, w * b.stride);  // of the next w rows
      }
      P::transpose(x);
      P::transpose(y);
      LIMPID_UNROLL(16)
      for (Index r = 0; r < w; ++r) sum = P::fma(x[r], y[r], sum);
    }
    S lane[w];
    for (; c < a.cols; ++c) {
      S other[w];
      for (Index r = 0; r < w; ++r) lane[r] = row(a, r)[c], other[r] = row(b, r)[c];
      sum = P::fma(P::load(lane), P::load(other), sum);
    }
    P::store(lane, sum);
    std::copy(lane, lane + rows, out + i);
  }
}

/// sum_ij g_ij v_ij, where g is not 0; made and summed wide, as most of it may cancel.
template <class S>
Wide<S> inner_product(View<S> g, View<S> v) {
  Wide<S> sum = 0;
  for (Index i = 0; i < g.rows; ++i)
    for (Index j = 0; j < g.cols; ++j)
      if (g(i, j) != S(0)) sum += Wide<S>(g(i, j)) * Wide<S>(v(i, j));
  return sum;
}

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

/// A masked key must not be seen, whatever it holds: 0 * NaN would show it. Where a pair can be masked, keys and values
/// are looked through; if one is not finite, the sweep works on copies with zeros in its place, and `poison` then
/// writes NaN exactly where a query that keeps such a key would have had it: everywhere for a key, in its column for an
/// entry of a value. Queries likewise, where a score function may add minus infinity: NaN - inf would not be a masked
/// score.
template <class P, class Mods>
class KeyGuard {
 public:
  using S = typename P::Scalar;

  KeyGuard(Arena& arena, Scores<S, Mods>& scores, View<S>& x) : scores_(&scores), bad_k_(scores.k), bad_x_(x) {
    scores.settle(arena);
    if (!scores.can_mask()) return;
    if (Mods::values && !clean(scores.q)) {
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
  static bool clean(View<S> v) { return all_finite<P>(v); }
  const Scores<S, Mods>* scores_;
  View<S> bad_k_, bad_x_;
  Index *keys_ = nullptr, *queries_ = nullptr;
  Index count_ = 0, query_count_ = 0;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
