// limpid: what may be handed in as an option: numbers that are none, integers at their ends, tables of any width.
// SPDX-License-Identifier: MIT
#include <limits>
#include <limpid/limpid.hpp>
#include <utility>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

using limpid::At, limpid::Index, limpid::Mat, limpid::qkv;
using suite::distance, suite::error_of;

namespace {

const double none_such = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();

template <class S>
struct Rows {
  Mat<S> q, k, v, out;
  explicit Rows(Index n = 6, Index m = 6, Index d = 4) {
    suite::Random random(1);
    q = suite::random_matrix<S>(random, n, d), k = suite::random_matrix<S>(random, m, d);
    v = suite::random_matrix<S>(random, m, d), out.resize(n, d);
  }
  template <class Op>
  std::string error(const Op& op) {
    return error_of([&] { limpid::forward(op, limpid::Inputs<Op, S>(qkv(q, k, v)), out); });
  }
};

/// make(x) builds an operator whose option is x; every bad x is refused by operator and option, every good one is not.
template <class S, class Make>
void check_option(const std::string& begins, const std::vector<double>& bad, const std::vector<double>& good,
                  const Make& make) {
  Rows<S> rows;
  for (double x : bad) {
    const std::string found = rows.error(make(x));
    INFO(begins << x << ": " << found);
    CHECK(found.find(begins) == 0);
    CHECK(found.find("wanted") != std::string::npos);
  }
  for (double x : good) {
    INFO(begins << x);
    CHECK(rows.error(make(x)) == "");
    CHECK(rows.out.allFinite());
  }
}

}  // namespace

TEMPLATE_TEST_CASE("Options that are no finite numbers, or out of range, are refused by name", "", float, double) {
  using S = TestType;
  std::vector<double> none = {none_such, inf, -inf};
  if (sizeof(S) == 4) none.push_back(1e308);
  const std::vector<double> some = {0.0, 1.0, -2.0, 1e-300};
  check_option<S>("softmax: scale is ", none, some, [](double x) { return limpid::softmax({.scale = x}); });
  check_option<S>("twicing: scale is ", none, some,
                  [](double x) { return limpid::twicing(limpid::softmax({.scale = x})); });
  check_option<S>("twicing: alpha is ", none, some, [](double x) { return limpid::twicing({.order = 1, .alpha = x}); });
  check_option<S>("pid: lambda_p is ", none, some, [](double x) { return limpid::pid({.lambda_p = x}); });
  check_option<S>("pid: lambda_i is ", none, some, [](double x) { return limpid::pid({.lambda_i = x}); });
  check_option<S>("pid: lambda_d is ", none, some, [](double x) { return limpid::pid({.lambda_d = x}); });
  check_option<S>("pid: beta is ", none, some, [](double x) { return limpid::pid({.beta = x}); });
  check_option<S>("pid: ema is ", {none_such, inf, 0, -1, 1.5}, {1.0, 1e-3},
                  [](double x) { return limpid::pid({.ema = x}); });
  check_option<S>("bilateral: scale is ", none, some, [](double x) {
    limpid::BilateralOptions o;
    o.spatial = limpid::SpatialKernel::none, o.scale = x;
    return limpid::bilateral(o);
  });
  const auto rope = [](auto set) {
    return [set](double x) {
      limpid::RopeOptions o;
      set(o, x);
      return limpid::rope(limpid::softmax(), o);
    };
  };
  check_option<S>("softmax: base is ", {none_such, inf, 0, -1}, {1.0, 1e6},
                  rope([](limpid::RopeOptions& o, double x) { o.base = x; }));
  check_option<S>("softmax: q_offset is ", {none_such, inf}, {0, -3, 7},
                  rope([](limpid::RopeOptions& o, double x) { o.q_offset = x; }));
  check_option<S>("softmax: k_offset is ", {none_such, inf}, {0, -3, 7},
                  rope([](limpid::RopeOptions& o, double x) { o.k_offset = x; }));
  Mat<S> wide = Mat<S>::Random(6, 8);
  const auto two_maps = [&](const char* begins, const std::vector<double>& bad, auto set) {
    for (double x : bad) {
      limpid::DifferentialOptions o;
      set(o, x);
      Rows<S> rows;
      const auto op = limpid::differential(o);
      const std::string found = error_of([&] { limpid::forward(op, qkv(wide, wide, rows.v), rows.out); });
      INFO(begins << x << ": " << found);
      CHECK(found.find(begins) == 0);
    }
  };
  two_maps("differential: scale is ", none, [](auto& o, double x) { o.scale = x; });
  two_maps("differential: eps is ", {none_such, inf, -1.0}, [](auto& o, double x) { o.eps = x; });
  two_maps("differential: lambda_init is ", none, [](auto& o, double x) { o.lambda_init = x; });

  Mat<S> y = Mat<S>::Random(5, 4), out(5, 4);
  for (double x : none) {
    const auto op = limpid::mssa({.scale = x});
    CHECK(error_of([&] { limpid::forward(op, {.y = y}, out); }).find("mssa: scale is ") == 0);
  }
  for (double tau : {none_such, 0.0, -1.0, 1.5}) {
    const auto op = limpid::mssa({.phi = limpid::Phi::threshold, .tau = tau});
    CHECK(error_of([&] { limpid::forward(op, {.y = y}, out); }).find("mssa: tau is ") == 0);
  }
  for (double h : {none_such, 0.0, -1.0, 1e-30}) {
    if (sizeof(S) == 8 && h > 0 && h < 1) continue;
    Mat<S> bandwidth = Mat<S>::Constant(1, 1, S(h));
    limpid::NlmArgs<limpid::View<S>> in = qkv(y, y, y);
    in.h = bandwidth;
    INFO("h " << h);
    CHECK(error_of([&] { limpid::forward(limpid::nlm(), in, out); }).find("nlm: h is ") == 0);
  }
  CHECK(error_of([&] { limpid::sinusoidal(out, {.base = inf}); }).find("sinusoidal: base is ") == 0);
  CHECK(error_of([&] { limpid::sinusoidal(out, {.first = none_such}); }).find("sinusoidal: first is ") == 0);
}

