// limpid: attention maps corrected by their gradients, Abar = mean_h part(A_h o dy/dA_h): from maps handed over, or row
// by row from what a forward call saved, and as products from either side.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "../layer/linear.hpp"
#include "map.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// By the gradient with respect to the map, or to its scores: attention raised at one key is taken from the others of
/// its row, and dy/dS_ij = A_ij (G_ij - sum_k A_ik G_ik) counts that (ours).
enum class CorrectionBy { map, score };
/// The part before the mean over heads (Chefer et al. 2021, rule 5), or after it (older code).
enum class CorrectionOrder { part_mean, mean_part };

/// Abar = mean_h part(A_h o G_h), G = dy/dA, rule 5 of Chefer, Gur and Wolf 2021, 2103.15679; the other parts, by score
/// and mean_part are choices of ours, after Cui, Fan and Chen 2026 (2605.11392), whose text we could not obtain.
struct Correction {
  Part part = Part::pos;
  CorrectionBy by = CorrectionBy::map;
  CorrectionOrder order = CorrectionOrder::part_mean;
};

/// The maps of one attention as matrices, its heads one below the other: a is (H n) x m, g, of the same shape, the
/// gradient of the explained number with respect to them, for the methods that want it.
template <class S>
struct HeadMaps {
  View<S> a{}, g{};
  Index heads = 1;

  Index n() const { return heads > 0 ? a.rows / heads : 0; }
  Index m() const { return a.cols; }
  View<S> map(Index head) const { return a.block(head * n(), 0, n(), m()); }
  View<S> gradient(Index head) const { return g.block(head * n(), 0, n(), m()); }
};

namespace detail {

template <class S>
S part_of(Part part, const S& x) {
  const S zero(0);
  switch (part) {
    case Part::pos:
      return x < zero ? zero : x;  // a NaN shows
    case Part::neg:
      return zero < x ? zero : -x;
    case Part::abs:
      return x < zero ? -x : x;
    default:
      return x;
  }
}

/// Adds what one head has to a row of the mean: a, g and to of m entries.
template <class S>
void add_corrected(const Correction& c, const S* a, const S* g, S* to, Index m) {
  S taken(0);
  for (Index j = 0; j < m && c.by == CorrectionBy::score; ++j)
    if (a[j] != S(0)) taken += a[j] * g[j];  // what stands at a masked key may be no number
  for (Index j = 0; j < m; ++j) {
    const S x = a[j] == S(0) ? S(0) : a[j] * (g[j] - taken);
    to[j] += c.order == CorrectionOrder::part_mean ? part_of(c.part, x) : x;
  }
}
template <class S>
void end_corrected(const Correction& c, S* to, Index m, Index heads) {
  for (Index j = 0; j < m; ++j) {
    to[j] = to[j] / S(static_cast<double>(heads));
    if (c.order == CorrectionOrder::mean_part) to[j] = part_of(c.part, to[j]);
  }
}

template <class S>
void check_maps(Name name, const HeadMaps<S>& maps, bool wants_gradient) {
  if (maps.heads < 1 || maps.a.rows % maps.heads != 0)
    raise(name + (": maps of " + text_of(maps.a.rows) + " rows and " + text_of(maps.heads) +
                  " heads, wanted the rows of one head below those of the other"));
  if (wants_gradient && (maps.g.rows != maps.a.rows || maps.g.cols != maps.a.cols))
    raise(name + (": gradients of maps are " + shape_text(maps.g.rows, maps.g.cols) + ", wanted " +
                  shape_text(maps.a.rows, maps.a.cols) + " as the maps are"));
  check_parameters<S>(name, "a", maps.a);
  if (wants_gradient) check_parameters<S>(name, "g", maps.g);
}

/// What is asked of a saved attention and its gradient must lie over neither.
template <class Op, class S>
void refuse_over_read(const Op& op, const Inputs<Op, S>& in, View<S> dout, MutView<S> out) {
  refuse_overlaps(operator_name(op), arrays({{"out", out}}),
                  joined(fields_of(in), tables_of(op), arrays({{"dout", dout}})));
}

/// The values of one head, m x dv, that its map is applied to.
template <class Head>
auto values_of(const Head& head) {
  if constexpr (requires { head.v; })
    return head.v;
  else
    return head.cache.given() ? head.cache : head.y;  // mssa: its tokens are queries, keys and values
}

}  // namespace detail

