// SPDX-License-Identifier: MIT
#include <stdexcept>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>

#include <ttt/core/error.hpp>

namespace {

using namespace ttt;

TEST_CASE("Error: one base for everything that is thrown") {
  static_assert(std::is_base_of_v<std::runtime_error, Error>);
  static_assert(std::is_base_of_v<Error, ShapeError>);
  static_assert(std::is_base_of_v<Error, FormatError>);
  static_assert(std::is_base_of_v<Error, NonFiniteError>);
  CHECK_THROWS_WITH_AS(detail::fail("a thing is wrong"), "ttt: a thing is wrong", Error);
  CHECK_THROWS_AS(detail::fail<ShapeError>("x"), ShapeError);
  CHECK_THROWS_AS(detail::fail<FormatError>("x"), FormatError);
  CHECK_THROWS_AS(detail::fail<NonFiniteError>("x"), NonFiniteError);
}

TEST_CASE("TTT_ASSERT: checked when asked for, otherwise not even evaluated") {
  int evaluated = 0;
  [[maybe_unused]] const auto no = [&] {
    ++evaluated;
    return false;
  };
#if defined(TTT_CHECKED)
  CHECK_THROWS_WITH_AS(TTT_ASSERT(no()), "ttt: internal error: no()", Error);
  CHECK(evaluated == 1);
  CHECK_NOTHROW(TTT_ASSERT(1 + 1 == 2));
#else
  TTT_ASSERT(no());
  CHECK(evaluated == 0);
#endif
}

}  // namespace
