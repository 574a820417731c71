// limpid: the promises that the library's own operators are held to, for an operator of your own.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "../explain/map.hpp"
#include "gradient.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// One promise, whether it was kept, and what was seen where it was not.
struct Promise {
  std::string text;
  bool kept = false;
  std::string seen;
};
struct Promises {
  std::vector<Promise> all;
  bool kept() const {
    return std::all_of(all.begin(), all.end(), [](const Promise& p) { return p.kept; });
  }
  /// One line a promise.
  std::string text() const {
    std::string lines;
    for (const Promise& p : all) lines += (p.kept ? "kept:   " : "BROKEN: ") + p.text + p.seen + "\n";
    return lines;
  }
};

namespace detail {

/// Runs tasks from the last to the first and gives them to three workers in turn: whoever counts on an order shows it.
/// Any work is worth a worker, so that small arrays spread too.
struct LastFirst {
  int workers() const { return 3; }
  double flop_a_worker() const { return 1; }
  template <class Task>
  void run(Index count, Task&& task) {
    for (Index t = count; t-- > 0;) task(t, static_cast<int>(t % 3));
  }
};

template <class S>
bool same_bits(const Mat<S>& a, const Mat<S>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(S)) == 0;
}
template <class S>
double apart(const Mat<S>& a, const Mat<S>& b) {
  double most = 0, largest = 1e-30;  // by hand: g++ 12 warns of Eigen's reductions under AVX-512
  for (Index i = 0; i < a.size(); ++i) {
    const double step = std::abs(double(a.data()[i]) - double(b.data()[i]));
    if (std::isnan(step)) return std::numeric_limits<double>::infinity();
    most = std::max(most, step), largest = std::max(largest, std::abs(double(b.data()[i])));
  }
  return most / largest;
}

template <class Op, class S>
struct PromiseRun {
  Mat<S> out;
  std::vector<Mat<S>> gradients;
};
/// Forward and, from a saved state, backward; dout is the same for all runs.
template <class Op, class S>
PromiseRun<Op, S> promise_run(const Op& op, const Inputs<Op, S>& in, const Dims& d, Call<Op, S> call,
                              ExecutorRef executor, bool backward_too) {
  PromiseRun<Op, S> run;
  run.out = Mat<S>::Zero(d.batch * d.n, d.heads * op.out_width(head_args(in, d, 0, 0)));
  Saved<Op, S> saved;
  if (backward_too) call.saved = &saved;
  call.batch = d.batch, call.heads = d.heads, call.kv_heads = d.kv_heads, call.executor = executor;
  forward(op, in, run.out, call);
  if (!backward_too) return run;
  Inputs<Op, S>::visit(
      [&](const char*, Role, const View<S>& v) { run.gradients.push_back(Mat<S>::Zero(v.rows, v.cols)); }, in);
  Grads<Op, S> grad{};
  std::size_t f = 0;
  Grads<Op, S>::visit(
      [&](const char*, Role, MutView<S>& g, const View<S>& v) {
        if (v.given()) g = MutView<S>(run.gradients[f]);
        ++f;
      },
      grad, in);
  std::uint64_t state = 7;
  Mat<S> dout(run.out.rows(), run.out.cols());
  for (Index i = 0; i < dout.size(); ++i) dout.data()[i] = S(uniform(state));
  BackwardCall<S> back;
  back.executor = executor;
  backward(op, in, saved, View<S>(dout), grad, back);
  return run;
}

}  // namespace detail

