// limpid: gradients of modifiers' tables under operators of several sweeps or maps, and under kernels, against central
// differences of the outputs.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limpid/op/differential.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/twicing.hpp>

#include "support/catch.hpp"
#include "support/fields.hpp"

using limpid::At;
using limpid::Index;
using limpid::Mat;
using M = Mat<double>;

namespace {

/// make(modifiers) is the operator; q and k have `width` columns a head.
template <class Make>
void gradients_hold(const char* name, const Make& make, Index width) {
  const Index n = 5, heads = 2, batch = 2;
  suite::Random random(9);
  M q = suite::random_matrix<double>(random, batch * n, heads * width),
    k = suite::random_matrix<double>(random, batch * n, heads * width),
    v = suite::random_matrix<double>(random, batch * n, heads * 3),
    dout = suite::random_matrix<double>(random, batch * n, heads * 3);
  M keys = suite::random_matrix<double>(random, batch, n),
    slopes = suite::random_matrix<double>(random, heads, 1, 0.1, 0.4),
    offsets = suite::random_matrix<double>(random, heads, 5),
    pairs = suite::random_matrix<double>(random, heads * n, n);
  keys(1, 3) = -HUGE_VAL;
  M dkeys(batch, n), dslopes(heads, 1), doffsets(heads, 5), dpairs(heads * n, n);

  const auto check = [&](const char* chain, const auto& plain, const auto& learning,
                         const std::vector<std::pair<M*, M*>>& tables) {
    const auto op = make(learning());
    using Op = std::remove_const_t<decltype(op)>;
    M out(batch * n, heads * 3), dq(q.rows(), q.cols()), dk(k.rows(), k.cols()), dv(v.rows(), v.cols());
    const auto value = [&] {
      limpid::forward(make(plain()), limpid::qkv(q, k, v), out, {.batch = batch, .heads = heads});
      return limpid::detail::dot(out.data(), dout.data(), out.size());
    };
    limpid::Saved<Op, double> saved;
    limpid::forward(op, limpid::qkv(q, k, v), out, {.batch = batch, .heads = heads, .saved = &saved});
    for (const auto& t : tables) t.second->setConstant(0.5);
    limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
    for (std::size_t t = 0; t < tables.size(); ++t)
      for (Index i = 0; i < tables[t].first->size(); ++i) {
        double& x = tables[t].first->data()[i];
        const double at = x, h = 1e-5;
        if (std::isinf(at)) {
          CHECK(tables[t].second->data()[i] == 0.5);
          continue;
        }
        x = at + h;
        const double up = value();
        x = at - h;
        const double down = value();
        x = at;
        INFO(name << ", " << chain << ", table " << t << ", entry " << i);
        CHECK(std::abs(tables[t].second->data()[i] - 0.5 - (up - down) / (2 * h)) < 1e-8);
      }
  };
  check(
      "amounts a key", [&] { return limpid::chain(limpid::key_bias(keys), limpid::alibi(slopes), limpid::causal()); },
      [&] { return limpid::chain(limpid::key_bias(keys, dkeys), limpid::alibi(slopes, dslopes), limpid::causal()); },
      {{&keys, &dkeys}, {&slopes, &dslopes}});
  const auto cap = limpid::score_mod([](double s, const At&) { return 2 * std::tanh(s / 2); },
                                     [](double s, const At&) { return 1 - std::tanh(s / 2) * std::tanh(s / 2); });
  check(
      "changes by pair",
      [&] { return limpid::chain(limpid::relative(offsets), cap, limpid::key_bias(keys), limpid::bias(pairs)); },
      [&] {
        return limpid::chain(limpid::relative(offsets, doffsets), cap, limpid::key_bias(keys, dkeys),
                             limpid::bias(pairs, dpairs));
      },
      {{&offsets, &doffsets}, {&keys, &dkeys}, {&pairs, &dpairs}});
}

}  // namespace

TEST_CASE("Gradients of tables are right where an operator has several sweeps, several maps, or a kernel.") {
  gradients_hold(
      "twicing", [](const auto& m) { return limpid::twicing(m, {.order = 2, .alpha = 0.8}); }, 3);
  gradients_hold(
      "differential", [](const auto& m) { return limpid::differential(m); }, 4);
  gradients_hold(
      "nlm", [](const auto& m) { return limpid::nlm(m); }, 3);
}
