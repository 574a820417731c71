// limpid: contract: causal masks, windows, hints of masks, logits of any size, and sizes of nothing.
// SPDX-License-Identifier: MIT
#include <string_view>

#include "problem.hpp"

using namespace suite;

namespace {

/// Same results up to rounding.
template <class S>
void check_close(const Result<S>& found, const Result<S>& wanted, double epsilons = 400) {
  const double bound = epsilons * std::numeric_limits<S>::epsilon();
  CHECK(distance(found.out, wanted.out) <= bound * (1 + largest(wanted.out)));
  const double size = 1 + largest_gradient(wanted);
  for (std::size_t f = 0; f < wanted.grad.size(); ++f) {
    INFO("gradient of " << wanted.grad[f].name);
    CHECK(distance(found.grad[f].value, wanted.grad[f].value) <= bound * size);
  }
}

std::vector<Sizes> shapes() {
  std::vector<Sizes> all = {{3, 5}, {5, 3}, {33, 129}, {129, 33}, {127, 127}, {1, 31}, {31, 1}, {300, 257}};
  all[2].heads = 4, all[2].kv_heads = 2, all[2].batch = 2;
  return all;
}

}  // namespace

TEMPLATE_TEST_CASE("Causal is aligned bottom-right: query i sees key j when j - i <= m - n.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (const Sizes& s : shapes()) {
      const auto causal = make_problem<S>(op, Kind::causal, s, 301);
      auto explicitly = make_problem<S>(op, Kind::masks, s, 301);
      explicitly.mods.keep = [](const At& a) { return a.k - a.q <= a.m - a.n; };
      INFO(causal.text());
      const Result<S> found = run(causal);
      check_close(found, run(explicitly));
      for (Kind kind : {Kind::masks, Kind::values}) {
        auto other = make_problem<S>(op, kind, s, 301);
        other.mods.causal = true;
        INFO("causal in the chain " << text_of(kind));
        check_close(run(other), found);
      }
    }
  });
}

TEMPLATE_TEST_CASE("A window keeps what an explicit mask of its band keeps.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (const Sizes& s : shapes())
      for (auto [left, right] :
           {std::pair<Index, Index>{3, 0}, {0, 2}, {-1, -1}, {40, -1}, {-1, 5}, {70, 70}, {0, 0}}) {
        auto window = make_problem<S>(op, Kind::masks, s, 302);
        auto explicitly = window;
        window.mods.window = true, window.mods.left = left, window.mods.right = right;
        explicitly.mods.keep = [left = left, right = right](const At& a) {
          const Index gap = a.k - a.position();
          return (left < 0 || gap >= -left) && (right < 0 || gap <= right);
        };
        INFO(window.text() << ", window " << left << ", " << right);
        check_close(run(window), run(explicitly));
      }
  });
}

TEMPLATE_TEST_CASE("A mask that says which blocks it keeps gives the bits of one that does not.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (const Sizes& s : shapes())
      for (Kind kind : {Kind::masks, Kind::values}) {
        auto plain = make_problem<S>(op, kind, s, 303);
        dress(plain);
        // two documents, each of which sees itself; a third part of the tokens sees nothing
        const auto document = [](Index position, Index count) { return position * 3 / std::max<Index>(count, 1); };
        plain.mods.keep = [=](const At& a) {
          const Index d = document(a.q, a.n);
          return d == document(a.k, a.m) && d < 2;
        };
        auto hinted = plain;
        int skipped = 0;
        hinted.mods.cover = [=, &skipped](const At& a, Index q0, Index q1, Index k0, Index k1) {
          const Index q_first = document(q0, a.n), q_last = document(q1 - 1, a.n), k_first = document(k0, a.m),
                      k_last = document(k1 - 1, a.m);
          if (q_first == q_last && k_first == k_last && q_first == k_first && q_first < 2) return Cover::all;
          if (q_last < k_first || k_last < q_first || q_first == 2) return ++skipped, Cover::none;
          return Cover::some;
        };
        INFO(plain.text());
        CHECK(differing(run(hinted), run(plain)) == "");
        if (plain.sizes.n >= 300) CHECK(skipped > 0);
      }
  });
}

