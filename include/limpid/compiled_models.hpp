// limpid: the layers and models that the optional target limpid::compiled_models holds ready: users need not compile
// them again.
// SPDX-License-Identifier: MIT
//
// With limpid::compiled_models linked, include this instead of model/bert.hpp and model/vit.hpp, or before them: the
// encoders and what they are made of, over plain softmax attention, are declared extern for float, and so is the reader
// of checkpoints. Any other operator or scalar is compiled where it is used, as ever. Library and users must be
// compiled with the same flags, as with compiled.hpp.
#pragma once

#include "model/bert.hpp"
#include "model/vit.hpp"

#ifndef LIMPID_COMPILED_HERE  // the target itself defines it as nothing
#define LIMPID_COMPILED_HERE extern
#endif

namespace limpid {
inline namespace LIMPID_ABI {
namespace compiled {

using S = float;
using P = detail::Native<S>;
using Attention = Softmax<DotScore<Chain<>>>;
using Block = TransformerBlock<Attention>;

}  // namespace compiled

// The operator.
LIMPID_COMPILED_HERE template void detail::forward_with<compiled::P, compiled::Attention, float>(
    const compiled::Attention&, const Inputs<compiled::Attention, float>&, MutView<float>,
    const Call<compiled::Attention, float>&);
LIMPID_COMPILED_HERE template void detail::backward_with<compiled::P, compiled::Attention, float>(
    const compiled::Attention&, const Inputs<compiled::Attention, float>&, Saved<compiled::Attention, float>&,
    View<float>, const Grads<compiled::Attention, float>&, const BackwardCall<float>&);

// What layers of any operator are made of.
#define LIMPID_COMPILED_PRODUCT(SIDE)                                                         \
  LIMPID_COMPILED_HERE template void detail::multiply<compiled::P, detail::Transposed::SIDE>( \
      const detail::Context&, View<float>, View<float>, MutView<float>, bool, const float*, const float*, Index);
LIMPID_COMPILED_PRODUCT(none)
LIMPID_COMPILED_PRODUCT(a)
LIMPID_COMPILED_PRODUCT(b)
#undef LIMPID_COMPILED_PRODUCT
LIMPID_COMPILED_HERE template void detail::linear_in<compiled::P>(const detail::Context&, View<float>,
                                                                  const Weight<float>&, View<float>, MutView<float>);
LIMPID_COMPILED_HERE template void detail::linear_backward_in<compiled::P>(const detail::Context&, View<float>,
                                                                           const Weight<float>&, View<float>,
                                                                           const LinearGrads<float>&, bool, bool);
LIMPID_COMPILED_HERE template void detail::norm_in<compiled::P, float>(const detail::Context&, NormKind, View<float>,
                                                                       View<float>, View<float>, double, MutView<float>,
                                                                       MutView<float>);
LIMPID_COMPILED_HERE template void detail::norm_backward_in<compiled::P, float>(const detail::Context&, NormKind,
                                                                                View<float>, View<float>, View<float>,
                                                                                View<float>,
                                                                                const LayerNormGrads<float>&, bool,
                                                                                bool);
LIMPID_COMPILED_HERE template void detail::norm<float>(const char*, NormKind, View<float>, View<float>, View<float>,
                                                       MutView<float>, const LayerNormCall<float>&);
LIMPID_COMPILED_HERE template void detail::norm_backward<float>(const char*, NormKind, View<float>, View<float>,
                                                                const LayerNormSaved<float>&, View<float>,
                                                                const LayerNormGrads<float>&, const LayerCall&);
LIMPID_COMPILED_HERE template void Mlp::forward_to<float>(const MlpArgs<View<float>>&, MutView<float>,
                                                          const LayerForward<MlpSaved<float>>&) const;
LIMPID_COMPILED_HERE template void Mlp::backward_from<float>(const MlpArgs<View<float>>&, MlpSaved<float>&, View<float>,
                                                             const MlpArgs<Gradient<float>>&, const LayerCall&) const;

// Layers of plain attention.
LIMPID_COMPILED_HERE template void MultiHead<compiled::Attention>::forward_to<float>(
    const MultiHeadArgs<View<float>>&, MutView<float>,
    const LayerForward<MultiHeadSaved<compiled::Attention, float>>&) const;
LIMPID_COMPILED_HERE template void MultiHead<compiled::Attention>::backward_from<float>(
    const MultiHeadArgs<View<float>>&, MultiHeadSaved<compiled::Attention, float>&, View<float>,
    const MultiHeadArgs<Gradient<float>>&, const BackwardCall<float>&) const;
LIMPID_COMPILED_HERE template void compiled::Block::forward_to<float>(
    const compiled::Block::Args<float>&, MutView<float>, const LayerForward<compiled::Block::Saved<float>>&) const;
LIMPID_COMPILED_HERE template void compiled::Block::backward_from<float>(const compiled::Block::Args<float>&,
                                                                         compiled::Block::Saved<float>&, View<float>,
                                                                         const compiled::Block::Grads<float>&,
                                                                         const BackwardCall<float>&,
                                                                         const BackwardCall<float>&) const;

// Files.
LIMPID_COMPILED_HERE template void io::detail::parse_json<io::detail::SafetensorsHeader>(
    const std::string&, io::detail::SafetensorsHeader&);
LIMPID_COMPILED_HERE template void io::detail::parse_json<io::detail::ShardIndex>(const std::string&,
                                                                                  io::detail::ShardIndex&);
LIMPID_COMPILED_HERE template void io::Checkpoint::open<void>(const std::string&);

// Models. A backward pass with an Explanation is compiled where it is used.
LIMPID_COMPILED_HERE template class model::Bert<float>;
LIMPID_COMPILED_HERE template void model::Bert<float>::forward<compiled::Attention>(
    const compiled::Attention&, const std::vector<Index>&, const std::vector<Index>&,
    model::BertSaved<compiled::Attention, float>&, const model::ModelCall&) const;
LIMPID_COMPILED_HERE template void model::Bert<float>::from_sums<compiled::Attention>(
    const compiled::Attention&, model::BertSaved<compiled::Attention, float>&, const model::ModelCall&) const;
LIMPID_COMPILED_HERE template class model::Vit<float>;
LIMPID_COMPILED_HERE template void model::Vit<float>::forward<compiled::Attention>(
    const compiled::Attention&, View<float>, Index, Index, model::VitSaved<compiled::Attention, float>&,
    const model::ModelCall&) const;
LIMPID_COMPILED_HERE template void model::Bert<float>::run_backward<compiled::Attention, model::RelevanceRow<float>>(
    const compiled::Attention&, model::BertSaved<compiled::Attention, float>&, View<float>,
    model::ParameterGradients<float>*, MutView<float>, model::RelevanceRow<float>*, const model::ModelCall&) const;
LIMPID_COMPILED_HERE template void model::Vit<float>::run_backward<compiled::Attention, model::RelevanceRow<float>>(
    const compiled::Attention&, model::VitSaved<compiled::Attention, float>&, View<float>, View<float>,
    model::ParameterGradients<float>*, MutView<float>, model::RelevanceRow<float>*, const model::ModelCall&) const;

}  // namespace LIMPID_ABI
}  // namespace limpid
