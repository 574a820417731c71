// limpid: masks that gather (neighbourhoods, packed sequences, documents, blocks) and lengths of keys, beside the same
// pairs as a dense mask: every result of every kind of operator, whatever they are combined with.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/explain/map.hpp>
#include <limpid/explain/rollout.hpp>
#include <limpid/limpid.hpp>
#include <map>

#include "support/any_local.hpp"
#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/executors.hpp"
#include "support/fields.hpp"

using limpid::At, limpid::Border, limpid::Cover, limpid::Interval;
using limpid::chain, limpid::causal, limpid::softmax;
using limpid::Index, limpid::Mat, limpid::View, limpid::MutView;
using suite::distance;
using M = Mat<double>;

namespace {

/// Any mask that gathers, so that operators are compiled once for all.
using Local = suite::AnyLocal<limpid::Neighbourhood, limpid::Packed, limpid::Documents, limpid::Blocks>;

/// The pairs that a mask keeps, (B H n) x m.
template <class Mask>
Mat<bool> pairs_of(const Mask& mask, const suite::Sizes& s) {
  Mat<bool> kept(s.batch * s.heads * s.n, s.m);
  for (Index t = 0; t < s.batch * s.heads; ++t)
    for (Index i = 0; i < s.n; ++i)
      for (Index j = 0; j < s.m; ++j)
        kept(t * s.n + i, j) = limpid::detail::mask_keeps(mask, At{.batch = t / s.heads,
                                                                   .head = t % s.heads,
                                                                   .q = i,
                                                                   .k = j,
                                                                   .n = s.n,
                                                                   .m = s.m,
                                                                   .batches = s.batch,
                                                                   .heads = s.heads});
  return kept;
}

using Results = std::map<std::string, M>;

/// Numbers that look random; a part of the matrix is that of the whole from these rows and columns on.
M numbers(Index rows, Index cols, double kind, Index first_row = 0, Index first_col = 0) {
  M x(rows, cols);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j)
      x(i, j) = std::sin(kind + 12.9898 * double(i + first_row) + 78.233 * double(j + first_col) +
                         double((i + first_row) * (j + first_col)));
  return x;
}

/// All that an operator can be asked: forward, looks inside of the last head, backward. first_q, first_k: of a call
/// with a part of the rows.
template <class Entry, class Op>
Results run(const Op& op, const suite::Sizes& s, suite::Fields<double> fields, limpid::ExecutorRef executor = {},
            Index first_q = 0, Index first_k = 0, bool asks = true) {
  using In = limpid::Inputs<Op, double>;
  using Grad = limpid::Grads<Op, double>;
  const suite::Traits traits = Entry::traits();
  const In in = suite::args_of<In>(suite::views_of(fields));
  limpid::Saved<Op, double> saved;
  Results r;
  r["out"].resize(s.batch * s.n, s.heads * s.dv);
  constexpr bool has_lse = limpid::detail::has_lse<Op>;
  limpid::forward(op, in, r["out"],
                  {.batch = s.batch,
                   .heads = s.heads,
                   .kv_heads = s.kv_heads,
                   .saved = &saved,
                   .executor = executor,
                   .lse = has_lse ? &r["lse"] : nullptr});
  const limpid::HeadCall last{s.heads - 1, s.batch - 1, nullptr, executor};
  r["map"].resize(s.n, s.m), r["block"].resize(s.n / 2, s.m / 3);
  limpid::map_block(op, in, saved, 0, 0, r["map"], last);
  limpid::map_block(op, in, saved, s.n / 3, s.m / 2, r["block"], last);
  const M x = numbers(2, s.n, 1, 0, first_q), y = numbers(s.m, 3, 2, first_k);
  r["left"].resize(2, s.m), r["right"].resize(s.n, 3);
  limpid::map_left(op, in, saved, x, r["left"], last);
  limpid::map_right(op, in, saved, y, r["right"], last);
  if constexpr (limpid::detail::has_entropy<Op, double>)
    if (traits.distribution) {
      r["entropy"].resize(s.n, 1);
      limpid::map_entropy(op, in, saved, r["entropy"], last);
    }
  const M dout = numbers(s.batch * s.n, s.heads * s.dv, 3, first_q), w = numbers(s.batch, s.n, 4, 0, first_q);
  suite::Fields<double> gradients = fields;
  for (auto& g : gradients) g.value.setConstant(0.25);
  const Grad grad = suite::args_of<Grad>(suite::mutable_views_of(gradients));
  limpid::BackwardCall<double> call{.accumulate = true, .executor = executor};
  r["relevance"].resize(s.batch, s.m);
  if (traits.relevance && asks)
    call.relevance_weights = w, call.relevance = r["relevance"], call.part = limpid::Part::abs;
  limpid::backward(op, in, saved, dout, grad, call);
  for (const auto& g : gradients) r["d " + g.name] = g.value;
  return r;
}

