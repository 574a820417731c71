// limpid: the umbrella. Interpretable attention operators on Eigen, forward, backward and from inside.
// SPDX-License-Identifier: MIT
//
// Core, scores, operators, layers, explanations and the gradient checker. Never io/ and never exec/: include those by name.
#pragma once

#include "op/nlm.hpp"
#include "op/softmax.hpp"
#include "version.hpp"
