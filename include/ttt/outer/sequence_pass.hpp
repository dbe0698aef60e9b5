// SPDX-License-Identifier: MIT
/// \file
/// The loss of sequences and its exact gradient, through every step their inner loops take.
#pragma once

#include <algorithm>
#include <cmath>
#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ttt/outer/inner_states.hpp>
#include <ttt/outer/sequence_plan.hpp>

namespace ttt::inline TTT_ABI {

/// What a sequence's inner loop did.
struct SequenceLoss {
  double loss = 0;                 // mean of the chunks'
  std::vector<double> chunk_loss;  // mean over a chunk's counted targets; 0 without any
  Index inner_steps = 0;
  Index skipped_steps = 0;  // the gradient was not finite
  Index clipped_steps = 0;
};

namespace detail {

/// Computes on one sequence of fixed length at a time, or on a few, in memory taken once.
///
/// Forwards: the lower half over everything, sequence by sequence; then chunk by chunk the upper
/// half, where rows of all sequences are stacked, its inner gradients and the learner's updates.
/// Backwards, last chunk first: the gradient of the weights behind the chunk's update goes through
/// the update, which gives a direction; the derivative of the chunk's whole gradient in that
/// direction is the second-order part of everybody's outer gradient (docs/outer_loop.md). At last
/// the lower half's ordinary backward pass.
template <class Model, class B, class LearnerType, class Order>
class SequencePass {
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  using Record = UpperRecord<Model, Scalar>;
  using States = InnerStates<Model, B, LearnerType>;
  using Input = UpperInput<Scalar>;
  using Tree = typename Model::template Parameters<Weight<Scalar>>;
  using Gradients = typename Model::template Parameters<View<Scalar>>;

 public:
  using Plan = SequencePlan<Model, B, LearnerType, Order>;

  /// Throws Error when memory runs out. Keeps references to the model and the backend.
  SequencePass(const Model& model, const B& backend, const Plan& plan, const MetaOptions& options)
      : model_(model),
        backend_(backend),
        plan_(plan),
        cache_(backend.template allocate<CacheScalar>(plan.sequences * plan.caches.size())),
        cache_gradient_(backend.template allocate<Scalar>(plan.sequences * plan.caches.size())),
        tokens_(backend.template allocate<Token>(plan.sequences * (plan.length + 1))),
        targets_(backend.template allocate<Token>(plan.sequences * plan.length)),
        loss_weights_(backend.template allocate<Scalar>(plan.sequences * plan.length)),
        nll_(backend.template allocate<Scalar>(plan.sequences * plan.length)),
        scratch_(backend, plan.scratch),
        states_(model, backend, plan.sequences, plan.learned, plan.slots, plan.segments(),
                plan.segment),
        host_targets_(static_cast<std::size_t>(plan.sequences * plan.length)),
        host_nll_(host_targets_.size()),
        host_weights_(host_targets_.size()) {
    for (Index s = 0; s < plan.sequences; ++s) {
      lower_.emplace_back(model, backend, plan.length, options.recompute, plan.rule);
    }
    for (Index i = 0; i < plan.segment; ++i) {
      kept_.push_back({Workspace<B>(backend, plan.record), Record(model), {}, {}});
    }
  }

  /// For each of results.size() sequences, which are at most as many as planned, the loss of its
  /// tokens[1..length]; and, where `d` has places, `share` times the gradient of them all, which is
  /// added. `counts` is 0 at targets that are left out; empty: all count. Throws NonFiniteError
  /// when a score is not finite; `d` may hold anything then.
  void run(const LearnerType& learner, const Tree& p, std::span<const Token> tokens,
           std::span<const std::uint8_t> counts, double share, const Gradients& d,
           std::span<SequenceLoss> results) {
    results_ = results;
    for (SequenceLoss& result : results_) {
      result = {};
      result.chunk_loss.resize(static_cast<std::size_t>(plan_.chunks));
    }
    steps_before_.assign(static_cast<std::size_t>(plan_.chunks * sequences()), 0);
    weigh(learner, tokens, counts);
    backend_.to_device(tokens.data(), tokens_.data(), sequences() * (plan_.length + 1));
    h_.clear();
    for (Index s = 0; s < sequences(); ++s) {
      h_.push_back(lower(s).forward(p, tokens_of(s), in_place_rule(learner)));
    }
    if constexpr (has_closed_form<LearnerType>) {
      states_.begin(NoLearning{}, p, sequences());
    } else {
      states_.begin(learner, p, sequences());
    }
    const Index segments = plan_.segments();
    for (Index i = 0; i < segments; ++i) {
      states_.put_aside(i);
      forward_segment(learner, i, i == segments - 1, true);
    }
    for (SequenceLoss& result : results_) {
      for (const double loss : result.chunk_loss) result.loss += loss;
      result.loss /= static_cast<double>(plan_.chunks);
    }

    backend_.fill(Scalar(0), cache_gradient_.data(), sequences() * plan_.caches.size());
    states_.begin_backward(d);
    for (Index i = segments - 1; i >= 0; --i) {
      if (i < segments - 1) {
        states_.take_back(i);
        forward_segment(learner, i, true, false);
      }
      for (Index chunk = end_of(i) - 1; chunk >= i * plan_.segment; --chunk) {
        backward_chunk(learner, chunk, share / static_cast<double>(plan_.chunks));
      }
    }
    states_.finish_backward();
    for (Index s = 0; s < sequences(); ++s) lower(s).backward(p, tokens_of(s), d);
  }

