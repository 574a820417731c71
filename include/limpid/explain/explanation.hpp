// limpid: one prediction explained by one backward pass: what is asked for beside gradients, and the answers.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rollout.hpp"
#include "views.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What an Explanation is to collect.
struct ExplanationOptions {
  /// Parts of A o dA, a row of relevance for each, which come with the backward pass. Empty: no relevance.
  std::vector<Part> relevance{Part::pos};
  std::optional<RolloutOptions> rollout{};  ///< the row of attention rollout, with these options
  bool heads = false;                       ///< the importance of every head of every layer
  bool input = false;                       ///< gradients of what a model reads, and gradient times input
  /// Attention Grad-CAM of the last layer, without so many of the first tokens: 1 leaves the class token out.
  std::optional<Index> gradcam{};
};

/// Why a stack of self attentions, or a model, said what it said: one object that is asked for several explanations,
/// goes down with one backward pass and holds the answers afterwards, of every item of a batch. From a start w, the
/// unit row of the token that the answer is read from or the weights of a mean over tokens:
///
///   relevance   w (R - I),  R = (I + Abar_L) ... (I + Abar_1),  Abar = mean_h part(A_h o dA_h)
///               Chefer, Gur and Wolf 2021, 2103.15679, rules 5 and 6; the identity is kept apart, for in float its 1
///               would round away the digits that one shows
///   rollout     w C,  C = F_L ... F_1,  F_l = residual I + (1 - residual) fuse_h E_l,h        Abnar and Zuidema 2020
///   heads       sum_i <out_h,i, dout_h,i>, signed          Michel, Levy and Neubig 2019, 1905.10650, who take its size
///   input       dx and, for every token, the sum of x o dx of what it was made from
///   gradcam     max(0, mean_h g_h w E_h), g_h the mean of w dE_h, of the last layer, over the keys that are not left out
///               Chefer, Gur and Wolf 2021, 2012.09838, as gradcam() has it of whole matrices
///
/// A model takes it in place of a row:
///
///   limpid::Explanation<float> why({.rollout = limpid::RolloutOptions{}, .heads = true, .input = true});
///   vit.explain(op, saved, label, why);
///   why.relevance();  why.rollout();  why.heads(layer);  why.gradient_times_input();  // batch x n; batch x H
///
/// Of a stack of your own every layer is one call, from the last to the first, with the backward pass of that layer,
/// which hands on what it is told; so blocks of every kind go, and layers that are nothing but an operator:
///
///   why.start(n, token);
///   for (l = last; l >= 0; --l)
///     why.layer(block.op, saved[l].attention, [&](const limpid::BackwardCall<float>& ask) {
///       block.backward(in[l], saved[l], d[l + 1], {.x = d[l]}, ask);
///     });
///
/// kept: what MultiHead, MssaLayer and so the blocks round them keep: saved.attention of a TransformerBlock or Aot,
/// saved.compress.attention of a Crate; of a boosting block the call stands in its vjp, and the way of its estimate u
/// past the attention is not followed.
///
/// Where the map E that an operator puts to work (map_block) has negative entries, or is made of several, relevance
/// takes the factor A whose gradient the backward pass has, before any norm of the head, and dA over all its uses:
///
///   differential, gated    A = E = w1 A1 - w2 A2, dA = dH V^T with H = E V: the part is of one product, of both maps
///   twicing, boosting      A the map that is run again and again, dA = sum_t s G_t w_t^T, its steps' products together
///   pid                    A the map without the controller
///
/// rollout takes E: 2A - A^2 of twicing, of either sign, rows of the two-map ones that sum to w1 - w2, of pid and of a
/// boosting with skip what a token adds of itself. `heads` is the gradient of a gate on what the head gives, whatever
/// the operator: sum E o dout V^T where out = E V. `gradcam` takes dE = dH V^T, H = E V, rows where w is not 0 alone.
///
/// Asking changes no bit of outputs and gradients. Memory: a few numbers a token and item, and one layer's gradient of
/// its heads' output, (B n) x (H dv), with `heads` or `gradcam`, which takes 64 rows of a map at most besides; nothing
/// n x n. One call at a time, another one meanwhile throws ShapeError; several may read. What throws, before or on its
/// way, leaves the answers as they were.
/// Error in double: within 1e-10 of dense formulas, and no bit from Relevance, Rollout and head_importance, as tests
/// assert; in float the row of relevance within 2e-6 of double, of its largest entry, over 12 layers of noise and on
/// MiniLM and DINOv2 (found 0.6e-6), within 3e-6 on RXNMapper (found 0.7e-6 with AVX-512, 2.2e-6 with AVX2).
template <class S>
class Explanation {
 public:
  using Pass = detail::FunctionRef<void(const BackwardCall<S>&)>;

