// limpid: relevance sent down with the backward pass, against the matrices R that are written down.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limpid/check/gradient.hpp>
#include <limpid/explain/guidance.hpp>
#include <limpid/explain/map.hpp>
#include <limpid/explain/relevance.hpp>
#include <limpid/op/softmax.hpp>
#include <map>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::Part, limpid::qkv, limpid::Relevance;
using suite::distance, suite::product, suite::product_nt;
using M = Mat<double>;
using Op = decltype(limpid::softmax());

constexpr Index heads = 2, width = 4, batch = 2;

M random(Index rows, Index cols, std::uint64_t seed, double size = 1) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols, -size, size);
}

double part_of(Part part, double x) {
  return part == Part::pos   ? std::max(x, 0.0)
         : part == Part::neg ? std::max(-x, 0.0)
         : part == Part::abs ? std::abs(x)
                             : x;
}

/// The tokens of stream `to` attend to those of `from`: two heads, two items.
struct Attention {
  Index to, from, n, m;
  M q, k, v, dout;
  limpid::Saved<Op, double> saved;

  Attention(Index to_, Index from_, const std::vector<Index>& tokens, std::uint64_t seed)
      : to(to_),
        from(from_),
        n(tokens[std::size_t(to)]),
        m(tokens[std::size_t(from)]),
        q(random(batch * n, heads * width, seed, 2)),
        k(random(batch * m, heads * width, seed + 1, 2)),
        v(random(batch * m, heads * width, seed + 2)),
        dout(random(batch * n, heads * width, seed + 3)) {
    M out(batch * n, heads * width);
    limpid::forward(limpid::softmax(), qkv(q, k, v), out, {.batch = batch, .heads = heads, .saved = &saved});
  }
  /// mean over heads of part(A * G), G_ij = dout_i . v_j
  M abar(Index item, Part part) {
    M mean = M::Zero(n, m), a(n, m);
    for (Index h = 0; h < heads; ++h) {
      limpid::map_block(limpid::softmax(), qkv(q, k, v), saved, 0, 0, a, {.head = h, .item = item});
      const M g = product_nt<double>(dout.block(item * n, h * width, n, width), v.block(item * m, h * width, m, width));
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < m; ++j) mean(i, j) += part_of(part, a(i, j) * g(i, j)) / heads;
    }
    return mean;
  }
  void backward(const limpid::BackwardCall<double>& call, M* dq = nullptr) {
    limpid::Grads<Op, double> grad;
    if (dq) grad.q = *dq;
    limpid::backward(limpid::softmax(), qkv(q, k, v), saved, dout, grad, call);
  }
};

using Stage = std::vector<Attention>;

/// R, block by block, by the rule as it is written: each stage from the state before it.
std::map<std::pair<Index, Index>, M> dense(std::vector<Stage>& stages, const std::vector<Index>& tokens, Index item,
                                           Part part) {
  const Index count = Index(tokens.size());
  std::map<std::pair<Index, Index>, M> r;
  for (Index d = 0; d < count; ++d)
    for (Index c = 0; c < count; ++c)
      r[{d, c}] = d == c ? M(M::Identity(tokens[std::size_t(d)], tokens[std::size_t(d)]))
                         : M(M::Zero(tokens[std::size_t(d)], tokens[std::size_t(c)]));
  for (Stage& stage : stages) {
    const auto before = r;
    for (Attention& a : stage)
      for (Index c = 0; c < count; ++c) r[{a.to, c}] += product(a.abar(item, part), before.at({a.from, c}));
  }
  return r;
}

void check(std::vector<Stage>& stages, const std::vector<Index>& tokens, Index token, Index stream, Part part) {
  Relevance<double> relevance(tokens, part, batch);
  relevance.start(token, stream);
  for (std::size_t s = stages.size(); s-- > 0;) {
    for (Attention& a : stages[s]) a.backward(relevance.ask(a.to, a.from));
    relevance.stage();
  }
  for (Index item = 0; item < batch; ++item) {
    const auto r = dense(stages, tokens, item, part);
    for (Index c = 0; c < Index(tokens.size()); ++c)
      CHECK(distance(relevance.of(c).row(item), r.at({stream, c}).row(token)) < 1e-12);
  }
}

}  // namespace

