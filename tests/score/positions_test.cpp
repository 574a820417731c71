// limpid: tests of positions: rotary, sinusoidal, ALiBi, relative tables, score decomposition.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <limpid/check/gradient.hpp>
#include <limpid/limpid.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::qkv, limpid::rope, limpid::RopeLayout, limpid::softmax;
using suite::distance;
using M = Mat<double>;

M make(std::uint64_t seed, Index rows, Index cols) {
  suite::Random random(seed);
  return suite::random_matrix<double>(random, rows, cols, -1.5, 1.5);
}
M turned(const M& x, const limpid::RopeRotation& call) {
  M out(x.rows(), x.cols());
  limpid::rope_rotate(x, out, call);
  return out;
}
/// The definition, one entry after the other.
M turned_by_hand(const M& x, RopeLayout layout, Index r, double base, double first) {
  M out = x;
  for (Index i = 0; i < x.rows(); ++i)
    for (Index l = 0; l < r / 2; ++l) {
      const double t =
          (first + static_cast<double>(i)) * std::pow(base, -2.0 * static_cast<double>(l) / static_cast<double>(r));
      const Index a = layout == RopeLayout::half ? l : 2 * l, b = layout == RopeLayout::half ? l + r / 2 : 2 * l + 1;
      out(i, a) = std::cos(t) * x(i, a) - std::sin(t) * x(i, b);
      out(i, b) = std::sin(t) * x(i, a) + std::cos(t) * x(i, b);
    }
  return out;
}

/// An operator on q, k, v: everything it can be asked.
template <class Op>
struct Run {
  M out, dq, dk, dv, map, lse, left, right;
  Run(const Op& op, const M& q, const M& k, const M& v, const M& dout) : out(q.rows(), v.cols()), dq(q), dk(k), dv(v) {
    limpid::Saved<Op, double> saved;
    limpid::forward(op, qkv(q, k, v), out, {.saved = &saved, .lse = &lse});
    limpid::backward(op, qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
    map.resize(3, 4), left.resize(1, k.rows()), right.resize(q.rows(), v.cols());
    limpid::map_block(op, qkv(q, k, v), saved, 2, 1, map);
    const M ones = M::Ones(1, q.rows());
    limpid::map_left(op, qkv(q, k, v), saved, ones, left);
    limpid::map_right(op, qkv(q, k, v), saved, v, right);
  }
};
template <class Op>
Run<Op> run(const Op& op, const M& q, const M& k, const M& v, const M& dout) {
  return {op, q, k, v, dout};
}

}  // namespace

TEST_CASE("rope turns every plane by position times frequency, in both layouts, past the blocks it works in") {
  const M x = make(1, 150, 22);
  for (RopeLayout layout : {RopeLayout::interleaved, RopeLayout::half})
    for (Index rotary : {0, 2, 10, 22}) {
      const M out = turned(x, {.layout = layout, .base = 100, .rotary = rotary, .first = 7.5});
      CHECK(distance(out, turned_by_hand(x, layout, rotary == 0 ? 22 : rotary, 100, 7.5)) < 1e-13);
    }
}

TEST_CASE("rope keeps norms, is the identity at position 0, turns back, and works in place") {
  const M x = make(2, 70, 8), out = turned(x, {.first = 3});
  CHECK(distance(out.rowwise().norm(), x.rowwise().norm()) < 1e-14);
  CHECK(distance(turned(x, {}).row(0), x.row(0)) == 0);
  CHECK(distance(turned(out, {.first = 3, .inverse = true}), x) < 1e-14);
  M self = x;
  limpid::rope_rotate(self, self, {.first = 3});
  CHECK(self == out);
  CHECK_THROWS_WITH(limpid::rope_rotate(self.leftCols(4), self.middleCols(2, 4)),
                    "rope_rotate: out shares memory with x, wanted x itself or memory of its own");
}

TEST_CASE("the half layout is the interleaved one with columns permuted to 0, r/2, 1, r/2 + 1 ...") {
  const M x = make(3, 9, 8);
  Eigen::PermutationMatrix<Eigen::Dynamic> p(8);
  for (int l = 0; l < 4; ++l) p.indices()[l] = 2 * l, p.indices()[4 + l] = 2 * l + 1;  // half's column -> interleaved's
  const M permuted = x * p.inverse();
  const M interleaved = turned(permuted, {});
  CHECK(distance(interleaved * p, turned(x, {.layout = RopeLayout::half})) < 1e-15);
}

