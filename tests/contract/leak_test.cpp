// limpid: contract: a masked key is not seen and an empty row is zero, whatever they hold; a NaN that is kept shows.
// SPDX-License-Identifier: MIT
#include "problem.hpp"

using namespace suite;

namespace {

using Sees = std::function<bool(const At&)>;

/// A way to mask, and what each query sees by it.
template <class S>
struct Way {
  std::string name;
  Kind kind;
  Sees sees;
  std::function<void(Problem<S>&)> set_up;
};

Cover cover_of(const Sees& sees, At a, Index q0, Index q1, Index k0, Index k1) {
  bool all = true, none = true;
  for (a.q = q0; a.q < q1; ++a.q)
    for (a.k = k0; a.k < k1; ++a.k) sees(a) ? none = false : all = false;
  return all ? Cover::all : (none ? Cover::none : Cover::some);
}

/// Every way to mask what `sees` says, with a mask.
template <class S>
std::vector<Way<S>> ways_of_masks(const std::string& what, const Sees& sees) {
  const auto keep = [sees](Problem<S>& p) { p.mods.keep = sees; };
  return {{what + ", a mask", Kind::masks, sees, keep},
          {what + ", a mask with hints", Kind::masks, sees,
           [=](Problem<S>& p) {
             keep(p);
             p.mods.cover = [sees](const At& a, Index q0, Index q1, Index k0, Index k1) {
               return cover_of(sees, a, q0, q1, k0, k1);
             };
           }},
          {what + ", a mask after a score function", Kind::values, sees,
           [=](Problem<S>& p) {
             keep(p);
             p.mods.cap = 3;
           }},
          {what + ", minus infinity added", Kind::values, sees,
           [=](Problem<S>& p) { p.mods.add = [sees](const At& a) { return sees(a) ? 0.25 : -HUGE_VAL; }; }}};
}

/// Ways that leave some queries without a key, and some keys without a query.
template <class S>
std::vector<Way<S>> ways(const Operator& op) {
  const auto odd = [](Index i) { return i % 13 == 5; };
  const Sees some = [=](const At& a) { return !odd(a.q) && !odd(a.k); };
  auto all = ways_of_masks<S>("every 13th token", some);
  const Sees biased = [=](const At& a) { return !odd(a.k); };
  const auto bias = [=](Problem<S>& p) {
    for (Index j = 0; j < p.sizes.m; ++j)
      p.mods.key_bias(0, j) = odd(j) ? -std::numeric_limits<S>::infinity() : S(0.25);
  };
  // where queries are keys, a key nobody sees must not look at anything either
  const Sees both = op.traits.self ? some : biased;
  const auto bias_and_mask = [=, self = op.traits.self](Problem<S>& p) {
    bias(p);
    if (self) p.mods.keep = [=](const At& a) { return !odd(a.q); };
  };
  all.push_back({"key bias of minus infinity", Kind::masks, both, bias_and_mask});
  all.push_back({"key bias of minus infinity after a score function", Kind::values, both, bias_and_mask});
  all.push_back({"key bias of minus infinity everywhere", Kind::masks, [](const At&) { return false; },
                 [](Problem<S>& p) { p.mods.key_bias.setConstant(-std::numeric_limits<S>::infinity()); }});
  if (op.traits.square) return all;
  all.push_back({"causal", Kind::causal, [](const At& a) { return a.k <= a.position(); }, [](Problem<S>&) {}});
  for (Kind kind : {Kind::masks, Kind::values})
    all.push_back({std::string("a window, chain ") + text_of(kind), kind,
                   [](const At& a) { return a.k <= a.position() && a.k >= a.position() - 2; },
                   [](Problem<S>& p) { p.mods.window = true, p.mods.left = 2, p.mods.right = 0; }});
  return all;
}

/// Tokens that see nothing or are seen by none, whatever head and item.
struct Alone {
  std::vector<Index> queries, keys;
};
Alone alone(const Sizes& s, const Sees& sees) {
  Alone a;
  const auto any = [&](Index i, Index j) { return sees(At{0, 0, i, j, s.n, s.m}); };
  for (Index i = 0; i < s.n; ++i) {
    bool seen = false;
    for (Index j = 0; j < s.m; ++j) seen |= any(i, j);
    if (!seen) a.queries.push_back(i);
  }
  for (Index j = 0; j < s.m; ++j) {
    bool seen = false;
    for (Index i = 0; i < s.n; ++i) seen |= any(i, j);
    if (!seen) a.keys.push_back(j);
  }
  return a;
}

/// Puts x into rows of every item; each place gets it in a different column, or in all.
template <class S>
void spoil(Mat<S>& m, Index rows_of_item, const std::vector<Index>& rows, S x, bool whole) {
  for (Index first = 0; first + rows_of_item <= m.rows() && rows_of_item > 0; first += rows_of_item)
    for (Index i : rows)
      for (Index c = 0; c < m.cols(); ++c)
        if (whole || c % 3 == i % 3) m(first + i, c) = x;
}

/// Spoils everything that belongs to those queries and keys.
template <class S>
void spoil(Problem<S>& p, const Alone& rows, S x, bool whole) {
  for (auto& f : p.in) {
    if (!f.given() || (p.op->traits.residual && f.name != "q" && f.name != "k")) continue;
    if (f.role == Role::query || f.role == Role::query_side) spoil(f.value, p.sizes.n, rows.queries, x, whole);
    if (f.role == Role::key || f.role == Role::key_side) spoil(f.value, p.sizes.m, rows.keys, x, whole);
  }
  if (!p.op->traits.residual) spoil(p.dout, p.sizes.n, rows.queries, x, whole);
}

template <class S>
std::vector<S> bad_numbers() {
  const S inf = std::numeric_limits<S>::infinity();
  return {std::numeric_limits<S>::quiet_NaN(), inf, -inf, sizeof(S) == 4 ? S(1e30) : S(1e200)};
}

std::vector<Sizes> shapes() {
  std::vector<Sizes> all = {{40, 70}, {70, 40}, {150, 150}};
  for (Sizes& s : all) s.heads = 2, s.kv_heads = 1, s.batch = 2;
  return all;
}

/// The same bits, or up to rounding and finite where a common centre may have moved.
template <class S>
bool same(const Operator& op, S a, S b, double size) {
  if (!op.traits.centred) return std::memcmp(&a, &b, sizeof(S)) == 0;
  return std::abs(static_cast<double>(a) - static_cast<double>(b)) <= 1e3 * std::numeric_limits<S>::epsilon() * size;
}

template <class S>
bool zero_rows(const Mat<S>& m, Index rows_of_item, const std::vector<Index>& rows) {
  for (Index first = 0; first + rows_of_item <= m.rows() && rows_of_item > 0; first += rows_of_item)
    for (Index i : rows)
      for (Index c = 0; c < m.cols(); ++c)
        if (m(first + i, c) != S(0)) return false;
  return true;
}

}  // namespace

