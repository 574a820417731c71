// limpid: see laws.hpp
// SPDX-License-Identifier: MIT
#include "score/laws.hpp"

namespace laws {

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
