// SPDX-License-Identifier: MIT
/// \file
/// In-Place TTT's test-time loop as a value: how the down projections of InPlaceMLPs learn.
#pragma once

#include <cmath>
#include <span>

#include <ttt/inner/concepts.hpp>

namespace ttt::inline TTT_ABI {

/// After each completed chunk every down projection of an InPlaceMLP moves along its closed form
/// (arXiv 2604.06169), without a loss and without a backward pass:
///
///     w_down += rate * vᵀ h
///
/// The paper finds chunks of 512 to 1024 tokens best; the configuration its authors released has
/// 4096, and rate 3. The paper clips what is added to each layer to a norm of 1e-5 while reading,
/// the released code does not: nor does this, unless asked to.
///
/// An update that is not finite is dropped, in all layers, and counted.
struct InPlaceLoop {
  Index chunk = 1024;
  float rate = 3.0f;
  float clip = 0.0f;  // of the Frobenius norm of rate * vᵀ h, layer by layer; 0: none

  static constexpr std::size_t slots = 0;
  static constexpr bool closed_form = true;

  bool learns(const ParameterName& name) const { return name.role == Role::InPlaceMlp; }
  static constexpr bool masks(Token) { return false; }

  /// u.gradient is vᵀ h of all layers. Reads it twice, with clipping three times, and the weights
  /// once. Step::gradient_norm is its norm, without the rate.
  template <class B>
  Step update(const B& backend, const Update<typename B::Scalar>& u) const {
    Step step;
    step.gradient_norm = std::sqrt(backend.dot(u.gradient, u.gradient, u.size));
    if (!std::isfinite(step.gradient_norm)) return step;
    step.taken = true;
    if (!(clip > 0)) {
      backend.axpby(static_cast<double>(rate), u.gradient, 1.0, u.weights, u.size);
      return step;
    }
    Index at = 0;
    for (const Index size : u.parts.empty() ? std::span(&u.size, 1) : u.parts) {
      const auto* const direction = u.gradient + at;
      const double norm =
          std::abs(static_cast<double>(rate)) * std::sqrt(backend.dot(direction, direction, size));
      const bool clips = norm > static_cast<double>(clip);
      const double scale = clips ? static_cast<double>(clip) / norm : 1.0;
      backend.axpby(static_cast<double>(rate) * scale, direction, 1.0, u.weights + at, size);
      step.clipped = step.clipped || clips;
      at += size;
    }
    return step;
  }
};

}  // namespace ttt::inline TTT_ABI