TEMPLATE_TEST_CASE("A query that sees no key gives zeros and gets no gradient; nor does a key that no query sees.", "",
                   float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    if (op.traits.residual) return;
    for (const auto& way : ways<S>(op))
      for (const Sizes& s : shapes()) {
        auto p = make_problem<S>(op, way.kind, s, 401);
        way.set_up(p);
        INFO(p.text() << "; " << way.name);
        const Alone rows = alone(p.sizes, way.sees);
        Options<S> asked;
        asked.lse = asked.map = true;
        const Result<S> r = run(p, asked);
        CHECK(all_finite(r));
        CHECK(zero_rows(r.out, p.sizes.n, rows.queries));
        CHECK(zero_rows(r.map, p.sizes.n, rows.queries));
        for (Index i : rows.queries)
          if (r.lse.size() > 0) CHECK(r.lse(0, i) == -std::numeric_limits<S>::infinity());
        for (const auto& g : r.grad) {
          INFO("gradient of " << g.name);
          if (g.role == Role::query || g.role == Role::query_side) CHECK(zero_rows(g.value, p.sizes.n, rows.queries));
          if (g.role == Role::key || g.role == Role::key_side) CHECK(zero_rows(g.value, p.sizes.m, rows.keys));
        }
      }
  });
}

TEMPLATE_TEST_CASE("What a masked key or an empty row holds changes no bit of anything.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (const auto& way : ways<S>(op))
      for (const Sizes& s : shapes()) {
        auto p = make_problem<S>(op, way.kind, s, 402);
        way.set_up(p);
        const Alone rows = alone(p.sizes, way.sees);
        Options<S> asked;
        asked.lse = asked.map = true, asked.relevance = op.traits.relevance;
        const Result<S> finite = run(p, asked);
        for (S x : bad_numbers<S>())
          for (bool whole : {false, true}) {
            auto bad = p;
            spoil(bad, rows, x, whole);
            INFO(p.text() << "; " << way.name << "; holding " << x << (whole ? " everywhere" : " here and there"));
            CHECK(differing(run(bad, asked), finite) == "");
          }
      }
  });
}

