// limpid: windows on a grid, line by line. Lanes are queries side by side along a line, and their keys the same places
// shifted by one amount for all: every lane has a pair that counts, but for the ends of lines.
//
// Rows are transposed line by line, features x places, so that a shifted vector is a load somewhere else. One serves
// several lines of queries, whose windows have it in common.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <atomic>

#include "pack.hpp"
#include "scores.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// f(integral constant, begin) for parts of count, at most `Most`, which is 4 or 2, each.
template <int Most, class F>
LIMPID_INLINE void in_parts(Index count, const F& f) {
  Index i = 0;
  for (; i + Most <= count; i += Most) f(std::integral_constant<int, Most>(), i);
  if constexpr (Most == 4) {
    if (count - i == 3) return f(std::integral_constant<int, 3>(), i);
    if (count - i == 2) return f(std::integral_constant<int, 2>(), i);
  }
  if (i < count) f(std::integral_constant<int, 1>(), i);
}

/// out[t][g] = scale sum_c a[g][c] b[c], shifted by t: a vector for each of N lines and D shifts.
template <class P, int N, int D>
LIMPID_NOINLINE void shifted_dots(Index features, const typename P::Scalar* a, Index a_line, Index a_pitch,
                                  const typename P::Scalar* b, Index b_pitch, typename P::Scalar scale,
                                  typename P::Scalar* out, Index out_line, Index out_shift) {
  using V = typename P::V;
  V acc[N][D];
  LIMPID_UNROLL(4)
  for (int g = 0; g < N; ++g) {
    LIMPID_UNROLL(4)
    for (int t = 0; t < D; ++t) acc[g][t] = P::set(typename P::Scalar(0));
  }
  for (Index c = 0; c < features; ++c, a += a_pitch, b += b_pitch) {
    V shifted[D];
    LIMPID_UNROLL(4)
    for (int t = 0; t < D; ++t) shifted[t] = P::hold(P::load(b + t));
    LIMPID_UNROLL(4)
    for (int g = 0; g < N; ++g) {
      const V of_line = P::hold(P::load(a + g * a_line));
      LIMPID_UNROLL(4)
      for (int t = 0; t < D; ++t) acc[g][t] = P::fma(of_line, shifted[t], acc[g][t]);
    }
  }
  LIMPID_UNROLL(4)
  for (int g = 0; g < N; ++g) {
    LIMPID_UNROLL(4)
    for (int t = 0; t < D; ++t) P::store(out + g * out_line + t * out_shift, acc[g][t] * P::set(scale));
  }
}

/// out[g][c] += sum_t weights[g][t] b[c], shifted by t Step: a vector for each of N lines and every feature.
template <class P, int N, int D, int Step>
LIMPID_NOINLINE void shifted_sums(Index features, Index pitch, const typename P::Scalar* weights, Index w_line,
                                  Index w_shift, const typename P::Scalar* b, typename P::Scalar* out, Index out_line,
                                  Index out_pitch) {
  using V = typename P::V;
  V w[N][D];
  LIMPID_UNROLL(4)
  for (int g = 0; g < N; ++g) {
    LIMPID_UNROLL(4)
    for (int t = 0; t < D; ++t) w[g][t] = P::load(weights + g * w_line + t * w_shift);
  }
  for (Index c = 0; c < features; ++c, b += pitch, out += out_pitch) {
    V acc[N];
    LIMPID_UNROLL(4)
    for (int g = 0; g < N; ++g) acc[g] = P::load(out + g * out_line);
    LIMPID_UNROLL(4)
    for (int t = 0; t < D; ++t) {
      const V shifted = P::hold(P::load(b + t * Step));
      LIMPID_UNROLL(4)
      for (int g = 0; g < N; ++g) acc[g] = P::fma(w[g][t], shifted, acc[g]);
    }
    LIMPID_UNROLL(4)
    for (int g = 0; g < N; ++g) P::store(out + g * out_line, acc[g]);
  }
}

