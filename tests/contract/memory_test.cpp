// limpid: contract: what a call asks the heap for.
// SPDX-License-Identifier: MIT
#include "problem.hpp"

using namespace suite;

namespace {

template <class S>
struct Call {
  Problem<S> p;
  typename Subject<S>::Views in;
  Result<S> r;
  typename Subject<S>::MutViews grad;
  Ask<S> ask;
  limpid::BackwardCall<S> back;
  Mat<S> weights;

  explicit Call(Problem<S> problem, limpid::Workspace* workspace) : p(std::move(problem)) {
    in = views_of(p.in);
    r.out.resizeLike(p.dout);
    r.grad = p.in;
    r.dkey_bias = Mat<S>::Zero(p.mods.key_bias.rows(), p.mods.key_bias.cols());
    p.mods.dkey_bias = &r.dkey_bias;
    grad = mutable_views_of(r.grad);
    ask.saved = p.subject().new_saved(), ask.workspace = workspace, ask.lse = &r.lse;
    back.workspace = workspace;
    if (p.op->traits.relevance) {
      r.relevance.resize(p.sizes.batch, p.sizes.m);
      weights = row_weights<S>(p.sizes);
      back.relevance_weights = weights, back.relevance = r.relevance;
    }
  }
  void forward() { p.subject().forward(p.sizes, p.mods, in, r.out, ask); }
  void backward() { p.subject().backward(p.mods, in, ask.saved.get(), p.dout, grad, back); }
};

}  // namespace

TEMPLATE_TEST_CASE("Nothing is allocated after the first call, forward and backward.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (Kind kind : {Kind::none, Kind::causal, Kind::masks, Kind::values}) {
      Sizes s{129, 300};
      s.heads = 4, s.kv_heads = 2, s.batch = 2;
      limpid::Workspace workspace;
      auto p = make_problem<S>(op, kind, s, 501);
      dress(p);
      INFO(p.text());
      Call<S> call(std::move(p), &workspace);
      call.forward();
      call.backward();
      const HeapWatch watch;
      call.forward();
      CHECK(watch.calls() == 0);
      CHECK(watch.eigen_calls() == 0);
      call.backward();
      CHECK(watch.calls() == 0);
      CHECK(watch.eigen_calls() == 0);
    }
  });
}

TEST_CASE("Nothing is allocated for smaller problems once there was a larger one.") {
  for_operators([](const Operator& op) {
    limpid::Workspace workspace;
    Call<float> large(make_problem<float>(op, Kind::none, {129, 300}, 502), &workspace);
    Call<float> small(make_problem<float>(op, Kind::none, {33, 31}, 503), &workspace);
    large.forward(), large.backward();
    small.forward();  // its own saved state is sized here
    const HeapWatch watch;
    small.forward(), small.backward();
    CHECK(watch.calls() == 0);
    CHECK(watch.eigen_calls() == 0);
  });
}

TEST_CASE("Memory beside the arrays grows as n + m, never as n m.") {
  for_operators([](const Operator& op) {
    for (Kind kind : {Kind::none, Kind::causal}) {
      std::vector<double> extra;
      for (Index n : {Index(2048), Index(4096)}) {
        Sizes s{n, n};
        s.d = s.dv = 16;
        Call<float> call(make_problem<float>(op, kind, s, 504), nullptr);
        call.forward();  // sizes what the caller keeps: saved state and log-sum-exp
        const double kept = static_cast<double>(call.p.subject().saved_bytes(call.in, call.ask.saved.get()));
        INFO(call.p.text());
        const HeapWatch watch;
        call.forward();
        const double forward = static_cast<double>(watch.peak_bytes());
        call.backward();
        const double both = static_cast<double>(watch.peak_bytes());
        CHECK(watch.eigen_calls() == 0);
        const double linear = 2.0 * static_cast<double>(n) * 2 * 16 * sizeof(float);
        INFO("saved " << kept << " bytes, forward " << forward << ", backward " << both << "; (n + m)(d + dv) is "
                      << linear);
        CHECK(kept + both <= op.traits.extra * linear + 512 * 1024);
        extra.push_back(kept + both);
      }
      CHECK(extra[1] <= 2.3 * extra[0]);
    }
  });
}
