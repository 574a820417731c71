// limpid: golden cases of rollout and its relatives, from maps handed over and from heads: all rows, one row, and what
// a scalar of them passes back.
// SPDX-License-Identifier: MIT
#include "heads.hpp"

namespace golden {

struct Rollout {
  static constexpr const char* name = "rollout";
  static constexpr const char* switches = "method source fuse residual normalise start row skip discard causal";

  static limpid::Fuse fuse(const Case& c) {
    const std::string name = c.text("fuse", "mean");
    if (name == "mean") return limpid::Fuse::mean;
    if (name == "max") return limpid::Fuse::max;
    if (name == "min") return limpid::Fuse::min;
    throw Refused("fuse is '" + name + "', wanted mean, max or min");
  }
  static limpid::MapRolloutOptions options(const Case& c, Index layers) {
    const bool by_gradient = c.text("method", "") == "gradient_rollout";
    return {.method = by_gradient ? limpid::RolloutMethod::gradient_rollout : limpid::RolloutMethod::rollout,
            .residual = c.number("residual", 0.5),
            .fuse = fuse(c),
            .normalise = c.flag("normalise", !by_gradient),
            .start = c.place("start", 0, layers),
            .discard = c.number("discard", 0)};
  }

  /// Layers of maps, and where their gradients go.
  template <class S>
  struct Layers {
    Mat<S> a, g, da, dg;
    std::vector<limpid::HeadMaps<S>> maps;
    std::vector<limpid::HeadMapGrads<S>> grads;

    Layers(Mat<S> a_, Mat<S> g_, const Heads& e) : a(std::move(a_)), g(std::move(g_)) {
      da = dg = Mat<S>::Zero(a.rows(), a.cols());
      const Index rows = e.heads * e.n;
      for (Index l = 0; l < e.layers; ++l) {
        const auto part = [&](Mat<S>& all) { return limpid::MutView<S>(all).block(l * rows, 0, rows, all.cols()); };
        maps.push_back({part(a), g.size() ? limpid::View<S>(part(g)) : limpid::View<S>(), e.heads});
        grads.push_back({part(da), part(dg)});
      }
    }
    Layers(const Layers&) = delete;
  };

  /// out.map, where the method has one, and out.row, and the gradients of both together, added up in da and dg.
  template <class S>
  static void by_maps(const Case& c, const Heads& e, Layers<S>& layers, Tensors<S>& all) {
    const Index row = c.place("row", 0, e.n);
    if (c.text("method", "") == "gradcam") {
      const Index skip = c.place("skip", 1, e.n);
      all["out.row"] = limpid::gradcam(layers.maps.back(), row, skip);
      const Mat<S> d = c.dout<S>("row").transpose();
      limpid::gradcam_backward(layers.maps.back(), row, skip, d, layers.grads.back());
      return;
    }
    if (c.text("method", "") == "raw_attention") {
      all["out.map"] = limpid::fused_map(layers.maps.back(), fuse(c));
      Mat<S> d = c.dout<S>("map");
      d.row(row) += c.dout<S>("row").transpose();
      limpid::fused_map_backward(layers.maps.back(), fuse(c), d, layers.grads.back().a);
    } else {
      all["out.map"] = limpid::map_rollout(layers.maps, options(c, e.layers));
      Mat<S> d = c.dout<S>("map");
      d.row(row) += c.dout<S>("row").transpose();
      limpid::map_rollout_backward(layers.maps, options(c, e.layers), d, layers.grads);
    }
    all["out.row"] = all["out.map"].row(row);
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    const std::string method = c.text("method", "");
    if (method != "rollout" && method != "gradient_rollout" && method != "raw_attention" && method != "gradcam")
      throw Refused("method is '" + method + "', wanted rollout, gradient_rollout, raw_attention or gradcam");
    const bool by_gradient = method == "gradient_rollout" || method == "gradcam";
    Tensors<S> all;
    if (c.text("source", "maps") == "maps") {
      const Heads e(c, "a");
      Layers<S> layers(c.in<S>("a"), by_gradient ? c.in<S>("g") : Mat<S>(), e);
      by_maps(c, e, layers, all);
      all["grad.a"] = layers.da;
      if (by_gradient) all["grad.g"] = layers.dg;
      return all;
    }
    if (c.text("source", "") != "heads")
      throw Refused("source is '" + c.text("source", "") + "', wanted maps or heads");
    const Heads e(c, "q");
    const bool streams = method == "rollout" && fuse(c) == limpid::Fuse::mean && c.number("discard", 0) == 0;
    return streams ? by_rows<S>(c, e) : by_heads<S>(c, e);
  }

  /// Without any map: the streaming form.
  template <class S>
  static Tensors<S> by_rows(const Case& c, const Heads& e) {
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

  /// The maps of heads, handed over: attention over values that are the identity, whose backward takes da.
  template <class S>
  static Tensors<S> by_heads(const Case& c, const Heads& e) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k");
    const bool by_gradient = c.text("method", "") == "gradient_rollout" || c.text("method", "") == "gradcam";
    const Mat<S> v = by_gradient ? c.in<S>("v") : Mat<S>(), gout = by_gradient ? c.in<S>("gout") : Mat<S>();
    const Mat<S> identity = Mat<S>::Identity(e.n, e.n);
    Tensors<S> all;
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::softmax(masks, {.scale = c.scale(q.cols())});
      using Op = std::remove_const_t<decltype(op)>;
      std::vector<limpid::Saved<Op, S>> saved(static_cast<std::size_t>(e.layers * e.heads));
      Mat<S> a(q.rows(), e.n), g(by_gradient ? q.rows() : 0, e.n);
      const auto head = [&](const Mat<S>& x, Index h) -> Mat<S> { return x.middleRows(h * e.n, e.n); };
      for (Index h = 0; h < e.layers * e.heads; ++h) {
        const Mat<S> qh = head(q, h), kh = head(k, h);
        Mat<S> out(e.n, e.n);
        limpid::forward(op, limpid::qkv(qh, kh, identity), out, {.saved = &saved[static_cast<std::size_t>(h)]});
        a.middleRows(h * e.n, e.n) = out;
        if (by_gradient) g.middleRows(h * e.n, e.n) = product_nt<S>(head(gout, h), head(v, h));
      }
      Layers<S> layers(a, g, e);
      by_maps(c, e, layers, all);
      Mat<S>&dq = all["grad.q"] = Mat<S>::Zero(q.rows(), q.cols()), &dk = all["grad.k"] = dq;
      for (Index h = 0; h < e.layers * e.heads; ++h) {
        const Mat<S> qh = head(q, h), kh = head(k, h), da = head(layers.da, h);
        Mat<S> gq = qh, gk = kh;
        limpid::backward(op, limpid::qkv(qh, kh, identity), saved[static_cast<std::size_t>(h)], da,
                         {.q = gq, .k = gk, .v = {}});
        dq.middleRows(h * e.n, e.n) = gq, dk.middleRows(h * e.n, e.n) = gk;
      }
      if (!by_gradient) return;
      Mat<S>&dv = all["grad.v"] = Mat<S>::Zero(v.rows(), v.cols()), &dg = all["grad.gout"] = dv;
      for (Index h = 0; h < e.layers * e.heads; ++h) {
        const Mat<S> dgh = head(layers.dg, h), turned = dgh.transpose();
        dg.middleRows(h * e.n, e.n) = product<S>(dgh, head(v, h));
        dv.middleRows(h * e.n, e.n) = product<S>(turned, head(gout, h));
      }
    });
    return all;
  }
};

const Registered<Rollout> rollout_cases;

}  // namespace golden
