// limpid: what a modifier of scores offers, and chains of them.
//
// chain(a, b, ...) applies values from left to right; masks come last whatever their place, so a masked pair stays
// masked. Arrays a modifier looks at must outlive it; gradients are ADDED to, as several calls may share one
// table. ShapeError where a result lies over such an array, or a gradient over anything but a modifier's gradient.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <tuple>
#include <utility>

#include "../core/at.hpp"
#include "../engine/reference_key.hpp"
#include "../engine/rows.hpp"
#include "../engine/tuning.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What a modifier is unless it says otherwise. Without its flag a member is never called; check_modifier, below, has a
/// sentence for each that is offered so, and for each flag without what it promises. check, reads and writes need none.
struct Modifier {
  static constexpr bool is_mask = false;       ///< keeps or drops pairs
  static constexpr bool intervals = false;     ///< a mask of one run of keys a query, moving one way with the query
  static constexpr bool irregular = false;     ///< a mask that must be asked pair by pair
  static constexpr bool gathers = false;       ///< a mask that says block by block which pairs count (score/local.hpp)
  static constexpr bool windows = false;       ///< of one that gathers: a query's keys are few and lie round it
  static constexpr bool whole_blocks = false;  ///< of one that gathers: it keeps all pairs of its blocks
  static constexpr bool own_keys = false;      ///< of one that gathers: a key is in one of its blocks alone
  static constexpr bool per_pair = false;      ///< changes a score by more than an amount per key
  static constexpr bool per_key = false;       ///< adds an amount per key (up to a constant of the row)
  static constexpr bool tables = false;        ///< may add entries of an array of the user's, which may be any numbers
  static constexpr bool collects_gradient = false;  ///< may collect a gradient of its own
  static constexpr bool sinks = false;              ///< a logit without a value in every row (score/sink.hpp)
  Interval interval(const At& a) const { return {0, a.m}; }
  bool keep(const At&) const { return true; }
  /// What a mask does to all pairs of queries [q0, q1) and keys [k0, k1): `some` is always right, `none` (the block is
  /// skipped) and `all` (its pairs are not asked) are for speed.
  Cover cover(const At&, Index, Index, Index, Index) const { return Cover::some; }
  /// Of one that gathers: what is left to be asked pair by pair where its blocks are taken, and where a pair that it
  /// keeps stands for other modifiers.
  static constexpr bool irregular_besides = false;
  bool keep_besides(const At&) const { return true; }
  At own_place(const At& a) const { return a; }
  template <class S>
  S value(S s, const At&) const {
    return s;
  }
  template <class S>
  S slope(S, const At&) const {
    return S(1);
  }
  template <class S>
  S key_bias(const At&, Index) const {
    return S(0);
  }
  template <class S>
  S row_constant(const At&, Index) const {
    return S(0);
  }
  /// Whether a value is the score plus an amount that does not depend on it, as it is of every modifier with per_key.
  bool adds() const { return false; }
  /// Whether that amount is an entry of a table.
  bool is_table() const { return false; }
  /// What a table adds to the score of a pair, and whether any entry for this head and item is far.
  template <class S>
  S amount(const At&) const {
    return S(0);
  }
  template <class S>
  Far far(const At&) const {
    return {};
  }
  template <class S>
  void add_gradient(const At&, S, S*) const {}
  bool wants_gradient() const { return false; }
  bool wants_serial_heads(Index, Index, Index) const { return false; }
  Index gradient_size(Index, Index) const { return 0; }
  template <class S>
  void deliver_gradient(const At&, const S*) const {}
  void check(const char*, Index, Index, Index, Index) const {}
  /// Calls f(detail::NamedArray) for every array of the user's that is looked at, or added to.
  template <class F>
  void reads(F&&) const {}
  template <class F>
  void writes(F&&) const {}
};

template <class M>
concept IsModifier = std::is_base_of_v<Modifier, M>;
template <class M>
concept IsMask = IsModifier<M> && M::is_mask;

