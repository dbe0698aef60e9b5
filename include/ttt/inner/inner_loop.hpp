// SPDX-License-Identifier: MIT
/// \file
/// The test-time loop as a value: how to learn from each chunk of a document, or not to.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <type_traits>

#include <ttt/inner/concepts.hpp>
#include <ttt/inner/optimizers.hpp>

namespace ttt::inline TTT_ABI {

/// Which parameters learn at test time.
enum class Learns : std::uint8_t {
  DynamicMlps,  // the dynamic half of every DualMLP of the suffix
  SuffixMlps,   // the ordinary MLPs of the suffix
};

/// One gradient step on each completed chunk's next-token loss (arXiv 2512.23675, equation 2).
///
/// Chunk i is the pairs (token t, token t + 1) for t in [i * chunk, (i + 1) * chunk). It is scored
/// under the weights that earlier chunks left, and only then learned from:
///
///     g = d(mean loss of the chunk) / d(weights),   g *= min(1, clip / ||g||),   optimizer.step(g)
///
/// with the norm over everything that learns, together. A gradient that is not finite is dropped
/// and counted.
template <class Optimizer = Sgd>
struct InnerLoop {
  static_assert(HasSlots<Optimizer>,
                "ttt: the optimizer lacks `static constexpr std::size_t slots`, the number of "
                "vectors it keeps between steps; see docs/concepts.md#inneroptimizer");

  Index chunk = 1024;
  float clip = 1.0f;  // 0: none
  Optimizer optimizer = {};
  float rate_multiplier = 1.0f;  // of the optimizer's learning rate
  Learns what = Learns::DynamicMlps;
  std::optional<Token> masked_target = {};  // a token that is never learned from: BOS, say

  static constexpr std::size_t slots = Optimizer::slots;
  using MovesByUpdate = std::conditional_t<moves_by_update<Optimizer>, InnerLoop, void>;

  bool learns(const ParameterName& name) const {
    const Role role = what == Learns::DynamicMlps ? Role::DynamicMlp : Role::Mlp;
    return name.suffix_block >= 0 && name.role == role;
  }
  bool masks(Token target) const { return masked_target == target; }

  /// Clips and steps. Reads the gradient twice and the weights once.
  template <class B>
  Step update(const B& backend, Update<typename B::Scalar> u) const {
    static_assert(HasStep<Optimizer, B>,
                  "ttt: the optimizer lacks step(backend, update); see "
                  "docs/concepts.md#inneroptimizer");
    Step step;
    step.gradient_norm = std::sqrt(backend.dot(u.gradient, u.gradient, u.size));
    if (!std::isfinite(step.gradient_norm)) return step;
    step.taken = true;
    step.clipped = clip > 0 && step.gradient_norm > static_cast<double>(clip);
    u.scale = step.clipped ? static_cast<double>(clip) / step.gradient_norm : 1.0;
    u.multiplier = rate_multiplier;
    optimizer.step(backend, u);
    return step;
  }

  /// The same without waiting for the norm, for an optimizer that moves by its update. Nothing
  /// moves if a score, (1, tokens), is not finite either. `found`, in the backend's memory, has the
  /// rest.
  template <class B>
  void update(const B& backend, Update<typename B::Scalar> u, View<const typename B::Scalar> scores,
              GradientScale* found) const {
    backend.gradient_scale(u.gradient, u.size, static_cast<double>(clip), scores, found);
    u.found = found;
    u.multiplier = rate_multiplier;
    optimizer.step(backend, u);
  }

  /// The way back through an update that took `step`: through the optimizer, then through the
  /// clipping (with n = ||g|| > clip: dg = clip/n * (v - g <g, v> / n²), else dg = v).
  template <class B>
  void backward(const B& backend, const Step& step, UpdateGradient<typename B::Scalar> g) const {
    static_assert(HasBackward<Optimizer, B>,
                  "ttt: the optimizer lacks backward(backend, gradient), its vector-Jacobian "
                  "product, which an exact meta-gradient needs; see "
                  "docs/concepts.md#inneroptimizer, or train with FirstOrder");
    const double norm = step.gradient_norm;
    g.update.scale = step.clipped ? static_cast<double>(clip) / norm : 1.0;
    g.update.multiplier = rate_multiplier;
    optimizer.backward(backend, g);
    if (!step.clipped) return;
    const auto& u = g.update;
    const double along = backend.dot(u.gradient, g.dgradient, u.size) / (norm * norm);
    backend.axpby(-along * u.scale, u.gradient, u.scale, g.dgradient, u.size);
  }
};

/// Learns nothing: the model is a plain transformer, read `chunk` tokens at a time.
struct NoLearning {
  Index chunk = 256;

  static constexpr std::size_t slots = 0;

  static constexpr bool learns(const ParameterName&) { return false; }
  static constexpr bool masks(Token) { return false; }
  template <class B>
  Step update(const B&, const Update<typename B::Scalar>&) const {
    return {};
  }
  template <class B>
  void backward(const B&, const Step&, const UpdateGradient<typename B::Scalar>&) const {}
};

}  // namespace ttt::inline TTT_ABI
