// limpid: the list of operators that the contract suite, and whatever else goes over all of them, is made for.
// SPDX-License-Identifier: MIT
//
// One line an operator, in LIMPID_OPERATORS at the end. Nothing of Catch2 here: the bench reads it too.
#pragma once

#include <array>
#include <limpid/op/bilateral.hpp>
#include <limpid/op/boosting.hpp>
#include <limpid/op/differential.hpp>
#include <limpid/op/differential_gated.hpp>
#include <limpid/op/mssa.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/pid.hpp>
#include <limpid/op/rope.hpp>
#include <limpid/op/sigmoid.hpp>
#include <limpid/op/softmax.hpp>
#include <limpid/op/twicing.hpp>
#include <string_view>

namespace suite {

using limpid::Index;

/// Sizes of a problem.
struct Sizes {
  Index n = 0, m = 0, d = 5, dv = 3, heads = 1, kv_heads = 1, batch = 1;
  bool own_sides = false;    ///< positions of every batch item instead of one set for all
  bool one_for_all = false;  ///< parameters shared by all heads instead of one row each
};

/// How an input is made where the name and the role do not say it. Entries are uniform in [low, high).
struct Rule {
  const char* field = nullptr;
  double low = -1.5, high = 1.5;
  Index per_d = 0, per_dv = 0, more = 0;  ///< width of a head = per_d d + per_dv dv + more; all zero: by name and role
  bool optional = false;  ///< a query or key field that need not be given (head and side fields never need)
  bool required = false;  ///< a side or head field that must be given
  bool absent = false;    ///< never given, as another field takes its place
};

/// What is special about an operator.
struct Traits {
  bool square = false;        ///< n = m only
  bool self = false;          ///< one array is query and key: row i of it is both
  bool residual = false;      ///< out has a term of the token's own row besides the map, which an empty row keeps
  bool centred = false;       ///< rounding may depend on keys that a query does not see, as they move a common centre
  bool linear = true;         ///< out = E v, E what .map gives
  bool distribution = true;   ///< rows of the map are >= 0 and sum to 1
  bool smooth = true;         ///< no kinks (as of a ReLU), so that long steps of differences give all digits
  bool grouped = true;        ///< kv_heads may be less than heads
  bool relevance = true;      ///< backward gives relevance
  const char* values = "v";   ///< the field whose rows are averaged
  double float_multiple = 4;  ///< float's error against that of the plain float formula
  double extra = 24;          ///< scratch of a call stays below this times (n + m)(d + dv) numbers, plus a constant
  std::array<Rule, 12> rules = {};
};

inline Rule rule_of(const Traits& traits, std::string_view field, limpid::Role role) {
  Rule rule;
  for (const Rule& r : traits.rules)
    if (r.field != nullptr && r.field == field) rule = r;
  rule.optional |= role != limpid::Role::query && role != limpid::Role::key && !rule.required;
  return rule;
}

/// Columns of a head of a field: v... has dv, other query and key fields d, positions 2, parameters 1.
inline Index width_of(const Rule& rule, std::string_view field, limpid::Role role, const Sizes& s) {
  using limpid::Role;
  if (rule.per_d != 0 || rule.per_dv != 0 || rule.more != 0) return rule.per_d * s.d + rule.per_dv * s.dv + rule.more;
  if (role == Role::head) return 1;
  if (role == Role::query_side || role == Role::key_side) return 2;
  return field.front() == 'v' ? s.dv : s.d;
}

}  // namespace suite

