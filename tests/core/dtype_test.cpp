// SPDX-License-Identifier: MIT
#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include <doctest/doctest.h>

#include <ttt/core/dtype.hpp>

namespace {

using ttt::bfloat16;
using ttt::DType;
using ttt::float16;

constexpr float infinity = std::numeric_limits<float>::infinity();

constexpr std::uint16_t rounded(std::uint32_t bits) {
  return bfloat16(std::bit_cast<float>(bits)).bits;
}
constexpr float16 half(std::uint16_t bits) {
  float16 h;
  h.bits = bits;
  return h;
}

TEST_CASE("bfloat16: rounds to nearest, ties to even") {
  static_assert(bfloat16(1.0f).bits == 0x3f80);
  static_assert(static_cast<float>(bfloat16(-2.5f)) == -2.5f);
  CHECK(rounded(0x3f800000) == 0x3f80);
  CHECK(rounded(0x3f807fff) == 0x3f80);  // below the middle
  CHECK(rounded(0x3f808000) == 0x3f80);  // a tie: down to even
  CHECK(rounded(0x3f808001) == 0x3f81);  // above
  CHECK(rounded(0x3f818000) == 0x3f82);  // a tie: up to even
  CHECK(rounded(0x3f817fff) == 0x3f81);
  CHECK(rounded(0xbf818000) == 0xbf82);
  CHECK(rounded(0x3fffffff) == 0x4000);  // carries into the exponent
  CHECK(rounded(0x00000000) == 0x0000);
  CHECK(rounded(0x80000000) == 0x8000);
  CHECK(rounded(0x00008000) == 0x0000);  // subnormal tie
  CHECK(rounded(0x00018000) == 0x0002);
  CHECK(rounded(0x00000001) == 0x0000);
}

TEST_CASE("bfloat16: overflow, infinity and what is not a number") {
  CHECK(rounded(0x7f7f7fff) == 0x7f7f);  // the largest that stays finite
  CHECK(rounded(0x7f7f8000) == 0x7f80);
  CHECK(rounded(0x7f7fffff) == 0x7f80);
  CHECK(rounded(0xff7fffff) == 0xff80);
  CHECK(static_cast<float>(bfloat16(infinity)) == infinity);
  CHECK(static_cast<float>(bfloat16(-infinity)) == -infinity);
  // Among them payloads that lie in the lower half, and those that would round to infinity or zero.
  for (std::uint32_t bits : {0x7fc00000u, 0x7f800001u, 0x7f808000u, 0x7fffffffu, 0xffffffffu,
                             0xff800001u, 0xffc00000u}) {
    const bfloat16 b(std::bit_cast<float>(bits));
    CHECK(std::isnan(static_cast<float>(b)));
    CHECK(std::signbit(static_cast<float>(b)) == (bits >> 31 != 0));
  }
}

TEST_CASE("bfloat16: every value survives being widened") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    bfloat16 b;
    b.bits = static_cast<std::uint16_t>(bits);
    const float wide = b;
    if (std::isnan(wide)) {
      REQUIRE(std::isnan(static_cast<float>(bfloat16(wide))));
    } else {
      REQUIRE(bfloat16(wide).bits == bits);
    }
  }
}

TEST_CASE("float16: widening") {
  static_assert(half(0x3c00) == 1.0f);
  CHECK(half(0x0000) == 0.0f);
  CHECK(std::signbit(static_cast<float>(half(0x8000))));
  CHECK(half(0xc100) == -2.5f);
  CHECK(half(0x7bff) == 65504.0f);
  CHECK(half(0x0400) == 0x1p-14f);
  CHECK(half(0x03ff) == 0x1.ff8p-15f);  // the largest subnormal
  CHECK(half(0x0001) == 0x1p-24f);
  CHECK(half(0x8001) == -0x1p-24f);
  CHECK(half(0x7c00) == infinity);
  CHECK(half(0xfc00) == -infinity);
  CHECK(std::isnan(static_cast<float>(half(0x7c01))));
  CHECK(std::isnan(static_cast<float>(half(0xfe00))));
  // All of one sign are in order.
  for (std::uint16_t bits = 0; bits < 0x7c00; ++bits) {
    REQUIRE(static_cast<float>(half(bits)) <
            static_cast<float>(half(static_cast<std::uint16_t>(bits + 1))));
  }
}

template <class T>
constexpr bool names(DType type, const char* name) {
  return ttt::dtype_of<T> == type && ttt::size_of(type) == sizeof(T) && ttt::name_of(type) == name;
}

TEST_CASE("DType: sizes and names") {
  static_assert(names<double>(DType::F64, "F64"));
  static_assert(names<float>(DType::F32, "F32"));
  static_assert(names<float16>(DType::F16, "F16"));
  static_assert(names<bfloat16>(DType::BF16, "BF16"));
  static_assert(names<std::int64_t>(DType::I64, "I64"));
  static_assert(names<std::int32_t>(DType::I32, "I32"));
  static_assert(names<std::uint64_t>(DType::U64, "U64"));
  static_assert(names<std::uint32_t>(DType::U32, "U32"));
  static_assert(names<std::uint8_t>(DType::U8, "U8"));
  static_assert(ttt::name_of(DType::I16) == "I16" && ttt::size_of(DType::I16) == 2);
  static_assert(ttt::name_of(DType::U16) == "U16" && ttt::size_of(DType::U16) == 2);
  static_assert(ttt::name_of(DType::I8) == "I8" && ttt::size_of(DType::I8) == 1);
  static_assert(ttt::name_of(DType::Bool) == "BOOL" && ttt::size_of(DType::Bool) == 1);
  static_assert(std::is_trivially_copyable_v<bfloat16> && sizeof(bfloat16) == 2);
}

}  // namespace
