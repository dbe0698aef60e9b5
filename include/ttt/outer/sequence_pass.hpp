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

/// Computes on one sequence of fixed length at a time, or on a few, in memory taken once. What does
/// not last as long as a pass is in one workspace: the lower half's activations, and while they
/// wait for their way back the inner loop's states and records above them.
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
  /// Forwards, nothing is waited for.
  static constexpr bool ahead = steps_ahead<LearnerType, B>;

 public:
  using Plan = SequencePlan<Model, B, LearnerType, Order>;

  /// Throws Error when memory runs out. Keeps references to the model and the backend.
  SequencePass(const Model& model, const B& backend, const Plan& plan, const MetaOptions& options)
      : model_(model),
        backend_(backend),
        plan_(plan),
        workspace_(backend, plan.workspace),
        cache_(backend.template allocate<CacheScalar>(plan.sequences * plan.caches.size())),
        cache_gradient_(backend.template allocate<Scalar>(plan.sequences * plan.cache_gradients())),
        tokens_(backend.template allocate<Token>(plan.sequences * (plan.length + 1))),
        targets_(backend.template allocate<Token>(plan.sequences * plan.length)),
        loss_weights_(backend.template allocate<Scalar>(plan.sequences * plan.length)),
        nll_(backend.template allocate<Scalar>(plan.sequences * plan.length)),
        found_(backend.template allocate<GradientScale>(ahead ? plan.sequences * plan.chunks : 0)),
        states_(model, backend, workspace_, plan.sequences, plan.learned, plan.slots),
        host_targets_(static_cast<std::size_t>(plan.sequences * plan.length)),
        host_nll_(host_targets_.size()),
        host_weights_(host_targets_.size()) {
    for (Index s = 0; s < plan.sequences; ++s) {
      lower_.emplace_back(model, backend, workspace_, plan.length, options.recompute);
    }
    Index places = 0;
    for (Index i = 0; i < segments(); ++i) places = std::max(places, end_of(i) - begin_of(i));
    for (Index i = 0; i < places; ++i) kept_.push_back({Record(model), {}, 0});
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
    steps_.assign(static_cast<std::size_t>(plan_.chunks * sequences()), {});
    steps_before_.assign(steps_.size(), 0);
    weigh(learner, tokens, counts);
    backend_.to_device(tokens.data(), tokens_.data(), sequences() * (plan_.length + 1));
    workspace_.release(0);
    h_.clear();
    for (Index s = 0; s < sequences(); ++s) {
      h_.push_back(lower(s).forward(p, tokens_of(s), in_place_rule(learner)));
    }
    const Index lower_end = workspace_.used();
    if (plan_.keeps_scores) {
      scores_ = workspace_.matrix(sequences() * plan_.length, plan_.width);
    }
    if constexpr (has_closed_form<LearnerType>) {
      states_.begin(NoLearning{}, p, sequences());
    } else {
      states_.begin(learner, p, sequences());
    }
    const Index last = segments() - 1;
    for (Index i = 0; i < last; ++i) {
      if (i > 0) states_.put_aside();
      forward_segment(learner, i, false, true);
    }
    forward_segment(learner, last, true, true);
    if constexpr (ahead) bring_steps();
    for (SequenceLoss& result : results_) {
      for (const double loss : result.chunk_loss) result.loss += loss;
      result.loss /= static_cast<double>(plan_.chunks);
    }

    backend_.fill(Scalar(0), cache_gradient_.data(), sequences() * plan_.cache_gradients());
    first_gradient_ = plan_.length - plan_.gradient_rows;
    states_.begin_backward(d);
    for (Index i = last; i >= 0; --i) {
      if (i < last) {
        states_.take_back();
        forward_segment(learner, i, true, false);
      }
      for (Index chunk = end_of(i) - 1; chunk >= begin_of(i); --chunk) {
        reach_back(chunk);
        backward_chunk(learner, chunk, chunk - begin_of(i),
                       share / static_cast<double>(plan_.chunks));
      }
    }
    states_.finish_backward();
    for (Index s = 0; s < sequences(); ++s) {
      workspace_.release(lower_end);
      lower(s).backward(p, tokens_of(s), d);
    }
  }

 private:
  /// What is kept of a chunk of the segment at work.
  struct Kept {
    Record record;
    Input in;
    Index begin;  // in the workspace
  };

  auto caches() {
    return [this](Index i) {
      return plan_.key_values(model_, cache_.data(), cache_gradient_.data(), first_gradient_, i,
                              sequences());
    };
  }

  Index sequences() const { return static_cast<Index>(results_.size()); }
  LowerPass<Model, B>& lower(Index s) { return lower_[static_cast<std::size_t>(s)]; }
  const Token* tokens_of(Index s) { return tokens_.data() + s * (plan_.length + 1); }
  /// Where targets, weights and scores of a chunk begin: they lie chunk by chunk, and within one
  /// sequence by sequence, as the upper half's rows do.
  Index first_of(Index chunk, Index s = 0) const { return (chunk * sequences() + s) * plan_.chunk; }
  Index segments() const { return static_cast<Index>(plan_.segments.size()) - 1; }
  Index begin_of(Index segment) const { return plan_.segments[static_cast<std::size_t>(segment)]; }
  Index end_of(Index segment) const { return begin_of(segment + 1); }

  Input input(Index chunk, bool first_time) {
    const Index first = chunk * plan_.chunk, rows = first_of(chunk);
    Input in{stack_rows(backend_, workspace_, h_, first, plan_.chunk), first,
             targets_.data() + rows, loss_weights_.data() + rows, sequences()};
    if (plan_.keeps_scores) {
      in.dy = scores_.rows_at(rows, in.h.rows);
      in.scored = !first_time;
    }
    return in;
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
    if (!record) states_.add_gradient();  // every chunk's in its turn
    for (Index i = begin_of(segment); i < end_of(segment); ++i) {
      const Index place = record ? i - begin_of(segment) : 0;
      Kept& kept = kept_[static_cast<std::size_t>(place)];
      kept.begin = workspace_.used();
      const bool steps = plan_.learned > 0 && i + 1 < plan_.chunks;
      const Recorded recorded = !record                 ? Recorded::Nothing
                                : Order::exact && steps ? Recorded::All
                                                        : Recorded::Forward;
      if (record && steps) states_.add_gradient();
      const Context<B> c{backend_, workspace_};
      kept.in = input(i, first_time);
      upper_values(c, model_, states_.tree(place), kept.in, caches(),
                   steps ? &states_.inner_gradients(place) : nullptr, recorded,
                   nll_.data() + first_of(i), kept.record);
      if (first_time && !ahead) score(i, 1);
      if (!record) workspace_.release(kept.begin);
      // Where a segment that runs again ends, the next one has been.
      if (!steps || (!first_time && i + 1 == end_of(segment))) continue;
      if (record) states_.add_state();
      for (Index s = 0; s < sequences(); ++s) {
        const Index to = record ? place + 1 : 0;
        if (!counted(i, s)) {
          states_.stay(s, to);
          continue;
        }
        if constexpr (ahead) {
          const View<const Scalar> scores(nll_.data() + first_of(i), 1, sequences() * plan_.chunk);
          states_.step(learner, s, place, to, 0, scores, found_.data() + step_of(i, s));
        } else {
          SequenceLoss& result = results_[static_cast<std::size_t>(s)];
          if (first_time) steps_before_[step_of(i, s)] = result.inner_steps;
          const Step step = states_.step(learner, s, place, to, steps_before_[step_of(i, s)]);
          if (first_time) count(i, s, step);
        }
      }
    }
    if (!record) states_.clear_segment();
  }

  /// A step of the first time.
  void count(Index chunk, Index s, const Step& step) {
    SequenceLoss& result = results_[static_cast<std::size_t>(s)];
    steps_[step_of(chunk, s)] = step;
    result.inner_steps += step.taken ? 1 : 0;
    result.skipped_steps += step.taken ? 0 : 1;
    result.clipped_steps += step.clipped ? 1 : 0;
  }
  /// Waits for the scores of all chunks, and for what was found where steps were taken ahead.
  void bring_steps() {
    score(0, plan_.chunks);
    if (plan_.learned == 0) return;
    std::vector<GradientScale> found(steps_.size());
    backend_.to_host(found_.data(), found.data(), std::ssize(found));
    for (Index chunk = 0; chunk + 1 < plan_.chunks; ++chunk) {
      for (Index s = 0; s < sequences(); ++s) {
        if (counted(chunk, s)) count(chunk, s, Step::of(found[step_of(chunk, s)]));
      }
    }
  }

  std::size_t step_of(Index chunk, Index s) const {
    return static_cast<std::size_t>(chunk * sequences() + s);
  }

  bool counted(Index chunk, Index s) const {
    const auto first = host_weights_.begin() + first_of(chunk, s);
    return std::any_of(first, first + plan_.chunk, [](Scalar w) { return w != 0; });
  }

  /// Waits for the scores of so many chunks. Throws NonFiniteError.
  void score(Index begin, Index chunks) {
    const Index first = first_of(begin);
    backend_.to_host(nll_.data() + first, host_nll_.data() + first,
                     first_of(begin + chunks) - first);
    for (Index chunk = begin; chunk < begin + chunks; ++chunk) {
      for (Index s = 0; s < sequences(); ++s) add_scores(chunk, s);
    }
  }
  void add_scores(Index chunk, Index s) {
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

  /// Gradients of keys and values are kept of as many positions as one needs at a time and as many
  /// again: makes room for those of earlier ones that this chunk sees.
  void reach_back(Index chunk) {
    const Index end = (chunk + 1) * plan_.chunk, kept = end - first_gradient_;
    if (std::max<Index>(0, chunk * plan_.chunk - plan_.reach) >= first_gradient_) return;
    const Index moved = plan_.gradient_rows - kept;
    const Index channels = plan_.caches.heads * plan_.caches.head_dim;
    for (Index i = 0; i < 2 * sequences() * plan_.caches.blocks; ++i) {
      Scalar* const rows = cache_gradient_.data() + i * plan_.gradient_rows * channels;
      backend_.copy(rows, rows + moved * channels, kept * channels);
      backend_.fill(Scalar(0), rows, moved * channels);
    }
    first_gradient_ -= moved;
  }

  /// The chunk at a place of the segment at work, the last that has not been run backwards.
  void backward_chunk(const LearnerType& learner, Index chunk, Index place, double seed) {
    Kept& kept = kept_[static_cast<std::size_t>(place)];
    const auto steps = std::span(steps_).subspan(step_of(chunk, 0), results_.size());
    const bool moves = Order::exact && std::any_of(steps.begin(), steps.end(),
                                                   [](const Step& step) { return step.taken; });
    const Index end = workspace_.used();
    if constexpr (Order::exact && !has_closed_form<LearnerType>) {
      if (moves) states_.add_direction();
      for (Index s = 0; moves && s < sequences(); ++s) {
        const Step& step = steps[static_cast<std::size_t>(s)];
        states_.step_backward(backend_, learner, s, place, step, steps_before_[step_of(chunk, s)]);
        if (!step.taken) kept.record.forget_gradient(backend_, s, sequences());
      }
    }
    const auto& tree = states_.moving_tree(place, moves);
    if constexpr (narrows<B>) workspace_.release(end);  // nobody reads the directions themselves
    const auto dh = upper_tangents(backend_, workspace_, model_, tree, kept.in, caches(), seed,
                                   states_.outer_gradients(), kept.record);
    for (Index s = 0; s < sequences(); ++s) {
      const auto own = dh.part(s, sequences());
      const auto to = h_[static_cast<std::size_t>(s)].rows_at(chunk * plan_.chunk, plan_.chunk);
      backend_.copy(own.data, to.data, own.shape().size());
    }
    workspace_.release(kept.begin);
  }

  const Model& model_;
  const B& backend_;
  Plan plan_;
  Workspace<B> workspace_;
  std::deque<LowerPass<Model, B>> lower_;  // one for every sequence, as are caches
  typename B::template Buffer<CacheScalar> cache_;
  typename B::template Buffer<Scalar> cache_gradient_;
  typename B::template Buffer<Token> tokens_, targets_;
  typename B::template Buffer<Scalar> loss_weights_;
  typename B::template Buffer<Scalar> nll_;
  typename B::template Buffer<GradientScale> found_;  // by every chunk and sequence, ahead
  States states_;
  std::vector<Kept> kept_;
  Index first_gradient_ = 0;         // the position of the first row of cache_gradient_
  View<Scalar> scores_;              // the gradient of every chunk's scores, rows as targets'
  std::vector<View<Scalar>> h_;      // (length, width): the lower half's result, every sequence's,
                                     // chunk by chunk from the last on replaced by its gradient
  std::vector<Step> steps_;          // of every chunk and sequence
  std::vector<Index> steps_before_;  // theirs
  std::vector<Token> host_targets_;
  std::vector<Scalar> host_nll_, host_weights_;
  std::span<SequenceLoss> results_;  // of the sequences at work
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
