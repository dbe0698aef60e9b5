// SPDX-License-Identifier: MIT
/// \file
/// The reading of several documents together: a round takes each as far as its chunk goes.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
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

/// Moves several documents' states forward. A round either takes all that are part of it or, if it
/// throws, none. Batch is its public face: it checks arguments and loops.
template <class WeightsType, class LearnerType>
class BatchReader {
  using Pass = BatchPass<typename WeightsType::Model, typename WeightsType::BackendType>;
  using Piece = typename Pass::Piece;
  using Next = typename Pass::Next;
  static constexpr Index most_sequences = 4096;

 public:
  using Model = typename WeightsType::Model;
  using B = typename WeightsType::BackendType;
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  using State = SessionState<B>;
  using Plan = SessionPlan<WeightsType, LearnerType>;

  BatchReader(WeightsType weights, LearnerType learner, Index sequences, SessionOptions options)
      : weights_(std::move(weights)),
        learner_(std::move(learner)),
        options_(options),
        plan_(checked(Plan(weights_, learner_, options_), sequences)),
        cache_(backend().template allocate<CacheScalar>(sequences * plan_.caches.size())),
        pass_(weights_.model(), backend(), plan_.caches, sequences, plan_.chunk),
        fast_(weights_, learner_, plan_, sequences),
        nll_(static_cast<std::size_t>(sequences * plan_.chunk)),
        loss_weights_(nll_.size()),
        nexts_(static_cast<std::size_t>(sequences)) {
    for (Index i = 0; i < sequences; ++i) {
      documents_.emplace_back(plan_.chunk);
      reset(i);
    }
    group_.reserve(nexts_.size());
    pieces_.reserve(nexts_.size());
  }
  BatchReader(const BatchReader&) = delete;
  BatchReader& operator=(const BatchReader&) = delete;

  /// Bytes of everything a batch takes beside the model's own weights, learning included. Throws
  /// Error when sizes do not suit.
  static Index bytes(const WeightsType& weights, const LearnerType& learner, Index sequences,
                     const SessionOptions& options) {
    const Plan plan = checked(Plan(weights, learner, options), sequences);
    const Index scratch =
        Pass::scratch(weights.model(), weights.backend(), plan.caches, sequences, plan.chunk);
    return sequences * (plan.caches.size() * Index{sizeof(CacheScalar)} +
                        (plan.learned + plan.learned_size()) * Index{sizeof(Scalar)} +
                        (narrows<B> ? plan.learned : 0) * Index{sizeof(bfloat16)}) +
           scratch * Index{sizeof(Scalar)} + Pass::bytes(weights.model(), sequences, plan.chunk);
  }

  Index size() const { return std::ssize(documents_); }
  const WeightsType& weights() const { return weights_; }
  const LearnerType& learner() const { return learner_; }
  const Plan& plan() const { return plan_; }

  // ---- states -----------------------------------------------------------------------------------

  /// All but the keys and values and what was learned, which lie with the others'.
  const State& values(Index i) const { return document(i).state; }
  Random& random(Index i) { return document(i).state.random; }

