// limpid: tensors in files. What every reader here returns: a type, a shape and the bytes, C order.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "file.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

static_assert(
    std::endian::native == std::endian::little,
    "limpid/io: the files are little-endian and are copied as they stand; a big-endian host is not supported");

/// Element types, under the names safetensors gives them.
enum class DType { f64, f32, f16, bf16, i64, i32, u8, boolean };

namespace detail {

struct DTypeInfo {
  DType type;
  const char* safetensors;
  const char* npy;  // empty: numpy has no such type
  std::size_t bytes;
};

inline constexpr std::array<DTypeInfo, 8> dtypes{{{DType::f64, "F64", "<f8", 8},
                                                  {DType::f32, "F32", "<f4", 4},
                                                  {DType::f16, "F16", "<f2", 2},
                                                  {DType::bf16, "BF16", "", 2},
                                                  {DType::i64, "I64", "<i8", 8},
                                                  {DType::i32, "I32", "<i4", 4},
                                                  {DType::u8, "U8", "|u1", 1},
                                                  {DType::boolean, "BOOL", "|b1", 1}}};

inline const DTypeInfo& info(DType type) { return dtypes[static_cast<std::size_t>(type)]; }

inline std::string shape_of(const std::vector<Index>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

/// Bytes of a tensor. The extents are multiplied as if zeros were ones, so that no product of some of them, which a
/// reader may take later, can overflow either.
inline std::size_t bytes_of(const std::string& file, DType type, const std::vector<Index>& shape) {
  std::size_t product = info(type).bytes;
  bool empty = false;
  for (Index extent : shape) {
    if (extent < 0) fail(file, "shape " + shape_of(shape) + " has a negative extent");
    if (extent == 0) {
      empty = true;
      continue;
    }
    const auto limit = static_cast<std::size_t>(std::numeric_limits<Index>::max());
    if (product > limit / static_cast<std::size_t>(extent))
      fail(file, "shape " + shape_of(shape) + " is larger than any memory");
    product *= static_cast<std::size_t>(extent);
  }
  return empty ? 0 : product;
}

/// The axes that a file may give a tensor; as many as numpy and torch have, and no list of a hostile file fills memory.
inline constexpr std::size_t most_axes = 64;

inline void check_axes(const std::string& what, const std::vector<Index>& shape) {
  if (shape.size() > most_axes)
    fail(what, "found " + std::to_string(shape.size()) + " axes, wanted at most " + std::to_string(most_axes));
}

inline float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t exponent = (h >> 10) & 0x1fu, fraction = h & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction times 2^-24
    const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t wide = exponent == 31 ? 255u : exponent + 112u;  // the biases are 127 and 15
  return std::bit_cast<float>(sign | (wide << 23) | (fraction << 13));
}

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));  // a tensor may start at any byte of its file
  return value;
}

inline void append(std::vector<std::byte>& bytes, const void* from, std::size_t count) {
  const auto* first = static_cast<const std::byte*>(from);
  bytes.insert(bytes.end(), first, first + count);
}

}  // namespace detail

/// The DType of a C++ scalar.
template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, bool>) return DType::boolean;
  if constexpr (std::is_integral_v<T> && sizeof(T) == 8) return DType::i64;
  if constexpr (std::is_integral_v<T> && sizeof(T) == 4) return DType::i32;
  if constexpr (std::is_integral_v<T> && sizeof(T) == 1) return DType::u8;
}

/// A dense array of any rank in C order (the last axis runs fastest). Rank 0 holds one entry.
struct Tensor {
  DType dtype = DType::f64;
  std::vector<Index> shape;
  std::vector<std::byte> bytes;

  Tensor() = default;
  Tensor(DType dtype_, std::vector<Index> shape_, std::vector<std::byte> bytes_)
      : dtype(dtype_), shape(std::move(shape_)), bytes(std::move(bytes_)) {}

  /// rows x cols from a matrix, map or block with contiguous rows.
  template <class M>
  requires limpid::detail::is_eigen<M>
  static Tensor from(const M& matrix) {
    using S = typename M::Scalar;
    const View<S> view(matrix);
    Tensor t(dtype_of<S>(), {view.rows, view.cols}, {});
    for (Index i = 0; i < view.rows; ++i)
      detail::append(t.bytes, view.row(i), static_cast<std::size_t>(view.cols) * sizeof(S));
    return t;
  }

