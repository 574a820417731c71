// limpid: see compiled.hpp
// SPDX-License-Identifier: MIT
#include "support/compiled.hpp"

LIMPID_TEST_LAYERS(, double)
LIMPID_TEST_OPERATORS(, double)
