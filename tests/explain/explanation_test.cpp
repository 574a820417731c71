// limpid: an Explanation against Relevance, Rollout and head_importance one by one, and against the matrices written
// down, on every operator; through blocks of every kind; in float; and what it refuses.
// SPDX-License-Identifier: MIT
#include <deque>
#include <functional>
#include <limpid/explain/explanation.hpp>
#include <limpid/explain/relevance.hpp>
#include <limpid/layer/boosting_block.hpp>
#include <limpid/layer/crate.hpp>
#include <limpid/layer/differential.hpp>
#include <limpid/layer/transformer_block.hpp>
#include <limpid/score/biases.hpp>
#include <limpid/score/masks.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

namespace {

using limpid::BackwardCall, limpid::Explanation, limpid::Index, limpid::Mat, limpid::MutView, limpid::Part, limpid::qkv,
    limpid::View;
using suite::distance, suite::product, suite::product_nt, suite::product_tn;
using M = Mat<double>;

constexpr Part parts[] = {Part::pos, Part::neg, Part::abs, Part::signed_};
const limpid::ExplanationOptions everything{
    {Part::pos, Part::signed_, Part::neg, Part::abs}, limpid::RolloutOptions{.residual = 0.4}, true, true};

template <class S = double>
Mat<S> random(Index rows, Index cols, std::uint64_t seed, double size = 1) {
  suite::Random r(seed);
  return suite::random_matrix<S>(r, rows, cols, -size, size);
}
double largest(const M& a) { return a.size() == 0 ? 0 : a.cwiseAbs().maxCoeff(); }

/// One layer that is nothing but an operator: two items, four heads, over two of keys where the operator has them.
template <class Entry, class Mods>
struct Layer {
  static constexpr Index n = 7, batch = 2, heads = 4;
  using Op = decltype(Entry::make(std::declval<Mods>()));
  using Plain = decltype(limpid::softmax(std::declval<Mods>()));
  Mods mods;
  Op op;
  suite::Traits traits = Entry::traits();
  Index groups;
  suite::Fields<double> fields;
  M out, dout;
  limpid::Saved<Op, double> saved;

  Layer(const Mods& mods_, std::uint64_t seed)
      : mods(mods_), op(Entry::make(mods)), groups(traits.grouped ? 2 : heads) {
    suite::Random r(seed);
    suite::Sizes sizes{n, n};
    sizes.heads = heads, sizes.kv_heads = groups, sizes.batch = batch;
    fields = suite::make_fields<Entry, double>(sizes, true, r);
    const Index width = values().cols() / groups;
    out.resize(batch * n, heads * width), dout = suite::random_matrix<double>(r, batch * n, heads * width);
    limpid::forward(op, in(), out, {.batch = batch, .heads = heads, .kv_heads = groups, .saved = &saved});
  }
  limpid::Inputs<Op, double> in() const { return suite::args_of<limpid::Inputs<Op, double>>(suite::views_of(fields)); }
  const M& field(std::string_view name) const {
    for (const auto& f : fields)
      if (f.name == name) return f.value;
    throw std::logic_error("no such field");
  }
  const M& values() const { return field(traits.values); }
  suite::Fields<double> backward(const BackwardCall<double>& call) {
    suite::Fields<double> grad = fields;
    for (auto& g : grad) g.value.setConstant(7);
    limpid::backward(op, in(), saved, dout, suite::args_of<limpid::Grads<Op, double>>(suite::mutable_views_of(grad)),
                     call);
    return grad;
  }

