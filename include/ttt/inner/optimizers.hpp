// SPDX-License-Identifier: MIT
/// \file
/// Optimizers for test-time learning.
#pragma once

#include <ttt/inner/concepts.hpp>

namespace ttt::inline TTT_ABI {

/// Plain gradient descent, weights -= rate * gradient: the paper's, with rate 1.
///
/// Use it as the template for your own optimizer.
struct Sgd {
  float rate = 1.0f;

  static constexpr std::size_t slots = 0;
  using MovesByUpdate = Sgd;

  template <Backend B>
  void step(const B& backend, const Update<typename B::Scalar>& u) const {
    u.add_gradient(backend, -static_cast<double>(rate) * u.multiplier, 1.0, u.weights);
  }

  /// dgradient = -rate * dweights.
  template <Backend B>
  void backward(const B& backend, const UpdateGradient<typename B::Scalar>& g) const {
    backend.axpby(-static_cast<double>(rate) * g.update.multiplier, g.dweights, 0.0, g.dgradient,
                  g.update.size);
  }
};

/// Heavy-ball momentum (Polyak 1964): velocity = decay * velocity + gradient,
/// weights -= rate * velocity. With decay 0 it is Sgd.
struct Momentum {
  float rate = 1.0f;
  float decay = 0.5f;

  static constexpr std::size_t slots = 1;
  using MovesByUpdate = Momentum;

  template <Backend B>
  void step(const B& backend, const Update<typename B::Scalar>& u) const {
    u.add_gradient(backend, 1.0, static_cast<double>(decay), u.slots[0]);
    u.add(backend, -static_cast<double>(rate) * u.multiplier, u.slots[0], 1.0, u.weights);
  }

  /// dgradient = dvelocity - rate * dweights, and decay times that is the old velocity's.
  template <Backend B>
  void backward(const B& backend, const UpdateGradient<typename B::Scalar>& g) const {
    const Index size = g.update.size;
    backend.axpby(-static_cast<double>(rate) * g.update.multiplier, g.dweights, 0.0, g.dgradient,
                  size);
    backend.axpby(1.0, g.dslots[0], 1.0, g.dgradient, size);
    backend.axpby(static_cast<double>(decay), g.dgradient, 0.0, g.dslots[0], size);
  }
};

}  // namespace ttt::inline TTT_ABI
