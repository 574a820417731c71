// limpid: does an explanation name what its model looks at? Every method on a small vision transformer of each operator
// and block, and on DINOv2 before photographs, scored by what removing patches does, beside numbers that know nothing.
// SPDX-License-Identifier: MIT
//
//     faithful --out run                       500 test images of Fashion-MNIST, the models that robustness made
//     faithful --images 40 --models pid --methods rollout
//     faithful --models dinov2 --crops 2       photographs alone, two squares of each; weights: examples/fetch_models dinov2
//     gnuplot faithful.gp                      in that folder: faithful.png
//
// A part is a model: MODEL.safetensors has what every group of four images gave, and is written as they come. What is
// there is not made again: a run that was interrupted goes on, --images 500 goes on after --images 100, and fewer images
// than are there make their table at once. Any number of threads and interruptions gives the same bits.
#include <array>
#include <mutex>

#include "photograph_explanations.hpp"

namespace {

using namespace training;

const std::vector<std::string> models{"softmax", "nlm", "bilateral",      "twicing", "differential",
                                      "gated",   "pid", "boosting_block", "aot",     "crate"};
const std::string dinov2 = "dinov2";  ///< beside them, and reported apart
constexpr Index saco_groups = 7;
constexpr Index least_groups = 5;  ///< that an interval is told of

struct Metric {
  const char *name, *about;
  bool more;  ///< is better
};
constexpr std::array<Metric, 8> metrics{{
    {"deletion", "area under p over 0, 1 ... all patches removed, the most relevant first", false},
    {"insertion", "area under p over 0, 1 ... all patches there, the most relevant first, the others removed", true},
    {"positive", "area under the share of images still told alike, the most relevant 10 ... 90 % removed", false},
    {"negative", "the same, the least relevant removed", true},
    {"comprehensiveness", "mean fall of p without the most relevant 10 ... 90 %", true},
    {"sufficiency", "mean fall of p with these alone", false},
    {"SaCo", "whether 7 groups of 7 patches said to matter more do, from -1 to 1 (2404.01415)", true},
    {"NAOPC", "mean fall of p over 1 ... all patches removed, 0 and 1 being what a greedy search reaches (2408.08137)",
     true},
}};
constexpr std::array<const char*, 11> colors{"#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7",
                                             "#7f3c8d", "#8c564b", "#999999", "#bcbd22", "#000000"};
constexpr std::size_t naopc = metrics.size() - 1;

/// What was found of a model: a row a group, the metrics of every method, and how many of its images are told right;
/// curves, of every method a row of p over patches removed, and one over patches there, for each group; then their mean.
struct Found {
  std::string model;
  Mat<double> values, right, curves;
  double accuracy = 0;

  Index groups() const { return values.rows(); }
};

struct Plan {
  std::vector<Method> methods;
  Index images = 500, limits = 20, seed = 1;
  std::string replace = "mean";