/// 0 where two numbers are one, as minus infinity is a log-sum-exp.
M difference(const M& a, const M& b) {
  REQUIRE(a.rows() == b.rows());
  REQUIRE(a.cols() == b.cols());
  M d = a - b;
  for (Index i = 0; i < d.size(); ++i)
    if (a.data()[i] == b.data()[i]) d.data()[i] = 0;
  return d;
}
double size_of(const M& a) {
  double most = 1;
  for (Index i = 0; i < a.size(); ++i)
    if (std::isfinite(a.data()[i])) most = std::max(most, std::abs(a.data()[i]));
  return most;
}
void close(const Results& a, const Results& b, double most = 1e-12) {
  REQUIRE(a.size() == b.size());
  for (const auto& [name, value] : a) {
    INFO(name);
    const M d = difference(value, b.at(name));
    CHECK(distance(d, M(M::Zero(d.rows(), d.cols()))) < most * size_of(b.at(name)));
  }
}
void same_bits(const Results& a, const Results& b) {
  for (const auto& [name, value] : a) {
    INFO(name);
    CHECK(std::equal(value.data(), value.data() + value.size(), b.at(name).data(),
                     b.at(name).data() + b.at(name).size()));
  }
}

std::vector<Index> documents(Index n, Index batch) {
  std::vector<Index> ids;
  for (Index i = 0; i < n * batch; ++i) ids.push_back(((i * 7) % 11 * (i % 3)) % 5 - 2);
  return ids;
}
/// Blocks of 8 x 20 of each head, some rows of which are empty.
Mat<bool> some_blocks(const suite::Sizes& s) {
  const Index rows = (s.n + 7) / 8, cols = (s.m + 19) / 20;
  Mat<bool> kept(s.batch * s.heads * rows, cols);
  for (Index i = 0; i < kept.rows(); ++i)
    for (Index j = 0; j < cols; ++j) kept(i, j) = i % 5 != 3 && (i * 5 + j * 3) % 4 != 0;
  return kept;
}

/// f(name, mask) for masks of n = m = 143 tokens.
template <class F>
void each_mask(const suite::Sizes& s, F&& f) {
  f("window", Local(limpid::neighbourhood({11, 13}, {3, 5})));
  f("wide window", Local(limpid::neighbourhood({143}, {100})));
  f("moved window", Local(limpid::neighbourhood({13, 11}, {4, 3}, {.border = Border::shift, .dilation = {2, 3}})));
  f("causal window after global tokens",
    Local(limpid::neighbourhood({7, 4, 5}, {3, 2, 5}, {.stride = {1, 2, 3}, .causal = {true}, .global = 3})));
  f("sequences", Local(limpid::packed(std::vector<Index>{0, 0, 5, 6, 100, 100, 143})));
  f("documents", Local(limpid::documents(documents(s.n, s.batch))));
  const Mat<bool> kept = some_blocks(s);
  f("blocks", Local(limpid::blocks(kept, 8, 20)));
}

template <class Entry>
void as_dense(double most = 1e-12) {
  const suite::Traits traits = Entry::traits();
  const suite::Sizes s{.n = 143, .m = 143, .d = 4, .dv = 4, .heads = 2, .kv_heads = traits.grouped ? 1 : 2, .batch = 2};
  suite::Random random(3);
  const auto fields = suite::make_fields<Entry, double>(s, false, random);
  limpid::ThreadPool pool(3);
  auto three = suite::eager(pool);
  each_mask(s, [&](const char* name, const Local& mask) {
    INFO(Entry::name << ", " << name);
    if (s.n != 143) return;
    const Mat<bool> kept = pairs_of(mask, s);
    const Results found = run<Entry>(Entry::make(mask), s, fields);
    close(found, run<Entry>(Entry::make(limpid::mask_matrix(kept)), s, fields), most);
    Results unasked = run<Entry>(Entry::make(mask), s, fields, {}, 0, 0, false);
    unasked.erase("relevance");  // asking for it changes no bit of a gradient
    same_bits(unasked, found);
    same_bits(found, run<Entry>(Entry::make(mask), s, fields, three));
  });
}

