// limpid: why a vision transformer sees in an image what it sees: several methods side by side, and where every token
// looks, as one HTML file, a CSV and a line each.
// SPDX-License-Identifier: MIT
//
//     explain [IMAGE.png] [--number K] [--class C] [--methods NAME ...] [--out FOLDER]
//
// The model is the small one of Fashion-MNIST that travels (examples/train.cpp makes it), the image one of its test
// images unless a PNG is given; or, with --dinov2, DINOv2-small, where examples/fetch_models has fetched it, of a
// photograph: it has no classes, and what is explained is the length of its class token. No map is ever held: each
// method goes through what the forward pass saved.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/explain/input_gradients.hpp>
#include <limpid/explain/rollout.hpp>
#include <limpid/explain/views.hpp>
#include <limpid/io/idx.hpp>
#include <limpid/io/resize.hpp>
#include <limpid/model/vit.hpp>
#include <stdexcept>
#include <thread>

#include "explain_report.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::MutView, limpid::Part, limpid::View;
using limpid::io::Image;
using Op = decltype(limpid::softmax());
using Vit = limpid::model::Vit<float>;

constexpr const char* kinds[] = {"T-shirt", "trousers", "pullover", "dress", "coat",
                                 "sandal",  "shirt",    "sneaker",  "bag",   "ankle boot"};

/// A model, an image as it reads it, and the number that is explained.
struct Subject {
  const Vit& vit;
  Index heads;
  Image image;        // as a person sees it
  Mat<float> pixels;  // as the model does
  Index label = -1;   // -1: the length of the class token
  limpid::ExecutorRef executor{};
  Op op = limpid::softmax();
  limpid::model::VitSaved<Op, float> saved{};

  Index rows() const { return image.rows / vit.patch(); }
  Index cols() const { return image.cols / vit.patch(); }
  void forward(View<float> at, limpid::model::VitSaved<Op, float>& to) const {
    vit.forward(op, at, image.rows, image.cols, to, {.executor = executor});
  }
  float score(const limpid::model::VitSaved<Op, float>& of) const {
    return label >= 0 ? of.logits(0, label) : of.tokens.row(0).norm();
  }
  /// Backwards from the score; what is null or empty is not made.
  void backward(limpid::model::VitSaved<Op, float>& of, MutView<float> dimage,
                limpid::model::RelevanceRow<float>* relevance) const {
    Mat<float> dlogits, dtokens;
    if (label >= 0) {
      dlogits = Mat<float>::Zero(1, vit.classes());
      dlogits(0, label) = 1;
    } else {
      dtokens = Mat<float>::Zero(of.tokens.rows(), vit.width());
      dtokens.row(0) = of.tokens.row(0).normalized();
    }
    vit.backward(op, of, dlogits.size() ? View<float>(dlogits) : View<float>(),
                 dtokens.size() ? View<float>(dtokens) : View<float>(), nullptr, dimage, relevance,
                 {.executor = executor});
  }
  /// The score at an image and its gradient, as the methods of the input want it.
  auto model() const {
    return [this](View<float> at, MutView<float> d) {
      limpid::model::VitSaved<Op, float> own;
      forward(at, own);
      backward(own, d, nullptr);
      return score(own);
    };
  }
  /// The patches among numbers for all tokens, or sums over the pixels of every patch.
  Mat<float> of_tokens(const Mat<float>& row) const {
    Mat<float> out(rows(), cols());
    for (Index i = 0; i < out.size(); ++i) out.data()[i] = row(0, vit.first_patch() + i);
    return out;
  }
  Mat<float> of_pixels(const Mat<float>& entries) const {
    Mat<float> out = Mat<float>::Zero(rows(), cols());
    for (Index i = 0; i < entries.rows(); ++i)
      out(i / image.cols / vit.patch(), i % image.cols / vit.patch()) += entries.row(i).sum();
    return out;
  }
  auto attention_in(std::size_t l) const {
    const auto& a = saved.stack.blocks[l].attention;
    return limpid::qkv(a.q, a.k, a.v);
  }
};

/// A method: its name, what it does in a few words, and a number for every patch.
struct Method {
  const char *name, *about;
  std::function<Mat<float>(Subject&)> run;
};

Mat<float> relevance(Subject& s, Part part) {
  limpid::model::RelevanceRow<float> row{Mat<float>::Zero(1, s.saved.tokens.rows()), {}, part};
  row.start(0, 0) = 1;
  s.backward(s.saved, {}, &row);
  return s.of_tokens(row.rest);
}

