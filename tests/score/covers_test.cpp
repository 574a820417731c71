// limpid: what a mask says of a row and of whole blocks, against every pair of them.
// SPDX-License-Identifier: MIT
#include <functional>

#include "score/all_laws.hpp"
#include "support/catch.hpp"

using namespace laws;

namespace {

Cover by_pairs(const MaskLaw& law, At a, Index q0, Index q1, Index k0, Index k1) {
  Index kept = 0;
  for (a.q = q0; a.q < q1; ++a.q)
    for (a.k = k0; a.k < k1; ++a.k) kept += law.keep(a) ? 1 : 0;
  return kept == 0 ? Cover::none : (kept == (q1 - q0) * (k1 - k0) ? Cover::all : Cover::some);
}

const char* name_of(Cover c) { return c == Cover::none ? "none" : (c == Cover::all ? "all" : "some"); }

/// What the mask keeps of a row by interval() and keep() together, and that its interval moves one way.
bool rows_hold(const MaskLaw& law, At a) {
  Interval last{0, 0};
  for (a.q = 0; a.q < a.n; ++a.q) {
    const Interval in = law.mask.interval(a);
    if (a.q > 0 && (in.begin < last.begin || in.end < last.end)) return false;
    last = in;
    for (a.k = 0; a.k < a.m; ++a.k)
      if (law.keep(a) != (a.k >= in.begin && a.k < in.end && law.mask.keep(a))) return false;
  }
  return true;
}

// Modifiers that offer no more than they must.
struct Even : limpid::Modifier {
  static constexpr bool is_mask = true, irregular = true;
  bool keep(const At& a) const { return a.k % 2 == 0; }
};
struct Late : limpid::Modifier {
  static constexpr bool is_mask = true, intervals = true;
  Interval interval(const At& a) const { return {a.m / 2, a.m}; }
};
struct LateAndEven : Late {
  static constexpr bool irregular = true;
  bool keep(const At& a) const { return a.k % 2 == 0; }
};
struct PerKey : limpid::Modifier {
  static constexpr bool per_key = true;
  template <class S>
  S value(S s, const At& a) const {
    return s + key_bias<S>(a, a.q);
  }
  template <class S>
  S key_bias(const At& a, Index) const {
    return S(0.25) * S(a.k % 3);
  }
};

template <class M>
Mat<double> map_of(const M& modifiers, const Problem<double>& p) {
  const auto op = limpid::softmax(modifiers);
  Mat<double> out(p.q.rows(), p.v.cols()), map;
  limpid::forward(op, limpid::qkv(p.q, p.k, p.v), out, {.map = &map});
  return map;
}

/// The same of a mask that is asked pair by pair, of one type whatever it keeps.
Mat<double> map_of_pairs(std::function<bool(const At&)> keep, const Problem<double>& p) {
  return map_of(limpid::mask(std::move(keep)), p);
}

}  // namespace

TEST_CASE("A modifier that offers no more than it must is right, alone and within others.") {
  const auto even = [](const At& a) { return a.k % 2 == 0; };
  const auto late = [](const At& a) { return a.k >= a.m / 2; };
  const auto causal = [](const At& a) { return a.k <= a.position(); };
  for (const Index n : {6, 150}) {
    suite::Sizes s;
    s.n = s.m = n, s.batch = 1, s.heads = 1, s.kv_heads = 1;
    const auto p = problem<double>(s);
    INFO("n " << n);
    const auto pairs = [&](const auto& keep) { return map_of_pairs(keep, p); };
    CHECK(map_of(Even(), p) == pairs(even));
    CHECK(map_of(Late(), p).isApprox(pairs(late), 1e-13));
    CHECK(map_of(LateAndEven(), p).isApprox(pairs([&](const At& a) { return late(a) && even(a); }), 1e-13));
    CHECK(map_of(!Even(), p) == pairs([&](const At& a) { return !even(a); }));
    CHECK(map_of(!Late(), p) == pairs([&](const At& a) { return !late(a); }));
    CHECK(map_of(!LateAndEven(), p) == pairs([&](const At& a) { return !late(a) || !even(a); }));
    CHECK(map_of((!Late()) | Even(), p) == pairs([&](const At& a) { return !late(a) || even(a); }));
    CHECK(map_of(Even() | limpid::causal(), p) == pairs([&](const At& a) { return even(a) || causal(a); }));
    CHECK(map_of(Late() | limpid::causal(), p) == pairs([&](const At& a) { return late(a) || causal(a); }));
    CHECK(map_of((Late() & Even()) | limpid::causal(), p) ==
          pairs([&](const At& a) { return (late(a) && even(a)) || causal(a); }));
    CHECK(map_of(!(Late() & Even()), p) == pairs([&](const At& a) { return !late(a) || !even(a); }));
    // combinations of masks that are asked pair by pair
    const auto e = limpid::mask(even);
    const auto l = limpid::mask(late);
    CHECK(map_of(((!e) | l) & !(e & l), p) == pairs([&](const At& a) { return !even(a) || (late(a) && !even(a)); }));
  }
}

