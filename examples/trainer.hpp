// limpid: a training run of the examples' models: settings, checkpoints, the curve; of train and robustness.
// SPDX-License-Identifier: MIT
//
// A batch is cut into tasks of a few images. A thread takes a task through the whole model, forward and backward, in
// memory that is its own; the gradients of the tasks are summed in their order. So any number of threads gives the same
// bits, and a checkpoint holds nothing that depends on it.
#pragma once

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/io/safetensors.hpp>
#include <thread>

#include "option_checks.hpp"
#include "vit.hpp"

namespace training {

using limpid::io::FormatError;
using limpid::io::Safetensors;
using limpid::io::Tensor;

constexpr Index classes = 10;

/// What a run is, but for where and how fast it runs: all of it stands in the checkpoint.
struct Settings {
  std::string op = "softmax";
  Index layers = 4, width = 64, heads = 4, mlp = 128, patch = 4;
  Index epochs = 10, batch = 128, images = 0, test_images = 0, seed = 1, shift = 2;
  double rate = 1e-3, warmup = 1, decay = 0.05, smoothing = 0.1, clip = 1;
  bool augment = false;

  /// f(name, field, what it is, least, most); of a word or a switch without the last two.
  template <class F>
  void visit(F&& f) {
    constexpr Index many = 1 << 20;
    f("operator", op, "operator of the attention");
    f("layers", layers, "blocks", Index(1), Index(1024));
    f("width", width, "width of a token", Index(1), Index(4096));
    f("heads", heads, "heads, a divisor of the width", Index(1), Index(4096));
    f("mlp", mlp, "hidden width of the MLP", Index(1), Index(16384));
    f("patch", patch, "side of a patch, a divisor of the image's", Index(1), Index(256));
    f("epochs", epochs, "passes over the images", Index(1), many);
    f("batch", batch, "images a step", Index(1), many);
    f("images", images, "the first so many training images only, 0: all", Index(0), Index(1) << 40);
    f("test-images", test_images, "the first so many test images only, 0: all", Index(0), Index(1) << 40);
    f("seed", seed, "of the parameters, the order of the images and their shifts", Index(0), Index(1) << 40);
    f("lr", rate, "largest learning rate", 0.0, 100.0);
    f("warmup", warmup, "epochs of rising learning rate, before half a cosine", 0.0, double(many));
    f("decay", decay, "weight decay of AdamW", 0.0, 100.0);
    f("smoothing", smoothing, "label smoothing", 0.0, 1.0);
    f("clip", clip, "largest norm of a gradient, 0: any", 0.0, 1e30);
    f("augment", augment, "images shifted by up to --shift pixels and mirrored left to right, anew in each epoch");
    f("shift", shift, "pixels, of --augment", Index(0), Index(1024));
  }
};

inline std::string word(const std::string& value) { return value; }
inline std::string word(bool value) { return value ? "yes" : "no"; }
inline std::string word(Index value) { return std::to_string(value); }
/// The shortest text that reads back as the same number.
inline std::string word(double value) {
  char text[64];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}
inline bool read(const std::string& text, std::string& value) { return value = text, !text.empty(); }
inline bool read(const std::string& text, bool& value) { return value = text == "yes", value || text == "no"; }
template <class Number>
inline bool read(const std::string& text, Number& value) {
  const char* end = text.data() + text.size();
  const auto found = std::from_chars(text.data(), end, value);
  return found.ec == std::errc() && found.ptr == end;
}

template <class... A>
std::string text(const char* format, A... a) {
  char line[256];
  std::snprintf(line, sizeof line, format, a...);
  return line;
}
inline std::string duration(double seconds) {
  const long s = std::lround(seconds);
  if (s < 100) return text("%ld s", s);
  return s < 6000 ? text("%ld min", (s + 30) / 60) : text("%ld h %ld min", s / 3600, s % 3600 / 60);
}

using Clock = std::chrono::steady_clock;
inline double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// A line on stderr, where somebody looks at it written over by the next one.
inline void progress(const std::string& line, bool stays) {
  static const bool watched = isatty(2) == 1;
  if (watched)
    std::fprintf(stderr, "\r\033[K%s%s", line.c_str(), stays ? "\n" : "");
  else if (stays)
    std::fprintf(stderr, "%s\n", line.c_str());
}

/// Beside what is there, and renamed.
inline void write_text(const std::string& path, const std::string& words) {
  const auto* bytes = reinterpret_cast<const std::byte*>(words.data());
  limpid::io::detail::write_file(path, {bytes, bytes + words.size()});
}

/// All parameters of an array, by name, as floats of that type.
template <class S>
void add_parameters(Safetensors& file, const std::string& prefix, limpid::io::DType type, const Parameters& parameters,
                    const Mat<S>& numbers) {
  for (const Parameter& p : parameters.all())
    file.tensors[prefix + p.name] =
        Tensor::from(Eigen::Map<const Mat<S>>(numbers.data() + p.first, p.rows, p.cols), type);
}
/// And back. Throws FormatError for those of another model.
template <class S>
void read_parameters(const Safetensors& file, const std::string& path, const std::string& prefix,
                     limpid::io::DType type, const Parameters& parameters, Mat<S>& to) {
  for (const Parameter& p : parameters.all()) {
    const Tensor& tensor = file.at(prefix + p.name);
    if (tensor.shape != std::vector<Index>{p.rows, p.cols} || tensor.dtype != type)
      throw FormatError(path + ": '" + prefix + p.name + "' is " + limpid::io::detail::info(tensor.dtype).safetensors +
                        " of " + limpid::io::detail::shape_of(tensor.shape) + ", wanted " +
                        limpid::io::detail::info(type).safetensors + " of [" + std::to_string(p.rows) + ", " +
                        std::to_string(p.cols) + "]");
    to.middleCols(p.first, p.size()) = tensor.matrix<S>().template reshaped<Eigen::RowMajor>().transpose();
  }
}

inline void add_settings(Safetensors& file, Settings settings, const Spread& spread) {
  settings.visit([&](const char* name, const auto& field, auto...) { file.metadata[name] = word(field); });
  file.metadata["pixel mean"] = word(spread.mean), file.metadata["pixel deviation"] = word(spread.deviation);
}
/// The settings in a file. Throws FormatError where one is missing or out of range.
inline Settings settings_of(const Safetensors& file, const std::string& path) {
  Settings settings;
  settings.visit([&](const char* name, auto& field, auto... range) {
    const std::string found = file.meta(name);
    bool right = read(found, field);
    if constexpr (sizeof...(range) == 2) {
      const auto [least, most] = std::pair(range...);
      right = right && field >= least && field <= most;
    }
    if (!right)
      throw FormatError(path + ": its setting '" + name + "' is '" + found + "', wanted a checkpoint of this program");
  });
  return settings;
}

/// A number among the words of a file.
template <class Number>
Number number_in(const Safetensors& file, const std::string& path, const char* name) {
  Number value{};
  if (!read(file.meta(name), value))
    throw FormatError(path + ": its '" + name + "' is '" + file.meta(name) + "', wanted a number");
  return value;
}

/// An option for every setting but those named.
inline std::map<std::string, CLI::Option*> add_options(CLI::App& app, Settings& settings,
                                                       const std::vector<std::string>& but = {}) {
  std::vector<std::string> operators;
  for (const auto& vit : vits()) operators.push_back(vit.first);
  std::map<std::string, CLI::Option*> options;
  settings.visit([&](const std::string& name, auto& field, const char* what, auto... range) {
    using Field = std::remove_reference_t<decltype(field)>;
    if (std::count(but.begin(), but.end(), name) > 0) return;
    if constexpr (std::is_same_v<Field, bool>)
      options[name] = app.add_flag("--" + name + ",!--no-" + name, field, what);
    else
      options[name] = app.add_option("--" + name, field, what)->capture_default_str();
    if constexpr (std::is_same_v<Field, std::string>) options[name]->check(CLI::IsMember(operators));
    if constexpr (sizeof...(range) == 2) {
      const auto [least, most] = std::pair(range...);
      options[name]->check(CLI::Validator(  // CLI::Range lets NaN pass
          [least = least, most = most](const std::string& given) {
            Field value{};
            return read(given, value) && value >= least && value <= most
                       ? std::string()
                       : "wanted from " + word(least) + " to " + word(most) + ", found '" + given + "'";
          },
          "in [" + word(least) + " - " + word(most) + "]"));
    }
  });
  return options;
}
using option::named_path;

/// What divides what, and that there are enough images.
inline void check_settings(const Settings& settings, const LabelledImages& images, const LabelledImages& tests,
                           const std::string& data) {
  const auto divides = [](const char* name, Index divisor, const char* what, Index of) {
    if (of % divisor != 0)
      throw std::invalid_argument(std::string("--") + name + ": found " + std::to_string(divisor) +
                                  ", wanted a divisor of the " + what + " " + std::to_string(of));
  };
  divides("heads", settings.heads, "width", settings.width);
  if (tests.rows != images.rows || tests.cols != images.cols)
    throw FormatError(data + ": test images are " + std::to_string(tests.rows) + " x " + std::to_string(tests.cols) +
                      ", wanted " + std::to_string(images.rows) + " x " + std::to_string(images.cols) +
                      " as the training images");
  divides("patch", settings.patch, "rows of an image,", images.rows);
  divides("patch", settings.patch, "columns of an image,", images.cols);
  if (settings.batch > images.count)
    throw std::invalid_argument("--batch: found " + std::to_string(settings.batch) + ", wanted at most the " +
                                std::to_string(images.count) + " images");
}
inline VitShape shape_of(const Settings& settings, const LabelledImages& images) {
  return {images.rows,     images.cols,    settings.patch, settings.width,
          settings.layers, settings.heads, settings.mlp,   classes};
}

/// A model of robustness: what it was trained with, and its weights, which its file has in F16.
struct Trained {
  Settings settings;
  Spread spread;
  std::unique_ptr<Model<float>> model;
  Mat<float> w;

