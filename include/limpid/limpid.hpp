// limpid: the umbrella. Interpretable attention operators on Eigen, forward, backward and from inside.
// SPDX-License-Identifier: MIT
//
// Core, scores, operators, layers, explanations and the gradient
// checker. Never io/ and never exec/: include those by name.
#pragma once

#include "check/gradient.hpp"
#include "check/subspace_data.hpp"
#include "explain/coding_rate.hpp"
#include "explain/guidance.hpp"
#include "explain/map.hpp"
#include "explain/metrics.hpp"
#include "explain/relevance.hpp"
#include "explain/rollout.hpp"
#include "explain/score_parts.hpp"
#include "explain/subspaces.hpp"
#include "layer/aot.hpp"
#include "layer/boosting_block.hpp"
#include "layer/crate.hpp"
#include "layer/differential.hpp"
#include "layer/layer_norm.hpp"
#include "layer/mssa.hpp"
#include "layer/multi_head.hpp"
#include "layer/patches.hpp"
#include "layer/pid_stack.hpp"
#include "layer/twicing_cache.hpp"
#include "op/bilateral.hpp"
#include "op/boosting.hpp"
#include "op/differential.hpp"
#include "op/differential_gated.hpp"
#include "op/mssa.hpp"
#include "op/nlm.hpp"
#include "op/pid.hpp"
#include "op/rope.hpp"
#include "op/sigmoid.hpp"
#include "op/softmax.hpp"
#include "op/twicing.hpp"
#include "version.hpp"
