// limpid: scores that are sums of dot products and squared distances, as one dot product and a key bias.
//
// -|q - k|^2 / h^2 is (2 q.k - |k|^2) / h^2 up to a constant of the row, which the softmax drops; a sum of such terms
// is one product of concatenated rows. Where a score function is asked (it must see the score itself) the constant
// comes back as one more column. Distances are taken from the middle of the keys: exact, as the kernel does not move
// with a common shift, and without it float loses every digit. Where queries and keys lie so far from any middle that
// near pairs would lose digits all the same, a term is summed by pair, from differences (engine/distance.hpp), of all
// pairs or of the near ones: decided once a call and head, from the arrays alone, so that every sweep finds the same
// scores. All of this page is our own derivation of a classical identity.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "../engine/distance.hpp"
#include "../engine/gather.hpp"
#include "dot.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// coefficient <q_i, k_j>, or -coefficient |q_i - k_j|^2, rows in units of 1 / unit.
template <class S>
struct KernelTerm {
  View<S> q, k;
  bool distance = false;
  S coefficient = S(1);
  S unit = S(1);
  bool by_pair = false;                    // a distance summed from differences, of arrays as they were given
  bool bounded = true;                     // by pair: scores stay above the lowest number by far
  S *half_q = nullptr, *half_k = nullptr;  // by pair, if near pairs alone are, see ScorePart
  std::size_t part = 0;                    // by pair: its place in the parts of the scores
  bool near_alone() const { return half_q != nullptr; }
  bool given() const { return q.cols > 0; }
  S weight() const { return distance ? S(2) * coefficient : coefficient; }  // of <q, k>
};

/// Up to two terms, made ready for the sweeps.
template <class S, class Mods>
struct KernelPrepared {
  Scores<S, Distances<Mods>> scores;
  std::array<KernelTerm<S>, 2> terms;  // centred where they are distances, unless by pair
  Index count = 0;
  bool whole = false;  // the last column of scores.q is the constant of the row, that of scores.k is 1
  bool joined() const { return count > 1 || whole; }
  /// Whether rows are joined as they are; else those of q are weighted.
  bool bare() const { return scores.by_pair(); }
};

/// Whether any query keeps key j; the last ones are asked first, as they see most under a causal mask.
template <class S, class Mods>
bool any_query_keeps(const Scores<S, Mods>& scores, Index j) {
  for (Index i = scores.n(); i-- > 0;)
    if (scores.keeps(i, j)) return true;
  return false;
}

/// How a distance is summed: 2 c <q, k> - c |k|^2, or from differences, of all pairs or of the near ones.
enum class Summed { reduced, near_by_pair, by_pair };

/// Scores below this leave the lowest number as it is, whichever is added to it. In float's range for all types.
inline constexpr double largest_score = 1e30;

/// Those of an array's rows that have a say: all, or a list.
struct SomeRows {
  const Index* rows;  // null: all
  Index count;
  Index operator[](Index i) const { return rows ? rows[i] : i; }
};

/// Whether c |q - k|^2 from 2 c <q, k> and c |k|^2 would lose digits that differences keep; q and k are
/// centred, asking and seen are the rows that have a say. The reduced score is rounded in units of c
/// max|q| max|k|, the score itself in units of c |q - k|^2, and a pair of equal rows, as where queries are
/// the keys, must give nothing to a gradient. Where the first unit is small nothing is lost. Else near
/// pairs need differences, and they alone have them if rows are wide and near pairs few (of some, spread
/// over both arrays); otherwise all pairs do, which is then quicker. Which of the two is a matter of time
/// alone. Squares that overflow are left to differences. bounded: no score is below -largest_score.
template <class S>
Summed how_summed(S coefficient, View<S> q, const S* half_q, const SomeRows& asking, View<S> k, const S* half_k,
                  const SomeRows& seen, bool& bounded) {
  using std::sqrt;
  constexpr double nothing = 0.5, smallest = 1e-25;
  constexpr Index narrow = 16, fewest = 16, most = 256, many = 16;  // one pair in so many
  double far_q = 0, far_k = 0;
  for (Index i = 0; i < asking.count; ++i) far_q = std::max(far_q, 2 * double(half_q[asking[i]]));
  for (Index s = 0; s < seen.count; ++s) far_k = std::max(far_k, 2 * double(half_k[seen[s]]));
  if (double(coefficient) * sqrt(far_q) * sqrt(far_k) <= nothing || asking.count == 0 || seen.count == 0)
    return Summed::reduced;
  const double far = std::max(far_q, far_k);
  bounded = std::max(far, 4 * far * double(coefficient)) < largest_score;
  if (q.cols <= narrow || !bounded || std::min(far_q, far_k) < smallest) return Summed::by_pair;
  const Index pairs = std::clamp(asking.count * seen.count / 64, fewest, most);
  const Index rows = std::min<Index>(asking.count, 8), each = pairs / rows;
  Index near = 0;
  for (Index r = 0; r < rows; ++r)
    for (Index s = 0; s < each; ++s) {
      const Index i = asking[r * asking.count / rows],
                  j = seen[((s * rows + r) * seen.count / (each * rows)) % seen.count];
      const S d = vector_distance<Native<S>>(q.row(i), k.row(j), q.cols);
      if (i != j && d < half_q[i] + half_k[j]) ++near;  // queries may be the keys
    }
  return near * many > rows * each ? Summed::by_pair : Summed::near_by_pair;
}

