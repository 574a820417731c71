// limpid: check_promises says of a sound operator that all is kept, and of one with a fault which promise it breaks.
// SPDX-License-Identifier: MIT
#include <limpid/check/promises.hpp>
#include <limpid/limpid.hpp>

#include "support/catch.hpp"
#include "support/fields.hpp"

namespace {

using limpid::BackwardPass, limpid::Index, limpid::Mat, limpid::MutView, limpid::Pass, limpid::View;
using Plain = decltype(limpid::softmax());

enum class Fault { none, gradient, asking, map, executor };

/// Softmax attention with one fault.
struct Faulty : Plain {
  Fault fault = Fault::none;

  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    Plain::forward(pass, in, out, keep);
    if (fault == Fault::asking && keep.out.given()) out(0, 0) += S(1e-9);
  }
  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    Plain::backward(pass, in, keep, dout, grad);
    if (fault == Fault::gradient) grad.q(0, 0) += S(0.1);
    if (fault == Fault::executor && pass.context.spreads()) grad.v(0, 0) += S(1e-9);
  }
  template <class P, class S, class In, class K>
  void map_block(const Pass<P>& pass, const In& in, const K& keep, Index q0, Index k0, MutView<S> out) const {
    Plain::map_block(pass, in, keep, q0, k0, out);
    if (fault == Fault::map) out(0, 0) += S(1e-6);
  }
};
static_assert(limpid::Operator<Faulty>);
static_assert(limpid::Operator<decltype(limpid::sigmoid()), float>);
static_assert(!limpid::Operator<limpid::Modifier>);

/// The first promise that is broken.
std::string broken(Fault fault) {
  suite::Random random(3);
  const Mat<double> q = suite::random_matrix<double>(random, 12, 8), k = suite::random_matrix<double>(random, 12, 8),
                    v = suite::random_matrix<double>(random, 12, 4);
  Faulty op{limpid::softmax()};
  op.fault = fault;
  const limpid::Promises found = limpid::check_promises(op, limpid::qkv(q, k, v), 1, 2);
  CHECK(found.kept() == (fault == Fault::none));
  for (const auto& p : found.all)
    if (!p.kept) return p.text;
  return "";
}

}  // namespace

TEST_CASE("A sound operator keeps all promises, and a fault breaks the one it is about.") {
  CHECK(broken(Fault::none).empty());
  CHECK(broken(Fault::gradient) == "gradients are those of central differences");
  CHECK(broken(Fault::asking) == "asking changes no bit of the output");
  CHECK(broken(Fault::map) == "map_block, map_left and map_right show one map");
  CHECK(broken(Fault::executor) == "the bits do not depend on the executor");
}