/// Holds an operator to the library's promises, on these inputs of heads side by side: gradients are those of central
/// differences (within 1e-6 of the largest entry of a field; step as in check_gradient, 1e-6 at kinks); asking for the
/// map, the saved state and, where there is one, the log-sum-exp changes no bit of out; nor does the executor, of out
/// and of the gradients, nor a strided array in the place of a packed one; a head has the bits it has alone; map_block,
/// map_left and map_right show one map (within 1e-10); v of a wrong shape is refused with an exception, and out is left
/// as it was. Not looked at: allocations, memory and speed, masked keys (use a mask and see). Cost: that of
/// check_gradient, and some 20 calls.
template <class S = double, class Op>
Promises check_promises(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Index batch = 1, Index heads = 1,
                        Index kv_heads = 0, double step = 0) {
  using detail::apart;
  using detail::promise_run;
  using detail::same_bits;
  Promises found;
  const auto say = [&](const char* text, bool kept, const std::string& seen = "") {
    found.all.push_back({text, kept, kept || seen.empty() ? "" : ": " + seen});
  };
  const Dims d = detail::dims_of(detail::operator_name(op), detail::shapes_of(in), batch, heads, kv_heads);
  const GradientCheck check =
      check_gradient<S>(op, in, {.batch = batch, .heads = heads, .kv_heads = kv_heads, .step = step});
  say("gradients are those of central differences", check.worst() <= 1e-6, "\n" + check.text());

  Mat<S> lse, map;
  Call<Op, S> asks;
  if constexpr (detail::has_lse<Op>) asks.lse = &lse;
  asks.map = &map;
  const auto plain = promise_run<Op, S>(op, in, d, {}, {}, true);
  say("asking changes no bit of the output",
      same_bits(promise_run<Op, S>(op, in, d, asks, {}, false).out, plain.out) &&
          same_bits(promise_run<Op, S>(op, in, d, {}, {}, false).out, plain.out));
  detail::LastFirst executor;
  const auto other = promise_run<Op, S>(op, in, d, {}, executor, true);
  bool same = same_bits(other.out, plain.out);
  for (std::size_t f = 0; f < plain.gradients.size(); ++f)
    same = same && same_bits(other.gradients[f], plain.gradients[f]);
  say("the bits do not depend on the executor", same);

  std::vector<Mat<S>> wide;  // as columns of a larger array
  Inputs<Op, S>::visit(
      [&](const char*, Role, const View<S>& v) {
        wide.push_back(Mat<S>::Zero(v.rows, v.cols + 3));
        if (v.given()) wide.back().leftCols(v.cols) = v.map();
      },
      in);
  Inputs<Op, S> strided = in;
  std::size_t f = 0;
  Inputs<Op, S>::visit(
      [&](const char*, Role, View<S>& v) {
        if (v.given()) v = View<S>(wide[f]).block(0, 0, v.rows, v.cols);
        ++f;
      },
      strided);
  say("a slice of a larger array has the bits of its copy",
      same_bits(promise_run<Op, S>(op, strided, d, {}, {}, false).out, plain.out));

  const Dims alone{1, 1, 1, d.n, d.m};
  const auto head = detail::head_args(in, d, d.batch - 1, d.heads - 1);
  const auto one = promise_run<Op, S>(op, head, alone, {}, {}, false);
  say("a head has the bits it has alone", same_bits(one.out, Mat<S>(plain.out.bottomRightCorner(d.n, one.out.cols()))));

  Saved<Op, S> saved;
  Mat<S> out = Mat<S>::Zero(d.n, one.out.cols()), right(d.n, d.m), left(d.n, d.m), block(d.n, d.m);
  forward(op, head, out, {.saved = &saved, .map = &map});
  map_block(op, head, saved, 0, 0, block);
  const Mat<S> values = Mat<S>::Identity(d.m, d.m), rows = Mat<S>::Identity(d.n, d.n);
  map_right(op, head, saved, values, right);
  map_left(op, head, saved, rows, left);
  const double worst = std::max({apart(block, map), apart(right, map), apart(left, map)});
  say("map_block, map_left and map_right show one map", worst <= 1e-10, detail::number_text(worst) + " apart");

  bool refused = true;
  Inputs<Op, S> wrong = in;
  Inputs<Op, S>::visit(
      [](const char* name, Role, View<S>& v) {
        if (std::string(name) == "v" && v.rows > 0) v.rows -= 1;
      },
      wrong);
  Mat<S> untouched = Mat<S>::Constant(plain.out.rows(), plain.out.cols(), S(42));
  const Mat<S> before = untouched;
  try {
    forward(op, wrong, untouched, {.batch = batch, .heads = heads, .kv_heads = kv_heads});
    refused = false;
  } catch (const ShapeError&) {
  }
  say("a wrong shape is refused, and out is left as it was", refused && same_bits(untouched, before));
  return found;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
