// limpid: amounts of tables far from 0, up to the ends of a type, beside their law: what all keys that a row sees have
// in common changes no weight, and nothing but minus infinity masks.
// SPDX-License-Identifier: MIT
#include <limpid/limpid.hpp>

#include "score/laws.hpp"
#include "support/catch.hpp"
#include "support/distance.hpp"

using namespace laws;
using limpid::chain, limpid::causal, limpid::key_bias, limpid::qkv, limpid::softmax;
using suite::distance;

namespace {

template <class S>
constexpr S most = std::numeric_limits<S>::max();

/// Tables that are added to a score, in exact arithmetic: counted from the key of a row that has the most of those that
/// it sees, part by part, so that no sum loses anything. What is 60 below has no weight.
template <class S>
struct Amounts {
  struct Part {
    std::shared_ptr<Table<S>> table;
    std::function<std::pair<Index, Index>(const At&)> place;
    Real at(const At& a) const {
      const auto [i, j] = place(a);
      return Real(table->numbers(i, j));
    }
  };
  std::vector<Part> parts;
  std::function<bool(const At&)> keep;
  std::vector<std::vector<Real>> rows = {};  // of heads; asked for often, and made once

  bool masked(const At& a) const {
    return !keep(a) || std::any_of(parts.begin(), parts.end(), [&](const Part& p) { return p.at(a) == -inf; });
  }
  Real above(const At& a, Index key) const {
    At other = a;
    other.k = key;
    Real sum = 0;
    for (const Part& p : parts) sum += p.at(a) - p.at(other);
    return sum;
  }
  Index highest(At a) const {
    Index key = -1;
    for (a.k = 0; a.k < a.m; ++a.k)
      if (!masked(a) && (key < 0 || above(a, key) > 0)) key = a.k;
    return key;
  }
  /// Of the highest key's amounts, as a log-sum-exp has it back.
  Real level(At a) const {
    a.k = highest(a);
    Real sum = 0;
    if (a.k >= 0)
      for (const Part& p : parts) sum += p.at(a);
    return std::max(sum, Real(-most<S>));
  }
  Real amount(const At& a) {
    rows.resize(std::size_t(a.heads * a.n));
    std::vector<Real>& row = rows[std::size_t(a.head * a.n + a.q)];
    if (row.empty()) {
      const Index key = highest(a);
      At b = a;
      for (b.k = 0; b.k < b.m; ++b.k) row.push_back(masked(b) ? -inf : std::max(above(b, key), Real(-60)));
    }
    return row[std::size_t(a.k)];
  }
  Formula formula() {
    Formula f;
    f.value = [this](Real x, const At& a) {
      const Real more = amount(a);
      return more == -inf ? -inf : x + more;
    };
    f.gradient = [this](const At& a, Real ds) {
      for (const Part& p : parts) {
        const auto place = p.place(a);
        p.table->add(place.first, place.second, ds);
      }
    };
    return f;
  }
};

struct Seen {
  std::string name;
  AnyMask mask;
  std::function<bool(const At&)> keep;
};

std::vector<Seen> ways_to_see() {
  const auto some = [](const At& a) { return (a.q + a.k) % 3 != 1 && a.k != 5; };
  return {{"all", {}, [](const At&) { return true; }},
          {"causal", limpid::causal(), [](const At& a) { return a.k <= a.position(); }},
          {"a window", limpid::window(9, 2),
           [](const At& a) { return a.k >= a.position() - 9 && a.k <= a.position() + 2; }},
          {"some", limpid::mask(some), some}};
}

/// Number j of a table's row of m.
template <class S>
std::vector<std::pair<std::string, std::function<S(Index, Index)>>> kinds() {
  const S none = -std::numeric_limits<S>::infinity();
  const auto little = [](Index j) { return S(j * 7 % 13) / S(8); };
  return {{"the lowest number", [](Index, Index) { return -most<S>; }},
          {"the largest", [](Index, Index) { return most<S>; }},
          {"the lowest first", [=](Index j, Index m) { return j < m / 3 ? -most<S> : little(j); }},
          {"the lowest last", [=](Index j, Index m) { return j < m / 3 ? little(j) : -most<S>; }},
          {"both ends", [](Index j, Index) { return j % 2 == 0 ? -most<S> : most<S>; }},
          {"the lowest, then the largest", [](Index j, Index m) { return j < m - 20 ? -most<S> : most<S>; }},
          {"about -5000", [=](Index j, Index) { return S(-5000) + little(j); }},
          {"a ramp", [](Index j, Index) { return S(48 * j); }},
          {"2000 at a key that few see", [=](Index j, Index) { return j == 5 ? S(2000) : little(j); }},
          {"the lowest, minus infinity and others",
           [=](Index j, Index) { return j % 4 == 1 ? none : (j % 4 == 2 ? -most<S> / 2 : -most<S>); }}};
}

template <class S>
bool is_close(S found, Real wanted, Real units, Real size) {
  if (Real(found) == wanted) return true;
  return std::abs(Real(found) - wanted) <= units * Real(std::numeric_limits<S>::epsilon()) * size;
}

template <class S>
void holds(const Law<S>& law, const Problem<S>& p, Amounts<S>& amounts) {
  Real size = 0;
  const Way way;
  const Results<S> found = run(law, p, way);
  const Results<Real> wanted = by_loops(law, p, way, Real(0.5), &size);
  const Real units = 16 * (2 + size);
  INFO(law.name << (sizeof(S) == 4 ? ", float" : ", double"));
  const auto compare = [&](const std::string& name, const Mat<S>& a, const Mat<Real>& b, Real largest) {
    if (name == "lse") return;
    INFO(name);
    for (Index i = 0; i < b.size(); ++i) largest = std::max(largest, std::abs(b.data()[i]));
    bool all = a.rows() == b.rows() && a.cols() == b.cols();
    for (Index i = 0; all && i < b.size(); ++i) all = is_close(a.data()[i], b.data()[i], units, largest);
    CHECK(all);
  };
  each_array(found, wanted,
             [&](const std::string& name, const Mat<S>& a, const Mat<Real>& b) { compare(name, a, b, Real(1)); });
  for (std::size_t t = 0; t < law.tables.size(); ++t)
    compare("gradient of table " + std::to_string(t), found.tables[t], wanted.tables[t],
            1 + law.tables[t]->terms.maxCoeff() / 8);
  const suite::Sizes& s = p.sizes;
  bool lse = true;
  for (Index t = 0; t < s.batch * s.heads; ++t)
    for (Index i = 0; i < s.n; ++i) {
      const Real level = amounts.level({t / s.heads, t % s.heads, i, 0, s.n, s.m}), row = wanted.lse(t, i);
      const Real whole = std::clamp(row + level, Real(-most<S>), Real(most<S>));
      lse = lse && (row == -inf ? Real(found.lse(t, i)) == -inf
                                : is_close(found.lse(t, i), whole, units, 1 + std::abs(level)));
    }
  CHECK(lse);
}

}  // namespace

