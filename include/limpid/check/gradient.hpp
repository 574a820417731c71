// limpid: gradient checking: backward against central differences of forward, for any operator, your own included.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "../call/backward.hpp"
#include "../core/random.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// One input of an operator: how far its gradient is from central differences.
struct FieldGradient {
  std::string name;              ///< as in Args
  double error = 0;              ///< largest |found - wanted|, relative to the largest |wanted| of the field
  Index row = 0, col = 0;        ///< where (the number of the direction, where directions were asked for)
  double found = 0, wanted = 0;  ///< by backward, and by differences, there
};

/// What check_gradient says, one entry a field that was given.
struct GradientCheck {
  std::vector<FieldGradient> fields;

  double worst() const {
    double all = 0;
    for (const FieldGradient& f : fields) all = f.error > all || std::isnan(f.error) ? f.error : all;
    return all;
  }
  /// One line a field.
  std::string text() const {
    std::string all;
    for (const FieldGradient& f : fields) {
      char numbers[160];
      std::snprintf(numbers, sizeof numbers, ": error %.3g at (%lld, %lld), found %.15g, wanted %.15g\n", f.error,
                    static_cast<long long>(f.row), static_cast<long long>(f.col), f.found, f.wanted);
      all += f.name + numbers;
    }
    return all;
  }
};

struct GradientOptions {
  Index batch = 1, heads = 1, kv_heads = 0;  ///< as in Call
  std::uint64_t seed = 1;                    ///< of the weights w, and of the directions
  int directions = 0;                        ///< 0: entry by entry; else so many random directions a field
  double step = 0;  ///< of the differences, times max(1, |x|), from the scalar's eps to 1; 0: eps^(1/5)
};

namespace detail {

/// The step asked for, or a power of two, so that x + h and x - h are as far apart as they look. One below eps would
/// leave x where it is, and every difference would be 0.
template <class S>
double difference_step(Name who, double asked) {
  const double least = static_cast<double>(std::numeric_limits<S>::epsilon());
  if (asked == 0) return std::exp2(std::round(std::log2(least) / 5));
  if (!(asked >= least && asked <= 1))
    raise(who + (": step is " + number_text(asked) + ", wanted 0 (the scalar's eps^(1/5)) or from " +
                 number_text(least) + " to 1"));
  return asked;
}

/// (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12 h: the central difference whose error is O(h^4).
template <class F>
auto central_difference(F&& f, double h) {
  const auto near = f(h) - f(-h), far = f(2 * h) - f(-2 * h);
  return (8 * near - far) / decltype(near)(12 * h);
}

}  // namespace detail

/// The gradient of f() with respect to the entries of x, by central differences; f looks at x, which is as it was when
/// the call ends, also where f throws. step as in GradientOptions. Cost 4 calls of f an entry; with double about 1e-11
/// of the size of f remains. Throws ShapeError for another step.
template <class S, class F>
Mat<S> numeric_gradient(MutView<S> x, F&& f, double step = 0) {
  const double unit = detail::difference_step<S>("numeric_gradient", step);
  struct PutBack {
    S &x, was;
    ~PutBack() { x = was; }
  };
  Mat<S> gradient(x.rows, x.cols);
  for (Index i = 0; i < x.rows; ++i)
    for (Index j = 0; j < x.cols; ++j) {
      const PutBack entry{x(i, j), x(i, j)};
      const double size = std::abs(static_cast<double>(entry.was));
      gradient(i, j) = detail::central_difference(
          [&](double by) {
            entry.x = entry.was + S(by);
            return S(f());
          },
          unit * std::exp2(std::ceil(std::log2(size < 1 ? 1 : size))));
    }
  return gradient;
}
template <class M, class F>
requires detail::is_eigen<M>
auto numeric_gradient(M& x, F&& f, double step = 0) {
  using S = typename M::Scalar;
  return numeric_gradient<S>(MutView<S>(x), std::forward<F>(f), step);
}

