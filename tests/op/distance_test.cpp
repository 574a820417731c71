// limpid: tests of the digits of distance scores: what lies far apart is no worse than the formula written down.
// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>
#include <limpid/limpid.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::nlm;

/// Row i: without optimisation an entry that Eigen is asked for is a dozen calls.
template <class M>
auto* row(M& x, Index i) {
  return x.data() + i * x.cols();
}

/// nlm and its gradients written down in T for arrays in S, by pair.
template <class T, class S>
struct Formula {
  Mat<T> out, lse, dq, dk, dv, dpq, dpk, dh = Mat<T>::Zero(1, 1), dhs = dh;
  Mat<T> sizes = Mat<T>::Zero(1, 2);  // of what the bandwidth gradients sum

  Formula(const Mat<S>& q, const Mat<S>& k, const Mat<S>& v, S h, const Mat<S>& pq, const Mat<S>& pk, S hs,
          const Mat<S>& g, bool causal) {
    const Index n = q.rows(), m = k.rows(), dim = v.cols();
    const T c = 1 / (T(h) * T(h)), cs = 1 / (T(hs) * T(hs)), none = -std::numeric_limits<T>::infinity();
    out.setZero(n, v.cols()), lse.setZero(n, 1), dq.setZero(n, q.cols()), dk.setZero(m, q.cols());
    dv.setZero(m, v.cols()), dpq.setZero(n, pq.cols()), dpk.setZero(m, pq.cols());
    Mat<T> a(1, m), far(1, m), apart(1, m);
    const auto squared = [](const Mat<S>& x, Index i, const Mat<S>& y, Index j) {
      const Index d = x.cols();
      const S *one = row(x, i), *other = row(y, j);
      T sum = 0;
      for (Index e = 0; e < d; ++e) sum += (T(one[e]) - T(other[e])) * (T(one[e]) - T(other[e]));
      return sum;
    };
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < m; ++j) {
        far(j) = squared(q, i, k, j), apart(j) = squared(pq, i, pk, j);
        a(j) = causal && j > i + m - n ? none : -far(j) * c - apart(j) * cs;
      }
      const T top = a.maxCoeff();
      T total = 0, delta = 0;
      for (Index j = 0; j < m; ++j) total += a(j) = std::exp(a(j) - top);
      lse(i, 0) = top + std::log(total);
      for (Index j = 0; j < m; ++j) {
        a(j) /= total;
        const T weight = a(j);
        const S *value = row(v, j), *upstream = row(g, i);
        T *to_out = row(out, i), *to_dv = row(dv, j);
        for (Index e = 0; e < dim; ++e) to_out[e] += weight * T(value[e]), to_dv[e] += weight * T(upstream[e]);
      }
      for (Index e = 0; e < dim; ++e) delta += T(g(i, e)) * out(i, e);
      for (Index j = 0; j < m; ++j) {
        const S *value = row(v, j), *upstream = row(g, i);
        T da = 0;
        for (Index e = 0; e < dim; ++e) da += T(upstream[e]) * T(value[e]);
        const T ds = a(j) * (da - delta);
        if (ds == 0) continue;
        const auto pull = [&](const Mat<S>& x, const Mat<S>& y, T weight, Mat<T>& dx, Mat<T>& dy) {
          const Index d = x.cols();
          const S *from_x = row(x, i), *from_y = row(y, j);
          T *to_x = row(dx, i), *to_y = row(dy, j);
          for (Index e = 0; e < d; ++e) {
            const T one = 2 * weight * ds * (T(from_y[e]) - T(from_x[e]));
            to_x[e] += one, to_y[e] -= one;
          }
        };
        pull(q, k, c, dq, dk), pull(pq, pk, cs, dpq, dpk);
        dh(0) += 2 * c / T(h) * ds * far(j), dhs(0) += 2 * cs / T(hs) * ds * apart(j);
        sizes(0) += std::abs(2 * c / T(h) * ds * far(j)), sizes(1) += std::abs(2 * cs / T(hs) * ds * apart(j));
      }
    }
  }
};

template <class S>
struct Case {
  Mat<S> q, k, v, pq, pk;
  S h = S(1), hs = S(1);
};