  /// Throws ShapeError for options of rollout that are none.
  explicit Explanation(ExplanationOptions options = {})
      : options_(std::move(options)), down_(options_.rollout.value_or(RolloutOptions{})) {}

  /// Explain this token of n, in every item. Throws ShapeError for a token that is not there, and no items.
  void start(Index n, Index token, Index batch = 1) {
    if (batch < 1) detail::raise("explanation: batch is " + detail::text_of(batch) + ", wanted at least 1");
    start(n, std::vector<Index>(static_cast<std::size_t>(batch), token));
  }
  /// Another token in each item. Throws ShapeError as above.
  void start(Index n, const std::vector<Index>& tokens) {
    for (const Index token : tokens)
      if (token < 0 || token >= n)
        detail::raise("explanation: token is " + detail::text_of(token) + ", wanted it in [0, " + detail::text_of(n) +
                      ")");
    Mat<S> rows = Mat<S>::Zero(static_cast<Index>(tokens.size()), n);
    for (Index b = 0; b < rows.rows(); ++b) rows(b, tokens[static_cast<std::size_t>(b)]) = S(1);
    start(View<S>(rows));
  }
  /// A mixture of tokens an item, batch x n: 1 / n of each explains a mean over tokens. Throws ShapeError for no items
  /// or tokens, and for numbers that are not finite.
  void start(View<S> rows) {
    const detail::SavedTurn turn = take_turn(true);
    if (rows.rows < 1 || rows.cols < 1)
      detail::raise("explanation: rows to start with are " + detail::shape_text(rows.rows, rows.cols) +
                    ", wanted a row an item, one at least");
    detail::check_parameters<S>("explanation", "rows", rows);
    Mat<S> first = rows.map();  // which may be ours
    start_.swap(first);
    relevance_.assign(options_.relevance.size(), Mat<S>::Zero(start_.rows(), start_.cols()));
    rollout_.resize(0, 0);
    if (options_.rollout) rollout_ = start_;
    layers_ = 0;
    cam_.resize(0, 0);
    heads_.clear(), gradient_.resize(0, 0), times_input_.resize(0, 0);
  }

