// limpid: sinks, beside one more key without a value that all queries give the sink's logit.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <functional>
#include <limpid/explain/map.hpp>
#include <limpid/layer/twicing_cache.hpp>
#include <limpid/limpid.hpp>
#include <map>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

using limpid::At, limpid::chain, limpid::softmax;
using limpid::Index, limpid::Mat;
using suite::distance;
using M = Mat<double>;

namespace {

using Results = std::map<std::string, M>;

M numbers(Index rows, Index cols, double kind) {
  M x(rows, cols);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j) x(i, j) = std::sin(kind + 12.9898 * double(i) + 78.233 * double(j * j));
  return x;
}
/// Whether a field has a row more where there is a key more, and in square operators a query more.
bool is_longer(const suite::Field<double>& f, bool square) {
  using limpid::Role;
  if (!f.given()) return false;
  if (f.role == Role::query || f.role == Role::query_side) return square;
  return f.role == Role::key || f.role == Role::key_side;
}

/// What an operator can be asked. extended: with one key more than counts, and one query where it is square.
template <class Entry, class Op>
Results run(const Op& op, const suite::Sizes& s, const suite::Fields<double>& fields, bool extended) {
  using In = limpid::Inputs<Op, double>;
  using Grad = limpid::Grads<Op, double>;
  const suite::Traits traits = Entry::traits();
  const Index n = s.n, m = s.m;  // of the call
  const bool more_queries = extended && traits.square;
  const In in = suite::args_of<In>(suite::views_of(fields));
  limpid::Saved<Op, double> saved;
  Results r;
  M out(n, s.heads * s.dv), lse;
  constexpr bool has_lse = limpid::detail::has_lse<Op>;
  limpid::forward(op, in, out,
                  {.heads = s.heads, .kv_heads = s.kv_heads, .saved = &saved, .lse = has_lse ? &lse : nullptr});
  const Index rows = n - more_queries, keys = m - extended;
  r["out"] = out.topRows(rows);
  if (has_lse) r["lse"] = lse.leftCols(rows);
  M map(n, m), right(n, 2), left(2, m), x = M::Zero(m, 2), w = M::Zero(2, n), dout = M::Zero(n, s.heads * s.dv);
  x.topRows(keys) = numbers(keys, 2, 1), w.leftCols(rows) = numbers(2, rows, 2);
  dout.topRows(rows) = numbers(rows, dout.cols(), 3);
  const limpid::HeadCall last{s.heads - 1, 0, nullptr, {}};
  limpid::map_block(op, in, saved, 0, 0, map, last);
  limpid::map_right(op, in, saved, x, right, last);
  limpid::map_left(op, in, saved, w, left, last);
  r["map"] = map.topLeftCorner(rows, keys), r["right"] = right.topRows(rows), r["left"] = left.leftCols(keys);
  suite::Fields<double> gradients = fields;
  for (auto& g : gradients) g.value.setZero();
  const Grad grad = suite::args_of<Grad>(suite::mutable_views_of(gradients));
  M weights = M::Zero(1, n), relevance(1, m);
  weights.leftCols(rows) = numbers(1, rows, 4);
  limpid::backward(
      op, in, saved, dout, grad,
      {.accumulate = true, .relevance_weights = weights, .relevance = relevance, .part = limpid::Part::abs});
  r["relevance"] = relevance.leftCols(keys);
  for (std::size_t f = 0; f < gradients.size(); ++f) {
    const M& d = gradients[f].value;
    r["d " + gradients[f].name] = extended && is_longer(gradients[f], traits.square) ? M(d.topRows(d.rows() - 1)) : d;
  }
  return r;
}

void close(const Results& a, const Results& b, double most = 1e-12) {
  REQUIRE(a.size() == b.size());
  for (const auto& [name, value] : a) {
    INFO(name);
    M other = b.at(name), mine = value;
    REQUIRE(mine.size() == other.size());
    for (Index i = 0; i < mine.size(); ++i)
      if (mine.data()[i] == other.data()[i]) mine.data()[i] = other.data()[i] = 0;  // infinities
    CHECK(distance(mine, other) < most * std::max(1.0, mine.size() ? other.cwiseAbs().maxCoeff() : 0.0));
  }
}

// Chains are made outside of templates, and masks are of one type: so operators share what is compiled for a chain.
using Pairs = std::function<bool(const At&)>;

/// Some rows have no keys.
bool sees(const At& a) { return a.q % 7 != 3 && (a.k + a.q) % 5 != 0; }
auto with_sink(const M& logits, M& dlogits) { return chain(limpid::mask(Pairs(sees)), limpid::sink(logits, dlogits)); }
/// Key m, which all of n queries see, has the sink's logits; the bias is for its gradient.
auto with_key(Index n, Index m, const M& logits, const M& zeros, M& dbias) {
  return chain(limpid::score_mod([m, sink = limpid::View<double>(logits)](
                                     const auto& score, const At& a) { return a.k == m ? sink(0, a.head) : score; },
                                 [m](const auto& score, const At& a) { return a.k == m ? 0 * score : 0 * score + 1; }),
               limpid::mask(Pairs([n, m](const At& a) { return a.q < n && (a.k == m || sees(a)); })),
               limpid::bias(zeros, dbias));
}

