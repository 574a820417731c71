// limpid: inputs of any operator, made from the roles of its fields. Free of Catch2, as operators.hpp.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "operators.hpp"

namespace suite {

using limpid::Mat;
using limpid::MutView;
using limpid::Role;
using limpid::View;

/// Random numbers that are the same on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x2545f4914f6cdd1du + 0x9e3779b97f4a7c15u) {}
  std::uint64_t bits() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53; }
  Index below(Index count) { return static_cast<Index>(bits() % static_cast<std::uint64_t>(count)); }

 private:
  std::uint64_t state_;
};

template <class S>
Mat<S> random_matrix(Random& random, Index rows, Index cols, double low = -1, double high = 1) {
  Mat<S> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<S>(random.uniform(low, high));
  return m;
}

/// One input. A field that is not given has no rows and no columns.
template <class S>
struct Field {
  std::string name;
  Role role = Role::query;
  Mat<S> value;
  bool given() const { return value.cols() > 0; }
};
template <class S>
using Fields = std::vector<Field<S>>;

/// All fields of an operator in the order of visit, or only those it cannot do without.
template <class Entry, class S>
Fields<S> make_fields(const Sizes& s, bool all, Random& random) {
  using Op = decltype(Entry::make(limpid::chain()));
  Fields<S> fields;
  const Traits traits = Entry::traits();
  Op::template Args<View<S>>::visit([&](const char* name, Role role) {
    const Rule rule = rule_of(traits, name, role);
    Field<S> field{name, role, {}};
    if ((all || !rule.optional) && !rule.absent) {
      const Index w = width_of(rule, name, role, s);
      const Index items = s.own_sides ? s.batch : 1;
      Index rows = s.one_for_all ? 1 : s.heads, cols = w;
      if (role == Role::query) rows = s.batch * s.n, cols = s.heads * w;
      if (role == Role::key) rows = s.batch * s.m, cols = s.kv_heads * w;
      if (role == Role::query_side) rows = items * s.n;
      if (role == Role::key_side) rows = items * s.m;
      field.value = random_matrix<S>(random, rows, cols, rule.low, rule.high);
    }
    fields.push_back(std::move(field));
  });
  return fields;
}

/// Args of views, read from the list in the order of visit.
template <class Args, class List>
Args args_of(const List& views) {
  Args args{};
  std::size_t next = 0;
  Args::visit([&](const char*, Role, auto& field) { field = views[next++]; }, args);
  return args;
}

template <class S>
std::vector<View<S>> views_of(const Fields<S>& fields) {
  std::vector<View<S>> views;
  for (const auto& f : fields) views.push_back(f.given() ? View<S>(f.value) : View<S>());
  return views;
}
template <class S>
std::vector<MutView<S>> mutable_views_of(Fields<S>& fields) {
  std::vector<MutView<S>> views;
  for (auto& f : fields) views.push_back(f.given() ? MutView<S>(f.value) : MutView<S>());
  return views;
}

template <class To, class From>
Fields<To> cast(const Fields<From>& from) {
  Fields<To> to;
  for (const auto& f : from) to.push_back({f.name, f.role, f.value.template cast<To>()});
  return to;
}

}  // namespace suite
