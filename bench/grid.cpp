// limpid: the grid: every operator and baseline over direction, type, n, head width, causal or not, and threads
// SPDX-License-Identifier: MIT
//
// Google Benchmark runs it and keeps its command line; --grid=quick|usual|full chooses how much of the grid there is.
#include <benchmark/benchmark.h>

#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "allocation.hpp"
#include "machine.hpp"
#include "operators.hpp"
#include "ours.hpp"
#include "peers/peers.hpp"

namespace {

using namespace bench;

enum class Extent { quick, usual, full };

struct Point {
  Direction direction = Direction::forward;
  bool is_double = false;
  Index n = 0, d = 0;
  bool causal = false;
  int threads = 1;
};

/// Which points are there. The middle lines are d = 64 over n and n = 1024 over d. Usual: softmax and the baselines
/// (`plain`) have every n with every width in float on one thread, and the middle lines for double and for two threads;
/// other operators the middle lines up to n = 4096.
bool included(Extent extent, bool plain, const Point& p) {
  const bool middle = p.d == 64 || p.n == 1024;
  const bool simple = !p.is_double && p.threads == 1;
  if (extent == Extent::full) return true;
  if (extent == Extent::usual) return plain ? simple || middle : middle && p.n <= 4096;
  return middle && simple && p.n <= 2048 && (plain || (p.n == 1024 && !p.causal));
}

std::vector<Point> points() {
  std::vector<Point> all;
  for (Direction direction : {Direction::forward, Direction::backward})
    for (bool is_double : {false, true})
      for (bool causal : {false, true})
        for (int threads : {1, 2})
          for (Index d : {16, 32, 64, 128})
            for (Index n : {197, 512, 1024, 2048, 4096, 8192})
              all.push_back({direction, is_double, n, d, causal, threads});
  return all;
}

std::string name_of(const std::string& op, const Point& p) {
  return op + (p.direction == Direction::forward ? "/forward" : "/backward") + (p.is_double ? "/double/" : "/float/") +
         std::to_string(p.n) + '/' + std::to_string(p.d) + (p.causal ? "/causal" : "") +
         (p.threads > 1 ? "/threads:" + std::to_string(p.threads) : "");
}

/// What is being timed at the moment, with its arrays. Google Benchmark enters a benchmark several times in a row until
/// it knows how often to call it; the arrays are made once.
struct Running {
  std::string name;
  std::shared_ptr<void> owner;
  Candidate candidate;
};
Running running;

Crew& crew_of(int threads) {
  static Crew one(1), two(2);
  return threads == 1 ? one : two;
}

/// A candidate and whatever must live as long as it.
struct Prepared {
  std::shared_ptr<void> owner;
  Candidate candidate;
};

template <class S>
void run(benchmark::State& state, const std::string& name, const Point& p, const std::function<Prepared()>& prepare) {
  if (running.name != name) {
    running = {};  // the old arrays first
    Prepared fresh = prepare();
    running = {name, fresh.owner, fresh.candidate};
    running.candidate.seconds(1);
  }
  const double peak = peak_now<S>(crew_of(p.threads));
  running.candidate.seconds(1);
  double total = 0;
  const Allocated before = allocated();
  for (auto _ : state) {
    const double seconds = running.candidate.seconds(1);
    state.SetIterationTime(seconds);
    total += seconds;
  }
  const Allocated after = allocated();

  // Rates are worked out here: Google Benchmark's own would be printed per second a second time.
  const double flop = (p.direction == Direction::forward ? 4.0 : 10.0) * (p.causal ? 0.5 : 1.0) *
                      static_cast<double>(p.n) * static_cast<double>(p.n) * static_cast<double>(p.d);
  const double calls = static_cast<double>(state.iterations()), rate = flop * calls / total;
  state.counters["GFLOP/s"] = 1e-9 * rate;
  state.counters["peak_GFLOP/s"] = 1e-9 * peak;
  state.counters["share_of_peak"] = rate / peak;
  // torch allocates in another process, where nobody counts.
  if (name.rfind("torch/", 0) != 0)
    state.counters["bytes_allocated"] = static_cast<double>(after.bytes - before.bytes) / calls;
}

void add(const std::string& op, const Point& p, std::function<Prepared()> prepare) {
  const std::string name = name_of(op, p);
  auto* b =
      benchmark::RegisterBenchmark(name.c_str(), [name, p, prepare = std::move(prepare)](benchmark::State& state) {
        if (p.is_double)
          run<double>(state, name, p, prepare);
        else
          run<float>(state, name, p, prepare);
      });
  b->UseManualTime()->Unit(benchmark::kMillisecond);
}

/// One operator of the suite's list at one point, every input given: without its state or its gates an operator would
/// be plain attention.
template <class Entry>
Prepared prepare_ours(const Point& p) {
  suite::Sizes sizes;
  sizes.n = sizes.m = p.n, sizes.d = sizes.dv = p.d;
  RunnerOptions options;
  options.all_inputs = true, options.is_double = p.is_double, options.causal = p.causal, options.threads = p.threads;
  auto runner = make_runner<Entry>(sizes, options);
  return {runner, p.direction == Direction::backward ? candidate("ours", [runner] { runner->backward(); })
                                                     : candidate("ours", [runner] { runner->forward(); })};
}

template <class Entry>
void add_operator(Extent extent) {
  for (const Point& p : points())
    if (included(extent, std::string(Entry::name) == "softmax", p))
      add(Entry::name, p, [p] { return prepare_ours<Entry>(p); });
}

/// The peer of this name at one point; `none` tells that there is no such peer.
template <class S>
Prepared prepare_peer(const std::string& name, const Point& p) {
  auto problem = std::make_shared<Problem<S>>(make_problem<S>(1, p.n, p.d, p.causal));
  for (Peer<S>& peer : all_peers(*problem, p.direction, crew_of(p.threads)))
    if (peer.candidate.name == name) return {problem, peer.candidate};
  return {};
}

/// Baselines hold n x n matrices: the largest sizes of double would only measure the machine's memory.
bool baseline_fits(const Point& p) { return p.n <= (p.is_double ? 4096 : 8192); }

void add_peers(Extent extent) {
  for (const Point& p : points()) {
    if (!included(extent, true, p) || !baseline_fits(p)) continue;
    // Which peers there are depends on direction, type and mask, not on the size: ask with a tiny one.
    std::vector<std::string> names;
    auto ask = [&](auto scalar) {
      using S = decltype(scalar);
      const auto tiny = make_problem<S>(1, 4, p.d, p.causal);
      for (const Peer<S>& peer : all_peers(tiny, p.direction, crew_of(p.threads))) names.push_back(peer.candidate.name);
    };
    if (p.is_double)
      ask(double{});
    else
      ask(float{});
    for (const std::string& name : names) {
      if (name == "torch" && (p.n > 4096 || p.d != 64)) continue;  // half a second and more a call
      add(name, p, [name, p] { return p.is_double ? prepare_peer<double>(name, p) : prepare_peer<float>(name, p); });
    }
  }
}

/// Every peer against the naive formula in double before anything is timed, so that nobody is quick by being wrong.
bool outputs_agree() {
  bool fine = true;
  for (Direction direction : {Direction::forward, Direction::backward})
    for (bool causal : {false, true})
      for (int threads : {1, 2}) {
        const Index n = 197, d = 64;
        const auto p = make_problem<float>(1, n, d, causal);
        const auto exact = make_problem<double>(1, n, d, causal);
        Naive<double> truth(exact, crew_of(1));
        truth.forward_stored();
        truth.backward();
        Matrix<double> want = truth.out;
        if (direction == Direction::backward) {
          want.resize(3 * n, d);
          want << truth.dq, truth.dk, truth.dv;
        }
        auto check = [&](const std::string& name, const Matrix<float>& have) {
          if (have.size() == 0) return;
          const double error = suite::distance(have, want) / want.cwiseAbs().maxCoeff();
          if (error < 1e-5) return;
          std::cerr << name_of(name, {direction, false, n, d, causal, threads}) << " is wrong by " << error << '\n';
          fine = false;
        };
        for (Peer<float>& peer : all_peers(p, direction, crew_of(threads))) {
          peer.candidate.seconds(1);
          check(peer.candidate.name, peer.result());
        }
        auto mine = [&](auto op) {
          auto o = ours<float>(op, p, threads);
          o->backward();
          Matrix<float> have = o->out;
          if (direction == Direction::backward) {
            have.resize(3 * n, d);
            have << o->gradient("q"), o->gradient("k"), o->gradient("v");
          }
          check("softmax", have);
        };
        if (causal)
          mine(limpid::softmax(limpid::causal()));
        else
          mine(limpid::softmax());
      }
  return fine;
}

}  // namespace

int main(int argc, char** argv) {
  Extent extent = Extent::usual;
  bool with_peers = true;
  std::vector<char*> rest;
  for (int i = 0; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--grid=quick")
      extent = Extent::quick;
    else if (word == "--grid=usual")
      extent = Extent::usual;
    else if (word == "--grid=full")
      extent = Extent::full;
    else if (word == "--no-peers")
      with_peers = false;
    else
      rest.push_back(argv[i]);
  }
  int count = static_cast<int>(rest.size());

  suite::for_each_operator([extent](auto entry) { add_operator<decltype(entry)>(extent); });
  if (with_peers) add_peers(extent);

  benchmark::AddCustomContext("processor", processor());
  benchmark::AddCustomContext("compiler", compiler());
  benchmark::AddCustomContext("instruction_set", instruction_set());
  for (const NamedStatus& peer : peer_statuses()) {
    benchmark::AddCustomContext(peer.name, peer.status.text);
    std::cerr << "peer: " << peer.status.text << '\n';
  }
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 1;
  if (!outputs_agree()) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  running = {};
  return 0;
}