  /// One layer, of self attention: in and saved as its forward call had them, out its heads' output, (B n) x (H dv).
  /// pass runs its backward pass, limpid::backward or that of a layer round the operator, with the call it is given or
  /// one that asks the same. Throws ShapeError where the saved state is empty, or of another batch or number of tokens
  /// than what was started with, and where out has another shape.
  template <class Op>
  void layer(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved,
             const std::type_identity_t<View<S>>& out, Pass pass, const LayerCall& call = {}) {
    const detail::SavedTurn turn = take_turn(true);
    const detail::Name name = detail::operator_name(op);
    detail::check_saved(name, saved.filled, saved.dims, detail::shapes_of(in));
    const Dims& d = saved.dims;
    if (d.n != d.m)
      detail::raise(name + (": explained is a map " + detail::shape_text(d.n, d.m) + ", wanted self attention"));
    check(name, d.batch, d.n);
    const Index batch = start_.rows(), n = start_.cols();
    if (out.rows != batch * n || out.cols % d.heads != 0)
      detail::raise(name +
                    (": the heads' output to explain is " + detail::shape_text(out.rows, out.cols) + ", wanted " +
                     detail::text_of(batch * n) + " rows and columns of " + detail::text_of(d.heads) + " heads"));
    const bool cam = options_.gradcam && layers_ == 0;
    if (cam) check_gradcam(name);
    const std::size_t parts = relevance_.size();
    const Index each = parts > 1 ? 4 : 1;  // rows of an item: of more parts than one all are made, in one go
    const auto row_of = [&](Index item, std::size_t part) {
      return each * item + (each == 1 ? 0 : static_cast<Index>(options_.relevance[part]));
    };
    const S none = S(std::numeric_limits<double>::quiet_NaN());  // a pass that does not hand on what it is told shows
    BackwardCall<S> ask;
    ask.workspace = call.workspace, ask.executor = call.executor;
    if (parts > 0) {
      weights_.setZero(each * batch, n), emitted_.setConstant(each * batch, n, none);
      for (std::size_t p = 0; p < parts; ++p)
        for (Index b = 0; b < batch; ++b) weights_.row(row_of(b, p)) = start_.row(b) + relevance_[p].row(b);
      ask.relevance_weights = weights_, ask.relevance = emitted_, ask.part = options_.relevance.front();
    }
    if (options_.heads || cam) {
      heads_gradient_.setConstant(out.rows, out.cols, none);
      ask.heads_gradient = heads_gradient_;
    }
    pass(ask);
    Mat<S> heads, seen;
    if (options_.heads) heads = head_importance(out, heads_gradient_, d.heads, batch);
    if (cam) seen = gradcam_of(op, in, saved, call);
    Mat<S> rolled(rollout_.rows(), rollout_.cols());
    for (Index b = 0; b < rolled.rows(); ++b) {
      down_.start(View<S>(rollout_).block(b, 0, 1, n));
      down_.layer(op, in, saved, {.item = b, .workspace = call.workspace, .executor = call.executor});
      rolled.row(b) = down_.rows();
    }
    if (options_.heads) heads_.push_back(std::move(heads));  // the last that may throw
    rollout_.swap(rolled);
    for (std::size_t p = 0; p < parts; ++p)
      for (Index b = 0; b < batch; ++b) relevance_[p].row(b) += emitted_.row(row_of(b, p));
    if (cam) cam_.swap(seen);
    ++layers_;
  }
  /// The same of what a layer of self attention keeps.
  template <class Op, class Kept>
  void layer(const Op& op, Kept& kept, Pass pass, const LayerCall& call = {}) {
    if constexpr (requires { kept.q; })
      layer(op, qkv(kept.q, kept.k, kept.v), kept.attention, kept.o, pass, call);
    else
      layer(op, {.y = kept.y}, kept.attention, kept.o, pass, call);
  }

  /// What the tokens were made from, x, and its gradient: (B m) x D, of tokens first, first + 1 ... of each item; those
  /// of others are 0. A model says it by itself. Does nothing where `input` is not asked for. Throws ShapeError where
  /// shapes do not fit.
  void input(View<S> x, View<S> dx, Index first = 0) {
    const detail::SavedTurn turn = take_turn(true);
    if (!options_.input) return;
    const Index batch = start_.rows(), m = batch == 0 ? 0 : x.rows / batch;
    if (batch == 0 || x.rows % batch != 0 || first < 0 || first > start_.cols() - m || dx.rows != x.rows ||
        dx.cols != x.cols)
      detail::raise("explanation: the input is " + detail::shape_text(x.rows, x.cols) + " from token " +
                    detail::text_of(first) + " on and its gradient " + detail::shape_text(dx.rows, dx.cols) +
                    ", wanted one shape of " + detail::text_of(batch) + " items and at most " +
                    detail::text_of(start_.cols()) + " tokens each");
    gradient_ = dx.map();
    times_input_.setZero(batch, start_.cols());
    for (Index i = 0; i < x.rows; ++i) {
      detail::Accumulator<S> sum(0);
      for (Index c = 0; c < x.cols; ++c) sum += detail::Accumulator<S>(x(i, c)) * detail::Accumulator<S>(dx(i, c));
      times_input_(i / m, first + i % m) = S(sum);
    }
  }

  /// What layer() refuses of so many items and tokens, raised in the name of what asks it first.
  void check(detail::Name name, Index batch, Index n) const {
    if (start_.rows() != batch || start_.cols() != n)
      detail::raise(name + (": an explanation started with rows " + detail::shape_text(start_.rows(), start_.cols()) +
                            ", wanted " + detail::shape_text(batch, n)));
  }

