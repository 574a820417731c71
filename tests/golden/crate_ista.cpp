// limpid: golden cases of the ISTA step and of the whole CRATE block.
// SPDX-License-Identifier: MIT
#include "subspace.hpp"

namespace golden {

struct CrateIsta {
  static constexpr const char* name = "crate_ista";
  static constexpr const char* switches = "block eta lambda heads causal eps";

  template <class S>
  static Tensors<S> library(const Case& c) {
    const std::string block = c.text("block", "ista");
    const double eta = c.number("eta", 0.1), lambda = c.number("lambda", 0.1), eps = c.number("eps", 1e-5);
    if (block == "ista") return run<S, limpid::IstaArgs>(c, limpid::Ista{eta, lambda, c.has("gamma2"), eps});
    if (block != "crate") throw Refused("block is '" + block + "'");
    Tensors<S> all;
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::mssa(masks);
      all = run<S, limpid::CrateArgs>(c, limpid::crate(op, {c.count("heads", 1), eta, lambda, eps}));
    });
    return all;
  }

 private:
  template <class S, template <class> class Args, class Layer>
  static Tensors<S> run(const Case& c, const Layer& layer) {
    Parameters<S, Args> p(c);
    const Mat<S> x = c.in<S>("x"), dout = c.dout<S>();
    Mat<S> out(x.rows(), x.cols()), dx = x;
    Args<limpid::View<S>> in = p.value;
    in.x = x;
    Args<limpid::MutView<S>> grad = p.grad;
    grad.x = dx;
    typename Layer::template Saved<S> saved;
    layer.forward(in, out, {.saved = &saved});
    layer.backward(in, saved, dout, grad);
    Tensors<S> all{{"out.out", out}, {"grad.x", dx}};
    p.put(c, all);
    return all;
  }
};

const Registered<CrateIsta> crate_ista_cases;

}  // namespace golden
