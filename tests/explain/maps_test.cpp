// limpid: explanations from maps handed over against those that stream, their gradients against central differences,
// and those by gradients of the input.
// SPDX-License-Identifier: MIT
#include <deque>
#include <limpid/check/gradient.hpp>
#include <limpid/explain/input_gradients.hpp>
#include <limpid/explain/maps.hpp>
#include <limpid/explain/relevance.hpp>
#include <limpid/explain/relevance_matrices.hpp>
#include <limpid/explain/views.hpp>
#include <limpid/op/softmax.hpp>
#include <limpid/op/twicing.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

namespace {

using limpid::Correction, limpid::CorrectionBy, limpid::CorrectionOrder, limpid::CrossRule, limpid::Fuse,
    limpid::HeadMaps, limpid::Index, limpid::MapRolloutOptions, limpid::Mat, limpid::Part, limpid::qkv,
    limpid::RelevanceMatrices, limpid::RolloutMethod, limpid::View;
using suite::distance, suite::product, suite::product_nt;
using M = Mat<double>;

M random(Index rows, Index cols, std::uint64_t seed, double size = 1) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols, -size, size);
}

constexpr Part parts[] = {Part::pos, Part::neg, Part::abs, Part::signed_};

/// Every way of correcting.
template <class F>
void for_corrections(F&& f) {
  for (const Part part : parts)
    for (const CorrectionBy by : {CorrectionBy::map, CorrectionBy::score})
      for (const CorrectionOrder order : {CorrectionOrder::part_mean, CorrectionOrder::mean_part})
        f(Correction{part, by, order});
}

/// An attention of two items, four heads over two of keys, and its maps and their gradients, an item each.
template <class Op>
struct Attention {
  static constexpr Index batch = 2, heads = 4, groups = 2, width = 3;
  Op op;
  Index n, m;
  M q, k, v, dout;
  limpid::Saved<Op, double> saved;

  Attention(Op op_, Index n_, Index m_, std::uint64_t seed)
      : op(op_),
        n(n_),
        m(m_),
        q(random(batch * n, heads * width, seed, 2)),
        k(random(batch * m, groups * width, seed + 1, 2)),
        v(random(batch * m, groups * width, seed + 2)),
        dout(random(batch * n, heads * width, seed + 3)) {
    M out(batch * n, heads * width);
    limpid::forward(op, in(), out, {.batch = batch, .heads = heads, .kv_heads = groups, .saved = &saved});
  }
  limpid::Inputs<Op, double> in() const { return qkv(q, k, v); }
  M maps(Index item) {
    M all(heads * n, m);
    for (Index h = 0; h < heads; ++h)
      limpid::map_block(op, in(), saved, 0, 0, all.middleRows(h * n, n), {.head = h, .item = item});
    return all;
  }
  M gradients(Index item) const {
    M all(heads * n, m);
    for (Index h = 0; h < heads; ++h) {
      const M d = dout.block(item * n, h * width, n, width), own = v.block(item * m, h / 2 * width, m, width);
      all.middleRows(h * n, n) = product_nt<double>(d, own);
    }
    return all;
  }
};

template <class Op>
void check_rows(const Op& op, Index n, Index m) {
  Attention<Op> a(op, n, m, 7);
  const auto in = a.in();
  for (Index item = 0; item < a.batch; ++item) {
    const M maps = a.maps(item), gradients = a.gradients(item);
    for_corrections([&](const Correction& how) {
      const M wanted = limpid::corrected_map<double>({maps, gradients, a.heads}, how);
      M rows(n > 2 ? 2 : n, m), all(n, m), column(n, 3), row(2, m);
      limpid::corrected_rows(a.op, in, a.saved, a.dout, n - rows.rows(), rows, how, {.item = item});
      CHECK(distance(rows, M(wanted.bottomRows(rows.rows()))) < 1e-14);
      const auto products = limpid::corrected_products(a.op, in, a.saved, a.dout, how, {.item = item});
      const auto dense = limpid::corrected_products<double>({maps, gradients, a.heads}, how);
      const M x = random(m, 3, 11), y = random(2, n, 12);
      products.right(x, column), products.left(y, row);
      CHECK(distance(column, product(wanted, x)) < 1e-13);
      CHECK(distance(row, product(y, wanted)) < 1e-13);
      M again(n, 3);
      dense.right(x, again);
      CHECK(distance(again, column) < 1e-13);
    });
  }
}

TEST_CASE("corrected rows and products: those of the maps, for every item, grouped keys, windows and signs") {
  check_rows(limpid::softmax(), 37, 41);
  check_rows(limpid::softmax(limpid::causal()), 35, 35);
  check_rows(limpid::twicing(), 9, 9);
  check_rows(limpid::softmax(), 1, 1);
}