TEST_CASE("A scale that is not set is 1 / sqrt(d), and one that is set may be that or 0") {
  Rows<double> a, b;
  CHECK(a.error(limpid::softmax()) == "");
  CHECK(b.error(limpid::softmax({.scale = 0.5})) == "");
  CHECK(a.out == b.out);
  CHECK(b.error(limpid::softmax({.scale = 0})) == "");
  CHECK(distance(b.out, b.v.colwise().mean().replicate(6, 1)) < 1e-15);
}

TEST_CASE("Windows at the ends of their integers are no windows, or empty ones") {
  const Index most = std::numeric_limits<Index>::max(), least = std::numeric_limits<Index>::min();
  for (const auto& [n, m] : std::vector<std::pair<Index, Index>>{{5, 5}, {3, 9}, {9, 3}, {40, 300}, {300, 40}}) {
    Rows<double> rows(n, m), wanted(n, m);
    for (Index left : {Index(0), Index(2), most, most - 1, Index(-1), least})
      for (Index right : {Index(0), Index(1), most, most - 1, Index(-1), least}) {
        INFO("n " << n << ", m " << m << ", left " << left << ", right " << right);
        const auto kept = limpid::mask([&, n = n, m = m](const At& a) {
          const double gap = static_cast<double>(a.k - (a.q + m - n));
          return (left < 0 || gap >= -static_cast<double>(left)) && (right < 0 || gap <= static_cast<double>(right));
        });
        REQUIRE(wanted.error(limpid::softmax(kept)) == "");
        CHECK(rows.error(limpid::softmax(limpid::window(left, right))) == "");
        CHECK(distance(rows.out, wanted.out) <= 1e-15);
        const auto either = (!limpid::window(left, right)) | limpid::causal();
        CHECK(rows.error(limpid::softmax(either)) == "");
        const auto either_kept = (!kept) | limpid::causal();
        REQUIRE(wanted.error(limpid::softmax(either_kept)) == "");
        CHECK(distance(rows.out, wanted.out) <= 1e-15);
      }
  }
}

TEST_CASE("Sizes that make no sense are refused, however large") {
  Rows<double> r;
  for (Index heads : {Index(0), Index(-1), Index(3), std::numeric_limits<Index>::max(), Index(1) << 61})
    CHECK(error_of([&] { limpid::forward(limpid::softmax(), qkv(r.q, r.k, r.v), r.out, {.heads = heads}); }) != "");
  for (Index batch : {Index(0), Index(-4), Index(5), std::numeric_limits<Index>::max(), Index(1) << 61})
    CHECK(error_of([&] { limpid::forward(limpid::softmax(), qkv(r.q, r.k, r.v), r.out, {.batch = batch}); }) != "");
  CHECK(r.error(limpid::twicing({.order = -1})).find("twicing: order is -1") == 0);
  CHECK(r.error(limpid::boosting({.steps = -3})).find("boosting: steps is -3") == 0);
  const Index most = std::numeric_limits<Index>::max(), least = std::numeric_limits<Index>::min();
  for (Index many : {least, most, (Index(1) << 20) + 1}) {
    const std::string found = std::to_string(many);
    CHECK(r.error(limpid::twicing({.order = many})).find("twicing: order is " + found + ", wanted ") == 0);
    CHECK(r.error(limpid::boosting({.steps = many})).find("boosting: steps is " + found + ", wanted ") == 0);
  }
  Rows<double> token(1, 1, 1);
  CHECK(token.error(limpid::twicing({.order = Index(1) << 20})) == "");
  for (Index layer : {Index(0), least})
    CHECK(error_of([&] { limpid::lambda_init_of_layer(layer); }).find("lambda_init_of_layer: layer is ") == 0);
  CHECK(limpid::lambda_init_of_layer(most) == 0.8);

  // a block that begins at the end of the type, where a sum would overflow
  const auto op = limpid::softmax();
  limpid::Saved<decltype(op), double> saved;
  limpid::forward(op, qkv(r.q, r.k, r.v), r.out, {.saved = &saved});
  Mat<double> block(2, 2);
  for (const auto& at : std::vector<std::pair<Index, Index>>{{most, 0}, {0, most}, {least, 0}, {0, least}, {5, 0}})
    CHECK(error_of([&] {
            limpid::map_block(op, qkv(r.q, r.k, r.v), saved, at.first, at.second, block);
          }).find("softmax: map block 2 x 2 at ") == 0);
}

