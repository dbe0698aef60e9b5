// SPDX-License-Identifier: MIT
/// \file
/// Random inputs of tests.
#pragma once

#include <vector>

#include <ttt/core/dtype.hpp>
#include <ttt/core/random.hpp>
#include <ttt/core/view.hpp>

namespace ttt::test {

/// A double as T, by way of float where T converts from float only.
template <class T>
T cast(double value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return T(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

/// Uniform in [-scale, scale).
template <class T>
void fill(Random& random, View<T> out, double scale = 1) {
  for (Index i = 0; i < out.rows; ++i) {
    for (Index j = 0; j < out.cols; ++j) {
      out(i, j) = cast<T>(scale * (2 * random.uniform() - 1));
    }
  }
}

template <class T = double>
std::vector<T> uniforms(Random& random, Index size, double scale = 1) {
  std::vector<T> out(static_cast<std::size_t>(size));
  fill(random, View<T>(out.data(), 1, size), scale);
  return out;
}

inline std::vector<Token> tokens(Random& random, Index size, Index vocabulary) {
  std::vector<Token> out(static_cast<std::size_t>(size));
  for (Token& t : out) {
    t = static_cast<Token>(random.bits() % static_cast<std::uint64_t>(vocabulary));
  }
  return out;
}

}  // namespace ttt::test