  M v_of(Index item, Index head) const {
    const Index width = values().cols() / groups;
    return values().block(item * n, head / (heads / groups) * width, n, width);
  }
  M dout_of(Index item, Index head) const {
    const Index width = dout.cols() / heads;
    return dout.block(item * n, head * width, n, width);
  }
  /// E as the operator shows it.
  M effective(Index item, Index head) {
    M map(n, n);
    limpid::map_block(op, in(), saved, 0, 0, map, {.head = head, .item = item});
    return map;
  }
  /// The plain map of q and k.
  M plain(Index item, Index head) const {
    const Plain one = limpid::softmax(mods);
    limpid::Saved<Plain, double> own;
    M all = dout, map(n, n);
    const auto q = qkv(field("q"), field("k"), values());
    limpid::forward(one, q, all, {.batch = batch, .heads = heads, .kv_heads = groups, .saved = &own});
    limpid::map_block(one, q, own, 0, 0, map, {.head = head, .item = item});
    return map;
  }
  /// The gradient with respect to E v: that of the output, back through the norm of a two-map operator's head.
  M before_norm(Index item, Index head) {
    M dh = dout_of(item, head);
    if constexpr (requires { op.options.norm; })
      if (op.options.norm == limpid::HeadNorm::rms) {
        const auto args = limpid::detail::head_args(in(), saved.dims, item, head);
        const M h = product(effective(item, head), v_of(item, head));
        for (Index i = 0; i < n; ++i) {  // y = u o h / r, r = sqrt(mean(h^2) + eps)
          const double r = std::sqrt(h.row(i).squaredNorm() / static_cast<double>(h.cols()) + op.options.eps);
          M du = (1 - op.options.lambda_init) * dh.row(i);
          if (args.gamma.given()) du = suite::times(du, M(args.gamma.map()));
          dh.row(i) = du.row(0) / r;
          const double along = du.row(0).dot(h.row(i)) / (static_cast<double>(h.cols()) * r * r * r);
          dh.row(i) -= along * h.row(i);
        }
      }
    return dh;
  }
  /// A o dA by the formulas as they stand in Explanation's comment.
  M a_times_da(Index item, Index head) {
    const M v = v_of(item, head), g = dout_of(item, head);
    const auto args = limpid::detail::head_args(in(), saved.dims, item, head);
    const auto of = [&](const auto& r) {  // u_t = s A w_t + z u_{t-1}, w_t = x V + y u_{t-1}
      const M a = plain(item, head);
      std::vector<M> u{r.smooth_first ? product(a, v) : v};
      for (Index t = 0; t < r.steps; ++t) u.push_back(r.s * product(a, M(r.x * v + r.y * u.back())) + r.z * u.back());
      M now = g, da = M::Zero(n, n);
      for (Index t = r.steps; t-- > 0;) {
        const M& before = u[static_cast<std::size_t>(t)];
        da += r.s * product_nt(now, M(r.x * v + r.y * before));
        now = r.z * now + r.s * r.y * product_tn(a, now);
      }
      if (r.smooth_first) da += product_nt(now, v);
      return suite::times(a, da);
    };
    if constexpr (requires { op.options.scheme; }) {
      return of(op.recurrence(args));
    } else if constexpr (requires { op.alpha; }) {
      return of(op.template recurrence<double>());
    } else if constexpr (requires { op.options.ema; }) {
      return suite::times(plain(item, head), product_nt(g, v));
    } else if constexpr (requires { op.options.norm; }) {
      return suite::times(effective(item, head), product_nt(before_norm(item, head), v));
    } else {
      return suite::times(effective(item, head), product_nt(g, v));
    }
  }
};

double part_of(Part part, double x) { return limpid::detail::part_of(part, x); }

template <class Entry, class Mods>
void check_operator(const Mods& mods) {
  using L = Layer<Entry, Mods>;
  constexpr Index n = L::n, batch = L::batch, heads = L::heads;
  std::deque<L> layers;
  for (std::uint64_t l = 0; l < 3; ++l) layers.emplace_back(mods, 10 * l + 3);
  INFO(Entry::name);
  M start = random(batch, n, 77);
  start.row(0).setZero(), start(0, 5) = 1;

  Explanation<double> why(everything);
  why.start(View<double>(start));
  for (auto l = layers.rbegin(); l != layers.rend(); ++l) {
    suite::Fields<double> asked;
    why.layer(l->op, l->in(), l->saved, l->out, [&](const BackwardCall<double>& ask) { asked = l->backward(ask); });
    const suite::Fields<double> alone = l->backward({});
    for (std::size_t f = 0; f < alone.size(); ++f) CHECK(distance(asked[f].value, alone[f].value) == 0);
  }
  CHECK(why.layers() == 3);
  CHECK(why.started() == start);

  // one by one, bit for bit
  for (const Part part : parts) {
    limpid::Relevance<double> relevance({n}, part, batch);
    relevance.start(View<double>(start));
    for (auto l = layers.rbegin(); l != layers.rend(); ++l) {
      limpid::backward(l->op, l->in(), l->saved, l->dout, {}, relevance.ask());
      relevance.stage();
    }
    CHECK(distance(why.relevance(part), relevance.without_start()) == 0);
  }
  CHECK(distance(why.relevance(), why.relevance(Part::pos)) == 0);
  for (Index l = 0; l < 3; ++l) {
    const L& of = layers[static_cast<std::size_t>(l)];
    CHECK(distance(why.heads(l), limpid::head_importance(of.out, of.dout, heads, batch)) == 0);
  }
  const M rolled = why.rollout();
  for (Index item = 0; item < batch; ++item) {
    limpid::Rollout<double> rollout(*everything.rollout);
    rollout.start(View<double>(start).block(item, 0, 1, n));
    for (auto l = layers.rbegin(); l != layers.rend(); ++l) rollout.layer(l->op, l->in(), l->saved, {.item = item});
    CHECK(distance(M(rolled.row(item)), rollout.rows()) == 0);
  }

  // Grad-CAM, of the last layer alone
  Explanation<double> seen({.relevance = {}, .gradcam = 2});
  seen.start(View<double>(start));
  for (L* l : {&layers.back(), &layers.front()})
    seen.layer(l->op, l->in(), l->saved, l->out, [&](const BackwardCall<double>& ask) { l->backward(ask); });
  for (Index item = 0; item < batch; ++item) {
    M cam = M::Zero(1, n - 2);
    for (Index h = 0; h < heads; ++h) {
      const M w = start.row(item);
      const M slope = product(w, product_nt(layers.back().before_norm(item, h), layers.back().v_of(item, h)));
      cam += slope.rightCols(n - 2).mean() / heads * product(w, layers.back().effective(item, h)).rightCols(n - 2);
    }
    CHECK(distance(M(seen.gradcam().row(item)), M(cam.cwiseMax(0.0))) < 1e-12 * std::max(1.0, largest(cam)));
  }

  // the matrices
  for (Index item = 0; item < batch; ++item) {
    const M w = start.row(item);
    M c = w;
    std::vector<M> rest(4, M::Zero(1, n));
    for (auto l = layers.rbegin(); l != layers.rend(); ++l) {
      M mean = M::Zero(n, n);
      std::vector<M> abar(4, mean);
      for (Index h = 0; h < heads; ++h) {
        mean += l->effective(item, h) / heads;
        const M one = l->a_times_da(item, h);
        for (std::size_t p = 0; p < 4; ++p)
          for (Index e = 0; e < one.size(); ++e) abar[p].data()[e] += part_of(parts[p], one.data()[e]) / heads;
        const bool linear = l->traits.linear && !l->traits.residual;
        const Index layer = static_cast<Index>(layers.rend() - l) - 1;
        const M by_map = suite::times(l->effective(item, h), product_nt(l->dout_of(item, h), l->v_of(item, h)));
        if (linear) CHECK(std::abs(why.heads(layer)(item, h) - by_map.sum()) < 1e-10);
      }
      for (std::size_t p = 0; p < 4; ++p) rest[p] += product(M(w + rest[p]), abar[p]);
      M f = 0.4 * M::Identity(n, n) + 0.6 * mean;
      for (Index i = 0; i < n; ++i) f.row(i) /= f.row(i).sum();
      c = product(c, f);
    }
    for (std::size_t p = 0; p < 4; ++p)
      CHECK(distance(M(why.relevance(parts[p]).row(item)), rest[p]) < 1e-10 * std::max(1.0, largest(rest[p])));
    CHECK(distance(M(rolled.row(item)), c) < 1e-10 * std::max(1.0, largest(c)));
  }
}

/// A block, its parameters, and what a stack of it keeps.
template <class Op>
struct Blocks {
  using Block = limpid::TransformerBlock<Op>;
  static constexpr Index n = 9, width = 8, batch = 2;
  Block block;
  std::deque<limpid::TransformerBlockArgs<M>> parameters;
  std::deque<M> x;
  std::vector<typename Block::template Saved<double>> saved;
  M dout = random(batch * n, width, 99);

