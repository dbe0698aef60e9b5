// SPDX-License-Identifier: MIT
/// \file
/// What learns at test time, while its learning is differentiated: states, steps and gradients.
#pragma once

#include <vector>

#include <ttt/inner/concepts.hpp>
#include <ttt/model/cache_shape.hpp>
#include <ttt/model/language_model.hpp>
#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// The states of some sequences' inner loops that are kept: those at the beginning of segments and,
/// of the segment at work, those at every place, one a chunk, with inner gradients. A state is the
/// weights that learn, sequence by sequence, then likewise the optimizer's slots; so everything
/// that a sequence has of its own lies `learned` scalars behind the one before. Where the backend
/// narrows, products read rounded copies, of weights and of the directions they move in, and of the
/// segment's weights nothing else is kept: only those at work are there in scalars.
///
/// All of it lies in a workspace but two of those copies, the first place's and the directions', in
/// the order it is made: what a segment at work takes there lies above the beginnings of it and of
/// those before it, and is given back with it.
template <class Model, class B, class LearnerType>
class InnerStates {
  using Scalar = typename B::Scalar;
  using Tree = typename Model::template Parameters<Weight<Scalar>>;
  using StackedTree = typename Model::template Parameters<StackedWeight<Scalar>>;
  using MovingTree = typename Model::template Parameters<DualWeight<Scalar>>;
  using Gradients = typename Model::template Parameters<View<Scalar>>;

 public:
  /// For at most `most` sequences. Keeps references to the backend and the workspace.
  InnerStates(const Model& model, const B& backend, Workspace<B>& workspace, Index most,
              Index learned, Index slots)
      : backend_(backend),
        workspace_(workspace),
        learned_(learned),
        all_(most * learned),
        size_(all_ * (1 + slots)),
        narrow_(backend.template allocate<bfloat16>(narrows<B> ? 2 * all_ : 0)),
        base_(model.template tree<Weight<Scalar>>()),
        tree_(model.template tree<StackedWeight<Scalar>>()),
        moving_(model.template tree<DualWeight<Scalar>>()),
        inner_(model.template tree<View<Scalar>>()),
        outer_tree_(inner_),
        targets_(inner_),
        learns_() {
    auto shapes = model.shapes();
    Model::each([this](const ParameterName&, const Shape&) { learns_.push_back(false); }, shapes);
  }

  /// Starts so many sequences and the first segment: their states at place 0 become the parameters'
  /// own values and empty slots. What learns is what `learner` chooses.
  template <class Chooser>
  void begin(const Chooser& learner, const Tree& parameters, Index sequences) {
    base_ = parameters;
    sequences_ = sequences;
    std::size_t n = 0;
    Model::each(
        [&](const ParameterName& name, const Weight<Scalar>& leaf, StackedWeight<Scalar>& value,
            DualWeight<Scalar>& moving) {
          learns_[n++] = learner.learns(name);
          value = leaf;
          moving = value;
        },
        base_, tree_, moving_);
    outer_ = take(size_);
    begins_.clear();
    begin_segment();
    start();
  }

  /// Keeps the state at place 0, which is at work, as the beginning of its segment. What steps make
  /// of it from now on, at place 0 too, is the beginning of the next. The first segment's need not
  /// be kept: it can be made again.
  void put_aside() {
    const Scalar* const from = begins_.back().state;
    begin_segment();
    backend_.copy(from, weights(0), size_);
  }
  /// Gives back the segment that began last and all that was taken since. The one before is at work
  /// then; the first one, when no other is kept.
  void take_back() {
    if (begins_.size() == 1) return start();
    begins_.pop_back();
    clear_segment();
    work();
  }
  /// Gives back all that was taken since the segment at work began.
  void clear_segment() {
    workspace_.release(begins_.back().end);
    Scalar* const state = begins_.back().state;
    places_ = {{state, state + all_, narrow_.data()}};
    gradients_.clear();
  }
  /// The next place's inner gradient; its state is there.
  void add_gradient() { gradients_.push_back(take(all_)); }
  /// The next place's state, so far the last one's.
  void add_state() {
    const Place& last = places_.back();
    Place next = last;
    if constexpr (narrows<B>) {
      next.copy = workspace_.template vector<bfloat16>(all_);  // step and stay write it
      next.slots = take(size_ - all_);
      backend_.copy(last.slots, next.slots, size_ - all_);
    } else {
      next.weights = take(size_);
      next.slots = next.weights + all_;
      backend_.copy(last.weights, next.weights, size_);
    }
    places_.push_back(next);
  }
  /// Scalars of the workspace that add_state takes.
  static Index place_size(Index all, Index size) {
    const auto room = [](Index scalars) { return Workspace<B>::room(scalars); };
    return narrows<B> ? room(scalars_of<Scalar, bfloat16>(all)) + room(size - all) : room(size);
  }

