// limpid: torch in a process of its own, timed round by round over a pipe
// SPDX-License-Identifier: MIT
#include "peers.hpp"

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>

namespace bench {
namespace {

// peers/torch_attention.py, started once and asked for every figure: "threads" threads, one problem, so many calls. It
// answers with the seconds. While nobody asks, it sleeps on its input, so it can take part in interleaved rounds.
class Server {
 public:
  static Server& instance() {
    static Server server;
    return server;
  }
  const PeerStatus& status() const { return status_; }

  double ask(const std::string& question) {
    std::fputs((question + "\n").c_str(), out_);
    std::fflush(out_);
    return std::strtod(line().c_str(), nullptr);
  }

 private:
  Server() {
    std::signal(SIGPIPE, SIG_IGN);
    const char* python = std::getenv("LIMPID_BENCH_PYTHON");
    const std::string own = LIMPID_BENCH_SOURCE "/../build/torch/bin/python3";
    // torch 2 or later first, which people install for their python; the distribution's own, which need not be the
    // first python on the path, may be older. Of those that are left out the first has its line.
    for (const char* oldest : {"torch 2", "torch 1"})
      for (const std::string& candidate :
           {std::string(python ? python : ""), own, std::string("python3"), std::string("/usr/bin/python3")}) {
        if (candidate.empty() || !start(candidate)) continue;
        const std::string hello = line();
        if (hello.rfind("torch", 0) == 0 && hello.substr(0, 7) >= oldest) {
          const PeerStatus s = judged(hello, best_of_ten([this] { return ask("product " + size()); }));
          if (s.used || !found_) status_ = s;
          found_ = true;
          if (s.used) return;
        }
        close();
      }
  }
  static std::string size() { return std::to_string(product_size); }
  ~Server() { close(); }

  bool start(const std::string& python) {
    int to[2], from[2];
    if (pipe(to) != 0 || pipe(from) != 0) return false;
    const pid_t child = fork();
    if (child < 0) return false;
    if (child == 0) {
      dup2(to[0], STDIN_FILENO);
      dup2(from[1], STDOUT_FILENO);
      for (int fd : {to[0], to[1], from[0], from[1]}) ::close(fd);
      if (!std::freopen("/dev/null", "w", stderr)) _exit(127);
      execlp(python.c_str(), python.c_str(), LIMPID_BENCH_SOURCE "/peers/torch_attention.py", nullptr);
      _exit(127);
    }
    ::close(to[0]);
    ::close(from[1]);
    out_ = fdopen(to[1], "w");
    in_ = fdopen(from[0], "r");
    return true;
  }
  void close() {
    if (out_) std::fclose(out_);  // end of input: the script leaves by itself
    if (in_) std::fclose(in_);
    in_ = out_ = nullptr;
  }
  std::string line() {
    std::string text;
    for (int c = std::fgetc(in_); c != EOF && c != '\n'; c = std::fgetc(in_)) text += static_cast<char>(c);
    return text;
  }

  std::FILE* in_ = nullptr;
  std::FILE* out_ = nullptr;
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
