// Element types. `T` is the type of activations and weight matrices; `Stat<T>` holds what is small
// or summed: biases, norm weights, statistics, router scores, losses, parameter gradients.
#pragma once

#include "runtime/error.h"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace moe {

enum class DType : std::uint8_t { f32, bf16, f64, i32, i64, u8, i8 };

// The upper half of an IEEE float. Rounds to nearest even; NaN stays NaN.
struct bf16 {
  std::uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float value) {
    std::uint32_t u = std::bit_cast<std::uint32_t>(value);
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<std::uint16_t>(nan ? (u >> 16) | 0x40u
                                          : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(std::uint32_t{bits} << 16); }
};

// IEEE half to float, for files only: no kernel computes in f16 (T5 overflows in it).
inline float half_to_float(std::uint16_t h) {
  std::uint32_t sign = std::uint32_t{h & 0x8000u} << 16, exponent = (h >> 10) & 31u,
                mantissa = h & 1023u;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  float value = static_cast<float>(mantissa) * 0x1p-24f;  // zero and subnormals: exact
  return sign ? -value : value;
}

template <class T>
using Stat = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
inline constexpr DType dtype_of = [] {
  using U = std::remove_const_t<T>;
  if constexpr (std::is_same_v<U, float>)
    return DType::f32;
  else if constexpr (std::is_same_v<U, bf16>)
    return DType::bf16;
  else if constexpr (std::is_same_v<U, double>)
    return DType::f64;
  else if constexpr (std::is_same_v<U, std::int32_t>)
    return DType::i32;
  else if constexpr (std::is_same_v<U, std::int64_t>)
    return DType::i64;
  else if constexpr (std::is_same_v<U, std::uint8_t>)
    return DType::u8;
  else
    return static_cast<DType>(std::enable_if_t<std::is_same_v<U, std::int8_t>, int>(6));
}();

constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::u8:
    case DType::i8:
      return 1;
  }
  return 0;
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f64:
      return "f64";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
    case DType::u8:
      return "u8";
    case DType::i8:
      return "i8";
  }
  return "?";
}

// The dtype of statistics and parameter gradients beside activations of `dtype`.
constexpr DType stat_of(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

}  // namespace moe

template <>
struct fmt::formatter<moe::DType> : fmt::formatter<const char*> {
  auto format(moe::DType dtype, fmt::format_context& context) const {
    return fmt::formatter<const char*>::format(moe::name_of(dtype), context);
  }
};
