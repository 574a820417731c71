// limpid: every operator and layer at a modest size, compiled at -O2 and -O3 by each compiler and loaded side by side
// SPDX-License-Identifier: MIT
#include "levels.hpp"

#include <limpid/limpid.hpp>

#include "../tests/support/operators.hpp"
#include "ours.hpp"

namespace bench {
namespace {

using S = float;
using limpid::Mat;

constexpr Index tokens = 197, width = 384, heads = 6;

std::vector<Candidate>& all() {
  static std::vector<Candidate> candidates;
  return candidates;
}

void add_operators() {
  suite::Sizes sizes;
  sizes.n = sizes.m = 256, sizes.d = sizes.dv = 64;
  suite::for_each_operator([&](auto entry) {
    using Entry = decltype(entry);
    auto o = ours_of<S, Entry>(sizes, limpid::chain(), true, 1);
    all().push_back(candidate(std::string(Entry::name) + " forward", [o] { o->forward(); }));
    all().push_back(candidate(std::string(Entry::name) + " backward", [o] { o->backward(); }));
  });
}

Mat<S> numbers(Index rows, Index cols, double scale = 1) {
  static suite::Random random(7);
  return suite::random_matrix<S>(random, rows, cols) * S(scale);
}

/// A matrix and its gradient.
struct Parameter {
  Mat<S> value, gradient;
  Parameter(Index rows, Index cols, double scale = 0.05) : value(numbers(rows, cols, scale)), gradient(rows, cols) {}
};

/// A layer, its arguments by name out of parameters, its state and its memory.
template <class Layer, class Args, class Grads>
struct LayerRun {
  Layer layer;
  std::vector<std::shared_ptr<Parameter>> parameters;
  Args in;
  Grads grads;
  typename Layer::template Saved<S> saved;
  limpid::Workspace workspace;
  Mat<S> out = Mat<S>(tokens, width), dout = numbers(tokens, width);

