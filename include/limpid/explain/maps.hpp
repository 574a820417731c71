// limpid: methods from maps that are there as matrices, of few tokens or made elsewhere, with their gradients: rollout
// and gradient rollout, raw attention, attention Grad-CAM. What streams, without any map: rollout.hpp and
// relevance.hpp.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "correction.hpp"
#include "rollout.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What makes a layer's factor of the product C = F_L ... F_start, F the factors:
///   rollout            F = residual I + (1 - residual) fuse_h A_h        Abnar and Zuidema 2020, 2005.00928, eq. 1
///   gradient_rollout   F = I + mean_h max(0, A_h o dy/dA_h)              rules 5 and 6 of relevance
enum class RolloutMethod { rollout, gradient_rollout };

struct MapRolloutOptions {
  RolloutMethod method = RolloutMethod::rollout;
  double residual = 0.5;               ///< share of the skip connection, in [0, 1]; rollout alone
  Fuse fuse = Fuse::mean;              ///< rollout alone
  std::optional<bool> normalise = {};  ///< divide the rows of a factor by their sums; not given: rollout alone does
  Index start = 0;                     ///< the first layer that counts
  double discard = 0;                  ///< share of the smallest entries of a fused map that are taken as 0, in [0, 1)

  bool normalises() const { return normalise.value_or(method == RolloutMethod::rollout); }
};

/// Where gradients with respect to the maps of an attention go, as HeadMaps has them; an empty one is not computed.
template <class S>
struct HeadMapGrads {
  MutView<S> a{}, g{};
};

namespace detail {

/// Gradients of maps, before one is written: as large as the maps, and none over another, the maps or `more`.
template <class S>
void check_map_gradients(Name name, const std::vector<HeadMaps<S>>& layers, const std::vector<HeadMapGrads<S>>& grads,
                         const NamedArray& more) {
  for (std::size_t l = 0; l < layers.size(); ++l)
    for (const MutView<S>& to : {grads[l].a, grads[l].g})
      if (to.given() && (to.rows != layers[l].a.rows || to.cols != layers[l].a.cols))
        raise(name + (": a gradient is " + shape_text(to.rows, to.cols) + ", wanted " +
                      shape_text(layers[l].a.rows, layers[l].a.cols)));
  const auto written = [&](ForArray f) {
    for (const HeadMapGrads<S>& to : grads)
      f(NamedArray("a", to.a, gradient_of)), f(NamedArray("g", to.g, gradient_of));
  };
  const auto read = [&](ForArray f) {
    for (const HeadMaps<S>& maps : layers) f(NamedArray("a", maps.a)), f(NamedArray("g", maps.g));
    f(more);
  };
  refuse_overlaps(name, written, read);
}

inline void check_map_rollout(const MapRolloutOptions& o, Index layers) {
  if (!(o.residual >= 0 && o.residual <= 1))
    raise("map_rollout: residual is " + number_text(o.residual) + ", wanted it in [0, 1]");
  if (!(o.discard >= 0 && o.discard < 1))
    raise("map_rollout: discard is " + number_text(o.discard) + ", wanted it in [0, 1)");
  if (o.start < 0 || o.start > layers)
    raise("map_rollout: start is " + text_of(o.start) + ", wanted it in [0, " + text_of(layers) + "]");
}

/// What the heads' maps have in common, entry by entry.
template <class S>
S fused_entry(const HeadMaps<S>& maps, Fuse fuse, Index i, Index j) {
  S out = maps.map(0)(i, j);
  for (Index h = 1; h < maps.heads; ++h) {
    const S& x = maps.map(h)(i, j);
    if (fuse == Fuse::mean)
      out += x;
    else if (fuse == Fuse::max ? out < x : x < out)
      out = x;
  }
  return fuse == Fuse::mean ? S(out / S(static_cast<double>(maps.heads))) : out;
}

/// A layer's factor before and after its rows are divided.
template <class S>
struct MapFactor {
  Mat<S> f;                ///< n x n
  std::vector<S> sums;     ///< of its rows before the division, where there is one
  std::vector<bool> kept;  ///< entries of the fused map that are not discarded, where some are
};

template <class S>
MapFactor<S> map_factor(const HeadMaps<S>& maps, const MapRolloutOptions& o) {
  const Index n = maps.n();
  MapFactor<S> out;
  if (o.method == RolloutMethod::gradient_rollout) {
    out.f = corrected_map(maps);
    out.f.diagonal().array() += S(1);
  } else {
    out.f.resize(n, n);
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) out.f(i, j) = fused_entry(maps, o.fuse, i, j);
    const auto dropped =  // to 1e-9, as the counts of PerturbationOptions: 0.57 of 100 is 57
        static_cast<std::size_t>(o.discard * static_cast<double>(n) * static_cast<double>(n) + 1e-9);
    if (dropped > 0) {
      std::vector<Index> order(static_cast<std::size_t>(n * n));
      std::iota(order.begin(), order.end(), Index(0));
      std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return out.f.data()[a] < out.f.data()[b]; });
      out.kept.assign(order.size(), true);
      for (std::size_t k = 0; k < dropped; ++k) {
        out.f.data()[order[k]] = S(0);
        out.kept[static_cast<std::size_t>(order[k])] = false;
      }
    }
    out.f *= S(1 - o.residual);
    out.f.diagonal().array() += S(o.residual);
  }
  for (Index i = 0; i < n && o.normalises(); ++i) {
    const S sum = out.f.row(i).sum();
    out.sums.push_back(sum);
    if (sum == S(0))
      out.f.row(i).setZero(), out.f(i, i) = S(1);  // as Rollout: it hands on its own token
    else
      out.f.row(i) /= sum;
  }
  return out;
}