  Index groups() const { return images / each; }
  /// What a group's numbers depend on.
  std::string words() const {
    std::string all = text("limits of %ld images, seed %ld, %s for a patch", long(limits), long(seed), replace.c_str());
    for (const Method& m : methods) all += std::string(", ") + m.name;
    return all;
  }
};

/// All methods and metrics of one group: a row of values, and curves to be averaged.
void judge(const Trained& t, const Plan& plan, Group& g, Index group, Mat<double>& values, Mat<double>& curves) {
  const Index n = g.patches();
  Mat<float> instead(1, g.x.cols());
  instead.setConstant(plan.replace == "mean" ? 0.0f : static_cast<float>(-t.spread.mean / t.spread.deviation));
  const auto seen = [&](const Mat<float>& at) { return g.probabilities(at); };
  const bool limited = group * each < plan.limits;
  limpid::AopcLimits limits;
  for (std::size_t m = 0; m < plan.methods.size(); ++m) {
    const auto seed = static_cast<std::uint64_t>(plan.seed * 1000003 + group);
    const Mat<float> r = plan.methods[m].run(g, seed);
    const limpid::Perturber<float> perturber(g.x, r, instead, g.target, seen);
    if (limited && m == 0) limits = perturber.aopc_limits(1);  // which no method changes
    const limpid::Perturbation p = perturber.curves();
    const std::vector<double> saco = perturber.saco(saco_groups);
    const auto mean = [](const std::vector<double>& all) {
      double sum = 0;
      for (const double v : all) sum += v / static_cast<double>(all.size());
      return sum;
    };
    double reached = 0;
    for (Index i = 0; i < each && limited; ++i) {
      const auto b = static_cast<std::size_t>(i);
      const double fall = p.deletion(i, 0) - p.deletion.row(i).tail(n).mean();
      reached += limpid::normalised(fall, limits.lowest[b], limits.highest[b]) / static_cast<double>(each);
    }
    const std::array<double, metrics.size()> row{
        mean(p.deletion_auc),     mean(p.insertion_auc), p.positive_auc, p.negative_auc,
        p.aopc_comprehensiveness, p.aopc_sufficiency,    mean(saco),     reached};
    for (std::size_t k = 0; k < row.size(); ++k) values(group, static_cast<Index>(m * row.size() + k)) = row[k];
    curves.row(static_cast<Index>(2 * m)) = p.deletion.colwise().mean();
    curves.row(static_cast<Index>(2 * m + 1)) = p.insertion.colwise().mean();
  }
}

/// Of how much is done, of all models.
struct Work {
  Clock::time_point start = Clock::now();
  double done = 0, all = 0;
  std::string left() const { return duration(since(start) * (all - done) / std::max(done, 1.0)) + " left"; }
};

constexpr const char* of_part[] = {"values", "right", "curves"};

void write(const std::string& path, const Plan& plan, const Found& found) {
  Safetensors file;
  for (const auto& [name, m] : {std::pair(of_part[0], &found.values), std::pair(of_part[1], &found.right),
                                std::pair(of_part[2], &found.curves)})
    file.tensors[name] =
        Tensor::from(Eigen::Map<const Mat<double>>(m->data(), m->rows(), m->cols()), limpid::io::DType::f64);
  file.metadata["plan"] = plan.words();
  limpid::io::write_safetensors(path, file);
}

/// As many groups more as are wanted, a few for each thread between two writings of the part.
void make(Found& found, const std::string& path, const Trained& t, const Plan& plan, const LabelledImages& tests,
          limpid::ThreadPool& pool, Work& work) {
  const auto methods = static_cast<Index>(plan.methods.size());
  const Index columns = methods * static_cast<Index>(metrics.size()), points = t.model->shape().patches() + 1;
  std::vector<std::unique_ptr<Room<float>>> rooms;
  for (int worker = 0; worker < pool.workers(); ++worker) rooms.push_back(t.model->room(each));
  std::mutex told;
  Clock::time_point last = Clock::now();
  while (found.groups() < plan.groups()) {
    const Index first = found.groups(), count = std::min(plan.groups() - first, Index(4) * pool.workers());
    found.values.conservativeResize(first + count, columns), found.right.conservativeResize(first + count, 1);
    found.curves.conservativeResize((first + count) * 2 * methods, points);
    pool.run(count, [&](Index task, int worker) {
      const Index group = first + task;
      Group g(t, *rooms[static_cast<std::size_t>(worker)], tests, group * each);
      Mat<double> curves(2 * methods, points);
      judge(t, plan, g, group, found.values, curves);
      found.curves.middleRows(group * 2 * methods, 2 * methods) = curves;
      found.right(group, 0) = static_cast<double>(g.right);
      const std::lock_guard<std::mutex> lock(told);
      work.done += 1;
      if (since(last) > 1)
        last = Clock::now(),
        progress(found.model + text(", %.0f of %.0f groups of images, ", work.done, work.all) + work.left(), false);
    });
    write(path, plan, found);
  }
  progress(found.model + ", " + work.left(), true);
}

/// A part from its file, with what it lacks made and written; as many groups of it as are wanted, and their means.
Found part(const std::string& folder, const std::string& weights, const std::string& model, const Plan& plan,
           const LabelledImages& tests, limpid::ThreadPool& pool, Work& work) {
  const std::string path = folder + "/" + model + ".safetensors";
  Found found{model, {}, {}, {}};
  if (std::filesystem::exists(path)) {
    const Safetensors file = limpid::io::read_safetensors(path);
    if (file.meta("plan") != plan.words())
      throw std::invalid_argument(path + ": found " + file.meta("plan") + ", wanted " + plan.words() +
                                  "; another --out begins anew");
    found.values = file.at(of_part[0]).matrix<double>(), found.right = file.at(of_part[1]).matrix<double>();
    found.curves = file.at(of_part[2]).matrix<double>();
  }
  const auto rows = static_cast<Index>(2 * plan.methods.size());
  const auto columns = static_cast<Index>(plan.methods.size() * metrics.size());
  if (found.groups() > 0 && (found.values.cols() != columns || found.right.rows() != found.groups() ||
                             found.curves.rows() != found.groups() * rows))
    throw FormatError(path +
                      text(": found %ld x %ld values, %ld x %ld curves and %ld rows beside them, wanted those of "
                           "as many groups, %ld values and %ld curves each",
                           long(found.groups()), long(found.values.cols()), long(found.curves.rows()),
                           long(found.curves.cols()), long(found.right.rows()), long(columns), long(rows)));
  work.all -= static_cast<double>(std::min(found.groups(), plan.groups()));
  if (found.groups() < plan.groups())
    make(found, path, Trained(weights + "/" + model + "-1.safetensors", tests), plan, tests, pool, work);
  Mat<double> mean = Mat<double>::Zero(rows, found.curves.cols());
  for (Index g = 0; g < plan.groups(); ++g) {
    mean += found.curves.middleRows(g * rows, rows) / static_cast<double>(plan.groups());
    found.accuracy += found.right(g, 0) / static_cast<double>(plan.images);
  }
  found.curves = mean;
  found.values.conservativeResize(plan.groups(), found.values.cols());
  return found;
}

class Report {
 public:
  Report(const Plan& plan, std::vector<Found> all) : plan_(plan), all_(std::move(all)) {
    Found mean = all_.front();  // groups are the same images for all models
    mean.model = "all models";
    for (std::size_t i = 1; i < all_.size(); ++i)
      mean.values += all_[i].values, mean.curves += all_[i].curves, mean.accuracy += all_[i].accuracy;
    const auto of = static_cast<double>(all_.size());
    mean.values /= of, mean.curves /= of, mean.accuracy /= of;
    if (all_.size() > 1) all_.push_back(mean);
    for (const Found& f : all_)
      for (std::size_t m = 0; m < plan_.methods.size(); ++m)
        for (std::size_t k = 0; k < metrics.size(); ++k)
          cells_.push_back(count(k) == 0 ? Cell{} : Cell{interval(f, m, k, false), interval(f, m, k, true)});
  }

