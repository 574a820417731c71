// limpid: two partial results over different keys become one.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>

#include "../core/args.hpp"
#include "../engine/rows.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Two results of one map over disjoint sets of keys, each with its row log-sum-exp, become that over all of them, in
/// place of the first. Row by row and head by head (Dao et al. 2023, Flash-Decoding; Liu et al. 2023, arXiv 2310.01889)
///
///     lse' = log(exp lse + exp more_lse),   out' = exp(lse - lse') out + exp(more_lse - lse') more_out
///
/// out and more_out (B n) x (H dv) as forward writes them, lse and more_lse (B H) x n as Call::lse. For out = A V of
/// one softmax: softmax, nlm, bilateral. A sink is counted in one of the parts. Minus infinity is a part without keys,
/// whose out is not looked at: the other one stays as it is to the last bit; of two the result is 0. Plus infinity, as
/// of a sink, is all that counts; two of them, or NaN, make NaN. Error: a log-sum-exp has an ulp of its size, so 2 eps
/// (1 + |lse|) of the largest value (tests/call/merge_test.cpp). Throws ShapeError, before anything is written, where
/// shapes differ or do not fit each other, or out or lse shares memory with another array.
template <class Out, class L, class MoreOut, class MoreL>
void merge(Out&& out, L&& lse, MoreOut&& more_out, MoreL&& more_lse) {
  using std::exp, std::log;
  using S = detail::ScalarOf<Out>;
  using detail::raise, detail::shape_text;
  const MutView<S> first(std::forward<Out>(out)), first_lse(std::forward<L>(lse));
  const View<S> more(std::forward<MoreOut>(more_out)), second_lse(std::forward<MoreL>(more_lse));
  const auto same = [](const char* name, View<S> found, View<S> wanted) {
    if (found.rows != wanted.rows || found.cols != wanted.cols)
      raise(std::string("merge: ") + name + " is " + shape_text(found.rows, found.cols) + ", wanted " +
            shape_text(wanted.rows, wanted.cols) + " as the first one");
  };
  same("more_out", more, first), same("more_lse", second_lse, first_lse);
  const Index n = first_lse.cols, batch = n > 0 ? first.rows / n : 0, heads = batch > 0 ? first_lse.rows / batch : 0;
  if (first.rows != batch * n || (n > 0 && (first_lse.rows != batch * heads || heads == 0 || first.cols % heads != 0)))
    raise("merge: out is " + shape_text(first.rows, first.cols) + " and lse " +
          shape_text(first_lse.rows, first_lse.cols) + ", wanted (B n) x (H dv) and (B H) x n");
  detail::refuse_overlaps("merge", {{"out", first}, {"lse", first_lse}},
                          {{"more_out", more}, {"more_lse", second_lse}});
  const Index width = heads > 0 ? first.cols / heads : 0;
  constexpr S none = -std::numeric_limits<S>::infinity();
  for (Index t = 0; t < batch * heads; ++t)
    for (Index i = 0; i < n; ++i) {
      S& a = first_lse(t, i);
      const S b = second_lse(t, i);
      const Index row = t / heads * n + i;
      S* to = first.row(row) + t % heads * width;
      const S* from = more.row(row) + t % heads * width;
      if (a == none && b == none) std::fill(to, to + width, S(0));
      if (b == none) continue;
      if (a == none) {
        std::copy(from, from + width, to), a = b;
        continue;
      }
      const S top = b > a ? b : a;
      // 1 where it is infinity, of which a second one makes NaN
      const S w = exp(a - top), more_w = b == top && a != top ? S(1) : exp(b - top);
      const S sum = w + more_w;
      if (more_w == S(0)) continue;
      if (w == S(0))
        std::copy(from, from + width, to);
      else
        detail::combine_row<detail::Native<S>>(w / sum, to, more_w / sum, from, to, width);
      a = top + log(sum);
    }
}

}  // namespace LIMPID_ABI
}  // namespace limpid
