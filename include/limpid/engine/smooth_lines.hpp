// limpid: the sweep `smooth` of windows on a grid, line by line.
// SPDX-License-Identifier: MIT
#pragma once

#include "online_step.hpp"
#include "smooth_map.hpp"
#include "window_lines.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// A group of lines of queries of a window, a vector along them at a time.
template <class P, bool Online, class Mods>
class SmoothLines {
 public:
  using S = typename P::Scalar;
  static constexpr Index group = WindowLines<P>::group, ld = group * P::lanes;

  SmoothLines(const WindowLines<P>& lines, const SmoothMap<S, Mods>& map, Arena& arena)
      : lines_(lines),
        map_(map),
        keys_(arena, lines, map.scores.k, map.x),
        ahead_(arena, lines, 3 + 2 * lines.most_keys(0)),
        d_(map.scores.q.cols),
        dv_(map.x.cols) {
    const Index rows = lines.most_keys(0) * lines.shifts.count();
    most_ = std::max<Index>(1, SmoothBlocks<P>::keys / rows);
    tile_ = arena.take<S>(most_ * rows * ld);
    q_ = arena.take<S>(d_ * ld), out_ = arena.take<S>(dv_ * ld);
    top_ = arena.take<S>(ld), sum_ = arena.take<S>(ld), alpha_ = arena.take<S>(ld);
  }

  /// Lines [begin, end) of plane a; false where a key or a value is not finite.
  bool run(Index a, Index begin, Index end) {
    a_ = a;
    keys_.begin(a, begin);
    for (b_ = begin; b_ < end; b_ += group) {
      count_ = std::min(group, end - b_);
      const Interval seen = lines_.keys_of_group(b_, count_);
      if (!keys_.load(seen)) return false;
      for (place_ = 0; place_ < lines_.grid.places[2]; place_ += P::lanes) {
        shifts_ = lines_.of_queries(place_), rows_ = std::min<Index>(P::lanes, lines_.grid.places[2] - place_);
        announce(seen.end - seen.begin);
        load();
        for (Index first = seen.begin; first < seen.end; first += most_)
          add_keys({first, std::min(first + most_, seen.end)}, first == seen.begin);
        finish();
      }
    }
    return true;
  }