/// Amounts [begin, end) by which keys are shifted from their queries.
struct Shifts {
  Index begin = 0, end = 0;
  Index count() const { return end - begin; }
  void join(Index shift) {
    if (begin == end)
      begin = shift, end = shift + 1;
    else
      begin = std::min(begin, shift), end = std::max(end, shift + 1);
  }
};

/// One grid of a mask of windows, as sweeps go through it: groups of a few lines of queries, and vectors along these.
template <class P>
class WindowLines {
 public:
  using S = typename P::Scalar;
  static constexpr Index group = P::registers == 32 ? 4 : 2;

  template <class Mask>
  WindowLines(Arena& arena, const Mask& mask, Index number) : grid(mask.grid(number)) {
    const Index width = padded<P>(grid.places[2]), tiles = width / P::lanes;
    for (int y = 0; y < 3; ++y) {
      const std::size_t axis = std::size_t(y);
      keys_[axis] = arena.take<Interval>(grid.places[axis]);
      for (Index p = 0; p < grid.places[axis]; ++p) keys_[axis][p] = mask.keys_of(y, p, grid);
    }
    lo_ = arena.take<S>(width), hi_ = arena.take<S>(width);
    of_queries_ = arena.take<Shifts>(tiles), of_keys_ = arena.take<Shifts>(tiles), all_ = arena.take<Shifts>(tiles);
    std::fill(of_queries_, of_queries_ + tiles, Shifts());
    std::fill(of_keys_, of_keys_ + tiles, Shifts());
    for (Index p = 0; p < width; ++p) {
      lo_[p] = -(hi_[p] = std::numeric_limits<S>::max());
      if (p >= grid.places[2]) continue;
      const Interval in = keys_[2][p];
      lo_[p] = S(double(in.begin)), hi_[p] = S(double(in.end - 1));
      Shifts& every = all_[p / P::lanes];
      if (p % P::lanes == 0) every = {in.begin - p, in.end - p};
      every = {std::max(every.begin, in.begin - p), std::min(every.end, in.end - p)};
      for (Index key = in.begin; key < in.end; ++key) {
        of_queries_[p / P::lanes].join(key - p), of_keys_[key / P::lanes].join(key - p);
        shifts.join(key - p);
      }
    }
    constexpr Index line = line_of<S>;
    pad = padded<P>(std::max(-shifts.begin, shifts.end));
    pitch = (width + pad + line - 1) / line;
    pitch = (pitch | 1) * line;  // an odd number of cache lines, as features would share places in L1
  }

  WindowGrid grid;
  Shifts shifts;     // of any pair
  Index pad, pitch;  // room before a line, and from a feature to the next

  Index width() const { return padded<P>(grid.places[2]); }
  /// Stretches of so many lines of queries along the second axis, each a task.
  Index stretches(Index length) const { return (grid.places[1] + length - 1) / length; }
  const Interval& keys(int axis, Index place) const { return keys_[std::size_t(axis)][place]; }
  /// By how much the keys of a vector of queries are shifted, and the queries of a vector of keys.
  const Shifts& of_queries(Index place) const { return of_queries_[place / P::lanes]; }
  const Shifts& of_keys(Index place) const { return of_keys_[place / P::lanes]; }
  /// Lines of queries [begin, end), of `count` from line b on, that see line `key` along the same axis.
  Interval lines_that_see(Index b, Index count, Index key) const {
    Interval in{0, count};
    while (in.begin < count && keys_[1][b + in.begin].end <= key) ++in.begin;
    while (in.end > in.begin && keys_[1][b + in.end - 1].begin > key) --in.end;
    return in;
  }
  /// Lines of keys that one of `count` lines of queries from b on sees.
  Interval keys_of_group(Index b, Index count) const { return {keys_[1][b].begin, keys_[1][b + count - 1].end}; }
  /// The most that a query sees along an axis, and a group along the second one.
  Index most_keys(int axis) const {
    Index most = 0;
    for (Index p = 0; p < grid.places[std::size_t(axis)]; ++p)
      most = std::max(most, keys(axis, p).end - keys(axis, p).begin);
    return most;
  }
  Index most_keys_of_group() const {
    Index most = 0;
    for (Index b = 0; b < grid.places[1]; b += group) {
      const Interval in = keys_of_group(b, std::min(group, grid.places[1] - b));
      most = std::max(most, in.end - in.begin);
    }
    return most;
  }

