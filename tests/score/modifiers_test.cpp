// limpid: every modifier against its formula by plain loops in long double: outputs, looks inside, every gradient.
// SPDX-License-Identifier: MIT
#include "score/all_laws.hpp"
#include "support/catch.hpp"

#include <cstring>

using namespace laws;

namespace {

template <class S>
std::string text_of(const Law<S>& law, const suite::Sizes& s, const Way& way) {
  return law.name + (sizeof(S) == 4 ? ", float" : ", double") + ", n " + std::to_string(s.n) + ", m " +
         std::to_string(s.m) + ", heads " + std::to_string(s.heads) + " on " + std::to_string(s.kv_heads) + ", batch " +
         std::to_string(s.batch) + (way.accumulate ? ", added" : "") + ", workers " + std::to_string(way.workers);
}

template <class S>
void holds(const Law<S>& law, const Problem<S>& p, const Way& way) {
  Real size = 0;
  const Results<S> found = run(law, p, way);
  const Results<Real> wanted = by_loops(law, p, way, Real(0.5), &size);
  // rounding of a score of that size, relative in its weight; and sums of up to some hundred terms
  const Real units = 16 * (2 + size);
  INFO(text_of(law, p.sizes, way));
  each_array(found, wanted, [&](const std::string& name, const Mat<S>& a, const Mat<Real>& b) {
    INFO(name);
    CHECK(difference(a, b, units) == "");
  });
  for (std::size_t t = 0; t < law.tables.size(); ++t) {
    const Mat<Real>& terms = law.tables[t]->terms;
    INFO("gradient of table " << t);
    CHECK(difference(found.tables[t], wanted.tables[t], units, 1 + terms.maxCoeff() / 8) == "");
  }
}

bool same_bits(const Mat<double>& a, const Mat<double>& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), std::size_t(a.size()) * sizeof(double)) == 0);
}

suite::Sizes sizes(Index n, Index m, Index batch = 1, Index heads = 1, Index kv_heads = 1, Index d = 5, Index dv = 3) {
  suite::Sizes s;
  s.n = n, s.m = m, s.batch = batch, s.heads = heads, s.kv_heads = kv_heads, s.d = d, s.dv = dv;
  return s;
}

template <class S>
std::vector<Law<S>> all_laws(const suite::Sizes& s, const Masks& masks) {
  std::vector<Law<S>> all = mask_laws<S>(masks);
  for (auto& law : value_laws<S>(s)) all.push_back(std::move(law));
  return all;
}

}  // namespace

TEMPLATE_TEST_CASE("Every modifier is its formula: rows, heads and items each at their place.", "", float, double) {
  using S = TestType;
  // n = m, n < m, n > m; few queries of whole vectors have a sweep of their own
  for (const auto& s : {sizes(6, 6, 2, 3, 1), sizes(3, 7, 2, 3, 3), sizes(7, 3, 3, 2, 2),
                        sizes(2, 300, 1, 2, 1, 16, 16), sizes(5, 270, 1, 1, 1, 8, 16)}) {
    const Masks masks(s);
    const auto p = problem<S>(s);
    for (const auto& law : all_laws<S>(s, masks)) holds(law, p, Way{});
  }
}

TEST_CASE("Gradients are added where that is asked for, those of tables always; relevance takes its part.") {
  for (const auto& s : {sizes(5, 8, 2, 4, 2), sizes(9, 6, 1, 2, 1, 8, 8)}) {  // gradients are summed in place, or not
    const auto p = problem<double>(s, 2);
    for (const bool accumulate : {false, true})
      for (const auto part : {limpid::Part::pos, limpid::Part::neg, limpid::Part::abs}) {
        Way way;
        way.accumulate = accumulate, way.part = part;
        for (const auto& law : value_laws<double>(s)) holds(law, p, way);
      }
  }
}

TEST_CASE("Modifiers are their formula over many blocks.") {
  Way way;
  for (const auto& s : {sizes(300, 309), sizes(150, 40)}) {
    const Masks masks(s);
    const auto p = problem<double>(s, 3);
    for (const auto& law : all_laws<double>(s, masks)) holds(law, p, way);
  }
  const auto s = sizes(9, 1100);  // four chunks of keys
  const Masks masks(s);
  const auto p = problem<float>(s, 4);
  for (const auto& law : all_laws<float>(s, masks)) holds(law, p, way);
}

