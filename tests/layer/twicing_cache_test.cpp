// limpid: tests of twicing token by token, from a cache.
// SPDX-License-Identifier: MIT
#include <array>
#include <limits>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/limpid.hpp>
#include <stdexcept>
#include <vector>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::causal, limpid::qkv, limpid::twicing;
using suite::distance;

template <class Op, class S>
using Cache = limpid::TwicingCache<std::remove_cvref_t<Op>, S>;

/// The largest difference between decoding and the whole causal pass.
template <class S = double, class Op>
double decoding_error(const Op& op, Index n, const suite::Sizes& s, limpid::ExecutorRef executor = {}) {
  suite::Random random(5);
  const auto q = suite::random_matrix<S>(random, s.batch * n, s.heads * s.d, -2, 2);
  const auto k = suite::random_matrix<S>(random, s.batch * n, s.kv_heads * s.d, -2, 2);
  const auto v = suite::random_matrix<S>(random, s.batch * n, s.kv_heads * s.dv);
  Mat<S> whole(s.batch * n, s.heads * s.dv);
  limpid::forward(op, qkv(q, k, v), whole, {.batch = s.batch, .heads = s.heads, .kv_heads = s.kv_heads});
  Cache<Op, S> cache(op, {.batch = s.batch, .heads = s.heads, .kv_heads = s.kv_heads});
  double error = 0;
  for (int text = 0; text < 2; ++text, cache.clear())  // a second text after the first
    for (Index i = 0; i < n; ++i) {
      const auto token = [&](const Mat<S>& x) -> Mat<S> { return x(Eigen::seqN(i, s.batch, n), Eigen::all); };
      const Mat<S> qi = token(q), ki = token(k), vi = token(v);
      Mat<S> out(s.batch, s.heads * s.dv);
      cache.step(qkv(qi, ki, vi), out, executor);
      CHECK(cache.size() == i + 1);
      error = std::max(error, distance(out, token(whole)));
    }
  return error;
}

/// Pages of four rows that stand in any order, heads x rows x width, of keys and of values. What is in no row is NaN.
template <class S>
struct PagedTexts {
  static constexpr Index rows = 4;
  suite::Sizes s;
  Mat<S> keys, values;
  Mat<Index> table, lengths;
  limpid::Pages<S> pages;

  PagedTexts(const suite::Sizes& sizes, Index n) : s(sizes) {
    const Index each = (n + rows - 1) / rows, count = s.batch * each;
    keys = Mat<S>::Constant(count, s.kv_heads * rows * s.d, std::numeric_limits<S>::quiet_NaN());
    values = Mat<S>::Constant(count, s.kv_heads * rows * s.dv, keys(0, 0));
    table.resize(s.batch, each), lengths = Mat<Index>::Zero(s.batch, 1);
    for (Index p = 0; p < count; ++p) table(p % s.batch, p / s.batch) = (p * 7 + 3) % count;
    REQUIRE(count % 7 != 0);
    pages.k = {keys.data(), count, rows, s.d, keys.cols(), rows * s.d, s.d};
    pages.v = {values.data(), count, rows, s.dv, values.cols(), rows * s.dv, s.dv};
    pages.table = limpid::View<Index>(table), pages.lengths = limpid::View<Index>(lengths);
  }
  void append(const Mat<S>& k, const Mat<S>& v) {
    for (Index b = 0; b < s.batch; ++b) {
      const Index i = lengths(b, 0)++;
      for (Index g = 0; g < s.kv_heads; ++g) {
        const Index page = table(b, i / rows), row = g * rows + i % rows;
        keys.block(page, row * s.d, 1, s.d) = k.block(b, g * s.d, 1, s.d);
        values.block(page, row * s.dv, 1, s.dv) = v.block(b, g * s.dv, 1, s.dv);
      }
    }
  }
};
/// Tokens from pages beside tokens that are given: every bit.
template <class S, class Op>
void same_over_pages(const Op& op, Index n, const suite::Sizes& s, limpid::ExecutorRef executor = {}) {
  suite::Random random(5);
  Cache<Op, S> cache(op, {.batch = s.batch, .heads = s.heads, .kv_heads = s.kv_heads}), paged = cache;
  for (int text = 0; text < 2; ++text, cache.clear(), paged.clear()) {
    PagedTexts<S> texts(s, n);
    for (Index i = 0; i < n; ++i) {
      const auto q = suite::random_matrix<S>(random, s.batch, s.heads * s.d, -2, 2);
      const auto k = suite::random_matrix<S>(random, s.batch, s.kv_heads * s.d, -2, 2);
      const auto v = suite::random_matrix<S>(random, s.batch, s.kv_heads * s.dv);
      Mat<S> out(s.batch, s.heads * s.dv), expected = out;
      texts.append(k, v);
      limpid::Inputs<Op, S> token;
      token.q = limpid::View<S>(q);
      paged.step(token, texts.pages, out, executor);
      cache.step(qkv(q, k, v), expected);
      REQUIRE(out == expected);
      REQUIRE(paged.size() == i + 1);
    }
  }
}