/// mssa with a threshold.
template <int Percent>
struct entry_threshold : suite::entry_mssa {
  template <class Mods>
  static auto make(const Mods& mods) {
    return limpid::mssa(mods, {.phi = limpid::Phi::threshold, .tau = Percent / 100.0});
  }
};

/// Tables that modifiers look at, of one head, and their gradients.
struct Tables {
  M slopes{{0.07}}, offsets, pairs, keys, dslopes, doffsets, dpairs, dkeys;
  Tables(Index n, Index m, Index first_q = 0, Index first_k = 0, double far = 0)
      : offsets(numbers(1, 41, 5)), pairs(numbers(n, m, 6, first_q, first_k)), keys(numbers(1, m, 7, 0, first_k)) {
    offsets.array() -= 0.25 * far, pairs.array() += 0.75 * far, keys.array() += far;
    dslopes.setZero(1, 1), doffsets.setZero(1, 41), dpairs.setZero(n, m), dkeys.setZero(1, m);
  }
  /// A score function, amounts of pairs.
  template <class Mask>
  auto by_pair(const Mask& mask) {
    const auto cap = limpid::score_mod([](const auto& s, const At&) { return 2 * s / (1 + s * s); },
                                       [](const auto& s, const At&) {
                                         const auto t = 1 + s * s;
                                         return 2 * (2 - t) / (t * t);
                                       });
    return chain(cap, mask, limpid::alibi_symmetric(slopes, dslopes), limpid::relative(offsets, doffsets),
                 limpid::bias(pairs, dpairs), limpid::key_bias(keys, dkeys));
  }
  /// Amounts of keys.
  template <class Mask>
  auto by_key(const Mask& mask) {
    return chain(mask, limpid::alibi(slopes, dslopes), limpid::key_bias(keys, dkeys));
  }
  void add_to(Results& r) const {
    r["d slopes"] = dslopes, r["d offsets"] = doffsets, r["d pairs"] = dpairs, r["d keys"] = dkeys;
  }
};

/// The part of a whole call's results that is a sequence's.
Results part_of(const Results& whole, Index q, Index n, Index k, Index m) {
  Results r;
  for (const auto& [name, x] : whole) {
    if (name == "block") continue;
    if (name == "map" || name == "d pairs")
      r[name] = x.block(q, k, n, m);
    else if (name == "out" || name == "right" || name == "entropy" || name == "d q")
      r[name] = x.middleRows(q, n);
    else if (name == "d k" || name == "d v")
      r[name] = x.middleRows(k, m);
    else if (name == "lse")
      r[name] = x.middleCols(q, n);
    else if (name == "left" || name == "relevance" || name == "d keys")
      r[name] = x.middleCols(k, m);
  }
  return r;
}
suite::Fields<double> part_of(const suite::Fields<double>& fields, Index q, Index n, Index k, Index m) {
  suite::Fields<double> part = fields;
  for (auto& f : part) f.value = f.name == "q" ? M(f.value.middleRows(q, n)) : M(f.value.middleRows(k, m));
  return part;
}

}  // namespace

TEMPLATE_TEST_CASE("A mask that gathers gives what the same pairs as a dense mask give, with every kind of operator.",
                   "", suite::entry_softmax, suite::entry_twicing, suite::entry_nlm, suite::entry_differential,
                   suite::entry_pid, suite::entry_mssa, suite::entry_sigmoid, entry_threshold<20>,
                   entry_threshold<60>) {
  as_dense<TestType>();
}

TEST_CASE("A mask that gathers joins others, score functions and tables, far ones too, as a dense mask does.") {
  const suite::Sizes s{.n = 143, .m = 143, .d = 5, .dv = 3};
  suite::Random random(4);
  using Entry = suite::entry_softmax;
  const auto fields = suite::make_fields<Entry, double>(s, false, random);
  Mat<bool> some(s.n, s.m);
  for (Index i = 0; i < s.n; ++i)
    for (Index j = 0; j < s.m; ++j) some(i, j) = (i * 3 + j * 5) % 7 != 0;
  const auto window = limpid::window(60, 45);
  each_mask(s, [&](const char* name, const Local& mask) {
    if (std::holds_alternative<limpid::Packed>(mask.mask)) return;  // whose places are those of sequences, see below
    INFO(name);
    for (const double far : {0.0, -1e9}) {
      Tables own(s.n, s.m, 0, 0, far), other(s.n, s.m, 0, 0, far);
      const auto all = window & mask & limpid::mask_matrix(some);
      const Mat<bool> kept = pairs_of(all, s);
      Results found = run<Entry>(softmax(own.by_pair(all)), s, fields);
      Results wanted = run<Entry>(softmax(other.by_pair(limpid::mask_matrix(kept))), s, fields);
      own.add_to(found), other.add_to(wanted);
      close(found, wanted);
    }
    for (const double far : {0.0, -1e9}) {
      Tables own(s.n, s.m, 0, 0, far), other(s.n, s.m, 0, 0, far);
      const Mat<bool> kept = pairs_of(mask & causal(), s);
      Results found = run<Entry>(softmax(own.by_key(chain(mask, causal()))), s, fields);
      Results wanted = run<Entry>(softmax(other.by_key(limpid::mask_matrix(kept))), s, fields);
      own.add_to(found), other.add_to(wanted);
      close(found, wanted);
    }
    const auto either = (!mask) | (mask & causal());
    const Mat<bool> kept = pairs_of(either, s);
    close(run<Entry>(softmax(either), s, fields), run<Entry>(softmax(limpid::mask_matrix(kept)), s, fields));
  });
}

