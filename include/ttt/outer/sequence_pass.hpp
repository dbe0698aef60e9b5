// SPDX-License-Identifier: MIT
/// \file
/// The loss of one sequence and its exact gradient, through every step its inner loop takes.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ttt/inner/plan.hpp>
#include <ttt/outer/inner_states.hpp>
#include <ttt/outer/lower_pass.hpp>
#include <ttt/outer/options.hpp>
#include <ttt/outer/upper_pass.hpp>

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

/// Computes on one sequence of fixed length at a time, in memory taken once.
///
/// Forwards: the lower half over everything; then chunk by chunk the upper half, its inner gradient
/// and the learner's update. Backwards, last chunk first: the gradient of the weights behind the
/// chunk's update goes through the update, which gives a direction; the derivative of the chunk's
/// whole gradient in that direction is the second-order part of everybody's outer gradient
/// (docs/outer_loop.md). At last the lower half's ordinary backward pass.
template <class Model, class B, class LearnerType, class Order>
class SequencePass {
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  using Caches = CacheShape<Scalar, CacheScalar>;
  using Record = UpperRecord<Model, Scalar>;
  using States = InnerStates<Model, B, LearnerType>;
  using Tree = typename Model::template Parameters<Weight<Scalar>>;
  using Gradients = typename Model::template Parameters<View<Scalar>>;

 public:
  /// The sizes of everything a pass takes, found without taking it. Throws Error when the length is
  /// no multiple of the learner's chunk.
  struct Plan {
    Index length, chunk, chunks, learned, slots, segment;
    Caches caches;  // of the upper half's attentions
    Index record;   // scratch that a chunk of a segment keeps
    Index scratch;  // of a pass that keeps nothing, and of tangents
    Index lower;
    ops::InPlaceRule rule;

    Plan(const Model& model, const B& backend, const LearnerType& learner,
         const MetaOptions& options, Index length_)
        : length(length_),
          learned(learned_count(model, learner, "training")),
          slots(static_cast<Index>(LearnerType::slots)) {
      chunk = learned > 0 ? learner.chunk : length;
      if constexpr (has_closed_form<LearnerType>) {
        learned = 0;  // all of it lies in the lower half, which knows how it learns
        if (learner.clip > 0) {
          detail::fail("training: an InPlaceLoop can clip what it adds while reading only");
        }
      }
      if (length < 1 || chunk < 1 || length % chunk != 0) {
        detail::fail("training: a sequence of " + std::to_string(length) +
                     " tokens is not a whole number of chunks of " + std::to_string(chunk));
      }
      chunks = length / chunk;
      const Config& config = model.config();
      if (config.head_dim > B::most_head_dim) {
        detail::fail("training: head_dim " + std::to_string(config.head_dim) +
                     " is more than this backend's " + std::to_string(B::most_head_dim));
      }
      caches = {std::max<Index>(0, config.suffix_blocks - 1), config.key_heads, length,
                config.head_dim};
      rule = in_place_rule(learner);
      lower = LowerPass<Model, B>::size(model, backend, length, options.recompute, rule);
      measure(model, backend, learner);
      segment = options.keep.segment(chunks, state(), record + 2 * learned);
    }

    Index state() const { return learned * (1 + slots); }
    Index segments() const { return (chunks + segment - 1) / segment; }

    /// Scalars of all that a pass takes.
    Index size() const {
      const Index kept_states = segments() + segment + 1;
      return lower + scalars_of<Scalar, CacheScalar>(caches.size()) + caches.size() + length * 2 +
             segment * (record + learned) + kept_states * state() + state() + learned + scratch;
    }

   private:
    void measure(const Model& model, const B& backend, const LearnerType& learner) {
      const DryRun<B> dry(backend);
      auto memory = dry.template allocate<Scalar>(0);
      auto cache = dry.template allocate<CacheScalar>(0);
      Workspace<DryRun<B>> workspace(dry, most_elements);
      const Tree tree = model.template shaped_tree<Weight<Scalar>>();
      const Gradients none = model.template tree<View<Scalar>>();
      auto moving = model.template tree<DualWeight<Scalar>>();
      Model::each(
          [&](const ParameterName& name, const Weight<Scalar>& from, DualWeight<Scalar>& to) {
            to = from;
            if (learned == 0 || !learner.learns(name) || !Order::exact) return;
            to.tangent = View<const Scalar>(memory.data(), from.rows, from.cols);
          },
          tree, moving);
      const UpperInput<Scalar> in{View<const Scalar>(memory.data(), chunk, model.config().width), 0,
                                  nullptr, nullptr};
      const auto cached = [&](Index i) {
        return memory_of(model, caches, cache.data(), memory.data(), i);
      };
      Record out(model);
      const auto* gradients = learned > 0 ? &none : nullptr;
      const Context<DryRun<B>> c{dry, workspace};
      upper_values(c, model, tree, in, cached, gradients, Recorded::Nothing, memory.data(), out);
      scratch = workspace.peak();
      Workspace<DryRun<B>> recorded(dry, most_elements);
      upper_values(Context<DryRun<B>>{dry, recorded}, model, tree, in, cached, gradients,
                   Order::exact ? Recorded::All : Recorded::Forward, memory.data(), out);
      record = recorded.peak();
      Workspace<DryRun<B>> tangents(dry, most_elements);
      upper_tangents(dry, tangents, model, moving, in, cached, 1, none, out);
      scratch = std::max(scratch, tangents.peak());
    }
  };

