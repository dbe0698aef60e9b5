// SPDX-License-Identifier: MIT
/// \file
/// The sizes of a pass over sequences, found before any of it is allocated.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include <ttt/inner/plan.hpp>
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
  Index chunk, chunks, learned, slots, segment;
  CacheShape<Scalar, CacheScalar> caches;  // of the upper half's attentions, for a sequence
  Index record;                            // scratch that a chunk of a segment keeps, for all
  Index scratch;                           // of a pass that keeps nothing, and of tangents, for all
  Index lower;                             // for a sequence
  ops::InPlaceRule rule;

  SequencePlan(const Model& model, const B& backend, const LearnerType& learner,
               const MetaOptions& options, Index length_)
      : length(length_),
        sequences(options.stacked),
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
    rule = in_place_rule(learner);
    lower = LowerPass<Model, B>::size(model, backend, length, options.recompute, rule);
    measure(model, backend, learner);
    segment = options.keep.segment(chunks, state(), record + 2 * sequences * learned);
  }

  Index state() const { return sequences * learned * (1 + slots); }
  Index segments() const { return (chunks + segment - 1) / segment; }

  /// Scalars of all that a pass takes.
  Index size() const {
    const Index states = segments() + segment + 2, gradients = (segment + 1) * learned;
    const Index each = lower + scalars_of<Scalar, CacheScalar>(caches.size()) + caches.size() +
                       scalars_of<Scalar, Token>(2 * length + 1) + 2 * length + gradients +
                       (narrows<B> ? scalars_of<Scalar, bfloat16>(2 * learned) : 0);
    return sequences * each + states * state() + segment * record + scratch;
  }

  /// Keys, values and their gradients of a block, of the first of so many sequences.
  ops::KeyValues<Scalar, CacheScalar> key_values(const Model& model, CacheScalar* data,
                                                 Scalar* gradients, Index block,
                                                 Index count) const {
    const Index i = block - model.config().prefix_blocks - 1;
    auto memory = caches.at(data, i);
    const Index width = caches.heads * caches.head_dim, size = caches.slots * width;
    Scalar* const first = gradients + 2 * i * size;
    memory.dkeys = {first, caches.slots, width};
    memory.dvalues = {first + size, caches.slots, width};
    memory.sequences = count;
    memory.apart = caches.size();
    return memory;
  }

 private:
  static constexpr Index most_sequences = 4096;

  void measure(const Model& model, const B& backend, const LearnerType& learner) {
    const DryRun<B> dry(backend);
    auto scalars = dry.template allocate<Scalar>(0);
    auto cache = dry.template allocate<CacheScalar>(0);
    const auto tree = model.template shaped_tree<Weight<Scalar>>();
    const auto none = model.template tree<View<Scalar>>();
    auto moving = model.template tree<DualWeight<Scalar>>();
    Model::each(
        [&](const ParameterName& name, const Weight<Scalar>& from, DualWeight<Scalar>& to) {
          to = StackedWeight<Scalar>(from);
          if (learned == 0 || !learner.learns(name) || !Order::exact) return;
          to.tangent = Weight<Scalar>(View<const Scalar>(scalars.data(), from.rows, from.cols));
        },
        tree, moving);
    const View<Scalar> whole(scalars.data(), length, model.config().width);
    const std::vector<View<Scalar>> h(static_cast<std::size_t>(sequences), whole);
    const auto cached = [&](Index i) {
      return key_values(model, cache.data(), scalars.data(), i, sequences);
    };
    UpperRecord<Model, Scalar> out(model);
    const auto* gradients = learned > 0 ? &none : nullptr;
    const auto values = [&](Workspace<DryRun<B>>& to, Recorded recorded) {
      const UpperInput<Scalar> in{stack_rows(dry, to, h, 0, chunk), 0, nullptr, nullptr, sequences};
      upper_values(Context<DryRun<B>>{dry, to}, model, tree, in, cached, gradients, recorded,
                   scalars.data(), out);
      return in;
    };
    Workspace<DryRun<B>> unrecorded(dry, most_elements);
    Workspace<DryRun<B>> recorded(dry, most_elements), tangents(dry, most_elements);
    values(unrecorded, Recorded::Nothing);
    const auto in = values(recorded, Order::exact ? Recorded::All : Recorded::Forward);
    record = recorded.peak();
    upper_tangents(dry, tangents, model, moving, in, cached, 1, none, out);
    scratch = std::max(unrecorded.peak(), tangents.peak());
  }
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