TEST_CASE("corrected rows by the backward pass: the part before the mean over heads") {
  Attention<decltype(limpid::softmax())> a(limpid::softmax(), 6, 5, 3);
  for (const Part part : parts) {
    limpid::Relevance<double> relevance({a.n, a.m}, part, a.batch);
    for (Index i = 0; i < a.n; ++i) {
      relevance.start(i, 0);
      limpid::backward(a.op, a.in(), a.saved, a.dout, {}, relevance.ask(0, 1));
      relevance.stage();
      for (Index item = 0; item < a.batch; ++item) {
        M row(1, a.m);
        limpid::corrected_rows(a.op, a.in(), a.saved, a.dout, i, row, {.part = part}, {.item = item});
        CHECK(distance(row, M(relevance.of(1).row(item))) < 1e-14);
      }
    }
  }
}

template <class Op>
void check_views(const Op& op, Index n, Index m) {
  Attention<Op> a(op, n, m, 5);
  M out(a.batch * n, a.heads * a.width);
  limpid::forward(op, a.in(), out, {.batch = a.batch, .heads = a.heads, .kv_heads = a.groups});
  const M importance = limpid::head_importance(out, a.dout, a.heads, a.batch);
  for (Index item = 0; item < a.batch; ++item) {
    const M maps = a.maps(item), gradients = a.gradients(item);
    for (Index h = 0; h < a.heads; ++h) {
      const M map = maps.middleRows(h * n, n), product = map.cwiseProduct(M(gradients.middleRows(h * n, n)));
      const limpid::HeadCall call{.head = h, .item = item};
      CHECK(distance(limpid::column_mass(op, a.in(), a.saved, call), M(map.colwise().sum())) < 1e-13);
      CHECK(std::abs(importance(item, h) - product.sum()) < 1e-12);
      const Index k = std::min<Index>(4, m);
      const auto top = limpid::top_keys(op, a.in(), a.saved, k, call);
      for (Index i = 0; i < n; ++i)
        for (Index r = 0; r < k; ++r) {
          const double weight = map(i, top.keys(i, r));
          CHECK(std::abs(weight - top.weights(i, r)) < 1e-15);
          Index above = 0;  // as many keys have more as stand before it
          for (Index j = 0; j < m; ++j) above += map(i, j) > weight;
          CHECK(above <= r);
          if (r > 0) CHECK(top.weights(i, r) <= top.weights(i, r - 1));
        }
      M block(1, m - m / 2), abs(1, m - m / 2);
      limpid::relevance_block(op, a.in(), a.saved, a.dout, n - 1, m / 2, block, Part::signed_, call);
      limpid::relevance_block(op, a.in(), a.saved, a.dout, n - 1, m / 2, abs, Part::abs, call);
      CHECK(distance(block, M(product.block(n - 1, m / 2, 1, m - m / 2))) < 1e-14);
      CHECK(distance(abs, M(block.cwiseAbs())) == 0);
    }
  }
}

TEST_CASE("views of a head: its largest weights, its column sums, A o dA, and what it matters") {
  check_views(limpid::softmax(), 37, 41);
  check_views(limpid::twicing(), 9, 9);
  check_views(limpid::softmax(limpid::causal()), 3, 3);
  Attention<decltype(limpid::softmax())> a(limpid::softmax(), 3, 5, 1);
  CHECK_THROWS_WITH(limpid::top_keys(a.op, a.in(), a.saved, 6), "softmax: top 6 keys, wanted from 1 to 5");
  CHECK_THROWS_WITH(limpid::top_keys(a.op, a.in(), a.saved, 0), "softmax: top 0 keys, wanted from 1 to 5");
  CHECK_THROWS_WITH(limpid::head_importance(a.dout, a.dout, 5, 2),
                    "head_importance: out is 6 x 12 and dout 6 x 12, wanted one shape of 2 items and 5 heads");
  const M kept = a.dout;
  const auto over = [&](auto&& block) {
    CHECK_THROWS_WITH(limpid::gradient_block(a.op, a.in(), a.saved, a.dout, 0, 0, block),
                      Catch::Contains("softmax: out shares memory with "));
    CHECK_THROWS_WITH(limpid::relevance_block(a.op, a.in(), a.saved, a.dout, 0, 0, block),
                      Catch::Contains("softmax: out shares memory with "));
    CHECK_THROWS_WITH(limpid::corrected_rows(a.op, a.in(), a.saved, a.dout, 0, block),
                      Catch::Contains("softmax: out shares memory with "));
  };
  over(a.dout.topLeftCorner(2, 5)), over(a.v.topLeftCorner(2, 5));
  CHECK(a.dout == kept);
}