TEST_CASE("relevance of one stream is a row of (I + Abar_L) ... (I + Abar_1), for every part") {
  const std::vector<Index> tokens{17};
  std::vector<Stage> stages(3);
  for (std::size_t l = 0; l < 3; ++l) stages[l].emplace_back(0, 0, tokens, 10 * l);
  for (const Part part : {Part::pos, Part::neg, Part::abs, Part::signed_}) check(stages, tokens, 4, 0, part);
}

TEST_CASE("relevance across streams is a row of the block matrix, each stage from the state before it") {
  const std::vector<Index> tokens{5, 8, 3};  // text attends to itself, image and audio; image to text
  std::vector<Stage> stages(4);
  for (Index s : {0, 1, 2}) stages[0].emplace_back(s, s, tokens, 100 + 10 * s);
  stages[1].emplace_back(0, 1, tokens, 200);
  stages[1].emplace_back(1, 0, tokens, 210);  // both from the same state
  stages[1].emplace_back(0, 2, tokens, 220);
  stages[2].emplace_back(0, 0, tokens, 300);
  stages[2].emplace_back(1, 1, tokens, 310);
  stages[3].emplace_back(0, 1, tokens, 400);
  stages[3].emplace_back(1, 0, tokens, 410);
  for (const Part part : {Part::pos, Part::abs}) {
    check(stages, tokens, 2, 0, part);
    check(stages, tokens, 7, 1, part);
  }
}

TEST_CASE("all parts at once: the rows of each, through its own product; a gathered mask's too") {
  const std::vector<Index> tokens{21};
  const Part parts[] = {Part::pos, Part::neg, Part::abs, Part::signed_};
  std::vector<Attention> stack;
  for (std::uint64_t l = 0; l < 3; ++l) stack.emplace_back(0, 0, tokens, 10 * l);
  const auto run = [&](Relevance<double>& relevance, const auto& start, M* dq) {
    relevance.start(start);
    for (std::size_t l = stack.size(); l-- > 0;) stack[l].backward(relevance.ask(), dq), relevance.stage();
  };
  M mixture = random(batch, 21, 7);
  M with = stack[0].q, without = stack[0].q;
  Relevance<double> all(tokens, limpid::AllParts(), batch);
  for (const bool mixed : {false, true}) {
    mixed ? run(all, limpid::View<double>(mixture), &with) : run(all, std::vector<Index>{4, 20}, &with);
    for (Index p = 0; p < 4; ++p) {
      Relevance<double> one(tokens, parts[p], batch);
      mixed ? run(one, limpid::View<double>(mixture), &without) : run(one, std::vector<Index>{4, 20}, &without);
      for (Index item = 0; item < batch; ++item) {
        CHECK(distance(all.of().row(4 * item + p), one.of().row(item)) < 1e-14);
        CHECK(distance(all.without_start().row(4 * item + p), one.without_start().row(item)) < 1e-14);
      }
    }
    CHECK(with == without);
  }
  CHECK_THROWS_WITH(all.start(std::vector<Index>{1, 2, 3}), "relevance: 3 tokens to explain, wanted 2, one an item");

  const auto window = limpid::softmax(limpid::window(3));  // few pairs: blocks of gathered queries and keys
  Attention& a = stack[0];
  limpid::Saved<std::remove_cv_t<decltype(window)>, double> saved;
  M out = a.q, at_once(4 * batch, 21), alone(batch, 21), w = random(4 * batch, 21, 9), own(batch, 21);
  limpid::forward(window, qkv(a.q, a.k, a.v), out, {.batch = batch, .heads = heads, .saved = &saved});
  limpid::backward(window, qkv(a.q, a.k, a.v), saved, a.dout, {},
                   {.relevance_weights = limpid::View<double>(w), .relevance = at_once});
  for (Index p = 0; p < 4; ++p) {
    for (Index item = 0; item < batch; ++item) own.row(item) = w.row(4 * item + p);
    limpid::backward(window, qkv(a.q, a.k, a.v), saved, a.dout, {},
                     {.relevance_weights = limpid::View<double>(own), .relevance = alone, .part = parts[p]});
    for (Index item = 0; item < batch; ++item) CHECK(distance(at_once.row(4 * item + p), alone.row(item)) < 1e-15);
  }
}

