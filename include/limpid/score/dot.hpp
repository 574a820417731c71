// limpid: dot-product scores, S = scale q k^T, and what a family of scores must offer.
//
// A score family gives an operator the scores of one head (prepare), says where pull_back should put dq, dk and dbias
// (targets), and turns these into the gradients of its own inputs (finish). Operators are written over any family.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <optional>
#include <type_traits>

#include "../core/args.hpp"
#include "../engine/backward_plan.hpp"
#include "modifiers.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// A scale that is not set: 1 / sqrt(d). One that is set is at most 2^-20 of the largest number of the arrays' scalar
/// in size, so that scores are numbers while products of rows are below 2^20.
inline constexpr std::nullopt_t default_scale = std::nullopt;

struct SoftmaxOptions {
  std::optional<double> scale = default_scale;
};

namespace detail {

/// The scale of a dot product of rows so wide.
template <class S>
S scale_of(const std::optional<double>& scale, Index width) {
  using std::sqrt;
  return scale ? S(*scale) : S(1) / sqrt(S(double(width < 1 ? 1 : width)));
}
template <class S>
void check_scale(const char* op, const char* name, const std::optional<double>& scale) {
  if (scale) check_factor<S>(op, name, *scale);
}

inline void check_qk(const char* op, const Dims& dims, Index dq, Index dk) {
  if (dq != dk)
    raise(std::string(op) + ": q has width " + text_of(dq) + " a head and k has " + text_of(dk) +
          ", wanted the same (" + text_of(dims.heads) + " heads, " + text_of(dims.kv_heads) + " key heads)");
}

}  // namespace detail

/// S_ij = scale <q_i, k_j>, then modifiers. Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1.
template <class Mods>
struct DotScore {
  Mods mods;
  std::optional<double> scale = default_scale;
  static constexpr bool keys_as_given = true;  // nothing but sweeps reads k

  template <class T>
  using Args = QKV<T>;

  template <class S>
  struct Prepared {
    detail::Scores<S, Mods> scores;
  };

  template <class In>
  void check(const char* op, const Dims& dims, const In& head) const {
    detail::check_qk(op, dims, head.q.cols, head.k.cols);
    detail::check_scale<typename decltype(In::q)::Scalar>(op, "scale", scale);
  }

  template <class In, class S = typename decltype(In::q)::Scalar>
  Prepared<S> prepare(Arena&, const In& in, const At& at) const {
    return {{in.q, in.k, detail::scale_of<S>(scale, in.q.cols), nullptr, &mods, at}};
  }
  template <class S, class In, class Out>
  detail::GradientTargets<S> targets(Arena&, const In&, const Prepared<S>&, const Out& g) const {
    return {g.q, g.k, nullptr, true};
  }
  template <class S, class In, class Out>
  void finish(const In&, const Prepared<S>&, const detail::GradientTargets<S>&, const Out&,
              detail::Accumulation) const {}
};

}  // namespace LIMPID_ABI
}  // namespace limpid
