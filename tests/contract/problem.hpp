// limpid: a problem for any operator, its forward and backward pass, and what checks say of the results.
// SPDX-License-Identifier: MIT
#pragma once

#include "subject.hpp"

#include <cmath>
#include <cstring>
#include <sstream>

#include "support/catch.hpp"
#include "support/distance.hpp"

namespace suite {

/// Inputs, modifiers and an upstream gradient of one operator.
template <class S>
struct Problem {
  const Operator* op = nullptr;
  Kind kind = Kind::none;
  Sizes sizes;
  std::uint64_t seed = 0;
  Fields<S> in;
  Modifiers<S> mods;
  Mat<S> dout;

  const Subject<S>& subject() const { return op->template get<S>(kind); }
  Field<S>& field(const std::string& name) {
    for (auto& f : in)
      if (f.name == name) return f;
    throw std::logic_error("no field " + name);
  }
  std::string text() const {
    std::ostringstream t;
    t << op->name << ", " << (sizeof(S) == 4 ? "float" : "double") << ", modifiers " << text_of(kind) << ", n "
      << sizes.n << ", m " << sizes.m << ", d " << sizes.d << ", dv " << sizes.dv << ", heads " << sizes.heads << " on "
      << sizes.kv_heads << ", batch " << sizes.batch << ", seed " << seed;
    return t.str();
  }
};

/// Sizes as the operator can have them.
inline Sizes fit(const Operator& op, Sizes s) {
  if (op.traits.square) s.m = s.n;
  if (s.kv_heads > s.heads || !op.traits.grouped) s.kv_heads = s.heads;
  return s;
}

template <class S>
Problem<S> make_problem(const Operator& op, Kind kind, const Sizes& sizes, std::uint64_t seed, bool all_fields = true) {
  Random random(seed);
  Problem<S> p;
  p.op = &op, p.kind = kind, p.sizes = fit(op, sizes), p.seed = seed;
  p.in = cast<S>(op.make_fields(p.sizes, all_fields, random));
  p.dout = random_matrix<S>(random, p.sizes.batch * p.sizes.n, p.subject().out_width(p.sizes, views_of(p.in)));
  p.mods.key_bias = Mat<S>::Zero(1, p.sizes.m);
  return p;
}

/// A pair that a random mask keeps, two of three.
inline bool random_keep(const At& a, std::uint64_t seed) {
  return Random(seed + static_cast<std::uint64_t>(a.k + 1000 * (a.q + 1000 * (a.head + 8 * a.batch)))).bits() % 3 != 0;
}

/// Modifiers for the chains masks and values: a random mask, a key
/// bias of every item, and for values a cap and an amount.
template <class S>
void dress(Problem<S>& p) {
  if (p.kind != Kind::masks && p.kind != Kind::values) return;
  Random random(p.seed + 1);
  p.mods.key_bias = random_matrix<S>(random, p.sizes.batch, p.sizes.m);
  p.mods.keep = [seed = p.seed](const At& a) { return random_keep(a, seed); };
  if (p.kind == Kind::values) {
    p.mods.cap = 3;
    p.mods.add = [](const At& a) { return 0.1 * static_cast<double>((a.q * 7 + a.k * 3 + a.head) % 11) - 0.5; };
  }
}

/// The same problem in another precision; in long double it goes to the reference, whose chain is `values`.
template <class To, class From>
Problem<To> convert(const Problem<From>& p) {
  Problem<To> q;
  q.op = p.op, q.kind = p.kind, q.sizes = p.sizes, q.seed = p.seed;
  q.in = cast<To>(p.in);
  q.mods = p.mods.template cast<To>();
  q.dout = p.dout.template cast<To>();
  if (p.kind == Kind::causal) q.mods.causal = true;
  return q;
}

/// Everything one forward and backward pass gives.
template <class S>
struct Result {
  Mat<S> out, lse, map, relevance;
  Fields<S> grad;
  Mat<S> dkey_bias;
};

/// What a run is told and asked besides.
template <class S>
struct Options {
  bool lse = false, map = false, relevance = false, keep = true;
  Index head = 0, item = 0;
  limpid::Part part = limpid::Part::pos;
  limpid::Workspace* workspace = nullptr;
  limpid::ExecutorRef executor = {};
  const Subject<S>* subject = nullptr;  // instead of the problem's own
};

/// Weights of queries for relevance.
template <class S>
Mat<S> row_weights(const Sizes& s) {
  Random random(77);
  return random_matrix<S>(random, s.batch, s.n, 0.1, 1);
}

template <class S>
Result<S> run(Problem<S> p, const Options<S>& options = {}) {
  const Subject<S>& subject = options.subject ? *options.subject : p.subject();
  const auto in = views_of(p.in);
  Result<S> r;
  r.out = Mat<S>::Constant(p.dout.rows(), p.dout.cols(), S(7));  // whatever is not written shows
  r.dkey_bias = Mat<S>::Zero(p.mods.key_bias.rows(), p.mods.key_bias.cols());
  p.mods.dkey_bias = &r.dkey_bias;
  Ask<S> ask;
  if (options.keep) ask.saved = subject.new_saved();
  ask.workspace = options.workspace, ask.executor = options.executor;
  if (options.lse) ask.lse = &r.lse;
  if (options.map) ask.map = &r.map, ask.head = options.head, ask.item = options.item;
  subject.forward(p.sizes, p.mods, in, r.out, ask);
  if (!options.keep) return r;

  r.grad = p.in;
  for (auto& g : r.grad) g.value.setConstant(S(7));
  limpid::BackwardCall<S> call;
  call.workspace = options.workspace, call.executor = options.executor, call.part = options.part;
  const Mat<S> weights = row_weights<S>(p.sizes);
  if (options.relevance) {
    r.relevance = Mat<S>::Constant(p.sizes.batch, p.sizes.m, S(7));
    call.relevance_weights = weights, call.relevance = r.relevance;
  }
  subject.backward(p.mods, in, ask.saved.get(), p.dout, mutable_views_of(r.grad), call);
  return r;
}

template <class S>
bool same_bits(const Mat<S>& a, const Mat<S>& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(S)) == 0);
}

