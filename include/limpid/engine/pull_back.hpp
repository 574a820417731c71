// limpid: the sweep `pull_back`, the vector-Jacobian product of one or two maps: dS from dA given as a thin product,
// then dQ, dK, dV and what hangs on scores, the log-sum-exp known.
//
// FlashAttention-2's backward (Dao 2023, arXiv 2307.08691) with lanes along keys: key blocks outside, the transposed
// key and value panels are made once a block, queries are read where they lie and broadcast. dK and dV of a block stay
// in cache. A task is a block of keys and a stretch of queries. Tasks add to dQ, and stretches to dK and dV, in an
// order that the shape fixes: each waits for the one before it, so the bits do not depend on who ran what.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <optional>

#include "../core/context.hpp"
#include "backward_plan.hpp"
#include "gather.hpp"
#include "guard.hpp"
#include "pull_cut.hpp"
#include "pull_lines.hpp"
#include "pull_listed.hpp"
#include "weights_tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// dS of each map from dA, softmax: P (dA - delta), P weighted; zero where P is, as dA may have overflowed there.
template <class P, int M, bool Keep, class Weight>
struct StoreGradients {
  using S = typename P::Scalar;
  Index ld;
  const S* weights[M];
  S* ds[M];
  const S* delta[M];
  S *total, *da;
  Weight function;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    const Index at = r * ld + lane;
    const typename P::V zero = P::set(S(0)), sum = P::load(weights[0] + at);
    P::store(ds[0] + at, P::if_equal(sum, zero, zero, gradient(0, r, sum, acc)));
    if constexpr (M == 2) {
      const typename P::V second = P::load(weights[1] + at);
      P::store(ds[1] + at, P::if_equal(second, zero, zero, gradient(1, r, second, acc)));
      P::store(total + at, sum + second);
    }
    if constexpr (Keep) P::store(da + at, acc);
  }
  LIMPID_INLINE typename P::V gradient(int t, Index r, const typename P::V& w, const typename P::V& acc) const {
    if constexpr (Weight::normalised)
      return weight_gradient<P>(function, w, acc, P::set(delta[t][r]));
    else
      return weight_gradient<P>(function, w, acc, acc);
  }
};

/// In what order the tasks of a pull_back add to what they share: to dQ of a block of queries, and to what all have.
template <class P, class S, class Mods>
class PullOrders {
 public:
  struct Queries {
    Order order;
    Index first;  // task
  };

  PullOrders(Arena& arena, const PullCut<P>& cut, const Scores<S, Mods>& scores)
      : tasks(arena, cut, scores), queries_(arena.take<Queries>(cut.query_blocks)), all_(arena.take<Order>(1)) {
    for (Index i = 0; i < cut.query_blocks; ++i)
      queries_[i].order.next = queries_[i].first = tasks.next_that_sees(i, -1);
    all_->next = 0;
  }
  Queries& of_queries(Index block) const { return queries_[block]; }
  Order& of_all() const { return *all_; }

  const PullTaskList<P, S, Mods> tasks;

 private:
  Queries* queries_;
  Order* all_;
};

/// What the tasks of a pull_back share.
template <class P, int M, class Mods>
struct PullShared {
  using S = typename P::Scalar;
  const BackwardPlan<S, Mods, M>& plan;
  const PullCut<P>& cut;
  const PullOrders<P, S, Mods>& orders;
  std::array<MutView<S>, M> dq;  // sums, in whole vectors
  S* collected;
  Index gradient_size;
};

/// dQ of a block of queries whose sums are complete.
template <class P, int M, class Mods>
void deliver_queries(const PullShared<P, M, Mods>& shared, int t, Interval block) {
  using S = typename P::Scalar;
  const auto& map = shared.plan.maps[t];
  const Index count = block.end - block.begin, d = map.dq.cols;
  if (!map.dq.given()) return;
  copy_or_add_scaled<P>(View<S>(shared.dq[t]).block(block.begin, 0, count, d), map.scores.scale,
                        map.dq.block(block.begin, 0, count, d), shared.plan.accumulate_q);
}

/// A worker's tasks of a pull_back, with the scratch that they use one after the other.
template <class P, int M, class Mods>
class PullTasks {
 public:
  using S = typename P::Scalar;
  using Blocks = PullBlocks<P>;
  using Shared = PullShared<P, M, Mods>;
  static constexpr Index ld = Blocks::keys, rows = Blocks::queries;