TEST_CASE("Packed sequences are one call for each, places and tables counted within; none sees another.") {
  const std::vector<Index> cu_q{0, 0, 7, 8, 8, 120, 130}, cu_k{0, 3, 3, 9, 20, 130, 141};
  const suite::Sizes s{.n = 130, .m = 141, .d = 5, .dv = 3};
  suite::Random random(8);
  using Entry = suite::entry_softmax;
  auto fields = suite::make_fields<Entry, double>(s, false, random);
  const Local mask(limpid::packed(cu_q, cu_k));
  Mat<bool> all = Mat<bool>::Constant(s.n, s.m, true);
  const auto window = limpid::window(60, 45);
  for (const double far : {0.0, -1e9})
    for (const bool by_pair : {true, false}) {
      INFO(far << (by_pair ? ", amounts of pairs" : ", amounts of keys"));
      const auto call = [&] {
        Tables tables(s.n, s.m, 0, 0, far);
        Results r = by_pair ? run<Entry>(softmax(tables.by_pair(window & mask & limpid::mask_matrix(all))), s, fields)
                            : run<Entry>(softmax(tables.by_key(chain(mask, causal()))), s, fields);
        tables.add_to(r);
        return r;
      };
      const Results whole = call();
      M dslopes = M::Zero(1, 1), doffsets = M::Zero(1, 41);
      for (std::size_t b = 0; b + 1 < cu_q.size(); ++b) {
        const Index q = cu_q[b], k = cu_k[b];
        suite::Sizes own = s;
        own.n = cu_q[b + 1] - q, own.m = cu_k[b + 1] - k;
        INFO("sequence " << b);
        Tables tables(own.n, own.m, q, k, far);
        const Mat<bool> kept = by_pair ? pairs_of(window, own) : pairs_of(causal(), own);
        const auto part = part_of(fields, q, own.n, k, own.m);
        Results wanted = by_pair ? run<Entry>(softmax(tables.by_pair(limpid::mask_matrix(kept))), own, part, {}, q, k)
                                 : run<Entry>(softmax(tables.by_key(limpid::mask_matrix(kept))), own, part, {}, q, k);
        tables.add_to(wanted);
        dslopes += tables.dslopes, doffsets += tables.doffsets;
        wanted.erase("block"), wanted.erase("d slopes"), wanted.erase("d offsets");
        close(part_of(whole, q, own.n, k, own.m), wanted);
      }
      CHECK(distance(whole.at("d slopes"), dslopes) < 1e-11);
      CHECK(distance(whole.at("d offsets"), doffsets) < 1e-11);

      // rows [8, 120), keys [20, 130)
      for (auto& f : fields) f.value.middleRows(f.name == "q" ? 8 : 20, f.name == "q" ? 112 : 110).array() *= 1.25;
      fields[1].value(40, 1) = std::nan("");
      const Results changed = call();
      for (const std::size_t b : {0u, 1u, 2u, 3u, 5u}) {
        const Index q = cu_q[b], n = cu_q[b + 1] - q, k = cu_k[b], m = cu_k[b + 1] - k;
        INFO("sequence " << b << " beside another one");
        same_bits(part_of(changed, q, n, k, m), part_of(whole, q, n, k, m));
      }
      CHECK(!changed.at("out").middleRows(8, 112).allFinite());
      suite::Random again(8);
      fields = suite::make_fields<Entry, double>(s, false, again);
    }
}

