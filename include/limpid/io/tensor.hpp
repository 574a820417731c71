// limpid: tensors in files. What every reader here returns: a type, a shape and the bytes, C order.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
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

inline const DTypeInfo& info(DType type) {
  const auto number = static_cast<std::size_t>(type);
  if (number >= dtypes.size()) fail("tensor", "found the dtype " + std::to_string(number) + ", wanted one of DType");
  return dtypes[number];
}

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

inline float brain_to_float(std::uint16_t b) { return std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16); }

/// A stored float as T, rounded.
template <class T, class F>
T rounded(F number, const std::string& where) {
  const T out = static_cast<T>(number);
  if (std::isinf(out) && !std::isinf(number))
    fail(where, "found the entry " + limpid::detail::number_text(number) + ", wanted at most " +
                    limpid::detail::number_text(std::numeric_limits<T>::max()) + " in size");
  return out;
}

/// The bits of the number nearest to x (ties to even, straight from double: no second rounding) with so many bits of
/// exponent and fraction: F16 has 5 and 10, BF16 8 and 7. What rounds beyond the largest is infinity.
template <int exponent_bits, int fraction_bits>
std::uint16_t small_float(double x) {
  constexpr int bias = (1 << (exponent_bits - 1)) - 1;
  constexpr unsigned infinity = ((1u << exponent_bits) - 1) << fraction_bits;
  const unsigned sign = std::signbit(x) ? 0x8000u : 0u;
  if (std::isnan(x)) return static_cast<std::uint16_t>(sign | infinity | 1u << (fraction_bits - 1));
  if (std::isinf(x)) return static_cast<std::uint16_t>(sign | infinity);
  const int exponent = x == 0 ? 1 - bias : std::max(std::ilogb(x), 1 - bias);
  if (exponent > bias) return static_cast<std::uint16_t>(sign | infinity);
  // In units of the last bit, the leading one among them, which counts as one more of the exponent.
  const auto units = static_cast<unsigned>(std::nearbyint(std::ldexp(std::abs(x), fraction_bits - exponent)));
  return static_cast<std::uint16_t>(sign | ((static_cast<unsigned>(exponent + bias - 1) << fraction_bits) + units));
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

/// The DType of a C++ scalar; no other scalar than these compiles.
template <class T>
constexpr DType dtype_of() {
  constexpr std::size_t whole = std::is_integral_v<T> ? sizeof(T) : 0;
  static_assert(std::is_same_v<T, double> || std::is_same_v<T, float> || whole == 1 || whole == 4 || whole == 8,
                "limpid: no tensor of a file holds this scalar type, wanted double, float, bool or an integer of 1, 4 "
                "or 8 bytes");
  if (std::is_same_v<T, bool>) return DType::boolean;
  if (whole != 0) return whole == 8 ? DType::i64 : whole == 4 ? DType::i32 : DType::u8;
  return std::is_same_v<T, double> ? DType::f64 : DType::f32;
}

namespace detail {

/// Entries behind the bytes of a tensor of dtype_of<T>(); refused where that type cannot hold one.
template <class T>
void append_entries(std::vector<std::byte>& bytes, const T* from, Index count) {
  constexpr DType type = dtype_of<T>();
  if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>)
    for (Index i = 0; i < count; ++i)
      if (std::is_unsigned_v<T> ? sizeof(T) > 1 && from[i] > std::numeric_limits<T>::max() / 2
                                : sizeof(T) == 1 && from[i] < T(0))
        fail("tensor",
             "found the entry " + std::to_string(from[i]) + ", which " + info(type).safetensors + " cannot hold");
  append(bytes, from, static_cast<std::size_t>(count) * sizeof(T));
}

}  // namespace detail

/// A dense array of any rank in C order (the last axis runs fastest). Rank 0 holds one entry.
struct Tensor {
  DType dtype = DType::f64;
  std::vector<Index> shape;
  std::vector<std::byte> bytes;

  Tensor() = default;
  Tensor(DType dtype_, std::vector<Index> shape_, std::vector<std::byte> bytes_)
      : dtype(dtype_), shape(std::move(shape_)), bytes(std::move(bytes_)) {}

  /// rows x cols from a matrix, map or block with contiguous rows. Throws FormatError for an entry that the type cannot
  /// hold: unsigned ones go to I64 and I32, bytes to U8.
  template <class M>
  requires limpid::detail::is_eigen<M>
  static Tensor from(const M& matrix) {
    using S = typename M::Scalar;
    const View<S> view(matrix);
    Tensor t(dtype_of<S>(), {view.rows, view.cols}, {});
    for (Index i = 0; i < view.rows; ++i) detail::append_entries(t.bytes, view.row(i), view.cols);
    return t;
  }