TEMPLATE_TEST_CASE("Amounts far from 0 act as in exact arithmetic, over the keys that a row sees.", "", float, double) {
  using S = TestType;
  suite::Sizes s;
  s.n = 36, s.m = 132, s.batch = 1, s.heads = 1, s.kv_heads = 1, s.d = 5, s.dv = 3;
  const auto p = problem<S>(s, 3);
  const Mat<S> slopes = Mat<S>::Constant(1, 1, S(0.0625));
  const auto cap = limpid::score_mod([](S x, const At&) { return S(2) * std::tanh(x / S(2)); },
                                     [](S x, const At&) { return S(1) - std::tanh(x / S(2)) * std::tanh(x / S(2)); });
  const Formula capped{[](Real x, const At&) { return 2 * std::tanh(x / 2); },
                       [](Real x, const At&) { return 1 - std::tanh(x / 2) * std::tanh(x / 2); }};
  const auto by_gap = [](bool symmetric) {
    return Formula{[=](Real x, const At& a) {
      const Real gap = Real(a.position() - a.k);
      return x - (symmetric ? std::abs(gap) : gap) / 16;
    }};
  };
  for (const Seen& seen : ways_to_see())
    for (const auto& one : kinds<S>()) {
      const auto& kind = one.first;
      const auto& number = one.second;
      const auto table = [&](Index rows, Index cols, Index turn) {
        auto t = std::make_shared<Table<S>>();
        t->numbers.resize(rows, cols);
        t->gradient = Mat<S>::Constant(rows, cols, S(0.5));
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < cols; ++j) t->numbers(i, j) = number((j + turn * i) % cols, cols);
        return t;
      };
      const auto keys = table(1, s.m, 0), pairs = table(s.n, s.m, 1), offsets = table(1, 41, 5);
      using Part = typename Amounts<S>::Part;
      const Part by_key{keys, [](const At& a) { return std::pair<Index, Index>(0, a.k); }};
      const Part by_pair{pairs, [](const At& a) { return std::pair<Index, Index>(a.q, a.k); }};
      const Part by_offset{offsets, [](const At& a) {
                             return std::pair<Index, Index>(a.head,
                                                            std::clamp<Index>(a.k - a.position(), -20, 20) + 20);
                           }};
      const auto of_keys = [&] { return key_bias(keys->numbers, keys->gradient); };
      const auto of_pairs = [&] { return limpid::bias(pairs->numbers, pairs->gradient); };
      const auto of_offsets = [&] { return limpid::relative(offsets->numbers, offsets->gradient); };
      const auto check = [&](const std::string& name, std::vector<Part> parts, std::vector<Formula> before,
                             std::vector<Formula> after, auto&& set) {
        Amounts<S> amounts{parts, seen.keep};
        Law<S> law;
        law.name = name + ", " + kind + ", sees " + seen.name;
        law.mask = seen.mask, law.keep = seen.keep;
        law.formulas = std::move(before);
        law.formulas.push_back(amounts.formula());
        for (auto& f : after) law.formulas.push_back(f);
        for (const auto& part : parts) law.tables.push_back(part.table);
        set(law);
        law.by_value = !law.first_start.of;
        holds(law, p, amounts);
      };
      check("key bias", {by_key}, {}, {}, [&](auto& law) { law.first_start = of_keys(); });
      check("key bias and ALiBi", {by_key}, {}, {by_gap(false)},
            [&](auto& law) { law.first_start = of_keys(), law.second_start = limpid::alibi(slopes); });
      check("bias", {by_pair}, {}, {}, [&](auto& law) { law.first_value = of_pairs(); });
      check("relative", {by_offset}, {}, {}, [&](auto& law) { law.first_value = of_offsets(); });
      check("key bias and bias", {by_key, by_pair}, {}, {},
            [&](auto& law) { law.first_value = of_keys(), law.second_value = of_pairs(); });
      check("relative and key bias", {by_offset, by_key}, {}, {},
            [&](auto& law) { law.first_value = of_offsets(), law.second_value = of_keys(); });
      check("symmetric ALiBi and relative", {by_offset}, {by_gap(true)}, {},
            [&](auto& law) { law.first_value = limpid::alibi_symmetric(slopes), law.second_value = of_offsets(); });
      check("a score function and key bias", {by_key}, {capped}, {},
            [&](auto& law) { law.first_value = cap, law.second_value = of_keys(); });
    }
}