/// Whether query i keeps any key; under a causal mask the first ones are kept by most.
template <class S, class Mods>
bool keeps_any_key(const Scores<S, Mods>& scores, Index i) {
  for (Index j = 0; j < scores.m(); ++j)
    if (scores.keeps(i, j)) return true;
  return false;
}

/// Which queries and keys are in any pair that is kept: asked when wanted, or of a mask that gathers found at once.
template <class S, class Mods>
class KeptRows {
 public:
  KeptRows(Arena& arena, const Scores<S, Mods>& scores) : scores_(scores) {
    if constexpr (Mods::gathers) {
      using P = Native<S>;
      queries_ = arena.take<bool>(scores.n()), keys_ = arena.take<bool>(scores.m());
      std::fill(queries_, queries_ + scores.n(), false), std::fill(keys_, keys_ + scores.m(), false);
      const ArenaScope scope(arena);
      const auto places = places_of<S, Mods>(*scores.mods, scores.place(0, 0));
      const GatherPlan<P, Mods> plan(arena, places);
      for_gathered<P>(Context(arena), plan, places, [&](const auto& block, Index, const Context&) {
        // Most keys are known from blocks before, the last query keeps most of the others, and most queries keep the middle
        // key.
        const auto own = block.of(places);
        const Index m = own.m();
        Index *open = arena.template take<Index>(m), left = 0;
        for (Index j = 0; j < m; ++j)
          if (!keys_[block.key_rows()[j]]) open[left++] = j;
        for (Index i = own.n(); i-- > 0;) {
          bool& query = queries_[block.query_rows()[i]];
          const auto found = [&](Index j) {
            if (!own.keeps(i, j)) return false;
            return keys_[block.key_rows()[j]] = query = true;
          };
          left = std::remove_if(open, open + left, found) - open;
          for (Index j = 0; j < m && !query; ++j) found((m / 2 + j) % m);
        }
      });
    }
  }
  bool query(Index i) const { return Mods::gathers ? queries_[i] : keeps_any_key(scores_, i); }
  bool key(Index j) const { return Mods::gathers ? keys_[j] : any_query_keeps(scores_, j); }

 private:
  const Scores<S, Mods>& scores_;
  bool *queries_ = nullptr, *keys_ = nullptr;
};

/// The median of each column, of up to 33 of those rows that are finite.
template <class S>
S* middle_of(Arena& arena, View<S> v, const SomeRows& some) {
  using P = Native<S>;
  constexpr Index most = 33;
  S* middle = arena.take<S>(v.cols);
  const S* rows[most];
  const Index steps = std::min(some.count, most);
  Index count = 0;
  for (Index s = 0; s < steps; ++s) {
    const S* row = v.row(some[steps < 2 ? 0 : s * (some.count - 1) / (steps - 1)]);
    if (row_is_finite(row, v.cols)) rows[count++] = row;
  }
  median_of_rows<P, most>(rows, count, v.cols, middle);
  return middle;
}

/// Rows about their middle, and |row|^2 / 2 of each, NaN of a row that is not finite, zeros behind them. Whether all
/// rows are finite.
template <class S>
bool about_middle(View<S> from, const S* middle, MutView<S> to, S* half) {
  using std::isfinite;
  bool fine = true;
  for (Index i = 0; i < from.rows; ++i) {
    add_scaled_row<Native<S>>(from.row(i), S(-1), middle, to.row(i), from.cols);
    half[i] = squared_norm<S>(to, i) / S(2);
    if (isfinite(half[i]) || row_is_finite(from.row(i), from.cols)) continue;
    half[i] = S(std::numeric_limits<double>::quiet_NaN());
    fine = false;
  }
  std::fill(half + from.rows, half + from.rows + ScorePart<S>::behind, S(0));
  return fine;
}