  Blocks(const Op& op, const limpid::TransformerBlockOptions& options, Index layers)
      : block(limpid::transformer_block(op, options)), saved(static_cast<std::size_t>(layers)) {
    const Index groups = options.kv_heads == 0 ? options.heads : options.kv_heads;
    x.push_back(random(batch * n, width, 1));
    for (Index l = 0; l < layers; ++l) {
      auto& p = parameters.emplace_back();
      const auto seed = static_cast<std::uint64_t>(20 * l);
      p.x = x.back(), p.gamma1 = random(1, width, seed + 2), p.gamma2 = random(1, width, seed + 3);
      p.wq = random(width, width, seed + 4), p.wk = random(width, width / options.heads * groups, seed + 5);
      p.wv = random(width, width / options.heads * groups, seed + 6), p.wo = random(width, width, seed + 7);
      p.w1 = random(width, 12, seed + 8), p.w2 = random(12, width, seed + 9), p.scale1 = random(1, width, seed + 10);
      p.wg = random(width, width, seed + 11);
      x.emplace_back(batch * n, width);
      block.forward(p, x.back(), {.batch = batch, .saved = &saved[static_cast<std::size_t>(l)]});
    }
  }
  /// Backwards with each layer's pass given to through(layer, pass); the gradients of all.
  template <class Through>
  std::deque<limpid::TransformerBlockArgs<M>> backward(const Through& through) {
    auto grad = parameters;
    M d = dout;
    for (std::size_t l = saved.size(); l-- > 0;) {
      grad[l].x.resize(batch * n, width);
      through(l, [&](const BackwardCall<double>& ask) { block.backward(parameters[l], saved[l], d, grad[l], ask); });
      d = grad[l].x;
    }
    return grad;
  }
};

template <class Args>
bool same_bits(const std::deque<Args>& a, const std::deque<Args>& b) {
  bool same = true;
  for (std::size_t l = 0; l < a.size(); ++l)
    Args::visit([&](const char*, const auto& x, const auto& y) { same = same && (x.size() == 0 || x == y); }, a[l],
                b[l]);
  return same;
}

}  // namespace

TEST_CASE(
    "explanation: every answer is that of the separate ways bit for bit, and of the matrices, on every operator") {
  suite::for_each_operator([](auto entry) { check_operator<decltype(entry)>(limpid::chain()); });
}

