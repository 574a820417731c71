// limpid: the memory of a call as the operating system sees it: every page that was touched, whoever asked for it.
// SPDX-License-Identifier: MIT
//
// Each row is measured in a process of its own, as most resident memory beyond what was there before the call, with two
// threads; inputs, output and upstream gradient are there before. Linux only; returns 77 where the system does not say.
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/op/softmax.hpp>
#include <string>

namespace {

using limpid::Index;
using F = limpid::Mat<float>;

constexpr int not_possible = 77;
constexpr Index width = 64;

/// A figure of /proc/self/status in KiB, or -1.
long status(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.rfind(field + ":", 0) == 0) return std::stol(line.substr(field.size() + 1));
  return -1;
}

F numbers(Index n, unsigned seed) {
  F x(n, width);
  for (Index i = 0; i < x.size(); ++i) {
    seed = seed * 1664525u + 1013904223u;
    x.data()[i] = static_cast<float>(seed >> 8) * 0x1p-24f - 0.5f;
  }
  return x;
}

struct Problem {
  F q, k, v, dout, out;
  explicit Problem(Index n)
      : q(numbers(n, 1)), k(numbers(n, 2)), v(numbers(n, 3)), dout(numbers(n, 4)), out(numbers(n, 5)) {}
};

void forward(Problem& p, limpid::ThreadPool& pool) {
  limpid::forward(limpid::softmax(), limpid::qkv(p.q, p.k, p.v), p.out, {.executor = pool});
}
/// With the saved state and the gradients, which are counted.
void backward(Problem& p, limpid::ThreadPool& pool) {
  const auto in = limpid::qkv(p.q, p.k, p.v);
  limpid::Saved<decltype(limpid::softmax()), float> saved;
  limpid::Workspace workspace;
  limpid::forward(limpid::softmax(), in, p.out, {.saved = &saved, .workspace = &workspace, .executor = pool});
  F dq(p.q.rows(), width), dk(p.k.rows(), width), dv(p.v.rows(), width);
  limpid::backward(limpid::softmax(), in, saved, p.dout, limpid::grads(dq, dk, dv),
                   {.workspace = &workspace, .executor = pool});
}

using Direction = void (*)(Problem&, limpid::ThreadPool&);

/// MiB, or -1 where they cannot be measured.
double measured(Direction direction, Index n) {
  limpid::ThreadPool pool(2);
  Problem small(256), p(n);
  direction(small, pool);  // code pages and stacks of threads are not the operator's memory
  malloc_trim(0);
  std::ofstream reset("/proc/self/clear_refs");
  reset << "5" << std::flush;
  const long before = status("VmRSS");
  if (!reset || before < 0) return -1;
  direction(p, pool);
  const long peak = status("VmHWM");
  return peak < 0 ? -1 : static_cast<double>(peak - before) / 1024;
}
double in_a_process_of_its_own(Direction direction, Index n) {
  int ends[2];
  double mib = -1;
  if (pipe(ends) != 0) return mib;
  const pid_t child = fork();
  if (child == 0) {
    mib = measured(direction, n);
    _exit(write(ends[1], &mib, sizeof mib) == static_cast<ssize_t>(sizeof mib) ? 0 : 1);
  }
  close(ends[1]);
  if (child < 0 || read(ends[0], &mib, sizeof mib) != static_cast<ssize_t>(sizeof mib)) mib = -1;
  close(ends[0]);
  if (child > 0) waitpid(child, nullptr, 0);
  return mib;
}

}  // namespace

int main() {
  int failed = 0;
  const auto at_most = [&](const char* what, double found, double bound) {
    std::printf("%s %-40s %6.2f, at most %6.2f\n", found <= bound ? "ok  " : "FAIL", what, found, bound);
    failed += found <= bound ? 0 : 1;
  };
  const struct {
    const char* name;
    Direction direction;
    double mib;
  } rows[] = {{"forward", forward, 8.5}, {"backward", backward, 36}};
  for (const auto& row : rows) {
    const double quarter = in_a_process_of_its_own(row.direction, 4096),
                 whole = in_a_process_of_its_own(row.direction, 16384);
    if (quarter < 0 || whole < 0) {
      std::printf("this system does not say how much memory is resident\n");
      return not_possible;
    }
    at_most((row.name + std::string(", MiB at n = 16384")).c_str(), whole, row.mib);
    at_most((row.name + std::string(", times that at n = 4096")).c_str(), whole / std::max(quarter, 0.25),
            4.3);  // below that, single pages
  }
  return failed == 0 ? 0 : 1;
}
