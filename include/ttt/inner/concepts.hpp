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
  Index size = 0;
  std::span<const Index> parts = {};  // sizes of the parameters it is made of, where that is known

  // For what moves by `add` and `add_gradient`; see moves_by_update.
  bfloat16* copy = nullptr;              // of the new weights, rounded
  const GradientScale* found = nullptr;  // the scale, and whether to step, in the backend's memory

  /// y = a * scale * gradient + b * y, for the weights or a slot.
  template <class B>
  void add_gradient(const B& backend, double a, double b, Scalar* y) const {
    write(backend, a * scale, gradient, b, y, found == nullptr ? nullptr : &found->scale);
  }
  /// y = a * x + b * y likewise.
  template <class B>
  void add(const B& backend, double a, const Scalar* x, double b, Scalar* y) const {
    write(backend, a, x, b, y, found == nullptr ? nullptr : &found->taken);
  }

 private:
  template <class B>
  void write(const B& backend, double a, const Scalar* x, double b, Scalar* y,
             const double* times) const {
    bfloat16* const rounded = y == weights ? copy : nullptr;
    if constexpr (detail::finds_scales<B>) {
      if (times != nullptr) return backend.axpby(a, x, b, y, size, rounded, times);
    }
    if constexpr (detail::narrows<B>) {
      if (rounded != nullptr) return backend.axpby(a, x, b, y, size, rounded);
    }
    backend.axpby(a, x, b, y, size);
  }
};

/// Whether an optimizer or a learner moves weights and slots by update.add and update.add_gradient
/// and no other way, the weights at least once a step, and looks at no `scale` or `step` itself. A
/// backend that multiplies in bfloat16 then has the weights rounded while they are written; and one
/// whose results are not at hand may find the scale, and whether to step at all, while the host is
/// elsewhere. It says so by its own name, `using MovesByUpdate = Sgd`: what derives from it or
/// calls it may do more, and does not.
template <class T>
inline constexpr bool moves_by_update = requires {
  requires std::same_as<typename T::MovesByUpdate, T>;
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

  static Step of(const GradientScale& found) {
    return {found.norm, found.taken == 1, found.scale < 1};
  }
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

/// Whether what a learner chooses learns in closed form: the layers say from their forward pass in
/// which direction (InPlaceMLP), no loss is differentiated, and that direction is what the
/// learner's update is given as the gradient. Such a learner says `static constexpr bool
/// closed_form = true`, and has a `rate`, for training goes through the layers' own form of it.
template <class L>
inline constexpr bool has_closed_form = requires {
  requires L::closed_form;
};

namespace detail {

/// Whether a step can be put behind a gradient without waiting for its norm:
/// learner.update(backend, update, scores, found) then does what update(backend, update) does,
/// unless a score is not finite, and leaves at `found` what there is to tell of it.
template <class L, class B>
inline constexpr bool steps_ahead = finds_scales<B>&& moves_by_update<L>&& requires(
    const L& learner, const B& backend, Update<typename B::Scalar> update,
    View<const typename B::Scalar> scores, GradientScale* found) {
  learner.update(backend, update, scores, found);
};

/// The update of some weights, whose i-th slot is at slot_at(i) and, where the backend narrows,
/// whose rounded copy is kept beside: by the learner or behind its step. With `rest`, one that
/// steps ahead.
template <class B, class L, class SlotAt, class... Rest>
auto take_step(const B& backend, const L& learner, Update<typename B::Scalar> update,
               bfloat16* copy, const SlotAt& slot_at, Rest... rest) {
  constexpr bool rounds = narrows<B> && moves_by_update<L>;
  typename B::Scalar* slots[L::slots + 1] = {};
  for (std::size_t i = 0; i < L::slots; ++i) slots[i] = slot_at(static_cast<Index>(i));
  update.slots = slots;
  if (rounds) update.copy = copy;
  if constexpr (sizeof...(Rest) > 0) {
    learner.update(backend, update, rest...);
  } else {
    const Step step = learner.update(backend, update);
    if constexpr (narrows<B> && !rounds) {
      if (step.taken) backend.narrow(update.weights, copy, update.size);
    }
    return step;
  }
}

}  // namespace detail

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