TEST_CASE("explanation: under masks too, which leave rows without keys") {
  check_operator<suite::entry_softmax>(limpid::chain(limpid::causal()));
  check_operator<suite::entry_twicing>(limpid::chain(limpid::causal()));
  check_operator<suite::entry_differential>(limpid::chain(limpid::causal()));
}

TEST_CASE("explanation: blocks of grouped keys, gates and scales hand on what is asked; no bit of a gradient changes") {
  Blocks blocks(limpid::softmax(limpid::causal()), {.heads = 4, .kv_heads = 2, .eps = 1e-6}, 3);
  const auto plain = blocks.backward([](std::size_t, const auto& pass) { pass({}); });
  Explanation<double> why(everything);
  why.start(blocks.n, std::vector<Index>{8, 4});
  const auto asked = blocks.backward(
      [&](std::size_t l, const auto& pass) { why.layer(blocks.block.op, blocks.saved[l].attention, pass); });
  CHECK(same_bits(plain, asked));
  limpid::Relevance<double> relevance({blocks.n}, Part::abs, 2);
  relevance.start(std::vector<Index>{8, 4});
  std::vector<M> heads(3), gradients(3, M(18, 8));
  blocks.backward([&](std::size_t l, const auto& pass) {
    BackwardCall<double> ask = relevance.ask();
    ask.heads_gradient = gradients[l];
    pass(ask);
    relevance.stage();
    // the gradient of the heads' output is what the block's own backward pass starts the operator from
    auto& a = blocks.saved[l].attention;
    M row(1, 9), wanted(2, 9), unit = M::Zero(2, 9);
    unit(1, 3) = 1;
    limpid::corrected_rows(blocks.block.op, qkv(a.q, a.k, a.v), a.attention, gradients[l], 3, row, {.part = Part::neg},
                           {.item = 1});
    pass({.relevance_weights = unit, .relevance = wanted, .part = Part::neg});
    CHECK(distance(row, M(wanted.row(1))) < 1e-14);
    CHECK(largest(row) > 0);
    heads[l] = limpid::head_importance(a.o, gradients[l], 4, 2);
  });
  CHECK(distance(why.relevance(Part::abs), relevance.without_start()) == 0);
  for (std::size_t l = 0; l < 3; ++l) CHECK(why.heads(static_cast<Index>(l)) == heads[l]);
  CHECK(why.relevance(Part::abs).row(1).tail(4).isZero(0));  // causal: nothing of what comes after token 4
  CHECK(why.relevance(Part::abs).row(1).head(5).minCoeff() > 0);
  const auto importance = why.heads(1);
  CHECK(importance.rows() == 2);
  CHECK(importance.cols() == 4);
}

TEST_CASE("explanation: the importance of a head is the gradient of a gate on its output") {
  Blocks blocks(limpid::twicing(), {.heads = 2, .eps = 1e-6}, 1);
  Explanation<double> why({.heads = true});
  why.start(9, 0, 2);
  blocks.backward(
      [&](std::size_t l, const auto& pass) { why.layer(blocks.block.op, blocks.saved[l].attention, pass); });
  auto p = blocks.parameters.front();
  const auto value = [&](Index head, double gate) {  // the head's rows of wo by 1 + gate: the sum of both items
    auto other = p;
    other.wo.middleRows(4 * head, 4) *= 1 + gate;
    M out(18, 8);
    blocks.block.forward(other, out, {.batch = 2});
    return suite::dot(out, blocks.dout);
  };
  for (Index h = 0; h < 2; ++h)
    CHECK((value(h, 1e-6) - value(h, -1e-6)) / 2e-6 == Approx(why.heads(0).col(h).sum()).epsilon(1e-7));
}

