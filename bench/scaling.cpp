// limpid: how calls spread over cores, also over more than there are: ./bench/run scaling
// SPDX-License-Identifier: MIT
//
// A call is run task by task on one thread, each timed. From what was recorded, an event by event simulation of the
// rule of core/tasks.hpp says when so many workers would have finished: a worker begins heads in order, runs its own
// loops first, helps the first open loop when it has nothing, and waits where parts of tasks keep an order. Serial
// parts and waking are in it; caches and memory shared by workers are not. Where the machine has the cores the real
// time is printed beside it.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/layer/multi_head.hpp>
#include <limpid/op/differential_gated.hpp>
#include <limpid/op/pid.hpp>
#include <limpid/op/softmax.hpp>
#include <limpid/op/twicing.hpp>
#include <map>
#include <queue>
#include <regex>

#include "machine.hpp"

namespace {

using limpid::Index;
using F = limpid::Mat<float>;
using bench::now;

// What a call was made of.

struct Part {
  double seconds;
  int order;  // -1: none
  int rank;   // in its order
};
using Task = std::vector<Part>;
struct Step {  // of a head: its own code, then a loop
  double seconds = 0;
  std::vector<Task> loop;
};
struct Region {
  double before = 0;  // serial code of the call
  int workers = 1;
  std::vector<std::vector<Step>> heads;
};
struct Recording {
  std::vector<Region> regions;
  double after = 0;
  double total() const {
    double sum = after;
    for (const Region& r : regions) {
      sum += r.before;
      for (const auto& head : r.heads)
        for (const Step& s : head) {
          sum += s.seconds;
          for (const Task& t : s.loop)
            for (const Part& p : t) sum += p.seconds;
        }
    }
    return sum;
  }
};

/// The least of every part of two recordings of one call: what disturbs the machine falls on few of them.
Recording least_of(Recording a, const Recording& b) {
  const auto least = [](double& x, double y) { x = std::min(x, y); };
  least(a.after, b.after);
  for (std::size_t r = 0; r < a.regions.size(); ++r) {
    least(a.regions[r].before, b.regions[r].before);
    for (std::size_t h = 0; h < a.regions[r].heads.size(); ++h)
      for (std::size_t s = 0; s < a.regions[r].heads[h].size(); ++s) {
        Step& step = a.regions[r].heads[h][s];
        const Step& other = b.regions[r].heads[h][s];
        least(step.seconds, other.seconds);
        for (std::size_t t = 0; t < step.loop.size(); ++t)
          for (std::size_t p = 0; p < step.loop[t].size(); ++p)
            least(step.loop[t][p].seconds, other.loop[t][p].seconds);
      }
  }
  return a;
}

/// An executor that records: one worker that says it was 64.
class Recorder : public limpid::detail::TaskTrace {
 public:
  Recording recording;

  int workers() const { return 64; }
  template <class T>
  void run(Index count, T&& task) {
    for (Index t = 0; t < count; ++t) task(t, 0);
  }
  limpid::detail::TaskTrace* trace() { return this; }

  template <class Call>
  Recording record(const Call& call) {
    recording = {}, depth_ = next_order_ = 0, last_ = now();
    call();
    recording.after += passed();
    return recording;
  }
  void begin_loop(Index, int workers) override {
    if (depth_ == 0)
      recording.regions.push_back({passed(), workers, {}});
    else
      own() += passed();
    ++depth_;
    orders_.clear();  // another loop's may lie in the same place
    last_ = now();
  }
  void end_loop() override {
    passed();
    if (--depth_ == 2) head().emplace_back();
    last_ = now();
  }
  void begin_task() override {
    passed();
    if (depth_++ == 1)
      recording.regions.back().heads.emplace_back(1);
    else
      head().back().loop.push_back({{0, -1, 0}});
    last_ = now();
  }
  void end_task() override {
    own() += passed();
    --depth_;
    last_ = now();
  }
  void begin_ordered(const void* order) override {
    own() += passed();
    auto& [number, count] = orders_.try_emplace(order, next_order_, 0).first->second;
    next_order_ += number == next_order_;
    head().back().loop.back().push_back({0, number, count++});
    last_ = now();
  }
  void end_ordered(const void*) override {
    own() += passed();
    head().back().loop.back().push_back({0, -1, 0});
    last_ = now();
  }

