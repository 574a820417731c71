// limpid: modifiers of scores: masks, biases, positions added to scores, score functions of the user's own.
// SPDX-License-Identifier: MIT
//
// chain(a, b, ...) applies values from left to right; masks come last whatever their place, so a masked pair stays
// masked. Arrays a modifier looks at must outlive it; gradient sinks are ADDED to, as several calls may share one
// table. ShapeError where a result lies over such an array, or a sink over anything but a sink.
#pragma once

#include <array>
#include <tuple>
#include <utility>

#include "../core/scores.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What a modifier is unless it says otherwise.
struct Modifier {
  static constexpr bool is_mask = false;  ///< keeps or drops pairs
  static constexpr bool intervals =
      false;  ///< a mask that keeps one run of keys a query, moving one way with the query
  static constexpr bool irregular = false;  ///< a mask that must be asked pair by pair
  static constexpr bool values = false;     ///< changes a score by more than an amount per key
  static constexpr bool starts = false;     ///< adds an amount per key (up to a constant of the row)
  static constexpr bool tables = false;     ///< may add entries of an array of the user's, which may be any numbers
  static constexpr bool sinks = false;      ///< may collect a gradient of its own
  Interval interval(const At& a) const { return {0, a.m}; }
  bool keep(const At&) const { return true; }
  Cover cover(const At&, Index, Index, Index, Index) const { return Cover::all; }
  template <class S>
  S value(S s, const At&) const {
    return s;
  }
  template <class S>
  S slope(S, const At&) const {
    return S(1);
  }
  template <class S>
  S start(const At&, Index) const {
    return S(0);
  }
  template <class S>
  S shift(const At&, Index) const {
    return S(0);
  }
  /// Whether a value is the score plus an amount that does not hang on it.
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
  void sink(const At&, S, S*) const {}
  bool wants_sink() const { return false; }
  bool wants_serial_heads(Index, Index, Index) const { return false; }
  Index sink_size(Index, Index) const { return 0; }
  template <class S>
  void flush(const At&, const S*) const {}
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

[[noreturn, gnu::cold]] inline void raise_modifier(const char* op, const char* name, Index rows, Index cols,
                                                   const std::string& wanted) {
  raise(std::string(op) + ": " + name + " is " + shape_text(rows, cols) + ", wanted " + wanted);
}

}  // namespace detail

/// Query i of n sees key j of m when j - i <= m - n: the last query sees the last key (bottom-right aligned).
///
///     n = 3, m = 5:  x x x . .        n = 3, m = 2:  . .
///                    x x x x .                       x .
///                    x x x x x                       x x
struct Causal : Modifier {
  static constexpr bool is_mask = true, intervals = true;
  Interval interval(const At& a) const { return {0, std::max<Index>(0, a.position() + 1)}; }
  bool keep(const At& a) const { return a.k <= a.position(); }
  Cover cover(const At& a, Index q0, Index q1, Index k0, Index k1) const {
    const Index offset = a.m - a.n;
    if (k1 - 1 <= q0 + offset) return Cover::all;
    return k0 > q1 - 1 + offset ? Cover::none : Cover::some;
  }
};
inline Causal causal() { return {}; }

/// Keys from `left` before the query's position to `right` after it, both included; a negative number means no limit.
struct Window : Modifier {
  static constexpr bool is_mask = true, intervals = true;
  Index left = -1, right = 0;
  Interval interval(const At& a) const {
    const Index p = a.position();
    return {std::max<Index>(0, p - before(a)), std::max<Index>(0, p + after(a) + 1)};
  }
  bool keep(const At& a) const {
    const Index gap = a.k - a.position();
    return gap >= -before(a) && gap <= after(a);
  }
  Cover cover(const At& a, Index q0, Index q1, Index k0, Index k1) const {
    const Index p0 = q0 + a.m - a.n, p1 = q1 - 1 + a.m - a.n;
    if (k1 - 1 < p0 - before(a) || k0 > p1 + after(a)) return Cover::none;
    return k0 >= p1 - before(a) && k1 - 1 <= p0 + after(a) ? Cover::all : Cover::some;
  }

