// limpid: runs the units that it is linked with, first one, then the other, and prints their bits, a line a unit.
// SPDX-License-Identifier: MIT
#include <cstdio>

int check_first(double* bits);
int check_second(double* bits);

namespace {

int run(const char* name, int (*check)(double*)) {
  double bits[64] = {};
  const int failures = check(bits);
  std::printf("%s", name);
  for (double b : bits) std::printf(" %a", b);
  std::printf("\n");
  return failures;
}

}  // namespace

int main() {
  int failures = 0;
#if defined(LIMPID_FIRST)
  failures += run("first", check_first);
#endif
#if defined(LIMPID_SECOND)
  failures += run("second", check_second);
#endif
  return failures == 0 ? 0 : 1;
}
