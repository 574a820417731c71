// limpid: golden cases of generic relevance, kind qkv: the relevance row that the backward pass emits beside the
// gradients.
// SPDX-License-Identifier: MIT
#include "heads.hpp"

namespace golden {

struct GenericRelevance {
  static constexpr const char* name = "generic_relevance";
  static constexpr const char* switches = "kind part order start_layer row causal scale";

  template <class S>
  static Mat<S> part_of(const Case& c, const Mat<S>& x) {
    const std::string part = c.text("part", "pos");
    Mat<S> out = x;
    for (Index i = 0; i < out.size(); ++i) {
      S& value = out.data()[i];
      if (part == "pos") value = std::max(value, S(0));
      if (part == "neg") value = std::max(-value, S(0));
      if (part == "abs") value = std::abs(value);
    }
    if (part == "pos" || part == "neg" || part == "abs" || part == "signed") return out;
    throw Refused("part is '" + part + "', wanted pos, neg, abs or signed");
  }
  static limpid::Part part(const Case& c) {
    const std::string part = c.text("part", "pos");
    return part == "neg"      ? limpid::Part::neg
           : part == "abs"    ? limpid::Part::abs
           : part == "signed" ? limpid::Part::signed_
                              : limpid::Part::pos;
  }

  static void check(const Case& c) {
    const std::string kind = c.text("kind", "");
    if (kind != "qkv") throw Refused("generic_relevance of kind '" + kind + "' is not known here; known is qkv");
    if (c.text("order", "part_mean") != "part_mean" && c.text("order", "") != "mean_part")
      throw Refused("order is '" + c.text("order", "") + "', wanted part_mean or mean_part");
  }

  /// R = (I + Abar_L) ... (I + Abar_start) from the layers' head-averaged maps, and what the file asks of it.
  template <class S>
  static void finish(const Case& c, const Heads& e, const Mat<S>& abar, Tensors<S>& all) {
    Mat<S> r = Mat<S>::Identity(e.n, e.n);
    for (Index l = c.place("start_layer", 0, e.layers + 1); l < e.layers; ++l)
      r += product<S>(abar.middleRows(l * e.n, e.n), r);
    const Index row = c.place("row", 0, e.n);
    all["out.abar"] = abar, all["out.r"] = r, all["out.row"] = r.row(row), all["out.column"] = r.col(row);
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    check(c);
    const Heads e(c, "q");
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.in<S>("do");
    Tensors<S> all;
    Mat<S>&a = all["out.a"], &g = all["out.g"], &o = all["out.o"];
    a.resize(q.rows(), e.n), g.resize(q.rows(), e.n), o.resize(q.rows(), v.cols());
    Mat<S> abar(e.layers * e.n, e.n), row = Mat<S>::Zero(1, e.n);
    row(0, c.place("row", 0, e.n)) = S(1);
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::softmax(masks, {.scale = c.scale(q.cols())});
      using Op = std::remove_const_t<decltype(op)>;
      for (Index l = e.layers - 1; l >= 0; --l) {
        const Mat<S> ql = e.packed(q, l), kl = e.packed(k, l), vl = e.packed(v, l), dl = e.packed(dout, l);
        const auto in = limpid::qkv(ql, kl, vl);
        Mat<S> out(e.n, vl.cols()), map;
        limpid::Saved<Op, S> saved;
        for (Index h = 0; h < e.heads; ++h) {
          limpid::forward(op, in, out, {.heads = e.heads, .saved = &saved, .map = &map, .head = h});
          const Index at = (l * e.heads + h) * e.n;
          a.middleRows(at, e.n) = map;
          g.middleRows(at, e.n) = product_nt<S>(dout.middleRows(at, e.n), v.middleRows(at, e.n));
          o.middleRows(at, e.n) = out.middleCols(h * v.cols(), v.cols());
        }
        Mat<S> dq = ql, dk = kl, dv = vl, weights, relevance(1, e.n);
        if (c.text("order", "part_mean") == "part_mean") {
          // Abar row by row: the weights e_i pick row i. The backward pass takes one row of weights for the whole item.
          for (Index i = 0; i < e.n; ++i) {
            weights = Mat<S>::Identity(e.n, e.n).row(i);
            limpid::backward(op, in, saved, dl, limpid::grads(dq, dk, dv),
                             {.relevance_weights = weights, .relevance = relevance, .part = part(c)});
            abar.row(l * e.n + i) = relevance;
          }
          if (l < c.place("start_layer", 0, e.layers + 1)) continue;
          // The chain as it is meant to be used: w <- w + w Abar, last layer first, in the backward pass itself.
          limpid::backward(op, in, saved, dl, limpid::grads(dq, dk, dv),
                           {.relevance_weights = row, .relevance = relevance, .part = part(c)});
          row += relevance;
        } else {  // the part after the mean over heads: not what the backward pass emits; from the library's maps
          Mat<S> mean = Mat<S>::Zero(e.n, e.n);
          for (Index h = 0; h < e.heads; ++h) {
            const Index at = (l * e.heads + h) * e.n;
            mean += scaled(1 / static_cast<S>(e.heads), times<S>(a.middleRows(at, e.n), g.middleRows(at, e.n)));
          }
          abar.middleRows(l * e.n, e.n) = part_of<S>(c, mean);
        }
      }
    });
    finish(c, e, abar, all);
    if (c.text("order", "part_mean") == "part_mean") all["out.row"] = row;
    return all;
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    check(c);
    const Heads e(c, "q");
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.in<S>("do");
    const S scale = static_cast<S>(c.scale(q.cols()));
    Tensors<S> all;
    Mat<S>&a = all["out.a"], &g = all["out.g"], &o = all["out.o"];
    a.resize(q.rows(), e.n), g.resize(q.rows(), e.n), o.resize(q.rows(), v.cols());
    Mat<S> abar(e.layers * e.n, e.n);
    for (Index l = 0; l < e.layers; ++l) {
      Mat<S> parts = Mat<S>::Zero(e.n, e.n), products = parts;
      for (Index h = 0; h < e.heads; ++h) {
        const Index at = (l * e.heads + h) * e.n;
        const Mat<S> vh = v.middleRows(at, e.n), dh = dout.middleRows(at, e.n);
        const Mat<S> scores = scaled(scale, product_nt<S>(q.middleRows(at, e.n), k.middleRows(at, e.n)));
        const PlainAttention<S> plain(scores, c.visible(e.n, e.n), vh, dh);
        a.middleRows(at, e.n) = plain.a;
        g.middleRows(at, e.n) = product_nt(dh, vh);
        o.middleRows(at, e.n) = plain.out;
        const Mat<S> x = times<S>(plain.a, g.middleRows(at, e.n));
        parts += part_of<S>(c, x);
        products += x;
      }
      const S heads = static_cast<S>(e.heads);
      abar.middleRows(l * e.n, e.n) = c.text("order", "part_mean") == "part_mean"
                                          ? scaled(1 / heads, parts)
                                          : part_of<S>(c, scaled(1 / heads, products));
    }
    finish(c, e, abar, all);
    return all;
  }
};

const Registered<GenericRelevance> generic_relevance_cases;

}  // namespace golden