const suite::Sizes one{.d = 8, .dv = 5}, many{.d = 6, .dv = 4, .heads = 4, .kv_heads = 2, .batch = 3};

}  // namespace

TEST_CASE("decoding token by token gives the rows of causal twicing") {
  CHECK(decoding_error(twicing(causal()), 300, one) < 1e-13);
  CHECK(decoding_error(twicing(causal()), 40, many) < 1e-13);
  CHECK(decoding_error(twicing(causal(), {.order = 0}), 20, one) < 1e-13);
  CHECK(decoding_error(twicing(causal(), {.order = 3, .alpha = 0.7}), 40, many) < 1e-13);
  CHECK(decoding_error<float>(twicing(causal()), 300, one) < 2e-6);
}

TEST_CASE("decoding works over other maps, with ALiBi, with windows, and with tokens that see nothing") {
  CHECK(decoding_error(twicing(limpid::nlm(causal())), 40, many) < 1e-13);
  const auto slopes = limpid::alibi_slopes<double>(4);
  const auto near = limpid::chain(limpid::window(9, 0), limpid::alibi(slopes));
  CHECK(decoding_error(twicing(near, {.order = 2}), 40, many) < 1e-13);
  const auto even = limpid::mask([](const limpid::At& a) { return (a.position() + a.k) % 2 == 0 && a.k > 2; });
  CHECK(decoding_error(twicing(causal() & even), 40, many) < 1e-13);
}

TEMPLATE_TEST_CASE("decoding over pages has the bits of tokens that are given", "", float, double) {
  using S = TestType;
  const Mat<S> slopes = limpid::alibi_slopes<S>(4), logits = Mat<S>::Constant(1, 4, S(0.5));
  limpid::ThreadPool pool(3);
  same_over_pages<S>(twicing(causal()), 150, one);
  same_over_pages<S>(twicing(causal()), 43, many, pool);
  same_over_pages<S>(twicing(causal(), {.order = 0}), 20, one);
  same_over_pages<S>(twicing(limpid::chain(causal(), limpid::sink(logits)), {.order = 3, .alpha = 0.7}), 19, many);
  same_over_pages<S>(twicing(limpid::nlm(causal())), 43, many);
  same_over_pages<S>(twicing(limpid::chain(limpid::window(9, 0), limpid::alibi(slopes))), 43, many);
}

