// limpid: the naive baselines on OpenBLAS products
// SPDX-License-Identifier: MIT
#include "peers.hpp"

#if LIMPID_BENCH_OPENBLAS

#include <cblas.h>

// Not in every cblas.h that links with OpenBLAS.
extern "C" void openblas_set_num_threads(int);
extern "C" char* openblas_get_config(void);
extern "C" char* openblas_get_corename(void);
extern "C" int openblas_get_parallel(void);

namespace bench {
namespace {

// Called directly, not through EIGEN_USE_BLAS: that macro
// changes templates other files of this program instantiate too.
template <class S>
struct BlasProducts {
  using Ref = Eigen::Ref<Matrix<S>, 0, Eigen::OuterStride<>>;
  using Const = Eigen::Ref<const Matrix<S>, 0, Eigen::OuterStride<>>;
  static void nt(S alpha, const Const& a, const Const& b, Ref c) {
    gemm(CblasNoTrans, CblasTrans, a.rows(), b.rows(), a.cols(), alpha, a, b, c);
  }
  static void nn(S alpha, const Const& a, const Const& b, Ref c) {
    gemm(CblasNoTrans, CblasNoTrans, a.rows(), b.cols(), a.cols(), alpha, a, b, c);
  }
  static void tn(S alpha, const Const& a, const Const& b, Ref c) {
    gemm(CblasTrans, CblasNoTrans, a.cols(), b.cols(), a.rows(), alpha, a, b, c);
  }

 private:
  static void gemm(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, Index m, Index n, Index k, S alpha, const Const& a,
                   const Const& b, Ref c) {
    auto i = [](Index x) { return static_cast<int>(x); };
    if constexpr (std::is_same_v<S, float>)
      cblas_sgemm(CblasRowMajor, ta, tb, i(m), i(n), i(k), alpha, a.data(), i(a.outerStride()), b.data(),
                  i(b.outerStride()), 0, c.data(), i(c.outerStride()));
    else
      cblas_dgemm(CblasRowMajor, ta, tb, i(m), i(n), i(k), alpha, a.data(), i(a.outerStride()), b.data(),
                  i(b.outerStride()), 0, c.data(), i(c.outerStride()));
  }
};

}  // namespace

template <class S>
std::vector<Peer<S>> openblas_peers(const Problem<S>& problem, Direction direction, Crew& crew) {
  if (!openblas_status().used) return {};
  // One thread inside BLAS, ours over heads or query blocks: on these thin shapes that is the quicker way by far.
  openblas_set_num_threads(1);
  return naive_peers<S, BlasProducts<S>>("openblas", problem, direction, crew);
}

const PeerStatus& openblas_status() {
  static const PeerStatus status = [] {
    openblas_set_num_threads(1);
    const std::string config = openblas_get_config();  // "OpenBLAS 0.3.21 DYNAMIC_ARCH ..."
    const std::size_t end = config.find(' ', config.find(' ') + 1);
    const char* threads[] = {"without threads", "with POSIX threads", "with OpenMP"};
    const int kind = openblas_get_parallel();
    return judged(
        config.substr(0, end) + "; kernels for " + openblas_get_corename() + ", built " +
            (kind >= 0 && kind < 3 ? threads[kind] : "somehow") + ", one thread in each product",
        product_seconds([](const auto& a, const auto& b, auto& c) { BlasProducts<float>::nn(1.0f, a, b, c); }));
  }();
  return status;
}

}  // namespace bench

#else

namespace bench {
template <class S>
std::vector<Peer<S>> openblas_peers(const Problem<S>&, Direction, Crew&) {
  return {};
}
const PeerStatus& openblas_status() {
  static const PeerStatus status{"OpenBLAS not found when the bench was configured: skipped"};
  return status;
}
}  // namespace bench

#endif

namespace bench {
template std::vector<Peer<float>> openblas_peers(const Problem<float>&, Direction, Crew&);
template std::vector<Peer<double>> openblas_peers(const Problem<double>&, Direction, Crew&);
}  // namespace bench
