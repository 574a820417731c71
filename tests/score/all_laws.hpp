// limpid: the modifiers there are and their formulas, for a problem of given sizes.
// SPDX-License-Identifier: MIT
#pragma once

#include "score/laws.hpp"

namespace laws {

/// Masks with their predicate, each asked by pair or by block as it offers.
struct MaskLaw {
  std::string name;
  AnyMask mask;
  std::function<bool(const At&)> keep;
  bool exact = false;  // its word on a block is never `some` where `all` or `none` would be true
};

inline bool sees_causal(const At& a) { return a.k - a.q <= a.m - a.n; }
inline bool sees_window(const At& a, Index left, Index right) {
  const Index gap = a.k - (a.q + a.m - a.n);
  return (left < 0 || gap >= -left) && (right < 0 || gap <= right);
}

/// Blocks of whole documents, with hints: true where query and key are of the same third.
struct Documents {
  Index third(Index i, Index of) const { return 3 * i / std::max<Index>(of, 1); }
  bool operator()(const At& a) const { return third(a.q, a.n) == third(a.k, a.m); }
  Cover block(const At& a, Index q0, Index q1, Index k0, Index k1) const {
    const Index a0 = third(q0, a.n), a1 = third(q1 - 1, a.n), b0 = third(k0, a.m), b1 = third(k1 - 1, a.m);
    if (a1 < b0 || b1 < a0) return Cover::none;
    return a0 == a1 && b0 == b1 && a0 == b0 ? Cover::all : Cover::some;
  }
};

inline bool speckled(const At& a) { return (a.q * 5 + a.k * 3 + a.head * 7 + a.batch * 11) % 4 != 0; }

/// Every mask, and combinations two deep. Matrices live as long as the list.
struct Masks {
  std::vector<MaskLaw> all;
  std::vector<std::shared_ptr<Mat<bool>>> matrices;