template <class S>
std::vector<MapFactor<S>> map_factors(const std::vector<HeadMaps<S>>& layers, const MapRolloutOptions& o) {
  check_map_rollout(o, static_cast<Index>(layers.size()));
  if (layers.empty()) raise("map_rollout: no layers, wanted at least one");
  std::vector<MapFactor<S>> out;
  for (const HeadMaps<S>& maps : layers) {
    check_maps("map_rollout", maps, o.method == RolloutMethod::gradient_rollout);
    if (maps.n() != maps.m() || maps.m() != layers.front().m())
      raise("map_rollout: a map " + shape_text(maps.n(), maps.m()) + ", wanted " +
            shape_text(layers.front().m(), layers.front().m()));
  }
  for (std::size_t l = static_cast<std::size_t>(o.start); l < layers.size(); ++l)
    out.push_back(map_factor(layers[l], o));
  return out;
}

}  // namespace detail

/// Heads fused into one map, n x m: raw attention, of the last layer. Throws ShapeError where rows and heads do not fit
/// or a number is not finite.
template <class S>
Mat<S> fused_map(const HeadMaps<S>& maps, Fuse fuse = Fuse::mean) {
  detail::check_maps("fused_map", maps, false);
  Mat<S> out(maps.n(), maps.m());
  for (Index i = 0; i < out.rows(); ++i)
    for (Index j = 0; j < out.cols(); ++j) out(i, j) = detail::fused_entry(maps, fuse, i, j);
  return out;
}
/// da, (H n) x m, overwritten, from dmap, n x m, the gradient of a scalar of fused_map(): of the mean each head's
/// share, of max and min to the head that has it, equal ones share. Throws ShapeError as fused_map does, for other
/// shapes, and where da shares memory with the maps or dmap.
template <class S>
void fused_map_backward(const HeadMaps<S>& maps, Fuse fuse, std::type_identity_t<View<S>> dmap,
                        const std::type_identity_t<MutView<S>>& da) {
  detail::check_maps("fused_map", maps, false);
  if (dmap.rows != maps.n() || dmap.cols != maps.m() || da.rows != maps.a.rows || da.cols != maps.a.cols)
    detail::raise("fused_map: dmap is " + detail::shape_text(dmap.rows, dmap.cols) + " and da " +
                  detail::shape_text(da.rows, da.cols) + ", wanted " + detail::shape_text(maps.n(), maps.m()) +
                  " and " + detail::shape_text(maps.a.rows, maps.a.cols));
  detail::refuse_overlaps("fused_map", {{"da", da}}, {{"a", maps.a}, {"dmap", dmap}});
  for (Index i = 0; i < dmap.rows; ++i)
    for (Index j = 0; j < dmap.cols; ++j) {
      const S fused = detail::fused_entry(maps, fuse, i, j);
      Index sharing = 0;
      const auto shares = [&](Index h) { return fuse == Fuse::mean || maps.map(h)(i, j) == fused; };
      for (Index h = 0; h < maps.heads; ++h) sharing += shares(h) ? 1 : 0;
      for (Index h = 0; h < maps.heads; ++h)
        da(h * maps.n() + i, j) = shares(h) ? S(dmap(i, j) / S(static_cast<double>(sharing))) : S(0);
    }
}

