// limpid: see compiled.hpp
// SPDX-License-Identifier: MIT
#include "support/compiled.hpp"

LIMPID_TEST_LAYERS(, float)
LIMPID_TEST_OPERATORS(, float)