TEMPLATE_TEST_CASE("Two biases of the lowest number, each on keys of its own, count as one does.", "", float, double) {
  using S = TestType;
  suite::Sizes s;
  s.n = 6, s.m = 300, s.d = 8, s.dv = 8, s.batch = s.heads = s.kv_heads = 1;
  const auto p = problem<S>(s, 5);
  Mat<S> odd = Mat<S>::Zero(1, s.m), even = odd, pairs = Mat<S>::Zero(s.n, s.m);
  for (Index j = 0; j < s.m; ++j) (j % 2 == 0 ? even : odd)(0, j) = -most<S>;
  for (Index i = 0; i < s.n; ++i) pairs.row(i) = odd;
  const Mat<S> wanted = limpid::forward(softmax(), qkv(p.q, p.k, p.v));
  const double bound = 64 * static_cast<double>(std::numeric_limits<S>::epsilon());
  CHECK(distance(limpid::forward(softmax(chain(key_bias(odd), key_bias(even))), qkv(p.q, p.k, p.v)), wanted) < bound);
  const Mat<S> against = -pairs;  // amounts that cancel
  CHECK(distance(limpid::forward(softmax(chain(limpid::bias(against), key_bias(odd))), qkv(p.q, p.k, p.v)), wanted) <
        bound);
  CHECK(distance(limpid::forward(softmax(chain(limpid::bias(pairs), key_bias(even))), qkv(p.q, p.k, p.v)), wanted) <
        bound);
}