/// Rows that are not finite as rows of NaN: infinity lies infinitely
/// far from all, which would be no weight, or the same for all.
template <class S>
View<S> rows_that_show(Arena& arena, View<S> v) {
  if (holds_finite(v)) return v;
  const MutView<S> shown = arena.matrix<S>(v.rows, v.cols);
  copy<S>(v, shown);
  for (Index i = 0; i < v.rows; ++i)
    if (!row_is_finite(v.row(i), v.cols))
      std::fill(shown.row(i), shown.row(i) + v.cols, S(std::numeric_limits<double>::quiet_NaN()));
  return shown;
}

/// The arrays of a distance term about the middle of its keys, which is the median of some, so that one that lies far
/// away, which some queries may not see, cannot spoil the digits of the others. A key that no query keeps, or that is
/// not finite, has no say at all, nor has such a query. Or the term by pair, its arrays as they are, see how_summed();
/// if near pairs alone are, products of q_to and k_to make the others.
template <class S, class Mods>
void centre(Arena& arena, KernelTerm<S>& term, const Scores<S, Mods>& scores, MutView<S> q_to, MutView<S> k_to) {
  constexpr Index few = 8;
  const Index w = term.k.cols, n = term.q.rows, m = term.k.rows;
  if (n <= few) {  // to look through the keys would take longer
    term.by_pair = true;
    term.q = rows_that_show(arena, term.q), term.k = rows_that_show(arena, term.k);
    return;
  }
  const bool can_mask = scores.can_mask();
  const KeptRows<S, Mods> kept(arena, scores);
  const auto rows_where = [&](Index count, const auto& counts) {
    Index* rows = arena.take<Index>(count);
    Index found = 0;
    for (Index i = 0; i < count; ++i)
      if (counts(i)) rows[found++] = i;
    return SomeRows{rows, found};
  };
  const auto key_counts = [&](Index j) { return row_is_finite(term.k.row(j), w) && kept.key(j); };
  const auto query_counts = [&](Index i) { return row_is_finite(term.q.row(i), w) && kept.query(i); };
  // Without a mask a key that is not finite leaves nothing to be known of any query, and such a query, whose half is
  // NaN, only of itself.
  const SomeRows seen = can_mask ? rows_where(m, key_counts) : SomeRows{nullptr, m};
  const S* middle = middle_of(arena, term.k, seen);
  S *half_q = arena.take<S>(n + ScorePart<S>::behind), *half_k = arena.take<S>(m + ScorePart<S>::behind);
  const bool fine_q = about_middle(term.q, middle, q_to, half_q), fine_k = about_middle(term.k, middle, k_to, half_k);
  const SomeRows asking = can_mask ? rows_where(n, query_counts) : SomeRows{nullptr, n};
  const Summed summed = how_summed<S>(term.coefficient, q_to, half_q, asking, k_to, half_k, seen, term.bounded);
  term.by_pair = summed != Summed::reduced;
  if (!term.by_pair) {
    term.q = q_to, term.k = k_to;
  } else if (summed == Summed::by_pair) {
    if (!fine_q) term.q = rows_that_show(arena, term.q);
    if (!fine_k) term.k = rows_that_show(arena, term.k);
  } else {
    term.half_q = half_q, term.half_k = half_k;
  }
}

/// A bandwidth whose square would overflow: rows and bandwidth by a power of two, as their quotient alone counts.
template <class S>
void rescale(Arena& arena, KernelTerm<S>& term, S h) {
  if constexpr (std::is_floating_point_v<S>) {
    constexpr int most = std::numeric_limits<S>::max_exponent - 1;
    const int exponent = std::isfinite(h) ? std::ilogb(h) : most;
    if (exponent <= most / 2 - 8) return;
    term.unit = std::ldexp(S(1), -exponent);
    h *= term.unit;
    term.coefficient = S(1) / (h * h);
    const auto scaled = [&](View<S> from) {
      const MutView<S> to = arena.matrix<S>(from.rows, from.cols);
      for (Index i = 0; i < from.rows; ++i) scale_row<Native<S>>(term.unit, from.row(i), to.row(i), from.cols);
      return View<S>(to);
    };
    term.q = scaled(term.q), term.k = scaled(term.k);
  }
}

