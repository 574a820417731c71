// limpid: what operators and blocks make of corrupted images: one small vision transformer each, trained alike on
// Fashion-MNIST, tested on what it never saw.
// SPDX-License-Identifier: MIT
//
//     robustness --out run                           trains, tests, writes run/robustness.md, robustness.csv, noise.gp
//     robustness --weights run/pid-1.safetensors     tests weights again, without training
//     gnuplot noise.gp                               in that folder: noise.png
//
// A part is a model and a seed: MODEL-SEED.safetensors has its weights in F16, what it was trained with, its learning
// curve and its accuracies, which are those of the rounded weights. Parts that are there are not made again, and one
// that was interrupted goes on at its last epoch, with the same bits.
#include <array>
#include <deque>
#include <limpid/layer/patches.hpp>
#include <optional>

#include "trainer.hpp"

namespace {

using namespace training;

/// A model of the table, in its order, the colour of its line, and what its paper claims.
struct Entry {
  const char *model, *color, *claim;
};
constexpr Entry entries[] = {
    {"softmax", "#000000", "the baseline"},
    {"nlm", "#0072b2", "none: as attention it is ours"},
    {"bilateral", "#56b4e9",
     "after 2506.10371, whose abstract claims accuracy and robustness; no figure could be read"},
    {"twicing", "#009e73", "2503.00687: less bias of the estimate, read as robustness; tables could not be read"},
    {"differential", "#d55e00", "2410.05258: language, less attention on noise; nothing on images"},
    {"gated", "#e69f00", "2505.24054: resilience to noise (abstract); no table could be read"},
    {"pid", "#cc79a7", "2402.15989, ImageNet, DeiT-tiny against softmax: clean +1.0, noise +1.7, FGSM +4.9"},
    {"boosting_block", "#7f3c8d",
     "2506.10371, whose abstract claims accuracy and robustness; its scheme could not be read, this one is ours"},
    {"aot", "#8c564b",
     "2506.03790: denoises tokens, SNR x (1 + eta tau) a layer under its assumptions; language near GPT-2"},
    {"crate", "#999999",
     "2306.01129, ImageNet: 66.7 to 71.3, against 71.5 and 72.4 of ViT-T and ViT-S; interpretable layers"},
};

/// What images go through before they are tested.
constexpr std::array<const char*, 9> conditions{"clean",     "noise 0.1", "noise 0.2",  "noise 0.3", "blur",
                                                "occlusion", "contrast",  "FGSM 2/255", "FGSM 8/255"};
constexpr std::array<double, 3> noises{0.1, 0.2, 0.3};
constexpr std::array<double, 2> attacks{2.0 / 255, 8.0 / 255};
constexpr double blur_sigma = 1, contrast_factor = 0.4;
constexpr Index blur_radius = 3, occluded = 9;

/// A test image in [0, 1], its corruptions by its number alone, so that all models see the same ones.
struct Picture {
  Index rows, cols, number;
  std::vector<float> pixels;

  Picture(const LabelledImages& images, Index image)
      : rows(images.rows), cols(images.cols), number(image), pixels(static_cast<std::size_t>(rows * cols)) {
    const std::uint8_t* from = images.image(image);
    for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<float>(from[i]) / 255;
  }
  float& at(Index r, Index c) { return pixels[static_cast<std::size_t>(r * cols + c)]; }

