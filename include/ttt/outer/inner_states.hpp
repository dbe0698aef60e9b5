// SPDX-License-Identifier: MIT
/// \file
/// What learns at test time, while its learning is differentiated: states, steps and gradients.
#pragma once

#include <vector>

#include <ttt/inner/concepts.hpp>
#include <ttt/model/language_model.hpp>
#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// The states of one sequence's inner loop that are kept: those at the beginning of every segment,
/// and those before and behind every chunk of the segment at work, with its inner gradients. A
/// state is the weights that learn, then the optimizer's slots.
template <class Model, class B, class LearnerType>
class InnerStates {
  using Scalar = typename B::Scalar;
  using Tree = typename Model::template Parameters<Weight<Scalar>>;
  using MovingTree = typename Model::template Parameters<DualWeight<Scalar>>;
  using Gradients = typename Model::template Parameters<View<Scalar>>;

 public:
  InnerStates(const Model& model, const B& backend, Index learned, Index slots, Index segments,
              Index segment)
      : backend_(backend),
        learned_(learned),
        size_(learned * (1 + slots)),
        segment_(segment),
        states_(backend.template allocate<Scalar>(size_ * (segments + segment + 1))),
        gradient_(backend.template allocate<Scalar>(learned * segment)),
        outer_(backend.template allocate<Scalar>(size_)),
        direction_(backend.template allocate<Scalar>(learned)),
        base_(model.template tree<Weight<Scalar>>()),
        tree_(base_),
        moving_(model.template tree<DualWeight<Scalar>>()),
        inner_(model.template tree<View<Scalar>>()),
        outer_tree_(inner_),
        targets_(inner_),
        learns_() {
    auto shapes = model.shapes();
    Model::each([this](const ParameterName&, const Shape&) { learns_.push_back(false); }, shapes);
  }

  /// Starts a sequence: the state at place 0 becomes the parameters' own values and empty slots.
  /// What learns is what `learner` chooses.
  template <class Chooser>
  void begin(const Chooser& learner, const Tree& parameters) {
    base_ = parameters;
    std::size_t n = 0;
    Model::each([&](const ParameterName& name,
                    const Weight<Scalar>&) { learns_[n++] = learner.learns(name); },
                base_);
    each_learned([&](Index at, const Weight<Scalar>& leaf) {
      backend_.widen(leaf, View<Scalar>(state(0) + at, leaf.rows, leaf.cols));
    });
    backend_.fill(Scalar(0), state(0) + learned_, size_ - learned_);
  }

  /// Keeps the state at place 0 as the beginning of a segment, and brings it back.
  void put_aside(Index segment) { backend_.copy(state(0), kept(segment), size_); }
  void take_back(Index segment) { backend_.copy(kept(segment), state(0), size_); }
  void copy(Index from, Index to) { backend_.copy(state(from), state(to), size_); }

  /// The model's parameters with the state at a place in theirs.
  const Tree& tree(Index place) {
    tree_ = base_;
    each_learned(
        [&](Index at, const Weight<Scalar>&, Weight<Scalar>& leaf) {
          leaf = View<const Scalar>(state(place) + at, leaf.rows, leaf.cols);
        },
        tree_);
    return tree_;
  }

  /// Where the inner gradient of the chunk at a place belongs.
  const Gradients& inner_gradients(Index place) {
    each_learned(
        [&](Index at, const Weight<Scalar>& leaf, View<Scalar>& d) {
          d = View<Scalar>(gradient_.data() + place * learned_ + at, leaf.rows, leaf.cols);
        },
        inner_);
    return inner_;
  }

  /// One update from the state at `from` to that at `to`, which may be the same.
  Step step(const B& backend, const LearnerType& learner, Index from, Index to, Index steps) {
    if (from != to) copy(from, to);
    std::vector<Scalar*> slots = slots_of(state(to));
    Update<Scalar> update = update_at(from, steps);
    update.slots = slots.data();
    update.weights = state(to);
    return learner.update(backend, update);
  }

