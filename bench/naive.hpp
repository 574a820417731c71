// limpid: attention written out with whole matrices, the honest baseline of the bench
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "crew.hpp"

namespace bench {

using Index = Eigen::Index;
template <class S>
using Matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// One attention problem: `heads` heads of n rows, head after head, width d; self-sized (m = n, dv = d).
template <class S>
struct Problem {
  Index heads = 1, n = 0, d = 0;
  bool causal = false;
  S scale = 0;
  Matrix<S> q, k, v, dout;
};

/// Standard normal entries, the same for every type and every program: numbers are drawn in double from a generator
/// the standard pins down, by the sum of twelve uniforms (no library decides the bits).
template <class S>
void fill_normal(Matrix<S>& x, std::uint64_t seed, double sigma = 1) {
  std::mt19937_64 bits(seed);
  for (Index i = 0; i < x.size(); ++i) {
    double sum = -6;
    for (int j = 0; j < 3; ++j) {
      const std::uint64_t four = bits();
      for (int part = 0; part < 4; ++part)
        sum += static_cast<double>((four >> (16 * part)) & 0xffff) / 65536.0 + 0.5 / 65536.0;
    }
    x.data()[i] = static_cast<S>(sigma * sum);
  }
}

template <class S>
Problem<S> make_problem(Index heads, Index n, Index d, bool causal, std::uint64_t seed = 1, double sigma = 1) {
  Problem<S> p;
  p.heads = heads, p.n = n, p.d = d, p.causal = causal;
  p.scale = static_cast<S>(1 / std::sqrt(static_cast<double>(d)));
  Matrix<S>* all[] = {&p.q, &p.k, &p.v, &p.dout};
  for (int i = 0; i < 4; ++i) {
    all[i]->resize(heads * n, d);
    fill_normal(*all[i], 4 * seed + static_cast<std::uint64_t>(i), i < 2 ? std::sqrt(sigma) : 1.0);
  }
  return p;
}

/// Flop of plain attention as everybody counts it: 4 H n^2 d forward, 10 H n^2 d backward, half when causal.
template <class S>
double attention_flop(const Problem<S>& p, bool backward) {
  return (backward ? 10.0 : 4.0) * (p.causal ? 0.5 : 1.0) * static_cast<double>(p.heads) * static_cast<double>(p.n) *
         static_cast<double>(p.n) * static_cast<double>(p.d);
}

/// Products by Eigen. C is overwritten; the names say which side is transposed.
template <class S>
struct EigenProducts {
  using Ref = Eigen::Ref<Matrix<S>, 0, Eigen::OuterStride<>>;
  using Const = Eigen::Ref<const Matrix<S>, 0, Eigen::OuterStride<>>;
  static void nt(S alpha, const Const& a, const Const& b, Ref c) { c.noalias() = (alpha * a) * b.transpose(); }
  static void nn(S alpha, const Const& a, const Const& b, Ref c) { c.noalias() = (alpha * a) * b; }
  static void tn(S alpha, const Const& a, const Const& b, Ref c) { c.noalias() = (alpha * a.transpose()) * b; }
};

/// Attention with the n x n matrix in memory. Written to be a baseline one would be content with: one pass over a row
/// for maximum, exponential and sum, the division left for the (narrow) output, masked columns neither exponentiated
/// nor summed, threads over heads or, for fewer heads than threads, over query blocks.
template <class S, class Products = EigenProducts<S>>
class Naive {
 public:
  Matrix<S> out, dq, dk, dv;

  Naive(const Problem<S>& problem, Crew& crew)
      : p_(problem),
        crew_(crew),
        s_(static_cast<std::size_t>(crew.size())),
        splits_(p_.heads >= crew.size() ? 1 : crew.size()) {
    out.resize(p_.q.rows(), p_.d);
    dq = dk = dv = out;
  }

  /// S is allocated anew by every call, as in a function that holds it in a local variable.
  void forward_fresh() {
    each([this](Index h, Index first, Index rows, int) {
      Matrix<S> s(rows, p_.n);
      forward_block(h, first, rows, s);
    });
  }

  /// S is kept between calls.
  void forward_kept() {
    each([this](Index h, Index first, Index rows, int worker) {
      Matrix<S>& s = s_[static_cast<std::size_t>(worker)];
      if (s.rows() != rows || s.cols() != p_.n) s.resize(rows, p_.n);
      forward_block(h, first, rows, s);
    });
  }