TEST_CASE("A local mask that keeps all is no mask; documents that are sorted are sequences; lengths cut keys.") {
  const suite::Sizes s{.n = 60, .m = 60, .d = 5, .dv = 3, .heads = 2, .kv_heads = 1, .batch = 2};
  suite::Random random(9);
  using Entry = suite::entry_softmax;
  const auto fields = suite::make_fields<Entry, double>(s, false, random);
  const auto local = [&](const Local& mask) { return run<Entry>(softmax(mask), s, fields); };
  const Results plain = run<Entry>(softmax(), s, fields);
  close(local(limpid::neighbourhood({60}, {121})), plain);
  close(local(limpid::neighbourhood({6, 10}, {6, 10}, {.border = Border::shift})), plain);
  close(local(limpid::packed(std::vector<Index>{0, 60})), plain);
  close(local(limpid::documents(std::vector<Index>(60, 3))), plain);
  const Mat<bool> all = Mat<bool>::Constant(8, 3, true);
  close(local(limpid::blocks(all, 8, 20)), plain);
  const Index largest = std::numeric_limits<Index>::max();
  close(local(limpid::neighbourhood({6, 10}, {largest, largest}, {.stride = {largest, 1, 1}})), plain);
  const Mat<bool> one = Mat<bool>::Constant(1, 1, true);
  close(local(limpid::blocks(one, largest, largest)), plain);
  const auto lengths = [&](const std::vector<Index>& count, const suite::Fields<double>& of) {
    return run<Entry>(softmax(limpid::key_lengths(count)), s, of);
  };
  same_bits(lengths({60, 60}, fields), plain);

  std::vector<Index> sorted(60, 0);
  std::fill(sorted.begin() + 17, sorted.begin() + 40, 4), std::fill(sorted.begin() + 40, sorted.end(), 9);
  same_bits(local(limpid::documents(sorted)), local(limpid::packed(std::vector<Index>{0, 17, 40, 60})));

  suite::Fields<double> unread = fields;  // behind the lengths
  for (auto& f : unread)
    if (f.role == limpid::Role::key) f.value.middleRows(20, 40).setConstant(std::nan(""));
  for (auto& f : unread)
    if (f.role == limpid::Role::key) f.value.middleRows(60, 60).setConstant(HUGE_VAL);
  const Mat<bool> kept = pairs_of(limpid::mask([](const At& a) { return a.k < (a.batch == 0 ? 20 : 0); }), s);
  close(lengths({20, 0}, unread), run<Entry>(softmax(limpid::mask_matrix(kept)), s, fields));
}

TEST_CASE("A mirrored border counts a key as often as the window has it.") {
  const suite::Sizes s{.n = 63, .m = 63, .d = 5, .dv = 3};
  suite::Random random(10);
  const auto fields = suite::make_fields<suite::entry_nlm, double>(s, false, random);
  M counts = M::Zero(63, 63), none(63, 63);
  for (Index i = 0; i < 63; ++i)
    for (Index y = -2; y <= 2; ++y)
      for (Index x = -5; x < 5; ++x) {  // an even window has one fewer to the right
        const auto mirrored = [](Index p, Index count) { return p < 0 ? -p : p >= count ? 2 * (count - 1) - p : p; };
        counts(i, mirrored(i / 9 + y, 7) * 9 + mirrored(i % 9 + x, 9)) += 1;
      }
  for (Index i = 0; i < counts.size(); ++i) none.data()[i] = std::log(counts.data()[i]);
  const Local mirror(limpid::neighbourhood({7, 9}, {5, 10}, {.border = Border::mirror}));
  Results found = run<suite::entry_nlm>(limpid::nlm(mirror), s, fields);
  Results wanted = run<suite::entry_nlm>(limpid::nlm(limpid::bias(none)), s, fields);
  found.erase("entropy"), wanted.erase("entropy");  // a key that counts twice is two
  close(found, wanted);
}