 private:
  Index line_of_query(Index g) const { return a_ * lines_.grid.places[1] + b_ + g; }
  /// f(number among those of the group, row) for the queries of line g.
  template <class F>
  void each_query(Index g, const F& f) const {
    const Index row = row_of_line(lines_.grid, line_of_query(g), place_);
    for (Index l = 0; l < rows_; ++l) f(g * P::lanes + l, row + l * lines_.grid.apart[2]);
  }
  /// What this group writes, and the next one reads.
  void announce(Index keys) {
    ahead_.begin(place_);
    ahead_.add(map_.out, line_of_query(0), count_), ahead_.add(map_.copy, line_of_query(0), count_);
    ahead_.add(map_.scores.q, line_of_query(group), group);
    keys_.announce(ahead_);
    ahead_.spread(keys * (keys_.planes().end - keys_.planes().begin) * ((shifts_.count() + 3) / 4) * 2);
  }
  void load() {
    for (Index g = 0; g < count_; ++g)
      transpose_into<P>(rows_of_line(lines_.grid, line_of_query(g), map_.scores.q, place_, rows_),
                        q_ + g * d_ * P::lanes, P::lanes);
    clear(out_, dv_ * ld);
    clear(sum_, ld);
    std::fill(top_, top_ + ld, Online ? minus_infinity<S>() : -minus_infinity<S>());  // lanes of padding weigh nothing
    for (Index g = 0; !Online && g < count_; ++g)
      each_query(g, [&](Index l, Index row) { top_[l] = map_.known.top[row]; });
  }
  /// f(row of the tile, plane and number of a line of keys, the lines of queries that see it).
  template <class F>
  void each_line(const Interval& keys, const F& f) {
    Index row = 0;
    for (Index key = keys.begin; key < keys.end; ++key)
      for (Index plane = keys_.planes().begin; plane < keys_.planes().end; ++plane, row += shifts_.count())
        f(row, plane, key, lines_.lines_that_see(b_, count_, key));
  }
  void add_keys(const Interval& keys, bool first) {
    const Index from = place_ + shifts_.begin;
    const Interval planes = keys_.planes();
    each_line(keys, [&](Index row, Index plane, Index key, const Interval& queries) {
      in_parts<group>(queries.end - queries.begin, [&](auto n, Index g) {
        const S* q = q_ + (queries.begin + g) * d_ * P::lanes;
        in_parts<4>(shifts_.count(), [&](auto d, Index t) {
          ahead_.step();
          shifted_dots<P, decltype(n)::value, decltype(d)::value>(
              d_, q, d_ * P::lanes, P::lanes, keys_.k(plane, key) + from + t, lines_.pitch, map_.scores.scale,
              tile_ + (row + t) * ld + (queries.begin + g) * P::lanes, P::lanes, ld);
        });
      });
      for (Index t = 0; t < shifts_.count(); ++t)
        lines_.mask(place_, shifts_.begin + t, queries.end - queries.begin,
                    tile_ + (row + t) * ld + queries.begin * P::lanes, P::lanes, minus_infinity<S>());
    });
    for (Index g = 0; g < count_; ++g) {
      const Interval own = lines_.keys(1, b_ + g);
      const Index b = std::max(keys.begin, own.begin), e = std::min(keys.end, own.end);
      const Index rows = (planes.end - planes.begin) * shifts_.count(), l = g * P::lanes;
      if (b >= e) continue;
      S* s = tile_ + (b - keys.begin) * rows * ld + l;
      if constexpr (Online) {
        online_step<P, 1>(s, ld, (e - b) * rows, nullptr, top_ + l, sum_ + l, alpha_ + l, Prefetch<S>{{}, {}, 0, 1},
                          nullptr);
        for (Index c = 0; !first && c < dv_; ++c) {
          S* p = out_ + (c * group + g) * P::lanes;
          P::store(p, P::load(p) * P::load(alpha_ + l));
        }
      } else {
        weights_from_scores<P>(map_.scores.weight, s, ld, (e - b) * rows, 1, top_ + l);
      }
    }
    each_line(keys, [&](Index row, Index plane, Index key, const Interval& queries) {
      in_parts<group>(queries.end - queries.begin, [&](auto n, Index g) {
        in_parts<4>(shifts_.count(), [&](auto d, Index t) {
          ahead_.step();
          shifted_sums<P, decltype(n)::value, decltype(d)::value, 1>(
              dv_, lines_.pitch, tile_ + (row + t) * ld + (queries.begin + g) * P::lanes, P::lanes, ld,
              keys_.x(plane, key) + from + t, out_ + (queries.begin + g) * P::lanes, P::lanes, ld);
        });
      });
    });
  }
  void finish() {
    for (Index g = 0; g < count_; ++g) {
      each_query(g, [&](Index l, Index row) {
        if constexpr (Online) {
          S total = sum_[l], top = top_[l];
          const S shrink = map_.scores.add_sink(row, row, top, total), inverse = map_.scores.one_over(total, top);
          alpha_[l] = Mods::sinks ? inverse * shrink : inverse;
          if (map_.lse.given())
            map_.scores.store_lse(map_.lse, row, row, total == S(0) ? -minus_infinity<S>() : top, inverse);
        } else {
          alpha_[l] = map_.known.inverse[row];
        }
      });
      const auto rows_of = [&](MutView<S> all) {
        return rows_of_line(lines_.grid, line_of_query(g), all, place_, rows_);
      };
      const MutView<S> out = rows_of(map_.out);
      transpose_out<P>(out_ + g * P::lanes, ld, alpha_ + g * P::lanes, out);
      if (!map_.copy.given()) continue;
      const MutView<S> copy = rows_of(map_.copy);
      for (Index i = 0; i < rows_; ++i) copy_row<P>(out.row(i), copy.row(i), dv_);
    }
  }

  const WindowLines<P>& lines_;
  const SmoothMap<S, Mods>& map_;
  KeyLines<P> keys_;
  RowsAhead<P> ahead_;
  const Index d_, dv_;
  Index most_, a_ = 0, b_ = 0, count_ = 0, place_ = 0, rows_ = 0;
  Shifts shifts_;
  S *tile_, *q_, *out_, *top_, *sum_, *alpha_;
};

/// Whether it was done: not where windows go block by block, nor where a key or a value is not finite, as those that
/// are masked must not show.
template <class P, bool Online, class Mods>
bool smooth_lines(const Context& context, const SmoothMap<typename P::Scalar, Mods>& map) {
  const auto& mask = map.scores.mods->leading();
  const Index grids = mask.grids(P::lanes, panel_of<P>);
  for (Index number = 0; number < grids; ++number) {
    ArenaScope scope(context.arena());
    const WindowLines<P> lines(context.arena(), mask, number);
    const Index b = lines.grid.places[1], length = context.spreads() ? LineCosts::smooth_groups * lines.group : b;
    const Index stretches = lines.stretches(length);
    std::atomic<bool> finite{true};
    context.run(lines.grid.places[0] * stretches, [&](Index task, Arena& arena) {
      const Index begin = task % stretches * length;
      SmoothLines<P, Online, Mods> block(lines, map, arena);
      if (finite && !block.run(task / stretches, begin, std::min(begin + length, b))) finite = false;
    });
    if (!finite) return false;
  }
  return grids > 0;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