TEST_CASE("the decoding cache refuses pages that do not fit, and is as it was before") {
  const suite::Sizes s{.d = 4, .dv = 3, .heads = 2, .kv_heads = 2, .batch = 2};
  const auto op = twicing(causal());
  Cache<decltype(op), double> cache(op, {.batch = 2, .heads = 2});
  PagedTexts<double> texts(s, 9);
  suite::Random random(5);
  const auto rows = [&](Index cols) { return suite::random_matrix<double>(random, 2, cols); };
  const Mat<double> q = rows(8), k = rows(8), v = rows(6);
  Mat<double> out = Mat<double>::Constant(2, 6, 7);
  limpid::QKV<limpid::View<double>> token;
  token.q = limpid::View<double>(q);
  const auto refused = [&](const std::string& text, auto change) {
    limpid::Pages<double> pages = texts.pages;
    auto own = token;
    const Mat<double> before = out;
    const Index size = cache.size();
    change(pages, own);
    CHECK(suite::error_of([&] { cache.step(own, pages, out); }) == "twicing cache: " + text);
    CHECK(out == before);
    CHECK(cache.size() == size);
  };
  const auto as_it_is = [](auto&, auto&) {};
  for (int step = 0; step < 5; ++step) {
    texts.append(rows(8), rows(6));
    const Index length = step + 1, first = texts.table(1, 0), last = texts.table(0, step / 4);
    texts.table(1, 0) = 6;
    refused("page 0 of item 1 is number 6, wanted 0 to 5, as the pool has 6", as_it_is);
    texts.table(1, 0) = first, texts.table(0, step / 4) = -1;
    refused("page " + std::to_string(step / 4) + " of item 0 is number -1, wanted 0 to 5, as the pool has 6", as_it_is);
    texts.table(0, step / 4) = last, texts.lengths(1, 0) = length + 1;
    refused("item 1 of the pages has " + std::to_string(length + 1) + " keys, wanted " + std::to_string(length) +
                ", the tokens so far and this one",
            as_it_is);
    texts.lengths(1, 0) = length;
    refused("k is given beside pages, wanted one of them", [&](auto&, auto& own) { own.k = limpid::View<double>(k); });
    refused("v is given beside pages, wanted one of them", [&](auto&, auto& own) { own.v = limpid::View<double>(v); });
    if (step > 0)
      refused("v of the pages has width 2, wanted 3 as the first token's", [](auto& p, auto&) { p.v.width = 2; });
    CHECK(suite::error_of([&] {
            auto pages = texts.pages;
            pages.k.width = 3;
            cache.step(token, pages, out);
          }) == "twicing: q has width 4 a head and k has 3, wanted the same (2 heads, 2 key heads)");
    limpid::MutView<double> over(texts.keys.data(), 2, 6, 6);
    CHECK(suite::error_of([&] { cache.step(token, texts.pages, over); }) ==
          "twicing: out shares memory with k of the pages, wanted memory of its own");
    CHECK(cache.size() == step);
    cache.step(token, texts.pages, out);
    CHECK(suite::error_of([&] { cache.step(qkv(q, k, v), out); }) ==
          "twicing cache: k has 8 columns, wanted 0 as the first token's");
  }
  Cache<decltype(op), double> given(op, {.batch = 2, .heads = 2});
  PagedTexts<double> fresh(s, 9);
  given.step(qkv(q, k, v), out);
  fresh.append(k, v), fresh.append(k, v);
  CHECK(suite::error_of([&] { given.step(token, fresh.pages, out); }) ==
        "twicing cache: k has 0 columns, wanted 8 as the first token's");
  given.clear();  // and the next text may be in pages
  fresh.lengths.setOnes();
  given.step(token, fresh.pages, out);
  fresh.lengths.setConstant(2);
  given.step(token, fresh.pages, out);
  CHECK(given.size() == 2);
}