TEST_CASE("Rollout goes through a mask that gathers.") {
  const suite::Sizes s{.n = 143, .m = 143, .d = 5, .dv = 3, .heads = 2, .kv_heads = 2};
  suite::Random random(11);
  const auto fields = suite::make_fields<suite::entry_softmax, double>(s, false, random);
  const auto rows = [&](const auto& op) {
    using Op = std::remove_const_t<std::remove_reference_t<decltype(op)>>;
    const auto in = suite::args_of<limpid::Inputs<Op, double>>(suite::views_of(fields));
    limpid::Saved<Op, double> saved;
    M out(s.n, s.heads * s.dv);
    limpid::forward(op, in, out, {.heads = s.heads, .saved = &saved});
    M all(2, s.n);
    for (const auto fuse : {limpid::Fuse::mean, limpid::Fuse::max}) {
      limpid::Rollout<double> rollout({.fuse = fuse});
      rollout.start(s.n, 60);
      for (int layers = 0; layers < 2; ++layers) rollout.layer(op, in, saved);
      all.row(fuse == limpid::Fuse::mean ? 0 : 1) = rollout.rows();
    }
    return all;
  };
  const Local mask(limpid::neighbourhood({11, 13}, {3, 5}));
  const Mat<bool> kept = pairs_of(mask, s);
  CHECK(distance(rows(softmax(mask)), rows(softmax(limpid::mask_matrix(kept)))) < 1e-13);
}

TEST_CASE("Local masks refuse what does not fit, in one sentence, before anything is written.") {
  using L = std::vector<Index>;
  // B = 2, H = 3, n = m = 24
  const auto refuses = [](const auto& mask, const std::string& sentence) {
    CHECK(suite::error_of([&] { chain(mask).check("op", 2, 3, 24, 24); }) == sentence);
  };
  const auto accepts = [&](const auto& mask) { refuses(mask, ""); };
  using limpid::neighbourhood, limpid::packed, limpid::documents, limpid::key_lengths;
  accepts(neighbourhood({4, 6}, {9, 30}));
  accepts(neighbourhood({2, 2, 5}, {2, 2, 5}, {.border = Border::shift, .stride = {2, 1, 5}, .global = 4}));
  refuses(neighbourhood({4, 6}, {3, 0}), "op: neighbourhood: the window of axis 1 is 0, wanted at least 1");
  refuses(neighbourhood({0, 6}, {3, 3}), "op: neighbourhood: the length of axis 0 is 0, wanted at least 1");
  refuses(neighbourhood({4, 6}, {3, 3}, {.stride = {1, 4}}),
          "op: neighbourhood: the stride of axis 1 is 4, wanted it in [1, the window's 3]");
  refuses(neighbourhood({4, 6}, {3, 3}, {.stride = {0, 1}}),
          "op: neighbourhood: the stride of axis 0 is 0, wanted it in [1, the window's 3]");
  refuses(neighbourhood({4, 6}, {3, 3}, {.dilation = {1, 7}}),
          "op: neighbourhood: the dilation of axis 1 is 7, wanted it in [1, 6]");
  refuses(neighbourhood({4, 6}, {5, 3}, {.border = Border::shift}),
          "op: neighbourhood: the window of axis 0 is 5, wanted at most 4, the places of the axis, as it is shifted");
  refuses(
      neighbourhood({4, 6}, {3, 3}, {.border = Border::shift, .dilation = {1, 4}}),
      "op: neighbourhood: the window of axis 1 is 3, wanted at most 1, the places of a residue class of the axis, as "
      "it is shifted");
  refuses(neighbourhood({4, 6}, {3, 3}, {.global = -1}), "op: neighbourhood: global is -1, wanted 0 or more");
  refuses(neighbourhood({4, 6}, {3}),
          "op: neighbourhood has a grid of 2 axes and a window of 1, wanted one to three, as many of both");
  refuses(neighbourhood({4, 6}, {3, 3}, {.global = 1}),
          "op: neighbourhood has a grid of 4 x 6 and 1 global tokens, 25 in all, found 24 queries and 24 keys");
  const Index huge = Index(1) << 40;
  refuses(
      neighbourhood({huge, huge}, {3, 3}),
      "op: neighbourhood has a grid of 1099511627776 x 1099511627776 and 0 global tokens, too many, found 24 queries "
      "and 24 keys");
  refuses(neighbourhood({4, 6}, {3, 3}, {.border = Border::mirror}) & causal(),
          "op: a mirrored border beside a mask of intervals, wanted clip or shift there");

  const std::string asked =
      "op: a mirrored border in a window that another mask asks pair by pair, wanted clip or shift there";
  const auto mirror = neighbourhood({4, 6}, {3, 4}, {.border = Border::mirror});
  const auto clip = neighbourhood({4, 6}, {3, 3});
  accepts(mirror & clip);
  accepts(chain(mirror, clip | documents(L(24, 1))));
  refuses(clip & mirror, asked);
  refuses(clip & limpid::mask([](const At&) { return true; }) & mirror, asked);
  refuses(chain(clip, mirror), asked);
  refuses(mirror | clip, asked);
  refuses(clip | mirror, asked);
  refuses(!mirror, asked);
  refuses(!(mirror & clip), asked);
  refuses(chain(clip, !mirror), asked);

  const Index largest = std::numeric_limits<Index>::max(), entries = limpid::detail::most_entries;
  accepts(neighbourhood({4, 6}, {largest, 3}));
  accepts(neighbourhood({4, 6}, {largest, 3}, {.border = Border::mirror, .stride = {largest, 1, 1}, .causal = {true}}));
  refuses(neighbourhood({4, 6}, {3, largest}, {.border = Border::mirror}),
          "op: neighbourhood: the window of axis 1 is " + std::to_string(largest) + ", wanted at most " +
              std::to_string(entries / 3) + ", as keys of a mirrored border count as often as a window has them");

  accepts(packed(L{0, 0, 24}, L{0, 24, 24}));
  refuses(packed(L{}), "op: packed: cu_q is empty, wanted offsets from 0");
  refuses(packed(L{1, 24}), "op: packed: cu_q begins with 1, wanted offsets from 0");
  refuses(packed(L{0, 24}, L{0, 13, 12, 24}), "op: packed: cu_k falls from 13 to 12, wanted offsets that do not fall");
  refuses(packed(L{0, 24}, L{0, 25}), "op: packed: cu_k ends at 25, wanted the 24 rows of k");
  refuses(packed(L{0, 12}), "op: packed: cu_q ends at 12, wanted the 24 rows of q");
  refuses(packed(L{0, 24}, L{0, 12, 24}), "op: packed: cu_q has 2 offsets and cu_k 3, wanted as many");

  accepts(documents(L(24, 1)));
  accepts(documents(L(48, 1)));
  refuses(documents(L(23, 1)),
          "op: documents has 23 ids, wanted one for each of the 24 queries, which are the 24 keys, or of 2 items");

  accepts(key_lengths(L{0, 24}));
  refuses(key_lengths(L{24}), "op: key_lengths has 1 lengths, wanted one for each of 2 items");
  refuses(key_lengths(L{3, 25}), "op: key_lengths: item 1 has 25 keys, wanted 0 to 24");
  refuses(key_lengths(L{-1, 2}), "op: key_lengths: item 0 has -1 keys, wanted 0 to 24");

  const Mat<bool> kept = Mat<bool>::Constant(3, 4, true);
  accepts(limpid::blocks(kept, 8, 6));
  accepts(limpid::blocks(kept, 11, 7));
  refuses(limpid::blocks(kept, largest, largest),
          "op: blocks' mask is 3 x 4, wanted 1 x 1, or as many rows for each item, or head of an item");
  refuses(limpid::blocks(kept, 12, 6),
          "op: blocks' mask is 3 x 4, wanted 2 x 4, or as many rows for each item, or head of an item");
  refuses(limpid::blocks(kept, 8, 0), "op: blocks: bq is 8 and bk 0, wanted at least 1");

  M x = M::Constant(48, 6, 0.5), out = M::Constant(48, 6, 7);
  const auto op = softmax(Local(packed(L{0, 24}, L{0, 13, 12, 24})));
  CHECK(suite::error_of([&] { limpid::forward(op, limpid::qkv(x, x, x), out, {.batch = 2, .heads = 3}); }) != "");
  CHECK(out == M::Constant(48, 6, 7));
}