/// The error of ours over that of the formula in S plus units of rounding: of everything, the largest.
template <class S, class Op>
double worst(const Op& op, const Case<S>& p, bool causal = false) {
  suite::Random random(11);
  const Mat<S> g = suite::random_matrix<S>(random, p.q.rows(), p.v.cols());
  const Formula<long double, S> right(p.q, p.k, p.v, p.h, p.pq, p.pk, p.hs, g, causal);
  const Formula<S, S> plain(p.q, p.k, p.v, p.h, p.pq, p.pk, p.hs, g, causal);
  const Index n = p.q.rows();
  const Mat<S> h = Mat<S>::Constant(1, 1, p.h), hs = Mat<S>::Constant(1, 1, p.hs);
  const bool placed = p.pq.cols() > 0;
  limpid::Inputs<Op, S> in{.q = p.q, .k = p.k, .v = p.v, .h = h};
  if (placed) in.pq = p.pq, in.pk = p.pk, in.h_space = hs;
  Mat<S> out(n, p.v.cols()), lse(n, 1), dq = p.q, dk = p.k, dv = p.v, dpq = p.pq, dpk = p.pk, dh = h, dhs = hs;
  limpid::Saved<Op, S> saved;
  limpid::Call<Op, S> call;
  call.saved = &saved, call.lse = &lse;
  limpid::forward(op, in, out, call);
  typename Op::template Args<limpid::MutView<S>> grads{.q = dq, .k = dk, .v = dv, .h = dh};
  if (placed) grads.pq = dpq, grads.pk = dpk, grads.h_space = dhs;
  limpid::backward(op, in, saved, g, grads);
  double found = 0;
  const auto look = [&](const Mat<S>& ours, const Mat<S>& naive, const Mat<long double>& truth, double units,
                        long double size = 0) {
    long double a = 0, b = 0;
    REQUIRE(ours.size() == truth.size());
    for (Index i = 0; i < truth.size(); ++i) {
      a = std::max(a, std::abs(ours.data()[i] - truth.data()[i]));
      b = std::max(b, std::abs(naive.data()[i] - truth.data()[i]));
      size = std::max(size, std::abs(truth.data()[i]));
    }
    REQUIRE(std::isfinite(double(a)));
    const double ratio = double(a / (b + units * std::numeric_limits<S>::epsilon() * size));
    found = std::max(found, ratio);
  };
  look(out, plain.out, right.out, 0.5), look(lse, plain.lse, right.lse, 0.5), look(dv, plain.dv, right.dv, 0.5);
  look(dq, plain.dq, right.dq, 0.5), look(dk, plain.dk, right.dk, 0.5);
  look(dh, plain.dh, right.dh, 4, right.sizes(0));
  if (placed) {
    look(dpq, plain.dpq, right.dpq, 0.5), look(dpk, plain.dpk, right.dpk, 0.5);
    look(dhs, plain.dhs, right.dhs, 4, right.sizes(1));
  }
  return found;
}

/// Rows in clusters of a width of h, which lie `extent` h apart and come in any order.
template <class S>
Case<S> clusters(Index d, double extent, Index count, bool placed) {
  suite::Random random(static_cast<std::uint64_t>(d * 100 + count));
  const auto normal = [&](Index rows, Index cols) { return suite::random_matrix<double>(random, rows, cols); };
  const double h = 0.7, root = std::sqrt(double(d));
  const Mat<double> centres = normal(count, d) * (extent * h / root);
  const auto rows = [&](Index n, Index step) {
    Mat<double> x = normal(n, d) * (h / root);
    for (Index i = 0; i < n; ++i) x.row(i) += centres.row(i * step % count);
    return Mat<S>(x.template cast<S>());
  };
  Case<S> p{rows(37, 5), rows(70, 3), suite::random_matrix<S>(random, 70, 5), Mat<S>(37, 0), Mat<S>(70, 0)};
  if (placed) p.pq = suite::random_matrix<S>(random, 37, 2), p.pk = suite::random_matrix<S>(random, 70, 2);
  p.h = S(h);
  return p;
}

template <class S>
Case<S> line(Index n, double h_space) {
  suite::Random random(3);
  const auto normal = [&](Index cols) { return suite::random_matrix<S>(random, n, cols); };
  Case<S> p{normal(4), normal(4), normal(3), Mat<S>(n, 1), Mat<S>(n, 1)};
  for (Index i = 0; i < n; ++i) p.pq(i, 0) = p.pk(i, 0) = S(double(i));
  p.h = S(2), p.hs = S(h_space);
  return p;
}

}  // namespace

