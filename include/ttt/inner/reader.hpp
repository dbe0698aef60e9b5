// SPDX-License-Identifier: MIT
/// \file
/// The reading itself: pieces of any size come in, chunks are scored and learned from.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ttt/inner/document.hpp>
#include <ttt/inner/fast_weights.hpp>
#include <ttt/inner/report.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Moves one document's state forward, a piece of a chunk at a time. Whatever throws leaves the
/// state as it was. Session is its public face: it checks arguments and loops.
template <class WeightsType, class LearnerType>
class Reader {
 public:
  using Model = typename WeightsType::Model;
  using B = typename WeightsType::BackendType;
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  using State = SessionState<B>;
  using Plan = SessionPlan<WeightsType, LearnerType>;

  Reader(WeightsType weights, LearnerType learner, SessionOptions options)
      : weights_(std::move(weights)),
        learner_(std::move(learner)),
        options_(options),
        plan_(weights_, learner_, options_),
        pass_(weights_.model(), weights_.backend(), plan_.caches, plan_.chunk, plan_.ahead),
        fast_(weights_, learner_, plan_),
        state_(fresh()),
        block_(plan_.chunk) {
    const auto chunk = static_cast<std::size_t>(plan_.chunk);
    if (plan_.ahead > 1) {
      blocks_.reserve(static_cast<std::size_t>(pass_.most_ahead()) + 1);
    }
    nll_.resize(chunk);
    loss_weights_.resize(chunk);
  }

  const WeightsType& weights() const { return weights_; }
  const LearnerType& learner() const { return learner_; }
  const SessionOptions& options() const { return options_; }
  const Plan& plan() const { return plan_; }
  const State& state() const { return state_; }
  Random& random() { return state_.random; }

  /// The state of a document not begun.
  State fresh() const {
    State state;
    state.cache_size = plan_.caches.size();
    state.cache = weights_.backend().template allocate<CacheScalar>(state.cache_size);
    weights_.backend().fill(CacheScalar{}, state.cache.data(), state.cache_size);
    state.random = Random{options_.seed};
    reserve(state);
    return state;
  }

  /// Replaces the state by one made elsewhere (a file). Throws Error unless its sizes are this
  /// session's; then nothing has changed.
  void adopt(State state) {
    if (!fits(plan_, state, weights_.config().vocabulary, plan_.most_tokens)) {
      fail(
          "session: the state was made by a different model or learner, or with another "
          "read_ahead or max_tokens");
    }
    reserve(state);
    pass_.forget();  // it writes into the old state
    state_ = std::move(state);
    next_.reset();
    fast_.show(weights_, learner_, state_);
  }

  /// The state becomes that of a document not begun, with its keys in the same memory: what the
  /// backend has prepared for that may stay good.
  void reset() {
    pass_.forget();
    fast_.disown(weights_, learner_, state_);
    weights_.backend().fill(CacheScalar{}, state_.cache.data(), state_.cache_size);
    state_.counters = {};
    state_.pending.clear();
    state_.marks.clear();
    state_.random = Random{options_.seed};
    state_.evaluated = 0;
    state_.logits.clear();
    next_.reset();
  }

  /// Consumes tokens up to the end of the chunk that is filling; returns how many. Nothing has
  /// changed if it throws. The `left` tokens are what the next calls will be given, until settle().
  template <class Element>
  Index advance(const Element* tokens, Index left, const std::uint8_t* counts, bool frozen,
                Scalar* out, ReadReport<Scalar>& report) {
    const auto pending = static_cast<Index>(state_.pending.size());
    const Index unscored = pending == 0 ? 1 : 0;  // the document's first token
    const Index room = learner_.chunk + 1 - pending;
    const Index taken = std::min(left, room);
    block_.assign(state_, tokens, taken, counts, learner_, frozen);
    if (unscored > 0) out[0] = std::numeric_limits<Scalar>::quiet_NaN();
    if (taken == room) {
      look_ahead(tokens, left);
      complete_chunk(out + unscored, taken - unscored);
    } else {
      extend_chunk(out + unscored, taken - unscored);
    }
    state_.counters.tokens += taken;
    block_.add_to(report, {out, static_cast<std::size_t>(taken)}, pending);
    block_.leave(state_, taken == room);
    return taken;
  }

