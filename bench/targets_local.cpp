// limpid: the targets of masks that keep few of many pairs: images, windows, packed sequences, block masks; and of
// those that could keep few and keep all.
// SPDX-License-Identifier: MIT
#include <array>
#include <limpid/layer/patches.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/score/local.hpp>
#include <limpid/score/sink.hpp>
#include <numeric>
#include <random>

#include "memory.hpp"
#include "peers/photographs.hpp"
#include "session.hpp"

namespace bench {
namespace {

// ---- non-local means on an image ----

constexpr Index image_side = 512, patch_side = 7, window_side = 21;
constexpr double image_noise = 25.0 / 255, bandwidth = 0.9;  // in units of sigma side

/// A noisy grey picture with edges and slopes; a call makes the patches of its pixels and cleans it.
class ImageCall {
 public:
  Matrix<float> noisy, patches, out;

  explicit ImageCall(Index side, int threads)
      : grid_{side, side, patch_side},
        op_(limpid::nlm(limpid::neighbourhood({side, side}, {window_side, window_side}))),
        pool_(threads > 1 ? std::make_unique<limpid::ThreadPool>(threads) : nullptr) {
    noisy.resize(side * side, 1), out.resize(side * side, 1), patches.resize(side * side, patch_side * patch_side);
    fill_normal(noisy, 1, image_noise);
    for (Index i = 0; i < side; ++i)
      for (Index j = 0; j < side; ++j)
        noisy(i * side + j, 0) +=
            0.2f + 0.4f * static_cast<float>(i) / static_cast<float>(side) + ((i / 24 + j / 40) % 2 == 0 ? 0.2f : 0.0f);
    bandwidth_ = Matrix<float>::Constant(1, 1, static_cast<float>(bandwidth * image_noise * patch_side));
    in_.q = patches, in_.k = patches, in_.v = noisy, in_.h = bandwidth_;
  }
  ImageCall(const ImageCall&) = delete;
  ImageCall& operator=(const ImageCall&) = delete;

  void operator()() {
    limpid::patches(grid_, noisy, patches, {.workspace = &workspace_, .executor = executor()});
    limpid::forward(op_, in_, out, {.workspace = &workspace_, .executor = executor()});
  }

 private:
  using Op = decltype(limpid::nlm(limpid::Neighbourhood()));
  limpid::ExecutorRef executor() { return pool_ ? limpid::ExecutorRef(*pool_) : limpid::ExecutorRef(); }