TEMPLATE_TEST_CASE("Every row of a bias is looked through for what is far.", "", float, double) {
  using S = TestType;
  suite::Sizes s;
  s.n = 6, s.m = 300, s.d = 8, s.dv = 8, s.batch = s.heads = s.kv_heads = 1;
  const auto p = problem<S>(s, 7);
  const Mat<S> plain = limpid::forward(softmax(), qkv(p.q, p.k, p.v));
  const double bound = 64 * static_cast<double>(std::numeric_limits<S>::epsilon());
  Mat<S> pairs = Mat<S>::Zero(s.n, s.m);
  pairs.bottomRows(4).setConstant(-most<S>);
  CHECK(distance(limpid::forward(softmax(limpid::bias(pairs)), qkv(p.q, p.k, p.v)), plain) < bound);
  pairs.setZero();
  pairs.row(0).setConstant(-most<S>);
  pairs.bottomRows(2).setConstant(S(0x1p20));  // but for one key, which then has no weight
  pairs(5, 0) = S(0);
  const Mat<S> out = limpid::forward(softmax(limpid::bias(pairs)), qkv(p.q, p.k, p.v));
  CHECK(distance(out.topRows(5), plain.topRows(5)) < bound);
  CHECK(distance(out.row(5), limpid::forward(softmax(), qkv(p.q.bottomRows(1), p.k.bottomRows(s.m - 1),
                                                            p.v.bottomRows(s.m - 1)))) < bound);
}

TEMPLATE_TEST_CASE("A few queries that see keys of their own count amounts from keys of their own.", "", float,
                   double) {
  using S = TestType;
  suite::Sizes s;
  s.n = 5, s.m = 300, s.d = 8, s.dv = 8, s.batch = s.heads = s.kv_heads = 1;
  const auto p = problem<S>(s, 6);
  Mat<S> keys = Mat<S>::Constant(1, s.m, -most<S>), last = keys;
  for (Index i = 0; i < s.n; ++i) last(0, s.m - s.n + i) = -most<S> + most<S> / S(8) * S(i);
  const auto seen = [&](Index i) { return s.m - s.n + i + 1; };
  const auto causally = [&](const Mat<S>& b) {
    return limpid::forward(softmax(chain(causal(), key_bias(b))), qkv(p.q, p.k, p.v));
  };
  const double bound = 64 * static_cast<double>(std::numeric_limits<S>::epsilon());
  CHECK(distance(causally(keys), limpid::forward(softmax(causal()), qkv(p.q, p.k, p.v))) < bound);
  const Mat<S> out = causally(last);  // the first row sees the lowest alone, every other one its own key most of all
  CHECK(distance(out.row(0),
                 limpid::forward(softmax(), qkv(p.q.topRows(1), p.k.topRows(seen(0)), p.v.topRows(seen(0))))) < bound);
  for (Index i = 1; i < s.n; ++i) CHECK(distance(out.row(i), p.v.row(seen(i) - 1)) < bound);
}

