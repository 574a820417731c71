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
template <class S, class Mods>
class References {
 public:
  References(Arena& arena, const Mods& mods, const At& at, const Far& far)
      : mods_(mods), at_(at), far_(far), amounts_(alike ? arena.take<S>(at.m) : nullptr) {}

  /// The key for row i, -1: none, as amounts are not far; `before` is what the row before it had.
  Index of_row(Index i, Index before) {
    constexpr int most_tries = 8;  // each ends at a higher amount; few are that far apart
    Index from = before;
    for (int tries = 0; tries < most_tries; ++tries) {
      const Seen seen = highest(i, from);
      if (seen.key < 0 && from < 0) return from;
      if (seen.key >= 0 && is_near(seen.amount)) return from;
      from = tries == 0 && before >= 0 ? -1 : seen.key;
    }
    return from;
  }

 private:
  static constexpr bool alike = !Mods::per_pair;  // amounts are those of keys, the same for all rows
  struct Seen {
    Index key = -1;
    S amount = S(0);
  };
  static bool is_near(const S& amount) { return amount > S(-far_amount) && amount < S(far_amount); }

  /// Of the keys that row i sees the one with the highest amount, as counted from key `from`.
  Seen highest(Index i, Index from) {
    At a = at_;
    a.q = i;
    Interval in{0, a.m};
    if constexpr (Mods::intervals) in = mods_.interval(a);
    const Index begin = std::max<Index>(0, in.begin), end = std::min(a.m, in.end);
    const S most = -minus_infinity<S>();
    Seen seen;
    const auto look = [&](Index j, const S& amount) {
      if (!(amount < most && -most < amount) || (seen.key >= 0 && !(seen.amount < amount))) return;
      a.k = j;
      if (keeps_place(mods_, a) && !(mods_.value(S(0), a) == minus_infinity<S>())) seen = {j, amount};
    };
    const bool any_will_do = from < 0 && !far_.above;  // that is near, as none is much higher
    if (any_will_do && last_ >= begin && last_ < end) look(last_, amount(i, last_, from));
    for (Index j = begin; j < end && !(any_will_do && seen.key >= 0 && is_near(seen.amount)); ++j)
      look(j, amount(i, j, from));
    last_ = seen.key;
    return seen;
  }
  S amount(Index i, Index j, Index from) {
    At a = at_;
    if constexpr (alike) {
      if (from != counted_from_)
        for (a.k = 0; a.k < a.m; ++a.k) amounts_[a.k] = mods_.template above<S>(a, from);
      counted_from_ = from;
      return amounts_[j];
    }
    a.q = i, a.k = j;
    return mods_.template above<S>(a, from);
  }

  const Mods& mods_;
  At at_;
  Far far_;
  S* amounts_;
  Index counted_from_ = -2, last_ = -1;
};

/// These keys for all rows of the head `at`; null: no row needs one, and amounts may be added to scores as they are.
template <class S, class Mods>
const Index* references(Arena& arena, const Mods& mods, const At& at) {
  if constexpr (Mods::tables) {
    const Far far = mods.template far<S>(at);
    if (!far.any() || at.n == 0) return nullptr;
    Index* keys = arena.take<Index>(at.n);
    References<S, Mods> find(arena, mods, at, far);
    bool any = mods.sums_tables();
    for (Index i = 0; i < at.n; ++i) {
      const bool alike = !Mods::per_pair && !Mods::intervals && !Mods::irregular && i > 0;  // rows see and add the same
      keys[i] = alike ? keys[0] : find.of_row(i, i == 0 ? -1 : keys[i - 1]);
      any = any || keys[i] >= 0;
    }
    return any ? keys : nullptr;
  }
  return nullptr;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