TEST_CASE("A neighbourhood and packed sequences keep the pairs of their definitions.") {
  // one axis, places counted within a residue class
  const auto sees = [](Index i, Index j, Index length, Index window, Index t, Index s, Border border,
                       bool causal_axis) {
    if (i % t != j % t) return false;
    Index places = 0;
    for (Index p = i % t; p < length; p += t) ++places;
    i /= t, j /= t;
    const Index first = i / s * s;
    if (causal_axis) {
      const Index leader = std::min(first + s - 1, places - 1);
      return j <= i && j > leader - window;
    }
    const Index leader = std::min(first + s / 2, places - 1), begin = leader - window / 2;
    if (border == Border::shift) {
      const Index moved = std::max<Index>(0, std::min(begin, places - window));
      return j >= moved && j < moved + window;
    }
    return j >= begin && j < begin + window;
  };
  Index wrong = 0, asked = 0;
  for (const Border border : {Border::clip, Border::shift})
    for (const bool causal_axis : {false, true})
      for (Index length = 1; length <= 9; ++length)
        for (Index window = 1; window <= 10; ++window)
          for (Index t = 1; t <= std::min<Index>(3, length); ++t)
            for (Index s = 1; s <= std::min<Index>(4, window); ++s) {
              if (border == Border::shift && window > length / t) continue;
              const auto line = limpid::neighbourhood(
                  {length}, {window}, {.border = border, .dilation = {t}, .stride = {s}, .causal = {causal_axis}});
              for (Index i = 0; i < length; ++i)
                for (Index j = 0; j < length; ++j, ++asked)
                  wrong += line.keep({.q = i, .k = j, .n = length, .m = length}) !=
                           sees(i, j, length, window, t, s, border, causal_axis);
            }
  CHECK(asked > 10000);
  CHECK(wrong == 0);

  const auto grid = limpid::neighbourhood({3, 4}, {3, 2}, {.causal = {false, true}, .global = 1});
  const auto packed = limpid::packed(std::vector<Index>{0, 2, 7, 13}, std::vector<Index>{0, 4, 4, 12});
  const auto causal_too = packed & causal();
  const auto sequence = [](Index row, const std::vector<Index>& cu) {
    Index b = 0;
    while (cu[std::size_t(b) + 1] <= row) ++b;
    return std::size_t(b);
  };
  for (Index i = 0; i < 13; ++i)
    for (Index j = 0; j < 13; ++j) {
      const Index y = (i - 1) / 4, x = (i - 1) % 4, v = (j - 1) / 4, u = (j - 1) % 4;
      const bool kept = i == 0 || j == 0 || (std::abs(y - v) <= 1 && (x == u || x == u + 1));
      CHECK(grid.keep({.q = i, .k = j, .n = 13, .m = 13}) == kept);
      if (j == 12) continue;
      const std::size_t b = sequence(i, {0, 2, 7, 13}), c = sequence(j, {0, 4, 4, 12});
      const std::vector<Index> last_q{1, 6, 12}, last_k{3, 3, 11};
      CHECK(packed.keep({.q = i, .k = j, .n = 13, .m = 12}) == (b == c));
      const bool both = b == c && last_k[b] - j >= last_q[b] - i;
      CHECK(causal_too.keep({.q = i, .k = j, .n = 13, .m = 12}) == both);
      CHECK((causal_too | !packed).keep({.q = i, .k = j, .n = 13, .m = 12}) == (both || b != c));
      CHECK((!causal_too).keep({.q = i, .k = j, .n = 13, .m = 12}) == !both);
    }

  const auto ids = limpid::documents(std::vector<Index>{1, 2, 1, 5, 5, 6});
  CHECK(!ids.keep({.batch = 0, .q = 0, .k = 1, .n = 3, .m = 3, .batches = 2}));
  CHECK(ids.keep({.batch = 1, .q = 0, .k = 1, .n = 3, .m = 3, .batches = 2}));
  Mat<bool> of_heads = Mat<bool>::Constant(4, 2, false);
  of_heads(1, 1) = true;
  const auto blocks = limpid::blocks(of_heads, 3, 2);
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 2; ++h)
      for (Index j = 0; j < 4; ++j)
        CHECK(blocks.keep({.batch = b, .head = h, .q = 2, .k = j, .n = 3, .m = 4, .batches = 2, .heads = 2}) ==
              (b == 0 && h == 1 && j >= 2));
}

