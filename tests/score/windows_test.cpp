// limpid: windows where keys are read, and added to, where they lie: beside a dense mask, for any number of workers.
// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include <functional>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/op/differential.hpp>
#include <limpid/op/differential_gated.hpp>
#include <limpid/op/sigmoid.hpp>
#include <limpid/op/softmax.hpp>
#include <limpid/op/twicing.hpp>
#include <limpid/score/local.hpp>
#include <limpid/score/positions.hpp>
#include <limpid/score/sink.hpp>

#include "support/any_local.hpp"
#include "support/distance.hpp"

using limpid::At;
using limpid::Index;
using limpid::Mat;

namespace {

template <class S>
Mat<S> numbers(Index rows, Index cols, int kind) {
  Mat<S> x(rows, cols);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = S(std::sin(kind + 0.7 * double(i) + 0.01 * double(i * i % 977)));
  return x;
}

template <class S>
struct Results {
  Mat<S> out, dq, dk, dv;
};
struct Shape {
  Index n, heads, d, dv, maps = 1;
};

/// forward, and backward with gradients that are there already added to, or not.
template <class S, class Op>
Results<S> run(const Op& op, const Shape& s, bool accumulate, limpid::ExecutorRef executor = {}) {
  const Index width = s.heads * s.d * s.maps, values = s.heads * s.dv;
  const Mat<S> q = numbers<S>(s.n, width, 1), k = numbers<S>(s.n, width, 2), v = numbers<S>(s.n, values, 3),
               dout = numbers<S>(s.n, values, 4);
  Results<S> r{Mat<S>(s.n, values), Mat<S>::Ones(s.n, width), Mat<S>::Ones(s.n, width), Mat<S>::Ones(s.n, values)};
  limpid::Saved<Op, S> saved;
  limpid::forward(op, limpid::qkv(q, k, v), r.out, {.heads = s.heads, .saved = &saved, .executor = executor});
  limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(r.dq, r.dk, r.dv),
                   {.accumulate = accumulate, .executor = executor});
  return r;
}

/// The pairs that a mask keeps, as a dense mask of the type that local_test.cpp has: operators over it are compiled once.
template <class Window>
Mat<bool> pairs_of(const Window& window, Index n) {
  Mat<bool> kept(n, n);
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < n; ++j) kept(i, j) = limpid::detail::mask_keeps(window, At{.q = i, .k = j, .n = n, .m = n});
  return kept;
}

/// make(mask) is an operator.
template <class S, class Window, class Make>
void as_dense(const Window& window, const Shape& s, double most, Make make) {
  const Mat<bool> kept = pairs_of(window, s.n);
  const auto dense = limpid::mask_matrix(kept);
  limpid::ThreadPool pool(3);
  for (const bool accumulate : {false, true}) {
    CAPTURE(s.n, s.heads, s.d, s.dv, accumulate);
    const Results<S> found = run<S>(make(window), s, accumulate), wanted = run<S>(make(dense), s, accumulate),
                     by_three = run<S>(make(window), s, accumulate, pool);
    for (const auto field : {&Results<S>::out, &Results<S>::dq, &Results<S>::dk, &Results<S>::dv}) {
      const Mat<S>&a = found.*field, &b = wanted.*field;
      CHECK(double((a - b).cwiseAbs().maxCoeff()) <= most * (1 + double(b.cwiseAbs().maxCoeff())));
      CHECK(a == by_three.*field);
    }
  }
}

/// Drops key 70.
struct WithoutKey : limpid::Modifier {
  static constexpr bool per_key = true;
  template <class S>
  S key_bias(const At& a, Index) const {
    return a.k == 70 ? -std::numeric_limits<S>::infinity() : S(0);
  }
  template <class S>
  S value(S s, const At& a) const {
    return s + key_bias<S>(a, 0);
  }
  bool adds() const { return true; }
};

const auto window = limpid::neighbourhood({13, 11}, {5, 7});
constexpr auto plain = [](const auto& mask) { return limpid::softmax(mask); };

}  // namespace

// Rows of whole vectors are added to at once by one worker, others and those of several workers wait for their turn.
TEMPLATE_TEST_CASE("A window gives what a dense mask gives, with the same bits for any number of workers.", "", float,
                   double) {
  const double most = 20 * double(std::numeric_limits<TestType>::epsilon());
  for (const Index heads : {1, 2})
    for (const Index d : {16, 10, 40}) as_dense<TestType>(window, {143, heads, d, d == 40 ? 20 : d}, most, plain);
}