  explicit LayerRun(Layer l) : layer(std::move(l)) {}
  void give(limpid::View<S> Args::*at, limpid::MutView<S> Grads::*to, Index rows, Index cols) {
    parameters.push_back(std::make_shared<Parameter>(rows, cols));
    in.*at = parameters.back()->value, grads.*to = parameters.back()->gradient;
  }
  void forward() { layer.forward(in, out, {.saved = &saved, .workspace = &workspace}); }
  void backward() { layer.template backward<S>(in, saved, dout, grads, {.workspace = &workspace}); }
};

template <class Run>
void add_layer(const std::string& name, std::shared_ptr<Run> run) {
  run->forward();
  all().push_back(candidate(name + " forward", [run] { run->forward(); }));
  all().push_back(candidate(name + " backward", [run] { run->backward(); }));
}

#define LIMPID_GIVE(run, field, rows, cols) (run)->give(&Args::field, &Grads::field, rows, cols)

void add_layers() {
  for (Index n : {Index(4), tokens}) {
    struct Run {
      Mat<S> x, w, b, y, dx, dw, db;
      limpid::Workspace workspace;
    };
    auto r = std::make_shared<Run>();
    r->x = numbers(n, width), r->w = numbers(width, width), r->b = numbers(1, width), r->y = numbers(n, width);
    r->dx = r->x, r->dw = r->w, r->db = r->b;
    const std::string name = "linear " + std::to_string(n) + " x 384 x 384";
    all().push_back(
        candidate(name + " forward", [r] { limpid::linear(r->x, r->w, r->b, r->y, {.workspace = &r->workspace}); }));
    all().push_back(candidate(name + " backward", [r] {
      limpid::linear_backward(r->x, r->w, r->y, limpid::LinearGrads<S>{r->dx, r->dw, r->db},
                              {.workspace = &r->workspace});
    }));
  }
  {
    struct Run {
      Mat<S> x = numbers(tokens, width), gamma = numbers(1, width), beta = numbers(1, width), y = x, dx = x,
             dgamma = gamma, dbeta = beta;
      limpid::LayerNormSaved<S> saved;
      limpid::Workspace workspace;
      void forward() { limpid::layer_norm(x, gamma, beta, y, {.saved = &saved, .workspace = &workspace}); }
      void backward() {
        limpid::layer_norm_backward(x, gamma, saved, y, limpid::LayerNormGrads<S>{dx, dgamma, dbeta},
                                    {.workspace = &workspace});
      }
    };
    add_layer("layer_norm", std::make_shared<Run>());
  }
  {
    struct Run {
      Mat<S> x = numbers(tokens, width), u = x, z = x, out = x, next = x, dx = x, du = x, tau = numbers(1, 1),
             rho = numbers(1, 1);
      limpid::BoostingBlockSaved<S> saved;
      limpid::Workspace workspace;
      void forward() {
        limpid::boosting_block({.x = x, .u = u, .tau = tau, .rho = rho},
                               [&](limpid::View<S> s, limpid::MutView<S> to) { to.map() = s.map(); }, out, next, &saved,
                               {.workspace = &workspace});
      }
      void backward() {
        limpid::boosting_block_backward<S>(
            {.x = x, .u = u, .tau = tau, .rho = rho}, saved,
            [&](limpid::View<S>, limpid::View<S> dz, limpid::MutView<S> ds) { ds.map() = dz.map(); }, out, next,
            {.x = dx, .u = du}, {.workspace = &workspace});
      }
    };
    add_layer("boosting_block", std::make_shared<Run>());
  }
  {
    using Layer = limpid::MultiHead<decltype(limpid::softmax())>;
    using Args = Layer::Args<S>;
    using Grads = Layer::Grads<S>;
    auto run = std::make_shared<LayerRun<Layer, Args, Grads>>(limpid::multi_head(limpid::softmax(), heads));
    LIMPID_GIVE(run, x, tokens, width), LIMPID_GIVE(run, wq, width, width), LIMPID_GIVE(run, wk, width, width);
    LIMPID_GIVE(run, wv, width, width), LIMPID_GIVE(run, wo, width, width), LIMPID_GIVE(run, bo, 1, width);
    add_layer("multi_head", run);
  }
  {
    using Layer = limpid::Aot<decltype(limpid::mssa())>;
    using Args = Layer::Args<S>;
    using Grads = Layer::Grads<S>;
    auto run = std::make_shared<LayerRun<Layer, Args, Grads>>(limpid::aot(limpid::mssa(), {.heads = heads}));
    LIMPID_GIVE(run, x, tokens, width), LIMPID_GIVE(run, gamma, 1, width), LIMPID_GIVE(run, beta, 1, width);
    LIMPID_GIVE(run, u, width, width), LIMPID_GIVE(run, wo, width, width);
    add_layer("aot", run);
  }
  {
    using Layer = limpid::Crate<decltype(limpid::mssa())>;
    using Args = Layer::Args<S>;
    using Grads = Layer::Grads<S>;
    auto run = std::make_shared<LayerRun<Layer, Args, Grads>>(limpid::crate(limpid::mssa(), {.heads = heads}));
    LIMPID_GIVE(run, x, tokens, width), LIMPID_GIVE(run, u, width, width), LIMPID_GIVE(run, wo, width, width);
    LIMPID_GIVE(run, dictionary, width, width);
    add_layer("crate", run);
  }
}

void add_two_map_layer() {
  using Op = decltype(limpid::differential_gated());
  struct Run {
    limpid::TwoMapLayer<Op> layer = limpid::two_map_layer(limpid::differential_gated(), heads);
    Mat<S> x = numbers(tokens, width), wq = numbers(width, 2 * width, 0.05), wk = numbers(width, 2 * width, 0.05),
           wv = numbers(width, width, 0.05), wo = wv, gate = numbers(width, heads, 0.05), out = x, dout = x, dx = x,
           dwq = wq, dwk = wk, dwv = wv, dwo = wo, dgate = gate;
    limpid::TwoMapLayerSaved<Op, S> saved;
    limpid::Workspace workspace;
    limpid::TwoMapLayerArgs<limpid::View<S>> in() const {
      return {.x = x, .wq = wq, .wk = wk, .wv = wv, .wo = wo, .gate_w = gate};
    }
    void forward() { layer.forward(in(), out, {.saved = &saved, .workspace = &workspace}); }
    void backward() {
      layer.template backward<S>(in(), saved, dout,
                                 {.x = dx, .wq = dwq, .wk = dwk, .wv = dwv, .wo = dwo, .gate_w = dgate},
                                 {.workspace = &workspace});
    }
  };
  add_layer("two_map_layer", std::make_shared<Run>());
}

void make_all() {
  if (!all().empty()) return;
  add_operators();
  add_layers();
  add_two_map_layer();
}

}  // namespace
}  // namespace bench

int limpid_level_count() {
  bench::make_all();
  return static_cast<int>(bench::all().size());
}
const char* limpid_level_name(int index) { return bench::all()[static_cast<std::size_t>(index)].name.c_str(); }
double limpid_level_seconds(int index, long calls) {
  return bench::all()[static_cast<std::size_t>(index)].seconds(calls);
}
