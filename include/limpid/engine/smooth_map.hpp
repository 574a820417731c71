// limpid: one map of a `smooth`, tiled or decoding.
// SPDX-License-Identifier: MIT
#pragma once

#include "scores.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// One map of a `smooth`: its scores, what it is applied to, where the result and (may be null) the log-sum-exp go;
/// known: the log-sum-exp where that is known before; copy (may be null): where the result goes as well.
template <class S, class Mods>
struct SmoothMap {
  Scores<S, Mods> scores;
  View<S> x;
  MutView<S> out;
  Lse<const S> known;
  Lse<S> lse;
  MutView<S> copy;
};

/// An array of f(map) for one map or two; f's result need not have a default.
template <class Maps, class F>
auto each_map(Maps& maps, F&& f) {
  using Result = decltype(f(maps[0]));
  if constexpr (Maps::count == 1)
    return Few<Result, 1>{f(maps[0])};
  else
    return Few<Result, 2>{f(maps[0]), f(maps[1])};
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