  PullTasks(const Context& context, const Shared& shared, Arena& arena)
      : context_(context), shared_(shared), plan_(shared.plan), w_(plan_.dv.given() ? plan_.x.cols : 0), row_(arena) {
    Index width = plan_.left.cols;  // of what is read for a query
    for (const auto& map : plan_.maps) width += 2 * map.scores.q.cols;
    far_ = plan_.left.rows * width * static_cast<Index>(sizeof(S)) > 2 * l2_bytes;
    const auto take_tile = [&] { return arena.take<S>(rows * ld); };
    right_t_ = arena.take<S>(plan_.right.cols * ld);
    for (int t = 0; t < M; ++t) {
      const auto& map = plan_.maps[t];
      const Index d = padded<P>(map.scores.k.cols);
      keys_[t].emplace(arena, map.scores.k.cols);
      weights_[t] = take_tile();
      ds_[t] = M == 1 ? take_tile() : weights_[t];
      raw_[t] = Mods::per_pair ? take_tile() : nullptr;
      dk_[t] = arena.take<S>(d * ld);
      q_copy_[t] = arena.take<S>(d * rows);
      keys_off_[t] = map.scores.by_pair() ? arena.take<S>(d * ld) : nullptr;
      dbias_[t] = map.dbias ? arena.take<S>(ld) : nullptr;
    }
    total_ = M == 1 ? weights_[0] : take_tile();
    emits_ = plan_.relevance.c != nullptr;
    da_ = emits_ ? take_tile() : nullptr;
    emitted_ = emits_ ? arena.take<S>(plan_.relevance.rows * ld) : nullptr;
    dv_ = arena.take<S>(padded<P>(w_) * ld);
    x_copy_ = arena.take<S>(padded<P>(w_) * rows);
    if (plan_.maps[0].scores.near_alone()) {
      near_pairs_.places = arena.take<Index>(rows * ld);
      near_ds_ = arena.take<S>(rows * ld);
      row_.near = &near_pairs_;
      taken_ = arena.take<S>(ld);
    }
    for (std::size_t p = 0; p < 2; ++p) {
      if (!plan_.moments[p].sum) continue;
      tallies_ = true;
      if (plan_.moments[p].part.cols == 0) {
        moment_keys_[p] = arena.take<S>(plan_.moments[p].k.cols * ld);
      } else if (!distances_) {
        distances_ = take_tile(), no_bias_ = arena.take<S>(ld);
        clear(no_bias_, ld);
      }
    }
    collected_ = arena.take<S>(shared.gradient_size);
    collects_ = Mods::collects_gradient && plan_.maps[0].scores.mods->wants_gradient();
    tallies_ = tallies_ || (collects_ && shared.gradient_size > 0);
  }
  PullTasks(const PullTasks&) = delete;
  PullTasks& operator=(const PullTasks&) = delete;

  void run(Index task) {
    const auto& cut = shared_.cut;
    const auto& tasks = shared_.orders.tasks;
    const auto& it = tasks[task];
    const Interval keys = cut.keys(it.keys), blocks = cut.blocks(it.stretch);
    task_ = task, k0_ = keys.begin, nk_ = keys.end - k0_;
    if (loaded_ != it.keys) load_keys(), loaded_ = it.keys;
    clear_sums();
    // From the last queries on: under a causal mask, or of a window, the next block of keys begins with others.
    for (Index i = blocks.end; i-- > blocks.begin;)
      if (tasks.sees(i, it.keys)) add_queries(i, i > blocks.begin ? i - 1 : blocks.end - 1);
    context_.in_order(tasks.of_keys(it.keys), task, it.next, [&] { deliver_keys(it.first); });
    if (tallies_) context_.in_order(shared_.orders.of_all(), task, task + 1, [&] { deliver_tallies(); });
  }

 private:
  Index vectors() const { return (nk_ + P::lanes - 1) / P::lanes; }

  /// The panels of a block of keys.
  void load_keys() {
    for (int t = 0; t < M; ++t) {
      const auto& map = plan_.maps[t];
      keys_[t]->load(map.scores, k0_, nk_);
      if (keys_off_[t])
        rows_taken_off<P>(map.scores.parts, map.scores.k.row(k0_), map.scores.k.stride, nk_, map.scores.k.cols,
                          keys_off_[t]);
    }
    transpose_into<P>(plan_.right.block(k0_, 0, nk_, plan_.right.cols), right_t_, ld);
    for (std::size_t p = 0; p < 2; ++p)
      if (const View<S>& k = plan_.moments[p].k; moment_keys_[p])
        transpose_into<P>(k.block(k0_, 0, nk_, k.cols), moment_keys_[p], ld);
  }