  /// Gaussian noise of that standard deviation, cut off at 0 and 1; the same draws whatever the deviation.
  Picture noisy(double deviation) const {
    Picture p = *this;
    Random random(1, -3, number);
    for (float& x : p.pixels) x = std::clamp(x + static_cast<float>(deviation * random.normal()), 0.0f, 1.0f);
    return p;
  }
  /// Gaussian blur, the outermost pixels repeated beyond the border.
  Picture blurred() const {
    std::vector<float> weights;
    float sum = 0;
    for (Index i = -blur_radius; i <= blur_radius; ++i) {
      const double x = static_cast<double>(i) / blur_sigma;
      weights.push_back(static_cast<float>(std::exp(-x * x / 2)));
      sum += weights.back();
    }
    Picture along = *this, both = *this;
    const auto pass = [&](Picture& from, Picture& to, Index down, Index right) {
      for (Index r = 0; r < rows; ++r)
        for (Index c = 0; c < cols; ++c) {
          float mean = 0;
          for (Index i = -blur_radius; i <= blur_radius; ++i)
            mean +=
                weights[static_cast<std::size_t>(i + blur_radius)] / sum *
                from.at(std::clamp<Index>(r + i * down, 0, rows - 1), std::clamp<Index>(c + i * right, 0, cols - 1));
          to.at(r, c) = mean;
        }
    };
    Picture from = *this;
    pass(from, along, 0, 1), pass(along, both, 1, 0);
    return both;
  }
  /// A square at a random place of one grey.
  Picture occluded_by(float grey) const {
    Picture p = *this;
    Random random(1, -4, number);
    const Index high = std::min(occluded, rows), wide = std::min(occluded, cols);
    const Index top = random.below(rows - high + 1), left = random.below(cols - wide + 1);
    for (Index r = top; r < top + high; ++r)
      for (Index c = left; c < left + wide; ++c) p.at(r, c) = grey;
    return p;
  }
  /// Nearer to the image's own mean.
  Picture of_low_contrast() const {
    Picture p = *this;
    double mean = 0;
    for (const float x : pixels) mean += static_cast<double>(x) / static_cast<double>(pixels.size());
    for (float& x : p.pixels) x = static_cast<float>(mean + contrast_factor * (static_cast<double>(x) - mean));
    return p;
  }
  /// A step of that size along the signs of a gradient, cut off at 0 and 1 (Goodfellow et al. 2015, arXiv 1412.6572).
  Picture attacked(const Mat<float>& gradient, double step) const {
    Picture p = *this;
    for (std::size_t i = 0; i < pixels.size(); ++i) {
      const float g = gradient.data()[i], by = static_cast<float>(step);
      p.pixels[i] = std::clamp(pixels[i] + (g > 0 ? by : g < 0 ? -by : 0), 0.0f, 1.0f);
    }
    return p;
  }
};

/// The shares of test images told right, of each condition.
class Tester {
 public:
  Tester(const Model<float>& model, const Mat<float>& w, const Spread& spread, const LabelledImages& tests,
         limpid::ThreadPool& pool)
      : model_(model), w_(w), spread_(spread), tests_(tests), patches_(patches_of(model.shape())), pool_(pool) {
    for (int worker = 0; worker < pool.workers(); ++worker) places_.emplace_back(model, each);
  }

  std::vector<double> accuracies() {
    const Index tasks = (tests_.count + each - 1) / each;
    std::vector<std::array<Index, conditions.size()>> right(static_cast<std::size_t>(tasks));
    pool_.run(tasks, [&](Index task, int worker) {
      run(places_[static_cast<std::size_t>(worker)], task * each, right[static_cast<std::size_t>(task)]);
    });
    std::vector<double> shares(conditions.size());
    for (std::size_t c = 0; c < shares.size(); ++c) {
      for (const auto& of_task : right) shares[c] += static_cast<double>(of_task[c]);
      shares[c] /= static_cast<double>(tests_.count);
    }
    return shares;
  }

 private:
  static constexpr Index each = 16;  ///< images at a time, in a core's cache

  /// What one thread works with.
  struct Place {
    std::unique_ptr<Room<float>> room;
    Mat<float> gradient, dpatches, dimage;
    limpid::Workspace workspace;
    Place(const Model<float>& model, Index images)
        : room(model.room(images)),
          gradient(1, model.parameters().size()),
          dpatches(room->patches.rows(), room->patches.cols()),
          dimage(model.shape().rows * model.shape().cols, 1) {}
  };

  static limpid::ImagePatches patches_of(const VitShape& s) {
    return {s.rows, s.cols, s.patch, s.patch, limpid::PatchBorder::none};
  }
  MutView<float> of_image(Mat<float>& patches, Index place) const {
    const Index n = model_.shape().patches();
    return MutView<float>(patches).block(place * n, 0, n, patches.cols());
  }