TEMPLATE_TEST_CASE("clusters far apart keep the digits of the formula, forward, lse and all gradients", "", float,
                   double) {
  for (Index d : {1, 2, 3, 49, 64})
    for (double extent : {1.0, 3.0, 10.0, 1e3, 1e5})
      for (Index count : {2, 7}) {
        INFO("width " << d << ", extent " << extent << ", clusters " << count);
        CHECK(worst<TestType>(nlm(), clusters<TestType>(d, extent, count, false)) < 5);
        if (d == 2 || d == 49) {
          CHECK(worst<TestType>(nlm(), clusters<TestType>(d, extent, count, true)) < 5);
          CHECK(worst<TestType>(nlm(limpid::causal()), clusters<TestType>(d, extent, count, false), true) < 5);
        }
      }
}

TEMPLATE_TEST_CASE("keys that are the queries keep the digits of the formula at any extent", "", float, double) {
  using S = TestType;
  suite::Random random(2);
  for (Index d : {3, 16, 17, 64, 100})
    for (double extent : {0.3, 0.6, 1.2, 2.5, 4.0, 1e3}) {
      INFO("width " << d << ", extent " << extent);
      // pairs that lie close together, and those all but in one place
      for (double spread : {1e-2, 0.3}) {
        const Mat<double> pairs = suite::random_matrix<double>(random, 20, d) * extent,
                          apart = suite::random_matrix<double>(random, 40, d) * spread;
        Case<S> p{Mat<S>(40, d), Mat<S>(), suite::random_matrix<S>(random, 40, 3), Mat<S>(40, 0), Mat<S>(40, 0)};
        for (Index i = 0; i < 40; ++i) p.q.row(i) = (pairs.row(i / 2) + apart.row(i)).template cast<S>();
        p.k = p.q, p.h = S(std::sqrt(double(d)) / 2);
        CHECK(worst<S>(nlm(), p) < 5);
        CHECK(worst<S>(nlm(limpid::causal()), p, true) < 5);
      }
      // a curve that comes near itself
      Case<S> p{Mat<S>(32, d), Mat<S>(), suite::random_matrix<S>(random, 32, 1), Mat<S>(32, 0), Mat<S>(32, 0)};
      for (Index i = 0; i < 32; ++i)
        for (Index c = 0; c < d; ++c)
          p.q(i, c) = S(extent * std::sin(double(i / 2) * 7.3 + double(c * (i / 2 + 1)) * 1.7) +
                        double(i % 2) * 0.05 * std::cos(3.0 * double(c)));
      p.k = p.q, p.h = 1;
      CHECK(worst<S>(nlm(), p) < 5);
    }
}

TEMPLATE_TEST_CASE("positions along a line and over an image keep the digits of the formula", "", float, double) {
  for (Index n : {28, 200}) CHECK(worst<TestType>(nlm(), line<TestType>(n, 1)) < 5);
  Case<TestType> image = line<TestType>(196, 1.5);
  image.pq.resize(196, 2);
  for (Index i = 0; i < 196; ++i) image.pq(i, 0) = TestType(9 * (i / 14)), image.pq(i, 1) = TestType(9 * (i % 14));
  image.pk = image.pq;
  CHECK(worst<TestType>(nlm(), image) < 5);
}

TEST_CASE("patches of 16 bits keep the digits of the formula, and the nearest of far keys is found") {
  suite::Random random(5);
  Case<float> p;
  Mat<double> levels = suite::random_matrix<double>(random, 120, 1),
              noise = suite::random_matrix<double>(random, 120, 49);
  p.q.resize(120, 49);
  for (Index i = 0; i < 120; ++i)
    for (Index c = 0; c < 49; ++c)
      p.q(i, c) = float(std::floor(std::clamp(32768 + 20000 * levels(i, 0) + 30 * noise(i, c), 0.0, 65535.0)));
  p.k = p.q, p.v = suite::random_matrix<float>(random, 120, 3), p.pq.resize(120, 0), p.pk.resize(120, 0), p.h = 400;
  CHECK(worst<float>(nlm(), p) < 5);
  for (float x : {1000.0F, 3000.0F, 6000.0F, 1e5F}) {
    Mat<float> q(1, 1), k(5, 1), v(5, 1), h = Mat<float>::Constant(1, 1, 1);
    q << x, k << 0, 0, 0, x, x + 1, v << 0, 0, 0, 1, 2;
    const auto op = nlm();
    const Mat<float> out =
        limpid::forward(op, limpid::Inputs<std::remove_const_t<decltype(op)>, float>{.q = q, .k = k, .v = v, .h = h});
    CHECK(out(0, 0) == Approx(1.268941).epsilon(1e-6));
  }
}