namespace detail {

template <class M>
concept HasScalar = requires {
  typename std::remove_cvref_t<M>::Scalar;
};  // a matrix or a view of one

/// s + amount. Minus infinity masks whatever s is, and nothing else does: sums of finite numbers stay finite.
template <class S>
S plus(S s, S amount) {
  if (amount == minus_infinity<S>()) return amount;
  const S sum = s + amount, lowest = lowest_number<S>();
  if (sum < lowest && !(s < lowest)) return lowest;
  if (sum > -lowest && !(s > -lowest) && !(amount > -lowest)) return -lowest;
  return sum;
}

/// A number of the user's as the scalar of the scores. One that is finite stays finite: a double below all floats is no
/// mask, nor is one above them infinite.
template <class S, class X>
LIMPID_INLINE S taken(const X& x) {
  using Theirs = std::numeric_limits<X>;
  using Own = std::numeric_limits<S>;
  if constexpr (std::is_floating_point_v<X> && Own::is_specialized && Theirs::max_exponent > Own::max_exponent) {
    constexpr X most = X(Own::max());
    if (x > most && x <= Theirs::max()) return Own::max();
    if (x < -most && x >= Theirs::lowest()) return Own::lowest();
  }
  return S(x);
}

/// A product that overflows is the largest number of its sign.
template <class S>
S finite_product(S a, S b) {
  const S product = a * b, most = -lowest_number<S>();
  if (product > most && !(a > most)) return most;
  return product < -most && !(a < -most) ? -most : product;
}

/// The number of a head in a row or a column of one for each, or of one for all.
template <class ViewType>
auto number_of_head(const ViewType& v, Index head) -> decltype(v.data) {
  if (v.rows * v.cols == 1) return v.data;
  return v.rows == 1 ? v.data + head : v.data + head * v.stride;
}

[[noreturn, gnu::cold]] inline void raise_modifier(const char* op, const char* name, Index rows, Index cols,
                                                   const std::string& wanted) {
  raise(std::string(op) + ": " + name + " is " + shape_text(rows, cols) + ", wanted " + wanted);
}

/// Whether a modifier counts its amounts from a query, and says what that leaves out of a row.
template <class M>
inline constexpr bool has_row_constant = M::per_key;
template <class M>
requires requires { &M::template row_constant<float>; }
inline constexpr bool has_row_constant<M> =
    M::per_key &&
    !std::is_same_v<decltype(&M::template row_constant<float>), float (Modifier::*)(const At&, Index) const>;

}  // namespace detail

namespace detail {

/// Every key that some query from `first` to `last` may see: of a mask that moves one way what its ends say; one that
/// is made of several has a range of its own, as they may move apart.
template <class M>
Interval range_of(const M& m, const At& first, const At& last) {
  if constexpr (requires { m.range(first, last); }) {
    return m.range(first, last);
  } else {
    return around(m.interval(first), m.interval(last));
  }
}

/// What says the blocks, inside of masks that are made of masks.
template <class M>
const auto& leading_of(const M& m) {
  if constexpr (requires { m.leading(); })
    return m.leading();
  else
    return m;
}

}  // namespace detail

namespace detail {

/// Of a mask that others ask pair by pair, and which so counts no key twice.
template <class M>
void refuse_repeated_keys(const char* op, const M& m) {
  if constexpr (M::gathers)
    if (leading_of(m).repeats_keys())
      raise(std::string(op) +
            ": a mirrored border in a window that another mask asks pair by pair, wanted clip or shift "
            "there");
}

}  // namespace detail

/// Modifiers one after the other. The engine sees only this.
template <class... M>
struct Chain {
  static constexpr bool intervals = (M::intervals || ...), irregular = (M::irregular || ...),
                        per_pair = (M::per_pair || ...), per_key = (M::per_key || ...),
                        row_constants = (detail::has_row_constant<M> || ...), tables = (M::tables || ...),
                        collects_gradient = (M::collects_gradient || ...);
  static constexpr bool gathers = (M::gathers || ...), sinks = (M::sinks || ...);
  static_assert((int(M::sinks) + ... + 0) <= 1, "limpid: a chain of modifiers has one sink at most");
  /// The first that gathers says which blocks there are; of the others pairs are asked.
  static constexpr std::size_t leader = [] {
    std::size_t first = 0;
    for (const bool one : {M::gathers..., true})
      if (one)
        break;
      else
        ++first;
    return first;
  }();
  std::tuple<M...> parts;