TEST_CASE("a second text in the decoding cache may lack what the first one had") {
  const auto op = twicing(limpid::nlm(causal()));
  Cache<decltype(op), double> cache(op), fresh(op);
  suite::Random random(2);
  const Mat<double> x = suite::random_matrix<double>(random, 3, 4), place = suite::random_matrix<double>(random, 1, 2);
  Mat<double> out(1, 4), wanted(1, 4);
  for (Index i = 0; i < 6; ++i) {
    if (i == 3) cache.clear();
    const Mat<double> row = x.row(i % 3);
    limpid::NlmArgs<limpid::View<double>> token = qkv(row, row, row);
    if (i < 3) token.pq = token.pk = limpid::View<double>(place);
    cache.step(token, out);
    if (i < 3) continue;
    fresh.step(token, wanted);
    CHECK(out == wanted);
  }
}

TEST_CASE("decoding has the digits of scores whose biases are all the lowest number") {
  const Mat<double> low = Mat<double>::Constant(1, 9, std::numeric_limits<double>::lowest());
  CHECK(decoding_error(twicing(limpid::chain(causal(), limpid::relative(low))), 40, many) < 1e-13);
  Mat<double> some = low;
  some(0, 2) = 3, some(0, 3) = -2000;
  CHECK(decoding_error(twicing(limpid::chain(causal(), limpid::relative(some), limpid::relative(low))), 40, many) <
        1e-13);
}

TEST_CASE("decoding turns rotary keys once, before they are cached") {
  suite::Random random(6);
  const Index n = 30;
  const auto q = suite::random_matrix<double>(random, n, 8), k = suite::random_matrix<double>(random, n, 8);
  const auto v = suite::random_matrix<double>(random, n, 3);
  const auto op = twicing(causal());
  const Mat<double> whole = limpid::forward(limpid::rope(op), qkv(q, k, v));
  Cache<decltype(op), double> cache(op);
  for (Index i = 0; i < n; ++i) {
    Mat<double> qi = q.row(i), ki = k.row(i), vi = v.row(i), out(1, 3);
    limpid::rope_rotate(qi, qi, {.first = static_cast<double>(i)});
    limpid::rope_rotate(ki, ki, {.first = static_cast<double>(i)});
    cache.step(qkv(qi, ki, vi), out);
    CHECK(distance(out, whole.row(i)) < 1e-13);
  }
}

TEST_CASE("a token that a mask hides cannot be seen in later ones, whatever it holds") {
  const Index n = 12, hidden = 5;
  suite::Random random(7);
  Mat<double> q = suite::random_matrix<double>(random, n, 4), k = suite::random_matrix<double>(random, n, 4);
  Mat<double> v = suite::random_matrix<double>(random, n, 3), outs[2];
  const auto op = twicing(causal() & limpid::mask([](const limpid::At& a) { return a.k != hidden; }));
  for (Mat<double>& all : outs) {
    all.resize(n, 3);
    Cache<decltype(op), double> cache(op);
    for (Index i = 0; i < n; ++i) {
      const Mat<double> qi = q.row(i), ki = k.row(i), vi = v.row(i);
      cache.step(qkv(qi, ki, vi), all.middleRows(i, 1));
    }
    k.row(hidden).setConstant(std::numeric_limits<double>::quiet_NaN());
    v.row(hidden).setConstant(std::numeric_limits<double>::infinity());
  }
  CHECK(outs[1].allFinite());
  CHECK(distance(outs[0], outs[1]) == 0);
}

TEST_CASE("the decoding cache refuses tokens of other widths and modifiers with a fixed number of keys") {
  const Mat<double> q = Mat<double>::Ones(1, 4), v = Mat<double>::Ones(1, 3), wide = Mat<double>::Ones(1, 5);
  Mat<double> out(1, 3), wide_out(1, 5);
  const auto op = twicing(causal());
  Cache<decltype(op), double> cache(op);
  cache.step(qkv(q, q, v), out);
  CHECK_THROWS_WITH(cache.step(qkv(q, q, wide), wide_out),
                    "twicing cache: v has 5 columns, wanted 3 as the first token's");
  CHECK_THROWS_WITH(cache.step(qkv(q, q, v), wide_out), "twicing: out is 1 x 5, wanted 1 x 3");
  CHECK_THROWS_WITH((Cache<decltype(op), double>(op, {.heads = 3, .kv_heads = 2})),
                    "twicing cache: batch 1, heads 3, kv_heads 2, wanted positive ones, kv_heads a divisor of heads");
  CHECK(cache.size() == 1);
  const Mat<double> bias = Mat<double>::Zero(1, 1);
  const auto biased = twicing(limpid::key_bias(bias));
  Cache<decltype(biased), double> fixed(biased);
  fixed.step(qkv(q, q, v), out);
  CHECK_THROWS_AS(fixed.step(qkv(q, q, v), out), limpid::ShapeError);
  CHECK(fixed.size() == 1);
}

