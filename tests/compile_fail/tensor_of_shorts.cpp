// limpid: entries of a type that no file holds.
// SPDX-License-Identifier: MIT
// refused: limpid: no tensor of a file holds this scalar type, wanted double, float, bool or an integer of 1, 4 or 8 bytes
#include <cstdint>
#include <limpid/io/tensor.hpp>

limpid::io::Tensor counts() {
#if LIMPID_MISTAKE
  return limpid::io::Tensor::from(std::vector<std::int16_t>{1, 2}, {2});
#else
  return limpid::io::Tensor::from(std::vector<std::int32_t>{1, 2}, {2});
#endif
}
