// SPDX-License-Identifier: MIT
/// \file
/// What is done with a gradient of the outer loss: clip, decay, step.
#pragma once

#include <cmath>

#include <ttt/inner/concepts.hpp>
#include <ttt/layers/parameters.hpp>
#include <ttt/outer/optimizers.hpp>
#include <ttt/outer/options.hpp>
#include <ttt/outer/schedules.hpp>

namespace ttt::inline TTT_ABI {

/// Policies: which parameters shrink by weight decay. The paper decays all; others spare norms.
struct DecayAll {
  constexpr bool operator()(const ParameterName&) const { return true; }
};
struct DecayMatrices {
  constexpr bool operator()(const ParameterName& name) const { return name.role != Role::Norm; }
};

/// What an update of the parameters did.
struct OuterStep {
  double gradient_norm = 0;  // before clipping
  double rate = 0;
  bool taken = false;  // false: the norm was not finite, nothing changed
  bool clipped = false;
};

/// An update of all parameters: the gradient is clipped to a global norm, decayed weights shrink by
/// rate * decay, and the optimizer steps at the schedule's rate.
template <class Optimizer = AdamW, class ScheduleType = WarmupCosine, class Decays = DecayAll>
struct OuterLoop {
  static_assert(HasSlots<Optimizer>,
                "ttt: the optimizer lacks `static constexpr std::size_t slots`, the number of "
                "vectors it keeps between steps; see docs/concepts.md#inneroptimizer");
  static_assert(Schedule<ScheduleType>,
                "ttt: the schedule lacks rate(step); see docs/concepts.md#schedule");

  Optimizer optimizer = {};
  ScheduleType schedule = {};
  double clip = 1.0;  // of the global norm; 0: none
  Decays decays = {};

  static constexpr std::size_t slots = Optimizer::slots;

  /// u: flat gradient, slots and weights of all the model's parameters, and the steps taken before.
  /// What does not train, of which the gradient is zero, does not decay either.
  template <class Model, class B>
  OuterStep update(const Model& model, const B& backend, Update<typename B::Scalar> u,
                   Trains trains = nullptr) const {
    static_assert(HasStep<Optimizer, B>,
                  "ttt: the optimizer lacks step(backend, update); see "
                  "docs/concepts.md#inneroptimizer");
    OuterStep step;
    step.gradient_norm = std::sqrt(backend.dot(u.gradient, u.gradient, u.size));
    step.rate = schedule.rate(u.step);
    if (!std::isfinite(step.gradient_norm)) return step;
    step.taken = true;
    step.clipped = clip > 0 && step.gradient_norm > clip;
    u.scale = step.clipped ? clip / step.gradient_norm : 1.0;
    u.multiplier = step.rate;
    if constexpr (requires { optimizer.decay; }) {
      const double keep = 1 - step.rate * static_cast<double>(optimizer.decay);
      auto* at = u.weights;
      auto shapes = model.shapes();
      Model::each(
          [&](const ParameterName& name, const Shape& shape) {
            const bool changes = trains == nullptr || trains(name);
            if (changes && decays(name) && keep != 1)
              backend.axpby(keep, at, 0.0, at, shape.size());
            at += shape.size();
          },
          shapes);
    }
    optimizer.step(backend, u);
    return step;
  }
};

}  // namespace ttt::inline TTT_ABI