  /// The same, its floats stored as F64, F32, F16 or BF16, each rounded to the nearest. Throws FormatError for another
  /// type and for a finite entry that rounds beyond the type's largest.
  template <class M>
  requires limpid::detail::is_eigen<M>
  static Tensor from(const M& matrix, DType type) {
    using S = typename M::Scalar;
    static_assert(std::is_floating_point_v<S>, "limpid: only floating-point numbers are stored as a type of choice");
    const View<S> view(matrix);
    Tensor t(type, {view.rows, view.cols}, {});
    const std::size_t each = detail::info(type).bytes;
    t.bytes.resize(static_cast<std::size_t>(view.rows * view.cols) * each);
    std::byte* to = t.bytes.data();
    const auto put = [&](auto number) {
      std::memcpy(to, &number, sizeof number);
      to += sizeof number;
    };
    const auto put_small = [&](std::uint16_t bits, std::uint16_t infinity, double x, const char* largest) {
      if ((bits & 0x7fff) == infinity && std::isfinite(x))
        detail::fail("tensor", "found the entry " + limpid::detail::number_text(x) + ", wanted at most " + largest +
                                   " in size for " + detail::info(type).safetensors);
      put(bits);
    };
    for (Index i = 0; i < view.rows; ++i)
      for (Index j = 0; j < view.cols; ++j) {
        const S x = view(i, j);
        if (type == DType::f64)
          put(static_cast<double>(x));
        else if (type == DType::f32)
          put(detail::rounded<float>(x, "tensor"));
        else if (type == DType::f16)
          put_small(detail::small_float<5, 10>(double(x)), 0x7c00, double(x), "65504");
        else if (type == DType::bf16)
          put_small(detail::small_float<8, 7>(double(x)), 0x7f80, double(x), "3.38953e+38");
        else
          detail::fail("tensor", std::string("found the type ") + detail::info(type).safetensors +
                                     ", wanted F64, F32, F16 or BF16 for floats");
      }
    return t;
  }

  /// Any shape from entries in C order; throws FormatError when their number is not the shape's, and for an entry that
  /// the type cannot hold, as for a matrix.
  template <class T>
  static Tensor from(const std::vector<T>& entries, std::vector<Index> shape) {
    Tensor t(dtype_of<T>(), std::move(shape), {});
    for (T entry : entries) detail::append_entries(t.bytes, &entry, 1);  // one by one: bools have no addresses
    t.check("tensor");
    return t;
  }

  /// Number of entries that the bytes hold whole.
  Index size() const { return static_cast<Index>(bytes.size() / detail::info(dtype).bytes); }

  /// All entries as T, a bool, an integer or a floating-point type. Floats become floats only, rounded to the nearest;
  /// integers and bools any T that holds them exactly, so bool only 0 and 1; a BOOL is true unless its byte is 0.
  /// Throws FormatError for another pairing, for an entry that T cannot hold, also a finite one beyond T's largest, and
  /// where shape and bytes do not agree.
  template <class T>
  std::vector<T> values() const {
    check("tensor");
    std::vector<T> out(static_cast<std::size_t>(size()));
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = entry<T>(static_cast<Index>(i));
    return out;
  }

  /// The tensor as a matrix: the last axis gives the columns, all axes before it the
  /// rows; rank 1 is a column, rank 0 one entry. Entries as values() gives them,
  /// with its errors: BOOL goes to Mat<bool>, and to 0 and 1 of any other scalar.
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
  /// A stored integer as T, exactly.
  template <class T>
  static T whole(std::int64_t number) {
    const T out = static_cast<T>(number);
    const auto refuse = [&](const std::string& wanted) {
      detail::fail("tensor", "found the entry " + std::to_string(number) + ", wanted " + wanted);
    };
    if constexpr (std::is_same_v<T, bool>) {
      if (number != 0 && number != 1) refuse("0 or 1 for a bool");
    } else if constexpr (std::is_integral_v<T>) {
      if (static_cast<std::int64_t>(out) != number || (out < T(0)) != (number < 0))
        refuse("one that fits " + std::to_string(sizeof(T)) + (std::is_signed_v<T> ? " signed" : " unsigned") +
               " bytes");
    } else if (!(out < T(0x1p63)) || static_cast<std::int64_t>(out) != number) {
      refuse("an integer that " + std::to_string(std::numeric_limits<T>::digits) +
             " bits of a floating-point number hold exactly");
    }
    return out;
  }

  template <class T>
  T entry(Index i) const {
    static_assert(std::is_arithmetic_v<T>,
                  "limpid: entries of a tensor are read as bool, an integer or a floating-point type");
    const std::byte* at = bytes.data() + static_cast<std::size_t>(i) * detail::info(dtype).bytes;
    if constexpr (std::is_floating_point_v<T>) {
      switch (dtype) {
        case DType::f64:
          return detail::rounded<T>(detail::load<double>(at), "tensor");
        case DType::f32:
          return detail::rounded<T>(detail::load<float>(at), "tensor");
        case DType::f16:
          return detail::rounded<T>(detail::half_to_float(detail::load<std::uint16_t>(at)), "tensor");
        case DType::bf16:
          return detail::rounded<T>(detail::brain_to_float(detail::load<std::uint16_t>(at)), "tensor");
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