  explicit Masks(const suite::Sizes& s) {
    add("causal", limpid::causal(), sees_causal, true);
    const auto function = limpid::mask([](const At& a) { return speckled(a); });
    const auto documents = limpid::mask(Documents());
    add("a function", function, speckled);
    add("documents", documents, Documents());
    const Index most = std::numeric_limits<Index>::max();
    for (const auto& [left, right] : std::vector<std::pair<Index, Index>>{{2, 0},
                                                                          {0, 0},
                                                                          {-1, 0},
                                                                          {3, -1},
                                                                          {-1, -1},
                                                                          {2, 3},
                                                                          {-1, 2},
                                                                          {0, 1},
                                                                          {0, -1},
                                                                          {most, 0},
                                                                          {0, most},
                                                                          {most, most},
                                                                          {-7, 1},
                                                                          {20, 400},
                                                                          {400, 20},
                                                                          {100, 70}}) {
      const Index l = left, r = right;
      const std::string name = "window(" + std::to_string(l) + ", " + std::to_string(r) + ")";
      const auto sees = [=](const At& a) { return sees_window(a, l, r); };
      add(name, limpid::window(l, r), sees, true);
      if (s.n > 100) continue;
      add(
          "!" + name, !limpid::window(l, r), [=](const At& a) { return !sees(a); }, true);
      add(name + " | a function", limpid::window(l, r) | function, [=](const At& a) { return sees(a) || speckled(a); });
      add("documents & " + name, documents & limpid::window(l, r),
          [=](const At& a) { return Documents()(a) && sees(a); });
    }
    const Index b = s.batch, h = s.heads, n = s.n, m = s.m;
    for (const Index items : {Index(1), b, b * h}) {
      auto keep = std::make_shared<Mat<bool>>(items * n, m);
      suite::Random random(17 + static_cast<std::uint64_t>(items));
      for (Index i = 0; i < keep->size(); ++i) keep->data()[i] = random.below(3) != 0;
      matrices.push_back(keep);
      const auto reads = [keep, items, b, h](const At& a) {
        const Index item = items == 1 ? 0 : (items == b ? a.batch : a.batch * h + a.head);
        return (*keep)(item * a.n + a.q, a.k);
      };
      add("a matrix of " + std::to_string(items), limpid::mask_matrix(*keep), reads);
      add("causal() & a matrix of " + std::to_string(items), limpid::causal() & limpid::mask_matrix(*keep),
          [=](const At& a) { return sees_causal(a) && reads(a); });
      add("!a matrix of " + std::to_string(items) + " | causal()", (!limpid::mask_matrix(*keep)) | limpid::causal(),
          [=](const At& a) { return !reads(a) || sees_causal(a); });
      add("window(2, 2) | !!a matrix of " + std::to_string(items), limpid::window(2, 2) | !!limpid::mask_matrix(*keep),
          [=](const At& a) { return sees_window(a, 2, 2) || reads(a); });
      if (b == 1 && h == 1) break;
    }
    const auto narrow = [](const At& a) { return sees_window(a, 5, 5); };
    const auto wide = [](const At& a) { return sees_window(a, 20, 400); };
    add(
        "!causal()", !limpid::causal(), [](const At& a) { return !sees_causal(a); }, true);
    add(
        "!window(5, 5)", !limpid::window(5, 5), [=](const At& a) { return !narrow(a); }, true);
    add("!documents", !documents, [](const At& a) { return !Documents()(a); });
    add("!a function", !function, [](const At& a) { return !speckled(a); });
    add("causal() & window(5, 5)", limpid::causal() & limpid::window(5, 5),
        [=](const At& a) { return sees_causal(a) && narrow(a); });
    add("window(5, 5) & a function", limpid::window(5, 5) & function,
        [=](const At& a) { return narrow(a) && speckled(a); });
    add("documents & causal()", documents & limpid::causal(),
        [=](const At& a) { return Documents()(a) && sees_causal(a); });
    add("causal() | window(5, 5)", limpid::causal() | limpid::window(5, 5),
        [=](const At& a) { return sees_causal(a) || narrow(a); });
    add("window(5, 5) | causal()", limpid::window(5, 5) | limpid::causal(),
        [=](const At& a) { return sees_causal(a) || narrow(a); });
    add("window(20, 400) | a function", limpid::window(20, 400) | function,
        [=](const At& a) { return wide(a) || speckled(a); });
    add("a function | documents", function | documents, [](const At& a) { return speckled(a) || Documents()(a); });
    add("documents | causal()", documents | limpid::causal(),
        [](const At& a) { return Documents()(a) || sees_causal(a); });
    add("!(causal() & documents)", !(limpid::causal() & documents),
        [](const At& a) { return !(sees_causal(a) && Documents()(a)); });
    add("!(documents | window(5, 5)) & a function", (!(documents | limpid::window(5, 5))) & function,
        [=](const At& a) { return !(Documents()(a) || narrow(a)) && speckled(a); });
    add("(causal() & !window(5, 5)) | (documents & !a function)",
        (limpid::causal() & !limpid::window(5, 5)) | (documents & !function),
        [=](const At& a) { return (sees_causal(a) && !narrow(a)) || (Documents()(a) && !speckled(a)); });
    add(
        "nothing", !limpid::window(-1, -1), [](const At&) { return false; }, true);
  }

