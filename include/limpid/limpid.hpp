// limpid: the umbrella. Interpretable attention operators on Eigen, forward, backward and from inside.
// SPDX-License-Identifier: MIT
//
// Core, scores, operators, layers, explanations and the gradient checker. Never io/ and never exec/: include those by
// name.
#pragma once

#include "check/gradient.hpp"
#include "explain/guidance.hpp"
#include "explain/metrics.hpp"
#include "explain/relevance.hpp"
#include "explain/rollout.hpp"
#include "layer/aot.hpp"
#include "layer/boosting_block.hpp"
#include "layer/coding_rate.hpp"
#include "layer/crate.hpp"
#include "layer/differential.hpp"
#include "layer/layer_norm.hpp"
#include "layer/multi_head.hpp"
#include "layer/subspaces.hpp"
#include "op/bilateral.hpp"
#include "op/boosting.hpp"
#include "op/differential.hpp"
#include "op/differential_gated.hpp"
#include "op/mssa.hpp"
#include "op/nlm.hpp"
#include "op/pid.hpp"
#include "op/softmax.hpp"
#include "op/twicing.hpp"
#include "score/positions.hpp"
#include "version.hpp"
