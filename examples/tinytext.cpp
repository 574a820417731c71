// limpid: a causal character model of plain English text, over softmax, over twicing and of attention only (AoT), plain
// or with one matrix for queries, keys and values (MSSA).
// SPDX-License-Identifier: MIT
//
//     tinytext --out run                      trains all four: bits per character of text kept back, and what each writes
//     tinytext --operator twicing --out run   one of them
//     tinytext --resume --out run             goes on after an interruption, bit for bit
//
// softmax and twicing are LLaMA-style decoders: run/softmax.safetensors is a checkpoint that model::Llama reads. The
// attention-only models have learned places. A thread takes a sequence through the whole model in memory of its own;
// gradients are summed in the order of the sequences, so that any number of threads gives the same bits.
#include <zlib.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/layer/aot.hpp>
#include <limpid/model/llama.hpp>
#include <limpid/op/mssa.hpp>
#include <limpid/op/twicing.hpp>
#include <memory>
#include <thread>

#include "training.hpp"

namespace {

using namespace training;
using S = float;
namespace io = limpid::io;
using Ids = std::vector<Index>;

struct Settings {
  Index width = 96, layers = 3, heads = 4, mlp = 256, length = 128, batch = 16, steps = 1000, seed = 1;
  double rate = 3e-3;

  /// f(name, field, what it is, most)
  template <class F>
  void visit(F&& f) {
    f("width", width, "width of a token", Index(4096)),
        f("layers", layers, "blocks; of aot twice, of mssa four times as many", Index(64));
    f("heads", heads, "heads, a divisor of the width", Index(4096)), f("mlp", mlp, "hidden width", Index(16384));
    f("length", length, "characters of a sequence", Index(1) << 16);
    f("batch", batch, "sequences a step", Index(1) << 16), f("steps", steps, "steps", Index(1) << 24);
    f("seed", seed, "of parameters and sequences", Index(1) << 40), f("lr", rate, "largest learning rate", 100.0);
  }
  std::string text() {
    std::string all;
    visit([&](const char* name, const auto& field, auto...) {
      all += std::string(name) + " " + std::to_string(field) + " ";
    });
    return all;
  }
};

/// A text, plain or gzip, its letters as numbers; the last tenth is kept back.
struct Text {
  std::string letters;
  Ids train, test;

