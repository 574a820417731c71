// limpid: scores of one head: scale Q K^T + key bias, then modifiers, a tile at a time.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>

#include "lse.hpp"
#include "reference_key.hpp"
#include "rows.hpp"
#include "weight_function.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Columns of q and k that make a part of the scores: factor <q_i, k_j>, or factor |q_i - k_j|^2 from differences.
/// half_q and half_k, if given, are |row|^2 / 2, with zeros behind them for a whole panel of lanes: then only near
/// pairs are made from differences, of the part's own q and k, and the others from products (engine/distance.hpp).
template <class S>
struct ScorePart {
  static constexpr Index behind = 128;
  Index first = 0, cols = 0;
  bool differences = false;
  S factor = S(0);
  const S *half_q = nullptr, *half_k = nullptr;
  View<S> q = {}, k = {};
  bool near_alone() const { return half_q != nullptr; }
};
template <class S>
using PartsOfScores = std::array<ScorePart<S>, 2>;

/// In the place of the modifiers M of scores that may be squared distances summed by pair (score/kernel.hpp): for them
/// alone the code of such sums is made.
template <class M>
struct Distances {
  static constexpr bool intervals = M::intervals, irregular = M::irregular, per_pair = M::per_pair,
                        per_key = M::per_key, row_constants = M::row_constants, tables = M::tables,
                        collects_gradient = M::collects_gradient, gathers = M::gathers,
                        irregular_besides = M::irregular_besides, sinks = M::sinks;
};
/// The same in the place of modifiers M whose scores become weights by another function than softmax.
template <class M, WeightFunction W>
struct Weighted : Distances<M> {};

/// The same in the place of modifiers M of which one gathers, for the rows of one of its blocks.
template <class M>
struct Gathered : Distances<M> {
  static constexpr bool gathers = false, irregular = M::irregular_besides;
};

template <class Mods>
struct ModifiersOf {
  using type = Mods;
  using Weight = SoftmaxWeight;
  static constexpr bool distances = false;
};
template <class M>
struct ModifiersOf<Distances<M>> {
  using type = M;
  using Weight = SoftmaxWeight;
  static constexpr bool distances = true;
};
template <class M, class W>
struct ModifiersOf<Weighted<M, W>> {
  using type = typename ModifiersOf<M>::type;
  using Weight = W;
  static constexpr bool distances = ModifiersOf<M>::distances;
};
template <class M>
struct ModifiersOf<Gathered<M>> : ModifiersOf<M> {};
template <class Mods>
inline constexpr bool are_gathered = false;
template <class M>
inline constexpr bool are_gathered<Gathered<M>> = true;
/// Whether pairs may be masked.
template <class Mods>
inline constexpr bool have_masks = Mods::intervals || Mods::irregular || are_gathered<Mods>;
template <class Mods>
inline constexpr bool are_distances = ModifiersOf<Mods>::distances;
template <class Mods>
using WeightOf = typename ModifiersOf<Mods>::Weight;
/// Whether rows of weights are divided by their sum, so that there is a log-sum-exp.
template <class Mods>
inline constexpr bool are_normalised = WeightOf<Mods>::normalised;

/// In the place of a log-sum-exp, of weights that have none: {} alone.
struct NoLse {
  NoLse() = default;
  template <class T>
  NoLse(const Lse<T>&) {  // NOLINT: implicit on purpose
    static_assert(
        sizeof(T) == 0,
        "limpid: weights that are not normalised have no log-sum-exp: write {} in its place, and no field lse "
        "in Keep");
  }
  template <class T>
  operator Lse<T>() const {  // NOLINT: implicit on purpose
    return {};
  }
};
template <class T, class Weight>
using LseUnder = std::conditional_t<Weight::normalised, Lse<T>, NoLse>;

