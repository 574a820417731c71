// limpid: contract: gradients against central differences.
// SPDX-License-Identifier: MIT
#include "problem.hpp"

#include <limpid/check/gradient.hpp>

using namespace suite;

namespace {

/// <out, dout>
double value_of(const Problem<double>& p, Mat<double>& out) {
  p.subject().forward(p.sizes, p.mods, views_of(p.in), out, {});
  return inner(out, p.dout);
}

/// Every entry of every gradient, or a random direction of each, against differences of <out, dout>.
void check_gradients(Problem<double> p, bool entries) {
  INFO(p.text());
  const Result<double> found = run(p);
  const double size = 1e-3 * largest_gradient(found);
  const bool smooth = p.op->traits.smooth;
  const double step = smooth ? 0 : 1e-6, bound = smooth ? 1e-8 : 1e-6;
  Mat<double> out(p.dout.rows(), p.dout.cols());
  Random random(p.seed + 5);
  const auto check = [&](const std::string& name, Mat<double>& x, const Mat<double>& gradient) {
    if (x.size() == 0) return;
    if (entries) {
      const Mat<double> wanted = limpid::numeric_gradient(
          x, [&] { return value_of(p, out); }, step);
      INFO("gradient of " << name << "\n" << gradient << "\nby differences\n" << wanted);
      CHECK(distance(gradient, wanted) <= bound * std::max({size, largest(wanted), 1e-3}));
      return;
    }
    const Mat<double> was = x, u = random_matrix<double>(random, x.rows(), x.cols());
    const double wanted = limpid::detail::central_difference(
        [&](double by) {
          x = was + by * u;
          return value_of(p, out);
        },
        smooth ? 0x1p-12 : 1e-7);  // all scores move at once: shorter, so that no kink is crossed
    x = was;
    const double got = inner(gradient, u), norm = std::sqrt(inner(gradient, gradient));
    INFO("derivative with respect to " << name << " along a random direction");
    CHECK(std::abs(got - wanted) <= bound * std::max({std::abs(wanted), norm, size, 1e-2}));
  };
  for (std::size_t f = 0; f < p.in.size(); ++f) check(p.in[f].name, p.in[f].value, found.grad[f].value);
  if (p.kind == Kind::masks || p.kind == Kind::values) check("key bias", p.mods.key_bias, found.dkey_bias);
}

}  // namespace

TEST_CASE("Gradients in double are those of central differences, entry by entry.") {
  for_operators([](const Operator& op) {
    Sizes small{4, 6};
    small.d = 3, small.dv = 2, small.heads = 2, small.kv_heads = 1, small.batch = 2;
    Sizes wide = small;
    wide.n = 6, wide.m = 3, wide.kv_heads = 2, wide.own_sides = true, wide.one_for_all = true;
    for (Kind kind : {Kind::none, Kind::causal, Kind::masks, Kind::values})
      for (const Sizes& s : {small, wide}) {
        auto p = make_problem<double>(op, kind, s, 11);
        dress(p);
        check_gradients(p, true);
      }
    check_gradients(make_problem<double>(op, Kind::none, small, 12, false), true);
    check_gradients(make_problem<double>(op, Kind::none, {1, 1}, 13), true);
  });
}

TEST_CASE("Gradients in double are those of central differences at ragged sizes.") {
  for_operators([](const Operator& op) {
    std::uint64_t seed = 20;
    for (const Sizes& s : ragged_sizes())
      for (Kind kind : {Kind::none, Kind::values}) {
        auto p = make_problem<double>(op, kind, s, ++seed);
        dress(p);
        check_gradients(p, false);
      }
  });
}

TEMPLATE_TEST_CASE("Accumulated gradients are added to what was there.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (Kind kind : {Kind::none, Kind::values}) {
      Sizes s{33, 31};
      s.heads = 4, s.kv_heads = 2, s.batch = 2;
      auto p = make_problem<S>(op, kind, s, 41);
      dress(p);
      INFO(p.text());
      const Result<S> once = run(p);
      const auto in = views_of(p.in);
      Ask<S> ask;
      ask.saved = p.subject().new_saved();
      Mat<S> out(p.dout.rows(), p.dout.cols()),
          dkey_bias = Mat<S>::Constant(p.mods.key_bias.rows(), p.mods.key_bias.cols(), S(0.5));
      p.subject().forward(p.sizes, p.mods, in, out, ask);
      Fields<S> grad = p.in;
      for (auto& g : grad) g.value.setConstant(S(0.5));
      limpid::BackwardCall<S> call;
      call.accumulate = true;
      p.mods.dkey_bias = &dkey_bias;
      p.subject().backward(p.mods, in, ask.saved.get(), p.dout, mutable_views_of(grad), call);
      const double bound = 64 * std::numeric_limits<S>::epsilon();
      for (std::size_t f = 0; f < grad.size(); ++f) {
        INFO("gradient of " << grad[f].name);
        const Mat<S> wanted = (once.grad[f].value.array() + S(0.5)).matrix();
        CHECK(distance(grad[f].value, wanted) <= bound * (1 + largest(wanted)));
      }
      const Mat<S> wanted = (once.dkey_bias.array() + S(0.5)).matrix();
      if (kind == Kind::values) CHECK(distance(dkey_bias, wanted) <= bound * (1 + largest(wanted)));
    }
  });
}

TEMPLATE_TEST_CASE("A gradient that is not asked for changes no bit of the others.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    Sizes s{33, 31};
    s.heads = 2, s.kv_heads = 1;
    const auto p = make_problem<S>(op, Kind::none, s, 42);
    INFO(p.text());
    const Result<S> all = run(p);
    const auto in = views_of(p.in);
    for (std::size_t left_out = 0; left_out < p.in.size(); ++left_out) {
      if (!p.in[left_out].given()) continue;
      Ask<S> ask;
      ask.saved = p.subject().new_saved();
      Mat<S> out(p.dout.rows(), p.dout.cols());
      p.subject().forward(p.sizes, p.mods, in, out, ask);
      Result<S> some = all;
      for (std::size_t f = 0; f < p.in.size(); ++f)
        if (f != left_out) some.grad[f].value.setConstant(S(7));
      auto views = mutable_views_of(some.grad);
      views[left_out] = MutView<S>();
      p.subject().backward(p.mods, in, ask.saved.get(), p.dout, views, {});
      INFO("without the gradient of " << p.in[left_out].name);
      CHECK(differing(all, some) == "");
    }
  });
}
