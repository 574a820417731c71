// limpid: the four parts of scores of tokens to which positions were added, token and position by token and position.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <optional>

#include "../core/args.hpp"
#include "../score/dot.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// The four parts of scores of tokens with additive positions: token-token, token-position, position-token and
/// position-position (query side first).
template <class S>
struct ScoreParts {
  Mat<S> tt, tp, pt, pp;
};

namespace detail {

template <class S>
struct Decomposed {
  View<S> x, p, wq, wk;
  S scale;
};

template <class S, class X, class Pos, class WQ, class WK>
Decomposed<S> decomposed(const X& x, const Pos& p, const WQ& wq, const WK& wk, const std::optional<double>& scale) {
  Decomposed<S> d{View<S>(x), View<S>(p), View<S>(wq), View<S>(wk), S(0)};
  const std::string name = "score_parts: ";
  if (d.p.rows != d.x.rows || d.p.cols != d.x.cols)
    raise(name + "p is " + shape_text(d.p.rows, d.p.cols) + ", wanted " + shape_text(d.x.rows, d.x.cols));
  if (d.wq.rows != d.x.cols || d.wk.rows != d.x.cols || d.wk.cols != d.wq.cols)
    raise(name + "wq is " + shape_text(d.wq.rows, d.wq.cols) + " and wk " + shape_text(d.wk.rows, d.wk.cols) +
          ", wanted both " + text_of(d.x.cols) + " x d");
  check_scale<S>("score_parts", "scale", scale);
  d.scale = scale_of<S>(scale, d.wq.cols);
  return d;
}

/// out += f a b, or f a b^T, or f a^T b: plain loops, these products are small.
template <class S>
void add_product(S f, View<S> a, View<S> b, MutView<S> out) {
  for (Index i = 0; i < a.rows; ++i)
    for (Index k = 0; k < a.cols; ++k)
      for (Index j = 0; j < b.cols; ++j) out(i, j) += f * a(i, k) * b(k, j);
}
template <class S>
void add_product_nt(S f, View<S> a, View<S> b, MutView<S> out) {
  for (Index i = 0; i < a.rows; ++i)
    for (Index j = 0; j < b.rows; ++j) out(i, j) += f * dot(a.row(i), b.row(j), a.cols);
}
template <class S>
void add_product_tn(S f, View<S> a, View<S> b, MutView<S> out) {
  for (Index k = 0; k < a.rows; ++k)
    for (Index i = 0; i < a.cols; ++i)
      for (Index j = 0; j < b.cols; ++j) out(i, j) += f * a(k, i) * b(k, j);
}

template <class S>
Mat<S> multiplied(View<S> a, View<S> b) {
  Mat<S> out = Mat<S>::Zero(a.rows, b.cols);
  add_product<S>(S(1), a, b, out);
  return out;
}

}  // namespace detail

/// What positions added to tokens do to the scores S = scale ((X + P) WQ) ((X + P) WK)^T:
///
///     tt = scale (X WQ)(X WK)^T,  tp = scale (X WQ)(P WK)^T,  pt = scale (P WQ)(X WK)^T,  pp = scale (P WQ)(P WK)^T
///
/// which sum to S; tt + pp are the scores of bilateral_untied(). Our own, after Prop. III.2 of arXiv 2506.10371v1. One
/// head: x, p n x D, wq, wk D x d (blocks of columns of packed weights will do), scale default 1 / sqrt(d). A
/// diagnostic: the results are n x n by definition, 8 n^2 d flop in plain loops; score_parts_row needs memory for one
/// row. Throws ShapeError.
template <class X, class Pos, class WQ, class WK, class S = detail::ScalarOf<X>>
ScoreParts<S> score_parts(const X& x, const Pos& p, const WQ& wq, const WK& wk,
                          std::optional<double> scale = default_scale) {
  const auto d = detail::decomposed<S>(x, p, wq, wk, scale);
  const Mat<S> xq = detail::multiplied(d.x, d.wq), pq = detail::multiplied(d.p, d.wq);
  const Mat<S> xk = detail::multiplied(d.x, d.wk), pk = detail::multiplied(d.p, d.wk);
  const auto part = [&](const Mat<S>& a, const Mat<S>& b) {
    Mat<S> out = Mat<S>::Zero(a.rows(), b.rows());
    detail::add_product_nt<S>(d.scale, a, b, out);
    return out;
  };
  return {part(xq, xk), part(xq, pk), part(pq, xk), part(pq, pk)};
}