/// -|q_i - k_j|^2 / h^2.
template <class S>
KernelTerm<S> distance_term(Arena& arena, View<S> q, View<S> k, S h) {
  KernelTerm<S> term{q, k, true, S(1) / (h * h)};
  rescale(arena, term, h);
  return term;
}

/// Whether distances are of keys in a window round the query. These often lie near it in value too, and copies about a
/// middle would be as large as what is filtered: all pairs are summed from differences.
template <class Mods>
constexpr bool in_windows() {
  if constexpr (Mods::gathers)
    return std::remove_cvref_t<decltype(std::declval<const Mods&>().leading())>::windows;
  else
    return false;
}

template <class S, class Mods>
KernelPrepared<S, Mods> prepare_kernel(Arena& arena, const std::array<KernelTerm<S>, 2>& terms, const Mods& mods,
                                       const At& at) {
  KernelPrepared<S, Mods> p;
  const Index n = terms[0].q.rows, m = terms[0].k.rows;
  bool any_distance = false;
  Index width = 0;
  for (const auto& term : terms) {
    if (p.count > 0 && !term.given()) continue;
    any_distance |= term.distance;
    width += term.q.cols;
    p.terms[static_cast<std::size_t>(p.count++)] = term;
  }
  p.whole = (Mods::per_pair || Mods::sinks) && any_distance;
  const auto each_term = [&](const auto& f) {  // f(number, its first column)
    Index first = 0;
    for (std::size_t t = 0; t < static_cast<std::size_t>(p.count); ++t) f(t, first), first += p.terms[t].q.cols;
  };
  MutView<S> q, k;  // all terms side by side
  if (p.joined() || (any_distance && !in_windows<Mods>())) {
    const Index room = width + (p.whole ? 1 : 0);
    q = arena.matrix<S>(n, room), k = arena.matrix<S>(m, room);
  }
  bool any_by_pair = false, reduced = false;
  each_term([&](std::size_t t, Index first) {
    auto& term = p.terms[t];
    if (!term.distance) return;
    const Index w = term.q.cols;
    if constexpr (in_windows<Mods>()) {
      const bool self = term.q.data == term.k.data && term.q.rows == term.k.rows && term.q.stride == term.k.stride;
      term.by_pair = any_by_pair = true;
      term.q = rows_that_show(arena, term.q), term.k = self ? term.q : rows_that_show(arena, term.k);
      return;
    }
    centre(arena, term, Scores<S, Distances<Mods>>{terms[0].q, terms[0].k, S(1), nullptr, &mods, at},
           q.block(0, first, n, w), k.block(0, first, m, w));
    any_by_pair |= term.by_pair;
  });
  const bool bounded = p.terms[0].bounded && p.terms[1].bounded;
  for (Index t = 0; t < p.count; ++t) {
    auto& term = p.terms[static_cast<std::size_t>(t)];
    // a score function, and a sink, gets the constants of rows this way
    if (any_by_pair && p.whole && term.distance && !term.by_pair) {
      term = terms[static_cast<std::size_t>(t)];
      term.by_pair = true;
      term.q = rows_that_show(arena, term.q), term.k = rows_that_show(arena, term.k);
    }
    if (!bounded && term.near_alone()) {
      term.half_q = term.half_k = nullptr;
      term.q = rows_that_show(arena, term.q), term.k = rows_that_show(arena, term.k);
    }
    reduced |= term.distance && !term.by_pair;
  }
  p.whole = p.whole && !any_by_pair;
  S* bias = nullptr;
  if (reduced) {
    bias = arena.take<S>(m);
    for (Index j = 0; j < m; ++j) bias[j] = S(0);
  }
  for (Index t = 0; t < p.count; ++t) {
    auto& term = p.terms[static_cast<std::size_t>(t)];
    if (!term.distance || term.by_pair) continue;
    for (Index j = 0; j < m; ++j) {  // a key that is not finite is the guards' business: its bias must not show it
      using std::isfinite;
      const S square = squared_norm(term.k, j);
      if (isfinite(square) || row_is_finite(term.k.row(j), term.k.cols)) bias[j] -= term.coefficient * square;
    }
  }
  const Index used = width + (p.whole ? 1 : 0);
  if (q.given()) q = q.block(0, 0, n, used), k = k.block(0, 0, m, used);
  const auto part_of = [&](const KernelTerm<S>& term, Index first) {
    return ScorePart<S>{first,       term.q.cols, term.by_pair, term.by_pair ? -term.coefficient : term.weight(),
                        term.half_q, term.half_k, term.q,       term.k};
  };
  if (!p.joined()) {
    const auto& term = p.terms[0];
    const bool near = term.near_alone();
    p.scores = {near ? View<S>(q) : term.q, near ? View<S>(k) : term.k, term.weight(), bias, &mods, at};
    if (any_by_pair) p.scores.parts[0] = part_of(term, 0);
    return p;
  }
  // weights, if they are not in the parts, as products round what differences must not
  const MutView<S> weighted = any_by_pair ? q : arena.matrix<S>(n, used);
  std::size_t parts = 0;
  each_term([&](std::size_t t, Index first) {
    auto& term = p.terms[t];
    const Index w = term.q.cols;
    const bool there = term.distance && (!term.by_pair || term.near_alone());  // centre() put it there
    if (!there) copy<S>(term.k, k.block(0, first, m, w));
    if (!any_by_pair)
      for (Index i = 0; i < n; ++i) scale_row<Native<S>>(term.weight(), term.q.row(i), weighted.row(i) + first, w);
    else if (!there)
      copy<S>(term.q, weighted.block(0, first, n, w));
    if (any_by_pair && w > 0) term.part = parts, p.scores.parts[parts++] = part_of(term, first);
  });
  if (p.whole) {
    for (Index j = 0; j < m; ++j) k(j, width) = S(1);
    for (Index i = 0; i < n; ++i) {
      weighted(i, width) = S(0);
      for (Index t = 0; t < p.count; ++t) {
        const auto& term = p.terms[static_cast<std::size_t>(t)];
        if (term.distance) weighted(i, width) -= term.coefficient * squared_norm(term.q, i);
      }
    }
  }
  p.scores.q = weighted, p.scores.k = k, p.scores.bias = bias, p.scores.mods = &mods, p.scores.at = at;
  return p;
}

