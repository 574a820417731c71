// limpid: the targets of explanations: relevance beside every operator's gradients, rollout, integrated gradients, all
// methods of an image beside PyTorch with stored maps, memory, a report
// SPDX-License-Identifier: MIT
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limpid/explain/explanation.hpp>
#include <limpid/explain/input_gradients.hpp>
#include <limpid/explain/relevance.hpp>
#include <limpid/explain/rollout.hpp>
#include <limpid/explain/views.hpp>

#include "../examples/explain_report.hpp"
#include "memory.hpp"
#include "models.hpp"
#include "operators.hpp"

namespace bench {
namespace {

using limpid::MutView, limpid::View;
const auto attention = limpid::softmax();
using Op = std::remove_cv_t<decltype(attention)>;

// ---- relevance beside gradients ----

/// Generic relevance's row, c_j = sum_i w_i part(A_ij dA_ij), beside the gradients, for every operator of the list; then
/// the rows of all four parts and the head's importance.
void operator_rows(Session& s) {
  suite::Sizes sizes;
  sizes.n = sizes.m = 1024, sizes.d = sizes.dv = 64;
  RunnerOptions all;
  all.all_inputs = true;
  Group g;
  std::vector<std::string> names;
  const auto add = [&](const std::string& name, const std::shared_ptr<Runner>& o) {
    g.add(on_this_thread(name, [o] { o->backward(); }));
    g.add(on_this_thread(name + " row", [o] { o->backward_explained(false); }));
    g.add(on_this_thread(name + " parts", [o] { o->backward_explained(true); }));
    names.push_back(name);
  };
  suite::for_each_operator([&](auto entry) {
    using Entry = decltype(entry);
    add(std::string(Entry::name) + ", " + sized(sizes.n), make_runner<Entry>(sizes, all));
  });
  sizes.n = sizes.m = 4096;
  add("softmax, " + sized(sizes.n), make_runner<suite::entry_softmax>(sizes, all));
  g.run(s.effort);
  for (const std::string& name : names)
    s.add("The relevance row emitted inside backward, over backward alone", name, g.over(name + " row", name),
          Better::smaller, 1.06, 1.03);
  for (const std::string& name : names)
    s.add("The rows of all four parts and the head's importance, over backward alone", name,
          g.over(name + " parts", name), Better::smaller, 1.15, 1.08);
}

// ---- rollout ----

void rollout_rows(Session& s) {
  struct Case {
    Index heads, n;
  };
  constexpr Index layers = 4, d = 64;
  for (const Case& c : {Case{1, 1024}, Case{1, 4096}, Case{12, 257}}) {
    const auto p = make_problem<float>(c.heads, c.n, d, false);
    const Matrix<float> q = side_by_side(p.q, c.heads), k = side_by_side(p.k, c.heads), v = side_by_side(p.v, c.heads);
    Matrix<float> out(c.n, c.heads * d);
    limpid::Workspace workspace;
    limpid::Saved<Op, float> saved;
    limpid::forward(attention, limpid::qkv(q, k, v), out, {.heads = c.heads, .saved = &saved, .workspace = &workspace});
    limpid::Rollout<float> rollout;
    Group g;
    g.add(on_this_thread("forward", [&] {
      for (Index l = 0; l < layers; ++l)
        limpid::forward(attention, limpid::qkv(q, k, v), out, {.heads = c.heads, .workspace = &workspace});
    }));
    g.add(on_this_thread("ours", [&] {
      rollout.start(c.n, 0);
      for (Index l = 0; l < layers; ++l)
        rollout.layer(attention, limpid::qkv(q, k, v), saved, {.workspace = &workspace});
    }));
    g.run(s.effort);
    s.add("The rollout row of a token, over the forward pass of the attentions, 4 layers",
          "H = " + std::to_string(c.heads) + ", " + sized(c.n), g.over("ours", "forward"), Better::smaller, 0.6, 0.5);
  }
}

// ---- gradients of the input ----

/// A vision transformer, an image of so many patches each way, and the logit of a class: as integrated_gradients and
/// smooth_grad want a model that takes several inputs at once.
struct Logit {
  const Image& image;
  Index side, label;
  limpid::Workspace* workspace;
  limpid::model::VitSaved<Op, float>* saved;