TEST_CASE("corrected rows: what stands at a masked key shows nowhere, not even NaN and infinity") {
  const Index n = 4;
  M q = random(n, 3, 1), k = random(n, 3, 2), v = random(n, 3, 3), dout = random(n, 3, 4), out(n, 3);
  const auto op = limpid::softmax(limpid::mask([](const limpid::At& a) { return a.k != 1; }));
  for_corrections([&](const Correction& correction) {
    const auto rows_with = [&](double there) {
      M own_k = k, own_v = v, rows(n, n);
      own_k.row(1).setConstant(there), own_v.row(1).setConstant(there);
      limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
      limpid::forward(op, qkv(q, own_k, own_v), out, {.saved = &saved});
      limpid::corrected_rows(op, qkv(q, own_k, own_v), saved, dout, 0, rows, correction);
      return rows;
    };
    const M wanted = rows_with(0.5);
    for (const double there : {std::nan(""), std::numeric_limits<double>::infinity(), 1e308})
      CHECK(rows_with(there) == wanted);
  });
}

/// A stack of layers of maps and gradients.
struct Layers {
  static constexpr Index count = 3, heads = 2, n = 5;
  std::vector<M> a, g;
  explicit Layers(std::uint64_t seed) {
    for (Index l = 0; l < count; ++l) {
      a.push_back(random(heads * n, n, seed + 2 * std::uint64_t(l)).cwiseAbs());
      for (Index i = 0; i < heads * n; ++i) a.back().row(i) /= a.back().row(i).sum();
      g.push_back(random(heads * n, n, seed + 1 + 2 * std::uint64_t(l)));
    }
  }
  std::vector<HeadMaps<double>> views() const {
    std::vector<HeadMaps<double>> out;
    for (std::size_t l = 0; l < a.size(); ++l) out.push_back({a[l], g[l], heads});
    return out;
  }
};

TEST_CASE("map rollout: gradients are those of central differences, whatever is fused, divided and discarded") {
  std::vector<MapRolloutOptions> all;
  for (const Fuse fuse : {Fuse::mean, Fuse::max, Fuse::min}) all.push_back({.residual = 0.3, .fuse = fuse});
  all.push_back({.normalise = false});
  all.push_back({.start = 1, .discard = 0.4});
  all.push_back({.method = RolloutMethod::gradient_rollout});
  all.push_back({.method = RolloutMethod::gradient_rollout, .normalise = true, .start = 1});
  for (const MapRolloutOptions& o : all) {
    Layers x(5);
    const M dc = random(x.n, x.n, 1);
    const auto scalar = [&] { return (limpid::map_rollout(x.views(), o).array() * dc.array()).sum(); };
    std::vector<M> da = x.a, dg = x.g;
    std::vector<limpid::HeadMapGrads<double>> grads;
    for (std::size_t l = 0; l < da.size(); ++l) grads.push_back({da[l], dg[l]});
    limpid::map_rollout_backward(x.views(), o, dc, grads);
    const bool by_gradient = o.method == RolloutMethod::gradient_rollout;
    for (std::size_t l = 0; l < da.size(); ++l)
      for (auto* const both : {&x.a[l], &x.g[l]}) {
        const M& found = both == &x.a[l] ? da[l] : dg[l];
        if (both == &x.g[l] && !by_gradient) continue;
        for (Index e = 0; e < both->size(); e += 3) {
          double& entry = both->data()[e];
          const double kept = entry, h = 1e-6;
          entry = kept + h;
          const double up = scalar();
          entry = kept - h;
          const double down = scalar();
          entry = kept;
          CHECK(std::abs((up - down) / (2 * h) - found.data()[e]) < 1e-8);
        }
      }
  }
}

TEST_CASE("map rollout: rows are Rollout's, for every way of fusing, divided or not") {
  using Op = decltype(limpid::softmax(limpid::causal()));
  std::deque<Attention<Op>> layers;
  for (std::uint64_t l = 0; l < 3; ++l) layers.emplace_back(limpid::softmax(limpid::causal()), 9, 9, 10 * l);
  for (const Fuse fuse : {Fuse::mean, Fuse::max, Fuse::min})
    for (const bool normalise : {true, false})
      for (Index item = 0; item < 2; ++item) {
        std::vector<M> maps;
        std::vector<HeadMaps<double>> views;
        for (auto& layer : layers) maps.push_back(layer.maps(item));
        for (const M& map : maps) views.push_back({map, {}, 4});
        limpid::Rollout<double> rollout({.residual = 0.4, .fuse = fuse, .normalise = normalise});
        const M all = M::Identity(9, 9);
        rollout.start(all);
        for (std::size_t l = layers.size(); l-- > 0;)
          rollout.layer(layers[l].op, layers[l].in(), layers[l].saved, {.item = item});
        const M c = limpid::map_rollout(views, {.residual = 0.4, .fuse = fuse, .normalise = normalise});
        CHECK(distance(c, rollout.rows()) < 1e-12);
      }
}

