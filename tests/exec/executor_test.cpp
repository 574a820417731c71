// limpid: executors with operators on them: what a thread sanitizer watches, small enough to be built for it.
// SPDX-License-Identifier: MIT
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/explain/map.hpp>
#include <limpid/op/softmax.hpp>
#include <limpid/op/twicing.hpp>
#include <memory>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>
#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif
#if defined(LIMPID_TEST_OPENMP)
#include <limpid/exec/openmp.hpp>
#endif

#include "support/catch.hpp"
#include "support/compiled_steps.hpp"
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

/// A mask of one type whatever it keeps.
auto pairs(std::function<bool(const limpid::At&)> keep) { return limpid::mask(std::move(keep)); }

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

TEST_CASE("Of exceptions of several tasks the first one comes out, and no task is begun after it.") {
  limpid::ThreadPool pool(3);
  for (int times = 0; times < 3; ++times) {
    std::atomic<int> begun{0};
    const auto all_at_once = [&] {
      pool.run(3, [&](Index task, int) {
        ++begun;
        while (begun != 3) std::this_thread::yield();
        if (task == 1) throw std::runtime_error("first");
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        throw std::runtime_error("later");
      });
    };
    CHECK_THROWS_WITH(all_at_once(), "first");
    begun = 0;
    CHECK_THROWS(pool.run(1000, [&](Index, int) {
      ++begun;
      throw std::runtime_error("task");
    }));
    CHECK(begun <= 3);  // one a thread at most
  }
}

TEST_CASE("Forward and backward have the bits of the serial call on any executor, again and again.") {
  const Problem p;
  limpid::Serial serial;
  const Results wanted = run(p, serial);
  suite::Backwards backwards;
  CHECK(run(p, backwards).same_bits(wanted));
  for (int threads : {2, 3}) {
    limpid::ThreadPool pool(threads);
    auto all = suite::eager(pool);
    for (int times = 0; times < 5; ++times) CHECK(run(p, all).same_bits(wanted));
  }
#if defined(LIMPID_TEST_OPENMP)
  limpid::OpenMP team(3);
  auto whole_team = suite::eager(team);
  CHECK(run(p, whole_team).same_bits(wanted));
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

namespace {

/// sum of task over 0 .. count - 1, by a run; and no worker twice at a time.
template <class E>
Index sum_of(E& executor, Index count) {
  std::atomic<Index> sum{0};
  std::vector<std::atomic<int>> busy(static_cast<std::size_t>(executor.workers()));
  std::atomic<bool> apart{true};
  executor.run(count, [&](Index t, int worker) {
    if (++busy[static_cast<std::size_t>(worker)] != 1) apart = false;
    sum += t;
    --busy[static_cast<std::size_t>(worker)];
  });
  return apart ? sum.load() : Index(-1);
}

}  // namespace

TEST_CASE("A pool may be used inside its own tasks, several levels deep, and inside another pool's.") {
  limpid::ThreadPool pool(3), other(2);
  std::atomic<Index> sum{0};
  for (int times = 0; times < 20; ++times) {
    sum = 0;
    pool.run(7, [&](Index, int) {
      sum += sum_of(pool, 100);
      pool.run(3, [&](Index, int) {
        sum += sum_of(other, 10);
        other.run(2, [&](Index, int) { sum += sum_of(pool, 5); });
      });
    });
    CHECK(sum == 7 * (4950 + 3 * (45 + 2 * 10)));
  }
  std::atomic<int> apart{0};
  pool.run(2, [&](Index, int) {  // also where a thread is free
    const auto own = std::this_thread::get_id();
    pool.run(20, [&](Index, int worker) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      apart += worker != 0 || std::this_thread::get_id() != own;
    });
  });
  CHECK(apart == 0);
  const Problem p;
  limpid::Serial serial;
  const Results wanted = run(p, serial);
  std::atomic<int> same{0};
  pool.run(4, [&](Index, int) { same += run(p, pool).same_bits(wanted); });
  CHECK(same == 4);
#if defined(LIMPID_TEST_OPENMP)
  limpid::OpenMP team(3);
  same = 0;
  team.run(4, [&](Index, int) { same += run(p, team).same_bits(wanted); });
  CHECK(same == 4);
#endif
}