  void operator()(View<float> x, MutView<float> dx, MutView<float> scores) const {
    const Index items = scores.cols;
    image.model.forward(attention, x, side, side, *saved, {.batch = items, .keep = dx.given(), .workspace = workspace});
    for (Index i = 0; i < items; ++i) scores(0, i) = saved->logits(i, label);
    if (!dx.given()) return;
    Matrix<float> dlogits = Matrix<float>::Zero(items, image.model.classes());
    dlogits.col(label).setOnes();
    image.model.backward(attention, *saved, View<float>(dlogits), View<float>(), nullptr, dx, nullptr,
                         {.workspace = workspace});
  }
};

constexpr Index label = 3, classes = 10;

void integrated_rows(Session& s) {
  constexpr Index steps = 32;
  const Image image(6, classes);
  const Matrix<float> pixels = image.pixels();
  for (const Index across : {5, 16}) {
    const Index side = across * Image::patch;
    const Matrix<float> x = pixels.topRows(side * side);
    Matrix<float> dx(x.rows(), x.cols()), score(1, 1);
    limpid::Workspace workspace;
    limpid::model::VitSaved<Op, float> saved;
    const Logit logit{image, side, label, &workspace, &saved};
    Group g;
    g.add(on_this_thread("pass", [&] { logit(View<float>(x), MutView<float>(dx), MutView<float>(score)); }));
    for (const Index at_once : {1, 2, 4})
      g.add(on_this_thread(std::to_string(at_once), [&, at_once] {
        const auto found = limpid::integrated_gradients(logit, View<float>(x), steps, {}, at_once);
        if (!std::isfinite(found.gap)) std::abort();
      }));
    g.run({std::min(3, s.effort.rounds), s.effort.seconds});
    for (const Index at_once : {1, 2, 4})
      s.add("Integrated gradients of an image, 12 layers x 384, 32 steps, over 32 forward and backward passes",
            std::to_string(across * across + 1) + " tokens, " + std::to_string(at_once) + " at once",
            ratio(g[std::to_string(at_once)], g["pass"], 1.0 / double(steps)), Better::smaller,
            at_once == 4 ? 1.02 : none, at_once == 4 ? 0.9 : none,
            "a pass " + short_number(1e3 * g["pass"].median()) + " ms");
  }
}

// ---- all methods, beside PyTorch ----

constexpr Index peer_steps = 8, peer_samples = 8;
constexpr double peer_sigma = 0.15;

/// What explanations of one image are made of, found one after another.
class Explanations {
 public:
  const Image image{6, classes};
  const Matrix<float> pixels = image.pixels(), flat = pixels.colwise().mean().replicate(pixels.rows(), 1);
  std::vector<float> found;

  /// What one forward and one backward pass give: raw attention, rollout, relevance of every part, Grad-CAM, gradient x
  /// input.
  void once() {
    found.clear();
    const Index heads = image.heads;
    image.model.forward(attention, pixels, side, side, saved_, {.workspace = &workspace_});
    const Index n = saved_.tokens.rows();
    auto& blocks = saved_.stack.blocks;
    const auto in = [&](std::size_t l) {
      return limpid::qkv(blocks[l].attention.q, blocks[l].attention.k, blocks[l].attention.v);
    };
    Matrix<float> raw = Matrix<float>::Zero(1, n), row(1, n);
    const std::size_t last = blocks.size() - 1;
    for (Index h = 0; h < heads; ++h) {
      limpid::map_block(attention, in(last), blocks[last].attention.attention, 0, 0, row,
                        {.head = h, .workspace = &workspace_});
      raw += row / static_cast<float>(heads);
    }
    keep(raw);
    why_.start(n, 0);
    Matrix<float> dlogits = Matrix<float>::Zero(1, classes);
    dlogits(0, label) = 1;
    image.model.backward(attention, saved_, View<float>(dlogits), View<float>(), nullptr, {}, why_,
                         {.workspace = &workspace_});
    keep(why_.rollout());
    for (const limpid::Part part : parts) keep(why_.relevance(part));
    keep(why_.gradcam());
    keep(why_.gradient_times_input().rightCols(n - 1));
  }
  /// Integrated gradients and SmoothGrad too.
  void all() {
    once();
    const Logit logit{image, side, label, &workspace_, &passes_};
    const auto path = limpid::integrated_gradients(logit, View<float>(pixels), peer_steps, flat);
    keep_patches(path.entries);
    found.push_back(path.gap);
    const auto smooth = limpid::smooth_grad(logit, View<float>(pixels),
                                            {.samples = peer_samples, .sigma = peer_sigma, .seed = 1, .squared = true});
    keep_patches(smooth.entries);
  }

