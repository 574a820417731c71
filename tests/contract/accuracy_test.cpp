// limpid: contract: errors against the same operator in long double.
// SPDX-License-Identifier: MIT
#include "problem.hpp"

#include "support/naive.hpp"

using namespace suite;

namespace {

/// Errors of one array over several problems, each relative to the largest entry of the true one.
struct Errors {
  double squares = 0, worst = 0;
  Index count = 0;

  template <class S>
  void add(const Mat<S>& found, const Mat<long double>& wanted, double size) {
    REQUIRE(found.rows() == wanted.rows());
    REQUIRE(found.cols() == wanted.cols());
    for (Index i = 0; i < found.size(); ++i) {
      const double e =
          static_cast<double>(std::abs(static_cast<long double>(found.data()[i]) - wanted.data()[i])) / size;
      squares += e * e, worst = std::isnan(e) ? HUGE_VAL : std::max(worst, e), ++count;
    }
  }
  double rms() const { return count == 0 ? 0 : std::sqrt(squares / static_cast<double>(count)); }
};

/// The plain formula in float: written down for softmax and nlm; for others the operator itself without SIMD, whose
/// sums run one after the other.
Result<float> plain_float(const Problem<float>& p) {
  const std::string name = p.op->name;
  Options<float> plain;
  plain.subject = p.op->plain_float.get();
  if (name != "softmax" && name != "nlm") return run(p, plain);
  auto q = p;
  const auto of = [&](const char* field) -> const Mat<float>& { return q.field(field).value; };
  Naive<float> r = name == "softmax" ? Naive<float>::softmax(of("q"), of("k"), of("v"), p.dout)
                                     : Naive<float>::nlm(of("q"), of("k"), of("v"), of("h")(0, 0), of("pq"), of("pk"),
                                                         of("h_space")(0, 0), p.dout);
  Result<float> result;
  result.out = r.out;
  for (const auto& f : p.in) result.grad.push_back({f.name, f.role, r.grad.at(f.name)});
  return result;
}

}  // namespace

TEST_CASE("In double every result is within 1e-10 of that in long double.") {
  for_operators([](const Operator& op) {
    std::uint64_t seed = 700;
    for (Kind kind : {Kind::none, Kind::causal, Kind::masks, Kind::values})
      for (const Sizes& ragged : ragged_sizes()) {
        if (kind != Kind::none && ragged.n * ragged.m % 3 == 0) continue;  // not all of them with every chain
        Sizes s = ragged;
        if (++seed % 2 == 0) s.heads = 2, s.kv_heads = 1;
        auto p = make_problem<double>(op, kind, s, seed);
        dress(p);
        INFO(p.text());
        Options<double> asked;
        asked.map = asked.lse = true, asked.relevance = op.traits.relevance;
        const auto found = run(p, asked);
        Options<long double> asked_too;
        asked_too.map = asked_too.lse = true, asked_too.relevance = op.traits.relevance;
        const auto wanted = run(convert<long double>(p), asked_too);
        const double size = largest_gradient(wanted);
        CHECK(distance(found.out, wanted.out) <= 1e-10 * std::max(largest(wanted.out), 1e-3));
        CHECK(distance(found.map, wanted.map) <= 1e-10);
        for (Index i = 0; i < found.lse.size(); ++i)
          CHECK((found.lse.data()[i] == wanted.lse.data()[i] ||
                 std::abs(found.lse.data()[i] - static_cast<double>(wanted.lse.data()[i])) <= 1e-12 * 100));
        for (std::size_t f = 0; f < found.grad.size(); ++f) {
          INFO("gradient of " << found.grad[f].name);
          CHECK(distance(found.grad[f].value, wanted.grad[f].value) <=
                1e-10 * std::max({largest(wanted.grad[f].value), 1e-3 * size, 1e-6}));
        }
        if (kind == Kind::masks || kind == Kind::values)
          CHECK(distance(found.dkey_bias, wanted.dkey_bias) <= 1e-10 * std::max(size, 1e-6));
        CHECK(distance(found.relevance, wanted.relevance) <= 1e-10 * std::max(1.0, largest(wanted.relevance)));
      }
  });
}

TEST_CASE("In float every result is within the operator's multiple of the plain float formula's error.") {
  for_operators([](const Operator& op) {
    std::map<std::string, Errors> ours, plain;
    // Parameters have one gradient a problem, a sum that may cancel: the small size is drawn often, so that neither
    // side's error is luck.
    for (const Sizes& ragged : {Sizes{63, 129}, Sizes{31, 300}, Sizes{31, 33}, Sizes{129, 65}, Sizes{8, 700}})
      for (std::uint64_t seed = 801; seed <= (ragged.n * ragged.m < 2000 ? 824 : 802); ++seed) {
        Sizes s = ragged;
        s.d = 32, s.dv = 16;
        const auto p = make_problem<float>(op, Kind::none, s, seed);
        const auto wanted = run(convert<long double>(p));
        const auto found = run(p), formula = plain_float(p);
        ours["out"].add(found.out, wanted.out, largest(wanted.out));
        plain["out"].add(formula.out, wanted.out, largest(wanted.out));
        const double all = 1e-3 * largest_gradient(wanted);
        for (std::size_t f = 0; f < wanted.grad.size(); ++f) {
          if (!wanted.grad[f].given()) continue;
          const std::string name = "gradient of " + wanted.grad[f].name;
          const double size = std::max(largest(wanted.grad[f].value), all);
          ours[name].add(found.grad[f].value, wanted.grad[f].value, size);
          plain[name].add(formula.grad[f].value, wanted.grad[f].value, size);
        }
      }
    for (const auto& [name, error] : ours) {
      const Errors& formula = plain[name];
      INFO(op.name << ", " << name << ": rms error " << error.rms() << ", of the plain formula " << formula.rms()
                   << "; largest " << error.worst << " and " << formula.worst);
      CHECK(error.rms() <= op.traits.float_multiple * formula.rms());
      CHECK(error.worst <= 2 * op.traits.float_multiple * formula.worst);
    }
  });
}