TEST_CASE("a key that is not finite and kept by no query changes no bit of far clusters, in any sweep") {
  const Case<float> p = clusters<float>(49, 100, 2, false);
  const auto op = nlm(limpid::mask([](limpid::At a) { return a.k != 3; }));
  using Op = std::remove_const_t<decltype(op)>;
  const Mat<float> h = Mat<float>::Constant(1, 1, p.h);
  const auto run = [&](const Mat<float>& k) {
    return Mat<float>(limpid::forward(op, limpid::Inputs<Op, float>{.q = p.q, .k = k, .v = p.v, .h = h}));
  };
  Mat<float> k = p.k;
  const Mat<float> before = run(k);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30F}) {
    k.row(3).setConstant(bad);
    CHECK(run(k) == before);
  }
}

TEMPLATE_TEST_CASE("a bandwidth whose square overflows is one: what lies as far apart has the same weights", "", float,
                   double) {
  using S = TestType;
  const S unit = std::ldexp(S(1), std::numeric_limits<S>::max_exponent / 2 + 2);
  for (const auto& [d, extent] : {std::pair<Index, double>{2, 3}, {40, 3}, {40, 0.01}})
    for (bool placed : {false, true}) {
      const Case<S> p = clusters<S>(d, extent, 2, placed);
      suite::Random random(6);
      const Mat<S> g = suite::random_matrix<S>(random, 37, 5);
      struct Run {
        Mat<S> out, dq, dk, dv, dh, dpq, dpk, dhs;
      };
      const auto run = [&](S by, S by_place) {
        const Mat<S> q = p.q * by, k = p.k * by, h = Mat<S>::Constant(1, 1, p.h * by);
        const Mat<S> pq = p.pq * by_place, pk = p.pk * by_place, hs = Mat<S>::Constant(1, 1, p.hs * by_place);
        limpid::Inputs<decltype(nlm()), S> in{.q = q, .k = k, .v = p.v, .h = h};
        if (placed) in.pq = pq, in.pk = pk, in.h_space = hs;
        Run r{Mat<S>(37, 5), q, k, p.v, h, pq, pk, hs};
        limpid::Saved<decltype(nlm()), S> saved;
        limpid::Call<decltype(nlm()), S> call;
        call.saved = &saved;
        limpid::forward(nlm(), in, r.out, call);
        typename decltype(nlm())::template Args<limpid::MutView<S>> grads{.q = r.dq, .k = r.dk, .v = r.dv, .h = r.dh};
        if (placed) grads.pq = r.dpq, grads.pk = r.dpk, grads.h_space = r.dhs;
        limpid::backward(nlm(), in, saved, g, grads);
        r.dq *= by, r.dk *= by, r.dh *= by, r.dpq *= by_place, r.dpk *= by_place, r.dhs *= by_place;
        return r;
      };
      const Run near = run(1, 1), far = run(unit, 1), far_place = run(1, unit);
      const double bound = 64 * double(std::numeric_limits<S>::epsilon());
      for (const Run* r : {&far, &far_place}) {
        CHECK(suite::distance(r->out, near.out) < bound);
        CHECK(suite::distance(r->dq, near.dq) < bound * double(near.dq.cwiseAbs().maxCoeff()));
        CHECK(suite::distance(r->dk, near.dk) < bound * double(near.dk.cwiseAbs().maxCoeff()));
        CHECK(suite::distance(r->dv, near.dv) < bound * double(near.dv.cwiseAbs().maxCoeff()));
        CHECK(suite::distance(r->dh, near.dh) < bound * 10);
        if (!placed) continue;
        CHECK(suite::distance(r->dpq, near.dpq) < bound * double(near.dpq.cwiseAbs().maxCoeff()));
        CHECK(suite::distance(r->dpk, near.dpk) < bound * double(near.dpk.cwiseAbs().maxCoeff()));
        CHECK(suite::distance(r->dhs, near.dhs) < bound * 10);
      }
    }
  // of an infinite one all keys are alike, wherever they lie
  Mat<S> q(1, 1), k(2, 1), v(2, 1), h = Mat<S>::Constant(1, 1, std::numeric_limits<S>::infinity());
  q << 0, v << 1, 3;
  for (S far : {S(1), unit, std::numeric_limits<S>::max()}) {
    k << 1, far;
    const Mat<S> out = limpid::forward(nlm(), limpid::Inputs<decltype(nlm()), S>{.q = q, .k = k, .v = v, .h = h});
    CHECK(out(0, 0) == S(2));
  }
}