 private:
  static constexpr Index side = Image::side;

  void keep(const Matrix<float>& values) { found.insert(found.end(), values.data(), values.data() + values.size()); }
  /// Sums over channels and the pixels of every patch.
  void keep_patches(const Matrix<float>& entries) {
    Matrix<float> sums = Matrix<float>::Zero(Image::across, Image::across);
    for (Index i = 0; i < entries.rows(); ++i)
      sums(i / side / Image::patch, i % side / Image::patch) += entries.row(i).sum();
    keep(sums);
  }

  static constexpr std::array parts{limpid::Part::pos, limpid::Part::neg, limpid::Part::abs, limpid::Part::signed_};
  limpid::Workspace workspace_;
  limpid::Explanation<float> why_{
      {.relevance = {parts.begin(), parts.end()}, .rollout = limpid::RolloutOptions{}, .input = true, .gradcam = 1}};
  limpid::model::VitSaved<Op, float> saved_, passes_;
};

/// peers/torch_explanations.py on the same weights, image and noise.
class TorchExplanations {
 public:
  explicit TorchExplanations(const Explanations& ours)
      : folder_(std::filesystem::temp_directory_path() / ("limpid-bench-" + std::to_string(getpid()))) {
    there_ = start_torch(process_, "torch_explanations.py");
    if (!there_) return;
    std::filesystem::create_directories(folder_);
    const auto write = [&](const char* name, const void* data, std::size_t bytes) {
      std::ofstream(folder_ / name, std::ios::binary)
          .write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    };
    const auto& file = ours.image.file.bytes();
    write("model.safetensors", file.data(), file.size());
    write("pixels.f32", ours.pixels.data(), static_cast<std::size_t>(ours.pixels.size()) * sizeof(float));
    std::vector<float> noise(static_cast<std::size_t>(peer_samples * ours.pixels.size()));
    limpid::detail::NormalNumbers normal(1);
    for (float& x : noise) x = static_cast<float>(peer_sigma * normal());
    write("noise.f32", noise.data(), noise.size() * sizeof(float));
    const std::string answer = process_.ask("open " + folder_.string() + " " + std::to_string(ours.image.heads) + " " +
                                            std::to_string(label) + " " + std::to_string(peer_steps));
    there_ = answer == "ready";
    if (!there_) std::cerr << "  PyTorch is left out: " << answer << '\n';
  }
  ~TorchExplanations() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  TorchExplanations(const TorchExplanations&) = delete;
  TorchExplanations& operator=(const TorchExplanations&) = delete;

  /// Of these ways those that can and find what ours finds; a line says what does not.
  std::vector<Candidate> candidates(const std::string& what, const std::vector<std::string>& ways,
                                    const std::vector<float>& ours, std::string& note) {
    std::vector<Candidate> all;
    for (const std::string& how : ways) {
      if (!there_) break;
      if (const std::string answer = process_.ask(what + " " + how + " 1"); answer.rfind("no", 0) == 0) {
        std::cerr << "  PyTorch, " << how << ", is left out: " << answer.substr(2) << '\n';
        continue;
      }
      const double apart = largest_difference(what, ours);
      if (!(apart < 1e-3)) {
        std::cerr << "  PyTorch, " << how << ", is left out: its numbers are " << apart << " from ours\n";
        continue;
      }
      char text[48];
      std::snprintf(text, sizeof text, "%sapart %.1e", note.empty() ? "" : ", ", apart);
      note += text;
      all.push_back({how, [this, what, how](long calls) {
                       return std::strtod(process_.ask(what + " " + how + " " + std::to_string(calls)).c_str(),
                                          nullptr);
                     }});
    }
    return all;
  }