TEST_CASE("map rollout: the smallest entries are discarded and rows divided by their own sums") {
  M a(2, 2);
  a << 0.9, 0.1, 0.4, 0.6;
  const std::vector<HeadMaps<double>> one{{a, {}, 1}};
  M wanted(2, 2);
  wanted << 1, 0, 0, 1;  // 0.1 and 0.4 go, and what is left of a row is all of it
  CHECK(distance(limpid::map_rollout(one, {.discard = 0.5}), wanted) == 0);
  wanted << 0.95 / 0.95, 0, 0.2, 0.8;
  CHECK(distance(limpid::map_rollout(one, {.discard = 0.25}), wanted) < 1e-15);
  a.setZero();
  CHECK(distance(limpid::map_rollout(one, {.residual = 0}), M(M::Identity(2, 2))) == 0);
  M hundred(10, 10);
  for (Index i = 0; i < 100; ++i) hundred.data()[i] = 1 + double(i);
  const std::vector<HeadMaps<double>> all{{hundred, {}, 1}};
  for (const Index share : {7, 29, 57, 58}) {
    const M left = limpid::map_rollout(all, {.residual = 0, .normalise = false, .discard = double(share) / 100});
    CHECK((left.array() == 0).count() == share);
  }
}

TEST_CASE("relevance matrices: rows are Relevance's, from a token an item, a mixture, and less what it starts with") {
  const std::vector<Index> tokens{4, 6};
  using Op = decltype(limpid::softmax());
  std::vector<std::vector<std::pair<Index, Index>>> stages{
      {{0, 0}, {1, 1}}, {{0, 1}, {1, 0}}, {{0, 0}}, {{1, 1}, {0, 1}}};
  std::deque<Attention<Op>> attentions;
  for (const auto& stage : stages)
    for (const auto& [to, from] : stage)
      attentions.emplace_back(limpid::softmax(), tokens[std::size_t(to)], tokens[std::size_t(from)],
                              10 * attentions.size());
  for (const Part part : parts) {
    std::vector<RelevanceMatrices<double>> r(2, RelevanceMatrices<double>(tokens));
    std::size_t at = 0;
    for (const auto& stage : stages) {
      for (const auto& [to, from] : stage) {
        for (Index item = 0; item < 2; ++item) {
          M abar(tokens[std::size_t(to)], tokens[std::size_t(from)]);
          Attention<Op>& a = attentions[at];
          limpid::corrected_rows(a.op, a.in(), a.saved, a.dout, 0, abar, {.part = part}, {.item = item});
          r[std::size_t(item)].attention(to, from, abar);
        }
        ++at;
      }
      for (auto& matrices : r) matrices.stage();
    }
    limpid::Relevance<double> relevance(tokens, part, 2);
    const auto run = [&] {
      std::size_t last = attentions.size();
      for (std::size_t s = stages.size(); s-- > 0;) {
        last -= stages[s].size();
        for (std::size_t i = 0; i < stages[s].size(); ++i) {
          Attention<Op>& a = attentions[last + i];
          limpid::backward(a.op, a.in(), a.saved, a.dout, {}, relevance.ask(stages[s][i].first, stages[s][i].second));
        }
        relevance.stage();
      }
    };
    relevance.start(std::vector<Index>{1, 3}, 0);
    run();
    for (Index c = 0; c < 2; ++c)
      for (Index item = 0; item < 2; ++item) {
        const Index token = item == 0 ? 1 : 3;
        CHECK(distance(M(relevance.of(c).row(item)), M(r[std::size_t(item)].of(0, c).row(token))) < 1e-12);
        CHECK(distance(M(relevance.without_start(c).row(item)),
                       M(r[std::size_t(item)].without_identity(0, c).row(token))) < 1e-12);
      }
    const M mean = M::Constant(1, 6, 1.0 / 6);
    relevance.start(mean, 1);
    run();
    for (Index c = 0; c < 2; ++c)
      for (Index item = 0; item < 2; ++item)
        CHECK(distance(M(relevance.of(c).row(item)), product(mean, r[std::size_t(item)].of(1, c))) < 1e-12);
  }
  limpid::Relevance<double> two({4}, Part::pos, 2);
  CHECK_THROWS_WITH(two.start(std::vector<Index>{1}), "relevance: 1 tokens to explain, wanted 2, one an item");
  CHECK_THROWS_WITH(two.start(std::vector<Index>{1, 4}), "relevance: token is 4, wanted it in [0, 4)");
  const M wrong = M::Zero(1, 3), nan = M::Constant(1, 4, std::nan(""));
  CHECK_THROWS_WITH(two.start(wrong), "relevance: rows to start with are 1 x 3, wanted 2 x 4 or one row");
  CHECK_THROWS_WITH(two.start(nan), Catch::Contains("relevance: rows is nan in row 0, column 0"));
}

