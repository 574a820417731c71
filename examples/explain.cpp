// limpid: why a model says what it says of an image, a text or a reaction: several methods side by side, and where every
// token looks, as one HTML file, a CSV and a line each.
// SPDX-License-Identifier: MIT
//
//     explain [IMAGE.png] [--number K] [--class C]
//     explain --dinov2 [PHOTOGRAPH.png]
//     explain --text SENTENCE [--text2 SENTENCE]
//     explain --reaction SMILES [--atom K]                 all of them: [--methods NAME ...] [--out FOLDER]
//
// An image: the model is the small one of Fashion-MNIST that travels (examples/train.cpp makes it), the image one of its
// test images unless a PNG is given; or, with --dinov2, DINOv2-small of a photograph: it has no classes, and what is
// explained is the length of its class token. A text: MiniLM, and which tokens made two sentences alike. A reaction:
// RXNMapper, which travels, and why an atom of the product, the least sure one unless another is named, is taken for
// that atom of the reactants. DINOv2 and MiniLM are there where examples/fetch_models has fetched them. No map is ever
// held: each method goes through what the forward pass saved.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/explain/explanation.hpp>
#include <limpid/explain/input_gradients.hpp>
#include <limpid/io/idx.hpp>
#include <limpid/io/resize.hpp>
#include <limpid/model/vit.hpp>
#include <memory>
#include <stdexcept>
#include <thread>

#include "explain_methods.hpp"
#include "explain_text.hpp"
#include "option_checks.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::MutView, limpid::Part, limpid::View;
using limpid::io::Image;
using report::number;
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
  /// Backwards from the score; what is empty is not made. why: a row of relevance, which may be null, or an Explanation.
  template <class Why>
  void backward(limpid::model::VitSaved<Op, float>& of, MutView<float> dimage, Why&& why) const {
    Mat<float> dlogits, dtokens;
    if (label >= 0) {
      dlogits = Mat<float>::Zero(1, vit.classes());
      dlogits(0, label) = 1;
    } else {
      dtokens = Mat<float>::Zero(of.tokens.rows(), vit.width());
      dtokens.row(0) = of.tokens.row(0).normalized();
    }
    vit.backward(op, of, dlogits.size() ? View<float>(dlogits) : View<float>(),
                 dtokens.size() ? View<float>(dtokens) : View<float>(), nullptr, dimage, why, {.executor = executor});
  }
  /// The score at an image and its gradient, as the methods of the input want it.
  auto model() const {
    const auto own = std::make_shared<limpid::model::VitSaved<Op, float>>();  // from pass to pass
    return [this, own](View<float> at, MutView<float> d) {
      forward(at, *own);
      backward(*own, d, static_cast<limpid::model::RelevanceRow<float>*>(nullptr));
      return score(*own);
    };
  }
  /// As many as integrated gradients may take, so that a report takes seconds.
  Index most_gradients() const { return label < 0 ? 33 : 512; }
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
  /// The class token, as the row of weights that an explanation starts from.
  Mat<float> start() const {
    Mat<float> row = Mat<float>::Zero(1, saved.tokens.rows());
    row(0, 0) = 1;
    return row;
  }
};

Mat<float> relevance(Subject& s, Part part) {
  limpid::model::RelevanceRow<float> row{s.start(), {}, part};
  s.backward(s.saved, {}, &row);
  return s.of_tokens(row.rest);
}

