// limpid: the entropy of a map whose entries have either sign
// refused: limpid: map_entropy wants an operator whose map has rows that are distributions
// SPDX-License-Identifier: MIT
#include <limpid/explain/map.hpp>
#include <limpid/op/pid.hpp>
#include <limpid/op/twicing.hpp>

void entropies(const limpid::Mat<double>& q) {
#if LIMPID_MISTAKE
  const auto op = limpid::twicing();
#else
  const auto op = limpid::pid();
#endif
  limpid::Saved<decltype(op), double> saved;
  limpid::Mat<double> out(q.rows(), 1);
  limpid::map_entropy(op, limpid::Inputs<std::remove_const_t<decltype(op)>, double>(limpid::qkv(q, q, q)), saved, out);
}