  void print() const {
    std::printf("%s\n", protocol().c_str());
    for (std::size_t f = 0; f < all_.size(); ++f) {
      std::printf("\n%s: %.1f %% of the images told right\n\n%s", all_[f].model.c_str(), 100 * all_[f].accuracy,
                  table(f).c_str());
      const std::string worse = not_worst(f);
      std::printf("%s%s\n", worse.empty() ? "Random is the worst by every metric." : "Random is NOT the worst by ",
                  worse.c_str());
    }
  }

  void write(const std::string& folder) const {
    std::string csv = "model,method,metric,mean,low,high,above random,low,high,images\n",
                curves = "model,method,patches,deletion,insertion\n";
    for (std::size_t f = 0; f < all_.size(); ++f)
      for (std::size_t m = 0; m < plan_.methods.size(); ++m) {
        const Mat<double>& curve = all_[f].curves;
        const std::string name = all_[f].model + ",\"" + plan_.methods[m].name + "\",";
        for (std::size_t k = 0; k < metrics.size(); ++k) {
          if (count(k) == 0) continue;
          const auto& [value, above] = cell(f, m, k);
          csv += name + metrics[k].name +
                 text(",%.6f,%.6f,%.6f,%.6f,%.6f,%.6f,%ld\n", value.mean, value.low, value.high, above.mean, above.low,
                      above.high, long(count(k) * each));
        }
        for (Index i = 0; i < curve.cols(); ++i)
          curves += name + text("%ld,%.6f,%.6f\n", long(i), curve(Index(2 * m), i), curve(Index(2 * m + 1), i));
      }
    write_text(folder + "/faithful.csv", csv);
    write_text(folder + "/curves.csv", curves);
    write_text(folder + "/faithful.gp", picture());
  }

