// limpid: the most memory that one call takes, measured in a process of its own
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "allocation.hpp"
#include "session.hpp"

namespace bench {

/// In the process of the call: prints MiB resident beyond what was there before it, and MiB of heap.
template <class F>
int print_memory_of(const F& call) {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
  reset_peak_resident();
  reset_peak_live();
  const std::uint64_t resident = process_status("VmRSS"), heap = live_bytes();
  call();
  const double peak = static_cast<double>(process_status("VmHWM")) - static_cast<double>(resident);
  std::printf("%.6f %.6f\n", peak / mib, static_cast<double>(peak_live_bytes() - heap) / mib);
  return 0;
}

/// One row, of three such processes; arguments are those of the program's command `memory`.
inline void memory_row(Session& s, const std::string& section, const std::string& name, const std::string& arguments,
                       Bound bound) {
  std::vector<double> resident, heap;
  for (int i = 0; i < 3; ++i) {
    std::FILE* child = popen((s.self + " memory " + arguments + " 2>/dev/null").c_str(), "r");
    double r = none, h = none;
    if (child && std::fscanf(child, "%lf %lf", &r, &h) == 2) resident.push_back(r), heap.push_back(h);
    if (child) pclose(child);
  }
  s.add(section, name, {median(resident), quantile(resident, 0), quantile(resident, 1)}, Better::smaller, bound.must,
        bound.aim, "heap alone " + short_number(median(heap)) + " MiB", "MiB resident");
}

}  // namespace bench
