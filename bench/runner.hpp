// limpid: how an operator of the suite's list becomes a Runner. For operator.cpp.in alone: it instantiates the engine.
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/explain/views.hpp>

#include "operators.hpp"
#include "ours.hpp"

namespace bench {

template <class O>
class RunnerOf : public Runner {
 public:
  using S = typename decltype(O::out)::Scalar;
  RunnerOf(std::shared_ptr<O> o, const suite::Sizes& sizes) : ours_(std::move(o)), sizes_(sizes) {}
  void forward() override { ours_->forward(); }
  void backward() override { ours_->backward(); }
  void backward_explained(bool all_parts) override {
    const limpid::Index rows = all_parts ? 4 : 1, n = sizes_.n, m = sizes_.m;
    if (weights_.size() == 0) weights_.setConstant(4, n, 1 / static_cast<S>(n)), relevance_.resize(4, m);
    ours_->backward(limpid::View<S>(weights_).block(0, 0, rows, n),
                    limpid::MutView<S>(relevance_).block(0, 0, rows, m));
    if (all_parts) importance_ = limpid::head_importance(ours_->out, ours_->dout, 1);
  }

 private:
  std::shared_ptr<O> ours_;
  suite::Sizes sizes_;
  Matrix<S> weights_, relevance_, importance_;
};

template <class S, class Entry, class Mods>
std::shared_ptr<Runner> runner(const suite::Sizes& sizes, const RunnerOptions& options, const Mods& mods) {
  auto o = ours_of<S, Entry>(sizes, mods, options.all_inputs, options.threads);
  return std::make_shared<RunnerOf<typename decltype(o)::element_type>>(o, sizes);
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
