// limpid: what the tests of differential and gated differential attention share.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <limpid/check/gradient.hpp>
#include <limpid/explain/map.hpp>
#include <limpid/op/differential.hpp>
#include <limpid/op/differential_gated.hpp>
#include <limpid/op/softmax.hpp>

#include "catch.hpp"
#include "distance.hpp"

namespace two_maps {

using limpid::HeadNorm;
using limpid::Index;
using limpid::Mat;
using limpid::Shown;
using suite::distance;
using M = Mat<double>;
using Mask = Mat<bool>;

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double inf = std::numeric_limits<double>::infinity();

inline M random(Index rows, Index cols, std::uint64_t seed, double size = 1) {
  M m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = size * limpid::detail::uniform(seed);
  return m;
}

/// Both branches side by side, as the operators take them.
inline M pack(const M& a, const M& b) {
  M both(a.rows(), a.cols() + b.cols());
  both << a, b;
  return both;
}

inline bool same_bits(const M& a, const M& b) { return distance(a, b) == 0; }

/// One head of two branches: n queries, m keys.
struct Head {
  M q1, q2, k1, k2, v, q, k, dout;
  Head(Index n, Index m, Index d, Index dv, std::uint64_t seed = 1)
      : q1(random(n, d, seed, 2)),
        q2(random(n, d, seed + 10, 2)),
        k1(random(m, d, seed + 20, 2)),
        k2(random(m, d, seed + 30, 2)),
        v(random(m, dv, seed + 40)),
        q(pack(q1, q2)),
        k(pack(k1, k2)),
        dout(random(n, dv, seed + 50)) {}
  M plain1() const { return limpid::forward(limpid::softmax(), limpid::qkv(q1, k1, v)); }
  M plain2() const { return limpid::forward(limpid::softmax(), limpid::qkv(q2, k2, v)); }
};

inline const limpid::TwoMapOptions raw{.norm = HeadNorm::none};

template <class Op>
M run(const Op& op, const limpid::Inputs<Op, double>& in) {
  return limpid::forward(op, in);
}

template <class Op>
void gradients_are_right(const Op& op, const limpid::Inputs<Op, double>& in,
                         const limpid::GradientOptions& options = {}) {
  const auto check = limpid::check_gradient(op, in, options);
  INFO(check.text());
  CHECK(check.worst() < 1e-8);
}

}  // namespace two_maps
