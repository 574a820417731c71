// limpid: decoding over keys and values in pages, beside the same keys in one array: every bit the same.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <limpid/call/decode.hpp>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/op/bilateral.hpp>
#include <limpid/op/differential.hpp>
#include <limpid/op/differential_gated.hpp>
#include <limpid/op/mssa.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/pid.hpp>
#include <limpid/op/sigmoid.hpp>
#include <limpid/op/softmax.hpp>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::PagePool, limpid::Pages, limpid::View;
using suite::error_of;

/// pages x rows x heads x d; pages x heads x rows x d; that with K beside V; the first with room behind each page of K.
enum class Layout { rows_first, heads_first, beside, padded };

/// Keys and values of items of these lengths, in one array each and in pages that stand in any order. What is in no key
/// is NaN.
template <class S>
struct Store {
  Index kv_heads, rows, width, v_width;
  std::vector<Mat<S>> k, v;  // an item each
  Mat<S> k_pool, v_pool;
  Mat<Index> table, lengths;
  Pages<S> pages;

  Store(const std::vector<Index>& keys, Index kv_heads_, Index rows_, Index d, Index dv, Layout layout)
      : kv_heads(kv_heads_), rows(rows_), width(d), v_width(dv) {
    suite::Random random(static_cast<std::uint64_t>(rows + d));
    const auto items = static_cast<Index>(keys.size());
    Index most = 0, all = 0;
    for (const Index m : keys) most = std::max(most, (m + rows - 1) / rows), all += (m + rows - 1) / rows;
    const Index count = all + 2;
    table = Mat<Index>::Constant(items, most + 1, -7), lengths.resize(1, items);
    const Index page_k = rows * kv_heads * d, page_v = rows * kv_heads * dv;
    const bool beside = layout == Layout::beside, padded = layout == Layout::padded;
    const bool rows_first = padded || layout == Layout::rows_first;
    const S nan = std::numeric_limits<S>::quiet_NaN();
    k_pool = Mat<S>::Constant(count, beside ? page_k + page_v : page_k + (padded ? 16 : 0), nan);
    v_pool = Mat<S>::Constant(beside ? 0 : count, page_v, nan);
    pages.k = {k_pool.data(), count, rows, d, k_pool.cols(), rows_first ? d : rows * d, rows_first ? kv_heads * d : d};
    pages.v = {beside ? k_pool.data() + page_k : v_pool.data(),
               count,
               rows,
               dv,
               beside ? k_pool.cols() : page_v,
               rows_first ? dv : rows * dv,
               rows_first ? kv_heads * dv : dv};
    std::vector<Index> order;  // of the pages
    for (Index p = 0; p < count; ++p) order.push_back(p);
    for (Index p = count; p-- > 1;)
      std::swap(order[static_cast<std::size_t>(p)], order[static_cast<std::size_t>(random.below(p + 1))]);
    std::size_t used = 0;
    for (Index b = 0; b < items; ++b) {
      const Index m = lengths(0, b) = keys[static_cast<std::size_t>(b)];
      k.push_back(suite::random_matrix<S>(random, m, kv_heads * d, -2, 2));
      v.push_back(suite::random_matrix<S>(random, m, kv_heads * dv));
      for (Index j = 0; j < m; ++j) {
        if (j % rows == 0) table(b, j / rows) = order[used++];
        const Index page = table(b, j / rows);
        const auto put = [&](const PagePool<S>& pool, const Mat<S>& from) {
          for (Index g = 0; g < kv_heads; ++g)
            for (Index c = 0; c < pool.width; ++c)
              const_cast<S*>(
                  pool.data)[page * pool.page_stride + g * pool.head_stride + j % rows * pool.row_stride + c] =
                  from(j, g * pool.width + c);
        };
        put(pages.k, k.back()), put(pages.v, v.back());
      }
    }
    pages.table = View<Index>(table), pages.lengths = View<Index>(lengths);
  }
  /// One number of key j of item 0, or of its value.
  void put(bool key, Index j, Index c, S number) {
    const PagePool<S>& pool = key ? pages.k : pages.v;
    (key ? k : v)[0](j, c) = number;
    const_cast<S*>(pool.data)[table(0, j / rows) * pool.page_stride + j % rows * pool.row_stride + c] = number;
  }
};