TEST_CASE("A task of one pool that calls another one, which is busy, does not wait for it: it does the work itself.") {
  limpid::ThreadPool busy(3), other(2);
  std::atomic<int> begun{0}, apart{0};
  std::atomic<bool> done{false}, in_time{true};
  std::thread caller([&] {
    busy.run(3, [&](Index, int) {
      ++begun;
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
      while (!done && in_time) {
        if (std::chrono::steady_clock::now() > end) in_time = false;
        std::this_thread::yield();
      }
    });
  });
  while (begun != 3) std::this_thread::yield();
  std::atomic<Index> sum{0};
  other.run(4, [&](Index, int) {
    const auto own = std::this_thread::get_id();
    busy.run(10, [&](Index t, int) {
      apart += std::this_thread::get_id() != own;
      sum += t;
    });
  });
  done = true;
  caller.join();
  CHECK(in_time);
  CHECK(apart == 0);
  CHECK(sum == 4 * 45);
}

namespace {

/// Waits until something holds, for so long that it would never.
template <class Condition>
bool comes_true(const Condition& holds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!holds())
    if (std::chrono::steady_clock::now() > end)
      return false;
    else
      std::this_thread::yield();
  return true;
}

}  // namespace

TEST_CASE("A call of a pool from another thread does not wait for the one that is at work.") {
  limpid::ThreadPool pool(3);
  for (int times = 0; times < 3; ++times) {
    std::atomic<int> begun{0}, apart{0}, in_time{0};
    std::atomic<bool> done{false};
    std::thread first([&] {
      pool.run(3, [&](Index, int) {
        ++begun;
        in_time += comes_true([&] { return done.load(); });
      });
    });
    while (begun != 3) std::this_thread::yield();
    CHECK(sum_of(pool, 50) == 1225);
    const auto own = std::this_thread::get_id();
    pool.run(10, [&](Index, int) { apart += std::this_thread::get_id() != own; });
    done = true;
    first.join();
    CHECK(apart == 0);  // all of the pool's threads were at work
    CHECK(in_time == 3);
  }
}

TEST_CASE("A thread of a pool that has nothing to do helps whichever call has tasks left.") {
  limpid::ThreadPool pool(4);
  for (int times = 0; times < 3; ++times) {
    std::atomic<int> begun{0}, both{0}, in_time{0};
    std::atomic<bool> done{false};
    std::thread first([&] {
      pool.run(2, [&](Index, int) {  // two of the pool's three at most
        ++begun;
        in_time += comes_true([&] { return done.load(); });
      });
    });
    while (begun != 2) std::this_thread::yield();
    pool.run(2, [&](Index, int) {
      ++both;
      in_time += comes_true([&] { return both == 2; });
    });
    done = true;
    first.join();
    CHECK(in_time == 4);
    CHECK(sum_of(pool, 100) == 4950);
  }
}

TEST_CASE("A task may wait for a thread that uses the same executor, with the bits of a serial call.") {
  const Problem p;
  limpid::Serial serial;
  const Results wanted = run(p, serial);
  const auto check = [&](auto& executor) {
    std::atomic<int> same{0}, sums{0};
    executor.run(4, [&](Index, int) {
      std::thread other([&] {
        sums += sum_of(executor, 30) == 435;
        executor.run(3, [&](Index, int) {
          std::thread third([&] { same += run(p, executor).same_bits(wanted); });
          third.join();
        });
      });
      other.join();
    });
    CHECK(sums == 4);
    CHECK(same == 12);
    CHECK(sum_of(executor, 100) == 4950);
  };
  for (int threads : {2, 3}) {
    limpid::ThreadPool pool(threads);
    for (int times = 0; times < 3; ++times) check(pool);
    limpid::ThreadPool outer(2);  // and with another pool between
    std::atomic<Index> sum{0};
    pool.run(3, [&](Index, int) {
      std::thread([&] {
        outer.run(3, [&](Index, int) { std::thread([&] { sum += sum_of(pool, 10); }).join(); });
      }).join();
    });
    CHECK(sum == 9 * 45);
  }
#if defined(LIMPID_TEST_OPENMP)
  limpid::OpenMP team(3);
  check(team);
#endif
}