 private:
  // no two positions lie farther apart than this, so larger windows, which would overflow sums, are no different
  static Index widest(const At& a) { return a.n + a.m; }
  Index before(const At& a) const { return left < 0 ? widest(a) : std::min(left, widest(a)); }
  Index after(const At& a) const { return right < 0 ? widest(a) : std::min(right, widest(a)); }
};
inline Window window(Index left, Index right = 0) {
  Window w;
  w.left = left;
  w.right = right;
  return w;
}

/// true = keep, asked pair by pair. A function that offers block(At, q0, q1, k0, k1) -> Cover lets whole tiles be
/// skipped.
template <class F>
struct MaskFunction : Modifier {
  static constexpr bool is_mask = true, irregular = true;
  F f;
  explicit MaskFunction(F f_) : f(std::move(f_)) {}
  bool keep(const At& a) const { return f(a); }
  Cover cover(const At& a, Index q0, Index q1, Index k0, Index k1) const {
    if constexpr (requires { f.block(a, q0, q1, k0, k1); }) return f.block(a, q0, q1, k0, k1);
    return Cover::some;
  }
};
template <class F>
MaskFunction<F> mask(F f) {
  return MaskFunction<F>(std::move(f));
}

/// A boolean matrix, true = keep: n x m for all, (B n) x m one a batch item, or (B H n) x m one a head.
struct MaskMatrix : Modifier {
  static constexpr bool is_mask = true, irregular = true;
  View<bool> keep_;
  Index heads = 1, batch = 1;
  bool keep(const At& a) const {
    Index row = a.q;
    if (keep_.rows == batch * heads * a.n && heads > 1)
      row += (a.batch * heads + a.head) * a.n;
    else if (keep_.rows == batch * a.n)
      row += a.batch * a.n;
    return keep_(row, a.k);
  }
  Cover cover(const At&, Index, Index, Index, Index) const { return Cover::some; }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    if ((keep_.rows != n && keep_.rows != b * n && keep_.rows != b * h * n) || (keep_.cols != m && keep_.rows != 0))
      detail::raise_modifier(
          op, "mask", keep_.rows, keep_.cols,
          "n x m, (B n) x m or (B H n) x m with n = " + detail::text_of(n) + ", m = " + detail::text_of(m));
  }
  void bind(Index b, Index h) { batch = b, heads = h; }
};
inline MaskMatrix mask_matrix(View<bool> keep) {
  MaskMatrix m;
  m.keep_ = keep;
  return m;
}