  /// Throws FormatError for a file that is none, and where its patches do not fit these images.
  Trained(const std::string& path, const LabelledImages& tests) {
    const Safetensors file = limpid::io::read_safetensors(path);
    settings = settings_of(file, path);
    settings.batch = 1;  // that of its training is of no matter here
    if (vits().count(settings.op) == 0)
      throw FormatError(path + ": its operator is '" + settings.op + "', wanted one of `train --help`");
    spread = {number_in<double>(file, path, "pixel mean"), number_in<double>(file, path, "pixel deviation")};
    check_settings(settings, tests, tests, path);
    model = vits().at(settings.op)(shape_of(settings, tests));
    w = Mat<float>::Zero(1, model->parameters().size());
    read_parameters(file, path, "", limpid::io::DType::f16, model->parameters(), w);
  }
};

/// Images of a task: so many that a layer's arrays stay in a core's cache, and as many in each.
inline Index images_of_task(Index batch) {
  Index most = 1;
  for (Index i = 1; i <= 16; ++i)
    if (batch % i == 0) most = i;
  return most;
}

class Run {
 public:
  using S = float;

  Run(const Settings& settings, const Model<S>& model, const LabelledImages& images, const LabelledImages& tests,
      const std::string& folder, int threads)
      : settings_(settings),
        model_(model),
        images_(images),
        tests_(tests),
        folder_(folder),
        spread_(spread_of(images)),
        pool_(threads),
        each_(images_of_task(settings.batch)),
        tasks_(settings.batch / each_),
        steps_(images.count / settings.batch),
        w_(model.parameters().started<S>(static_cast<std::uint64_t>(settings.seed))),
        gradients_(static_cast<std::size_t>(tasks_), like_parameters()),
        losses_(static_cast<std::size_t>(tasks_)),
        right_(losses_.size()) {
    adam_.decay = settings.decay;
    adam_.m = like_parameters(), adam_.v = like_parameters();
    for (int worker = 0; worker < pool_.workers(); ++worker) rooms_.push_back(model.room(each_));
  }

