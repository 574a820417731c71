// limpid: the vision transformer of the examples over the operators of LIMPID_VIT_UNIT, a list of vit.hpp's.
// SPDX-License-Identifier: MIT
#include <limpid/explain/correction.hpp>
#include <limpid/layer/aot.hpp>
#include <limpid/layer/boosting_block.hpp>
#include <limpid/layer/crate.hpp>
#include <limpid/layer/differential.hpp>
#include <limpid/layer/layer_norm.hpp>
#include <limpid/layer/pid_stack.hpp>
#include <limpid/layer/transformer_block.hpp>
#include <limpid/op/bilateral.hpp>
#include <limpid/op/boosting.hpp>
#include <limpid/op/differential.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/sigmoid.hpp>
#include <limpid/op/softmax.hpp>
#include <limpid/op/twicing.hpp>
#include <limpid/score/biases.hpp>

#include "vit.hpp"

namespace training {
namespace {

constexpr double eps = 1e-6;  ///< of all norms

/// The parameters of a part of the model, added under its prefix.
struct Adding {
  Parameters& all;
  const VitShape& shape;
  std::string prefix;

  void add(const std::string& name, Index rows, Index cols, Start start) const {
    all.add(prefix + name, rows, cols, start);
  }
  void linear(const std::string& w, const std::string& b, Index in, Index out) const {
    add(w, in, out, Start::weight), add(b, 1, out, Start::zero);
  }
  void norm(const std::string& gamma, const std::string& beta) const {
    add(gamma, 1, shape.width, Start::one), add(beta, 1, shape.width, Start::zero);
  }
  void attention() const {
    for (const char* of : {"q", "k", "v", "o"})
      linear(std::string("w") + of, std::string("b") + of, shape.width, shape.width);
  }
  void mssa(const std::string& gamma, const std::string& beta) const {
    norm(gamma, beta);
    add("u", shape.width, shape.width, Start::weight);
    linear("wo", "bo", shape.width, shape.width);
  }
  void mlp() const {
    norm("gamma2", "beta2");
    linear("w1", "b1", shape.width, shape.mlp);
    linear("w2", "b2", shape.mlp, shape.width);
  }
};

/// What a layer is told of a call.
struct Step {
  Index images;
  bool keep;
  limpid::Workspace* workspace;
};

/// What a layer is asked for beside its gradients: where its maps go (null: nowhere), and its output projection.
template <class S>
struct Watch {
  LayerMaps<S>* maps = nullptr;
  View<S> wo{};
};
/// Those of float alone: the models in double are there to have their gradients checked.
template <class S>
constexpr bool watches = std::is_same_v<S, float>;

/// Effective maps and the gradients with respect to them, from dz, that of what the output projection gave.
template <class Op, class S>
void put_maps(const Op& op, const std::type_identity_t<limpid::Inputs<Op, S>>& in, limpid::Saved<Op, S>& saved,
              const std::type_identity_t<View<S>>& dz, const Watch<S>& watch) {
  const limpid::Dims d = saved.dims;
  const Index n = d.n, count = d.batch * d.heads;
  Mat<S>&a = watch.maps->a, &g = watch.maps->g, dout(dz.rows, watch.wo.rows);
  limpid::linear(dz, limpid::out_in(watch.wo), View<S>(), dout);
  a.resize(count * n, n), g.resize(count * n, n);
  for (Index t = 0; t < count; ++t) {
    const limpid::HeadCall call{.head = t % d.heads, .item = t / d.heads};
    limpid::map_block(op, in, saved, 0, 0, a.middleRows(t * n, n), call);
    limpid::gradient_block(op, in, saved, dout, 0, 0, g.middleRows(t * n, n), call);
  }
}

// The maps of a block of the library, from dout, the gradient of what it gave.

template <class Op, class Args, class S>
void watch_block(const limpid::TransformerBlock<Op>& block, const Args& in,
                 limpid::TransformerBlockSaved<Op, limpid::NoCross, S>& saved, const Mat<S>& dout,
                 const Watch<S>& watch, const limpid::LayerCall& call) {
  Mat<S> h(dout.rows(), dout.cols()), dh = h, dz = h;  // back through the MLP
  limpid::layer_norm(saved.attended, in.gamma2, in.beta2, h, {.eps = eps, .workspace = call.workspace});
  limpid::Mlp().template backward<S>({.x = h, .w1 = in.w1, .b1 = in.b1, .w2 = in.w2, .b2 = in.b2}, saved.mlp, dout,
                                     {.x = dh}, call);
  limpid::layer_norm_backward(saved.attended, in.gamma2, saved.round_mlp.norm, dh, {.x = dz}, call);
  dz += dout;
  auto& kept = saved.attention;
  put_maps(block.op, limpid::qkv(kept.q, kept.k, kept.v), kept.attention, dz, watch);
}
template <class Op, class Args, class S>
void watch_block(const limpid::Aot<Op>& block, const Args&, limpid::AotSaved<Op, S>& saved, const Mat<S>& dout,
                 const Watch<S>& watch, const limpid::LayerCall&) {
  put_maps(block.op, {.y = saved.attention.y}, saved.attention.attention, dout, watch);
}
template <class Op, class Args, class S>
void watch_block(const limpid::Crate<Op>& block, const Args& in, limpid::CrateSaved<Op, S>& saved, const Mat<S>& dout,
                 const Watch<S>& watch, const limpid::LayerCall& call) {
  Mat<S> dz(dout.rows(), dout.cols());  // back through the ISTA step
  block.ista.template backward<S>({.x = saved.h, .dictionary = in.dictionary, .gamma = in.gamma2, .beta = in.beta2},
                                  saved.sparsify, dout, {.x = dz}, call);
  put_maps(block.op, {.y = saved.compress.attention.y}, saved.compress.attention.attention, dz, watch);
}

// What makes the block of a layer, 0 and on, of each name: a transformer block over an operator, of AoT or of CRATE.
struct OfShape {
  const VitShape& shape;
  explicit OfShape(const VitShape& of) : shape(of) {}
  template <class Op>
  auto around(const Op& op) const {
    return limpid::transformer_block(op, {.heads = shape.heads, .eps = eps});
  }
};
struct softmax : OfShape {
  using OfShape::OfShape;
  auto operator()(Index) const { return around(limpid::softmax()); }
};
struct nlm : OfShape {
  using OfShape::OfShape;
  auto operator()(Index) const { return around(limpid::nlm()); }
};
struct twicing : OfShape {
  using OfShape::OfShape;
  auto operator()(Index) const { return around(limpid::twicing()); }
};
struct sigmoid : OfShape {
  using OfShape::OfShape;
  auto operator()(Index) const { return around(limpid::sigmoid()); }
};
/// L2 boosting of two steps, I - (I - A)^3; twicing is that of one.
struct boosting : OfShape {
  using OfShape::OfShape;
  auto operator()(Index) const {
    return around(limpid::boosting({.scheme = limpid::BoostingScheme::l2boost, .steps = 2}));
  }
};
/// lambda as it begins in that layer, not learned.
struct differential : OfShape {
  using OfShape::OfShape;
  auto operator()(Index layer) const {
    return around(limpid::differential({.lambda_init = limpid::lambda_init_of_layer(layer + 1)}));
  }
};
/// Content and place, each by its distance: patches at p_i and p_j of the grid weigh exp(-|p_i - p_j|^2 / 2^2) besides,
/// the class token and what it sees 1.
struct bilateral : OfShape {
  Mat<float> place;
  explicit bilateral(const VitShape& s) : OfShape(s), place(Mat<float>::Zero(s.tokens(), s.tokens())) {
    const Index n = s.tokens(), across = s.cols / s.patch;
    for (Index i = 1; i < n; ++i)
      for (Index j = 1; j < n; ++j) {
        const Index down = (i - 1) / across - (j - 1) / across, right = (i - 1) % across - (j - 1) % across;
        place(i, j) = -static_cast<float>(down * down + right * right) / 4;
      }
  }
  auto operator()(Index) const { return around(limpid::nlm(limpid::bias(place))); }
};
/// A norm, MSSA and a skip; no MLP.
struct aot : OfShape {
  using OfShape::OfShape;
  auto operator()(Index) const { return limpid::aot(limpid::mssa(), {.heads = shape.heads, .eps = eps}); }
};
/// MSSA and an ISTA step.
struct crate : OfShape {
  using OfShape::OfShape;
  auto operator()(Index) const { return limpid::crate(limpid::mssa(), {.heads = shape.heads, .eps = eps}); }
};

template <class Op>
void add_block(const Adding& to, const limpid::TransformerBlock<Op>&) {
  to.norm("gamma1", "beta1");
  to.attention();
  to.mlp();
}
template <class Op>
void add_block(const Adding& to, const limpid::Aot<Op>&) {
  to.mssa("gamma", "beta");
}
template <class Op>
void add_block(const Adding& to, const limpid::Crate<Op>&) {
  to.mssa("gamma1", "beta1");
  to.norm("gamma2", "beta2");
  to.add("dictionary", to.shape.width, to.shape.width, Start::weight);
}

/// Blocks of the library, each by itself.
template <class Make>
class Blocks {
 public:
  using Block = std::remove_const_t<decltype(std::declval<Make>()(0))>;
  template <class S>
  using Args = typename Block::template Args<S>;
  template <class S>
  using Grads = typename Block::template Grads<S>;
  template <class S>
  struct Kept {
    std::vector<typename Block::template Saved<S>> layers;
    Watch<S> watch;
    Kept(const VitShape& shape, Index) : layers(static_cast<std::size_t>(shape.layers)) {}
  };