namespace detail {

/// The pairs a mask keeps, whatever kind it is.
template <class M>
bool mask_keeps(const M& m, const At& a) {
  return m.keep(a);
}

template <class A, class B>
struct AndMask : Modifier {
  static constexpr bool is_mask = true, intervals = A::intervals || B::intervals,
                        irregular = A::irregular || B::irregular;
  A a;
  B b;
  AndMask(A a_, B b_) : a(std::move(a_)), b(std::move(b_)) {}
  Interval interval(const At& at) const {
    const Interval x = a.interval(at), y = b.interval(at);
    return {std::max(x.begin, y.begin), std::min(x.end, y.end)};
  }
  bool keep(const At& at) const { return mask_keeps(a, at) && mask_keeps(b, at); }
  Cover cover(const At& at, Index q0, Index q1, Index k0, Index k1) const {
    const Cover x = a.cover(at, q0, q1, k0, k1), y = b.cover(at, q0, q1, k0, k1);
    if (x == Cover::none || y == Cover::none) return Cover::none;
    return x == Cover::all && y == Cover::all ? Cover::all : Cover::some;
  }
  void check(const char* op, Index bt, Index h, Index n, Index m) const {
    a.check(op, bt, h, n, m), b.check(op, bt, h, n, m);
  }
  void bind(Index bt, Index h) { bind_part(a, bt, h), bind_part(b, bt, h); }
  template <class M>
  static void bind_part(M& m, Index bt, Index h) {
    if constexpr (requires { m.bind(bt, h); }) m.bind(bt, h);
  }
};

template <class A, class B>
struct OrMask : AndMask<A, B> {
  static constexpr bool intervals = false, irregular = true;
  using AndMask<A, B>::AndMask;
  Interval interval(const At& at) const { return {0, at.m}; }
  bool keep(const At& at) const { return mask_keeps(this->a, at) || mask_keeps(this->b, at); }
  Cover cover(const At& at, Index q0, Index q1, Index k0, Index k1) const {
    const Cover x = this->a.cover(at, q0, q1, k0, k1), y = this->b.cover(at, q0, q1, k0, k1);
    if (x == Cover::all || y == Cover::all) return Cover::all;
    return x == Cover::none && y == Cover::none ? Cover::none : Cover::some;
  }
};

template <class A>
struct NotMask : Modifier {
  static constexpr bool is_mask = true, irregular = true;
  A a;
  explicit NotMask(A a_) : a(std::move(a_)) {}
  bool keep(const At& at) const { return !mask_keeps(a, at); }
  Cover cover(const At& at, Index q0, Index q1, Index k0, Index k1) const {
    const Cover x = a.cover(at, q0, q1, k0, k1);
    return x == Cover::some ? x : (x == Cover::all ? Cover::none : Cover::all);
  }
  void check(const char* op, Index b, Index h, Index n, Index m) const { a.check(op, b, h, n, m); }
  void bind(Index b, Index h) {
    if constexpr (requires { a.bind(b, h); }) a.bind(b, h);
  }
};

}  // namespace detail

template <IsMask A, IsMask B>
detail::AndMask<A, B> operator&(A a, B b) {
  return {std::move(a), std::move(b)};
}
template <IsMask A, IsMask B>
detail::OrMask<A, B> operator|(A a, B b) {
  return {std::move(a), std::move(b)};
}
template <IsMask A>
detail::NotMask<A> operator!(A a) {
  return detail::NotMask<A>(std::move(a));
}

/// S + f(at); minus infinity masks the pair, and a finite number beyond the scalar of the scores counts as its largest
/// of that sign. No gradient reaches what f looks at: see bias for a table that learns. Amounts are added to scores as
/// they are, as nothing is known of f: where all keys that a row sees have the lowest number, they count alike.
template <class F>
struct Additive : Modifier {
  static constexpr bool values = true;
  F f;
  explicit Additive(F f_) : f(std::move(f_)) {}
  bool adds() const { return true; }
  template <class S>
  S value(S s, const At& a) const {
    return detail::plus(s, detail::taken<S>(f(a)));
  }
};
template <class F>
Additive<F> additive(F f) {
  return Additive<F>(std::move(f));
}

struct NoDerivative {};

/// A score function of the user's own: f(s, at), and its derivative df(s, at) with respect to s for the backward pass.
/// Minus infinity masks the pair; a finite number beyond the scalar of the scores counts as its largest of that sign.
/// Where biases come before it, f is given the rounded sums: with the lowest number on all keys that a row sees, these
/// are all alike. Biases that come after it have their say, see KeyBias.
template <class F, class D>
struct ScoreFunction : Modifier {
  static constexpr bool values = true;
  F f;
  D df;
  ScoreFunction(F f_, D df_) : f(std::move(f_)), df(std::move(df_)) {}
  template <class S>
  S value(S s, const At& a) const {
    return detail::taken<S>(f(s, a));
  }
  template <class S>
  S slope(S s, const At& a) const {
    static_assert(!std::is_same_v<D, NoDerivative>,
                  "limpid: backward needs the derivative of the score function; write score_mod(f, df)");
    if constexpr (!std::is_same_v<D, NoDerivative>) return detail::taken<S>(df(s, a));
    return s;
  }
};
template <class F, class D = NoDerivative>
ScoreFunction<F, D> score_mod(F f, D df = {}) {
  return {std::move(f), std::move(df)};
}

