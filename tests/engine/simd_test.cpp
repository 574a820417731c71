// limpid: exp, the register tile and the transposes against plain loops.
// SPDX-License-Identifier: MIT
#include <limpid/engine/pack.hpp>
#include <limpid/engine/tile.hpp>

#include <cstring>
#include <vector>

#include "support/catch.hpp"

using limpid::Index;
using limpid::Mat;
using limpid::View;
using namespace limpid::detail;

namespace {

template <class P>
typename P::Scalar exp_of(typename P::Scalar x) {
  std::vector<typename P::Scalar> lanes(static_cast<std::size_t>(P::lanes), x);
  P::store(lanes.data(), P::exp(P::load(lanes.data())));
  return lanes.back();
}

template <class S>
S entry(Index i, Index j) {
  return S((i * 37 + j * 11) % 23 - 11) / S(8);
}

template <class P>
struct StoreTile {
  typename P::Scalar* out;
  Index ld;
  void operator()(Index r, Index lane, const typename P::V& acc) const { P::store(out + r * ld + lane, acc); }
};

}  // namespace

TEMPLATE_TEST_CASE("exp is right to three units in the last place over the whole range.", "", float, double) {
  using S = TestType;
  using P = Native<S>;
  const double low = (sizeof(S) == 4 ? -125 : -1021) * std::log(2.0);
  double worst = 0, far = 0;
  for (double x = low; x < 80; x += sizeof(S) == 4 ? 0.00271 : 0.0137) {
    const S at = S(x);
    if (static_cast<double>(at) < low) continue;
    const long double wanted = std::exp(static_cast<long double>(at));
    const double error = static_cast<double>(std::abs(static_cast<long double>(exp_of<P>(at)) - wanted) / wanted);
    (std::abs(x) < 1 ? worst : far) =
        std::max(std::abs(x) < 1 ? worst : far, error / (std::abs(x) < 1 ? 1 : std::abs(x)));
  }
  // near 0, where weights count, by the polynomial; farther off also by what log2(e) is rounded to, times x
  CHECK(worst <= 1.5 * std::numeric_limits<S>::epsilon());
  CHECK(far <= 1.5 * std::numeric_limits<S>::epsilon());
}

TEMPLATE_TEST_CASE("exp is exactly zero below the smallest normal number, and NaN stays NaN.", "", float, double) {
  using S = TestType;
  using P = Native<S>;
  const S low = S((sizeof(S) == 4 ? -126 : -1022) * std::log(2.0));
  for (S x : {std::nextafter(low, S(-1e9)), low - 1, low - 100, S(-1e30), -std::numeric_limits<S>::infinity()})
    CHECK(exp_of<P>(x) == S(0));
  CHECK(std::isnan(exp_of<P>(std::numeric_limits<S>::quiet_NaN())));
  CHECK(exp_of<P>(S(0)) == S(1));
}

TEMPLATE_TEST_CASE("exp of several vectors is that of each.", "", float, double) {
  using S = TestType;
  using P = Native<S>;
  typename P::V x[3], one[3];
  for (int v = 0; v < 3; ++v) {
    std::vector<S> lanes(static_cast<std::size_t>(P::lanes));
    for (std::size_t l = 0; l < lanes.size(); ++l) lanes[l] = S(-7.3) * S(double(l)) - S(v);
    one[v] = P::exp(x[v] = P::load(lanes.data()));
  }
  P::template exp_each<3>(x);
  for (int v = 0; v < 3; ++v) CHECK(std::memcmp(&x[v], &one[v], sizeof x[v]) == 0);
}

TEMPLATE_TEST_CASE("The register tile is the triple loop, whatever is left over.", "", float, double, long double) {
  using S = TestType;
  using P = Native<S>;
  for (Index rows = 1; rows <= 2 * P::tile_rows + 3; ++rows)
    for (Index vectors = 1; vectors <= 2 * P::tile_vectors + 1; ++vectors)
      for (Index inner : {Index(0), Index(1), Index(7)}) {
        const Index width = vectors * P::lanes, lda = 19;
        Mat<S> a(rows, lda), at(inner + 1, rows + 2), b(inner + 1, width);
        for (Index i = 0; i < rows; ++i)
          for (Index k = 0; k < inner; ++k) a(i, k) = at(k, i) = entry<S>(i, k);
        for (Index k = 0; k < inner; ++k)
          for (Index j = 0; j < width; ++j) b(k, j) = entry<S>(j, k + 5);
        Mat<S> by_rows(rows, width), by_columns(rows, width);
        product<P, Transposed::none>(rows, vectors, inner, a.data(), lda, b.data(), width,
                                     StoreTile<P>{by_rows.data(), width});
        product<P, Transposed::a>(rows, vectors, inner, at.data(), rows + 2, b.data(), width,
                                  StoreTile<P>{by_columns.data(), width});
        bool same = true;  // the entries are small fractions: every sum is exact
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < width; ++j) {
            S sum(0);
            for (Index k = 0; k < inner; ++k) sum += a(i, k) * b(k, j);
            same = same && by_rows(i, j) == sum && by_columns(i, j) == sum;
          }
        INFO(rows << " rows, " << vectors << " vectors, inner " << inner);
        CHECK(same);
      }
}

TEMPLATE_TEST_CASE("Transposing into whole vectors and out again changes nothing but the padding.", "", float, double) {
  using S = TestType;
  using P = Native<S>;
  const Index width = 2 * P::lanes;
  const std::vector<S> ones(static_cast<std::size_t>(width), S(1));
  for (Index rows = 1; rows <= width; ++rows)
    for (Index cols : {Index(1), Index(3), Index(P::lanes), Index(2 * P::lanes + 5)}) {
      Mat<S> m(rows, cols + 2), back = Mat<S>::Zero(rows, cols + 3), t = Mat<S>::Constant(cols, width, S(99));
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols + 2; ++j) m(i, j) = entry<S>(i, j);
      transpose_into<P>(View<S>(m).block(0, 1, rows, cols), t.data(), width);
      transpose_out<P>(t.data(), width, ones.data(), limpid::MutView<S>(back).block(0, 2, rows, cols));
      bool same = true;
      for (Index j = 0; j < cols; ++j)
        for (Index i = 0; i < width; ++i)
          same = same && t(j, i) == (i < rows ? m(i, j + 1) : S(0)) && (i >= rows || back(i, j + 2) == m(i, j + 1));
      for (Index i = 0; i < rows; ++i)
        same = same && back(i, 0) == S(0) && back(i, 1) == S(0) && back(i, cols + 2) == S(0);
      INFO(rows << " x " << cols);
      CHECK(same);
    }
}