  /// The model's parameters with the states at a place in theirs: those at work, which are what
  /// steps led to since begin or take_back.
  const StackedTree& tree(Index place) {
    each_learned(
        [&](Index at, const Weight<Scalar>& leaf, StackedWeight<Scalar>& value) {
          value = stacked(weights(place), copy(place), at, leaf);
        },
        tree_);
    return tree_;
  }

  /// Where the inner gradients of the chunk at a place belong: the first sequence's.
  const Gradients& inner_gradients(Index place) {
    each_learned(
        [&](Index at, const Weight<Scalar>& leaf, View<Scalar>& d) {
          d = View<Scalar>(gradient(place) + at, leaf.rows, leaf.cols);
        },
        inner_);
    return inner_;
  }

  /// One update of sequence s in the state at `to`, which is then at work, by the inner gradient of
  /// the chunk at `from`; with `ahead`, what take_step has a learner told that steps ahead.
  template <class... Ahead>
  auto step(const LearnerType& learner, Index s, Index from, Index to, Index steps,
            Ahead... ahead) {
    Update<Scalar> update = update_at(from, s, steps);
    update.weights = weights(to) + s * learned_;
    bfloat16* const rounded = narrows<B> ? copy(to) + s * learned_ : nullptr;
    const auto slot_at = [&](Index i) { return slots_at(to) + i * all_ + s * learned_; };
    if constexpr (sizeof...(Ahead) > 0) {
      take_step(backend_, learner, update, rounded, slot_at, ahead...);
    } else {
      const Step step = take_step(backend_, learner, update, rounded, slot_at);
      if (!step.taken) stay(s, to);
      return step;
    }
  }
  /// Sequence s has at place `to` what it had at the one before.
  void stay(Index s, Index to) {
    if constexpr (narrows<B>) {
      if (to > 0) backend_.copy(copy(to - 1) + s * learned_, copy(to) + s * learned_, learned_);
    }
  }

  /// The gradient of the final states is zero; those of the parameters will be added to `d`.
  void begin_backward(const Gradients& d) {
    backend_.fill(Scalar(0), outer_, size_);
    targets_ = d;
    outer_tree_ = d;
    each_learned(
        [&](Index at, const Weight<Scalar>& leaf, View<Scalar>& outer) {
          outer = View<Scalar>(outer_ + at, leaf.rows, leaf.cols);
        },
        outer_tree_);
  }

  /// Where outer gradients belong: those of what learns in the states', which are carried
  /// backwards.
  const Gradients& outer_gradients() const { return outer_tree_; }

  /// Makes room for the gradient of an inner gradient, the direction of step_backward.
  void add_direction() { direction_ = take(all_); }

  /// The gradient of sequence s's state behind the update of the chunk at `place` becomes that of
  /// the state before it, and its direction that of the inner gradient: zero if no step was taken.
  void step_backward(const B& backend, const LearnerType& learner, Index s, Index place,
                     const Step& step, Index steps) {
    Scalar* const direction = direction_ + s * learned_;
    if (!step.taken) return backend.fill(Scalar(0), direction, learned_);
    std::vector<Scalar*> slots = slots_of(slots_at(place), s), dslots = slots_of(outer_ + all_, s);
    UpdateGradient<Scalar> g{.update = update_at(place, s, steps),
                             .dweights = outer_ + s * learned_,
                             .dslots = dslots.data(),
                             .dgradient = direction};
    g.update.slots = slots.data();
    learner.backward(backend, step, g);
  }

  /// The tree of a place, with the directions as the tangents of what learns if anything moves:
  /// they themselves, or where the backend narrows their copies.
  const MovingTree& moving_tree(Index place, bool moves) {
    bfloat16* const directions = narrow_.data() + (narrows<B> ? all_ : 0);
    if (moves) narrow(direction_, directions, sequences_ * learned_);
    each_learned(
        [&](Index at, const Weight<Scalar>& leaf, DualWeight<Scalar>& to) {
          to = stacked(weights(place), copy(place), at, leaf);
          if (moves) to.tangent = stacked(direction_, directions, at, leaf);
        },
        moving_);
    return moving_;
  }

