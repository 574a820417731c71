// limpid: the three interfaces that people extend: an operator, a family of scores, a modifier. What each member is
// given, in which units, who clears and who adds; and the sentence that names a missing one at compile time.
// SPDX-License-Identifier: MIT
//
// An OPERATOR is a value struct: const, shareable between threads, its parameters fields with defaults. The front doors
// check shapes, cut packed arrays into heads and spread them; an operator's functions see one head of one batch item,
// shapes already checked, and take scratch from pass.arena(), which is given back when they return. S is the scalar, P
// the engine's vectors (pass tells it), so each function is `template <class P, class S = typename P::Scalar>`, or one
// that deduces more: `template <class P, class S, class In, class Keep>`, `auto` for parameters.
//
//     name                                    a const char*, in the text of errors
//     template <class T> Args                 the inputs, T = View<S>, or their gradients, T = MutView<S>; with
//                                             static visit(f, a...) -> f("field", Role, a.field...) for each; QKV<T>
//     template <class T> Keep                 what backward needs of forward, with static visit(f, head, k...) ->
//                                             f(Kept, count, needed, k.field...) for each: Kept::stat is count rows of
//                                             n numbers, Kept::rows n x count; needed: forward writes there itself and
//                                             wants it also where nobody asked, else the field may be empty. (visit_for
//                                             with the operator in front where sizes hang on its parameters.) A field
//                                             `lse`, 2 of Kept::stat a map whose weights sum to one, makes Call::lse
//                                             work.
//     check(dims, head)                       throws ShapeError for what the roles do not say; once a call, and once a
//                                             head where parameters differ
//     out_width(head)                         columns of out, of one head
//     modifiers()                             the Chain of its scores
//     forward(pass, in, out, keep)            writes all of out and every field of keep that is given
//     backward(pass, in, keep, dout, grad)    a field of grad that is not given() is not wanted. Query fields are added
//                                             to where pass.accumulate.q, key fields where pass.accumulate.kv, else
//                                             overwritten; parameters (Role::head, sides) are always overwritten: the
//                                             front door sums heads. pass.collected and pass.relevance go to pull_back.
//     apply(pass, in, keep, x, out)           out = E x, E the (effective) map; x m x c, out n x c, overwritten
//     apply_transposed(pass, in, keep, g, out)      out = E^T g
//     map_block(pass, in, keep, q0, k0, out)  the block of E from (q0, k0), as large as out
//     map_gradient(pass, in, keep, q0, dout)  optional, where the output is a function of h = E v: rows q0 and on of dh
//                                             from these rows of dout, for looks at dE
//     entropy(pass, in, keep, out)            optional: of every row, in nats, where rows are distributions
//     complete_lse(context, head, at, lse)    optional: adds to a log-sum-exp that is shown what forward left out;
//                                             without it that of `score`, if there is one
//     reads(f)                                optional: f(NamedArray) of arrays it looks at besides its inputs, which
//                                             no result may lie over
//     reads_pages                             optional, true where only `smooth` or `smooth_both`, once, reads k and v,
//                                             or, where pass.context.pages(), copied_pages: then decode copies none
//     keys_are_values                         optional, true of an operator without k and v whose one field of keys is
//                                             both: decode takes pages of one pool for it
//     needs_whole_map                         optional, true where a row of the result is made of other rows of the map:
//                                             such an operator wants n = m, and no token is decoded alone
//     score, inner                            optional fields: its family of scores, or the operator it goes round,
//                                             whose checks(field) are asked. The library's operators have one of them.
//
// A FAMILY OF SCORES makes the scores of one head, in natural units (exp(score), not powers of two):
//
//     mods                                    the Chain of modifiers, given to Scores
//     template <class T> Args                 as an operator's; q, k and v among them
//     template <class S> Prepared             a struct with the field `scores`, a detail::Scores<S, Mods>
//     check(op, dims, head)
//     prepare(arena, in, at)                  the scores of head `at`, before modifiers
//     targets(arena, in, prepared, grad)      where pull_back puts dq, dk (for the rows that Scores holds) and the sums
//                                             of dS over queries; `direct` where these are the user's own arrays
//     finish(in, prepared, targets, grad, accumulate)   from there to the gradients of its own inputs
//     complete_lse(arena, in, at, lse)        optional: adds to a log-sum-exp what its scores leave out of whole rows
//     keys_as_given                           optional, true where scores hold k as given and nothing else reads it
//     checks(field)                           optional: whether `check` looks at this parameter's numbers itself, so
//                                             that they need not be finite
//
// A MODIFIER derives from Modifier (score/modifier.hpp), says by flags what it does and offers what these flags
// promise; chain(), and &, | and ! of masks, check it. Without its flag a member is never called.
//
//     is_mask, irregular      keep(at); optional: cover(at, q0, q1, k0, k1), without which every pair is asked
//     is_mask, intervals      interval(at), one run of keys a query, moving one way with the query; optional: keep and
//                             cover, which serve &, | and ! alone. With both flags a pair is kept where both keep it.
//     per_pair                value(s, at), and slope(s, at) = dvalue/ds, or adds() that is true: the slope is 1
//     per_key                 key_bias(at, q0), and value(s, at), s plus that amount; optional: row_constant(at, q0),
//                             what key_bias leaves out of row at.q where it counts from query q0
//     tables                  is_table(), amount(at), far(at), of amounts that may be any numbers
//     collects_gradient       wants_gradient(), add_gradient(at, ds, sums); gradient_size(n, m) and
//                             deliver_gradient(at, sums), or wants_serial_heads(b, h, n)
//     optional                check(op, b, h, n, m), which throws ShapeError; reads(f), writes(f): f(NamedArray) for
//                             arrays that are looked at, or added to
#pragma once