std::vector<Method> methods() {
  return {
      {"raw attention", "the class token's row of the last layer, mean over heads",
       [](Subject& s) {
         const std::size_t last = s.saved.stack.blocks.size() - 1;
         Mat<float> sum = Mat<float>::Zero(1, s.saved.tokens.rows()), row = sum;
         for (Index h = 0; h < s.heads; ++h) {
           limpid::map_block(s.op, s.attention_in(last), s.saved.stack.blocks[last].attention.attention, 0, 0, row,
                             {.head = h, .executor = s.executor});
           sum += row / static_cast<float>(s.heads);
         }
         return s.of_tokens(sum);
       }},
      {"rollout", "maps of all layers multiplied, half of each the skip connection",
       [](Subject& s) {
         limpid::Rollout<float> rollout;
         rollout.start(s.saved.tokens.rows(), 0);
         for (std::size_t l = s.saved.stack.blocks.size(); l-- > 0;)
           rollout.layer(s.op, s.attention_in(l), s.saved.stack.blocks[l].attention.attention,
                         {.executor = s.executor});
         return s.of_tokens(rollout.rows());
       }},
      {"relevance", "maps times their gradients, what is positive, through all layers",
       [](Subject& s) { return relevance(s, Part::pos); }},
      {"relevance, signed", "the same with both signs", [](Subject& s) { return relevance(s, Part::signed_); }},
      {"gradient x input", "pixels times the score's gradient, summed over a patch",
       [](Subject& s) { return s.of_pixels(limpid::gradient_times_input(s.model(), View<float>(s.pixels)).entries); }},
      {"integrated gradients", "16 steps from an image without contrast",
       [](Subject& s) {
         const Mat<float> flat = s.pixels.colwise().mean().replicate(s.pixels.rows(), 1);
         return s.of_pixels(limpid::integrated_gradients(s.model(), View<float>(s.pixels), 16, flat).entries);
       }},
      {"SmoothGrad", "the gradient squared, mean of 16 noisy images",
       [](Subject& s) {
         const auto found = limpid::smooth_grad(s.model(), View<float>(s.pixels),
                                                {.samples = 16, .sigma = 0.15, .seed = 1, .squared = true});
         return s.of_pixels(found.entries);
       }},
  };
}

/// Grey, 28 x 28, and normalised as the checkpoint says.
void read_fashion(Subject& s, const limpid::io::Checkpoint& file, const std::string& path, Index number) {
  if (path.empty()) {
    const auto all = limpid::io::read_idx(LIMPID_EXAMPLES "/data/fashion-mnist-32-images-idx3-ubyte.gz");
    if (number >= all.shape[0])
      throw std::invalid_argument("--number: found " + std::to_string(number) + ", wanted less than " +
                                  std::to_string(all.shape[0]));
    const auto values = all.values<float>();
    s.image = Image(28, 28, 1);
    for (Index i = 0; i < 784; ++i) s.image.pixels(i, 0) = values[static_cast<std::size_t>(number * 784 + i)] / 255.0f;
  } else {
    s.image = limpid::io::resize(limpid::io::read_png(path, limpid::io::Channels::grey), 28, 28);
  }
  const auto number_of = [&](const char* name) { return std::stof(file.meta(name)); };
  s.pixels = ((255.0f * s.image.pixels.array() - number_of("pixel mean")) / number_of("pixel deviation")).matrix();
}
void read_photograph(Subject& s, const std::string& path) {
  const Image all = limpid::io::read_png(path, limpid::io::Channels::rgb);
  const Index edge = std::min(all.rows, all.cols);
  s.image =
      limpid::io::resize(limpid::io::crop(all, (all.rows - edge) / 2, (all.cols - edge) / 2, edge, edge), 224, 224);
  s.pixels = limpid::io::normalised<float>(s.image, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225});
}

