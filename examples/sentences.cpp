// limpid: how alike sentences are, and which of their words make them so, by a published model.
// SPDX-License-Identifier: MIT
//
//     sentences [SENTENCE ...] [--model FOLDER] [--picture FILE]
//
// By MiniLM, of which minilm.hpp tells. Why two are alike: each token's relevance to the cosine of their embeddings,
// gradients times attention maps multiplied through all layers (Chefer, Gur and Wolf 2021, arXiv 2103.15679), summed
// over the tokens of a word.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "gnuplot.hpp"
#include "minilm.hpp"
#include "option_checks.hpp"

namespace {

using limpid::Index;
using limpid::Mat;
using limpid::View;
using Operator = decltype(limpid::softmax());

/// A sentence, its embedding and what the way back to its words needs.
struct Sentence {
  std::string text;
  wordpiece::Text parts;
  limpid::model::Bert<float>::Saved<Operator> saved;
  Mat<float> embedding;  // 1 x D

  Sentence(const std::string& written, const wordpiece::Tokenizer& tokenizer, const limpid::model::Bert<float>& bert)
      : text(written), parts(minilm::read(written, tokenizer)) {
    bert.forward(limpid::softmax(), parts.ids, {}, saved);
    embedding = minilm::embedding(saved.hidden);
  }
};

/// The share of each word of `of` in how alike it is to another: relevance, over that of all its words.
std::vector<double> shares(const limpid::model::Bert<float>& bert, Sentence& of, const Sentence& other) {
  const Mat<float> dhidden = minilm::likeness_backward(of.saved.hidden, other.embedding);
  limpid::model::RelevanceRow<float> relevance{minilm::mean_of(dhidden.rows())};
  bert.backward(limpid::softmax(), of.saved, View<float>(dhidden), nullptr, {}, &relevance);
  std::vector<double> out(of.parts.words.size());
  double sum = 0;
  for (std::size_t i = 0; i < of.parts.ids.size(); ++i) {
    if (of.parts.word[i] < 0) continue;
    const double one = relevance.rest(0, Index(i));
    out[std::size_t(of.parts.word[i])] += one, sum += one;
  }
  for (double& one : out) one /= sum > 0 ? sum : 1;
  return out;
}

/// A picture as a script for gnuplot, in pixels: words on what their share makes the colour, and how alike all are.
class Picture {
 public:
  Picture(const std::string& path, double wide, double high) : path_(path), file_(path + ".gp") {
    file_ << "# limpid: drawn by gnuplot\nset terminal pngcairo size " << wide << ',' << high
          << " font 'sans,10'\nset encoding utf8\nset output " << gnuplot::quoted(path)
          << "\nunset border\nunset tics\nunset key\nset lmargin at screen 0\nset rmargin at screen 1\n"
          << "set tmargin at screen 1\nset bmargin at screen 0\nset xrange [0:" << wide << "]\nset yrange [" << high
          << ":0]\n";
  }
  /// amount in [0, 1]: white to a colour.
  void box(double x, double y, double wide, double high, double amount, const int (&colour)[3]) {
    char text[8];
    int c[3];
    for (int i = 0; i < 3; ++i) c[i] = int(255 + amount * (colour[i] - 255));
    std::snprintf(text, sizeof text, "#%02x%02x%02x", unsigned(c[0]), unsigned(c[1]), unsigned(c[2]));
    file_ << "set object rectangle from " << x << ',' << y << " to " << x + wide << ',' << y + high
          << " fillcolor rgb '" << text << "' fillstyle solid noborder behind\n";
  }
  void text(double x, double y, std::string text, const char* how) {
    for (char& c : text)
      if (c == '\n' || c == '\r' || c == '\t') c = ' ';
    file_ << "set label " << gnuplot::quoted(text) << " at " << x << ',' << y << " noenhanced " << how << '\n';
  }
  void write() {
    file_ << "plot NaN\n";
    if (!file_.flush()) throw std::runtime_error("cannot write " + path_ + ".gp");
  }

