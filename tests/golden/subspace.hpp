// limpid: what the golden cases of subspace attention and its layers share.
// SPDX-License-Identifier: MIT
#pragma once

#include "tape.hpp"

namespace golden {

inline constexpr const char* mssa_switches = "causal heads scale phi tau";

/// Phi, tau and scale of a case; p is the width of a head.
inline limpid::MssaOptions mssa_options(const Case& c, Index p) {
  limpid::MssaOptions options;
  options.scale = c.scale(p);
  options.tau = c.number("tau", 0);
  const std::string phi = c.text("phi", "softmax");
  if (phi != "softmax" && phi != "threshold") throw Refused("phi is '" + phi + "'");
  if (phi == "threshold") options.phi = limpid::Phi::threshold;
  return options;
}

/// One layer's parameters by the names they have in a file, and as many gradients, filled with 7 so that what is not
/// written shows. layers > 0: the first axis of every tensor is the layer.
template <class S, template <class> class Args>
struct Parameters {
  Args<Mat<S>> value, grad;

  explicit Parameters(const Case& c, Index layer = 0, Index layers = 0) {
    Args<Mat<S>>::visit(
        [&](const char* field, Mat<S>& v, Mat<S>& g) {
          const std::string name = file_name(c, field);
          if (name == "x" || !c.has(name)) return;
          v = c.shape(name).size() == 1 && layers == 0 ? c.row<S>(name) : c.in<S>(name);
          if (layers > 0) v = Mat<S>(v.middleRows(layer * (v.rows() / layers), v.rows() / layers));
          g = Mat<S>::Constant(v.rows(), v.cols(), S(7));
        },
        value, grad);
  }
  /// Adds the gradients, below those of earlier layers.
  void put(const Case& c, Tensors<S>& all) const {
    Args<Mat<S>>::visit(
        [&](const char* field, const Mat<S>& g) {
          if (g.size() == 0) return;
          Mat<S>& to = all["grad." + file_name(c, field)];
          const Index rows = to.size() == 0 ? 0 : to.rows();
          to.conservativeResize(rows + g.rows(), g.cols());
          to.bottomRows(g.rows()) = g;
        },
        grad);
  }

 private:
  static std::string file_name(const Case& c, const std::string& field) {
    if (field == "dictionary") return "d";
    return (field == "gamma" || field == "beta") && c.has(field + "2") ? field + "2"
                                                                       : field;  // the second norm of a block
  }
};

/// The formula of subspace attention with its projections; wo null: tied.
template <class S>
typename Tape<S>::Var plain_mssa(Tape<S>& t, const Case& c, typename Tape<S>::Var x, typename Tape<S>::Var u,
                                 typename Tape<S>::Var wo, typename Tape<S>::Var bo, Index heads, double scale) {
  using Var = typename Tape<S>::Var;
  const Var y = t.product(x, u);
  const Index n = y->value.rows(), p = y->value.cols() / heads;
  std::vector<Var> outs;
  for (Index h = 0; h < heads; ++h) {
    const Var own = t.columns(y, h * p, p);
    Var a = t.softmax(t.scaled(S(scale), t.product(own, t.transposed(own))), c.visible(n, n));
    if (c.text("phi", "softmax") == "threshold") {
      const S tau = S(c.number("tau", 0));
      Mat<S> passed = a->value;
      for (Index i = 0; i < passed.size(); ++i) passed.data()[i] = passed.data()[i] > tau ? tau : S(0);
      a = t.leaf(passed);  // no gradient goes through the step
    }
    outs.push_back(t.product(a, own));
  }
  return t.linear(t.beside(outs), wo == nullptr ? t.transposed(u) : wo, bo);
}

}  // namespace golden