TEST_CASE("relevance: float keeps the digits of what is small beside the 1 of the identity") {
  Attention<decltype(limpid::softmax())> a(limpid::softmax(), 5, 5, 3);
  limpid::Saved<decltype(a.op), float> saved;
  const Mat<float> q = a.q.cast<float>(), k = a.k.cast<float>(), v = a.v.cast<float>(),
                   d = (1e-7 * a.dout).cast<float>();
  Mat<float> out(q.rows(), q.cols());
  limpid::forward(a.op, qkv(q, k, v), out, {.batch = 2, .heads = 4, .kv_heads = 2, .saved = &saved});
  limpid::Relevance<float> relevance({5}, Part::pos, 2);
  relevance.start(2);
  limpid::backward(a.op, qkv(q, k, v), saved, d, {}, relevance.ask());
  relevance.stage();
  M row(1, 5);
  limpid::corrected_rows(a.op, a.in(), a.saved, a.dout, 2, row);
  const M found = 1e7 * relevance.without_start().row(0).cast<double>();
  CHECK(distance(found, row) < 1e-6);
  CHECK(relevance.of()(0, 2) == 1 + relevance.without_start()(0, 2));
}

TEST_CASE("an encoder-decoder's row from products: that of the matrices, with each of the rules") {
  const Index n = 4, m = 7;
  std::deque<M> a, g;
  const auto layer = [&](Index rows, Index cols, std::uint64_t seed) -> HeadMaps<double> {
    a.push_back(random(2 * rows, cols, seed).cwiseAbs()), g.push_back(random(2 * rows, cols, seed + 1));
    if (seed == 20) g.back().setConstant(-1), a.back().setConstant(0.1);  // rows without relevance: 0 / 0
    return {a.back(), g.back(), 2};
  };
  std::vector<limpid::MapProducts<double>> e, d, x;
  for (std::uint64_t l = 0; l < 2; ++l) e.push_back(limpid::corrected_products(layer(m, m, 100 + 2 * l)));
  for (std::uint64_t l = 0; l < 3; ++l) {
    d.push_back(limpid::corrected_products(layer(n, n, 20 + 2 * l)));
    x.push_back(limpid::corrected_products(layer(n, m, 60 + 2 * l)));
  }
  for (const bool normalise : {true, false})
    for (const bool own : {true, false}) {
      const limpid::RelevanceMatrixOptions rules{CrossRule::chefer, normalise, own};
      RelevanceMatrices<double> r({n, m}, rules);
      const auto add = [&](Index to, Index from, const limpid::MapProducts<double>& map) {
        M abar(map.n, map.m);
        const M one = M::Identity(map.n, map.n);
        map.left(one, abar), r.attention(to, from, abar), r.stage();
      };
      for (const auto& map : e) add(1, 1, map);
      for (std::size_t l = 0; l < d.size(); ++l) add(0, 0, d[l]), add(0, 1, x[l]);
      for (Index row = 0; row < n; ++row) {
        const auto found = limpid::encoder_decoder_relevance(e, d, x, row, rules);
        CHECK(distance(found.inputs, M(r.of(0, 1).row(row))) < 1e-12);
        CHECK(distance(found.queries, M(r.without_identity(0, 0).row(row))) < 1e-12);
      }
    }
  CHECK_THROWS_WITH(limpid::encoder_decoder_relevance(e, d, x, 4),
                    "encoder_decoder_relevance: row is 4, wanted it in [0, 4)");
  CHECK_THROWS_WITH(limpid::encoder_decoder_relevance(e, x, d, 0),
                    "encoder_decoder_relevance: an encoder's map 7 x 7, wanted 4 x 4");
  CHECK_THROWS_WITH(limpid::encoder_decoder_relevance(e, {}, x, 0),
                    Catch::Contains("0 self- and 3 cross-attentions, wanted one of each"));
  x.back().right = {};
  CHECK_THROWS_WITH(limpid::encoder_decoder_relevance(e, d, x, 0),
                    Catch::Contains("a cross-attention's map has no products, wanted those from both sides"));
}

