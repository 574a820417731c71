// limpid: see compiled.hpp
// SPDX-License-Identifier: MIT
#include "support/compiled.hpp"

LIMPID_TEST_SUBSPACES(, float)
LIMPID_TEST_SUBSPACES(, double)
