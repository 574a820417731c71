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

template <class S>
Results<Real> by_loops(const Law<S>& law, const Problem<S>& p, const Way& way, Real before, Real* size) {
  const suite::Sizes& s = p.sizes;
  const Index n = s.n, m = s.m, group = s.heads / s.kv_heads;
  const auto real = [](const Mat<S>& x) {
    Mat<Real> y(x.rows(), x.cols());
    for (Index i = 0; i < x.size(); ++i) y.data()[i] = std::isfinite(x.data()[i]) ? Real(x.data()[i]) : nan;
    return y;
  };
  const Mat<Real> q = real(p.q), k = real(p.k), v = real(p.v), dout = real(p.dout), left = real(p.left),
                  right = real(p.right);
  const Real scale = 1 / std::sqrt(Real(s.d)), start = way.accumulate ? before : Real(0);
  Results<Real> r;
  r.out = Mat<Real>::Zero(p.dout.rows(), p.dout.cols()), r.lse = Mat<Real>::Constant(s.batch * s.heads, n, -inf);
  r.dq = Mat<Real>::Constant(q.rows(), q.cols(), start), r.dk = Mat<Real>::Constant(k.rows(), k.cols(), start);
  r.dv = Mat<Real>::Constant(v.rows(), v.cols(), start);
  if (way.looks) r.relevance = Mat<Real>::Zero(s.batch, m);
  for (const auto& t : law.tables) {  // always added to
    t->expected = Mat<Real>::Constant(t->gradient.rows(), t->gradient.cols(), before);
    t->terms = Mat<Real>::Zero(t->gradient.rows(), t->gradient.cols());
  }
  std::vector<Real> raw(law.formulas.size() + 1);
  const auto score_of = [&](Real at, const At& a) {  // minus infinity masks, whatever comes after it
    raw[0] = at;
    for (std::size_t f = 0; f < law.formulas.size(); ++f) {
      raw[f + 1] = law.formulas[f].value(raw[f], a);
      if (raw[f + 1] == -inf) return -inf;
    }
    return raw.back();
  };
  Real most = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h) {
      const Index g = h / group;
      Mat<Real> map = Mat<Real>::Zero(n, m), to_left = Mat<Real>::Zero(left.rows(), m),
                to_right = Mat<Real>::Zero(n, right.cols()), entropy = Mat<Real>::Zero(n, 1);
      for (Index i = 0; i < n; ++i) {
        std::vector<Index> keys;
        std::vector<Real> dots, scores;
        Real top = -inf, sum = 0;
        for (Index j = 0; j < m; ++j) {
          const At a{b, h, i, j, n, m, s.batch, s.heads};
          // a NaN may stand anywhere but must not bring back a pair that does not count: asked with 0 first
          if (!law.keep(a) || score_of(0, a) == -inf) continue;
          Real dot = 0;
          for (Index c = 0; c < s.d; ++c) dot += q(b * n + i, h * s.d + c) * k(b * m + j, g * s.d + c);
          const Real score = score_of(dot * scale, a);
          if (score == -inf) continue;
          keys.push_back(j), dots.push_back(dot * scale), scores.push_back(score);
          if (!(score <= top)) top = score;
          for (const Real x : raw)
            if (std::abs(x) > most) most = std::abs(x);
        }
        if (keys.empty()) continue;
        for (const Real x : scores) sum += std::exp(x - top);
        for (const Real x : scores)
          if (std::isnan(x)) sum = top = nan;
        r.lse(b * s.heads + h, i) = top + std::log(sum);
        Real delta = 0;
        for (std::size_t t = 0; t < keys.size(); ++t) {
          const Index j = keys[t];
          const Real w = map(i, j) = std::exp(scores[t] - top) / sum;
          for (Index c = 0; c < s.dv; ++c) r.out(b * n + i, h * s.dv + c) += w * v(b * m + j, g * s.dv + c);
          for (Index c = 0; c < right.cols(); ++c) to_right(i, c) += w * right(j, c);
          for (Index c = 0; c < left.rows(); ++c) to_left(c, j) += left(c, i) * w;
          if (!(w <= 0)) entropy(i, 0) -= w * std::log(w);
        }
        for (Index c = 0; c < s.dv; ++c) delta += dout(b * n + i, h * s.dv + c) * r.out(b * n + i, h * s.dv + c);
        for (std::size_t t = 0; t < keys.size(); ++t) {
          const Index j = keys[t];
          const At a{b, h, i, j, n, m, s.batch, s.heads};
          Real da = 0;
          for (Index c = 0; c < s.dv; ++c) {
            da += dout(b * n + i, h * s.dv + c) * v(b * m + j, g * s.dv + c);
            r.dv(b * m + j, g * s.dv + c) += map(i, j) * dout(b * n + i, h * s.dv + c);
          }
          if (way.looks) {
            Real part = map(i, j) * da;
            if (way.part == limpid::Part::pos && part < 0) part = 0;
            if (way.part == limpid::Part::neg) part = part > 0 ? Real(0) : -part;
            if (way.part == limpid::Part::abs) part = std::abs(part);
            r.relevance(b, j) += Real(p.weights(b, i)) * part / Real(s.heads);
          }
          score_of(dots[t], a);
          Real ds = map(i, j) * (da - delta);
          for (std::size_t f = law.formulas.size(); f-- > 0;) {
            if (law.formulas[f].gradient) law.formulas[f].gradient(a, ds);
            if (law.formulas[f].slope) ds *= law.formulas[f].slope(raw[f], a);
          }
          for (Index c = 0; c < s.d; ++c) {
            r.dq(b * n + i, h * s.d + c) += scale * ds * k(b * m + j, g * s.d + c);
            r.dk(b * m + j, g * s.d + c) += scale * ds * q(b * n + i, h * s.d + c);
          }
        }
      }
      if (!way.looks) continue;
      r.map.push_back(map), r.left.push_back(to_left), r.right.push_back(to_right), r.entropy.push_back(entropy);
    }
  for (const auto& t : law.tables) r.tables.push_back(t->expected);
  if (size) *size = most;
  return r;
}
template Results<Real> by_loops(const Law<float>&, const Problem<float>&, const Way&, Real, Real*);
template Results<Real> by_loops(const Law<double>&, const Problem<double>&, const Way&, Real, Real*);

}  // namespace laws
