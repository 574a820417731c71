// limpid: the baselines and peers of the bench behind one interface
// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../crew.hpp"
#include "../machine.hpp"
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

/// What a peer is: "name and version; what it calls; how quick that is", or why it is not here.
struct PeerStatus {
  std::string text;
  bool used = false;
};

/// The plain product by which a peer is judged: 768 x 768 x 768 in float, on one thread.
inline constexpr Index product_size = 768;
inline constexpr double product_flop = 2.0 * product_size * product_size * product_size;

/// Whether a peer is the one that somebody would run who asks for speed: its own plain product on one thread comes to a
/// quarter of the peak loop, measured now. A reference BLAS comes to a fortieth, and whoever is compared with that
/// looks as many times quicker.
inline PeerStatus judged(const std::string& what, double product_seconds, bool always = false) {
  Crew one(1);
  const double rate = product_flop / product_seconds, share = rate / peak_now<float>(one);
  char text[128];
  std::snprintf(text, sizeof text, "; its product on one thread: %.0f GFLOP/s, %.2f of the peak loop", 1e-9 * rate,
                share);
  if (share >= 0.25 || always) return {what + text, true};
  return {what + text + ": left out, as nobody would run it so", false};
}

/// The best of so many calls of a product that others on the machine may disturb; `product` returns seconds.
template <class F>
double best_of_ten(const F& product) {
  double best = product();
  for (int i = 1; i < 10; ++i) best = std::min(best, product());
  return best;
}
/// Of square matrices, a peer's own: product(a, b, c).
template <class F>
double product_seconds(const F& product) {
  Matrix<float> a(product_size, product_size), b(product_size, product_size), c(product_size, product_size);
  fill_normal(a, 1), fill_normal(b, 2), fill_normal(c, 3);
  return best_of_ten([&] {
    const double start = now();
    product(a, b, c);
    return now() - start;
  });
}

/// Judged at the first call.
const PeerStatus& eigen_status();
const PeerStatus& openblas_status();
const PeerStatus& onednn_status();
const PeerStatus& torch_status();

struct NamedStatus {
  const char* name;
  const PeerStatus& status;
};
inline std::vector<NamedStatus> peer_statuses() {
  return {{"eigen", eigen_status()},
          {"openblas", openblas_status()},
          {"onednn", onednn_status()},
          {"torch", torch_status()}};
}
/// Name and version of what a candidate calls, to stand beside its figure.
inline std::string called_by(const std::string& candidate) {
  for (const NamedStatus& s : peer_statuses())
    if (candidate.rfind(s.name, 0) == 0) return s.status.text.substr(0, s.status.text.find(';'));
  return "";
}

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
