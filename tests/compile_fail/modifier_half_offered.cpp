// limpid: modifiers that say what they do not offer, or offer what they do not say: each would be wrong in silence.
// SPDX-License-Identifier: MIT
// refused alone: per_pair = true offers template <class S> S slope\(S, const At&\) const, the derivative of value, or adds\(\)
// refused alone: a mask says is_mask = true, and irregular = true \(keep is asked\) or intervals = true \(interval is\)
// refused alone: a mask says is_mask = true, and irregular = true \(keep is asked\) or intervals = true \(interval is\)
// refused alone: a modifier that offers keep says is_mask = true, and irregular or intervals = true
// refused alone: a modifier that offers interval says is_mask = true and intervals = true
// refused alone: a modifier that offers value says per_pair or per_key = true
// refused alone: a modifier with per_key = true offers template <class S> S value\(S, const At&\) const as well
// refused alone: a modifier that offers key_bias says per_key = true
// refused alone: a mask changes no score: value or key_bias want a modifier of their own
// refused alone: a modifier with tables = true, and no other, offers is_table\(\) const -> bool
// refused alone: a modifier with collects_gradient = true, and no other, offers wants_gradient\(\)
// refused alone: collects_gradient = true offers gradient_size\(n, m\) const -> Index, the sums of a head, or
// refused alone: a modifier offers gradient_size\(Index, Index\) const -> Index together with template <class S> void
// refused alone: a modifier that offers interval says is_mask = true and intervals = true
// refused alone: a mask says is_mask = true, and irregular = true \(keep is asked\) or intervals = true \(interval is\)
// refused besides: a modifier that offers keep says is_mask = true, and irregular or intervals = true
#include <limpid/score/masks.hpp>

using limpid::At;
using limpid::Index;

struct Capped : limpid::Modifier {
  static constexpr bool per_pair = LIMPID_MISTAKE != 6;
  template <class S>
  S value(S s, const At&) const {
    return s < S(2) ? s : S(2);
  }
#if LIMPID_MISTAKE != 1
  template <class S>
  S slope(S s, const At&) const {
    return s < S(2) ? S(1) : S(0);
  }
#endif
};

struct Even : limpid::Modifier {
  static constexpr bool is_mask = LIMPID_MISTAKE != 3, irregular = LIMPID_MISTAKE != 2;
  bool keep(const At& a) const { return a.k % 2 == 0; }
#if LIMPID_MISTAKE == 14
  limpid::Interval interval(const At& a) const { return {a.m / 2, a.m}; }
#endif
#if LIMPID_MISTAKE == 9
  static constexpr bool per_pair = true;
  template <class S>
  S value(S s, const At&) const {
    return s;
  }
  bool adds() const { return true; }
#endif
};

struct Late : limpid::Modifier {
#if LIMPID_MISTAKE != 4 && LIMPID_MISTAKE != 5
  static constexpr bool is_mask = true, intervals = true;
#endif
#if LIMPID_MISTAKE == 4
  bool keep(const At& a) const { return a.k >= a.m / 2; }
#else
  limpid::Interval interval(const At& a) const { return {a.m / 2, a.m}; }
#endif
};

struct Nearer : limpid::Modifier {
  static constexpr bool per_key = LIMPID_MISTAKE != 8;
#if LIMPID_MISTAKE != 7 && LIMPID_MISTAKE != 8
  template <class S>
  S value(S s, const At& a) const {
    return s + S(a.k);
  }
#endif
  template <class S>
  S key_bias(const At& a, Index) const {
    return S(a.k);
  }
};

struct Learnt : limpid::Modifier {
  static constexpr bool per_pair = true, tables = true, collects_gradient = LIMPID_MISTAKE != 11;
  double table = 0;
  double* gradient = nullptr;
  bool adds() const { return true; }
  bool is_table() const { return true; }
  template <class S>
  S value(S s, const At& a) const {
    return s + S(table * double(a.k));
  }
#if LIMPID_MISTAKE != 10
  template <class S>
  S amount(const At& a) const {
    return S(table * double(a.k));
  }
#endif
  template <class S>
  limpid::Far far(const At&) const {
    return {};
  }
  bool wants_gradient() const { return gradient != nullptr; }
  template <class S>
  void add_gradient(const At& a, S ds, S* sum) const {
    *sum += ds * S(a.k);
  }
#if LIMPID_MISTAKE != 12
  Index gradient_size(Index, Index) const { return wants_gradient() ? 1 : 0; }
#endif
#if LIMPID_MISTAKE != 12 && LIMPID_MISTAKE != 13
  template <class S>
  void deliver_gradient(const At&, const S* sum) const {
    *gradient += double(*sum);
  }
#endif
};

// Masks within &, | and ! are looked at, too.
#if LIMPID_MISTAKE == 15
struct Odd : limpid::Modifier {
  static constexpr bool is_mask = true;
  bool keep(const At& a) const { return a.k % 2 == 1; }
};
const auto combined = limpid::chain(!Odd());
#elif LIMPID_MISTAKE < 3 || LIMPID_MISTAKE > 5  // with these they are no masks
const auto combined = limpid::chain(!Late(), Even() | limpid::causal());
#endif
const auto all = limpid::chain(Capped(), Even(), Late(), Nearer(), Learnt());