TEST_CASE("explanation: layers of two maps, of MSSA, AoT, CRATE and boosting blocks hand on what is asked") {
  const Index n = 6, rows = 2 * n;
  const M x = random(rows, 8, 1), dout = random(rows, 8, 2), start = random(2, n, 3).cwiseAbs();
  const auto explained = [&](auto&& layer) {
    Explanation<double> why(everything);
    why.start(View<double>(start));
    layer(why);
    CHECK(largest(why.relevance(Part::neg)) > 0);
    CHECK(largest(why.heads(0)) > 0);
    return why;
  };
  /// The same from the operator alone, with the gradient of the heads' output as it was told.
  const auto check = [&](Explanation<double>& why, const auto& op, const auto& in, auto& saved, const M& out,
                         const M& gradient) {
    Explanation<double> own(everything);
    own.start(View<double>(start));
    own.layer(op, in, saved, out,
              [&](const BackwardCall<double>& ask) { limpid::backward(op, in, saved, gradient, {}, ask); });
    for (const Part part : parts) CHECK(distance(why.relevance(part), own.relevance(part)) == 0);
    CHECK(why.heads(0) == own.heads(0));
    CHECK(why.rollout() == own.rollout());
  };
  {
    const auto layer = limpid::two_map_layer(limpid::differential({.eps = 0.1}), 2);
    typename std::remove_const_t<decltype(layer)>::template Saved<double> saved;
    limpid::TwoMapLayerArgs<M> p, grad, plain;
    p.x = x, p.wq = random(8, 16, 4), p.wk = random(8, 16, 5), p.wv = random(8, 8, 6), p.wo = random(8, 8, 7);
    grad = plain = p;
    const limpid::TwoMapLayerArgs<View<double>> in{x, p.wq, p.wk, p.wv, p.wo};
    const auto grads = [](limpid::TwoMapLayerArgs<M>& g) {
      return limpid::TwoMapLayerArgs<MutView<double>>{g.x, g.wq, g.wk, g.wv, g.wo};
    };
    M out(rows, 8), gradient(rows, 8);
    layer.forward(in, out, {.batch = 2, .saved = &saved});
    limpid::DifferentialArgs<View<double>> args;
    args.q = saved.q, args.k = saved.k, args.v = saved.v;
    auto why = explained([&](auto& one) {
      one.layer(layer.op, args, saved.attention, saved.y, [&](const BackwardCall<double>& ask) {
        layer.backward(in, saved, dout, grads(grad), ask);
        gradient = ask.heads_gradient.map();
      });
    });
    layer.backward(in, saved, dout, grads(plain));
    CHECK(grad.x == plain.x);
    CHECK(grad.wk == plain.wk);
    check(why, layer.op, args, saved.attention, saved.y, gradient);
    for (Index item = 0; item < 2; ++item) {  // row by row, back through the heads' norm
      M first(2, n), last(n - 2, n), all(n, n);
      const limpid::HeadCall call{.item = item};
      limpid::corrected_rows(layer.op, args, saved.attention, gradient, 0, first, {.part = Part::neg}, call);
      limpid::corrected_rows(layer.op, args, saved.attention, gradient, 2, last, {.part = Part::neg}, call);
      all << first, last;
      CHECK(distance(product(M(start.row(item)), all), M(why.relevance(Part::neg).row(item))) < 1e-13);
    }
  }
  limpid::AotArgs<M> p;
  p.u = random(8, 8, 8), p.wo = random(8, 8, 9), p.eta = M::Constant(1, 1, 0.5);
  {
    using Stack = limpid::AotStack<decltype(limpid::mssa())>;
    const Stack stack{limpid::aot(limpid::mssa(), {.heads = 2})};
    std::vector<limpid::AotArgs<M>> layers(2, p), grad = layers, plain = layers;
    typename Stack::template Saved<double> saved;
    M out(rows, 8), dx(rows, 8), other(rows, 8);
    stack.forward(x, layers, out, {.batch = 2, .saved = &saved});
    stack.backward(x, layers, saved, dout, other, plain);
    auto why = explained([&](auto& one) { stack.backward(x, layers, saved, dout, dx, grad, one); });
    CHECK(dx == other);
    CHECK(grad[0].u == plain[0].u);
    CHECK(why.layers() == 2);
    // by hand, a layer at a time
    Explanation<double> own(everything);
    own.start(View<double>(start));
    M d = dout;
    for (std::size_t l = 2; l-- > 0;) {
      limpid::AotArgs<View<double>> in = layers[l];
      in.x = l == 0 ? View<double>(x) : View<double>(saved.tokens[l - 1]);
      own.layer(stack.layer.op, saved.layers[l].attention,
                [&](const BackwardCall<double>& ask) { stack.layer.backward(in, saved.layers[l], d, {.x = dx}, ask); });
      d = dx;
    }
    for (const Part part : parts) CHECK(distance(why.relevance(part), own.relevance(part)) == 0);
    CHECK(why.heads(0) == own.heads(0));
    Explanation<double> none(everything);
    CHECK_THROWS_WITH(stack.backward(x, layers, saved, dout, dx, grad, none),
                      "aot stack: an explanation started with rows 0 x 0, wanted 2 x 6");
  }
  {
    const auto crate = limpid::crate(limpid::mssa(), {.heads = 2});
    limpid::CrateArgs<M> in;
    in.x = x, in.u = p.u, in.wo = p.wo, in.dictionary = random(8, 8, 10);
    limpid::CrateSaved<decltype(crate.op), double> saved;
    M out(rows, 8), dx(rows, 8), other(rows, 8), gradient;
    crate.forward(in, out, {.batch = 2, .saved = &saved});
    auto& kept = saved.compress.attention;
    auto why = explained([&](auto& one) {
      one.layer(crate.op, kept, [&](const BackwardCall<double>& ask) {
        crate.backward(in, saved, dout, {.x = dx}, ask);
        gradient = ask.heads_gradient.map();
      });
    });
    crate.backward(in, saved, dout, {.x = other});
    CHECK(dx == other);
    check(why, crate.op, limpid::Inputs<decltype(crate.op), double>{.y = kept.y}, kept.attention, kept.o, gradient);
    M small(2, 2);
    CHECK_THROWS_WITH(crate.backward(in, saved, dout, {.x = other}, {.heads_gradient = small}),
                      "crate block: heads_gradient is 2 x 2, wanted 12 x 8");
  }
  {
    const auto attention = limpid::multi_head(limpid::softmax(), 2);
    limpid::MultiHeadArgs<M> in;
    in.x = x, in.wq = in.wk = p.u, in.wv = in.wo = p.wo;
    typename std::remove_const_t<decltype(attention)>::template Saved<double> saved;
    limpid::BoostingBlockSaved<double> around;
    const M tau = M::Constant(1, 1, 0.8);
    M out(rows, 8), next(rows, 8), dx(rows, 8), other(rows, 8);
    const limpid::BoostingBlockArgs<View<double>> args{.x = x, .tau = tau};
    limpid::boosting_block(
        args,
        [&](View<double> s, MutView<double> z) {
          limpid::MultiHeadArgs<View<double>> own = in;
          own.x = s;
          attention.forward(own, z, {.batch = 2, .saved = &saved});
        },
        out, next, &around);
    const auto vjp = [&](Explanation<double>* one) {
      return [&, one](View<double> s, View<double> dz, MutView<double> ds) {
        limpid::MultiHeadArgs<View<double>> own = in;
        own.x = s;
        const auto pass = [&](const BackwardCall<double>& ask) { attention.backward(own, saved, dz, {.x = ds}, ask); };
        if (one == nullptr)
          pass({});
        else
          one->layer(attention.op, saved, pass);
      };
    };
    explained([&](auto& one) { limpid::boosting_block_backward(args, around, vjp(&one), dout, {}, {.x = dx}); });
    limpid::boosting_block_backward(args, around, vjp(nullptr), dout, {}, {.x = other});
    CHECK(dx == other);
  }
}

