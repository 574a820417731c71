// limpid: a peer in a process of its own, asked line by line over a pipe
// SPDX-License-Identifier: MIT
#pragma once

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace bench {

/// A Python script that answers each line with one. While nobody asks it sleeps on its input, so that it can take part
/// in interleaved rounds.
class Process {
 public:
  Process() { std::signal(SIGPIPE, SIG_IGN); }
  ~Process() { close(); }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  bool start(const std::string& python, const std::string& script) {
    int to[2], from[2];
    if (pipe(to) != 0 || pipe(from) != 0) return false;
    const pid_t child = fork();
    if (child < 0) return false;
    if (child == 0) {
      dup2(to[0], STDIN_FILENO);
      dup2(from[1], STDOUT_FILENO);
      for (int fd : {to[0], to[1], from[0], from[1]}) ::close(fd);
      if (!std::freopen("/dev/null", "w", stderr)) _exit(127);
      execlp(python.c_str(), python.c_str(), script.c_str(), nullptr);
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
  std::string ask(const std::string& question) {
    std::fputs((question + "\n").c_str(), out_);
    std::fflush(out_);
    return line();
  }

  /// The Pythons that may have a package, in the order in which they are looked at.
  static std::vector<std::string> pythons(const std::string& source) {
    const char* told = std::getenv("LIMPID_BENCH_PYTHON");
    std::vector<std::string> all{source + "/../build/torch/bin/python3", "python3", "/usr/bin/python3"};
    if (told && *told) all.insert(all.begin(), told);
    return all;
  }

 private:
  std::FILE* in_ = nullptr;
  std::FILE* out_ = nullptr;
};

}  // namespace bench
