// limpid: our own side of the bench: an operator, its arrays and its state, ready to be called again and again
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/exec/thread_pool.hpp>
#include <limpid/op/softmax.hpp>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "../tests/support/distance.hpp"
#include "../tests/support/fields.hpp"
#include "naive.hpp"
#include "timing.hpp"

namespace bench {

/// How the heads of a problem lie in memory.
enum class Layout {
  separate,    ///< head after head, (H n) x d: the problem's own arrays
  interleaved  ///< side by side in one n x (H d) buffer, as a projection leaves them
};

/// Head after head to side by side.
template <class S>
Matrix<S> side_by_side(const Matrix<S>& x, Index heads) {
  const Index n = x.rows() / heads, d = x.cols();
  Matrix<S> wide(n, heads * d);
  for (Index h = 0; h < heads; ++h) wide.middleCols(h * d, d) = x.middleRows(h * n, n);
  return wide;
}

/// Attention by limpid. Everything a training loop would keep is kept: saved state, workspace, gradients of all inputs.
template <class S, class Op>
class Ours {
 public:
  suite::Fields<S> inputs, gradients;
  Matrix<S> out, dout;

  Ours(Op op, suite::Fields<S> fields, Index batch, Index heads, int threads)
      : inputs(std::move(fields)),
        op_(std::move(op)),
        pool_(threads > 1 ? std::make_unique<limpid::ThreadPool>(threads) : nullptr),
        batch_(batch),
        heads_(heads) {
    gradients = inputs;
    in_ = suite::args_of<limpid::Inputs<Op, S>>(suite::views_of(inputs));
    grad_ = suite::args_of<limpid::Grads<Op, S>>(suite::mutable_views_of(gradients));
  }
  Ours(const Ours&) = delete;
  Ours& operator=(const Ours&) = delete;

  /// Inference: nothing saved.
  void forward() {
    limpid::forward(op_, in_, out,
                    {.batch = batch_, .heads = heads_, .workspace = &workspace_, .executor = executor()});
  }
  void forward_saved() {
    limpid::forward(
        op_, in_, out,
        {.batch = batch_, .heads = heads_, .saved = &saved_, .workspace = &workspace_, .executor = executor()});
    ready_ = true;
  }
  /// The backward alone; the forward it belongs to runs once, in the first call.
  void backward() {
    if (!ready_) forward_saved();
    limpid::backward(op_, in_, saved_, dout, grad_, {.workspace = &workspace_, .executor = executor()});
  }
  /// The backward that also emits relevance (1 x m, of all parts 4 x m) for row weights; batch and heads 1.
  void backward(limpid::View<S> weights, limpid::MutView<S> relevance) {
    if (!ready_) forward_saved();
    limpid::backward(
        op_, in_, saved_, dout, grad_,
        {.workspace = &workspace_, .executor = executor(), .relevance_weights = weights, .relevance = relevance});
  }
  /// Columns of one head's output, for batch 1 and one head.
  Index out_width() const { return op_.out_width(in_); }

  const Matrix<S>& gradient(const std::string& name) const {
    for (const auto& f : gradients)
      if (f.name == name) return f.value;
    throw std::logic_error("no input of the name " + name);
  }

 private:
  limpid::ExecutorRef executor() { return pool_ ? limpid::ExecutorRef(*pool_) : limpid::ExecutorRef(); }

  Op op_;
  std::unique_ptr<limpid::ThreadPool> pool_;
  Index batch_, heads_;
  limpid::Inputs<Op, S> in_;
  limpid::Grads<Op, S> grad_;
  limpid::Saved<Op, S> saved_;
  limpid::Workspace workspace_;
  bool ready_ = false;
};

/// An operator on the q, k, v of a problem; its other inputs, if it has any, are not given.
template <class S, class Op>
std::shared_ptr<Ours<S, Op>> ours(Op op, const Problem<S>& p, int threads = 1, Layout layout = Layout::separate) {
  const bool separate = layout == Layout::separate;
  auto arranged = [&](const Matrix<S>& x) { return separate ? x : side_by_side(x, p.heads); };
  suite::Fields<S> fields;
  Op::template Args<limpid::View<S>>::visit([&](const char* field, limpid::Role role) {
    const std::string name = field;
    fields.push_back({name, role,
                      name == "q"   ? arranged(p.q)
                      : name == "k" ? arranged(p.k)
                      : name == "v" ? arranged(p.v)
                                    : Matrix<S>()});
  });
  auto o = std::make_shared<Ours<S, Op>>(std::move(op), std::move(fields), separate ? p.heads : 1,
                                         separate ? 1 : p.heads, threads);
  o->dout = arranged(p.dout);
  o->out.resizeLike(o->dout);
  return o;
}

/// An operator of the suite's list on one head of random inputs. `all`: also the inputs that need not be given.
template <class S, class Entry, class Mods>
auto ours_of(const suite::Sizes& sizes, const Mods& mods, bool all, int threads) {
  using Op = decltype(Entry::make(mods));
  suite::Random random(1);
  auto o =
      std::make_shared<Ours<S, Op>>(Entry::make(mods), suite::make_fields<Entry, S>(sizes, all, random), 1, 1, threads);
  o->dout = suite::random_matrix<S>(random, sizes.n, o->out_width());
  o->out.resizeLike(o->dout);
  return o;
}

template <class S, class Op>
Candidate our_forward(std::string name, Op op, const Problem<S>& p, int threads = 1, Layout layout = Layout::separate) {
  auto o = ours<S>(std::move(op), p, threads, layout);
  return candidate(std::move(name), [o] { o->forward(); });
}

template <class S, class Op>
Candidate our_backward(std::string name, Op op, const Problem<S>& p, int threads = 1,
                       Layout layout = Layout::separate) {
  auto o = ours<S>(std::move(op), p, threads, layout);
  return candidate(std::move(name), [o] { o->backward(); });
}

}  // namespace bench
