// limpid: bilateral scores, a kernel of content times a kernel of position: S = content + spatial, no cross terms.
// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>

#include "kernel.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// dot: scale <q_i, k_j>; dist: -|q_i - k_j|^2 / h_range^2.
enum class ContentKernel { dot, dist };
/// dot: pscale <a_i, b_j>; gauss: -|p_i - p_j|^2 / h_space^2; none: 0.
enum class SpatialKernel { dot, gauss, none };

struct BilateralOptions {
  ContentKernel content = ContentKernel::dot;
  SpatialKernel spatial = SpatialKernel::dot;
  std::optional<double> scale = default_scale;   ///< of the content's dot product, default 1 / sqrt(d)
  std::optional<double> pscale = default_scale;  ///< of the positions' dot product, default 1 / sqrt(c)
};

/// Inputs of bilateral and their gradients. q (B n) x (H d), k (B m) x (G d), v (B m) x (G dv).
/// Positions come in one of two pairs, whatever the spatial kernel makes of them:
///     a (B n) x (H c), b (B m) x (G c)      each head its own, like q and k (projected positions P U_Q, P U_K)
///     pq n x c or (B n) x c, pk likewise    shared by the heads and, if n and m rows, by the batch (rows and columns
///                                           of an image); their gradients are sums over those who share
/// h_range and h_space 1 x 1 or H x 1, positive; default sqrt(2) d^(1/4), and 1. Learn them as exp(theta) outside.
template <class T>
struct BilateralArgs {
  T q{}, k{}, v{}, h_range{}, a{}, b{}, pq{}, pk{}, h_space{};

  template <class F, class... A>
  static void visit(F&& f, A&&... args) {
    f("q", Role::query, args.q...);
    f("k", Role::key, args.k...);
    f("v", Role::key, args.v...);
    f("h_range", Role::head, args.h_range...);
    f("a", Role::query, args.a...);
    f("b", Role::key, args.b...);
    f("pq", Role::query_side, args.pq...);
    f("pk", Role::key_side, args.pk...);
    f("h_space", Role::head, args.h_space...);
  }
  static BilateralArgs from_qkv(T q, T k, T v) { return {.q = q, .k = k, .v = v}; }
};

/// The family of scores; see bilateral() in op/bilateral.hpp.
template <class Mods>
struct BilateralScore {
  Mods mods;
  BilateralOptions options;

  template <class T>
  using Args = BilateralArgs<T>;
  template <class S>
  using Prepared = detail::KernelPrepared<S, Mods>;

  /// Parameters that check() looks at, as a bandwidth may be infinite.
  static bool checks(std::string_view field) { return field == "h_range" || field == "h_space"; }
  template <class In>
  void check(const char* op, const Dims& dims, const In& head) const {
    detail::check_qk(op, dims, head.q.cols, head.k.cols);
    detail::check_pair(op, "a", "b", head.a, head.b);
    detail::check_pair(op, "pq", "pk", head.pq, head.pk);
    detail::check_scalar(op, "h_range", head.h_range);
    detail::check_scalar(op, "h_space", head.h_space);
    const bool own = head.a.cols > 0, shared = head.pq.cols > 0;
    const auto refuse = [&](bool wrong, const char* found) {
      if (wrong) detail::raise(std::string(op) + ": " + found);
    };
    refuse(own && shared, "both a, b and pq, pk are given, wanted one pair of positions");
    refuse(spatial() && !own && !shared, "no positions are given, wanted a and b or pq and pk, or spatial = none");
    refuse(!spatial() && (own || shared), "positions are given, wanted none with spatial = none");
    refuse(head.h_range.given() && !dist(), "h_range is given, wanted none with content = dot");
    refuse(head.h_space.given() && !gauss(), "h_space is given, wanted none unless spatial = gauss");
    range(op, head);
    space(op, head);
    using S = typename decltype(In::q)::Scalar;
    detail::check_scale<S>(op, "scale", options.scale);
    detail::check_scale<S>(op, "pscale", options.pscale);
  }

  template <class In, class S = typename decltype(In::q)::Scalar>
  Prepared<S> prepare(Arena& arena, const In& in, const At& at) const {
    const S hr = range("bilateral", in), hs = space("bilateral", in);
    using Term = detail::KernelTerm<S>;
    const Term content = dist() ? detail::distance_term<S>(arena, in.q, in.k, hr)
                                : Term{in.q, in.k, false, detail::scale_of<S>(options.scale, in.q.cols)};
    Term place;
    if (spatial()) {
      const bool own = in.a.cols > 0;
      const View<S> a = own ? in.a : in.pq, b = own ? in.b : in.pk;
      place = gauss() ? detail::distance_term<S>(arena, a, b, hs)
                      : Term{a, b, false, detail::scale_of<S>(options.pscale, a.cols)};
    }
    return detail::prepare_kernel<S>(arena, {{content, place}}, mods, at);
  }
  template <class S, class In>
  void complete_lse(Arena& arena, const In& in, const At& at, S* lse) const {
    detail::complete_kernel_lse<S>(prepare(arena, in, at), lse);
  }
  template <class S, class In, class Out>
  detail::GradientTargets<S> targets(Arena& arena, const In& in, const Prepared<S>& p, const Out& g) const {
    return detail::kernel_targets<S>(arena, p, gradients<S>(in, g));
  }
  template <class S, class In, class Out>
  void finish(const In& in, const Prepared<S>& p, const detail::GradientTargets<S>& from, const Out& g,
              detail::Accumulation accumulate) const {
    auto parts = gradients<S>(in, g);
    detail::finish_kernel<S>(p, from, parts, accumulate);
    // d/dh of -(...) / h^2 is -2 / h times the score
    if (parts[0].coefficient) g.h_range(0, 0) = S(parts[0].sum_ds_s * -2 / range("bilateral", in));
    if (parts[1].coefficient) g.h_space(0, 0) = S(parts[1].sum_ds_s * -2 / space("bilateral", in));
  }

 private:
  bool dist() const { return options.content == ContentKernel::dist; }
  bool gauss() const { return options.spatial == SpatialKernel::gauss; }
  bool spatial() const { return options.spatial != SpatialKernel::none; }

  template <class S, class In, class Out>
  std::array<detail::KernelGradient<S>, 2> gradients(const In& in, const Out& g) const {
    const bool own = in.a.cols > 0;
    return {
        {{g.q, g.k, dist() && g.h_range.given()}, {own ? g.a : g.pq, own ? g.b : g.pk, gauss() && g.h_space.given()}}};
  }
  template <class In, class S = typename decltype(In::q)::Scalar>
  static S range(const char* op, const In& in) {
    using std::sqrt;
    return detail::bandwidth<S>(op, "h_range", in.h_range, sqrt(S(2) * sqrt(S(double(in.q.cols < 1 ? 1 : in.q.cols)))));
  }
  template <class In, class S = typename decltype(In::q)::Scalar>
  static S space(const char* op, const In& in) {
    return detail::bandwidth<S>(op, "h_space", in.h_space, S(1));
  }
};

}  // namespace LIMPID_ABI
}  // namespace limpid