 private:
  /// Over the largest entry, the worst of all methods.
  double largest_difference(const std::string& what, const std::vector<float>& ours) const {
    std::ifstream file(folder_ / (what + ".f32"), std::ios::binary);
    std::vector<float> theirs(ours.size() + 1);
    file.read(reinterpret_cast<char*>(theirs.data()), static_cast<std::streamsize>(theirs.size() * sizeof(float)));
    if (file.gcount() != static_cast<std::streamsize>(ours.size() * sizeof(float))) return none;
    constexpr std::size_t tokens = Image::across * Image::across + 1, patches = tokens - 1;
    double worst = 0;
    std::size_t first = 0;
    // raw, rollout, four parts; Grad-CAM, gradient x input; integrated gradients, their gap (near 0: over the map's),
    // SmoothGrad
    for (const std::size_t count :
         {tokens, tokens, tokens, tokens, tokens, tokens, patches, patches, patches + 1, patches}) {
      if (first == ours.size()) break;
      double most = 0, apart = 0;
      for (std::size_t i = first; i < first + count; ++i) {
        most = std::max(most, std::fabs(double(ours[i])));
        const double a = std::fabs(double(ours[i]) - double(theirs[i]));
        apart = a <= apart ? apart : a;  // a NaN shows
      }
      const double share = apart / most;
      worst = share <= worst ? worst : share;
      first += count;
    }
    return worst;
  }