  std::string checkpoint() const { return folder_ + "/checkpoint.safetensors"; }

  /// Trains up to the end of that epoch.
  void train(Index last) {
    const Clock::time_point start = Clock::now();
    Clock::time_point told = start;
    const Index first = epoch_, warmup = std::lround(settings_.warmup * static_cast<double>(steps_));
    const double all = static_cast<double>((last - first) * steps_);
    for (; epoch_ < last;) {
      const Clock::time_point began = Clock::now();
      const auto seed = static_cast<std::uint64_t>(settings_.seed);
      const std::vector<Index> order = shuffled(images_.count, Random(seed, -1, epoch_));
      double loss = 0;
      Index right = 0;
      for (Index step = 0; step < steps_; ++step) {
        loss += gradient(order.data() + step * settings_.batch, right);
        const double rate = rate_of(adam_.t, settings_.epochs * steps_, warmup, settings_.rate);
        adam_.step(model_.parameters(), w_, gradients_[0], clipping(gradients_[0], settings_.clip), rate);
        if (!std::isfinite(loss))
          throw std::runtime_error("the loss is no number after step " + std::to_string(adam_.t) +
                                   ", wanted a smaller --lr or a --clip");
        if (since(told) > 1) {
          told = Clock::now();
          const double done = static_cast<double>((epoch_ - first) * steps_ + step + 1);
          progress(text("epoch %ld of %ld, step %ld of %ld: loss %.4f, %.0f images/s, %s left", long(epoch_ + 1),
                        long(settings_.epochs), long(step + 1), long(steps_), loss / static_cast<double>(step + 1),
                        static_cast<double>((step + 1) * settings_.batch) / since(began),
                        duration(since(start) * (all - done) / done).c_str()),
                   false);
        }
      }
      const double seconds = since(began);
      ++epoch_;
      const double seen = static_cast<double>(steps_ * settings_.batch);
      const auto [test_loss, test_right] = test();
      curve_.insert(curve_.end(), {static_cast<double>(epoch_), loss / static_cast<double>(steps_),
                                   static_cast<double>(right) / seen, test_loss, test_right});
      write();
      const double done = static_cast<double>(epoch_ - first) / static_cast<double>(last - first);
      progress(text("epoch %ld of %ld: loss %.4f, test loss %.4f, test accuracy %.2f %%, %.0f images/s, %s left",
                    long(epoch_), long(settings_.epochs), loss / static_cast<double>(steps_), test_loss,
                    100 * test_right, seen / seconds, duration(since(start) * (1 - done) / done).c_str()),
               true);
    }
  }

