// limpid: pull_back of a block of gathered queries whose keys are read, and added to, where they lie.
//
// Lanes are queries, as in smooth: of few queries and many scattered keys this needs no copy of a key and no panel of
// them, and dK and dV grow in the rows of the head itself. What hangs on scores besides (bandwidths, derivatives of
// modifiers, relevance, distances by pair) is left to pull_back on copies.
// SPDX-License-Identifier: MIT
#pragma once

#include "backward_plan.hpp"
#include "gather.hpp"
#include "smooth.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// A factor of each lane times exp(score - top).
template <class P>
struct StoreLaneWeights {
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S scale;
  const S *bias, *top, *factor;
  template <int N>
  LIMPID_INLINE void row(Index r, Index lane, const typename P::V* acc) const {
    typename P::V s[N];
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v)
      s[v] = P::fma(acc[v], P::set(scale), P::set(bias[r])) - P::load(top + lane + v * P::lanes);
    P::template exp_each<N>(s);
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v)
      P::store(out + r * ld + lane + v * P::lanes, s[v] * P::load(factor + lane + v * P::lanes));
  }
};

/// dS of each map from dA, queries in lanes; zero where the weight is.
template <class P, int M, class Weight>
struct StoreLaneGradients {
  using S = typename P::Scalar;
  Index ld;
  S* weights[M];  // those of the first map become their sum
  S* ds[M];
  const S* delta[M];
  Weight function;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    const Index at = r * ld + lane;
    const typename P::V zero = P::set(S(0));
    typename P::V total = zero;
    LIMPID_UNROLL(2)
    for (int t = 0; t < M; ++t) {
      const typename P::V w = P::load(weights[t] + at);
      const typename P::V g = weight_gradient<P>(function, w, acc, Weight::normalised ? P::load(delta[t] + lane) : acc);
      P::store(ds[t] + at, P::if_equal(w, zero, zero, g));
      total = t == 0 ? w : total + w;
    }
    if constexpr (M > 1) P::store(weights[0] + at, total);
  }
};

/// Adds factor times a row of sums to the row of an array that a list says.
template <class P>
struct AddToListed {
  using S = typename P::Scalar;
  S* out;
  const Index* list;
  Index stride;
  S factor;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    S* p = out + list[r] * stride + lane;
    P::store(p, P::fma(acc, P::set(factor), P::load(p)));
  }
};

/// Sums of a row for each key of a block: where they belong, or apart until it is this block's turn.
template <class P>
struct KeySums {
  using S = typename P::Scalar;
  MutView<S> of_all;
  S* apart = nullptr;  // keys x whole vectors, of all panels; null: at once
  S factor = S(1);

  Index width() const { return padded<P>(of_all.cols); }
  /// += a b, a with a row for each of the keys [k0, k0 + nk).
  void add(const Index* list, Index k0, Index nk, Index inner, const S* a, Index lda, const S* b, Index ldb) const {
    const Index features = width() / P::lanes;
    if (apart)
      product<P, Transposed::none>(nk, features, inner, a, lda, b, ldb,
                                   StoreOrAdd<P>{apart + k0 * width(), width(), true});
    else
      product<P, Transposed::none>(nk, features, inner, a, lda, b, ldb,
                                   AddToListed<P>{of_all.data, list + k0, of_all.stride, factor});
  }
  void deliver(const Index* list, Index keys) const {
    for (Index j = 0; apart && j < keys; ++j)
      for_lanes<P>(of_all.cols, [&](auto policy, Index c) {
        using L = decltype(policy);
        S* p = of_all.row(list[j]) + c;
        L::store(p, L::fma(L::load(apart + j * width() + c), L::set(factor), L::load(p)));
      });
  }
};

