// SPDX-License-Identifier: MIT
/// \file
/// What happens to a document's tokens, whoever computes with them: a Reader, or one for several.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/core/random.hpp>
#include <ttt/inner/concepts.hpp>
#include <ttt/inner/report.hpp>
#include <ttt/inner/state.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Whether a state could be that of a document read with such a plan, as far as sizes tell.
template <class Plan, class State>
bool fits(const Plan& plan, const State& state, Index vocabulary, Index most_tokens) {
  const auto pending = static_cast<Index>(state.pending.size());
  const bool has_logits = static_cast<Index>(state.logits.size()) == vocabulary;
  return state.cache_size == plan.caches.size() &&
         (state.learned_size == 0 || state.learned_size == plan.learned_size()) &&
         pending <= plan.chunk &&
         std::ranges::all_of(state.pending,
                             [=](Token token) { return token >= 0 && token < vocabulary; }) &&
         state.marks.size() == state.pending.size() &&
         state.pending.empty() == (state.counters.tokens == 0) &&
         state.counters.tokens >= pending && state.boundary() % plan.chunk == 0 &&
         state.counters.tokens <= most_tokens && state.evaluated >= 0 &&
         state.evaluated <= pending && (state.evaluated < pending || pending == 0 || has_logits);
}

/// So that consuming a token allocates nothing.
template <class State>
void reserve(State& state, Index chunk) {
  state.pending.reserve(static_cast<std::size_t>(chunk) + 1);
  state.marks.reserve(static_cast<std::size_t>(chunk) + 1);
}

/// The chunk at work: a document's pending tokens and the new ones behind them.
template <class B>
class PendingBlock {
  using Scalar = typename B::Scalar;
  using State = SessionState<B>;

 public:
  explicit PendingBlock(Index chunk) {
    tokens_.reserve(static_cast<std::size_t>(chunk) + 1);
    marks_.reserve(static_cast<std::size_t>(chunk) + 1);
  }

  std::span<const Token> tokens() const { return tokens_; }

  /// `counts` is 0 at targets that are left out; null: none is.
  template <class Element, class LearnerType>
  void assign(const State& state, const Element* tokens, Index taken, const std::uint8_t* counts,
              const LearnerType& learner, bool frozen) {
    tokens_.assign(state.pending.begin(), state.pending.end());
    marks_.assign(state.marks.begin(), state.marks.end());
    for (Index i = 0; i < taken; ++i) {
      const auto token = static_cast<Token>(tokens[i]);
      const bool counted = (counts == nullptr || counts[i] != 0) && !learner.masks(token);
      tokens_.push_back(token);
      marks_.push_back(
          static_cast<std::uint8_t>((counted ? State::Counted : 0) | (frozen ? State::Frozen : 0)));
    }
  }

  /// Targets that count, and whether any was read frozen. The first token is none.
  Index counted() const { return marked(State::Counted); }
  bool frozen() const { return marked(State::Frozen) > 0; }

  /// Every target's weight in the chunk's loss.
  void weigh(std::span<Scalar> out) const {
    const Scalar weight = Scalar(1) / static_cast<Scalar>(counted());
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = (marks_[i + 1] & State::Counted) != 0 ? weight : Scalar(0);
    }
  }

  /// Adds the scores of the new tokens, which lie behind so many pending ones, to a report.
  void add_to(ReadReport<Scalar>& report, std::span<const Scalar> scores, Index pending) const {
    for (Index i = 0; i < std::ssize(scores); ++i) {
      const auto mark = marks_[static_cast<std::size_t>(pending + i)];
      if (pending + i == 0 || (mark & State::Counted) == 0) continue;
      report.total_nll += static_cast<double>(scores[static_cast<std::size_t>(i)]);
      ++report.scored;
    }
  }

  /// All of it is pending, or of a completed chunk the last target, the next one's first input.
  void leave(State& state, bool completed) const {
    const auto from = completed ? tokens_.size() - 1 : 0;
    state.pending.assign(tokens_.begin() + static_cast<std::ptrdiff_t>(from), tokens_.end());
    state.marks.assign(marks_.begin() + static_cast<std::ptrdiff_t>(from), marks_.end());
  }

 private:
  Index marked(std::uint8_t mark) const {
    return std::count_if(marks_.begin() + 1, marks_.end(),
                         [=](std::uint8_t each) { return (each & mark) != 0; });
  }

  std::vector<Token> tokens_;
  std::vector<std::uint8_t> marks_;
};

/// Whether a completed chunk is learned from.
template <class LearnerType, class Plan, class B>
bool teaches(const Plan& plan, const PendingBlock<B>& block) {
  return plan.learned > 0 && !block.frozen() &&
         (has_closed_form<LearnerType> || block.counted() > 0);
}

/// Clears the keys and values of whole chunks, where a failure may have left numbers that are not
/// finite: nobody would look at them again, but a saved state must not hold any.
template <class B, class Caches>
void clear_keys(const B& backend, const Caches& caches, typename B::CacheScalar* cache, Index begin,
                Index end, Index chunk) {
  for (Index at = begin; at < end; at += chunk) {
    for (Index row = 0; row < 2 * caches.blocks * caches.heads; ++row) {
      const Index slot = row * caches.slots + at % caches.slots;
      backend.fill(typename B::CacheScalar{}, cache + slot * caches.head_dim,
                   chunk * caches.head_dim);
    }
  }
}

/// Makes tokens that were made already less likely.
inline void penalise(std::span<const Token> made, float penalty, std::span<float> logits) {
  if (penalty == 1.0f) return;
  std::vector<Token> seen(made.begin(), made.end());
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  for (const Token token : seen) {
    float& logit = logits[static_cast<std::size_t>(token)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

/// Throws unless so many tokens can be made with such a penalty.
inline void check_generation(Index count, float penalty) {
  if (!(penalty > 0) || !std::isfinite(penalty)) {
    fail("generate: repetition_penalty must be positive and finite");
  }
  if (count < 0) fail("generate: the count must not be negative");
}

/// The sampler's choice among logits, of which those of tokens made already are penalised.
template <class S, class Scalar>
Token sample(const S& sampler, std::span<const Scalar> logits, std::span<const Token> made,
             float penalty, Random& random, std::vector<float>& scratch) {
  scratch.resize(logits.size());
  std::ranges::transform(logits, scratch.begin(), [](Scalar x) { return static_cast<float>(x); });
  penalise(made, penalty, scratch);
  return sampler(std::span<float>(scratch), random);
}

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