/// The scores of one head, in natural units; bias (one number a key, of distances alone) may be null. Where parts are
/// given (by_pair) they say what a score is, and scale is that of the gradients alone.
template <class S, class Mods>
struct Scores {
  View<S> q, k;
  S scale = S(1);
  const S* bias = nullptr;
  const typename ModifiersOf<Mods>::type* mods = nullptr;
  At at;  // batch and head, and how many of them
  PartsOfScores<S> parts = {};
  const Index* from = nullptr;  // for every query the key that amounts are counted from, see References; or none
  WeightOf<Mods> weight = {};
  const PairBlock<S>* block = nullptr;  // where gathered rows come from
  bool unguarded = false;               // all that a sweep reads is known to be finite, or no pair is masked
  bool listed = false;  // k, and what else has a row for each key, are those of the head: row j is row block->k[j]
  /// Whether anything may be added to products.
  static constexpr bool adds = Mods::per_key || are_distances<Mods>;
  bool by_pair() const { return are_distances<Mods> && parts[0].cols > 0; }
  bool near_alone() const { return are_distances<Mods> && (parts[0].near_alone() || parts[1].near_alone()); }

  Index n() const { return q.rows; }
  Index m() const {
    if constexpr (are_gathered<Mods>) return block->keys;
    return k.rows;
  }
  At place(Index i, Index j) const {
    At a = at;
    if constexpr (are_gathered<Mods>)
      a.q = block->q[i] - a.first_q, a.k = block->k[j] - a.first_k;
    else
      a.q = i, a.k = j, a.n = n(), a.m = m();
    return a;
  }
  /// The keys of query i, as masks of intervals have it.
  Interval interval(Index i) const {
    Interval in = mods->interval(place(i, 0));
    if constexpr (are_gathered<Mods>) {
      const auto row_of = [&](Index key) {
        return Index(std::lower_bound(block->k, block->k + block->keys, key + at.first_k) - block->k);
      };
      in = {row_of(in.begin), row_of(in.end)};
    }
    return in;
  }
  /// What masks that are asked pair by pair do to queries [q0, q1) and keys [k0, k1).
  Cover cover(Index q0, Index q1, Index k0, Index k1) const {
    if constexpr (are_gathered<Mods>) {
      Cover all = Mods::irregular ? Cover::some : Cover::all;
      if (block->axes == 0 || k1 <= block->free) return all;
      if (k0 < block->free) return Cover::some;
      for (std::size_t a = 0; a < std::size_t(block->axes); ++a) {
        const auto [first_lo, last_lo] = std::minmax_element(block->lo[a] + q0, block->lo[a] + q1);
        const auto [first_hi, last_hi] = std::minmax_element(block->hi[a] + q0, block->hi[a] + q1);
        const auto [first, last] = std::minmax_element(block->at[a] + k0, block->at[a] + k1);
        if (*last < *first_lo || *first > *last_hi) return Cover::none;
        if (*first < *last_lo || *last > *first_hi) all = Cover::some;
      }
      return all;
    } else if constexpr (Mods::irregular) {
      return mods->cover(place(0, 0), q0, q1, k0, k1);
    }
    return Cover::all;
  }
  /// Whether a pair may be masked at all. One query, as in decoding, may see all keys under a causal mask too.
  bool can_mask() const {
    if (Mods::per_pair || bias != nullptr || Mods::per_key) return true;
    if constexpr (Mods::intervals && !Mods::irregular && !are_gathered<Mods>)
      if (n() == 1) {
        const Interval seen = interval(0);
        return seen.begin > 0 || seen.end < m();
      }
    return have_masks<Mods>;
  }
  /// Before a sweep, whose arena it is. What rows leave out a log-sum-exp that is shown gets back.
  void settle(Arena& arena) {
    if constexpr (!are_normalised<Mods> || !Mods::tables || Mods::gathers)
      return;
    else if constexpr (!are_gathered<Mods>)
      from = references<S>(arena, *mods, place(0, 0));
    else if (block->far)
      from = references_of<S>(arena, *mods, *this, far_amounts());
  }
  /// Whether tables have entries far from 0 among the pairs of gathered rows.
  Far far_amounts() const {
    Far all;
    for (Index i = 0; i < (Mods::per_pair ? n() : std::min<Index>(1, n())); ++i)
      for (Index j = 0; j < m(); ++j) {
        const Far one = mods->template far_amounts<S>(place(i, j));
        all = {all.above || one.above, all.below || one.below};
      }
    return all;
  }
  /// Whether rows of [q0, q0 + nq) count amounts of keys from different ones, so that `key_bias` does not serve them
  /// all.
  bool mixed(Index q0, Index nq) const {
    if constexpr (Mods::tables && Mods::per_key && !Mods::per_pair) {
      if (from != nullptr) return std::any_of(from + q0, from + q0 + nq, [&](Index key) { return key != from[q0]; });
    }
    return false;
  }