/// With a sink, and with one more key in its place.
template <class Entry>
void as_a_key(const M& logits, double size = 1) {
  const suite::Traits traits = Entry::traits();
  const Index n = 37, m = traits.square ? n : 300;
  const suite::Sizes s{.n = n, .m = m, .d = 4, .dv = 4, .heads = 2, .kv_heads = traits.grouped ? 1 : 2};
  suite::Random random(3);
  auto fields = suite::make_fields<Entry, double>(s, true, random);
  for (auto& f : fields)
    if (f.role != limpid::Role::head) f.value *= size;  // distances are summed in another way where all are near
  suite::Sizes longer = s;
  longer.m += 1, longer.n += traits.square ? 1 : 0;
  auto extended = fields;
  for (auto& f : extended) {
    if (!is_longer(f, traits.square)) continue;
    M x = M::Zero(f.value.rows() + 1, f.value.cols());
    x.topRows(f.value.rows()) = f.value;
    f.value = x;
  }
  M dlogits = M::Constant(1, 2, 0.5);
  const M zeros = M::Zero(2 * longer.n, longer.m);
  M dbias = M::Zero(2 * longer.n, longer.m);
  const auto own = Entry::make(with_sink(logits, dlogits));
  const auto key = Entry::make(with_key(n, m, logits, zeros, dbias));
  close(run<Entry>(own, s, fields, false), run<Entry>(key, longer, extended, true));
  for (Index h = 0; h < 2; ++h)
    CHECK(dlogits(0, h) - 0.5 == Approx(dbias.col(m).middleRows(h * longer.n, longer.n).sum()).margin(1e-12));
}

/// mssa with a threshold.
template <int Percent>
struct entry_threshold : suite::entry_mssa {
  template <class Mods>
  static auto make(const Mods& mods) {
    return limpid::mssa(mods, {.phi = limpid::Phi::threshold, .tau = Percent / 100.0});
  }
};

}  // namespace

TEMPLATE_TEST_CASE("A sink is a key without a value, with every kind of operator.", "", suite::entry_softmax,
                   suite::entry_nlm, suite::entry_twicing, suite::entry_differential, suite::entry_pid,
                   suite::entry_mssa, entry_threshold<20>, entry_threshold<60>) {
  as_a_key<TestType>(M{{0.7, -1.5}});
  as_a_key<TestType>(M{{9.0, 2.0}});
  as_a_key<TestType>(M{{-300.0, 300.0}});
  as_a_key<TestType>(M{{0.7, -1.5}}, 0.1);
}

TEST_CASE(
    "A sink of minus infinity is none; of plus infinity it leaves zeros; a row without keys has its logit alone.") {
  using Entry = suite::entry_softmax;
  const suite::Sizes s{.n = 37, .m = 60, .d = 4, .dv = 4, .heads = 2, .kv_heads = 1};
  suite::Random random(4);
  auto fields = suite::make_fields<Entry, double>(s, false, random);
  const auto all_but_one = limpid::mask(Pairs([](const At& a) { return a.q != 5; }));
  const auto with = [&](const M& logits, M& dlogits) {
    return run<Entry>(softmax(chain(all_but_one, limpid::sink(logits, dlogits))), s, fields, false);
  };
  M dlogits = M::Zero(1, 2);
  const Results plain = run<Entry>(softmax(chain(all_but_one)), s, fields, false);
  for (const auto& [name, x] : with(M{{-HUGE_VAL, -HUGE_VAL}}, dlogits)) CHECK(x == plain.at(name));
  CHECK(dlogits == M::Zero(1, 2));
  const Results infinite = with(M{{HUGE_VAL, 0.25}}, dlogits);
  CHECK(infinite.at("out").leftCols(4) == M::Zero(37, 4));
  CHECK(infinite.at("d q").leftCols(4) == M::Zero(37, 4));
  CHECK(infinite.at("lse").row(0) == M::Constant(1, 37, HUGE_VAL));
  CHECK(dlogits(0, 0) == 0);
  CHECK(infinite.at("out").row(5) == M::Zero(1, 8));
  CHECK(infinite.at("lse")(1, 5) == 0.25);
  for (Index i = 0; i < 37; ++i)
    CHECK(infinite.at("map").row(i).sum() == Approx(1 - std::exp(0.25 - infinite.at("lse")(1, i))).margin(1e-14));

  // a row without keys gives the sink nothing, whatever comes back to it
  using Op = decltype(softmax(chain(all_but_one, limpid::sink(dlogits, dlogits))));
  const M logits{{0.5, 0.25}};
  for (const double back : {1.0, std::nan("")}) {
    M d = M::Zero(1, 2), out(37, 8), dout = numbers(37, 8, 3), dq(37, 8), dk(60, 4), dv(60, 4);
    const Op op = softmax(chain(all_but_one, limpid::sink(logits, d)));
    dout.row(5).setConstant(back);
    limpid::Saved<Op, double> saved;
    const auto in = limpid::qkv(fields[0].value, fields[1].value, fields[2].value);
    limpid::forward(op, in, out, {.heads = 2, .kv_heads = 1, .saved = &saved});
    limpid::backward(op, in, saved, dout, limpid::grads(dq, dk, dv));
    CHECK(d.allFinite());
    if (back == 1.0) dlogits = d;
    CHECK(d == dlogits);
  }
}

