// limpid: the targets of plain attention: speed, threads, layout, modifiers, decoding, error, memory, compile time
// SPDX-License-Identifier: MIT
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "decoding.hpp"
#include "memory.hpp"
#include "session.hpp"

namespace bench {
namespace {

// ---- forward and backward, float, one thread ----

void forward_rows(Session& s, bool causal) {
  const std::string section = causal ? "Forward, causal (half the flop)" : "Forward";
  const std::vector<Index> sizes =
      causal ? std::vector<Index>{1024, 4096} : std::vector<Index>{197, 512, 1024, 2048, 4096, 8192};
  const std::map<Index, Bound> share = causal ? std::map<Index, Bound>{{1024, {0.75, 0.88}}, {4096, {0.80, 0.90}}}
                                              : std::map<Index, Bound>{{197, {0.65, 0.80}}, {512, {0.76, 0.88}}};
  const std::map<Index, Bound> naive =
      causal
          ? std::map<Index, Bound>{{1024, {2.3, 2.75}}, {4096, {3.0, 3.5}}}
          : std::map<Index, Bound>{
                {197, {1.2, 1.33}}, {512, {1.2, 1.33}}, {1024, {1.25, 1.4}}, {2048, {1.5, 1.75}}, {4096, {1.5, 1.75}}};
  for (Index n : sizes) {
    const auto p = make_problem<float>(1, n, 64, causal);
    const double flop = attention_flop(p, false);
    Group g;
    g.add(peak_candidate<float>(s.one));
    g.add(causal ? our_forward<float>("ours", limpid::softmax(limpid::causal()), p)
                 : our_forward<float>("ours", limpid::softmax(), p));
    if (n <= 4096) g.add(all_peers(p, Direction::forward, s.one));
    g.run(s.effort);
    const Bound b = share.count(n) ? share.at(n) : Bound{0.80, 0.92};
    s.add(section, "share of peak, " + sized(n), g.share<float>(flop), Better::larger, b.must, b.aim,
          rate(flop, g["ours"]));
    for (const char* peer : {"eigen_kept", "eigen_fresh", "openblas_kept", "onednn", "torch"}) {
      if (!g.has(peer)) continue;
      const bool held = std::string(peer) == "eigen_kept";
      const Bound bound = held ? naive.at(n) : Bound{none, none};
      s.add(section + ", times quicker than", std::string(peer) + ", " + sized(n), g.over(peer), Better::larger,
            bound.must, bound.aim, rate(flop, g[peer]) + " by " + called_by(peer));
    }
  }
}

void backward_rows(Session& s) {
  const std::string section = "Backward (10 n^2 d flop)";
  struct Case {
    Index n;
    bool causal;
    Bound share, naive;
  };
  const Case cases[] = {{197, false, {0.60, 0.75}, {none, none}}, {512, false, {0.75, 0.86}, {none, none}},
                        {1024, false, {0.78, 0.90}, {1.1, 1.25}}, {2048, false, {0.78, 0.90}, {1.25, 1.45}},
                        {4096, false, {0.78, 0.90}, {1.5, 1.8}},  {1024, true, {0.72, 0.85}, {1.9, 2.2}}};
  for (const Case& c : cases) {
    const auto p = make_problem<float>(1, c.n, 64, c.causal);
    const double flop = attention_flop(p, true);
    const std::string at = sized(c.n) + (c.causal ? ", causal" : "");
    Group g;
    g.add(peak_candidate<float>(s.one));
    g.add(c.causal ? our_backward<float>("ours", limpid::softmax(limpid::causal()), p)
                   : our_backward<float>("ours", limpid::softmax(), p));
    g.add(c.causal ? our_forward<float>("forward", limpid::softmax(limpid::causal()), p)
                   : our_forward<float>("forward", limpid::softmax(), p));
    g.add(all_peers(p, Direction::backward, s.one));
    g.run(s.effort);
    s.add(section, "share of peak, " + at, g.share<float>(flop), Better::larger, c.share.must, c.share.aim,
          rate(flop, g["ours"]));
    for (const char* peer : {"eigen_stored", "openblas_stored", "torch"}) {
      if (!g.has(peer)) continue;
      const Bound bound = std::string(peer) == "eigen_stored" ? c.naive : Bound{none, none};
      s.add(section + ", times quicker than", std::string(peer) + ", " + at, g.over(peer), Better::larger, bound.must,
            bound.aim, rate(flop, g[peer]) + " by " + called_by(peer));
    }
    s.add(section + ", times the forward", at, g.over("ours", "forward"), Better::smaller, none, none);
  }
}

void double_rows(Session& s) {
  const auto p = make_problem<double>(1, 1024, 64, false);
  Group g;
  g.add(peak_candidate<double>(s.one));
  g.add(our_forward<double>("ours", limpid::softmax(), p));
  g.add(our_backward<double>("backward", limpid::softmax(), p));
  g.run(s.effort);
  s.add("Double", "forward, share of its peak, n = 1024", g.share<double>(attention_flop(p, false)), Better::larger,
        0.75, 0.88, rate(attention_flop(p, false), g["ours"]));
  s.add("Double", "backward, share of its peak, n = 1024", g.share<double>(attention_flop(p, true), 1, "backward"),
        Better::larger, none, none, rate(attention_flop(p, true), g["backward"]));
}

void width_rows(Session& s) {
  const std::map<Index, Bound> bounds = {{16, {0.65, 0.72}}, {32, {0.75, 0.82}}, {128, {0.80, 0.90}}};
  for (const auto& [d, b] : bounds) {
    const auto p = make_problem<float>(1, 1024, d, false);
    Group g;
    g.add(peak_candidate<float>(s.one));
    g.add(our_forward<float>("ours", limpid::softmax(), p));
    g.add(our_backward<float>("backward", limpid::softmax(), p));
    g.run(s.effort);
    s.add("Head width, n = 1024", "forward, share of peak, d = " + std::to_string(d),
          g.share<float>(attention_flop(p, false)), Better::larger, b.must, b.aim,
          rate(attention_flop(p, false), g["ours"]));
    s.add("Head width, n = 1024", "backward, share of peak, d = " + std::to_string(d),
          g.share<float>(attention_flop(p, true), 1, "backward"), Better::larger, none, none,
          rate(attention_flop(p, true), g["backward"]));
  }
}

// ---- threads and layout ----

void thread_rows(Session& s) {
  struct Case {
    Index heads, n;
  };
  for (const Case& c : {Case{2, 512}, Case{8, 512}, Case{8, 1024}, Case{1, 1024}, Case{1, 4096}}) {
    const auto p = make_problem<float>(c.heads, c.n, 64, false);
    Group g;
    // The peak loop on one thread and on two tells what the machine itself can give at this moment.
    Candidate one = peak_candidate<float>(s.one), two = peak_candidate<float>(s.two);
    one.name = "peak 1", two.name = "peak 2";
    g.add(one).add(two);
    g.add(our_forward<float>("forward 1", limpid::softmax(), p, 1));
    g.add(our_forward<float>("forward 2", limpid::softmax(), p, 2));
    g.add(our_backward<float>("backward 1", limpid::softmax(), p, 1));
    g.add(our_backward<float>("backward 2", limpid::softmax(), p, 2));
    g.run(s.effort);
    // Both threads run the whole loop: twice the work in the same time.
    const std::string machine = "the peak loop " + short_number(2 * g.over("peak 1", "peak 2").value) + "x";
    const std::string at = "H = " + std::to_string(c.heads) + ", " + sized(c.n);
    for (const char* what : {"forward", "backward"})
      s.add("Two threads over one", std::string(what) + ", " + at,
            g.over(std::string(what) + " 1", std::string(what) + " 2"), Better::larger, 1.8, 1.95, machine);
  }
}

void layout_rows(Session& s) {
  for (Index n : {1024, 4096}) {
    const auto p = make_problem<float>(8, n, 64, false);
    Group g;
    g.add(our_forward<float>("forward separate", limpid::softmax(), p));
    g.add(our_forward<float>("forward interleaved", limpid::softmax(), p, 1, Layout::interleaved));
    if (n == 1024) {
      g.add(our_backward<float>("backward separate", limpid::softmax(), p));
      g.add(our_backward<float>("backward interleaved", limpid::softmax(), p, 1, Layout::interleaved));
    }
    g.run(s.effort);
    for (const char* what : {"forward", "backward"})
      if (g.has(std::string(what) + " separate"))
        s.add("Heads side by side in one buffer, time over separate heads, H = 8", std::string(what) + ", " + sized(n),
              g.over(std::string(what) + " interleaved", std::string(what) + " separate"), Better::smaller, 1.05, 1.00);
  }
}

// ---- modifiers ----

void modifier_rows(Session& s) {
  const Index n = 1024;
  const auto p = make_problem<float>(1, n, 64, false);
  Matrix<float> bias(1, n), slopes(1, 1);
  fill_normal(bias, 99);
  slopes(0, 0) = 0.0625f;
  // A soft cap, s / (1 + |s| / 30): a score function somebody would write, cheap enough to be inlined into a loop.
  const auto cap = limpid::score_mod([](auto x, const limpid::At&) { return x / (1 + (x < 0 ? -x : x) / 30); },
                                     [](auto x, const limpid::At&) {
                                       const auto b = 1 + (x < 0 ? -x : x) / 30;
                                       return 1 / (b * b);
                                     });
  auto group = [&](const std::string& what, auto with, auto without, double must, double aim) {
    Group g;
    g.add(our_forward<float>("forward with", with, p));
    g.add(our_forward<float>("forward without", without, p));
    g.add(our_backward<float>("backward with", with, p));
    g.add(our_backward<float>("backward without", without, p));
    g.run(s.effort);
    s.add("Modifiers, time over the same without, n = 1024", what + ", forward",
          g.over("forward with", "forward without"), Better::smaller, must, aim);
    s.add("Modifiers, time over the same without, n = 1024", what + ", backward",
          g.over("backward with", "backward without"), Better::smaller, must, aim);
  };
  group("key bias", limpid::softmax(limpid::key_bias(bias)), limpid::softmax(), 1.03, 1.01);
  group("causal + ALiBi over causal", limpid::softmax(limpid::chain(limpid::alibi(slopes), limpid::causal())),
        limpid::softmax(limpid::causal()), 1.05, 1.02);
  group("user score function", limpid::softmax(cap), limpid::softmax(), 1.3, 1.15);
}

// ---- decoding ----

void decoding_rows(Session& s) {
  decode_rows(s, "Decoding", true, [](Index) { return Bound{0.8, none}; });
  decode_rows(s, "Decoding", false, [](Index) { return Bound{none, none}; });
  page_rows(s);
}

// ---- error ----

/// Largest entry of a - b over the largest of b.
double largest_error(const Matrix<float>& a, const Matrix<double>& b) {
  return suite::distance(a, b) / b.cwiseAbs().maxCoeff();
}

void error_rows(Session& s) {
  struct Case {
    const char* name;
    Index n;
    bool causal;
    double sigma;
  };
  for (const Case& c :
       {Case{"n = 197", 197, false, 1}, Case{"n = 1024", 1024, false, 1}, Case{"n = 1024, causal", 1024, true, 1},
        Case{"n = 1024, logits ten times larger", 1024, false, 10}}) {
    const char* names[] = {"out", "dq", "dk", "dv"};
    std::array<std::vector<double>, 4> ours_all, naive_all;
    for (std::uint64_t seed = 1; seed <= 7; ++seed) {
      const auto pf = make_problem<float>(1, c.n, 64, c.causal, seed, c.sigma);
      Problem<double> pd;
      pd.heads = 1, pd.n = c.n, pd.d = 64, pd.causal = c.causal, pd.scale = 1 / std::sqrt(64.0);
      pd.q = pf.q.cast<double>(), pd.k = pf.k.cast<double>(), pd.v = pf.v.cast<double>();
      pd.dout = pf.dout.cast<double>();
      Naive<double> truth(pd, s.one);
      truth.forward_stored(), truth.backward();
      Naive<float> naive(pf, s.one);
      naive.forward_stored(), naive.backward();
      auto compare = [&](auto op) {
        auto mine = ours<float>(op, pf);
        mine->backward();
        const Matrix<double>* want[] = {&truth.out, &truth.dq, &truth.dk, &truth.dv};
        const Matrix<float>* have[] = {&mine->out, &mine->gradient("q"), &mine->gradient("k"), &mine->gradient("v")};
        const Matrix<float>* plain[] = {&naive.out, &naive.dq, &naive.dk, &naive.dv};
        for (std::size_t i = 0; i < 4; ++i) {
          ours_all[i].push_back(largest_error(*have[i], *want[i]));
          naive_all[i].push_back(largest_error(*plain[i], *want[i]));
        }
      };
      if (c.causal)
        compare(limpid::softmax(limpid::causal()));
      else
        compare(limpid::softmax());
    }
    Figure worst;
    std::string note;
    for (std::size_t i = 0; i < 4; ++i) {
      Times a{"ours", ours_all[i]}, b{"naive", naive_all[i]};
      const Figure f = ratio(a, b);
      if (!(f.value <= worst.value)) worst = f;
      char text[64];
      std::snprintf(text, sizeof text, "%s%s %.1e / %.1e", i ? ", " : "", names[i], a.median(), b.median());
      note += text;
    }
    s.add("Float error over the naive float formula's, against double", std::string("worst of four, ") + c.name, worst,
          Better::smaller, 2, 1.2, note);
  }
}

// ---- memory ----

void memory_rows(Session& s) {
  const std::map<std::string, Bound> bounds = {{"backward", {36, 29}}, {"forward", {8.5, 1}}};
  for (const std::string direction : {"forward", "backward"})
    memory_row(s, "Memory beyond inputs and output, n = 16384, two threads",
               direction + (direction == "backward" ? " with forward, saved state and gradients" : ""),
               "--direction " + direction + " --size 16384 --threads 2", bounds.at(direction));
}

// ---- compile time ----

void compile_rows(Session& s) {
#if defined(LIMPID_BENCH_COMPILE)
  const auto measure = [&s](const std::string& section, const std::string& name, const std::string& file, Bound bound) {
    std::vector<double> seconds;
    std::string note;
    for (int i = 0; i < 3; ++i) {
      const double start = now();
      if (std::system((LIMPID_BENCH_COMPILE "/" + file).c_str()) != 0) {
        note = "does not compile";
        break;
      }
      seconds.push_back(now() - start);
    }
    s.add(section, name, {median(seconds), quantile(seconds, 0), quantile(seconds, 1)}, Better::smaller, bound.must,
          bound.aim, note, "s");
  };
  const std::string call = "Compile time, forward and backward in float, -O2", compiled = " -DLIMPID_BENCH_COMPILED";
  measure(call, "header only", "compile_time.cpp", {6, none});
  measure(call, "with the compiled target", "compile_time.cpp" + compiled, {2, none});
  const std::string encoder = "Compile time, an encoder from a checkpoint, forward and backward in float, -O2";
  measure(encoder, "header only", "compile_encoder.cpp", {20, 10});
  measure(encoder, "with the compiled target", "compile_encoder.cpp" + compiled, {none, 3});
#else
  std::cerr << "  no g++ was found when the bench was configured: compile time skipped\n";
  static_cast<void>(s);
#endif
}

}  // namespace

/// Runs in a process of its own: prints MiB resident beyond what was there before the call, and MiB of heap.
int memory_child(const std::string& direction, Index n, int threads) {
  limpid::ThreadPool pool(threads);
  auto run = [&pool](const Problem<float>& p, bool backward, Matrix<float>& out) {
    limpid::Workspace workspace;
    if (!backward) {
      limpid::forward(limpid::softmax(), limpid::qkv(p.q, p.k, p.v), out, {.workspace = &workspace, .executor = pool});
      return;
    }
    limpid::Saved<decltype(limpid::softmax()), float> saved;
    limpid::forward(limpid::softmax(), limpid::qkv(p.q, p.k, p.v), out,
                    {.saved = &saved, .workspace = &workspace, .executor = pool});
    Matrix<float> dq(p.q.rows(), p.d), dk(p.q.rows(), p.d), dv(p.q.rows(), p.d);
    limpid::backward(limpid::softmax(), limpid::qkv(p.q, p.k, p.v), saved, p.dout, limpid::grads(dq, dk, dv),
                     {.workspace = &workspace, .executor = pool});
  };
  const bool backward = direction == "backward";
  {
    // Code pages and thread stacks are not the operator's memory.
    const auto small = make_problem<float>(1, 256, 64, false);
    Matrix<float> out(small.n, small.d);
    run(small, backward, out);
  }
  const auto p = make_problem<float>(1, n, 64, false);
  Matrix<float> out = Matrix<float>::Zero(n, 64);
  return print_memory_of([&] { run(p, backward, out); });
}

std::vector<Section> attention_sections() {
  return {{"forward", [](Session& x) { forward_rows(x, false); }},
          {"causal", [](Session& x) { forward_rows(x, true); }},
          {"backward", backward_rows},
          {"double", double_rows},
          {"width", width_rows},
          {"threads", thread_rows},
          {"layout", layout_rows},
          {"modifiers", modifier_rows},
          {"decode", decoding_rows},
          {"error", error_rows},
          {"memory", memory_rows},
          {"compile", compile_rows}};
}

}  // namespace bench
