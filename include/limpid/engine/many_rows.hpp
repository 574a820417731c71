// limpid: what is done with all rows of an array before or after a sweep, spread over workers.
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>

#include "../core/context.hpp"
#include "rows.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

template <class P>
bool all_finite(const Context& context, View<typename P::Scalar> v) {
  std::atomic<bool> finite{true};
  for_rows(context, v.rows, [&](Index begin, Index end) {
    if (finite && !all_finite<P>(v.block(begin, 0, end - begin, v.cols))) finite = false;
  });
  return finite;
}

template <class P>
void row_dots(const Context& context, View<typename P::Scalar> a, View<typename P::Scalar> b, typename P::Scalar* out) {
  for_rows(context, a.rows, [&](Index begin, Index end) {
    row_dots<P>(a.block(begin, 0, end - begin, a.cols), b.block(begin, 0, end - begin, b.cols), out + begin);
  });
}

template <class S>
void copy_rows(const Context& context, View<S> from, MutView<S> to) {
  for_rows(context, from.rows, [&](Index begin, Index end) {
    copy<S>(from.block(begin, 0, end - begin, from.cols), to.block(begin, 0, end - begin, to.cols));
  });
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
