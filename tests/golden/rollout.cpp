// limpid: golden cases of rollout over heads: the rows and what a scalar of them passes to queries and keys.
// SPDX-License-Identifier: MIT
#include "heads.hpp"

namespace golden {

struct Rollout {
  static constexpr const char* name = "rollout";
  static constexpr const char* switches = "method source fuse residual normalise start row causal";

  template <class S>
  static Tensors<S> library(const Case& c) {
    if (c.text("method", "") != "rollout" || c.text("source", "maps") != "heads" || c.text("fuse", "mean") != "mean")
      throw Refused("known is the method rollout, of source heads, fused by mean");
    const Heads e(c, "q");
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k");
    const Index start = c.place("start", 0, e.layers), row = c.place("row", 0, e.n);
    Tensors<S> all;
    Mat<S>&dq = all["grad.q"] = Mat<S>::Zero(q.rows(), q.cols()), &dk = all["grad.k"] = dq;
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::softmax(masks, {.scale = c.scale(q.cols())});
      using Op = std::remove_const_t<decltype(op)>;
      std::vector<Mat<S>> ql, kl;
      std::vector<limpid::Saved<Op, S>> saved(static_cast<std::size_t>(e.layers));
      for (Index l = 0; l < e.layers; ++l) {
        ql.push_back(e.packed(q, l)), kl.push_back(e.packed(k, l));
        Mat<S> out(e.n, kl.back().cols());
        limpid::forward(op, limpid::qkv(ql.back(), kl.back(), kl.back()), out,
                        {.heads = e.heads, .saved = &saved[static_cast<std::size_t>(l)]});
      }
      const auto in = [&](std::size_t l) { return limpid::qkv(ql[l], kl[l], kl[l]); };
      const auto rows = [&](const Mat<S>& first, const Mat<S>& drows) {
        limpid::Rollout<S> rollout(
            {.residual = c.number("residual", 0.5), .normalise = c.flag("normalise", true), .gradient = true});
        rollout.start(first);
        for (Index l = e.layers; l-- > start;)
          rollout.layer(op, in(static_cast<std::size_t>(l)), saved[static_cast<std::size_t>(l)]);
        rollout.start_gradient(drows);
        for (Index l = start; l < e.layers; ++l) {
          const auto at = static_cast<std::size_t>(l);
          Mat<S> gq = ql[at], gk = kl[at];
          rollout.gradient(op, in(at), saved[at], {.q = gq, .k = gk, .v = {}});
          e.add(gq, l, dq), e.add(gk, l, dk);
        }
        return rollout.rows();
      };
      const Mat<S> identity = Mat<S>::Identity(e.n, e.n);
      all["out.map"] = rows(identity, c.dout<S>("map"));
      all["out.row"] = rows(identity.row(row), c.dout<S>("row").transpose());
    });
    return all;
  }
};

const Registered<Rollout> rollout_cases;

}  // namespace golden
