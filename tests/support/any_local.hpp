// limpid: masks that gather as one type, so that an operator is compiled once for all of them.
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/score/local.hpp>
#include <utility>
#include <variant>

namespace suite {

/// One of these masks; it says of itself what all of them say.
template <class... Masks>
struct AnyLocal : limpid::Modifier {
  static constexpr bool is_mask = true, irregular = true, gathers = true, windows = (Masks::windows && ...),
                        whole_blocks = (Masks::whole_blocks && ...), own_keys = (Masks::own_keys && ...);
  std::variant<Masks...> mask;
  template <class T>
  AnyLocal(const T& m) : mask(m) {}  // NOLINT: implicit on purpose
  template <class F>
  auto ask(F&& f) const {
    return std::visit(std::forward<F>(f), mask);
  }
  bool keep(const limpid::At& a) const {
    return ask([&](const auto& m) { return m.keep(a); });
  }
  limpid::Cover cover(const limpid::At&, limpid::Index, limpid::Index, limpid::Index, limpid::Index) const {
    return limpid::Cover::some;
  }
  limpid::At own_place(const limpid::At& a) const {
    return ask([&](const auto& m) { return m.own_place(a); });
  }
  bool repeats_keys() const {
    return ask([&](const auto& m) { return m.repeats_keys(); });
  }
  limpid::Index plan_size(const limpid::At& a, limpid::Index panel) const {
    return ask([&](const auto& m) { return m.plan_size(a, panel); });
  }
  limpid::Index plan(const limpid::At& a, limpid::Index panel, limpid::Index* numbers) const {
    return ask([&](const auto& m) { return m.plan(a, panel, numbers); });
  }
  template <class S>
  limpid::PairBlock<S> block(const limpid::At& a, limpid::Index panel, const limpid::Index* numbers,
                             limpid::Index b) const {
    return ask([&](const auto& m) { return m.template block<S>(a, panel, numbers, b); });
  }
  template <class S>
  void fill(const limpid::At& a, limpid::Index panel, const limpid::Index* numbers, limpid::Index b,
            limpid::PairBlock<S>& to) const {
    ask([&](const auto& m) { m.template fill<S>(a, panel, numbers, b, to); });
  }
  void check(const char* op, limpid::Index b, limpid::Index h, limpid::Index n, limpid::Index m) const {
    ask([&](const auto& one) { one.check(op, b, h, n, m); });
  }
};

/// Sequences, each of which has its keys for itself.
using AnyPacked = AnyLocal<limpid::Packed, limpid::Documents>;

}  // namespace suite
