// limpid: golden cases of the attention-only transformer: stacks of layers, the gradient through all of them.
// SPDX-License-Identifier: MIT
#include "subspace.hpp"

namespace golden {

struct AotBlock {
  static constexpr const char* name = "aot_block";
  static constexpr const char* switches = "attention causal eps heads norm phi scale tau";

  template <class S>
  static Tensors<S> library(const Case& c) {
    const Mat<S> x = c.in<S>("x"), dout = c.dout<S>();
    const Index layers = c.shape("eta")[0];
    const std::string attention = c.text("attention", "mssa"), norm = c.text("norm", "layer");
    if ((attention != "mssa" && attention != "mhsa") || (norm != "layer" && norm != "none"))
      throw Refused("attention is '" + attention + "', norm is '" + norm + "'");
    limpid::AotOptions options;
    options.heads = c.count("heads", 1);
    options.norm = norm == "layer";
    options.eps = c.number("eps", 1e-5);

    std::vector<limpid::AotArgs<Mat<S>>> values, grads;
    for (Index l = 0; l < layers; ++l) {
      const Parameters<S, limpid::AotArgs> p(c, l, layers);
      values.push_back(p.value), grads.push_back(p.grad);
    }
    const Index p = (attention == "mssa" ? values[0].u : values[0].wq).cols() / options.heads;
    Mat<S> out(x.rows(), x.cols()), dx = x;
    const auto run = [&](const auto& op) {
      const limpid::AotStack<std::remove_cvref_t<decltype(op)>> stack{limpid::aot(op, options)};
      limpid::AotStackSaved<std::remove_cvref_t<decltype(op)>, S> saved;
      stack.forward(x, values, out, {.saved = &saved});
      stack.backward(x, values, saved, dout, dx, grads);
    };
    with_masks(c, [&](const auto& masks) {
      if (attention == "mssa")
        run(limpid::mssa(masks, mssa_options(c, p)));
      else
        run(limpid::softmax(masks, {.scale = c.scale(p)}));
    });
    Tensors<S> all{{"out.out", out}, {"grad.x", dx}};
    for (Index l = 0; l < layers; ++l) {
      Parameters<S, limpid::AotArgs> one(c, l, layers);
      one.grad = grads[static_cast<std::size_t>(l)];
      one.put(c, all);
    }
    return all;
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    using Var = typename Tape<S>::Var;
    Tape<S> t;
    const Index layers = c.shape("eta")[0], heads = c.count("heads", 1);
    const bool norm = c.text("norm", "layer") == "layer";
    Var x = t.in(c, "x");
    for (Index l = 0; l < layers; ++l) {
      const auto in = [&](const std::string& name) -> Var {
        const Var all = t.in(c, name);
        if (all == nullptr) return nullptr;
        return t.rows(all, l * (all->value.rows() / layers), all->value.rows() / layers);
      };
      const Var h = norm ? t.normed(x, in("gamma"), in("beta"), c.number("eps", 1e-5)) : x;
      Var step;
      if (c.text("attention", "mssa") == "mssa") {
        const Var u = in("u");
        step = plain_mssa(t, c, h, u, in("wo"), in("bo"), heads, c.scale(u->value.cols() / heads));
      } else {
        const Var q = t.product(h, in("wq")), k = t.product(h, in("wk")), v = t.product(h, in("wv"));
        const Index n = q->value.rows();
        step = t.attention(q, k, v, heads, heads, c.scale(q->value.cols() / heads), c.visible(n, n));
        step = t.linear(step, in("wo"), in("bo"));
      }
      x = t.add(x, t.times_number(step, t.columns(t.in(c, "eta"), l, 1)));
    }
    x->grad = c.dout<S>();
    t.backward();
    Tensors<S> all{{"out.out", x->value}};
    t.gradients(all);
    return all;
  }
};

const Registered<AotBlock> aot_block_cases;

}  // namespace golden
