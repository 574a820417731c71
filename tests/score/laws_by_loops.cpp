// limpid: see laws.hpp
// SPDX-License-Identifier: MIT
#include "score/laws.hpp"

namespace laws {

template <class S>
Results<Real> by_loops(const Law<S>& law, const Problem<S>& p, const Way& way, Real before, Real* size) {
  const suite::Sizes& s = p.sizes;
  const Index n = s.n, m = s.m, group = s.heads / s.kv_heads;
  const auto finite = [](Mat<S> x) {
    for (Index i = 0; i < x.size(); ++i)
      if (!std::isfinite(x.data()[i])) x.data()[i] = S(nan);
    return x;
  };
  const Mat<S> q = finite(p.q), k = finite(p.k), v = finite(p.v), dout = finite(p.dout), left = finite(p.left),
               right = finite(p.right);
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
  // A NaN stays one, so nothing is computed of it: in long double the machine takes 300 ns for that, 1 ns for others.
  const auto add = [](Real& sum, Real a, Real b) {
    if (!std::isnan(sum)) sum = std::isnan(a) || std::isnan(b) ? nan : sum + a * b;
  };
  // A pair that counts, as its key has it.
  struct Term {
    Index i;
    Real w, ds;  // ds: times the scale
  };
  std::vector<std::vector<Term>> terms(static_cast<std::size_t>(m));
  Real most = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h) {
      const Index g = h / group;
      Mat<Real> map = Mat<Real>::Zero(n, m), to_left = Mat<Real>::Zero(left.rows(), m),
                to_right = Mat<Real>::Zero(n, right.cols()), entropy = Mat<Real>::Zero(n, 1);
      for (auto& of_key : terms) of_key.clear();
      for (Index i = 0; i < n; ++i) {
        std::vector<Index> keys;
        std::vector<Real> dots, scores, weights;
        Real top = -inf, sum = 0;
        for (Index j = 0; j < m; ++j) {
          const At a{b, h, i, j, n, m, s.batch, s.heads};
          // a NaN may stand anywhere but must not bring back a pair that does not count: asked with 0 first
          if (!law.keep(a) || score_of(0, a) == -inf) continue;
          Real dot = 0;
          for (Index c = 0; c < s.d; ++c) add(dot, q(b * n + i, h * s.d + c), k(b * m + j, g * s.d + c));
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
          weights.push_back(w);
          if (!(w <= 0)) entropy(i, 0) -= w * std::log(w);
        }
        const auto over_keys = [&](Real start, const std::vector<Real>& factor, const Mat<S>& x, Index row, Index c) {
          for (std::size_t t = 0; t < keys.size(); ++t) add(start, factor[t], x(row + keys[t], c));
          return start;
        };
        for (Index c = 0; c < s.dv; ++c) r.out(b * n + i, h * s.dv + c) = over_keys(0, weights, v, b * m, g * s.dv + c);
        for (Index c = 0; c < right.cols(); ++c) to_right(i, c) = over_keys(0, weights, right, 0, c);
        for (Index c = 0; c < s.dv; ++c) add(delta, dout(b * n + i, h * s.dv + c), r.out(b * n + i, h * s.dv + c));
        for (std::size_t t = 0; t < keys.size(); ++t) {
          const Index j = keys[t];
          const At a{b, h, i, j, n, m, s.batch, s.heads};
          Real da = 0;
          for (Index c = 0; c < s.dv; ++c) add(da, dout(b * n + i, h * s.dv + c), v(b * m + j, g * s.dv + c));
          if (way.looks && std::isnan(da)) {
            r.relevance(b, j) = nan;
          } else if (way.looks) {
            Real part = map(i, j) * da;
            if (way.part == limpid::Part::pos && part < 0) part = 0;
            if (way.part == limpid::Part::neg) part = part > 0 ? Real(0) : -part;
            if (way.part == limpid::Part::abs) part = std::abs(part);
            r.relevance(b, j) += Real(p.weights(b, i)) * part / Real(s.heads);
          }
          score_of(dots[t], a);
          Real ds = std::isnan(da) || std::isnan(delta) || std::isnan(weights[t]) ? nan : weights[t] * (da - delta);
          for (std::size_t f = law.formulas.size(); f-- > 0;) {
            if (law.formulas[f].gradient) law.formulas[f].gradient(a, ds);
            if (law.formulas[f].slope) ds *= law.formulas[f].slope(raw[f], a);
          }
          if (!std::isnan(ds)) ds *= scale;
          terms[static_cast<std::size_t>(j)].push_back({i, weights[t], ds});
          weights[t] = ds;  // has done its part
        }
        for (Index c = 0; c < s.d; ++c) {
          Real& dq = r.dq(b * n + i, h * s.d + c);
          dq = over_keys(dq, weights, k, b * m, g * s.d + c);
        }
      }
      for (Index j = 0; j < m; ++j) {
        const std::vector<Term>& of_key = terms[static_cast<std::size_t>(j)];
        const auto over_queries = [&](Real& to, Real Term::*factor, const Mat<S>& x, Index row, Index c) {
          Real sum = to;
          for (const Term& t : of_key) add(sum, t.*factor, x(row + t.i, c));
          to = sum;
        };
        for (Index c = 0; c < s.dv; ++c)
          over_queries(r.dv(b * m + j, g * s.dv + c), &Term::w, dout, b * n, h * s.dv + c);
        for (Index c = 0; c < s.d; ++c) over_queries(r.dk(b * m + j, g * s.d + c), &Term::ds, q, b * n, h * s.d + c);
        for (Index c = 0; c < left.rows(); ++c)
          for (const Term& t : of_key) add(to_left(c, j), left(c, t.i), t.w);
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

template <class S>
std::string difference(const Mat<S>& found, const Mat<Real>& wanted, Real units, Real size) {
  if (found.rows() != wanted.rows() || found.cols() != wanted.cols()) return "another shape";
  for (Index i = 0; i < wanted.size(); ++i)
    if (std::isfinite(wanted.data()[i])) size = std::max(size, std::abs(wanted.data()[i]));
  for (Index i = 0; i < wanted.size(); ++i) {
    const Real a = Real(found.data()[i]), b = wanted.data()[i];
    if (a == b || (std::isnan(b) && !std::isfinite(a))) continue;
    if (std::abs(a - b) <= units * Real(std::numeric_limits<S>::epsilon()) * size) continue;
    return "entry (" + std::to_string(i / wanted.cols()) + ", " + std::to_string(i % wanted.cols()) + ") is " +
           std::to_string(static_cast<double>(a)) + ", wanted " + std::to_string(static_cast<double>(b));
  }
  return "";
}
template std::string difference(const Mat<float>&, const Mat<Real>&, Real, Real);
template std::string difference(const Mat<double>&, const Mat<Real>&, Real, Real);

}  // namespace laws
