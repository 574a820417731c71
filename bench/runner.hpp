// limpid: how an operator of the suite's list becomes a Runner. For operator.cpp.in alone: it instantiates the engine.
// SPDX-License-Identifier: MIT
#pragma once

#include "operators.hpp"
#include "ours.hpp"

namespace bench {

template <class O>
class RunnerOf : public Runner {
 public:
  explicit RunnerOf(std::shared_ptr<O> o) : ours_(std::move(o)) {}
  void forward() override { ours_->forward(); }
  void backward() override { ours_->backward(); }

 private:
  std::shared_ptr<O> ours_;
};

template <class S, class Entry, class Mods>
std::shared_ptr<Runner> runner(const suite::Sizes& sizes, const RunnerOptions& options, const Mods& mods) {
  auto o = ours_of<S, Entry>(sizes, mods, options.all_inputs, options.threads);
  return std::make_shared<RunnerOf<typename decltype(o)::element_type>>(o);
}

template <class Entry>
std::shared_ptr<Runner> make_runner(const suite::Sizes& sizes, const RunnerOptions& options) {
  if (options.is_double)
    return options.causal ? runner<double, Entry>(sizes, options, limpid::causal())
                          : runner<double, Entry>(sizes, options, limpid::chain());
  return options.causal ? runner<float, Entry>(sizes, options, limpid::causal())
                        : runner<float, Entry>(sizes, options, limpid::chain());
}

}  // namespace bench