TEST_CASE("explanation: in float the row of relevance has the digits of double over 12 layers") {
  const Index n = 50, width = 12, heads = 3;
  const auto run = [&](auto scalar) {
    using S = decltype(scalar);
    const auto block = limpid::transformer_block(limpid::softmax(), {.heads = heads, .eps = 1e-6});
    std::vector<typename std::remove_const_t<decltype(block)>::template Saved<S>> saved(12);
    std::vector<limpid::TransformerBlockArgs<Mat<S>>> p(12);
    Mat<S> x = random<float>(n, width, 1).cast<S>(), d = Mat<S>::Zero(n, width);
    for (std::size_t l = 0; l < 12; ++l) {  // as a ViT is before it is trained, but with more to say
      const auto weights = [&](Index rows, Index cols, std::uint64_t seed) -> Mat<S> {
        return random<float>(rows, cols, 100 * l + seed, 0.3).template cast<S>();
      };
      p[l].x = x, p[l].wq = weights(width, width, 1), p[l].wk = weights(width, width, 2);
      p[l].wv = weights(width, width, 3), p[l].wo = weights(width, width, 4);
      p[l].w1 = weights(width, 4 * width, 5), p[l].w2 = weights(4 * width, width, 6);
      block.forward(p[l], x, {.saved = &saved[l]});
    }
    Explanation<S> why({.relevance = {Part::pos, Part::signed_}});
    why.start(n, 0);
    d.row(0) = random<float>(1, width, 7, 0.01).cast<S>();  // a small answer: its relevance is small beside the 1
    for (std::size_t l = 12; l-- > 0;) {
      Mat<S> dx(n, width);
      why.layer(block.op, saved[l].attention,
                [&](const BackwardCall<S>& ask) { block.backward(p[l], saved[l], d, {.x = dx}, ask); });
      d = dx;
    }
    return why;
  };
  const Explanation<double> wanted = run(double());
  const Explanation<float> found = run(float());
  for (const Part part : {Part::pos, Part::signed_}) {
    const M& row = wanted.relevance(part);
    CHECK(largest(row) < 0.1);
    CHECK(distance(M(found.relevance(part).cast<double>()), row) < 2e-6 * largest(row));
  }
}

TEST_CASE("explanation: the input's gradient, and a number a token of it times the input") {
  Explanation<double> why({.input = true});
  why.start(4, 0, 2);
  const M x = random(6, 5, 1), dx = random(6, 5, 2);
  why.input(x, dx, 1);
  CHECK(why.gradient() == dx);
  const M& times = why.gradient_times_input();
  CHECK(times.rows() == 2);
  CHECK(times.col(0).isZero(0));
  for (Index i = 0; i < 6; ++i) CHECK(std::abs(times(i / 3, 1 + i % 3) - x.row(i).dot(dx.row(i))) < 1e-15);
  const std::string wanted = ", wanted one shape of 2 items and at most 4 tokens each";
  CHECK(suite::error_of([&] { why.input(x, dx, 2); }) ==
        "explanation: the input is 6 x 5 from token 2 on and its gradient 6 x 5" + wanted);
  CHECK(suite::error_of([&] { why.input(x, dx.topRows(4)); }) ==
        "explanation: the input is 6 x 5 from token 0 on and its gradient 4 x 5" + wanted);
  Explanation<double> other;
  other.input(x, dx, 7);  // nobody asked
  CHECK_THROWS_WITH(other.gradient(), Catch::Contains("explanation: the gradient of the input is not there"));
  CHECK_THROWS_WITH(other.gradient_times_input(), Catch::Contains("wanted it asked for in the options"));
}