  /// Throws Error when memory runs out. Keeps references to the model and the backend.
  SequencePass(const Model& model, const B& backend, const Plan& plan, const MetaOptions& options)
      : model_(model),
        backend_(backend),
        plan_(plan),
        lower_(model, backend, plan.length, options.recompute, plan.rule),
        cache_(backend.template allocate<CacheScalar>(plan.caches.size())),
        cache_gradient_(backend.template allocate<Scalar>(plan.caches.size())),
        tokens_(backend.template allocate<Token>(plan.length + 1)),
        loss_weights_(backend.template allocate<Scalar>(plan.length)),
        nll_(backend.template allocate<Scalar>(plan.length)),
        scratch_(backend, plan.scratch),
        states_(model, backend, plan.learned, plan.slots, plan.segments(), plan.segment),
        steps_before_(static_cast<std::size_t>(plan.chunks)),
        host_nll_(static_cast<std::size_t>(plan.length)),
        host_weights_(static_cast<std::size_t>(plan.length)) {
    for (Index i = 0; i < plan.segment; ++i) {
      kept_.push_back(Kept{Workspace<B>(backend, plan.record), Record(model), Step{}});
    }
  }

  /// The loss of tokens[1..length] and, where `d` has places, `share` times its gradient, which is
  /// added. `counts` is 0 at targets that are left out; empty: all count. Throws NonFiniteError
  /// when a score is not finite; `d` may hold anything then.
  SequenceLoss run(const LearnerType& learner, const Tree& p, std::span<const Token> tokens,
                   std::span<const std::uint8_t> counts, double share, const Gradients& d) {
    result_ = {};
    result_.chunk_loss.resize(static_cast<std::size_t>(plan_.chunks));
    weigh(learner, tokens, counts);
    backend_.to_device(tokens.data(), tokens_.data(), plan_.length + 1);
    h_ = lower_.forward(p, tokens_.data(), in_place_rule(learner));
    if constexpr (has_closed_form<LearnerType>) {
      states_.begin(NoLearning{}, p);
    } else {
      states_.begin(learner, p);
    }
    const Index segments = plan_.segments();
    for (Index s = 0; s < segments; ++s) {
      states_.put_aside(s);
      forward_segment(learner, s, s == segments - 1, true);
    }
    for (const double loss : result_.chunk_loss) result_.loss += loss;
    result_.loss /= static_cast<double>(plan_.chunks);

    backend_.fill(Scalar(0), cache_gradient_.data(), plan_.caches.size());
    states_.begin_backward(d);
    for (Index s = segments - 1; s >= 0; --s) {
      if (s < segments - 1) {
        states_.take_back(s);
        forward_segment(learner, s, true, false);
      }
      for (Index i = end_of(s) - 1; i >= s * plan_.segment; --i) {
        backward_chunk(learner, i, share / static_cast<double>(plan_.chunks));
      }
    }
    states_.finish_backward();
    lower_.backward(p, tokens_.data(), d);
    return std::move(result_);
  }

 private:
  struct Kept {
    Workspace<B> workspace;
    Record record;
    Step step;
  };

  static ops::KeyValues<Scalar, CacheScalar> memory_of(const Model& model, const Caches& caches,
                                                       CacheScalar* data, Scalar* gradients,
                                                       Index block) {
    const Index i = block - model.config().prefix_blocks - 1;
    auto memory = caches.at(data, i);
    const Index width = caches.heads * caches.head_dim, size = caches.slots * width;
    Scalar* const first = gradients + 2 * i * size;
    memory.dkeys = {first, caches.slots, width};
    memory.dvalues = {first + size, caches.slots, width};
    return memory;
  }
  auto caches() {
    return [this](Index i) {
      return memory_of(model_, plan_.caches, cache_.data(), cache_gradient_.data(), i);
    };
  }
  Index end_of(Index segment) const {
    return std::min(plan_.chunks, (segment + 1) * plan_.segment);
  }