 private:
  /// Groups that have the metric.
  Index count(std::size_t k) const {
    return k == naopc ? std::min((plan_.limits + each - 1) / each, plan_.groups()) : plan_.groups();
  }
  limpid::MeanInterval interval(const Found& f, std::size_t method, std::size_t k, bool above_random) const {
    std::vector<double> of;
    for (Index i = 0; i < count(k); ++i)
      of.push_back(f.values(i, static_cast<Index>(method * metrics.size() + k)) -
                   (above_random ? f.values(i, static_cast<Index>(k)) : 0));
    return limpid::bootstrap_mean(of, 0.95, 2000, static_cast<std::uint64_t>(plan_.seed));
  }
  /// The value, and what it is above that of random.
  struct Cell {
    limpid::MeanInterval value, above;
  };
  const Cell& cell(std::size_t f, std::size_t method, std::size_t k) const {
    return cells_[(f * plan_.methods.size() + method) * metrics.size() + k];
  }
  /// 1: better than random, -1: worse, 0: the interval of the difference holds 0, or there is none.
  int beside_random(std::size_t f, std::size_t method, std::size_t k) const {
    const auto& d = cell(f, method, k).above;
    if (count(k) < least_groups) return 0;
    return d.low > 0 ? (metrics[k].more ? 1 : -1) : d.high < 0 ? (metrics[k].more ? -1 : 1) : 0;
  }

  std::string protocol() const {
    std::string all = text("%ld test images of Fashion-MNIST, patches of 4 x 4 pixels.", long(plan_.images));
    all +=
        " Explained is the class that the model takes the intact image for, p its probability.\n"
        "A patch is removed by ";
    all += plan_.replace == "mean" ? "the mean grey of the training images" : "black";
    all +=
        " in its place, its position stays; of equal numbers the upper left one comes first.\n"
        "Areas are trapezoids over the fractions removed, 0 and 1 included; of accuracies over 10 to 90 %, their mean "
        "height,\npatches rounded down.\n";
    for (const Metric& m : metrics)
      all += std::string("  ") + m.name + (m.more ? ", more" : ", less") + " is better: " + m.about + "\n";
    all += text("NAOPC is of the first %ld images alone. Methods:\n", long(count(naopc) * each));
    for (const Method& m : plan_.methods) all += std::string("  ") + m.name + ": " + m.about + "\n";
    all +=
        "Mean ± half of the 95 % interval, by a bootstrap over groups of four images, 2000 draws; * better than "
        "random, "
        "! worse:\nthe interval of the difference, group by group, is without 0. ";
    return all + text("None is told of less than %ld groups.\n", long(least_groups));
  }
  std::string table(std::size_t f) const {
    std::string out = "| method               |", rule = "| --- |";
    for (std::size_t k = 0; k < metrics.size(); ++k)
      if (count(k) > 0) out += text(" %-17s |", metrics[k].name), rule += " --- |";
    out += "\n" + rule + "\n";
    for (std::size_t m = 0; m < plan_.methods.size(); ++m) {
      out += text("| %-20s |", plan_.methods[m].name);
      for (std::size_t k = 0; k < metrics.size(); ++k) {
        if (count(k) == 0) continue;
        const auto& i = cell(f, m, k).value;
        const int beside = beside_random(f, m, k);
        out += count(k) < least_groups ? text(" %6.3f            |", i.mean)
                                       : text(" %6.3f ± %.3f %s  |", i.mean, (i.high - i.low) / 2,
                                              beside > 0   ? "*"
                                              : beside < 0 ? "!"
                                                           : " ");
      }
      out += "\n";
    }
    return out;
  }
  /// Metrics by which a method is below random, and which.
  std::string not_worst(std::size_t f) const {
    std::string all;
    for (std::size_t k = 0; k < metrics.size(); ++k) {
      std::string which;
      for (std::size_t m = 1; m < plan_.methods.size() && count(k) > 0; ++m) {
        const double above = cell(f, m, k).above.mean;
        if (metrics[k].more ? above < 0 : above > 0)
          which += (which.empty() ? "" : ", ") + std::string(plan_.methods[m].name) +
                   (beside_random(f, m, k) < 0 ? " (!)" : "");
      }
      if (!which.empty()) all += (all.empty() ? "" : "; ") + std::string(metrics[k].name) + ": " + which;
    }
    return all;
  }