  explicit Blocks(const VitShape& shape) : make_(shape) {
    for (Index l = 0; l < shape.layers; ++l) blocks_.push_back(make_(l));
  }
  void add(const Adding& to) const { add_block(to, blocks_.front()); }
  template <class S>
  void forward(std::size_t l, const Args<S>& in, Mat<S>& out, Kept<S>& kept, const Step& step) const {
    blocks_[l].forward(
        in, out, {.batch = step.images, .saved = step.keep ? &kept.layers[l] : nullptr, .workspace = step.workspace});
  }
  template <class S>
  void backward(std::size_t l, const Args<S>& in, Kept<S>& kept, const Mat<S>& dout, const Grads<S>& grads,
                const Step& step) const {
    const limpid::LayerCall call{.workspace = step.workspace};
    if constexpr (watches<S>)
      if (kept.watch.maps) watch_block(blocks_[l], in, kept.layers[l], dout, kept.watch, call);
    blocks_[l].template backward<S>(in, kept.layers[l], dout, grads, call);
  }

 private:
  Make make_;  // which may hold what the operators look at
  std::vector<Block> blocks_;
};

/// What a layer put together here reads, and where its gradients go: that of a transformer block, of a gate, and of a
/// boosting residual.
template <class T>
struct SublayersArgs : limpid::TransformerBlockArgs<T> {
  T gate_w{}, gate_b{}, tau{}, rho{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    limpid::TransformerBlockArgs<T>::visit(f, a...);
    f("gate_w", a.gate_w...), f("gate_b", a.gate_b...);
    f("tau", a.tau...), f("rho", a.rho...);
  }
};

// Attention that is no operator of a transformer block, each as Sublayers takes it.

/// One layer of the library, own.layer(), of whose arguments own.fields() picks those it reads; layers share nothing.
template <class Own>
struct OneLayer {
  const VitShape& shape;
  template <class S>
  struct Shared {
    Shared(const VitShape&, Index) {}
  };

