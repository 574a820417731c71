// limpid: the targets table measured on this machine: figure, must, aim, and what falls short
// SPDX-License-Identifier: MIT
//
// Built three times from this one file: for the machine at hand, for AVX2 and for SSE2. `targets measure` measures what
// its build can tell and stores rows as JSON; `targets table` prints any number of such files as one table,
// medians over runs where several hold the same rows.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <regex>

#include "decoding.hpp"
#include "session.hpp"

namespace {

using namespace bench;

// ---- builds for another instruction set ----

void other_build_rows(Session& s) {
#if defined(__FMA__) || defined(__ARM_NEON)
  for (Index n : {1024, 4096}) {
    const auto p = make_problem<float>(1, n, 64, false);
    Group g;
    g.add(peak_candidate<float>(s.one));
    g.add(our_forward<float>("ours", limpid::softmax(), p));
    g.add(our_backward<float>("backward", limpid::softmax(), p));
    g.run(s.effort);
    const std::string section = std::string(instruction_set()) + " build";
    s.add(section, "forward, share of peak, " + sized(n), g.share<float>(attention_flop(p, false)), Better::larger,
          0.74, 0.86, rate(attention_flop(p, false), g["ours"]));
    s.add(section, "backward, share of peak, " + sized(n), g.share<float>(attention_flop(p, true), 1, "backward"),
          Better::larger, none, none, rate(attention_flop(p, true), g["backward"]));
  }
#else
  const auto p = make_problem<float>(1, 1024, 64, false);
  Matrix<float> scores(1024, 1024);
  Group g;
  g.add(candidate("sgemm", [&] { EigenProducts<float>::nt(1.0f, p.q, p.k, scores); }));
  g.add(our_forward<float>("ours", limpid::softmax(), p));
  g.add(our_backward<float>("backward", limpid::softmax(), p));
  g.run(s.effort);
  const double product = 2.0 * 1024 * 1024 * 64;
  const std::string note = "Eigen's 1024 x 1024 x 64 product " + rate(product, g["sgemm"]);
  const std::string section = std::string(instruction_set()) + " build";
  s.add(section, "forward rate over Eigen's sgemm, n = 1024",
        ratio(g["sgemm"], g["ours"], attention_flop(p, false) / product), Better::larger, 0.8, 0.92, note);
  s.add(section, "backward rate over Eigen's sgemm, n = 1024",
        ratio(g["sgemm"], g["backward"], attention_flop(p, true) / product), Better::larger, none, none, note);
#endif
}

// ---- decoding in those builds ----

/// SSE2 has no fused multiply-add: from four queries on it is bound by arithmetic, and eight want more than its peak.
/// Those are much for AVX2 as well: 0.6 to 0.7 of the peak would keep up with the read loop (the notes tell).
Bound decode_bound(Index queries) {
#if defined(__FMA__)
  return queries < 8 ? Bound{0.8, 1.0} : Bound{0.65, 0.8};
#else
  if (queries <= 2) return queries == 1 ? Bound{0.8, 1.0} : Bound{0.7, 0.9};
  return queries == 4 ? Bound{0.55, 0.75} : Bound{0.3, 0.4};
#endif
}

void other_decode_rows(Session& s) {
  decode_rows(s, std::string(instruction_set()) + " build, decoding", true, decode_bound);
}

int measure(Session& s, const std::string& part, const std::string& only, const std::string& file) {
  std::vector<Section> sections;
#if LIMPID_BENCH_NATIVE
  if (part == "native") {
    sections = attention_sections();
    const auto add = [&](std::vector<Section> more) {
      for (Section& section : more) sections.push_back(std::move(section));
    };
    add(local_sections());
#if LIMPID_BENCH_MODELS
    add(model_sections());
#endif
    add(explanation_sections());
    add(operator_sections());
    add(level_sections());
  }
#endif
  if (part == "build") sections = {{"build", other_build_rows}, {"decode", other_decode_rows}};
  const std::regex wanted(only);
  for (const Section& section : sections) {
    if (!std::regex_search(section.name, wanted)) continue;
    std::cerr << section.name << '\n';
    section.rows(s);
  }
  nlohmann::json context = {{"processor", processor()},
                            {"compiler", compiler()},
                            {"instruction_set", instruction_set()},
                            {"rounds", s.effort.rounds},
                            {"seconds_per_round", s.effort.seconds},
                            {"peak_gflops", peak_now<float>(s.one) * 1e-9}};
  if (part == "native")
    for (const NamedStatus& peer : peer_statuses()) context[peer.name] = peer.status.text;
  std::ofstream(file) << nlohmann::json{{"context", context}, {"rows", s.rows}}.dump(1) << '\n';
  return 0;
}

int table(const std::vector<std::string>& files) {
  std::vector<Row> rows;
  std::map<std::string, int> runs;  // of each build
  for (const std::string& name : files) {
    std::ifstream in(name);
    if (!in) {
      std::printf("%s: not there, its rows are missing\n", name.c_str());
      continue;
    }
    const nlohmann::json j = nlohmann::json::parse(in);
    const nlohmann::json& c = j.at("context");
    std::printf("%s, %s, %s; peak loop %s GFLOP/s; medians of %d interleaved rounds of at least %.0f ms\n",
                c.at("processor").get<std::string>().c_str(), c.at("compiler").get<std::string>().c_str(),
                c.at("instruction_set").get<std::string>().c_str(),
                short_number(c.at("peak_gflops").get<double>()).c_str(), c.at("rounds").get<int>(),
                1e3 * c.at("seconds_per_round").get<double>());
    for (const char* peer : {"eigen", "openblas", "onednn", "torch"})
      if (const auto text = c.value(peer, std::string()); &name == &files.front() && !text.empty())
        std::printf("  peer: %s\n", text.c_str());
    for (const auto& row : j.at("rows")) rows.push_back(row.get<Row>());
    ++runs[c.at("instruction_set").get<std::string>()];
  }
  const bool several = std::any_of(runs.begin(), runs.end(), [](const auto& r) { return r.second > 1; });
  print_table(across_runs(rows), several ? "runs" : "quartiles");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("The targets of limpid, measured on this machine");
  app.require_subcommand(1);

  Session session;
  std::string part = "native", only = ".", output = "targets.json", direction = "forward";
  std::vector<std::string> inputs;
  Index size = 16384;
  int threads = 2;

  auto* m = app.add_subcommand("measure", "measure and store rows");
  m->add_option("--part", part, "native: the whole table; build: the rows of a build for another instruction set")
      ->check(CLI::IsMember({"native", "build"}))
      ->capture_default_str();
  m->add_option("--only", only, "regular expression: only these sections")->capture_default_str();
  m->add_option("--rounds", session.effort.rounds, "interleaved rounds")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  m->add_option("--seconds", session.effort.seconds, "seconds of a candidate in a round")->capture_default_str();
  m->add_option("--json", output, "where the rows go")->capture_default_str();

  auto* t = app.add_subcommand("table", "print stored rows as one table; of several runs, their medians");
  t->add_option("files", inputs, "files written by measure")->required();

  auto* c = app.add_subcommand("memory", "peak memory of one call, run by measure in a process of its own");
  c->add_option("--direction", direction)->check(CLI::IsMember({"forward", "backward", "image", "stack", "relevance"}));
  c->add_option("--size", size);
  c->add_option("--threads", threads);

  CLI11_PARSE(app, argc, argv);
  session.self = argv[0];
  if (m->parsed()) return measure(session, part, only, output);
  if (t->parsed()) return table(inputs);
#if LIMPID_BENCH_NATIVE
  if (direction == "image") return image_memory_child(size, threads);
  if (direction == "stack" || direction == "relevance") return explanation_memory_child(direction, size, threads);
  return memory_child(direction, size, threads);
#else
  return 1;
#endif
}
