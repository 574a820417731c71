// limpid: torch in a process of its own, timed round by round over a pipe
// SPDX-License-Identifier: MIT
#include <cstdlib>
#include <sstream>

#include "peers.hpp"
#include "process.hpp"

namespace bench {
namespace {

// peers/torch_attention.py, started once and asked for every figure: "threads" threads, one problem, so many calls. It
// answers with the seconds.
class Server {
 public:
  static Server& instance() {
    static Server server;
    return server;
  }
  const PeerStatus& status() const { return status_; }

  double ask(const std::string& question) { return std::strtod(process_.ask(question).c_str(), nullptr); }

 private:
  Server() {
    // torch 2 or later first, which people install for their python; the distribution's own, which need not be the
    // first python on the path, may be older. Of those that are left out the first has its line.
    for (const char* oldest : {"torch 2", "torch 1"})
      for (const std::string& python : Process::pythons(LIMPID_BENCH_SOURCE)) {
        if (!process_.start(python, LIMPID_BENCH_SOURCE "/peers/torch_attention.py")) continue;
        const std::string hello = process_.line();
        if (hello.rfind("torch", 0) == 0 && hello.substr(0, 7) >= oldest) {
          const PeerStatus s = judged(hello, best_of_ten([this] { return ask("product " + size()); }));
          if (s.used || !found_) status_ = s;
          found_ = true;
          if (s.used) return;
        }
        process_.close();
      }
  }
  static std::string size() { return std::to_string(product_size); }

  Process process_;
  bool found_ = false;
  PeerStatus status_{"torch not found (pip install torch; LIMPID_BENCH_PYTHON names its python): skipped"};
};

}  // namespace

template <class S>
std::vector<Peer<S>> torch_peers(const Problem<S>& p, Direction direction, Crew& crew) {
  if (!torch_status().used) return {};
  std::ostringstream words;
  words << (direction == Direction::forward ? "forward " : "backward ")
        << (std::is_same_v<S, float> ? "float32 " : "float64 ") << p.heads << ' ' << p.n << ' ' << p.d << ' '
        << (p.causal ? 1 : 0) << ' ' << crew.size() << ' ';
  const std::string question = words.str();
  return {{{"torch", [question](long calls) { return Server::instance().ask(question + std::to_string(calls)); }},
           [] { return Matrix<S>(); }}};
}

const PeerStatus& torch_status() { return Server::instance().status(); }

template std::vector<Peer<float>> torch_peers(const Problem<float>&, Direction, Crew&);
template std::vector<Peer<double>> torch_peers(const Problem<double>&, Direction, Crew&);

}  // namespace bench
