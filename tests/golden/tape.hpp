// limpid: plain formulas of whole layers and models: plain loops over all of a map, differentiated by a tape. What the
// float errors of the library are compared with where a formula's gradient by hand would be pages.
// SPDX-License-Identifier: MIT
#pragma once

#include <deque>
#include <functional>

#include "plain.hpp"

namespace golden {

/// Operations in the order in which they were done; backward() goes through them the other way round.
template <class S>
class Tape {
 public:
  struct Node {
    Mat<S> value, grad;
    std::function<void()> back;
  };
  using Var = Node*;  // null: not given

  Tape() = default;
  Tape(const Tape&) = delete;

  Var leaf(Mat<S> value) { return node(std::move(value), {}); }
  /// Input of a case, whose gradient is a result; null where the file does not have it. A vector is a row.
  Var in(const Case& c, const std::string& name) {
    if (!c.has(name)) return nullptr;
    if (const auto found = inputs_.find(name); found != inputs_.end()) return found->second;
    return inputs_[name] = leaf(c.shape(name).size() == 1 ? c.row<S>(name) : c.in<S>(name));
  }
  void gradients(Tensors<S>& all) const {
    for (const auto& [name, var] : inputs_) all["grad." + name] = var->grad;
  }

  void clear() {
    for (Node& n : nodes_) n.grad.setZero();
  }
  void backward() {
    for (auto n = nodes_.rbegin(); n != nodes_.rend(); ++n)
      if (n->back) n->back();
  }