  template <class S, class Args, class Saved>
  void forward(std::size_t, const Args& in, View<S> h, MutView<S> z, Saved& saved, Shared<S>&, const Step& step) const {
    own().layer().forward(Own::template fields<View<S>>(in, h), z,
                          {.batch = step.images, .saved = &saved, .workspace = step.workspace});
  }
  template <class S, class Args, class Saved, class Grads>
  void backward(const Args& in, View<S> h, View<S> dz, MutView<S> dh, const Grads& grads, Saved& saved, Shared<S>&,
                const limpid::LayerCall& call) const {
    own().layer().template backward<S>(Own::template fields<View<S>>(in, h), saved, dz,
                                       Own::template fields<MutView<S>>(grads, dh), call);
  }

 private:
  const Own& own() const { return static_cast<const Own&>(*this); }
};

/// Gates of every token and head from 0, so that the two maps begin with one half each; projections without biases.
struct gated : OneLayer<gated> {
  [[maybe_unused]] static constexpr bool boosts = false;
  template <class S>
  using Saved = limpid::TwoMapLayerSaved<decltype(limpid::differential_gated()), S>;

  void add(const Adding& to) const {
    for (const char* w : {"wq", "wk", "wv", "wo"}) to.add(w, shape.width, shape.width, Start::weight);
    to.add("gate_w", shape.width, shape.heads, Start::zero);
    to.add("gate_b", 1, shape.heads, Start::zero);
  }
  limpid::TwoMapLayer<decltype(limpid::differential_gated())> layer() const {
    return limpid::two_map_layer(limpid::differential_gated(), shape.heads);
  }
  template <class S>
  void maps(std::size_t, Saved<S>& saved, View<S> dz, const Watch<S>& watch) const {
    put_maps(limpid::differential_gated(), {.q = saved.q, .k = saved.k, .v = saved.v, .z = saved.z}, saved.attention,
             dz, watch);
  }
  template <class T, class From>
  static limpid::TwoMapLayerArgs<T> fields(const From& from, T x) {
    return {.x = x,
            .wq = from.wq,
            .wk = from.wk,
            .wv = from.wv,
            .wo = from.wo,
            .gate_w = from.gate_w,
            .gate_b = from.gate_b};
  }
};

/// The gains of the paper, not learned, and the errors of the layers before.
struct pid {
  [[maybe_unused]] static constexpr bool boosts = false;
  const VitShape& shape;
  template <class S>
  struct Saved {
    Mat<S> q, k, v, o;
  };
  template <class S>
  struct Shared {
    limpid::PidStack<decltype(limpid::pid()), S> stack;
    Mat<S> dq, dk, dv, d_o;
    Shared(const VitShape& s, Index images) : stack(limpid::pid(), {.batch = images, .heads = s.heads}) {}
  };