  /// Writes `fill` where a query of the vector at `place` does not see the key shifted by so much.
  void mask(Index place, Index shift, Index lines, S* scores, Index line, S fill) const {
    const Shifts& every = all_[place / P::lanes];
    if (shift >= every.begin && shift < every.end) return;
    using V = typename P::V;
    const V key = P::lane_index() + P::set(S(double(place + shift))), filled = P::set(fill);
    const V lo = P::load(lo_ + place), hi = P::load(hi_ + place);
    for (Index g = 0; g < lines; ++g) {
      S* p = scores + g * line;
      P::store(p, P::if_less(hi, key, filled, P::if_less(key, lo, filled, P::load(p))));
    }
  }

 private:
  std::array<Interval*, 3> keys_;
  S *lo_, *hi_;
  Shifts *of_queries_, *of_keys_, *all_;
};

/// Whether windows alone say which pairs count, and a score is a product.
template <class P, class Mods>
constexpr bool goes_by_lines() {
  if constexpr (Mods::gathers)
    return std::remove_cvref_t<decltype(std::declval<const typename ModifiersOf<Mods>::type&>().leading())>::windows &&
           P::lanes > 1 && are_normalised<Mods> && !are_distances<Mods> && !Mods::intervals &&
           !Mods::irregular_besides && !Mods::per_pair && !Mods::per_key;
  return false;
}

/// Rows of a grid transposed line by line, with zeros before and behind each.
template <class P>
struct TransposedLines {
  using S = typename P::Scalar;
  S* data = nullptr;
  Index cols = 0, pitch = 0, apart = 0;  // from a feature, and a line, to the next

  S* line(Index number) const { return data + number * apart; }

  static TransposedLines room(Arena& arena, const WindowLines<P>& lines, Index count, Index cols) {
    const Index apart = lines.pad + cols * lines.pitch;
    return {arena.take<S>(count * apart) + lines.pad, cols, lines.pitch, apart};
  }
};

/// Rows of places [place, place + count) of a line.
inline Index row_of_line(const WindowGrid& grid, Index line, Index place) {
  return grid.first + line / grid.places[1] * grid.apart[0] + line % grid.places[1] * grid.apart[1] +
         place * grid.apart[2];
}
template <class View>
View rows_of_line(const WindowGrid& grid, Index line, const View& rows, Index place, Index count) {
  return {rows.data + row_of_line(grid, line, place) * rows.stride, count, rows.cols, grid.apart[2] * rows.stride};
}

/// Rows that are wanted soon.
template <class P, class View>
void prefetch_rows(const View& rows) {
  for (Index i = 0; i < rows.rows; ++i)
    for (Index c = 0; c < rows.cols; c += line_of<typename P::Scalar>) P::prefetch(rows.row(i) + c, 0);
}
/// The same, asked for a few at a time between products: what is asked for is not waited for, but of
/// many at once each would wait for those before.
template <class P>
class RowsAhead {
 public:
  using S = typename P::Scalar;

  RowsAhead(Arena& arena, const WindowLines<P>& lines, Index most) : lines_(lines), of_(arena.take<Lines>(most)) {}