TEST_CASE("Any pool gives the bits of one thread, gradients of tables included.") {
  // whole heads side by side, one head cut into chunks, and biases whose heads must take turns
  for (const auto& s : {sizes(20, 21, 1, 8, 8), sizes(17, 12, 3, 3, 3), sizes(9, 1100)}) {
    const auto p = problem<double>(s, 5);
    for (const auto& law : value_laws<double>(s)) {
      Way way;
      way.looks = false;
      const auto serial = run(law, p, way);
      for (const int workers : {0, 2, 3})
        for (int again = 0; again < (s.m > 1000 || workers == 0 ? 1 : 2); ++again) {
          way.workers = workers;
          INFO(text_of(law, s, way));
          const auto found = run(law, p, way);
          each_array(found, serial, [&](const std::string& name, const Mat<double>& a, const Mat<double>& b) {
            INFO(name);
            CHECK(same_bits(a, b));
          });
          for (std::size_t t = 0; t < law.tables.size(); ++t) CHECK(same_bits(found.tables[t], serial.tables[t]));
        }
    }
  }
}

TEST_CASE("Relevance has the bits of one thread on any pool, whichever head is taken first.") {
  for (const Index m : {Index(1), Index(9), Index(21), Index(70)}) {
    const auto s = sizes(20, m, 3, 2, 2);
    const auto p = problem<double>(s, 12);
    Law<double> law;
    law.name = "nothing";
    Way way;
    const auto serial = run(law, p, way);
    for (const int workers : {0, 3}) {
      way.workers = workers;
      INFO(text_of(law, s, way));
      CHECK(same_bits(run(law, p, way).relevance, serial.relevance));
    }
  }
}

TEMPLATE_TEST_CASE("A NaN or infinity comes out exactly where a kept pair brings it in.", "", float, double) {
  using S = TestType;
  const S quiet = std::numeric_limits<S>::quiet_NaN(), large = std::numeric_limits<S>::infinity();
  for (const auto& s :
       {sizes(6, 6, 2, 2, 1), sizes(4, 9, 1, 2, 2, 4, 6), sizes(140, 150), sizes(2, 260, 1, 1, 1, 8, 8)}) {
    const Masks masks(s);
    const bool small = s.n * s.m < 1000;
    std::size_t count = 0;
    for (const auto& law : all_laws<S>(s, masks)) {
      const bool by_mask = law.formulas.empty();
      if (count++ % (small ? (sizeof(S) == 4 ? 3u : 1u) : 7u) != 0 || (!small && sizeof(S) == 4)) continue;
      for (const Index row : {Index(0), s.n / 2, s.n - 1})
        for (const char* which : {"q", "k", "v", "dout", "left", "right"}) {
          if (!small && row != s.n / 2) continue;
          auto p = problem<S>(s, 6);
          const std::string name = which;
          Mat<S>& into = name == "q"      ? p.q
                         : name == "k"    ? p.k
                         : name == "v"    ? p.v
                         : name == "dout" ? p.dout
                         : name == "left" ? p.left
                                          : p.right;
          // an infinite query may give weights that are finite: it is NaN here
          const S bad = name == "q" || row % 2 == 0 ? quiet : (by_mask ? -large : large);
          if (name == "left")
            into(0, row) = bad;
          else
            into(std::min(row, into.rows() - 1), into.cols() - 1 - (row % 2)) = bad;
          INFO(bad << " in row " << row << " of " << name);
          holds(law, p, Way{});
        }
    }
  }
}

TEMPLATE_TEST_CASE("A NaN comes out where a pair is kept, though its weight is so small that it is 0.", "", float,
                   double) {
  using S = TestType;
  const S quiet = std::numeric_limits<S>::quiet_NaN();
  const auto s = sizes(6, 9, 1, 2, 1);
  const Masks masks(s);
  std::size_t count = 0;
  for (const auto& law : all_laws<S>(s, masks)) {
    if (count++ % 3 != 0) continue;
    auto p = problem<S>(s, 11);
    p.q *= S(400);
    for (const Index row : {Index(0), Index(4)})
      for (const char* which : {"k", "v", "dout", "left", "right"}) {
        auto bad = p;
        const std::string name = which;
        Mat<S>& into = name == "k" ? bad.k : name == "v" ? bad.v : name == "dout" ? bad.dout : bad.right;
        if (name == "left")
          bad.left(0, row) = quiet;
        else
          into(row, into.cols() - 1) = quiet;
        INFO("NaN in row " << row << " of " << name);
        holds(law, bad, Way{});
      }
  }
}