TEST_CASE("maps handed over that do not fit are refused by name") {
  const M a = M::Constant(6, 3, 0.1), g = M::Constant(5, 3, 1), nan = M::Constant(6, 3, std::nan(""));
  CHECK_THROWS_WITH(limpid::corrected_map<double>({a, g, 2}),
                    "corrected_map: gradients of maps are 5 x 3, wanted 6 x 3 as the maps are");
  CHECK_THROWS_WITH(limpid::fused_map<double>({a, {}, 4}),
                    "fused_map: maps of 6 rows and 4 heads, wanted the rows of one head below those of the other");
  CHECK_THROWS_WITH(limpid::fused_map<double>({nan, {}, 2}), Catch::Contains("fused_map: a is nan in row 0, column 0"));
  const std::vector<HeadMaps<double>> none, square{{a, {}, 2}}, flat{{a, {}, 3}};
  CHECK_THROWS_WITH(limpid::map_rollout(none), "map_rollout: no layers, wanted at least one");
  CHECK_THROWS_WITH(limpid::map_rollout(flat), "map_rollout: a map 2 x 3, wanted 3 x 3");
  CHECK_THROWS_WITH(limpid::map_rollout(square, {.start = 2}), "map_rollout: start is 2, wanted it in [0, 1]");
  CHECK_THROWS_WITH(limpid::map_rollout(square, {.discard = 1}), "map_rollout: discard is 1, wanted it in [0, 1)");
  CHECK_THROWS_WITH(limpid::map_rollout(square, {.residual = 2}), "map_rollout: residual is 2, wanted it in [0, 1]");
  CHECK_THROWS_WITH(limpid::map_rollout(square, {.method = RolloutMethod::gradient_rollout}),
                    "map_rollout: gradients of maps are 0 x 0, wanted 6 x 3 as the maps are");
  CHECK_THROWS_WITH(limpid::gradcam<double>({a, a, 2}, 3, 1),
                    "gradcam: row is 3 and skip 1 of a map 3 x 3, wanted both inside");
  CHECK_THROWS_WITH(limpid::gradcam<double>({a, a, 2}, 0, 3),
                    "gradcam: row is 0 and skip 3 of a map 3 x 3, wanted both inside");
  RelevanceMatrices<double> r({3, 2});
  CHECK_THROWS_WITH(r.attention(0, 1, a),
                    "relevance matrices: abar is 6 x 3, wanted 3 x 2, the tokens of both streams");
  CHECK_THROWS_WITH(r.attention(0, 2, a), "relevance matrices: stream is 2, wanted it in [0, 2)");
  CHECK_THROWS_WITH(RelevanceMatrices<double>({}), "relevance matrices: no streams, wanted at least one");
}

TEST_CASE("gradients of maps that do not fit, or lie over what is read or written, are refused before one is written") {
  const M kept = random(6, 3, 5), ones = M::Ones(6, 3);
  M a = kept, g = random(6, 3, 6), wrong(5, 3), da = ones, dg = ones, dc = random(3, 3, 7), dcam = random(1, 2, 8);
  const std::vector<HeadMaps<double>> two{{a, g, 2}, {a, g, 2}};
  using Grads = limpid::HeadMapGrads<double>;
  for (const RolloutMethod method : {RolloutMethod::rollout, RolloutMethod::gradient_rollout}) {
    const auto backward = [&](const std::vector<Grads>& grads) {
      limpid::map_rollout_backward<double>(two, {.method = method}, dc, grads);
    };
    CHECK_THROWS_WITH(backward({{da, dg}, {wrong, {}}}), "map_rollout: a gradient is 5 x 3, wanted 6 x 3");
    CHECK_THROWS_WITH(backward({{da, dg}, {{}, g}}),
                      "map_rollout: gradient of g shares memory with g, wanted memory of its own");
    CHECK_THROWS_WITH(backward({{da, dg}, {a, {}}}),
                      "map_rollout: gradient of a shares memory with a, wanted memory of its own");
    CHECK_THROWS_WITH(backward({{da, {}}, {{}, da}}),
                      "map_rollout: gradient of g shares memory with gradient of a, wanted memory of its own");
  }
  M whole(6, 3);
  CHECK_THROWS_WITH(limpid::map_rollout_backward<double>({two[0]}, {}, whole.topRows(3), {{whole, {}}}),
                    "map_rollout: gradient of a shares memory with dc, wanted memory of its own");
  const auto of_cam = [&](const Grads& grad) { limpid::gradcam_backward<double>(two[0], 0, 1, dcam, grad); };
  CHECK_THROWS_WITH(of_cam({da, wrong}), "gradcam: a gradient is 5 x 3, wanted 6 x 3");
  CHECK_THROWS_WITH(of_cam({a, dg}), "gradcam: gradient of a shares memory with a, wanted memory of its own");
  CHECK_THROWS_WITH(of_cam({da, da}),
                    "gradcam: gradient of g shares memory with gradient of a, wanted memory of its own");
  CHECK((da == ones && dg == ones && a == kept));
}

/// y = sum tanh(x w) u, and its gradient.
struct Model {
  M w = random(3, 4, 1), u = random(4, 1, 2);
  Index calls = 0;
  double operator()(View<double> x, limpid::MutView<double> dx) {
    ++calls;
    double y = 0;
    for (Index i = 0; i < x.rows; ++i)
      for (Index c = 0; c < 4; ++c) {
        double sum = 0;
        for (Index j = 0; j < 3; ++j) sum += x(i, j) * w(j, c);
        y += std::tanh(sum) * u(c, 0);
        for (Index j = 0; j < 3; ++j) dx(i, j) += u(c, 0) * (1 - std::tanh(sum) * std::tanh(sum)) * w(j, c);
      }
    return y;
  }
};