  std::string picture() const {
    std::string data, curves, areas, tics;
    const Found& last = all_.back();
    const double steps = static_cast<double>(last.curves.cols() - 1);
    for (std::size_t m = 0; m < plan_.methods.size(); ++m) {
      const std::string number = std::to_string(m), name = plan_.methods[m].name;
      data += "$curve" + number + " << end\n";
      for (Index i = 0; i < last.curves.cols(); ++i)
        data += text("%.4f %.5f\n", static_cast<double>(i) / steps, last.curves(Index(2 * m), i));
      data += "end\n";
      curves += (m == 0 ? "plot $curve" : ", $curve") + number + " with lines lw 2 " +
                (m == 0 ? "dt 2 lc 'black'" : std::string("lc '") + colors[m - 1] + "'") + " title '" + name + "'";
      if (m > 0) tics += (m > 1 ? ", '" : "'") + name + "' -" + number;
    }
    for (std::size_t f = 0; f < all_.size(); ++f) {
      const std::string name = "$model" + std::to_string(f);
      data += name + " << end\n";
      for (std::size_t m = 1; m < plan_.methods.size(); ++m) {
        const auto& above = cell(f, m, 0).above;
        const double place = static_cast<double>(all_.size() - 1) / 2 - static_cast<double>(f);
        data += text("%.5f %.3f %.5f %.5f\n", above.mean, 0.07 * place - double(m), above.low, above.high);
      }
      data += "end\n";
      areas += (f == 0 ? "plot " : ", ") + name + " using 1:2:3:4 with xerrorbars pt 7 ps 0.4 lc '" +
               (f + 1 < all_.size() ? colors[f] : colors.back()) + "' title '" + all_[f].model + "' noenhanced";
    }
    return R"(# Draws faithful.png: gnuplot faithful.gp
set terminal pngcairo size 960,420 font 'sans,10'
set output 'faithful.png'
)" + data +
           R"(set multiplot
set size 0.42, 1
set grid
set key top right
set xlabel 'fraction of patches removed, the most relevant first'
set ylabel 'probability of the class'
set title ')" +
           last.model + "' noenhanced\n" + curves + R"(
set size 0.58, 1
set origin 0.42, 0
set title 'area under that curve less that of random: left of 0 is better'
set xlabel 'difference, 95 % interval'
unset ylabel
set xtics 0.2
set key outside right center reverse Left
set arrow from 0, graph 0 to 0, graph 1 nohead lw 2
)" + "set yrange [-" +
           std::to_string(plan_.methods.size()) + ":0]\nset ytics (" + tics + ")\n" + areas + "\nunset multiplot\n";
  }

  const Plan& plan_;
  std::vector<Found> all_;
  std::vector<Cell> cells_;
};

/// The ten models before test images.
void of_images(const Plan& plan, const std::vector<std::string>& chosen, const std::string& data,
               const std::string& weights, const std::string& folder, bool check, limpid::ThreadPool& pool) {
  const LabelledImages tests = read_labelled(data, "t10k", plan.images, classes);
  if (tests.count < plan.images)
    throw std::invalid_argument("--images: found " + std::to_string(plan.images) + ", wanted at most the " +
                                std::to_string(tests.count) + " of " + data);
  if (check) {
    for (const std::string& m : chosen)
      std::printf("%s: maps and their gradients within %.1e of the gradients of the weights\n", m.c_str(),
                  check_maps(m, Trained(weights + "/" + m + "-1.safetensors", tests), tests));
    return;
  }
  std::filesystem::create_directories(folder);
  Work work;
  work.all = static_cast<double>(plan.groups() * std::ssize(chosen));
  std::vector<Found> found;
  for (const std::string& m : chosen) found.push_back(part(folder, weights, m, plan, tests, pool, work));
  const Report report(plan, std::move(found));
  report.write(folder);
  report.print();
  std::printf("\n%s/faithful.csv, curves.csv and faithful.gp; `gnuplot faithful.gp` there draws faithful.png\n",
              folder.c_str());
}