TEMPLATE_TEST_CASE("Logits of ten thousand stay finite, and right.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (Kind kind : {Kind::none, Kind::causal, Kind::masks, Kind::values})
      for (const Sizes& s : {Sizes{33, 129}, Sizes{129, 31}}) {
        auto p = make_problem<S>(op, kind, s, 304);
        dress(p);
        p.mods.cap = 0;
        for (auto& f : p.in)
          if ((f.role == Role::query || f.role == Role::key) && std::string_view(f.name) != "v") f.value *= S(100);
        INFO(p.text());
        Options<S> asked;
        asked.map = asked.lse = true;
        const Result<S> r = run(p, asked);
        CHECK(all_finite(r));
        CHECK(all_finite(r.map));
        double logit = 0;
        for (Index i = 0; i < r.lse.size(); ++i)
          if (std::isfinite(r.lse.data()[i])) logit = std::max(logit, static_cast<double>(std::abs(r.lse.data()[i])));
        if (r.lse.size() > 0) CHECK(logit > 1e3);
        if (sizeof(S) == 8) {
          const auto wanted = run(convert<long double>(p));
          CHECK(distance(r.out, wanted.out) <= 1e-9 * (1 + largest(wanted.out)));
        }
      }
  });
}

/// Where one key has all the weight, that is 1 to the last bit, in every sweep: made again from a log-sum-exp in one
/// number it would be off by the rounding of the logit.
TEMPLATE_TEST_CASE("Logits of a hundred thousand: gradients as exact as at small ones.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (Kind kind : {Kind::none, Kind::causal})
      for (const Sizes& s : {Sizes{33, 129}, Sizes{129, 65}, Sizes{8, 700}}) {
        auto p = make_problem<S>(op, kind, s, 305);
        for (auto& f : p.in)
          if ((f.role == Role::query || f.role == Role::key) && (f.name[0] == 'q' || f.name[0] == 'k'))
            f.value *= S(500);
        INFO(p.text());
        Options<S> asked;
        asked.relevance = op.traits.relevance, asked.lse = true;
        Options<long double> asked_too;
        asked_too.relevance = asked.relevance;
        const Result<S> found = run(p, asked);
        if (found.lse.size() == 0) continue;  // a weight of its score alone has the rounding of a score near 0
        const auto wanted = run(convert<long double>(p), asked_too);
        const double bound = 200 * std::numeric_limits<S>::epsilon(), size = largest_gradient(wanted);
        CHECK(distance(found.out, wanted.out) <= bound * (1 + largest(wanted.out)));
        CHECK(distance(found.relevance, wanted.relevance) <= bound * (1 + largest(wanted.relevance)));
        for (std::size_t f = 0; f < found.grad.size(); ++f) {
          INFO("gradient of " << found.grad[f].name);
          CHECK(distance(found.grad[f].value, wanted.grad[f].value) <= bound * std::max(size, 1.0));
        }
      }
  });
}

TEMPLATE_TEST_CASE("No queries, no keys or neither: zeros, and no gradient.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (Kind kind : {Kind::none, Kind::causal, Kind::masks, Kind::values})
      for (Sizes s : {Sizes{0, 5}, Sizes{5, 0}, Sizes{0, 0}})
        for (bool all_fields : {true, false}) {
          s.heads = 2, s.kv_heads = 1, s.batch = 2;
          if (op.traits.square) s.n = s.m = 0;
          const auto p = make_problem<S>(op, kind, s, 305, all_fields);
          INFO(p.text() << (all_fields ? ", all fields" : ""));
          Options<S> asked;
          asked.map = asked.lse = true, asked.relevance = op.traits.relevance;
          Result<S> r;
          REQUIRE_NOTHROW(r = run(p, asked));
          CHECK(r.out == Mat<S>::Zero(r.out.rows(), r.out.cols()));
          for (const auto& g : r.grad) {
            INFO("gradient of " << g.name);
            CHECK(g.value == Mat<S>::Zero(g.value.rows(), g.value.cols()));
          }
          CHECK(r.relevance == Mat<S>::Zero(r.relevance.rows(), r.relevance.cols()));
          for (Index i = 0; i < r.lse.size(); ++i) CHECK(r.lse.data()[i] == -std::numeric_limits<S>::infinity());
        }
  });
}