  void add(const Adding& to) const { to.attention(); }
  template <class S, class Args>
  void forward(std::size_t l, const Args& in, View<S> h, MutView<S> z, Saved<S>& saved, Shared<S>& shared,
               const Step& step) const {
    const limpid::LayerCall call{.workspace = step.workspace};
    for (Mat<S>* m : {&saved.q, &saved.k, &saved.v, &saved.o}) m->resize(h.rows, h.cols);
    limpid::linear(h, in.wq, in.bq, saved.q, call);
    limpid::linear(h, in.wk, in.bk, saved.k, call);
    limpid::linear(h, in.wv, in.bv, saved.v, call);
    if (l == 0) shared.stack.restart();
    shared.stack.forward({.q = saved.q, .k = saved.k, .v = saved.v}, saved.o, {.workspace = step.workspace});
    limpid::linear(saved.o, in.wo, in.bo, z, call);
  }
  template <class S, class Args, class Grads>
  void backward(const Args& in, View<S> h, View<S> dz, MutView<S> dh, const Grads& grads, Saved<S>& saved,
                Shared<S>& shared, const limpid::LayerCall& call) const {
    for (Mat<S>* m : {&shared.dq, &shared.dk, &shared.dv, &shared.d_o}) m->resize(h.rows, h.cols);
    limpid::linear_backward(saved.o, in.wo, dz, {shared.d_o, grads.wo, grads.bo}, call);
    shared.stack.backward({.q = saved.q, .k = saved.k, .v = saved.v}, shared.d_o,
                          {.q = shared.dq, .k = shared.dk, .v = shared.dv}, call);
    limpid::linear_backward(h, in.wq, shared.dq, {dh, grads.wq, grads.bq}, call);
    limpid::linear_backward(h, in.wk, shared.dk, {limpid::add(dh), grads.wk, grads.bk}, call);
    limpid::linear_backward(h, in.wv, shared.dv, {limpid::add(dh), grads.wv, grads.bv}, call);
  }
  /// The stack keeps what it saved to itself: of the map of q and k, and what the controller adds on its diagonal.
  template <class S>
  void maps(std::size_t l, Saved<S>& saved, View<S> dz, const Watch<S>& watch) const {
    limpid::Saved<decltype(limpid::softmax()), S> plain;
    Mat<S> o(dz.rows, dz.cols);
    const auto in = limpid::qkv(saved.q, saved.k, saved.v);
    limpid::forward(limpid::softmax(), in, o,
                    {.batch = dz.rows / shape.tokens(), .heads = shape.heads, .saved = &plain});
    put_maps(limpid::softmax(), in, plain, dz, watch);
    const limpid::PidOptions gains;
    const S own = l == 0 ? S(0) : S(gains.lambda_p + gains.lambda_i + gains.lambda_d);
    Mat<S>& a = watch.maps->a;
    for (Index i = 0; i < a.rows(); ++i) a(i, i % a.cols()) -= own;
  }
};

/// Softmax attention in a boosting residual, whose estimate goes from the attention of a layer to that of the next; tau
/// and rho of each layer learned from 1 and 0, the ordinary residual. MLPs have that one.
struct boosting_block : OneLayer<boosting_block> {
  [[maybe_unused]] static constexpr bool boosts = true;
  template <class S>
  using Saved = limpid::MultiHeadSaved<decltype(limpid::softmax()), S>;