#include <type_traits>
#include <utility>

#include "../core/pass.hpp"
#include "../engine/simd.hpp"
#include "saved.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

struct AnyField {
  template <class... A>
  void operator()(A&&...) const {}
};

// A missing type is asked for first: parameters of a requires-expression that name it would be errors of their own.
template <class Op, class S>
constexpr bool offers_arrays() {
  if constexpr (requires { typename Op::template Args<View<S>>; }) {
    return requires(typename Op::template Args<View<S>> in, typename Op::template Args<MutView<S>> grad) {
      Op::template Args<View<S>>::visit(AnyField(), in);
      Op::template Args<MutView<S>>::visit(AnyField(), grad, in);
    };
  }
  return false;
}
template <class Op, class S>
constexpr bool offers_keep() {
  if constexpr (requires { typename Op::template Keep<View<S>>; }) {
    using Keep = typename Op::template Keep<View<S>>;
    using In = typename Op::template Args<View<S>>;
    return requires(const In& in, Keep k) { Keep::visit(AnyField(), in, k); }
    || requires(const Op& op, const In& in, Keep k) { Keep::visit_for(op, AnyField(), in, k); };
  }
  return false;
}

/// What is offered of functions, told one by one.
template <class Op, class S, class P = Native<S>>
struct Offers {
  using In = typename Op::template Args<View<S>>;
  using Grad = typename Op::template Args<MutView<S>>;
  using Keep = typename Op::template Keep<View<S>>;
  using KeepMut = typename Op::template Keep<MutView<S>>;
  static constexpr bool name = requires(const Op& op) { static_cast<const char*>(op.name); };
  static constexpr bool check = requires(const Op& op, const Dims& d, const In& in) { op.check(d, in); };
  static constexpr bool out_width = requires(const Op& op, const In& in) { Index(op.out_width(in)); };
  static constexpr bool modifiers = requires(const Op& op) { op.modifiers().wants_gradient(); };
  static constexpr bool forward =
      requires(const Op& op, const Pass<P>& pass, const In& in, MutView<S> out, const KeepMut& keep) {
    op.forward(pass, in, out, keep);
  };
  static constexpr bool backward = requires(const Op& op, const BackwardPass<P>& pass, const In& in, const Keep& keep,
                                            View<S> dout, const Grad& grad) {
    op.backward(pass, in, keep, dout, grad);
  };
  static constexpr bool apply =
      requires(const Op& op, const Pass<P>& pass, const In& in, const Keep& keep, View<S> x, MutView<S> out) {
    op.apply(pass, in, keep, x, out);
  };
  static constexpr bool apply_transposed =
      requires(const Op& op, const Pass<P>& pass, const In& in, const Keep& keep, View<S> g, MutView<S> out) {
    op.apply_transposed(pass, in, keep, g, out);
  };
  static constexpr bool map_block =
      requires(const Op& op, const Pass<P>& pass, const In& in, const Keep& keep, MutView<S> out) {
    op.map_block(pass, in, keep, Index(0), Index(0), out);
  };
  static constexpr bool all =
      name && check && out_width && modifiers && forward && backward && apply && apply_transposed && map_block;
};

