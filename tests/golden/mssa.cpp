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
};

const Registered<Mssa> mssa_cases;

}  // namespace golden
