// SPDX-License-Identifier: MIT
/// \file
/// What the test-time loop asks of its optimizers and learners.
#pragma once

#include <concepts>
#include <cstddef>
#include <span>

#include <ttt/backend/concepts.hpp>
#include <ttt/layers/parameters.hpp>
#include <ttt/ops/in_place.hpp>

namespace ttt::inline TTT_ABI {

/// One step, as an optimizer is given it: flat vectors of `size` scalars in the backend's memory.
template <class Scalar>
struct Update {
  const Scalar* gradient = nullptr;
  double scale = 1;       // times this: clipping
  double multiplier = 1;  // of the learning rate: warm-up
  Index step = 0;         // steps taken before this one
  Scalar* const* slots = nullptr;
  Scalar* weights = nullptr;
  bfloat16* copy = nullptr;  // of the new weights, rounded: see rounds_weights
  Index size = 0;
  std::span<const Index> parts = {};  // sizes of the parameters it is made of, where that is known
};

/// Whether an optimizer or a learner rounds the weights while it writes them, for a backend that
/// multiplies in bfloat16: then, and only then, update.copy has a place that it must fill. It says
/// so by its own name, `using RoundsWeights = Sgd`: what derives from it or calls it may write the
/// weights once more, and does not say so.
template <class T>
inline constexpr bool rounds_weights = requires {
  requires std::same_as<typename T::RoundsWeights, T>;
};

/// An optimizer keeps `slots` vectors shaped like the weights between steps, zero at first.
template <class O>
concept HasSlots = requires {
  { O::slots } -> std::convertible_to<std::size_t>;
};

/// step(backend, update) moves update.weights along -(update.scale * update.gradient). It must not
/// allocate or throw, and must give finite weights for finite gradients.
template <class O, class B>
concept HasStep = requires(const O& optimizer, const B& backend,
                           const Update<typename B::Scalar>& update) {
  optimizer.step(backend, update);
};

/// The way back through one step. What came out of it has the gradients `dweights` and `dslots`;
/// they are replaced by those of what went in.
template <class Scalar>
struct UpdateGradient {
  Update<Scalar> update;  // as it was; its slots are those from before the step, its weights absent
  Scalar* dweights = nullptr;
  Scalar* const* dslots = nullptr;
  Scalar* dgradient = nullptr;  // out: of the scaled gradient, update.scale * update.gradient
};

/// backward(backend, g) is the step's vector-Jacobian product: it fills in g.dgradient and turns
/// g.dweights and g.dslots into the gradients before the step. Only an exact meta-gradient asks for
/// it. It must not allocate or throw.
template <class O, class B>
concept HasBackward = requires(const O& optimizer, const B& backend,
                               const UpdateGradient<typename B::Scalar>& g) {
  optimizer.backward(backend, g);
};

/// A test-time optimizer: an immutable configuration. What changes while a document is read is the
/// session's: its weights, the optimizer's slots and a count of steps, so forking, saving and
/// resetting need no help from the optimizer.
template <class O, class B>
concept InnerOptimizer = HasSlots<O> && HasStep<O, B>;

/// What happened when a chunk completed.
struct Step {
  double gradient_norm = 0;  // before clipping
  bool taken = false;        // false: the norm was not finite, nothing changed
  bool clipped = false;
};

/// A learner says how long a chunk is, which of the suffix's MLPs learn (a session refuses it if it
/// asks for anything else), which targets never count, and what happens to those parameters when a
/// chunk completes.
template <class L, class B>
concept Learner = requires(const L& learner, const B& backend, const ParameterName& name,
                           Token token, Update<typename B::Scalar> update) {
  { learner.chunk } -> std::convertible_to<Index>;
  { L::slots } -> std::convertible_to<std::size_t>;
  { learner.learns(name) } -> std::same_as<bool>;
  { learner.masks(token) } -> std::same_as<bool>;
  { learner.update(backend, update) } -> std::same_as<Step>;
};

namespace detail {

/// The update of some weights, whose i-th slot is at slot_at(i) and, where the backend narrows,
/// whose rounded copy is kept beside: by the learner or behind its step.
template <class B, class L, class SlotAt>
Step take_step(const B& backend, const L& learner, Update<typename B::Scalar> update,
               bfloat16* copy, const SlotAt& slot_at) {
  constexpr bool rounds = narrows<B> && rounds_weights<L>;
  typename B::Scalar* slots[L::slots + 1] = {};
  for (std::size_t i = 0; i < L::slots; ++i) slots[i] = slot_at(static_cast<Index>(i));
  update.slots = slots;
  if (rounds) update.copy = copy;
  const Step step = learner.update(backend, update);
  if constexpr (narrows<B> && !rounds) {
    if (step.taken) backend.narrow(update.weights, copy, update.size);
  }
  return step;
}

}  // namespace detail

/// Whether what a learner chooses learns in closed form: the layers say from their forward pass in
/// which direction (InPlaceMLP), no loss is differentiated, and that direction is what the
/// learner's update is given as the gradient. Such a learner says `static constexpr bool
/// closed_form = true`, and has a `rate`, for training goes through the layers' own form of it.
template <class L>
inline constexpr bool has_closed_form = requires {
  requires L::closed_form;
};

/// How a pass over a whole sequence learns in place with this learner: not at all, unless in closed
/// form.
template <class L>
ops::InPlaceRule in_place_rule(const L& learner) {
  if constexpr (has_closed_form<L>) {
    return {.chunk = learner.chunk, .rate = static_cast<double>(learner.rate)};
  } else {
    return {};
  }
}

/// A learner whose update can be gone back through: backward(backend, step, gradient) is to update
/// what an optimizer's backward is to its step, for the step that `update` reported.
template <class L, class B>
concept LearnsBackwards = Learner<L, B> &&
    requires(const L& learner, const B& backend, const Step& step,
             UpdateGradient<typename B::Scalar> gradient) {
  learner.backward(backend, step, gradient);
};

}  // namespace ttt::inline TTT_ABI