  /// Every key that some query of [q0, q1) may see.
  Interval key_range(Index q0, Index q1) const {
    Interval all{0, m()};
    if constexpr (are_gathered<Mods> && !Mods::intervals)
      if (q0 == 0 && q1 == n()) return all;
    if constexpr (Mods::intervals) {
      Interval any = are_gathered<Mods> ? interval(q0) : mods->range(place(q0, 0), place(q1 - 1, 0));
      for (Index i = q0 + 1; are_gathered<Mods> && i < q1; ++i) {
        const Interval one = interval(i);
        any = {std::min(any.begin, one.begin), std::max(any.end, one.end)};
      }
      all.begin = std::max<Index>(0, any.begin), all.end = std::max(all.begin, std::min(m(), any.end));
    }
    if constexpr (are_gathered<Mods>)
      if (block->axes > 0 && block->free == 0) {  // keys are sorted along the first axis
        const S *at0 = block->at[0], lo = *std::min_element(block->lo[0] + q0, block->lo[0] + q1);
        const S hi = *std::max_element(block->hi[0] + q0, block->hi[0] + q1);
        all.begin = std::max<Index>(all.begin, std::lower_bound(at0, at0 + m(), lo) - at0);
        all.end = std::max(all.begin, std::min<Index>(all.end, std::upper_bound(at0, at0 + m(), hi) - at0));
      }
    return all;
  }