/// S + b_j for every key: b is 1 x m, or B x m for one row a batch item. db the same shape, added to: db_j += sum_i
/// dS_ij. Minus infinity, and nothing else, masks a key. Where all keys that a row sees have biases far from 0, as the
/// lowest number that some models write for a mask is, differences of b count, not their rounded sums with S; so it is
/// with relative() and bias() too, and with several of them.
template <class S>
struct KeyBias : Modifier {
  static constexpr bool starts = true, tables = true, sinks = true;
  View<S> b;
  MutView<S> db;
  Index row(const At& a) const { return b.rows == 1 ? 0 : a.batch; }
  bool adds() const { return true; }
  bool is_table() const { return true; }
  template <class T>
  T amount(const At& a) const {
    return detail::taken<T>(b(row(a), a.k));
  }
  template <class T>
  T value(T s, const At& a) const {
    return detail::plus(s, amount<T>(a));
  }
  template <class T>
  T start(const At& a, Index) const {
    return amount<T>(a);
  }
  template <class T>
  Far far(const At& a) const {
    return detail::far_of(b.row(row(a)), b.cols);
  }
  template <class T>
  void sink(const At& a, T ds, T* sum) const {
    sum[a.k] += ds;
  }
  bool wants_sink() const { return !db.empty(); }
  Index sink_size(Index, Index m) const { return wants_sink() ? m : 0; }
  template <class T>
  void flush(const At& a, const T* sum) const {
    for (Index j = 0; j < a.m; ++j) db(row(a), j) += S(sum[j]);
  }
  template <class F>
  void reads(F&& f) const {
    f(detail::NamedArray("key bias", b));
  }
  template <class F>
  void writes(F&& f) const {
    f(detail::NamedArray("gradient of the key bias", db));
  }
  void check(const char* op, Index batch, Index, Index, Index m) const {
    const bool fits = (b.rows == 1 || b.rows == batch) && b.cols == m;
    if (!fits) detail::raise_modifier(op, "key bias", b.rows, b.cols, "1 x m or B x m with m = " + detail::text_of(m));
    if (!db.empty() && (db.rows != b.rows || db.cols != b.cols))
      detail::raise_modifier(op, "gradient of the key bias", db.rows, db.cols, detail::shape_text(b.rows, b.cols));
  }
};
template <class B>
KeyBias<typename std::remove_cvref_t<B>::Scalar> key_bias(B&& b) {
  KeyBias<typename std::remove_cvref_t<B>::Scalar> m;
  m.b = View<typename std::remove_cvref_t<B>::Scalar>(std::forward<B>(b));
  return m;
}
template <class B, class DB>
KeyBias<typename std::remove_cvref_t<B>::Scalar> key_bias(B&& b, DB&& db) {
  auto m = key_bias(std::forward<B>(b));
  m.db = MutView<typename std::remove_cvref_t<B>::Scalar>(std::forward<DB>(db));
  return m;
}