/// Adds to a log-sum-exp what the reduced scores leave out of a row, -c |q_i|^2 for every distance.
template <class S, class Mods>
void complete_kernel_lse(const KernelPrepared<S, Mods>& p, S* lse) {
  if (p.whole) return;
  for (Index t = 0; t < p.count; ++t) {
    const auto& term = p.terms[static_cast<std::size_t>(t)];
    if (!term.distance || term.by_pair) continue;
    for (Index i = 0; i < p.scores.n(); ++i)
      if (lse[i] != minus_infinity<S>())  // a row without keys stays one, whatever the query holds
        lse[i] -= term.coefficient * squared_norm(term.q, i);
  }
}

/// Gradients of one term and what they say about its coefficient.
template <class S>
struct KernelGradient {
  MutView<S> q, k;
  bool coefficient = false;  ///< asked for
  Accumulator<S> sum_ds_s =
      0;  ///< sum_ij dS_ij s_ij, s_ij this term's (reduced) score: coefficient times its derivative
};

/// Where pull_back should write: into the user's arrays if there is one term and nothing else to be computed.
template <class S, class Mods>
GradientTargets<S> kernel_targets(Arena& arena, const KernelPrepared<S, Mods>& p,
                                  const std::array<KernelGradient<S>, 2>& g) {
  GradientTargets<S> to;
  constexpr Index narrow = 4;  // the loop over the pairs of a tile is as quick as a product
  const Index n = p.scores.n(), m = p.scores.m(), width = p.scores.q.cols;
  if (p.scores.bias) to.dbias = arena.take<S>(m);
  for (Index t = 0; t < p.count; ++t) {
    const auto& term = p.terms[static_cast<std::size_t>(t)];
    if (!term.distance || !g[static_cast<std::size_t>(t)].coefficient) continue;
    if (term.q.cols > widest_moment && !term.by_pair) continue;
    auto& moment = to.moments[static_cast<std::size_t>(t)];
    moment = {term.q, term.k, arena.take<Accumulator<S>>(1)};
    *moment.sum = Accumulator<S>(0);
    if (term.by_pair && term.q.cols > narrow) moment.part = p.scores.parts[term.part];
  }
  to.direct = !p.joined() && !g[0].coefficient && p.terms[0].unit == S(1);
  if (to.direct) {
    to.dq = g[0].q, to.dk = g[0].k;
  } else {
    to.dq = arena.matrix<S>(n, width), to.dk = arena.matrix<S>(m, width);
  }
  return to;
}