TEST_CASE("asking for relevance changes no bit of a gradient, and no gradient none of the relevance") {
  const std::vector<Index> tokens{33};
  Attention a(0, 0, tokens, 1);
  M with = a.q, without = a.q;
  Relevance<double> both(tokens, Part::pos, batch), alone(tokens, Part::pos, batch);
  both.start(3), alone.start(3);
  a.backward(both.ask(), &with);
  a.backward({}, &without);
  a.backward(alone.ask());
  both.stage(), alone.stage();
  CHECK(distance(with, without) == 0);
  CHECK(distance(both.of(), alone.of()) == 0);
  CHECK((both.of().array() != 0).count() > batch);
  both.start(3);  // begins anew
  CHECK(both.of().sum() == batch);
}

TEST_CASE("relevance refuses streams and tokens that are not there") {
  CHECK_THROWS_WITH(Relevance<float>({}), "relevance: no streams, wanted at least one");
  Relevance<float> relevance({4, 2});
  CHECK_THROWS_WITH(relevance.start(2, 1), "relevance: token is 2, wanted it in [0, 2)");
  CHECK_THROWS_WITH(relevance.ask(0, 2), "relevance: stream is 2, wanted it in [0, 2)");
}

TEST_CASE("guided attention: the readout, and the gradient of the logit and what the region is given") {
  const std::vector<Index> tokens{9};
  Attention a(0, 0, tokens, 5);
  const Index r = 2, wide = heads * (width + r);
  const M w = random(batch * 9, r, 50), u = random(batch * 9, heads * r, 51);
  M v(batch * 9, wide), dout(batch * 9, wide), out(batch * 9, wide), dv(batch * 9, wide), dq = a.q;
  limpid::append_columns(a.v, w, heads, v);
  limpid::append_columns(a.dout, u, heads, dout);
  for (Index h = 0; h < heads; ++h) {  // w for all heads, u for each
    const Index at = h * (width + r);
    CHECK(distance(v.middleCols(at, width), a.v.middleCols(h * width, width)) == 0);
    CHECK(distance(v.middleCols(at + width, r), w) == 0);
    CHECK(distance(dout.middleCols(at + width, r), u.middleCols(h * r, r)) == 0);
  }
  limpid::Saved<Op, double> saved;
  limpid::forward(limpid::softmax(), qkv(a.q, a.k, v), out, {.batch = batch, .heads = heads, .saved = &saved});
  limpid::backward(limpid::softmax(), qkv(a.q, a.k, v), saved, dout, {.q = dq, .k = {}, .v = dv});
  M plain(batch * 9, heads * width), readout(batch * 9, heads * r), kept(batch * 9, heads * width), first = plain;
  limpid::forward(limpid::softmax(), qkv(a.q, a.k, a.v), plain, {.batch = batch, .heads = heads});
  limpid::split_columns(out, heads, first, readout);
  limpid::split_columns(dv, heads, kept, {});
  CHECK(distance(first, plain) < 1e-14);
  for (Index item = 0; item < batch; ++item)
    for (Index h = 0; h < heads; ++h) {
      M map(9, 9);
      limpid::map_block(limpid::softmax(), qkv(a.q, a.k, a.v), a.saved, 0, 0, map, {.head = h, .item = item});
      CHECK(distance(readout.block(item * 9, h * r, 9, r), product<double>(map, w.middleRows(item * 9, 9))) < 1e-14);
    }
  M q = a.q;  // y = <dout, A v> + <u, A w>
  const M wanted = limpid::numeric_gradient(q, [&] {
    M all(batch * 9, wide);
    limpid::forward(limpid::softmax(), qkv(q, a.k, v), all, {.batch = batch, .heads = heads});
    return all.cwiseProduct(dout).sum();
  });
  CHECK(distance(dq, wanted) < 1e-8);
  M alone = a.v;
  limpid::backward(limpid::softmax(), qkv(a.q, a.k, a.v), a.saved, a.dout, {.q = {}, .k = {}, .v = alone});
  CHECK(distance(kept, alone) < 1e-14);  // w is a constant: dv does not see it
  CHECK_THROWS_AS(limpid::append_columns(a.v, w, heads, limpid::MutView<double>(a.v.data(), batch * 9, wide, wide)),
                  limpid::ShapeError);  // out over x
  CHECK_THROWS_AS(limpid::split_columns(out, heads, out.leftCols(heads * width), {}), limpid::ShapeError);
  CHECK_THROWS_WITH(
      limpid::append_columns(a.v, w, 3, v),
      "append_columns: x is 18 x 8, more 18 x 2 and out 18 x 12, wanted out to hold x and more of each of 3 heads");
}