TEMPLATE_TEST_CASE("A NaN that is kept shows in what sees it, and nowhere else.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    // two documents: the first half of the queries sees the first half of the keys
    const Sees documents = [](const At& a) { return (2 * a.q < a.n) == (2 * a.k < a.m); };
    for (const auto& way : ways_of_masks<S>("two documents", documents))
      for (const Sizes& s : shapes()) {
        auto p = make_problem<S>(op, way.kind, s, 403);
        way.set_up(p);
        const Result<S> finite = run(p);
        const Index n = p.sizes.n, m = p.sizes.m;
        const double size = largest_gradient(finite);
        for (const auto& spoiled : p.in) {
          const bool query = spoiled.role == Role::query || spoiled.role == Role::query_side;
          if (!spoiled.given() || spoiled.role == Role::head) continue;
          auto bad = p;
          spoil<S>(bad.field(spoiled.name).value, query ? n : m, {3}, std::numeric_limits<S>::quiet_NaN(), true);
          INFO(p.text() << "; " << way.name << "; NaN in row 3 of " << spoiled.name);
          const Result<S> r = run(bad);
          bool shown = true, hidden = true;
          for (Index i = 0; i < r.out.rows(); ++i)
            for (Index c = 0; c < r.out.cols(); ++c) {
              const bool first = 2 * (i % n) < n;
              if (first && (!query || i % n == 3)) shown &= std::isnan(r.out(i, c));
              if (!first) hidden &= same(op, r.out(i, c), finite.out(i, c), 1.5);
            }
          if (!op.traits.residual) CHECK(shown);
          CHECK(hidden);
          for (std::size_t f = 0; f < r.grad.size(); ++f) {
            const auto& g = r.grad[f];
            if (!g.given() || g.role == Role::head) continue;
            const bool of_query = g.role == Role::query || g.role == Role::query_side;
            const Index rows = of_query ? n : m;
            bool fine = true, any = false;
            for (Index i = 0; i < g.value.rows(); ++i)
              for (Index c = 0; c < g.value.cols(); ++c) {
                if (2 * (i % rows) >= rows)
                  fine &= same(op, g.value(i, c), finite.grad[f].value(i, c), size);
                else
                  any |= std::isnan(g.value(i, c));
              }
            INFO("gradient of " << g.name);
            CHECK(fine);
            if ((g.name == "q" || g.name == "k") && !op.traits.residual) CHECK(any);
          }
        }
      }
  });
}

TEMPLATE_TEST_CASE("A NaN upstream goes to what its query sees, and nowhere else.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    const Sees documents = [](const At& a) { return (2 * a.q < a.n) == (2 * a.k < a.m); };
    for (const auto& way : ways_of_masks<S>("two documents", documents))
      for (const Sizes& s : shapes()) {
        auto p = make_problem<S>(op, way.kind, s, 404);
        way.set_up(p);
        INFO(p.text() << "; " << way.name);
        const Result<S> finite = run(p);
        spoil<S>(p.dout, p.sizes.n, {3}, std::numeric_limits<S>::quiet_NaN(), true);
        const Result<S> r = run(p);
        CHECK(same_bits(r.out, finite.out));
        for (std::size_t f = 0; f < r.grad.size(); ++f) {
          const auto& g = r.grad[f];
          if (!g.given() || g.role == Role::head) continue;
          const Index rows = g.role == Role::query || g.role == Role::query_side ? p.sizes.n : p.sizes.m;
          bool fine = true, any = false;
          for (Index i = 0; i < g.value.rows(); ++i)
            for (Index c = 0; c < g.value.cols(); ++c)
              if (2 * (i % rows) >= rows)
                fine &= std::memcmp(&g.value(i, c), &finite.grad[f].value(i, c), sizeof(S)) == 0;
              else
                any |= std::isnan(g.value(i, c));
          INFO("gradient of " << g.name);
          CHECK(fine);
          CHECK(any);
        }
      }
  });
}

TEMPLATE_TEST_CASE("Under a causal mask a NaN in the last key reaches only the last query.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (const Sizes& s : shapes()) {
      auto p = make_problem<S>(op, Kind::causal, s, 405);
      const Index n = p.sizes.n;
      const Result<S> finite = run(p);
      for (auto& f : p.in)
        if (f.role == Role::key && !op.traits.residual)
          spoil<S>(f.value, p.sizes.m, {p.sizes.m - 1}, std::numeric_limits<S>::quiet_NaN(), true);
      INFO(p.text());
      const Result<S> r = run(p);
      bool fine = true, shown = true;
      for (Index i = 0; i < r.out.rows(); ++i)
        for (Index c = 0; c < r.out.cols(); ++c) {
          if (i % n == n - 1)
            shown &= std::isnan(r.out(i, c));
          else
            fine &= same(op, r.out(i, c), finite.out(i, c), 1.5);
        }
      CHECK(fine);
      if (!op.traits.residual && !op.traits.self) CHECK(shown);
    }
  });
}

TEMPLATE_TEST_CASE("Without modifiers a NaN in any key shows in every row.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    auto p = make_problem<S>(op, Kind::none, {33, 31}, 406);
    for (auto& f : p.in)
      if (f.role == Role::key || op.traits.self)
        spoil<S>(f.value, p.sizes.m, {7}, std::numeric_limits<S>::quiet_NaN(), true);
    INFO(p.text());
    const Result<S> r = run(p);
    bool shown = true;
    for (Index i = 0; i < r.out.size(); ++i) shown &= std::isnan(r.out.data()[i]);
    CHECK(shown);
  });
}
