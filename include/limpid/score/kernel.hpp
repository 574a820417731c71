// limpid: scores that are sums of kernels, dot products and squared distances, reduced to one dot product and a key
// bias.
// SPDX-License-Identifier: MIT
//
// -|q - k|^2 / h^2 is (2 q.k - |k|^2) / h^2 up to a constant of the row, which the softmax drops; a sum of such terms
// is one product of concatenated rows. Where a score function is asked (it must see the score itself) the constant
// comes back as one more column. Distances are taken from the middle of the keys: exact, as the kernel does not move
// with a common shift, and without it float loses every digit. Where queries and keys lie so far from any middle that
// near pairs would lose digits all the same, a term is summed by pair, from differences (core/distance.hpp), of all
// pairs or of the near ones: decided once a call and head, from the arrays alone, so that every sweep finds the same
// scores. All of this page is our own derivation of a classical identity.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "../core/distance.hpp"
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
  bool by_pair = false;  // a distance summed from differences, of arrays as they were given
  // by pair, if near pairs alone are: the arrays about their middle, and |row|^2 / 2 of them
  View<S> middle_q = {}, middle_k = {};
  S *half_q = nullptr, *half_k = nullptr;
  std::size_t part = 0;  // by pair: its place in the parts of the scores
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

/// Whether c |q - k|^2 from 2 c <q, k> and c |k|^2 would lose digits that differences keep; q and k are centred, asking
/// and seen are the rows that have a say. The reduced score is rounded in units of c max|q| max|k|, the score itself in
/// units of c |q - k|^2, and what equal rows, as where queries are the keys, give to a gradient is none at all. Where
/// the first is small nothing is lost. Else near pairs need differences: which costs least for all pairs of narrow
/// rows, and of wide ones where near pairs are many, by a look at some, spread over both arrays. That look is of time
/// alone. Squares that overflow are left to the differences.
template <class S>
Summed how_summed(S coefficient, View<S> q, const S* half_q, const Index* asking, Index askers, View<S> k,
                  const S* half_k, const Index* seen, Index count) {
  using std::sqrt;
  constexpr double nothing = 0.5, largest = 1e30, smallest = 1e-25;
  constexpr Index narrow = 16, fewest = 16, most = 256, many = 16;  // one pair in so many
  double far_q = 0, far_k = 0;
  for (Index i = 0; i < askers; ++i) far_q = std::max(far_q, 2 * double(half_q[asking[i]]));
  for (Index s = 0; s < count; ++s) far_k = std::max(far_k, 2 * double(half_k[seen[s]]));
  if (double(coefficient) * sqrt(far_q) * sqrt(far_k) <= nothing || count == 0 || askers == 0) return Summed::reduced;
  if (q.cols <= narrow || !(std::max(far_q, far_k) < largest) || std::min(far_q, far_k) < smallest)
    return Summed::by_pair;
  const Index pairs = std::clamp(askers * count / 64, fewest, most);
  const Index rows = std::min<Index>(askers, 8), each = pairs / rows;
  Index near = 0;
  for (Index r = 0; r < rows; ++r)
    for (Index s = 0; s < each; ++s) {
      const Index i = asking[r * askers / rows], j = seen[((s * rows + r) * count / (each * rows)) % count];
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

/// |row|^2 / 2, NaN of a row that is not finite; zeros behind them.
template <class S>
S* halves_of(Arena& arena, View<S> v) {
  using std::isfinite;
  S* half = arena.take<S>(v.rows + ScorePart<S>::behind);
  for (Index i = 0; i < v.rows; ++i) {
    half[i] = squared_norm(v, i) / S(2);
    if (!isfinite(half[i]) && !row_is_finite(v.row(i), v.cols)) half[i] = S(std::numeric_limits<double>::quiet_NaN());
  }
  std::fill(half + v.rows, half + v.rows + ScorePart<S>::behind, S(0));
  return half;
}

/// Rows that are not finite as rows of NaN: infinity lies infinitely far from all, which would be no weight, or the
/// same for all.
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

/// The arrays of a distance term about the middle of its keys: the median, column by column, of up to 33 of them, so
/// that one that lies far away, which some queries may not see, cannot spoil the digits of the others. A key that no
/// query keeps, or that is not finite, has no say at all. Or the term by pair, its arrays as they are, see
/// how_summed().
template <class S, class Mods>
void centre(Arena& arena, KernelTerm<S>& term, const Scores<S, Mods>& scores) {
  constexpr Index most = 33, few = 8;
  const Index w = term.k.cols, m = term.k.rows;
  if (term.q.rows <= few) {  // to look through the keys would take longer
    term.by_pair = true;
    term.q = rows_that_show(arena, term.q), term.k = rows_that_show(arena, term.k);
    return;
  }
  S* middle = arena.take<S>(w);
  const bool all_seen = !scores.can_mask() && holds_finite(term.k);
  Index* seen = arena.take<Index>(m);
  Index count = 0;
  for (Index j = 0; j < m; ++j)
    if (all_seen || (row_is_finite(term.k.row(j), w) && (!scores.can_mask() || any_query_keeps(scores, j))))
      seen[count++] = j;
  const Index used = std::min(count, most);
  S sample[most];
  for (Index c = 0; c < w; ++c) {
    for (Index s = 0; s < used; ++s) sample[s] = term.k(seen[used < 2 ? 0 : s * (count - 1) / (used - 1)], c);
    std::nth_element(sample, sample + used / 2, sample + used);
    middle[c] = used == 0 ? S(0) : sample[used / 2];
  }
  const auto shifted = [&](View<S> from) {
    MutView<S> to = arena.matrix<S>(from.rows, w);
    for (Index i = 0; i < from.rows; ++i) add_scaled_row<Native<S>>(from.row(i), S(-1), middle, to.row(i), w);
    return View<S>(to);
  };
  const View<S> q = shifted(term.q), k = shifted(term.k);
  // nor has a query that keeps no key
  const bool all_ask = !scores.can_mask() && holds_finite(term.q);
  Index* asking = arena.take<Index>(term.q.rows);
  Index askers = 0;
  for (Index i = 0; i < term.q.rows; ++i)
    if (all_ask || (row_is_finite(term.q.row(i), w) && (!scores.can_mask() || keeps_any_key(scores, i))))
      asking[askers++] = i;
  S *half_q = halves_of(arena, q), *half_k = halves_of(arena, k);
  const Summed summed = how_summed(term.coefficient, q, half_q, asking, askers, k, half_k, seen, count);
  term.by_pair = summed != Summed::reduced;
  if (summed == Summed::near_by_pair) {
    term.middle_q = all_ask ? q : without_bad_rows(arena, q);
    term.middle_k = all_seen ? k : without_bad_rows(arena, k);
    term.half_q = half_q, term.half_k = half_k;
  }
  const auto as_given = [&](View<S> v, bool finite) { return finite ? v : rows_that_show(arena, v); };
  term.q = term.by_pair ? as_given(term.q, all_ask) : q;
  term.k = term.by_pair ? as_given(term.k, all_seen) : k;
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
  p.whole = Mods::values && any_distance;
  bool any_by_pair = false, reduced = false;
  for (Index t = 0; t < p.count; ++t)
    if (auto& term = p.terms[static_cast<std::size_t>(t)]; term.distance) {
      centre(arena, term, Scores<S, Distances<Mods>>{terms[0].q, terms[0].k, S(1), nullptr, &mods, at});
      any_by_pair |= term.by_pair;
    }
  for (Index t = 0; t < p.count; ++t) {
    auto& term = p.terms[static_cast<std::size_t>(t)];
    // a score function gets the constants of rows this way
    if (any_by_pair && p.whole && term.distance && !term.by_pair) {
      term = terms[static_cast<std::size_t>(t)];
      term.by_pair = true;
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
  if (!p.joined()) {
    p.scores = {p.terms[0].q, p.terms[0].k, p.terms[0].weight(), bias, &mods, at};
    const auto& term = p.terms[0];
    if (any_by_pair) p.scores.parts[0] = {0, term.q.cols, true, -term.coefficient, term.half_q, term.half_k};
    p.scores.middle_q = term.middle_q, p.scores.middle_k = term.middle_k;
    return p;
  }
  if (p.whole) ++width;
  MutView<S> q = arena.matrix<S>(n, width), k = arena.matrix<S>(m, width);
  Index first = 0;
  PartsOfScores<S> parts = {};
  std::size_t used = 0;
  for (Index t = 0; t < p.count; ++t) {
    auto& term = p.terms[static_cast<std::size_t>(t)];
    const Index w = term.q.cols;
    const S weight = any_by_pair ? S(1) : term.weight();  // in the parts, as products round what differences must not
    for (Index i = 0; i < n; ++i) scale_row<Native<S>>(weight, term.q.row(i), q.row(i) + first, w);
    if (any_by_pair && w > 0) {
      term.part = used;
      parts[used++] = {first,       w,          term.by_pair, term.by_pair ? -term.coefficient : term.weight(),
                       term.half_q, term.half_k};
    }
    for (Index j = 0; j < m; ++j) copy_row<Native<S>>(term.k.row(j), k.row(j) + first, w);
    first += w;
  }
  if (p.whole) {
    for (Index j = 0; j < m; ++j) k(j, first) = S(1);
    for (Index i = 0; i < n; ++i) {
      q(i, first) = S(0);
      for (Index t = 0; t < p.count; ++t) {
        const auto& term = p.terms[static_cast<std::size_t>(t)];
        if (term.distance) q(i, first) -= term.coefficient * squared_norm(term.q, i);
      }
    }
  }
  p.scores = {q, k, S(1), bias, &mods, at};
  p.scores.parts = parts;
  if (std::any_of(parts.begin(), parts.end(), [](const auto& part) { return part.near_alone(); })) {
    const auto about = [&](View<S> from, auto middle_of) {
      const MutView<S> to = arena.matrix<S>(from.rows, width);
      Index column = 0;
      for (Index t = 0; t < p.count; ++t) {
        const auto& term = p.terms[static_cast<std::size_t>(t)];
        const Index w = term.q.cols;
        copy<S>(term.near_alone() ? middle_of(term) : from.block(0, column, from.rows, w),
                to.block(0, column, from.rows, w));
        column += w;
      }
      return View<S>(to);
    };
    p.scores.middle_q = about(q, [](const auto& term) { return term.middle_q; });
    p.scores.middle_k = about(k, [](const auto& term) { return term.middle_k; });
  }
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
  Wide<S> sum_ds_s = 0;      ///< sum_ij dS_ij s_ij, s_ij this term's (reduced) score: coefficient times its derivative
};

/// Where pull_back should write: into the user's arrays if there is one term and nothing else to be computed.
template <class S, class Mods>
PullTargets<S> kernel_targets(Arena& arena, const KernelPrepared<S, Mods>& p,
                              const std::array<KernelGradient<S>, 2>& g) {
  PullTargets<S> to;
  constexpr Index narrow = 4;  // the loop over the pairs of a tile is as quick as a product
  const Index n = p.scores.n(), m = p.scores.m(), width = p.scores.q.cols;
  if (p.scores.bias) to.dbias = arena.take<S>(m);
  for (Index t = 0; t < p.count; ++t) {
    const auto& term = p.terms[static_cast<std::size_t>(t)];
    if (!term.distance || !g[static_cast<std::size_t>(t)].coefficient) continue;
    if (term.q.cols > Moment<S>::widest && !term.by_pair) continue;
    auto& moment = to.moments[static_cast<std::size_t>(t)];
    moment = {term.q, term.k, arena.take<Wide<S>>(Moment<S>::parts)};
    std::fill(moment.sums, moment.sums + Moment<S>::parts, Wide<S>(0));
    if (term.by_pair && term.q.cols > narrow) {
      moment.part = p.scores.parts[term.part];
      moment.part.factor = S(1);
    }
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
///     by pair: dq_i = 2 c sum_j dS_ij (k_j - q_i),   dk_j = 2 c sum_i dS_ij (q_i - k_j), differences made in the
///     sweep,
/// sum_ij dS_ij s_ij from the sweep where it was asked for it, otherwise from dq_i and c_j, which costs nothing but
/// cancels where near pairs have most of dS,
/// r_i = sum_j dS_ij, which is 0 unless a score function stands between the score and the softmax, and c_j = sum_i
/// dS_ij.
template <class S, class Mods>
void finish_kernel(const KernelPrepared<S, Mods>& p, const PullTargets<S>& from, std::array<KernelGradient<S>, 2>& g,
                   Accumulation accumulate) {
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
        Wide<S> sum = 0;
        for (Index c = 0; c < w; ++c) {
          S d = dq[c] * on_q;
          if (d != S(0) && !term.by_pair)
            sum += Wide<S>(d) * Wide<S>(term.q(i, c));  // a row that passes nothing may hold anything
          if (r != S(0)) {
            sum -= Wide<S>(r) * Wide<S>(term.coefficient) * Wide<S>(term.q(i, c)) * Wide<S>(term.q(i, c));
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
        deliver<S>(View<S>(dk), to.k, accumulate.kv);
      }
    }
    if (term.distance && !term.by_pair)
      for (Index j = 0; j < m; ++j) {
        const S c_j = from.dbias[j];
        if (c_j == S(0)) continue;
        to.sum_ds_s -= Wide<S>(c_j) * Wide<S>(term.coefficient) * Wide<S>(squared_norm(term.k, j));
        if (to.k.given())
          add_scaled_row<Native<S>>(to.k.row(j), -weight * c_j * term.unit, term.k.row(j), to.k.row(j), w);
      }
    if (const auto& moment = from.moments[static_cast<std::size_t>(t)]; moment.sums != nullptr) {
      to.sum_ds_s = 0;
      for (Index c = 0; c < Moment<S>::parts; ++c) to.sum_ds_s -= Wide<S>(term.coefficient) * moment.sums[c];
    }
    first += w;
  }
}

/// The bandwidth of a head: a given number, positive and not so small that 1 / h^2 overflows, or the default.
template <class S>
S bandwidth(const char* op, const char* name, View<S> given, S otherwise) {
  if (!given.given()) return otherwise;
  const S h = given(0, 0), coefficient = S(1) / (h * h);
  if (!(h > S(0)) || !row_is_finite(&coefficient, 1))
    raise(std::string(op) + ": " + name + " is " + std::to_string(double(h)) + ", wanted a positive bandwidth");
  return h;
}

template <class S>
void check_pair(const char* op, const char* q_name, const char* k_name, View<S> q, View<S> k) {
  if (q.cols != k.cols)  // not `given`: an array of no rows has no memory either
    raise(std::string(op) + ": " + q_name + " has " + text_of(q.cols) + " columns a head and " + k_name + " has " +
          text_of(k.cols) + ", wanted the same");
}
template <class S>
void check_scalar(const char* op, const char* name, View<S> v) {
  if (v.given() && v.cols != 1)
    raise(std::string(op) + ": " + name + " has " + text_of(v.cols) + " columns, wanted 1 (a number, or one a head)");
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
