// limpid: views, overlap, and the workspace.
// SPDX-License-Identifier: MIT
#include <limits>
#include <limpid/core/context.hpp>
#include <limpid/core/workspace.hpp>
#include <limpid/engine/rows.hpp>

#include "support/catch.hpp"

using limpid::Index;
using limpid::Mat;
using limpid::MutView;
using limpid::View;

TEST_CASE("Views of matrices, maps, blocks and vectors look at the same memory.") {
  Mat<float> m(4, 6);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<float>(i);
  const View<float> whole(m), block(m.block(1, 2, 2, 3)), row(m.row(2));
  CHECK(whole.data == m.data());
  CHECK(whole.stride == 6);
  CHECK(block(1, 2) == m(2, 4));
  CHECK(block.stride == 6);
  CHECK(row(0, 5) == m(2, 5));
  Eigen::VectorXf v = Eigen::VectorXf::LinSpaced(5, 0, 4);
  const View<float> column(v);
  CHECK(column.rows == 5);
  CHECK(column.cols == 1);
  CHECK(column(3, 0) == 3);
  float raw[6] = {0, 1, 2, 3, 4, 5};
  const View<float> map(Eigen::Map<Mat<float>>(raw, 2, 3));
  CHECK(map(1, 1) == 4);
  const MutView<float> part = MutView<float>(m).block(1, 1, 2, 2);
  part.fill(-1);
  CHECK(m(2, 2) == -1);
  CHECK(m(3, 3) == 21);
  CHECK(View<float>(part).map().sum() == -4);
  CHECK_FALSE(View<float>().given());
}

TEST_CASE("Two views overlap exactly when they share an entry.") {
  Mat<double> m(6, 8);
  const View<double> all(m);
  for (Index i = 0; i < 5; ++i)
    for (Index j = 0; j < 6; ++j)
      for (Index k = 0; k < 5; ++k)
        for (Index l = 0; l < 6; ++l) {
          const bool shared = std::abs(i - k) < 2 && std::abs(j - l) < 3;
          const bool found = limpid::detail::overlap(all.block(i, j, 2, 3), all.block(k, l, 2, 3));
          if (shared) CHECK(found);
          if (std::abs(j - l) >= 3) CHECK_FALSE(found);  // side by side in the same rows, as heads lie
        }
  Mat<double> other(6, 8);
  CHECK_FALSE(limpid::detail::overlap(all, View<double>(other)));
  CHECK_FALSE(limpid::detail::overlap(all.block(0, 0, 0, 8), all));
  const View<double> none(nullptr, 6, 8, 8);
  CHECK_FALSE(limpid::detail::overlap(none, all));
  CHECK_FALSE(limpid::detail::overlap(none, none));
  // a row of whatever stride, between rows that lie apart or over one of them
  const View<double> apart(all.data, 3, 3, 16);
  for (Index begin = 0; begin < 40; ++begin)
    for (const Index cols : {1, 2, 13, 14}) {
      const View<double> row(all.data + begin, 1, cols, 99);
      bool shared = false;
      for (Index c = begin; c < begin + cols; ++c) shared = shared || (c < 35 && c % 16 < 3);
      INFO(begin << " " << cols);
      CHECK(limpid::detail::overlap(row, apart) == shared);
      CHECK(limpid::detail::overlap(apart, row) == shared);
      CHECK(limpid::detail::overlap(row, View<double>(all.data, 1, 8, 8)) == (begin < 8));
    }
}

TEST_CASE("An arena hands out cache lines, takes them back in order, and keeps its memory.") {
  limpid::Arena arena;
  double* first = arena.take<double>(3);
  std::size_t held = 0;
  for (int round = 0; round < 3; ++round) {
    const limpid::ArenaScope scope(arena);
    double* a = arena.take<double>(5);
    float* b = arena.take<float>(100000);
    CHECK(reinterpret_cast<std::uintptr_t>(a) % 64 == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(b) % 64 == 0);
    CHECK(a != first);
    a[4] = 1, b[99999] = 2;
    if (round == 0) held = arena.bytes();
    CHECK(arena.bytes() == held);
  }
  first[2] = 7;
  CHECK(arena.bytes() >= 400000);
}

