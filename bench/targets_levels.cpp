// limpid: -O2, as the README has it, beside -O3: every operator and layer, each compiler against itself
// SPDX-License-Identifier: MIT
#include <map>
#include <sstream>

#include "levels.hpp"
#include "session.hpp"

#if defined(__unix__) && defined(LIMPID_BENCH_LEVELS)
#include <dlfcn.h>
#endif

namespace bench {
namespace {

#if defined(__unix__) && defined(LIMPID_BENCH_LEVELS)
/// bench/levels.cpp as one compiler made it at one level.
struct Loaded {
  std::string compiler, level;
  decltype(&limpid_level_count) count = nullptr;
  decltype(&limpid_level_name) name = nullptr;
  decltype(&limpid_level_seconds) seconds = nullptr;
};

/// What could be loaded of LIMPID_BENCH_LEVELS, words "compiler level file".
std::vector<Loaded> load_all() {
  std::vector<Loaded> all;
  std::istringstream words(LIMPID_BENCH_LEVELS);
  Loaded l;
  for (std::string file; words >> l.compiler >> l.level >> file; all.push_back(l)) {
    void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      std::cerr << "  " << l.compiler << ' ' << l.level << " is left out: " << dlerror() << '\n';
      return {};
    }
    l.count = reinterpret_cast<decltype(l.count)>(dlsym(library, "limpid_level_count"));
    l.name = reinterpret_cast<decltype(l.name)>(dlsym(library, "limpid_level_name"));
    l.seconds = reinterpret_cast<decltype(l.seconds)>(dlsym(library, "limpid_level_seconds"));
  }
  return all;
}

void level_rows(Session& s) {
  std::map<std::string, std::vector<Loaded>> compilers;
  for (const Loaded& l : load_all()) compilers[l.compiler].push_back(l);
  // Rounds are short and many: calls are short, and what disturbs one round disturbs few of many.
  const Effort effort{3 * s.effort.rounds, s.effort.seconds / 6};
  for (const auto& [compiler, levels] : compilers) {
    for (const Loaded& l : levels) static_cast<void>(l.count());
    for (int i = 0; i < levels.front().count(); ++i) {
      Group g;
      for (const Loaded& l : levels)
        g.add({l.level, [seconds = l.seconds, i](long calls) { return seconds(i, calls); }});
      g.run(effort);
      s.add("Time at -O2 over time at -O3, " + compiler, levels.front().name(i), g.over("-O2", "-O3"), Better::smaller,
            1.05, none, short_number(1e3 * g["-O2"].median()) + " ms at -O2");
    }
  }
}
#else
void level_rows(Session&) { std::cerr << "  no levels were built\n"; }
#endif

}  // namespace

std::vector<Section> level_sections() { return {{"levels", level_rows}}; }

}  // namespace bench