  void clear_sums() {
    gathered_ = false;
    for (int t = 0; t < M; ++t) {
      if (plan_.maps[t].scores.by_pair()) clear_dk(t);
      if (dbias_[t]) clear(dbias_[t], nk_);
    }
    if (taken_) clear(taken_, ld);
    if (emits_) clear(emitted_, plan_.relevance.rows * ld);
    if (tallies_) clear(collected_, shared_.gradient_size), moments_ = {};
  }

  void clear_dk(int t) { clear(dk_[t], padded<P>(plan_.maps[t].scores.k.cols) * ld); }

  /// A tile: weights, gradients of scores, what hangs on them, then the products; dQ when it is this block's turn.
  void add_queries(Index i, Index after) {
    const Interval block = shared_.cut.queries(i);
    const Interval seen = queries_that_see(plan_.maps[0].scores, block.begin, block.end, k0_, k0_ + nk_);
    const Index q0 = seen.begin, nq = seen.end - q0;
    if (nq > 0) {
      after_ = shared_.cut.queries(after).begin;
      make_weights(q0, nq);
      if (emits_) {
        make_gradients<true>(q0, nq);
        RelevanceRequest<S> own = plan_.relevance;
        own.c = emitted_, own.c_stride = ld;
        const Tile<S> tile{total_, ld, q0, nq, 0, nk_};
        if (own.rows == 1)
          add_relevance<P>(tile, total_, da_, own);
        else
          add_relevance_parts<P>(tile, total_, da_, own);
      } else {
        make_gradients<false>(q0, nq);
      }
      for (int t = 0; t < M; ++t) {
        side_outputs(t, q0, nq);
        add_to_keys(t, q0, nq);
      }
      if (w_ > 0) add_to_values(q0, nq);
      gathered_ = true;
    }
    auto& of_queries = shared_.orders.of_queries(i);
    const Index then = shared_.orders.tasks.next_that_sees(i, task_);
    context_.in_order(of_queries.order, task_, then, [&] {
      for (int t = 0; t < M; ++t) {
        const MutView<S>& dq = shared_.dq[t];
        if (of_queries.first == task_)
          for (Index r = block.begin; r < block.end && dq.given(); ++r) clear(dq.row(r), dq.cols);
        if (nq > 0) add_to_queries(t, q0, nq);
        if (then == shared_.orders.tasks.count()) deliver_queries(shared_, t, block);
      }
    });
  }

  NextRows<P> next(View<S> v) const { return far_ ? NextRows<P>{v.row(after_), v.stride} : NextRows<P>::none(total_); }

  void make_weights(Index q0, Index nq) {
    for (int t = 0; t < M; ++t) {
      const auto& map = plan_.maps[t];
      const Tile<S> tile{weights_[t], ld, q0, nq, k0_, nk_};
      weights_tile<P>(map.scores, map.lse, map.weight, tile, keys_[t]->transposed, row_, raw_[t], next(map.scores.q));
    }
  }

  template <bool Keep>
  void make_gradients(Index q0, Index nq) {
    StoreGradients<P, M, Keep, WeightOf<Mods>> store;
    store.ld = ld, store.total = total_, store.da = da_, store.function = plan_.maps[0].scores.weight;
    for (int t = 0; t < M; ++t) {
      const S* delta = plan_.maps[t].delta;
      store.weights[t] = weights_[t], store.ds[t] = ds_[t], store.delta[t] = delta ? delta + q0 : nullptr;
    }
    product<P, Transposed::none>(nq, vectors(), plan_.left.cols, plan_.left.row(q0), plan_.left.stride, right_t_, ld,
                                 prefetching(next(plan_.left), store));
  }

  /// The derivatives of modifiers, bandwidths' gradients, the key bias.
  void side_outputs(int t, Index q0, Index nq) {
    const auto& map = plan_.maps[t];
    if (Mods::per_pair || collects_) {
      const auto& mods = *map.scores.mods;
      At a = map.scores.place(q0, k0_);
      for (Index i = 0; i < nq; ++i) {
        a.q = q0 + i;
        for (Index j = 0; j < nk_; ++j) {
          a.k = k0_ + j;
          if constexpr (are_gathered<Mods>) a = map.scores.place(q0 + i, k0_ + j);
          S& g = ds_[t][i * ld + j];
          if (g == S(0)) continue;  // masked, perhaps: no derivative is asked of a score that was none
          g = mods.pull(Mods::per_pair ? raw_[t][i * ld + j] : S(0), g, a, collected_);
        }
      }
    }
    const Tile<S> of_ds{ds_[t], ld, q0, nq, k0_, nk_};
    if constexpr (are_distances<Mods> && M == 1)
      for (std::size_t p = 0; p < 2; ++p) {
        const auto& moment = plan_.moments[p];
        if (moment_keys_[p]) {
          moments_[p] += moment_of_tile<P>(of_ds, moment.q, moment_keys_[p]);
        } else if (moment.sum) {
          const View<S> q = map.scores.q;
          tile_by_pair<P, true>(map.scores, {moment.part}, {distances_, ld, q0, nq, k0_, nk_}, vectors(), q.row(q0),
                                q.stride, keys_[t]->transposed, no_bias_);
          moments_[p] += moment_of_distances<P>(of_ds, distances_);
        }
      }
    if (dbias_[t])
      for (Index i = 0; i < nq; ++i) add_row<P>(ds_[t] + i * ld, dbias_[t], nk_);
  }