 private:
  struct Kept {
    Workspace<B> workspace;
    Record record;
    Input in;
    std::vector<Step> steps;  // of every sequence
  };

  auto caches() {
    return [this](Index i) {
      return plan_.key_values(model_, cache_.data(), cache_gradient_.data(), i, sequences());
    };
  }

  Index sequences() const { return static_cast<Index>(results_.size()); }
  LowerPass<Model, B>& lower(Index s) { return lower_[static_cast<std::size_t>(s)]; }
  const Token* tokens_of(Index s) { return tokens_.data() + s * (plan_.length + 1); }
  /// Where targets, weights and scores of a chunk begin: they lie chunk by chunk, and within one
  /// sequence by sequence, as the upper half's rows do.
  Index first_of(Index chunk, Index s = 0) const { return (chunk * sequences() + s) * plan_.chunk; }
  Index end_of(Index segment) const {
    return std::min(plan_.chunks, (segment + 1) * plan_.segment);
  }

  Input input(Index chunk, Workspace<B>& workspace) {
    const Index first = chunk * plan_.chunk;
    return {stack_rows(backend_, workspace, h_, first, plan_.chunk), first,
            targets_.data() + first_of(chunk), loss_weights_.data() + first_of(chunk), sequences()};
  }

  /// Targets, and every counted one's weight in its chunk's loss.
  void weigh(const LearnerType& learner, std::span<const Token> tokens,
             std::span<const std::uint8_t> counts) {
    for (Index chunk = 0; chunk < plan_.chunks; ++chunk) {
      for (Index s = 0; s < sequences(); ++s) {
        const auto first = static_cast<std::size_t>(first_of(chunk, s));
        const auto rows = static_cast<std::size_t>(plan_.chunk);
        const auto from = static_cast<std::size_t>(s * plan_.length + chunk * plan_.chunk);
        const auto inputs = tokens.subspan(from + static_cast<std::size_t>(s), rows + 1);
        Index counted = 0;
        for (std::size_t t = 0; t < rows; ++t) {
          const Token target = inputs[t + 1];
          const bool counts_here =
              (counts.empty() || counts[from + t] != 0) && !learner.masks(target);
          host_targets_[first + t] = target;
          host_weights_[first + t] = counts_here ? Scalar(1) : Scalar(0);
          counted += counts_here ? 1 : 0;
        }
        for (std::size_t t = 0; t < rows; ++t) {
          host_weights_[first + t] /= static_cast<Scalar>(std::max<Index>(1, counted));
        }
      }
    }
    const Index size = sequences() * plan_.length;
    backend_.to_device(host_targets_.data(), targets_.data(), size);
    backend_.to_device(host_weights_.data(), loss_weights_.data(), size);
  }