  Text(const std::string& path, Index length) {
    const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
    if (file == nullptr) throw io::FormatError(path + ": cannot be opened for reading");
    std::string all, piece(1 << 16, ' ');
    int count = 0;
    while ((count = gzread(file.get(), piece.data(), static_cast<unsigned>(piece.size()))) > 0)
      all.append(piece, 0, static_cast<std::size_t>(count));
    if (count < 0) throw io::FormatError(path + ": its gzip stream is damaged");
    letters = all;
    std::sort(letters.begin(), letters.end());
    letters.erase(std::unique(letters.begin(), letters.end()), letters.end());
    if (static_cast<Index>(all.size() / 10) <= length)
      throw io::FormatError(path + ": has " + std::to_string(all.size()) +
                            " characters, wanted ten times the --length");
    for (std::size_t i = 0; i < all.size(); ++i)
      (i < all.size() - all.size() / 10 ? train : test).push_back(static_cast<Index>(letters.find(all[i])));
  }
};

/// What one thread works with.
struct Room {
  Mat<S> logits, dlogits;
  virtual ~Room() = default;
};
/// A model of the next letter whose parameters lie in one array.
struct Model {
  Parameters parameters;
  virtual ~Model() = default;
  virtual void use(const Mat<S>& w) = 0;  ///< that array, from now on
  virtual std::unique_ptr<Room> room() const = 0;
  virtual void forward(const Ids& ids, Room& room, bool keep) const = 0;
  virtual void backward(Room& room, Mat<S>& gradient) const = 0;
  /// The logits of what follows, one letter after another: call(letter). It keeps what earlier letters made.
  virtual std::function<Mat<S>(Index)> reader() const = 0;
};

/// A reader without a cache: all letters so far are read again.
std::function<Mat<S>(Index)> again(const Model& model) {
  return [&model, ids = Ids(), room = std::shared_ptr<Room>(model.room())](Index letter) mutable {
    ids.push_back(letter);
    model.forward(ids, *room, false);
    return Mat<S>(room->logits.bottomRows(1));
  };
}

/// A LLaMA-style decoder over an operator, with one table for letters and logits.
template <class Attention>
class Decoder : public Model {
  using Llama = limpid::model::Llama<S>;
  using Op = decltype(Attention::of(std::declval<const Llama&>()));
  struct Own : Room {
    limpid::model::LlamaSaved<Op, S> saved;
    limpid::model::ParameterGradients<S> gradients;
  };
  static std::vector<std::byte> blank(const Settings& s, Index letters) {
    io::Safetensors file;
    const auto add = [&](const std::string& name, Index rows, Index cols) {
      io::Tensor& t = file.tensors[name] = io::Tensor::from(Mat<S>(Mat<S>::Zero(rows, cols)));
      if (rows == 1) t.shape = {cols};
    };
    add("model.embed_tokens.weight", letters, s.width), add("model.norm.weight", 1, s.width);
    for (Index l = 0; l < s.layers; ++l) {
      const std::string block = "model.layers." + std::to_string(l) + ".";
      for (const char* name : {"input_layernorm", "post_attention_layernorm"})
        add(block + name + ".weight", 1, s.width);
      for (const char* name : {"q", "k", "v", "o"}) add(block + "self_attn." + name + "_proj.weight", s.width, s.width);
      for (const char* name : {"gate", "up"}) add(block + "mlp." + name + "_proj.weight", s.mlp, s.width);
      add(block + "mlp.down_proj.weight", s.width, s.mlp);
    }
    return io::serialize_safetensors(file);
  }

 public:
  Decoder(const Settings& s, Index letters)
      : bytes_(blank(s, letters)),
        llama_(io::Checkpoint(bytes_.data(), bytes_.size(), "tinytext"), {.heads = s.heads, .eps = 1e-5}) {
    for (const auto& p : llama_.parameters.list)
      parameters.add(p.name, p.value.rows(), p.value.cols(),
                     p.value.rows() == 1                     ? Start::one
                     : p.name == "model.embed_tokens.weight" ? Start::token
                                                             : Start::weight);
  }
  void use(const Mat<S>& w) override {
    for (auto& p : llama_.parameters.list) p.value = io::Weights<S>(parameters.view(w, p.name), nullptr);
  }
  std::unique_ptr<Room> room() const override {
    auto own = std::make_unique<Own>();
    own->gradients = limpid::model::ParameterGradients<S>(llama_.parameters);
    return own;
  }
  void forward(const Ids& ids, Room& room, bool keep) const override {
    auto& saved = static_cast<Own&>(room).saved;
    llama_.forward(Attention::of(llama_), ids, saved, {.keep = keep});
    room.logits = saved.logits;
  }
  void backward(Room& room, Mat<S>& gradient) const override {
    auto& own = static_cast<Own&>(room);
    own.gradients.set_zero();
    llama_.backward(Attention::of(llama_), own.saved, View<S>(room.dlogits), &own.gradients);
    for (std::size_t i = 0; i < own.gradients.list.size(); ++i)
      parameters.view(gradient, llama_.parameters.list[i].name).map() = own.gradients.list[i];
  }
  std::function<Mat<S>(Index)> reader() const override {
    return [this, op = Attention::of(llama_), cache = llama_.cache(Attention::of(llama_))](Index letter) mutable {
      return llama_.step(op, {letter}, cache);
    };
  }