TEST_CASE("scores of turned rows depend on offsets alone: one shift of all positions changes nothing") {
  const M q = make(4, 6, 8), k = make(5, 9, 8), v = make(6, 9, 3), dout = make(7, 6, 3);
  const auto near = run(rope(softmax(limpid::causal())), q, k, v, dout);  // queries stand at 3 .. 8
  const auto far = run(rope(softmax(limpid::causal()), {.q_offset = 1003, .k_offset = 1000}), q, k, v, dout);
  CHECK(distance(near.out, far.out) < 1e-11);
  CHECK(distance(near.dq, far.dq) < 1e-11);
  CHECK(distance(near.dk, far.dk) < 1e-11);
  CHECK(distance(near.out, run(rope(softmax(limpid::causal()), {.q_offset = 0}), q, k, v, dout).out) > 1e-3);
  const M same = M::Constant(9, 8, 0.5), scores = suite::product_nt(turned(same, {}), turned(same, {}));
  for (Index i = 1; i < 9; ++i) CHECK(scores(i, i - 1) == Approx(scores(1, 0)));
}

TEST_CASE("rope round an operator is the operator on turned rows, with gradients turned back, whatever it is asked") {
  const Index n = 6;
  const M q = make(8, n, 6), k = make(9, n, 6), v = make(10, n, 3), dout = make(11, n, 3);
  const limpid::RopeOptions options{.layout = RopeLayout::half, .base = 50, .rotary = 4};
  const limpid::RopeRotation call{.layout = RopeLayout::half, .base = 50, .rotary = 4};
  const auto compare = [&](const auto& op) {
    const auto got = run(rope(op, options), q, k, v, dout);
    const auto want = run(op, turned(q, call), turned(k, call), v, dout);
    CHECK(got.out == want.out);
    CHECK(got.map == want.map);
    CHECK(got.lse == want.lse);
    CHECK(got.left == want.left);
    CHECK(got.right == want.right);
    CHECK(got.dv == want.dv);
    CHECK(distance(turned(got.dq, call), want.dq) < 1e-14);
    CHECK(distance(turned(got.dk, call), want.dk) < 1e-14);
  };
  compare(softmax(limpid::causal()));
  compare(limpid::nlm());
  compare(limpid::bilateral({.spatial = limpid::SpatialKernel::none}));
  compare(limpid::twicing(softmax(limpid::causal())));
  compare(limpid::twicing(limpid::nlm(), {.order = 2}));
}

TEST_CASE("gradients under rope agree with differences, over heads, items and shared keys, and accumulate") {
  const M q = make(12, 8, 8), k = make(13, 12, 4), v = make(14, 12, 2), dout = make(15, 8, 4);
  const auto op = rope(softmax(limpid::causal()), {.rotary = 2});
  const auto check = limpid::check_gradient(op, qkv(q, k, v), {.batch = 2, .heads = 2, .kv_heads = 1});
  INFO(check.text());
  CHECK(check.worst() < 1e-8);

  using Op = std::remove_const_t<decltype(op)>;
  limpid::Saved<Op, double> saved;
  M out(8, 4), dq(8, 8), dk(12, 4), dv(12, 2), entropy(4, 1), map;
  limpid::forward(op, qkv(q, k, v), out, {.batch = 2, .heads = 2, .kv_heads = 1, .saved = &saved, .map = &map});
  limpid::map_entropy(op, qkv(q, k, v), saved, entropy);
  CHECK(entropy(3, 0) == Approx(-(map.row(3).array() * map.row(3).array().log()).sum()));
  limpid::backward(op, qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
  M twice_q = dq, twice_k = dk, twice_v = dv;
  limpid::backward(op, qkv(q, k, v), saved, dout, limpid::grads(twice_q, twice_k, twice_v), {.accumulate = true});
  CHECK(distance(twice_q, 2 * dq) < 1e-14);
  CHECK(distance(twice_k, 2 * dk) < 1e-14);
  CHECK(distance(twice_v, 2 * dv) < 1e-14);
}

TEST_CASE("a packed array is turned head by head, item by item") {
  const M x = make(16, 10, 12);  // two items of 5 rows, three heads of width 4
  const M all = turned(x, {.batch = 2, .heads = 3, .first = 2});
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h) {
      const M one = x.block(5 * b, 4 * h, 5, 4);
      CHECK(distance(all.block(5 * b, 4 * h, 5, 4), turned(one, {.first = 2})) == 0);
    }
}