std::string text(const char* format, double value) {
  char out[64];
  std::snprintf(out, sizeof out, format, value);
  return out;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string fetched = LIMPID_EXAMPLES "/../build/models/dinov2";
  std::string path, folder = "explain-report";
  std::vector<std::string> only;
  Index number = 0, label = -1;
  bool photograph = false;
  CLI::App app("Why a vision transformer sees in an image what it sees.");
  app.add_option("IMAGE", path, "a PNG file; without one a test image of Fashion-MNIST, or the astronaut");
  app.add_option("--number", number, "which of the 32 test images that travel")->check(CLI::Range(0, 31));
  app.add_option("--class", label, "what to explain in place of the answer, 0 to 9")->check(CLI::Range(0, 9));
  app.add_option("--methods", only, "some of the methods, by name");
  app.add_flag("--dinov2", photograph, "DINOv2-small and a photograph");
  app.add_option("--out", folder, "folder for report.html and patches.csv")->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  std::vector<Method> chosen;
  for (Method& m : methods())
    if (only.empty() || std::find(only.begin(), only.end(), m.name) != only.end()) chosen.push_back(std::move(m));
  for (const std::string& name : only) {
    std::string known;
    bool found = false;
    for (const Method& m : methods())
      known += (known.empty() ? "" : ", ") + std::string(m.name), found |= name == m.name;
    if (!found) throw CLI::ValidationError("--methods", "found '" + name + "', wanted of " + known);
  }
  if (photograph && label >= 0) throw CLI::ValidationError("--class", "wanted none of DINOv2, which has no classes");
  if (photograph && !std::filesystem::exists(fetched + "/model.safetensors")) {
    std::fprintf(stderr, "explain: the weights are not there; examples/fetch_models dinov2 fetches them (90 MB)\n");
    return 77;  // left out, to ctest
  }
  const limpid::io::Checkpoint file(photograph ? fetched : LIMPID_EXAMPLES "/data/vit/vit.safetensors");
  const Index heads = photograph ? 6 : 4;
  const Vit vit(file, {.heads = heads});
  limpid::ThreadPool pool(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  Subject s{vit, heads, Image(1, 1, 1), {}};
  s.executor = pool;
  if (photograph)
    read_photograph(s, path.empty() ? LIMPID_EXAMPLES "/data/photographs/astronaut.png" : path);
  else
    read_fashion(s, file, path, number);
  std::filesystem::create_directories(folder);

  using clock = std::chrono::steady_clock;
  const auto since = [](clock::time_point start) {
    return std::chrono::duration<double, std::milli>(clock::now() - start).count();
  };
  auto start = clock::now();
  s.forward(s.pixels, s.saved);
  const double forward_ms = since(start);
  report::Report r;
  r.image = s.image, r.rows = s.rows(), r.cols = s.cols(), r.before = vit.first_patch();
  r.title = photograph ? "DINOv2-small" : "A vision transformer of Fashion-MNIST";
  if (!photograph) {
    Index answer = 0;
    s.saved.logits.row(0).maxCoeff(&answer);
    s.label = label < 0 ? answer : label;
    const Mat<float> e = (s.saved.logits.array() - s.saved.logits.maxCoeff()).exp().matrix();
    r.answer =
        std::string("It is taken for: ") + kinds[answer] + text(", %.1f %%", 100.0 * double(e(0, answer) / e.sum()));
    if (s.label != answer)
      r.answer +=
          std::string(". Explained: ") + kinds[s.label] + text(", %.1f %%", 100.0 * double(e(0, s.label) / e.sum()));
  } else {
    r.answer = "Explained: the length of the class token, " + text("%.1f", double(s.score(s.saved)));
  }
  std::printf("%s\n", r.answer.c_str());

  std::ofstream csv(folder + "/patches.csv");
  csv << "method,row,col,value\n";
  for (const Method& m : chosen) {
    start = clock::now();
    report::Heat heat{m.name, m.about, m.run(s), 0};
    heat.milliseconds = since(start);
    Index y = 0, x = 0;
    heat.values.maxCoeff(&y, &x);
    std::printf("%-22s most at patch %2d, %2d   %7.1f ms\n", m.name, int(y), int(x), heat.milliseconds);
    for (Index i = 0; i < heat.values.size(); ++i)
      csv << m.name << ',' << i / r.cols << ',' << i % r.cols << ',' << heat.values.data()[i] << '\n';
    r.heats.push_back(std::move(heat));
  }
  if (!csv.flush()) throw std::runtime_error(folder + "/patches.csv: cannot be written");

  const Index n = s.saved.tokens.rows(), layers = vit.layers();
  report::Looks looks(layers, heads, n);
  for (std::size_t l = 0; l < s.saved.stack.blocks.size(); ++l)
    for (Index h = 0; h < heads; ++h) {
      const auto top = limpid::top_keys(s.op, s.attention_in(l), s.saved.stack.blocks[l].attention.attention,
                                        looks.each(), {.head = h});
      looks.add(top.keys, top.weights);
    }
  r.looks = looks.json();
  r.facts = {{"tokens", std::to_string(n)},
             {"layers, heads", std::to_string(layers) + ", " + std::to_string(heads)},
             {"forward", text("%.1f ms", forward_ms)},
             {"all maps and gradients of them would take",
              text("%.1f MiB", double(2 * layers * heads * n * n) * 4 / (1 << 20)) + "; none was held"}};
  const std::string out = folder + "/report.html";
  const std::size_t size = report::write(out, r);
  std::printf("report: %s (%.1f MB)\n", std::filesystem::absolute(out).lexically_normal().c_str(), double(size) / 1e6);
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "explain: %s\n", problem.what());
  return 1;
}
