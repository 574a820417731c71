// limpid: the naive baselines on Eigen's own products
// SPDX-License-Identifier: MIT
#include "peers.hpp"

namespace bench {

template <class S>
std::vector<Peer<S>> eigen_peers(const Problem<S>& problem, Direction direction, Crew& crew) {
  return naive_peers<S, EigenProducts<S>>("eigen", problem, direction, crew);
}

const PeerStatus& eigen_status() {
  static const PeerStatus status = [] {
    const std::string version = std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
                                std::to_string(EIGEN_MINOR_VERSION);
    return judged(
        "Eigen " + version + "; its own products, " + Eigen::SimdInstructionSetsInUse(),
        product_seconds([](const auto& a, const auto& b, auto& c) { EigenProducts<float>::nn(1.0f, a, b, c); }), true);
  }();
  return status;
}

template std::vector<Peer<float>> eigen_peers(const Problem<float>&, Direction, Crew&);
template std::vector<Peer<double>> eigen_peers(const Problem<double>&, Direction, Crew&);

}  // namespace bench
