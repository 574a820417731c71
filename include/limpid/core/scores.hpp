// limpid: scores of one head: scale Q K^T + key bias, then modifiers. What a modifier must offer, and how a tile is
// finished.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>

#include "rows.hpp"
#include "workspace.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Where a score stands: batch item, query head, query, key, and the numbers n of queries and m of keys.
struct At {
  Index batch = 0, head = 0, q = 0, k = 0, n = 0, m = 0;
  /// The query's place on the keys' axis: the last query stands at the last key (bottom-right alignment).
  Index position() const { return q + m - n; }
};

/// Keys [begin, end) that a query sees.
struct Interval {
  Index begin = 0, end = 0;
};

/// What a mask does to a whole block of pairs.
enum class Cover { none, some, all };

namespace detail {

/// What makes scores the weights of a softmax again: A_ij = exp(s_ij - top_i) inverse_i, the maximum of a row and one
/// over its sum. Two arrays of n numbers, as in one, the log-sum-exp, a float has lost the digits of the sum where
/// logits are in the thousands. A row that keeps no key has plus infinity and 0. Null: not wanted, or not known.
template <class T>
struct Lse {
  T *top = nullptr, *inverse = nullptr;
  Lse() = default;
  Lse(T* top_, T* inverse_) : top(top_), inverse(inverse_) {}
  template <class U>
  requires std::is_same_v<const U, T> Lse(const Lse<U>& other)  // NOLINT: implicit on purpose
      : top(other.top), inverse(other.inverse) {}
  bool given() const { return top != nullptr; }
  Lse from(Index i) const { return {top + i, inverse + i}; }
};
/// That of map t in what an operator keeps (Kept::stat, two rows a map).
template <class S>
Lse<S> lse_of(const MutView<S>& kept, Index t = 0) {
  return kept.given() ? Lse<S>(kept.row(2 * t), kept.row(2 * t + 1)) : Lse<S>();
}
template <class S>
Lse<const S> lse_of(const View<S>& kept, Index t = 0) {
  return {kept.row(2 * t), kept.row(2 * t + 1)};
}

/// Columns of q and k that make a part of the scores: factor <q_i, k_j>, or factor |q_i - k_j|^2 by differences. Where
/// halves are given, of |row|^2 about a middle, only near pairs are differences, and the others are made of products of
/// rows about it (core/distance.hpp); each has zeros behind it for a whole panel of lanes.
template <class S>
struct ScorePart {
  static constexpr Index behind = 128;
  Index first = 0, cols = 0;
  bool differences = false;
  S factor = S(0);
  const S *half_q = nullptr, *half_k = nullptr;
  bool near_alone() const { return half_q != nullptr; }
};
template <class S>
using PartsOfScores = std::array<ScorePart<S>, 2>;

/// In the place of the modifiers M of scores that may be squared distances summed by pair (score/kernel.hpp): for them
/// alone the code of such sums is made.
template <class M>
struct Distances {
  static constexpr bool intervals = M::intervals, irregular = M::irregular, values = M::values, starts = M::starts,
                        sinks = M::sinks;
};
template <class Mods>
struct ModifiersOf {
  using type = Mods;
  static constexpr bool distances = false;
};
template <class M>
struct ModifiersOf<Distances<M>> {
  using type = M;
  static constexpr bool distances = true;
};
template <class Mods>
inline constexpr bool are_distances = ModifiersOf<Mods>::distances;

/// The scores of one head, in natural units; bias (one number a key) may be null. Where parts are given (by_pair) they
/// say what a score is, and scale is that of the gradients alone.
template <class S, class Mods>
struct Scores {
  View<S> q, k;
  S scale = S(1);
  const S* bias = nullptr;
  const typename ModifiersOf<Mods>::type* mods = nullptr;
  At at;           // batch and head
  S level = S(0);  // what all keys have in common, taken off their additive part; set by settle()
  PartsOfScores<S> parts = {};
  View<S> middle_q = {}, middle_k = {};  // q and k, parts with halves about their middle; empty if there is none
  bool by_pair() const { return are_distances<Mods> && parts[0].cols > 0; }
  bool near_alone() const { return are_distances<Mods> && middle_q.data != nullptr; }
  /// The rows that products are made of.
  View<S> product_q() const { return near_alone() ? middle_q : q; }
  View<S> product_k() const { return near_alone() ? middle_k : k; }

