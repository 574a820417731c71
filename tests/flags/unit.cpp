// limpid: a translation unit that may be compiled with any flags: what it computes is compared with long double by
// check_UNIT, and its bits by whoever links several of them.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <limpid/limpid.hpp>

using limpid::Index, limpid::Mat;
using Wide = long double;

namespace {

int failures = 0;

void expect(bool holds, const char* what, double found, double wanted) {
  if (holds) return;
  ++failures;
  std::printf("%s: %.9g, wanted %.9g\n", what, found, wanted);
}

template <class S>
bool is_nan(S x) {  // by its bits: a compiler may be told that there are none
  if constexpr (sizeof(S) == 4) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits & 0x7fffffffU) > 0x7f800000U;
  } else {
    std::uint64_t bits;
    std::memcpy(&bits, &x, 8);
    return (bits & 0x7fffffffffffffffULL) > 0x7ff0000000000000ULL;
  }
}

template <class S>
Mat<S> field(Index rows, Index cols, int seed) {
  Mat<S> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = S(std::sin(0.7 * double(i) + seed) * (1 + (i * seed) % 3));
  return m;
}

/// The largest difference relative to the largest entry.
template <class S>
double off(const Mat<S>& found, const Mat<Wide>& wanted) {
  Wide most = 0, size = 0;
  for (Index i = 0; i < found.size(); ++i) {
    if (is_nan(found.data()[i])) return 1e300;
    most = std::max(most, std::abs(found.data()[i] - wanted.data()[i]));
    size = std::max(size, std::abs(wanted.data()[i]));
  }
  return static_cast<double>(most / std::max<Wide>(size, 1e-3L));
}

/// Causal attention with one key masked and its gradients, pair by pair.
template <class S>
void softmax_by_definition(const Mat<S>& q, const Mat<S>& k, const Mat<S>& v, const Mat<S>& dout, Index masked,
                           Mat<Wide> (&r)[4]) {
  const Index n = q.rows(), m = k.rows(), d = q.cols();
  const Wide scale = 1 / std::sqrt(Wide(d));
  r[0] = Mat<Wide>::Zero(n, v.cols()), r[1] = Mat<Wide>::Zero(n, d), r[2] = Mat<Wide>::Zero(m, d);
  r[3] = Mat<Wide>::Zero(m, v.cols());
  for (Index i = 0; i < n; ++i) {
    const auto kept = [&](Index j) { return j - i <= m - n && j != masked; };
    Mat<Wide> a = Mat<Wide>::Zero(1, m);
    Wide top = -1e300L, sum = 0;
    bool any = false;
    for (Index j = 0; j < m; ++j) {
      if (!kept(j)) continue;
      for (Index c = 0; c < d; ++c) a(0, j) += scale * Wide(q(i, c)) * Wide(k(j, c));
      top = std::max(top, a(0, j)), any = true;
    }
    if (!any) continue;
    for (Index j = 0; j < m; ++j) sum += a(0, j) = kept(j) ? std::exp(a(0, j) - top) : 0;
    Wide delta = 0;
    for (Index j = 0; j < m; ++j) {
      a(0, j) /= sum;
      for (Index c = 0; c < v.cols(); ++c) r[0](i, c) += a(0, j) * v(j, c);
    }
    for (Index c = 0; c < v.cols(); ++c) delta += dout(i, c) * r[0](i, c);
    for (Index j = 0; j < m; ++j) {
      Wide da = 0;
      for (Index c = 0; c < v.cols(); ++c) da += Wide(dout(i, c)) * v(j, c), r[3](j, c) += a(0, j) * dout(i, c);
      const Wide ds = scale * a(0, j) * (da - delta);
      for (Index c = 0; c < d; ++c) r[1](i, c) += ds * k(j, c), r[2](j, c) += ds * q(i, c);
    }
  }
}