std::vector<report::Method<Subject>> methods() {
  return {
      {"raw attention", "the class token's row of the last layer, mean over heads",
       [](Subject& s) {
         return s.of_tokens(report::attention_row(s.op, s.saved.stack.blocks.back(), s.start(),
                                                  report::first_numbers(s.heads), s.executor));
       }},
      {"rollout", "maps of all layers multiplied, half of each the skip connection",
       [](Subject& s) { return s.of_tokens(report::rollout_row(s.op, s.saved.stack.blocks, s.start(), s.executor)); }},
      {"relevance", "maps times their gradients, what is positive, through all layers",
       [](Subject& s) { return relevance(s, Part::pos); }},
      {"relevance, signed", "the same with both signs", [](Subject& s) { return relevance(s, Part::signed_); }},
      {"Grad-CAM", "of the last layer's maps, heads weighted by their mean gradients",
       [](Subject& s) -> report::Found {
         limpid::Explanation<float> why({.relevance = {}, .gradcam = s.vit.first_patch()});
         why.start(s.saved.tokens.rows(), Index(0));
         s.backward(s.saved, {}, why);
         return {Mat<float>(Eigen::Map<const Mat<float>>(why.gradcam().data(), s.rows(), s.cols()))};
       }},
      {"gradient x input", "pixels times the score's gradient, summed over a patch",
       [](Subject& s) { return s.of_pixels(limpid::gradient_times_input(s.model(), View<float>(s.pixels)).entries); }},
      {"integrated gradients", "from an image without contrast, in steps until 1 % is missing",
       [](Subject& s) -> report::Found {
         const Mat<float> flat = s.pixels.colwise().mean().replicate(s.pixels.rows(), 1);
         const report::Found found =
             report::integrated_gradients(s.model(), View<float>(s.pixels), flat, s.most_gradients());
         return {s.of_pixels(Eigen::Map<const Mat<float>>(found.values.data(), s.pixels.rows(), 1)), found.remark};
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

/// What one of the models of images makes of one.
report::Report of_image(bool photograph, const std::string& weights, const std::string& path, Index which, Index label,
                        const std::vector<std::string>& names, const std::string& folder,
                        limpid::ExecutorRef executor) {
  const auto chosen = report::chosen(methods(), names);
  const limpid::io::Checkpoint file(weights);
  const Index heads = photograph ? 6 : 4;
  const Vit vit(file, {.heads = heads});
  Subject s{vit, heads, Image(1, 1, 1), {}};
  s.executor = executor;
  if (photograph)
    read_photograph(s, path.empty() ? LIMPID_EXAMPLES "/data/photographs/astronaut.png" : path);
  else
    read_fashion(s, file, path, which);
  std::filesystem::create_directories(folder);

  const report::Taken forward = report::taken_by([&] { s.forward(s.pixels, s.saved); });
  report::Report r;
  r.image = s.image, r.rows = s.rows(), r.cols = s.cols(), r.before = vit.first_patch();
  r.layer = vit.layers() - 1, r.unit = r.rows / 2 * r.cols + r.cols / 2;
  r.title = photograph ? "DINOv2-small" : "A vision transformer of Fashion-MNIST";
  if (!photograph) {
    Index answer = 0;
    s.saved.logits.row(0).maxCoeff(&answer);
    s.label = label < 0 ? answer : label;
    const Mat<float> e = (s.saved.logits.array() - s.saved.logits.maxCoeff()).exp().matrix();
    const auto share = [&](Index of) { return kinds[of] + number(", %.1f %%", 100.0 * double(e(0, of) / e.sum())); };
    r.answer = "It is taken for: " + share(answer);
    if (s.label != answer) r.answer += ". Explained: " + share(s.label);
    r.more = std::string("orange: for ") + kinds[s.label], r.less = std::string("blue: against ") + kinds[s.label];
  } else {
    r.answer = "Explained: the length of the class token, " + number("%.1f", double(s.score(s.saved)));
    r.more = "orange: makes it longer", r.less = "blue: makes it shorter";
  }
  std::printf("%s\n", r.answer.c_str());
  report::run(chosen, s, r);
  const Index n = s.saved.tokens.rows();
  r.looks = {report::looks_of(s.op, s.saved.stack.blocks, heads, n)};
  report::add_facts(r, vit.layers(), heads, forward);
  return r;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string models = LIMPID_EXAMPLES "/../build/models/";
  std::string path, folder = "explain-report", reaction;
  std::vector<std::string> names, sentences(2);
  Index which = 0, label = -1, atom = 0;
  bool photograph = false;
  CLI::App app("Why a model says what it says of an image, a text or a reaction.");
  const auto image =
      app.add_option("IMAGE", path, "a PNG file; without one a test image of Fashion-MNIST, or the astronaut");
  const auto of_number =
      app.add_option("--number", which, "which of the 32 test images that travel")->check(CLI::Range(0, 31));
  const auto of_class =
      app.add_option("--class", label, "what to explain in place of the answer, 0 to 9")->check(CLI::Range(0, 9));
  const auto dinov2 = app.add_flag("--dinov2", photograph, "DINOv2-small and a photograph");
  const auto text = app.add_option("--text", sentences[0], "a sentence, for MiniLM");
  const auto text2 = app.add_option("--text2", sentences[1], "another: what makes the two alike")->needs(text);
  const auto smiles = app.add_option("--reaction", reaction, "SMILES, reactants>>products, for RXNMapper");
  app.add_option("--atom", atom, "which atom of the product, as they are numbered; without it the least sure")
      ->check(CLI::Range(1, 511))
      ->needs(smiles);
  app.add_option("--methods", names, "some of the methods, by name");
  app.add_option("--out", folder, "folder for report.html and patches.csv or tokens.csv")
      ->capture_default_str()
      ->check(option::named_path());
  for (const auto& of_image : {image, of_number, of_class, dinov2})
    text->excludes(of_image), smiles->excludes(of_image);
  text->excludes(smiles);
  image->excludes(of_number), dinov2->excludes(of_number);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  if (photograph && label >= 0) throw CLI::ValidationError("--class", "wanted none of DINOv2, which has no classes");
  const auto missing = [&](const std::string& model, const char* size) {
    const bool none = !std::filesystem::exists(models + model + "/model.safetensors");
    if (none)
      std::fprintf(stderr, "explain: the weights are not there; examples/fetch_models %s fetches them (%s)\n",
                   model.c_str(), size);
    return none;
  };
  if ((photograph && missing("dinov2", "90 MB")) || (*text && missing("minilm", "83 MB")))
    return 77;  // left out, to ctest
  if (!*text2) sentences.resize(1);
  limpid::ThreadPool pool(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));

  const report::Report r =
      *text     ? text_report::of_sentences(sentences, names, models + "minilm", folder, pool)
      : *smiles ? text_report::of_reaction(reaction, atom, names, LIMPID_EXAMPLES "/data/rxnmapper", folder, pool)
                : of_image(photograph, photograph ? models + "dinov2" : LIMPID_EXAMPLES "/data/vit/vit.safetensors",
                           path, which, label, names, folder, pool);
  report::write_csv(folder + (r.lines.empty() ? "/patches.csv" : "/tokens.csv"), r);
  const std::string out = folder + "/report.html";
  const std::size_t size = report::write(out, r);
  std::printf("report: %s (%.1f MB)\n", std::filesystem::absolute(out).lexically_normal().c_str(), double(size) / 1e6);
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "explain: %s\n", problem.what());
  return 1;
}