TEST_CASE("Arrays without numbers are no reason to go through 2^61 heads") {
  const Mat<double> none(0, 0), rows(6, 0), wide(0, 8);
  const Index huge = Index(1) << 61;
  const auto refused = [](const std::string& found, const std::string& begins) {
    INFO(found);
    CHECK(found.find(begins) == 0);
    CHECK(found.find("wanted at most 1048576 heads of all items") != std::string::npos);
  };
  for (const Mat<double>* x : {&none, &rows}) {
    Mat<double> out = *x;
    const auto forward = [&](Index batch, Index heads, Index kv_heads) {
      return error_of([&] {
        limpid::forward(limpid::softmax(), qkv(*x, *x, *x), out,
                        {.batch = batch, .heads = heads, .kv_heads = kv_heads});
      });
    };
    refused(forward(1, huge, 0), "softmax: heads is 2305843009213693952 and batch 1");
    refused(forward(1, huge, 1), "softmax: heads is 2305843009213693952 and batch 1");
    CHECK(forward(1, 1 << 10, 0) == "");
  }
  Mat<double> out = none;
  const auto batch = [&](Index count) {
    return error_of([&] { limpid::forward(limpid::softmax(), qkv(none, none, none), out, {.batch = count}); });
  };
  refused(batch(huge), "softmax: heads is 1 and batch 2305843009213693952");
  CHECK(batch(1 << 10) == "");
  refused(error_of([&] { limpid::rope_rotate(rows, out = rows, {.heads = huge}); }), "rope_rotate: heads is ");
  refused(error_of([&] { limpid::rope_rotate(none, out = none, {.batch = huge}); }), "rope_rotate: heads is ");
  const Mat<double> x = Mat<double>::Ones(6, 4), no_columns(4, 0);
  refused(error_of([&] { limpid::subspace_coding_rate(x, no_columns, {.heads = huge}); }),
          "subspace_coding_rate: heads is ");
  refused(error_of([&] { limpid::subspace_snr(x, no_columns, std::vector<Index>(6), huge); }),
          "subspace_snr: heads is ");
  limpid::MultiHeadArgs<limpid::View<double>> in;
  const Mat<double> w = Mat<double>::Ones(4, 4);
  in.x = x, in.wq = in.wk = no_columns, in.wv = w;
  out = x;
  refused(error_of([&] { limpid::multi_head(limpid::softmax(), huge, 1).forward(in, out); }),
          "multi-head layer: heads is ");
}

TEMPLATE_TEST_CASE("A scale so large that sums of scores overflow is refused; one at the limit gives numbers", "",
                   float, double) {
  using S = TestType;
  const double limit = static_cast<double>(std::numeric_limits<S>::max() / S(0x1p20));
  Rows<S> r;
  for (double scale : {2 * limit, -2 * limit}) {
    const std::string found = r.error(limpid::softmax({.scale = scale}));
    INFO(found);
    CHECK(found.find("softmax: scale is ") == 0);
    CHECK(found.find("wanted at most ") != std::string::npos);
  }
  for (double scale : {limit, -limit}) {
    const auto op = limpid::softmax({.scale = scale});
    limpid::Saved<std::remove_const_t<decltype(op)>, S> saved;
    Mat<S> dq = r.q, dk = r.k, dv = r.v;
    limpid::forward(op, qkv(r.q, r.k, r.v), r.out, {.saved = &saved});
    limpid::backward(op, qkv(r.q, r.k, r.v), saved, r.v, limpid::grads(dq, dk, dv));
    CHECK(r.out.allFinite());
    CHECK((dq.allFinite() && dk.allFinite() && dv.allFinite()));
  }
  check_option<S>("twicing: alpha is ", {2 * limit}, {1.0}, [](double x) { return limpid::twicing({.alpha = x}); });
  check_option<S>("pid: lambda_p is ", {limit * 0x1p21}, {1.0}, [](double x) { return limpid::pid({.lambda_p = x}); });
  Mat<S> slopes(1, 1);
  for (double slope : {inf, -inf, 2 * limit}) {
    slopes(0, 0) = S(slope);
    CHECK(r.error(limpid::softmax(limpid::alibi(slopes))).find("softmax: an ALiBi slope is ") == 0);
    CHECK(r.error(limpid::softmax(limpid::alibi_symmetric(slopes))).find("softmax: an ALiBi slope is ") == 0);
  }
  slopes(0, 0) = S(limit);
  CHECK(r.error(limpid::softmax(limpid::alibi(slopes))) == "");
  CHECK(r.out.allFinite());
}