 private:
  std::vector<std::byte> bytes_;
  Llama llama_;
};
struct Softmax {
  static auto of(const limpid::model::Llama<S>& model) { return model.attention(); }
};
struct Twicing {
  static auto of(const limpid::model::Llama<S>& model) {
    return limpid::rope(limpid::twicing(limpid::causal()), model.rope());
  }
};

/// Attention only: letters and places, layers x + Attention(LN(x)), a norm, the table of the letters again. Attention is
/// MSSA, one matrix for queries, keys and values, or plain with rotary positions, on which places are put besides.
template <bool Tied>
class AttentionOnly : public Model {
  static auto op_of() {
    if constexpr (Tied)
      return limpid::mssa(limpid::causal());
    else
      return limpid::rope(limpid::softmax(limpid::causal()), {.layout = limpid::RopeLayout::half});
  }
  using Op = decltype(op_of());
  struct Own : Room {
    Ids ids, places;
    Mat<S> x, last, normed, dnormed, dlast, dx;
    limpid::AotStackSaved<Op, S> saved;
    limpid::LayerNormSaved<S> norm;
  };

 public:
  AttentionOnly(const Settings& s, Index letters)
      : stack_{limpid::aot(op_, {.heads = s.heads})}, layers_((Tied ? 4 : 2) * s.layers) {
    parameters.add("letters", letters, s.width, Start::weight),
        parameters.add("places", s.length, s.width, Start::weight);
    for (Index l = 0; l < layers_; ++l) {
      const auto add = [&](const char* name, Index rows, Start start) {
        parameters.add(std::to_string(l) + name, rows, s.width, start);
      };
      add(".gamma", 1, Start::one), add(".beta", 1, Start::zero), add(".bo", 1, Start::zero);
      for (const char* name : matrices()) add(name, s.width, Start::weight);
      add(".wo", s.width, Start::token);
    }
    parameters.add("gamma", 1, s.width, Start::one), parameters.add("beta", 1, s.width, Start::zero);
  }
  void use(const Mat<S>& w) override { w_ = &w; }
  std::unique_ptr<Room> room() const override { return std::make_unique<Own>(); }
  void forward(const Ids& ids, Room& room, bool keep) const override {
    auto& own = static_cast<Own&>(room);
    const auto n = static_cast<Index>(ids.size()), width = of("gamma").cols;
    own.ids = ids, own.places.resize(ids.size());
    for (Index i = 0; i < n; ++i) own.places[static_cast<std::size_t>(i)] = i;
    for (Mat<S>* m : {&own.x, &own.last, &own.normed}) m->resize(n, width);
    limpid::embed(of("letters"), ids, own.x);
    limpid::embed(of("places"), own.places, own.x, {.accumulate = true});
    stack_.forward(own.x, layers<View<S>>(*w_), own.last, {.saved = keep ? &own.saved : nullptr});
    limpid::layer_norm(own.last, of("gamma"), of("beta"), own.normed, {1e-5, &own.norm});
    room.logits.resize(n, of("letters").rows);
    limpid::linear(own.normed, limpid::out_in(of("letters")), View<S>(), room.logits);
  }
  void backward(Room& room, Mat<S>& gradient) const override {
    auto& own = static_cast<Own&>(room);
    const auto to = [&](const char* name) { return parameters.view(gradient, name); };
    for (Mat<S>* m : {&own.dnormed, &own.dlast, &own.dx}) m->resize(own.x.rows(), own.x.cols());
    limpid::linear_backward(own.normed, limpid::out_in(of("letters")), room.dlogits, {own.dnormed, to("letters"), {}});
    limpid::layer_norm_backward(own.last, of("gamma"), own.norm, own.dnormed, {own.dlast, to("gamma"), to("beta")});
    auto of_layers = layers<MutView<S>>(gradient);
    stack_.backward(own.x, layers<View<S>>(*w_), own.saved, own.dlast, own.dx, of_layers);
    limpid::embed_backward(own.ids, own.dx, limpid::add(to("letters")));
    limpid::embed_backward(own.places, own.dx, to("places"));
  }
  std::function<Mat<S>(Index)> reader() const override {
    if constexpr (!Tied) return again(*this);
    // each layer keeps its tokens' coordinates, which are keys and values
    return [this, cache = std::vector<Mat<S>>(static_cast<std::size_t>(layers_))](Index letter) mutable {
      const Index before = cache.front().rows();
      Mat<S> x = of("letters").map().row(letter) + of("places").map().row(before), h = x, y = x, o = x, out = x;
      const auto all = layers<View<S>>(*w_);
      for (std::size_t l = 0; l < all.size(); ++l) {
        limpid::layer_norm(x, all[l].gamma, all[l].beta, h);
        limpid::linear(h, all[l].u, View<S>(), y);
        cache[l].conservativeResize(before + 1, y.cols());
        cache[l].row(before) = y;
        if constexpr (Tied) limpid::forward(op_, {.y = y, .cache = cache[l]}, o, {.heads = stack_.layer.heads});
        limpid::linear(o, all[l].wo, all[l].bo, out);
        x += out;
      }
      limpid::layer_norm(x, of("gamma"), of("beta"), h);
      Mat<S> logits(1, of("letters").rows);
      limpid::linear(h, limpid::out_in(of("letters")), View<S>(), logits);
      return logits;
    };
  }