TEMPLATE_TEST_CASE("what is not finite shows where distances are summed by pair as elsewhere", "", float, double) {
  using S = TestType;
  for (Index d : {2, 40})
    for (double extent : {1e-3, 1.0, 1e4})
      for (S bad : {std::numeric_limits<S>::infinity(), -std::numeric_limits<S>::infinity(),
                    std::numeric_limits<S>::quiet_NaN()}) {
        INFO("width " << d << ", extent " << extent << ", " << bad);
        const Case<S> p = clusters<S>(d, extent, 2, false);
        const Mat<S> h = Mat<S>::Constant(1, 1, p.h);
        Mat<S> q = p.q, k = p.k;
        q(4, 1) = bad;
        const auto run = [&] {
          return Mat<S>(limpid::forward(nlm(), limpid::Inputs<decltype(nlm()), S>{.q = q, .k = k, .v = p.v, .h = h}));
        };
        const Mat<S> by_query = run();
        for (Index i = 0; i < 37; ++i) CHECK(std::isnan(by_query(i, 0)) == (i == 4));
        q = p.q, k(7, 0) = bad;
        CHECK(run().array().isNaN().all());
      }
}

TEMPLATE_TEST_CASE("what a score function takes out of near pairs does not show, whatever it holds", "", float,
                   double) {
  using S = TestType;
  const auto less = [](auto s, limpid::At a) {
    using T = decltype(s);
    return a.q == 4 || a.k == 7 ? s - std::numeric_limits<T>::infinity() : s;
  };
  const auto slope = [](auto s, limpid::At) { return decltype(s)(1); };
  const auto op = nlm(limpid::score_mod(less, slope));
  using Op = std::remove_const_t<decltype(op)>;
  const Case<S> p = clusters<S>(40, 2, 20, false);
  const Mat<S> h = Mat<S>::Constant(1, 1, p.h), g = Mat<S>::Ones(37, 5);
  struct Run {
    Mat<S> out, dq, dk, dv;
  };
  const auto run = [&](const Mat<S>& q, const Mat<S>& k) {
    Run r{Mat<S>(37, 5), q, k, p.v};
    limpid::Saved<Op, S> saved;
    limpid::Call<Op, S> call;
    call.saved = &saved;
    const limpid::Inputs<Op, S> in{.q = q, .k = k, .v = p.v, .h = h};
    limpid::forward(op, in, r.out, call);
    limpid::backward(op, in, saved, g, typename Op::template Args<limpid::MutView<S>>{.q = r.dq, .k = r.dk, .v = r.dv});
    return r;
  };
  const Run finite = run(p.q, p.k);
  Mat<S> q = p.q, k = p.k;
  q.row(4).setConstant(std::numeric_limits<S>::quiet_NaN()), k.row(7).setConstant(std::numeric_limits<S>::infinity());
  const Run odd = run(q, k);
  CHECK(odd.out == finite.out);
  CHECK(odd.out.row(4).isZero(0));
  CHECK(odd.dq == finite.dq);
  CHECK(odd.dk == finite.dk);
  CHECK(odd.dv == finite.dv);
}

