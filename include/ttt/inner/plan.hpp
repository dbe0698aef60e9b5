// SPDX-License-Identifier: MIT
/// \file
/// The sizes of a session, found before any of it is allocated.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include <ttt/inner/chunk_pass.hpp>
#include <ttt/inner/inner_loop.hpp>
#include <ttt/inner/state.hpp>

namespace ttt::inline TTT_ABI {

/// Options of a session.
struct SessionOptions {
  Index max_tokens = 0;    // the longest text; needed by models with full attention, else unused
  std::uint64_t seed = 0;  // of generation

  /// Chunks, at most, whose lower half, which does not learn, is computed at once where a piece
  /// completes several; on a GPU a quarter of them, one at least, at a time, beside the chunk at
  /// work. More make larger products, which fill a GPU, and take memory for so many chunks more in
  /// every window. Results agree to rounding; a saved state of a model with a window fits sessions
  /// of the same value.
  Index read_ahead = 1;
};

namespace detail {

/// Scalars of what learns. Throws Error, in the name of `who`, unless all of it is in MLPs of the
/// suffix (nothing before them is reached by the inner gradient) or, for a learner in closed form,
/// in InPlaceMLPs.
template <class Model, class LearnerType>
Index learned_count(const Model& model, const LearnerType& learner, const char* who) {
  auto shapes = model.shapes();
  Index count = 0;
  Model::each(
      [&](const ParameterName& name, const Shape& shape) {
        if (!learner.learns(name)) return;
        const bool is_mlp = name.role == Role::Mlp || name.role == Role::DynamicMlp;
        const bool in_place = name.role == Role::InPlaceMlp;
        if (has_closed_form<LearnerType> ? !in_place : !is_mlp || name.suffix_block < 0) {
          fail(std::string(who) + ": the learner asks for " + to_string(name) +
               (has_closed_form<LearnerType>
                    ? ", but only InPlaceMLPs learn in closed form"
                    : ", but only the MLPs of the suffix can learn at test time"));
        }
        count += shape.size();
      },
      shapes);
  return count;
}

/// How what learns lies in a session's memory: as the parameter's shape says, but in closed form
/// the other way round, (out, in), as Hugging Face stores it and its update comes.
inline Shape learned_shape(const ParameterName& name, const Shape& shape) {
  return name.role == Role::InPlaceMlp ? Shape{shape.cols, shape.rows} : shape;
}

/// How large a session's parts will be. Throws Error when the learner does not suit the model or a
/// size is missing.
template <class WeightsType, class LearnerType>
struct SessionPlan {
  using Model = typename WeightsType::Model;
  using B = typename WeightsType::BackendType;
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;

  CacheShape<Scalar, CacheScalar> caches;
  Index chunk = 0;
  Index most_tokens = most_count;  // of a text
  Index ahead = 1;                 // chunks
  Index learned = 0;               // scalars that learn
  Index slots = static_cast<Index>(LearnerType::slots);

  SessionPlan(const WeightsType& weights, const LearnerType& learner,
              const SessionOptions& options) {
    const auto& model = weights.model();
    const auto& config = model.config();
    chunk = learner.chunk;
    if (chunk < 1 || chunk > (Index{1} << 24)) {
      detail::fail("session: the learner's chunk must be from 1 to 2^24 tokens");
    }
    if (config.head_dim > B::most_head_dim) {
      detail::fail("session: head_dim " + std::to_string(config.head_dim) +
                   " is more than this backend's " + std::to_string(B::most_head_dim));
    }
    if (!Model::is_windowed && options.max_tokens < 1) {
      detail::fail("session: a model with full attention needs SessionOptions::max_tokens");
    }
    constexpr Index most_ahead = 1024;
    ahead = options.read_ahead;
    if (ahead < 1 || ahead > most_ahead) {
      detail::fail("session: SessionOptions::read_ahead is " + std::to_string(ahead) +
                   ", expected from 1 to " + std::to_string(most_ahead) + " chunks");
    }
    if (has_closed_form<LearnerType> && ahead > 1) {
      detail::fail(
          "session: SessionOptions::read_ahead must be 1 for a learner in closed form, which "
          "changes the lower half from chunk to chunk");
    }
    if (!Model::is_windowed) {
      most_tokens = options.max_tokens;
      ahead = std::clamp<Index>((options.max_tokens - 1) / chunk, 1, ahead);
    }
    const Index reach =
        Model::is_windowed ? model.window() - 1 + ahead * chunk : options.max_tokens;
    const Index slot = 2 * model.blocks() * config.key_heads * config.head_dim;
    if (reach > detail::most_elements / slot - chunk) {
      detail::fail("session: out of memory: the window is too large to address");
    }
    caches = {model.blocks(), config.key_heads, (reach + chunk - 1) / chunk * chunk,
              config.head_dim};
    learned = learned_count(model, learner, "session");
    if (learned == 0 && !std::is_same_v<LearnerType, NoLearning>) {
      detail::fail("session: the learner finds nothing in this model that learns at test time");
    }
  }

  /// Scalars of what a state holds once something was learned: weights, then optimizer slots.
  Index learned_size() const { return learned * (1 + slots); }

  /// Bytes of everything a session takes beside the model's own weights.
  Index bytes(const WeightsType& weights) const {
    const Index scratch =
        ChunkPass<Model, B>::scratch(weights.model(), weights.backend(), caches, chunk, ahead);
    return caches.size() * static_cast<Index>(sizeof(CacheScalar)) +
           (learned + learned_size() + scratch) * static_cast<Index>(sizeof(Scalar)) +
           (narrows<B> ? learned : 0) * static_cast<Index>(sizeof(bfloat16)) +
           ChunkPass<Model, B>::bytes(weights.model(), chunk, ahead);
  }
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