  void add(const Adding& to) const {
    to.attention();
    to.add("tau", 1, 1, Start::one);
    to.add("rho", 1, 1, Start::zero);
  }
  limpid::MultiHead<decltype(limpid::softmax())> layer() const {
    return limpid::multi_head(limpid::softmax(), shape.heads);
  }
  template <class S>
  void maps(std::size_t, Saved<S>& saved, View<S> dz, const Watch<S>& watch) const {
    put_maps(limpid::softmax(), limpid::qkv(saved.q, saved.k, saved.v), saved.attention, dz, watch);
  }
  template <class T, class From>
  static limpid::MultiHeadArgs<T> fields(const From& from, T x) {
    return {.x = x,
            .wq = from.wq,
            .bq = from.bq,
            .wk = from.wk,
            .bk = from.bk,
            .wv = from.wv,
            .bv = from.bv,
            .wo = from.wo,
            .bo = from.bo};
  }
};

/// f between a norm and a residual: x + f(N(x)), which is a boosting block without an estimate, or one with it.
template <class S>
struct Sublayer {
  Mat<S> h, dh;  ///< N(x), and its gradient
  limpid::LayerNormSaved<S> norm;
  limpid::BoostingBlockSaved<S> residual;

  template <class F>
  void forward(const limpid::BoostingBlockArgs<View<S>>& in, View<S> gamma, View<S> beta, MutView<S> out,
               MutView<S> u_next, limpid::Workspace* workspace, F&& f) {
    h.resize(in.x.rows, in.x.cols);
    const auto between = [&](View<S> s, MutView<S> z) {
      limpid::layer_norm(s, gamma, beta, h, {.eps = eps, .saved = &norm, .workspace = workspace});
      f(View<S>(h), z);
    };
    limpid::boosting_block(in, between, out, u_next, &residual, {.workspace = workspace});
  }
  template <class F>
  void backward(const limpid::BoostingBlockArgs<View<S>>& in, View<S> gamma, View<S> dout, View<S> du_next,
                const limpid::BoostingBlockArgs<MutView<S>>& grads, MutView<S> dgamma, MutView<S> dbeta,
                const limpid::LayerCall& call, F&& f) {
    dh.resize(in.x.rows, in.x.cols);
    const auto between = [&](View<S> s, View<S> dz, MutView<S> ds) {
      f(View<S>(h), dz, MutView<S>(dh));
      limpid::layer_norm_backward(s, gamma, norm, dh, {ds, dgamma, dbeta}, call);
    };
    limpid::boosting_block_backward<S>(in, residual, between, dout, du_next, grads, call);
  }
};

/// Layers of Attention and an MLP, each between a norm and a residual, put together from what the library has for them.
template <class Attention>
class Sublayers {
 public:
  template <class S>
  using Args = SublayersArgs<View<S>>;
  template <class S>
  using Grads = SublayersArgs<MutView<S>>;
  template <class S>
  struct Layer {
    Sublayer<S> attention, mlp;
    typename Attention::template Saved<S> attention_saved;
    limpid::MlpSaved<S> mlp_saved;
    Mat<S> attended, estimate;  ///< tokens between the two; the estimate for the next layer
  };
  template <class S>
  struct Kept {
    std::vector<Layer<S>> layers;
    typename Attention::template Shared<S> shared;
    Watch<S> watch;
    Mat<S> dattended, destimate[2];
    Kept(const VitShape& shape, Index images) : layers(static_cast<std::size_t>(shape.layers)), shared(shape, images) {}
  };

