// limpid: what bench/levels.cpp offers when it is loaded: every operator and layer, ready to be timed
// SPDX-License-Identifier: MIT
#pragma once

extern "C" {
/// How many there are; the name of one; the seconds that so many calls of it take.
[[gnu::visibility("default")]] int limpid_level_count();
[[gnu::visibility("default")]] const char* limpid_level_name(int index);
[[gnu::visibility("default")]] double limpid_level_seconds(int index, long calls);
}