 private:
  double passed() { return now() - last_; }
  std::vector<Step>& head() { return recording.regions.back().heads.back(); }
  double& own() { return depth_ == 2 ? head().back().seconds : head().back().loop.back().back().seconds; }
  int depth_ = 0;
  double last_ = 0;
  int next_order_ = 0;
  std::map<const void*, std::pair<int, int>> orders_;  // number and parts so far
};

// When workers would have finished.

struct Costs {
  double begin, wake;  // seconds until another thread begins, in sight of the call; what the caller pays to wake one
};

class Simulation {
 public:
  Simulation(const Region& region, int workers, Costs costs) : region_(region), workers_(workers) {
    for (int w = 0; w < std::min(workers, region.workers); ++w) resume(w, w == 0 ? 0 : costs.begin + costs.wake * w);
    while (!events_.empty()) {
      const auto [time, number, w] = events_.top();
      events_.pop();
      now_ = time;
      go_on(static_cast<std::size_t>(w));
    }
  }
  double end() const { return end_; }

 private:
  struct Open {  // a head's loop
    std::size_t next = 0;
    int inside = 0;
    bool open = false;
  };
  struct Worker {
    int head = -1, of = -1, order = -1;  // whose head it has, whose task, which order's part it has just done
    std::size_t step = 0, part = 0;
    const Task* task = nullptr;
    bool coded = false;  // its step's own code is done
    Open loop;
  };

  void resume(int w, double at) { events_.push({at, count_++, w}); }
  void wake_waiting() {
    for (const int w : waiting_) resume(w, now_);
    waiting_.clear();
  }
  const std::vector<Task>& loop_of(const Worker& o) const {
    return region_.heads[static_cast<std::size_t>(o.head)][o.step].loop;
  }
  bool take(std::size_t w, std::size_t owner) {
    Worker& o = workers_[owner];
    if (!o.loop.open || o.loop.next >= loop_of(o).size()) return false;
    workers_[w].task = &loop_of(o)[o.loop.next++], workers_[w].part = 0, workers_[w].of = static_cast<int>(owner);
    ++o.loop.inside;
    return true;
  }
  bool help(std::size_t w) {
    for (std::size_t k = 0; k < workers_.size(); ++k)
      if (const std::size_t other = (5 * w + k) % workers_.size(); other != w && take(w, other)) return true;
    return false;
  }
  void go_on(std::size_t me) {
    Worker& w = workers_[me];
    for (;;) {
      if (w.order >= 0) {  // whoever waits for this part may begin his
        ++done_[w.order];
        for (const int other : blocked_[w.order]) resume(other, now_);
        blocked_[w.order].clear(), w.order = -1;
      }
      if (w.task) {
        if (w.part == w.task->size()) {
          w.task = nullptr;
          if (--workers_[static_cast<std::size_t>(w.of)].loop.inside == 0) wake_waiting();
          continue;
        }
        const Part& p = (*w.task)[w.part];
        if (p.order >= 0 && done_[p.order] != p.rank) return blocked_[p.order].push_back(static_cast<int>(me));
        ++w.part, w.order = p.order;
        return resume(static_cast<int>(me), now_ + p.seconds);
      }
      if (w.head >= 0) {
        const auto& steps = region_.heads[static_cast<std::size_t>(w.head)];
        if (w.step == steps.size()) {
          w.head = -1, end_ = std::max(end_, now_);
          continue;
        }
        if (!w.coded) {
          w.coded = true;
          return resume(static_cast<int>(me), now_ + steps[w.step].seconds);
        }
        if (!w.loop.open && !steps[w.step].loop.empty()) {
          w.loop = {0, 0, true};
          wake_waiting();
        }
        if (take(me, me)) continue;
        if (w.loop.inside == 0) {
          ++w.step, w.coded = false, w.loop = {};
          continue;
        }
      } else if (next_ < region_.heads.size()) {
        w.head = static_cast<int>(next_++), w.step = 0, w.coded = false, w.loop = {};
        continue;
      }
      if (help(me)) continue;
      return waiting_.push_back(static_cast<int>(me));
    }
  }