TEST_CASE("explanation: gradients that modifiers collect are collected once, however many parts are asked for") {
  const M q = random(10, 4, 1), dout = random(10, 4, 2), table = random(5, 5, 6);
  M gradients[2] = {M::Zero(5, 5), M::Zero(5, 5)}, out(10, 4);
  for (const bool asked : {false, true}) {
    const auto op = limpid::softmax(limpid::bias(table, gradients[asked ? 1 : 0]));
    limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
    limpid::forward(op, qkv(q, q, q), out, {.batch = 2, .heads = 2, .saved = &saved});
    const auto pass = [&](const BackwardCall<double>& ask) {
      limpid::backward(op, qkv(q, q, q), saved, dout, {}, ask);
    };
    Explanation<double> why(everything);
    why.start(5, 1, 2);
    if (asked)
      why.layer(op, qkv(q, q, q), saved, out, pass);
    else
      pass({});
  }
  CHECK(gradients[0] == gradients[1]);
  CHECK(largest(gradients[0]) > 0);
}

TEST_CASE("explanation: a mask that throws on the way, of the second item alone, leaves the answers as they were") {
  bool throws = false;
  const std::function<bool(const limpid::At&)> keep = [&](const limpid::At& a) {
    if (throws && a.batch == 1) throw std::runtime_error("a mask of its own mind");
    return a.k <= a.q;
  };
  const auto op = limpid::softmax(limpid::mask(keep));
  const M q = random(10, 4, 1), dout = random(10, 4, 2);
  M out(10, 4);
  limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
  limpid::forward(op, qkv(q, q, q), out, {.batch = 2, .heads = 2, .saved = &saved});
  limpid::Explanation<double> why({.rollout = limpid::RolloutOptions{}, .heads = true});
  why.start(5, Index(3), 2);
  const M relevance = why.relevance(), rollout = why.rollout();
  const auto pass = [&](const BackwardCall<double>& ask) {
    limpid::backward(op, qkv(q, q, q), saved, dout, {}, ask);
    throws = true;
  };
  CHECK_THROWS_WITH(why.layer(op, qkv(q, q, q), saved, out, pass), "a mask of its own mind");
  CHECK(why.relevance() == relevance);
  CHECK(why.rollout() == rollout);
  CHECK(why.layers() == 0);
}