template <class S>
bool same_bits(const Mat<S>& a, const Mat<S>& b) {  // or NaN in both
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         ((a.array() == b.array()) || (a.array().isNaN() && b.array().isNaN())).all();
}

/// Every item beside one call of its own over keys in one array. give(in): fields of queries and parameters besides.
template <class S, class Op, class Give>
void same_as_one_array(const Op& op, const Store<S>& store, Index n, Index heads, Index q_width, bool asks,
                       limpid::ExecutorRef executor, const Give& give) {
  using In = limpid::Inputs<Op, S>;
  suite::Random random(5);
  const Index batch = store.lengths.cols(), width = heads * store.v_width;
  const Mat<S> q = suite::random_matrix<S>(random, batch * n, heads * q_width, -2, 2);
  In in;
  in.q = View<S>(q), give(in);
  Mat<S> out = Mat<S>::Constant(batch * n, width, S(9)), lse, map;
  constexpr bool has_lse = limpid::detail::has_lse<Op>;
  const Index item = batch - 1, head = heads - 1;
  limpid::decode(op, in, store.pages, out,
                 {.batch = batch,
                  .heads = heads,
                  .kv_heads = store.kv_heads,
                  .executor = executor,
                  .lse = asks && has_lse ? &lse : nullptr,
                  .map = asks ? &map : nullptr,
                  .head = head,
                  .item = item});
  for (Index b = 0; b < batch; ++b) {
    const auto i = static_cast<std::size_t>(b);
    In own = in;
    In::visit(
        [&](const char*, limpid::Role role, View<S>& of) {
          if (role == limpid::Role::query && of.given()) of = of.block(b * n, 0, n, of.cols);
        },
        own);
    own.k = View<S>(store.k[i]), own.v = View<S>(store.v[i]);
    Mat<S> want(n, width), want_lse, want_map;
    limpid::forward(op, own, want,
                    {.heads = heads,
                     .kv_heads = store.kv_heads,
                     .lse = asks && has_lse ? &want_lse : nullptr,
                     .map = asks ? &want_map : nullptr,
                     .head = head});
    INFO(op.name << ", item " << b << " of " << store.lengths(0, b) << " keys, pages of " << store.rows << ", n " << n
                 << (asks ? ", asked" : ""));
    CHECK(same_bits<S>(out.middleRows(b * n, n), want));
    if (asks && has_lse) CHECK(same_bits<S>(lse.middleRows(b * heads, heads), want_lse));
    if (asks && b == item) CHECK(same_bits(map, want_map));
  }
}
template <class S, class Op>
void same_as_one_array(const Op& op, const Store<S>& store, Index n, Index heads, Index q_width, bool asks,
                       limpid::ExecutorRef executor = {}) {
  same_as_one_array(op, store, n, heads, q_width, asks, executor, [](auto&) {});
}

}  // namespace

TEMPLATE_TEST_CASE("Plain attention over pages has the bits of keys in one array, whatever the size of pages", "",
                   float, double) {
  using S = TestType;
  limpid::ThreadPool pool(3);
  for (const Layout layout : {Layout::rows_first, Layout::heads_first, Layout::beside})
    for (const Index rows : {1, 3, 16, 100, 1024, 5000}) {
      const Store<S> store({2304, 300, 0, 1, 1041}, 2, rows, 32, 48, layout);
      for (const Index n : {1, 2, 3, 8, 9})
        for (const bool asks : {false, true})
          same_as_one_array(limpid::softmax(), store, n, 4, 32, asks, asks ? limpid::ExecutorRef() : pool);
    }
}