/// ALiBi (Press, Smith, Lewis 2022, arXiv 2108.12409): S - slope (p_i - j), p_i the query's position; slopes is a row
/// or column of H numbers, or one for all heads. Meant for causal use; the symmetric form |p_i - j| is our own
/// extension. dslope += - sum_ij dS_ij gap_ij. Slopes are numbers whose products with gaps are finite, else ShapeError;
/// scores that would fall below all numbers stay the lowest, and are not masked.
template <class S, bool Symmetric>
struct Alibi : Modifier {
  static constexpr bool values = Symmetric, starts = !Symmetric, sinks = true;
  View<S> slopes;
  MutView<S> dslopes;
  S slope_of(Index head) const { return *entry(slopes, head); }
  template <class T>
  T gap(const At& a) const {
    const T g = T(a.position() - a.k);
    return Symmetric && g < T(0) ? -g : g;
  }
  bool adds() const { return true; }
  template <class T>
  T slope_at(const At& a) const {
    if constexpr (std::is_same_v<S, T> || !std::is_constructible_v<double, T>) {
      return T(slope_of(a.head));  // its products with gaps are finite, see check
    } else {
      const double most = detail::largest_factor<T>() * 0x1p20 / double(a.n + a.m + 1);
      const double slope = double(slope_of(a.head));
      return T(slope > most ? most : (slope < -most ? -most : slope));
    }
  }
  template <class T>
  T value(T s, const At& a) const {
    return detail::plus(s, -slope_at<T>(a) * gap<T>(a));
  }
  // slope (j - p of the first query): small for near keys, so that float keeps its digits; the rest is a row constant
  template <class T>
  T start(const At& a, Index q0) const {
    return slope_at<T>(a) * T(a.k - (q0 + a.m - a.n));
  }
  template <class T>
  T shift(const At& a, Index q0) const {
    return slope_at<T>(a) * T(a.q - q0);
  }
  template <class T>
  void sink(const At& a, T ds, T* sum) const {
    *sum -= ds * gap<T>(a);
  }
  bool wants_sink() const { return !dslopes.empty(); }
  Index sink_size(Index, Index) const { return wants_sink() ? 1 : 0; }
  template <class T>
  void flush(const At& a, const T* sum) const {
    *entry(dslopes, a.head) += S(*sum);
  }
  template <class F>
  void reads(F&& f) const {
    f(detail::NamedArray("ALiBi slopes", slopes));
  }
  template <class F>
  void writes(F&& f) const {
    f(detail::NamedArray("gradient of the ALiBi slopes", dslopes));
  }
  void check(const char* op, Index, Index h, Index n, Index m) const {
    const Index count = slopes.rows * slopes.cols;
    if (count != 1 && count != h)
      detail::raise_modifier(op, "ALiBi slopes", slopes.rows, slopes.cols,
                             "one number a head, H = " + detail::text_of(h));
    if constexpr (std::is_constructible_v<double, S>)
      for (Index i = 0; i < count; ++i)
        if (const double slope = double(*entry(slopes, i)); !std::isnan(slope)) {  // which comes out, as from any table
          detail::check_factor<S>(op, "an ALiBi slope", slope);
          if (const double most = detail::largest_factor<S>() * 0x1p20 / double(n + m + 1); std::abs(slope) > most)
            detail::raise(std::string(op) + ": an ALiBi slope is " + detail::number_text(slope) + ", wanted at most " +
                          detail::number_text(most) + " in size, as gaps are that wide");
        }
    if (!dslopes.empty() && dslopes.rows * dslopes.cols != count)
      detail::raise_modifier(op, "gradient of the ALiBi slopes", dslopes.rows, dslopes.cols,
                             detail::text_of(count) + " numbers");
  }

 private:
  template <class ViewType>
  static auto entry(const ViewType& v, Index head) -> decltype(v.data) {
    if (v.rows * v.cols == 1) return v.data;
    return v.rows == 1 ? v.data + head : v.data + head * v.stride;
  }
};
namespace detail {
template <bool Symmetric, class A>
auto make_alibi(A&& slopes) {
  using S = typename std::remove_cvref_t<A>::Scalar;
  Alibi<S, Symmetric> m;
  m.slopes = View<S>(std::forward<A>(slopes));
  return m;
}
}  // namespace detail
template <class A>
auto alibi(A&& slopes) {
  return detail::make_alibi<false>(std::forward<A>(slopes));
}
template <class A, class DA>
auto alibi(A&& slopes, DA&& dslopes) {
  auto m = detail::make_alibi<false>(std::forward<A>(slopes));
  m.dslopes = MutView<typename std::remove_cvref_t<A>::Scalar>(std::forward<DA>(dslopes));
  return m;
}
template <class A>
auto alibi_symmetric(A&& slopes) {
  return detail::make_alibi<true>(std::forward<A>(slopes));
}
template <class A, class DA>
auto alibi_symmetric(A&& slopes, DA&& dslopes) {
  auto m = detail::make_alibi<true>(std::forward<A>(slopes));
  m.dslopes = MutView<typename std::remove_cvref_t<A>::Scalar>(std::forward<DA>(dslopes));
  return m;
}