template <class S>
void check_softmax(double* bits, Index n, Index m) {
  const Index d = 16;
  const Mat<S> q = field<S>(n, d, 1), k = field<S>(m, d, 2), v = field<S>(m, d, 3), dout = field<S>(n, d, 4);
  Mat<S> out(n, d), dq(n, d), dk(m, d), dv(m, d), bias = Mat<S>::Zero(1, m), lse;
  bias(0, 2) = -std::numeric_limits<S>::infinity();
  const auto op = limpid::softmax(limpid::chain(limpid::causal(), limpid::key_bias(bias)));
  limpid::Saved<std::remove_const_t<decltype(op)>, S> saved;
  limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved, .lse = &lse});
  limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
  Mat<Wide> wanted[4];
  softmax_by_definition(q, k, v, dout, 2, wanted);
  const double bound = 500 * std::numeric_limits<S>::epsilon();
  const char* names[] = {"out", "dq", "dk", "dv"};
  const Mat<S>* found[] = {&out, &dq, &dk, &dv};
  for (int f = 0; f < 4; ++f) expect(off(*found[f], wanted[f]) <= bound, names[f], off(*found[f], wanted[f]), 0);
  for (Index i = 0; i < 8; ++i) bits[i] = double(out(n - 1, i)), bits[8 + i] = double(dq(n - 1, i));
  // what a masked key holds is not seen; what a kept one holds is
  Mat<S> bad = v;
  for (Index c = 0; c < d; ++c) bad(2, c) = std::numeric_limits<S>::quiet_NaN();
  limpid::forward(op, limpid::qkv(q, k, bad), out);
  expect(off(out, wanted[0]) <= bound, "out beside a masked NaN", off(out, wanted[0]), 0);
  bad = v;
  bad(3, 1) = std::numeric_limits<S>::quiet_NaN();
  limpid::forward(op, limpid::qkv(q, k, bad), out);
  for (Index i = 0; i < n; ++i) expect(is_nan(out(i, 1)) == (3 - i <= m - n), "a kept NaN", double(i), double(n));
  if (m < n) {
    bool zero = true;
    for (Index c = 0; c < d; ++c) zero = zero && wanted[0](0, c) == 0 && dq(0, c) == S(0);
    expect(zero, "a row without keys", 1, 0);
  }
}

/// The other operators: float against double, which the same flags made.
template <class Op>
void check_operator(const char* name, const Op& op, Index width) {
  const Index n = 70;
  const auto run = [&](auto s, Mat<Wide>(&to)[4]) {
    using S = decltype(s);
    const Mat<S> q = field<S>(n, 8 * width, 1), k = field<S>(n, 8 * width, 2), v = field<S>(n, 8, 3),
                 g = field<S>(n, 8, 4);
    Mat<S> out(n, 8), dq = q, dk = k, dv = v;
    limpid::Saved<Op, S> saved;
    const limpid::Inputs<Op, S> in = limpid::qkv(q, k, v);
    const limpid::Grads<Op, S> to_grads = limpid::grads(dq, dk, dv);
    limpid::forward(op, in, out, {.saved = &saved});
    limpid::backward(op, in, saved, g, to_grads);
    to[0] = out.template cast<Wide>(), to[1] = dq.template cast<Wide>(), to[2] = dk.template cast<Wide>();
    to[3] = dv.template cast<Wide>();
  };
  Mat<Wide> rough[4], fine[4];
  run(float(), rough), run(double(), fine);
  for (int f = 0; f < 4; ++f) {
    const double error = off(Mat<double>(rough[f].cast<double>()), fine[f]);
    expect(error <= 2e-4, name, error, 0);
  }
}

template <class S>
void check_exp() {
  using P = limpid::detail::Native<S>;
  double worst = 0;
  for (double x = sizeof(S) == 4 ? -86 : -707; x < 60; x += 0.0173) {
    S lanes[P::lanes];
    for (S& l : lanes) l = S(x);
    P::store(lanes, P::exp(P::load(lanes)));
    const Wide wanted = std::exp(Wide(S(x)));
    worst = std::max(worst, static_cast<double>(std::abs(lanes[0] - wanted) / wanted / std::max(1.0, std::abs(x))));
  }
  expect(worst <= 2 * std::numeric_limits<S>::epsilon(), "exp", worst, 0);
  S none[P::lanes];
  for (S& l : none) l = -std::numeric_limits<S>::infinity();
  P::store(none, P::exp(P::load(none)));
  expect(none[0] == S(0), "exp of minus infinity", double(none[0]), 0);
}