  Var product(Var a, Var b) {
    return node(golden::product(a->value, b->value),
                [a, b](const Mat<S>& g) { a->grad += product_nt(g, b->value), b->grad += product_tn(a->value, g); });
  }
  Var transposed(Var a) {
    return node(golden::transposed(a->value), [a](const Mat<S>& g) { a->grad += golden::transposed(g); });
  }
  Var add(Var a, Var b) {
    return node(Mat<S>(a->value + b->value), [a, b](const Mat<S>& g) { a->grad += g, b->grad += g; });
  }
  Var subtract(Var a, Var b) {
    return node(Mat<S>(a->value - b->value), [a, b](const Mat<S>& g) { a->grad += g, b->grad -= g; });
  }
  Var scaled(S by, Var a) {
    return node(golden::scaled(by, a->value), [a, by](const Mat<S>& g) { a->grad += golden::scaled(by, g); });
  }
  Var times(Var a, Var b) {
    return node(golden::times(a->value, b->value), [a, b](const Mat<S>& g) {
      a->grad += golden::times(g, b->value), b->grad += golden::times(g, a->value);
    });
  }
  /// Every row of a beside, or times, that one row.
  Var plus_row(Var a, Var row) {
    if (row == nullptr) return a;
    return add(a, product(ones(a->value.rows()), row));
  }
  Var times_row(Var a, Var row) {
    if (row == nullptr) return a;
    return times(a, product(ones(a->value.rows()), row));
  }
  /// a times a number that has a gradient.
  Var times_number(Var a, Var number) {
    Mat<S> value = golden::scaled(number->value(0, 0), a->value);
    return node(std::move(value), [a, number](const Mat<S>& g) {
      a->grad += golden::scaled(number->value(0, 0), g), number->grad(0, 0) += dot(g, a->value);
    });
  }
  Var rows(Var a, Index first, Index count) {
    return node(Mat<S>(a->value.middleRows(first, count)),
                [a, first, count](const Mat<S>& g) { a->grad.middleRows(first, count) += g; });
  }
  Var columns(Var a, Index first, Index count) {
    return node(Mat<S>(a->value.middleCols(first, count)),
                [a, first, count](const Mat<S>& g) { a->grad.middleCols(first, count) += g; });
  }
  Var rows_of(Var a, const std::vector<Index>& places) {
    Mat<S> value(static_cast<Index>(places.size()), a->value.cols());
    for (Index i = 0; i < value.rows(); ++i) value.row(i) = a->value.row(places[static_cast<std::size_t>(i)]);
    return node(std::move(value), [a, places](const Mat<S>& g) {
      for (Index i = 0; i < g.rows(); ++i) a->grad.row(places[static_cast<std::size_t>(i)]) += g.row(i);
    });
  }
  Var below(const std::vector<Var>& parts) { return joined(parts, true); }
  Var beside(const std::vector<Var>& parts) { return joined(parts, false); }
  /// One and the same rows after another: by row-major order, as a file's tensor of another shape.
  Var reshaped(Var a, Index rows, Index cols) {
    const auto as = [](const Mat<S>& x, Index r, Index c) { return Mat<S>(Eigen::Map<const Mat<S>>(x.data(), r, c)); };
    return node(as(a->value, rows, cols),
                [a, as](const Mat<S>& g) { a->grad += as(g, a->value.rows(), a->value.cols()); });
  }
  /// slope(x, f(x)) is the derivative.
  Var each(Var a, S (*f)(S), S (*slope)(S)) {
    Mat<S> value = a->value.unaryExpr(f), d = a->value.unaryExpr(slope);
    return node(std::move(value), [a, d](const Mat<S>& g) { a->grad += golden::times(g, d); });
  }
  Var softmax(Var scores, const Mat<bool>& keep) {
    const Mat<S> none = Mat<S>::Zero(keep.cols(), 1), nothing = Mat<S>::Zero(keep.rows(), 1);
    const Mat<S> a = PlainAttention<S>(scores->value, keep, none, nothing).a;
    return node(Mat<S>(a), [a, scores](const Mat<S>& g) { scores->grad += softmax_gradient(a, g); });
  }
  /// Rows minus their means, if asked, over the root of eps more than their mean square, times gamma, plus beta.
  Var normed(Var x, Var gamma, Var beta, double eps, bool centred = true) {
    const auto means = [](const Mat<S>& a) { return golden::scaled(1 / S(double(a.cols())), row_sums(a)); };
    const auto less = [](const Mat<S>& a, const Mat<S>& column) {
      Mat<S> out = a;
      for (Index i = 0; i < a.rows(); ++i) out.row(i).array() -= column(i, 0);
      return out;
    };
    Mat<S> y = centred ? less(x->value, means(x->value)) : x->value;
    const Mat<S> squares = means(golden::times(y, y));
    Mat<S> r(y.rows(), 1);
    for (Index i = 0; i < r.rows(); ++i) r(i, 0) = 1 / std::sqrt(squares(i, 0) + S(eps));
    y = scaled_rows(r, y);
    Var unit = node(Mat<S>(y), [=](const Mat<S>& g) {
      const Mat<S> along = scaled_rows(means(golden::times(g, y)), y);
      x->grad += scaled_rows(r, Mat<S>((centred ? less(g, means(g)) : g) - along));
    });
    return plus_row(times_row(unit, gamma), beta);
  }
  /// x w + b, w [in, out].
  Var linear(Var x, Var w, Var b) { return plus_row(product(x, w), b); }

  /// Heads side by side, queries of `heads` over keys of `groups`; maps, if asked for, collects one a head.
  Var attention(Var q, Var k, Var v, Index heads, Index groups, double scale, const Mat<bool>& keep,
                std::vector<Var>* maps = nullptr) {
    const Index d = q->value.cols() / heads, dv = v->value.cols() / groups;
    std::vector<Var> out;
    for (Index h = 0; h < heads; ++h) {
      const Index g = h * groups / heads;
      const Var scores = scaled(S(scale), product(columns(q, h * d, d), transposed(columns(k, g * d, d))));
      const Var a = softmax(scores, keep);
      if (maps != nullptr) maps->push_back(a);
      out.push_back(product(a, columns(v, g * dv, dv)));
    }
    return beside(out);
  }