namespace {

/// Results of the first eight of 40 queries, alone (by pair at once) and among the others, whose dout is zero.
template <class S, class Op>
void check_few(const Op& op, bool dots) {
  suite::Random random(12);
  const Case<S> p = clusters<S>(40, 2, 20, false);
  const auto normal = [&](Index rows, Index cols) { return suite::random_matrix<S>(random, rows, cols); };
  const Mat<S> a = normal(37, 3), b = normal(70, 3), hr = Mat<S>::Constant(1, 1, p.h), hs = hr;
  Mat<S> g = normal(37, 5);
  g.bottomRows(29).setZero();
  struct Run {
    Mat<S> out, dq, dk, dv, da, db, dhr, dhs;
  };
  const auto run = [&](Index n) {
    const Mat<S> q = p.q.topRows(n), places = a.topRows(n), dout = g.topRows(n);
    Run r{Mat<S>(n, 5), q, p.k, p.v, places, b, hr, hs};
    limpid::Inputs<Op, S> in{.q = q, .k = p.k, .v = p.v, .h_range = hr};
    typename Op::template Args<limpid::MutView<S>> grads{.q = r.dq, .k = r.dk, .v = r.dv, .h_range = r.dhr};
    if (dots)
      in.a = places, in.b = b, grads.a = r.da, grads.b = r.db;
    else
      in.pq = places, in.pk = b, in.h_space = hs, grads.pq = r.da, grads.pk = r.db, grads.h_space = r.dhs;
    limpid::Saved<Op, S> saved;
    limpid::Call<Op, S> call;
    call.saved = &saved;
    limpid::forward(op, in, r.out, call);
    limpid::backward(op, in, saved, dout, grads);
    return r;
  };
  const Run alone = run(8), among = run(37);
  const auto same = [](const auto& x, const Mat<S>& y) {
    return suite::distance(x, y) <
           64 * double(std::numeric_limits<S>::epsilon()) * (1 + double(y.cwiseAbs().maxCoeff()));
  };
  CHECK(same(among.out.topRows(8), alone.out));
  CHECK(same(among.dq.topRows(8), alone.dq));
  CHECK(among.dq.bottomRows(29).isZero(0));
  CHECK(same(among.dk, alone.dk));
  CHECK(same(among.dv, alone.dv));
  CHECK(same(among.da.topRows(8), alone.da));
  CHECK(same(among.db, alone.db));
  CHECK(same(among.dhr, alone.dhr));
  if (!dots) CHECK(same(among.dhs, alone.dhs));
}

}  // namespace

TEMPLATE_TEST_CASE("a few queries, by pair, give what they give among others, where near pairs alone are by pair", "",
                   float, double) {
  using limpid::ContentKernel, limpid::SpatialKernel;
  check_few<TestType>(limpid::bilateral({.content = ContentKernel::dist, .spatial = SpatialKernel::dot}), true);
  check_few<TestType>(limpid::bilateral({.content = ContentKernel::dist, .spatial = SpatialKernel::gauss}), false);
  Mat<TestType> bias = Mat<TestType>::Zero(1, 70);
  bias(0, 3) = -std::numeric_limits<TestType>::infinity(), bias(0, 5) = 1;
  check_few<TestType>(limpid::bilateral(limpid::key_bias(bias),
                                        {.content = ContentKernel::dist, .spatial = SpatialKernel::dot, .pscale = 0.7}),
                      true);
}

TEMPLATE_TEST_CASE("near pairs whose rows count biases from keys of their own", "", float, double) {
  using S = TestType;
  suite::Random random(9);
  const Index n = 70;
  const Mat<double> pairs = suite::random_matrix<double>(random, n, 40) * 2,
                    apart = suite::random_matrix<double>(random, n, 40) * 0.2;
  Mat<S> k(n, 40), out(n, 2), map(n, n);
  for (Index i = 0; i < n; ++i) k.row(i) = (pairs.row(i / 2) + apart.row(i)).template cast<S>();
  const Mat<S> v = suite::random_matrix<S>(random, n, 2), h = Mat<S>::Constant(1, 1, 3);
  Mat<S> bias = Mat<S>::Constant(1, n, std::numeric_limits<S>::lowest());
  for (Index j = 20; j < n; ++j) bias(j) = j < 40 ? S(-3e4) : S(double(j % 3));
  const auto op = nlm(limpid::chain(limpid::causal(), limpid::key_bias(bias)));
  using Op = std::remove_const_t<decltype(op)>;
  limpid::Call<Op, S> call;
  call.map = &map;
  limpid::forward(op, limpid::Inputs<Op, S>{.q = k, .k = k, .v = v, .h = h}, out, call);
  for (Index i = 0; i < n; ++i) {
    Mat<long double> a(1, i + 1);
    const auto added = [&](Index j) { return static_cast<long double>(bias(j)); };
    long double most = added(0), total = 0;
    for (Index j = 1; j <= i; ++j) most = std::max(most, added(j));
    for (Index j = 0; j <= i; ++j) {
      const long double far = (k.row(i) - k.row(j)).template cast<long double>().squaredNorm();
      total += a(j) = std::exp((added(j) - most) - far / 9);
    }
    a /= total;
    INFO("row " << i);
    const double bound = 128 * double(std::numeric_limits<S>::epsilon());
    const Mat<long double> seen = v.topRows(i + 1).template cast<long double>();
    CHECK(suite::distance(out.row(i), suite::product(a, seen)) < bound);
    CHECK(suite::distance(map.row(i).head(i + 1), a) < bound);
  }
}