  /// dK += dS^T Q.
  void add_to_keys(int t, Index q0, Index nq) {
    const auto& map = plan_.maps[t];
    const Index d = map.scores.k.cols, wide = padded<P>(d), features = wide / P::lanes;
    if constexpr (are_distances<Mods> && M == 1)
      if (taken_) {
        const Tile<S> of_ds{ds_[t], ld, q0, nq, k0_, nk_};
        take_near_pairs(near_pairs_, of_ds, near_ds_);
        pull_near_pairs<P>(map.scores, near_pairs_, of_ds, near_ds_, nullptr, 0, map.dk.given() ? dk_[t] : nullptr,
                           wide);
        for (Index i = 0; i < nq; ++i) add_row<P>(ds_[t] + i * ld, taken_, nk_);
      }
    if (!map.dk.given()) return;
    const S* q_rows;
    Index q_stride;
    padded_rows<P>(map.scores.q.block(q0, 0, nq, d), q_copy_[t], q_rows, q_stride);
    if (!map.scores.by_pair()) {
      product<P, Transposed::a>(nk_, features, nq, ds_[t], ld, q_rows, q_stride,
                                StoreOrAdd<P>{dk_[t], wide, gathered_});
    } else if constexpr (are_distances<Mods>) {
      add_differences<P, Transposed::a>(map.scores.parts, nk_, features, nq, ds_[t], ld, q_rows, q_stride, keys_off_[t],
                                        wide, dk_[t], wide);
    }
  }

  /// dV += A^T x.
  void add_to_values(Index q0, Index nq) {
    const S* x_rows;
    Index x_stride;
    padded_rows<P>(plan_.x.block(q0, 0, nq, w_), x_copy_, x_rows, x_stride);
    product<P, Transposed::a>(nk_, padded<P>(w_) / P::lanes, nq, total_, ld, x_rows, x_stride,
                              StoreOrAdd<P>{dv_, padded<P>(w_), gathered_});
  }

  /// dQ += dS K.
  void add_to_queries(int t, Index q0, Index nq) {
    const auto& map = plan_.maps[t];
    const MutView<S>& dq = shared_.dq[t];
    const Index d = map.scores.k.cols, wide = padded<P>(d), features = wide / P::lanes;
    if (!dq.given()) return;
    if constexpr (are_distances<Mods> && M == 1)
      if (taken_) {
        pull_near_pairs<P>(map.scores, near_pairs_, {ds_[t], ld, q0, nq, k0_, nk_}, near_ds_, dq.row(q0), dq.stride,
                           nullptr, 0);
        for (Index i = 0; i < nq; ++i)
          take_off_middle<P>(map.scores.parts, row_sum<P>(ds_[t] + i * ld, nk_), map.scores.q.row(q0 + i),
                             dq.row(q0 + i));
      }
    if (!map.scores.by_pair()) {
      product<P, Transposed::none>(nq, features, nk_, ds_[t], ld, keys_[t]->rows, keys_[t]->stride,
                                   prefetching(next(dq), Accumulate<P>{dq.row(q0), dq.stride}));
    } else if constexpr (are_distances<Mods>) {
      rows_taken_off<P>(map.scores.parts, map.scores.q.row(q0), map.scores.q.stride, nq, d, q_copy_[t]);
      add_differences<P, Transposed::none>(map.scores.parts, nq, features, nk_, ds_[t], ld, keys_[t]->rows,
                                           keys_[t]->stride, q_copy_[t], wide, dq.row(q0), dq.stride);
    }
  }