TEMPLATE_TEST_CASE("Every operator over keys that are not its queries reads pages", "", float, double) {
  using S = TestType;
  limpid::ThreadPool pool(3);
  suite::Random random(9);
  const Mat<S> slopes = suite::random_matrix<S>(random, 4, 1, 0, 0.1), logits = suite::random_matrix<S>(random, 1, 4);
  for (const Index rows : {16, 129}) {
    const Store<S> store({700, 23, 300}, 2, rows, 16, 24, rows == 16 ? Layout::beside : Layout::heads_first);
    for (const Index n : {1, 2, 5}) {
      const auto check = [&](const auto& op, Index width) {
        same_as_one_array(op, store, n, 4, width, false, pool);
        same_as_one_array(op, store, n, 4, width, true);
      };
      check(limpid::softmax(limpid::causal()), 16);
      check(limpid::softmax(limpid::chain(limpid::alibi(slopes), limpid::window(200, 0))), 16);
      check(limpid::softmax(limpid::sink(logits)), 16);
      check(limpid::sigmoid(), 16);
      check(limpid::nlm(), 16);
      check(limpid::bilateral({.content = limpid::ContentKernel::dist, .spatial = limpid::SpatialKernel::none}), 16);
      check(limpid::differential(), 16);
      check(limpid::differential(limpid::causal()), 32);
      check(limpid::differential_gated(), 16);
      check(limpid::pid(), 16);
    }
  }
}

TEMPLATE_TEST_CASE("Two maps and PID over pages have the bits of keys in one array, whatever the size of pages", "",
                   float, double) {
  using S = TestType;
  limpid::ThreadPool pool(3);
  suite::Random random(12);
  const Index heads = 4;
  for (const Layout layout : {Layout::rows_first, Layout::beside})
    for (const Index rows : {1, 16, 5000}) {
      const Store<S> store({1300, 300, 9, 1041}, 2, rows, 64, 48, layout);
      for (const Index n : {1, 2, 3, 9})
        for (const bool asks : {false, true}) {
          const Mat<S> state = suite::random_matrix<S>(random, 4 * n, heads * 48),
                       other = suite::random_matrix<S>(random, 4 * n, heads * 48),
                       logits = suite::random_matrix<S>(random, 4 * n, heads, -3, 3),
                       gamma = suite::random_matrix<S>(random, heads, 48);
          const auto check = [&](const auto& op, Index q_width, const auto& give) {
            same_as_one_array(op, store, n, heads, q_width, asks, asks ? limpid::ExecutorRef() : pool, give);
          };
          const auto nothing = [](auto&) {};
          const auto of_queries = [&](auto& in) { in.z = View<S>(logits), in.gamma = View<S>(gamma); };
          check(limpid::differential(), 64, nothing);
          check(limpid::differential(limpid::window(200, 0)), 128, nothing);  // one key for both branches
          check(limpid::differential_gated(), 64, of_queries);
          check(limpid::pid(), 64, nothing);
          check(limpid::pid(limpid::causal()), 64,
                [&](auto& in) { in.reference = View<S>(state), in.v_prev = View<S>(other); });
        }
    }
}

TEMPLATE_TEST_CASE("A gate that is not finite shows over pages where a row keeps a key, and not where it keeps none",
                   "", float, double) {
  using S = TestType;
  const Store<S> store({300, 300}, 1, 16, 64, 48, Layout::padded);
  Mat<S> logits = Mat<S>::Ones(4, 2);
  logits(0, 0) = logits(1, 1) = logits(3, 0) = std::numeric_limits<S>::quiet_NaN();
  const auto some = limpid::mask([](const limpid::At& a) { return a.q != 1 || a.batch == 1; });
  for (const bool asks : {false, true}) {
    same_as_one_array(limpid::differential_gated(), store, 2, 2, 64, asks, {},
                      [&](auto& in) { in.z = View<S>(logits); });
    Mat<S> q = Mat<S>::Ones(4, 128), out(4, 96), lse;
    limpid::DifferentialGatedArgs<View<S>> in;
    in.q = q, in.z = logits;
    limpid::decode(limpid::differential_gated(some), in, store.pages, out,
                   {.batch = 2, .heads = 2, .kv_heads = 1, .lse = asks ? &lse : nullptr});
    CHECK(!out.row(0).leftCols(48).array().isFinite().any());
    CHECK((out.row(1).array() == 0).all());
    CHECK(out.row(0).rightCols(48).allFinite());
    CHECK(out.row(2).allFinite());
    CHECK(!out.row(3).leftCols(48).array().isFinite().any());
    CHECK(out.row(3).rightCols(48).allFinite());
  }
}

