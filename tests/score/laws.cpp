// limpid: see laws.hpp
// SPDX-License-Identifier: MIT
#include "score/laws.hpp"

#include <limpid/exec/thread_pool.hpp>
#include <limpid/explain/map.hpp>

#include "support/executors.hpp"

namespace laws {
namespace {

template <class Op, class S>
Results<S> run_op(const Op& op, const Law<S>& law, const Problem<S>& p, const Way& way, S before) {
  const suite::Sizes& s = p.sizes;
  limpid::ThreadPool pool(way.workers);
  auto all = suite::eager(pool);
  limpid::ExecutorRef executor;
  if (way.workers > 1) executor = all;
  suite::Backwards backwards;  // heads that must take turns would take them in another order
  if (way.workers == 0) executor = backwards;
  limpid::Saved<Op, S> saved;
  Results<S> r;
  r.out = Mat<S>::Constant(p.dout.rows(), p.dout.cols(), S(7));
  const auto in = limpid::qkv(p.q, p.k, p.v);
  limpid::Call<Op, S> call;
  call.batch = s.batch, call.heads = s.heads, call.kv_heads = s.kv_heads;
  call.saved = &saved, call.executor = executor, call.lse = &r.lse;
  limpid::forward(op, in, r.out, call);
  for (const auto& t : law.tables)
    if (t->gradient.size() > 0) t->gradient.setConstant(before);
  r.dq = Mat<S>::Constant(p.q.rows(), p.q.cols(), before), r.dk = Mat<S>::Constant(p.k.rows(), p.k.cols(), before);
  r.dv = Mat<S>::Constant(p.v.rows(), p.v.cols(), before);
  r.relevance = Mat<S>::Constant(s.batch, s.m, before);
  limpid::BackwardCall<S> back;
  back.accumulate = way.accumulate, back.executor = executor, back.part = way.part;
  if (way.looks) back.relevance_weights = p.weights, back.relevance = r.relevance;
  limpid::backward(op, in, saved, p.dout, limpid::grads(r.dq, r.dk, r.dv), back);
  if (!way.looks) r.relevance.resize(0, 0);
  for (const auto& t : law.tables) r.tables.push_back(t->gradient);
  if (!way.looks) return r;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h) {
      limpid::HeadCall of;
      of.head = h, of.item = b, of.executor = executor;
      Mat<S> map(s.n, s.m), left(p.left.rows(), s.m), right(s.n, p.right.cols()), entropy(s.n, 1);
      limpid::map_block(op, in, saved, 0, 0, map, of);
      limpid::map_left(op, in, saved, p.left, left, of);
      limpid::map_right(op, in, saved, p.right, right, of);
      limpid::map_entropy(op, in, saved, entropy, of);
      r.map.push_back(map), r.left.push_back(left), r.right.push_back(right), r.entropy.push_back(entropy);
    }
  return r;
}

}  // namespace

template <class S>
Results<S> run(const Law<S>& law, const Problem<S>& p, const Way& way, S before) {
  const AnyMask &one = law.mask, &two = law.second_mask;
  if (law.by_value)
    return run_op(limpid::softmax(limpid::chain(law.first_value, one, law.second_value, two)), law, p, way, before);
  if (law.first_start.of)
    return run_op(limpid::softmax(limpid::chain(law.first_start, one, law.second_start, two)), law, p, way, before);
  return run_op(limpid::softmax(limpid::chain(one, two)), law, p, way, before);
}
template Results<float> run(const Law<float>&, const Problem<float>&, const Way&, float);
template Results<double> run(const Law<double>&, const Problem<double>&, const Way&, double);

}  // namespace laws