  /// What a block of keys has gathered; the first stretch overwrites where the caller does not ask for a sum.
  void deliver_keys(bool first) {
    if (!gathered_) {
      for (int t = 0; t < M; ++t) clear_dk(t);
      clear(dv_, padded<P>(w_) * ld);
    }
    for (int t = 0; t < M; ++t) {
      const auto& map = plan_.maps[t];
      if (dbias_[t]) copy_or_add<S>({dbias_[t], 1, nk_, nk_}, {map.dbias + k0_, 1, nk_, nk_}, !first);
      if (!map.dk.given()) continue;
      const Index d = map.scores.k.cols, wide = padded<P>(d);
      if constexpr (are_distances<Mods>)
        if (taken_)
          for (Index j = 0; j < nk_; ++j)
            take_off_middle<P>(map.scores.parts, taken_[j], map.scores.k.row(k0_ + j), dk_[t] + j * wide);
      copy_or_add_scaled<P>(View<S>(dk_[t], nk_, d, wide), map.scores.scale, map.dk.block(k0_, 0, nk_, d),
                            plan_.accumulate_k || !first);
    }
    if (w_ > 0)
      copy_or_add_scaled<P>(View<S>(dv_, nk_, w_, padded<P>(w_)), S(1), plan_.dv.block(k0_, 0, nk_, w_),
                            plan_.accumulate_v || !first);
    if (emits_)
      copy_or_add<S>({emitted_, plan_.relevance.rows, nk_, ld},
                     {plan_.relevance.c + k0_, plan_.relevance.rows, nk_, plan_.relevance.c_stride}, !first);
  }

  void deliver_tallies() {
    for (std::size_t p = 0; p < 2; ++p)
      if (plan_.moments[p].sum) *plan_.moments[p].sum += moments_[p];
    if (collects_) add_row<P>(collected_, shared_.collected, shared_.gradient_size);
  }

  const Context& context_;
  const Shared& shared_;
  const BackwardPlan<S, Mods, M>& plan_;
  const Index w_;
  bool far_ = false, emits_ = false, collects_ = false, tallies_ = false;
  bool gathered_ = false;  // something for the block of keys: dk_ and dv_ hold sums
  Index loaded_ = -1, task_ = 0, k0_ = 0, nk_ = 0, after_ = 0;
  Few<std::optional<KeyPanel<P>>, M> keys_;
  S *right_t_, *weights_[M], *ds_[M], *raw_[M], *dk_[M], *q_copy_[M], *keys_off_[M], *dbias_[M];
  S *total_, *da_, *emitted_, *dv_, *x_copy_, *collected_;
  S *near_ds_ = nullptr, *taken_ = nullptr;  // of near pairs, and sums over the others' of a key
  TileRows<P> row_;
  NearPairs near_pairs_ = {};
  std::array<S*, 2> moment_keys_ = {};
  std::array<Accumulator<S>, 2> moments_ = {};
  S *distances_ = nullptr, *no_bias_ = nullptr;
};

/// Of a sink, whose value is 0: - sum_i A_i,sink delta_i of every map. Rows without keys give it nothing.
template <class S, int M, class Mods>
void add_sink_gradients(const BackwardPlan<S, Mods, M>& plan, S* collected) {
  using std::exp;
  Accumulator<S> sum = 0;
  for (const auto& map : plan.maps)
    for (Index i = 0; i < map.scores.n(); ++i) {
      if (map.lse.top[i] == -minus_infinity<S>()) continue;
      const S below = map.scores.sink(i, i) - (map.lse.top[i] + map.scores.row_constant(i, i));
      const S weight = exp(below) * map.lse.inverse[i] * (map.weight ? map.weight[i] : S(1));
      sum -= Accumulator<S>(weight) * Accumulator<S>(map.delta[i]);
    }
  const auto& scores = plan.maps[0].scores;
  scores.mods->add_sink_gradient(scores.head(), S(sum), collected);
}