TEMPLATE_TEST_CASE("MSSA takes pages of one pool for its cache", "", float, double) {
  using S = TestType;
  Store<S> store({700, 23, 300}, 2, 16, 32, 32, Layout::heads_first);
  suite::Random random(3);
  const Index n = 3, heads = 2;
  const Mat<S> y = suite::random_matrix<S>(random, 3 * n, heads * 32, -2, 2);
  const auto check = [&](const auto& op) {
    limpid::MssaArgs<View<S>> in;
    in.y = y;
    Pages<S> pages = store.pages;
    Mat<S> out = Mat<S>::Constant(3 * n, heads * 32, S(9)), lse;
    CHECK(error_of([&] { limpid::decode(op, in, pages, out, {.batch = 3, .heads = heads}); }) ==
          "mssa: k and v of the pages are two pools, wanted one, as keys are the values");
    CHECK((out.array() == S(9)).all());
    pages.v = pages.k;
    limpid::decode(op, in, pages, out, {.batch = 3, .heads = heads, .lse = &lse});
    for (Index b = 0; b < 3; ++b) {
      const Mat<S> own = y.middleRows(b * n, n);
      Mat<S> want(n, heads * 32), want_lse;
      in.y = own, in.cache = store.k[static_cast<std::size_t>(b)];
      limpid::forward(op, in, want, {.heads = heads, .lse = &want_lse});
      CHECK(same_bits<S>(out.middleRows(b * n, n), want));
      CHECK(same_bits<S>(lse.middleRows(b * heads, heads), want_lse));
    }
    in.y = y, in.cache = y;
    CHECK(error_of([&] { limpid::decode(op, in, pages, out, {.batch = 3, .heads = heads}); }) ==
          "mssa: cache is given beside pages, wanted one of them");
  };
  check(limpid::mssa());
  check(limpid::mssa(limpid::causal(), {.phi = limpid::Phi::threshold, .tau = 0.01}));
}

TEMPLATE_TEST_CASE("What is not finite in a page shows where it counts, and not where it is masked", "", float,
                   double) {
  using S = TestType;
  constexpr S inf = std::numeric_limits<S>::infinity(), nan = std::numeric_limits<S>::quiet_NaN();
  const auto third = limpid::mask([](const limpid::At& a) { return a.k % 3 != 0; });
  for (const bool key : {false, true})
    for (const Index j : {299, 150})  // masked, or not, for the last of two queries
      for (const S number : {inf, nan}) {
        Store<S> store({400}, 1, 16, 16, 16, Layout::beside);
        store.put(key, j, 3, number);
        INFO((key ? "key " : "value ") << j << " is " << number);
        same_as_one_array(limpid::softmax(), store, 1, 2, 16, false);
        same_as_one_array(limpid::softmax(limpid::window(200, 0)), store, 2, 2, 16, false);
        same_as_one_array(limpid::softmax(third), store, 3, 2, 16, false);
        Store<S> wide({400}, 1, 16, 64, 16, Layout::padded);
        wide.put(key, j, 3, number);
        same_as_one_array(limpid::differential(), wide, 1, 2, 64, false);
        same_as_one_array(limpid::differential(limpid::window(200, 0)), wide, 2, 2, 64, false);
        same_as_one_array(limpid::differential_gated(third), wide, 3, 2, 64, false);
      }
}

