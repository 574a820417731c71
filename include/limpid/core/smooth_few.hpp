// limpid: `smooth` for a few queries against many keys, the case of decoding. Bound by memory: every key and value is
// read once, lanes run along features. SPDX-License-Identifier: MIT
#pragma once

#include "context.hpp"
#include "tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

struct FewQueries {
  static constexpr Index queries = 8, group = 4;  // up to 8; 4 at a time hold their sums in registers
  static constexpr Index fewest_keys = 256, block = 128;
  static constexpr Index chunk = 2048;  // keys a task; by shape alone, merged in order

  /// Whether this path serves: whole vectors of features, and enough keys for it to matter.
  template <class P>
  static bool fits(Index n, Index m, Index d, Index dv) {
    return P::lanes > 1 && n <= queries && n > 0 && m >= fewest_keys && d % P::lanes == 0 && dv % P::lanes == 0 &&
           d <= 16 * P::lanes;
  }
};

/// tile[i][j] = scale <q_i, k_j> + start_j for keys [0, nk) of a block, nk rounded up to whole vectors in the tile.
template <class P>
LIMPID_NOINLINE void few_scores(View<typename P::Scalar> q, View<typename P::Scalar> k, typename P::Scalar scale,
                                const typename P::Scalar* start, typename P::Scalar* tile, Index ld) {
  using S = typename P::Scalar;
  using V = typename P::V;
  constexpr Index w = P::lanes;
  const Index d = q.cols;
  for (Index j = 0; j < k.rows; j += w) {
    const Index rows = std::min<Index>(w, k.rows - j);
    for (Index i = 0; i < q.rows; ++i) {
      const S* query = q.row(i);
      V sums[w];
      LIMPID_UNROLL(16)
      for (Index r = 0; r < w; ++r) {
        const S* key = k.row(j + (r < rows ? r : 0));
        V sum = P::load(key) * P::load(query);
        for (Index c = w; c < d; c += w) sum = P::fma(P::load(key + c), P::load(query + c), sum);
        sums[r] = sum;
      }
      P::store(tile + i * ld + j, P::fma(P::sums_of(sums), P::set(scale), P::load(start + j)));
    }
  }
}

/// out_i = out_i * alpha_i + sum_j tile[i][j] x_j.
template <class P, int N>
LIMPID_NOINLINE void few_values(const typename P::Scalar* tile, Index ld, View<typename P::Scalar> x,
                                const typename P::Scalar* alpha, MutView<typename P::Scalar> out) {
  using V = typename P::V;
  constexpr int wide = 4;
  const auto columns = [&](Index c, auto count) {
    constexpr int C = decltype(count)::value;
    V acc[N][C];
    for (int i = 0; i < N; ++i)
      for (int v = 0; v < C; ++v) acc[i][v] = P::set(typename P::Scalar(0));
    for (Index j = 0; j < x.rows; ++j) {
      V row[C];
      LIMPID_UNROLL(4)
      for (int v = 0; v < C; ++v) row[v] = P::load(x.row(j) + c + v * P::lanes);
      LIMPID_UNROLL(4)
      for (int i = 0; i < N; ++i) {
        const V p = P::set(tile[i * ld + j]);
        LIMPID_UNROLL(4)
        for (int v = 0; v < C; ++v) acc[i][v] = P::fma(p, row[v], acc[i][v]);
      }
    }
    for (int i = 0; i < N; ++i)
      for (int v = 0; v < C; ++v) {
        auto* p = out.row(i) + c + v * P::lanes;
        P::store(p, P::fma(P::load(p), P::set(alpha[i]), acc[i][v]));
      }
  };
  Index c = 0;
  for (; c + wide * P::lanes <= x.cols; c += wide * P::lanes) columns(c, std::integral_constant<int, wide>());
  for (; c < x.cols; c += P::lanes) columns(c, std::integral_constant<int, 1>());
}