namespace {

/// Rows that see keys of the lowest number alone are as without the bias, all others as if these keys were masked: with
/// such a bias on the first keys under a causal mask, an operator is two operators side by side.
template <class S, class Make>
void falls_apart(const Make& make) {
  constexpr Index n = 150, first = 67, d = 4;
  suite::Random random(11);
  const Mat<S> y = suite::random_matrix<S>(random, n, d), dout = suite::random_matrix<S>(random, n, d);
  struct Part {
    Mat<S> out, lse, dy;
  };
  const auto run = [&](const auto& op, Index from, Index count) {
    using Op = std::remove_cvref_t<decltype(op)>;
    const Mat<S> y_ = y.middleRows(from, count), g = dout.middleRows(from, count);
    Part r{y_, {}, y_};
    limpid::Inputs<Op, S> args;
    limpid::Grads<Op, S> grads;
    args.y = y_, grads.y = r.dy;
    limpid::Saved<Op, S> saved;
    limpid::forward(op, args, r.out, {.saved = &saved, .lse = &r.lse});
    limpid::backward(op, args, saved, g, grads);
    return r;
  };
  const S low = -std::numeric_limits<S>::max();
  Mat<S> keys = Mat<S>::Zero(1, n);
  keys.leftCols(first).setConstant(low);
  const Part a = run(make(chain(causal(), key_bias(keys))), 0, n), b = run(make(causal()), 0, first),
             c = run(make(causal()), first, n - first);
  const double bound = 256 * static_cast<double>(std::numeric_limits<S>::epsilon());
  const auto check = [&](const char* name, const Mat<S>& all, const Mat<S>& one, const Mat<S>& two) {
    INFO(name);
    const double size = 1 + double(std::max(one.cwiseAbs().maxCoeff(), two.cwiseAbs().maxCoeff()));
    CHECK(double((all.topRows(first) - one).cwiseAbs().maxCoeff()) <= bound * size);
    CHECK(double((all.bottomRows(n - first) - two).cwiseAbs().maxCoeff()) <= bound * size);
  };
  check("out", a.out, b.out, c.out);
  check("dy", a.dy, b.dy, c.dy);
  CHECK((a.lse.leftCols(first).array() == low).all());
  CHECK(distance(a.lse.rightCols(n - first), c.lse) <= 4 * bound);
}

}  // namespace

TEMPLATE_TEST_CASE("With a threshold a row that sees but keys of the lowest number is as without it.", "", float,
                   double) {
  using S = TestType;  // what takes no options: contract/far_test.cpp
  falls_apart<S>([](auto mods) { return limpid::mssa(mods, {.phi = limpid::Phi::threshold, .tau = 0.6}); });
  falls_apart<S>([](auto mods) { return limpid::mssa(mods, {.phi = limpid::Phi::threshold, .tau = 0.3}); });
}

namespace {

/// out of softmax with one modifier, which goes in as any modifier does, and a mask; all that backward gives is finite.
template <class M>
Mat<float> finite_rows(const M& modifier, const Problem<float>& p, const AnyMask& mask = {}) {
  Law<float> law;
  law.by_value = M::per_pair, law.mask = mask;
  if constexpr (M::per_pair)
    law.first_value = modifier;
  else
    law.first_start = modifier;
  Way way;
  way.looks = false;
  const Results<float> r = run(law, p, way);
  CHECK(r.out.allFinite());
  CHECK((r.dq.allFinite() && r.dk.allFinite() && r.dv.allFinite()));
  CHECK(r.lse.minCoeff() > -std::numeric_limits<float>::infinity());
  return r.out;
}

}  // namespace