/// Row i of the four parts, 1 x n each: scale x_j . (WK (WQ^T x_i)) and so on. 2 D (2 n + 4 d) flop, memory O(n + D).
template <class X, class Pos, class WQ, class WK, class S = detail::ScalarOf<X>>
ScoreParts<S> score_parts_row(const X& x, const Pos& p, const WQ& wq, const WK& wk, Index i,
                              std::optional<double> scale = default_scale) {
  const auto d = detail::decomposed<S>(x, p, wq, wk, scale);
  if (i < 0 || i >= d.x.rows)
    detail::raise("score_parts_row: row " + detail::text_of(i) + " was asked for, there are " +
                  detail::text_of(d.x.rows));
  const auto row = [&](View<S> from, View<S> keys) {  // from . WQ . WK^T . keys^T
    const Mat<S> q = detail::multiplied(from.block(i, 0, 1, from.cols), d.wq);
    Mat<S> u = Mat<S>::Zero(1, keys.cols), out = Mat<S>::Zero(1, keys.rows);
    detail::add_product_nt<S>(d.scale, q, d.wk, u);
    detail::add_product_nt<S>(S(1), u, keys, out);
    return out;
  };
  return {row(d.x, d.x), row(d.x, d.p), row(d.p, d.x), row(d.p, d.p)};
}

/// Gradients of x, p, wq and wk from those of the four parts (n x n each, none may be missing), e.g. of a penalty on
/// the cross terms: with Xq = X WQ and so on, dXq = scale (dtt Xk + dtp Pk), dXk = scale (dtt^T Xq + dpt^T Pq), dPq,
/// dPk likewise, then dX = dXq WQ^T + dXk WK^T,  dWQ = X^T dXq + P^T dPq. Overwrites dx, dp (n x D), dwq, dwk (D x d).
/// Throws ShapeError where shapes do not fit or one of these shares memory with another array.
template <class S, class X, class Pos, class WQ, class WK, class DX, class DP, class DWQ, class DWK>
void score_parts_backward(const X& x, const Pos& p, const WQ& wq, const WK& wk, const ScoreParts<S>& dout, DX&& dx,
                          DP&& dp, DWQ&& dwq, DWK&& dwk, std::optional<double> scale = default_scale) {
  const auto d = detail::decomposed<S>(x, p, wq, wk, scale);
  const MutView<S> gx(std::forward<DX>(dx)), gp(std::forward<DP>(dp)), gq(std::forward<DWQ>(dwq)),
      gk(std::forward<DWK>(dwk));
  const Index n = d.x.rows;
  const auto check = [](const char* name, View<S> found, Index rows, Index cols) {
    if (found.rows != rows || found.cols != cols)
      detail::raise(std::string("score_parts_backward: ") + name + " is " + detail::shape_text(found.rows, found.cols) +
                    ", wanted " + detail::shape_text(rows, cols));
  };
  check("dtt", dout.tt, n, n), check("dtp", dout.tp, n, n), check("dpt", dout.pt, n, n), check("dpp", dout.pp, n, n);
  check("dx", gx, n, d.x.cols), check("dp", gp, n, d.x.cols);
  check("dwq", gq, d.wq.rows, d.wq.cols), check("dwk", gk, d.wk.rows, d.wk.cols);
  detail::refuse_overlaps("score_parts_backward", {{"dx", gx}, {"dp", gp}, {"dwq", gq}, {"dwk", gk}},
                          {{"x", d.x},
                           {"p", d.p},
                           {"wq", d.wq},
                           {"wk", d.wk},
                           {"dtt", View<S>(dout.tt)},
                           {"dtp", View<S>(dout.tp)},
                           {"dpt", View<S>(dout.pt)},
                           {"dpp", View<S>(dout.pp)}});

  const Mat<S> xq = detail::multiplied(d.x, d.wq), pq = detail::multiplied(d.p, d.wq);
  const Mat<S> xk = detail::multiplied(d.x, d.wk), pk = detail::multiplied(d.p, d.wk);
  const auto query = [&](const Mat<S>& with_x, const Mat<S>& with_p) {
    Mat<S> g = Mat<S>::Zero(n, d.wq.cols);
    detail::add_product<S>(d.scale, with_x, xk, g);
    detail::add_product<S>(d.scale, with_p, pk, g);
    return g;
  };
  const auto key = [&](const Mat<S>& with_x, const Mat<S>& with_p) {
    Mat<S> g = Mat<S>::Zero(n, d.wq.cols);
    detail::add_product_tn<S>(d.scale, with_x, xq, g);
    detail::add_product_tn<S>(d.scale, with_p, pq, g);
    return g;
  };
  const Mat<S> dxq = query(dout.tt, dout.tp), dpq = query(dout.pt, dout.pp);
  const Mat<S> dxk = key(dout.tt, dout.pt), dpk = key(dout.tp, dout.pp);
  for (const auto& g : {gx, gp, gq, gk}) g.fill(S(0));
  detail::add_product_nt<S>(S(1), dxq, d.wq, gx), detail::add_product_nt<S>(S(1), dxk, d.wk, gx);
  detail::add_product_nt<S>(S(1), dpq, d.wq, gp), detail::add_product_nt<S>(S(1), dpk, d.wk, gp);
  detail::add_product_tn<S>(S(1), d.x, dxq, gq), detail::add_product_tn<S>(S(1), d.p, dpq, gq);
  detail::add_product_tn<S>(S(1), d.x, dxk, gk), detail::add_product_tn<S>(S(1), d.p, dpk, gk);
}

}  // namespace LIMPID_ABI
}  // namespace limpid