  Index n() const { return q.rows; }
  Index m() const { return k.rows; }
  At place(Index i, Index j) const { return {at.batch, at.head, i, j, n(), m()}; }
  /// Whether a pair may be masked at all.
  bool can_mask() const {
    return Mods::intervals || Mods::irregular || Mods::values || bias != nullptr || Mods::starts;
  }
  /// Before a sweep: biases near the lowest number of all keys would swallow the scores that they are added to. Their
  /// common part changes no weight and is left out; a log-sum-exp that is shown gets it back.
  void settle() { level = mods->template level<S>(place(0, 0)); }

  /// Every key that some query of [q0, q1) may see: intervals move one way with the query.
  Interval hull(Index q0, Index q1) const {
    if constexpr (Mods::intervals) {
      const Interval a = mods->interval(place(q0, 0)), b = mods->interval(place(q1 - 1, 0));
      const Index begin = std::max<Index>(0, std::min(a.begin, b.begin)), end = std::min(m(), std::max(a.end, b.end));
      return {begin, std::max(begin, end)};
    }
    return {0, m()};
  }

  /// The additive part of keys [k0, k0 + nk) as seen by queries counted from q0. Only minus infinity is no key: what
  /// would become it by a sum stays the lowest number.
  void starts(Index q0, Index k0, Index nk, S* out) const {
    if (bias)
      copy_row<Native<S>>(bias + k0, out, nk);
    else
      std::fill(out, out + nk, S(0));
    if constexpr (Mods::starts && !Mods::values) {
      const S lowest = lowest_number<S>(), none = minus_infinity<S>();
      for (Index r = 0; r < nk; ++r) {
        const S added = mods->template start<S>(place(q0, k0 + r), q0);
        if (out[r] == none || added == none)
          out[r] = none;
        else
          out[r] = std::max(out[r] + (added - level), lowest);
      }
    }
  }
  /// What `starts` leaves out beside the level, as it is the same for all keys of a row; to be taken off a maximum.
  S shift(Index i, Index q0) const {
    if constexpr (Mods::starts && !Mods::values) return mods->template shift<S>(place(i, 0), q0);
    return S(0);
  }
  bool kept(Index i, Index j) const {
    const At a = place(i, j);
    if constexpr (Mods::intervals) {
      const Interval in = mods->interval(a);
      if (j < in.begin || j >= in.end) return false;
    }
    if constexpr (Mods::irregular)
      if (!mods->keep(a)) return false;
    return true;
  }
  /// Whether a pair counts: no mask drops it, and nothing adds minus infinity to its score.
  bool keeps(Index i, Index j) const {
    if (!kept(i, j) || (bias && bias[j] == minus_infinity<S>())) return false;
    return !(mods->value(S(0), place(i, j)) == minus_infinity<S>());
  }
};

/// A tile of scores: entry (query q0 + i, key k0 + j) at data[i * ld + j], or transposed, at data[j * ld + i].
template <class S>
struct Tile {
  S* data;
  Index ld, q0, nq, k0, nk;
};

/// Writes `fill` where a key's additive part is minus infinity: chosen, not summed, as inf - inf would be NaN.
template <class P, bool KeysAreLanes, class Mods>
void drop_keys(const Scores<typename P::Scalar, Mods>& scores, const typename P::Scalar* start,
               const Tile<typename P::Scalar>& t, typename P::Scalar fill) {
  if (!Mods::starts && scores.bias == nullptr) return;
  for (Index j = 0; j < t.nk; ++j)
    if (start[j] == minus_infinity<typename P::Scalar>())
      for (Index i = 0; i < t.nq; ++i) t.data[KeysAreLanes ? i * t.ld + j : j * t.ld + i] = fill;
}

/// Writes `fill` where a pair is masked. Queries are lanes (transposed) or keys are lanes.
template <class P, bool KeysAreLanes, class Mods>
void mask_tile(const Scores<typename P::Scalar, Mods>& scores, const Tile<typename P::Scalar>& t,
               typename P::Scalar fill) {
  using S = typename P::Scalar;
  using V = typename P::V;
  if constexpr (Mods::intervals) {
    const V filled = P::set(fill);
    if constexpr (KeysAreLanes) {
      for (Index i = 0; i < t.nq; ++i) {
        const Interval in = scores.mods->interval(scores.place(t.q0 + i, 0));
        const Index begin = in.begin - t.k0, end = in.end - t.k0;
        if (begin <= 0 && end >= t.nk) continue;
        const V lo = P::set(S(std::clamp<Index>(begin, 0, t.nk))), hi = P::set(S(std::clamp<Index>(end, 0, t.nk)));
        S* row = t.data + i * t.ld;
        for (Index j = 0; j < t.nk; j += P::lanes) {
          const V place = P::lane_index() + P::set(S(j));
          V x = P::load(row + j);
          x = P::if_less(place, lo, filled, x);
          P::store(row + j, P::if_less(place, hi, x, filled));
        }
      }
    } else {
      constexpr Index most = P::lanes * P::tile_vectors;
      S lo[most], hi[most];
      Index full_begin = 0, full_end = t.nk;
      for (Index i = 0; i < t.nq; ++i) {
        const Interval in = scores.mods->interval(scores.place(t.q0 + i, 0));
        const Index begin = std::clamp<Index>(in.begin - t.k0, 0, t.nk);
        const Index end = std::clamp<Index>(in.end - t.k0, 0, t.nk);
        full_begin = std::max(full_begin, begin);
        full_end = std::min(full_end, end);
        lo[i] = S(begin);
        hi[i] = S(end);
      }
      for (Index i = t.nq; i < most; ++i) lo[i] = S(0), hi[i] = S(t.nk);
      for (Index j = 0; j < t.nk; ++j) {
        if (j >= full_begin && j < full_end) {
          j = full_end - 1;
          continue;
        }
        const V place = P::set(S(j));
        for (Index i = 0; i < t.nq; i += P::lanes) {
          S* at = t.data + j * t.ld + i;
          const V x = P::if_less(place, P::load(lo + i), filled, P::load(at));
          P::store(at, P::if_less(place, P::load(hi + i), x, filled));
        }
      }
    }
  }
  if constexpr (Mods::irregular) {
    if (scores.mods->cover(scores.place(0, 0), t.q0, t.q0 + t.nq, t.k0, t.k0 + t.nk) == Cover::all) return;
    for (Index i = 0; i < t.nq; ++i)
      for (Index j = 0; j < t.nk; ++j)
        if (!scores.mods->keep(scores.place(t.q0 + i, t.k0 + j)))
          t.data[KeysAreLanes ? i * t.ld + j : j * t.ld + i] = fill;
  }
}

/// Applies score functions to a tile of scores.
template <class P, bool KeysAreLanes, class Mods>
void value_tile(const Scores<typename P::Scalar, Mods>& scores, const Tile<typename P::Scalar>& t) {
  using S = typename P::Scalar;
  const auto mods = *scores.mods;
  const Index outer = KeysAreLanes ? t.nq : t.nk, inner = KeysAreLanes ? t.nk : t.nq;
  At a = scores.place(t.q0, t.k0);
  for (Index o = 0; o < outer; ++o) {
    S* row = t.data + o * t.ld;
    (KeysAreLanes ? a.q : a.k) = (KeysAreLanes ? t.q0 : t.k0) + o;
    const Index first = KeysAreLanes ? t.k0 : t.q0;
    for (Index l = 0; l < inner; ++l) {
      At here = a;
      (KeysAreLanes ? here.k : here.q) = first + l;
      row[l] = mods.value(row[l], here);
    }
  }
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
