// limpid: golden cases of multi-head subspace self-attention with its projections.
// SPDX-License-Identifier: MIT
#include "subspace.hpp"

namespace golden {

struct Mssa {
  static constexpr const char* name = "mssa";
  static constexpr const char* switches = mssa_switches;

  template <class S>
  static Tensors<S> library(const Case& c) {
    Parameters<S, limpid::MssaLayerArgs> p(c);
    const Mat<S> x = c.in<S>("x"), dout = c.dout<S>();
    Mat<S> out(x.rows(), x.cols()), dx = x;
    const Index heads = c.count("heads", 1);
    with_masks(c, [&](const auto& masks) {
      const auto layer = limpid::mssa_layer(limpid::mssa(masks, mssa_options(c, p.value.u.cols() / heads)), heads);
      limpid::MssaLayerArgs<limpid::View<S>> in = p.value;
      in.x = x;
      limpid::MssaLayerArgs<limpid::MutView<S>> grad = p.grad;
      grad.x = dx;
      limpid::MssaLayerSaved<decltype(layer.op), S> saved;
      layer.forward(in, out, {.saved = &saved});
      layer.backward(in, saved, dout, grad);
    });
    Tensors<S> all{{"out.out", out}, {"grad.x", dx}};
    p.put(c, all);
    return all;
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    Tape<S> t;
    const auto u = t.in(c, "u");
    const Index heads = c.count("heads", 1);
    const auto out =
        plain_mssa(t, c, t.in(c, "x"), u, t.in(c, "wo"), t.in(c, "bo"), heads, c.scale(u->value.cols() / heads));
    out->grad = c.dout<S>();
    t.backward();
    Tensors<S> all{{"out.out", out->value}};
    t.gradients(all);
    return all;
  }
};

const Registered<Mssa> mssa_cases;

}  // namespace golden