  std::filesystem::path folder_;
  Process process_;
  bool there_ = false;
};

void peer_rows(Session& s) {
  auto ours = std::make_shared<Explanations>();
  TorchExplanations torch(*ours);
  const auto row = [&](const std::string& what, const std::string& name, const std::vector<std::string>& ways,
                       Bound bound, Effort effort, auto call) {
    call();
    std::string note;
    const std::vector<Candidate> peers = torch.candidates(what, ways, ours->found, note);
    row_over_fastest(
        s,
        "Explanations of an image, ViT of 12 layers x 384, 257 tokens, one thread, time over PyTorch's with stored "
        "maps",
        name, on_this_thread("ours", call), peers, bound, "; " + note, effort);
  };
  const auto once = [&] { ours->once(); };
  const auto all = [&] { ours->all(); };
  const std::vector<std::string> ways{"one", "four", "compiled"};
  const Effort few{std::min(3, s.effort.rounds), s.effort.seconds};
  const std::string methods = "raw attention, rollout, relevance of four parts, Grad-CAM, gradient x input";
  const std::string more = "these, integrated gradients of 8 steps and SmoothGrad of 8 samples";
  row("published", methods + "; PyTorch's as published, each by passes of its own", {"one"}, {0.35, 0.2}, s.effort,
      once);
  row("all_published", more + "; PyTorch's as published", ways, {0.35, 0.2}, few, all);
  row("once", methods + "; PyTorch's all from one pass, written for this row", {"one"}, {none, none}, s.effort, once);
  row("all", more + "; PyTorch's so too", ways, {0.35, 0.2}, few, all);
}

// ---- memory ----

void memory_rows(Session& s) {
  std::map<std::string, std::array<double, 2>> held;
  for (const char* direction : {"stack", "relevance"}) {
    std::FILE* child = popen((s.self + " memory --size 16384 --threads 2 --direction " + direction).c_str(), "r");
    std::array<double, 2>& h = held[direction];
    if (!child || std::fscanf(child, "%lf %lf", &h[0], &h[1]) != 2) h = {none, none};
    if (child) pclose(child);
  }
  s.add("Memory of relevance beyond backward, n = 16384, 12 layers of 12 heads, two threads", "one row",
        {held["relevance"][0] - held["stack"][0], none, none}, Better::smaller, 6, 2,
        "heap alone " + short_number(held["relevance"][1] - held["stack"][1]) + " MiB, backward itself " +
            short_number(held["stack"][0]),
        "MiB resident");
}

// ---- a report ----

void report_rows(Session& s) {
  const Image image(12, classes);
  const Matrix<float> pixels = image.pixels();
  const Index side = Image::side, n = Image::across * Image::across + 1;
  limpid::model::VitSaved<Op, float> saved;
  limpid::Workspace workspace;
  limpid::Rollout<float> rollout;
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("limpid-report-" + std::to_string(getpid()) + ".html");
  std::size_t bytes = 0;
  std::vector<double> seconds;
  for (int i = 0; i < 3; ++i) {
    const double start = thread_now();
    image.model.forward(attention, pixels, side, side, saved, {.workspace = &workspace});
    auto& blocks = saved.stack.blocks;
    const auto in = [&](std::size_t l) {
      return limpid::qkv(blocks[l].attention.q, blocks[l].attention.k, blocks[l].attention.v);
    };
    report::Report r;
    r.title = "A ViT of random weights";
    r.image = limpid::io::Image(side, side, 3);
    for (Index e = 0; e < pixels.size(); ++e)
      r.image.pixels.data()[e] = std::min(1.0f, std::max(0.0f, 0.5f + 0.2f * pixels.data()[e]));
    r.rows = r.cols = Image::across;
    const auto heat = [&](const char* name, const Matrix<float>& row) {
      report::Heat one;
      one.name = name, one.values.assign(row.data() + 1, row.data() + n);
      r.heats.push_back(std::move(one));
    };
    rollout.start(n, 0);
    for (std::size_t l = blocks.size(); l-- > 0;)
      rollout.layer(attention, in(l), blocks[l].attention.attention, {.workspace = &workspace});
    heat("rollout", rollout.rows());
    limpid::model::RelevanceRow<float> why;
    why.start = Matrix<float>::Zero(4, n);
    why.start.col(0).setOnes();
    Matrix<float> dlogits = Matrix<float>::Zero(1, classes);
    dlogits(0, label) = 1;
    image.model.backward(attention, saved, View<float>(dlogits), View<float>(), nullptr, {}, &why,
                         {.workspace = &workspace});
    for (Index part = 0; part < 4; ++part)
      heat(std::array{"positive", "negative", "absolute", "signed"}[static_cast<std::size_t>(part)],
           why.rest.row(part));
    report::Looks looks(Image::layers, image.heads, n);
    for (std::size_t l = 0; l < blocks.size(); ++l)
      for (Index h = 0; h < image.heads; ++h) {
        const auto top = limpid::top_keys(attention, in(l), blocks[l].attention.attention, looks.each(),
                                          {.head = h, .workspace = &workspace});
        looks.add(top.keys, top.weights);
      }
    r.looks.push_back(looks.json());
    bytes = report::write(path.string(), r);
    seconds.push_back(thread_now() - start);
  }
  std::filesystem::remove(path);
  const std::string section = "A report of one image, 12 layers x 12 heads, 257 tokens: model, maps, file; one thread";
  s.add(section, "size", {double(bytes) * 1e-6, none, none}, Better::smaller, 4, 1, "", "MB");
  s.add(section, "time", {median(seconds), quantile(seconds, 0), quantile(seconds, 1)}, Better::smaller, 3, 1, "", "s");
}

}  // namespace

/// Backward passes of layers of 12 heads, by themselves ("stack") or with a relevance row sent down. The layers are one
/// attention, whose arrays are made before: what a layer adds to the peak is its relevance alone. Three stand for 12, as
/// rows are used again from the second on (12 held the same, once), and heads are narrow, as what relevance holds does
/// not depend on them: a pass of 12 heads over n = 16384 takes many seconds.
int explanation_memory_child(const std::string& direction, Index n, int threads) {
  constexpr Index layers = 3, heads = 12, d = 8;
  limpid::ThreadPool pool(threads);
  const auto run = [&pool, &direction](Index tokens, bool measured) {
    const auto p = make_problem<float>(heads, tokens, d, false);
    const Matrix<float> q = side_by_side(p.q, heads), k = side_by_side(p.k, heads), v = side_by_side(p.v, heads),
                        dout = side_by_side(p.dout, heads);
    Matrix<float> out(tokens, heads * d), dq(tokens, heads * d), dk = dq, dv = dq;
    limpid::Saved<Op, float> saved;
    limpid::forward(attention, limpid::qkv(q, k, v), out, {.heads = heads, .saved = &saved, .executor = pool});
    const auto call = [&] {
      limpid::Workspace workspace;
      const bool explains = direction == "relevance";
      limpid::Relevance<float> relevance({explains ? tokens : 0});
      if (explains) relevance.start(0);
      for (Index l = 0; l < (explains ? layers : 1); ++l) {
        limpid::BackwardCall<float> ask = explains ? relevance.ask() : limpid::BackwardCall<float>();
        ask.workspace = &workspace, ask.executor = pool;
        limpid::backward(attention, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv), ask);
        if (explains) relevance.stage();
      }
    };
    if (measured) return print_memory_of(call);
    call();
    return 0;
  };
  run(256, false);  // code pages and thread stacks are not the operator's memory
  return run(n, true);
}

std::vector<Section> explanation_sections() {
  return {{"explain operators", operator_rows},    {"explain rollout", rollout_rows},
          {"explain integrated", integrated_rows}, {"explain torch", peer_rows},
          {"explain memory", memory_rows},         {"explain report", report_rows}};
}

}  // namespace bench
