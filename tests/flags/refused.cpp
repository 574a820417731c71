// limpid: what is compiled with flags that are refused
// SPDX-License-Identifier: MIT
#include <limpid/op/softmax.hpp>