TEST_CASE("Heads that are brought side by side for a window are the same heads.") {
  as_dense<double>(limpid::neighbourhood({31, 33}, {3, 5}), {31 * 33, 3, 16, 16}, 1e-14, plain);
  as_dense<double>(limpid::neighbourhood({1023}, {15}), {1023, 3, 16, 16}, 1e-14, plain);
}

// Of one axis they go block by block, of more line by line: lines of one vector and of several, in one stretch and in
// several, several classes, more keys than are taken at once.
TEMPLATE_TEST_CASE("So does a window of any number of axes, border, stride and dilation.", "", float, double) {
  const double most = 20 * double(std::numeric_limits<TestType>::epsilon());
  using limpid::Border;
  using limpid::neighbourhood;
  for (const Index d : {16, 10, 40}) as_dense<TestType>(neighbourhood({143}, {9}), {143, 2, d, d / 2}, most, plain);
  as_dense<TestType>(neighbourhood({37, 9}, {5, 3}), {37 * 9, 2, 10, 16}, most, plain);
  as_dense<TestType>(neighbourhood({5, 45}, {3, 8}), {5 * 45, 2, 16, 10}, most, plain);
  as_dense<TestType>(neighbourhood({9, 41}, {5, 7}, {.border = Border::shift}), {9 * 41, 1, 16, 16}, most, plain);
  as_dense<TestType>(neighbourhood({19, 21}, {3, 6}, {.causal = {true, true}}), {19 * 21, 1, 16, 16}, most, plain);
  as_dense<TestType>(neighbourhood({19, 23}, {4, 5}, {.stride = {2, 3}}), {19 * 23, 1, 16, 16}, most, plain);
  as_dense<TestType>(neighbourhood({19, 23}, {3, 5}, {.dilation = {2, 3}}), {19 * 23, 1, 16, 16}, most, plain);
  as_dense<TestType>(neighbourhood({4, 6, 19}, {3, 5, 3}), {4 * 6 * 19, 1, 16, 16}, most, plain);
  as_dense<TestType>(neighbourhood({19, 24}, {15, 13}), {19 * 24, 1, 16, 16}, 2 * most, plain);
}

TEST_CASE("A window of several sweeps, the later ones with the log-sum-exp known.") {
  for (const auto& mask : {window, limpid::neighbourhood({143}, {9})})
    as_dense<double>(mask, {143, 2, 16, 10}, 1e-13, [](const auto& m) { return limpid::twicing(m); });
}

TEMPLATE_TEST_CASE(
    "Windows of two maps and windows with sinks go line by line, with the same bits for any number of workers.", "",
    float, double) {
  using S = TestType;
  const double most = 20 * double(std::numeric_limits<S>::epsilon());
  const auto wide = limpid::neighbourhood({19, 41}, {5, 7});
  Mat<S> logits = Mat<S>::Constant(1, 2, S(0.75));
  logits(0, 1) = S(-2);
  const auto with_sink = [&](const auto& mask) { return limpid::softmax(limpid::chain(mask, limpid::sink(logits))); };
  const auto two = [](const auto& mask) { return limpid::differential(mask); };
  as_dense<S>(wide, {19 * 41, 2, 16, 10}, most, with_sink);
  as_dense<S>(wide, {19 * 41, 2, 10, 16, 2}, 4 * most, two);
  as_dense<S>(limpid::neighbourhood({9, 41}, {5, 7}, {.border = limpid::Border::shift, .causal = {true}}),
              {9 * 41, 2, 16, 16, 2}, 4 * most,
              [&](const auto& mask) { return limpid::differential_gated(limpid::chain(mask, limpid::sink(logits))); });
  logits(0, 0) = std::numeric_limits<S>::infinity(), logits(0, 1) = -logits(0, 0);
  as_dense<S>(wide, {19 * 41, 2, 16, 10}, most, with_sink);
}