  const ExplanationOptions& options() const { return options_; }
  /// Layers so far.
  Index layers() const { return layers_; }
  /// What it was started with, w.
  const Mat<S>& started() const { return start_; }
  /// w (R - I), batch x n: of the first part that was asked for, or of this one. With started() it is a row of R.
  const Mat<S>& relevance() const {
    if (options_.relevance.empty()) refuse("relevance");
    return relevance(options_.relevance.front());
  }
  const Mat<S>& relevance(Part part) const {
    const detail::SavedTurn turn = take_turn(false);
    for (std::size_t p = 0; p < relevance_.size(); ++p)
      if (options_.relevance[p] == part) return relevance_[p];
    refuse("this part of relevance");
  }
  /// w C, batch x n.
  Mat<S> rollout() const {
    const detail::SavedTurn turn = take_turn(false);
    if (rollout_.size() == 0) refuse("rollout");
    return rollout_;
  }
  /// batch x H of a layer, the stack's first one being 0; once all of them have been gone through.
  const Mat<S>& heads(Index layer) const {
    const detail::SavedTurn turn = take_turn(false);
    if (!options_.heads) refuse("the importance of heads");
    if (layer < 0 || layer >= layers_)
      detail::raise("explanation: layer is " + detail::text_of(layer) + ", wanted it in [0, " +
                    detail::text_of(layers_) + ")");
    return heads_[static_cast<std::size_t>(layers_ - 1 - layer)];
  }
  /// batch x (n - those left out), of the last layer.
  const Mat<S>& gradcam() const {
    const detail::SavedTurn turn = take_turn(false);
    if (cam_.size() == 0) refuse("Grad-CAM");
    return cam_;
  }
  /// Of what a model reads, as its input() has it: of a Vit's patches, (B m) x (c p p), of a text's embeddings.
  const Mat<S>& gradient() const {
    const detail::SavedTurn turn = take_turn(false);
    if (gradient_.size() == 0) refuse("the gradient of the input");
    return gradient_;
  }
  /// batch x n.
  const Mat<S>& gradient_times_input() const {
    const detail::SavedTurn turn = take_turn(false);
    if (times_input_.size() == 0) refuse("the gradient of the input");
    return times_input_;
  }

 private:
  detail::SavedTurn take_turn(bool writes) const { return {&turn_, writes, "explanation", ""}; }
  void check_gradcam(detail::Name name) const {
    if (*options_.gradcam < 0 || *options_.gradcam >= start_.cols())
      detail::raise(name + (": Grad-CAM without the first " + detail::text_of(*options_.gradcam) + " of " +
                            detail::text_of(start_.cols()) + " tokens, wanted one left at least"));
  }
  template <class Op>
  Mat<S> gradcam_of(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved,
                    const LayerCall& call) const {
    using W = detail::Accumulator<S>;
    constexpr Index most = detail::rows_at_a_time;
    const Index n = start_.cols(), skip = *options_.gradcam, heads = saved.dims.heads;
    Mat<S> out(start_.rows(), n - skip), map(std::min(most, n), n), gradient = map;
    for (Index b = 0; b < start_.rows(); ++b) {
      Mat<W> cam = Mat<W>::Zero(1, n - skip), seen = cam;
      for (Index h = 0; h < heads; ++h) {
        const HeadCall head{.head = h, .item = b, .workspace = call.workspace, .executor = call.executor};
        W weight(0);
        seen.setZero();
        for (Index first = 0, count = 1; first < n; first += count) {
          for (count = 0; count < most && first + count < n && start_(b, first + count) != S(0);) ++count;
          if (count > 0) {
            map_block(op, in, saved, first, 0, MutView<S>(map).block(0, 0, count, n), head);
            gradient_block(op, in, saved, heads_gradient_, first, 0, MutView<S>(gradient).block(0, 0, count, n), head);
          }
          for (Index i = 0; i < count; ++i)
            for (Index j = skip; j < n; ++j) {
              const W w(start_(b, first + i));
              seen(0, j - skip) += w * W(map(i, j)), weight += w * W(gradient(i, j));
            }
          count = std::max(count, Index(1));
        }
        cam += weight / W(static_cast<double>(n - skip)) * seen;
      }
      for (Index j = 0; j < n - skip; ++j)  // NaN shows
        out(b, j) = cam(0, j) < W(0) ? S(0) : S(cam(0, j) / W(static_cast<double>(heads)));
    }
    return out;
  }
  [[noreturn]] static void refuse(const char* what) {
    detail::raise(std::string("explanation: ") + what +
                  " is not there, wanted it asked for in the options, and a backward pass after start()");
  }

  ExplanationOptions options_;
  Rollout<S> down_;  // a row through a layer
  Mat<S> start_, heads_gradient_, gradient_, times_input_, cam_, rollout_;
  Mat<S> weights_, emitted_;
  std::vector<Mat<S>> relevance_;  // a part each
  std::vector<Mat<S>> heads_;      // a layer each, the last one first
  detail::Count layers_;
  mutable detail::Turn turn_;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
