// limpid: trains a small vision transformer over any operator or block on Fashion-MNIST, or on other images in its
// format.
// SPDX-License-Identifier: MIT
//
//     train --epochs 20 --augment --out run          writes run/checkpoint.safetensors, run/curve.csv, run/curve.gp
//     train --resume --out run                       goes on after an interruption, bit for bit
//     gnuplot curve.gp                               in that folder: curve.png
#include <limpid/check/gradient.hpp>

#include "trainer.hpp"

namespace {

using namespace training;

/// The whole backward pass against central differences, on a tiny model in double. Throws where they are apart.
double check_backward(const std::string& name, MakeVit<double> make) {
  const VitShape shape{4, 6, 2, 8, 3, 2, 6, 3};
  const auto model_in_double = make(shape);
  const Model<double>& model = *model_in_double;
  const auto in_room = model.room(3);
  Room<double>& room = *in_room;
  Random random(7);
  for (Index i = 0; i < room.patches.size(); ++i) room.patches.data()[i] = random.normal();
  for (int& label : room.labels) label = static_cast<int>(random.below(shape.classes));
  Mat<double> w = model.parameters().started<double>(7), g = w, dpatches = room.patches;
  for (Index i = 0; i < w.size(); ++i) w(0, i) += 0.1 * random.normal();  // no bias 0, no gamma 1
  Index right = 0;
  const auto loss = [&](bool keep) {
    model.forward(w, room, keep);
    return cross_entropy<double>(room.logits, room.labels, 0.1, 0.5, room.dlogits, right) / 2;
  };
  loss(true);
  model.backward(w, room, g, dpatches);
  double worst = 0;
  const auto compare = [&](const std::string& of, const Mat<double>& found, const Mat<double>& numeric) {
    const double error = (found - numeric).cwiseAbs().maxCoeff() / std::max(1e-3, numeric.cwiseAbs().maxCoeff());
    if (!(error < 1e-6))
      throw std::runtime_error(name + ": the gradient of " + of + " is " + text("%.3g", error) +
                               " away from central differences, wanted less than 1e-6");
    worst = std::max(worst, error);
  };
  for (const Parameter& p : model.parameters().all())
    compare(p.name, Eigen::Map<const Mat<double>>(g.data() + p.first, p.rows, p.cols),
            limpid::numeric_gradient<double>(model.parameters().view(w, p.name), [&] { return loss(false); }));
  compare("the patches", dpatches, limpid::numeric_gradient(room.patches, [&] { return loss(false); }));
  return worst;
}

}  // namespace

int main(int argc, char** argv) try {
  Settings settings;
  std::string data = "/usr/share/datasets/fashion-mnist", folder = "train";
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  Index stop = 0;
  bool resume = false, check = false;

  CLI::App app("Trains a small vision transformer over any attention operator or block of limpid, on Fashion-MNIST.");
  const auto options = add_options(app, settings);
  app.add_option("--data", data,
                 "folder of train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and t10k-... of these (Debian: "
                 "dataset-fashion-mnist)")
      ->capture_default_str()
      ->check(named_path());
  app.add_option("--out", folder, "folder of the checkpoint and the learning curve")
      ->capture_default_str()
      ->check(named_path());
  app.add_option("--threads", threads, "they change no bit (default: one a core)")->check(CLI::Range(1, 1024));
  app.add_option("--stop-after", stop, "end after so many epochs of the run, to be resumed")
      ->check(CLI::Range(1, 1 << 20));
  app.add_flag("--resume", resume, "go on from the checkpoint in --out, with its settings");
  app.add_flag("--check", check,
               "compare the backward passes of tiny models in double with central differences, and end");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }

  if (check) {
    for (const auto& [name, make] : vits_in_double())
      std::printf("%s: backward within %.1e of central differences\n", name.c_str(), check_backward(name, make));
    return 0;
  }
  Safetensors file;
  if (resume) {
    const std::string path = folder + "/checkpoint.safetensors";
    file = limpid::io::read_safetensors(path);
    Settings kept = settings_of(file, path);
    settings.visit([&](const char* name, const auto& field, auto...) {
      const std::string given = word(field), found = file.meta(name);
      if (options.at(name)->count() > 0 && given != found)
        throw std::invalid_argument(std::string("--") + name + ": found " + given + ", wanted " + found +
                                    " as in the checkpoint that --resume goes on from");
    });
    settings = kept;
  }
  const LabelledImages images = read_labelled(data, "train", settings.images, classes);
  const LabelledImages tests = read_labelled(data, "t10k", settings.test_images, classes);
  check_settings(settings, images, tests, data);
  const Index last = stop == 0 ? settings.epochs : std::min(stop, settings.epochs);
  if (!resume) std::filesystem::create_directories(folder);

  const auto model = vits().at(settings.op)(shape_of(settings, images));
  Run run(settings, *model, images, tests, folder, threads);
  if (resume) run.resume(file);
  run.train(std::max(last, run.epoch()));
  const auto [loss, right] = run.test();
  std::printf("%s, %ld layers of width %ld, %ld parameters, %ld epochs of %ld images\n", settings.op.c_str(),
              long(settings.layers), long(settings.width), long(model->parameters().count()), long(run.epoch()),
              long(images.count));
  std::printf("test loss %.4f, test accuracy %.2f %% of %ld images\n", loss, 100 * right, long(tests.count));
  std::printf("%s, and curve.csv beside it; `gnuplot curve.gp` there draws curve.png\n", run.checkpoint().c_str());
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "train: %s\n", problem.what());
  return 1;
}
