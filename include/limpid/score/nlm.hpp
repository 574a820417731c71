// limpid: non-local-means scores, S = -|q - k|^2 / h^2 - |pq - pk|^2 / h_space^2.
// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>

#include "kernel.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Inputs of nlm and their gradients. q (B n) x (H d), k (B m) x (G d), v (B m) x (G dv); h 1 x 1 or H x 1, the
/// bandwidth, default sqrt(2) d^(1/4); pq n x c and pk m x c, positions shared by the heads, with h_space (1 x 1 or H x
/// 1, default 1).
template <class T>
struct NlmArgs {
  T q{}, k{}, v{}, h{}, pq{}, pk{}, h_space{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("q", Role::query, a.q...);
    f("k", Role::key, a.k...);
    f("v", Role::key, a.v...);
    f("h", Role::head, a.h...);
    f("pq", Role::query_side, a.pq...);
    f("pk", Role::key_side, a.pk...);
    f("h_space", Role::head, a.h_space...);
  }
  static NlmArgs from_qkv(T q, T k, T v) { return {.q = q, .k = k, .v = v}; }
};

/// The family of scores; see nlm() in op/nlm.hpp.
template <class Mods>
struct NlmScore {
  Mods mods;

  template <class T>
  using Args = NlmArgs<T>;
  template <class S>
  using Prepared = detail::KernelPrepared<S, Mods>;

  /// Parameters that check() looks at, as a bandwidth may be infinite.
  static bool checks(std::string_view field) { return field == "h" || field == "h_space"; }
  template <class In>
  void check(const char* op, const Dims& dims, const In& head) const {
    detail::check_qk(op, dims, head.q.cols, head.k.cols);
    detail::check_pair(op, "pq", "pk", head.pq, head.pk);
    detail::check_scalar(op, "h", head.h);
    detail::check_scalar(op, "h_space", head.h_space);
    content_bandwidth(op, head);
    space_bandwidth(op, head);
  }

  template <class In, class S = typename decltype(In::q)::Scalar>
  Prepared<S> prepare(Arena& arena, const In& in, const At& at) const {
    const S h = content_bandwidth("nlm", in), hs = space_bandwidth("nlm", in);
    return detail::prepare_kernel<S>(
        arena, {detail::distance_term<S>(arena, in.q, in.k, h), detail::distance_term<S>(arena, in.pq, in.pk, hs)},
        mods, at);
  }
  template <class S, class In>
  void complete_lse(Arena& arena, const In& in, const At& at, S* lse) const {
    detail::complete_kernel_lse<S>(prepare(arena, in, at), lse);
  }
  template <class S, class In, class Out>
  detail::GradientTargets<S> targets(Arena& arena, const In&, const Prepared<S>& p, const Out& g) const {
    return detail::kernel_targets<S>(arena, p, gradients<S>(g));
  }
  template <class S, class In, class Out>
  void finish(const In& in, const Prepared<S>& p, const detail::GradientTargets<S>& from, const Out& g,
              detail::Accumulation accumulate) const {
    auto parts = gradients<S>(g);
    detail::finish_kernel<S>(p, from, parts, accumulate);
    // d/dh of -(...) / h^2 is -2 / h times the score
    if (g.h.given()) g.h(0, 0) = S(parts[0].sum_ds_s * -2 / content_bandwidth("nlm", in));
    if (g.h_space.given() && in.pq.given()) g.h_space(0, 0) = S(parts[1].sum_ds_s * -2 / space_bandwidth("nlm", in));
  }

 private:
  template <class S, class Out>
  static std::array<detail::KernelGradient<S>, 2> gradients(const Out& g) {
    return {{{g.q, g.k, g.h.given()}, {g.pq, g.pk, g.h_space.given()}}};
  }
  template <class In, class S = typename decltype(In::q)::Scalar>
  static S content_bandwidth(const char* op, const In& in) {
    using std::sqrt;
    return detail::bandwidth<S>(op, "h", in.h, sqrt(S(2) * sqrt(S(double(in.q.cols < 1 ? 1 : in.q.cols)))));
  }
  template <class In, class S = typename decltype(In::q)::Scalar>
  static S space_bandwidth(const char* op, const In& in) {
    return detail::bandwidth<S>(op, "h_space", in.h_space, S(1));
  }
};

}  // namespace LIMPID_ABI
}  // namespace limpid