  /// Loss without smoothing, and the share of test images that are told right.
  std::pair<double, double> test() {
    const Index tasks = (tests_.count + each_ - 1) / each_;
    std::vector<double> losses(static_cast<std::size_t>(tasks));
    std::vector<Index> right(losses.size());
    pool_.run(tasks, [&](Index task, int worker) {
      Room<S>& room = *rooms_[static_cast<std::size_t>(worker)];
      const Index first = task * each_, here = std::min(each_, tests_.count - first);
      for (Index i = 0; i < each_; ++i) put(tests_, std::min(first + i, tests_.count - 1), {}, i, room);
      model_.forward(w_, room, false);
      const auto t = static_cast<std::size_t>(task);
      losses[t] =
          cross_entropy<S>(View<S>(room.logits).block(0, 0, here, room.logits.cols()), room.labels, 0, 0, {}, right[t]);
    });
    double loss = 0, sum = 0;
    for (std::size_t t = 0; t < losses.size(); ++t) loss += losses[t], sum += static_cast<double>(right[t]);
    return {loss / static_cast<double>(tests_.count), sum / static_cast<double>(tests_.count)};
  }

  /// Goes on where a checkpoint of the same settings stands. Throws FormatError for one of another model.
  void resume(const Safetensors& file) {
    const auto of = [&](const std::string& prefix, Mat<S>& to) {
      read_parameters(file, checkpoint(), prefix, limpid::io::dtype_of<S>(), model_.parameters(), to);
    };
    of("", w_), of("adam.m.", adam_.m), of("adam.v.", adam_.v);
    curve_ = file.at("curve").values<double>();
    for (const auto& [name, number] : {std::pair("epoch", &epoch_), std::pair("step", &adam_.t)})
      if (!read(file.meta(name), *number) || *number < 0)
        throw FormatError(checkpoint() + ": " + name + " is '" + file.meta(name) + "', wanted a whole number from 0");
    if (curve_.size() != static_cast<std::size_t>(epoch_) * curve_columns || adam_.t != epoch_ * steps_)
      throw FormatError(checkpoint() + ": after epoch " + std::to_string(epoch_) + " found step " +
                        std::to_string(adam_.t) + " and " + std::to_string(curve_.size()) +
                        " numbers of the curve, wanted " + std::to_string(epoch_ * steps_) + " and " +
                        std::to_string(static_cast<std::size_t>(epoch_) * curve_columns));
  }
  Index epoch() const { return epoch_; }
  /// Of all parameters, and of the pixels that it was trained on.
  const Mat<S>& parameters() const { return w_; }
  const Spread& spread() const { return spread_; }
  /// A row of numbers an epoch: epoch, loss, accuracy, test loss, test accuracy.
  const std::vector<double>& curve() const { return curve_; }
  static constexpr std::size_t curve_columns = 5;