/// Whether a plan asks nothing that hangs on scores besides. finite: everything that is read.
template <class S, class Mods, int M>
bool pulls_listed(const BackwardPlan<S, Mods, M>& plan, bool finite) {
  if (Mods::per_pair || Mods::tables || !finite || plan.relevance.c) return false;
  for (const auto& moment : plan.moments)
    if (moment.sum) return false;
  for (const auto& map : plan.maps)
    if (map.dbias || map.scores.by_pair()) return false;
  return !Mods::collects_gradient || !plan.maps[0].scores.mods->wants_gradient();
}

/// The gradients of panels of queries [q0, q0 + nq) of a block, one after the other: plan has the rows of its queries, and
/// keys as the head has them. dq is set; dk and dv are added to, of several panels the sum, at_once of one alone.
template <class P, int M, class Mods>
class PullListed {
 public:
  using S = typename P::Scalar;
  using Blocks = SmoothBlocks<P>;
  static constexpr Index width = Blocks::panel;

  PullListed(Arena& arena, const BackwardPlan<S, Mods, M>& plan, bool at_once)
      : plan_(plan), list_(plan.maps[0].scores.block->k), keys_(plan.maps[0].scores.m()) {
    const auto sums = [&](MutView<S> of_all, S factor) {
      KeySums<P> to{of_all, nullptr, factor};
      if (!of_all.given() || (at_once && of_all.cols % P::lanes == 0)) return to;
      to.apart = arena.take<S>(keys_ * to.width());
      clear(to.apart, keys_ * to.width());
      return to;
    };
    for (int t = 0; t < M; ++t) {
      const auto& map = plan.maps[t];
      const Index d = map.scores.q.cols;
      qt_[t] = arena.take<S>(d * width), dqt_[t] = arena.take<S>(d * width);
      q_copy_[t] = arena.take<S>(padded<P>(d) * width);
      weights_[t] = arena.take<S>(Blocks::keys * width), ds_[t] = arena.take<S>(Blocks::keys * width);
      top_[t] = arena.take<S>(width), factor_[t] = arena.take<S>(width), delta_[t] = arena.take<S>(width);
      dk_[t] = sums(map.dk, map.scores.scale);
    }
    left_t_ = arena.take<S>(plan.left.cols * width);
    x_copy_ = arena.take<S>(padded<P>(plan.x.cols) * width);
    bias_ = arena.take<S>(Blocks::keys), scale_ = arena.take<S>(width);
    dv_ = sums(plan.dv, S(1));
  }

  void run(Index q0, Index nq) {
    q0_ = q0, nq_ = nq, vectors_ = (nq + P::lanes - 1) / P::lanes;
    load();
    const Interval seen = plan_.maps[0].scores.key_range(q0, q0 + nq);  // of the block's keys by this panel
    for (Index k0 = seen.begin; k0 < seen.end; k0 += Blocks::keys) add_keys(k0, std::min(Blocks::keys, seen.end - k0));
    for (int t = 0; t < M; ++t) {
      const auto& map = plan_.maps[t];
      std::fill(scale_, scale_ + width, map.scores.scale);
      if (map.dq.given()) transpose_out<P>(dqt_[t], width, scale_, map.dq.block(q0, 0, nq, map.dq.cols));
    }
  }
  /// What is not yet where it belongs.
  void deliver_keys() const {
    for (const auto& dk : dk_) dk.deliver(list_, keys_);
    dv_.deliver(list_, keys_);
  }

