// SPDX-License-Identifier: MIT
/// \file
/// The weights that learn: a session's own copy of them, their gradient, and the step.
#pragma once

#include <utility>
#include <vector>

#include <ttt/inner/plan.hpp>
#include <ttt/inner/state.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// A step's entry in the counters.
inline void count(const Step& step, Counters& counters) {
  counters.gradient_norm = step.gradient_norm;
  counters.inner_steps += step.taken ? 1 : 0;
  counters.skipped_steps += step.taken ? 0 : 1;
  counters.clipped_steps += step.clipped ? 1 : 0;
}

/// Shows a model's parameters as one session sees them: the model's own, with what the session's
/// state has learned in their place. Flat memory behind, trees of views in front.
template <class WeightsType, class LearnerType>
class FastWeights {
 public:
  using Model = typename WeightsType::Model;
  using B = typename WeightsType::BackendType;
  using Scalar = typename B::Scalar;
  using State = SessionState<B>;
  using Plan = SessionPlan<WeightsType, LearnerType>;
  using Tree = typename ChunkPass<Model, B>::Tree;
  using Gradients = typename ChunkPass<Model, B>::Gradients;

  /// Takes memory for the gradient and, where the backend narrows, for the rounded copy; throws
  /// Error when there is none.
  FastWeights(const WeightsType& weights, const LearnerType& learner, const Plan& plan)
      : gradient_(weights.backend().template allocate<Scalar>(plan.learned)),
        narrow_(weights.backend().template allocate<bfloat16>(narrows<B> ? plan.learned : 0)),
        size_(plan.learned),
        gradients_(weights.model().template tree<View<Scalar>>()),
        tree_(weights.parameters()) {
    auto shapes = weights.model().shapes();
    Index at = 0;
    Model::each(
        [&](const ParameterName& name, const Shape& shape, View<Scalar>& leaf) {
          if (!learner.learns(name)) return;
          const Shape lies = learned_shape(name, shape);
          leaf = View<Scalar>(gradient_.data() + at, lies.rows, lies.cols);
          at += shape.size();
          parts_.push_back(shape.size());
        },
        shapes, gradients_);
  }

  const Tree& tree() const { return tree_; }
  const Gradients& gradients() const { return gradients_; }

  /// Points the tree at what `state` has learned.
  void show(const WeightsType& weights, const LearnerType& learner, const State& state) {
    tree_ = weights.parameters();
    if (state.learned_size == 0) return;
    narrow(weights.backend(), state);
    Index at = 0;
    Model::each(
        [&](const ParameterName& name, Weight<Scalar>& leaf) {
          if (!learner.learns(name)) return;
          const Shape lies = learned_shape(name, leaf.shape());
          const bool turned = name.role == Role::InPlaceMlp;
          if constexpr (narrows<B>) {
            leaf = View<const bfloat16>(narrow_.data() + at, lies.rows, lies.cols);
          } else {
            leaf = View<const Scalar>(state.learned.data() + at, lies.rows, lies.cols);
          }
          if (turned) leaf = leaf.transpose();
          at += lies.size();
        },
        tree_);
  }

  /// Gives the state its own copy of what will learn, unless it has one. Throws Error when memory
  /// runs out; then nothing has changed.
  void own(const WeightsType& weights, const LearnerType& learner, const Plan& plan, State& state) {
    if (state.learned_size > 0) return;
    const B& backend = weights.backend();
    auto learned = backend.template allocate<Scalar>(plan.learned_size());
    Index at = 0;
    Model::each(
        [&](const ParameterName& name, const Weight<Scalar>& leaf) {
          if (!learner.learns(name)) return;
          const Shape lies = learned_shape(name, leaf.shape());
          backend.widen(name.role == Role::InPlaceMlp ? leaf.transpose() : leaf,
                        View<Scalar>(learned.data() + at, lies.rows, lies.cols));
          at += lies.size();
        },
        tree_);
    backend.fill(Scalar(0), learned.data() + at, plan.learned_size() - at);
    state.learned = std::move(learned);
    state.learned_size = plan.learned_size();
    show(weights, learner, state);
  }
  /// Takes it back.
  void disown(const WeightsType& weights, const LearnerType& learner, State& state) {
    state.learned = {};
    state.learned_size = 0;
    show(weights, learner, state);
  }

  /// One step of the learner along the gradient, by the weights' backend or another for the same
  /// memory; with `ahead`, what take_step has a learner told that steps ahead.
  template <class... Ahead>
  auto step(const B& backend, const LearnerType& learner, const Plan& plan, State& state,
            Ahead... ahead) {
    return take_step(
        backend, learner,
        Update<Scalar>{.gradient = gradient_.data(),
                       .step = state.counters.inner_steps,
                       .weights = state.learned.data(),
                       .size = plan.learned,
                       .parts = parts_},
        narrow_.data(), [&](Index i) { return state.learned.data() + (i + 1) * plan.learned; },
        ahead...);
  }

 private:
  void narrow(const B& backend, const State& state) {
    if constexpr (narrows<B>) backend.narrow(state.learned.data(), narrow_.data(), size_);
  }

  typename B::template Buffer<Scalar> gradient_;
  typename B::template Buffer<bfloat16> narrow_;
  Index size_;
  Gradients gradients_;
  std::vector<Index> parts_;
  Tree tree_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