TEST_CASE("columns that are split, and a rewriting step, refuse arrays that share memory, and write nothing") {
  const M x = random(4, 6, 1), start = random(4, 3, 2), gradient = random(4, 3, 3);
  M part = start;
  const std::string wanted = ", wanted memory of its own";
  CHECK(suite::error_of([&] { limpid::split_columns(x, 1, part, part); }) ==
        "split_columns: right shares memory with left" + wanted);
  CHECK(part == start);
  M own = x;
  CHECK(suite::error_of([&] { limpid::split_columns(own, 1, own.leftCols(2), {}); }) ==
        "split_columns: left shares memory with x" + wanted);
  const auto rewrite = [&](const limpid::View<double>& g, const limpid::View<double>& s,
                           const limpid::View<double>& r) {
    const std::string text = suite::error_of([&] { limpid::rewrite_step(g, s, r, part, {}); });
    CHECK(part == start);
    return text;
  };
  CHECK(rewrite(part, start, {}) == "rewrite_step: x shares memory with gradient" + wanted);
  CHECK(rewrite(gradient, part, {}) == "rewrite_step: x shares memory with start" + wanted);
  CHECK(rewrite(gradient, start, limpid::View<double>(part.data(), 4, 1, 3)) ==
        "rewrite_step: x shares memory with region" + wanted);
}

TEST_CASE("a rewriting step keeps to its length, radius, bounds and region") {
  const M start = random(6, 3, 1, 0.5), gradient = random(6, 3, 2);
  M x = start;
  limpid::rewrite_step(gradient, start, {}, x, {.step = 0.25});
  CHECK(std::abs((x - start).norm() - 0.25) < 1e-15);
  CHECK(distance((x - start) / 0.25, gradient / gradient.norm()) < 1e-14);
  M region = M::Zero(6, 1);
  region(1, 0) = region(4, 0) = 1;
  x = start;
  for (int i = 0; i < 5; ++i)
    limpid::rewrite_step(gradient, start, region, x,
                         {.step = 0.1, .rule = limpid::RewriteRule::sign, .radius = 0.3, .low = -0.5, .high = 0.5});
  for (Index i = 0; i < 6; ++i)
    for (Index j = 0; j < 3; ++j) {
      const double there = start(i, j) + (gradient(i, j) > 0 ? 0.3 : -0.3);
      CHECK(std::abs(x(i, j) - (region(i, 0) == 0 ? start(i, j) : std::min(std::max(there, -0.5), 0.5))) < 1e-15);
    }
  x = start;
  const M none = M::Zero(6, 3);
  limpid::rewrite_step(none, start, {}, x, {});
  CHECK(distance(x, start) == 0);
  CHECK_THROWS_WITH(
      limpid::rewrite_step(gradient, start, {}, x, {.radius = -1}),
      "rewrite_step: radius is -1.000000, low -inf and high inf, wanted radius at least 0 and low at most high");
}

