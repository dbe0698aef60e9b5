// SPDX-License-Identifier: MIT
/// \file
/// The sizes of a pass over sequences, found before any of it is allocated.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include <ttt/inner/plan.hpp>
#include <ttt/outer/inner_states.hpp>
#include <ttt/outer/lower_pass.hpp>
#include <ttt/outer/options.hpp>
#include <ttt/outer/upper_pass.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// The sizes of everything a SequencePass takes, found without taking it. Throws Error when the
/// length is no multiple of the learner's chunk.
template <class Model, class B, class LearnerType, class Order>
struct SequencePlan {
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;

  Index length, sequences;  // at most so many
  Index width, chunk, chunks, learned, slots;
  std::vector<Index> segments;             // the first chunk of each, and `chunks`
  bool keeps_scores;                       // what the loss gives, for segments that run twice
  CacheShape<Scalar, CacheScalar> caches;  // of the upper half's attentions, for a sequence
  Index reach;                             // earlier positions that a chunk may see, whole chunks
  Index gradient_rows;                     // positions whose keys have gradients at a time
  ops::InPlaceRule rule;
  Index workspace;  // scalars of what does not last as long as a pass, for all

  SequencePlan(const Model& model, const B& backend, const LearnerType& learner,
               const MetaOptions& options, Index length_)
      : length(length_),
        sequences(options.stacked),
        width(model.config().width),
        learned(learned_count(model, learner, "training")),
        slots(static_cast<Index>(LearnerType::slots)) {
    if (sequences < 1 || sequences > most_sequences) {
      detail::fail("training: MetaOptions::stacked is " + std::to_string(sequences) +
                   ", expected from 1 to " + std::to_string(most_sequences));
    }
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
    reach = (std::min(model.window(), length) + chunk - 2) / chunk * chunk;
    // Room for as many rows again, so that they are moved once a window, and in one copy.
    gradient_rows = std::min(length, std::max(2 * reach, reach + chunk));
    rule = in_place_rule(learner);
    keeps_scores = learned > 0 && chunks > 1 && options.keep.chunks < chunks;
    const Chunks each = measure(model, backend, learner);
    const Index kept = (learned > 0 ? each.learned_from : each.other).kept;
    segments = options.keep.segments(chunks, state(), kept + sequences * learned + place());
    const auto lower = LowerPass<Model, B>::size(model, backend, length, options.recompute, rule);
    workspace = std::max((sequences - 1) * lower.kept + lower.most,
                         sequences * lower.kept + upper_size(each));
  }

  Index state() const { return sequences * learned * (1 + slots); }
  /// What one place of the segment at work keeps of it.
  Index place() const {
    return InnerStates<Model, B, LearnerType>::place_size(sequences * learned, state());
  }

  /// Scalars of the gradients of a sequence's keys and values.
  Index cache_gradients() const {
    return 2 * caches.blocks * gradient_rows * caches.heads * caches.head_dim;
  }

  /// Scalars of all that a pass takes.
  Index size() const {
    const Index each =
        scalars_of<Scalar, CacheScalar>(caches.size()) + cache_gradients() +
        scalars_of<Scalar, Token>(2 * length + 1) + 2 * length +
        (steps_ahead<LearnerType, B> ? scalars_of<Scalar, GradientScale>(chunks) : 0) +
        (narrows<B> ? scalars_of<Scalar, bfloat16>(2 * learned) : 0);
    return sequences * each + workspace;
  }

  /// Keys and values of a block, of the first of so many sequences, and their gradients, the rows
  /// of positions from `first` on, which may be before the document's.
  ops::KeyValues<Scalar, CacheScalar> key_values(const Model& model, CacheScalar* data,
                                                 Scalar* gradients, Index first, Index block,
                                                 Index count) const {
    const Index i = block - model.config().prefix_blocks - 1;
    auto memory = caches.at(data, i);
    const Index channels = caches.heads * caches.head_dim, before = std::max<Index>(0, -first);
    const View<Scalar> both(gradients + 2 * i * gradient_rows * channels, 2 * gradient_rows,
                            channels);
    memory.dkeys = both.rows_at(before, gradient_rows - before);
    memory.dvalues = both.rows_at(gradient_rows + before, gradient_rows - before);
    memory.first = first + before;
    memory.sequences = count;
    memory.apart = caches.size();
    memory.gradients_apart = cache_gradients();
    return memory;
  }

