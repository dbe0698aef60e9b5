// SPDX-License-Identifier: MIT
/// \file
/// A backend that finds by itself what a gradient is scaled by, as a GPU does.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include <ttt/backend/concepts.hpp>

namespace ttt::test {

template <class Base>
class Finding : public Base {
 public:
  using Scalar = typename Base::Scalar;
  using Base::axpby;
  using Base::Base;

  void gradient_scale(const Scalar* gradient, Index size, double clip, View<const Scalar> scores,
                      GradientScale* found) const {
    const double norm = std::sqrt(this->dot(gradient, gradient, size));
    const std::span<const Scalar> all(scores.data, static_cast<std::size_t>(scores.cols));
    const bool taken =
        std::isfinite(norm) && std::ranges::all_of(all, [](Scalar x) { return std::isfinite(x); });
    const double none = std::numeric_limits<double>::quiet_NaN();
    *found = {norm, taken ? (clip > 0 && norm > clip ? clip / norm : 1.0) : none,
              taken ? 1.0 : none};
  }
  void axpby(double a, const Scalar* x, double b, Scalar* y, Index size, bfloat16* copy,
             const double* times) const {
    if (!std::isnan(*times)) axpby(a * *times, x, b, y, size);
    for (Index i = 0; copy != nullptr && i < size; ++i) copy[i] = bfloat16(static_cast<float>(y[i]));
  }
};

}  // namespace ttt::test
