// limpid: any operator of the suite's list behind one interface, so that each is compiled once, in a file of its own
// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "../tests/support/operators.hpp"

namespace bench {

/// An operator with its inputs, ready to be called: one head of random numbers.
class Runner {
 public:
  virtual ~Runner() = default;
  virtual void forward() = 0;
  virtual void backward() = 0;
  /// With a relevance row beside the gradients; or the rows of all parts and the head's importance.
  virtual void backward_explained(bool all_parts) = 0;
};

struct RunnerOptions {
  bool is_double = false;
  bool causal = false;
  bool all_inputs = false;  ///< also the inputs that need not be given
  int threads = 1;
};

/// Defined in operator.cpp.in, of which there is one a line of LIMPID_OPERATORS.
template <class Entry>
std::shared_ptr<Runner> make_runner(const suite::Sizes& sizes, const RunnerOptions& options);

#define LIMPID_BENCH_EXTERN(NAME, ...) \
  extern template std::shared_ptr<Runner> make_runner<suite::entry_##NAME>(const suite::Sizes&, const RunnerOptions&);
LIMPID_OPERATORS(LIMPID_BENCH_EXTERN)
#undef LIMPID_BENCH_EXTERN

}  // namespace bench