TEMPLATE_TEST_CASE("a rewriting step has the direction of its gradient, whatever the size of the numbers", "", float,
                   double) {
  using S = TestType;
  const double most = std::numeric_limits<S>::max(), least = std::numeric_limits<S>::min();
  const auto step = [](double first, double second, const Mat<S>& region, limpid::RewriteRule rule) {
    Mat<S> x = Mat<S>::Zero(2, 1), gradient(2, 1);
    const Mat<S> start = x;
    gradient << S(first), S(second);
    limpid::rewrite_step(gradient, start, region, x, {.step = 2, .rule = rule});
    return x;
  };
  const Mat<S> none(0, 0), wanted = (Mat<S>(2, 1) << S(1.2), S(1.6)).finished();
  const double unit = 4 * double(std::numeric_limits<S>::epsilon());
  for (const double size : {most / 5, most / 1e3, 1e20, 1.0, 1e-20, least * 1e3, least}) {
    INFO("size " << size);
    CHECK(distance(step(3 * size, 4 * size, none, limpid::RewriteRule::l2), wanted) < unit);
    CHECK(step(-3 * size, 4 * size, none, limpid::RewriteRule::sign) == (Mat<S>(2, 1) << S(-2), S(2)).finished());
    // the products are of ordinary size, or far from it, where neither factor says so
    for (const double other : {1 / size, most / 4, 1.0, 4 * least}) {
      if (!(other <= most && other >= 4 * least)) continue;
      Mat<S> region(2, 1), x;
      region << S(3 * (other / 4)), S(other);
      x = step(size, size, region, limpid::RewriteRule::l2);
      INFO("region " << other);
      CHECK(distance(x, wanted) < 2 * unit);
      region << S(-other), S(other / 4);
      CHECK(step(size, size, region, limpid::RewriteRule::sign) == (Mat<S>(2, 1) << S(-2), S(2)).finished());
    }
    Mat<S> region = (Mat<S>(2, 1) << S(0), S(size)).finished();  // what may not change does not count
    const Mat<S> alone = step(most, least, region, limpid::RewriteRule::l2);
    CHECK(alone(0, 0) == S(0));
    CHECK(std::abs(double(alone(1, 0)) - 2) < unit);
  }
  // subnormal numbers, which some builds take for zero: the direction, or nothing
  const S tiny = std::numeric_limits<S>::denorm_min();
  const Mat<S> moved = step(double(tiny * 30), double(tiny * 40), none, limpid::RewriteRule::l2);
  CHECK((distance(moved, wanted) < unit || moved == Mat<S>::Zero(2, 1)));
}