  UpperInput<Scalar> input(Index chunk) {
    const Index first = chunk * plan_.chunk;
    return {h_.rows_at(first, plan_.chunk), first, tokens_.data() + first + 1,
            loss_weights_.data() + first};
  }

  /// Every counted target's weight in its chunk's loss.
  void weigh(const LearnerType& learner, std::span<const Token> tokens,
             std::span<const std::uint8_t> counts) {
    for (Index first = 0; first < plan_.length; first += plan_.chunk) {
      Index counted = 0;
      for (Index t = first; t < first + plan_.chunk; ++t) {
        const auto i = static_cast<std::size_t>(t);
        const bool counts_here =
            (counts.empty() || counts[i] != 0) && !learner.masks(tokens[i + 1]);
        host_weights_[i] = counts_here ? Scalar(1) : Scalar(0);
        counted += counts_here ? 1 : 0;
      }
      for (Index t = first; t < first + plan_.chunk; ++t) {
        host_weights_[static_cast<std::size_t>(t)] /=
            static_cast<Scalar>(std::max<Index>(1, counted));
      }
    }
    backend_.to_device(host_weights_.data(), loss_weights_.data(), plan_.length);
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
      upper_values(c, model_, states_.tree(place), input(i), caches(),
                   steps ? &states_.inner_gradients(place) : nullptr, recorded,
                   nll_.data() + i * plan_.chunk, kept.record);
      score(i);
      kept.step = {};
      if (!steps) continue;
      if (counted(i)) {
        Index& before = steps_before_[static_cast<std::size_t>(i)];
        if (first_time) before = result_.inner_steps;
        kept.step = states_.step(backend_, learner, place, record ? place + 1 : 0, before);
      } else if (record) {
        states_.copy(place, place + 1);
      }
      if (!first_time) continue;
      result_.inner_steps += kept.step.taken ? 1 : 0;
      result_.skipped_steps += counted(i) && !kept.step.taken ? 1 : 0;
      result_.clipped_steps += kept.step.clipped ? 1 : 0;
    }
  }

  bool counted(Index chunk) const {
    const auto first = host_weights_.begin() + chunk * plan_.chunk;
    return std::any_of(first, first + plan_.chunk, [](Scalar w) { return w != 0; });
  }

  void score(Index chunk) {
    const Index first = chunk * plan_.chunk;
    backend_.to_host(nll_.data() + first, host_nll_.data() + first, plan_.chunk);
    double sum = 0;
    for (Index t = first; t < first + plan_.chunk; ++t) {
      const auto i = static_cast<std::size_t>(t);
      if (!std::isfinite(host_nll_[i])) {
        fail<NonFiniteError>("training: the score of the token at position " +
                             std::to_string(t + 1) + " is not a finite number");
      }
      sum += static_cast<double>(host_weights_[i]) * static_cast<double>(host_nll_[i]);
    }
    result_.chunk_loss[static_cast<std::size_t>(chunk)] = sum;
  }

  void backward_chunk(const LearnerType& learner, Index chunk, double seed) {
    const Index place = chunk % plan_.segment;
    Kept& kept = kept_[static_cast<std::size_t>(place)];
    if constexpr (Order::exact && !has_closed_form<LearnerType>) {
      states_.step_backward(backend_, learner, place, kept.step,
                            steps_before_[static_cast<std::size_t>(chunk)]);
    }
    scratch_.release(0);
    const auto dh = upper_tangents(
        backend_, scratch_, model_, states_.moving_tree(place, Order::exact && kept.step.taken),
        input(chunk), caches(), seed, states_.outer_gradients(), kept.record);
    const auto place_of_dh = lower_.gradient().rows_at(chunk * plan_.chunk, plan_.chunk);
    backend_.copy(dh.data, place_of_dh.data, dh.rows * dh.cols);
  }

  const Model& model_;
  const B& backend_;
  Plan plan_;
  LowerPass<Model, B> lower_;
  typename B::template Buffer<CacheScalar> cache_;
  typename B::template Buffer<Scalar> cache_gradient_;
  typename B::template Buffer<Token> tokens_;
  typename B::template Buffer<Scalar> loss_weights_;
  typename B::template Buffer<Scalar> nll_;
  Workspace<B> scratch_;
  States states_;
  std::vector<Kept> kept_;
  View<Scalar> h_;                   // (length, width): the lower half's result
  std::vector<Index> steps_before_;  // every chunk's update
  std::vector<Scalar> host_nll_, host_weights_;
  SequenceLoss result_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