TEST_CASE("An arena asked for a little more each time holds no more than a few times what the last one needs.") {
  limpid::Arena arena;
  std::size_t needed = 0;
  for (Index size = 20000; size < 60000; size += 200) {
    const limpid::ArenaScope scope(arena);
    float* a = arena.take<float>(size);
    {
      const limpid::ArenaScope inner(arena);
      arena.take<float>(3 * size)[3 * size - 1] = 1;
    }
    float* b = arena.take<float>(2 * size);
    a[0] = 1, a[size - 1] = 2, b[0] = 3, b[2 * size - 1] = 4;
    CHECK((a[0] == 1 && a[size - 1] == 2));
    needed = static_cast<std::size_t>(4 * size) * sizeof(float);
  }
  CHECK(arena.bytes() < 4 * needed);
}

TEST_CASE("A copy of a workspace has no memory of the other's, and leaves what it had to itself.") {
  limpid::Workspace workspace;
  workspace.prepare(2);
  workspace.worker(1).take<double>(100);
  limpid::Workspace copy = workspace;
  CHECK(copy.bytes() == 0);
  copy.prepare(1);
  limpid::Arena* own = &copy.common();
  copy = workspace;
  CHECK(own == &copy.common());
  const std::size_t held = workspace.bytes();
  CHECK(held > 0);
  const limpid::Workspace moved = std::move(workspace);
  CHECK(moved.bytes() == held);
}

TEST_CASE("A workspace has an arena for every worker and one for the call.") {
  limpid::Workspace workspace;
  workspace.prepare(3);
  limpid::Arena* common = &workspace.common();
  limpid::Arena* second = &workspace.worker(1);
  workspace.prepare(8);
  CHECK(common == &workspace.common());
  CHECK(second == &workspace.worker(1));
  CHECK(common != &workspace.worker(0));
}

TEMPLATE_TEST_CASE("An array is finite where each of its entries is, whatever its shape and wherever the other lies.",
                   "", float, double) {
  using S = TestType;
  const S inf = std::numeric_limits<S>::infinity(), most = std::numeric_limits<S>::max();
  for (Index rows = 0; rows <= 11; ++rows)
    for (const Index cols : {0, 1, 3, 8, 17}) {
      Mat<S> m = Mat<S>::Constant(rows, cols + 2, most);  // whose sums would overflow
      const View<S> v = View<S>(m).block(0, 1, rows, cols);
      bool fine = limpid::detail::holds_finite(v), found = true;
      for (Index i = 0; i < rows; ++i)
        for (Index c = 0; c < cols + 2; ++c)
          for (const S bad : {inf, -inf, std::numeric_limits<S>::quiet_NaN()}) {
            m(i, c) = bad;
            found &= limpid::detail::holds_finite(v) == (c == 0 || c == cols + 1);  // beside it is not in it
            m(i, c) = most;
          }
      INFO(rows << " x " << cols);
      CHECK(fine);
      CHECK(found);
    }
}

TEST_CASE("After a call every worker has room for what the hungriest one took, whichever it was.") {
  for (const int hungry : {0, 1, 2, 3}) {
    limpid::Workspace workspace;
    workspace.prepare(4);
    for (int w = 0; w < 4; ++w) {
      const limpid::ArenaScope scope(workspace.worker(w));
      workspace.worker(w).take<double>(w == hungry ? 1 << 20 : 8);
    }
    workspace.level();
    const std::size_t held = workspace.bytes();
    CHECK(held >= 4 * sizeof(double) << 20);
    for (int w = 0; w < 4; ++w) {
      INFO("worker " << w << " after " << hungry);
      const limpid::ArenaScope scope(workspace.worker(w));
      workspace.worker(w).take<double>(w == hungry ? 8 : 1 << 20);
      CHECK(workspace.bytes() == held);
    }
  }
}