TEST_CASE("a rewriting step refuses numbers that are not finite, and leaves x alone then") {
  const double inf = std::numeric_limits<double>::infinity(), none_such = std::nan("");
  const M good = M::Ones(2, 2), column = M::Ones(2, 1);
  for (const limpid::RewriteRule rule : {limpid::RewriteRule::l2, limpid::RewriteRule::sign})
    for (const double bad : {inf, -inf, none_such}) {
      const auto error = [&](const M& gradient, const M& start, const M& region, limpid::RewriteOptions options) {
        M x = good;
        options.rule = rule;
        const std::string found = suite::error_of([&] { limpid::rewrite_step(gradient, start, region, x, options); });
        CHECK(x == good);
        return found;
      };
      M broken = good, part = column;
      broken(1, 0) = bad, part(1, 0) = bad;
      CHECK(error(broken, good, column, {}).find("rewrite_step: gradient is ") == 0);
      CHECK(error(good, broken, column, {}).find("rewrite_step: start is ") == 0);
      CHECK(error(good, good, part, {}).find("rewrite_step: region is ") == 0);
      CHECK(error(good, good, column, {.step = bad}).find("rewrite_step: step is ") == 0);
      M x = broken;
      CHECK(suite::error_of([&] {
              limpid::rewrite_step(good, good, {}, x, {.rule = rule});
            }).find("rewrite_step: x is ") == 0);
    }
  M x = good;
  CHECK_THROWS_WITH(
      limpid::rewrite_step(good, good, {}, x, {.radius = none_such}),
      "rewrite_step: radius is nan, low -inf and high inf, wanted radius at least 0 and low at most high");
  CHECK_THROWS_WITH(limpid::rewrite_step(good, good, {}, x, {.low = inf}),
                    "rewrite_step: radius is inf, low inf and high inf, wanted finite numbers between low and high");
  Mat<float> y = Mat<float>::Ones(2, 2);
  const Mat<float> same = y;
  CHECK(suite::error_of([&] {
          limpid::rewrite_step(same, same, {}, y, {.step = 1e300});
        }).find("rewrite_step: step is 1e+300") == 0);
  CHECK(suite::error_of([&] {
          limpid::rewrite_step(same, same, {}, y, {.high = -1e300});
        }).find("rewrite_step: radius is inf, low -inf") == 0);
  CHECK(y == same);
}

TEMPLATE_TEST_CASE("a rewriting step out of the numbers is refused and changes nothing; bounds may keep it inside", "",
                   float, double) {
  using S = TestType;
  const double most = std::numeric_limits<S>::max();
  for (const limpid::RewriteRule rule : {limpid::RewriteRule::l2, limpid::RewriteRule::sign})
    for (const double side : {1.0, -1.0}) {
      Mat<S> x = Mat<S>::Ones(3, 1), gradient = Mat<S>::Zero(3, 1);
      x(2, 0) = S(side * most), gradient(0, 0) = S(1e-3 * side), gradient(2, 0) = S(side);
      const Mat<S> start = x;
      const auto step = [&](limpid::RewriteOptions options) {
        options.step = 0.9 * most, options.rule = rule;
        return suite::error_of([&] { limpid::rewrite_step(gradient, start, {}, x, options); });
      };
      CHECK(step({}).find("rewrite_step: x is ") == 0);
      CHECK(step({.radius = 1e300}).find("row 2, column 0, and step ") != std::string::npos);
      CHECK(x == start);
      CHECK(step({.radius = 2}) == "");
      CHECK(x == Mat<S>(start + (Mat<S>(3, 1) << S(2 * side), S(0), S(0)).finished()));
      CHECK(step({.low = -5, .high = 5}) == "");
      CHECK(x == (Mat<S>(3, 1) << S(5 * side), S(1), S(5 * side)).finished());
    }
}

TEST_CASE("relevance is asked for of a token: not before start()") {
  Relevance<double> relevance({3});
  CHECK_THROWS_WITH(relevance.ask(), "relevance: ask() before start(), wanted a token to explain");
  relevance.start(1);
  CHECK(relevance.ask().relevance_weights(0, 1) == 1);
}

TEST_CASE("columns of more heads than any array has are refused at once, where arrays are empty too") {
  const M none(2, 0), four = random(2, 4, 1);
  M out(2, 0);
  const Index huge = Index(1) << 62;
  CHECK(suite::error_of([&] { limpid::append_columns(none, four, huge, out); }).find("append_columns: heads is ") == 0);
  CHECK(suite::error_of([&] { limpid::append_columns(none, none, huge, out); }).find("append_columns: heads is ") == 0);
  CHECK(suite::error_of([&] { limpid::split_columns(none, huge, out, {}); }).find("split_columns: heads is ") == 0);
}
