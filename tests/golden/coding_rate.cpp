// limpid: golden cases of coding rates and sparsity.
// SPDX-License-Identifier: MIT
#include "plain.hpp"

namespace golden {

struct CodingRate {
  static constexpr const char* name = "coding_rate";
  static constexpr const char* switches = "heads eps2 normalise";

  template <class S>
  static Tensors<S> library(const Case& c) {
    const Mat<S> x = c.in<S>("x"), u = c.in<S>("u");
    const limpid::CodingRateOptions options{c.number("eps2", 0.01), c.flag("normalise"), c.count("heads", 1)};
    const limpid::RateReduction all = limpid::rate_reduction(x, u, options);
    const double reduction = static_cast<double>(c.dout<S>("reduction")(0, 0));
    Mat<S> dx(x.rows(), x.cols()), du(u.rows(), u.cols());
    limpid::coding_rate_backward(x, static_cast<double>(c.dout<S>("rate")(0, 0)) + reduction, dx, options);
    Mat<S> more(x.rows(), x.cols());
    limpid::subspace_coding_rate_backward(x, u, static_cast<double>(c.dout<S>("rate_c")(0, 0)) - reduction, more, du,
                                          options);
    dx += more;
    const auto number = [](double value) { return Mat<S>(Mat<S>::Constant(1, 1, static_cast<S>(value))); };
    return {{"out.rate", number(all.rate)},
            {"out.rate_c", number(all.rate_c)},
            {"out.reduction", number(all.reduction())},
            {"out.nonzero", number(all.nonzero)},
            {"grad.x", dx},
            {"grad.u", du}};
  }
};

const Registered<CodingRate> coding_rate_cases;

}  // namespace golden