  const Region& region_;
  std::vector<Worker> workers_;
  std::size_t next_ = 0;
  std::map<int, int> done_;
  std::map<int, std::vector<int>> blocked_;
  std::vector<int> waiting_;
  std::priority_queue<std::tuple<double, long, int>, std::vector<std::tuple<double, long, int>>, std::greater<>>
      events_;
  long count_ = 0;
  double now_ = 0, end_ = 0;
};

double computed(const Recording& r, int workers, Costs costs) {
  double sum = r.after;
  for (const Region& region : r.regions) sum += region.before + Simulation(region, workers, costs).end();
  return sum;
}

/// Seconds until a pool's other thread has begun, the pool just used, or asleep.
double begin_of(limpid::ThreadPool& pool, double idle) {
  std::vector<double> times;
  for (int i = 0; i < 51; ++i) {
    const double until = now() + idle;
    while (now() < until) {
    }
    std::atomic<double> begun{0};
    const double start = now();
    pool.run(2, [&](Index, int worker) {
      if (worker != 0) begun = now();
      while (begun == 0 && now() < start + 2e-3) {
      }
    });
    if (begun != 0) times.push_back(begun - start);
  }
  return times.empty() ? 0 : *std::min_element(times.begin(), times.end());  // the other core may be at work for others
}

// What is called.

struct Shape {
  Index batch, heads, n;
  std::string text() const {
    return (batch > 1 ? std::to_string(batch) + " x " : "") + std::to_string(heads) + " of " + std::to_string(n);
  }
};

class Bench {
 public:
  std::regex only;
  int real = static_cast<int>(std::thread::hardware_concurrency());

  Bench() {
    limpid::ThreadPool two(2);
    awake_ = begin_of(two, 0), asleep_ = begin_of(two, 2e-3);
    bench::Crew one(1), both(2);
    std::printf("another thread begins after %.1f us, %.1f us if it sleeps; two threads have %.2f of one's peak\n",
                1e6 * awake_, 1e6 * asleep_, bench::peak_now<float>(both) / bench::peak_now<float>(one));
    std::printf("%-52s %9s |", "computed from tasks timed one by one", "1 thread");
    for (const int w : {2, 4, 8, 16, 32, 64}) std::printf(" %5d", w);
    std::printf(" | at 16 | real:\n");
  }

  /// call(executor), timed.
  template <class Call>
  void row(const std::string& name, const Call& call) {
    if (!std::regex_search(name, only)) return;
    Recorder recorder;
    call(limpid::ExecutorRef(recorder));
    Recording best = recorder.record([&] { call(limpid::ExecutorRef(recorder)); });
    const double begun = now();
    for (int i = 0; i < 200 && (i < 4 || now() < begun + 0.4); ++i) {
      best = least_of(std::move(best), recorder.record([&] { call(limpid::ExecutorRef(recorder)); }));
    }
    const double one = best.total();
    std::printf("%-52s %6.3f ms |", name.c_str(), 1e3 * one);
    double at_16 = 0;
    for (const int w : {2, 4, 8, 16, 32, 64}) {
      const double speed = one / computed(best, w, {awake_, 0});
      std::printf(" %5.2f", speed);
      if (w == 16) at_16 = speed / 16;
    }
    const double must = one >= 5e-3 ? 0.8 : (one >= 0.5e-3 ? 0.6 : 0);
    std::printf(" | %.2f%s |", at_16, at_16 < must ? " <" : "  ");
    double serial = 0;
    for (const int w : {1, 2, 4, 8, 16, 32, 64}) {
      if (w > real) break;
      limpid::ThreadPool pool(w);
      const auto candidate = bench::candidate("", [&] { call(limpid::ExecutorRef(pool)); });
      candidate.seconds(1);
      double least = candidate.seconds(1);
      const double until = now() + 0.5;
      while (now() < until) least = std::min(least, candidate.seconds(1));
      if (w == 1)
        serial = least;
      else
        std::printf(" %d: %.2f", w, serial / least);
    }
    std::printf("\n");
    std::fflush(stdout);
    ++rows_, low_ += at_16 < must;
  }
  ~Bench() {
    std::printf("%d of %d rows below 0.80 at 16 from 5 ms on, or 0.60 from 0.5 ms on: marked <\n", low_, rows_);
  }