 private:
  View<S> of(const char* name) const { return parameters.view(*w_, name); }
  template <class V, class Numbers>
  std::vector<limpid::AotArgs<V>> layers(Numbers& numbers) const {
    std::vector<limpid::AotArgs<V>> all(static_cast<std::size_t>(layers_));
    for (std::size_t l = 0; l < all.size(); ++l) {
      const auto named = [&](const char* name) { return parameters.view(numbers, std::to_string(l) + name); };
      all[l].gamma = named(".gamma"), all[l].beta = named(".beta");
      all[l].wo = named(".wo"), all[l].bo = named(".bo");
      if constexpr (Tied)
        all[l].u = named(".u");
      else
        all[l].wq = named(".wq"), all[l].wk = named(".wk"), all[l].wv = named(".wv");
    }
    return all;
  }

  static std::vector<const char*> matrices() {
    if constexpr (Tied) return {".u"};
    return {".wq", ".wk", ".wv"};
  }

  Op op_ = op_of();
  limpid::AotStack<Op> stack_;
  Index layers_;
  const Mat<S>* w_ = nullptr;
};

class Run {
 public:
  Run(Settings& settings, const Text& text, Model& model, const std::string& path, int threads)
      : settings_(settings), text_(text), model_(model), path_(path), pool_(threads) {
    w_ = model.parameters.started<S>(static_cast<std::uint64_t>(settings.seed));
    adam_.decay = 0.05, adam_.beta2 = 0.99, adam_.m = adam_.v = Mat<S>::Zero(1, w_.cols());
    model.use(w_);
    gradients_.assign(static_cast<std::size_t>(settings.batch), adam_.m);
    for (int worker = 0; worker < pool_.workers(); ++worker) rooms_.push_back(model.room());
  }