  /// Forgets what was computed ahead: at the end of a piece, and in the middle of one before
  /// anybody looks at the state or goes another way. A failure to is not told: the machine has
  /// failed, and will say so when it is asked for anything.
  void settle() noexcept {
    try {
      if (pass_.ahead() > state_.boundary()) forget_keys();
    } catch (...) {
    }
    pass_.forget();
  }

  /// See Session::logits.
  std::span<const Scalar> logits() {
    evaluate("logits");
    bring_logits();
    return state_.logits;
  }

  /// Their largest, the first of several; they stay where they were computed.
  Token likeliest() {
    evaluate("generate");
    if (next_) return next_->likeliest;
    return static_cast<Token>(std::ranges::max_element(state_.logits) - state_.logits.begin());
  }

 private:
  /// So that consuming a token allocates nothing.
  void reserve(State& state) const {
    detail::reserve(state, learner_.chunk);
    state.logits.reserve(static_cast<std::size_t>(weights_.config().vocabulary));
  }

  /// Finds out what comes after the pending tokens, if that has not been done.
  void evaluate(const char* who) {
    const auto pending = static_cast<Index>(state_.pending.size());
    if (pending == 0) fail(std::string(who) + ": read at least one token first");
    settle();
    if (next_ || state_.evaluated == pending) return;
    const Index first = state_.evaluated;
    const auto next = pass_.next(fast_.tree(), state_.cache.data(),
                                 std::span(state_.pending).subspan(static_cast<std::size_t>(first)),
                                 state_.boundary() + first);
    if (!std::isfinite(next.log_sum)) {
      forget_keys();
      fail<NonFiniteError>(std::string(who) + ": a logit is not finite");
    }
    next_ = next;
  }
  void bring_logits() {
    if (!next_) return;
    state_.logits.resize(static_cast<std::size_t>(weights_.config().vocabulary));
    pass_.logits(state_.logits);
    state_.log_sum = next_->log_sum;
    state_.evaluated = static_cast<Index>(state_.pending.size());
    next_.reset();
  }

  /// Has the lower half of the chunk and of whole ones behind it computed, if that has not been
  /// done, and the next group of them with the pass over this one.
  template <class Element>
  void look_ahead(const Element* tokens, Index left) {
    const Index position = state_.boundary();
    const auto pending = static_cast<Index>(state_.pending.size());
    const Index chunks = (pending + left - 1) / learner_.chunk;
    const bool begins = pass_.ahead() <= position;
    if (plan_.ahead < 2 || (begins && chunks < 2)) return;
    const auto add = [&] {
      const Index first = std::max<Index>(0, pass_.ahead() - position);  // from the boundary
      const Index size = std::min(chunks * learner_.chunk - first, pass_.most_ahead());
      if (size <= 0 || !pass_.has_room_ahead(position)) return;
      blocks_.clear();
      for (Index i = first; i <= first + size; ++i) {
        blocks_.push_back(i < pending ? state_.pending[static_cast<std::size_t>(i)]
                                      : static_cast<Token>(tokens[i - pending]));
      }
      pass_.look_ahead(blocks_, position + first);
    };
    if (begins) {
      state_.evaluated = 0;  // its keys are written over
      add();
      pass_.start_ahead(fast_.tree(), state_.cache.data());
    }
    add();
  }