TEST_CASE("a step of the decoding cache that throws leaves the cache as it was") {
  const Index n = 40;  // beyond the room of the first steps
  suite::Random random(8);
  const auto q = suite::random_matrix<double>(random, n, 4), k = suite::random_matrix<double>(random, n, 4);
  const auto v = suite::random_matrix<double>(random, n, 3);
  bool throws = false;
  const auto op = twicing(limpid::mask([&](const limpid::At&) {
    if (throws) throw std::runtime_error("mask");
    return true;
  }));
  const auto calm = twicing(causal());
  Cache<decltype(op), double> cache(op);
  Cache<decltype(calm), double> wanted(calm);
  const Mat<double> other = Mat<double>::Constant(1, 4, 9), wide = Mat<double>::Ones(1, 5);
  for (Index i = 0; i < n; ++i) {
    const Mat<double> qi = q.row(i), ki = k.row(i), vi = v.row(i);
    Mat<double> out(1, 3), expected(1, 3), wide_out(1, 5);
    throws = true;
    CHECK_THROWS_WITH(cache.step(qkv(other, other, vi), out), "mask");
    throws = false;
    if (i > 0) CHECK_THROWS_AS(cache.step(qkv(qi, ki, wide), wide_out), limpid::ShapeError);
    CHECK(cache.size() == i);
    cache.step(qkv(qi, ki, vi), out);
    wanted.step(qkv(qi, ki, vi), expected);
    CHECK(out == expected);
    CHECK(cache.size() == i + 1);
  }
}

TEST_CASE("a copy of the decoding cache holds the tokens so far and goes on by itself") {
  const Index n = 40, apart = 9;
  suite::Random random(3);
  const auto x = suite::random_matrix<double>(random, n, 4), y = suite::random_matrix<double>(random, n, 4);
  const auto op = twicing(causal());
  using One = Cache<decltype(op), double>;
  const auto step = [](One& cache, const Mat<double>& rows, Index i) {
    const Mat<double> token = rows.row(i);
    Mat<double> out(1, 4);
    cache.step(qkv(token, token, token), out);
    return out;
  };
  One cache(op), wanted(op), wanted_of_copy(op);
  for (Index i = 0; i < apart; ++i) step(cache, x, i), step(wanted, x, i), step(wanted_of_copy, x, i);
  One copy = cache, assigned(op);
  step(assigned, y, 0);
  assigned = copy;
  CHECK(copy.size() == apart);
  for (Index i = apart; i < n; ++i) {
    CHECK(step(cache, x, i) == step(wanted, x, i));
    const Mat<double> right = step(wanted_of_copy, y, i);
    CHECK(step(copy, y, i) == right);
    CHECK(step(assigned, y, i) == right);
  }
  One moved = std::move(copy);
  moved.clear(), wanted.clear();
  CHECK(step(moved, x, 0) == step(wanted, x, 0));
}