TEMPLATE_TEST_CASE("near pairs at places whose distance overflows have no weight", "", float, double) {
  using S = TestType;
  const S far = std::sqrt(std::numeric_limits<S>::max()) * 2;
  for (Index d : {3, 40}) {
    Case<S> p = clusters<S>(d, 30, 70, true);
    p.k.row(1) = p.k.row(0), p.q = p.k;
    p.pq = Mat<S>::Zero(70, 2), p.pq(1, 0) = far, p.pk = p.pq;
    const Mat<S> h = Mat<S>::Constant(1, 1, p.h), hs = Mat<S>::Constant(1, 1, p.hs);
    const auto run = [&h, &hs](const Case<S>& c) {
      return Mat<S>(
          limpid::forward(nlm(), limpid::Inputs<decltype(nlm()), S>{
                                     .q = c.q, .k = c.k, .v = c.v, .h = h, .pq = c.pq, .pk = c.pk, .h_space = hs}));
    };
    const Mat<S> out = run(p);
    CHECK(out.row(1) == p.v.row(1));  // alone there
    p.v.row(1) *= 2;
    const Mat<S> again = run(p);
    CHECK(again.row(0) == out.row(0));
    CHECK(again.bottomRows(68) == out.bottomRows(68));
  }
}

TEST_CASE("the map of far clusters, made again from what was kept, has rows that sum to 1") {
  const Case<float> p = clusters<float>(49, 1e4, 7, true);
  const auto op = nlm();
  using Op = std::remove_const_t<decltype(op)>;
  const Mat<float> h = Mat<float>::Constant(1, 1, p.h), hs = Mat<float>::Constant(1, 1, p.hs);
  Mat<float> out(37, 5), map;
  limpid::Call<Op, float> call;
  call.map = &map;
  limpid::forward(
      op, limpid::Inputs<Op, float>{.q = p.q, .k = p.k, .v = p.v, .h = h, .pq = p.pq, .pk = p.pk, .h_space = hs}, out,
      call);
  for (Index i = 0; i < 37; ++i) CHECK(std::abs(map.row(i).sum() - 1) < 8 * std::numeric_limits<float>::epsilon());
  CHECK((suite::product(map, p.v) - out).cwiseAbs().maxCoeff() < 1e-5F);
}

TEST_CASE("a score function sees the score of far clusters, and gradients do not change by a far common shift") {
  const auto half = [](auto s, limpid::At) { return s / 2; };
  const auto slope = [](auto s, limpid::At) { return decltype(s)(0.5); };
  Case<double> p = clusters<double>(3, 1e4, 2, true);
  const auto op = nlm(limpid::score_mod(half, slope));
  using Op = std::remove_const_t<decltype(op)>;
  // halves of scores are scores at sqrt(2) the bandwidth
  const Mat<double> h = Mat<double>::Constant(1, 1, p.h), hs = Mat<double>::Constant(1, 1, p.hs);
  const Mat<double> wide = h * std::sqrt(2.0), wide_s = hs * std::sqrt(2.0);
  Mat<double> dq[2], dp[2];
  suite::Random random(4);
  const Mat<double> g = suite::random_matrix<double>(random, 37, 5);
  const auto run = [&](const auto& one, const Mat<double>& b, const Mat<double>& bs, int t) {
    using One = std::remove_cvref_t<decltype(one)>;
    const limpid::Inputs<One, double> in{.q = p.q, .k = p.k, .v = p.v, .h = b, .pq = p.pq, .pk = p.pk, .h_space = bs};
    Mat<double> out(37, 5), dk = p.k, dv = p.v;
    dq[t] = p.q, dp[t] = p.pq;
    limpid::Saved<One, double> saved;
    limpid::Call<One, double> call;
    call.saved = &saved;
    limpid::forward(one, in, out, call);
    limpid::backward(one, in, saved, g,
                     typename One::template Args<limpid::MutView<double>>{.q = dq[t], .k = dk, .v = dv, .pq = dp[t]});
    return out;
  };
  const Mat<double> a = run(op, h, hs, 0), b = run(nlm(), wide, wide_s, 1);
  CHECK((a - b).cwiseAbs().maxCoeff() < 1e-12);
  CHECK((dq[0] - dq[1]).cwiseAbs().maxCoeff() < 1e-12);
  CHECK((dp[0] - dp[1]).cwiseAbs().maxCoeff() < 1e-12);
  static_assert(sizeof(Op) > 0);
}