  /// Scores the whole chunk as one block and, unless it may not, learns from it.
  void complete_chunk(Scalar* out, Index taken) {
    const Index chunk = learner_.chunk;
    const Index position = state_.boundary();
    const bool learn = teaches<LearnerType>(plan_, block_);
    const bool begins = learn && steps_ahead<LearnerType, B> && state_.learned_size == 0;
    state_.evaluated = 0;  // the block overwrites what was computed piece by piece
    next_.reset();
    Step step;
    try {
      if (begins) fast_.own(weights_, learner_, plan_, state_);
      step = pass_over_chunk(position, learn);
      if (pass_.ahead() > position + chunk && !all_finite(nll_)) {
        settle();  // a later chunk's keys may be to blame: zero times one is not zero
        step = pass_over_chunk(position, learn);
      }
      check_finite(nll_, position);
    } catch (...) {
      if (begins) fast_.disown(weights_, learner_, state_);
      throw;
    }
    if (learn && !steps_ahead<LearnerType, B>) {
      fast_.own(weights_, learner_, plan_, state_);
      step = fast_.step(weights_.backend(), learner_, plan_, state_);
    }
    if (learn) count(step, state_.counters);
    std::copy_n(nll_.data() + (chunk - taken), taken, out);
  }
  /// The scores of the chunk, with what is to be learned from it; of a learner that steps ahead,
  /// its step too, unless a score is not finite.
  Step pass_over_chunk(Index position, bool learn) {
    const auto& tree = fast_.tree();
    CacheScalar* const cache = state_.cache.data();
    const std::span<const Token> tokens = block_.tokens();
    if (learn && has_closed_form<LearnerType>) {
      pass_.closed_form(tree, fast_.gradients(), cache, tokens, position, nll_);
    } else if (learn) {
      block_.weigh(loss_weights_);
      if constexpr (steps_ahead<LearnerType, B>) {
        const auto update = [&](const B& machine, View<const Scalar> scores, GradientScale* found) {
          fast_.step(machine, learner_, plan_, state_, scores, found);
        };
        const void* const learned = state_.learned.data();
        return Step::of(pass_.gradient(tree, fast_.gradients(), cache, tokens, position,
                                       loss_weights_, nll_, {update, {&learned, 1}}));
      } else {
        pass_.gradient(tree, fast_.gradients(), cache, tokens, position, loss_weights_, nll_);
      }
    } else {
      pass_.score(tree, cache, tokens, position, nll_);
    }
    return {};
  }

  /// Scores the part of the chunk that is there, beginning where the last piece ended.
  void extend_chunk(Scalar* out, Index taken) {
    const auto pending = std::max<Index>(1, static_cast<Index>(state_.pending.size()));
    const std::span<const Token> block = block_.tokens();
    const bool foreseen = next_ && block[static_cast<std::size_t>(pending)] == next_->likeliest;
    if (foreseen) {
      out[0] = next_->log_sum - next_->most;
    } else {
      bring_logits();
    }
    const Index first = foreseen ? pending : state_.evaluated;
    const Index targets_end = pending + taken;  // in the block
    if (first == pending && !foreseen) {
      const auto target = static_cast<std::size_t>(block[static_cast<std::size_t>(pending)]);
      out[0] = state_.log_sum - state_.logits[target];
    }
    if (first < targets_end - 1) {
      const auto tokens = block.subspan(static_cast<std::size_t>(first));
      const std::span<Scalar> nll(nll_.data(), tokens.size() - 1);
      state_.evaluated = std::min(first, pending - 1);
      pass_.score(fast_.tree(), state_.cache.data(), tokens, state_.boundary() + first, nll);
      check_finite(nll, state_.boundary() + first);
      // nll[j] scores block[first + 1 + j]; the new tokens begin at block[pending].
      for (Index i = std::max(pending, first + 1); i < targets_end; ++i) {
        out[i - pending] = nll[static_cast<std::size_t>(i - first - 1)];
      }
    }
    state_.evaluated = targets_end - 1;
    state_.logits.clear();
    next_.reset();
  }

  static bool all_finite(std::span<const Scalar> values) {
    return std::ranges::all_of(values, [](Scalar x) { return std::isfinite(x); });
  }

  void check_finite(std::span<const Scalar> nll, Index position) {
    for (std::size_t i = 0; i < nll.size(); ++i) {
      if (std::isfinite(nll[i])) continue;
      forget_keys();
      fail<NonFiniteError>("read: the score of the token at position " +
                           std::to_string(position + static_cast<Index>(i) + 1) +
                           " is not a finite number");
    }
  }

  /// Clears the keys and values of the unfinished chunk and those computed ahead.
  void forget_keys() {
    const Index end = std::max(pass_.ahead(), state_.boundary() + learner_.chunk);
    pass_.forget();
    clear_keys(weights_.backend(), plan_.caches, state_.cache.data(), state_.boundary(), end,
               learner_.chunk);
    state_.evaluated = 0;
    next_.reset();
  }

  WeightsType weights_;
  LearnerType learner_;
  SessionOptions options_;
  Plan plan_;
  ChunkPass<Model, B> pass_;
  FastWeights<WeightsType, LearnerType> fast_;
  State state_;
  std::optional<NextToken<Scalar>> next_;  // behind the pending tokens

  // The block at work: pending tokens and new ones.
  PendingBlock<B> block_;
  std::vector<Token> blocks_;  // those that are looked ahead at
  std::vector<Scalar> nll_;
  std::vector<Scalar> loss_weights_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