/// C = F_L ... F_start of maps handed over, n x n: all rows of Rollout, and what only whole maps can give, discarding
/// by rank (after a common program for vision transformers, whose division of the rows it does not follow: ours divides
/// each row by its own sum). Equal entries: the later one stays. 2 n³ flop a layer, L n² numbers. A row of C is
/// Rollout's to 1e-12 in double, as tests assert. Throws ShapeError for no layers, options out of range, maps that are
/// not square or not of one size, and numbers that are not finite.
template <class S>
Mat<S> map_rollout(const std::vector<HeadMaps<S>>& layers, const MapRolloutOptions& options = {}) {
  const auto factors = detail::map_factors(layers, options);
  Mat<S> c = Mat<S>::Identity(layers.front().n(), layers.front().n());
  for (const auto& factor : factors) c = detail::matrix_product<S>(factor.f, c);
  return c;
}

/// Gradients of a scalar of C with respect to the maps, and to g of gradient_rollout, dc being that with respect to C:
///
///   dF_l = (F_L ... F_l+1)^T dc (F_l-1 ... F_start)^T,  through the division (dF - rowsum(dF o F)) / sums
///   rollout            da_h = (1 - residual) dF / H
///   gradient_rollout   da_h = [a g > 0] g dF / H,   dg_h = [a g > 0] a dF / H
///
/// Layers before start get zeros; so do rows that were not divided as their sum is 0. Throws as map_rollout does, and
/// for gradients of another number or shape, and where one shares memory with another, the maps or dc.
template <class S>
void map_rollout_backward(const std::vector<HeadMaps<S>>& layers, const MapRolloutOptions& options,
                          std::type_identity_t<View<S>> dc,
                          const std::vector<std::type_identity_t<HeadMapGrads<S>>>& grads) {
  const auto factors = detail::map_factors(layers, options);
  const Index n = layers.front().n();
  if (dc.rows != n || dc.cols != n || grads.size() != layers.size())
    detail::raise("map_rollout: dc is " + detail::shape_text(dc.rows, dc.cols) + " and gradients of " +
                  detail::text_of(grads.size()) + " layers, wanted " + detail::shape_text(n, n) + " and " +
                  detail::text_of(layers.size()));
  const bool by_gradient = options.method == RolloutMethod::gradient_rollout;
  detail::check_map_gradients<S>("map_rollout", layers, grads, detail::NamedArray("dc", dc));
  for (const HeadMapGrads<S>& to : grads) to.a.fill(S(0)), to.g.fill(S(0));
  std::vector<Mat<S>> before{Mat<S>::Identity(n, n)};  // what stands to the right of a layer's factor
  for (std::size_t l = 0; l + 1 < factors.size(); ++l)
    before.push_back(detail::matrix_product<S>(factors[l].f, before.back()));
  Mat<S> down = dc.map();  // (F_L ... F_l+1)^T dc
  for (std::size_t k = factors.size(); k-- > 0;) {
    const detail::MapFactor<S>& factor = factors[k];
    const std::size_t l = k + static_cast<std::size_t>(options.start);
    const HeadMaps<S>& maps = layers[l];
    const Mat<S> turned = before[k].transpose(), factor_turned = factor.f.transpose();
    Mat<S> df = detail::matrix_product<S>(down, turned);
    down = detail::matrix_product<S>(factor_turned, down);
    for (Index i = 0; i < n && options.normalises(); ++i) {
      const S sum = factor.sums[static_cast<std::size_t>(i)], along = df.row(i).dot(factor.f.row(i));
      for (Index j = 0; j < n; ++j) df(i, j) = sum == S(0) ? S(0) : S((df(i, j) - along) / sum);
    }
    const HeadMapGrads<S>& to = grads[l];
    if (!by_gradient) {
      df *= S(1 - options.residual);
      for (std::size_t e = 0; e < factor.kept.size(); ++e)
        if (!factor.kept[e]) df.data()[e] = S(0);
      if (to.a.given()) fused_map_backward(maps, options.fuse, df, to.a);
      continue;
    }
    const S each = S(1) / S(static_cast<double>(maps.heads));
    for (Index h = 0; h < maps.heads; ++h)
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < n; ++j) {
          const S a = maps.map(h)(i, j), g = maps.gradient(h)(i, j);
          if (!(a * g > S(0))) continue;
          if (to.a.given()) to.a(h * n + i, j) = each * g * df(i, j);
          if (to.g.given()) to.g(h * n + i, j) = each * a * df(i, j);
        }
  }
}

