// limpid: the baselines and peers of the bench behind one interface
// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../crew.hpp"
#include "../naive.hpp"
#include "../timing.hpp"

namespace bench {

/// Somebody else's attention on one problem. `seconds(calls)` of a candidate is the time of that many calls; `result`
/// reads what the last call wrote (out, or dq below dk below dv), empty where a peer cannot tell.
template <class S>
struct Peer {
  Candidate candidate;
  std::function<Matrix<S>()> result;
};

enum class Direction { forward, backward };

/// Each returns the peers of its library for this problem, none where it has nothing to offer (a type, a direction, a
/// mask it does not do). Problem and crew must outlive them. Peers run on crew.size() threads.
template <class S>
std::vector<Peer<S>> eigen_peers(const Problem<S>& problem, Direction direction, Crew& crew);
template <class S>
std::vector<Peer<S>> openblas_peers(const Problem<S>& problem, Direction direction, Crew& crew);
template <class S>
std::vector<Peer<S>> onednn_peers(const Problem<S>& problem, Direction direction, Crew& crew);
template <class S>
std::vector<Peer<S>> torch_peers(const Problem<S>& problem, Direction direction, Crew& crew);

/// One line a peer: its version, or why it is not here.
std::string openblas_status();
std::string onednn_status();
std::string torch_status();

/// All of them, `eigen` first.
template <class S>
std::vector<Peer<S>> all_peers(const Problem<S>& problem, Direction direction, Crew& crew) {
  std::vector<Peer<S>> all = eigen_peers(problem, direction, crew);
  for (auto* more : {&openblas_peers<S>, &onednn_peers<S>, &torch_peers<S>})
    for (Peer<S>& peer : (*more)(problem, direction, crew)) all.push_back(std::move(peer));
  return all;
}

/// What the naive baselines of any product library have in common.
template <class S, class Products>
std::vector<Peer<S>> naive_peers(const std::string& library, const Problem<S>& problem, Direction direction,
                                 Crew& crew) {
  using N = Naive<S, Products>;
  auto naive = std::make_shared<N>(problem, crew);
  const auto out = [naive] { return naive->out; };
  if (direction == Direction::forward) {
    std::vector<Peer<S>> peers;
    peers.push_back({candidate(library + "_fresh", [naive] { naive->forward_fresh(); }), out});
    // Its own state, so that asking for one of the two does not hold the memory of the other.
    auto kept = std::make_shared<N>(problem, crew);
    peers.push_back({candidate(library + "_kept", [kept] { kept->forward_kept(); }), [kept] { return kept->out; }});
    return peers;
  }
  // P is stored by the first call, which is never timed.
  auto ready = std::make_shared<bool>(false);
  return {{candidate(library + "_stored",
                     [naive, ready] {
                       if (!*ready) naive->forward_stored();
                       *ready = true;
                       naive->backward();
                     }),
           [naive] {
             Matrix<S> all(3 * naive->dq.rows(), naive->dq.cols());
             all << naive->dq, naive->dk, naive->dv;
             return all;
           }}};
}

}  // namespace bench
