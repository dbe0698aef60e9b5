// SPDX-License-Identifier: MIT
/// \file
/// What the library throws, and the assertion its inner loops use.
#pragma once

#include <stdexcept>
#include <string>

#include <ttt/version.hpp>

namespace ttt::inline TTT_ABI {

/// The base of everything the library throws: one sentence that names the thing at fault and what
/// was expected of it. Whatever threw it left its object as it was, unless its docs say otherwise.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Sizes that do not belong together.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// A file that is not what it should be: damaged, hostile, or made for something else.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// A score or a weight that is not a finite number.
class NonFiniteError : public Error {
 public:
  using Error::Error;
};

namespace detail {

/// Throws E(what) out of line, so that checks cost their callers one compare and one cold call.
template <class E = Error>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const std::string& what) {
  throw E("ttt: " + what);
}

[[noreturn, gnu::cold, gnu::noinline]] inline void assertion_failed(const char* expression) {
  fail("internal error: " + std::string(expression));
}

}  // namespace detail
}  // namespace ttt::inline TTT_ABI

/// Checked only when TTT_CHECKED is defined, whatever NDEBUG says.
#if defined(TTT_CHECKED)
#define TTT_ASSERT(expression) \
  ((expression) ? static_cast<void>(0) : ::ttt::detail::assertion_failed(#expression))
#else
#define TTT_ASSERT(expression) static_cast<void>(0)
#endif
