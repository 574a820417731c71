// limpid: every operator with one chain of modifiers and one scalar. The build compiles this file once for each pair.
// SPDX-License-Identifier: MIT
#include "subject_of.hpp"

namespace {

using Policy = limpid::detail::LIMPID_POLICY<LIMPID_SCALAR>;

[[maybe_unused]] const bool added = [] {
  suite::instances().push_back(&suite::fill<LIMPID_SCALAR, Policy, suite::Kind::LIMPID_KIND>);
  return true;
}();

}  // namespace