  void run(Place& place, Index first, std::array<Index, conditions.size()>& right) {
    Room<float>& room = *place.room;
    const Index here = std::min(each, tests_.count - first);
    std::vector<Picture> images;
    for (Index i = 0; i < each; ++i) {  // the last task fills up with the last image, uncounted
      images.emplace_back(tests_, std::min(first + i, tests_.count - 1));
      room.labels[static_cast<std::size_t>(i)] = tests_.labels[static_cast<std::size_t>(images.back().number)];
    }
    right.fill(0);
    std::size_t condition = 0;
    const auto count = [&](bool keep, auto&& changed) {
      for (Index i = 0; i < each; ++i) {
        const Picture p = changed(images[static_cast<std::size_t>(i)], i);
        const View<float> pixels(p.pixels.data(), p.rows * p.cols, 1, 1);
        limpid::patches(patches_, pixels, of_image(room.patches, i), {.workspace = &place.workspace});
      }
      const auto mean = static_cast<float>(spread_.mean), factor = static_cast<float>(1 / spread_.deviation);
      room.patches = ((room.patches.array() * 255.0f - mean) * factor).matrix();
      model_.forward(w_, room, keep);
      cross_entropy<float>(View<float>(room.logits).block(0, 0, here, room.logits.cols()), room.labels, 0, 0, {},
                           right[condition++]);
    };
    const auto as_it_is = [](const Picture& p, Index) { return p; };
    count(true, as_it_is);
    Index unused = 0;  // the gradient of the loss now, before other images take its place
    cross_entropy<float>(room.logits, room.labels, 0, 1, room.dlogits, unused);
    model_.backward(w_, room, place.gradient, place.dpatches);

    for (const double deviation : noises) count(false, [&](const Picture& p, Index) { return p.noisy(deviation); });
    count(false, [](const Picture& p, Index) { return p.blurred(); });
    count(false, [&](const Picture& p, Index) { return p.occluded_by(static_cast<float>(spread_.mean / 255)); });
    count(false, [](const Picture& p, Index) { return p.of_low_contrast(); });
    for (const double step : attacks)
      count(false, [&](const Picture& p, Index i) {
        limpid::patches_backward(patches_, of_image(place.dpatches, i), place.dimage, {.workspace = &place.workspace});
        return p.attacked(place.dimage, step);
      });
  }

  const Model<float>& model_;
  const Mat<float>& w_;
  Spread spread_;
  const LabelledImages& tests_;
  limpid::ImagePatches patches_;
  limpid::ThreadPool& pool_;
  std::deque<Place> places_;
};

/// A model and a seed that are done.
struct Part {
  std::string model;
  Index seed = 0, parameters = 0;
  std::vector<double> accuracies;
};

/// Tests the weights of a file again.
Part tested(const std::string& path, const LabelledImages& tests, limpid::ThreadPool& pool) {
  const Trained t(path, tests);
  return {t.settings.op, t.settings.seed, t.model->parameters().count(),
          Tester(*t.model, t.w, t.spread, tests, pool).accuracies()};
}

/// Mean over seeds, and their standard deviation.
struct Summary {
  double mean = 0, deviation = 0;
  std::size_t count = 0;
  explicit Summary(const std::vector<double>& of) : count(of.size()) {
    for (const double x : of) mean += x / static_cast<double>(count);
    for (const double x : of) deviation += (x - mean) * (x - mean) / std::max(1.0, static_cast<double>(count) - 1);
    deviation = std::sqrt(deviation);
  }
  std::string words(const char* format) const {
    return text(format, 100 * mean) + (count > 1 ? text(" ± %.1f", 100 * deviation) : "");
  }
};

class Table {
 public:
  explicit Table(std::vector<Part> parts) : parts_(std::move(parts)) {}
  bool empty() const { return parts_.empty(); }

  /// In Markdown: accuracies, and what they are above those of softmax, seed by seed.
  std::string markdown() const {
    std::string out = "| model | parameters |";
    for (const char* c : conditions) out += std::string(" ") + c + " |";
    out += " what its paper claims |\n| --- |" + rule(conditions.size() + 1) + " --- |\n";
    for (const Entry& e : entries) {
      const std::vector<const Part*> seeds = of(e.model);
      if (seeds.empty()) continue;
      out += "| " + std::string(e.model) + " | " + std::to_string(seeds[0]->parameters) + " |";
      for (std::size_t c = 0; c < conditions.size(); ++c) {
        std::vector<double> all;
        for (const Part* p : seeds) all.push_back(p->accuracies[c]);
        out += " " + Summary(all).words("%.1f") + " |";
      }
      out += " " + std::string(e.claim) + " |\n";
    }
    std::string gains;
    for (const Entry& e : entries) {
      std::vector<std::vector<double>> above(conditions.size());
      for (const Part* p : of(e.model))
        for (const Part* base : of("softmax"))
          if (p != base && p->seed == base->seed)
            for (std::size_t c = 0; c < conditions.size(); ++c)
              above[c].push_back(p->accuracies[c] - base->accuracies[c]);
      if (above[0].empty()) continue;
      gains += "| " + std::string(e.model) + " |";
      for (const auto& a : above) gains += " " + Summary(a).words("%+.1f") + " |";
      gains += "\n";
    }
    if (gains.empty()) return out;
    out += "\n| points above softmax |";
    for (const char* c : conditions) out += std::string(" ") + c + " |";
    return out + "\n| --- |" + rule(conditions.size()) + "\n" + gains;
  }