/// DINOv2 before photographs.
void of_photographs(const PhotographPlan& plan, bool check, limpid::ThreadPool& pool) {
  Photographs all(plan);
  if (check) {
    std::printf("dinov2: relevance from maps and their gradients within %.1e of that of the backward pass\n",
                all.check());
    return;
  }
  std::filesystem::create_directories(plan.folder);
  all.make(pool);
  write_text(plan.folder + "/photographs.csv", all.csv());
  std::printf("%s\n%s/photographs.csv\n", all.report().c_str(), plan.folder.c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  std::string data = "/usr/share/datasets/fashion-mnist", weights = LIMPID_EXAMPLES "/data/robustness",
              folder = "faithful";
  std::vector<std::string> known = models, names, only;
  known.push_back(dinov2);
  std::vector<std::string> wanted = known;
  for (const Method& m : methods()) names.emplace_back(m.name);
  Plan plan;
  PhotographPlan photographs;
  photographs.weights = LIMPID_EXAMPLES "/../build/models/dinov2";
  for (const char* name : {"astronaut", "camera", "chelsea", "coffee"})
    photographs.photographs.push_back(LIMPID_EXAMPLES "/data/photographs/" + std::string(name) + ".png");
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  bool check = false;

  CLI::App app("Scores explanations of small vision transformers by what removing patches does.");
  app.add_option("--images", plan.images, "the first so many test images, a multiple of 4")
      ->capture_default_str()
      ->check(CLI::Range(each, Index(10000)));
  app.add_option("--models", wanted, "some of the models (default: all ten, and dinov2)")->check(CLI::IsMember(known));
  app.add_option("--methods", only, "some of the methods beside random, by name (default: all)")
      ->check(CLI::IsMember(names));
  app.add_option("--limits", plan.limits,
                 "what removal can reach at all is searched of the first so many images, 0: none")
      ->capture_default_str()
      ->check(CLI::Range(0, 10000));
  app.add_option("--replace", plan.replace, "what stands in the place of a patch: mean or black")
      ->capture_default_str()
      ->check(CLI::IsMember({"mean", "black"}));
  app.add_option("--seed", plan.seed, "of random numbers and noise")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 30));
  app.add_option("--threads", threads, "they change no bit (default: one a core)")->check(CLI::Range(1, 1024));
  app.add_option("--data", data,
                 "folder of t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz (Debian: "
                 "dataset-fashion-mnist)")
      ->capture_default_str()
      ->check(named_path());
  app.add_option("--weights", weights, "folder of MODEL-1.safetensors, as robustness writes them")->check(named_path());
  app.add_option("--out", folder, "folder of the parts, tables and the plot")
      ->capture_default_str()
      ->check(named_path());
  app.add_option("--crops", photographs.crops, "squares of each photograph that dinov2 sees")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  app.add_option("--photographs", photographs.photographs, "PNG files, of 224 x 224 pixels at least (default: four)")
      ->check(named_path());
  app.add_option("--dinov2", photographs.weights, "its folder, as examples/fetch_models makes it")->check(named_path());
  app.add_flag("--check", check, "compare maps and their gradients with the gradients of the weights, and end");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  if (plan.images % each != 0)
    throw CLI::ValidationError("--images", "found " + std::to_string(plan.images) + ", wanted a multiple of 4");
  for (Method& m : methods())
    if (only.empty() || m.name == std::string("random") || std::count(only.begin(), only.end(), m.name) > 0)
      plan.methods.push_back(std::move(m));
  for (auto& m : methods_of<Crop>())
    if (only.empty() || m.name == std::string("random") || std::count(only.begin(), only.end(), m.name) > 0)
      photographs.methods.push_back(std::move(m));
  photographs.seed = plan.seed, photographs.replace = plan.replace, photographs.folder = folder;
  std::vector<std::string> chosen;
  for (const std::string& m : models)
    if (std::count(wanted.begin(), wanted.end(), m) > 0) chosen.push_back(m);

  limpid::ThreadPool pool(threads);
  if (!chosen.empty()) of_images(plan, chosen, data, weights, folder, check, pool);
  if (std::count(wanted.begin(), wanted.end(), dinov2) > 0) {
    if (std::filesystem::exists(photographs.weights + "/model.safetensors"))
      of_photographs(photographs, check, pool);
    else
      std::fprintf(stderr, "faithful: no weights in %s, dinov2 is left out (examples/fetch_models fetches them)\n",
                   photographs.weights.c_str());
  }
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "faithful: %s\n", problem.what());
  return 1;
}
