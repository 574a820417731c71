// limpid: contract: the same bits whoever runs the tasks, and wherever the numbers lie.
// SPDX-License-Identifier: MIT
#include "problem.hpp"

#include <limpid/exec/thread_pool.hpp>
#if defined(LIMPID_TEST_OPENMP)
#include <limpid/exec/openmp.hpp>
#endif

#include "support/executors.hpp"

using namespace suite;

namespace {

/// What one batch item, or one head, of a packed array is.
template <class S>
Mat<S> part(const Mat<S>& all, Role role, const Sizes& s, Index item, Index head) {
  const limpid::Dims d{s.batch, s.heads, s.kv_heads, s.n, s.m};
  const View<S> view = limpid::detail::head_of(View<S>(all), role, d, item, head);
  return view.given() ? Mat<S>(view.map()) : Mat<S>();
}

/// The problem of one head of one item alone.
template <class S>
Problem<S> alone(const Problem<S>& p, Index item, Index head) {
  Problem<S> one = p;
  one.sizes.batch = one.sizes.heads = one.sizes.kv_heads = 1;
  for (auto& f : one.in)
    if (f.given()) f.value = part(f.value, f.role, p.sizes, item, head);
  one.dout = part(p.dout, Role::query, p.sizes, item, head);
  if (p.mods.key_bias.rows() > 1) one.mods.key_bias = p.mods.key_bias.row(item);
  const auto moved = [item, head](At a) {
    a.batch = item, a.head = head;
    return a;
  };
  if (p.mods.keep) one.mods.keep = [=, keep = p.mods.keep](const At& a) { return keep(moved(a)); };
  if (p.mods.add) one.mods.add = [=, add = p.mods.add](const At& a) { return add(moved(a)); };
  return one;
}

/// A copy that lies in a wider matrix, among NaN.
template <class S>
struct Wide {
  Mat<S> all;
  Index rows, cols;
  explicit Wide(const Mat<S>& m)
      : all(Mat<S>::Constant(m.rows() + 1, m.cols() + 9, std::numeric_limits<S>::quiet_NaN())),
        rows(m.rows()),
        cols(m.cols()) {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < cols; ++j) all(i, j + 5) = m(i, j);
  }
  MutView<S> view() { return cols == 0 ? MutView<S>() : MutView<S>(all).block(0, 5, rows, cols); }
  Mat<S> copy() { return cols == 0 ? Mat<S>() : Mat<S>(view().map()); }
};

}  // namespace

TEMPLATE_TEST_CASE("The bits do not depend on the executor.", "", float, double) {
  using S = TestType;
  static limpid::ThreadPool two(2), three(3);
  static auto all_two = eager(two), all_three = eager(three);
  static Backwards backwards;
  std::vector<std::pair<const char*, limpid::ExecutorRef>> executors = {
      {"a pool of 2", all_two}, {"a pool of 3", all_three}, {"tasks in reverse", backwards}};
#if defined(LIMPID_TEST_OPENMP)
  static limpid::OpenMP team(3);
  static auto all_team = eager(team);
  executors.push_back({"OpenMP", all_team});
#endif
  for_operators([&](const Operator& op) {
    Sizes one_head{300, 1100}, three_heads{129, 300}, grouped{127, 33};
    three_heads.heads = three_heads.kv_heads = 3;
    grouped.heads = 4, grouped.kv_heads = 2, grouped.batch = 2;
    for (const Sizes& s : {one_head, three_heads, grouped})
      for (Kind kind : {Kind::none, Kind::causal, Kind::masks, Kind::values}) {
        if (s.m > 1000 && kind != Kind::none) continue;
        auto p = make_problem<S>(op, kind, s, 201);
        dress(p);
        INFO(p.text());
        Options<S> asked;
        asked.lse = true, asked.relevance = op.traits.relevance;
        const Result<S> serial = run(p, asked);
        for (const auto& [name, executor] : executors) {
          asked.executor = executor;
          INFO("executor: " << name);
          CHECK(differing(run(p, asked), serial) == "");
        }
      }
  });
}

