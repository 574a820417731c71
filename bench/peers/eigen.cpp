// limpid: the naive baselines on Eigen's own products
// SPDX-License-Identifier: MIT
#include "peers.hpp"

namespace bench {

template <class S>
std::vector<Peer<S>> eigen_peers(const Problem<S>& problem, Direction direction, Crew& crew) {
  return naive_peers<S, EigenProducts<S>>("eigen", problem, direction, crew);
}

template std::vector<Peer<float>> eigen_peers(const Problem<float>&, Direction, Crew&);
template std::vector<Peer<double>> eigen_peers(const Problem<double>&, Direction, Crew&);

}  // namespace bench