  /// Any shape from entries in C order; throws FormatError when their number is not the shape's, and for an entry that
  /// the type cannot hold (unsigned ones go to I64 and I32, bytes to U8).
  template <class T>
  static Tensor from(const std::vector<T>& entries, std::vector<Index> shape) {
    Tensor t(dtype_of<T>(), std::move(shape), {});
    for (T entry : entries) {
      if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>)
        if (std::is_unsigned_v<T> ? sizeof(T) > 1 && entry > std::numeric_limits<T>::max() / 2
                                  : sizeof(T) == 1 && entry < T(0))
          detail::fail("tensor", "found the entry " + std::to_string(entry) + ", which " +
                                     detail::info(t.dtype).safetensors + " cannot hold");
      detail::append(t.bytes, &entry, sizeof(T));
    }
    t.check("tensor");
    return t;
  }

  /// Number of entries.
  Index size() const { return static_cast<Index>(bytes.size() / detail::info(dtype).bytes); }

  /// All entries as T. Floats become floats only, integers and bools any T; throws FormatError for another pairing and
  /// for an integer that T cannot hold.
  template <class T>
  std::vector<T> values() const {
    std::vector<T> out(static_cast<std::size_t>(size()));
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = entry<T>(static_cast<Index>(i));
    return out;
  }

  /// The tensor as a matrix: the last axis gives the columns, all axes before it the rows; rank 1 is a column, rank 0
  /// one entry. BOOL goes to Mat<bool>, and to 0 and 1 of any other scalar.
  template <class S>
  Mat<S> matrix() const {
    check("tensor");
    Index cols = shape.size() < 2 ? 1 : shape.back();
    Index rows = 1;
    for (std::size_t i = 0; i + (shape.size() < 2 ? 0 : 1) < shape.size(); ++i) rows *= shape[i];
    Mat<S> out(rows, cols);
    for (Index i = 0; i < out.size(); ++i) out.data()[i] = entry<S>(i);
    return out;
  }

  /// Throws FormatError (naming what) unless shape and bytes agree.
  void check(const std::string& what) const { check_bytes(what, bytes.size()); }

  /// The same for bytes that are yet to be read.
  void check_bytes(const std::string& what, std::size_t found) const {
    const std::size_t wanted = detail::bytes_of(what, dtype, shape);
    if (wanted != found)
      detail::fail(what, "found " + std::to_string(found) + " bytes, wanted " + std::to_string(wanted) + " for shape " +
                             detail::shape_of(shape) + " of " + detail::info(dtype).safetensors);
  }

 private:
  template <class T>
  static T whole(std::int64_t number) {
    const T out = static_cast<T>(number);
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>)
      if (static_cast<std::int64_t>(out) != number || (out < T(0)) != (number < 0))
        detail::fail("tensor", "found the entry " + std::to_string(number) + ", wanted one that fits " +
                                   std::to_string(sizeof(T)) + (std::is_signed_v<T> ? " signed" : " unsigned") +
                                   " bytes");
    return out;
  }

  template <class T>
  T entry(Index i) const {
    const std::byte* at = bytes.data() + static_cast<std::size_t>(i) * detail::info(dtype).bytes;
    if constexpr (std::is_floating_point_v<T>) {
      switch (dtype) {
        case DType::f64:
          return static_cast<T>(detail::load<double>(at));
        case DType::f32:
          return static_cast<T>(detail::load<float>(at));
        case DType::f16:
          return static_cast<T>(detail::half_to_float(detail::load<std::uint16_t>(at)));
        case DType::bf16:
          return static_cast<T>(
              std::bit_cast<float>(static_cast<std::uint32_t>(detail::load<std::uint16_t>(at)) << 16));
        default:
          break;
      }
    }
    switch (dtype) {
      case DType::i64:
        return whole<T>(detail::load<std::int64_t>(at));
      case DType::i32:
        return whole<T>(detail::load<std::int32_t>(at));
      case DType::u8:
        return whole<T>(detail::load<std::uint8_t>(at));
      case DType::boolean:
        return static_cast<T>(detail::load<std::uint8_t>(at) != 0);
      default:
        break;
    }
    detail::fail("tensor",
                 std::string("found ") + detail::info(dtype).safetensors + ", wanted an integer or bool type");
  }
};

}  // namespace io
}  // namespace LIMPID_ABI
}  // namespace limpid