/// Abar, n x m, of maps handed over. Throws ShapeError where rows and heads do not fit, g has another shape than a, or
/// a number is infinite or NaN.
template <class S>
Mat<S> corrected_map(const HeadMaps<S>& maps, const Correction& correction = {}) {
  detail::check_maps("corrected_map", maps, true);
  const Index n = maps.n(), m = maps.m();
  Mat<S> out = Mat<S>::Zero(n, m);
  for (Index i = 0; i < n; ++i) {
    for (Index h = 0; h < maps.heads; ++h)
      detail::add_corrected(correction, maps.map(h).row(i), maps.gradient(h).row(i), &out(i, 0), m);
    detail::end_corrected(correction, &out(i, 0), m, maps.heads);
  }
  return out;
}

/// A block of dy/dA of one head, out(i, j) = dh_(q0 + i) . v_(k0 + j): what the operator's effective map A, h = A v,
/// does to the explained number y. dout: the gradient of y with respect to the operator's output, (B n) x (H dv), as
/// its backward pass gets it; dh is dout, but of operators that norm h, differential and gated, where it is taken back
/// through the norm. 2 dv flop an entry. Throws ShapeError for other shapes, for a block outside the map, and where
/// out lies over dout or an input.
template <class Op, class S, class Dout, class Out>
void gradient_block(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, Dout&& dout_,
                    Index q0, Index k0, Out&& out, const HeadCall& call = {}) {
  const View<S> dout(std::forward<Dout>(dout_));
  const MutView<S> to(std::forward<Out>(out));
  detail::refuse_over_read<Op, S>(op, in, dout, to);
  detail::look_inside(op, in, saved, call, to, [&](const auto& pass, const auto& head, const auto& keep) {
    const At& at = pass.at;
    if (q0 < 0 || k0 < 0 || to.rows > at.n - q0 || to.cols > at.m - k0)
      detail::raise(detail::operator_name(op) + ": gradient block " + detail::shape_text(to.rows, to.cols) + " at " +
                    detail::text_of(q0) + ", " + detail::text_of(k0) + ", wanted it inside " +
                    detail::shape_text(at.n, at.m));
    const Dims& d = saved.dims;
    const View<S> v = detail::values_of(head);
    if (dout.rows != d.batch * at.n || dout.cols != d.heads * v.cols)
      detail::raise(detail::operator_name(op) + ": dout is " + detail::shape_text(dout.rows, dout.cols) + ", wanted " +
                    detail::shape_text(d.batch * at.n, d.heads * v.cols) + ", the gradient of the output");
    View<S> dh = dout.block(call.item * at.n + q0, call.head * v.cols, to.rows, v.cols);
    if constexpr (requires { op.map_gradient(pass, head, keep, q0, dh); })
      dh = op.map_gradient(pass, head, keep, q0, dh);
    detail::linear_in<detail::Native<S>>(pass.context, dh, out_in(v.block(k0, 0, to.cols, v.cols)), {}, to);
  });
}

/// Rows q0 ... of Abar of one item, out count x m, from what a forward call saved: the operator's effective map, which
/// of twicing and its like may be negative, times dout_i . v_j. Rows are exact, and no more of a map is made than they:
/// 2 m (d + dv) flop a row and head, an array of 2 count m numbers. call.head is not looked at. Throws ShapeError where
/// shapes do not fit or the rows lie outside of the map.
template <class Op, class S, class Dout, class Out>
void corrected_rows(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, Dout&& dout_,
                    Index q0, Out&& out_, const Correction& correction = {}, HeadCall call = {}) {
  const View<S> dout(std::forward<Dout>(dout_));
  const MutView<S> out(std::forward<Out>(out_));
  const Index heads = saved.dims.heads, m = saved.dims.m;
  if (saved.filled && out.cols != m)
    detail::raise(detail::operator_name(op) + ": corrected rows are " + detail::shape_text(out.rows, out.cols) +
                  ", wanted " + detail::text_of(m) + " columns, the keys");
  detail::refuse_over_read<Op, S>(op, in, dout, out);
  Mat<S> map(out.rows, out.cols), gradient(out.rows, out.cols), sum = Mat<S>::Zero(out.rows, out.cols);
  for (call.head = 0; call.head < std::max<Index>(heads, 1); ++call.head) {
    map_block(op, in, saved, q0, 0, map, call);
    gradient_block(op, in, saved, dout, q0, 0, gradient, call);
    for (Index i = 0; i < out.rows; ++i)
      detail::add_corrected(correction, map.data() + i * m, gradient.data() + i * m, sum.data() + i * m, m);
  }
  for (Index i = 0; i < out.rows; ++i) {
    detail::end_corrected(correction, sum.data() + i * m, m, heads);
    std::copy(sum.data() + i * m, sum.data() + (i + 1) * m, out.row(i));
  }
}