/// Keys [begin, end): running maximum, sum and unnormalised output of every query.
template <class P, bool Online, class Mods>
void few_chunk(const Scores<typename P::Scalar, Mods>& scores, View<typename P::Scalar> x, Index begin, Index end,
               const typename P::Scalar* known, typename P::Scalar* top, typename P::Scalar* sum,
               MutView<typename P::Scalar> out, Arena& arena) {
  using S = typename P::Scalar;
  constexpr Index ld = FewQueries::block;
  const Index n = scores.n();
  S* tile = arena.take<S>(n * ld);
  S* start = arena.take<S>(ld);
  S alpha[FewQueries::queries];
  for (Index i = 0; i < n; ++i) top[i] = minus_infinity<S>(), sum[i] = S(0), clear(out.row(i), out.cols);
  for (Index k0 = begin; k0 < end; k0 += ld) {
    const Index nk = std::min(ld, end - k0), whole = padded<P>(nk);
    const Tile<S> t{tile, ld, 0, n, k0, nk};
    scores.starts(0, k0, nk, start);
    clear(start + nk, whole - nk);
    few_scores<P>(scores.q, scores.k.block(k0, 0, nk, scores.k.cols), scores.scale * scores.unit(), start, tile, ld);
    if constexpr (Mods::values) value_tile<P, true>(scores, t);
    drop_keys<P, true>(scores, start, t, minus_infinity<S>());
    if constexpr (Mods::intervals || Mods::irregular) mask_tile<P, true>(scores, t, minus_infinity<S>());
    for (Index i = 0; i < n; ++i) {
      S* row = tile + i * ld;
      for (Index j = nk; j < whole; ++j) row[j] = minus_infinity<S>();
      S base;
      if constexpr (Online) {
        typename P::V most = P::load(row);
        for (Index j = P::lanes; j < whole; j += P::lanes) most = P::max(most, P::load(row + j));
        S lane[P::lanes];
        P::store(lane, most);
        S peak = top[i];
        for (Index l = 0; l < P::lanes; ++l) peak = peak < lane[l] ? lane[l] : peak;
        base = peak == minus_infinity<S>() ? S(0) : peak;
        P::store(lane, P::exp2(P::set(top[i] - base)));
        alpha[i] = lane[0];
        top[i] = peak;
      } else {
        base = known[i] + scores.shift(i, 0);
        alpha[i] = S(1);
      }
      typename P::V total = P::set(S(0));
      for (Index j = 0; j < whole; j += P::lanes) {
        const typename P::V e = P::exp2(P::load(row + j) - P::set(base));
        total = total + e;
        P::store(row + j, e);
      }
      sum[i] = sum[i] * alpha[i] + P::sum(total);
    }
    const View<S> values = x.block(k0, 0, nk, x.cols);
    Index i = 0;
    for (; i + FewQueries::group <= n; i += FewQueries::group)
      few_values<P, FewQueries::group>(tile + i * ld, ld, values, alpha + i,
                                       out.block(i, 0, FewQueries::group, out.cols));
    for (; i < n; ++i) few_values<P, 1>(tile + i * ld, ld, values, alpha + i, out.block(i, 0, 1, out.cols));
  }
}

template <class P, bool Online, class Mods>
void smooth_few(const Context& context, const Scores<typename P::Scalar, Mods>& scores, View<typename P::Scalar> x,
                MutView<typename P::Scalar> out, const typename P::Scalar* known, typename P::Scalar* lse) {
  using S = typename P::Scalar;
  const Index n = scores.n();
  const Interval seen = scores.hull(0, n);
  const Index chunks = (seen.end - seen.begin + FewQueries::chunk - 1) / FewQueries::chunk;
  Arena& arena = context.arena();
  const MutView<S> parts = arena.matrix<S>(chunks * n, x.cols), top = arena.matrix<S>(chunks, n),
                   sum = arena.matrix<S>(chunks, n);
  context.run(chunks, [&](Index c, Arena& own) {
    const Index begin = seen.begin + c * FewQueries::chunk;
    few_chunk<P, Online>(scores, x, begin, std::min(seen.end, begin + FewQueries::chunk), known, top.row(c), sum.row(c),
                         parts.block(c * n, 0, n, x.cols), own);
  });
  using std::exp;
  using std::log;
  for (Index i = 0; i < n; ++i) {
    S most = minus_infinity<S>(), total(0);
    for (Index c = 0; c < chunks; ++c) most = most < top(c, i) ? top(c, i) : most;
    clear(out.row(i), out.cols);
    for (Index c = 0; c < chunks; ++c) {
      if (Online && top(c, i) == minus_infinity<S>() && sum(c, i) == S(0)) continue;
      const S factor = Online ? exp((top(c, i) - most) * ln_2<S>) : S(1);
      total += sum(c, i) * factor;
      deliver_scaled<P>(parts.block(c * n + i, 0, 1, x.cols), factor, out.block(i, 0, 1, x.cols), true);
    }
    if (!Online) continue;
    const S inverse = total == S(0) ? S(0) : S(1) / total;
    for (Index c = 0; c < x.cols; ++c) out(i, c) *= inverse;
    if (lse) lse[i] = total == S(0) ? -minus_infinity<S>() : most + log(total) * log2_e<S> - scores.shift(i, 0);
  }
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
