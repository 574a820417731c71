// limpid: what the rows of whole models and of explanations share: models of random weights, timing of this thread
// SPDX-License-Identifier: MIT
#pragma once

#include <ctime>
#include <iostream>
#include <limpid/model/vit.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "peers/process.hpp"
#include "session.hpp"

namespace bench {

/// A checkpoint in memory.
class File {
 public:
  void add(const std::string& name, std::vector<Index> shape, bool ones = false) {
    Matrix<float> values(1, 1);
    Index size = 1;
    for (const Index extent : shape) size *= extent;
    values.resize(1, size);
    fill_normal(values, static_cast<unsigned>(++count_));
    values *= 0.02f;
    if (ones) values.setOnes();
    limpid::io::Tensor tensor = limpid::io::Tensor::from(values);
    tensor.shape = std::move(shape);
    file_.tensors[name] = std::move(tensor);
  }
  void linear(const std::string& name, Index out, Index in, bool bias = true) {
    add(name + ".weight", {out, in});
    if (bias) add(name + ".bias", {out});
  }
  void norm(const std::string& name, Index width) {
    add(name + ".weight", {width}, true);
    add(name + ".bias", {width});
  }
  /// The file itself, for a peer that is to read the same weights.
  const std::vector<std::byte>& bytes() const { return bytes_; }
  /// Good for as long as this object lives.
  limpid::io::Checkpoint checkpoint() {
    bytes_ = limpid::io::serialize_safetensors(file_);
    file_ = {};
    return {bytes_.data(), bytes_.size(), "model"};
  }

 private:
  limpid::io::Safetensors file_;
  std::vector<std::byte> bytes_;
  int count_ = 0;
};

/// A ViT of DINOv2-small's shape.
struct Image {
  static constexpr Index layers = 12, width = 384, mlp = 1536, patch = 14, across = 16, side = across * patch;
  File file;
  const Index heads;
  limpid::model::Vit<float> model;

  /// classes: with a head for so many.
  explicit Image(Index heads_ = 6, Index classes = 0)
      : heads(heads_), model(made(file, classes).checkpoint(), {.heads = heads}) {
    model.pack();
  }
  static File& made(File& f, Index classes) {
    f.add("patch_embed.proj.weight", {width, 3, patch, patch});
    f.add("patch_embed.proj.bias", {width});
    f.add("cls_token", {1, 1, width});
    f.add("pos_embed", {1, across * across + 1, width});
    for (Index l = 0; l < layers; ++l) {
      const std::string block = "blocks." + std::to_string(l) + ".";
      for (const char* norm : {"norm1", "norm2"}) f.norm(block + norm, width);
      f.linear(block + "attn.qkv", 3 * width, width);
      f.linear(block + "attn.proj", width, width);
      f.linear(block + "mlp.fc1", mlp, width);
      f.linear(block + "mlp.fc2", width, mlp);
      for (const char* scale : {"ls1.gamma", "ls2.gamma"}) f.add(block + scale, {width}, true);
    }
    f.norm("norm", width);
    if (classes > 0) f.linear("head", classes, width);
    return f;
  }
  Matrix<float> pixels() const {
    Matrix<float> out(side * side, 3);
    fill_normal(out, 1);
    return out;
  }
};

/// Seconds of this thread. With one thread nothing else is at work, and what else the machine does stays out.
inline double thread_now() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}
template <class F>
Candidate on_this_thread(std::string name, F f) {
  return {std::move(name), [f](long calls) mutable {
            const double start = thread_now();
            for (long i = 0; i < calls; ++i) f();
            return thread_now() - start;
          }};
}

/// Starts a script of peers/ by the first Python that has torch 2, and says so, or that there is none.
inline bool start_torch(Process& process, const std::string& script) {
  for (const std::string& python : Process::pythons(LIMPID_BENCH_SOURCE)) {
    if (!process.start(python, LIMPID_BENCH_SOURCE "/peers/" + script)) continue;
    if (const std::string hello = process.line(); hello.rfind("torch", 0) == 0) {
      std::cerr << "  peers: " << hello << '\n';
      return true;
    }
    process.close();
  }
  std::cerr << "  torch 2 not found (pip install torch; LIMPID_BENCH_PYTHON names its python): skipped\n";
  return false;
}

/// The time of `ours` over that of the fastest peer; told: what the row says behind the times; effort: the session's
/// where none is given.
inline void row_over_fastest(Session& s, const std::string& section, const std::string& name, Candidate ours,
                             const std::vector<Candidate>& peers, Bound bound, const std::string& told = {},
                             const std::optional<Effort>& effort = {}) {
  if (peers.empty()) return;
  Group g;
  g.add(std::move(ours));
  for (const Candidate& peer : peers) g.add(peer);
  g.run(effort.value_or(s.effort));
  const std::string* fastest = &peers.front().name;
  std::string note = short_number(1e3 * g["ours"].median()) + " ms; ";
  for (const Candidate& peer : peers) {
    if (g[peer.name].median() < g[*fastest].median()) fastest = &peer.name;
    note += (&peer == &peers.front() ? "" : ", ") + peer.name + " " + short_number(1e3 * g[peer.name].median());
  }
  s.add(section, name, ratio(g["ours"], g[*fastest]), Better::smaller, bound.must, bound.aim, note + told);
}

}  // namespace bench