TEST_CASE("the last query stands at the last key") {
  const M q = make(17, 7, 4), k = make(18, 7, 4), v = make(19, 7, 2);
  const M all = limpid::forward(rope(softmax(limpid::causal())), qkv(q, k, v)), last = q.bottomRows(2);
  CHECK(distance(limpid::forward(rope(softmax(limpid::causal())), qkv(last, k, v)), all.bottomRows(2)) < 1e-14);
}

TEST_CASE("both branches of differential attention are turned over their own width") {
  const M q = make(20, 5, 8), k = make(21, 5, 8), v = make(22, 5, 3);
  const auto op = limpid::differential({.norm = limpid::HeadNorm::none});
  const M q2 = turned(q, {.heads = 2}), k2 = turned(k, {.heads = 2});
  CHECK(limpid::forward(rope(op, {.width = 4}), qkv(q, k, v)) == limpid::forward(op, qkv(q2, k2, v)));
}

TEST_CASE("angles keep their digits in float at far positions") {
  const Mat<float> x = make(23, 3, 8).cast<float>();
  Mat<float> out(3, 8);
  limpid::rope_rotate(x, out, {.first = 123456});
  CHECK(distance(out.cast<double>(), turned_by_hand(x.cast<double>(), RopeLayout::interleaved, 8, 10000, 123456)) <
        3e-7);
}

TEST_CASE("an odd or too wide rotary is refused") {
  const M x = make(24, 4, 5);
  M out = x;
  CHECK_THROWS_WITH(limpid::rope_rotate(x, out),
                    "rope_rotate: rotary is 5, wanted an even number, at most the width 5");
  CHECK_THROWS_WITH(limpid::forward(rope(softmax(), {.rotary = 6}), qkv(x, x, x)),
                    "softmax: rotary is 6, wanted an even number, at most the width 5");
  CHECK_THROWS_WITH(limpid::forward(rope(softmax(), {.width = 2}), qkv(x, x, x)),
                    "softmax: rope's width is 2, wanted a divisor of the head's 5");
  CHECK_THROWS_WITH(limpid::rope_rotate(x, out, {.base = -1, .rotary = 2}),
                    "rope_rotate: base is -1, wanted a positive, finite number");
}

TEST_CASE("rope by given frequencies and positions turns plane l by the sum of p f over axes, in runs and without") {
  // runs that go past a block of 64, stand still, go back, and jump; the last axis alone goes up by ones in them
  M one(150, 1), two(150, 2);
  for (Index i = 0; i < 150; ++i) {
    one(i, 0) = i < 90 ? static_cast<double>(i) : (i < 100 ? 0.0 : static_cast<double>(i * i % 37) - 3.5);
    two(i, 0) = static_cast<double>(i / 70), two(i, 1) = static_cast<double>(i % 70);
  }
  const M x = make(30, 150, 22), f1 = make(31, 1, 5), f2 = make(32, 2, 5);
  for (RopeLayout layout : {RopeLayout::interleaved, RopeLayout::half})
    for (const auto& [positions, f] : {std::pair(one, f1), std::pair(two, f2)}) {
      M wanted = x;
      const M angle = suite::product(positions, f);
      for (Index i = 0; i < 150; ++i)
        for (Index l = 0; l < 5; ++l) {
          const Index a = layout == RopeLayout::half ? l : 2 * l, b = layout == RopeLayout::half ? l + 5 : 2 * l + 1;
          const double c = 1.25 * std::cos(angle(i, l)), s = 1.25 * std::sin(angle(i, l));
          wanted(i, a) = c * x(i, a) - s * x(i, b), wanted(i, b) = s * x(i, a) + c * x(i, b);
        }
      const limpid::RopeRotation call{
          .layout = layout, .rotary = 10, .frequencies = f, .amplitude = 1.25, .positions = positions};
      CHECK(distance(turned(x, call), wanted) < 1e-13);
      limpid::RopeRotation back = call;
      back.inverse = true;
      CHECK(distance(turned(wanted, back).leftCols(10), 1.25 * 1.25 * x.leftCols(10)) < 1e-13);
    }
  // what offsets say, positions say with the same bits, and the frequencies of base
  const M from = M::NullaryExpr(150, 1, [](Index i, Index) { return static_cast<double>(i) + 7; });
  const limpid::RopeFrequencies plain = limpid::rope_frequencies(22, 100);
  CHECK(turned(x, {.base = 100, .positions = from}) == turned(x, {.base = 100, .first = 7}));
  CHECK(turned(x, {.first = 7, .frequencies = plain.values}) == turned(x, {.base = 100, .first = 7}));
}