template <class P, int M, class Mods>
void pull_back_any(const Context& context, BackwardPlan<typename P::Scalar, Mods, M> plan,
                   typename P::Scalar* collected) {
  using S = typename P::Scalar;
  Arena& arena = context.arena();
  ArenaScope scope(arena);
  const Index n = plan.left.rows;
  const PullCut<P> cut(plan.maps[0].scores);
  Few<Scores<S, Mods>*, M> maps;
  for (std::size_t t = 0; t < M; ++t) maps[t] = &plan.maps[t].scores;
  const Guard<P, Mods, M> guard(context, maps,
                                {.right = &plan.right, .left = &plan.left, .x = plan.dv.given() ? &plan.x : nullptr});
  const bool one_array = plan.x.data == plan.left.data && plan.x.cols == plan.left.cols;
  plan.left = pack_if_strided(context, plan.left, cut.key_blocks);
  if (plan.dv.given()) plan.x = one_array ? plan.left : pack_if_strided(context, plan.x, cut.key_blocks);
  for (auto& map : plan.maps) map.scores.q = pack_if_strided(context, map.scores.q, cut.key_blocks);

  const PullOrders<P, S, Mods> orders(arena, cut, plan.maps[0].scores);
  PullShared<P, M, Mods> shared{plan, cut, orders, {}, collected, plan.maps[0].scores.gradient_size()};
  for (int t = 0; t < M; ++t) {
    const MutView<S>& dq = plan.maps[t].dq;
    if (!dq.given()) continue;
    // summed where it goes to if whole vectors fit there
    const bool in_place = !plan.accumulate_q && dq.cols % P::lanes == 0 && !rows_are_strided(dq, cut.key_blocks);
    shared.dq[t] = in_place ? dq : arena.matrix<S>(n, padded<P>(dq.cols));
  }
  for (Index i = 0; i < cut.query_blocks; ++i) {
    if (orders.of_queries(i).first < orders.tasks.count()) continue;
    const Interval block = cut.queries(i);  // that sees nothing
    for (int t = 0; t < M; ++t) {
      for (Index r = block.begin; r < block.end && shared.dq[t].given(); ++r)
        clear(shared.dq[t].row(r), shared.dq[t].cols);
      deliver_queries(shared, t, block);
    }
  }
  context.run(
      orders.tasks.count(), [&](Arena& own) { return PullTasks<P, M, Mods>(context, shared, own); },
      [](PullTasks<P, M, Mods>& tasks, Index t) { tasks.run(t); });
  if constexpr (Mods::sinks) add_sink_gradients(plan, collected);
  guard.poison(plan, collected);
}

template <class P, int M, class Mods>
void pull_back(const Context& context, const BackwardPlan<typename P::Scalar, Mods, M>& plan,
               typename P::Scalar* collected);

/// Blocks of gathered queries, keys where they lie. What blocks add to a key comes in their order, whoever ran them.
template <class P, int M, class Mods>
void pull_listed(const Context& context, const GatherPlan<P, Mods>& blocks,
                 const BackwardPlan<typename P::Scalar, Mods, M>& plan, Order& order) {
  using S = typename P::Scalar;
  constexpr Index width = SmoothBlocks<P>::panel;
  const auto packed = [&](View<S> rows) { return packed_for_windows(context, rows); };
  const View<S> right = packed(plan.right);
  std::array<View<S>, M> k;
  for (int t = 0; t < M; ++t) k[t] = packed(plan.maps[t].scores.k);
  const bool one_array = plan.x.data == plan.left.data && plan.x.cols == plan.left.cols, at_once = !context.spreads();
  for_gathered<P>(
      context, blocks, plan.maps[0].scores, [&](const auto& block, Index number, const Context& own_context) {
        Arena& arena = own_context.arena();
        BackwardPlan<S, Gathered<Mods>, M> own;
        for (int t = 0; t < M; ++t) {
          const auto& map = plan.maps[t];
          own.maps[t] = {
              block.of(map.scores, true),
              block.of_queries(map.lse),
              block.of_queries(map.delta),
              block.of_queries(map.weight),
              plan.accumulate_q && map.dq.given() ? arena.matrix<S>(block.queries(), map.dq.cols) : block.room(map.dq),
              map.dk,
              nullptr};
          own.maps[t].scores.k = k[t];
        }
        own.left = block.of_queries(plan.left), own.right = right;
        own.x = one_array ? own.left : block.of_queries(plan.x);
        own.dv = plan.dv;
        const Index n = block.queries();
        PullListed<P, M, Gathered<Mods>> panels(arena, own, at_once && n <= width);
        for (Index q0 = 0; q0 < n; q0 += width) panels.run(q0, std::min(width, n - q0));
        context.in_order(order, number, number + 1, [&] { panels.deliver_keys(); });
        for (int t = 0; t < M; ++t) {
          if (plan.accumulate_q)
            block.add_to_queries(own.maps[t].dq, plan.maps[t].dq);
          else
            block.deliver(own.maps[t].dq, plan.maps[t].dq);
        }
      });
}

/// What a block of gathered queries is asked of relevance, its sums in room of their own.
template <class S, class Block>
RelevanceRequest<S> relevance_of(const Block& block, const RelevanceRequest<S>& all, Arena& arena) {
  RelevanceRequest<S> own = all;
  if (!all.c) return own;
  own.w_stride = block.queries(), own.c_stride = block.keys();
  own.c = arena.take<S>(all.rows * block.keys());
  if (all.rows == 1) {
    own.w = block.of_queries(all.w);
    return own;
  }
  S* w = arena.take<S>(all.rows * block.queries());
  for (Index r = 0; r < all.rows; ++r) {
    const S* row = block.of_queries(all.w + r * all.w_stride);
    std::copy(row, row + block.queries(), w + r * own.w_stride);
  }
  own.w = w;
  return own;
}

