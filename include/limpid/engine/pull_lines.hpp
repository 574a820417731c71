// limpid: the sweep `pull_back` of windows on a grid, line by line.
//
// A group of lines of queries makes the weights of a few lines of keys and their gradients; then lanes are queries for
// dQ, and keys, shifted the other way, for dK and dV.
// SPDX-License-Identifier: MIT
#pragma once

#include "backward_plan.hpp"
#include "online_step.hpp"
#include "window_lines.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Rows of lines that are given back: transposed, times a factor, set or added.
template <class P>
void deliver_line(Arena& arena, const WindowLines<P>& lines, const typename P::Scalar* from, Index pitch, Index line,
                  typename P::Scalar factor, MutView<typename P::Scalar> to, bool accumulate) {
  using S = typename P::Scalar;
  ArenaScope scope(arena);
  S* factors = arena.take<S>(P::lanes);
  std::fill_n(factors, P::lanes, factor);
  const MutView<S> apart = arena.matrix<S>(accumulate ? P::lanes : 0, to.cols);
  for (Index x = 0; x < lines.grid.places[2]; x += P::lanes) {
    const Index count = std::min<Index>(P::lanes, lines.grid.places[2] - x);
    const MutView<S> rows = rows_of_line(lines.grid, line, to, x, count);
    prefetch_rows<P>(rows_of_line(lines.grid, std::min(line + 1, lines.grid.lines() - 1), to, x, count));
    transpose_out<P>(from + x, pitch, factors, accumulate ? apart.block(0, 0, count, to.cols) : rows);
    if (accumulate) copy_or_add<S>(apart.block(0, 0, count, to.cols), rows, true);
  }
}

/// The gradients of a group of lines of queries of a window.
template <class P, class Mods>
class PullLines {
 public:
  using S = typename P::Scalar;
  using V = typename P::V;
  using Plan = BackwardPlan<S, Mods, 1>;
  using Lines = TransposedLines<P>;
  static constexpr Index group = WindowLines<P>::group;

  PullLines(const WindowLines<P>& lines, const Plan& plan, Arena& arena)
      : lines_(lines), plan_(plan), keys_(arena, lines, plan.maps[0].scores.k, plan.right), arena_(arena) {
    const Index d = plan.maps[0].scores.q.cols;
    const auto room = [&](Index count, Index cols) { return Lines::room(arena, lines, count, cols); };
    q_ = room(group, d), dq_ = room(group, d), left_ = room(group, plan.left.cols);
    own_x_ = plan.x.data != plan.left.data || plan.x.cols != plan.left.cols;
    x_ = plan.dv.given() && own_x_ ? room(group, plan.x.cols) : left_;
    shift_ = group * lines.pitch, key_ = lines.shifts.count() * shift_;
    const auto pairs = [&] {
      S* of = arena.take<S>(lines.pad + group * key_);
      clear(of, lines.pad + group * key_);
      return of + lines.pad;
    };
    weights_ = pairs(), ds_ = pairs();
    top_ = arena.take<S>(shift_), factor_ = arena.take<S>(shift_), delta_ = arena.take<S>(shift_);
  }

  /// Lines [begin, end) of plane a; false where something is not finite.
  bool run(Index a, Index begin, Index end) {
    a_ = a, planes_ = lines_.keys(0, a), all_ = lines_.keys_of_group(begin, end - begin);
    const Index keys = (planes_.end - planes_.begin) * (all_.end - all_.begin);
    const auto sums = [&](bool wanted, Index cols) {
      const Lines to = Lines::room(arena_, lines_, wanted ? keys : 0, cols);
      if (wanted) clear(to.data, keys * to.apart - lines_.pad);
      return to;
    };
    dk_ = sums(plan_.maps[0].dk.given(), plan_.maps[0].dk.cols), dv_ = sums(plan_.dv.given(), plan_.dv.cols);
    keys_.begin(a, begin);
    for (b_ = begin; b_ < end; b_ += group) {
      count_ = std::min(group, end - b_);
      const Interval seen = lines_.keys_of_group(b_, count_);
      const bool fine = load();
      if (!keys_.load(seen) || !fine) return false;
      for (Index plane = planes_.begin; plane < planes_.end; ++plane)
        for (Index key = seen.begin; key < seen.end; key += group)
          add_keys(plane, {key, std::min(key + group, seen.end)});
      for (Index g = 0; g < count_ && plan_.maps[0].dq.given(); ++g)
        deliver_line(arena_, lines_, dq_.line(g), dq_.pitch, line_of_query(g), plan_.maps[0].scores.scale,
                     plan_.maps[0].dq, plan_.accumulate_q);
    }
    return true;
  }
  /// Gives keys what they receive from lines [begin, end): added to what those before have given.
  void deliver_keys(Index begin) const {
    for (Index plane = planes_.begin; plane < planes_.end; ++plane)
      for (Index key = all_.begin; key < all_.end; ++key) {
        const bool later =
            (begin > 0 && key < lines_.keys(1, begin - 1).end) || (a_ > 0 && plane < lines_.keys(0, a_ - 1).end);
        const Index line = plane * lines_.grid.places[1] + key, own = line_of_key(plane, key);
        const auto& map = plan_.maps[0];
        if (map.dk.given())
          deliver_line(arena_, lines_, dk_.line(own), dk_.pitch, line, map.scores.scale, map.dk,
                       later || plan_.accumulate_k);
        if (plan_.dv.given())
          deliver_line(arena_, lines_, dv_.line(own), dv_.pitch, line, S(1), plan_.dv, later || plan_.accumulate_v);
      }
  }