  template <class Op>
  void op(const std::string& name, const Op& op, Shape s, Index query_width = 64) {
    const auto random = [&](Index width) { return F(F::Random(s.batch * s.n, s.heads * width)); };
    const F q = random(query_width), k = random(query_width), v = random(64), reference = random(64), dout = random(64);
    limpid::Inputs<Op, float> in;
    limpid::Grads<Op, float> grad;
    in.q = q, in.k = k, in.v = v;
    if constexpr (requires { in.v_prev; }) in.reference = reference, in.v_prev = v;
    F out = dout, dq = q, dk = k, dv = v;
    grad.q = dq, grad.k = dk, grad.v = dv;
    limpid::Saved<Op, float> saved;
    limpid::Workspace workspace;
    const auto forward = [&](limpid::ExecutorRef e) {
      limpid::forward(op, in, out,
                      {.batch = s.batch, .heads = s.heads, .saved = &saved, .workspace = &workspace, .executor = e});
    };
    forward({});
    row(name + ", " + s.text() + ", forward", forward);
    row(name + ", " + s.text() + ", backward", [&](limpid::ExecutorRef e) {
      limpid::backward(op, in, saved, dout, grad, {.workspace = &workspace, .executor = e});
    });
  }

  void layer() {
    constexpr Index tokens = 257, width = 384;
    const auto layer = limpid::multi_head(limpid::softmax(), 6);
    using Layer = std::remove_const_t<decltype(layer)>;
    const F x = F::Random(tokens, width), w = F::Random(width, width) / 20, dout = x;
    F out = x, dx = x, dw[4] = {w, w, w, w};
    Layer::Args<float> in;
    in.x = x, in.wq = w, in.wk = w, in.wv = w, in.wo = w;
    Layer::Grads<float> grad;
    grad.x = dx, grad.wq = dw[0], grad.wk = dw[1], grad.wv = dw[2], grad.wo = dw[3];
    Layer::Saved<float> saved;
    limpid::Workspace workspace;
    const auto forward = [&](limpid::ExecutorRef e) {
      layer.forward(in, out, {.saved = &saved, .workspace = &workspace, .executor = e});
    };
    forward({});
    row("multi_head of width 384 on 257 tokens, forward", forward);
    row("multi_head of width 384 on 257 tokens, backward", [&](limpid::ExecutorRef e) {
      layer.backward<float>(in, saved, dout, grad, {.workspace = &workspace, .executor = e});
    });
  }

 private:
  double awake_, asleep_;
  int rows_ = 0, low_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  std::string only;
  CLI::App app{"how calls spread over cores"};
  app.add_option("--only", only, "rows whose name this expression finds");
  CLI11_PARSE(app, argc, argv);
  Bench bench;
  bench.only = std::regex(only);
  const auto causal = limpid::causal();
  for (const Shape s :
       {Shape{1, 1, 1024}, {1, 1, 4096}, {1, 1, 8192}, {1, 12, 197}, {1, 8, 1024}, {1, 16, 2048}, {8, 12, 197}}) {
    bench.op("softmax", limpid::softmax(), s);
    bench.op("softmax, causal", limpid::softmax(causal), s);
    bench.op("twicing", limpid::twicing(), s);
    bench.op("twicing, causal", limpid::twicing(causal), s);
    bench.op("gated", limpid::differential_gated(), s, 128);
    bench.op("gated, causal", limpid::differential_gated(causal), s, 128);
    bench.op("pid", limpid::pid(), s);
    bench.op("pid, causal", limpid::pid(causal), s);
  }
  bench.layer();
}