TEST_CASE("frequencies scaled for longer texts are those of the reference implementation") {
  using limpid::RopeScaling;
  // transformers 4.57, ROPE_INIT_FUNCTIONS, in float: head_dim 32, rope_theta 10000 and 500000
  struct Wanted {
    double base;
    RopeScaling scaling;
    double amplitude;
    std::vector<double> values;
  };
  const std::vector<Wanted> all{
      {10000.0,
       {.kind = RopeScaling::Kind::linear, .factor = 4},
       1.0,
       {0.25, 0.14058533, 0.079056941, 0.044456985, 0.025, 0.014058532, 0.0079056947, 0.0044456986, 0.0024999999,
        0.0014058533, 0.00079056947, 0.00044456986, 0.00025000001, 0.00014058533, 7.9056947e-05, 4.4456985e-05}},
      {500000.0,
       {.kind = RopeScaling::Kind::llama3, .factor = 8, .original = 8192},
       1.0,
       {1, 0.44036663, 0.19392276, 0.085397102, 0.037606031, 0.016560441, 0.0072926651, 0.0032114461, 0.00052484602,
        7.7846555e-05, 3.4281024e-05, 1.5096218e-05, 6.6478697e-06, 2.9274997e-06, 1.2891732e-06, 5.6770881e-07}},
      {10000.0,
       {.kind = RopeScaling::Kind::yarn, .factor = 16, .original = 4096},
       1.2772588722239782,
       {1, 0.56234133, 0.31622776, 0.17782794, 0.1, 0.056234129, 0.027387584, 0.013019547, 0.0059821424, 0.0026108704,
        0.0010446811, 0.00034930487, 6.2500003e-05, 3.5146331e-05, 1.9764237e-05, 1.1114246e-05}},
      {10000.0,
       {.kind = RopeScaling::Kind::yarn,
        .factor = 40,
        .original = 4096,
        .fast = 16,
        .slow = 2,
        .whole_planes = false,
        .mscale = 0.707,
        .mscale_all_dim = 1},
       0.9210423553163399,
       {1, 0.56234133, 0.31622776, 0.17782794, 0.1, 0.056234129, 0.031622779, 0.01509612, 0.0057901046, 0.0017382187,
        0.00012395246, 4.4456985e-05, 2.4999999e-05, 1.4058533e-05, 7.9056945e-06, 4.4456983e-06}},
  };
  for (const Wanted& one : all) {
    const limpid::RopeFrequencies f = limpid::rope_frequencies(32, one.base, one.scaling);
    CHECK(f.amplitude == Approx(one.amplitude).epsilon(1e-12));
    REQUIRE(f.values.cols() == static_cast<Index>(one.values.size()));
    for (Index l = 0; l < f.values.cols(); ++l)
      CHECK(f.values(0, l) == Approx(one.values[static_cast<std::size_t>(l)]).epsilon(1e-6));
  }
  const M axial = limpid::axial_frequencies(12, 3, 100);
  CHECK(axial == (M(3, 6) << 1, 0.1, 0, 0, 0, 0, 0, 0, 1, 0.1, 0, 0, 0, 0, 0, 0, 1, 0.1).finished());
  CHECK(limpid::axial_frequencies(8, 1) == limpid::rope_frequencies(8).values);
  RopeScaling none{.kind = RopeScaling::Kind::llama3, .factor = 8};
  CHECK_THROWS_WITH(limpid::rope_frequencies(8, 10000, none),
                    "rope_frequencies: original is 0, wanted the tokens that it was trained on");
  none.factor = 0.5;
  CHECK_THROWS_WITH(limpid::rope_frequencies(8, 10000, none),
                    "rope_frequencies: factor is 0.5, wanted a finite number, 1 or more");
  CHECK_THROWS_WITH(limpid::rope_frequencies(7), "rope_frequencies: rotary is 7, wanted an even number, 0 or more");
  CHECK_THROWS_WITH(limpid::axial_frequencies(10, 2),
                    "axial_frequencies: rotary is 10, wanted a multiple of 4, pairs of columns for each of 2 axes");
}