  explicit Sublayers(const VitShape& shape) : attention_{shape} {}
  void add(const Adding& to) const {
    to.norm("gamma1", "beta1");
    attention_.add(to);
    to.mlp();
  }
  template <class S>
  void forward(std::size_t l, const Args<S>& in, Mat<S>& out, Kept<S>& kept, const Step& step) const {
    Layer<S>& layer = kept.layers[l];
    const Index rows = in.x.rows, cols = in.x.cols;
    layer.attended.resize(rows, cols);
    MutView<S> next;
    if (Attention::boosts && l + 1 < kept.layers.size()) {
      layer.estimate.resize(rows, cols);
      next = layer.estimate;
    }
    layer.attention.forward(residual<S>(l, in, kept), in.gamma1, in.beta1, layer.attended, next, step.workspace,
                            [&](View<S> h, MutView<S> z) {
                              attention_.template forward<S>(l, in, h, z, layer.attention_saved, kept.shared, step);
                            });
    layer.mlp.forward({.x = layer.attended}, in.gamma2, in.beta2, out, {}, step.workspace,
                      [&](View<S> h, MutView<S> z) {
                        limpid::Mlp().forward({.x = h, .w1 = in.w1, .b1 = in.b1, .w2 = in.w2, .b2 = in.b2}, z,
                                              {.saved = &layer.mlp_saved, .workspace = step.workspace});
                      });
  }
  template <class S>
  void backward(std::size_t l, const Args<S>& in, Kept<S>& kept, const Mat<S>& dout, const Grads<S>& grads,
                const Step& step) const {
    Layer<S>& layer = kept.layers[l];
    const limpid::LayerCall call{.workspace = step.workspace};
    kept.dattended.resize(in.x.rows, in.x.cols);
    layer.mlp.backward({.x = layer.attended}, in.gamma2, dout, {}, {.x = kept.dattended}, grads.gamma2, grads.beta2,
                       call, [&](View<S> h, View<S> dz, MutView<S> dh) {
                         limpid::Mlp().template backward<S>(
                             {.x = h, .w1 = in.w1, .b1 = in.b1, .w2 = in.w2, .b2 = in.b2}, layer.mlp_saved, dz,
                             {.x = dh, .w1 = grads.w1, .b1 = grads.b1, .w2 = grads.w2, .b2 = grads.b2}, call);
                       });
    View<S> dnext;
    limpid::BoostingBlockArgs<MutView<S>> around{.x = grads.x, .u = {}, .tau = grads.tau, .rho = grads.rho};
    if (Attention::boosts && l + 1 < kept.layers.size()) dnext = kept.destimate[(l + 1) % 2];
    if (Attention::boosts && l > 0) {
      kept.destimate[l % 2].resize(in.x.rows, in.x.cols);
      around.u = kept.destimate[l % 2];
    }
    layer.attention.backward(residual<S>(l, in, kept), in.gamma1, kept.dattended, dnext, around, grads.gamma1,
                             grads.beta1, call, [&](View<S> h, View<S> dz, MutView<S> dh) {
                               if constexpr (watches<S>)
                                 if (kept.watch.maps) attention_.maps(l, layer.attention_saved, dz, kept.watch);
                               attention_.template backward<S>(in, h, dz, dh, grads, layer.attention_saved, kept.shared,
                                                               call);
                             });
  }