  /// Runs the chunks of a segment from the state at its beginning; with `record`, so that they can
  /// be run backwards.
  void forward_segment(const LearnerType& learner, Index segment, bool record, bool first_time) {
    for (Index i = segment * plan_.segment; i < end_of(segment); ++i) {
      const Index place = record ? i - segment * plan_.segment : 0;
      Kept& kept = kept_[static_cast<std::size_t>(place)];
      const bool steps = plan_.learned > 0 && i + 1 < plan_.chunks;
      const Recorded recorded = !record                 ? Recorded::Nothing
                                : Order::exact && steps ? Recorded::All
                                                        : Recorded::Forward;
      Workspace<B>& workspace = record ? kept.workspace : scratch_;
      workspace.release(0);
      const Context<B> c{backend_, workspace};
      kept.in = input(i, workspace);
      upper_values(c, model_, states_.tree(place), kept.in, caches(),
                   steps ? &states_.inner_gradients(place) : nullptr, recorded,
                   nll_.data() + first_of(i), kept.record);
      score(i);
      kept.steps.assign(results_.size(), {});
      if (!steps) continue;
      if (record) states_.copy(place, place + 1);
      for (Index s = 0; s < sequences(); ++s) {
        if (!counted(i, s)) continue;
        Step& step = kept.steps[static_cast<std::size_t>(s)];
        SequenceLoss& result = results_[static_cast<std::size_t>(s)];
        if (first_time) steps_before(i, s) = result.inner_steps;
        step =
            states_.step(backend_, learner, s, place, record ? place + 1 : 0, steps_before(i, s));
        if (!first_time) continue;
        result.inner_steps += step.taken ? 1 : 0;
        result.skipped_steps += step.taken ? 0 : 1;
        result.clipped_steps += step.clipped ? 1 : 0;
      }
    }
  }

  Index& steps_before(Index chunk, Index s) {
    return steps_before_[static_cast<std::size_t>(chunk * sequences() + s)];
  }

  bool counted(Index chunk, Index s) const {
    const auto first = host_weights_.begin() + first_of(chunk, s);
    return std::any_of(first, first + plan_.chunk, [](Scalar w) { return w != 0; });
  }

  void score(Index chunk) {
    const Index first = first_of(chunk);
    backend_.to_host(nll_.data() + first, host_nll_.data() + first, sequences() * plan_.chunk);
    for (Index s = 0; s < sequences(); ++s) {
      double sum = 0;
      for (Index t = 0; t < plan_.chunk; ++t) {
        const auto i = static_cast<std::size_t>(first_of(chunk, s) + t);
        if (!std::isfinite(host_nll_[i])) {
          fail<NonFiniteError>("training: the score of the token at position " +
                               std::to_string(chunk * plan_.chunk + t + 1) +
                               " is not a finite number");
        }
        sum += static_cast<double>(host_weights_[i]) * static_cast<double>(host_nll_[i]);
      }
      results_[static_cast<std::size_t>(s)].chunk_loss[static_cast<std::size_t>(chunk)] = sum;
    }
  }

  void backward_chunk(const LearnerType& learner, Index chunk, double seed) {
    const Index place = chunk % plan_.segment;
    Kept& kept = kept_[static_cast<std::size_t>(place)];
    const bool moves = Order::exact && std::any_of(kept.steps.begin(), kept.steps.end(),
                                                   [](const Step& step) { return step.taken; });
    if constexpr (Order::exact && !has_closed_form<LearnerType>) {
      for (Index s = 0; moves && s < sequences(); ++s) {
        const Step& step = kept.steps[static_cast<std::size_t>(s)];
        states_.step_backward(backend_, learner, s, place, step, steps_before(chunk, s));
        if (!step.taken) kept.record.forget_gradient(backend_, s, sequences());
      }
    }
    scratch_.release(0);
    const auto dh = upper_tangents(backend_, scratch_, model_, states_.moving_tree(place, moves),
                                   kept.in, caches(), seed, states_.outer_gradients(), kept.record);
    for (Index s = 0; s < sequences(); ++s) {
      const auto own = dh.part(s, sequences());
      const auto to = lower(s).gradient().rows_at(chunk * plan_.chunk, plan_.chunk);
      backend_.copy(own.data, to.data, own.shape().size());
    }
  }

  const Model& model_;
  const B& backend_;
  Plan plan_;
  std::deque<LowerPass<Model, B>> lower_;  // one for every sequence, as are caches
  typename B::template Buffer<CacheScalar> cache_;
  typename B::template Buffer<Scalar> cache_gradient_;
  typename B::template Buffer<Token> tokens_, targets_;
  typename B::template Buffer<Scalar> loss_weights_;
  typename B::template Buffer<Scalar> nll_;
  Workspace<B> scratch_;
  States states_;
  std::vector<Kept> kept_;
  std::vector<View<Scalar>> h_;      // (length, width): the lower half's result, every sequence's
  std::vector<Index> steps_before_;  // every chunk's update, of every sequence
  std::vector<Token> host_targets_;
  std::vector<Scalar> host_nll_, host_weights_;
  std::span<SequenceLoss> results_;  // of the sequences at work
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
