// limpid: every operator with one scalar and some chains of modifiers. The build compiles this file once for each
// scalar: the chains share whatever of an operator does not depend on them.
// SPDX-License-Identifier: MIT
#include "subject_of.hpp"

namespace {

using suite::Kind;
using Policy = limpid::detail::LIMPID_POLICY<LIMPID_SCALAR>;

template <Kind... K>
void fill(suite::Operators& all) {
  (suite::fill<LIMPID_SCALAR, Policy, K>(all), ...);
}

[[maybe_unused]] const bool added = [] {
#if defined(LIMPID_ALL_KINDS)
  suite::instances().push_back(&fill<Kind::none, Kind::causal, Kind::masks, Kind::values>);
#else
  suite::instances().push_back(&fill<Kind::values>);
#endif
  return true;
}();

}  // namespace