  /// The additive part of keys [k0, k0 + nk) as seen by queries counted from q0. Only minus infinity is no key: what
  /// would become it by a sum stays the lowest number.
  void key_bias(Index q0, Index k0, Index nk, S* out) const { key_bias(q0, k0, nk, out, q0); }
  /// The same for row i alone.
  void key_bias(Index q0, Index k0, Index nk, S* out, Index i) const {
    if (bias)
      copy_row<Native<S>>(bias + k0, out, nk);
    else
      std::fill(out, out + nk, S(0));
    if constexpr (Mods::per_key && !Mods::per_pair) {
      const auto add = [&](const auto& amount) {
        const S lowest = lowest_number<S>(), none = minus_infinity<S>();
        for (Index r = 0; r < nk; ++r) {
          const S added = amount(place(q0, k0 + r));
          if (out[r] == none || added == none)
            out[r] = none;
          else
            out[r] = std::max(out[r] + added, lowest);
        }
      };
      if (from == nullptr)
        add([&](const At& a) { return mods->template key_bias<S>(a, a.q); });
      else
        add([&](const At& a) { return mods->template key_bias<S>(a, a.q, from[i]); });
    }
  }
  /// What `key_bias` leaves out besides, as it is the same for all keys of a row; to be taken off a maximum.
  S row_constant(Index i, Index q0) const {
    if constexpr (Mods::row_constants && !Mods::per_pair)
      return mods->template row_constant<S>(place(i, 0), place(q0, 0).q);
    return S(0);
  }
  /// One over the sum of a row's weights, 0 where there are none. NaN where all distances of several keys are beyond
  /// the numbers: their scores are alike then, and which key is nearest is not known. What a score function makes of
  /// the lowest number is its own.
  S one_over(const S& total, const S& top) const {
    if (total == S(0)) return S(0);
    if constexpr (are_distances<Mods> && !Mods::per_pair)
      if (top == lowest_number<S>() && total != S(1)) return S(std::numeric_limits<double>::quiet_NaN());
    return S(1) / total;
  }
  /// The logit of the sink beside the scores of row i as they are summed, counted from q0.
  S sink(Index i, Index q0) const {
    const S logit = mods->template sink<S>(at);
    if (!row_is_finite(&logit, 1)) return logit;
    S counted = logit + row_constant(i, q0);
    if constexpr (Mods::tables)
      if (from != nullptr && from[i] >= 0) {
        At pair = place(i, 0);
        pair.k = from[i];
        counted -= mods->template above<S>(pair, -1);
      }
    return std::clamp(counted, lowest_number<S>(), -lowest_number<S>());
  }
  /// Adds the sink to the sum of a row's weights, if it keeps any key; the maximum may be the sink's then. Returns what
  /// sums of before shrink by.
  S add_sink(Index i, Index q0, S& top, S& total) const {
    if constexpr (Mods::sinks) {
      using std::exp;
      if (total == S(0)) return S(1);
      const S logit = sink(i, q0);
      if (logit == -minus_infinity<S>()) {
        total = S(0);  // keys weigh nothing, as in a row without
      } else if (logit > top) {
        const S shrink = exp(top - logit);
        total = total * shrink + S(1), top = logit;
        return shrink;
      } else {
        total += exp(logit - top);
      }
    }
    return S(1);
  }
  /// Keeps what a row was summed with, counted from q0: later sweeps add the row constant again, and may find a maximum
  /// that is a rounding away.
  void store_lse(Lse<S> lse, Index i, Index q0, const S& top, const S& inverse) const {
    lse.top[i] = top, lse.inverse[i] = inverse;
    if constexpr (Mods::row_constants && !Mods::per_pair) {
      using std::exp;
      const S taken = row_constant(i, q0), found = OneLane<S>::pin(lse.top[i] = top - taken) + taken;
      if (found != top && found - top == found - top) lse.inverse[i] = inverse * exp(found - top);
    }
  }
  /// The head, without a pair.
  At head() const {
    At a = at;
    if constexpr (!are_gathered<Mods>) a.n = n(), a.m = m();
    return a;
  }
  /// How many numbers modifiers collect gradients in.
  Index gradient_size() const { return mods->gradient_size(head().all_rows(), head().all_keys()); }
  bool kept(Index i, Index j) const {
    if constexpr (are_gathered<Mods>) {
      const At a = place(i, j);
      const Interval in = mods->interval(a);
      if (a.k < in.begin || a.k >= in.end || !mods->keep_besides(a)) return false;
      for (std::size_t x = 0; j >= block->free && x < std::size_t(block->axes); ++x)
        if (block->at[x][j] < block->lo[x][i] || block->at[x][j] > block->hi[x][i]) return false;
      return true;
    } else if constexpr (Mods::gathers) {
      return mods->leading().keep(place(i, j)) && keeps_place(*mods, mods->leading().own_place(place(i, j)));
    } else {
      return keeps_place(*mods, place(i, j));
    }
  }
  /// The same of a pair that intervals and boxes keep.
  bool kept_besides(Index i, Index j) const {
    if constexpr (are_gathered<Mods>)
      return mods->keep_besides(place(i, j));
    else
      return mods->keep(place(i, j));
  }
  /// The score of a pair, from what it is before modifiers.
  S value(S s, Index i, Index j) const {
    if constexpr (Mods::tables)
      if (from != nullptr) return mods->value(s, place(i, j), from[i]);
    return mods->value(s, place(i, j));
  }
  /// Whether a pair counts: no mask drops it, and nothing adds minus infinity to its score.
  bool keeps(Index i, Index j) const {
    if (!kept(i, j) || (bias && bias[j] == minus_infinity<S>())) return false;
    At a = place(i, j);
    if constexpr (!are_gathered<Mods> && Mods::gathers) a = mods->leading().own_place(a);
    return !(mods->value(S(0), a) == minus_infinity<S>());
  }
};