 private:
  std::string path_;
  std::ofstream file_;
};

/// How many letters are drawn.
std::size_t width_of(const std::string& word) {
  return std::size_t(std::count_if(word.begin(), word.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

void write_picture(const std::string& path, const std::deque<Sentence>& all, const Mat<double>& alike,
                   const std::vector<Index>& nearest, const std::vector<std::vector<double>>& why) {
  constexpr double letter = 8.4, line = 22, below = 24, left = 16, text_wide = 640, cell = 46;
  constexpr int orange[3] = {240, 120, 20}, blue[3] = {30, 90, 160};
  constexpr const char *words = "font 'monospace,10.5'", *small = "font 'sans,9' textcolor rgb '#666666'",
                       *middle = "center font 'sans,10'", *light = "center font 'sans,10' textcolor rgb 'white'";
  double widest = 0;
  const auto put = [&](Picture* picture) {  // the height, drawn where there is a picture
    double y = 30;
    for (std::size_t s = 0; s < all.size(); ++s) {
      const auto& parts = all[s].parts;
      const double most = *std::max_element(why[s].begin(), why[s].end());
      double x = left + 28;
      if (picture != nullptr) picture->text(left, y, std::to_string(s + 1), "font 'sans:Bold,11'");
      for (std::size_t w = 0; w < parts.words.size(); ++w) {
        const double wide = letter * double(width_of(parts.words[w]));
        if (x > left + 28 && x + wide > left + text_wide) x = left + 28, y += line;
        if (picture != nullptr) {
          picture->box(x - 3, y - 9, wide + 6, 18, most > 0 ? why[s][w] / most : 0, orange);
          picture->text(x, y, parts.words[w], words);
        }
        x += wide + letter, widest = std::max(widest, x);
      }
      y += 19;
      if (picture != nullptr && nearest[s] >= 0) {
        char text[64];
        std::snprintf(text, sizeof text, "nearest: %ld, cosine %.2f", long(nearest[s] + 1),
                      alike(Index(s), nearest[s]));
        picture->text(left + 28, y, text, small);
      }
      y += below;
    }
    return y;
  };
  const double grid = cell * double(all.size()), high = std::max(put(nullptr), grid + 60), right = widest + 50;
  Picture picture(path, right + grid + 20, high);
  put(&picture);
  for (Index i = 0; i < alike.rows(); ++i) {
    picture.text(right - 14, 46 + cell * (double(i) + 0.5), std::to_string(i + 1), middle);
    picture.text(right + cell * (double(i) + 0.5), 30, std::to_string(i + 1), middle);
    for (Index j = 0; j < alike.cols(); ++j) {
      const double x = right + cell * double(j), y = 46 + cell * double(i), amount = std::max(0.0, alike(i, j));
      char number[16];
      std::snprintf(number, sizeof number, "%.2f", alike(i, j));
      picture.box(x + 1, y + 1, cell - 2, cell - 2, std::min(1.0, amount), blue);
      picture.text(x + cell / 2, y + cell / 2, number, amount > 0.5 ? light : middle);
    }
  }
  picture.write();
}

}  // namespace

int main(int argc, char** argv) try {
  std::vector<std::string> texts;
  const std::string fetched = LIMPID_EXAMPLES "/../build/models/minilm";
  std::string picture, folder = fetched;
  CLI::App app("Says how alike sentences are, and which words make them so, by MiniLM.");
  app.add_option("SENTENCE", texts, "sentences; without any, six of which pairs are alike");
  app.add_option("--model", folder, "folder with model.safetensors and vocab.txt")->check(option::named_path());
  app.add_option("--picture", picture, "PNG of words and likeness; FILE.gp is written, which gnuplot draws")
      ->check(option::named_path());
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  if (folder == fetched && !std::filesystem::exists(folder + "/model.safetensors")) {
    std::fprintf(stderr, "sentences: the weights are not there; examples/fetch_models minilm fetches them (83 MB)\n");
    return 77;  // left out, to ctest
  }
  if (texts.empty())
    texts = {"The bank raised its interest rates again.",       "Mortgages became more expensive for home owners.",
             "We sat on the bank of the river with a picnic.",  "They had lunch by the water and watched the boats.",
             "Her old dog is afraid of thunder and fireworks.", "Loud noises in a storm make many pets hide."};
  const limpid::io::Checkpoint file(folder);
  const limpid::model::Bert<float> bert(file, {.heads = minilm::heads});
  const wordpiece::Tokenizer tokenizer(folder + "/vocab.txt");
  std::deque<Sentence> all;
  for (const std::string& text : texts) all.emplace_back(text, tokenizer, bert);

  const Index count = std::ssize(all);
  Mat<double> alike(count, count);
  for (Index i = 0; i < count; ++i)
    for (Index j = 0; j < count; ++j)
      alike(i, j) = all[std::size_t(i)].embedding.row(0).dot(all[std::size_t(j)].embedding.row(0));
  std::vector<Index> nearest;
  std::vector<std::vector<double>> why;
  for (Index i = 0; i < count; ++i) {
    Index best = -1;
    for (Index j = 0; j < count; ++j)
      if (j != i && (best < 0 || alike(i, j) > alike(i, best))) best = j;
    nearest.push_back(best);
    why.push_back(shares(bert, all[std::size_t(i)], all[std::size_t(best < 0 ? i : best)]));
  }
  if (!picture.empty()) write_picture(picture, all, alike, nearest, why);

  for (Index i = 0; i < count; ++i) {
    for (Index j = 0; j < count; ++j) std::printf(" %5.2f", alike(i, j));
    std::printf("  %ld %s\n", long(i + 1), all[std::size_t(i)].text.c_str());
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (nearest[i] < 0) break;  // a sentence alone
    std::printf("\n%ld, nearest %ld, cosine %.4f, percent of relevance:", long(i + 1), long(nearest[i] + 1),
                alike(Index(i), nearest[i]));
    for (std::size_t w = 0; w < why[i].size(); ++w)
      std::printf(" %s %.0f", all[i].parts.words[w].c_str(), 100 * why[i][w]);
  }
  std::printf("\n");
  if (!picture.empty()) std::printf("picture: gnuplot %s.gp draws %s\n", picture.c_str(), picture.c_str());
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "sentences: %s\n", problem.what());
  return 1;
}