/// Which arrays of two results differ in a bit: an empty text if none does.
template <class S>
std::string differing(const Result<S>& a, const Result<S>& b) {
  std::string names;
  const auto compare = [&](const std::string& name, const Mat<S>& x, const Mat<S>& y) {
    if (same_bits(x, y)) return;
    std::ostringstream t;
    t << name;
    if (x.rows() == y.rows() && x.cols() == y.cols())
      for (Index i = 0; i < x.rows(); ++i)
        for (Index j = 0; j < x.cols(); ++j)
          if (std::memcmp(&x(i, j), &y(i, j), sizeof(S)) != 0) {
            t << '(' << i << ", " << j << "): " << x(i, j) << " is not " << y(i, j) << "; ";
            names += t.str();
            return;
          }
    names += t.str() + " has another shape; ";
  };
  compare("out", a.out, b.out);
  for (std::size_t f = 0; f < std::min(a.grad.size(), b.grad.size()); ++f)
    compare("gradient of " + a.grad[f].name, a.grad[f].value, b.grad[f].value);
  compare("gradient of the key bias", a.dkey_bias, b.dkey_bias);
  if (a.relevance.size() > 0 && b.relevance.size() > 0) compare("relevance", a.relevance, b.relevance);
  if (a.lse.size() > 0 && b.lse.size() > 0) compare("lse", a.lse, b.lse);
  if (a.map.size() > 0 && b.map.size() > 0) compare("map", a.map, b.map);
  return names;
}

template <class S>
bool all_finite(const Mat<S>& m) {
  for (Index i = 0; i < m.size(); ++i)
    if (!std::isfinite(m.data()[i])) return false;
  return true;
}
template <class S>
bool all_finite(const Result<S>& r) {
  bool fine = all_finite(r.out) && all_finite(r.dkey_bias);
  for (const auto& g : r.grad) fine = fine && all_finite(g.value);
  return fine;
}

template <class S>
double largest(const Mat<S>& m) {
  double most = 0;
  for (Index i = 0; i < m.size(); ++i) most = std::max(most, static_cast<double>(std::abs(m.data()[i])));
  return most;
}
/// The largest gradient entry of a result: what a gradient that vanishes is measured by.
template <class S>
double largest_gradient(const Result<S>& r) {
  double most = 0;
  for (const auto& g : r.grad) most = std::max(most, largest(g.value));
  return most;
}

/// sum of a o b. By hand: Eigen's own sums make g++ 12 warn of its intrinsics.
template <class S>
S inner(const Mat<S>& a, const Mat<S>& b) {
  return limpid::detail::dot(a.data(), b.data(), a.size());
}

/// check(operator) for every operator, each in a section of its own name.
template <class F>
void for_operators(F&& check) {
  for (const auto& op : operators()) DYNAMIC_SECTION(op->name) {
      check(*op);
    }
}

/// Ragged sizes: around one, a panel of 32 and a block of 128; and
/// few queries of whole vectors, which have a path of their own.
inline const std::vector<Sizes>& ragged_sizes() {
  static const std::vector<Sizes> all = {
      {1, 1},     {1, 2},           {2, 1},           {2, 33},          {31, 31},         {31, 127},        {33, 2},
      {33, 129},  {127, 31},        {127, 33},        {128, 128},       {129, 1},         {1, 129},         {129, 127},
      {127, 129}, {1, 300, 16, 16}, {2, 260, 32, 16}, {3, 270, 16, 16}, {5, 300, 16, 32}, {8, 2100, 16, 16}};
  return all;
}

}  // namespace suite