 private:
  Index line_of_query(Index g) const { return a_ * lines_.grid.places[1] + b_ + g; }
  Index line_of_key(Index plane, Index key) const {
    return (plane - planes_.begin) * (all_.end - all_.begin) + key - all_.begin;
  }
  /// Where the pairs of a line of keys, of those that are worked on, and a shift are.
  Index pair(Index key, Index shift) const { return key * key_ + (shift - lines_.shifts.begin) * shift_; }

  bool load() {
    const auto& map = plan_.maps[0];
    bool finite = true;
    clear(dq_.data, group * dq_.apart - lines_.pad);
    std::fill(top_, top_ + shift_, -minus_infinity<S>());  // lanes of padding weigh nothing
    clear(factor_, shift_), clear(delta_, shift_);
    for (Index g = 0; g < count_; ++g) {
      const Index line = line_of_query(g), row = row_of_line(lines_.grid, line, 0);
      finite = transpose_line(lines_, line, map.scores.q, q_, g) && finite;
      finite = transpose_line(lines_, line, plan_.left, left_, g) && finite;
      if (plan_.dv.given() && own_x_) finite = transpose_line(lines_, line, plan_.x, x_, g) && finite;
      for (Index p = 0; p < lines_.grid.places[2]; ++p) {
        const Index i = row + p * lines_.grid.apart[2], at = g * lines_.pitch + p;
        top_[at] = map.lse.top[i], delta_[at] = map.delta[i];
        factor_[at] = map.weight ? map.weight[i] * map.lse.inverse[i] : map.lse.inverse[i];
      }
    }
    return finite;
  }
  /// Lines of keys of a plane, at most a group of them.
  void add_keys(Index plane, const Interval& keys) {
    for (Index place = 0; place < lines_.width(); place += P::lanes) {
      for (Index key = keys.begin; key < keys.end; ++key) add_queries(plane, key, key - keys.begin, place);
    }
    for (Index place = 0; place < lines_.width(); place += P::lanes) {
      if (plan_.maps[0].dk.given()) add_to_keys(plane, keys, place, ds_, q_, dk_);
      if (plan_.dv.given()) add_to_keys(plane, keys, place, weights_, x_, dv_);
    }
  }
  /// dQ of queries [place, place + lanes) from a line of keys, and its pairs.
  void add_queries(Index plane, Index key, Index number, Index place) {
    const auto& scores = plan_.maps[0].scores;
    const Shifts shifts = lines_.of_queries(place);
    const Interval queries = lines_.lines_that_see(b_, count_, key);
    const Index first = queries.begin * lines_.pitch + place;
    for (Index shift = lines_.shifts.begin; shift < lines_.shifts.end; ++shift)
      for (Index g = 0; (shift < shifts.begin || shift >= shifts.end) && g < count_; ++g) {
        const Index at = pair(number, shift) + g * lines_.pitch + place;
        P::store(weights_ + at, P::set(S(0))), P::store(ds_ + at, P::set(S(0)));
      }
    const auto each_part = [&](const auto& f) {
      in_parts<group>(queries.end - queries.begin, [&](auto n, Index g) {
        in_parts<4>(shifts.count(), [&](auto d, Index t) {
          f(n, d, queries.begin + g, shifts.begin + t, pair(number, shifts.begin + t));
        });
      });
    };
    each_part([&](auto n, auto d, Index g, Index shift, Index pairs) {
      constexpr int N = decltype(n)::value, D = decltype(d)::value;
      const Index at = g * lines_.pitch + place;
      shifted_dots<P, N, D>(q_.cols, q_.line(g) + place, q_.apart, q_.pitch, keys_.k(plane, key) + place + shift,
                            lines_.pitch, scores.scale, weights_ + pairs + at, lines_.pitch, shift_);
      shifted_dots<P, N, D>(left_.cols, left_.line(g) + place, left_.apart, left_.pitch,
                            keys_.x(plane, key) + place + shift, lines_.pitch, S(1), ds_ + pairs + at, lines_.pitch,
                            shift_);
    });
    for (Index shift = shifts.begin; shift < shifts.end; ++shift)
      make_gradients(shift, queries.end - queries.begin, place, first, pair(number, shift));
    if (plan_.maps[0].dq.given())
      each_part([&](auto n, auto d, Index g, Index shift, Index pairs) {
        shifted_sums<P, decltype(n)::value, decltype(d)::value, 1>(
            q_.cols, lines_.pitch, ds_ + pairs + g * lines_.pitch + place, lines_.pitch, shift_,
            keys_.k(plane, key) + place + shift, dq_.line(g) + place, dq_.apart, dq_.pitch);
      });
  }
  /// Weights from scores, and dS from dA; zero where a pair is masked.
  void make_gradients(Index shift, Index count, Index place, Index first, Index pairs) {
    for (Index g = 0; g < count; ++g) {
      const Index at = first + g * lines_.pitch;
      S* w = weights_ + pairs + at;
      P::store(w, P::exp(P::load(w) - P::load(top_ + at)) * P::load(factor_ + at));
    }
    lines_.mask(place, shift, count, weights_ + pairs + first, lines_.pitch, S(0));
    for (Index g = 0; g < count; ++g) {
      const Index at = first + g * lines_.pitch;
      const V w = P::load(weights_ + pairs + at), zero = P::set(S(0));
      S* ds = ds_ + pairs + at;
      P::store(ds, P::if_equal(w, zero, zero, w * (P::load(ds) - P::load(delta_ + at))));
    }
  }
  /// What keys [place, place + lanes) of these lines receive from the group's queries, by their pairs.
  void add_to_keys(Index plane, const Interval& keys, Index place, const S* pairs, const Lines& of, const Lines& sums) {
    const Shifts shifts = lines_.of_keys(place);
    for (Index g = 0; g < count_; ++g) {
      const Interval own = lines_.keys(1, b_ + g);
      const Index begin = std::max(own.begin, keys.begin), count = std::min(own.end, keys.end) - begin;
      in_parts<group>(std::max<Index>(0, count), [&](auto n, Index key) {
        in_parts<4>(shifts.count(), [&](auto d, Index t) {
          const Index shift = shifts.begin + t, from = pair(begin - keys.begin + key, shift) + g * lines_.pitch;
          shifted_sums<P, decltype(n)::value, decltype(d)::value, -1>(
              of.cols, of.pitch, pairs + from + place - shift, key_, shift_ - 1, of.line(g) + place - shift,
              sums.line(line_of_key(plane, begin + key)) + place, sums.apart, sums.pitch);
        });
      });
    }
  }