  const auto& leading() const { return detail::leading_of(std::get<leader>(parts)); }
  static constexpr bool irregular_besides = [] {
    std::size_t place = 0;
    bool any = false;
    ((any = any || (place++ == leader ? M::irregular_besides : M::irregular)), ...);
    return any;
  }();
  bool keep_besides(const At& a) const {
    bool kept = true;
    std::size_t place = 0;
    each([&](const auto& m) {
      using One = std::remove_cvref_t<decltype(m)>;
      if (place++ == leader)
        kept = kept && m.keep_besides(a);
      else if constexpr (One::irregular)
        kept = kept && m.keep(a);
    });
    return kept;
  }
  Interval interval(const At& a) const {
    Interval all{0, a.m};
    each([&](const auto& m) {
      if constexpr (std::remove_cvref_t<decltype(m)>::intervals) all = common(all, m.interval(a));
    });
    return all;
  }
  Interval range(const At& first, const At& last) const {
    Interval all{0, first.m};
    each([&](const auto& m) {
      if constexpr (std::remove_cvref_t<decltype(m)>::intervals) all = common(all, detail::range_of(m, first, last));
    });
    return all;
  }
  bool keep(const At& a) const {
    bool kept = true;
    each([&](const auto& m) {
      if constexpr (std::remove_cvref_t<decltype(m)>::irregular) kept = kept && m.keep(a);
    });
    return kept;
  }
  Cover cover(const At& a, Index q0, Index q1, Index k0, Index k1) const {
    Cover all = Cover::all;
    each([&](const auto& m) {
      if constexpr (std::remove_cvref_t<decltype(m)>::irregular) {
        const Cover one = m.cover(a, q0, q1, k0, k1);
        if (one == Cover::none) all = Cover::none;
        if (one == Cover::some && all == Cover::all) all = Cover::some;
      }
    });
    return all;
  }
  /// Minus infinity masks the pair, whatever a later modifier would make of it.
  template <class S>
  LIMPID_INLINE S value(S s, const At& a) const {
    bool masked = false;
    each([&](const auto& m) {
      if constexpr (!std::remove_cvref_t<decltype(m)>::is_mask)
        if (!masked) masked = (s = m.value(s, a)) == detail::minus_infinity<S>();
    });
    return s;
  }
  /// The same, of tables only what they have above their entries for key `from`: a number for the row, which changes no
  /// weight, is left out. from < 0: nothing is.
  template <class S>
  S value(S s, const At& a, Index from) const {
    const Index first = first_amount();
    bool masked = false;
    each_at([&](const auto& m, Index place) {
      using One = std::remove_cvref_t<decltype(m)>;
      if (One::is_mask || masked) return;
      const bool table = One::tables && place >= first && m.is_table();
      const S next = table ? m.template amount<S>(a) : m.value(s, a);
      masked = next == detail::minus_infinity<S>();
      if (!table) s = next;
    });
    return masked ? detail::minus_infinity<S>() : detail::plus(s, above<S>(a, from));
  }
  /// What tables after the last score function add to a pair, less what they add to the pair of key `from` (if that is
  /// no key: nothing) in the same row. Each amount counts on its own, so that none is lost beside larger ones.
  template <class S>
  S above(const At& a, Index from) const {
    constexpr double part = 1.0 / 256;  // as differences and sums of the largest numbers overflow
    At other = a;
    other.k = from;
    const Index first = first_amount();
    S sum(0);
    each_at([&](const auto& m, Index place) {
      if constexpr (std::remove_cvref_t<decltype(m)>::tables) {
        if (place < first || !m.is_table()) return;
        const S one = S(part) * m.template amount<S>(a);
        sum += detail::OneLane<S>::pin(from < 0 ? one : one - S(part) * m.template amount<S>(other));
      }
    });
    return detail::finite_product(detail::OneLane<S>::pin(sum), S(1 / part));
  }
  /// Whether what such a table adds to this pair is far.
  template <class S>
  Far far_amounts(const At& a) const {
    const Index first = first_amount();
    Far all;
    each_at([&](const auto& m, Index place) {
      if constexpr (std::remove_cvref_t<decltype(m)>::tables) {
        if (place < first || !m.is_table()) return;
        const S one = m.template amount<S>(a);
        const Far far = detail::far_of(&one, 1);
        all = {all.above || far.above, all.below || far.below};
      }
    });
    return all;
  }
  /// Whether there are several such tables: their far amounts may cancel.
  bool sums_tables() const {
    const Index first = first_amount();
    Index count = 0;
    each_at([&](const auto& m, Index place) { count += place >= first && m.is_table() ? 1 : 0; });
    return count > 1;
  }
  /// Whether there are any such amounts that are far.
  template <class S>
  Far far(const At& a) const {
    const Index first = first_amount();
    Far all;
    each_at([&](const auto& m, Index place) {
      if (place < first) return;
      const Far one = m.template far<S>(a);
      all = {all.above || one.above, all.below || one.below};
    });
    return all;
  }
  template <class S>
  S key_bias(const At& a, Index q0) const {
    S s(0);
    bool first = true;
    each([&](const auto& m) {
      if constexpr (std::remove_cvref_t<decltype(m)>::per_key) {
        if (std::exchange(first, false))
          s = m.template key_bias<S>(a, q0);
        else if (s != detail::minus_infinity<S>())  // masked stays masked
          s = detail::plus(s, m.template key_bias<S>(a, q0));
      }
    });
    return s;
  }
  /// Tables counted from a key, as above.
  template <class S>
  S key_bias(const At& a, Index q0, Index from) const {
    S s(0);
    bool masked = false;
    each([&](const auto& m) {
      using One = std::remove_cvref_t<decltype(m)>;
      if (!One::per_key || masked) return;
      const bool table = One::tables && m.is_table();
      const S next = table ? m.template amount<S>(a) : m.template key_bias<S>(a, q0);
      masked = next == detail::minus_infinity<S>();
      if (!table) s = detail::plus(s, next);
    });
    return masked ? detail::minus_infinity<S>() : detail::plus(s, above<S>(a, from));
  }
  template <class S>
  S row_constant(const At& a, Index q0) const {
    S s(0);
    each([&](const auto& m) { s += m.template row_constant<S>(a, q0); });
    return s;
  }
  /// Gradient of the raw score from that of the final one, adding to the modifiers' own gradients on its way. s is the
  /// raw score.
  template <class S>
  LIMPID_INLINE S pull(S s, S ds, const At& a, S* sums) const {
    return pull_from<0>(s, ds, a, sums);
  }
  Index gradient_size(Index n, Index m) const {
    Index size = 0;
    each([&](const auto& part) { size += part.gradient_size(n, m); });
    return size;
  }
  bool wants_gradient() const {
    bool wanted = false;
    each([&](const auto& m) { wanted = wanted || m.wants_gradient(); });
    return wanted;
  }
  bool wants_serial_heads(Index b, Index h, Index n) const {
    bool wanted = false;
    each([&](const auto& m) { wanted = wanted || m.wants_serial_heads(b, h, n); });
    return wanted;
  }
  template <class S>
  void deliver_gradient(const At& a, const S* sums) const {
    each([&](const auto& m) {
      if (m.gradient_size(a.n, a.m) > 0) m.deliver_gradient(a, sums);
      sums += m.gradient_size(a.n, a.m);
    });
  }
  /// The logit of the sink.
  template <class S>
  S sink(const At& a) const {
    S logit = detail::minus_infinity<S>();
    each([&](const auto& m) {
      if constexpr (std::remove_cvref_t<decltype(m)>::sinks) logit = m.template logit<S>(a.head);
    });
    return logit;
  }
  /// Adds the gradient of that logit to the modifiers' own gradients.
  template <class S>
  void add_sink_gradient(const At& a, S ds, S* sums) const {
    each([&](const auto& m) {
      const Index size = m.gradient_size(a.all_rows(), a.all_keys());
      if (std::remove_cvref_t<decltype(m)>::sinks && size > 0) *sums += ds;
      sums += size;
    });
  }
  template <class F>
  void reads(F&& f) const {
    each([&](const auto& m) { m.reads(f); });
  }
  template <class F>
  void writes(F&& f) const {
    each([&](const auto& m) { m.writes(f); });
  }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    each([&](const auto& part) { part.check(op, b, h, n, m); });
    each_at([&](const auto& part, Index place) {
      if (place != Index(leader)) detail::refuse_repeated_keys(op, part);
    });
    if constexpr (gathers && intervals)
      if (leading().repeats_keys())
        detail::raise(std::string(op) + ": a mirrored border beside a mask of intervals, wanted clip or shift there");
  }

 private:
  template <class F>
  LIMPID_INLINE void each(F&& f) const {
    each_of(f, std::index_sequence_for<M...>());
  }
  template <class F, std::size_t... I>  // std::apply would be four functions for each f where nothing is inlined
  LIMPID_INLINE void each_of([[maybe_unused]] F& f, std::index_sequence<I...>) const {
    (f(std::get<I>(parts)), ...);
  }
  template <class F>
  LIMPID_INLINE void each_at(F&& f) const {
    Index place = 0;
    each([&](const auto& m) { f(m, place++); });
  }
  /// The place after the last modifier whose result is not the score and an amount.
  Index first_amount() const {
    Index first = 0;
    each_at([&](const auto& m, Index place) {
      using One = std::remove_cvref_t<decltype(m)>;
      if (!One::is_mask && !One::per_key && !m.adds()) first = place + 1;
    });
    return first;
  }
  template <std::size_t I, class S>
  LIMPID_INLINE S pull_from(S s, S ds, const At& a, S* sums) const {
    if constexpr (I == sizeof...(M)) {
      return ds;
    } else {
      const auto& m = std::get<I>(parts);
      using Part = std::remove_cvref_t<decltype(m)>;
      if constexpr (Part::is_mask) {
        return pull_from<I + 1>(s, ds, a, sums);
      } else {
        const S g =
            pull_from<I + 1>(per_pair ? m.value(s, a) : s, ds, a, sums + m.gradient_size(a.all_rows(), a.all_keys()));
        if constexpr (Part::collects_gradient)
          if (m.wants_gradient()) m.add_gradient(a, g, sums);
        return m.slope(s, a) * g;
      }
    }
  }
};

