// limpid: gradients of modifiers' tables under operators of several sweeps or maps, and under kernels, against central
// differences of the outputs.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limpid/explain/map.hpp>
#include <limpid/op/differential.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/twicing.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
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

TEST_CASE("Gradients of modifiers may lie over each other, but over no input, result, table or gradient") {
  suite::Random random(11);
  const Index n = 4;
  const auto make = [&](Index rows, Index cols) { return suite::random_matrix<double>(random, rows, cols); };
  M q = make(n, n), k = make(n, n), v = make(n, n), dout = make(n, n), table = make(n, n), keys = make(1, n),
    offsets = make(1, 3), slopes = M::Constant(1, 1, 0.5);
  M dq = q, dk = k, dv = v, dtable = M::Zero(n, n), weights = M::Ones(1, n), relevance(1, n);
  const M same[] = {q, k, v, dout, table, keys, offsets, slopes};
  const auto refused = [&](const auto& modifiers, const std::string& what) {
    const auto op = limpid::softmax(modifiers);
    limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
    M out(n, n);
    limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved});
    CHECK(suite::error_of([&] {
            limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv),
                             {.relevance_weights = weights, .relevance = relevance});
          }) == "softmax: " + what + ", wanted memory of its own");
    CHECK((dq == q && dk == k && dv == v));
    CHECK((q == same[0] && k == same[1] && v == same[2] && dout == same[3]));
    CHECK((table == same[4] && keys == same[5] && offsets == same[6] && slopes == same[7]));
  };
  const std::string shares = " shares memory with ";
  refused(limpid::bias(table, table), "gradient of the bias" + shares + "bias");
  refused(limpid::key_bias(keys, keys), "gradient of the key bias" + shares + "key bias");
  refused(limpid::relative(offsets, offsets), "gradient of the relative table" + shares + "relative table");
  refused(limpid::alibi(slopes, slopes), "gradient of the ALiBi slopes" + shares + "ALiBi slopes");
  refused(limpid::chain(limpid::bias(table), limpid::key_bias(keys, table.row(1))),
          "gradient of the key bias" + shares + "bias");
  refused(limpid::key_bias(keys, dq.row(0)), "gradient of q" + shares + "gradient of the key bias");
  refused(limpid::key_bias(keys, relevance), "relevance" + shares + "gradient of the key bias");
  refused(limpid::key_bias(keys, weights), "gradient of the key bias" + shares + "relevance_weights");
  refused(limpid::bias(table, dout), "gradient of the bias" + shares + "dout");
  refused(limpid::bias(table, q), "gradient of the bias" + shares + "q");
  refused(limpid::bias(dv), "gradient of v" + shares + "bias");

  // what a forward call or a look inside writes may not lie over a table either
  const auto op = limpid::softmax(limpid::bias(table));
  limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
  const std::string wanted = shares + "bias, wanted memory of its own";
  M out(n, n);
  CHECK(suite::error_of([&] { limpid::forward(op, limpid::qkv(q, k, v), table); }) == "softmax: out" + wanted);
  CHECK(suite::error_of([&] { limpid::forward(op, limpid::qkv(q, k, v), out, {.map = &table}); }) ==
        "softmax: map" + wanted);
  limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved});
  CHECK(suite::error_of([&] { limpid::map_block(op, limpid::qkv(q, k, v), saved, 0, 0, table); }) ==
        "softmax: out" + wanted);
  CHECK(table == same[4]);

  const auto once = limpid::softmax(limpid::bias(table, dtable));
  const auto twice = limpid::softmax(limpid::chain(limpid::bias(table, dtable), limpid::bias(out, dtable)));
  out.setZero();
  const auto gradient = [&](const auto& with) {
    limpid::Saved<std::remove_cvref_t<decltype(with)>, double> kept;
    M y(n, n);
    limpid::forward(with, limpid::qkv(q, k, v), y, {.saved = &kept});
    dtable.setZero();
    limpid::backward(with, limpid::qkv(q, k, v), kept, dout, limpid::grads(dq, dk, dv));
    return dtable;
  };
  const M alone = gradient(once);
  CHECK(suite::distance(gradient(twice), 2 * alone) < 1e-14);
}
