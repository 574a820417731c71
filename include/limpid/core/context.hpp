// limpid: the context of a sweep (scratch memory, who runs the tasks), and the guard against values nobody may see.
// SPDX-License-Identifier: MIT
#pragma once

#include "executor.hpp"
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
  typename P::V zero[G];
  for (int g = 0; g < G; ++g) zero[g] = P::set(S(0));
  S rest(0);
  const auto row = [&](Index i, auto sides) {  // of each strand, or alone
    Index j = 0;
    for (; j + P::lanes <= v.cols; j += P::lanes) {
      LIMPID_UNROLL(4)
      for (int g = 0; g < decltype(sides)::value; ++g)
        zero[g] = P::fma(P::load(v.row(i + g * strand) + j), P::set(S(0)), zero[g]);
    }
    for (; j < v.cols; ++j)
      for (int g = 0; g < decltype(sides)::value; ++g) rest += v(i + g * strand, j) * S(0);
  };
  for (Index i = 0; i < strand; ++i) row(i, std::integral_constant<int, G>());
  for (Index i = G * strand; i < v.rows; ++i) row(i, std::integral_constant<int, 1>());
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

/// A masked key must not be seen, whatever it holds: 0 * NaN would show it. Where a pair can be masked, keys and values
/// are looked through; if a row is not finite, the sweep works on a copy with zeros in its place, and `poison` then
/// writes NaN exactly where a query that keeps such a key would have had it. Queries likewise, where a score function
/// may add minus infinity: NaN - inf would not be a masked score.
template <class P, class Mods>
class KeyGuard {
 public:
  using S = typename P::Scalar;

  KeyGuard(Arena& arena, Scores<S, Mods>& scores, View<S>& x) : scores_(&scores), bad_k_(scores.k), bad_x_(x) {
    if (!scores.can_mask()) return;
    if (Mods::values && !clean(scores.q)) {
      queries_ = arena.take<Index>(scores.n());
      const MutView<S> q = arena.matrix<S>(scores.q.rows, scores.q.cols);
      for (Index i = 0; i < scores.n(); ++i) {
        const bool fine = row_is_finite(scores.q.row(i), q.cols);
        if (!fine) queries_[query_count_++] = i;
        for (Index c = 0; c < q.cols; ++c) q(i, c) = fine ? scores.q(i, c) : S(0);
      }
      scores.q = q;
    }
    if (clean(scores.k) && clean(x)) return;
    keys_ = arena.take<Index>(scores.m());
    MutView<S> k = arena.matrix<S>(scores.k.rows, scores.k.cols), y = arena.matrix<S>(x.rows, x.cols);
    for (Index j = 0; j < scores.m(); ++j) {
      const bool fine = row_is_finite(bad_k_.row(j), k.cols) && row_is_finite(bad_x_.row(j), y.cols);
      if (!fine) keys_[count_++] = j;
      for (Index c = 0; c < k.cols; ++c) k(j, c) = fine ? bad_k_(j, c) : S(0);
      for (Index c = 0; c < y.cols; ++c) y(j, c) = fine ? bad_x_(j, c) : S(0);
    }
    scores.k = k;
    x = y;
  }

  bool found() const { return count_ > 0 || query_count_ > 0; }
  /// Whether query i keeps a key that is not finite.
  bool sees(Index i) const {
    for (Index b = 0; b < count_; ++b)
      if (keeps(i, keys_[b])) return true;
    return false;
  }

  void poison(MutView<S> out, S* lse) const {
    const S nan = S(std::numeric_limits<double>::quiet_NaN());
    for (Index b = 0; b < count_; ++b) {
      const Index j = keys_[b];
      const bool whole = !row_is_finite(bad_k_.row(j), bad_k_.cols);
      for (Index i = 0; i < out.rows; ++i) {
        if (!keeps(i, j)) continue;
        if (whole && lse) lse[i] = nan;
        for (Index c = 0; c < out.cols; ++c)
          if (whole || !row_is_finite(&bad_x_(j, c), 1)) out(i, c) = nan;
      }
    }
    for (Index b = 0; b < query_count_; ++b) {
      const Index i = queries_[b];
      bool any = false;
      for (Index j = 0; j < scores_->m() && !any; ++j) any = keeps(i, j);
      if (!any) continue;
      if (lse) lse[i] = nan;
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
