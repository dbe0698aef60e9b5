// SPDX-License-Identifier: MIT
/// \file
/// How far two ways of computing the same thing may be apart.
#pragma once

#include <algorithm>
#include <cmath>

#include <ttt/core/view.hpp>

namespace ttt::test {

/// The error that rounding may leave in a result of a scalar, relative to the result's size.
template <class S>
struct Tolerance;
template <>
struct Tolerance<float> {
  static constexpr double relative = 1e-5;
};
template <>
struct Tolerance<double> {
  static constexpr double relative = 1e-13;
};

/// The largest difference of two matrices over the largest element of the second, or over `floor`
/// where that is larger; not a number, so that no tolerance allows it, when one of two elements is
/// not finite and the other is not the same.
template <class S>
double relative_error(View<const S> got, View<const double> want, double floor = 0.1) {
  double most = floor, error = 0;
  for (Index i = 0; i < want.rows; ++i) {
    for (Index j = 0; j < want.cols; ++j) {
      const double a = static_cast<double>(got(i, j)), b = want(i, j);
      if (a == b || (std::isnan(a) && std::isnan(b))) continue;
      if (!std::isfinite(a) || !std::isfinite(b)) return std::nan("");
      error = std::max(error, std::abs(a - b));
    }
  }
  for (Index i = 0; i < want.rows; ++i) {
    for (Index j = 0; j < want.cols; ++j) {
      if (std::isfinite(want(i, j))) most = std::max(most, std::abs(want(i, j)));
    }
  }
  return error / most;
}

}  // namespace ttt::test
