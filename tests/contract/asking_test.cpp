// limpid: contract: asking for more never changes a bit, and what is shown is what was at work.
// SPDX-License-Identifier: MIT
#include "problem.hpp"

#include "support/products.hpp"

using namespace suite;

namespace {

/// Sizes that ask for something: several heads on fewer key heads, two items.
std::vector<Sizes> several() {
  std::vector<Sizes> all = {{33, 129}, {129, 33}, {2, 1}};
  for (Sizes& s : all) s.heads = 4, s.kv_heads = 2, s.batch = 2;
  return all;
}

constexpr Kind kinds[] = {Kind::none, Kind::causal, Kind::masks, Kind::values};

template <class S>
Problem<S> dressed(const Operator& op, Kind kind, const Sizes& sizes, std::uint64_t seed) {
  auto p = make_problem<S>(op, kind, sizes, seed);
  dress(p);
  return p;
}

}  // namespace

TEMPLATE_TEST_CASE("Asking for the map, the log-sum-exp or the saved state changes no bit of the output.", "", float,
                   double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (const Sizes& s : several())
      for (Kind kind : kinds) {
        const auto p = dressed<S>(op, kind, s, 101);
        INFO(p.text());
        Options<S> nothing;
        nothing.keep = false;
        const Result<S> plain = run(p, nothing);
        for (int asked = 1; asked < 8; ++asked) {
          Options<S> some;
          some.keep = (asked & 1) != 0, some.lse = (asked & 2) != 0, some.map = (asked & 4) != 0;
          some.head = 1, some.item = 1;
          INFO("saved " << some.keep << ", lse " << some.lse << ", map " << some.map);
          CHECK(same_bits(run(p, some).out, plain.out));
        }
      }
  });
}

TEMPLATE_TEST_CASE("Asking for relevance changes no bit of the gradients.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    if (!op.traits.relevance) return;
    for (const Sizes& s : several())
      for (Kind kind : kinds) {
        const auto p = dressed<S>(op, kind, s, 102);
        INFO(p.text());
        const Result<S> plain = run(p);
        for (auto part : {limpid::Part::pos, limpid::Part::neg, limpid::Part::abs, limpid::Part::signed_}) {
          Options<S> asked;
          asked.relevance = true, asked.part = part;
          const Result<S> more = run(p, asked);
          CHECK(differing(more, plain) == "");
          CHECK(all_finite(more.relevance));
        }
      }
  });
}

TEMPLATE_TEST_CASE("The map times the values gives the output, head by head.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    if (!op.traits.linear) return;
    for (const Sizes& s : several())
      for (Kind kind : kinds) {
        auto p = dressed<S>(op, kind, s, 103);
        INFO(p.text());
        const Mat<S> v = p.field(op.traits.values).value;
        for (Index head : {Index(0), Index(3)})
          for (Index item : {Index(0), Index(1)}) {
            Options<S> asked;
            asked.map = true, asked.head = head, asked.item = item;
            const Result<S> r = run(p, asked);
            const Index n = p.sizes.n, m = p.sizes.m, dv = v.cols() / p.sizes.kv_heads;
            const Index group = head / (p.sizes.heads / p.sizes.kv_heads);
            const Mat<S> wanted = product(r.map, Mat<S>(v.block(item * m, group * dv, m, dv)));
            const Mat<S> found = r.out.block(item * n, head * dv, n, dv);
            CHECK(distance(found, wanted) <= 200 * std::numeric_limits<S>::epsilon() * (1 + largest(wanted)));
          }
      }
  });
}

TEMPLATE_TEST_CASE("Rows of a map that is a distribution are not negative and sum to one, or are zero.", "", float,
                   double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    if (!op.traits.distribution) return;
    for (Kind kind : kinds) {
      const auto p = dressed<S>(op, kind, {129, 33}, 104);
      INFO(p.text());
      Options<S> asked;
      asked.map = true, asked.lse = true;
      const Result<S> r = run(p, asked);
      for (Index i = 0; i < r.map.rows(); ++i) {
        S sum = 0, least = 0;
        for (Index j = 0; j < r.map.cols(); ++j) sum += r.map(i, j), least = std::min(least, r.map(i, j));
        INFO("row " << i << ", lse " << r.lse(0, i));
        CHECK(std::abs(sum - (std::isinf(r.lse(0, i)) ? S(0) : S(1))) <= 50 * std::numeric_limits<S>::epsilon());
        CHECK(least == S(0));
      }
    }
  });
}

TEMPLATE_TEST_CASE("The map times any array is what map_right gives.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    Sizes s{33, 129};
    s.heads = 4, s.kv_heads = 2, s.batch = 2;
    const auto p = make_problem<S>(op, Kind::none, s, 105);
    INFO(p.text());
    Random random(1);
    const Mat<S> x = random_matrix<S>(random, p.sizes.m, 6);
    const auto in = views_of(p.in);
    Ask<S> ask;
    Mat<S> out(p.dout.rows(), p.dout.cols()), map, found(p.sizes.n, 6);
    ask.saved = p.subject().new_saved(), ask.map = &map, ask.head = 3, ask.item = 1;
    p.subject().forward(p.sizes, p.mods, in, out, ask);
    limpid::HeadCall call;
    call.head = 3, call.item = 1;
    p.subject().map_right(p.mods, in, ask.saved.get(), x, found, call);
    const Mat<S> wanted = product(map, x);
    CHECK(distance(found, wanted) <= 200 * std::numeric_limits<S>::epsilon() * (1 + largest(wanted)));
  });
}