  /// Begins anew, with the places of a vector.
  void begin(Index place) {
    count_ = now_ = row_ = all_ = 0;
    place_ = place, places_ = std::min<Index>(P::lanes, lines_.grid.places[2] - place);
  }
  /// Those of `count` lines from one on, as far as there are such.
  void add(View<S> rows, Index line, Index count) {
    const Index end = std::min(line + count, lines_.grid.lines());
    if (!rows.given() || line >= end) return;
    of_[count_++] = {rows, line, end};
    all_ += (end - line) * places_;
  }
  /// When all have been added: in how many steps.
  void spread(Index steps) { share_ = (all_ + steps - 1) / std::max<Index>(1, steps); }
  void step() {
    for (Index left = share_; left > 0 && now_ < count_;) {
      Lines& of = of_[now_];
      const View<S> rows = rows_of_line(lines_.grid, of.line, of.rows, place_ + row_, std::min(left, places_ - row_));
      prefetch_rows<P>(rows);
      left -= rows.rows, row_ += rows.rows;
      if (row_ < places_) continue;
      row_ = 0;
      if (++of.line == of.end) ++now_;
    }
  }

 private:
  struct Lines {
    View<S> rows;
    Index line, end;
  };
  const WindowLines<P>& lines_;
  Lines* of_;
  Index place_ = 0, places_ = 0, count_ = 0, now_ = 0, row_ = 0, all_ = 0, share_ = 0;
};

/// A line transposed; whether it is finite.
template <class P>
bool transpose_line(const WindowLines<P>& lines, Index number, View<typename P::Scalar> rows,
                    const TransposedLines<P>& to, Index to_line) {
  auto* line = to.line(to_line);
  clear(line - lines.pad, lines.pad);
  transpose_into<P>(rows_of_line(lines.grid, number, rows, 0, lines.grid.places[2]), line, lines.pitch);
  return all_finite<P>({line, to.cols, lines.width(), to.pitch});
}
/// The lines of keys that a group of lines of queries sees, and what has a row for each key besides, transposed as
/// groups go from line to line.
template <class P>
class KeyLines {
 public:
  using S = typename P::Scalar;

  KeyLines(Arena& arena, const WindowLines<P>& lines, View<S> k, View<S> x)
      : lines_(lines), k_rows_(k), x_rows_(x), most_(lines.most_keys_of_group()) {
    const Index count = lines.most_keys(0) * most_;
    k_ = TransposedLines<P>::room(arena, lines, count, k.cols);
    x_ = TransposedLines<P>::room(arena, lines, count, x.cols);
  }
  /// Begins with lines that plane a sees.
  void begin(Index a, Index b) { planes_ = lines_.keys(0, a), next_ = lines_.keys(1, b).begin; }
  /// Before a group is worked on; whether all is finite.
  bool load(const Interval& keys) {
    bool finite = true;
    for (next_ = std::max(next_, keys.begin); next_ < keys.end; ++next_)
      for (Index plane = planes_.begin; plane < planes_.end; ++plane) {
        const Index line = plane * lines_.grid.places[1] + next_, to = place(plane, next_);
        finite = transpose_line(lines_, line, k_rows_, k_, to) && finite;
        finite = transpose_line(lines_, line, x_rows_, x_, to) && finite;
      }
    return finite;
  }
  /// What will be wanted next.
  void announce(RowsAhead<P>& ahead) const {
    for (Index plane = planes_.begin; plane < planes_.end; ++plane)
      for (const View<S>& rows : {k_rows_, x_rows_})
        ahead.add(rows, plane * lines_.grid.places[1] + next_, lines_.group);
  }
  const Interval& planes() const { return planes_; }
  const S* k(Index plane, Index key) const { return k_.line(place(plane, key)); }
  const S* x(Index plane, Index key) const { return x_.line(place(plane, key)); }

 private:
  /// A line takes the place of one that is no longer seen.
  Index place(Index plane, Index key) const { return (plane - planes_.begin) * most_ + key % most_; }

  const WindowLines<P>& lines_;
  View<S> k_rows_, x_rows_;
  Index most_, next_ = 0;
  Interval planes_;
  TransposedLines<P> k_, x_;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