 private:
  /// What the attention's residual reads.
  template <class S>
  static limpid::BoostingBlockArgs<View<S>> residual(std::size_t l, const Args<S>& in, const Kept<S>& kept) {
    limpid::BoostingBlockArgs<View<S>> args{.x = in.x, .u = {}, .tau = in.tau, .rho = in.rho};
    if (Attention::boosts && l > 0) args.u = kept.layers[l - 1].estimate;
    return args;
  }

  Attention attention_;
};

/// Patches by a linear map, a class token before them, learned positions, `layers` layers, and of the class token a
/// layer norm and a linear map to the logits.
template <class Layers, class S>
class Vit : public Model<S> {
  using Model<S>::shape_, Model<S>::parameters_;

 public:
  explicit Vit(const VitShape& shape) : Model<S>(shape), layers_(shape_) {
    const Adding whole{parameters_, shape_, ""};
    whole.linear("patch.w", "patch.b", shape.pixels(), shape.width);
    whole.add("class", 1, shape.width, Start::token);
    whole.add("positions", shape.tokens(), shape.width, Start::token);
    for (std::size_t l = 0; l < count(); ++l) layers_.add({parameters_, shape_, prefix(l)});
    whole.norm("norm.gamma", "norm.beta");
    whole.linear("head.w", "head.b", shape.width, shape.classes);
  }

  std::unique_ptr<Room<S>> room(Index images) const override { return std::make_unique<Own>(shape_, images); }

  void forward(const Mat<S>& w, Room<S>& room_, bool keep) const override {
    Own& room = static_cast<Own&>(room_);
    const Index n = shape_.tokens(), images = room.logits.rows();
    const auto p = [&](const char* name) { return parameters_.view(w, name); };
    limpid::linear(room.patches, p("patch.w"), p("patch.b"), room.embedded, {.workspace = &room.workspace});
    const auto positions = matrix(p("positions"));
    for (Index i = 0; i < images; ++i) {
      auto tokens = room.x[0].middleRows(i * n, n);
      tokens.row(0) = matrix(p("class")) + positions.row(0);
      tokens.bottomRows(n - 1) = room.embedded.middleRows(i * (n - 1), n - 1) + positions.bottomRows(n - 1);
    }
    for (std::size_t l = 0; l < count(); ++l)
      layers_.template forward<S>(l, layer(w, l, room), room.x[l + 1], room.kept, {images, keep, &room.workspace});
    for (Index i = 0; i < images; ++i) room.of_class.row(i) = room.x.back().row(i * n);
    limpid::layer_norm(room.of_class, p("norm.gamma"), p("norm.beta"), room.normed,
                       {.eps = eps, .saved = &room.norm, .workspace = &room.workspace});
    limpid::linear(room.normed, p("head.w"), p("head.b"), room.logits, {.workspace = &room.workspace});
  }