TEST_CASE("A number of the user's beyond the scalar of the scores counts as its largest of that sign.") {
  suite::Sizes s;
  s.n = 5, s.m = 9, s.d = 4, s.dv = 3, s.batch = s.heads = s.kv_heads = 1;
  const auto p = problem<float>(s, 8);
  const double none = -std::numeric_limits<double>::infinity();
  const float end = most<float>;
  const auto same = [&](const auto& theirs, const auto& own) { CHECK(finite_rows(theirs, p) == finite_rows(own, p)); };
  for (const double far : {-1e300, 1e300, -3.5e38, 3.5e38, -std::numeric_limits<double>::max()}) {
    INFO(far);
    const float clamped = far < 0 ? -end : end;
    const auto number = [=](const At& a) { return a.k % 3 == 0 ? far : (a.k % 3 == 1 ? 0.5 : none); };
    const auto own = [=](const At& a) { return a.k % 3 == 0 ? clamped : (a.k % 3 == 1 ? 0.5F : float(none)); };
    same(limpid::additive(number), limpid::additive(own));
    same(limpid::additive([=](const At&) { return far; }), limpid::additive([=](const At&) { return clamped; }));
    same(limpid::additive([=](const At&) { return static_cast<long double>(far); }),
         limpid::additive([=](const At&) { return clamped; }));
    const auto slope = [](float, const At&) { return 1; };
    same(limpid::score_mod([=](float x, const At& a) { return a.k % 2 == 0 ? x + far : x; }, slope),
         limpid::score_mod([=](float x, const At& a) { return a.k % 2 == 0 ? clamped : x; }, slope));

    Mat<double> keys(1, s.m), pairs(s.n, s.m), offsets(1, 5);
    for (Index j = 0; j < s.m; ++j) keys(0, j) = number({0, 0, 0, j, s.n, s.m});
    for (Index i = 0; i < s.n; ++i) pairs.row(i) = keys;
    for (Index j = 0; j < 5; ++j) offsets(0, j) = keys(0, j);
    Mat<float> keys_(1, s.m), pairs_(s.n, s.m), offsets_(1, 5);
    const auto taken = [&](const Mat<double>& from, Mat<float>& to) {
      for (Index i = 0; i < to.size(); ++i) to.data()[i] = from.data()[i] == far ? clamped : float(from.data()[i]);
    };
    taken(keys, keys_), taken(pairs, pairs_), taken(offsets, offsets_);
    same(key_bias(keys), key_bias(keys_));
    same(limpid::bias(pairs), limpid::bias(pairs_));
    same(limpid::relative(offsets), limpid::relative(offsets_));
  }
  const Mat<double> slope = Mat<double>::Constant(1, 1, 1e290);
  const Mat<float> out = finite_rows(limpid::alibi_symmetric(slope), p);
  for (Index i = 0; i < s.n; ++i) CHECK(distance(out.row(i), p.v.row(i + s.m - s.n)) == 0);
  CHECK(finite_rows(limpid::alibi(slope), p, causal()) == out);
  // minus infinity masks, a double too
  CHECK(limpid::forward(softmax(limpid::additive([=](const At&) { return none; })), qkv(p.q, p.k, p.v)).isZero(0));
  // a derivative as well
  const auto steep = [](double d) {
    return limpid::score_mod([](float x, const At&) { return x; }, [=](float, const At&) { return d; });
  };
  CHECK(steep(1e300).slope(1.0F, At{}) == end);
  CHECK(steep(-1e300).slope(1.0F, At{}) == -end);
  CHECK(steep(0.25).slope(1.0F, At{}) == 0.25F);
}

TEMPLATE_TEST_CASE("A slope that takes a score below all numbers masks nothing.", "", float, double) {
  using S = TestType;
  suite::Sizes s;
  s.n = s.m = 7, s.d = 4, s.dv = 3, s.batch = s.heads = s.kv_heads = 1;
  const auto p = problem<S>(s, 8);
  const Mat<S> low = Mat<S>::Constant(1, s.m, -most<S>);
  const auto lowest = limpid::score_mod([](S, const At&) { return -most<S>; }, [](S, const At&) { return S(0); });
  for (const S steep : {most<S> / S(0x1p21), -most<S> / S(0x1p21)}) {
    const Mat<S> slope = Mat<S>::Constant(1, 1, steep);
    Mat<S> out(s.n, s.dv), lse;
    limpid::forward(softmax(chain(key_bias(low), limpid::alibi_symmetric(slope))), qkv(p.q, p.k, p.v), out,
                    {.lse = &lse});
    for (Index i = 0; i < s.n; ++i)  // the nearest key, or the one farthest away
      if (steep > S(0) || 2 * i != s.n - 1)
        CHECK(distance(out.row(i), p.v.row(steep > S(0) ? i : (2 * i < s.n - 1 ? s.n - 1 : 0))) == 0);
    CHECK(lse.minCoeff() > -std::numeric_limits<S>::infinity());
    limpid::forward(softmax(chain(lowest, limpid::alibi_symmetric(slope))), qkv(p.q, p.k, p.v), out, {.lse = &lse});
    CHECK(out.allFinite());
    if (steep > S(0))  // all are the lowest number, none below it
      CHECK(distance(out, p.v.colwise().mean().replicate(s.n, 1)) < 16 * std::numeric_limits<S>::epsilon());
    CHECK(lse.minCoeff() > -std::numeric_limits<S>::infinity());
  }
}
