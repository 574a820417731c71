// limpid: the Hindered Transformer: what patches contribute is the logits, whatever the weights.
// SPDX-License-Identifier: MIT
#include <limpid/layer/hindered.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Hindered, limpid::HinderedArgs, limpid::HinderedBlockArgs, limpid::HinderedOptions, limpid::Index,
    limpid::Mat, limpid::View;
using suite::distance;
using M = Mat<double>;

M random(Index rows, Index cols, std::uint64_t seed, double size = 1) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols, -size, size);
}

constexpr Index width = 6, hidden = 5, classes = 3;

/// Weights of any number of blocks, and views of them.
struct Weights {
  HinderedArgs<M> own;

  Weights(Index n, Index blocks) {
    std::uint64_t seed = 1;
    const auto row = [&](Index cols) { return random(1, cols, ++seed); };
    own.x = random(n, width, ++seed, 2), own.cls = row(width);
    own.gamma = row(width), own.beta = row(width), own.wh = random(width, classes, ++seed), own.bh = row(classes);
    for (Index l = 0; l < blocks; ++l)
      HinderedBlockArgs<M>::visit(
          [&](const std::string& name, M& m) {
            if (name == "w1")
              m = random(width, hidden, ++seed);
            else if (name == "w2")
              m = random(hidden, width, ++seed);
            else if (name[0] == 'w')
              m = random(width, width, ++seed);
            else
              m = row(name == "b1" ? hidden : width);
          },
          own.blocks.emplace_back());
  }
  HinderedArgs<View<double>> views() {
    HinderedArgs<View<double>> out;
    out.x = own.x, out.cls = own.cls, out.gamma = own.gamma, out.beta = own.beta, out.wh = own.wh, out.bh = own.bh;
    for (auto& block : own.blocks)
      HinderedBlockArgs<M>::visit([](const char*, M& m, View<double>& v) { v = m; }, block, out.blocks.emplace_back());
    return out;
  }
};

const HinderedOptions plain{.heads = 2}, pooled{.heads = 3, .stages = {1, 2, 1}};

TEST_CASE("hindered: contributions and the head's bias are the logits, and attention is shared out") {
  for (const HinderedOptions& o : {plain, pooled}) {
    Weights w(16, 4);
    const auto found = Hindered<double>(o).forward(w.views());
    CHECK(distance(M(found.contribution.colwise().sum() + w.own.bh), found.logits) < 1e-13);
    REQUIRE(found.attention.rows() == 4 * o.heads);
    for (Index i = 0; i < found.attention.rows(); ++i) CHECK(std::abs(found.attention.row(i).sum() - 1) < 1e-14);
  }
  Weights one(1, 2);
  const auto found = Hindered<double>(plain).forward(one.views());
  CHECK(distance(M(found.contribution + one.own.bh), found.logits) < 1e-13);
}

TEST_CASE("hindered: patches in another order contribute the same, and without values all contribute alike") {
  Weights w(5, 3);
  const Hindered<double> model(plain);
  const auto before = model.forward(w.views());
  w.own.x.row(0).swap(w.own.x.row(3));
  const auto after = model.forward(w.views());
  CHECK(distance(after.logits, before.logits) < 1e-13);
  CHECK(distance(M(after.contribution.row(3)), M(before.contribution.row(0))) < 1e-13);
  for (auto& block : w.own.blocks) block.wv.setZero(), block.bv.setZero();
  const auto alike = model.forward(w.views());
  for (Index j = 1; j < 5; ++j) CHECK(distance(M(alike.contribution.row(j)), M(alike.contribution.row(0))) < 1e-15);
}

TEST_CASE("hindered: a grid of equal patches, halved, gives what the plain one does") {
  Weights w(16, 4);
  for (Index j = 1; j < 16; ++j) w.own.x.row(j) = w.own.x.row(0);
  HinderedOptions o = pooled;
  const auto halved = Hindered<double>(o).forward(w.views());
  o.stages.clear();
  CHECK(distance(halved.contribution, Hindered<double>(o).forward(w.views()).contribution) < 1e-13);
}

TEST_CASE(
    "hindered: gradients are those of central differences, where the grid is halved and where biases are missing") {
  for (const bool biases : {true, false}) {
    Weights w(16, 4);
    const Hindered<double> model(pooled);
    const auto views = [&] {
      auto v = w.views();
      if (!biases)
        for (auto& block : v.blocks) block.bo = {}, block.bq = {}, block.b1 = {}, block.gamma1 = {};
      return v;
    };
    const M dlogits = random(1, classes, 91), dm = random(16, classes, 92), da = random(12, 16, 93);
    const auto scalar = [&] {
      const auto f = model.forward(views());
      return (f.logits.array() * dlogits.array()).sum() + (f.contribution.array() * dm.array()).sum() +
             (f.attention.array() * da.array()).sum();
    };
    limpid::HinderedSaved<double> saved;
    model.forward(views(), &saved);
    const auto g = model.backward(views(), saved, dlogits, dm, da);
    const auto check = [&](M& of, const M& found) {
      for (Index e = 0; e < of.size(); e += 7) {
        double& entry = of.data()[e];
        const double kept = entry, h = 1e-5;
        entry = kept + h;
        const double up = scalar();
        entry = kept - h;
        const double down = scalar();
        entry = kept;
        CHECK(std::abs((up - down) / (2 * h) - found.data()[e]) < 1e-7);
      }
    };
    check(w.own.x, g.x), check(w.own.cls, g.cls), check(w.own.wh, g.wh), check(w.own.gamma, g.gamma);
    check(w.own.bh, g.bh), check(w.own.beta, g.beta);
    for (std::size_t l = 0; l < 4; ++l) {
      check(w.own.blocks[l].wq, g.blocks[l].wq), check(w.own.blocks[l].wv, g.blocks[l].wv);
      check(w.own.blocks[l].wo, g.blocks[l].wo), check(w.own.blocks[l].bv, g.blocks[l].bv);
      check(w.own.blocks[l].w1, g.blocks[l].w1), check(w.own.blocks[l].beta2, g.blocks[l].beta2);
    }
    CHECK(g.blocks[0].bo.cols() == width);  // of a bias that is not given too
  }
}

TEST_CASE("hindered: what does not fit is refused by name") {
  Weights w(16, 4);
  auto in = w.views();
  const auto forward = [&](const HinderedOptions& o) { Hindered<double>(o).forward(in); };
  CHECK_THROWS_WITH(forward({.heads = 4}), "hindered: 4 heads do not divide 6 columns");
  CHECK_THROWS_WITH(forward({.stages = {1, 2}}), "hindered: 4 blocks, wanted as many as the stages have");
  CHECK_THROWS_WITH(forward({.stages = {1, 1, 1, 1}}),
                    "hindered: 16 patches, wanted a square whose side can be halved 3 times");
  limpid::HinderedSaved<double> saved;
  const M dlogits = M::Ones(1, classes), wrong = M::Ones(1, 2);
  CHECK_THROWS_WITH(Hindered<double>(plain).backward(in, saved, dlogits),
                    "hindered: saved is of another call, or of none that ended");
  Hindered<double>(plain).forward(in, &saved);
  CHECK_THROWS_WITH(Hindered<double>(plain).backward(in, saved, wrong), "hindered: dlogits is 1 x 2, wanted 1 x 3");
  in.blocks[2].wk = wrong;
  CHECK_THROWS_WITH(forward(plain), "hindered: block 2: wk is 1 x 2, wanted 6 x 6");
}

}  // namespace