TEST_CASE("What is not finite shows in the windows that see it, and in no others.") {
  const Shape s{19 * 21, 1, 16, 16};
  const auto near = limpid::neighbourhood({19, 21}, {3, 5});
  const Mat<bool> kept = pairs_of(near, s.n);
  const auto dense = limpid::mask_matrix(kept);
  for (const bool accumulate : {false, true})
    for (int which = 0; which < 6; ++which) {
      CAPTURE(accumulate, which);
      std::array<Mat<double>, 4> in{numbers<double>(s.n, 16, 1), numbers<double>(s.n, 16, 2),
                                    numbers<double>(s.n, 16, 3), numbers<double>(s.n, 16, 4)};
      const bool two = which > 3;  // maps, of which the second one has it
      if (two) in[0] = numbers<double>(s.n, 32, 5), in[1] = numbers<double>(s.n, 32, 6);
      in[std::size_t(which % 4)](200, two ? 19 : 3) = std::numeric_limits<double>::quiet_NaN();
      const auto results = [&](const auto& op) {
        const Index width = in[0].cols();
        Results<double> r{Mat<double>(s.n, 16), Mat<double>::Ones(s.n, width), Mat<double>::Ones(s.n, width),
                          Mat<double>::Ones(s.n, 16)};
        limpid::Saved<std::remove_cvref_t<decltype(op)>, double> saved;
        limpid::forward(op, limpid::qkv(in[0], in[1], in[2]), r.out, {.saved = &saved});
        limpid::backward(op, limpid::qkv(in[0], in[1], in[2]), saved, in[3], limpid::grads(r.dq, r.dk, r.dv),
                         {.accumulate = accumulate});
        return r;
      };
      const auto of = [&](const auto& mask) {
        return two ? results(limpid::differential(mask)) : results(limpid::softmax(mask));
      };
      const Results<double> found = of(near), wanted = of(dense);
      for (const auto field : {&Results<double>::out, &Results<double>::dq, &Results<double>::dk, &Results<double>::dv})
        for (Index i = 0; i < (found.*field).size(); ++i) {
          const double a = (found.*field).data()[i], b = (wanted.*field).data()[i];
          if (!(std::isnan(b) ? std::isnan(a) : std::abs(a - b) <= 1e-13)) FAIL_CHECK(i << ": " << a << ", " << b);
        }
    }
}

TEST_CASE("So does a window of two maps, of weights without a sum, beside other masks, biases and what drops a key.") {
  as_dense<double>(window, {143, 2, 16, 16, 2}, 1e-14, [](const auto& mask) { return limpid::differential(mask); });
  as_dense<double>(window, {143, 2, 16, 8}, 1e-14, [](const auto& mask) { return limpid::sigmoid(mask); });
  as_dense<double>(window & limpid::causal(), {143, 2, 16, 16}, 1e-14,
                   [](const auto& mask) { return limpid::softmax(limpid::chain(mask, WithoutKey())); });
  const Mat<double> slopes = Mat<double>::Constant(1, 2, 0.25);
  as_dense<double>(window, {143, 2, 16, 16}, 1e-14,
                   [&](const auto& mask) { return limpid::softmax(limpid::chain(mask, limpid::alibi(slopes))); });
}

TEST_CASE("A sink gets its gradient where a window is beside it.") {
  Mat<double> logits = Mat<double>::Constant(1, 2, 0.5);
  const auto gradient = [&](const auto& mask) {
    Mat<double> d = Mat<double>::Zero(1, 2);
    run<double>(limpid::softmax(limpid::chain(mask, limpid::sink(logits, d))), {143, 2, 16, 16}, false);
    return d;
  };
  for (const double first : {0.5, std::numeric_limits<double>::infinity()}) {  // which leaves nothing to be given
    CAPTURE(first);
    logits(0, 0) = first;
    const Mat<double> wanted = gradient(limpid::mask(std::function([](const At& a) { return window.keep(a); })));
    const auto as_wanted = [&](const Mat<double>& found) {
      CHECK(double((found - wanted).cwiseAbs().maxCoeff()) <= 1e-13 * (1 + double(wanted.cwiseAbs().maxCoeff())));
    };
    as_wanted(gradient(window));                                                 // by line
    as_wanted(gradient(window & limpid::key_lengths(std::vector<Index>{143})));  // block by block
    CHECK(std::abs(wanted(0, 1)) > 0.1);
    CHECK((wanted(0, 0) == 0) == std::isinf(first));
  }
}

TEST_CASE("Packed sequences and windows with global tokens, which have keys beyond one block.") {
  const std::vector<Index> offsets{0, 0, 300, 301, 343};
  as_dense<double>(suite::AnyPacked(limpid::packed(offsets)), {343, 2, 16, 16}, 1e-14, plain);
  // one of them so long that all workers have it together
  const std::vector<Index> long_ones{0, 30, 30, 560, 600};
  as_dense<double>(suite::AnyPacked(limpid::packed(long_ones)), {600, 1, 8, 8}, 1e-14, plain);
  std::vector<Index> ids(600);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = i % 10 == 3 ? Index(i % 3) : 5;
  as_dense<double>(suite::AnyPacked(limpid::documents(ids)), {600, 1, 8, 8}, 1e-14, plain);
  as_dense<double>(limpid::neighbourhood({17, 19}, {3, 3}, {.global = 3}), {326, 1, 16, 16}, 1e-14, plain);
}
