// SPDX-License-Identifier: MIT
/// \file
/// The states of several documents that are read together, side by side in memory.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ttt/inner/batch_pass.hpp>
#include <ttt/inner/batch_weights.hpp>
#include <ttt/inner/document.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Holds what every document's SessionState holds: keys and values, and what was learned, in one
/// stretch of memory each for all of them, equally far apart; the rest document by document.
template <class WeightsType, class LearnerType>
class BatchDocuments {
 public:
  using Model = typename WeightsType::Model;
  using B = typename WeightsType::BackendType;
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  using State = SessionState<B>;
  using Plan = SessionPlan<WeightsType, LearnerType>;
  using Weights = BatchWeights<WeightsType, LearnerType>;

  /// One of them.
  struct Document {
    explicit Document(Index chunk) : block(chunk) {}
    State state;                            // without memory of the backend's
    std::optional<NextToken<Scalar>> next;  // behind the pending tokens
    // Of the round at work: its tokens, how many are new, whether they teach.
    PendingBlock<B> block;
    Index taken = 0;
    bool learns = false;

    /// New tokens until the chunk is complete.
    Index room(Index chunk) const { return chunk + 1 - std::ssize(state.pending); }
    /// So many of its keys are known from now on, and nothing of the token behind them.
    void change_keys(Index known) {
      state.evaluated = known;
      state.logits.clear();
      next.reset();
    }
  };

  /// Throws Error when the learner does not suit the model, sizes are missing or too large, or
  /// memory runs out.
  BatchDocuments(WeightsType weights, LearnerType learner, Index sequences, SessionOptions options)
      : weights_(std::move(weights)),
        learner_(std::move(learner)),
        options_(options),
        plan_(plan(weights_, learner_, sequences, options_)),
        cache_(backend().template allocate<CacheScalar>(sequences * plan_.caches.size())),
        fast_(weights_, learner_, plan_, sequences) {
    for (Index i = 0; i < sequences; ++i) {
      documents_.emplace_back(plan_.chunk);
      reset(i);
    }
  }
  BatchDocuments(const BatchDocuments&) = delete;
  BatchDocuments& operator=(const BatchDocuments&) = delete;

  /// The sizes of each. Throws what the constructor would, memory apart.
  static Plan plan(const WeightsType& weights, const LearnerType& learner, Index sequences,
                   const SessionOptions& options) {
    constexpr Index most = 4096;
    if (sequences < 1 || sequences > most) {
      fail("batch: " + std::to_string(sequences) + " documents, expected from 1 to " +
           std::to_string(most));
    }
    const Plan plan(weights, learner, options);
    if (plan.caches.size() > most_elements / sequences) {
      fail("batch: out of memory: " + std::to_string(sequences) +
           " windows are too large to address");
    }
    return plan;
  }
  /// Bytes of all of them, learning included.
  static Index bytes(const Plan& plan, Index sequences) {
    return sequences * (plan.caches.size() * Index{sizeof(CacheScalar)} +
                        (plan.learned + plan.learned_size()) * Index{sizeof(Scalar)} +
                        (narrows<B> ? plan.learned : 0) * Index{sizeof(bfloat16)});
  }

  Index size() const { return std::ssize(documents_); }
  const WeightsType& weights() const { return weights_; }
  const LearnerType& learner() const { return learner_; }
  const B& backend() const { return weights_.backend(); }
  const Plan& plan() const { return plan_; }

  Document& operator[](Index i) { return documents_[static_cast<std::size_t>(i)]; }
  const Document& operator[](Index i) const { return documents_[static_cast<std::size_t>(i)]; }
  /// The keys and values of the first, and what all have learned.
  CacheScalar* cache() { return cache_.data(); }
  Weights& fast() { return fast_; }

  /// A copy of all of a document's state. Throws Error when memory runs out.
  State state(Index i) const {
    const State& own = (*this)[i].state;
    State copy;
    copy.cache_size = plan_.caches.size();
    copy.cache = backend().template allocate<CacheScalar>(copy.cache_size);
    if (own.learned_size > 0) fast_.take(i, copy);
    copy.counters = own.counters;
    copy.pending = own.pending;
    copy.marks = own.marks;
    copy.random = own.random;
    copy.evaluated = known_keys(own);
    backend().copy(cache_.data() + i * copy.cache_size, copy.cache.data(), copy.cache_size);
    return copy;
  }

  /// Throws Error unless the sizes are such a document's, or when memory runs out; then nothing has
  /// changed.
  void adopt(Index i, const State& state) {
    if (!fits(plan_, state, weights_.config().vocabulary, plan_.most_tokens)) {
      fail(
          "batch: the state was made by a different model or learner, or with another "
          "read_ahead or max_tokens");
    }
    if (state.learned_size > 0) fast_.own();
    State own = begin(i);
    own.counters = state.counters;
    own.pending.assign(state.pending.begin(), state.pending.end());
    own.marks.assign(state.marks.begin(), state.marks.end());
    own.random = state.random;
    own.evaluated = known_keys(state);
    own.learned_size = state.learned_size;
    if (own.learned_size > 0) {
      fast_.put(i, state);
    } else {
      fast_.start(i);
    }
    backend().copy(state.cache.data(), cache_of(i), plan_.caches.size());
    replace(i, std::move(own));
  }

  /// The state of a document not begun.
  void reset(Index i) {
    State own = begin(i);
    fast_.start(i);
    backend().fill(CacheScalar{}, cache_of(i), plan_.caches.size());
    replace(i, std::move(own));
  }

  /// Clears the keys and values of the unfinished chunk.
  void forget_keys(Index i) {
    const Index begin = (*this)[i].state.boundary();
    clear_keys(backend(), plan_.caches, cache_of(i), begin, begin + plan_.chunk, plan_.chunk);
    (*this)[i].change_keys(0);
  }

  /// Pending tokens whose keys are known, when the logits behind them are not.
  static Index known_keys(const State& state) {
    return std::clamp<Index>(state.evaluated, 0, std::max<Index>(0, std::ssize(state.pending) - 1));
  }

 private:
  State begin(Index i) const {
    State state;
    reserve(state, plan_.chunk);
    state.random = Random{options_.seed + static_cast<std::uint64_t>(i)};
    return state;
  }
  void replace(Index i, State state) {
    (*this)[i].state = std::move(state);
    (*this)[i].next.reset();
  }
  CacheScalar* cache_of(Index i) { return cache_.data() + i * plan_.caches.size(); }

  WeightsType weights_;
  LearnerType learner_;
  SessionOptions options_;
  Plan plan_;
  typename B::template Buffer<CacheScalar> cache_;  // one document's behind the other's
  Weights fast_;
  std::vector<Document> documents_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