// Runs of keys that grow and shrink with the query: what both keep is widest in the middle.
struct Back : limpid::Modifier {
  static constexpr bool is_mask = true, intervals = true;
  Interval interval(const At& a) const { return {0, a.m - a.q}; }
};
struct Ahead : limpid::Modifier {
  static constexpr bool is_mask = true, intervals = true;
  Interval interval(const At& a) const { return {std::max<limpid::Index>(0, a.m / 2 - a.q), a.m}; }
};

TEST_CASE("Masks whose intervals move apart keep what both keep, in the middle too, for any number of workers.") {
  const auto back = [](const At& a) { return a.k < a.m - a.q && a.k <= a.position(); };
  const auto all = [&](const At& a) { return back(a) && a.k >= a.m / 2 - a.q; };
  suite::Sizes s;
  s.n = s.m = 300, s.batch = 1, s.heads = 1, s.kv_heads = 1;
  const auto p = problem<double>(s);
  CHECK(map_of(limpid::chain(limpid::causal(), Back()), p).isApprox(map_of_pairs(back, p), 1e-13));
  CHECK(map_of(limpid::causal() & Back(), p).isApprox(map_of_pairs(back, p), 1e-13));
  CHECK(map_of(limpid::causal() & Back() & Ahead(), p).isApprox(map_of_pairs(all, p), 1e-13));
  CHECK(map_of(limpid::chain(Ahead(), limpid::causal() & Back()), p).isApprox(map_of_pairs(all, p), 1e-13));
}

TEST_CASE("An amount for every key adds, whether it says so or not: tables before it keep their say beside far ones.") {
  suite::Sizes s;
  s.n = s.m = 9, s.batch = 1, s.heads = 1, s.kv_heads = 1;
  const auto p = problem<double>(s);
  Mat<double> near(1, 9), far(1, 9), sum(1, 9);
  for (Index j = 0; j < 9; ++j) {
    near(0, j) = j % 2 == 0 ? 0.5 : -1;
    far(0, j) = std::numeric_limits<double>::lowest();
    sum(0, j) = near(0, j) + 0.25 * double(j % 3);
  }
  const auto one = map_of(limpid::key_bias(sum), p);
  CHECK(map_of(limpid::chain(limpid::key_bias(near), PerKey()), p).isApprox(one, 1e-13));
  CHECK(map_of(limpid::chain(limpid::key_bias(near), PerKey(), limpid::key_bias(far)), p).isApprox(one, 1e-13));
  const auto same = limpid::score_mod([](auto x, At) { return x; });  // values, not amounts of keys
  CHECK(map_of(limpid::chain(limpid::key_bias(near), same, PerKey()), p).isApprox(one, 1e-13));
}

