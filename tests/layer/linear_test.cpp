// limpid: the linear map of tokens.
// SPDX-License-Identifier: MIT
#include <limpid/layer/linear.hpp>

#include <limpid/exec/thread_pool.hpp>

#include "support/executors.hpp"
#include "support/two_maps.hpp"

namespace {

using limpid::Index;
using limpid::View;
using two_maps::distance;
using two_maps::M;
using two_maps::random;
using two_maps::same_bits;

/// a b, or with the transpose of either, by the definition.
M times(const M& a, const M& b) {
  M c = M::Zero(a.rows(), b.cols());
  for (Index i = 0; i < a.rows(); ++i)
    for (Index k = 0; k < a.cols(); ++k)
      for (Index j = 0; j < b.cols(); ++j) c(i, j) += a(i, k) * b(k, j);
  return c;
}

}  // namespace

TEST_CASE("y = x w + b and its gradients, at sizes around a vector, a tile and a block") {
  struct Size {
    Index n, d, e;
  };
  for (const Size s : {Size{1, 1, 1}, Size{2, 3, 5}, Size{9, 17, 15}, Size{7, 8, 16}, Size{33, 31, 70},
                       Size{270, 40, 33}, Size{70, 150, 70}, Size{600, 45, 70}, Size{520, 140, 130},
                       Size{130, 130, 140}, Size{5, 300, 3}, Size{0, 4, 3}, Size{4, 3, 0}, Size{3, 0, 4}}) {
    INFO(s.n << " x " << s.d << " x " << s.e);
    const M x = random(s.n, s.d, 1), w = random(s.d, s.e, 2), b = random(1, s.e, 3), dy = random(s.n, s.e, 4);
    M y = M::Constant(s.n, s.e, 7), dx = M::Constant(s.n, s.d, 7), dw = M::Constant(s.d, s.e, 7),
      db = M::Constant(1, s.e, 7);
    limpid::linear(x, w, View<double>(), y);
    CHECK(distance(y, times(x, w)) < 1e-13);
    limpid::linear(x, w, b, y);
    CHECK(distance(y, times(x, w) + b.replicate(s.n, 1)) < 1e-13);
    limpid::linear_backward(x, w, dy, {.x = dx, .w = dw, .b = db});
    CHECK(distance(dx, times(dy, w.transpose())) < 1e-13);
    CHECK(distance(dw, times(x.transpose(), dy)) < 1e-12);
    CHECK(distance(db, times(M::Ones(1, s.n), dy)) < 1e-12);
    limpid::linear_backward(x, w, dy, {.x = dx, .w = dw, .b = db}, {.accumulate = true});
    CHECK(distance(dx, 2 * times(dy, w.transpose())) < 1e-13);
    CHECK(distance(dw, 2 * times(x.transpose(), dy)) < 1e-12);
    CHECK(distance(db, 2 * times(M::Ones(1, s.n), dy)) < 1e-12);
  }
}

TEST_CASE("a block of a wider buffer is read and written where it lies, and nothing beside it") {
  const M wide_x = random(12, 30, 1), wide_w = random(25, 40, 2);
  M wide_y = M::Constant(12, 50, 7), y(12, 19);
  const M x = wide_x.middleCols(4, 21), w = wide_w.block(2, 5, 21, 19);
  limpid::linear(x, w, View<double>(), y);
  limpid::linear(wide_x.middleCols(4, 21), wide_w.block(2, 5, 21, 19), View<double>(), wide_y.middleCols(8, 19));
  CHECK(same_bits(wide_y.middleCols(8, 19), y));
  CHECK(same_bits(wide_y.leftCols(8), M::Constant(12, 8, 7)));
  CHECK(same_bits(wide_y.rightCols(23), M::Constant(12, 23, 7)));
}

TEST_CASE("threads change no bit of a linear map, and a workspace is reused") {
  struct Size {
    Index inputs, outputs;
  };
  for (const Size s : {Size{70, 130}, Size{130, 100}}) {  // of dw the smaller factor is packed whole
    const M x = random(600, s.inputs, 1), w = random(s.inputs, s.outputs, 2), dy = random(600, s.outputs, 3);
    M y(600, s.outputs), dx = x, dw = w, y2 = y, dx2 = x, dw2 = w;
    limpid::linear(x, w, View<double>(), y);
    limpid::linear_backward(x, w, dy, {.x = dx, .w = dw});
    limpid::ThreadPool pool(3);
    limpid::Workspace workspace;
    const auto run = [&](limpid::ExecutorRef executor) {
      limpid::linear(x, w, View<double>(), y2, {.workspace = &workspace, .executor = executor});
      limpid::linear_backward(x, w, dy, {.x = dx2, .w = dw2}, {.workspace = &workspace, .executor = executor});
      CHECK(same_bits(y, y2));
      CHECK(same_bits(dx, dx2));
      CHECK(same_bits(dw, dw2));
    };
    for (int i = 0; i < 2; ++i) run(pool);
    // Which worker of a pool comes to a task is chance, and so is when its scratch memory is first needed: the size of
    // the workspace is asked of an executor that hands them out in turn.
    suite::Backwards in_turn;
    run(in_turn);
    const std::size_t bytes = workspace.bytes();
    run(in_turn);
    CHECK(workspace.bytes() == bytes);
  }
}