  const WindowLines<P>& lines_;
  const Plan& plan_;
  KeyLines<P> keys_;
  Arena& arena_;
  Lines q_, dq_, left_, x_, dk_, dv_;
  bool own_x_;
  Index shift_, key_;  // from the pairs of a shift, and of a line of keys, to the next
  S *weights_, *ds_, *top_, *factor_, *delta_;
  Index a_ = 0, b_ = 0, count_ = 0;
  Interval planes_, all_;
};

/// One map; false where something is not finite.
template <class P, class Mods>
bool pull_lines_of(const Context& context, const BackwardPlan<typename P::Scalar, Mods, 1>& plan, Index grids) {
  const auto& mask = plan.maps[0].scores.mods->leading();
  for (Index number = 0; number < grids; ++number) {
    Arena& arena = context.arena();
    ArenaScope scope(arena);
    const WindowLines<P> lines(arena, mask, number);
    Order& order = *arena.take<Order>(1);
    const Index b = lines.grid.places[1], length = LineCosts::pull_groups * lines.group,
                stretches = lines.stretches(length);
    std::atomic<bool> finite{true};
    context.run(lines.grid.places[0] * stretches, [&](Index task, Arena& own) {
      const Index begin = task % stretches * length;
      PullLines<P, Mods> pull(lines, plan, own);
      if (!finite || !pull.run(task / stretches, begin, std::min(begin + length, b))) finite = false;
      context.in_order(order, task, task + 1, [&] {
        if (finite) pull.deliver_keys(begin);
      });
    });
    if (!finite) return false;
  }
  return true;
}

/// Maps one after the other. Whether it was done: not where something is not finite, as keys that are masked must not
/// show.
template <class P, int M, class Mods>
bool pull_lines(const Context& context, const BackwardPlan<typename P::Scalar, Mods, M>& plan) {
  using S = typename P::Scalar;
  const Index grids = plan.maps[0].scores.mods->leading().grids(P::lanes, panel_of<P>);
  if (grids == 0) return false;
  const auto fine = [&](const View<S>& rows) { return all_finite<P>(context, rows); };
  if (plan.accumulate_q || plan.accumulate_k || plan.accumulate_v) {  // else all is written again
    if (!fine(plan.left) || !fine(plan.right) || !fine(plan.x)) return false;
    for (const auto& map : plan.maps)
      if (!fine(map.scores.q) || !fine(map.scores.k)) return false;
  }
  for (int t = 0; t < M; ++t) {
    BackwardPlan<S, Mods, 1> one;
    one.maps[0] = plan.maps[t];
    one.left = plan.left, one.right = plan.right, one.x = plan.x, one.dv = plan.dv;
    one.accumulate_q = plan.accumulate_q, one.accumulate_k = plan.accumulate_k;
    one.accumulate_v = plan.accumulate_v || t > 0;
    if (!pull_lines_of<P>(context, one, grids)) return false;
  }
  return true;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
