// limpid: the keys that amounts of tables are counted from, where these are far from 0.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/at.hpp"
#include "../core/workspace.hpp"
#include "lse.hpp"
#include "tuning.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Whether any of count numbers is far; those that are not finite are not.
template <class S>
Far far_of(const S* numbers, Index count) {
  using P = Native<S>;
  const auto look = [&](auto policy, Index c, auto& up, auto& down) {
    using L = decltype(policy);
    const auto zero = L::set(S(0)), x = L::load(numbers + c), size = L::if_less(x, zero, zero - x, x);
    const auto finite = L::if_less(size, L::set(-minus_infinity<S>()), x, zero);
    up = L::max(up, finite), down = L::max(down, zero - finite);
  };
  auto up = P::set(S(0)), down = up;
  S most(0), least(0);
  Index c = 0;
  for (; c + P::lanes <= count; c += P::lanes) look(P{}, c, up, down);
  for (; c < count; ++c) look(OneLane<S>{}, c, most, least);
  S lane[P::lanes];
  P::store(lane, P::largest(up));
  most = std::max(most, lane[0]);
  P::store(lane, P::largest(down));
  least = std::max(least, lane[0]);
  return {!(most < S(far_amount)), !(least < S(far_amount))};
}

/// Whether masks keep a pair.
template <class Mods>
bool keeps_place(const Mods& mods, const At& a) {
  if constexpr (Mods::intervals) {
    const Interval in = mods.interval(a);
    if (a.k < in.begin || a.k >= in.end) return false;
  }
  if constexpr (Mods::irregular)
    if (!mods.keep(a)) return false;
  return true;
}

/// Finds for every query of a head the key that amounts of tables are counted from, where one is needed. If all keys
/// that a row sees have biases near the lowest number, these swallow the scores that they are added to. What they have
/// in common changes no weight, so the bias of one key is left out of all. That key need not be seen, and rows may
/// share it; the keys that are seen must have amounts near its own. As a rule none is needed, and one look at a row, or
/// at the table of a head, tells.
template <class S, class Mods, class Pairs>
class References {
 public:
  References(Arena& arena, const Mods& mods, const Pairs& pairs, const Far& far)
      : mods_(mods), pairs_(pairs), far_(far), amounts_(alike ? arena.take<S>(pairs.m()) : nullptr) {}

  /// The key for row i, -1: none, as amounts are not far; `before` is what the row before it had.
  Index of_row(Index i, Index before) {
    constexpr int most_tries = 8;  // each ends at a higher amount; few are that far apart
    Index from = before;
    for (int tries = 0; tries < most_tries; ++tries) {
      const Seen seen = highest(i, from);
      if (seen.row < 0 && from < 0) return from;
      if (seen.row >= 0 && is_near(seen.amount)) return from;
      from = (tries == 0 && before >= 0) || seen.row < 0 ? -1 : pairs_.place(i, seen.row).k;
    }
    return from;
  }

 private:
  static constexpr bool alike = !Mods::per_pair;  // amounts are those of keys, the same for all rows
  struct Seen {
    Index row = -1;  // of the key
    S amount = S(0);
  };
  static bool is_near(const S& amount) { return amount > S(-far_amount) && amount < S(far_amount); }

  /// Of the keys that row i sees the one with the highest amount, as counted from key `from`.
  Seen highest(Index i, Index from) {
    Interval in{0, pairs_.m()};
    if constexpr (Mods::intervals) in = pairs_.interval(i);
    const Index begin = std::max<Index>(0, in.begin), end = std::min(pairs_.m(), in.end);
    const S most = -minus_infinity<S>();
    Seen seen;
    const auto look = [&](Index j, const S& amount) {
      if (!(amount < most && -most < amount) || (seen.row >= 0 && !(seen.amount < amount))) return;
      if (pairs_.kept(i, j) && !(mods_.value(S(0), pairs_.place(i, j)) == minus_infinity<S>())) seen = {j, amount};
    };
    const bool any_will_do = from < 0 && !far_.above;  // that is near, as none is much higher
    if (any_will_do && last_ >= begin && last_ < end) look(last_, amount(i, last_, from));
    for (Index j = begin; j < end && !(any_will_do && seen.row >= 0 && is_near(seen.amount)); ++j)
      look(j, amount(i, j, from));
    last_ = seen.row;
    return seen;
  }
  S amount(Index i, Index j, Index from) {
    if constexpr (alike) {
      if (from != counted_from_)
        for (Index key = 0; key < pairs_.m(); ++key)
          amounts_[key] = mods_.template above<S>(pairs_.place(i, key), from);
      counted_from_ = from;
      return amounts_[j];
    }
    return mods_.template above<S>(pairs_.place(i, j), from);
  }

  const Mods& mods_;
  const Pairs& pairs_;
  Far far_;
  S* amounts_;
  Index counted_from_ = -2, last_ = -1;
};

/// These keys for all rows of some pairs; null: no row needs one, and amounts may be added to scores as they are.
template <class S, class Mods, class Pairs>
const Index* references_of(Arena& arena, const Mods& mods, const Pairs& pairs, const Far& far) {
  if (!far.any() || pairs.n() == 0) return nullptr;
  Index* keys = arena.take<Index>(pairs.n());
  References<S, Mods, Pairs> find(arena, mods, pairs, far);
  bool any = mods.sums_tables();
  for (Index i = 0; i < pairs.n(); ++i) {
    const bool alike = !Mods::per_pair && !Mods::intervals && !Mods::irregular && i > 0;  // rows see and add the same
    keys[i] = alike ? keys[0] : find.of_row(i, i == 0 ? -1 : keys[i - 1]);
    any = any || keys[i] >= 0;
  }
  return any ? keys : nullptr;
}

/// All pairs of a head.
template <class Mods>
struct PairsOfHead {
  const Mods& mods;
  At at;
  Index n() const { return at.n; }
  Index m() const { return at.m; }
  At place(Index i, Index j) const {
    At a = at;
    a.q = i, a.k = j;
    return a;
  }
  Interval interval(Index i) const { return mods.interval(place(i, 0)); }
  bool kept(Index i, Index j) const { return keeps_place(mods, place(i, j)); }
};

/// The same for all rows of the head `at`.
template <class S, class Mods>
const Index* references(Arena& arena, const Mods& mods, const At& at) {
  if constexpr (Mods::tables)
    return references_of<S>(arena, mods, PairsOfHead<Mods>{mods, at}, mods.template far<S>(at));
  return nullptr;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
