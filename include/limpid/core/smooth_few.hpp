// limpid: `smooth` for a few queries against many keys, the case of decoding. Bound by memory: every key and value is
// read once, in the order of memory, and serves all queries while it is near. Lanes run along features.
// SPDX-License-Identifier: MIT
//
// So scores are summed in another order than by the sweeps that make weights again from a log-sum-exp. Those get theirs
// from the tiles, and here rows are always summed anew: logits in the thousands make a different sum a different
// weight.
#pragma once

#include <array>

#include "context.hpp"
#include "tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// One map of a `smooth`: its scores, what it is applied to, where the result and (base 2, may be null) the log-sum-exp
/// go; known: the log-sum-exp where that is known before.
template <class S, class Mods>
struct SmoothMap {
  Scores<S, Mods> scores;
  View<S> x;
  MutView<S> out;
  const S* known;
  S* lse;
};

/// An array of f(map) for one map or two; f's result need not have a default.
template <class Maps, class F>
auto each_map(Maps& maps, F&& f) {
  using Result = decltype(f(maps[0]));
  if constexpr (std::tuple_size_v<std::remove_const_t<Maps>> == 1)
    return std::array<Result, 1>{f(maps[0])};
  else
    return std::array<Result, 2>{f(maps[0]), f(maps[1])};
}

struct FewQueries {
  static constexpr Index queries = 8;
  static constexpr Index fewest_keys = 256, block = 512, near = 64;
  static constexpr Index chunk = 2048;  // keys a task; by shape alone, merged in order

  /// Whether this path serves: whole vectors of features, and enough keys for it to matter.
  template <class P>
  static bool fits(Index n, Index m, Index d, Index dv) {
    return P::lanes > 1 && n <= queries && n > 0 && m >= fewest_keys && d % P::lanes == 0 && dv % P::lanes == 0;
  }
  /// From three queries on there is so much to do for a row that the machine no longer looks far enough ahead by
  /// itself: so many numbers further on in memory are asked for, 12 KiB of rows.
  template <class S>
  static Index ahead(View<S> rows) {
    return 12 * 1024 / static_cast<Index>(sizeof(S)) / rows.cols * rows.stride;
  }
  /// Queries are worked on by 1, 2, 4 or 8; those too many are zeros.
  static Index whole(Index n) { return n <= 2 ? n : (n <= 4 ? 4 : 8); }
};

/// tile[i][j] = <q_i, k_j> for the queries, N at a time, and the keys of a block. ahead: where to fetch from.
template <class P, int N>
LIMPID_NOINLINE void few_dots(View<typename P::Scalar> q, View<typename P::Scalar> k, Index ahead,
                              typename P::Scalar* tile, Index ld) {
  using S = typename P::Scalar;
  using V = typename P::V;
  constexpr int R = P::lanes / N;   // keys at a time: as many sums as there are lanes, which one reduction serves
  constexpr int G = R < N ? R : N;  // keys read side by side: more would not look like a stream to the machine
  for (Index j = 0; j < k.rows; j += R)
    for (Index first = 0; first < q.rows; first += N) {
      V sums[N * R];
      LIMPID_UNROLL(4)
      for (int g = 0; g < R; g += G) {
        const S* key[G];
        for (int r = 0; r < G; ++r) key[r] = k.row(j + g + r < k.rows ? j + g + r : j);
        V part[N * G];
        LIMPID_UNROLL(16)
        for (int s = 0; s < N * G; ++s) part[s] = P::set(S(0));
        for (Index c = 0; c < q.cols; c += P::lanes) {
          V query[N];
          LIMPID_UNROLL(4)
          for (int i = 0; i < N; ++i) query[i] = P::keep(P::load(q.row(first + i) + c));
          LIMPID_UNROLL(4)
          for (int r = 0; r < G; ++r) {
            const V one = P::keep(P::load(key[r] + c));
            if (N >= 4 && first == 0) P::fetch(key[r] + c, ahead);
            LIMPID_UNROLL(4)
            for (int i = 0; i < N; ++i) part[i * G + r] = P::fma(one, query[i], part[i * G + r]);
          }
        }
        LIMPID_UNROLL(4)
        for (int i = 0; i < N; ++i) {
          LIMPID_UNROLL(4)
          for (int r = 0; r < G; ++r) sums[i * R + g + r] = part[i * G + r];
        }
      }
      S all[P::lanes];
      P::store(all, P::sums_of(sums));
      LIMPID_UNROLL(4)
      for (int i = 0; i < N; ++i) std::copy(all + i * R, all + (i + 1) * R, tile + (first + i) * ld + j);
    }
}

