// limpid: see compiled_steps.hpp
// SPDX-License-Identifier: MIT
#include "support/compiled_steps.hpp"

#if defined(__GNUC__)
namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

LIMPID_TEST_STEPS(, float)
LIMPID_TEST_STEPS(, double)

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
#endif