template <class S, class Mods, int M>
bool wants_gradients(const BackwardPlan<S, Mods, M>& plan) {
  bool any = plan.dv.given();
  for (const auto& map : plan.maps) any = any || map.dq.given() || map.dk.given();
  return any;
}

template <class S>
bool same_rows(View<S> a, View<S> b) {
  return a.data == b.data && a.cols == b.cols;
}
/// Zeros for what keys receive, to which blocks add.
template <class S, class Mods, int M>
void clear_of_keys(const BackwardPlan<S, Mods, M>& plan) {
  const Index m = plan.maps[0].scores.m();
  for (const auto& map : plan.maps) {
    if (map.dk.given() && !plan.accumulate_k) map.dk.fill(S(0));
    if (map.dbias) clear(map.dbias, m);
  }
  if (plan.dv.given() && !plan.accumulate_v) plan.dv.fill(S(0));
  for (Index r = 0; plan.relevance.c && r < plan.relevance.rows; ++r)
    clear(plan.relevance.c + r * plan.relevance.c_stride, m);
}
/// Whether nothing that is read, where pairs may be masked, is anything but a number.
template <class P, int M, class Mods>
bool reads_finite(const Context& context, const BackwardPlan<typename P::Scalar, Mods, M>& plan) {
  if (keeps_whole_blocks(plan.maps[0].scores)) return true;
  bool finite = all_finite<P>(context, plan.left) && all_finite<P>(context, plan.right) &&
                (!plan.dv.given() || same_rows(plan.x, plan.left) || all_finite<P>(context, plan.x));
  for (const auto& map : plan.maps)
    finite = finite && all_finite<P>(context, map.scores.q) && all_finite<P>(context, map.scores.k);
  return finite;
}

/// A block's part of a plan: the rows of its queries and keys, and room for their gradients, but in place where its keys
/// lie together and no other block has them.
template <class P, int M, class Mods, class Block>
class GatheredPart {
 public:
  using S = typename P::Scalar;
  using Plan = BackwardPlan<S, Mods, M>;

  GatheredPart(Arena& arena, const Plan& plan, const Block& block, bool finite)
      : all_(plan), block_(block), in_place_(blocks_own_keys<Mods>() && block.keys_together()) {
    const Index first_key = in_place_ ? block.key_rows()[0] : 0;
    const auto of_keys = [&](MutView<S> v) {
      if (!v.given()) return MutView<S>();
      return in_place_ ? v.block(first_key, 0, block.keys(), v.cols) : arena.matrix<S>(block.keys(), v.cols);
    };
    const auto numbers_of_keys = [&](S* v) -> S* {
      return !v ? nullptr : in_place_ ? v + first_key : arena.take<S>(block.keys());
    };
    for (int t = 0; t < M; ++t) {
      const auto& map = plan.maps[t];
      own_.maps[t] = {
          block.of(map.scores),
          block.of_queries(map.lse),
          block.of_queries(map.delta),
          block.of_queries(map.weight),
          plan.accumulate_q && map.dq.given() ? arena.matrix<S>(block.queries(), map.dq.cols) : block.room(map.dq),
          of_keys(map.dk),
          numbers_of_keys(map.dbias)};
      own_.maps[t].scores.unguarded = finite;
    }
    own_.left = block.of_queries(plan.left), own_.right = block.of_keys(plan.right);
    own_.x = same_rows(plan.x, plan.left) ? own_.left : block.of_queries(plan.x);
    own_.dv = of_keys(plan.dv);
    own_.accumulate_k = in_place_ && plan.accumulate_k, own_.accumulate_v = in_place_ && plan.accumulate_v;
    own_.relevance = relevance_of<S>(block, plan.relevance, arena);
    if (in_place_ && plan.relevance.c)
      own_.relevance.c = plan.relevance.c + first_key, own_.relevance.c_stride = plan.relevance.c_stride;
    for (std::size_t p = 0; p < 2; ++p)
      if (plan.moments[p].sum)
        own_.moments[p] = {block.of_queries(plan.moments[p].q), block.of_keys(plan.moments[p].k), &sums_[p],
                           block.of(plan.moments[p].part)};
  }
  GatheredPart(const GatheredPart&) = delete;
  GatheredPart& operator=(const GatheredPart&) = delete;