 private:
  static constexpr Index most_sequences = 4096;

  /// Scalars of the workspace that the upper half takes of a chunk.
  struct ChunkSize {
    Index kept;      // until it has been run backwards
    Index forward;   // while it runs forwards, to be run backwards
    Index tangents;  // while it runs backwards, beside what is kept
  };
  struct Chunks {
    ChunkSize learned_from, other;
    Index unrecorded;  // while one that is learned from runs forwards and nothing is kept
  };

  /// The most of the workspace that the inner loop takes: what SequencePass does, in numbers.
  Index upper_size(const Chunks& sizes) const {
    const auto room = [](Index size) { return Workspace<B>::room(size); };
    const Index state = room(this->state()), gradient = room(sequences * learned);
    const Index scores = keeps_scores ? room(sequences * length * width) : 0;
    Index held = scores + 2 * state, most = 0;  // one of them the outer gradient
    for (std::size_t i = 0; i + 1 < segments.size(); ++i) {
      if (i > 1) held += state;
      if (i + 2 < segments.size()) {
        most = std::max(most, held + (i > 0 ? state : 0) + gradient + sizes.unrecorded);
      }
      Index used = held;
      for (Index at = segments[i]; at < segments[i + 1]; ++at) {
        const bool steps = learned > 0 && at + 1 < chunks;
        const ChunkSize& size = steps ? sizes.learned_from : sizes.other;
        if (steps) used += gradient;
        most = std::max(most, used + size.forward);
        used += size.kept;
        if (steps && at + 1 < segments[i + 1]) used += place();
        const Index direction = Order::exact && steps ? gradient : 0;
        most = std::max(most, used + (narrows<B> ? std::max(direction, size.tangents)
                                                 : direction + size.tangents));
      }
    }
    return most;
  }

  Chunks measure(const Model& model, const B& backend, const LearnerType& learner) const {
    const DryRun<B> dry(backend);
    auto scalars = dry.template allocate<Scalar>(0);
    auto cache = dry.template allocate<CacheScalar>(0);
    const auto tree = model.template shaped_tree<Weight<Scalar>>();
    const auto none = model.template tree<View<Scalar>>();
    auto still = model.template tree<DualWeight<Scalar>>(), moving = still;
    Model::each(
        [&](const ParameterName& name, const Weight<Scalar>& from, DualWeight<Scalar>& rests,
            DualWeight<Scalar>& to) {
          to = rests = StackedWeight<Scalar>(from);
          if (learned == 0 || !learner.learns(name) || !Order::exact) return;
          to.tangent = Weight<Scalar>(View<const Scalar>(scalars.data(), from.rows, from.cols));
        },
        tree, still, moving);
    const View<Scalar> whole(scalars.data(), length, width);
    const std::vector<View<Scalar>> h(static_cast<std::size_t>(sequences), whole);
    const auto cached = [&](Index i) {
      return key_values(model, cache.data(), scalars.data(), 0, i, sequences);
    };
    UpperRecord<Model, Scalar> out(model);
    const auto values = [&](Workspace<DryRun<B>>& to, bool steps, Recorded recorded) {
      UpperInput<Scalar> in{stack_rows(dry, to, h, 0, chunk), 0, nullptr, nullptr, sequences};
      if (keeps_scores) in.dy = {scalars.data(), sequences * chunk, width};
      upper_values(Context<DryRun<B>>{dry, to}, model, tree, in, cached, steps ? &none : nullptr,
                   recorded, scalars.data(), out);
      return in;
    };
    const auto chunk_size = [&](const auto& p, bool steps) {
      Workspace<DryRun<B>> forward(dry, most_elements), tangents(dry, most_elements);
      const auto in =
          values(forward, steps, Order::exact && steps ? Recorded::All : Recorded::Forward);
      upper_tangents(dry, tangents, model, p, in, cached, 1, none, out);
      return ChunkSize{forward.used(), forward.peak(), tangents.peak()};
    };
    Workspace<DryRun<B>> unrecorded(dry, most_elements);
    values(unrecorded, learned > 0, Recorded::Nothing);
    return {chunk_size(moving, learned > 0), chunk_size(still, false), unrecorded.peak()};
  }
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