TEMPLATE_TEST_CASE("Parameters whose sums, products or powers overflow are refused by name", "", float, double) {
  using S = TestType;
  const S most = std::numeric_limits<S>::max(), limit = most / S(0x1p20);
  Rows<S> r;
  // (1 - alpha)^order
  for (const auto& [alpha, order] : std::vector<std::pair<double, Index>>{
           {double(limit) * 0.95, 5}, {-double(limit) * 0.95, 2}, {3.0, 2000}, {2.001, Index(1) << 20}}) {
    const std::string found = r.error(limpid::twicing({.order = order, .alpha = alpha}));
    INFO(alpha << ", " << order << ": " << found);
    CHECK(found.find("twicing: alpha is ") == 0);
    CHECK(found.find("wanted (1 - alpha)^order to be at most ") != std::string::npos);
  }
  for (const auto& [alpha, order] :
       std::vector<std::pair<double, Index>>{{double(limit) * 0.95, 1}, {3.0, 60}, {2.0, 300}, {0.5, 1000}}) {
    INFO(alpha << ", " << order);
    CHECK(r.error(limpid::twicing({.order = order, .alpha = alpha})) == "");
    CHECK(r.out.allFinite());
  }
  // the same of boosting's steps, in each scheme
  using Scheme = limpid::BoostingScheme;
  const limpid::QKV<limpid::View<S>> plain = qkv(r.q, r.k, r.v);
  for (const Scheme scheme : {Scheme::diffusion, Scheme::l2boost, Scheme::sos})
    for (const auto& [tau, steps, fits] : std::vector<std::tuple<S, Index, bool>>{{most, 1, false},
                                                                                  {limit / 2, 2, false},
                                                                                  {S(3), 2000, false},
                                                                                  {S(3), 20, true},
                                                                                  {S(1), 300, true},
                                                                                  {most, 0, true}}) {
      const auto op = limpid::boosting({.scheme = scheme, .steps = steps});
      limpid::Inputs<std::remove_const_t<decltype(op)>, S> in = plain;
      const Mat<S> number = Mat<S>::Constant(1, 1, tau), small = Mat<S>::Constant(1, 1, S(0.5));
      in.tau = number;
      if (scheme == Scheme::sos) in.rho = small;
      const std::string found = error_of([&] { limpid::forward(op, in, r.out); });
      INFO(int(scheme) << ", tau " << tau << ", steps " << steps << ": " << found);
      CHECK(found.find(fits ? "" : "boosting: tau is ") == 0);
      CHECK(found.empty() == fits);
      if (fits) CHECK(r.out.allFinite());
    }
  // gains of a controller and their products, as options and as arrays
  const auto controlled = [&](limpid::PidOptions options, S given) {
    const auto op = limpid::pid(options);
    limpid::Inputs<std::remove_const_t<decltype(op)>, S> in = plain;
    const Mat<S> number = Mat<S>::Constant(1, 1, given);
    in.reference = in.integral = in.v_prev = r.v;
    if (given != S(0)) in.lambda_d = number;
    const std::string found = error_of([&] { limpid::forward(op, in, r.out); });
    if (found.empty()) CHECK(r.out.allFinite());
    return found;
  };
  const double far = double(limit) * 0.9;
  CHECK(controlled({.lambda_p = double(most)}, S(0)).find("pid: lambda_p is ") == 0);
  CHECK(controlled({.lambda_d = -double(most)}, S(0)).find("pid: lambda_d is ") == 0);
  CHECK(controlled({.lambda_p = far, .lambda_i = far}, S(0)).find("pid: lambda_p is ") == 0);
  CHECK(controlled({.lambda_p = far, .beta = 2}, S(0)).find("pid: lambda_p is ") == 0);
  CHECK(controlled({}, most).find("pid: lambda_p is ") == 0);
  CHECK(controlled({.lambda_p = far / 4, .lambda_i = far / 4, .lambda_d = far / 4, .beta = 1}, S(0)) == "");

  const Mat<S> wide = Mat<S>::Random(6, 8), large = Mat<S>::Constant(1, 1, most);
  limpid::Inputs<std::remove_const_t<decltype(limpid::differential())>, S> mixed = qkv(wide, wide, r.v);
  mixed.lambda = large;
  CHECK(error_of([&] { limpid::forward(limpid::differential(), mixed, r.out); }).find("differential: lambda is ") == 0);
  mixed.lambda = {};
  const S root = std::sqrt(std::log(limit)) + S(1);  // exp(root^2) is finite, but no factor
  const Mat<S> vector = Mat<S>::Constant(1, 1, root), none = Mat<S>::Zero(1, 1);
  mixed.lambda_q1 = mixed.lambda_k1 = vector, mixed.lambda_q2 = mixed.lambda_k2 = none;
  CHECK(error_of([&] {
          limpid::forward(limpid::differential(), mixed, r.out);
        }).find("differential: the four vectors of lambda make ") == 0);

  Mat<S> next = r.v, one = Mat<S>::Ones(1, 1), w = Mat<S>::Identity(4, 4);
  limpid::AotArgs<limpid::View<S>> aot;
  aot.x = r.v, aot.u = w, aot.eta = large;
  CHECK(error_of([&] { limpid::aot(limpid::mssa(), {.heads = 2}).forward(aot, r.out); }).find("aot layer: eta is ") ==
        0);
  limpid::IstaArgs<limpid::View<S>> ista;
  ista.x = r.v, ista.dictionary = w, ista.eta = large;
  CHECK(error_of([&] { limpid::Ista{}.forward(ista, r.out); }).find("ista: eta is ") == 0);
  CHECK(error_of([&] {
          limpid::boosting_block(
              {.x = r.v, .u = r.v, .tau = one, .rho = large},
              [](limpid::View<S> from, limpid::MutView<S> to) { limpid::detail::copy<S>(from, to); }, r.out, next);
        }).find("boosting block: tau is ") == 0);
}