TEST_CASE("integrated gradients: complete as steps grow, exact for a linear model, the gap told") {
  const M x = random(5, 3, 3, 2), from = random(5, 3, 4);
  double last = 1;
  for (const Index steps : {1, 8, 64}) {
    Model model;
    const auto found = limpid::integrated_gradients(model, x, steps, from);
    CHECK(model.calls == steps + 2);
    CHECK(std::abs(found.entries.sum() - (found.score - found.baseline) - found.gap) < 1e-13);
    CHECK(std::abs(found.tokens.sum() - found.entries.sum()) < 1e-13);
    CHECK(std::abs(found.gap) < last);
    last = std::abs(found.gap) / 4;
  }
  const M w = random(5, 3, 5);
  const auto linear = [&](View<double> at, limpid::MutView<double> dx) {
    limpid::detail::copy<double>(w, dx);
    return (at.map().array() * w.array()).sum();
  };
  const auto once = limpid::integrated_gradients(linear, x, 1);
  CHECK(std::abs(once.gap) < 1e-14);
  CHECK(once.baseline == 0);
  CHECK(distance(once.entries, M(x.array() * w.array())) < 1e-15);
  CHECK(distance(limpid::gradient_times_input(linear, x).entries, once.entries) < 1e-15);
  CHECK_THROWS_WITH(limpid::integrated_gradients(linear, x, 0), "integrated_gradients: steps are 0, wanted at least 1");
  CHECK_THROWS_WITH(limpid::integrated_gradients(linear, x, 2, w.topRows(4)),
                    "integrated_gradients: the baseline is 4 x 3, wanted 5 x 3 as x");
  const auto nan = [&](View<double>, limpid::MutView<double>) { return std::nan(""); };
  CHECK_THROWS_WITH(limpid::gradient_times_input(nan, x),
                    Catch::Contains("gradient_times_input: the model's score is nan"));
}

TEST_CASE("integrated gradients within a share of the change: steps where the slope is, and no more than allowed") {
  const M x = random(5, 3, 3, 2);
  Index calls = 0;
  const auto model = [&](View<double> at, limpid::MutView<double> dx) {  // all of the change is near the baseline
    ++calls;
    for (Index i = 0; i < 15; ++i) dx(i / 3, i % 3) = 300 * (1 - std::pow(std::tanh(300 * at(i / 3, i % 3)), 2));
    return (300 * at.map().array()).tanh().sum();
  };
  const M exact = (300 * x.array()).tanh();  // as a token sees its own slope alone
  for (const double missing : {1e-2, 1e-5}) {
    calls = 0;
    const auto found =
        limpid::integrated_gradients_within(model, x, {.missing = missing, .pieces = missing, .most = 2001});
    CHECK(found.steps == calls);
    CHECK(found.steps < 500);
    CHECK(found.score == Approx(exact.sum()));
    CHECK(found.baseline == 0);
    CHECK(std::abs(found.gap) <= missing * std::abs(found.score));
    CHECK(std::abs(found.entries.sum() - found.score - found.gap) < 1e-12);
    CHECK(std::abs(found.tokens.sum() - found.entries.sum()) < 1e-12);
    CHECK(distance(found.entries, exact) < 3 * missing * std::abs(found.score));
    // as many of equal length leave more
    CHECK(std::abs(limpid::integrated_gradients(model, x, found.steps).gap) > 10 * std::abs(found.gap));
  }
  const auto whole = limpid::integrated_gradients_within(model, x, {.missing = 1e-5, .pieces = 1, .most = 2001});
  CHECK(std::abs(whole.gap) <= 1e-5 * std::abs(whole.score));
  for (const Index most : {9, 10, 33}) {
    const auto few = limpid::integrated_gradients_within(model, x, {.missing = 0, .pieces = 0, .most = most});
    CHECK(few.steps == most - (most + 1) % 2);
    CHECK(few.gap != 0);
  }
  const auto cubic = [&](View<double> at, limpid::MutView<double> dx) {  // Simpson's rule is exact, so four pieces do
    for (Index i = 0; i < 15; ++i) dx(i / 3, i % 3) = 4 * std::pow(at(i / 3, i % 3), 3);
    return at.map().array().pow(4).sum();
  };
  const auto four = limpid::integrated_gradients_within(cubic, x, {.missing = 1e-12, .pieces = 1e-12});
  CHECK(four.steps == 9);
  CHECK(distance(four.entries, M(x.array().pow(4))) < 1e-12 * x.array().pow(4).maxCoeff());
  const auto ask = [&](double missing, double pieces, Index most) {
    return limpid::integrated_gradients_within(cubic, x, {.missing = missing, .pieces = pieces, .most = most});
  };
  CHECK_THROWS_WITH(ask(0.1, 0.1, 8), "integrated_gradients_within: most is 8, wanted at least 9");
  CHECK_THROWS_WITH(ask(-1, 0.1, 9), Catch::Contains("integrated_gradients_within: missing is -1, wanted a finite"));
  CHECK_THROWS_WITH(ask(0.1, std::nan(""), 9), Catch::Contains("pieces is nan"));
  const M far = M::Constant(5, 3, 1e308), back = -far;
  CHECK_THROWS_WITH(limpid::integrated_gradients_within(cubic, far, {}, back),
                    "integrated_gradients_within: x is 1e+308 and the baseline -1e+308 at (0, 0), wanted a difference "
                    "that does not overflow");
  CHECK_THROWS_WITH(limpid::integrated_gradients_within(cubic, x, {}, x.topRows(2)),
                    "integrated_gradients_within: the baseline is 2 x 3, wanted 5 x 3 as x");
}

