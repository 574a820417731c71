// limpid: backward of a layer against central differences, parameter by parameter.
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/check/gradient.hpp>
#include <string>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace suite {

/// Checks every array of `parameters` that is not empty, and that
/// a second backward with accumulate doubles every gradient.
template <template <class> class Args, class Layer>
void check_layer_gradient(const Layer& layer, Args<Mat<double>> parameters, Index out_rows, Index out_cols,
                          Index batch = 1, double bound = 1e-9) {
  Args<Mat<double>> found;
  Args<Mat<double>>::visit(
      [](const char*, const Mat<double>& p, Mat<double>& g) { g = Mat<double>::Constant(p.rows(), p.cols(), 7); },
      parameters, found);
  Random random(99);
  const Mat<double> dout = random_matrix<double>(random, out_rows, out_cols);
  Mat<double> out(out_rows, out_cols);
  typename Layer::template Saved<double> saved;
  const auto value = [&] {
    Args<View<double>> in = parameters;
    layer.forward(in, out, {.batch = batch});
    return out.cwiseProduct(dout).sum();
  };
  const double plain = value();
  Args<View<double>> in = parameters;
  layer.forward(in, out, {.batch = batch, .saved = &saved});
  CHECK(out.cwiseProduct(dout).sum() == plain);  // keeping changes nothing
  Args<MutView<double>> grad = found;
  layer.backward(in, saved, dout, grad);
  const Args<Mat<double>> once = found;
  double size = 0;
  Args<Mat<double>>::visit(
      [&](const char*, const Mat<double>& g) {
        if (g.size() > 0) size = std::max(size, g.cwiseAbs().maxCoeff());
      },
      found);
  Args<Mat<double>>::visit(
      [&](const char* name, Mat<double>& p, const Mat<double>& g) {
        if (p.size() == 0) return;
        const Mat<double> wanted = limpid::numeric_gradient(p, value);
        INFO(name);
        CHECK(suite::distance(wanted, g) < bound * size);
      },
      parameters, found);
  layer.backward(in, saved, dout, grad, {.accumulate = true});
  Args<Mat<double>>::visit(
      [&](const char* name, const Mat<double>& two, const Mat<double>& one) {
        if (one.size() == 0) return;
        INFO(name);
        CHECK(suite::distance(two, 2 * one) < 1e-13 * size);
      },
      found, once);
}

}  // namespace suite