  void train(Index last) {
    const auto start = std::chrono::steady_clock::now();
    while (adam_.t < last) {
      const double bits = step();
      if (!std::isfinite(bits)) throw std::runtime_error("the loss is no number, wanted a smaller --lr");
      if (adam_.t % 100 != 0 && adam_.t != last) continue;
      write();
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      std::fprintf(stderr, "%s: step %ld of %ld, %.3f bits, %.0f s\n", path_.c_str(), long(adam_.t),
                   long(settings_.steps), bits, seconds);
    }
  }
  /// Bits a character over the text kept back, in sequences one after the other, each read from its own beginning on.
  double test_bits() {
    const Index n = settings_.length, count = (static_cast<Index>(text_.test.size()) - 1) / n;
    std::vector<double> losses(static_cast<std::size_t>(count));
    pool_.run(count, [&](Index t, int worker) {
      Room& room = *rooms_[static_cast<std::size_t>(worker)];
      losses[static_cast<std::size_t>(t)] = loss(text_.test, t * n, room, 0);
    });
    double sum = 0;
    for (const double one : losses) sum += one;
    return sum / static_cast<double>(count * n) / std::log(2.0);
  }
  /// The beginning of the text kept back and what the model makes of it, drawn at a temperature of 0.7, as long as what
  /// it was trained on.
  std::string written() const {
    std::string out;
    const auto read = model_.reader();
    Mat<S> logits;
    for (Index i = 0; i < std::min<Index>(16, settings_.length); ++i) {
      const Index letter = text_.test[static_cast<std::size_t>(i)];
      logits = read(letter);
      out += text_.letters[static_cast<std::size_t>(letter)];
    }
    while (static_cast<Index>(out.size()) < settings_.length) {
      const Mat<double> p = ((logits.array() - logits.maxCoeff()).cast<double>() / 0.7).exp();
      double left = Random(static_cast<std::uint64_t>(settings_.seed), -3, out.size()).uniform() * p.sum();
      Index next = 0;
      while (next + 1 < p.cols() && (left -= p(0, next)) > 0) ++next;
      out += text_.letters[static_cast<std::size_t>(next)];
      logits = read(next);
    }
    return out;
  }
  void resume() {
    const io::Safetensors file = io::read_safetensors(path_);
    if (file.meta("settings") != settings_.text() || file.meta("letters") != text_.letters)
      throw io::FormatError(path_ + ": is of the settings '" + file.meta("settings") + "', wanted '" +
                            settings_.text() + "' and the same text");
    each(file, [](const io::Tensor& t, auto&& to) { to = t.matrix<S>().reshaped<Eigen::RowMajor>().transpose(); });
    adam_.t = std::stol(file.meta("step"));
  }

 private:
  template <class File, class F>
  void each(File& file, F&& f) {
    for (const auto& [prefix, numbers] :
         {std::pair("", &w_), std::pair("adam.m.", &adam_.m), std::pair("adam.v.", &adam_.v)})
      for (const Parameter& p : model_.parameters.all()) {
        if constexpr (std::is_const_v<File>)
          f(file.at(prefix + p.name), numbers->middleCols(p.first, p.size()));
        else
          f(file.tensors[prefix + p.name], Mat<S>(Eigen::Map<const Mat<S>>(numbers->data() + p.first, p.rows, p.cols)));
      }
  }
  void write() {
    io::Safetensors file;
    each(file, [](io::Tensor& t, const Mat<S>& from) {
      t = io::Tensor::from(from);
      if (from.rows() == 1) t.shape = {from.cols()};
    });
    file.metadata = {{"settings", settings_.text()}, {"letters", text_.letters}, {"step", std::to_string(adam_.t)}};
    io::write_safetensors(path_, file);
  }
  /// The loss of the letters after each of a sequence, and, where a factor is given, its gradient in the room.
  double loss(const Ids& of, Index first, Room& room, double factor) const {
    const Ids ids(of.begin() + first, of.begin() + first + settings_.length);
    const std::vector<int> labels(of.begin() + first + 1, of.begin() + first + 1 + settings_.length);
    model_.forward(ids, room, factor != 0);
    MutView<S> d;
    if (factor != 0) room.dlogits.resize(room.logits.rows(), room.logits.cols()), d = room.dlogits;
    Index right = 0;
    return cross_entropy<S>(room.logits, labels, 0, factor, d, right);
  }
  double step() {
    const double share = 1 / static_cast<double>(settings_.batch * settings_.length);
    std::vector<double> losses(gradients_.size());
    pool_.run(settings_.batch, [&](Index t, int worker) {
      Random random(static_cast<std::uint64_t>(settings_.seed), -2, adam_.t, t);
      Room& room = *rooms_[static_cast<std::size_t>(worker)];
      const Index first = random.below(static_cast<Index>(text_.train.size()) - settings_.length);
      losses[static_cast<std::size_t>(t)] = loss(text_.train, first, room, share);
      model_.backward(room, gradients_[static_cast<std::size_t>(t)]);
    });
    double sum = 0;
    for (const double one : losses) sum += one;
    for (std::size_t t = 1; t < gradients_.size(); ++t) gradients_[0] += gradients_[t];
    const double rate = rate_of(adam_.t, settings_.steps, settings_.steps / 20, settings_.rate);
    adam_.step(model_.parameters, w_, gradients_[0], clipping(gradients_[0], 1), rate);
    return sum * share / std::log(2.0);
  }