TEMPLATE_TEST_CASE("with ALiBi the map of queries far from all keys, made again from what was kept, has rows of 1", "",
                   float, double) {
  using S = TestType;
  const Index n = 64, m = 2;
  for (Index d : {1, 20})
    for (double x : {1e3, 1e4, 1e5}) {
      INFO("width " << d << ", " << x << " bandwidths apart");
      Mat<S> q(n, d), k(m, d), v = Mat<S>::Ones(m, 1), out(n, 1), map, dv(m, 1);
      for (Index i = 0; i < n; ++i) q.row(i).setConstant(S((x + double(i)) / std::sqrt(double(d))));
      k.row(0).setZero(), k.row(1).setConstant(S(1e-4));
      const Mat<S> slope = Mat<S>::Constant(1, 1, S(0.3)), h = Mat<S>::Ones(1, 1), g = Mat<S>::Ones(n, 1);
      const auto op = nlm(limpid::alibi(slope));
      using Op = std::remove_const_t<decltype(op)>;
      const limpid::Inputs<Op, S> in{.q = q, .k = k, .v = v, .h = h};
      limpid::Saved<Op, S> saved;
      limpid::Call<Op, S> call;
      call.map = &map, call.saved = &saved;
      limpid::forward(op, in, out, call);
      const S rounding = 8 * std::numeric_limits<S>::epsilon();
      CHECK((map.rowwise().sum().array() - 1).abs().maxCoeff() < rounding);
      limpid::backward(op, in, saved, g, typename Op::template Args<limpid::MutView<S>>{.v = dv});
      CHECK(std::abs(dv.sum() - S(n)) < S(n) * rounding);
    }
}

TEST_CASE("a place that is NaN, of a key that nobody sees or of a query that keeps nothing, does not show") {
  suite::Random random(8);
  const auto normal = [&](Index cols) { return suite::random_matrix<double>(random, 9, cols); };
  for (Index d : {3, 17, 40}) {
    const Mat<double> q = 100 * normal(d), k = 100 * normal(d), v = normal(3), pq = normal(2), pk = normal(2);
    limpid::Mat<bool> keep = limpid::Mat<bool>::Ones(9, 9);
    keep.row(0).setConstant(false), keep.col(8).setConstant(false);
    const Mat<double> g = Mat<double>::Ones(9, 3);
    const auto op = nlm(limpid::mask_matrix(keep));
    using Op = std::remove_const_t<decltype(op)>;
    const auto run = [&](const Mat<double>& places_q, const Mat<double>& places_k) {
      const limpid::Inputs<Op, double> in{.q = q, .k = k, .v = v, .pq = places_q, .pk = places_k};
      Mat<double> out(9, 3), all(9, 2 * d + 7);
      limpid::Saved<Op, double> saved;
      limpid::Call<Op, double> call;
      call.saved = &saved;
      limpid::forward(op, in, out, call);
      limpid::backward(op, in, saved, g,
                       typename Op::template Args<limpid::MutView<double>>{.q = all.leftCols(d),
                                                                           .k = all.middleCols(d, d),
                                                                           .v = all.middleCols(2 * d, 3),
                                                                           .pq = all.middleCols(2 * d + 3, 2),
                                                                           .pk = all.rightCols(2)});
      return (Mat<double>(9, 2 * d + 10) << out, all).finished();
    };
    const Mat<double> right = run(pq, pk);
    Mat<double> odd_q = pq, odd_k = pk;
    odd_q(0, 0) = odd_k(8, 0) = std::numeric_limits<double>::quiet_NaN();
    CHECK(run(odd_q, odd_k) == right);
  }
}
