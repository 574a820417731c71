// limpid: sweeps over the pairs that count. A mask that keeps few of many pairs says block by block which; every sweep
// then works on the gathered rows of one block after the other, with the same code as on a whole head.
//
// A block has the rows of its queries and of all keys that one of them may see, so work and memory follow the pairs
// that are kept. Queries are in one block each; what keys receive is added in the order of the blocks.
// SPDX-License-Identifier: MIT
#pragma once

#include <numeric>

#include "backward_plan.hpp"
#include "many_rows.hpp"
#include "smooth_map.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// The blocks of a head.
template <class P, class Mods>
struct GatherPlan {
  using S = typename P::Scalar;
  At at;
  bool far = false;  // see reference_key.hpp
  Index blocks;
  Index* numbers;  // what the mask wants to remember of its blocks

  GatherPlan(Arena& arena, const Scores<S, Mods>& scores) : at(scores.place(0, 0)) {
    const auto& mask = scores.mods->leading();
    numbers = arena.take<Index>(mask.plan_size(at, panel_of<P>));
    blocks = mask.plan(at, panel_of<P>, numbers);
    if constexpr (Mods::tables) far = scores.mods->template far<S>(at).any();
  }
};

/// Whether every pair of a block is kept: then nothing is hidden from a query of it, and what is not finite shows by
/// itself, as it does without masks (Scores::can_mask()).
template <class S, class Mods>
bool keeps_whole_blocks(const Scores<S, Mods>& scores) {
  using Leading = std::remove_cvref_t<decltype(scores.mods->leading())>;
  return Leading::whole_blocks && !Mods::irregular_besides && !Mods::intervals && !Mods::per_pair && !Mods::per_key &&
         scores.bias == nullptr;
}

/// Rows of a list, one below the other; where they stand so already, as they are.
template <class S>
View<S> gathered_rows(Arena& arena, View<S> from, const Index* list, Index count) {
  if (count == 0) return {from.data, 0, from.cols, from.stride};
  if (list[count - 1] - list[0] == count - 1 && std::is_sorted(list, list + count))
    return from.block(list[0], 0, count, from.cols);
  const MutView<S> to = arena.matrix<S>(count, from.cols);
  for (Index i = 0; i < count; ++i) copy_row<Native<S>>(from.row(list[i]), to.row(i), from.cols);
  return to;
}
template <class S>
const S* gathered_numbers(Arena& arena, const S* from, const Index* list, Index count, Index behind = 0) {
  if (from == nullptr) return nullptr;
  S* to = arena.take<S>(count + behind);
  for (Index i = 0; i < count; ++i) to[i] = from[list[i]];
  std::fill(to + count, to + count + behind, S(0));
  return to;
}

/// The rows of a head whose keys a window reads several times: side by side where they lie among those of other heads
/// and are more than L2 keeps.
template <class S>
View<S> packed_for_windows(const Context& context, View<S> rows) {
  const Index pitch = rows.stride * static_cast<Index>(sizeof(S));
  if (rows.stride == rows.cols || rows.rows * pitch <= StridedRows::memory) return rows;
  const MutView<S> copied = context.arena().matrix<S>(rows.rows, rows.cols);
  copy_rows<S>(context, rows, copied);
  return copied;
}

/// One block of pairs.
template <class P, class Mods>
class GatheredBlock {
 public:
  using S = typename P::Scalar;
  using Own = Gathered<Mods>;

  GatheredBlock(Arena& arena, const GatherPlan<P, Mods>& plan, const Scores<S, Mods>& scores, Index number)
      : arena_(arena), at_(plan.at) {
    const auto& mask = scores.mods->leading();
    block_ = mask.template block<S>(at_, panel_of<P>, plan.numbers, number);
    // one more, as the place of a row is that of a pair where there is no key
    block_.q = arena.take<Index>(block_.queries + 1), block_.k = arena.take<Index>(block_.keys + 1);
    block_.q[block_.queries] = block_.first_q, block_.k[block_.keys] = block_.first_k;
    for (std::size_t a = 0; a < std::size_t(block_.axes); ++a) {
      block_.lo[a] = arena.take<S>(block_.queries), block_.hi[a] = arena.take<S>(block_.queries);
      block_.at[a] = arena.take<S>(block_.keys);
    }
    mask.template fill<S>(at_, panel_of<P>, plan.numbers, number, block_);
    block_.far = plan.far;
    if (block_.n < 0) return;
    at_.rows = at_.n, at_.keys = at_.m;
    at_.n = block_.n, at_.m = block_.m, at_.first_q = block_.first_q, at_.first_k = block_.first_k;
  }
  GatheredBlock(const GatheredBlock&) = delete;
  GatheredBlock& operator=(const GatheredBlock&) = delete;

  Index queries() const { return block_.queries; }
  Index keys() const { return block_.keys; }
  /// Whether the keys are a run of rows.
  bool keys_together() const {
    return block_.keys > 0 && block_.k[block_.keys - 1] - block_.k[0] == block_.keys - 1 &&
           std::is_sorted(block_.k, block_.k + block_.keys);
  }
  const Index* query_rows() const { return block_.q; }
  const Index* key_rows() const { return block_.k; }

  /// What queries, or keys, have: rows, or a number each.
  View<S> of_queries(View<S> v) const { return gathered_rows(arena_, v, block_.q, block_.queries); }
  View<S> of_keys(View<S> v) const { return gathered_rows(arena_, v, block_.k, block_.keys); }
  const S* of_queries(const S* v) const { return gathered_numbers(arena_, v, block_.q, block_.queries); }
  const S* of_keys(const S* v) const { return gathered_numbers(arena_, v, block_.k, block_.keys); }
  Lse<const S> of_queries(const Lse<const S>& lse) const { return {of_queries(lse.top), of_queries(lse.inverse)}; }