  Settings& settings_;
  const Text& text_;
  Model& model_;
  std::string path_;
  limpid::ThreadPool pool_;
  Mat<S> w_;
  AdamW<S> adam_;
  std::vector<Mat<S>> gradients_;
  std::vector<std::unique_ptr<Room>> rooms_;
};

std::unique_ptr<Model> make(const std::string& op, const Settings& s, Index letters) {
  if (op == "softmax") return std::make_unique<Decoder<Softmax>>(s, letters);
  if (op == "twicing") return std::make_unique<Decoder<Twicing>>(s, letters);
  if (op == "aot") return std::make_unique<AttentionOnly<false>>(s, letters);
  return std::make_unique<AttentionOnly<true>>(s, letters);
}

}  // namespace

int main(int argc, char** argv) try {
  Settings settings;
  std::vector<std::string> operators{"softmax", "twicing", "aot", "mssa"};
  std::string data = LIMPID_EXAMPLES "/data/tinytext/king_james.txt.gz", folder = "tinytext";
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  Index stop = 0;
  bool resume = false;
  CLI::App app("Trains a causal character model of plain English text over operators of limpid.");
  settings.visit([&](const std::string& name, auto& field, const char* what, auto most) {
    using Field = std::remove_reference_t<decltype(field)>;
    const double least = std::is_same_v<Field, double> ? 0.0 : 1.0;
    app.add_option("--" + name, field, what)
        ->capture_default_str()
        ->check(CLI::Validator(  // CLI::Range lets NaN pass
            [least, most](const std::string& word) {
              char* end = nullptr;
              const double number = std::strtod(word.c_str(), &end);
              const bool fits = !word.empty() && *end == 0 && number >= least && number <= static_cast<double>(most) &&
                                (least == 0 || number == std::floor(number));
              return fits ? std::string()
                          : "wanted from " + CLI::detail::to_string(least) + " to " + CLI::detail::to_string(most) +
                                ", found '" + word + "'";
            },
            "NUMBER"));
  });
  app.add_option("--operator", operators, "of softmax, twicing, aot, mssa")
      ->check(CLI::IsMember({"softmax", "twicing", "aot", "mssa"}));
  app.add_option("--data", data, "the text, plain or gzip")->capture_default_str();
  app.add_option("--out", folder, "folder of the checkpoints")->capture_default_str();
  app.add_option("--threads", threads, "they change no bit (default: one a core)")->check(CLI::Range(1, 1024));
  app.add_option("--stop-after", stop, "end after so many steps, to be resumed")->check(CLI::Range(1, 1 << 24));
  app.add_flag("--resume", resume, "go on from the checkpoints in --out");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  if (settings.width % (2 * settings.heads) != 0)
    throw std::invalid_argument("--heads: found " + std::to_string(settings.heads) +
                                ", wanted twice as many to divide " + "the width " + std::to_string(settings.width));
  const Text text(data, settings.length);
  std::filesystem::create_directories(folder);
  std::string samples;
  for (const std::string& op : operators) {
    const auto model = make(op, settings, static_cast<Index>(text.letters.size()));
    Run run(settings, text, *model, folder + "/" + op + ".safetensors", threads);
    if (resume) run.resume();
    if (&op == &operators.front()) {
      std::printf("%zu characters to learn, %zu kept back, %zu letters\n", text.train.size(), text.test.size(),
                  text.letters.size());
      std::printf("operator  parameters  steps  bits per character kept back\n");
    }
    const Index last = stop == 0 ? settings.steps : std::min(stop, settings.steps);
    run.train(last);
    std::printf("%-8s  %10ld  %5ld  %.4f\n", op.c_str(), long(model->parameters.count()), long(last), run.test_bits());
    std::fflush(stdout);
    samples += "\n" + op + ": " + run.written() + "\n";
  }
  std::printf("%s", samples.c_str());
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "tinytext: %s\n", problem.what());
  return 1;
}
