// limpid: how many bytes the process asks the heap for
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>

namespace bench {

/// Bytes and calls the heap was asked for since the start of the process, all threads together. With glibc every
/// malloc counts (Eigen, BLAS and operator new all end there); elsewhere only operator new.
struct Allocated {
  std::uint64_t bytes = 0;
  std::uint64_t calls = 0;
};
Allocated allocated();

/// Bytes held now, and the most ever held since the last `reset_peak_live()`. Zero where only operator new is counted.
std::uint64_t live_bytes();
std::uint64_t peak_live_bytes();
void reset_peak_live();

/// One entry of /proc/self/status in bytes, such as "VmHWM" (the most memory ever resident) or "VmRSS"; 0 where the
/// system has no such file.
inline std::uint64_t process_status(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(key + ":", 0) == 0) {
      std::istringstream words(line.substr(key.size() + 1));
      std::uint64_t kib = 0;
      words >> kib;
      return kib * 1024;
    }
  return 0;
}

/// Makes VmHWM start again from what is resident now (Linux; elsewhere nothing happens).
inline void reset_peak_resident() { std::ofstream("/proc/self/clear_refs") << "5"; }

}  // namespace bench