/// The same scores, made into weights by another function.
template <class W, class S, class Mods>
auto with_weight(const Scores<S, Mods>& s, const W& weight) {
  static_assert(!Mods::sinks || W::normalised,
                "limpid: a sink joins the sum of a row's weights, and these are not divided by one");
  if constexpr (check_weight_function<W>())
    return Scores<S, Weighted<Mods, W>>{s.q, s.k, s.scale, s.bias, s.mods, s.at, s.parts, s.from, weight};
  else
    return s;
}

/// A tile of scores: entry (query q0 + i, key k0 + j) at data[i * ld + j], or transposed, at data[j * ld + i].
template <class S>
struct Tile {
  S* data;
  Index ld, q0, nq, k0, nk;
};

/// The additive parts of mixed rows, row by row, into a tile as wide as so many vectors; buffer has room for one row.
template <class P, bool KeysAreLanes, class Mods>
void key_bias_by_row(const Scores<typename P::Scalar, Mods>& scores, const Tile<typename P::Scalar>& t, Index vectors,
                     typename P::Scalar* buffer) {
  using S = typename P::Scalar;
  for (Index i = 0; i < (KeysAreLanes ? t.nq : vectors * P::lanes); ++i) {
    if (i < t.nq) scores.key_bias(origin_of<P>(t.q0), t.k0, t.nk, buffer, t.q0 + i);
    for (Index j = 0; j < (KeysAreLanes ? vectors * P::lanes : t.nk); ++j)
      t.data[KeysAreLanes ? i * t.ld + j : j * t.ld + i] = i < t.nq && j < t.nk ? buffer[j] : S(0);
  }
}

/// scale times a product, added to what stands there.
template <class P>
struct AddScores {
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S scale;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    S* p = out + r * ld + lane;
    P::store(p, P::fma(acc, P::set(scale), P::load(p)));
  }
};

/// Writes `fill` where a key's additive part is minus infinity: chosen, not summed, as inf - inf would be NaN.
template <class P, bool KeysAreLanes, class Mods>
void drop_keys(const Scores<typename P::Scalar, Mods>& scores, const typename P::Scalar* bias,
               const Tile<typename P::Scalar>& t, typename P::Scalar fill) {
  if (!Mods::per_key && scores.bias == nullptr) return;
  for (Index j = 0; j < t.nk; ++j)
    if (bias[j] == minus_infinity<typename P::Scalar>())
      for (Index i = 0; i < t.nq; ++i) t.data[KeysAreLanes ? i * t.ld + j : j * t.ld + i] = fill;
}