#if defined(LIMPID_TEST_OPENMP)
TEST_CASE("A task on an OpenMP team may throw while the caller is in a critical section of the program's own.") {
  limpid::OpenMP team(3);
  std::string found;
#pragma omp critical
  found = suite::error_of([&] { team.run(4, [](Index, int) { throw std::runtime_error("task"); }); });
  CHECK(found == "task");
}
#endif

TEST_CASE(
    "Calls of one pool from several threads go on side by side: none is lost, and the bits are a serial call's.") {
  limpid::ThreadPool pool(3);
  std::atomic<int> right{0};
  std::vector<std::thread> callers;
  for (Index c = 0; c < 4; ++c)
    callers.emplace_back([&, c] {
      for (Index times = 0; times < 200; ++times) right += sum_of(pool, 50 + c) == (50 + c) * (49 + c) / 2;
    });
  for (std::thread& t : callers) t.join();
  CHECK(right == 800);

  const Problem p;
  limpid::Serial serial;
  const Results wanted = run(p, serial);
  callers.clear(), right = 0;
  for (int c = 0; c < 3; ++c)
    callers.emplace_back([&] {
      auto all = suite::eager(pool);
      for (int times = 0; times < 3; ++times) right += run(p, all).same_bits(wanted);
    });
  for (std::thread& t : callers) t.join();
  CHECK(right == 9);
}

TEST_CASE("An exception of a task is its own call's, while other calls of the pool go on.") {
  limpid::ThreadPool pool(3);
  std::atomic<int> right{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&, c] {
      for (int times = 0; times < 100; ++times) {
        const std::string mine = std::to_string(c);
        const auto throwing = [&] {
          pool.run(10, [&](Index task, int) {
            if (task == times % 10) throw std::runtime_error(mine);
          });
        };
        right += c % 2 == 0 ? suite::error_of(throwing) == mine : sum_of(pool, 30) == 435;
      }
    });
  for (std::thread& t : callers) t.join();
  CHECK(right == 400);
}

TEST_CASE("A task that throws inside a task, or in many at once, surfaces once, and the pool serves on.") {
  limpid::ThreadPool pool(3);
  for (int times = 0; times < 20; ++times) {
    CHECK_THROWS_WITH(
        pool.run(9, [&](Index, int) { pool.run(3, [](Index, int) { throw std::runtime_error("deep"); }); }), "deep");
    CHECK_THROWS_WITH(pool.run(100, [](Index, int) { throw std::runtime_error("all"); }), "all");
    CHECK(sum_of(pool, 100) == 4950);
  }
}

TEST_CASE("Pools of no threads are the caller's thread; pools that were never used, or just used, end.") {
  for (int threads : {0, -1, -1000, 1}) {
    limpid::ThreadPool pool(threads);
    CHECK(pool.workers() == 1);
    CHECK(sum_of(pool, 10) == 45);
  }
  for (int times = 0; times < 50; ++times) {
    limpid::ThreadPool idle(3), used(3);
    CHECK(sum_of(used, 4) == 6);
  }
}

#if defined(__SANITIZE_THREAD__)
#define LIMPID_TEST_FORKS 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define LIMPID_TEST_FORKS 0  // its own threads do not survive a fork
#endif
#endif
#if defined(__unix__) && !defined(LIMPID_TEST_FORKS)
TEST_CASE("In the child of a fork a pool runs its tasks on the child's thread, and ends.") {
  for (bool used : {false, true}) {
    auto pool = std::make_unique<limpid::ThreadPool>(3);
    if (used) CHECK(sum_of(*pool, 100) == 4950);
    const pid_t child = fork();
    if (child == 0) {
      alarm(10);  // a child that hangs is ended by it
      const bool right = sum_of(*pool, 100) == 4950;
      pool.reset();
      _exit(right ? 0 : 1);
    }
    REQUIRE(child > 0);
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
    CHECK(sum_of(*pool, 100) == 4950);  // the parent's is untouched
  }
}