/// Index map of a relative table: clip(offset, -R, R) + R for a table of 2 R + 1 numbers.
struct ClipOffset {
  Index operator()(Index offset, Index size) const {
    const Index r = (size - 1) / 2;
    return std::clamp<Index>(offset, -r, r) + r;
  }
};

/// S + table[map(j - p_i)], table 1 x L for all heads or H x L (Shaw et al. 2018, arXiv 1803.02155; T5 buckets are
/// another map). dtable += the sum of dS over the pairs of an entry. Entries far from 0 as in KeyBias.
template <class S, class Map>
struct Relative : Modifier {
  static constexpr bool values = true, tables = true, sinks = true;
  View<S> table;
  MutView<S> dtable;
  Map map;
  Index entry(const At& a) const { return map(a.k - a.position(), table.cols); }
  Index row(const At& a) const { return table.rows == 1 ? 0 : a.head; }
  bool adds() const { return true; }
  bool is_table() const { return true; }
  template <class T>
  T amount(const At& a) const {
    return detail::taken<T>(table(row(a), entry(a)));
  }
  template <class T>
  T value(T s, const At& a) const {
    return detail::plus(s, amount<T>(a));
  }
  template <class T>
  Far far(const At& a) const {
    return detail::far_of(table.row(row(a)), table.cols);
  }
  template <class T>
  void sink(const At& a, T ds, T* sum) const {
    sum[entry(a)] += ds;
  }
  bool wants_sink() const { return !dtable.empty(); }
  Index sink_size(Index, Index) const { return wants_sink() ? table.cols : 0; }
  template <class T>
  void flush(const At& a, const T* sum) const {
    for (Index r = 0; r < table.cols; ++r) dtable(row(a), r) += S(sum[r]);
  }
  template <class F>
  void reads(F&& f) const {
    f(detail::NamedArray("relative table", table));
  }
  template <class F>
  void writes(F&& f) const {
    f(detail::NamedArray("gradient of the relative table", dtable));
  }
  void check(const char* op, Index, Index h, Index n, Index m) const {
    constexpr bool clips = std::is_same_v<Map, ClipOffset>;
    if ((table.rows != 1 && table.rows != h) || table.cols < 1 || (clips && table.cols % 2 == 0))
      detail::raise_modifier(
          op, "relative table", table.rows, table.cols,
          (clips ? "1 x (2 R + 1) or H x (2 R + 1) with H = " : "1 x L or H x L with H = ") + detail::text_of(h));
    if constexpr (!clips)
      for (Index offset = 1 - m; offset < n; ++offset)
        if (const Index at = map(offset, table.cols); at < 0 || at >= table.cols)
          detail::raise(std::string(op) + ": the map of a relative table gives " + detail::text_of(at) +
                        " for the offset " + detail::text_of(offset) + ", wanted one of " +
                        detail::text_of(table.cols) + " entries");
    if (!dtable.empty() && (dtable.rows != table.rows || dtable.cols != table.cols))
      detail::raise_modifier(op, "gradient of the relative table", dtable.rows, dtable.cols,
                             detail::shape_text(table.rows, table.cols));
  }
};
template <class A, class Map = ClipOffset>
requires(!detail::HasScalar<Map>) auto relative(A&& table, Map map = {}) {
  using S = typename std::remove_cvref_t<A>::Scalar;
  return Relative<S, Map>{{}, View<S>(std::forward<A>(table)), {}, std::move(map)};  // a lambda has no assignment
}
template <class A, class DA, class Map = ClipOffset>
requires detail::HasScalar<DA>
auto relative(A&& table, DA&& dtable, Map map = {}) {
  auto m = relative(std::forward<A>(table), map);
  m.dtable = MutView<typename std::remove_cvref_t<A>::Scalar>(std::forward<DA>(dtable));
  return m;
}