 private:
  Mat<S> like_parameters() const { return Mat<S>::Zero(1, model_.parameters().size()); }

  void put(const LabelledImages& images, Index image, const Moved& moved, Index place, Room<S>& room) {
    const Index n = model_.shape().patches();
    put_patches<S>(images, image, moved, spread_, settings_.patch,
                   MutView<S>(room.patches).block(place * n, 0, n, room.patches.cols()));
    room.labels[static_cast<std::size_t>(place)] = images.labels[static_cast<std::size_t>(image)];
  }

  /// The mean loss of a batch; its gradient goes to gradients_[0].
  double gradient(const Index* batch, Index& right) {
    const double share = 1 / static_cast<double>(settings_.batch);
    pool_.run(tasks_, [&](Index task, int worker) {
      Room<S>& room = *rooms_[static_cast<std::size_t>(worker)];
      for (Index i = 0; i < each_; ++i) {
        const Index image = batch[task * each_ + i];
        const Random random(static_cast<std::uint64_t>(settings_.seed), -2, epoch_, image);
        put(images_, image, settings_.augment ? Moved::drawn(random, settings_.shift) : Moved{}, i, room);
      }
      model_.forward(w_, room, true);
      const auto t = static_cast<std::size_t>(task);
      right_[t] = 0;
      losses_[t] = cross_entropy<S>(room.logits, room.labels, settings_.smoothing, share, room.dlogits, right_[t]);
      model_.backward(w_, room, gradients_[t], {});
    });
    constexpr Index piece = 8192;
    pool_.run((w_.cols() + piece - 1) / piece, [&](Index task, int) {
      const Index first = task * piece, count = std::min(piece, w_.cols() - first);
      auto sum = gradients_[0].middleCols(first, count);
      for (std::size_t t = 1; t < gradients_.size(); ++t) sum += gradients_[t].middleCols(first, count);
    });
    double loss = 0;
    for (std::size_t t = 0; t < losses_.size(); ++t) loss += losses_[t], right += right_[t];
    return loss * share;
  }

  /// Checkpoint and curve, each beside what is there and renamed.
  void write() {
    Safetensors file;
    const auto add = [&](const std::string& prefix, const Mat<S>& numbers) {
      add_parameters(file, prefix, limpid::io::dtype_of<S>(), model_.parameters(), numbers);
    };
    add("", w_), add("adam.m.", adam_.m), add("adam.v.", adam_.v);
    file.tensors["curve"] = Tensor::from(curve_, {epoch_, static_cast<Index>(curve_columns)});
    add_settings(file, settings_, spread_);
    file.metadata["epoch"] = word(epoch_), file.metadata["step"] = word(adam_.t);
    limpid::io::write_safetensors(checkpoint(), file);

    std::string csv = "epoch,loss,accuracy,test loss,test accuracy\n";
    for (std::size_t row = 0; row < curve_.size(); row += curve_columns)
      csv += text("%.0f,%.6f,%.6f,%.6f,%.6f\n", curve_[row], curve_[row + 1], curve_[row + 2], curve_[row + 3],
                  curve_[row + 4]);
    write_text(folder_ + "/curve.csv", csv);
    write_text(folder_ + "/curve.gp", R"(# Draws curve.png from curve.csv: gnuplot curve.gp
set terminal pngcairo size 1000,420
set output 'curve.png'
set datafile separator ','
set multiplot layout 1,2
set xlabel 'epoch'
set grid
set key bottom right
set title 'accuracy'
plot 'curve.csv' skip 1 using 1:3 with linespoints title 'training', '' skip 1 using 1:5 with linespoints title 'test'
set key top right
set title 'cross entropy'
plot 'curve.csv' skip 1 using 1:2 with linespoints title 'training', '' skip 1 using 1:4 with linespoints title 'test'
unset multiplot
)");
  }

  Settings settings_;
  const Model<S>& model_;
  const LabelledImages &images_, &tests_;
  std::string folder_;
  Spread spread_;
  limpid::ThreadPool pool_;
  Index each_, tasks_, steps_;  ///< images of a task, tasks of a step, steps of an epoch
  Mat<S> w_;
  AdamW<S> adam_;
  std::vector<std::unique_ptr<Room<S>>> rooms_;
  std::vector<Mat<S>> gradients_;
  std::vector<double> losses_;
  std::vector<Index> right_;
  Index epoch_ = 0;
  std::vector<double> curve_;
};

}  // namespace training