TEST_CASE("a weight [out, in] is read where it lies: the bits of its transpose, packed or not") {
  struct Size {
    Index n, d, e;
  };
  for (const Size s : {Size{1, 1, 1}, Size{1, 40, 70}, Size{8, 17, 15}, Size{9, 8, 16}, Size{33, 31, 70},
                       Size{270, 1100, 33}, Size{5, 300, 64}, Size{0, 4, 3}, Size{4, 3, 0}, Size{3, 0, 4}}) {
    INFO(s.n << " x " << s.d << " x " << s.e);
    const M x = random(s.n, s.d, 1), w = random(s.d, s.e, 2), b = random(1, s.e, 3), dy = random(s.n, s.e, 4);
    const M wt = w.transpose();
    M y = M::Constant(s.n, s.e, 7), again = y, dx = M::Constant(s.n, s.d, 7), dx2 = dx;
    M dw = M::Constant(s.d, s.e, 7), dwt = wt, db = b, db2 = b;
    limpid::linear(x, w, b, y);
    const auto same = [&] {
      CHECK(same_bits(y, again));
      again.setConstant(7);
    };
    limpid::linear(x, limpid::in_out(w), b, again), same();
    limpid::linear(x, limpid::out_in(wt), b, again), same();
    const limpid::PackedWeight<double> packed{w}, turned(limpid::out_in(wt));
    limpid::linear(x, packed, b, again), same();
    limpid::linear(x, turned, b, again), same();
    limpid::linear_backward(x, w, dy, {.x = dx, .w = dw, .b = db});
    limpid::linear_backward(x, turned, dy, {.x = dx2, .w = dwt, .b = db2});
    CHECK(same_bits(dx, dx2));
    CHECK(same_bits(dw, dwt.transpose()));
    CHECK(same_bits(db, db2));
  }
}

TEST_CASE("each gradient of a linear map is added to what is there, or not, as it says itself") {
  const M x = random(9, 5, 1), w = random(5, 6, 2), dy = random(9, 6, 3);
  M dx(9, 5), dw(5, 6), db(1, 6);
  limpid::linear_backward(x, w, dy, {dx, dw, db});
  const auto seven = [](const M& like) -> M { return M::Constant(like.rows(), like.cols(), 7); };
  M dx2 = seven(dx), dw2 = seven(dw), db2 = seven(db);
  limpid::linear_backward(x, w, dy, {.x = dx2, .w = limpid::add(dw2), .b = limpid::add(db2)});
  CHECK(same_bits(dx2, dx));
  CHECK(distance(dw2, dw + seven(dw)) < 1e-14);
  CHECK(distance(db2, db + seven(db)) < 1e-14);
  dx2 = seven(dx), dw2 = seven(dw), db2 = seven(db);
  limpid::linear_backward(x, w, dy, {.x = limpid::overwrite(dx2), .w = dw2, .b = limpid::overwrite(db2)},
                          {.accumulate = true});
  CHECK(same_bits(dx2, dx));
  CHECK(distance(dw2, dw + seven(dw)) < 1e-14);
  CHECK(same_bits(db2, db));
}

TEST_CASE("arguments of a linear map that do not fit are refused by name") {
  M x = random(4, 3, 1), w = random(3, 2, 2), y(4, 2), narrow(4, 1), b = random(2, 1, 3);
  const auto refused = [](auto&& call, const std::string& what) {
    try {
      call();
    } catch (const limpid::ShapeError& error) {
      CHECK(error.what() == "linear: " + what);
      return;
    }
    FAIL("was not refused: " << what);
  };
  const M one = random(4, 1, 4);
  refused([&] { limpid::linear(one, w, View<double>(), y); }, "w is 3 x 2, wanted 1 rows, as x has columns");
  refused([&] { limpid::linear(one, limpid::out_in(w), View<double>(), y); },
          "w is 3 x 2, [out, in], wanted 1 columns, as x has columns");
  refused([&] { limpid::linear(y, w, View<double>(), x); },
          "w is 3 x 2, wanted 2 rows, as x has columns; it would fit as out_in(w)");
  refused([&] { limpid::linear(x, limpid::out_in(w), View<double>(), y); },
          "w is 3 x 2, [out, in], wanted 3 columns, as x has columns; it would fit as in_out(w)");
  refused([&] { limpid::linear_backward(y, limpid::out_in(w), x, {.w = narrow}); },
          "gradient of w is 4 x 1, wanted 3 x 2");
  refused([&] { limpid::linear(x, w, View<double>(), narrow); }, "y is 4 x 1, wanted 4 x 2");
  refused([&] { limpid::linear(x, w, b, y); }, "b is 2 x 1, wanted 1 x 2");
  refused([&] { limpid::linear_backward(x, w, y, {.x = y}); }, "gradient of x is 4 x 2, wanted 4 x 3");
  refused([&] { limpid::linear_backward(x, w, y, {.x = x}); },
          "gradient of x shares memory with x, wanted memory of its own");
}