TEST_CASE("ALiBi: slopes times gaps are finite, or refused") {
  // more tokens than 2^20 make gaps that even slopes within the limit of factors would overflow with
  const float slope = std::numeric_limits<float>::max() / 0x1p21F;
  Mat<float> slopes = Mat<float>::Constant(1, 1, slope);
  const limpid::detail::Name op = "softmax";
  const auto refused = [&](const auto& modifier, Index n, Index m) {
    return error_of([&] { modifier.check(op.text, 1, 1, n, m); });
  };
  const Index many = Index(1) << 20;
  CHECK(refused(limpid::alibi(slopes), many / 2, many) == "");
  CHECK(refused(limpid::alibi(slopes), many, 2 * many).find("softmax: an ALiBi slope is 1.6") == 0);
  CHECK(refused(limpid::alibi_symmetric(slopes), 1, 4 * many).find("softmax: an ALiBi slope is 1.6") == 0);
}

TEST_CASE("Bases and positions of rotary and sinusoidal encodings have angles that are numbers, or are refused") {
  Mat<double> x = Mat<double>::Ones(3, 64), out = x;
  const double tiny = std::numeric_limits<double>::denorm_min(), largest = std::numeric_limits<double>::max();
  const auto finite = [&](const std::string& found) { return found == "" && out.allFinite(); };
  const auto turned = [&](double base, double first) {
    return error_of([&] { limpid::rope_rotate(x, out, {.base = base, .first = first}); });
  };
  const auto asked = [&](double base, double first) {
    limpid::RopeOptions o;
    o.base = base, o.q_offset = first;
    return error_of([&] { limpid::forward(limpid::rope(limpid::softmax(), o), qkv(x, x, x), out); });
  };
  const auto encoded = [&](double base, double first) {
    return error_of([&] { limpid::sinusoidal(out, {.base = base, .first = first}); });
  };
  CHECK(turned(tiny, 0).find("rope_rotate: base is ") == 0);
  CHECK(asked(tiny, 0).find("softmax: base is ") == 0);
  CHECK(encoded(tiny, 0).find("sinusoidal: base is ") == 0);
  CHECK(turned(1e-300, 1e40).find("rope_rotate: first is ") == 0);
  CHECK(asked(1e-300, 1e40).find("softmax: q_offset is ") == 0);
  CHECK(encoded(1e-300, 1e40).find("sinusoidal: first is ") == 0);
  for (const auto& [base, first] : std::vector<std::pair<double, double>>{
           {1e-300, 0}, {1e300, 0}, {10000, 1e300}, {10000, -largest}, {1, largest}}) {
    INFO("base " << base << ", first " << first);
    CHECK(finite(turned(base, first)));
    CHECK(finite(asked(base, first)));
    CHECK(finite(encoded(base, first)));
  }
  Mat<double> broad(1, 40000);  // powers to all but -1
  CHECK(error_of([&] { limpid::sinusoidal(broad, {.base = largest}); }).find("sinusoidal: base is ") == 0);
}