  /// What was carried to the beginning is the gradient of the parameters that learning starts from.
  void finish_backward() {
    each_learned(
        [&](Index at, const Weight<Scalar>& leaf, const View<Scalar>& d) {
          if (d.empty()) return;
          for (Index s = 0; s < sequences_; ++s) {
            const Scalar* const own = outer_ + s * learned_ + at;
            backend_.axpby(1.0, own, 1.0, d.data, leaf.shape().size());
          }
        },
        targets_);
  }

 private:
  /// A segment's first state, and where the workspace ends behind it.
  struct Begin {
    Scalar* state;
    Index end;
  };

  /// What a place keeps. Where the backend narrows, the weights are everybody's, and the first
  /// place's copy is that of the weights at a segment's beginning.
  struct Place {
    Scalar *weights, *slots;
    bfloat16* copy;
  };

  Scalar* take(Index size) { return workspace_.matrix(1, size).data; }
  /// The parameters' own values and empty slots.
  void start() {
    clear_segment();
    each_learned([&](Index at, const Weight<Scalar>& leaf) {
      for (Index s = 0; s < sequences_; ++s) {
        backend_.widen(leaf, View<Scalar>(weights(0) + s * learned_ + at, leaf.rows, leaf.cols));
      }
    });
    backend_.fill(Scalar(0), slots_at(0), size_ - all_);
    work();
  }
  void begin_segment() {
    Scalar* const state = take(size_);
    begins_.push_back({state, workspace_.used()});
    clear_segment();
  }

  const Place& at(Index place) const { return places_[static_cast<std::size_t>(place)]; }
  Scalar* weights(Index place) const { return at(place).weights; }
  Scalar* slots_at(Index place) const { return at(place).slots; }
  bfloat16* copy(Index place) const { return at(place).copy; }
  Scalar* gradient(Index place) const { return gradients_[static_cast<std::size_t>(place)]; }

  void work() { narrow(weights(0), copy(0), sequences_ * learned_); }
  void narrow(const Scalar* from, bfloat16* to, Index size) const {
    if constexpr (narrows<B>) backend_.narrow(from, to, size);
  }
  /// A leaf of everybody's weights, or of their copy, as products read it.
  StackedWeight<Scalar> stacked(const Scalar* all, const bfloat16* copy, Index at,
                                const Weight<Scalar>& leaf) const {
    if constexpr (narrows<B>) {
      return {View<const bfloat16>(copy + at, leaf.rows, leaf.cols), sequences_, learned_};
    } else {
      return {View<const Scalar>(all + at, leaf.rows, leaf.cols), sequences_, learned_};
    }
  }
  std::vector<Scalar*> slots_of(Scalar* all, Index s) const {
    std::vector<Scalar*> slots(LearnerType::slots + 1);
    for (std::size_t i = 0; i < LearnerType::slots; ++i) {
      slots[i] = all + static_cast<Index>(i) * all_ + s * learned_;
    }
    return slots;
  }
  Update<Scalar> update_at(Index place, Index s, Index steps) const {
    return {.gradient = gradient(place) + s * learned_, .step = steps, .size = learned_};
  }
  /// Calls f(place in a sequence's weights, the model's own leaf, leaves...) for everything that
  /// learns.
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
  Workspace<B>& workspace_;
  Index learned_, all_, size_;      // scalars of one sequence's weights, of all's, of a state
  Index sequences_ = 1;             // at work
  std::vector<Begin> begins_;       // of segments, the one at work last
  std::vector<Place> places_;       // of the segment at work
  std::vector<Scalar*> gradients_;  // inner, likewise
  Scalar* outer_ = nullptr;         // gradient of the states
  Scalar* direction_ = nullptr;     // of the inner gradients
  typename B::template Buffer<bfloat16> narrow_;  // copies of the first place, of directions
  Tree base_;
  StackedTree tree_;
  MovingTree moving_;
  Gradients inner_, outer_tree_, targets_;
  std::vector<bool> learns_;  // by parameter, in the order of the enumeration
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