#if defined(LIMPID_TEST_OPENMP)
TEST_CASE("In the child of a fork an OpenMP team, old or new, runs its tasks on the child's thread.") {
  limpid::OpenMP team(3), never_used(3);
  CHECK(sum_of(team, 100) == 4950);  // now the runtime has threads, which the child will lack
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    limpid::OpenMP fresh(3);
    const std::thread::id here = std::this_thread::get_id();
    bool right = true;
    for (limpid::OpenMP* one : {&team, &never_used, &fresh}) {
      right = right && sum_of(*one, 100) == 4950;
      one->run(10, [&](Index, int worker) { right = right && worker == 0 && std::this_thread::get_id() == here; });
    }
    _exit(right ? 0 : 1);
  }
  REQUIRE(child > 0);
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  CHECK(sum_of(team, 100) == 4950);
}
#endif
#endif

namespace {

/// Two heads on one key head, so long that their tasks wait for one another: some see nothing, some add to one dQ, to
/// one dK in stretches, to one key bias. Gradients are added to what is there.
template <class Mask>
Results run_long(const Problem& p, const Mask& mask, Index n, Index m, limpid::Workspace& workspace,
                 limpid::ExecutorRef executor) {
  suite::Random random(11);
  const F q = suite::random_matrix<float>(random, n, 2 * p.d), k = suite::random_matrix<float>(random, m, p.d),
          v = suite::random_matrix<float>(random, m, p.dv), dout = suite::random_matrix<float>(random, n, 2 * p.dv),
          bias = suite::random_matrix<float>(random, 1, m);
  Results r{F(n, 2 * p.dv), q, k, v, F::Zero(1, m)};
  const auto op = limpid::softmax(limpid::chain(mask, limpid::key_bias(bias, r.dbias)));
  limpid::Saved<std::remove_const_t<decltype(op)>, float> saved;
  limpid::forward(op, limpid::qkv(q, k, v), r.out,
                  {.heads = 2, .kv_heads = 1, .saved = &saved, .workspace = &workspace, .executor = executor});
  limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(r.dq, r.dk, r.dv),
                   {.accumulate = true, .workspace = &workspace, .executor = executor});
  return r;
}

#if defined(__OPTIMIZE__)
constexpr Index long_times = 50;
#else
constexpr Index long_times = 3;
#endif

}  // namespace

TEST_CASE("A thousand runs on four threads have the bits of the serial one.") {
  limpid::ThreadPool pool(4);
  auto all = suite::eager(pool);
  limpid::Serial serial;
  const Problem p;
  const Results wanted = run(p, serial);
  Index same = 0;
  for (int times = 0; times < 1000; ++times) same += run(p, all).same_bits(wanted);
  CHECK(same == 1000);
  const auto check = [&](const auto& mask, Index n, Index m) {
    limpid::Workspace own, shared;
    const Results right = run_long(p, mask, n, m, own, serial);
    suite::Backwards backwards;
    CHECK(run_long(p, mask, n, m, own, backwards).same_bits(right));
    same = 0;
    for (Index times = 0; times < long_times; ++times) same += run_long(p, mask, n, m, shared, all).same_bits(right);
    CHECK(same == long_times);
  };
  for (Index n : {300, 513}) {
    check(limpid::window(-1, -1), n, 900);
    check(limpid::causal(), n, n);
    check(limpid::window(70, 0), n, n);
    check(pairs([](const limpid::At& a) { return (a.q / 200 + a.k / 200) % 2 == 0; }), n, 900);
    check(pairs([](const limpid::At& a) { return a.q > 150 && a.k > 130 && a.k < 500; }), n, 900);
  }
}

TEST_CASE("A hundred thousand runs of few tasks lose none of them.") {
  limpid::ThreadPool pool(4);
  Index right = 0;
  constexpr Index runs = 100000;
  for (Index times = 0; times < runs; ++times) {
    std::atomic<Index> sum{0};
    const Index count = 1 + times % 5;
    pool.run(count, [&](Index t, int) { sum.fetch_add(t + 1, std::memory_order_relaxed); });
    right += sum == count * (count + 1) / 2;
  }
  CHECK(right == runs);
}