TEST_CASE("a model of several inputs at once: the bits of one at a time, and no gradient of what needs none") {
  const M x = random(5, 3, 3, 2), from = random(5, 3, 4);
  Model model;
  Index calls = 0, without = 0, most = 0;
  const auto several = [&](View<double> at, limpid::MutView<double> dx, limpid::MutView<double> scores) {
    REQUIRE(at.rows == 5 * scores.cols);
    ++calls, without += dx.given() ? 0 : 1, most = std::max(most, scores.cols);
    M unwanted = M::Zero(5, 3);
    for (Index i = 0; i < scores.cols; ++i)
      scores(0, i) =
          model(at.block(5 * i, 0, 5, 3), dx.given() ? dx.block(5 * i, 0, 5, 3) : limpid::MutView<double>(unwanted));
  };
  const auto one = limpid::integrated_gradients(model, x, 10, from);
  for (const Index at_once : {1, 3, 10, 99}) {
    calls = without = most = 0;
    const auto found = limpid::integrated_gradients(several, x, 10, from, at_once);
    CHECK(calls == (10 + at_once - 1) / at_once + 1);
    CHECK(without == 1);  // the two ends
    CHECK(most == std::max<Index>(2, std::min<Index>(10, at_once)));
    CHECK(found.entries == one.entries);
    CHECK(found.tokens == one.tokens);
    CHECK(found.score == one.score);
    CHECK(found.baseline == one.baseline);
    CHECK(found.gap == one.gap);
    CHECK(limpid::smooth_grad(several, x, {.samples = 7, .at_once = at_once}).entries ==
          limpid::smooth_grad(model, x, {.samples = 7}).entries);
  }
  CHECK(limpid::gradient_times_input(several, x).entries == limpid::gradient_times_input(model, x).entries);
  CHECK_THROWS_WITH(limpid::integrated_gradients(several, x, 10, from, 0),
                    "integrated_gradients: at_once is 0, wanted at least 1");
  CHECK_THROWS_WITH(limpid::smooth_grad(model, x, {.at_once = -2}), "smooth_grad: at_once is -2, wanted at least 1");
  const auto nan = [&](View<double>, limpid::MutView<double>, limpid::MutView<double> scores) {
    scores.fill(1), scores(0, scores.cols - 1) = std::nan("");
  };
  CHECK_THROWS_WITH(limpid::integrated_gradients(nan, x, 3), "integrated_gradients: the model's score is nan");
}

TEST_CASE("SmoothGrad: the gradient itself without noise, the same numbers for a seed, their squares where asked") {
  const M x = random(5, 3, 3, 2);
  Model model;
  M gradient = M::Zero(5, 3);
  model(x, gradient);
  CHECK(distance(limpid::smooth_grad(model, x, {.samples = 3, .sigma = 0}).entries, gradient) < 1e-15);
  CHECK(distance(limpid::smooth_grad(model, x, {.samples = 2, .sigma = 0, .squared = true}).entries,
                 M(gradient.array().square())) < 1e-15);
  const auto a = limpid::smooth_grad(model, x, {.samples = 400, .sigma = 0.01}),
             b = limpid::smooth_grad(model, x, {.samples = 400, .sigma = 0.01}),
             c = limpid::smooth_grad(model, x, {.samples = 400, .sigma = 0.01, .seed = 2});
  CHECK(a.entries == b.entries);
  CHECK(a.entries != c.entries);
  CHECK(distance(a.entries, gradient) < 0.01);
  CHECK_THROWS_WITH(limpid::smooth_grad(model, x, {.samples = 0}), "smooth_grad: samples are 0, wanted at least 1");
  CHECK_THROWS_WITH(limpid::smooth_grad(model, x, {.sigma = -1}), Catch::Contains("smooth_grad: sigma is -1"));
}

}  // namespace