/// S + table: a dense bias n x m for all, (H n) x m one a head, or (B H n) x m; dtable the same shape, added to.
/// The one thing here that is n x m, because the user brought it. Every sweep looks it through for entries far from 0,
/// which count as in KeyBias.
template <class S>
struct Bias : Modifier {
  static constexpr bool values = true, tables = true, sinks = true;
  View<S> table;
  MutView<S> dtable;
  Index heads = 1, batch = 1;
  Index row(const At& a) const {
    if (table.rows == a.n) return a.q;
    return table.rows == heads * a.n ? a.head * a.n + a.q : (a.batch * heads + a.head) * a.n + a.q;
  }
  bool adds() const { return true; }
  bool is_table() const { return true; }
  template <class T>
  T amount(const At& a) const {
    return detail::taken<T>(table(row(a), a.k));
  }
  template <class T>
  T value(T s, const At& a) const {
    return detail::plus(s, amount<T>(a));
  }
  template <class T>
  Far far(At a) const {
    Far all;
    for (a.q = 0; a.q < a.n && !(all.above && all.below); ++a.q) {
      const Far one = detail::far_of(table.row(row(a)), table.cols);
      all = {all.above || one.above, all.below || one.below};
    }
    return all;
  }
  template <class T>
  void sink(const At& a, T ds, T*) const {
    if (!dtable.empty()) dtable(row(a), a.k) += S(ds);
  }
  bool wants_sink() const { return !dtable.empty(); }
  bool wants_serial_heads(Index b, Index h, Index n) const { return !dtable.empty() && dtable.rows != b * h * n; }
  void bind(Index b, Index h) { batch = b, heads = h; }
  template <class F>
  void reads(F&& f) const {
    f(detail::NamedArray("bias", table));
  }
  template <class F>
  void writes(F&& f) const {
    f(detail::NamedArray("gradient of the bias", dtable));
  }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    if ((table.rows != n && table.rows != h * n && table.rows != b * h * n) || table.cols != m)
      detail::raise_modifier(
          op, "bias", table.rows, table.cols,
          "n x m, (H n) x m or (B H n) x m with n = " + detail::text_of(n) + ", m = " + detail::text_of(m));
    if (!dtable.empty() && (dtable.rows != table.rows || dtable.cols != table.cols))
      detail::raise_modifier(op, "gradient of the bias", dtable.rows, dtable.cols,
                             detail::shape_text(table.rows, table.cols));
  }
};
template <class A>
auto bias(A&& table) {
  using S = typename std::remove_cvref_t<A>::Scalar;
  Bias<S> m;
  m.table = View<S>(std::forward<A>(table));
  return m;
}
template <class A, class DA>
auto bias(A&& table, DA&& dtable) {
  auto m = bias(std::forward<A>(table));
  m.dtable = MutView<typename std::remove_cvref_t<A>::Scalar>(std::forward<DA>(dtable));
  return m;
}

namespace detail {

/// Whether a modifier's amounts are counted from a query, which leaves a constant out of a row: it has a shift of its
/// own.
template <class M>
inline constexpr bool has_shift = M::starts;
template <class M>
requires requires { &M::template shift<float>; }
inline constexpr bool has_shift<M> =
    M::starts && !std::is_same_v<decltype(&M::template shift<float>), float (Modifier::*)(const At&, Index) const>;

}  // namespace detail

/// Modifiers one after the other. The engine sees only this.
template <class... M>
struct Chain {
  static constexpr bool intervals = (M::intervals || ...), irregular = (M::irregular || ...),
                        values = (M::values || ...), starts = (M::starts || ...),
                        shifts = (detail::has_shift<M> || ...), tables = (M::tables || ...), sinks = (M::sinks || ...);
  std::tuple<M...> parts;

