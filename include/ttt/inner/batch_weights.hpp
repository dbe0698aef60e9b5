// SPDX-License-Identifier: MIT
/// \file
/// The weights that learn, of several documents read together: a copy for each, gradients, steps.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include <ttt/inner/fast_weights.hpp>
#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Shows a model's parameters as a pass over several documents sees them: the model's own, with
/// what each document has learned in the place of what learns. Documents have places; what the one
/// at place s has lies s times `learned` scalars behind what the first has: the weights of all,
/// then likewise the optimizer's slots, so that products with them can be one.
template <class WeightsType, class LearnerType>
class BatchWeights {
 public:
  using Model = typename WeightsType::Model;
  using B = typename WeightsType::BackendType;
  using Scalar = typename B::Scalar;
  using State = SessionState<B>;
  using Plan = SessionPlan<WeightsType, LearnerType>;
  using Tree = typename Model::template Parameters<StackedWeight<Scalar>>;
  using Gradients = typename Model::template Parameters<View<Scalar>>;
  using Parts = std::span<const SequencePart>;

  /// Takes memory for gradients and, where the backend narrows, for rounded copies; throws Error
  /// when there is none. Keeps references.
  BatchWeights(const WeightsType& weights, const LearnerType& learner, const Plan& plan,
               Index sequences)
      : weights_(weights),
        learner_(learner),
        plan_(plan),
        sequences_(sequences),
        gradient_(backend().template allocate<Scalar>(sequences * plan.learned)),
        narrow_(backend().template allocate<bfloat16>(narrows<B> ? sequences * plan.learned : 0)),
        tree_(weights.model().template tree<StackedWeight<Scalar>>()),
        gradients_(weights.model().template tree<View<Scalar>>()) {
    Model::each([](const ParameterName&, const Weight<Scalar>& leaf,
                   StackedWeight<Scalar>& to) { to = leaf; },
                weights.parameters(), tree_);
    each_learned([this](Index, bool, Shape shape) { sizes_.push_back(shape.size()); });
  }

  /// The parameters of a pass over rows of these parts, which must outlive it.
  const Tree& tree(Parts parts) {
    if (!owned_) return tree_;
    const Layout layout(parts);
    each_learned(
        [&](Index at, bool turned, Shape shape, StackedWeight<Scalar>& leaf) {
          const auto own = [&](const auto* all) -> Weight<Scalar> {
            return View(all + layout.place * plan_.learned + at, shape.rows, shape.cols);
          };
          Weight<Scalar> first;
          if constexpr (narrows<B>) {
            first = own(static_cast<const bfloat16*>(narrow_.data()));
          } else {
            first = own(static_cast<const Scalar*>(learned_.data()));
          }
          leaf = {turned ? first.transpose() : first, std::ssize(parts), plan_.learned,
                  layout.listed};
        },
        tree_);
    return tree_;
  }

  /// Where the gradients of such a pass belong.
  const Gradients& gradients(Parts parts) {
    const Layout layout(parts);
    each_learned(
        [&](Index at, bool, Shape shape, View<Scalar>& leaf) {
          leaf = {gradient_.data() + layout.place * plan_.learned + at, shape.rows, shape.cols};
        },
        gradients_);
    return gradients_;
  }

  /// Gives every document a copy of what will learn, unless they have one. Throws Error when memory
  /// runs out; then nothing has changed.
  void own() {
    if (owned_) return;
    learned_ = backend().template allocate<Scalar>(sequences_ * plan_.learned_size());
    for (Index place = 0; place < sequences_; ++place) begin(place);
    owned_ = true;
  }

  /// A document begins: the model's own weights and empty slots.
  void start(Index place) {
    if (owned_) begin(place);
  }

  /// One step of the learner along a document's gradient, behind `steps` others, by the weights'
  /// backend or another for the same memory; with `ahead`, what take_step has a learner told that
  /// steps ahead.
  template <class... Ahead>
  auto step(const B& machine, Index place, Index steps, Ahead... ahead) {
    const Index first = place * plan_.learned;
    return take_step(
        machine, learner_,
        Update<Scalar>{.gradient = gradient_.data() + first,
                       .step = steps,
                       .weights = vector(0, place),
                       .size = plan_.learned,
                       .parts = sizes_},
        narrow_.data() + (narrows<B> ? first : 0), [&](Index i) { return vector(i + 1, place); },
        ahead...);
  }
  /// The weights of a place, then its slots.
  Scalar* vector(Index i, Index place) {
    return learned_.data() + (i * sequences_ + place) * plan_.learned;
  }

  /// What a document has learned, from a state that has it and into one.
  void put(Index place, const State& state) {
    for (Index i = 0; i <= plan_.slots; ++i) {
      backend().copy(state.learned.data() + i * plan_.learned, vector(i, place), plan_.learned);
    }
    narrow(place);
  }
  void take(Index place, State& state) const {
    state.learned = backend().template allocate<Scalar>(plan_.learned_size());
    state.learned_size = plan_.learned_size();
    for (Index i = 0; i <= plan_.slots; ++i) {
      const Scalar* const from = learned_.data() + (i * sequences_ + place) * plan_.learned;
      backend().copy(from, state.learned.data() + i * plan_.learned, plan_.learned);
    }
  }

 private:
  /// Where parts begin, and their list if they are not equal and one behind the other.
  struct Layout {
    explicit Layout(Parts parts) : place(parts.front().place) {
      for (std::size_t s = 0; s < parts.size(); ++s) {
        if (parts[s].rows == parts[0].rows && parts[s].place == place + static_cast<Index>(s))
          continue;
        place = 0;
        listed = parts;
        return;
      }
    }
    Index place;
    Parts listed = {};
  };

  const B& backend() const { return weights_.backend(); }

  void begin(Index place) {
    each_learned(
        [&](Index at, bool turned, Shape shape, const Weight<Scalar>& leaf) {
          backend().widen(turned ? leaf.transpose() : leaf,
                          View<Scalar>(vector(0, place) + at, shape.rows, shape.cols));
        },
        weights_.parameters());
    for (Index i = 1; i <= plan_.slots; ++i) {
      backend().fill(Scalar(0), vector(i, place), plan_.learned);
    }
    narrow(place);
  }

  void narrow(Index place) {
    if constexpr (narrows<B>) {
      backend().narrow(vector(0, place), narrow_.data() + place * plan_.learned, plan_.learned);
    }
  }

  /// Calls f(place in a document's weights, whether it lies the other way round, how it lies,
  /// leaves...) for everything that learns.
  template <class F, class... Trees>
  void each_learned(const F& f, Trees&... trees) {
    Index at = 0;
    Model::each(
        [&](const ParameterName& name, const Weight<Scalar>& leaf, auto&... leaves) {
          if (!learner_.learns(name)) return;
          const Shape lies = learned_shape(name, leaf.shape());
          f(at, name.role == Role::InPlaceMlp, lies, leaves...);
          at += lies.size();
        },
        weights_.parameters(), trees...);
  }

  const WeightsType& weights_;
  const LearnerType& learner_;
  const Plan& plan_;
  Index sequences_;
  bool owned_ = false;
  typename B::template Buffer<Scalar> learned_;  // once owned
  typename B::template Buffer<Scalar> gradient_;
  typename B::template Buffer<bfloat16> narrow_;
  std::vector<Index> sizes_;  // of the parameters that learn
  Tree tree_;
  Gradients gradients_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