TEST_CASE("Heads and their loops run once each, whoever helps; what keeps an order keeps it.") {
  const auto check = [](limpid::ExecutorRef executor, Index heads, Index count) {
    limpid::Workspace workspace;
    std::vector<std::atomic<int>> heads_seen(static_cast<std::size_t>(heads));
    std::vector<std::atomic<int>> seen(static_cast<std::size_t>(heads * count));
    std::atomic<bool> in_order{true};
    limpid::detail::TaskTree tree(workspace, executor, 1e30);
    tree.run(heads, [&](Index h, int worker, limpid::Arena& arena) {
      ++heads_seen[static_cast<std::size_t>(h)];
      for (int twice = 0; twice < 2; ++twice) {
        limpid::detail::Order order;
        Index last = -1;  // changed in turn alone
        order.next = 0;
        limpid::detail::Context(tree, worker, arena)
            .run(
                count, [](limpid::Arena& own) { return own.take<float>(64); },
                [&](float* scratch, Index t) {
                  scratch[t % 64] = float(t);
                  ++seen[static_cast<std::size_t>(h * count + t)];
                  tree.in_order(order, t, t + 1, [&] {
                    if (last != t - 1) in_order = false;
                    last = t;
                  });
                  if (scratch[t % 64] != float(t)) in_order = false;
                });
        if (last != count - 1) in_order = false;  // a loop ends when its tasks have
      }
    });
    CHECK(in_order);
    CHECK(std::all_of(heads_seen.begin(), heads_seen.end(), [](const auto& times) { return times == 1; }));
    CHECK(std::all_of(seen.begin(), seen.end(), [](const auto& times) { return times == 2; }));
  };
  limpid::Serial serial;
  suite::Backwards backwards;
  suite::Nosy nosy;
  limpid::ThreadPool two(2), four(4);
  std::vector<limpid::ExecutorRef> executors = {serial, backwards, nosy, two, four};
#if defined(LIMPID_TEST_OPENMP)
  limpid::OpenMP team(3);
  executors.push_back(team);
#endif
  for (const auto& executor : executors)
    for (Index heads : {0, 1, 2, 3, 7, 50})
      for (Index count : {0, 1, 2, 40})
        for (int times = 0; times < 5; ++times) check(executor, heads, count);
}

TEST_CASE("The first exception of a call's task ends the call, also for those that wait for the task's turn.") {
  limpid::ThreadPool pool(4);
  suite::Backwards backwards;
  const Problem p;
  limpid::Workspace workspace;
  auto all = suite::eager(pool);
  limpid::Serial serial;
  const Results wanted = run_long(p, limpid::window(-1, -1), 600, 900, workspace, serial);
  for (limpid::ExecutorRef executor :
       {limpid::ExecutorRef(serial), limpid::ExecutorRef(backwards), limpid::ExecutorRef(all)})
    for (Index place : {0, 299, 599}) {
      std::atomic<int> asked{0};
      const auto mask = pairs([&](const limpid::At& a) {
        ++asked;
        if (a.q == place && a.k == 777) throw std::runtime_error("mask");
        return true;
      });
      CHECK(suite::error_of([&] { run_long(p, mask, 600, 900, workspace, executor); }) == "mask");
      CHECK(run_long(p, limpid::window(-1, -1), 600, 900, workspace, executor).same_bits(wanted));
    }
  limpid::detail::TaskTree tree(workspace, pool, 1e30);
  for (int times = 0; times < 20; ++times) {
    std::atomic<int> heads{0}, running{0};
    const auto throwing = [&] {
      limpid::detail::TaskTree one(workspace, pool, 1e30);
      one.run(100, [&](Index h, int worker, limpid::Arena& arena) {
        ++heads, ++running;
        struct Leave {
          std::atomic<int>& count;
          ~Leave() { --count; }
        } leave{running};
        limpid::detail::Order order;
        limpid::detail::Context(one, worker, arena)
            .run(
                30, [](limpid::Arena&) { return 0; },
                [&](int, Index t) {
                  if (h == 2 && t == 3) throw std::runtime_error("task");
                  one.in_order(order, t, t + 1, [] {});
                });
      });
    };
    CHECK_THROWS_WITH(throwing(), "task");
    CHECK(running == 0);
    CHECK(heads <= 100);
  }
}