namespace detail {

/// a b, of whole matrices.
template <class S>
Mat<S> matrix_product(View<S> a, View<S> b) {
  Mat<S> out(a.rows, b.cols);
  linear(a, b, View<S>(), out);
  return out;
}

}  // namespace detail

/// A matrix that is there as its products alone: left, y = x A for x r x n, and right, y = A x for x m x c. y is
/// overwritten and must not lie over x.
template <class S>
struct MapProducts {
  Index n = 0, m = 0;
  std::function<void(View<S> x, MutView<S> y)> left, right;
};

namespace detail {

/// Products from some rows at a time, which rows(q0, block) makes.
template <class S, class Rows>
MapProducts<S> products_by_rows(Index n, Index m, const LayerCall& call, Rows rows) {
  constexpr Index most = rows_at_a_time;
  const auto check = [n, m](const View<S>& x, const MutView<S>& y, bool left) {
    const Index in = left ? n : m, out = left ? m : n;
    const bool fits =
        left ? x.cols == in && y.cols == out && x.rows == y.rows : x.rows == in && y.rows == out && x.cols == y.cols;
    if (!fits)
      raise("map products: x is " + shape_text(x.rows, x.cols) + " and y " + shape_text(y.rows, y.cols) +
            ", wanted them to fit a map " + shape_text(n, m) + (left ? " from the left" : " from the right"));
    refuse_overlaps("map products", {{"y", y}}, {{"x", x}});
  };
  MapProducts<S> out{n, m, {}, {}};
  out.left = [=](View<S> x, MutView<S> y) {
    check(x, y, true);
    y.fill(S(0));
    Mat<S> block, part(x.rows, m);
    for (Index q0 = 0; q0 < n; q0 += most) {
      const Index count = std::min(most, n - q0);
      block.resize(count, m);
      rows(q0, MutView<S>(block));
      linear(x.block(0, q0, x.rows, count), block, View<S>(), part, call);
      for (Index r = 0; r < x.rows; ++r)
        for (Index j = 0; j < m; ++j) y(r, j) += part(r, j);
    }
  };
  out.right = [=](View<S> x, MutView<S> y) {
    check(x, y, false);
    Mat<S> block;
    for (Index q0 = 0; q0 < n; q0 += most) {
      const Index count = std::min(most, n - q0);
      block.resize(count, m);
      rows(q0, MutView<S>(block));
      linear(block, x, View<S>(), y.block(q0, 0, count, y.cols), call);
    }
  };
  return out;
}

}  // namespace detail

/// Products of Abar from what a forward call saved, 32 rows of it at a time: no n x m array. It looks at all that it is
/// given, which has to outlive it; one product at a time. Throws, when called, as corrected_rows does.
template <class Op, class S>
MapProducts<S> corrected_products(const Op& op, const Inputs<Op, S>& in, Saved<Op, S>& saved,
                                  std::type_identity_t<View<S>> dout, const Correction& correction = {},
                                  const HeadCall& call = {}) {
  return detail::products_by_rows<S>(saved.dims.n, saved.dims.m, {.executor = call.executor},
                                     [&op, &in, &saved, dout, correction, call](Index q0, MutView<S> block) {
                                       corrected_rows(op, in, saved, dout, q0, block, correction, call);
                                     });
}
/// The same of maps handed over, which have to outlive it.
template <class S>
MapProducts<S> corrected_products(const HeadMaps<S>& maps, const Correction& correction = {}) {
  detail::check_maps("corrected_products", maps, true);
  return detail::products_by_rows<S>(maps.n(), maps.m(), {}, [maps, correction](Index q0, MutView<S> block) {
    block.fill(S(0));
    for (Index i = 0; i < block.rows; ++i) {
      for (Index h = 0; h < maps.heads; ++h)
        detail::add_corrected(correction, maps.map(h).row(q0 + i), maps.gradient(h).row(q0 + i), block.row(i),
                              block.cols);
      detail::end_corrected(correction, block.row(i), block.cols, maps.heads);
    }
  });
}

}  // namespace LIMPID_ABI
}  // namespace limpid