TEMPLATE_TEST_CASE("A head of a batch item has the bits it has alone.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (Kind kind : {Kind::none, Kind::causal, Kind::masks, Kind::values})
      for (Index kv_heads : {Index(3), Index(1)}) {
        Sizes s{33, 129};
        s.heads = 3, s.kv_heads = kv_heads, s.batch = 2, s.own_sides = true;
        auto p = make_problem<S>(op, kind, s, 202);
        dress(p);
        INFO(p.text());
        Options<S> asked;
        asked.lse = true;
        const Result<S> packed = run(p, asked);
        for (Index item = 0; item < 2; ++item)
          for (Index head = 0; head < 3; ++head) {
            INFO("item " << item << ", head " << head);
            const Result<S> single = run(alone(p, item, head), asked);
            CHECK(same_bits(part(packed.out, Role::query, p.sizes, item, head), single.out));
            if (single.lse.size() > 0) CHECK(same_bits(Mat<S>(packed.lse.row(item * 3 + head)), single.lse));
            for (std::size_t f = 0; f < p.in.size(); ++f) {
              const Role role = p.in[f].role;
              // what heads share is a sum over them
              if (role != Role::query && (role != Role::key || p.sizes.kv_heads != p.sizes.heads)) continue;
              INFO("gradient of " << p.in[f].name);
              CHECK(same_bits(part(packed.grad[f].value, role, p.sizes, item, head), single.grad[f].value));
            }
          }
      }
  });
}

TEMPLATE_TEST_CASE("The gradient of what heads share is the sum of theirs.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (bool one_for_all : {false, true}) {
      Sizes s{31, 33};
      s.heads = 4, s.kv_heads = 2, s.batch = 2, s.one_for_all = one_for_all;
      auto p = make_problem<S>(op, Kind::values, s, 203);
      dress(p);
      INFO(p.text());
      const Result<S> packed = run(p);
      Fields<S> sum = p.in;
      for (auto& g : sum) g.value.setZero();
      for (Index item = 0; item < 2; ++item)
        for (Index head = 0; head < 4; ++head) {
          const Result<S> single = run(alone(p, item, head));
          for (std::size_t f = 0; f < sum.size(); ++f) {
            if (!sum[f].given()) continue;
            const limpid::Dims d{2, 4, p.sizes.kv_heads, p.sizes.n, p.sizes.m};
            limpid::detail::copy_or_add<S>(
                View<S>(single.grad[f].value),
                limpid::detail::head_of(MutView<S>(sum[f].value), sum[f].role, d, item, head), true);
          }
        }
      const double size = largest_gradient(packed);
      for (std::size_t f = 0; f < sum.size(); ++f) {
        INFO("gradient of " << sum[f].name);
        CHECK(distance(packed.grad[f].value, sum[f].value) <= 64 * std::numeric_limits<S>::epsilon() * size);
      }
    }
  });
}

TEMPLATE_TEST_CASE("A slice of a larger array has the bits of its copy.", "", float, double) {
  using S = TestType;
  for_operators([](const Operator& op) {
    for (Kind kind : {Kind::none, Kind::causal, Kind::masks, Kind::values})
      for (Sizes s : {Sizes{33, 129}, Sizes{129, 31}}) {
        s.heads = 2, s.kv_heads = 1, s.batch = 2, s.d = 16, s.dv = 7;
        auto p = make_problem<S>(op, kind, s, 204);
        dress(p);
        INFO(p.text());
        const Result<S> packed = run(p);

        std::vector<Wide<S>> in, grad;
        typename Subject<S>::Views views;
        typename Subject<S>::MutViews grads;
        for (auto& f : p.in) in.emplace_back(f.value), grad.emplace_back(f.value);
        for (auto& w : in) views.push_back(w.view());
        for (auto& w : grad) grads.push_back(w.view());
        Wide<S> out(packed.out), dout(p.dout);
        Result<S> sliced;
        sliced.dkey_bias = Mat<S>::Zero(p.mods.key_bias.rows(), p.mods.key_bias.cols());
        p.mods.dkey_bias = &sliced.dkey_bias;
        Ask<S> ask;
        ask.saved = p.subject().new_saved();
        out.view().fill(S(7));
        for (auto& g : grads) g.fill(S(7));
        p.subject().forward(p.sizes, p.mods, views, out.view(), ask);
        p.subject().backward(p.mods, views, ask.saved.get(), dout.view(), grads, {});
        sliced.out = out.copy();
        for (std::size_t f = 0; f < p.in.size(); ++f)
          sliced.grad.push_back({p.in[f].name, p.in[f].role, grad[f].copy()});
        CHECK(differing(packed, sliced) == "");

        bool untouched = true;  // nothing beside the slices was written
        for (auto* w : {&out, &dout})
          for (Index i = 0; i < w->all.rows(); ++i)
            for (Index j = 0; j < w->all.cols(); ++j)
              untouched &= (i < w->rows && j >= 5 && j < 5 + w->cols) || std::isnan(w->all(i, j));
        for (auto& w : grad)
          for (Index i = 0; i < w.all.rows(); ++i)
            for (Index j = 0; j < w.all.cols(); ++j)
              untouched &= (i < w.rows && j >= 5 && j < 5 + w.cols) || std::isnan(w.all(i, j));
        CHECK(untouched);
      }
  });
}