TEST_CASE("Sizes of what is made are looked at before anything is") {
  const Index most = std::numeric_limits<Index>::max(), huge = Index(1) << 61;
  for (const auto& [n, width] :
       std::vector<std::pair<Index, Index>>{{-1, 4}, {4, -1}, {huge, 8}, {8, huge}, {most, most}, {most, 1}, {0, most}})
    CHECK(error_of([&, n = n, width = width] {
            limpid::sinusoidal<float>(n, width);
          }).find("sinusoidal: the encodings are " + std::to_string(n) + " x " + std::to_string(width)) == 0);
  for (Index heads : {Index(-1), huge, most, (Index(1) << 20) + 1})
    CHECK(error_of([&] { limpid::alibi_slopes<float>(heads); }).find("alibi_slopes: heads is ") == 0);
  CHECK(limpid::alibi_slopes<float>(1 << 20).allFinite());
  const auto data = [](auto set) {
    limpid::SubspaceDataOptions o;
    set(o);
    return error_of([&] { limpid::subspace_data<float>(o); });
  };
  for (Index bad : {Index(-1), huge, most}) {
    CHECK(data([&](auto& o) { o.tokens = bad; }).find("subspace_data: tokens is ") == 0);
    CHECK(data([&](auto& o) { o.classes = bad; }).find("subspace_data: tokens is ") == 0);
    CHECK(data([&](auto& o) { o.width = bad; }).find("subspace_data: tokens is ") == 0);
    CHECK(data([&](auto& o) { o.dim = bad; }).find("subspace_data: tokens is ") == 0);
    CHECK(data([&](auto& o) { o.classes = bad, o.width = bad; }).find("subspace_data: tokens is ") == 0);
  }
  CHECK(data([](auto& o) { o.dim = 47; }) == "subspace_data: dim is 47, wanted at least classes width = 384");
  for (double bad : {none_such, inf, 1e308})
    CHECK(data([&](auto& o) { o.delta = bad; }).find("subspace_data: delta is ") == 0);
}

