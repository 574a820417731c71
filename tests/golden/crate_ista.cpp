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

  template <class S>
  static Tensors<S> formula(const Case& c) {
    using Var = typename Tape<S>::Var;
    Tape<S> t;
    const double eps = c.number("eps", 1e-5);
    const S eta = S(c.number("eta", 0.1)), lambda = S(c.number("lambda", 0.1));
    const Var d = t.in(c, "d");
    const auto norm = [&](Var y, const std::string& of) {
      return t.normed(y, t.in(c, "gamma" + of), t.in(c, "beta" + of), eps);
    };
    const bool block = c.text("block", "ista") == "crate";
    Var b = t.in(c, "x");
    if (block) {
      const Var u = t.in(c, "u");
      const Index heads = c.count("heads", 1);
      const double scale = 1 / std::sqrt(double(u->value.cols() / heads));
      b = t.add(b, plain_mssa(t, c, norm(b, "1"), u, t.in(c, "wo"), t.in(c, "bo"), heads, scale));
    }
    if (block || c.has("gamma2")) b = norm(b, "2");
    const Var step = t.product(t.subtract(b, t.product(b, t.transposed(d))), d);  // B W - B W^T W
    const Var less = t.leaf(Mat<S>::Constant(1, d->value.cols(), -eta * lambda));
    const Var out = t.each(t.plus_row(t.add(b, t.scaled(eta, step)), less), relu_of<S>, relu_slope<S>);
    out->grad = c.dout<S>();
    t.backward();
    Tensors<S> all{{"out.out", out->value}};
    t.gradients(all);
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
