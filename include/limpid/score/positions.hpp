// limpid: positions: added to scores (ALiBi, relative tables) or to tokens (sinusoids).
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "../core/args.hpp"
#include "modifier.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// ALiBi (Press, Smith, Lewis 2022, arXiv 2108.12409): S - slope (p_i - j), p_i the query's position; slopes is a row
/// or column of H numbers, or one for all heads. Meant for causal use; the symmetric form |p_i - j| is our own
/// extension. dslope += - sum_ij dS_ij gap_ij. Slopes are numbers whose products with gaps are finite, else ShapeError;
/// scores that would fall below all numbers stay the lowest, and are not masked.
template <class S, bool Symmetric>
struct Alibi : Modifier {
  static constexpr bool per_pair = Symmetric, per_key = !Symmetric, collects_gradient = true;
  View<S> slopes;
  MutView<S> dslopes;
  S slope_of(Index head) const { return *detail::number_of_head(slopes, head); }
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
  T key_bias(const At& a, Index q0) const {
    return slope_at<T>(a) * T(a.k - (q0 + a.m - a.n));
  }
  template <class T>
  T row_constant(const At& a, Index q0) const {
    return slope_at<T>(a) * T(a.q - q0);
  }
  template <class T>
  void add_gradient(const At& a, T ds, T* sum) const {
    *sum -= ds * gap<T>(a);
  }
  bool wants_gradient() const { return !dslopes.empty(); }
  Index gradient_size(Index, Index) const { return wants_gradient() ? 1 : 0; }
  template <class T>
  void deliver_gradient(const At& a, const T* sum) const {
    *detail::number_of_head(dslopes, a.head) += S(*sum);
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
        if (const double slope = double(*detail::number_of_head(slopes, i));
            !std::isnan(slope)) {  // which comes out, as from any table
          detail::check_factor<S>(op, "an ALiBi slope", slope);
          if (const double most = detail::largest_factor<S>() * 0x1p20 / double(n + m + 1); std::abs(slope) > most)
            detail::raise(std::string(op) + ": an ALiBi slope is " + detail::number_text(slope) + ", wanted at most " +
                          detail::number_text(most) + " in size, as gaps are that wide");
        }
    if (!dslopes.empty() && dslopes.rows * dslopes.cols != count)
      detail::raise_modifier(op, "gradient of the ALiBi slopes", dslopes.rows, dslopes.cols,
                             detail::text_of(count) + " numbers");
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
  static constexpr bool per_pair = true, tables = true, collects_gradient = true;
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
  void add_gradient(const At& a, T ds, T* sum) const {
    sum[entry(a)] += ds;
  }
  bool wants_gradient() const { return !dtable.empty(); }
  Index gradient_size(Index, Index) const { return wants_gradient() ? table.cols : 0; }
  template <class T>
  void deliver_gradient(const At& a, const T* sum) const {
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

namespace detail {

/// The frequencies are powers of base from 0 down to -last / width: numbers, and none of them 0 or all but 0.
inline void check_base(const char* op, double base, Index last, Index width) {
  check_finite<double>(op, "base", base, base > 0, "a positive, finite number");
  if (last <= 0) return;
  const double power = std::pow(base, -static_cast<double>(last) / static_cast<double>(width));
  check_finite<double>(op, "base", base, std::isnormal(power), "one whose powers neither overflow nor underflow");
}
/// Positions first .. first + count: so are their angles.
inline void check_first(const char* op, const char* option, double first, Index count, double base, Index last,
                        Index width) {
  check_finite<double>(op, option, first);
  const double fastest =
      std::max(1.0, last <= 0 ? 1.0 : std::pow(base, -static_cast<double>(last) / static_cast<double>(width)));
  const double angle = (std::abs(first) + static_cast<double>(count)) * fastest;
  check_finite<double>(op, option, first, std::isfinite(angle), "one whose angles do not overflow");
}

}  // namespace detail

/// interleaved: PE[t, 2 l] = sin(t w_l), PE[t, 2 l + 1] = cos(t w_l); concat: all sines, then all cosines.
enum class SinusoidalLayout { interleaved, concat };

struct SinusoidalOptions {
  SinusoidalLayout layout = SinusoidalLayout::interleaved;
  double base = 10000;
  double first = 0;  ///< position of row 0
};

/// Sinusoidal encodings, w_l = base^(-2 l / D): Vaswani et al. 2017, arXiv 1706.03762, section 3.5. Overwrites out, n x
/// D; an odd D has one sine more than cosines. Added to x before the projections, so dx is the gradient of the sum.
/// p_i . p_j depends on i - j only (for even D).
template <class Out>
void sinusoidal(Out&& out, const SinusoidalOptions& options = {}) {
  using S = detail::ScalarOf<Out>;
  const MutView<S> pe(std::forward<Out>(out));
  const Index width = pe.cols, sines = (width + 1) / 2;
  detail::check_base("sinusoidal", options.base, 2 * (sines - 1), width);
  detail::check_first("sinusoidal", "first", options.first, pe.rows, options.base, 2 * (sines - 1), width);
  for (Index l = 0; l < sines; ++l) {
    const double w = std::pow(options.base, -2.0 * static_cast<double>(l) / static_cast<double>(width));
    const bool concat = options.layout == SinusoidalLayout::concat;
    const Index a = concat ? l : 2 * l, b = concat ? sines + l : 2 * l + 1;
    for (Index t = 0; t < pe.rows; ++t) {
      const double angle = (options.first + static_cast<double>(t)) * w;
      pe(t, a) = S(std::sin(angle));
      if (b < width) pe(t, b) = S(std::cos(angle));
    }
  }
}
template <class S>
Mat<S> sinusoidal(Index n, Index width, const SinusoidalOptions& options = {}) {
  if (!detail::fits_memory(n, width))
    detail::raise("sinusoidal: the encodings are " + detail::shape_text(n, width) +
                  ", wanted sizes that are not negative and at most " + detail::text_of(detail::most_entries) +
                  " entries");
  Mat<S> out(n, width);
  sinusoidal(out, options);
  return out;
}

/// H x 1 slopes for alibi(): 2^(-8 i / H), i = 1 .. H, for a power of two H; otherwise those of the largest power of
/// two P < H, then the 1st, 3rd, 5th ... slopes of 2 P. Press, Smith, Lewis 2022, arXiv 2108.12409, section 3 (other H:
/// official code).
template <class S>
Mat<S> alibi_slopes(Index heads) {
  if (heads < 0 || heads > detail::most_empty_heads)
    detail::raise("alibi_slopes: heads is " + detail::text_of(heads) + ", wanted 0 to " +
                  detail::text_of(detail::most_empty_heads));
  Mat<S> slopes(heads, 1);
  Index power = 1;
  while (2 * power <= heads) power *= 2;
  const auto slope = [](Index i, Index of) {
    return S(std::exp2(-8.0 * static_cast<double>(i) / static_cast<double>(of)));
  };
  for (Index h = 0; h < heads; ++h)
    slopes(h, 0) = h < power ? slope(h + 1, power) : slope(2 * (h - power) + 1, 2 * power);
  return slopes;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
