// limpid: the operators that the optional target limpid::compiled holds ready: users need not compile them again.
// SPDX-License-Identifier: MIT
//
// With limpid::compiled linked, include this instead of limpid.hpp: the operators below are declared extern for float
// and double. Any other one is compiled where it is used, as ever. The library and its users must be compiled with the
// same flags; the ABI namespace sees to it that a mistake is a link error and not a crash.
#pragma once

#include "limpid.hpp"

#ifndef LIMPID_COMPILED_HERE  // the target itself defines it as nothing
#define LIMPID_COMPILED_HERE extern
#endif

#define LIMPID_COMPILED_FOR(Op, S)                                                                                   \
  LIMPID_COMPILED_HERE template void detail::forward_with<detail::Native<S>, Op, S>(const Op&, const Inputs<Op, S>&, \
                                                                                    MutView<S>, const Call<Op, S>&); \
  LIMPID_COMPILED_HERE template void detail::backward_with<detail::Native<S>, Op, S>(                                \
      const Op&, const Inputs<Op, S>&, Saved<Op, S>&, View<S>, const Grads<Op, S>&, const BackwardCall<S>&);
#define LIMPID_COMPILED(Op)      \
  LIMPID_COMPILED_FOR(Op, float) \
  LIMPID_COMPILED_FOR(Op, double)

namespace limpid {
inline namespace LIMPID_ABI {

using CompiledSoftmax = Softmax<DotScore<Chain<>>>;
using CompiledCausalSoftmax = Softmax<DotScore<Chain<Causal>>>;
using CompiledNlm = Softmax<NlmScore<Chain<>>>;

LIMPID_COMPILED(CompiledSoftmax)
LIMPID_COMPILED(CompiledCausalSoftmax)
LIMPID_COMPILED(CompiledNlm)

}  // namespace LIMPID_ABI
}  // namespace limpid

#undef LIMPID_COMPILED
#undef LIMPID_COMPILED_FOR