  limpid::ImagePatches grid_;
  Op op_;
  std::unique_ptr<limpid::ThreadPool> pool_;
  Matrix<float> bandwidth_;
  limpid::Inputs<Op, float> in_;
  limpid::Workspace workspace_;
};

Candidate image_candidate(std::string name, int threads) {
  auto call = std::make_shared<ImageCall>(image_side, threads);
  return candidate(std::move(name), [call] { (*call)(); });
}

void image_rows(Session& s) {
  const std::string section = "Non-local means, 512 x 512 grey, patch 7, window 21 x 21";
  {
    // A call of the exact peer takes many seconds: three rounds.
    Group g;
    g.add(image_candidate("ours", 1));
    const std::string source = LIMPID_BENCH_SOURCE;
    const std::string call = peers::command(source + "/peers/photographs.py");
    for (const std::string& name : peers::names(call)) {
      char numbers[64];
      std::snprintf(numbers, sizeof numbers, " %.6f %d %d ", image_noise, int(patch_side), int(window_side));
      const std::string timed = call + " --seconds " + peers::quoted(name) + " " +
                                peers::quoted(source + "/../examples/data/photographs/camera.png") + numbers;
      g.add({name, [timed](long calls) {
               const auto lines = peers::lines_of(timed + std::to_string(calls));
               return lines.empty() ? none : std::strtod(lines.front().c_str(), nullptr);
             }});
    }
    g.run({std::min(3, s.effort.rounds), s.effort.seconds});
    struct Held {
      const char* name;
      Bound bound;
    };
    for (const Held& peer :
         {Held{"scikit-image fast", {0.7, 0.4}}, Held{"scikit-image slow", {0.05, 0.03}}, Held{"OpenCV", {none, 1.6}}})
      if (g.has(peer.name))
        s.add(section, std::string("time over that of ") + peer.name, g.over("ours", peer.name), Better::smaller,
              peer.bound.must, peer.bound.aim,
              short_number(g["ours"].median()) + " s over " + short_number(g[peer.name].median()) + " s");
  }
  Group g;
  Candidate one = peak_candidate<float>(s.one), two = peak_candidate<float>(s.two);
  one.name = "peak 1", two.name = "peak 2";
  g.add(one).add(two).add(image_candidate("1", 1)).add(image_candidate("2", 2));
  g.run(s.effort);
  s.add(section, "two threads over one", g.over("1", "2"), Better::larger, 1.85, 1.95,
        "the peak loop " + short_number(2 * g.over("peak 1", "peak 2").value) + "x");
  memory_row(s, section, "memory beyond inputs, output and patches, two threads",
             "--direction image --size " + std::to_string(image_side) + " --threads 2", {12, 4});
}

// ---- windows ----

void window_rows(Session& s) {
  const Index heads = 4, d = 32, window = 7, plain_n = 1024;
  const auto plain = make_problem<float>(heads, plain_n, d, false);
  for (Index side : {56, 128}) {
    const auto p = make_problem<float>(heads, side * side, d, false);
    const auto near = limpid::softmax(limpid::neighbourhood({side, side}, {window, window}));
    // of every axis, cut at both ends
    const Index reach = window / 2, along = window * side - reach * (reach + 1);
    const double pairs = double(along) * double(along), all = double(plain_n) * double(plain_n);
    Group g;
    g.add(our_forward<float>("forward plain", limpid::softmax(), plain));
    g.add(our_forward<float>("forward", near, p));
    g.add(our_backward<float>("backward plain", limpid::softmax(), plain));
    g.add(our_backward<float>("backward", near, p));
    g.run(s.effort);
    for (const std::string what : {"forward", "backward"})
      s.add("Window 7 x 7, d = 32, H = 4, time a kept pair over plain attention's at n = 1024",
            what + ", " + std::to_string(side) + " x " + std::to_string(side) + " tokens",
            ratio(g[what], g[what + " plain"], all / pairs), Better::smaller, 2.5, 1.8,
            short_number(1e3 * g[what].median()) + " ms");
  }
}

// ---- packed sequences ----

void packed_rows(Session& s) {
  const Index count = 64, longest = 512, d = 64;
  std::mt19937_64 random(1);
  std::vector<Index> cu{0}, lengths;
  for (Index i = 0; i < count; ++i) {
    lengths.push_back(16 + static_cast<Index>(random() % 497));
    cu.push_back(cu.back() + lengths.back());
  }
  const auto p = make_problem<float>(1, cu.back(), d, false);
  const auto padded = make_problem<float>(count, longest, d, false);  // heads stand for items, as they lie alike

  // One call after the other, with one workspace; what backward wants is kept of each.
  struct Singles {
    Matrix<float> out, dq, dk, dv;
    limpid::Workspace workspace;
    std::vector<limpid::Saved<decltype(limpid::softmax()), float>> saved;
    bool ready = false;
  };
  auto singles = std::make_shared<Singles>();
  for (auto* x : {&singles->out, &singles->dq, &singles->dk, &singles->dv}) *x = Matrix<float>::Zero(cu.back(), d);
  singles->saved.resize(std::size_t(count));
  const auto forward = [&cu, &p, singles](bool save) {
    for (std::size_t i = 0; i < std::size_t(count); ++i) {
      const auto rows = [&](const Matrix<float>& x) { return x.middleRows(cu[i], cu[i + 1] - cu[i]); };
      limpid::forward(limpid::softmax(), limpid::qkv(rows(p.q), rows(p.k), rows(p.v)),
                      singles->out.middleRows(cu[i], cu[i + 1] - cu[i]),
                      {.saved = save ? &singles->saved[i] : nullptr, .workspace = &singles->workspace});
    }
  };
  const auto backward = [&cu, &p, singles, forward] {
    if (!singles->ready) forward(true);
    singles->ready = true;
    for (std::size_t i = 0; i < std::size_t(count); ++i) {
      const auto rows = [&](auto& x) { return x.middleRows(cu[i], cu[i + 1] - cu[i]); };
      limpid::backward(limpid::softmax(), limpid::qkv(rows(p.q), rows(p.k), rows(p.v)), singles->saved[i], rows(p.dout),
                       limpid::grads(rows(singles->dq), rows(singles->dk), rows(singles->dv)),
                       {.workspace = &singles->workspace});
    }
  };
  Group g;
  const auto packed = limpid::softmax(limpid::packed(cu));
  g.add(our_forward<float>("forward", packed, p));
  g.add(candidate("forward, single calls", [forward] { forward(false); }));
  g.add(our_forward<float>("forward, padding", limpid::softmax(), padded));
  g.add(our_backward<float>("backward", packed, p));
  g.add(candidate("backward, single calls", backward));
  g.add(our_backward<float>("backward, padding", limpid::softmax(), padded));
  g.run(s.effort);
  const double real = double(cu.back()) / double(count * longest);
  for (const std::string what : {"forward", "backward"}) {
    s.add("Packed, 64 sequences of 16 to 512 tokens, d = 64", what + ", time over single calls",
          g.over(what, what + ", single calls"), Better::smaller, 1.05, 1.0,
          short_number(1e3 * g[what].median()) + " ms");
    s.add("Packed, 64 sequences of 16 to 512 tokens, d = 64", what + ", time over padding to 512",
          g.over(what, what + ", padding"), Better::smaller, none, real + 0.05,
          "of the padded tokens " + short_number(real) + " are real");
  }
}

// ---- block masks ----

void block_rows(Session& s) {
  const Index n = 2048, block = 128, across = n / block;
  const auto p = make_problem<float>(1, n, 64, false);
  // The diagonal, then others in a random order.
  const auto kept_of = [&](Index count) {
    std::vector<Index> others;
    for (Index i = 0; i < across * across; ++i)
      if (i / across != i % across) others.push_back(i);
    std::mt19937_64 random(1);
    for (std::size_t i = others.size(); i > 1; --i) std::swap(others[i - 1], others[random() % i]);
    Matrix<bool> kept = Matrix<bool>::Identity(across, across);
    for (Index i = 0; i < count - across; ++i) kept.data()[others[std::size_t(i)]] = true;
    return kept;
  };
  const Matrix<bool> half = kept_of(across * across / 2), tenth = kept_of((across * across + 5) / 10);
  Group g;
  struct Case {
    std::string name;
    const Matrix<bool>* kept;
    Bound bound;
  };
  const std::array<Case, 2> cases{{{"half", &half, {1.1, 1.03}}, {"a tenth", &tenth, {1.3, 1.1}}}};
  g.add(our_forward<float>("forward", limpid::softmax(), p));
  for (const Case& c : cases)
    g.add(our_forward<float>("forward " + c.name, limpid::softmax(limpid::blocks(*c.kept, block, block)), p));
  g.add(our_backward<float>("backward", limpid::softmax(), p));
  for (const Case& c : cases)
    g.add(our_backward<float>("backward " + c.name, limpid::softmax(limpid::blocks(*c.kept, block, block)), p));
  g.run(s.effort);
  for (const Case& c : cases)
    for (const std::string what : {"forward", "backward"})
      s.add("Block mask, blocks of 128, n = 2048, time over the kept share of plain attention's",
            what + ", " + c.name + " kept",
            ratio(g[what + " " + c.name], g[what], double(c.kept->size()) / double(c.kept->count())), Better::smaller,
            c.bound.must, c.bound.aim);
}

// ---- masks that keep all ----

void whole_rows(Session& s) {
  const Index n = 1024, block = 128;
  const auto p = make_problem<float>(1, n, 64, false);
  const std::vector<Index> length{n}, ids(std::size_t(n), 1);
  Matrix<float> logit = Matrix<float>::Zero(1, 1), dlogit = logit;
  const Matrix<bool> kept = Matrix<bool>::Constant(n / block, n / block, true);
  Group g;
  std::vector<std::string> names;
  const auto add = [&](const std::string& name, auto op) {
    g.add(our_forward<float>("forward, " + name, op, p));
    g.add(our_backward<float>("backward, " + name, op, p));
    if (name != "plain") names.push_back(name);
  };
  add("plain", limpid::softmax());
  add("key_lengths = m", limpid::softmax(limpid::key_lengths(length)));
  add("sink", limpid::softmax(limpid::sink(logit, dlogit)));
  add("documents = one", limpid::softmax(limpid::documents(ids)));
  add("blocks = all", limpid::softmax(limpid::blocks(kept, block, block)));
  g.run(s.effort);
  for (const std::string& name : names)
    for (const std::string what : {"forward, ", "backward, "})
      s.add("Masks that keep all, and a sink, time over plain attention, n = 1024", what + name,
            g.over(what + name, what + "plain"), Better::smaller, 1.02, 1.0);
}

}  // namespace

/// In a process of its own; inputs, output and patches are there before.
int image_memory_child(Index side, int threads) {
  // Code pages and thread stacks are not the filter's memory.
  ImageCall(64, threads)();
  ImageCall call(side, threads);
  call.patches.setZero(), call.out.setZero();
  return print_memory_of([&call] { call(); });
}

std::vector<Section> local_sections() {
  return {{"image", image_rows},
          {"window", window_rows},
          {"packed", packed_rows},
          {"blocks", block_rows},
          {"whole", whole_rows}};
}

}  // namespace bench