TEST_CASE("gradients under given positions agree with differences, for every operator and for items of their own") {
  const M q = make(40, 10, 16), k = make(41, 10, 8), v = make(42, 10, 4), frequencies = make(43, 2, 2);
  M own(10, 2), shared(5, 2);  // two items of five rows
  for (Index i = 0; i < 10; ++i) own(i, 0) = static_cast<double>(i * i % 5), own(i, 1) = static_cast<double>(i % 4);
  shared = own.topRows(5);
  const limpid::RopeOptions turn{.layout = RopeLayout::half,
                                 .frequencies = frequencies,
                                 .amplitude = 0.8,
                                 .q_positions = own,
                                 .k_positions = shared};
  limpid::RopeOptions options = turn;
  options.width = 4;
  const auto check = [&](const auto& op) {
    const auto found = limpid::check_gradient(rope(op, options), qkv(q, k, v), {.batch = 2, .heads = 2, .kv_heads = 1});
    INFO(found.text());
    CHECK(found.worst() < 1e-7);
  };
  check(softmax(limpid::causal()));
  check(limpid::sigmoid());
  check(limpid::nlm());
  check(limpid::bilateral({.spatial = limpid::SpatialKernel::none}));
  check(limpid::twicing(limpid::causal()));
  check(limpid::boosting());
  check(limpid::pid(limpid::causal()));
  check(limpid::differential({.norm = limpid::HeadNorm::none}));
  check(limpid::differential_gated());
  // every item is what it is alone
  const auto op = rope(softmax(limpid::causal()), options);
  M out(10, 8), alone(5, 8);
  limpid::forward(op, qkv(q, k, v), out, {.batch = 2, .heads = 2, .kv_heads = 1});
  for (Index b = 0; b < 2; ++b) {
    const M qb = q.middleRows(5 * b, 5), kb = k.middleRows(5 * b, 5), vb = v.middleRows(5 * b, 5);
    const M at = own.middleRows(5 * b, 5);
    limpid::RopeOptions its = options;
    its.q_positions = at;
    limpid::forward(rope(softmax(limpid::causal()), its), qkv(qb, kb, vb), alone, {.heads = 2, .kv_heads = 1});
    CHECK(alone == out.middleRows(5 * b, 5));
  }
  const Mat<float> qf = q.cast<float>(), kf = k.cast<float>(), vf = v.cast<float>();
  Mat<float> single(10, 8);
  limpid::forward(op, qkv(qf, kf, vf), single, {.batch = 2, .heads = 2, .kv_heads = 1});
  CHECK(distance(single.cast<double>(), out) < 1e-6);
}

TEST_CASE("padding on the left and sequences one after the other are what each is alone") {
  const M q = make(50, 9, 6), k = make(51, 9, 6), v = make(52, 9, 3);
  M padded = M::Zero(9, 1), packed(9, 1);
  for (Index i = 3; i < 9; ++i) padded(i, 0) = static_cast<double>(i - 3);
  const std::vector<Index> lengths{4, 5};
  for (Index i = 0; i < 9; ++i) packed(i, 0) = static_cast<double>(i < 4 ? i : i - 4);
  const auto part = [&](Index first, Index n) {
    const M qs = q.middleRows(first, n), ks = k.middleRows(first, n), vs = v.middleRows(first, n);
    return M(limpid::forward(rope(softmax(limpid::causal())), qkv(qs, ks, vs)));
  };
  const auto seen = limpid::mask([](limpid::At a) { return a.k >= 3; });
  const M left = limpid::forward(rope(softmax(limpid::causal() & seen), {.q_positions = padded, .k_positions = padded}),
                                 qkv(q, k, v));
  CHECK(distance(left.bottomRows(6), part(3, 6)) < 1e-14);
  const auto same = limpid::mask([](limpid::At a) { return (a.q < 4) == (a.k < 4); });
  const M both = limpid::forward(rope(softmax(limpid::causal() & same), {.q_positions = packed, .k_positions = packed}),
                                 qkv(q, k, v));
  CHECK(distance(both.topRows(4), part(0, 4)) < 1e-14);
  CHECK(distance(both.bottomRows(5), part(4, 5)) < 1e-14);
}