TEST_CASE("explanation: what is not there is refused by name, and leaves the answers as they were") {
  using Op = decltype(limpid::softmax());
  const Op op = limpid::softmax();
  const M q = random(10, 4, 1), dout = random(10, 4, 2), k = random(14, 4, 3);
  M out(10, 4);
  limpid::Saved<Op, double> saved, cross, empty;
  limpid::forward(op, qkv(q, q, q), out, {.batch = 2, .heads = 2, .saved = &saved});
  limpid::forward(op, qkv(q, k, k), out, {.batch = 2, .heads = 2, .saved = &cross});
  limpid::forward(op, qkv(q, q, q), out, {.batch = 2, .heads = 2, .saved = &saved});
  bool ran = false;
  const auto pass = [&](const BackwardCall<double>& ask) {
    ran = true;
    limpid::backward(op, qkv(q, q, q), saved, dout, {}, ask);
  };
  Explanation<double> why({.rollout = limpid::RolloutOptions{}, .heads = true});
  CHECK_THROWS_WITH(Explanation<double>({.rollout = limpid::RolloutOptions{.residual = 2}}),
                    "rollout: residual is 2.000000, wanted it in [0, 1]");
  CHECK_THROWS_WITH(why.start(5, 5), "explanation: token is 5, wanted it in [0, 5)");
  CHECK_THROWS_WITH(why.start(5, -1), "explanation: token is -1, wanted it in [0, 5)");
  CHECK_THROWS_WITH(why.start(5, std::vector<Index>{1, 7}), "explanation: token is 7, wanted it in [0, 5)");
  CHECK_THROWS_WITH(why.start(5, 1, 0), "explanation: batch is 0, wanted at least 1");
  CHECK_THROWS_WITH(why.start(View<double>()),
                    "explanation: rows to start with are 0 x 0, wanted a row an item, one at least");
  const M nan = M::Constant(2, 5, std::nan(""));
  CHECK_THROWS_WITH(why.start(View<double>(nan)), Catch::Contains("explanation: rows is nan in row 0, column 0"));
  CHECK_THROWS_WITH(why.layer(op, qkv(q, q, q), saved, out, pass),
                    "softmax: an explanation started with rows 0 x 0, wanted 2 x 5");
  why.start(5, 1, 2);
  CHECK_THROWS_WITH(why.relevance(Part::neg), Catch::Contains("explanation: this part of relevance is not there"));
  why.layer(op, qkv(q, q, q), saved, out, pass);
  const M relevance = why.relevance(), rollout = why.rollout(), heads = why.heads(0);
  ran = false;
  CHECK_THROWS_WITH(why.layer(op, qkv(q, q, q), empty, out, pass), Catch::Contains("softmax: saved is empty"));
  CHECK_THROWS_WITH(why.layer(op, qkv(q, k, k), cross, out, pass),
                    "softmax: explained is a map 5 x 7, wanted self attention");
  CHECK_THROWS_WITH(why.layer(op, qkv(q, q, q), saved, out.leftCols(3), pass),
                    "softmax: the heads' output to explain is 10 x 3, wanted 10 rows and columns of 2 heads");
  CHECK_THROWS_WITH(why.layer(op, qkv(q, q, q), saved, out.topRows(5), pass), Catch::Contains("is 5 x 4, wanted 10"));
  CHECK(!ran);
  CHECK_THROWS_WITH(why.layer(op, qkv(q, q, q), saved, out,
                              [](const BackwardCall<double>&) { throw std::runtime_error("no upstream gradient"); }),
                    "no upstream gradient");
  CHECK(distance(why.relevance(), relevance) == 0);
  CHECK(distance(why.rollout(), rollout) == 0);
  CHECK(why.layers() == 1);
  CHECK(why.heads(0) == heads);
  CHECK_THROWS_WITH(why.heads(1), "explanation: layer is 1, wanted it in [0, 1)");
  CHECK_THROWS_WITH(why.heads(-1), "explanation: layer is -1, wanted it in [0, 1)");
  why.layer(op, qkv(q, q, q), saved, out, [](const BackwardCall<double>&) {});  // nobody was asked
  CHECK(std::isnan(why.relevance()(0, 0)));
  CHECK(std::isnan(why.heads(0)(0, 0)));
  why.start(5, 1, 2);  // anew
  CHECK(why.layers() == 0);
  CHECK(why.relevance().isZero(0));
  CHECK_THROWS_WITH(why.heads(0), "explanation: layer is 0, wanted it in [0, 0)");
  std::string meanwhile;
  const auto asks = [&](const BackwardCall<double>& ask) {
    meanwhile = suite::error_of([&] { why.relevance(); });
    pass(ask);
  };
  const M twice = 2 * out;
  why.layer(op, qkv(q, q, q), saved, twice, asks);
  CHECK(meanwhile == "explanation is in use by another call, wanted one call at a time, or one for each");
  CHECK(distance(why.relevance(), relevance) == 0);
  CHECK(why.heads(0) == M(2 * heads));
  CHECK_THROWS_WITH(why.gradcam(), Catch::Contains("explanation: Grad-CAM is not there"));
  Explanation<double> seen({.relevance = {}, .gradcam = 4});
  seen.start(5, 1, 2);
  CHECK_THROWS_WITH(seen.gradcam(), Catch::Contains("explanation: Grad-CAM is not there"));
  seen.layer(op, qkv(q, q, q), saved, out, [](const BackwardCall<double>&) {});
  CHECK(seen.gradcam().rows() == 2);
  CHECK(std::isnan(seen.gradcam()(0, 0)));
  seen.start(5, 1, 2);
  CHECK_THROWS_WITH(seen.gradcam(), Catch::Contains("explanation: Grad-CAM is not there"));
  for (const Index skip : {Index(5), Index(-1)}) {
    Explanation<double> none({.relevance = {}, .gradcam = skip});
    none.start(5, 1, 2);
    CHECK_THROWS_WITH(
        none.layer(op, qkv(q, q, q), saved, out, pass),
        "softmax: Grad-CAM without the first " + std::to_string(skip) + " of 5 tokens, wanted one left at least");
  }
  const Explanation<double> nothing({.relevance = {}});
  CHECK_THROWS_WITH(nothing.relevance(), Catch::Contains("explanation: relevance is not there"));
  CHECK_THROWS_WITH(nothing.rollout(), Catch::Contains("explanation: rollout is not there"));
  CHECK_THROWS_WITH(nothing.heads(0), Catch::Contains("explanation: the importance of heads is not there"));

  M small(2, 2), over = dout;
  const auto asked = [&](const MutView<double>& to) {
    return suite::error_of([&] { limpid::backward(op, qkv(q, q, q), saved, over, {}, {.heads_gradient = to}); });
  };
  CHECK(asked(small) == "softmax: heads_gradient is 2 x 2, wanted 10 x 4");
  CHECK(asked(over) == "softmax: heads_gradient shares memory with dout, wanted memory of its own");
}