  /// A copy of all of it. Throws Error when memory runs out.
  State state(Index i) const {
    const State& own = values(i);
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
      fail("batch: the state was made by a different model or learner");
    }
    State own;
    reserve(own, plan_.chunk);
    own.counters = state.counters;
    own.pending.insert(own.pending.end(), state.pending.begin(), state.pending.end());
    own.marks.insert(own.marks.end(), state.marks.begin(), state.marks.end());
    own.random = state.random;
    own.evaluated = known_keys(state);
    own.learned_size = state.learned_size;
    if (own.learned_size > 0) {
      fast_.own();
      fast_.put(i, state);
    } else {
      fast_.start(i);
    }
    backend().copy(state.cache.data(), cache_of(i), plan_.caches.size());
    document(i).state = std::move(own);
    document(i).next.reset();
  }

  /// The state of a document not begun.
  void reset(Index i) {
    State state;
    reserve(state, plan_.chunk);
    state.random = Random{options_.seed + static_cast<std::uint64_t>(i)};
    fast_.start(i);
    backend().fill(CacheScalar{}, cache_of(i), plan_.caches.size());
    document(i).state = std::move(state);
    document(i).next.reset();
  }

  // ---- reading ----------------------------------------------------------------------------------

  /// What a document is still to read. Nobody's scores are computed for their own sake where `out`
  /// is null.
  struct Text {
    const Token* tokens = nullptr;
    Index left = 0;
    const std::uint8_t* counts = nullptr;
    Scalar* out = nullptr;
    ReadReport<Scalar>* report = nullptr;
  };

  /// Completes a chunk of every document that has the tokens; when none has, takes the rest of
  /// all. Returns whether anybody had any.
  bool advance(std::span<Text> texts, bool frozen) {
    const auto gather = [&](bool completes) {
      group_.clear();
      for (Index i = 0; i < size(); ++i) {
        const Index left = texts[static_cast<std::size_t>(i)].left;
        if (left > 0 && (!completes || left >= room(i))) group_.push_back(i);
      }
      return !group_.empty();
    };
    const bool completes = gather(true);
    if (!completes && !gather(false)) return false;
    for (const Index i : group_) {
      Document& d = document(i);
      const Text& text = texts[static_cast<std::size_t>(i)];
      d.taken = completes ? room(i) : text.left;
      d.block.assign(d.state, text.tokens, d.taken, text.counts, learner_, frozen);
    }
    if (completes) {
      complete_chunks(texts);
    } else {
      extend_chunks(texts);
    }
    for (const Index i : group_) {
      Document& d = document(i);
      Text& text = texts[static_cast<std::size_t>(i)];
      const auto pending = static_cast<Index>(d.state.pending.size());
      d.state.counters.tokens += d.taken;
      if (text.out != nullptr) {
        if (pending == 0) text.out[0] = std::numeric_limits<Scalar>::quiet_NaN();
        d.block.add_to(*text.report, {text.out, static_cast<std::size_t>(d.taken)}, pending);
        text.report->tokens += d.taken;
        text.out += d.taken;
      }
      d.block.leave(d.state, completes);
      text.tokens += d.taken;
      text.left -= d.taken;
      if (text.counts != nullptr) text.counts += d.taken;
    }
    return true;
  }

  /// Finds out what comes after the pending tokens of these documents, which have some, where that
  /// is not known.
  void evaluate(std::span<const Index> of, const char* who) {
    group_.clear();
    pieces_.clear();
    for (const Index i : of) {
      Document& d = document(i);
      if (d.next) continue;
      group_.push_back(i);
      const Index first = d.state.evaluated;
      pieces_.push_back({i, d.state.boundary() + first,
                         std::span(d.state.pending).subspan(static_cast<std::size_t>(first))});
    }
    if (group_.empty()) return;
    pass_.set(pieces_, false);
    pass_.next(fast_.tree(pass_.parts()), cache_.data(), nexts_);
    for (std::size_t s = 0; s < group_.size(); ++s) {
      if (std::isfinite(nexts_[s].log_sum)) continue;
      forget_keys();
      fail<NonFiniteError>(std::string(who) + ": a logit of sequence " + std::to_string(group_[s]) +
                           " is not finite");
    }
    for (std::size_t s = 0; s < group_.size(); ++s) {
      Document& d = document(group_[s]);
      d.next = nexts_[s];
      d.state.evaluated = static_cast<Index>(d.state.pending.size());
      d.state.logits.clear();
    }
  }

  /// Of an evaluated document: the likeliest token, the first of several, and all logits.
  Token likeliest(Index i) const { return document(i).next->likeliest; }
  std::span<const Scalar> logits(Index i) {
    std::vector<Scalar>& own = document(i).state.logits;
    if (own.empty()) {
      own.resize(static_cast<std::size_t>(weights_.config().vocabulary));
      pass_.logits(i, 0, own);
    }
    return own;
  }

 private:
  struct Document {
    explicit Document(Index chunk) : block(chunk) {}
    State state;  // without memory of the backend's
    std::optional<Next> next;
    PendingBlock<B> block;
    Index taken = 0;
    bool learns = false;
  };

  static Plan checked(const Plan& plan, Index sequences) {
    if (sequences < 1 || sequences > most_sequences) {
      fail("batch: " + std::to_string(sequences) + " sequences, expected from 1 to " +
           std::to_string(most_sequences));
    }
    if (plan.caches.size() > most_elements / sequences) {
      fail("batch: out of memory: " + std::to_string(sequences) +
           " windows are too large to address");
    }
    return plan;
  }

  const B& backend() const { return weights_.backend(); }
  Document& document(Index i) { return documents_[static_cast<std::size_t>(i)]; }
  const Document& document(Index i) const { return documents_[static_cast<std::size_t>(i)]; }
  CacheScalar* cache_of(Index i) { return cache_.data() + i * plan_.caches.size(); }
  /// New tokens until the chunk is complete.
  Index room(Index i) const { return plan_.chunk + 1 - std::ssize(values(i).pending); }
  /// Pending tokens whose keys are known, when the logits behind them are not.
  static Index known_keys(const State& state) {
    return std::clamp<Index>(state.evaluated, 0, std::max<Index>(0, std::ssize(state.pending) - 1));
  }

  /// Scores the whole chunks as one block each and learns from those that may be learned from.
  void complete_chunks(std::span<const Text> texts) {
    bool learn = false;
    pieces_.clear();
    for (const Index i : group_) {
      Document& d = document(i);
      d.learns = teaches<LearnerType>(plan_, d.block);
      learn = learn || d.learns;
      pieces_.push_back({i, d.state.boundary(), d.block.tokens()});
    }
    if (learn) fast_.own();
    for (const Index i : group_) change_keys(i, 0);  // what was computed piece by piece
    run(learn);
    for (std::size_t s = 0; s < group_.size(); ++s) {
      const Index i = group_[s];
      Document& d = document(i);
      deliver(texts, s, 0);
      if (!d.learns) continue;
      fast_.step(i, d.state.counters);
      d.state.learned_size = plan_.learned_size();
    }
  }

  /// Scores what is there of the chunks, each from where its last piece ended.
  void extend_chunks(std::span<const Text> texts) {
    pieces_.clear();
    for (const Index i : group_) {
      const Document& d = document(i);
      const Index first = d.state.evaluated;
      const auto tokens = d.block.tokens().subspan(static_cast<std::size_t>(first));
      Scalar* const out = texts[static_cast<std::size_t>(i)].out;
      if (out == nullptr) continue;  // what nobody asks for yet is computed when somebody does
      if (d.next) out[0] = score(i, tokens[0]);
      if (tokens.size() > 1) pieces_.push_back({i, d.state.boundary() + first, tokens});
    }
    for (const Piece& piece : pieces_) change_keys(piece.place, known_keys(values(piece.place)));
    if (!pieces_.empty()) run(false);
    for (std::size_t s = 0; s < pieces_.size(); ++s) {
      deliver(texts, s, pieces_[s].position - values(pieces_[s].place).boundary());
    }
    for (const Index i : group_) {
      const bool scored = texts[static_cast<std::size_t>(i)].out != nullptr;
      change_keys(i, scored ? std::ssize(document(i).block.tokens()) - 1 : values(i).evaluated);
    }
  }

  /// The scores of a piece, which begins at token `first` of its block, as far as they are new.
  void deliver(std::span<const Text> texts, std::size_t s, Index first) {
    const Index i = pieces_[s].place, pending = std::ssize(values(i).pending);
    const SequencePart part = pass_.parts()[s];
    Scalar* const out = texts[static_cast<std::size_t>(i)].out;
    if (out == nullptr) return;
    for (Index row = std::max<Index>(0, std::max<Index>(1, pending) - first - 1); row < part.rows;
         ++row) {
      out[first + row + 1 - pending] = nll_[static_cast<std::size_t>(part.first + row)];
    }
  }

  /// -log p of a token behind an evaluated document.
  Scalar score(Index i, Token token) const {
    const Document& d = document(i);
    if (token == d.next->likeliest) return d.next->log_sum - d.next->most;
    Scalar logit = 0;
    pass_.logits(i, token, {&logit, 1});
    return d.next->log_sum - logit;
  }

  /// Runs the pieces; nothing but keys and values beyond what is known has changed if it throws.
  void run(bool learn) {
    pass_.set(pieces_, true);
    const auto parts = pass_.parts();
    const auto rows = static_cast<std::size_t>(pass_.rows());
    const std::span<Scalar> nll = std::span(nll_).first(rows);
    const auto& tree = fast_.tree(parts);
    if (learn && has_closed_form<LearnerType>) {
      pass_.score(tree, cache_.data(), nll, &fast_.gradients(parts));
    } else if (learn) {
      const std::span<Scalar> all = std::span(loss_weights_).first(rows);
      std::ranges::fill(all, Scalar(0));
      for (const SequencePart& part : parts) {
        const Document& d = document(part.place);
        if (!d.learns) continue;
        d.block.weigh(
            all.subspan(static_cast<std::size_t>(part.first), static_cast<std::size_t>(part.rows)));
      }
      pass_.gradient(tree, fast_.gradients(parts), cache_.data(), all, nll);
    } else {
      pass_.score(tree, cache_.data(), nll);
    }
    for (const SequencePart& part : parts) {
      for (Index row = 0; row < part.rows; ++row) {
        if (std::isfinite(nll[static_cast<std::size_t>(part.first + row)])) continue;
        forget_keys();
        fail<NonFiniteError>("read: the score of the token at position " +
                             std::to_string(part.position + row + 1) + " of sequence " +
                             std::to_string(part.place) + " is not a finite number");
      }
    }
  }

  /// So many of a document's keys are known from now on, and nothing of the token behind them.
  void change_keys(Index i, Index known) {
    document(i).state.evaluated = known;
    document(i).state.logits.clear();
    document(i).next.reset();
  }
  /// Clears those of the unfinished chunks that a failed pass has written to.
  void forget_keys() {
    for (const Piece& piece : pieces_) {
      const Index begin = values(piece.place).boundary();
      clear_keys(backend(), plan_.caches, cache_of(piece.place), begin, begin + plan_.chunk,
                 plan_.chunk);
      change_keys(piece.place, 0);
    }
  }

  WeightsType weights_;
  LearnerType learner_;
  SessionOptions options_;
  Plan plan_;
  typename B::template Buffer<CacheScalar> cache_;  // one document's behind the other's
  Pass pass_;
  BatchWeights<WeightsType, LearnerType> fast_;
  std::vector<Document> documents_;

  // Of the round at work.
  std::vector<Index> group_;
  std::vector<Piece> pieces_;
  std::vector<Scalar> nll_;
  std::vector<Scalar> loss_weights_;
  std::vector<Next> nexts_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
