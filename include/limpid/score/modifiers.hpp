// limpid: all modifiers of scores.
// SPDX-License-Identifier: MIT
#pragma once

#include "biases.hpp"
#include "local.hpp"
#include "masks.hpp"
#include "modifier.hpp"
#include "positions.hpp"
#include "score_mod.hpp"
#include "sink.hpp"