namespace {

/// A pool of somebody else's, which knows whether it is inside.
struct Foreign {
  bool in = false;
  int workers() const { return 4; }
  bool inside() const { return in; }
  template <class Task>
  void run(Index count, Task&& task) {
    for (Index t = 0; t < count; ++t) task(t, 0);
  }
};

}  // namespace

TEST_CASE("A call with an executor inside a task of a call runs serially, whatever executor it has.") {
  limpid::ThreadPool pool(3), other(3);
  auto all = suite::eager(other);
  const Problem p;
  limpid::Serial serial;
  const Results wanted = run(p, serial);
  std::atomic<int> same{0}, apart{0};
  pool.run(6, [&](Index, int) {
    const auto own = std::this_thread::get_id();
    other.run(4, [&](Index, int) { apart += std::this_thread::get_id() != own; });
    same += run(p, all).same_bits(wanted);
    apart += limpid::ExecutorRef(all).workers() != 1;
  });
  CHECK(apart == 0);
  CHECK(same == 6);
  Foreign foreign;
  CHECK(limpid::ExecutorRef(foreign).workers() == 4);
  foreign.in = true;
  CHECK(limpid::ExecutorRef(foreign).workers() == 1);
}

TEST_CASE("Nothing is allocated after the first call of the same shapes, also with threads.") {
  limpid::ThreadPool pool(4);
  auto all = suite::eager(pool);
  const Problem p;
  limpid::Workspace workspace;
  run_long(p, limpid::causal(), 600, 600, workspace, all);
  const std::size_t held = workspace.bytes();
  for (int times = 0; times < 20; ++times) {
    run_long(p, limpid::causal(), 600, 600, workspace, all);
    CHECK(workspace.bytes() == held);
  }
}

TEST_CASE("One workspace, or one saved state, in two calls at the same time is refused; one after the other is fine.") {
  const F q = F::Random(40, 8), k = q, v = q;
  F out(40, 8), second(40, 8);
  limpid::Workspace workspace;
  const auto op = limpid::softmax();
  limpid::Saved<decltype(op), float> saved;
  std::string found;
  // a mask that runs another call on another thread while the first one is at work
  bool asked = false;
  const auto during = [&](const auto& other) {
    asked = false;
    const auto nosy = limpid::softmax(pairs([&](const limpid::At&) {
      if (!std::exchange(asked, true)) std::thread([&] { found = suite::error_of(other); }).join();
      return true;
    }));
    found.clear();
    return nosy;
  };
  const auto again = [&] { limpid::forward(op, limpid::qkv(q, k, v), second, {.workspace = &workspace}); };
  limpid::forward(during(again), limpid::qkv(q, k, v), out, {.workspace = &workspace});
  CHECK(found.find("workspace is in use by a call on another thread") == 0);
  again();
  CHECK(second == out);
  std::thread(again).join();
  const limpid::Workspace moved = std::move(workspace);
  limpid::Workspace fresh;
  limpid::forward(op, limpid::qkv(q, k, v), second, {.workspace = &fresh});

  limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved});
  CHECK(saved.turn.write());  // as a forward pass on another thread would have it
  CHECK(suite::error_of([&] {
          limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved});
        }).find("softmax: saved is in use") == 0);
  F dq(40, 8), dk(40, 8), dv(40, 8), map(1, 40);
  const auto back = [&] { limpid::backward(op, limpid::qkv(q, k, v), saved, out, limpid::grads(dq, dk, dv)); };
  CHECK(suite::error_of(back).find("softmax: saved is in use") == 0);
  CHECK(suite::error_of([&] {
          limpid::map_block(op, limpid::qkv(q, k, v), saved, 0, 0, map);
        }).find("softmax: saved is in use") == 0);
  saved.turn.end_write();
  CHECK(saved.turn.read());  // as another backward pass would
  back();
  limpid::map_block(op, limpid::qkv(q, k, v), saved, 0, 0, map);
  CHECK(suite::error_of([&] {
          limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved});
        }).find("softmax: saved is in use") == 0);
  saved.turn.end_read();
  limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved});
}
