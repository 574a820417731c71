// limpid: bilateral attention, the filter whose weight is a kernel of content times a kernel of position.
// SPDX-License-Identifier: MIT
#pragma once

#include "../score/bilateral.hpp"
#include "softmax.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Bilateral attention. A bilateral filter (Tomasi, Manduchi 1998, "Bilateral filtering for gray and color images")
/// weighs by content and by place, each with a kernel of its own; as attention it has no term that mixes the two, which
/// is what Abdullaev, Tkachenko, Nguyen, arXiv 2506.10371, ask for. The formulas of that paper's own bilateral
/// attention were not available to us: the family below, its gradients and its evaluation are our own and claim no more
/// than the name of the filter.
///
///     S_ij = content_ij + spatial_ij,   A = softmax_rows(S),   out = A V
///     content   dot   scale <q_i, k_j>                  dist    -|q_i - k_j|^2 / h_range^2
///     spatial   dot   pscale <a_i, b_j>                 gauss   -|p_i - p_j|^2 / h_space^2          none   0
///     dot:   dq_i = scale sum_j dS_ij k_j,   dk_j = scale sum_i dS_ij q_i
///     dist:  dq_i = (2/h^2) sum_j dS_ij k_j,   dk_j = (2/h^2)(sum_i dS_ij q_i - c_j k_j),
///            dh = -(2/h) sum_ij dS_ij dist_ij
///
/// with dS of softmax and c_j = sum_i dS_ij; positions likewise.
/// Inputs: BilateralArgs. The kernels are chosen at run time:
///     bilateral(causal(), {.content = ContentKernel::dist, .spatial = SpatialKernel::dot, .pscale = 0.5})
/// Kept and errors as softmax; a bandwidth that is not positive, missing positions, and inputs that the chosen kernels
/// do not read throw ShapeError. Cost as softmax with d + c in place of d; memory O((n + m)(d + c + dv)): content and
/// positions are joined into one product, distances are taken from the middle of the keys or by pair, as nlm says. A
/// token without a place has rows of its own in a, b (spatial = dot).
inline auto bilateral(BilateralOptions options = {}) {
  return Softmax<BilateralScore<Chain<>>>{{{chain(), options}, "bilateral"}, {}};
}
template <class M>
requires(!std::is_same_v<M, BilateralOptions>) auto bilateral(const M& modifiers, BilateralOptions options = {}) {
  using Mods = decltype(chain(modifiers));
  return Softmax<BilateralScore<Mods>>{{{chain(modifiers), options}, "bilateral"}, {}};
}

/// dot + dot: additive positions with the two cross terms removed, as in TUPE (Ke, He, Liu 2020, arXiv 2006.15595). The
/// default of bilateral(); TUPE's own scales are bilateral(mods, {.scale = s, .pscale = s}) with s = 1 / sqrt(2 d).
template <class M = Chain<>>
auto bilateral_untied(const M& modifiers = {}) {
  return bilateral(modifiers, BilateralOptions{});
}

/// dist + gauss: the classical filter.
template <class M = Chain<>>
auto bilateral_classic(const M& modifiers = {}) {
  return bilateral(modifiers, {.content = ContentKernel::dist, .spatial = SpatialKernel::gauss});
}

}  // namespace LIMPID_ABI
}  // namespace limpid