TEST_CASE("Pages that are read where they lie take no memory for all keys") {
  const Store<float> store({8192}, 1, 16, 32, 32, Layout::rows_first);
  const Mat<float> q = Mat<float>::Ones(1, 32);
  Mat<float> out(1, 32);
  limpid::Workspace workspace;
  const auto check = [&](const auto& op) {
    limpid::Inputs<std::remove_cvref_t<decltype(op)>, float> in;
    in.q = q;
    limpid::decode(op, in, store.pages, out, {.workspace = &workspace});
    INFO(op.name);
    if (limpid::detail::Native<float>::lanes > 1) CHECK(workspace.bytes() < 8192 * 32 * sizeof(float) / 4);
  };
  check(limpid::softmax());
  check(limpid::differential());
  check(limpid::differential_gated(limpid::causal()));
  check(limpid::pid());
  same_as_one_array(limpid::softmax(), Store<float>({600}, 1, 16, 32, 32, Layout::padded), 1, 2, 32, false);
}

TEST_CASE("Positions beside keys are those of the first keys of every item") {
  const Store<double> store({40, 7}, 1, 8, 4, 5, Layout::rows_first);
  suite::Random random(4);
  const Mat<double> q = suite::random_matrix<double>(random, 4, 4), pq = suite::random_matrix<double>(random, 2, 2);
  const Mat<double> pk = suite::random_matrix<double>(random, 40, 2);
  Mat<double> out(4, 5);
  limpid::NlmArgs<View<double>> in{.q = q, .pq = pq, .pk = pk};
  limpid::decode(limpid::nlm(), in, store.pages, out, {.batch = 2});
  for (Index b = 0; b < 2; ++b) {
    const auto i = static_cast<std::size_t>(b);
    const Mat<double> own_pk = pk.topRows(store.k[i].rows()), own_q = q.middleRows(2 * b, 2);
    const limpid::NlmArgs<View<double>> own{.q = own_q, .k = store.k[i], .v = store.v[i], .pq = pq, .pk = own_pk};
    CHECK(out.middleRows(2 * b, 2) == limpid::forward(limpid::nlm(), own));
  }
}