  void write(const std::string& folder) const {
    std::string rows = "model,parameters,seed";
    for (const char* c : conditions) rows += std::string(",") + c;
    rows += "\n";
    for (const Part& p : parts_) {
      rows += p.model + "," + std::to_string(p.parameters) + "," + std::to_string(p.seed);
      for (const double a : p.accuracies) rows += text(",%.6f", a);
      rows += "\n";
    }
    write_text(folder + "/robustness.csv", rows);
    write_text(folder + "/robustness.md", markdown());
    std::string picture = R"(# Draws noise.png: gnuplot noise.gp
set terminal pngcairo size 900,560 font 'sans,11'
set output 'noise.png'
set xlabel 'standard deviation of the noise, pixels in [0, 1]'
set ylabel 'accuracy, %'
set title 'Fashion-MNIST, trained without noise; bars: standard deviation over seeds'
set grid
set xrange [-0.02:0.32]
set key outside right center reverse Left
)";
    std::string plots;
    for (const Entry& e : entries) {
      const std::vector<const Part*> seeds = of(e.model);
      if (seeds.empty()) continue;
      picture += "$" + std::string(e.model) + " << end\n";
      for (std::size_t c = 0; c <= noises.size(); ++c) {  // clean is noise 0
        std::vector<double> all;
        for (const Part* p : seeds) all.push_back(100 * p->accuracies[c]);
        const Summary s(all);
        picture += text("%g %.3f %.3f\n", c == 0 ? 0.0 : noises[c - 1], s.mean, s.deviation);
      }
      picture += "end\n";
      plots += (plots.empty() ? "plot $" : ", $") + std::string(e.model) + " with yerrorlines lw 2 lc '" + e.color +
               "' title '" + e.model + "' noenhanced";
    }
    write_text(folder + "/noise.gp", picture + plots + "\n");
  }

 private:
  static std::string rule(std::size_t columns) {
    std::string all;
    for (std::size_t c = 0; c < columns; ++c) all += " ---: |";
    return all;
  }
  std::vector<const Part*> of(const std::string& model) const {
    std::vector<const Part*> seeds;
    for (const Part& p : parts_)
      if (p.model == model) seeds.push_back(&p);
    return seeds;
  }

  std::vector<Part> parts_;
};

/// The settings of a part. Blocks without an MLP, or with an ISTA step for one, have as many more layers as make up for
/// its weights: of a layer there are 4 D^2 + 2 D E of a transformer, 2 D^2 of AoT, 3 D^2 of CRATE.
Settings settings_of_part(Settings all, const std::string& model, Index seed) {
  all.op = model, all.seed = seed;
  const double weights = 4 * static_cast<double>(all.width) + 2 * static_cast<double>(all.mlp);
  const double own = model == "aot" ? 2.0 : model == "crate" ? 3.0 : 0.0;
  if (own > 0)
    all.layers = std::max<Index>(
        1, std::lround(static_cast<double>(all.layers) * weights / (own * static_cast<double>(all.width))));
  return all;
}

/// Throws where a file was made with other settings.
void require(const Safetensors& file, const std::string& path, Settings settings) {
  settings.visit([&](const char* name, const auto& field, auto...) {
    if (file.meta(name) != word(field))
      throw std::invalid_argument(path + ": found --" + name + " " + file.meta(name) + ", wanted " + word(field) +
                                  "; another --out begins anew");
  });
}

/// A part, if it is there.
std::optional<Part> found(const std::string& path, const Settings& settings) {
  if (!std::filesystem::exists(path)) return std::nullopt;
  const Safetensors file = limpid::io::read_safetensors(path);
  require(file, path, settings);
  Part part{settings.op, settings.seed, number_in<Index>(file, path, "parameters"),
            file.at("accuracies").values<double>()};
  if (part.accuracies.size() != conditions.size())
    throw FormatError(path + ": found " + std::to_string(part.accuracies.size()) + " accuracies, wanted " +
                      std::to_string(conditions.size()));
  return part;
}