  /// The gradient of the final state is zero; those of the parameters will be added to `d`.
  void begin_backward(const Gradients& d) {
    backend_.fill(Scalar(0), outer_.data(), size_);
    targets_ = d;
    outer_tree_ = d;
    each_learned(
        [&](Index at, const Weight<Scalar>& leaf, View<Scalar>& outer) {
          outer = View<Scalar>(outer_.data() + at, leaf.rows, leaf.cols);
        },
        outer_tree_);
  }

  /// Where outer gradients belong: those of what learns in the state's, which is carried backwards.
  const Gradients& outer_gradients() const { return outer_tree_; }

  /// The gradient of the state behind the update of the chunk at `place` becomes that of the state
  /// before it, and the direction that of the inner gradient.
  void step_backward(const B& backend, const LearnerType& learner, Index place, const Step& step,
                     Index steps) {
    if (!step.taken) return;
    std::vector<Scalar*> slots = slots_of(state(place)), dslots = slots_of(outer_.data());
    UpdateGradient<Scalar> g{.update = update_at(place, steps),
                             .dweights = outer_.data(),
                             .dslots = dslots.data(),
                             .dgradient = direction_.data()};
    g.update.slots = slots.data();
    learner.backward(backend, step, g);
  }

  /// The tree of a place, with the direction as the tangent of what learns if it moves.
  const MovingTree& moving_tree(Index place, bool moves) {
    Model::each(
        [](const ParameterName&, const Weight<Scalar>& leaf, DualWeight<Scalar>& to) { to = leaf; },
        base_, moving_);
    each_learned(
        [&](Index at, const Weight<Scalar>& leaf, DualWeight<Scalar>& to) {
          to = Weight<Scalar>(View<const Scalar>(state(place) + at, leaf.rows, leaf.cols));
          if (moves) to.tangent = View<const Scalar>(direction_.data() + at, leaf.rows, leaf.cols);
        },
        moving_);
    return moving_;
  }

  /// What was carried to the beginning is the gradient of the parameters that learning starts from.
  void finish_backward() {
    each_learned(
        [&](Index at, const Weight<Scalar>& leaf, const View<Scalar>& d) {
          if (d.empty()) return;
          backend_.axpby(1.0, outer_.data() + at, 1.0, d.data, leaf.shape().size());
        },
        targets_);
  }

 private:
  Scalar* state(Index place) { return states_.data() + place * size_; }
  Scalar* kept(Index segment) { return state(segment_ + 1 + segment); }

  std::vector<Scalar*> slots_of(Scalar* state) const {
    std::vector<Scalar*> slots(LearnerType::slots + 1);
    for (std::size_t i = 0; i < LearnerType::slots; ++i) {
      slots[i] = state + static_cast<Index>(i + 1) * learned_;
    }
    return slots;
  }
  Update<Scalar> update_at(Index place, Index steps) const {
    return {.gradient = gradient_.data() + place * learned_, .step = steps, .size = learned_};
  }
  /// Calls f(place in a state, the model's own leaf, leaves...) for everything that learns.
  template <class F, class... Trees>
  void each_learned(const F& f, Trees&... trees) {
    Index at = 0;
    std::size_t n = 0;
    Model::each(
        [&](const ParameterName&, const Weight<Scalar>& leaf, auto&... leaves) {
          if (!learns_[n++]) return;
          f(at, leaf, leaves...);
          at += leaf.shape().size();
        },
        base_, trees...);
  }

  const B& backend_;
  Index learned_, size_, segment_;
  typename B::template Buffer<Scalar> states_;     // of the segment at work, then those put aside
  typename B::template Buffer<Scalar> gradient_;   // inner, of every chunk of the segment
  typename B::template Buffer<Scalar> outer_;      // outer, of the state
  typename B::template Buffer<Scalar> direction_;  // outer, of the inner gradient
  Tree base_, tree_;
  MovingTree moving_;
  Gradients inner_, outer_tree_, targets_;
  std::vector<bool> learns_;  // by parameter, in the order of the enumeration
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
