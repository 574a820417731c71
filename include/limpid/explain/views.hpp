// limpid: what one saved attention shows of itself: the keys that queries give most, what keys get in all, a block of A
// o dA, and how much heads matter. Nothing n x m.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "correction.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Row i: the k keys with the largest weights of query i, the largest first, and these weights; n x k.
template <class S>
struct TopKeys {
  Mat<Index> keys;
  Mat<S> weights;
};

/// The k largest weights of every query of one head's (effective) map; equal ones by the lower key first. 32 rows of
/// the map at a time. Throws ShapeError where k is not in [1, m] or there is no such head.
template <class Op, class S>
TopKeys<S> top_keys(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, Index k,
                    const HeadCall& call = {}) {
  constexpr Index most = detail::rows_at_a_time;
  const Index n = saved.dims.n, m = saved.dims.m;
  if (saved.filled && (k < 1 || k > m))
    detail::raise(detail::operator_name(op) + ": top " + detail::text_of(k) + " keys, wanted from 1 to " +
                  detail::text_of(m));
  TopKeys<S> out;
  Mat<S> block(std::min(most, n), m);
  map_block(op, in, saved, 0, 0, MutView<S>(block), call);  // refuses what is not saved before anything is made
  out.keys.resize(n, k), out.weights.resize(n, k);
  std::vector<Index> order(static_cast<std::size_t>(m));
  for (Index q0 = 0; q0 < n; q0 += most) {
    const Index count = std::min(most, n - q0);
    if (q0 > 0) map_block(op, in, saved, q0, 0, MutView<S>(block).block(0, 0, count, m), call);
    for (Index i = 0; i < count; ++i) {
      std::iota(order.begin(), order.end(), Index(0));
      std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](Index a, Index b) {
        return block(i, a) > block(i, b) || (block(i, a) == block(i, b) && a < b);
      });
      for (Index r = 0; r < k; ++r) {
        out.keys(q0 + i, r) = order[static_cast<std::size_t>(r)];
        out.weights(q0 + i, r) = block(i, order[static_cast<std::size_t>(r)]);
      }
    }
  }
  return out;
}

/// What every key gets of one head in all, 1 x m: the column sums of its map. Throws ShapeError as map_left does.
template <class Op, class S>
Mat<S> column_mass(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved,
                   const HeadCall& call = {}) {
  const Mat<S> ones = Mat<S>::Ones(1, saved.dims.n);
  Mat<S> mass(1, saved.dims.m);
  map_left(op, in, saved, ones, mass, call);
  return mass;
}

/// A block of part(A o dA) of one head, out(i, j) of query q0 + i and key k0 + j, dA as gradient_block has it, dout as
/// there. Two arrays more of the block's size. Throws ShapeError as map_block and gradient_block do.
template <class Op, class S, class Dout, class Out>
void relevance_block(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, Dout&& dout_,
                     Index q0, Index k0, Out&& out_, Part part = Part::signed_, const HeadCall& call = {}) {
  const View<S> dout(std::forward<Dout>(dout_));
  const MutView<S> out(std::forward<Out>(out_));
  detail::refuse_over_read<Op, S>(op, in, dout, out);
  Mat<S> map(out.rows, out.cols), gradient(out.rows, out.cols);
  map_block(op, in, saved, q0, k0, map, call);
  gradient_block(op, in, saved, dout, q0, k0, gradient, call);
  for (Index i = 0; i < out.rows; ++i)
    for (Index j = 0; j < out.cols; ++j)
      out(i, j) = map(i, j) == S(0) ? S(0) : detail::part_of(part, S(map(i, j) * gradient(i, j)));
}

/// How much every head matters, batch x heads: the gradient of the explained number with respect to a gate on a head's
/// output, sum_i dout_h,i . out_h,i, which is also the sum of A o dA (Michel, Levy, Neubig 2019, arXiv 1905.10650, who
/// take its size, averaged over data). out and dout: the heads' output and its gradient, (batch n) x (heads dv), before
/// any output projection. Throws ShapeError where shapes do not fit.
template <class O, class D>
auto head_importance(O&& out_, D&& dout_, Index heads, Index batch = 1) {
  using S = detail::ScalarOf<O>;
  const View<S> out(std::forward<O>(out_)), dout(std::forward<D>(dout_));
  if (heads < 1 || batch < 1 || out.cols % heads != 0 || out.rows % batch != 0 || dout.rows != out.rows ||
      dout.cols != out.cols)
    detail::raise("head_importance: out is " + detail::shape_text(out.rows, out.cols) + " and dout " +
                  detail::shape_text(dout.rows, dout.cols) + ", wanted one shape of " + detail::text_of(batch) +
                  " items and " + detail::text_of(heads) + " heads");
  const Index n = out.rows / batch, width = out.cols / heads;
  Mat<S> all(batch, heads);
  for (Index b = 0; b < batch; ++b)
    for (Index h = 0; h < heads; ++h) {
      detail::Accumulator<S> sum(0);
      for (Index i = b * n; i < (b + 1) * n; ++i)
        for (Index c = h * width; c < (h + 1) * width; ++c)
          sum += detail::Accumulator<S>(out(i, c)) * detail::Accumulator<S>(dout(i, c));
      all(b, h) = S(sum);
    }
  return all;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