TEST_CASE("What a mask says of a block is true of every pair in it, whatever block it is.") {
  for (const auto& [n, m] : std::vector<std::pair<Index, Index>>{{7, 7}, {4, 9}, {9, 4}, {1, 6}, {6, 1}}) {
    suite::Sizes s;
    s.n = n, s.m = m, s.batch = 2, s.heads = 3;
    Masks masks(s);
    for (auto& law : masks.all) {
      INFO(law.name << ", n " << n << ", m " << m);
      for (Index b = 0; b < s.batch; ++b)
        for (Index h = 0; h < s.heads; ++h) {
          CHECK(rows_hold(law, At{b, h, 0, 0, n, m, 2, 3}));
          bool true_of_all = true, exact = true;
          std::string at;
          for (Index q0 = 0; q0 < n; ++q0)
            for (Index q1 = q0 + 1; q1 <= n; ++q1)
              for (Index k0 = 0; k0 < m; ++k0)
                for (Index k1 = k0 + 1; k1 <= m; ++k1) {
                  const Cover said = law.mask.of->says(At{b, h, 0, 0, n, m, 2, 3}, q0, q1, k0, k1);
                  const Cover right = by_pairs(law, At{b, h, 0, 0, n, m, 2, 3}, q0, q1, k0, k1);
                  if (said == right) continue;
                  exact = false;
                  if (said == Cover::some) continue;  // not false, only of no use
                  true_of_all = false;
                  at = "[" + std::to_string(q0) + ", " + std::to_string(q1) + ") x [" + std::to_string(k0) + ", " +
                       std::to_string(k1) + ") said " + name_of(said);
                }
          INFO(at);
          CHECK(true_of_all);
          if (law.exact) CHECK(exact);
        }
    }
  }
}

TEST_CASE("Causal masks and windows say all that is true of a block, and combinations all that follows of theirs.") {
  const Index n = 9, m = 11;
  const At at{0, 0, 0, 0, n, m};
  const auto parts =
      std::make_tuple(limpid::causal(), limpid::window(2, 1), limpid::window(-1, 3), limpid::window(1, -1),
                      limpid::mask(Documents()), limpid::mask([](const At& a) { return speckled(a); }));
  const auto meet = [](Cover x, Cover y) { return std::min(x, y); };  // none < some < all
  const auto join = [](Cover x, Cover y) { return std::max(x, y); };
  const auto turn = [](Cover x) { return x == Cover::some ? x : (x == Cover::all ? Cover::none : Cover::all); };
  const auto pair = [&](const auto& a, const auto& b) {
    bool both = true, either = true, neither = true, chained = true;
    for (Index q0 = 0; q0 < n; ++q0)
      for (Index q1 = q0 + 1; q1 <= n; ++q1)
        for (Index k0 = 0; k0 < m; ++k0)
          for (Index k1 = k0 + 1; k1 <= m; ++k1) {
            const Cover x = a.cover(at, q0, q1, k0, k1), y = b.cover(at, q0, q1, k0, k1);
            both &= (a & b).cover(at, q0, q1, k0, k1) == meet(x, y);
            either &= (a | b).cover(at, q0, q1, k0, k1) == join(x, y);
            neither &= (!a).cover(at, q0, q1, k0, k1) == turn(x);
            chained &= limpid::chain(!a, !b).cover(at, q0, q1, k0, k1) == meet(turn(x), turn(y));
          }
    CHECK(both);
    CHECK(either);
    CHECK(neither);
    CHECK(chained);
  };
  const auto with_all = [&](const auto& a) { std::apply([&](const auto&... b) { (pair(a, b), ...); }, parts); };
  std::apply([&](const auto&... a) { (with_all(a), ...); }, parts);
}

TEST_CASE("Over many queries and keys, blocks of the sweeps' sizes and off by one.") {
  for (const auto& [n, m] : std::vector<std::pair<Index, Index>>{{300, 309}, {257, 130}}) {
    suite::Sizes s;
    s.n = n, s.m = m;
    const Masks masks(s);
    for (const auto& law : masks.all) {
      INFO(law.name << ", n " << n << ", m " << m);
      bool right = true;
      for (const Index q0 : {Index(0), Index(1), Index(64), Index(128), n - 40, n - 1})
        for (const Index rows : {Index(1), Index(8), Index(33)})
          for (const Index k0 : {Index(0), Index(63), Index(64), Index(128), m - 65, m - 1})
            for (const Index cols : {Index(1), Index(64)}) {
              const Index q1 = std::min(n, q0 + rows), k1 = std::min(m, k0 + cols);
              const Cover said = law.mask.of->says(At{0, 0, 0, 0, n, m}, q0, q1, k0, k1);
              if (said == Cover::some && !law.exact) continue;
              right &= said == by_pairs(law, At{0, 0, 0, 0, n, m}, q0, q1, k0, k1);
            }
      CHECK(right);
      CHECK(rows_hold(law, At{0, 0, 0, 0, n, m}));
    }
  }
}
