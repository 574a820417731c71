// limpid: non-local-means attention, the filter that attention is an instance of.
// SPDX-License-Identifier: MIT
#pragma once

#include "../score/nlm.hpp"
#include "softmax.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Non-local means (Buades, Coll, Morel 2005, "A non-local algorithm for image denoising") as attention. The kernel is
/// classical; its use here, its gradients and its fused evaluation are our own (the reading of attention as an image
/// filter is that of Abdullaev, Tkachenko, Nguyen, arXiv 2506.10371):
///
///     S_ij = -|q_i - k_j|^2 / h^2  [ - |pq_i - pk_j|^2 / h_space^2 ],   A = softmax_rows(S),   out = A V
///     dq_i = (2/h^2) sum_j dS_ij k_j,   dk_j = (2/h^2)(sum_i dS_ij q_i - c_j k_j),   dh = -(2/h) sum_ij dS_ij S_ij
///
/// with dS of softmax and c_j = sum_i dS_ij; positions likewise. Inputs: NlmArgs. h = sqrt(2) d^(1/4), the default,
/// gives the scale of plain attention. Kept, cost and errors as softmax, plus centred copies of q and k, O((n + m)(d +
/// c)); in float the bandwidth gradients, sums that cancel, stay within 5 x the error of the naive float formula
/// (tests/contract). So does everything for queries and keys up to 1e5 h apart (tests/op/distance_test.cpp): where a
/// middle would cost near pairs their digits, distances are summed by pair, of all pairs in rows of up to 16 columns
/// and of the near ones in wider rows, and so are gradients. Which it is depends on the arrays of a head alone. A
/// bandwidth with which all keys that a query sees, more than one, lie beyond the end of the numbers, |q - k|^2 / h^2 >
/// 3.4e38 in float, leaves nothing to tell them apart: the query's row of out is NaN, and what gradients it reaches. A
/// key beyond that end beside one this side of it has no weight. Under a neighbourhood() rows of out depend on the rows
/// within its reach alone, so an image whose patches are too many for memory goes strip by strip, each with those rows
/// beside it: what the whole image gives, up to rounding (9.5e-7 of 1 in float; tests/op/nlm_test.cpp). Throws ShapeError for a bandwidth that is not positive
/// or so small that 2 / h^2 overflows, 8e-20 in float.
template <class M = Chain<>>
auto nlm(const M& modifiers = {}) {
  using Mods = decltype(chain(modifiers));
  return Softmax<NlmScore<Mods>>{{{chain(modifiers)}, "nlm"}, {}};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