TEST_CASE("A sink beside amounts of keys, near and far, beside few queries, and beside a mask that gathers.") {
  using Entry = suite::entry_softmax;
  const M slopes{{0.3}};
  for (const Index n : {1, 3, 300}) {
    const suite::Sizes s{.n = n, .m = 5000, .d = 8, .dv = 8}, longer{.n = n, .m = 5001, .d = 8, .dv = 8};
    suite::Random random(5);
    const auto fields = suite::make_fields<Entry, double>(s, false, random);
    auto extended = fields;
    for (std::size_t f = 1; f < 3; ++f) {
      extended[f].value.setZero(5001, 8);
      extended[f].value.topRows(5000) = fields[f].value;
    }
    for (const double far : {0.0, -3e5, 3e5}) {
      INFO(n << " queries, amounts near " << far);
      M keys = numbers(1, 5000, 6), all(1, 5001), dkeys = M::Zero(1, 5000), dall = M::Zero(1, 5001);
      keys.array() += far;
      all.leftCols(5000) = keys;
      const M sinks{{(n == 3 ? 12 : 1.25) + far}};
      M dsinks = M::Zero(1, 1);
      all(0, 5000) = sinks(0, 0);
      auto own =
          run<Entry>(softmax(chain(limpid::key_bias(keys, dkeys), limpid::sink(sinks, dsinks))), s, fields, false);
      close(own, run<Entry>(softmax(chain(limpid::key_bias(all, dall))), longer, extended, true), 1e-11);
      CHECK(distance(dkeys, dall.leftCols(5000)) < 1e-11);
      CHECK(std::abs(dsinks(0, 0) - dall(0, 5000)) < 1e-11);
    }
  }
  // ALiBi counts from a panel's first query, and window and documents from blocks
  const suite::Sizes s{.n = 143, .m = 143, .d = 4, .dv = 4, .heads = 2, .kv_heads = 2};
  suite::Random random(6);
  const auto fields = suite::make_fields<Entry, double>(s, false, random);
  const M both{{1.25, -0.5}};
  const auto grid = limpid::neighbourhood({11, 13}, {3, 5});
  M dense = M::Zero(1, 2), local = M::Zero(1, 2), plain = M::Zero(1, 2);
  const auto pairs = limpid::mask(Pairs([=](const At& a) { return grid.keep(a); }));
  const auto add = limpid::additive([&](const At& a) { return -0.3 * double(a.position() - a.k); });
  const auto wanted = run<Entry>(softmax(chain(pairs, add, limpid::sink(both, dense))), s, fields, false);
  close(run<Entry>(softmax(chain(grid, limpid::alibi(slopes), limpid::sink(both, local))), s, fields, false), wanted);
  close(run<Entry>(softmax(chain(pairs, limpid::alibi(slopes), limpid::sink(both, plain))), s, fields, false), wanted);
  CHECK(distance(local, dense) < 1e-12);
  CHECK(distance(plain, dense) < 1e-12);
}

TEST_CASE("Twicing's cache knows the sink.") {
  const auto x = numbers(9, 8, 1);
  const M logits{{0.75, 2.0}};
  const auto op = limpid::twicing(chain(limpid::causal(), limpid::sink(logits)));
  M all(9, 8), one(1, 8);
  limpid::forward(op, limpid::qkv(x, x, x), all, {.heads = 2});
  limpid::TwicingCache<decltype(limpid::twicing(limpid::sink(logits))), double> cache(
      limpid::twicing(limpid::sink(logits)), {.heads = 2});
  for (Index t = 0; t < 9; ++t) {
    const M token = x.row(t);
    cache.step(limpid::qkv(token, token, token), one);
    CHECK(distance(one, all.row(t)) < 1e-14);
  }
}

TEST_CASE("A sink has a number for each head, and is no NaN.") {
  const auto said = [](const M& logits, M d) {
    return suite::error_of([&] { limpid::sink(logits, d).check("op", 2, 3, 4, 7); });
  };
  const M none, row = M::Zero(1, 3), column = M::Zero(3, 1);
  CHECK(said(row, none) == "");
  CHECK(said(column, row) == "");
  CHECK(said(M::Zero(1, 1), none) == "op: sink is 1 x 1, wanted one number a head, H = 3");
  CHECK(said(M::Zero(2, 3), none) == "op: sink is 2 x 3, wanted one number a head, H = 3");
  CHECK(said(row, M::Zero(1, 2)) == "op: gradient of the sink is 1 x 2, wanted 3 numbers");
  CHECK(said(M{{0, std::nan(""), 0}}, none) == "op: the sink of head 1 is nan, wanted a number, or an infinity");
}
