// limpid: golden cases of boosting residuals: the schemes round a fixed map, and the block round a sublayer.
// SPDX-License-Identifier: MIT
#include <limpid/layer/boosting_block.hpp>

#include "plain.hpp"

namespace golden {

struct BoostingResidual {
  static constexpr const char* name = "boosting_residual";
  static constexpr const char* switches = "scheme steps skip scale causal";

  static limpid::BoostingScheme scheme(const Case& c) {
    const std::string text = c.text("scheme", "l2boost");
    if (text == "diffusion") return limpid::BoostingScheme::diffusion;
    if (text == "l2boost") return limpid::BoostingScheme::l2boost;
    if (text == "sos") return limpid::BoostingScheme::sos;
    throw Refused("scheme is '" + text + "', wanted diffusion, l2boost, sos or block");
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    if (c.text("scheme", "") == "block") return library_block<S>(c);
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), tau = c.in_or_none<S>("tau"),
                 rho = c.in_or_none<S>("rho"), dout = c.dout<S>();
    Mat<S> dq = q, dk = k, dv = v, dtau = tau, drho = rho, out(q.rows(), v.cols());
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::boosting(limpid::softmax(masks, {.scale = c.scale(q.cols())}),
                                       {.scheme = scheme(c), .steps = c.integer("steps", 1), .skip = c.flag("skip")});
      using Op = std::remove_const_t<decltype(op)>;
      limpid::Saved<Op, S> saved;
      const limpid::Inputs<Op, S> in{limpid::qkv(q, k, v), tau, rho};
      limpid::forward(op, in, out, {.saved = &saved});
      limpid::backward(op, in, saved, dout, {limpid::grads(dq, dk, dv), dtau, drho});
    });
    return {{"out.out", out}, {"grad.q", dq}, {"grad.k", dk}, {"grad.v", dv}, {"grad.tau", dtau}, {"grad.rho", drho}};
  }

  /// f(s) = attention(s wq, s wk, s wv) inside the block.
  template <class S>
  static Tensors<S> library_block(const Case& c) {
    const Mat<S> x = c.in<S>("x"), u = c.in<S>("u"), wq = c.in<S>("wq"), wk = c.in<S>("wk"), wv = c.in<S>("wv"),
                 tau = c.in<S>("tau"), rho = c.in<S>("rho"), dout = c.dout<S>(), du_next = c.dout<S>("u_next");
    const Index n = x.rows();
    Mat<S> q(n, wq.cols()), k(n, wk.cols()), v(n, wv.cols()), dq = q, dk = k, dv = v, out = x, u_next = x;
    Mat<S> dx = x, du = u, dwq = wq, dwk = wk, dwv = wv, dtau = tau, drho = rho;
    with_masks(c, [&](const auto& masks) {
      using limpid::View, limpid::MutView;
      const auto op = limpid::softmax(masks, {.scale = c.scale(wq.cols())});
      limpid::Saved<std::remove_const_t<decltype(op)>, S> attention;
      limpid::BoostingBlockSaved<S> saved;
      const limpid::BoostingBlockArgs<View<S>> in{x, u, tau, rho};
      const auto f = [&](View<S> s, MutView<S> z) {
        limpid::linear(s, wq, View<S>(), q);
        limpid::linear(s, wk, View<S>(), k);
        limpid::linear(s, wv, View<S>(), v);
        limpid::forward(op, limpid::qkv(q, k, v), z, {.saved = &attention});
      };
      const auto vjp = [&](View<S> s, View<S> dz, MutView<S> ds) {
        limpid::backward(op, limpid::qkv(q, k, v), attention, dz, limpid::grads(dq, dk, dv));
        const limpid::LayerCall add{.accumulate = true};
        limpid::linear_backward(s, wq, dq, {ds, dwq, {}});
        limpid::linear_backward(s, wk, dk, {{}, dwk, {}});
        limpid::linear_backward(s, wk, dk, {ds, {}, {}}, add);
        limpid::linear_backward(s, wv, dv, {{}, dwv, {}});
        limpid::linear_backward(s, wv, dv, {ds, {}, {}}, add);
      };
      limpid::boosting_block(in, f, out, u_next, &saved);
      limpid::boosting_block_backward(in, saved, vjp, dout, du_next, {dx, du, dtau, drho});
    });
    return {{"out.out", out}, {"out.u_next", u_next}, {"grad.x", dx},     {"grad.u", du},    {"grad.wq", dwq},
            {"grad.wk", dwk}, {"grad.wv", dwv},       {"grad.tau", dtau}, {"grad.rho", drho}};
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    if (c.text("scheme", "") == "block") return formula_block<S>(c);
    using Scheme = limpid::BoostingScheme;
    const Scheme kind = scheme(c);
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.dout<S>();
    const S tau = c.has("tau") ? c.in<S>("tau")(0, 0) : S(1), rho = c.has("rho") ? c.in<S>("rho")(0, 0) : S(1);
    const S scale = static_cast<S>(c.scale(q.cols())), kappa = tau * rho + tau - 1;
    const Index steps = c.integer("steps", 1);
    const PlainAttention<S> plain(scaled(scale, product_nt(q, k)), c.visible(q.rows(), k.rows()), v, dout);
    const Mat<S>& a = plain.a;
    const auto mixed = [&](const Mat<S>& u) -> Mat<S> {  // what A is applied to
      return kind == Scheme::diffusion ? u : (kind == Scheme::l2boost ? Mat<S>(v - u) : Mat<S>(v + scaled(rho, u)));
    };
    std::vector<Mat<S>> u{kind == Scheme::diffusion ? v : plain.out};
    for (Index t = 1; t <= steps; ++t) {
      const S kept = kind == Scheme::diffusion ? 1 - tau : (kind == Scheme::l2boost ? S(1) : -kappa);
      u.push_back(scaled(tau, product(a, mixed(u.back()))) + scaled(kept, u.back()));
    }
    Mat<S> out = u.back(), g = dout, dv = Mat<S>::Zero(v.rows(), v.cols()), da = Mat<S>::Zero(a.rows(), a.cols());
    if (c.flag("skip")) out += v, dv += dout;
    S dtau = 0, drho = 0;
    for (Index t = steps; t >= 1; --t) {
      const Mat<S>& before = u[static_cast<std::size_t>(t - 1)];
      const Mat<S> h = product_tn(a, g), w = mixed(before), aw = product(a, w);
      da += scaled(tau, product_nt(g, w));
      dtau += dot(g, aw);
      if (kind == Scheme::diffusion) {
        dtau -= dot(g, before);
        g = scaled(1 - tau, g) + scaled(tau, h);
      } else if (kind == Scheme::l2boost) {
        dv += scaled(tau, h);
        g -= scaled(tau, h);
      } else {
        dtau -= (rho + 1) * dot(g, before);
        drho += tau * (dot(h, before) - dot(g, before));
        dv += scaled(tau, h);
        g = scaled(tau * rho, h) - scaled(kappa, g);
      }
    }
    if (kind == Scheme::diffusion) {
      dv += g;
    } else {
      dv += product_tn(a, g);
      da += product_nt(g, v);
    }
    const Mat<S> ds = softmax_gradient(a, da);
    return {{"out.out", out}, {"grad.q", scaled(scale, product(ds, k))},  {"grad.k", scaled(scale, product_tn(ds, q))},
            {"grad.v", dv},   {"grad.tau", Mat<S>::Constant(1, 1, dtau)}, {"grad.rho", Mat<S>::Constant(1, 1, drho)}};
  }

  template <class S>
  static Tensors<S> formula_block(const Case& c) {
    const Mat<S> x = c.in<S>("x"), u = c.in<S>("u"), wq = c.in<S>("wq"), wk = c.in<S>("wk"), wv = c.in<S>("wv");
    const S tau = c.in<S>("tau")(0, 0), rho = c.in<S>("rho")(0, 0), kappa = tau * rho + tau - 1;
    const S scale = static_cast<S>(c.scale(wq.cols()));
    const Mat<S> g = c.dout<S>(), w = c.dout<S>("u_next"), e = g + w, s = x + scaled(rho, u), dz = scaled(tau, e);
    const Mat<S> q = product(s, wq), k = product(s, wk), v = product(s, wv);
    const PlainAttention<S> plain(scaled(scale, product_nt(q, k)), c.visible(x.rows(), x.rows()), v, dz);
    const Mat<S> u_next = scaled(tau, plain.out) - scaled(kappa, u);
    const Mat<S> dq = scaled(scale, product(plain.ds, k)), dk = scaled(scale, product_tn(plain.ds, q));
    const Mat<S> ds = Mat<S>(product_nt(dq, wq) + product_nt(dk, wk)) + product_nt(plain.dv, wv);
    const S eu = dot(e, u);
    return {{"out.out", x + u_next},
            {"out.u_next", u_next},
            {"grad.x", g + ds},
            {"grad.u", scaled(rho, ds) - scaled(kappa, e)},
            {"grad.wq", product_tn(s, dq)},
            {"grad.wk", product_tn(s, dk)},
            {"grad.wv", product_tn(s, plain.dv)},
            {"grad.tau", Mat<S>::Constant(1, 1, dot(e, plain.out) - (rho + 1) * eu)},
            {"grad.rho", Mat<S>::Constant(1, 1, dot(ds, u) - tau * eu)}};
  }
};

const Registered<BoostingResidual> boosting_residual_cases;

}  // namespace golden