TEST_CASE("frequencies and positions that do not fit are refused") {
  const M x = make(60, 6, 4), f = M::Ones(1, 2), wide = M::Ones(1, 3), two = M::Ones(2, 2), p = M::Ones(6, 1);
  const M far = M::Constant(6, 1, 1e308), nan = M::Constant(6, 1, std::nan("")), short_p = M::Ones(4, 1);
  const auto said = [&](const limpid::RopeOptions& o) -> std::string {
    try {
      limpid::forward(rope(softmax(), o), qkv(x, x, x));
    } catch (const limpid::ShapeError& e) {
      return e.what();
    }
    return "";
  };
  CHECK(said({.frequencies = f, .q_positions = p}).empty());
  CHECK(said({.frequencies = wide}) ==
        "softmax: frequencies is 1 x 3, wanted 1 to 4 rows, an axis each, and 2 columns, a plane each");
  CHECK(said({.frequencies = two}) ==
        "softmax: q_positions is not given, wanted 2 columns, as frequencies have rows, an axis each");
  CHECK(
      said({.q_positions = short_p}) ==
      "softmax: q_positions is 4 x 1, wanted 6 rows, or batch times that, and 1 columns, as frequencies have rows, an "
      "axis each");
  CHECK(said({.k_positions = nan}) == "softmax: k_positions is nan in row 0, column 0, wanted finite numbers");
  CHECK(said({.frequencies = two.topRows(1), .amplitude = std::nan("")}) ==
        "softmax: amplitude is nan, wanted a finite number");
  const M fast = M::Constant(1, 2, 100);
  CHECK(said({.frequencies = fast, .k_positions = far}) ==
        "softmax: k_positions is 1e+308, wanted one whose angles do not overflow");
  CHECK(said({.q_offset = 1, .q_positions = p}) == "softmax: q_positions is given beside q_offset, wanted one of them");
  CHECK(said({.k_offset = 1, .k_positions = p}) == "softmax: k_positions is given beside k_offset, wanted one of them");
  M out = x, same = p;
  CHECK_THROWS_WITH(limpid::rope_rotate(x, out, {.first = 1, .positions = p}),
                    "rope_rotate: positions is given beside first, wanted one of them");
  // an operator's result may not lie over what it is turned by
  M table(6, 5);
  table.setOnes();
  CHECK_THROWS_WITH(
      limpid::forward(rope(softmax(), {.q_positions = table.leftCols(1)}), qkv(x, x, x), table.leftCols(4)),
      "softmax: out shares memory with q_positions, wanted memory of its own");
  CHECK_THROWS_WITH(limpid::rope_rotate(x, table.leftCols(4), {.positions = table.leftCols(1)}),
                    "rope_rotate: out shares memory with positions, wanted memory of its own");
}

TEST_CASE("products of sinusoidal encodings depend on offsets alone, and the layouts are permutations of one another") {
  const M pe = limpid::sinusoidal<double>(20, 12), products = suite::product_nt(pe, pe);
  CHECK(pe(0, 0) == 0);
  CHECK(pe(0, 1) == 1);
  CHECK(pe(3, 2) == Approx(std::sin(3 * std::pow(10000, -2.0 / 12))));
  for (Index i = 4; i < 20; ++i) CHECK(products(i, i - 4) == Approx(products(4, 0)));
  const M concat = limpid::sinusoidal<double>(20, 12, {.layout = limpid::SinusoidalLayout::concat});
  for (Index l = 0; l < 6; ++l) {
    CHECK(concat.col(l) == pe.col(2 * l));
    CHECK(concat.col(6 + l) == pe.col(2 * l + 1));
  }
  CHECK(limpid::sinusoidal<double>(3, 5, {.first = 17}).row(2) == limpid::sinusoidal<double>(20, 5).row(19));
}

TEST_CASE("ALiBi slopes are a geometric sequence, completed by every other slope of the next power of two") {
  const M eight = limpid::alibi_slopes<double>(8), twelve = limpid::alibi_slopes<double>(12),
          one = limpid::alibi_slopes<double>(1);
  for (Index h = 0; h < 8; ++h) {
    CHECK(eight(h, 0) == std::exp2(-static_cast<double>(h + 1)));
    CHECK(twelve(h, 0) == eight(h, 0));
  }
  for (Index h = 0; h < 4; ++h) CHECK(twelve(8 + h, 0) == std::exp2(-0.5 - static_cast<double>(h)));
  CHECK(one(0, 0) == std::exp2(-8));
  CHECK(limpid::alibi_slopes<double>(0).size() == 0);
}