TEMPLATE_TEST_CASE("Parameters that are not finite are refused by name, in operators and in layers", "", float,
                   double) {
  using S = TestType;
  using limpid::View;
  Rows<S> r;
  const S bad[] = {std::numeric_limits<S>::quiet_NaN(), std::numeric_limits<S>::infinity(),
                   -std::numeric_limits<S>::infinity()};
  Mat<S> two(2, 1), narrow = r.v.leftCols(4), out = r.v;
  two << S(1), S(0.5);
  // set(in, array) hands it in; it is refused with every number in turn, and none of them good
  const auto refused = [&](const auto& op, const std::string& field, Mat<S> array, auto&& set,
                           limpid::Inputs<std::remove_cvref_t<decltype(op)>, S> in) {
    using Op = std::remove_cvref_t<decltype(op)>;
    set(in, View<S>(array));
    limpid::Call<Op, S> call;
    call.heads = 2;
    const std::string good = error_of([&] { limpid::forward(op, in, out, call); });
    INFO(field);
    CHECK(good == "");
    for (S x : bad)
      for (Index i = 0; i < array.size(); ++i) {
        const S kept = std::exchange(array.data()[i], x);
        const std::string found = error_of([&] { limpid::forward(op, in, out, call); });
        array.data()[i] = kept;
        INFO(found);
        CHECK(found.find(std::string(op.name) + ": " + field + " is ") == 0);
        CHECK(found.find("wanted ") != std::string::npos);
      }
  };
  const auto sos = limpid::boosting({.scheme = limpid::BoostingScheme::sos});
  const limpid::QKV<View<S>> plain = qkv(r.q, r.k, r.v);
  refused(
      sos, "tau", two, [](auto& in, View<S> a) { in.tau = a; }, plain);
  refused(
      sos, "rho", two, [](auto& in, View<S> a) { in.rho = a; }, plain);
  const auto pid = limpid::pid();
  refused(
      pid, "lambda_p", two, [](auto& in, View<S> a) { in.lambda_p = a; }, plain);
  refused(
      pid, "lambda_i", two, [](auto& in, View<S> a) { in.lambda_i = a; }, plain);
  refused(
      pid, "lambda_d", two, [](auto& in, View<S> a) { in.lambda_d = a; }, plain);
  refused(
      pid, "beta", two, [](auto& in, View<S> a) { in.beta = a; }, plain);
  const auto differential = limpid::differential();
  const Mat<S> wide = Mat<S>::Random(6, 8), vectors = Mat<S>::Random(2, 3), gamma = Mat<S>::Random(2, 2);
  const limpid::QKV<View<S>> both = qkv(wide, wide, r.v);
  refused(
      differential, "lambda", two, [](auto& in, View<S> a) { in.lambda = a; }, both);
  refused(
      differential, "gamma", gamma, [](auto& in, View<S> a) { in.gamma = a; }, both);
  refused(
      differential, "lambda_k2", vectors,
      [&](auto& in, View<S> a) { in.lambda_q1 = in.lambda_k1 = in.lambda_q2 = vectors, in.lambda_k2 = a; }, both);

  // a bandwidth may be infinite: all keys alike
  for (double h : {none_such, -inf, 0.0, inf}) {
    Mat<S> bandwidth(1, 1);
    bandwidth(0, 0) = S(h);
    limpid::Inputs<std::remove_const_t<decltype(limpid::nlm())>, S> in{.q = r.q, .k = r.k, .v = r.v, .h = bandwidth};
    const std::string found = error_of([&] { limpid::forward(limpid::nlm(), in, out); });
    CHECK(found.find(h > 0 ? "" : "nlm: h is ") == 0);
    CHECK(found.empty() == (h > 0));
    CHECK(error_of([&] { limpid::forward(limpid::rope(limpid::nlm()), in, out); }) == found);
  }

  // finite ones whose products are not
  const S most = std::numeric_limits<S>::max();
  const Mat<S> large = Mat<S>::Constant(1, 1, most), row = Mat<S>::Constant(1, 3, most);
  const auto forward = [&](const auto& op, const auto& in) { return error_of([&] { limpid::forward(op, in, out); }); };
  limpid::Inputs<std::remove_const_t<decltype(sos)>, S> boosted = plain;
  boosted.tau = boosted.rho = large;
  CHECK(forward(sos, boosted).find("boosting: tau is ") == 0);
  limpid::Inputs<std::remove_const_t<decltype(pid)>, S> controlled = plain;
  controlled.reference = r.v, controlled.lambda_p = controlled.lambda_i = large;
  CHECK(forward(pid, controlled).find("pid: lambda_p is ") == 0);
  limpid::Inputs<std::remove_const_t<decltype(differential)>, S> mixed = both;
  mixed.lambda_q1 = mixed.lambda_k1 = mixed.lambda_q2 = mixed.lambda_k2 = row;
  CHECK(forward(differential, mixed).find("differential: the four vectors of lambda make ") == 0);

  const auto layer = [&](const std::string& name, const auto& forward_once,
                         std::vector<std::pair<std::string, Mat<S>*>> p) {
    CHECK(error_of(forward_once) == "");
    for (const auto& [field, m] : p)
      for (S x : bad) {
        const S kept = std::exchange(m->data()[m->size() - 1], x);
        const std::string found = error_of(forward_once);
        m->data()[m->size() - 1] = kept;
        INFO(field << ": " << found);
        CHECK(found.find(name + ": " + field + " is ") == 0);
      }
  };
  Mat<S> w = Mat<S>::Random(4, 4), wo = w, gate = w.leftCols(1), bg = Mat<S>::Random(1, 1), b = Mat<S>::Random(1, 4),
         g = b, one = Mat<S>::Ones(1, 1), other = one, next = r.v;
  const Mat<S> x = r.v;
  layer("multi-head layer",
        [&] {
          limpid::MultiHeadArgs<View<S>> in;
          in.x = x, in.wq = in.wk = in.wv = w, in.wo = wo, in.bo = b;
          limpid::multi_head(limpid::softmax(), 2).forward(in, out);
        },
        {{"bo", &b}});
  layer("mssa layer",
        [&] {
          limpid::MssaLayerArgs<View<S>> in;
          in.x = x, in.u = w, in.wo = wo, in.bo = b;
          limpid::mssa_layer(limpid::mssa(), 2).forward(in, out);
        },
        {{"bo", &b}});
  layer("aot layer",
        [&] {
          limpid::AotArgs<View<S>> in;
          in.x = x, in.u = w, in.gamma = g, in.beta = b, in.eta = one;
          limpid::aot(limpid::mssa(), {.heads = 2}).forward(in, out);
        },
        {{"gamma", &g}, {"beta", &b}, {"eta", &one}});
  layer("ista",
        [&] {
          limpid::IstaArgs<View<S>> in;
          in.x = x, in.dictionary = w, in.gamma = g, in.beta = b, in.eta = one, in.lambda = other;
          limpid::Ista{}.forward(in, out);
        },
        {{"gamma", &g}, {"beta", &b}, {"eta", &one}, {"lambda", &other}});
  layer("layer",
        [&] {
          limpid::TwoMapLayerArgs<View<S>> in;
          in.x = x, in.wq = in.wk = in.wv = w, in.wo = wo, in.gate_w = gate, in.gate_b = bg;
          limpid::two_map_layer(limpid::differential_gated(), 1).forward(in, out);
        },
        {{"gate_b", &bg}});
  layer("boosting block",
        [&] {
          limpid::boosting_block(
              {.x = x, .u = x, .tau = one, .rho = other},
              [](View<S> from, limpid::MutView<S> to) { limpid::detail::copy<S>(from, to); }, out, next);
        },
        {{"tau", &one}, {"rho", &other}});
  layer("layer_norm", [&] { limpid::layer_norm(x, g, b, out); }, {{"gamma", &g}, {"beta", &b}});
  limpid::Ista ista;
  ista.eta = none_such;
  limpid::IstaArgs<View<S>> in;
  in.x = x, in.dictionary = w;
  CHECK(error_of([&] { ista.forward(in, out); }).find("ista: eta is nan") == 0);
  ista.eta = ista.lambda = 1e30;
  if (sizeof(S) == 4) CHECK(error_of([&] { ista.forward(in, out); }).find("ista: eta is 1e+30 and lambda 1e+30") == 0);
}

