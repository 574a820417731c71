// limpid: identities of plain attention.
// SPDX-License-Identifier: MIT
#include <limits>
#include <limpid/op/softmax.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::qkv, limpid::softmax;
using suite::distance;

constexpr double few = 64 * 0x1p-53;  // so many roundings of numbers of the order of 1

template <class S>
struct Case {
  Mat<S> q, k, v, dout, dq, dk, dv, out;

  Case(Index n, Index m, Index d, Index width, double logits, std::uint64_t seed = 1) {
    suite::Random random(seed);
    q = suite::random_matrix<S>(random, n, d, -logits, logits), k = suite::random_matrix<S>(random, m, d);
    v = suite::random_matrix<S>(random, m, width), dout = suite::random_matrix<S>(random, n, width);
  }
  void run() {
    const auto op = softmax();
    limpid::Saved<std::remove_const_t<decltype(op)>, S> saved;
    out.resize(dout.rows(), dout.cols());
    limpid::forward(op, qkv(q, k, v), out, {.saved = &saved});
    dq.resize(q.rows(), q.cols()), dk.resize(k.rows(), k.cols()), dv.resize(v.rows(), v.cols());
    limpid::backward(op, qkv(q, k, v), saved, dout, {.q = dq, .k = dk, .v = dv});
  }
};

}  // namespace

TEMPLATE_TEST_CASE("Where every row has one weight of 1, out is that value and q and k get exactly no gradient", "",
                   float, double) {
  // delta is summed in the order of dA: the last bit of a difference would come back times the large logits
  for (const Index width : {Index(1), Index(7), Index(16), Index(45), Index(64)})
    for (const Index n : {Index(1), Index(5), Index(40)}) {
      Case<TestType> c(n, 300, 32, width, 1);
      c.q *= TestType(1e7);  // the two largest scores of a row differ by 5000 and more
      c.run();
      INFO("n " << n << ", width " << width);
      const Mat<TestType> s = c.q * c.k.transpose();
      for (Index i = 0; i < n; ++i) {
        Index first = 0;
        s.row(i).maxCoeff(&first);
        CHECK(c.out.row(i) == c.v.row(first));
      }
      CHECK(c.dq.isZero(0));
      CHECK(c.dk.isZero(0));
      // every row of dout arrives, whole, however the scores of few queries were summed
      CHECK(std::abs(c.dv.sum() - c.dout.sum()) <=
            8 * std::numeric_limits<TestType>::epsilon() * c.dout.cwiseAbs().sum());
    }
}

TEST_CASE("One key gives its value; equal keys give the mean of the values") {
  Case<double> one(4, 1, 5, 3, 2);
  one.run();
  for (Index i = 0; i < 4; ++i) CHECK(one.out.row(i) == one.v.row(0));
  CHECK(one.dq.isZero(0));

  Case<double> equal(4, 37, 5, 3, 2);
  for (Index j = 1; j < 37; ++j) equal.k.row(j) = equal.k.row(0);
  equal.run();
  for (Index i = 0; i < 4; ++i) CHECK(distance(equal.out.row(i), equal.v.colwise().mean()) <= few);
}

TEST_CASE("Keys may come in any order, values scale the result, and rows of dS sum to nothing") {
  Case<double> a(9, 200, 6, 5, 3);
  a.run();
  Case<double> b = a;
  for (Index j = 0; j < 200; ++j) b.k.row(j) = a.k.row((7 * j + 3) % 200), b.v.row(j) = 2 * a.v.row((7 * j + 3) % 200);
  b.run();
  CHECK(distance(b.out, 2 * a.out) <= few);
  CHECK(distance(b.dq, 2 * a.dq) <= 8 * few);
  // a common shift of all keys moves no score against another: dS 1 = 0
  Case<double> moved = a;
  moved.k.rowwise() += Eigen::RowVectorXd::Constant(6, 0.5);
  moved.run();
  CHECK(distance(moved.out, a.out) <= 8 * few);
  CHECK(distance(moved.dq, a.dq) <= 8 * few);
}