namespace detail {

/// Whether a modifier offers a function of its own: not the one that Modifier has for those who do not. One that is no
/// such template, or is overloaded, is its own.
#define LIMPID_OWN(NAME, TYPE, MEMBER)                                                      \
  template <class M>                                                                        \
  constexpr bool own_##NAME() {                                                             \
    if constexpr (requires { &M::MEMBER; })                                                 \
      return !std::is_same_v<decltype(&M::MEMBER), std::type_identity_t<TYPE> Modifier::*>; \
    return true;                                                                            \
  }
LIMPID_OWN(keep, bool(const At&) const, keep)
LIMPID_OWN(interval, Interval(const At&) const, interval)
LIMPID_OWN(cover, Cover(const At&, Index, Index, Index, Index) const, cover)
LIMPID_OWN(value, float(float, const At&) const, template value<float>)
LIMPID_OWN(slope, float(float, const At&) const, template slope<float>)
LIMPID_OWN(key_bias, float(const At&, Index) const, template key_bias<float>)
LIMPID_OWN(row_constant, float(const At&, Index) const, template row_constant<float>)
LIMPID_OWN(adds, bool() const, adds)
LIMPID_OWN(is_table, bool() const, is_table)
LIMPID_OWN(amount, float(const At&) const, template amount<float>)
LIMPID_OWN(far, Far(const At&) const, template far<float>)
LIMPID_OWN(add_gradient, void(const At&, float, float*) const, template add_gradient<float>)
LIMPID_OWN(wants_gradient, bool() const, wants_gradient)
LIMPID_OWN(wants_serial_heads, bool(Index, Index, Index) const, wants_serial_heads)
LIMPID_OWN(gradient_size, Index(Index, Index) const, gradient_size)
LIMPID_OWN(deliver_gradient, void(const At&, const float*) const, template deliver_gradient<float>)
#undef LIMPID_OWN