  /// The forward of training: P is stored for the backward.
  void forward_stored() {
    if (stored_.rows() != p_.heads * p_.n) stored_.resize(p_.heads * p_.n, p_.n);
    each([this](Index h, Index first, Index rows, int) {
      auto s = stored_.middleRows(h * p_.n + first, rows);
      Products::nt(p_.scale, block(p_.q, h, first, rows), head(p_.k, h), s);
      softmax(s, first, true, nullptr);
      Products::nn(S(1), s, head(p_.v, h), block(out, h, first, rows));
    });
  }

  /// From the stored P: four products, 8 n^2 d flop (a backward that recomputes P does five).
  void backward() {
    if (splits_ == 1) {
      each([this](Index h, Index, Index n, int worker) {
        Matrix<S>& dp = s_[static_cast<std::size_t>(worker)];
        if (dp.rows() != n || dp.cols() != n) dp.resize(n, n);
        backward_scores(h, 0, n, dp);
        Products::tn(S(1), dp, head(p_.q, h), head(dk, h));
        Products::tn(S(1), head(stored_, h), head(p_.dout, h), head(dv, h));
      });
      return;
    }
    if (ds_.rows() != p_.n) ds_.resize(p_.n, p_.n);
    for (Index h = 0; h < p_.heads; ++h) {
      split([&](Index first, Index rows) { backward_scores(h, first, rows, ds_.middleRows(first, rows)); });
      split([&](Index first, Index rows) {
        Products::tn(S(1), ds_.middleCols(first, rows), head(p_.q, h), block(dk, h, first, rows));
        Products::tn(S(1), head(stored_, h).middleCols(first, rows), head(p_.dout, h), block(dv, h, first, rows));
      });
    }
  }

 private:
  using Ref = Eigen::Ref<Matrix<S>, 0, Eigen::OuterStride<>>;
  template <class M>
  auto head(M& x, Index h) const {
    return x.middleRows(h * p_.n, p_.n);
  }
  template <class M>
  auto block(M& x, Index h, Index first, Index rows) const {
    return x.middleRows(h * p_.n + first, rows);
  }

  template <class F>
  void each(const F& f) {
    const Index splits = splits_;
    crew_.run(static_cast<int>(p_.heads * splits), [&](int job, int worker) {
      const Index h = job / splits, part = job % splits;
      const Index first = p_.n * part / splits, last = p_.n * (part + 1) / splits;
      f(h, first, last - first, worker);
    });
  }
  template <class F>
  void split(const F& f) {
    crew_.run(splits_, [&](int part, int) {
      const Index first = p_.n * part / splits_, last = p_.n * (part + 1) / splits_;
      f(first, last - first);
    });
  }

  /// Rows of scores to rows of weights; `inverse` receives 1 / sum where the caller divides later.
  void softmax(Ref s, Index first, bool divide, S* inverse) const {
    for (Index i = 0; i < s.rows(); ++i) {
      const Index kept = p_.causal ? first + i + 1 : p_.n;
      auto row = s.row(i).head(kept).array();
      const S most = row.maxCoeff();
      row = (row - most).exp();
      const S sum = row.sum();
      if (divide)
        row *= S(1) / sum;
      else
        inverse[i] = S(1) / sum;
      if (kept < p_.n) s.row(i).tail(p_.n - kept).setZero();
    }
  }

  template <class M>
  void forward_block(Index h, Index first, Index rows, M& s) {
    Products::nt(p_.scale, block(p_.q, h, first, rows), head(p_.k, h), s);
    auto o = block(out, h, first, rows);
    Eigen::Array<S, Eigen::Dynamic, 1> inverse(rows);
    softmax(s, first, false, inverse.data());
    Products::nn(S(1), s, head(p_.v, h), o);
    o.array().colwise() *= inverse;
  }

  /// dS of a block of queries, times scale, and their dQ.
  void backward_scores(Index h, Index first, Index rows, Ref ds) {
    const auto g = block(p_.dout, h, first, rows);
    Products::nt(S(1), g, head(p_.v, h), ds);
    const auto weights = block(stored_, h, first, rows);
    const auto o = block(out, h, first, rows);
    for (Index i = 0; i < rows; ++i) {
      const S delta = g.row(i).dot(o.row(i));
      ds.row(i).array() = p_.scale * weights.row(i).array() * (ds.row(i).array() - delta);
    }
    Products::nn(S(1), ds, head(p_.k, h), block(dq, h, first, rows));
  }

  const Problem<S>& p_;
  Crew& crew_;
  std::vector<Matrix<S>> s_;
  Matrix<S> stored_, ds_;
  int splits_;
};

}  // namespace bench
