// limpid: reads what the bench programs wrote: tables of a grid, data for the plot, two runs side by side
// SPDX-License-Identifier: MIT
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "timing.hpp"

namespace {

using bench::median;
using bench::quantile;
using nlohmann::json;

/// One benchmark of a grid: its name taken apart, and what its repetitions measured.
struct Entry {
  std::string op, direction, type;
  long n = 0, d = 0;
  bool causal = false;
  int threads = 1;
  std::vector<double> seconds, gflops, share, bytes, peak;
};

/// op/direction/type/n/d[/causal][/threads:t][/...], the names grid.cpp gives. False for anything else.
bool parse_name(const std::string& name, Entry& e) {
  std::vector<std::string> words;
  std::stringstream in(name);
  for (std::string w; std::getline(in, w, '/');) words.push_back(w);
  if (words.size() < 5) return false;
  e.op = words[0], e.direction = words[1], e.type = words[2];
  e.n = std::atol(words[3].c_str()), e.d = std::atol(words[4].c_str());
  for (std::size_t i = 5; i < words.size(); ++i) {
    if (words[i] == "causal") e.causal = true;
    if (words[i].rfind("threads:", 0) == 0) e.threads = std::atoi(words[i].c_str() + 8);
  }
  return e.n > 0 && e.d > 0;
}

/// Google Benchmark writes NaN and Infinity (the variation of a counter that is zero), which JSON does not have.
json read(const std::string& file) {
  std::ifstream in(file);
  if (!in) throw std::runtime_error(file + ": cannot be read");
  std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  for (const char* word : {": NaN", ": -NaN", ": Infinity", ": -Infinity"})
    for (std::size_t at = text.find(word); at != std::string::npos; at = text.find(word, at))
      text.replace(at, std::string(word).size(), ": null");
  return json::parse(text);
}

/// Softmax, other operators, then the peers. Repetitions are
/// interleaved at random, so the file has no order of its own.
int rank_of(const std::string& op) {
  if (op == "softmax") return 0;
  int rank = 2;
  for (const char* peer : {"eigen_", "openblas_", "onednn", "torch"}) {
    if (op.rfind(peer, 0) == 0) return rank;
    ++rank;
  }
  return 1;
}

/// Entries in the order of the tables: forward first, float first.
std::vector<Entry> entries(const json& run) {
  std::vector<Entry> all;
  std::map<std::string, std::size_t> seen;
  for (const json& b : run.at("benchmarks")) {
    if (b.value("run_type", "iteration") != "iteration" || b.contains("error_occurred")) continue;
    const std::string name = b.value("run_name", b.at("name").get<std::string>());
    Entry e;
    if (!parse_name(name, e)) continue;
    const auto [at, fresh] = seen.emplace(name, all.size());
    if (fresh) all.push_back(e);
    Entry& to = all[at->second];
    const std::string unit = b.value("time_unit", "ns");
    const double scale = unit == "ns" ? 1e-9 : unit == "us" ? 1e-6 : unit == "ms" ? 1e-3 : 1.0;
    to.seconds.push_back(b.at("real_time").get<double>() * scale);
    to.gflops.push_back(b.value("GFLOP/s", std::nan("")));
    to.share.push_back(b.value("share_of_peak", std::nan("")));
    to.bytes.push_back(b.value("bytes_allocated", std::nan("")));
    to.peak.push_back(b.value("peak_GFLOP/s", std::nan("")));
  }
  std::stable_sort(all.begin(), all.end(), [](const Entry& a, const Entry& b) {
    auto key = [](const Entry& e) {
      return std::make_tuple(e.direction != "forward", e.type != "float", e.causal, e.threads, rank_of(e.op), e.op, e.n,
                             e.d);
    };
    return key(a) < key(b);
  });
  return all;
}

std::string bytes_text(double bytes) {
  char text[32];
  if (std::isnan(bytes)) return "-";
  if (bytes < 1024)
    std::snprintf(text, sizeof text, "%.0f", bytes);
  else if (bytes < 1024.0 * 1024)
    std::snprintf(text, sizeof text, "%.1f KiB", bytes / 1024);
  else
    std::snprintf(text, sizeof text, "%.1f MiB", bytes / 1024 / 1024);
  return text;
}

/// One table: rows are operators, columns the values of one size.
void print_grid(const std::string& title, const std::vector<const Entry*>& some, long Entry::*column,
                const char* column_name) {
  std::set<long> columns;
  std::vector<std::string> ops;
  std::map<std::pair<std::string, long>, const Entry*> at;
  double peak = 0;
  for (const Entry* e : some) {
    columns.insert(e->*column);
    if (std::find(ops.begin(), ops.end(), e->op) == ops.end()) ops.push_back(e->op);
    at[{e->op, e->*column}] = e;
    if (const double p = median(e->peak); p > peak) peak = p;
  }
  std::size_t width = 10;
  for (const std::string& op : ops) width = std::max(width, op.size());
  const int w = static_cast<int>(width);
  std::printf("\n%s; peak loop %.0f GFLOP/s\n%-*s", title.c_str(), peak, w, "GFLOP/s");
  for (long c : columns) std::printf("  %s %-8ld", column_name, c);
  std::printf("  bytes allocated a call\n");
  for (const std::string& op : ops) {
    std::printf("%-*s", w, op.c_str());
    const Entry* last = nullptr;
    for (long c : columns) {
      const auto found = at.find({op, c});
      if (found == at.end()) {
        std::printf("  %10s", "");
        continue;
      }
      last = found->second;
      const double share = median(last->share);
      char text[32];
      if (std::isnan(share))
        std::snprintf(text, sizeof text, "%.1f", median(last->gflops));
      else
        std::snprintf(text, sizeof text, "%.1f %2.0f%%", median(last->gflops), 100 * share);
      std::printf("  %10s", text);
    }
    std::printf("  %s\n", last ? bytes_text(median(last->bytes)).c_str() : "");
  }
}

int table(const std::string& file) {
  const json run = read(file);
  const std::vector<Entry> all = entries(run);
  using Key = std::tuple<std::string, std::string, bool, int>;  // direction, type, causal, threads
  std::vector<Key> keys;
  for (const Entry& e : all) {
    const Key k{e.direction, e.type, e.causal, e.threads};
    if (std::find(keys.begin(), keys.end(), k) == keys.end()) keys.push_back(k);
  }
  auto select = [&](const Key& k, auto keep) {
    std::vector<const Entry*> some;
    for (const Entry& e : all)
      if (Key{e.direction, e.type, e.causal, e.threads} == k && keep(e)) some.push_back(&e);
    return some;
  };
  for (const Key& k : keys) {
    const auto& [direction, type, causal, threads] = k;
    const std::string what = direction + ", " + type + (causal ? ", causal" : "") + ", " + std::to_string(threads) +
                             (threads == 1 ? " thread" : " threads");
    if (const auto some = select(k, [](const Entry& e) { return e.d == 64; }); !some.empty())
      print_grid(what + ", d = 64", some, &Entry::n, "n");
    const auto widths = select(k, [](const Entry& e) { return e.n == 1024; });
    if (std::any_of(widths.begin(), widths.end(), [](const Entry* e) { return e->d != 64; }))
      print_grid(what + ", n = 1024", widths, &Entry::d, "d");
  }
  std::printf(
      "\nGFLOP/s count 4 n^2 d flop a forward and 10 n^2 d a backward, half when causal, for every operator and peer\n"
      "whatever it really computes; per cent are of the peak loop timed beside each figure; bytes at the last "
      "column.\n");
  return 0;
}

/// One data file a panel of the plot: a block a line, its first
/// line the title, then n and GFLOP/s; the peak comes last.
int plot_data(const std::string& file, const std::string& directory) {
  const std::vector<Entry> all = entries(read(file));
  std::filesystem::create_directories(directory);
  const std::vector<std::pair<std::string, std::string>> lines = {{"softmax", "limpid softmax"},
                                                                  {"eigen_kept", "naive Eigen (S kept)"},
                                                                  {"eigen_fresh", "naive Eigen (S fresh)"},
                                                                  {"eigen_stored", "naive Eigen (P stored)"},
                                                                  {"openblas_kept", "naive OpenBLAS (S kept)"},
                                                                  {"openblas_stored", "naive OpenBLAS (P stored)"},
                                                                  {"onednn", "oneDNN primitives"},
                                                                  {"torch", "torch"}};
  for (const char* direction : {"forward", "backward"})
    for (const bool causal : {false, true}) {
      std::ofstream out(directory + "/" + direction + (causal ? "-causal" : "") + ".dat");
      std::map<long, std::vector<double>> peak;
      for (const auto& [op, title] : lines) {
        std::map<long, double> points;
        for (const Entry& e : all)
          if (e.op == op && e.direction == direction && e.causal == causal && e.type == "float" && e.d == 64 &&
              e.threads == 1) {
            points[e.n] = median(e.gflops);
            peak[e.n].push_back(median(e.peak));
          }
        if (points.empty()) continue;
        out << '"' << title << "\"\n";
        for (const auto& [n, rate] : points) out << n << ' ' << rate << '\n';
        out << "\n\n";
      }
      if (peak.empty()) continue;
      out << "\"FMA peak\"\n";
      for (const auto& [n, p] : peak) out << n << ' ' << median(p) << '\n';
    }
  return 0;
}

/// What `compare` holds against each other: one number a repetition, smaller is better or larger.
struct Measured {
  std::vector<double> values;
  bool smaller = true;
};

std::map<std::string, Measured> measured(const json& run, std::vector<std::string>& order, double& peak) {
  std::map<std::string, Measured> all;
  peak = std::nan("");
  if (run.contains("rows")) {  // a targets file: the figure and its quartiles stand for the repetitions
    peak = run.at("context").value("peak_gflops", std::nan(""));
    for (const json& r : run.at("rows")) {
      if (r.at("figure").is_null()) continue;
      const std::string name = r.at("section").get<std::string>() + " / " + r.at("name").get<std::string>();
      order.push_back(name);
      Measured& m = all[name];
      m.smaller = r.at("better") == "smaller";
      for (const char* key : {"low", "figure", "high"})
        if (!r.at(key).is_null()) m.values.push_back(r.at(key).get<double>());
    }
    return all;
  }
  std::vector<double> peaks;
  for (const json& b : run.at("benchmarks")) {
    if (b.value("run_type", "iteration") != "iteration" || b.contains("error_occurred")) continue;
    const std::string name = b.value("run_name", b.at("name").get<std::string>());
    if (!all.count(name)) order.push_back(name);
    const std::string unit = b.value("time_unit", "ns");
    const double scale = unit == "ns" ? 1e-6 : unit == "us" ? 1e-3 : unit == "ms" ? 1.0 : 1e3;
    all[name].values.push_back(b.at("real_time").get<double>() * scale);
    // Two threads have another peak than one, double another than float.
    if (b.contains("peak_GFLOP/s") && name.find("/float/") != std::string::npos &&
        name.find("threads:") == std::string::npos)
      peaks.push_back(b.at("peak_GFLOP/s").get<double>());
  }
  if (!peaks.empty()) peak = median(peaks);
  return all;
}

/// Half the distance between the quartiles, relative to the median: what one figure moves by without any change.
double spread(const Measured& m) {
  if (m.values.size() < 3) return std::nan("");
  return (quantile(m.values, 0.75) - quantile(m.values, 0.25)) / 2 / median(m.values);
}

int compare(const std::string& file_a, const std::string& file_b, bool all_rows) {
  std::vector<std::string> order, order_b;
  double peak_a = 0, peak_b = 0;
  const auto a = measured(read(file_a), order, peak_a), b = measured(read(file_b), order_b, peak_b);
  std::vector<double> spreads;
  for (const auto* run : {&a, &b})
    for (const auto& [name, m] : *run)
      if (const double s = spread(m); !std::isnan(s)) spreads.push_back(s);
  // Three half-widths between the quartiles are about two standard deviations.
  constexpr double factor = 3, assumed = 0.10;
  const bool repeated = !spreads.empty();
  const double usual = repeated ? factor * median(spreads) : assumed;
  std::printf("A  %s\nB  %s\n", file_a.c_str(), file_b.c_str());
  if (!std::isnan(peak_a) && !std::isnan(peak_b))
    std::printf("peak loop: A %.1f, B %.1f GFLOP/s, the machine itself %+.1f %%\n", peak_a, peak_b,
                100 * (peak_b / peak_a - 1));
  if (repeated)
    std::printf("noise floor: %.1f %% in the median benchmark (three times half the distance between the quartiles)\n",
                100 * usual);
  else
    std::printf("noise floor: unknown, the runs have fewer than three repetitions; %.0f %% assumed\n", 100 * assumed);
  std::size_t width = 4;
  int better = 0, worse = 0, same = 0, alone = 0;
  for (const std::string& name : order) width = std::max(width, name.size());
  std::printf("\n%-*s %12s %12s %9s %8s\n", static_cast<int>(width), "", "A", "B", "B / A", "floor");
  std::vector<double> ratios;
  for (const std::string& name : order) {
    const auto found = b.find(name);
    if (found == b.end()) {
      ++alone;
      continue;
    }
    const Measured& x = a.at(name);
    const Measured& y = found->second;
    const double before = median(x.values), after = median(y.values), r = after / before;
    ratios.push_back(r);
    double floor = usual;
    for (const Measured* m : {&x, &y})
      if (const double s = spread(*m); !std::isnan(s)) floor = std::max(floor, factor * s);
    const char* verdict = "";
    if (std::fabs(r - 1) <= floor)
      ++same;
    else if ((r < 1) == x.smaller)
      ++better, verdict = "  better";
    else
      ++worse, verdict = "  WORSE";
    if (all_rows || *verdict)
      std::printf("%-*s %12.4g %12.4g %9.3f %7.1f%%%s\n", static_cast<int>(width), name.c_str(), before, after, r,
                  100 * floor, verdict);
  }
  for (const std::string& name : order_b) alone += a.count(name) ? 0 : 1;
  std::printf("\n%d better, %d worse, %d within the noise; median of B / A %.3f; %d in one run only\n", better, worse,
              same, median(ratios), alone);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Reads what the bench programs of limpid wrote");
  app.require_subcommand(1);
  std::string a, b, directory;
  bool changed = false;
  auto* t = app.add_subcommand("table", "print the tables of a grid");
  t->add_option("file", a, "JSON file of a grid run")->required()->check(CLI::ExistingFile);
  auto* p = app.add_subcommand("plot-data", "write the data files of the plot");
  p->add_option("file", a)->required()->check(CLI::ExistingFile);
  p->add_option("directory", directory)->required();
  auto* c = app.add_subcommand("compare", "two runs: medians, noise floor, what moved beyond it (times in ms)");
  c->add_option("A", a, "the earlier run, of the grid or of targets")->required()->check(CLI::ExistingFile);
  c->add_option("B", b, "the later run")->required()->check(CLI::ExistingFile);
  c->add_flag("--changed", changed, "only rows that moved beyond the noise");
  CLI11_PARSE(app, argc, argv);
  try {
    if (t->parsed()) return table(a);
    if (p->parsed()) return plot_data(a, directory);
    return compare(a, b, !changed);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
