// SPDX-License-Identifier: MIT
#include <cmath>
#include <initializer_list>

#include <doctest/doctest.h>

#include <ttt/core/dual.hpp>

namespace {

using Number = ttt::Dual<double>;

/// Uses every operation; smooth and positive where it is probed.
template <class T>
T everything(T x) {
  using std::exp, std::log, std::sqrt;
  T y = x * x - T(3) / x;
  y += exp(-x);
  y *= sqrt(x + 2);
  y -= log(x) / 2;
  y /= x + 1;
  return y > T(100) ? T(0) : y;
}

TEST_CASE("a dual carries the derivative of everything it went through") {
  for (const double x : {0.3, 1.0, 2.5, 9.0}) {
    const double step = 1e-6;
    const Number y = everything(Number(x, 1.0));
    const double slope = (everything(x + step) - everything(x - step)) / (2 * step);
    CHECK(y.value == doctest::Approx(everything(x)).epsilon(1e-14));
    CHECK(y.tangent == doctest::Approx(slope).epsilon(1e-7));
    CHECK(static_cast<double>(y) == y.value);
  }
}

TEST_CASE("a constant has no tangent") {
  CHECK(everything(Number(2)).tangent == 0.0);
  CHECK(Number(1.5f).value == 1.5);
  CHECK(Number(1) < Number(2, 5));
  CHECK(Number(2) > Number(1, 5));
}

}  // namespace