/// From gradients of the concatenated rows and of the bias to those of every term:
///     dist: dq_i = 2 c (sum_j dS_ij k_j - r_i q_i),   dk_j = 2 c (sum_i dS_ij q_i - c_j k_j),
///     by pair: dq_i = 2 c sum_j dS_ij (k_j - q_i),   dk_j = 2 c sum_i dS_ij (q_i - k_j),
/// where the sweep makes the differences of a pair. sum_ij dS_ij s_ij comes from the sweep where it was asked for it,
/// otherwise from dq_i and c_j, which costs nothing but cancels where near pairs have most of dS.
/// r_i = sum_j dS_ij, which is 0 unless a score function stands between the score and the softmax; c_j = sum_i dS_ij.
template <class S, class Mods>
void finish_kernel(const KernelPrepared<S, Mods>& p, const GradientTargets<S>& from,
                   std::array<KernelGradient<S>, 2>& g, Accumulation accumulate) {
  const Index n = p.scores.n(), m = p.scores.m();
  Index first = 0;
  for (Index t = 0; t < p.count; ++t) {
    const auto& term = p.terms[static_cast<std::size_t>(t)];
    auto& to = g[static_cast<std::size_t>(t)];
    const Index w = term.q.cols;
    const S weight = term.weight(),
            on_q = p.joined() ? weight : S(1);  // dS K' against the gradient of the weighted row
    if (!from.direct) {
      for (Index i = 0; i < n; ++i) {
        const S* dq = from.dq.row(i) + first;
        const S r = p.whole && term.distance ? from.dq(i, p.scores.q.cols - 1) : S(0);
        Accumulator<S> sum = 0;
        for (Index c = 0; c < w; ++c) {
          S d = dq[c] * on_q;
          if (d != S(0) && !term.by_pair)
            sum += Accumulator<S>(d) * Accumulator<S>(term.q(i, c));  // a row that passes nothing may hold anything
          if (r != S(0)) {
            sum -= Accumulator<S>(r) * Accumulator<S>(term.coefficient) * Accumulator<S>(term.q(i, c)) *
                   Accumulator<S>(term.q(i, c));
            d -= weight * r * term.q(i, c);
          }
          d *= term.unit;
          if (to.q.given()) to.q(i, c) = accumulate.q ? to.q(i, c) + d : d;
        }
        to.sum_ds_s += sum;
      }
      if (to.k.given()) {
        const MutView<S> dk = from.dk.block(0, first, m, w);
        const S on_k = (p.joined() && p.bare() ? weight : S(1)) * term.unit;
        if (on_k != S(1))
          for (Index j = 0; j < m; ++j) scale_row<Native<S>>(on_k, dk.row(j), dk.row(j), w);
        copy_or_add<S>(View<S>(dk), to.k, accumulate.kv);
      }
    }
    if (term.distance && !term.by_pair)
      for (Index j = 0; j < m; ++j) {
        const S c_j = from.dbias[j];
        if (c_j == S(0)) continue;
        to.sum_ds_s -= Accumulator<S>(c_j) * Accumulator<S>(term.coefficient) * Accumulator<S>(squared_norm(term.k, j));
        if (to.k.given())
          add_scaled_row<Native<S>>(to.k.row(j), -weight * c_j * term.unit, term.k.row(j), to.k.row(j), w);
      }
    if (const auto& moment = from.moments[static_cast<std::size_t>(t)]; moment.sum != nullptr) {
      const Accumulator<S> each = moment.part.cols > 0 ? Accumulator<S>(1) : -Accumulator<S>(term.coefficient);
      to.sum_ds_s = each * *moment.sum;
    }
    first += w;
  }
}

/// The bandwidth of a head: a given number, positive and not so small
/// that 2 / h^2, the weight of <q, k>, overflows, or the default.
template <class S>
S bandwidth(const char* op, const char* name, View<S> given, S otherwise) {
  if (!given.given()) return otherwise;
  const S h = given(0, 0), weight = S(2) * (S(1) / (h * h));
  if (!(h > S(0)) || !row_is_finite(&weight, 1))
    raise(std::string(op) + ": " + name + " is " + std::to_string(double(h)) + ", wanted a positive bandwidth");
  return h;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
