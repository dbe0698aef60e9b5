// SPDX-License-Identifier: MIT
/// \file
/// Vector-Jacobian products, and derivatives along a direction, against central differences, in
/// double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <support/random.hpp>
#include <vector>

namespace ttt::test {

/// Several flat inputs of one function, or the gradients for them.
using Flats = std::vector<std::vector<double>>;

/// Where a gradient is furthest from the difference quotient, and how far, relative to the largest
/// gradient of that input (to one thousandth, where all are smaller).
struct GradientError {
  double worst = 0;
  std::size_t input = 0, element = 0;
  double gradient = 0, difference = 0;
};

inline std::string to_string(const GradientError& e) {
  return "input " + std::to_string(e.input) + ", element " + std::to_string(e.element) +
         ": the gradient is " + std::to_string(e.gradient) + ", the difference quotient " +
         std::to_string(e.difference);
}

/// What rounding and curvature leave of the difference at steps of 1e-5, for functions that are
/// smooth at the scale of one.
inline constexpr double gradient_tolerance = 1e-7;

namespace detail {

/// The worst element of `got` against differences, relative to their largest (to one thousandth).
inline GradientError worst_of(std::size_t input, const std::vector<double>& got,
                              const std::vector<double>& differences, GradientError error) {
  if (got.size() != differences.size()) return {INFINITY, input, 0, 0, 0};
  double most = 1e-3;
  for (double difference : differences) most = std::max(most, std::abs(difference));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double distance = std::abs(got[i] - differences[i]) / most;
    if (distance <= error.worst) continue;  // a NaN is the worst there is
    error = {distance, input, i, got[i], differences[i]};
    if (std::isnan(distance)) return error;
  }
  return error;
}

}  // namespace detail

/// Compares vjp(inputs, dy) with the central differences of <dy, f(inputs)>, for a random dy.
///
/// f takes Flats and returns the output as one flat vector; vjp takes the inputs and dy, and
/// returns one gradient an input, an empty one where none is wanted.
template <class F, class Vjp>
GradientError check_gradient(Flats inputs, const F& f, const Vjp& vjp, std::uint64_t seed = 1,
                             double step = 1e-5) {
  Random random{seed};
  const std::vector<double> y = f(inputs);
  const std::vector<double> dy = uniforms(random, static_cast<Index>(y.size()));
  const Flats gradients = vjp(inputs, dy);

  const auto value = [&] {
    const std::vector<double> out = f(inputs);
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += dy[i] * out[i];
    return sum;
  };
  GradientError error;
  for (std::size_t input = 0; input < inputs.size(); ++input) {
    const std::vector<double>& gradient = gradients.at(input);
    if (gradient.empty()) continue;
    std::vector<double> differences;
    for (double& x : inputs[input]) {
      const double old = x;
      x = old + step;
      const double above = value();
      x = old - step;
      const double below = value();
      x = old;
      differences.push_back((above - below) / (2 * step));
    }
    error = detail::worst_of(input, gradient, differences, error);
    if (!(error.worst < INFINITY)) return error;
  }
  return error;
}

/// Compares jvp(inputs, tangents) with the central difference of f along the tangents, which are
/// random; the `input` of the result counts outputs.
///
/// f takes Flats and returns Flats; jvp takes two Flats, and returns a tangent for every output of
/// f, an empty one where none is wanted.
template <class F, class Jvp>
GradientError check_tangent(const Flats& inputs, const F& f, const Jvp& jvp,
                            std::uint64_t seed = 99, double step = 1e-5) {
  Random random{seed};
  Flats tangents;
  for (const auto& input : inputs) {
    tangents.push_back(uniforms(random, static_cast<Index>(input.size())));
  }
  const auto moved = [&](double by) {
    Flats x = inputs;
    for (std::size_t i = 0; i < x.size(); ++i) {
      for (std::size_t j = 0; j < x[i].size(); ++j) x[i][j] += by * tangents[i][j];
    }
    return f(x);
  };
  const Flats got = jvp(inputs, tangents), above = moved(step), below = moved(-step);
  GradientError error;
  for (std::size_t output = 0; output < got.size(); ++output) {
    if (got[output].empty()) continue;
    std::vector<double> differences;
    for (std::size_t i = 0; i < above.at(output).size(); ++i) {
      differences.push_back((above[output][i] - below[output][i]) / (2 * step));
    }
    error = detail::worst_of(output, got[output], differences, error);
    if (!(error.worst < INFINITY)) return error;
  }
  return error;
}

}  // namespace ttt::test

/// Fails the test unless the gradient is right; the arguments are those of check_gradient.
#define CHECK_GRADIENT(...)                                          \
  do {                                                               \
    const auto ttt_error = ::ttt::test::check_gradient(__VA_ARGS__); \
    INFO(::ttt::test::to_string(ttt_error));                         \
    CHECK(ttt_error.worst <= ::ttt::test::gradient_tolerance);       \
  } while (false)

/// The same of a tangent; the arguments are those of check_tangent.
#define CHECK_TANGENT(...)                                          \
  do {                                                              \
    const auto ttt_error = ::ttt::test::check_tangent(__VA_ARGS__); \
    INFO(::ttt::test::to_string(ttt_error));                        \
    CHECK(ttt_error.worst <= ::ttt::test::gradient_tolerance);      \
  } while (false)