  /// Every head's first r columns turned by the angles of places 0, 1, ...: pairs (c, c + d / 2), or (2 c, 2 c + 1).
  Var turned(Var x, Index heads, bool half, double base) {
    const Index d = x->value.cols() / heads;
    const auto turn = [=](const Mat<S>& in, S sign) {
      Mat<S> out = in;
      for (Index i = 0; i < in.rows(); ++i)
        for (Index h = 0; h < heads; ++h)
          for (Index l = 0; l < d / 2; ++l) {
            const double angle = double(i) * std::pow(base, -2.0 * double(l) / double(d));
            const S cosine = S(std::cos(angle)), sine = sign * S(std::sin(angle));
            const Index a = h * d + (half ? l : 2 * l), b = half ? a + d / 2 : a + 1;
            out(i, a) = cosine * in(i, a) - sine * in(i, b), out(i, b) = sine * in(i, a) + cosine * in(i, b);
          }
      return out;
    };
    return node(turn(x->value, S(1)), [=](const Mat<S>& g) { x->grad += turn(g, S(-1)); });
  }

 private:
  using Back = std::function<void(const Mat<S>&)>;
  Var node(Mat<S> value, Back back) {
    Node& n = nodes_.emplace_back();
    n.grad = Mat<S>::Zero(value.rows(), value.cols());
    n.value = std::move(value);
    if (back) n.back = [&n, back = std::move(back)] { back(n.grad); };
    return &n;
  }
  Var ones(Index rows) { return leaf(Mat<S>::Ones(rows, 1)); }
  Var joined(const std::vector<Var>& parts, bool down) {
    Index rows = 0, cols = 0;
    for (const Var part : parts) {
      rows = down ? rows + part->value.rows() : part->value.rows();
      cols = down ? part->value.cols() : cols + part->value.cols();
    }
    const auto each_part = [=](Mat<S>& all, const auto& f) {
      Index at = 0;
      for (const Var part : parts) {
        const Index r = part->value.rows(), c = part->value.cols();
        f(part, down ? all.block(at, 0, r, c) : all.block(0, at, r, c));
        at += down ? r : c;
      }
    };
    Mat<S> value(rows, cols);
    each_part(value, [](Var part, auto block) { block = part->value; });
    return node(std::move(value), [each_part](const Mat<S>& g) {
      Mat<S> all = g;
      each_part(all, [](Var part, auto block) { part->grad += block; });
    });
  }

  std::deque<Node> nodes_;
  std::map<std::string, Var> inputs_;
};

/// Activations and their derivatives.
template <class S>
S relu_of(S x) {
  return x > 0 ? x : S(0);
}
template <class S>
S relu_slope(S x) {
  return x > 0 ? S(1) : S(0);
}
template <class S>
S gelu_of(S x) {
  return x / 2 * (1 + std::erf(x / std::sqrt(S(2))));
}
template <class S>
S gelu_slope(S x) {
  return (1 + std::erf(x / std::sqrt(S(2)))) / 2 + x * std::exp(-x * x / 2) / std::sqrt(2 * S(3.14159265358979323846));
}
template <class S>
S tanh_gelu_of(S x) {
  const S c = std::sqrt(2 / S(3.14159265358979323846));
  return x / 2 * (1 + std::tanh(c * (x + S(0.044715) * x * x * x)));
}
template <class S>
S tanh_gelu_slope(S x) {
  const S c = std::sqrt(2 / S(3.14159265358979323846)), t = std::tanh(c * (x + S(0.044715) * x * x * x));
  return (1 + t) / 2 + x / 2 * (1 - t * t) * c * (1 + 3 * S(0.044715) * x * x);
}
template <class S>
S silu_of(S x) {
  return x / (1 + std::exp(-x));
}
template <class S>
S silu_slope(S x) {
  const S sigmoid = 1 / (1 + std::exp(-x));
  return sigmoid * (1 + x * (1 - sigmoid));
}

}  // namespace golden