TEST_CASE("Keys beyond a window, large or not numbers, are as those behind a dense mask.") {
  using Entry = suite::entry_softmax;
  const suite::Sizes s{.n = 143, .m = 143, .d = 4, .dv = 4, .heads = 2, .kv_heads = 1, .batch = 2};
  suite::Random random(12);
  const auto fields = suite::make_fields<Entry, double>(s, false, random);
  each_mask(s, [&](const char* name, const Local& mask) {
    INFO(name);
    const Mat<bool> kept = pairs_of(mask, s);
    for (const bool bad : {false, true}) {
      auto own = fields;
      for (const Index key : {3, 70, 71, 133, 200}) {
        if (bad)
          own[1].value(key, 1) = std::nan("");
        else
          own[1].value.row(key).setConstant(2e3);
      }
      if (bad) own[0].value(90, 2) = HUGE_VAL, own[2].value(120, 3) = -HUGE_VAL;
      Results found = run<Entry>(softmax(mask), s, own),
              wanted = run<Entry>(softmax(limpid::mask_matrix(kept)), s, own);
      for (Results* r : {&found, &wanted})
        for (auto& [field, x] : *r)
          for (Index i = 0; i < x.size(); ++i)
            if (std::isnan(x.data()[i])) x.data()[i] = 1e3;
      close(found, wanted);
    }
  });
}