/// Trains and tests a part, and writes it.
Part make(const std::string& path, const std::string& folder, const Settings& settings, const LabelledImages& images,
          const LabelledImages& tests, int threads) {
  const auto model = vits().at(settings.op)(shape_of(settings, images));
  std::filesystem::create_directories(folder);
  Run run(settings, *model, images, tests, folder, threads);
  if (std::filesystem::exists(run.checkpoint())) {
    const Safetensors begun = limpid::io::read_safetensors(run.checkpoint());
    require(begun, run.checkpoint(), settings);
    run.resume(begun);
  }
  run.train(settings.epochs);
  Safetensors file;
  add_parameters(file, "", limpid::io::DType::f16, model->parameters(), run.parameters());
  add_settings(file, settings, run.spread());
  file.metadata["parameters"] = word(model->parameters().count());
  file.tensors["curve"] = Tensor::from(run.curve(), {settings.epochs, static_cast<Index>(Run::curve_columns)});
  limpid::io::write_safetensors(path + ".untested", file);
  limpid::ThreadPool pool(threads);
  Part part = tested(path + ".untested", tests, pool);
  file.tensors["accuracies"] = Tensor::from(part.accuracies, {static_cast<Index>(conditions.size())});
  limpid::io::write_safetensors(path, file);
  std::filesystem::remove(path + ".untested");
  std::filesystem::remove_all(folder);
  return part;
}

}  // namespace

int main(int argc, char** argv) try {
  Settings settings;
  settings.layers = 3, settings.epochs = 2, settings.rate = 2e-3, settings.warmup = 0.5;
  std::string data = "/usr/share/datasets/fashion-mnist", folder = "robustness";
  std::vector<std::string> models, weights, known;
  for (const Entry& e : entries) known.emplace_back(e.model);
  models = known;
  Index seeds = 3;
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  bool table_only = false;

  CLI::App app("What operators and blocks of limpid make of corrupted images of Fashion-MNIST.");
  add_options(app, settings, {"operator", "seed"});
  app.add_option("--data", data,
                 "folder of train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and t10k-... of these (Debian: "
                 "dataset-fashion-mnist)")
      ->capture_default_str()
      ->check(named_path());
  app.add_option("--out", folder, "folder of the parts and the table")->capture_default_str()->check(named_path());
  app.add_option("--models", models, "those to make (default: all)")->check(CLI::IsMember(known));
  app.add_option("--seeds", seeds, "1 and on, so many of each model")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--threads", threads, "they change no bit (default: one a core)")->check(CLI::Range(1, 1024));
  app.add_option("--weights", weights, "parts to test again, without training; nothing is written")
      ->check(named_path());
  app.add_flag("--table", table_only, "the table of the parts that are there, without training");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }

  const LabelledImages tests = read_labelled(data, "t10k", settings.test_images, classes);
  if (!weights.empty()) {
    limpid::ThreadPool pool(threads);
    std::vector<Part> parts;
    for (const std::string& path : weights) parts.push_back(tested(path, tests, pool));
    std::printf("%ld test images\n\n%s", long(tests.count), Table(parts).markdown().c_str());
    return 0;
  }
  std::filesystem::create_directories(folder);
  const auto path_of = [&](const std::string& model, Index seed) {
    return folder + "/" + model + "-" + std::to_string(seed);
  };
  if (!table_only) {
    const LabelledImages images = read_labelled(data, "train", settings.images, classes);
    for (Index seed = 1; seed <= seeds; ++seed)  // one seed of all models first
      for (const std::string& model : known) {
        if (std::count(models.begin(), models.end(), model) == 0) continue;
        const Settings of_part = settings_of_part(settings, model, seed);
        check_settings(of_part, images, tests, data);
        const std::string path = path_of(model, seed), weights_path = path + ".safetensors";
        if (found(weights_path, of_part)) continue;
        progress(model + ", seed " + std::to_string(seed) + " of " + std::to_string(seeds) + ", " +
                     std::to_string(of_part.layers) + " layers",
                 true);
        const Part part = make(weights_path, path, of_part, images, tests, threads);
        std::string told;
        for (std::size_t c = 0; c < conditions.size(); ++c)
          told += std::string(c == 0 ? "" : ", ") + conditions[c] + text(" %.1f %%", 100 * part.accuracies[c]);
        progress(told, true);
      }
  }
  std::vector<Part> parts;
  for (Index seed = 1; seed <= seeds; ++seed)
    for (const std::string& model : known)
      if (const auto part = found(path_of(model, seed) + ".safetensors", settings_of_part(settings, model, seed)))
        parts.push_back(*part);
  const Table table(parts);
  table.write(folder);
  std::printf(
      "%ld parts, %ld test images\n\n%s\n%s/robustness.csv and noise.gp; `gnuplot noise.gp` there draws noise.png\n",
      long(std::ssize(parts)), long(tests.count), table.markdown().c_str(), folder.c_str());
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "robustness: %s\n", problem.what());
  return 1;
}