  void backward(const Mat<S>& w, Room<S>& room_, Mat<S>& gradient, MutView<S> dpatches) const override {
    Own& room = static_cast<Own&>(room_);
    const Index n = shape_.tokens(), images = room.logits.rows();
    const auto p = [&](const char* name) { return parameters_.view(w, name); };
    const auto d = [&](const char* name) { return parameters_.view(gradient, name); };
    const limpid::LayerCall call{.workspace = &room.workspace};
    limpid::linear_backward(room.normed, p("head.w"), room.dlogits, {room.dnormed, d("head.w"), d("head.b")}, call);
    Mat<S>& dclass = room.normed;  // which nothing reads any more
    limpid::layer_norm_backward(room.of_class, p("norm.gamma"), room.norm, room.dnormed,
                                {dclass, d("norm.gamma"), d("norm.beta")}, call);
    room.dx.setZero();
    for (Index i = 0; i < images; ++i) room.dx.row(i * n) = dclass.row(i);
    for (std::size_t l = count(); l-- > 0;) {
      auto grads = fields<typename Layers::template Grads<S>>(gradient, l);
      grads.x = room.dbefore;
      if (room.maps) {
        room.maps->resize(count());
        room.kept.watch = {&(*room.maps)[l], parameters_.view(w, prefix(l) + "wo")};
      } else {
        room.kept.watch = {};
      }
      layers_.template backward<S>(l, layer(w, l, room), room.kept, room.dx, grads, {images, true, &room.workspace});
      room.dx.swap(room.dbefore);
    }
    auto dpositions = matrix(d("positions"));
    dpositions.setZero();
    for (Index i = 0; i < images; ++i) {
      const auto tokens = room.dx.middleRows(i * n, n);
      dpositions += tokens;
      room.embedded.middleRows(i * (n - 1), n - 1) = tokens.bottomRows(n - 1);  // its gradient, in its place
    }
    matrix(d("class")) = dpositions.row(0);
    limpid::linear_backward(room.patches, p("patch.w"), room.embedded, {dpatches, d("patch.w"), d("patch.b")}, call);
  }

 private:
  struct Own : Room<S> {
    Mat<S> embedded, of_class, normed, dnormed, dx, dbefore;
    std::vector<Mat<S>> x;
    typename Layers::template Kept<S> kept;
    limpid::LayerNormSaved<S> norm;
    limpid::Workspace workspace;

    Own(const VitShape& s, Index images)
        : Room<S>(s, images),
          embedded(images * s.patches(), s.width),
          of_class(images, s.width),
          normed(images, s.width),
          dnormed(images, s.width),
          dx(images * s.tokens(), s.width),
          dbefore(images * s.tokens(), s.width),
          x(static_cast<std::size_t>(s.layers) + 1, Mat<S>(images * s.tokens(), s.width)),
          kept(s, images) {}
  };

  template <class V>
  static auto matrix(const V& view) {
    using M = std::conditional_t<std::is_same_v<V, View<S>>, const Mat<S>, Mat<S>>;
    return Eigen::Map<M>(view.data, view.rows, view.cols);
  }
  static std::string prefix(std::size_t layer) { return "blocks." + std::to_string(layer) + "."; }
  std::size_t count() const { return static_cast<std::size_t>(shape_.layers); }
  /// The parameters of a layer among those of an array, or their gradients.
  template <class Fields, class Numbers>
  Fields fields(Numbers& numbers, std::size_t layer) const {
    Fields all;
    const std::string block = prefix(layer);
    Fields::visit(
        [&](const char* name, auto& field) {
          if (parameters_.find(block + name)) field = parameters_.view(numbers, block + name);
        },
        all);
    return all;
  }
  auto layer(const Mat<S>& w, std::size_t l, const Own& room) const {
    auto all = fields<typename Layers::template Args<S>>(w, l);
    all.x = room.x[l];
    return all;
  }

  Layers layers_;
};

template <class T>
struct LayersOf {
  using type = Sublayers<T>;
};
template <class T>
requires std::is_invocable_v<T, Index>
struct LayersOf<T> {
  using type = Blocks<T>;
};

}  // namespace

#define LIMPID_JOIN(a, b) a##b
#define LIMPID_LIST(prefix, unit, of) LIMPID_JOIN(prefix, unit)(of)
#define LIMPID_VIT(op)                                                 \
  std::unique_ptr<Model<float>> make_vit_##op(const VitShape& shape) { \
    return std::make_unique<Vit<LayersOf<op>::type, float>>(shape);    \
  }
LIMPID_LIST(LIMPID_VITS_, LIMPID_VIT_UNIT, LIMPID_VIT)
#undef LIMPID_VIT
#define LIMPID_VIT(op)                                                            \
  std::unique_ptr<Model<double>> make_vit_in_double_##op(const VitShape& shape) { \
    return std::make_unique<Vit<LayersOf<op>::type, double>>(shape);              \
  }
LIMPID_LIST(LIMPID_VITS_IN_DOUBLE_, LIMPID_VIT_UNIT, LIMPID_VIT)
#undef LIMPID_VIT

}  // namespace training
