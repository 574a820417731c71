// limpid: contract: a key bias of the lowest number, which is a number: it orders keys, and masks none.
// SPDX-License-Identifier: MIT
#include "problem.hpp"

using namespace suite;

namespace {

/// The tokens from `from` of a problem of one head.
template <class S>
Problem<S> tokens(const Problem<S>& p, Kind kind, Index from, Index count) {
  Problem<S> part = p;
  part.kind = kind, part.sizes.n = part.sizes.m = count;
  for (auto& f : part.in)
    if (f.given() && f.role != Role::head) f.value = Mat<S>(f.value.middleRows(from, count));
  part.dout = Mat<S>(p.dout.middleRows(from, count));
  part.mods.key_bias = Mat<S>(p.mods.key_bias.middleCols(from, count));
  return part;
}

/// Rows that see keys of the lowest number alone are as without the bias, all others as if these keys were masked: with
/// such a bias on the first keys under a causal mask, an operator is two operators side by side.
template <class S>
void check_apart(Problem<S> p, double bound) {
  const Index n = p.sizes.n, first = 67;
  const S low = -std::numeric_limits<S>::max();
  p.mods.key_bias.leftCols(first).setConstant(low);
  p.mods.causal = true;
  INFO(p.text());
  Options<S> asked;
  asked.lse = true;
  const Result<S> whole = run(p, asked), one = run(tokens(p, Kind::causal, 0, first), asked),
                  two = run(tokens(p, Kind::causal, first, n - first), asked);
  const auto check = [&](const std::string& name, const Mat<S>& all, const Mat<S>& head, const Mat<S>& tail) {
    INFO(name);
    const double size = 1 + std::max(largest(head), largest(tail));
    CHECK(distance(Mat<S>(all.topRows(first)), head) <= bound * size);
    CHECK(distance(Mat<S>(all.bottomRows(n - first)), tail) <= bound * size);
  };
  check("out", whole.out, one.out, two.out);
  for (std::size_t f = 0; f < p.in.size(); ++f) {
    if (!p.in[f].given() || p.in[f].role == Role::head) continue;
    check("gradient of " + p.in[f].name, whole.grad[f].value, one.grad[f].value, two.grad[f].value);
  }
  CHECK(Mat<S>(whole.lse.leftCols(first)) == Mat<S>::Constant(whole.lse.rows(), first, low));
  CHECK(distance(Mat<S>(whole.lse.rightCols(n - first)), two.lse) <= 4 * bound);
}

}  // namespace

TEMPLATE_TEST_CASE("In every operator a row that sees but keys of the lowest number is as without it.", "", float,
                   double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    // tokens of the first have more in common than keys, and weights without a row sum are compared with nothing
    if (op.traits.residual || !op.has_lse) return;
    const double bound = 256 * static_cast<double>(std::numeric_limits<S>::epsilon());
    auto p = make_problem<S>(op, Kind::masks, {150, 150}, 801);
    check_apart(p, bound);
    for (auto& f : p.in)
      if (f.name == "h") {
        f.value.setConstant(S(0.25));  // distances summed by pair
        check_apart(p, bound);
      }
  });
}