/// Eight queries as quad_dots wants them: four features of each side by side, 8 q.cols numbers.
template <class S>
void pack_quads(View<S> q, S* out) {
  for (Index c = 0; c < q.cols; c += 4)
    for (Index i = 0; i < q.rows; ++i, out += 4) std::copy(q.row(i) + c, q.row(i) + c + 4, out);
}

/// few_dots for eight queries: a vector holds four features of two or more of them, so that fewer lanes have to be
/// summed in the end.
template <class P>
LIMPID_NOINLINE void quad_dots(const typename P::Scalar* packed, View<typename P::Scalar> k, Index ahead,
                               typename P::Scalar* tile, Index ld) {
  using S = typename P::Scalar;
  using V = typename P::V;
  constexpr int together = P::lanes / 4;                         // queries in a vector
  constexpr int Q = FewQueries::queries / together, R = 16 / Q;  // vectors of queries, and keys, for sixteen sums
  for (Index j = 0; j < k.rows; j += R) {
    const S* key[R];
    for (int r = 0; r < R; ++r) key[r] = k.row(j + r < k.rows ? j + r : j);
    V sums[Q * R];
    LIMPID_UNROLL(16)
    for (int s = 0; s < Q * R; ++s) sums[s] = P::set(S(0));
    const S* q = packed;
    for (Index c = 0; c < k.cols; c += 4, q += Q * P::lanes) {
      V query[Q];
      LIMPID_UNROLL(4)
      for (int v = 0; v < Q; ++v) query[v] = P::keep(P::load(q + v * P::lanes));
      LIMPID_UNROLL(8)
      for (int r = 0; r < R; ++r) {
        const V one = P::keep(P::in_quads(key[r] + c));
        LIMPID_UNROLL(4)
        for (int v = 0; v < Q; ++v) sums[v * R + r] = P::fma(one, query[v], sums[v * R + r]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (Index c = 0; c < k.cols; c += P::lanes) P::fetch(key[r] + c, ahead);
    LIMPID_UNROLL(4)
    for (int s = 0; s < Q * R; s += 4) {
      S four[P::lanes];
      P::store(four, P::quad_sums(sums + s));
      S* to = tile + s / R * together * ld + j + s % R;
      for (int i = 0; i < together; ++i) std::copy(four + 4 * i, four + 4 * i + 4, to + i * ld);
    }
  }
}

/// out_i = out_i * alpha_i + sum_j tile[i][j] x_j for N queries. ahead: as above.
template <class P, int N>
LIMPID_NOINLINE void few_values(const typename P::Scalar* tile, Index ld, View<typename P::Scalar> x,
                                const typename P::Scalar* alpha, MutView<typename P::Scalar> out, Index ahead = 0) {
  using V = typename P::V;
  constexpr int sums = P::quads ? 24 : P::tile_rows * P::tile_vectors;
  constexpr int wide = sums / N >= 4 ? 4 : (sums / N >= 2 ? 2 : 1);
  const auto columns = [&](Index c, auto count) {
    constexpr int C = decltype(count)::value;
    V acc[N][C];
    LIMPID_UNROLL(8)
    for (int i = 0; i < N; ++i) {
      LIMPID_UNROLL(4)
      for (int v = 0; v < C; ++v) acc[i][v] = P::set(typename P::Scalar(0));
    }
    for (Index j = 0; j < x.rows; ++j) {
      V row[C];
      LIMPID_UNROLL(4)
      for (int v = 0; v < C; ++v) {
        row[v] = P::keep(P::load(x.row(j) + c + v * P::lanes));
        if (N >= 4) P::fetch(x.row(j) + c + v * P::lanes, ahead);
      }
      LIMPID_UNROLL(8)
      for (int i = 0; i < N; ++i) {
        const V p = P::set(tile[i * ld + j]);
        LIMPID_UNROLL(4)
        for (int v = 0; v < C; ++v) acc[i][v] = P::fma(p, row[v], acc[i][v]);
      }
    }
    LIMPID_UNROLL(8)
    for (int i = 0; i < N; ++i) {
      LIMPID_UNROLL(4)
      for (int v = 0; v < C; ++v) {
        auto* p = out.row(i) + c + v * P::lanes;
        P::store(p, P::fma(P::load(p), P::set(alpha[i]), acc[i][v]));
      }
    }
  };
  Index c = 0;
  for (; c + wide * P::lanes <= x.cols; c += wide * P::lanes) columns(c, std::integral_constant<int, wide>());
  for (; c < x.cols; c += P::lanes) columns(c, std::integral_constant<int, 1>());
}

/// Keys [begin, end): running maximum, sum and unnormalised output of every query. q: the queries, made up to `whole`.
template <class P, class Mods>
void few_chunk(const Scores<typename P::Scalar, Mods>& scores, View<typename P::Scalar> q, View<typename P::Scalar> x,
               Index begin, Index end, typename P::Scalar* top, typename P::Scalar* sum,
               MutView<typename P::Scalar> out, Arena& arena) {
  using S = typename P::Scalar;
  constexpr Index ld = FewQueries::block + P::lanes;  // rows 2 KiB apart would share places in the first cache
  const Index n = scores.n(), d = q.cols;
  const S scale = scores.scale * scores.unit();
  S* tile = arena.take<S>(q.rows * ld);
  S* start = arena.take<S>(ld);
  S alpha[FewQueries::queries] = {};
  const S ones[6] = {S(1), S(1), S(1), S(1), S(1), S(1)};
  S* packed = nullptr;
  if (P::quads && q.rows == FewQueries::queries) pack_quads(q, packed = arena.take<S>(q.rows * d));
  for (Index i = 0; i < n; ++i) top[i] = minus_infinity<S>(), sum[i] = S(0);
  for (Index i = 0; i < q.rows; ++i) clear(out.row(i), out.cols);
  for (Index k0 = begin; k0 < end; k0 += ld) {
    const Index nk = std::min(ld, end - k0), whole = padded<P>(nk);
    const Tile<S> t{tile, ld, 0, n, k0, nk};
    const View<S> keys = scores.k.block(k0, 0, nk, d), values = x.block(k0, 0, nk, x.cols);
    scores.starts(0, k0, nk, start);
    clear(start + nk, whole - nk);
    const Index ahead = FewQueries::ahead(scores.k), values_ahead = FewQueries::ahead(x);
    if (q.rows == 1) {
      few_dots<P, 1>(q, keys, ahead, tile, ld);
    } else if (q.rows == 2 || P::lanes < 4) {
      few_dots<P, 2>(q, keys, ahead, tile, ld);
    } else if (packed == nullptr) {
      if constexpr (P::lanes >= 4) few_dots<P, 4>(q, keys, ahead, tile, ld);
    } else {
      if constexpr (P::quads) quad_dots<P>(packed, keys, ahead, tile, ld);
    }
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < whole; j += P::lanes) {
        S* p = tile + i * ld + j;
        P::store(p, P::fma(P::load(p), P::set(scale), P::load(start + j)));
      }
    if constexpr (Mods::values) value_tile<P, true>(scores, t);
    drop_keys<P, true>(scores, start, t, minus_infinity<S>());
    if constexpr (Mods::intervals || Mods::irregular) mask_tile<P, true>(scores, t, minus_infinity<S>());
    for (Index i = 0; i < n; ++i) {
      S* row = tile + i * ld;
      for (Index j = nk; j < whole; ++j) row[j] = minus_infinity<S>();
      const typename P::V old = P::set(top[i]), none = P::set(minus_infinity<S>());
      typename P::V most = old;
      for (Index j = 0; j < whole; j += P::lanes) most = P::max(most, P::load(row + j));
      most = P::largest(most);
      const typename P::V base = P::if_equal(most, none, P::set(S(0)), most);
      S lane[P::lanes];
      P::store(lane, P::exp2(old - base));
      alpha[i] = lane[0];
      P::store(lane, most);
      top[i] = lane[0];
      typename P::V total = P::set(S(0));
      for (Index j = 0; j < whole; j += P::lanes) {
        const typename P::V e = P::exp2(P::load(row + j) - base);
        total = total + e;
        P::store(row + j, e);
      }
      sum[i] = sum[i] * alpha[i] + P::sum(total);
    }
    if (q.rows == 1)
      few_values<P, 1>(tile, ld, values, alpha, out);
    else if (q.rows == 2)
      few_values<P, 2>(tile, ld, values, alpha, out);
    else if (q.rows == 4)
      few_values<P, 4>(tile, ld, values, alpha, out, values_ahead);
    else
      for (Index j = 0; j < nk; j += FewQueries::near) {  // few enough to be near still when the last two come
        const View<S> some = values.block(j, 0, std::min(FewQueries::near, nk - j), x.cols);
        few_values<P, 6>(tile + j, ld, some, j == 0 ? alpha : ones, out, values_ahead);
        few_values<P, 2>(tile + 6 * ld + j, ld, some, j == 0 ? alpha + 6 : ones, out.block(6, 0, 2, out.cols));
      }
  }
}

/// What the chunks of one map leave behind, and how it becomes the result.
template <class P, class Mods>
class FewParts {
 public:
  using S = typename P::Scalar;

  FewParts(Arena& arena, const SmoothMap<S, Mods>& map, Index chunks)
      : map_(map), rows_(FewQueries::whole(map.scores.n())) {
    const Index n = map.scores.n(), d = map.scores.q.cols;
    parts_ = arena.matrix<S>(chunks * rows_, map.x.cols);
    top_ = arena.matrix<S>(chunks, n), sum_ = arena.matrix<S>(chunks, n);
    q_ = arena.matrix<S>(rows_, d);
    copy<S>(map.scores.q, q_);
    for (Index i = n; i < rows_; ++i) clear(q_.row(i), d);
  }

  void run_chunk(Index c, Index begin, Index end, Arena& arena) const {
    few_chunk<P>(map_.scores, View<S>(q_), map_.x, begin, end, top_.row(c), sum_.row(c),
                 parts_.block(c * rows_, 0, rows_, map_.x.cols), arena);
  }

  /// The chunks in order, whoever made them.
  void merge() const {
    using std::exp;
    const MutView<S>& out = map_.out;
    for (Index i = 0; i < out.rows; ++i) {
      S most = minus_infinity<S>(), total(0);
      for (Index c = 0; c < top_.rows; ++c) most = most < top_(c, i) ? top_(c, i) : most;
      clear(out.row(i), out.cols);
      for (Index c = 0; c < top_.rows; ++c) {
        if (top_(c, i) == minus_infinity<S>() && sum_(c, i) == S(0)) continue;
        const S factor = exp((top_(c, i) - most) * ln_2<S>);
        total += sum_(c, i) * factor;
        deliver_scaled<P>(parts_.block(c * rows_ + i, 0, 1, out.cols), factor, out.block(i, 0, 1, out.cols), true);
      }
      const S inverse = total == S(0) ? S(0) : S(1) / total;
      for (Index c = 0; c < out.cols; ++c) out(i, c) *= inverse;
    }
  }

 private:
  const SmoothMap<S, Mods>& map_;
  Index rows_;
  MutView<S> parts_, top_, sum_, q_;
};

template <class P, std::size_t M, class Mods>
void smooth_few(const Context& context, const std::array<SmoothMap<typename P::Scalar, Mods>, M>& maps) {
  const auto& scores = maps[0].scores;
  const Interval seen = scores.hull(0, scores.n());
  const Index chunks = (seen.end - seen.begin + FewQueries::chunk - 1) / FewQueries::chunk;
  const auto parts = each_map(maps, [&](const auto& map) { return FewParts<P, Mods>(context.arena(), map, chunks); });
  context.run(chunks, [&](Index c, Arena& own) {
    const Index begin = seen.begin + c * FewQueries::chunk;
    for (const auto& part : parts) part.run_chunk(c, begin, std::min(seen.end, begin + FewQueries::chunk), own);
  });
  for (const auto& part : parts) part.merge();
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