/// One sentence for what a modifier says it does and does not offer, or offers and does not say.
template <class M>
constexpr bool check_modifier() {
  static_assert(std::is_base_of_v<Modifier, M>,
                "limpid: a modifier (a mask, a bias, a score function) was wanted; an operator goes round another one "
                "the other way, as in rope(twicing())");
  if constexpr (std::is_base_of_v<Modifier, M>) {
    constexpr bool masks = M::intervals || M::irregular, scores = M::per_pair || M::per_key;
    static_assert(!M::intervals || own_interval<M>(),
                  "limpid: a modifier with intervals = true offers interval(const At&) const -> Interval");
    static_assert(!M::irregular || own_keep<M>(),
                  "limpid: a modifier with irregular = true offers keep(const At&) const -> bool");
    static_assert(
        M::is_mask == masks,
        "limpid: a mask says is_mask = true, and irregular = true (keep is asked) or intervals = true (interval is)");
    static_assert(M::is_mask || !(own_keep<M>() || own_cover<M>()),
                  "limpid: a modifier that offers keep says is_mask = true, and irregular or intervals = true");
    static_assert(M::intervals || M::is_mask != masks || !own_interval<M>(),
                  "limpid: a modifier that offers interval says is_mask = true and intervals = true");

    static_assert(!M::per_pair || own_value<M>(),
                  "limpid: a modifier with per_pair = true offers template <class S> S value(S, const At&) const");
    static_assert(!M::per_pair || !own_value<M>() || own_slope<M>() || own_adds<M>(),
                  "limpid: a modifier with per_pair = true offers template <class S> S slope(S, const At&) const, the "
                  "derivative of value, or adds() that is true");
    static_assert(
        !M::per_key || own_key_bias<M>(),
        "limpid: a modifier with per_key = true offers template <class S> S key_bias(const At&, Index) const");
    static_assert(!M::per_key || !own_key_bias<M>() || own_value<M>(),
                  "limpid: a modifier with per_key = true offers template <class S> S value(S, const At&) const as "
                  "well, the score plus that amount, for chains with a score function");
    static_assert(scores || !(own_value<M>() || own_slope<M>()),
                  "limpid: a modifier that offers value says per_pair or per_key = true");
    static_assert(scores || !(own_key_bias<M>() || own_row_constant<M>()),
                  "limpid: a modifier that offers key_bias says per_key = true");
    static_assert(!(masks && scores),
                  "limpid: a mask changes no score: value or key_bias want a modifier of their own");
    static_assert(M::tables ? own_is_table<M>() && own_amount<M>() && own_far<M>() : !own_is_table<M>(),
                  "limpid: a modifier with tables = true, and no other, offers is_table() const -> bool, template "
                  "<class S> S amount(const At&) const and template <class S> Far far(const At&) const");

    static_assert(M::collects_gradient ? own_add_gradient<M>() && own_wants_gradient<M>()
                                       : !(own_add_gradient<M>() || own_wants_gradient<M>()),
                  "limpid: a modifier with collects_gradient = true, and no other, offers wants_gradient() const -> "
                  "bool and template <class S> void add_gradient(const At&, S, S*) const");
    static_assert(
        !M::collects_gradient || !own_add_gradient<M>() || own_gradient_size<M>() || own_wants_serial_heads<M>(),
        "limpid: a modifier with collects_gradient = true offers gradient_size(n, m) const -> Index, the sums "
        "of a head, or wants_serial_heads(b, h, n) const -> bool where heads add to one array");
    static_assert(own_gradient_size<M>() == own_deliver_gradient<M>(),
                  "limpid: a modifier offers gradient_size(Index, Index) const -> Index together with template <class "
                  "S> void deliver_gradient(const At&, const S*) const");
  }
  return std::is_base_of_v<Modifier, M>;
}

}  // namespace detail

namespace detail {

template <class M>
inline constexpr bool is_chain = requires(const M& m) {
  m.parts;
};

}  // namespace detail

/// Modifiers in a row; a chain may hold chains.
template <class... M>
auto chain(const M&... m) {
  if constexpr ((detail::is_chain<M> || ...)) {
    const auto parts = [](const auto& one) {
      using One = std::remove_cvref_t<decltype(one)>;
      if constexpr (detail::is_chain<One>)
        return one.parts;
      else if constexpr (detail::check_modifier<One>())
        return std::make_tuple(one);
      else
        return std::tuple<>();
    };
    auto all = std::tuple_cat(parts(m)...);
    return std::apply([](auto... part) { return Chain<decltype(part)...>{{part...}}; }, all);
  } else if constexpr ((detail::check_modifier<M>() && ...)) {
    return Chain<M...>{{m...}};
  } else {
    return Chain<>();
  }
}
template <class... M>
Chain<M...> chain(const Chain<M...>& one) {
  return one;
}
inline Chain<> chain() { return {}; }

}  // namespace LIMPID_ABI
}  // namespace limpid