TEST_CASE("Pages that do not fit are refused before anything is written") {
  using M = Mat<double>;
  const auto op = limpid::softmax();
  Store<double> store({9, 4}, 2, 4, 3, 5, Layout::heads_first);
  M q = M::Ones(2, 6), out = M::Constant(2, 10, 7), lse = M::Constant(1, 1, 3);
  const auto refused = [&](const std::string& text, const Pages<double>& pages, auto change) {
    limpid::QKV<View<double>> in{.q = q};
    limpid::Call<std::remove_cv_t<decltype(op)>, double> call{.batch = 2, .heads = 2, .lse = &lse};
    change(in, call);
    CHECK(error_of([&] { limpid::decode(op, in, pages, out, call); }) == "softmax: " + text);
    CHECK((out.array() == 7).all());
    CHECK((lse.size() == 1 && lse(0, 0) == 3));
  };
  const auto as_it_is = [](auto&, auto&) {};
  const auto with = [&](auto change) {
    Pages<double> pages = store.pages;
    change(pages);
    return pages;
  };
  const auto number = [&](Index b, Index p, Index value, const std::string& text) {
    const Index kept = store.table(b, p);
    store.table(b, p) = value;
    refused(text, store.pages, as_it_is);
    store.table(b, p) = kept;
  };
  number(1, 0, 6, "page 0 of item 1 is number 6, wanted 0 to 5, as the pool has 6");
  number(0, 2, -1, "page 2 of item 0 is number -1, wanted 0 to 5, as the pool has 6");
  const auto keys = [&](Index b, Index value, const std::string& text) {
    const Index kept = store.lengths(0, b);
    store.lengths(0, b) = value;
    refused(text, store.pages, as_it_is);
    store.lengths(0, b) = kept;
  };
  keys(0, 17, "item 0 of the pages has 17 keys, wanted 0 to 16, 4 pages of 4 rows");
  keys(1, -1, "item 1 of the pages has -1 keys, wanted 0 to 16, 4 pages of 4 rows");
  keys(1, 5, "page 1 of item 1 is number -7, wanted 0 to 5, as the pool has 6");
  keys(1, std::numeric_limits<Index>::max(),
       "item 1 of the pages has 9223372036854775807 keys, wanted 0 to 16, 4 pages of 4 rows");
  Mat<Index> three = Mat<Index>::Constant(3, 2, 0), square = Mat<Index>::Constant(2, 2, 1);
  refused("the table of pages has 3 rows, wanted one for each of 2 items",
          with([&](auto& p) { p.table = View<Index>(three); }), as_it_is);
  refused("lengths of the pages is 2 x 2, wanted a number for each of 2 items",
          with([&](auto& p) { p.lengths = View<Index>(square); }), as_it_is);
  refused("k of the pages has rows 0, wanted at least 1", with([](auto& p) { p.k.rows = 0; }), as_it_is);
  refused("v of the pages has pages -1, wanted 0 or more", with([](auto& p) { p.v.pages = -1; }), as_it_is);
  refused("v of the pages has 6 pages of 5 rows, wanted 6 of 4 as k", with([](auto& p) { p.v.rows = 5; }), as_it_is);
  refused("v of the pages has 7 pages of 4 rows, wanted 6 of 4 as k", with([](auto& p) { p.v.pages = 7; }), as_it_is);
  refused("k of the pages has width -2, wanted 0 or more", with([](auto& p) { p.k.width = -2; }), as_it_is);
  refused("k of the pages has row_stride 2, wanted at least its width 3", with([](auto& p) { p.k.row_stride = 2; }),
          as_it_is);
  refused("v of the pages has head_stride -5, wanted at least its width 5", with([](auto& p) { p.v.head_stride = -5; }),
          as_it_is);
  refused("k of the pages has page_stride 1099511627776, wanted at most " + std::to_string((Index(1) << 40) / 6),
          with([](auto& p) { p.k.page_stride = Index(1) << 40; }), as_it_is);
  refused("q has width 3 a head and k has 2, wanted the same (2 heads, 2 key heads)",
          with([](auto& p) { p.k.width = 2; }), as_it_is);
  M k = M::Ones(2, 6);
  refused("k is given beside pages, wanted one of them", store.pages, [&](auto& in, auto&) { in.k = k; });
  {
    limpid::BilateralArgs<View<double>> in{.q = q, .a = q, .b = k};
    CHECK(error_of([&] { limpid::decode(limpid::bilateral(), in, store.pages, out, {.batch = 2, .heads = 2}); }) ==
          "bilateral: b is given, rows of keys that pages do not hold, wanted none");
  }
  limpid::Saved<std::remove_cv_t<decltype(op)>, double> saved;
  refused("saved is given with pages, wanted none: backward is for keys in one array", store.pages,
          [&](auto&, auto& call) { call.saved = &saved; });
  refused("lse and map are one matrix, wanted two", store.pages, [&](auto&, auto& call) { call.map = &lse; });
  M map;
  refused("map was asked of head 0 of item 2, there are 2 heads and 2 items", store.pages,
          [&](auto&, auto& call) { call.map = &map, call.item = 2; });
  {  // an item that does not fit its operator, of several
    const Store<double> few({9, 1}, 1, 4, 3, 5, Layout::rows_first);
    M two = M::Ones(4, 3), values = M::Ones(4, 5), own = M::Constant(4, 5, 7);
    limpid::PidArgs<limpid::QKV<View<double>>, View<double>> in{.q = two, .reference = values};
    CHECK(error_of([&] { limpid::decode(limpid::pid(), in, few.pages, own, {.batch = 2}); }).find("m 1") !=
          std::string::npos);
    CHECK((own.array() == 7).all());
  }
  // a result over the pool
  const Index last = store.k_pool.size() - 20;
  limpid::MutView<double> over(store.k_pool.data() + last, 2, 10, 10);
  const M before = store.k_pool;
  CHECK(error_of([&] {
          limpid::decode(op, limpid::QKV<View<double>>{.q = q}, store.pages, over, {.batch = 2, .heads = 2});
        }) == "softmax: out shares memory with k of the pages, wanted memory of its own");
  CHECK(((store.k_pool.array() == before.array()) || store.k_pool.array().isNaN()).all());
}