/// Attention Grad-CAM of one token, 1 x (m - skip), as Chefer et al. 2021 (2012.09838) have it for vision transformers:
/// w_h = mean_j g_h[row, j], cam_j = max(0, mean_h w_h a_h[row, j]), j from skip (1 leaves the class token out). Throws
/// ShapeError where shapes do not fit, there is no such row, or skip leaves no key.
template <class S>
Mat<S> gradcam(const HeadMaps<S>& maps, Index row = 0, Index skip = 1) {
  detail::check_maps("gradcam", maps, true);
  if (row < 0 || row >= maps.n() || skip < 0 || skip >= maps.m())
    detail::raise("gradcam: row is " + detail::text_of(row) + " and skip " + detail::text_of(skip) + " of a map " +
                  detail::shape_text(maps.n(), maps.m()) + ", wanted both inside");
  Mat<S> out = Mat<S>::Zero(1, maps.m() - skip);
  for (Index h = 0; h < maps.heads; ++h) {
    const S weight = maps.gradient(h).map().row(row).tail(out.cols()).mean();
    for (Index j = 0; j < out.cols(); ++j) out(0, j) += weight * maps.map(h)(row, skip + j);
  }
  for (Index j = 0; j < out.cols(); ++j) out(0, j) = std::max(S(0), S(out(0, j) / S(static_cast<double>(maps.heads))));
  return out;
}
/// Gradients of a scalar of gradcam(), dcam, 1 x (m - skip), being that with respect to it; all other entries of them,
/// (H n) x m, are 0. At a cam of 0 nothing passes. Throws ShapeError as gradcam does, for other shapes
/// and for gradients that share memory with another, the maps or dcam.
template <class S>
void gradcam_backward(const HeadMaps<S>& maps, Index row, Index skip, std::type_identity_t<View<S>> dcam,
                      const std::type_identity_t<HeadMapGrads<S>>& grad) {
  const Mat<S> cam = gradcam(maps, row, skip);
  if (dcam.rows != 1 || dcam.cols != cam.cols())
    detail::raise("gradcam: dcam is " + detail::shape_text(dcam.rows, dcam.cols) + ", wanted " +
                  detail::shape_text(1, cam.cols()));
  detail::check_map_gradients<S>("gradcam", {maps}, {grad}, detail::NamedArray("dcam", dcam));
  grad.a.fill(S(0)), grad.g.fill(S(0));
  const S each = S(1) / S(static_cast<double>(maps.heads)), share = S(1) / S(static_cast<double>(cam.cols()));
  for (Index h = 0; h < maps.heads; ++h) {
    const S weight = maps.gradient(h).map().row(row).tail(cam.cols()).mean();
    S dweight(0);
    for (Index j = 0; j < cam.cols(); ++j) {
      const S d = cam(0, j) > S(0) ? S(each * dcam(0, j)) : S(0);
      dweight += d * maps.map(h)(row, skip + j);
      if (grad.a.given()) grad.a(h * maps.n() + row, skip + j) = weight * d;
    }
    for (Index j = 0; j < cam.cols() && grad.g.given(); ++j) grad.g(h * maps.n() + row, skip + j) = share * dweight;
  }
}

}  // namespace LIMPID_ABI
}  // namespace limpid