TEST_CASE("a slope of zero and a constant table leave plain attention, and symmetric ALiBi is a relative table") {
  const M q = make(25, 5, 4), k = make(26, 8, 4), v = make(27, 8, 2), plain = limpid::forward(softmax(), qkv(q, k, v));
  const M zero = M::Zero(1, 1), slope = M::Constant(1, 1, 0.3), constant = M::Constant(1, 7, 1.7);
  CHECK(distance(limpid::forward(softmax(limpid::alibi(zero)), qkv(q, k, v)), plain) < 1e-14);
  CHECK(distance(limpid::forward(softmax(limpid::relative(constant)), qkv(q, k, v)), plain) < 1e-14);
  M table(1, 15);
  for (Index r = -7; r <= 7; ++r) table(0, r + 7) = -0.3 * std::abs(static_cast<double>(r));
  const M symmetric = limpid::forward(softmax(limpid::alibi_symmetric(slope)), qkv(q, k, v));
  CHECK(distance(symmetric, limpid::forward(softmax(limpid::relative(table)), qkv(q, k, v))) < 1e-14);
  CHECK(distance(limpid::forward(softmax(limpid::chain(limpid::alibi(slope), limpid::causal())), qkv(q, k, v)),
                 limpid::forward(softmax(limpid::chain(limpid::alibi_symmetric(slope), limpid::causal())),
                                 qkv(q, k, v))) < 1e-14);
}

TEST_CASE("the four parts of the scores sum to the scores; a row of them, and their gradients, are right") {
  M x = make(28, 6, 5), p = make(29, 6, 5), wq = make(30, 5, 3), wk = make(31, 5, 3);
  const auto parts = limpid::score_parts(x, p, wq, wk);
  const M both = x + p, whole = suite::product_nt(suite::product(both, wq), suite::product(both, wk)) / std::sqrt(3.0);
  CHECK(distance(parts.tt + parts.tp + parts.pt + parts.pp, whole) < 1e-13);
  CHECK(distance(parts.tp, suite::product_nt(suite::product(x, wq), suite::product(p, wk)) / std::sqrt(3.0)) < 1e-13);
  for (Index i = 0; i < 6; ++i) {
    const auto row = limpid::score_parts_row(x, p, wq, wk, i);
    CHECK(distance(row.tt, parts.tt.row(i)) < 1e-13);
    CHECK(distance(row.tp, parts.tp.row(i)) < 1e-13);
    CHECK(distance(row.pt, parts.pt.row(i)) < 1e-13);
    CHECK(distance(row.pp, parts.pp.row(i)) < 1e-13);
  }
  const limpid::ScoreParts<double> g{make(32, 6, 6), make(33, 6, 6), make(34, 6, 6), make(35, 6, 6)};
  M dx = x, dp = p, dwq = wq, dwk = wk;
  limpid::score_parts_backward(x, p, wq, wk, g, dx, dp, dwq, dwk, 0.4);
  const auto value = [&] {
    const auto s = limpid::score_parts(x, p, wq, wk, 0.4);
    return s.tt.cwiseProduct(g.tt).sum() + s.tp.cwiseProduct(g.tp).sum() + s.pt.cwiseProduct(g.pt).sum() +
           s.pp.cwiseProduct(g.pp).sum();
  };
  CHECK(distance(dx, limpid::numeric_gradient(x, value)) < 1e-8);
  CHECK(distance(dp, limpid::numeric_gradient(p, value)) < 1e-8);
  CHECK(distance(dwq, limpid::numeric_gradient(wq, value)) < 1e-8);
  CHECK(distance(dwk, limpid::numeric_gradient(wk, value)) < 1e-8);
  CHECK_THROWS_WITH(limpid::score_parts(x, wq, wq, wk), "score_parts: p is 5 x 3, wanted 6 x 5");
  const M at_first = dx;
  const auto refused = [&](const std::string& what, auto&&... gradients) {
    CHECK_THROWS_WITH(limpid::score_parts_backward(x, p, wq, wk, g, gradients..., 0.4),
                      "score_parts_backward: " + what + ", wanted memory of its own");
    CHECK(dx == at_first);
  };
  refused("dp shares memory with dx", dx, dx, dwq, dwk);
  refused("dwk shares memory with dwq", dx, dp, dwq, dwq);
  refused("dp shares memory with x", dx, x, dwq, dwk);
  refused("dwq shares memory with wk", dx, dp, wk, dwk);
}
