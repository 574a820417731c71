// limpid: executors with operators on them: what a thread sanitizer watches, small enough to be built for it.
// SPDX-License-Identifier: MIT
#include <atomic>
#include <cstring>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/op/softmax.hpp>
#include <limpid/op/twicing.hpp>
#include <stdexcept>
#include <thread>
#include <vector>
#if defined(LIMPID_TEST_OPENMP)
#include <limpid/exec/openmp.hpp>
#endif

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index;
using F = limpid::Mat<float>;

/// Two items of two heads that share one key head, causal, and a gradient for the key bias that all of them share.
struct Problem {
  static constexpr Index n = 130, m = 150, d = 8, dv = 5;
  F q, k, v, dout, bias;
  Problem() {
    suite::Random random(7);
    q = suite::random_matrix<float>(random, 2 * n, 2 * d), k = suite::random_matrix<float>(random, 2 * m, d);
    v = suite::random_matrix<float>(random, 2 * m, dv), dout = suite::random_matrix<float>(random, 2 * n, 2 * dv);
    bias = suite::random_matrix<float>(random, 1, m);
  }
};

struct Results {
  F out, dq, dk, dv, dbias;
  bool same_bits(const Results& b) const {
    const auto same = [](const F& x, const F& y) {
      return x.size() == y.size() &&
             std::memcmp(x.data(), y.data(), sizeof(float) * static_cast<std::size_t>(x.size())) == 0;
    };
    return same(out, b.out) && same(dq, b.dq) && same(dk, b.dk) && same(dv, b.dv) && same(dbias, b.dbias);
  }
};

Results run(const Problem& p, limpid::ExecutorRef executor) {
  Results r{F(2 * p.n, 2 * p.dv), p.q, p.k, p.v, F::Zero(1, p.m)};
  const auto op = limpid::softmax(limpid::chain(limpid::causal(), limpid::key_bias(p.bias, r.dbias)));
  limpid::Saved<std::remove_const_t<decltype(op)>, float> saved;
  limpid::Workspace workspace;
  limpid::forward(
      op, limpid::qkv(p.q, p.k, p.v), r.out,
      {.batch = 2, .heads = 2, .kv_heads = 1, .saved = &saved, .workspace = &workspace, .executor = executor});
  limpid::backward(op, limpid::qkv(p.q, p.k, p.v), saved, p.dout, limpid::grads(r.dq, r.dk, r.dv),
                   {.workspace = &workspace, .executor = executor});
  return r;
}

}  // namespace

TEST_CASE("Every executor runs every task once, on a worker it has, and is there again for the next call.") {
  const auto check = [](auto& executor) {
    for (Index count : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
      std::atomic<bool> known{true};
      executor.run(count, [&](Index task, int worker) {
        ++seen[static_cast<std::size_t>(task)];
        if (worker < 0 || worker >= executor.workers()) known = false;
      });
      CHECK(known);
      CHECK(std::all_of(seen.begin(), seen.end(), [](const std::atomic<int>& times) { return times == 1; }));
    }
  };
  for (int threads : {1, 2, 5}) {
    limpid::ThreadPool pool(threads);
    CHECK(pool.workers() == threads);
    check(pool);
  }
#if defined(LIMPID_TEST_OPENMP)
  limpid::OpenMP team(3);
  check(team);
#endif
}

TEST_CASE("The first exception of a task comes out of a pool, which goes on working.") {
  limpid::ThreadPool pool(3);
  const auto throwing = [&] {
    pool.run(100, [](Index task, int) {
      if (task % 10 == 3) throw std::runtime_error("task");
    });
  };
  CHECK_THROWS_WITH(throwing(), "task");
  std::atomic<Index> sum{0};
  pool.run(100, [&](Index task, int) { sum += task; });
  CHECK(sum == 4950);
}

TEST_CASE("Forward and backward have the bits of the serial call on any executor, again and again.") {
  const Problem p;
  limpid::Serial serial;
  const Results wanted = run(p, serial);
  suite::Backwards backwards;
  CHECK(run(p, backwards).same_bits(wanted));
  for (int threads : {2, 3}) {
    limpid::ThreadPool pool(threads);
    for (int times = 0; times < 5; ++times) CHECK(run(p, pool).same_bits(wanted));
  }
#if defined(LIMPID_TEST_OPENMP)
  limpid::OpenMP team(3);
  CHECK(run(p, team).same_bits(wanted));
#endif
}

TEST_CASE("One operator serves several threads at once, each with a pool of its own.") {
  const Problem p;
  const auto op = limpid::twicing(limpid::causal());
  const auto in = limpid::qkv(p.q, p.k, p.v);
  const auto call = [&](limpid::ExecutorRef executor) {
    F out(2 * p.n, 2 * p.dv);
    limpid::forward(limpid::softmax(limpid::causal()), in, out,
                    {.batch = 2, .heads = 2, .kv_heads = 1, .executor = executor});
    limpid::Mat<float> square(p.m, p.dv);
    limpid::forward(op, limpid::qkv(p.k.topRows(p.m), p.k.topRows(p.m), p.v.topRows(p.m)), square,
                    {.executor = executor});
    F all(out.rows() + square.rows(), out.cols());
    all.setZero();
    all.topRows(out.rows()) = out, all.bottomLeftCorner(square.rows(), square.cols()) = square;
    return all;
  };
  limpid::Serial serial;
  const F wanted = call(serial);
  std::vector<std::thread> threads;
  std::vector<F> found(3);
  for (F& mine : found)
    threads.emplace_back([&] {
      limpid::ThreadPool pool(2);
      mine = call(pool);
    });
  for (std::thread& t : threads) t.join();
  for (const F& mine : found) CHECK(mine == wanted);
}