TEST_CASE("A coding rate's eps2 that is too small for what is measured is refused, not answered with NaN") {
  Mat<double> x = Rows<double>(6, 6, 4).q, same = x, dx = x, u = Mat<double>::Identity(4, 4), du = u;
  for (Index i = 0; i < 6; ++i) same.row(i) = x.row(0);
  const auto rate = [](const Mat<double>& m, double eps2) {
    double found = 0;
    const std::string error = error_of([&] { found = limpid::coding_rate(m, {.eps2 = eps2}); });
    return std::isfinite(found) ? error : "no number";
  };
  for (double eps2 : {1e-310, 5e-324}) {
    CHECK(rate(x, eps2).find("coding_rate: eps2 is ") == 0);
    CHECK(error_of([&] { limpid::coding_rate_backward(x, 1, dx, {.eps2 = eps2}); }).find("coding_rate: eps2 is ") == 0);
    CHECK(error_of([&] {
            limpid::subspace_coding_rate_backward(x, u, 1, dx, du, {.eps2 = eps2});
          }).find("subspace_coding_rate: eps2 is ") == 0);
  }
  CHECK(rate(x, 1e-300) == "");
  for (double eps2 : {1e-18, 1e-30, 1e-300})  // of equal rows one says all: what makes the rest positive is lost
    CHECK(rate(same, eps2).find("coding_rate: eps2 is ") == 0);
  CHECK(rate(same, 1e-8) == "");
  CHECK(rate(1e10 * x, 1e-300).find("coding_rate: eps2 is 1e-300") == 0);
  CHECK(rate(1e200 * x, 0.01).find("coding_rate: eps2 is 0.01") == 0);
  x(1, 1) = none_such;
  CHECK(std::isnan(limpid::coding_rate(x)));  // what tokens hold shows
}

TEST_CASE("Relative tables: T5's 32 buckets, with gradients; a width that the clipped map cannot have is refused") {
  // T5's buckets (Raffel et al. 2020, arXiv 1910.10683, section 2.1, as its code has them): half of them exact, half
  // in steps of a logarithm up to 128.
  const auto bucket = [](bool both) {
    return [both](Index offset, Index count) {
      Index base = 0, distance = -offset, half = count;
      if (both) {
        half = count / 2;
        base = offset > 0 ? half : 0;
        distance = std::abs(offset);
      } else {
        distance = std::max<Index>(0, distance);
      }
      const Index exact = half / 2;
      if (distance < exact) return base + distance;
      const double steps = std::log(static_cast<double>(distance) / static_cast<double>(exact)) /
                           std::log(128.0 / static_cast<double>(exact)) * static_cast<double>(half - exact);
      return base + std::min<Index>(half - 1, exact + static_cast<Index>(steps));
    };
  };
  for (bool both : {false, true})
    for (Index width : {4, 8, 31, 32, 33})
      for (const auto& [n, m] : std::vector<std::pair<Index, Index>>{{40, 40}, {5, 150}, {150, 7}}) {
        Rows<double> r(n, m);
        suite::Random random(5);
        const Mat<double> table = suite::random_matrix<double>(random, 1, width),
                          dout = suite::random_matrix<double>(random, n, 4);
        const auto map = bucket(both);
        const auto reference =
            limpid::additive([&, n = n, m = m](const At& a) { return table(0, map(a.k - (a.q + m - n), width)); });
        Rows<double> wanted(n, m);
        INFO("width " << width << ", both " << both << ", n " << n << ", m " << m);
        REQUIRE(wanted.error(limpid::softmax(reference)) == "");
        Mat<double> dtable = Mat<double>::Zero(1, width), expected = dtable, dq = r.q, dk = r.k, dv = r.v, A(n, m);
        const auto op = limpid::softmax(limpid::relative(table, dtable, map));
        limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
        limpid::forward(op, qkv(r.q, r.k, r.v), r.out, {.saved = &saved, .map = &A});
        CHECK(distance(r.out, wanted.out) <= 1e-14);
        limpid::backward(op, qkv(r.q, r.k, r.v), saved, dout, limpid::grads(dq, dk, dv));
        for (Index i = 0; i < n; ++i)
          for (Index j = 0; j < m; ++j)
            expected(0, map(j - (i + m - n), width)) +=
                A(i, j) * (dout.row(i).dot(r.v.row(j)) - dout.row(i).dot(r.out.row(i)));
        CHECK(distance(dtable, expected) <= 1e-13);
      }
  Rows<double> r;
  const Mat<double> even = Mat<double>::Zero(1, 32), odd = Mat<double>::Zero(1, 33);
  CHECK(r.error(limpid::softmax(limpid::relative(even))).find("softmax: relative table is 1 x 32") == 0);
  CHECK(r.error(limpid::softmax(limpid::relative(odd))) == "");
  const auto outside = [](Index offset, Index) { return offset; };
  CHECK(
      r.error(limpid::softmax(limpid::relative(even, outside))).find("softmax: the map of a relative table gives -5") ==
      0);
}