TEMPLATE_TEST_CASE("A NaN in a table of a modifier comes out where a pair that is kept reads it.", "", float, double) {
  using S = TestType;
  for (const auto& s : {sizes(6, 7, 2, 2, 1), sizes(40, 70)}) {
    const auto p = problem<S>(s, 8);
    for (const auto& law : value_laws<S>(s))
      for (const auto& t : law.tables)
        for (const Index at : {Index(0), t->numbers.size() / 2, t->numbers.size() - 1}) {
          const S before = t->numbers.data()[at];
          t->numbers.data()[at] = std::numeric_limits<S>::quiet_NaN();
          INFO("NaN in entry " << at);
          holds(law, p, Way{});
          t->numbers.data()[at] = before;
        }
  }
}

TEMPLATE_TEST_CASE("An infinite amount of a key, or a NaN, shows in the rows that keep it, and in no others.", "",
                   float, double) {
  using S = TestType;
  const auto s = sizes(40, 70);
  const auto p = problem<S>(s, 10);
  for (const S bad : {std::numeric_limits<S>::infinity(), std::numeric_limits<S>::quiet_NaN()})
    for (const Index at : {Index(0), Index(35), Index(69)}) {
      Mat<S> keys = Mat<S>::Constant(1, s.m, S(0.25));
      keys(0, 40) = S(2000);  // far from 0: there is a level
      keys(0, at) = bad;
      Law<S> law;
      law.name = "a key bias of " + std::to_string(double(bad)) + " at " + std::to_string(at);
      law.first_start = limpid::key_bias(keys);
      law.mask = limpid::window(9, 2), law.keep = [](const At& a) { return sees_window(a, 9, 2); };
      law.formulas = {
          {[&](Real x, const At& a) { return x + (std::isfinite(keys(0, a.k)) ? Real(keys(0, a.k)) : laws::nan); }}};
      Way way;
      way.looks = false;
      holds(law, p, way);
    }
}

TEMPLATE_TEST_CASE("A NaN query that keeps nothing, and a NaN key that nobody keeps, change nothing.", "", float,
                   double) {
  using S = TestType;
  const auto s = sizes(12, 16, 2, 2, 1);
  const Masks masks(s);
  for (const auto& law : all_laws<S>(s, masks)) {
    const auto p = problem<S>(s, 7);
    const auto wanted = by_loops(law, p, Way{}, Real(0.5));
    auto bad = p;
    const S quiet = std::numeric_limits<S>::quiet_NaN();
    for (Index b = 0; b < s.batch; ++b) {
      for (Index i = 0; i < s.n; ++i)
        for (Index h = 0; h < s.heads; ++h) {
          if (wanted.lse(b * s.heads + h, i) != -inf) continue;
          bad.q.block(b * s.n + i, h * s.d, 1, s.d).setConstant(quiet);
          bad.dout.block(b * s.n + i, h * s.dv, 1, s.dv).setConstant(quiet);
        }
      for (Index j = 0; j < s.m; ++j) {
        Real kept = 0;
        for (Index h = 0; h < s.heads; ++h) kept += wanted.map[std::size_t(b * s.heads + h)].col(j).sum();
        if (kept > 0) continue;
        bad.k.row(b * s.m + j).setConstant(quiet);
        bad.v.row(b * s.m + j).setConstant(quiet);
      }
    }
    holds(law, bad, Way{});
  }
}

TEMPLATE_TEST_CASE("Nothing but minus infinity masks: amounts that overflow in a sum drop no key.", "", float, double) {
  using S = TestType;
  const auto s = sizes(5, 6);
  const auto p = problem<S>(s, 9);
  const S low = S(-0.75) * std::numeric_limits<S>::max();
  const auto amount = limpid::additive([low](const At&) { return low; });
  const Mat<S> keys = Mat<S>::Constant(1, s.m, low);
  const auto same = limpid::score_mod([](S x, const At&) { return x; }, [](S, const At&) { return S(1); });
  std::vector<Law<S>> all(4);
  all[0].name = "amounts by pair", all[0].first_value = amount, all[0].second_value = amount;
  all[1].name = "an amount a key after one by pair", all[1].first_value = amount;
  all[1].second_value = limpid::key_bias(keys);
  all[2].name = "amounts a key", all[2].first_start = limpid::key_bias(keys),
  all[2].second_start = limpid::key_bias(keys);
  all[3].name = "a function after an amount a key", all[3].first_value = limpid::key_bias(keys),
  all[3].second_value = same;
  for (auto& law : all) {
    law.by_value = !law.first_start.of;
    INFO(law.name);
    const auto found = run(law, p);
    for (Index i = 0; i < s.n; ++i) {
      Real sum = 0;
      for (Index j = 0; j < s.m; ++j) sum += Real(found.map[0](i, j));
      CHECK(std::abs(sum - 1) < 16 * Real(std::numeric_limits<S>::epsilon()));
      CHECK(found.lse(0, i) > -std::numeric_limits<S>::infinity());
    }
  }
}