/// One entry of four differs: sqrt(3) and -1 / sqrt(3), whatever the offset, the step and the size.
template <class S>
void check_layer_norm() {
  using Limits = std::numeric_limits<S>;
  const limpid::View<S> none;
  for (double size : {1.0, 1e6, -0.3, double(Limits::min()) * 64, double(Limits::max()) / 8})
    for (double step : {40 * double(Limits::epsilon()), 1.0})
      for (int width : {4, 64}) {
        if (step < 1 && std::abs(size) < 1e-30) continue;
        Mat<S> x = Mat<S>::Constant(1, width, S(size)), y = x;
        for (int c = 0; c < width; c += 4) x(0, c + 1) = S(size * (1 + step));
        limpid::layer_norm(x, none, none, y, {.eps = 0});
        const double sign = size < 0 ? -1 : 1;
        for (int c = 0; c < width; ++c) {
          const double wanted = sign * (c % 4 == 1 ? std::sqrt(3.0) : -1 / std::sqrt(3.0));
          expect(std::abs(double(y(0, c)) - wanted) <= 64 * double(Limits::epsilon()), "layer norm", double(y(0, c)),
                 wanted);
        }
        x.setConstant(S(size));
        limpid::layer_norm(x, none, none, y, {.eps = 0});
        for (int c = 0; c < width; ++c) expect(y(0, c) == S(0), "layer norm of equal entries", double(y(0, c)), 0);
      }
}

/// A row with one entry of four: 2, whatever its size.
template <class S>
void check_head_norm() {
  using P = limpid::detail::Native<S>;
  limpid::Workspace workspace;
  workspace.prepare(1);
  limpid::TwoMapOptions options;
  options.lambda_init = 0, options.eps = 0;
  const limpid::detail::RmsNorm<P> norm(workspace.common(), 4, {}, options);
  for (double size : {1.0, double(std::numeric_limits<S>::max()), double(std::numeric_limits<S>::min()) * 4}) {
    Mat<S> h = Mat<S>::Zero(1, 4);
    h(0, 1) = S(size);
    norm.forward(h);
    expect(std::abs(double(h(0, 1)) - 2) <= 8 * double(std::numeric_limits<S>::epsilon()), "head norm", double(h(0, 1)),
           2);
  }
}

}  // namespace

#define LIMPID_JOIN_(a, b) a##b
#define LIMPID_JOIN(a, b) LIMPID_JOIN_(a, b)

/// How many checks fail; 64 numbers whose bits this unit stands for.
int LIMPID_JOIN(check_, UNIT)(double* bits) {
  failures = 0;
  Mat<float> q(1, 1), k(2, 1), v(2, 1), out(1, 1);
  q << 1, k << 0, -0.5F, v << 0, 1;
  limpid::forward(limpid::softmax({.scale = 1}), limpid::qkv(q, k, v), out);
  expect(std::abs(out(0, 0) - 0.3775407F) <= 1e-6F, "one query, two keys", double(out(0, 0)), 0.3775407);
  limpid::forward(limpid::softmax(), limpid::qkv(q, k, v), out);
  expect(std::abs(out(0, 0) - 0.3775407F) <= 1e-6F, "the default scale", double(out(0, 0)), 0.3775407);
  check_softmax<float>(bits, 40, 40), check_softmax<double>(bits + 16, 60, 300);
  check_softmax<float>(bits + 32, 4, 300), check_softmax<double>(bits + 48, 40, 37);
  check_exp<float>(), check_exp<double>();
  check_layer_norm<float>(), check_layer_norm<double>();
  check_head_norm<float>(), check_head_norm<double>();
  check_operator("twicing", limpid::twicing(), 1), check_operator("boosting", limpid::boosting(), 1);
  check_operator("nlm", limpid::nlm(), 1), check_operator("pid", limpid::pid(), 1);
  check_operator("rope", limpid::rope(limpid::softmax()), 1);
  return failures;
}