  Interval interval(const At& a) const {
    Interval all{0, a.m};
    each([&](const auto& m) {
      if constexpr (std::remove_cvref_t<decltype(m)>::intervals) {
        const Interval one = m.interval(a);
        all = {std::max(all.begin, one.begin), std::min(all.end, one.end)};
      }
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
        sum += detail::OneLane<S>::keep(from < 0 ? one : one - S(part) * m.template amount<S>(other));
      }
    });
    return detail::finite_product(detail::OneLane<S>::keep(sum), S(1 / part));
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
  S start(const At& a, Index q0) const {
    S s(0);
    bool first = true;
    each([&](const auto& m) {
      if constexpr (std::remove_cvref_t<decltype(m)>::starts) {
        if (std::exchange(first, false))
          s = m.template start<S>(a, q0);
        else if (s != detail::minus_infinity<S>())  // masked stays masked
          s = detail::plus(s, m.template start<S>(a, q0));
      }
    });
    return s;
  }
  /// Tables counted from a key, as above.
  template <class S>
  S start(const At& a, Index q0, Index from) const {
    S s(0);
    bool masked = false;
    each([&](const auto& m) {
      using One = std::remove_cvref_t<decltype(m)>;
      if (!One::starts || masked) return;
      const bool table = One::tables && m.is_table();
      const S next = table ? m.template amount<S>(a) : m.template start<S>(a, q0);
      masked = next == detail::minus_infinity<S>();
      if (!table) s = detail::plus(s, next);
    });
    return masked ? detail::minus_infinity<S>() : detail::plus(s, above<S>(a, from));
  }
  template <class S>
  S shift(const At& a, Index q0) const {
    S s(0);
    each([&](const auto& m) { s += m.template shift<S>(a, q0); });
    return s;
  }
  /// Gradient of the raw score from that of the final one, feeding the sinks on its way. s is the raw score.
  template <class S>
  LIMPID_INLINE S pull(S s, S ds, const At& a, S* sums) const {
    return pull_from<0>(s, ds, a, sums);
  }
  Index sink_size(Index n, Index m) const {
    Index size = 0;
    each([&](const auto& part) { size += part.sink_size(n, m); });
    return size;
  }
  bool wants_sink() const {
    bool wanted = false;
    each([&](const auto& m) { wanted = wanted || m.wants_sink(); });
    return wanted;
  }
  bool wants_serial_heads(Index b, Index h, Index n) const {
    bool wanted = false;
    each([&](const auto& m) { wanted = wanted || m.wants_serial_heads(b, h, n); });
    return wanted;
  }
  template <class S>
  void flush(const At& a, const S* sums) const {
    each([&](const auto& m) {
      if (m.sink_size(a.n, a.m) > 0) m.flush(a, sums);
      sums += m.sink_size(a.n, a.m);
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
  }
  /// The same chain, told how many batch items and heads there are.
  Chain bound(Index b, Index h) const {
    Chain c = *this;
    std::apply([&](auto&... m) { (bind_part(m, b, h), ...); }, c.parts);
    return c;
  }

 private:
  template <class M1>
  static void bind_part(M1& m, Index b, Index h) {
    if constexpr (requires { m.bind(b, h); }) m.bind(b, h);
  }
  template <class F>
  LIMPID_INLINE void each(F&& f) const {
    std::apply([&](const auto&... m) { (f(m), ...); }, parts);
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
      if (!std::remove_cvref_t<decltype(m)>::is_mask && !m.adds()) first = place + 1;
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
        const S g = pull_from<I + 1>(values ? m.value(s, a) : s, ds, a, sums + m.sink_size(a.n, a.m));
        if constexpr (Part::sinks)
          if (m.wants_sink()) m.sink(a, g, sums);
        return m.slope(s, a) * g;
      }
    }
  }
};

/// Modifiers in a row; a chain may hold chains.
template <class... M>
auto chain(const M&... m) {
  const auto parts = [](const auto& one) {
    using One = std::remove_cvref_t<decltype(one)>;
    if constexpr (requires { one.parts; }) {
      return one.parts;
    } else {
      static_assert(
          std::is_base_of_v<Modifier, One>,
          "limpid: a modifier (a mask, a bias, a score function) was wanted; an operator goes round another one "
          "the other way, as in rope(twicing())");
      return std::make_tuple(one);
    }
  };
  auto all = std::tuple_cat(parts(m)...);
  return std::apply([](auto... part) { return Chain<decltype(part)...>{{part...}}; }, all);
}
inline Chain<> chain() { return {}; }

}  // namespace LIMPID_ABI
}  // namespace limpid