 private:
  template <class M>
  void add(const std::string& name, const M& mask, std::function<bool(const At&)> keep, bool exact = false) {
    all.push_back({name, AnyMask(mask), std::move(keep), exact});
  }
};

/// Laws that change scores, and the start of chains of them.
template <class S>
std::vector<Law<S>> value_laws(const suite::Sizes& s) {
  std::vector<Law<S>> all;
  const Index n = s.n, m = s.m, heads = s.heads, batch = s.batch;
  suite::Random random(5);
  const auto table = [&](Index rows, Index cols, double size = 0.7) {
    auto t = std::make_shared<Table<S>>();
    t->numbers = suite::random_matrix<S>(random, rows, cols, -size, size);
    t->gradient.resize(rows, cols);
    return t;
  };
  const S none = -std::numeric_limits<S>::infinity();
  const auto added = [](auto amount) {
    return Formula{[=](Real x, const At& a) {
      const Real y = amount(a);
      return y == -inf ? y : x + y;
    }};
  };
  const auto learnt = [](auto place) {  // place(at) -> {table, row, column}
    Formula f;
    f.value = [=](Real x, const At& a) {
      const auto [t, i, j] = place(a);
      const Real y = Real(t->numbers(i, j));
      return y == -inf ? y : x + y;
    };
    f.gradient = [=](const At& a, Real ds) {
      const auto [t, i, j] = place(a);
      t->add(i, j, ds);
    };
    return f;
  };
  const auto value_law = [&](const std::string& name, auto first, std::vector<Formula> formulas,
                             std::vector<std::shared_ptr<Table<S>>> tables = {}) -> Law<S>& {
    Law<S> law;
    law.name = name, law.by_value = true, law.first_value = std::move(first);
    law.formulas = std::move(formulas), law.tables = std::move(tables);
    all.push_back(std::move(law));
    return all.back();
  };
  const auto start_law = [&](const std::string& name, auto first, std::vector<Formula> formulas,
                             std::vector<std::shared_ptr<Table<S>>> tables = {}) -> Law<S>& {
    Law<S> law;
    law.name = name, law.first_start = std::move(first);
    law.formulas = std::move(formulas), law.tables = std::move(tables);
    all.push_back(std::move(law));
    return all.back();
  };

  // amounts and functions of the user's own, with minus infinity in them
  const auto amount = [](const At& a) { return S(0.1) * S((a.q * 7 + a.k * 3 + a.head + 2 * a.batch) % 11) - S(0.5); };
  const auto gaps = [amount, none](const At& a) { return (a.q + 2 * a.k + a.head) % 5 == 3 ? none : amount(a); };
  const auto no_row = [none](const At& a) { return a.q % 4 == 1 ? none : S(0.25); };
  value_law("additive", limpid::additive(amount), {added([=](const At& a) { return Real(amount(a)); })});
  value_law("additive, minus infinity here and there", limpid::additive(gaps),
            {added([=](const At& a) { return Real(gaps(a)); })});
  value_law("additive, minus infinity in whole rows", limpid::additive(no_row),
            {added([=](const At& a) { return Real(no_row(a)); })});
  const Formula cap{[](Real x, const At&) { return 2 * std::tanh(x / 2); },
                    [](Real x, const At&) { return 1 - std::tanh(x / 2) * std::tanh(x / 2); }};
  const auto capped =
      limpid::score_mod([](S x, const At&) { return S(2) * std::tanh(x / S(2)); },
                        [](S x, const At&) { return S(1) - std::tanh(x / S(2)) * std::tanh(x / S(2)); });
  value_law("a score function", capped, {cap});
  const Formula by_head{
      [](Real x, const At& a) { return x * Real(1 + a.head + 3 * a.batch) / 4 + Real(a.q - a.k) / 64; },
      [](Real, const At& a) { return Real(1 + a.head + 3 * a.batch) / 4; }};
  value_law(
      "a score function of the head and item",
      limpid::score_mod([](S x, const At& a) { return x * S(1 + a.head + 3 * a.batch) / S(4) + S(a.q - a.k) / S(64); },
                        [](S, const At& a) { return S(1 + a.head + 3 * a.batch) / S(4); }),
      {by_head});
  const auto lost = [](const At& a) { return a.q % 3 == 1 || (a.q + a.k) % 4 == 0; };
  value_law("score_mod(s - inf) of some pairs and whole rows",
            limpid::score_mod([lost, none](S x, const At& a) { return lost(a) ? x + none : x; },
                              [](S, const At&) { return S(1); }),
            {{[lost](Real x, const At& a) { return lost(a) ? -inf : x; }}});
  {  // a function after minus infinity does not bring the pair back
    auto& law = value_law("a score function after minus infinity", limpid::additive(gaps),
                          {added([=](const At& a) { return Real(gaps(a)); }), cap});
    law.second_value = capped;
  }
  {  // no derivative is asked of a score that is masked
    auto& law = value_law(
        "a score function whose derivative is NaN where the mask drops",
        limpid::score_mod([](S x, const At&) { return x / S(2); },
                          [](S, const At& a) { return speckled(a) ? S(0.5) : std::numeric_limits<S>::quiet_NaN(); }),
        {{[](Real x, const At&) { return x / 2; }, [](Real, const At&) { return Real(0.5); }}});
    law.mask = limpid::mask([](const At& a) { return speckled(a); });
    law.keep = [](const At& a) { return speckled(a); };
  }
  {
    auto& law = value_law("a score function before an amount and a mask", capped,
                          {cap, added([=](const At& a) { return Real(gaps(a)); })});
    law.second_value = limpid::additive(gaps);
    law.mask = limpid::window(3, 4), law.keep = [](const At& a) { return sees_window(a, 3, 4); };
  }

  // symmetric ALiBi
  const auto slopes = [&](Index rows, Index cols) {
    auto t = table(rows, cols, 0.2);
    for (Index i = 0; i < t->numbers.size(); ++i) t->numbers.data()[i] = std::abs(t->numbers.data()[i]) + S(0.05);
    return t;
  };
  const auto alibi_formula = [](std::shared_ptr<Table<S>> t, bool symmetric) {
    const auto gap = [=](const At& a) {
      const Index g = a.q + a.m - a.n - a.k;
      return Real(symmetric && g < 0 ? -g : g);
    };
    const auto place = [t](const At& a) { return t->numbers.size() == 1 ? Index(0) : a.head; };
    Formula f;
    f.value = [=](Real x, const At& a) { return x - Real(t->numbers.data()[place(a)]) * gap(a); };
    f.gradient = [=](const At& a, Real ds) {
      t->add(place(a) / t->numbers.cols(), place(a) % t->numbers.cols(), -ds * gap(a));
    };
    return f;
  };
  for (const auto& [rows, cols] : std::vector<std::pair<Index, Index>>{{1, 1}, {1, heads}, {heads, 1}}) {
    const std::string shape = std::to_string(rows) + " x " + std::to_string(cols);
    auto t = slopes(rows, cols);
    value_law("symmetric ALiBi " + shape, limpid::alibi_symmetric(t->numbers, t->gradient), {alibi_formula(t, true)},
              {t});
    t = slopes(rows, cols);
    start_law("ALiBi " + shape, limpid::alibi(t->numbers, t->gradient), {alibi_formula(t, false)}, {t});
    if (heads == 1) break;
  }

  // relative tables
  for (const Index rows : {Index(1), heads}) {
    auto t = table(rows, 7);
    const auto clipped = [](const At& a) {
      const Index offset = a.k - (a.q + a.m - a.n);
      return offset < -3 ? Index(0) : (offset > 3 ? Index(6) : offset + 3);
    };
    const auto place = [t, rows, clipped](const At& a) {
      return std::make_tuple(t, rows == 1 ? Index(0) : a.head, clipped(a));
    };
    value_law("relative table of " + std::to_string(rows), limpid::relative(t->numbers, t->gradient), {learnt(place)},
              {t});
    auto holed = table(rows, 5);
    holed->numbers(rows - 1, 1) = none;  // a bucket that masks
    const auto buckets = [](Index offset, Index size) { return ((offset % size) + size) % size; };
    const auto bucket = [holed, rows, buckets](const At& a) {
      return std::make_tuple(holed, rows == 1 ? Index(0) : a.head, buckets(a.k - (a.q + a.m - a.n), 5));
    };
    value_law("relative table of " + std::to_string(rows) + ", buckets of one's own, one of minus infinity",
              limpid::relative(holed->numbers, holed->gradient, buckets), {learnt(bucket)}, {holed});
    auto& law = value_law("a relative table of " + std::to_string(rows) + " under a score function and a causal mask",
                          limpid::relative(t->numbers, t->gradient), {learnt(place), cap}, {t});
    law.second_value = capped;
    law.mask = limpid::causal(), law.keep = sees_causal;
    if (heads == 1) break;
  }

  // dense biases
  for (const Index items : {Index(1), heads, batch * heads}) {
    if (items * n * m > 400000) continue;
    auto t = table(items * n, m);
    const auto place = [t, items, heads](const At& a) {
      const Index item = items == 1 ? 0 : (items == heads ? a.head : a.batch * heads + a.head);
      return std::make_tuple(t, item * a.n + a.q, a.k);
    };
    value_law("bias of " + std::to_string(items), limpid::bias(t->numbers, t->gradient), {learnt(place)}, {t});
    auto holed = table(items * n, m);
    for (Index i = 0; i < holed->numbers.size(); i += 3) holed->numbers.data()[i] = none;
    holed->numbers.row(n - 1).setConstant(none);
    const auto hole = [holed, items, heads](const At& a) {
      const Index item = items == 1 ? 0 : (items == heads ? a.head : a.batch * heads + a.head);
      return std::make_tuple(holed, item * a.n + a.q, a.k);
    };
    auto slope = slopes(heads, 1);
    auto& law = value_law("bias of " + std::to_string(items) + " with minus infinity, then symmetric ALiBi",
                          limpid::bias(holed->numbers, holed->gradient), {learnt(hole), alibi_formula(slope, true)},
                          {holed, slope});
    law.second_value = limpid::alibi_symmetric(slope->numbers, slope->gradient);
    if (batch * heads == 1) break;
  }

  // amounts a key
  for (const Index items : {Index(1), batch}) {
    auto t = table(items, m);
    const auto place = [items](auto of) {
      return [of, items](const At& a) { return std::make_tuple(of, items == 1 ? Index(0) : a.batch, a.k); };
    };
    const std::string name = "key bias of " + std::to_string(items);
    start_law(name, limpid::key_bias(t->numbers, t->gradient), {learnt(place(t))}, {t});
    auto holed = table(items, m);
    for (Index j = 1; j < m; j += 3) holed->numbers(items - 1, j) = none;
    auto slope = slopes(heads, 1);
    auto& law = start_law(name + " with minus infinity, then ALiBi, under a window",
                          limpid::key_bias(holed->numbers, holed->gradient),
                          {learnt(place(holed)), alibi_formula(slope, false)}, {holed, slope});
    law.second_start = limpid::alibi(slope->numbers, slope->gradient);
    law.mask = limpid::window(-1, 2), law.keep = [](const At& a) { return sees_window(a, -1, 2); };
    auto by_value = table(items, m);
    by_value->numbers(0, m / 2) = none;
    auto& capped_law =
        value_law(name + " with minus infinity under a score function",
                  limpid::key_bias(by_value->numbers, by_value->gradient), {learnt(place(by_value)), cap}, {by_value});
    capped_law.second_value = capped;
    if (batch == 1) break;
  }
  return all;
}

/// The laws of masks as laws of scores.
template <class S>
std::vector<Law<S>> mask_laws(const Masks& masks) {
  std::vector<Law<S>> all;
  const auto& of = masks.all;
  for (std::size_t i = 0; i < of.size(); ++i) {
    Law<S> law;
    law.name = of[i].name, law.mask = of[i].mask, law.keep = of[i].keep;
    all.push_back(law);
    // one after another in a chain, where both must keep a pair
    const MaskLaw& other = of[(3 * i + 5) % of.size()];
    law.name += ", then " + other.name, law.second_mask = other.mask;
    law.keep = [one = of[i].keep, two = other.keep](const At& a) { return one(a) && two(a); };
    if (i % 3 == 0) all.push_back(law);
  }
  return all;
}

}  // namespace laws