/// X(name, an operator made of modifiers `mods`, what is special:
/// designated initialisers of suite::Traits, at least one)
#define LIMPID_OPERATORS(X)                                                                                         \
  X(softmax, limpid::softmax(mods), .float_multiple = 2)                                                            \
  X(sigmoid, limpid::sigmoid(mods), .distribution = false, .float_multiple = 2)                                     \
  X(nlm, limpid::nlm(mods), .centred = true, .float_multiple = 5,                                                   \
    .rules = {{{.field = "h", .low = 0.8, .high = 2}, {.field = "h_space", .low = 0.8, .high = 2}}})                \
  X(bilateral, limpid::bilateral(mods),                                                                             \
    .rules = {{{.field = "h_range", .absent = true},                                                                \
               {.field = "h_space", .absent = true},                                                                \
               {.field = "a", .more = 2},                                                                           \
               {.field = "b", .more = 2},                                                                           \
               {.field = "pq", .absent = true},                                                                     \
               {.field = "pk", .absent = true}}})                                                                   \
  X(bilateral_classic, limpid::bilateral_classic(mods), .centred = true,                                            \
    .rules = {{{.field = "h_range", .low = 0.8, .high = 2},                                                         \
               {.field = "h_space", .low = 0.8, .high = 2},                                                         \
               {.field = "a", .absent = true},                                                                      \
               {.field = "b", .absent = true},                                                                      \
               {.field = "pq", .required = true},                                                                   \
               {.field = "pk", .required = true}}})                                                                 \
  X(rope, limpid::rope(limpid::softmax(mods)), .rules = {{{.field = "q", .per_d = 2}, {.field = "k", .per_d = 2}}}) \
  X(twicing, limpid::twicing(mods), .square = true, .distribution = false)                                          \
  X(twicing_3, limpid::twicing(mods, {.order = 3, .alpha = 0.7}), .square = true, .distribution = false)            \
  X(boosting_diffusion, limpid::boosting(mods, {limpid::BoostingScheme::diffusion, 2}), .square = true,             \
    .residual = true, .distribution = false,                                                                        \
    .rules = {{{.field = "tau", .low = 0.2, .high = 0.9}, {.field = "rho", .absent = true}}})                       \
  X(boosting_sos, limpid::boosting(mods, {limpid::BoostingScheme::sos, 2, true}), .square = true, .residual = true, \
    .distribution = false, .float_multiple = 8,                                                                     \
    .rules = {{{.field = "tau", .low = 0.2, .high = 0.9}, {.field = "rho", .low = -0.5, .high = 0.5}}})             \
  X(differential, limpid::differential(mods, {.eps = 0.1}), .linear = false, .distribution = false,                 \
    .rules = {{{.field = "q", .per_d = 2},                                                                          \
               {.field = "k", .per_d = 2},                                                                          \
               {.field = "lambda", .absent = true},                                                                 \
               {.field = "lambda_q1", .low = -0.5, .high = 0.5, .more = 6},                                         \
               {.field = "lambda_k1", .low = -0.5, .high = 0.5, .more = 6},                                         \
               {.field = "lambda_q2", .low = -0.5, .high = 0.5, .more = 6},                                         \
               {.field = "lambda_k2", .low = -0.5, .high = 0.5, .more = 6},                                         \
               {.field = "z", .absent = true},                                                                      \
               {.field = "gamma", .low = 0.5, .high = 1.5, .per_dv = 1}}})                                          \
  X(differential_v2, limpid::differential_v2(mods), .distribution = false,                                          \
    .rules = {{{.field = "q", .per_d = 2},                                                                          \
               {.field = "lambda", .absent = true},                                                                 \
               {.field = "lambda_q1", .absent = true},                                                              \
               {.field = "lambda_k1", .absent = true},                                                              \
               {.field = "lambda_q2", .absent = true},                                                              \
               {.field = "lambda_k2", .absent = true},                                                              \
               {.field = "z", .more = 1, .optional = true},                                                         \
               {.field = "gamma", .absent = true}}})                                                                \
  X(differential_gated, limpid::differential_gated(mods, {.eps = 0.1}), .linear = false, .distribution = false,     \
    .rules = {{{.field = "q", .per_d = 2},                                                                          \
               {.field = "k", .per_d = 2},                                                                          \
               {.field = "z", .more = 1, .optional = true},                                                         \
               {.field = "gamma", .low = 0.5, .high = 1.5, .per_dv = 1}}})                                          \
  X(pid, limpid::pid(mods), .square = true, .residual = true, .linear = false, .distribution = false,               \
    .rules = {{{.field = "reference", .per_dv = 1, .optional = true},                                               \
               {.field = "integral", .per_dv = 1, .optional = true},                                                \
               {.field = "v_prev", .optional = true},                                                               \
               {.field = "v_before", .absent = true}}})                                                             \
  X(pid_lagged, limpid::pid(mods, {.variant = limpid::PidVariant::lagged_ema}), .square = true, .residual = true,   \
    .linear = false, .distribution = false,                                                                         \
    .rules = {{{.field = "reference", .per_dv = 1, .optional = true},                                               \
               {.field = "integral", .per_dv = 1, .optional = true},                                                \
               {.field = "v_prev", .optional = true},                                                               \
               {.field = "v_before", .optional = true}}})                                                           \
  X(mssa, limpid::mssa(mods), .square = true, .self = true, .grouped = false, .values = "y",                        \
    .rules = {{{.field = "cache", .absent = true}}})                                                                \
  X(mssa_cache, limpid::mssa(mods), .square = true, .grouped = false, .values = "cache", .float_multiple = 4)

namespace suite {

// struct entry_softmax { name, traits(), make(mods) } and so on.
#define LIMPID_OPERATOR_ENTRY(NAME, MAKE, ...)             \
  struct entry_##NAME {                                    \
    static constexpr const char* name = #NAME;             \
    static Traits traits() { return Traits{__VA_ARGS__}; } \
    template <class Mods>                                  \
    static auto make(const Mods& mods) {                   \
      return MAKE;                                         \
    }                                                      \
  };
LIMPID_OPERATORS(LIMPID_OPERATOR_ENTRY)
#undef LIMPID_OPERATOR_ENTRY

/// Names of operators, apart by blanks, that the contract suite is built for alone; none: for all.
#if !defined(LIMPID_CONTRACT_ONLY)
#define LIMPID_CONTRACT_ONLY ""
#endif
constexpr bool is_asked_for(std::string_view name) {
  const std::string_view only = LIMPID_CONTRACT_ONLY;
  for (std::size_t begin = 0, end = 0; end != only.npos; begin = end + 1) {
    end = only.find(' ', begin);
    if (only.substr(begin, end == only.npos ? end : end - begin) == name) return true;
  }
  return only.empty();
}

/// f(entry) for every operator.
template <class F>
void for_each_operator(F&& f) {
#define LIMPID_OPERATOR_CALL(NAME, ...) \
  if constexpr (is_asked_for(#NAME)) f(entry_##NAME{});
  LIMPID_OPERATORS(LIMPID_OPERATOR_CALL)
#undef LIMPID_OPERATOR_CALL
}

}  // namespace suite