  /// Scores of the rows, counted from 0. listed: keys are left where they lie.
  Scores<S, Own> of(const Scores<S, Mods>& from, bool listed = false) const {
    Scores<S, Own> own;
    own.q = of_queries(from.q), own.k = listed ? from.k : of_keys(from.k);
    own.unguarded = from.unguarded || keeps_whole_blocks(from), own.listed = listed;
    own.scale = from.scale, own.bias = of_keys(from.bias), own.mods = from.mods, own.at = at_;
    own.weight = from.weight, own.block = &block_;
    for (std::size_t p = 0; p < from.parts.size(); ++p) own.parts[p] = of(from.parts[p]);
    return own;
  }
  ScorePart<S> of(ScorePart<S> part) const {
    if (!part.near_alone()) return part;
    constexpr Index behind = ScorePart<S>::behind;
    part.half_q = gathered_numbers(arena_, part.half_q, block_.q, block_.queries, behind);
    part.half_k = gathered_numbers(arena_, part.half_k, block_.k, block_.keys, behind);
    part.q = of_queries(part.q), part.k = of_keys(part.k);
    return part;
  }

  /// Room for a result a query or key; rows that stand together get it where it belongs.
  MutView<S> room(MutView<S> of_all) const {
    if (!of_all.given()) return {};
    if (together()) return of_all.block(block_.q[0], 0, block_.queries, of_all.cols);
    return arena_.template matrix<S>(block_.queries, of_all.cols);
  }
  Lse<S> room(const Lse<S>& of_all) const {
    if (!of_all.given()) return {};
    return {arena_.template take<S>(block_.queries), arena_.template take<S>(block_.queries)};
  }
  void deliver(View<S> own, MutView<S> of_all) const {
    if (of_all.given() && !together())
      for (Index i = 0; i < block_.queries; ++i) copy_row<P>(own.row(i), of_all.row(block_.q[i]), own.cols);
  }
  void deliver(const Lse<S>& own, const Lse<S>& of_all) const {
    for (Index i = 0; own.given() && i < block_.queries; ++i)
      of_all.top[block_.q[i]] = own.top[i], of_all.inverse[block_.q[i]] = own.inverse[i];
  }
  void add_to_queries(View<S> own, MutView<S> of_all) const {
    for (Index i = 0; of_all.given() && i < block_.queries; ++i)
      add_row<P>(own.row(i), of_all.row(block_.q[i]), own.cols);
  }
  void add_to_keys(View<S> own, MutView<S> of_all) const {
    for (Index j = 0; of_all.given() && j < block_.keys; ++j) add_row<P>(own.row(j), of_all.row(block_.k[j]), own.cols);
  }
  void add_to_keys(const S* own, S* of_all) const {
    for (Index j = 0; of_all && j < block_.keys; ++j) of_all[block_.k[j]] += own[j];
  }

 private:
  /// Whether the queries are a run of rows.
  bool together() const {
    return block_.queries > 0 && block_.q[block_.queries - 1] - block_.q[0] == block_.queries - 1 &&
           std::is_sorted(block_.q, block_.q + block_.queries);
  }

  Arena& arena_;
  At at_;
  PairBlock<S> block_;
};

/// Scores of rows without columns: for the places of pairs alone.
template <class S, class Mods>
Scores<S, Mods> places_of(const typename ModifiersOf<Mods>::type& mods, const At& at) {
  Scores<S, Mods> places;
  places.q.rows = at.n, places.k.rows = at.m, places.mods = &mods, places.at = at;
  return places;
}

/// Whether a key is in one block alone.
template <class Mods>
constexpr bool blocks_own_keys() {
  return std::remove_cvref_t<decltype(std::declval<const typename ModifiersOf<Mods>::type&>().leading())>::own_keys;
}

/// f(block, number, context) for every block of a head, spread over the workers of the context: a worker a block, or,
/// in_any_order alone, all of them one block after the other where it has more than a share of the pairs.
template <class P, class Mods, class F>
void for_gathered(const Context& context, const GatherPlan<P, Mods>& plan,
                  const Scores<typename P::Scalar, Mods>& scores, F&& f, bool in_any_order = false) {
  using S = typename P::Scalar;
  constexpr double share = 1.0 / 32, least = 512 * 512;  // of all pairs; pairs
  const auto pairs = [&](Index number) {
    const auto block = scores.mods->leading().template block<S>(plan.at, panel_of<P>, plan.numbers, number);
    return double(block.queries) * double(block.keys);
  };
  const auto call = [&](Index number, Arena& arena, const Context& own) {
    const ArenaScope scope(arena);
    f(GatheredBlock<P, Mods>(arena, plan, scores, number), number, own);
  };
  constexpr double none = std::numeric_limits<double>::infinity();
  double large = none;
  if (in_any_order && context.spreads()) {
    double all = 0;
    for (Index number = 0; number < plan.blocks; ++number) all += pairs(number);
    large = std::max(least, share * all);
    for (Index number = 0; number < plan.blocks; ++number)
      if (pairs(number) >= large) call(number, context.arena(), context);
  }
  context.run(plan.blocks, [&](Index number, Arena& arena) {
    if (large == none || pairs(number) < large) call(number, arena, Context(arena));
  });
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
