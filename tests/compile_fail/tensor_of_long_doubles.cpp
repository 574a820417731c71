// limpid: a matrix of a type that no file holds.
// SPDX-License-Identifier: MIT
// refused: limpid: no tensor of a file holds this scalar type, wanted double, float, bool or an integer of 1, 4 or 8 bytes
#include <limpid/io/tensor.hpp>

limpid::io::Tensor kept(const limpid::Mat<long double>& exact) {
#if LIMPID_MISTAKE
  return limpid::io::Tensor::from(exact);
#else
  const limpid::Mat<double> rounded = exact.cast<double>();
  return limpid::io::Tensor::from(rounded);
#endif
}