/// Writes `fill` where a key is outside of a query's box.
template <class P, bool KeysAreLanes>
void mask_boxes(const PairBlock<typename P::Scalar>& block, const Tile<typename P::Scalar>& t,
                typename P::Scalar fill) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V filled = P::set(fill);
  const Index free = std::clamp<Index>(block.free - t.k0, 0, t.nk);
  for (std::size_t a = 0; a < std::size_t(block.axes); ++a) {
    const S *lo = block.lo[a] + t.q0, *hi = block.hi[a] + t.q0, *at = block.at[a] + t.k0;
    const S last_lo = *std::max_element(lo, lo + t.nq), first_hi = *std::min_element(hi, hi + t.nq);
    const auto outside = [&](const V& x, const V& key, const V& from, const V& to) {
      return P::if_less(to, key, filled, P::if_less(key, from, filled, x));
    };
    if constexpr (KeysAreLanes) {
      for (Index j = free / P::lanes * P::lanes; j < t.nk; j += P::lanes) {
        S keys[P::lanes];
        bool inside = true;
        for (Index l = 0; l < P::lanes; ++l) {
          keys[l] = at[std::min(j + l, t.nk - 1)];
          inside = inside && ((keys[l] >= last_lo && keys[l] <= first_hi) || j + l < free);
        }
        if (inside) continue;
        if (j < free) {  // beside keys that every query sees
          for (Index i = 0; i < t.nq; ++i)
            for (Index l = free - j; l < std::min<Index>(P::lanes, t.nk - j); ++l)
              if (keys[l] < lo[i] || keys[l] > hi[i]) t.data[i * t.ld + j + l] = fill;
          continue;
        }
        const V key = P::load(keys);
        for (Index i = 0; i < t.nq; ++i) {
          S* p = t.data + i * t.ld + j;
          P::store(p, outside(P::load(p), key, P::set(lo[i]), P::set(hi[i])));
        }
      }
    } else {
      constexpr Index most = P::lanes * P::tile_vectors;
      S from[most], to[most];
      for (Index i = 0; i < most; ++i) from[i] = i < t.nq ? lo[i] : S(0), to[i] = i < t.nq ? hi[i] : S(0);
      for (Index j = free; j < t.nk; ++j) {
        if (at[j] >= last_lo && at[j] <= first_hi) continue;
        const V key = P::set(at[j]);
        for (Index i = 0; i < t.nq; i += P::lanes) {
          S* p = t.data + j * t.ld + i;
          P::store(p, outside(P::load(p), key, P::load(from + i), P::load(to + i)));
        }
      }
    }
  }
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
        const Interval in = scores.interval(t.q0 + i);
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
        const Interval in = scores.interval(t.q0 + i);
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
  if constexpr (are_gathered<Mods>) mask_boxes<P, KeysAreLanes>(*scores.block, t, fill);
  if constexpr (Mods::irregular) {
    if (scores.cover(t.q0, t.q0 + t.nq, t.k0, t.k0 + t.nk) == Cover::all) return;
    for (Index i = 0; i < t.nq; ++i)
      for (Index j = 0; j < t.nk; ++j)
        if (!scores.kept_besides(t.q0 + i, t.k0 + j)) t.data[KeysAreLanes ? i * t.ld + j : j * t.ld + i] = fill;
  }
}

/// Applies score functions to a tile of scores.
template <class P, bool KeysAreLanes, class Mods>
void value_tile(const Scores<typename P::Scalar, Mods>& scores, const Tile<typename P::Scalar>& t) {
  using S = typename P::Scalar;
  const auto mods = *scores.mods;
  const Index outer = KeysAreLanes ? t.nq : t.nk, inner = KeysAreLanes ? t.nk : t.nq;
  const auto each = [&](const auto& value) {
    At a = scores.place(t.q0, t.k0);
    if constexpr (are_gathered<Mods>) {
      for (Index o = 0; o < outer; ++o)
        for (Index l = 0; l < inner; ++l) {
          S& s = t.data[o * t.ld + l];
          const Index i = t.q0 + (KeysAreLanes ? o : l);
          s = value(s, scores.place(i, t.k0 + (KeysAreLanes ? l : o)), i);
        }
      return;
    }
    for (Index o = 0; o < outer; ++o) {
      S* row = t.data + o * t.ld;
      (KeysAreLanes ? a.q : a.k) = (KeysAreLanes ? t.q0 : t.k0) + o;
      const Index first = KeysAreLanes ? t.k0 : t.q0;
      for (Index l = 0; l < inner; ++l) {
        At here = a;
        (KeysAreLanes ? here.k : here.q) = first + l;
        row[l] = value(row[l], here, here.q);
      }
    }
  };
  if constexpr (Mods::tables)
    if (scores.from != nullptr)
      return each([&](S s, const At& a, Index row) { return mods.value(s, a, scores.from[row]); });
  each([&](S s, const At& a, Index) { return mods.value(s, a); });
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