  const BackwardPlan<S, Gathered<Mods>, M>& plan() const { return own_; }
  void deliver_queries() const {
    for (int t = 0; t < M; ++t) {
      if (all_.accumulate_q)
        block_.add_to_queries(own_.maps[t].dq, all_.maps[t].dq);
      else
        block_.deliver(own_.maps[t].dq, all_.maps[t].dq);
    }
  }
  /// What keys receive from several blocks, in the blocks' order.
  void add_to_keys() const {
    for (int t = 0; t < M && !in_place_; ++t) {
      block_.add_to_keys(own_.maps[t].dk, all_.maps[t].dk);
      block_.add_to_keys(own_.maps[t].dbias, all_.maps[t].dbias);
    }
    if (!in_place_) block_.add_to_keys(own_.dv, all_.dv);
    for (Index r = 0; !in_place_ && all_.relevance.c && r < all_.relevance.rows; ++r)
      block_.add_to_keys(own_.relevance.c + r * own_.relevance.c_stride,
                         all_.relevance.c + r * all_.relevance.c_stride);
    for (std::size_t p = 0; p < 2; ++p)
      if (all_.moments[p].sum) *all_.moments[p].sum += sums_[p];
  }

 private:
  const Plan& all_;
  const Block& block_;
  bool in_place_;
  std::array<Accumulator<S>, 2> sums_ = {};
  BackwardPlan<S, Gathered<Mods>, M> own_;
};

/// The same block by block.
template <class P, int M, class Mods>
void pull_back_gathered(const Context& context, const BackwardPlan<typename P::Scalar, Mods, M>& plan,
                        typename P::Scalar* collected) {
  using S = typename P::Scalar;
  ArenaScope scope(context.arena());
  const auto& first = plan.maps[0].scores;
  if constexpr (goes_by_lines<P, Mods>() || !blocks_own_keys<Mods>())
    if (plan.relevance.c && wants_gradients(plan)) {
      auto gradients = plan, rest = plan;
      gradients.relevance = {};
      // Lines and listed keys are summed in another order than relevance has: each by itself keeps the bits.
      if (pulls_listed(gradients, true)) {
        pull_back_gathered<P, M>(context, gradients, collected);
        for (auto& map : rest.maps) map.dq = map.dk = {};
        rest.dv = {};
        S* unwanted = context.arena().template take<S>(first.gradient_size());
        clear(unwanted, first.gradient_size());
        return pull_back_gathered<P, M>(context, rest, unwanted);
      }
    }
  if constexpr (goes_by_lines<P, Mods>())
    if (pulls_listed(plan, true) && pull_lines<P, M>(context, plan)) {
      if constexpr (Mods::sinks) add_sink_gradients(plan, collected);
      return;
    }
  const GatherPlan<P, Mods> blocks(context.arena(), first);
  Order& order = *context.arena().template take<Order>(1);
  clear_of_keys(plan);
  const bool finite = reads_finite<P>(context, plan);
  constexpr bool own_keys = blocks_own_keys<Mods>();
  if (!own_keys && pulls_listed(plan, finite)) {
    pull_listed<P>(context, blocks, plan, order);
    if constexpr (Mods::sinks) add_sink_gradients(plan, collected);
    return;
  }
  const Index size = first.gradient_size();
  // what is summed over blocks besides keys' rows
  const bool sums_besides = plan.moments[0].sum || plan.moments[1].sum || size > 0;
  const auto sweep = [&](const auto& block, Index number, const Context& own_context) {
    Arena& arena = own_context.arena();
    const GatheredPart<P, M, Mods, std::remove_cvref_t<decltype(block)>> part(arena, plan, block, finite);
    S* own_sums = arena.template take<S>(size);
    clear(own_sums, size);
    pull_back<P, M>(own_context, part.plan(), own_sums);
    part.deliver_queries();
    const auto add = [&] {
      part.add_to_keys();
      add_row<P>(own_sums, collected, size);
    };
    if (own_keys && !sums_besides)
      add();
    else
      context.in_order(order, number, number + 1, add);
  };
  for_gathered<P>(context, blocks, first, sweep, own_keys && !sums_besides);
}

/// Gradients of one head from dA = left right^T (left n x r, right m x r):
///     dS_t = weight_t A_t o (dA - delta_t 1^T),  dQ_t = scale_t dS_t K_t,  dK_t = scale_t dS_t^T Q_t,
///     dbias_t = column sums of dS_t,  dV = (sum_t weight_t A_t)^T x.
/// Where a modifier changes values, dS is taken back through its derivative first. collected: gradient_size(n, m)
/// numbers, added to. 2 n m (sum_t 3 d_t + r + w) flop; scratch: one tile set a worker and one n x d where dq has no
/// room for whole vectors.
template <class P, int M, class Mods>
void pull_back(const Context& context, const BackwardPlan<typename P::Scalar, Mods, M>& plan,
               typename P::Scalar* collected) {
  if constexpr (Mods::gathers)
    pull_back_gathered<P, M, Mods>(context, plan, collected);
  else
    pull_back_any<P, M>(context, plan, collected);
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