 private:
  void load() {
    for (int t = 0; t < M; ++t) {
      const auto& map = plan_.maps[t];
      const View<S> q = map.scores.q.block(q0_, 0, nq_, map.scores.q.cols);
      transpose_into<P>(q, qt_[t], width);
      padded_rows<P>(q, q_copy_[t], q_[t], q_stride_[t]);
      clear(dqt_[t], q.cols * width);
      for (Index l = 0; l < width; ++l) {  // padding lanes weigh nothing
        const Index i = q0_ + l;
        factor_[t][l] = delta_[t][l] = S(0), top_[t][l] = -minus_infinity<S>();
        if (l >= nq_) continue;
        const S constant = map.scores.row_constant(i, q0_), weight = map.weight ? map.weight[i] : S(1);
        if constexpr (are_normalised<Mods>) {
          top_[t][l] = map.lse.top[i] + constant, factor_[t][l] = weight * map.lse.inverse[i];
          delta_[t][l] = map.delta[i];
        } else {
          top_[t][l] = constant, factor_[t][l] = weight;
        }
      }
    }
    transpose_into<P>(plan_.left.block(q0_, 0, nq_, plan_.left.cols), left_t_, width);
    if (plan_.dv.given()) padded_rows<P>(plan_.x.block(q0_, 0, nq_, plan_.x.cols), x_copy_, x_, x_stride_);
  }

  void add_keys(Index k0, Index nk) {
    const Index* list = list_ + k0;
    for (int t = 0; t < M; ++t) make_weights(plan_.maps[t], t, k0, nk);
    StoreLaneGradients<P, M, WeightOf<Mods>> store;
    store.ld = width, store.function = plan_.maps[0].scores.weight;
    for (int t = 0; t < M; ++t) store.weights[t] = weights_[t], store.ds[t] = ds_[t], store.delta[t] = delta_[t];
    const View<S>& right = plan_.right;
    product<P, Transposed::none>(nk, vectors_, right.cols, right.data, RowList{list, right.stride}, left_t_, width,
                                 store);
    for (int t = 0; t < M; ++t) {
      const auto& map = plan_.maps[t];
      const View<S>& k = map.scores.k;
      if (map.dk.given()) dk_[t].add(list_, k0, nk, nq_, ds_[t], width, q_[t], q_stride_[t]);
      if (map.dq.given())
        product<P, Transposed::a>(k.cols, vectors_, nk, k.data, RowList{list, k.stride}, ds_[t], width,
                                  Accumulate<P>{dqt_[t], width});
    }
    if (plan_.dv.given()) dv_.add(list_, k0, nk, nq_, weights_[0], width, x_, x_stride_);
  }

  void make_weights(const BackwardMap<S, Mods>& map, int t, Index k0, Index nk) {
    const auto& scores = map.scores;
    const View<S>& k = scores.k;
    const Tile<S> tile{weights_[t], width, q0_, nq_, k0, nk};
    const RowList keys{list_ + k0, k.stride};
    scores.key_bias(q0_, k0, nk, bias_);
    if constexpr (are_normalised<Mods>) {
      product<P, Transposed::none>(nk, vectors_, k.cols, k.data, keys, qt_[t], width,
                                   StoreLaneWeights<P>{tile.data, width, scores.scale, bias_, top_[t], factor_[t]});
    } else {
      product<P, Transposed::none>(nk, vectors_, k.cols, k.data, keys, qt_[t], width,
                                   StoreScores<P>{tile.data, width, scores.scale, bias_});
      weights_from_scores<P>(scores.weight, tile.data, width, nk, vectors_, top_[t]);
      for (Index j = 0; j < nk; ++j)
        for (Index l = 0; l < vectors_ * P::lanes; l += P::lanes) {
          S* p = tile.data + j * width + l;
          P::store(p, P::load(p) * P::load(factor_[t] + l));
        }
    }
    drop_keys<P, false>(scores, bias_, tile, S(0));
    mask_tile<P, false>(scores, tile, S(0));
  }

  const BackwardPlan<S, Mods, M>& plan_;
  const Index* list_;
  const Index keys_;
  Index q0_ = 0, nq_ = 0, vectors_ = 0;
  S *qt_[M], *dqt_[M], *q_copy_[M], *weights_[M], *ds_[M], *top_[M], *factor_[M], *delta_[M];
  S *left_t_, *x_copy_, *bias_, *scale_;
  const S *q_[M], *x_ = nullptr;
  Index q_stride_[M], x_stride_ = 0;
  std::array<KeySums<P>, M> dk_;
  KeySums<P> dv_;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