TEST_CASE("tokens taken back from the decoding cache leave the first ones as they were") {
  const Index n = 20;
  suite::Random random(9);
  const auto q = suite::random_matrix<double>(random, n, 4), k = suite::random_matrix<double>(random, n, 4);
  const auto v = suite::random_matrix<double>(random, n, 3);
  const auto op = twicing(causal(), {.order = 2});
  Cache<decltype(op), double> cache(op);
  CHECK(cache.op().order == 2);
  Mat<double> outs[2] = {Mat<double>(n, 3), Mat<double>(n, 3)};
  for (Mat<double>& all : outs) {
    for (Index i = cache.size(); i < n; ++i) {
      const Mat<double> qi = q.row(i), ki = k.row(i), vi = v.row(i);
      cache.step(qkv(qi, ki, vi), all.middleRows(i, 1));
    }
    CHECK_THROWS_WITH(cache.truncate(n + 1),
                      "twicing cache: truncate was asked for 21 tokens, wanted 0 to 20, those held");
    CHECK_THROWS_WITH(cache.truncate(-1),
                      "twicing cache: truncate was asked for -1 tokens, wanted 0 to 20, those held");
    CHECK(cache.size() == n);
    cache.truncate(7);
    CHECK(cache.size() == 7);
  }
  CHECK(outs[1].bottomRows(n - 7) == outs[0].bottomRows(n - 7));
}

TEST_CASE("the decoding cache refuses numbers of heads, items and tokens that make no sense") {
  const auto op = twicing(causal());
  const Index most = std::numeric_limits<Index>::max(), least = std::numeric_limits<Index>::min();
  for (const auto& [batch, heads, kv_heads] : std::vector<std::array<Index, 3>>{
           {1, 1, -1}, {1, 4, -2}, {1, 1, least}, {0, 1, 0}, {-1, 1, 0}, {least, 1, 1}, {1, 0, 0}, {1, least, -1}})
    CHECK(suite::error_of([&, b = batch, h = heads, g = kv_heads] {
            Cache<decltype(op), double>(op, {.batch = b, .heads = h, .kv_heads = g});
          }).find("twicing cache: batch ") == 0);
  const Mat<double> q = Mat<double>::Ones(1, 4);
  Mat<double> out(1, 4);
  for (const auto& [batch, heads] : std::vector<std::array<Index, 2>>{{most, 1}, {1, most}, {Index(1) << 61, 4}}) {
    Cache<decltype(op), double> cache(op, {.batch = batch, .heads = heads});
    CHECK(suite::error_of([&] { cache.step(qkv(q, q, q), out); }).find("twicing: ") == 0);
    CHECK(cache.size() == 0);
  }
  Cache<decltype(op), double> cache(op);
  for (Index tokens : {Index(-1), least, most, Index(1) << 61})
    CHECK(suite::error_of([&] { cache.reserve(tokens); }).find("twicing cache: reserve was asked for ") == 0);
  cache.step(qkv(q, q, q), out);
  CHECK(cache.size() == 1);
}

TEST_CASE(
    "the decoding cache refuses an out that lies over the token or over a modifier's array, and stays as it was") {
  Mat<double> q = Mat<double>::Random(1, 4), k = Mat<double>::Random(1, 4), v = Mat<double>::Random(1, 4),
              slopes = Mat<double>::Constant(1, 4, 0.5), out(1, 4);
  const Mat<double> before[] = {q, k, v, slopes};
  const auto op = twicing(limpid::chain(causal(), limpid::alibi(slopes)));
  Cache<decltype(op), double> cache(op, {.heads = 4});
  for (int i = 0; i < 3; ++i) {
    for (const auto& [name, over] :
         {std::pair{"q", &q}, std::pair{"k", &k}, std::pair{"v", &v}, std::pair{"ALiBi slopes", &slopes}})
      CHECK(suite::error_of([&, to = over] { cache.step(qkv(q, k, v), *to); }) ==
            std::string("twicing: out shares memory with ") + name + ", wanted memory of its own");
    CHECK((q == before[0] && k == before[1] && v == before[2] && slopes == before[3]));
    CHECK(cache.size() == i);
    cache.step(qkv(q, k, v), out);
  }
}