/// One sentence for what an operator lacks.
template <class Op, class S>
constexpr bool check_operator() {
  static_assert(offers_arrays<Op, S>(),
                "limpid: an operator names its inputs, template <class T> struct Args with static visit(f, a...); see "
                "call/interface.hpp");
  if constexpr (offers_arrays<Op, S>()) {
    static_assert(offers_keep<Op, S>(),
                  "limpid: an operator says what it keeps for backward, template <class T> struct Keep with static "
                  "visit(f, head, k...); see call/interface.hpp");
    if constexpr (offers_keep<Op, S>()) {
      using O = Offers<Op, S>;
      static_assert(O::name, "limpid: an operator has a const char* name, for the text of errors");
      static_assert(O::check, "limpid: an operator offers check(const Dims&, head) const");
      static_assert(O::out_width, "limpid: an operator offers out_width(head) const, the columns of one head of out");
      static_assert(O::modifiers, "limpid: an operator offers modifiers() const, the chain of its scores");
      static_assert(O::forward, "limpid: an operator offers forward(const Pass<P>&, in, out, keep) const");
      static_assert(O::backward,
                    "limpid: an operator offers backward(const BackwardPass<P>&, in, keep, dout, grad) const");
      static_assert(O::apply, "limpid: an operator offers apply(const Pass<P>&, in, keep, x, out) const, out = E x");
      static_assert(O::apply_transposed,
                    "limpid: an operator offers apply_transposed(const Pass<P>&, in, keep, g, out) const, out = E^T g");
      static_assert(O::map_block, "limpid: an operator offers map_block(const Pass<P>&, in, keep, q0, k0, out) const");
      return O::all;
    }
  }
  return false;
}

/// Whether there is an operator, without a sentence.
template <class Op, class S>
constexpr bool is_operator() {
  if constexpr (offers_arrays<Op, S>())
    if constexpr (offers_keep<Op, S>()) return Offers<Op, S>::all;
  return false;
}

template <class Score, class S>
constexpr bool has_qkv() {
  if constexpr (offers_arrays<Score, S>()) return requires(typename Score::template Args<View<S>> in) {
      in.q, in.k, in.v;
    };
  return false;
}

/// And for what a family of scores lacks.
template <class Score, class S>
constexpr bool check_score_family() {
  constexpr bool arrays = has_qkv<Score, S>();
  static_assert(arrays,
                "limpid: a family of scores names its inputs, q, k and v among them: template <class T> struct Args "
                "with static visit(f, a...); see call/interface.hpp");
  constexpr bool prepared = requires { std::declval<typename Score::template Prepared<S>>().scores; };
  static_assert(prepared, "limpid: a family of scores has template <class S> struct Prepared with a field scores");
  if constexpr (arrays && prepared) {
    using In = typename Score::template Args<View<S>>;
    using Grad = typename Score::template Args<MutView<S>>;
    using Prepared = typename Score::template Prepared<S>;
    constexpr bool check = requires(const Score& s, const Dims& d, const In& in) { s.check("", d, in); };
    constexpr bool prepare = requires(const Score& s, Arena& a, const In& in, const At& at) {
      Prepared(s.prepare(a, in, at));
    };
    constexpr bool targets = requires(const Score& s, Arena& a, const In& in, const Prepared& p, const Grad& g) {
      s.finish(in, p, s.targets(a, in, p, g), g, Accumulation());
    };
    constexpr bool mods = requires(const Score& s) { s.mods.wants_gradient(); };
    static_assert(mods, "limpid: a family of scores has a field mods, the chain of its modifiers");
    static_assert(check, "limpid: a family of scores offers check(const char* op, const Dims&, head) const");
    static_assert(prepare, "limpid: a family of scores offers prepare(Arena&, in, const At&) const -> Prepared<S>");
    static_assert(
        targets,
        "limpid: a family of scores offers targets(Arena&, in, prepared, grad) const, where pull_back writes, "
        "and finish(in, prepared, targets, grad, accumulate) const");
    return check && prepare && targets && mods;
  }
  return false;
}

}  // namespace detail

/// An attention operator over arrays of S, see above.
template <class Op, class S = double>
concept Operator = detail::is_operator<Op, S>();

}  // namespace LIMPID_ABI
}  // namespace limpid