namespace detail {

/// What backward gave beside differences of value(), which looks at `values`: check_gradient of any operator.
template <class S>
GradientCheck compare_gradients(const std::vector<std::string>& names, std::vector<Mat<S>>& values,
                                const std::vector<Mat<S>>& gradients, FunctionRef<S()> value, std::uint64_t state,
                                double step, int directions) {
  GradientCheck check;
  std::vector<double> sizes;
  double largest = 0;
  for (std::size_t f = 0; f < values.size(); ++f) {
    Mat<S>& x = values[f];
    if (x.size() == 0) continue;
    Mat<S> found = gradients[f], wanted;
    if (directions == 0) {
      wanted = numeric_gradient(x, value, step);
    } else {
      found.resize(directions, 1), wanted.resize(directions, 1);
      for (int t = 0; t < directions; ++t) {
        Mat<S> u(x.rows(), x.cols());
        for (Index i = 0; i < u.size(); ++i) u.data()[i] = S(uniform(state));
        u /= S(std::sqrt(double(dot(u.data(), u.data(), u.size()))));
        const Mat<S> was = x;
        found(t, 0) = dot(u.data(), gradients[f].data(), u.size());
        wanted(t, 0) = central_difference(
            [&](double by) {
              for (Index i = 0; i < x.size(); ++i) x.data()[i] = was.data()[i] + S(by) * u.data()[i];
              return value();
            },
            step);
        x = was;
      }
    }
    FieldGradient one;
    one.name = names[f];
    double size = 0;
    for (Index i = 0; i < found.rows(); ++i)
      for (Index j = 0; j < found.cols(); ++j) {
        const auto a = static_cast<double>(found(i, j)), b = static_cast<double>(wanted(i, j));
        size = std::max(size, std::abs(b));
        const double error = std::abs(a - b);
        const bool first = i == 0 && j == 0;
        if (first || (!std::isnan(one.error) && !(error <= one.error)))
          one.error = error, one.row = i, one.col = j, one.found = a, one.wanted = b;
      }
    check.fields.push_back(one);
    sizes.push_back(size);
    largest = std::max(largest, size);
  }
  for (std::size_t f = 0; f < sizes.size(); ++f) {
    const double size = std::max(sizes[f], 1e-3 * largest);
    if (size > 0) check.fields[f].error /= size;
  }
  return check;
}

}  // namespace detail

/// Backward against central differences of <forward(in), w>, w random, for every field of the operator's Args that is
/// given. The inputs are copied, never written. Meant for double (errors of a right gradient stay below 1e-8, of a
/// wrong one nothing does). A step across a kink, as of a ReLU, is off by the jump of the derivative: use .step = 1e-6
/// there, with which few steps cross one and about 1e-7 remains. check_gradient<long double>(op, in) works too. An
/// error is relative to the largest entry of its field, but at least to 1e-3 of the largest of all fields, as a
/// gradient that is zero has no size of its own.
/// Cost: 4 forward calls an entry, or a direction. Gradients of modifiers are added to once. Throws ShapeError as
/// forward does, and where directions is negative or step none that GradientOptions allows.
template <class S = double, class Op>
GradientCheck check_gradient(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in,
                             const GradientOptions& options = {}) {
  using detail::uniform;
  const std::string name = detail::operator_name(op);
  if (options.directions < 0)
    detail::raise("check_gradient: directions is " + detail::text_of(options.directions) + ", wanted 0 or more");
  const double step = detail::difference_step<S>("check_gradient", options.step);
  std::vector<Mat<S>> values, gradients;
  std::vector<std::string> names;
  Inputs<Op, S>::visit(
      [&](const char* field, Role, const View<S>& v) {
        names.emplace_back(field);
        values.push_back(v.given() ? Mat<S>(v.map()) : Mat<S>());
        gradients.push_back(Mat<S>::Zero(v.rows, v.cols));
      },
      in);

  Inputs<Op, S> own = in;
  Grads<Op, S> grad{};
  std::size_t next = 0;
  Inputs<Op, S>::visit(
      [&](const char*, Role, View<S>& v, MutView<S>& g) {
        if (v.given()) v = View<S>(values[next]), g = MutView<S>(gradients[next]);
        ++next;
      },
      own, grad);

  const Dims d = detail::dims_of(name, detail::shapes_of(own), options.batch, options.heads, options.kv_heads);
  detail::check_fields(name, "", detail::shapes_of(own), d);
  std::uint64_t state = options.seed;
  Mat<S> out(d.batch * d.n, d.heads * op.out_width(detail::head_args(own, d, 0, 0))), w(out.rows(), out.cols());
  for (Index i = 0; i < w.size(); ++i) w.data()[i] = S(uniform(state));
  Call<Op, S> call;
  call.batch = options.batch, call.heads = options.heads, call.kv_heads = options.kv_heads;
  const auto value = [&] {
    forward(op, own, out, call);
    return detail::dot(out.data(), w.data(), out.size());
  };

  Saved<Op, S> saved;
  call.saved = &saved;
  value();
  backward(op, own, saved, w, grad);
  call.saved = nullptr;

  return detail::compare_gradients<S>(names, values, gradients, value, state, step, options.directions);
}

}  // namespace LIMPID_ABI
}  // namespace limpid
