// SPDX-License-Identifier: MIT
/// \file
/// The reading of several documents together: a round takes each as far as its chunk goes.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ttt/inner/batch_documents.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Moves several documents' states forward. A round either takes all that are part of it or, if it
/// throws, none. Batch is its public face: it checks arguments and loops.
template <class WeightsType, class LearnerType>
class BatchReader {
 public:
  using Documents = BatchDocuments<WeightsType, LearnerType>;
  using B = typename WeightsType::BackendType;
  using Scalar = typename B::Scalar;

  BatchReader(WeightsType weights, LearnerType learner, Index sequences, SessionOptions options)
      : all_(std::move(weights), std::move(learner), sequences, options),
        pass_(all_.weights().model(), all_.backend(), all_.plan().caches, sequences,
              all_.plan().chunk),
        nll_(static_cast<std::size_t>(sequences * all_.plan().chunk)),
        loss_weights_(nll_.size()),
        nexts_(static_cast<std::size_t>(sequences)),
        found_(nexts_.size()) {
    group_.reserve(nexts_.size());
    pieces_.reserve(nexts_.size());
    moved_.reserve(nexts_.size());
  }

  /// Bytes of everything a batch takes beside the model's own weights, learning included. Throws
  /// what the constructor would, memory apart.
  static Index bytes(const WeightsType& weights, const LearnerType& learner, Index sequences,
                     const SessionOptions& options) {
    const auto plan = Documents::plan(weights, learner, sequences, options);
    const Index scratch =
        Pass::scratch(weights.model(), weights.backend(), plan.caches, sequences, plan.chunk);
    return Documents::bytes(plan, sequences) + scratch * Index{sizeof(Scalar)} +
           Pass::bytes(weights.model(), sequences, plan.chunk);
  }

  Documents& documents() { return all_; }
  const Documents& documents() const { return all_; }

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
    const Index chunk = all_.plan().chunk;
    const auto gather = [&](bool completes) {
      group_.clear();
      for (Index i = 0; i < all_.size(); ++i) {
        const Index left = texts[static_cast<std::size_t>(i)].left;
        if (left > 0 && (!completes || left >= all_[i].room(chunk))) group_.push_back(i);
      }
      return !group_.empty();
    };
    const bool completes = gather(true);
    if (!completes && !gather(false)) return false;
    for (const Index i : group_) {
      Document& d = all_[i];
      const Text& text = texts[static_cast<std::size_t>(i)];
      d.taken = completes ? d.room(chunk) : text.left;
      d.block.assign(d.state, text.tokens, d.taken, text.counts, all_.learner(), frozen);
    }
    if (completes) {
      complete_chunks(texts);
    } else {
      extend_chunks(texts);
    }
    for (const Index i : group_) {
      Document& d = all_[i];
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
      Document& d = all_[i];
      if (d.next) continue;
      group_.push_back(i);
      const Index first = d.state.evaluated;
      pieces_.push_back({i, d.state.boundary() + first,
                         std::span(d.state.pending).subspan(static_cast<std::size_t>(first))});
    }
    if (group_.empty()) return;
    pass_.set(pieces_, false);
    pass_.next(all_.fast().tree(pass_.parts()), all_.cache(), nexts_);
    for (std::size_t s = 0; s < group_.size(); ++s) {
      if (std::isfinite(nexts_[s].log_sum)) continue;
      forget();
      fail<NonFiniteError>(std::string(who) + ": a logit of document " + std::to_string(group_[s]) +
                           " is not finite");
    }
    for (std::size_t s = 0; s < group_.size(); ++s) {
      Document& d = all_[group_[s]];
      d.next = nexts_[s];
      d.state.evaluated = static_cast<Index>(d.state.pending.size());
      d.state.logits.clear();
    }
  }

  /// Of an evaluated document: the likeliest token, the first of several, and all logits.
  Token likeliest(Index i) const { return all_[i].next->likeliest; }
  std::span<const Scalar> logits(Index i) {
    std::vector<Scalar>& own = all_[i].state.logits;
    if (own.empty()) {
      own.resize(static_cast<std::size_t>(all_.weights().config().vocabulary));
      pass_.logits(i, 0, own);
    }
    return own;
  }

 private:
  using Document = typename Documents::Document;
  using Pass = BatchPass<typename WeightsType::Model, B>;
  using Piece = typename Pass::Piece;
  static constexpr bool ahead = steps_ahead<LearnerType, B>;

  /// Scores the whole chunks as one block each and learns from those that may be learned from.
  void complete_chunks(std::span<const Text> texts) {
    bool learn = false;
    pieces_.clear();
    for (const Index i : group_) {
      Document& d = all_[i];
      d.learns = teaches<LearnerType>(all_.plan(), d.block);
      learn = learn || d.learns;
      pieces_.push_back({i, d.state.boundary(), d.block.tokens()});
    }
    if (learn) all_.fast().own();
    for (const Index i : group_) all_[i].change_keys(0);  // what was computed piece by piece
    run(learn);
    for (std::size_t s = 0; s < group_.size(); ++s) {
      const Index i = group_[s];
      Document& d = all_[i];
      deliver(texts, s, 0);
      if (!d.learns) continue;
      Counters& counters = d.state.counters;
      if constexpr (ahead) {
        count(Step::of(found_[s]), counters);
      } else {
        count(all_.fast().step(all_.backend(), i, counters.inner_steps), counters);
      }
      d.state.learned_size = all_.plan().learned_size();
    }
  }

  /// Scores what is there of the chunks, each from where its last piece ended.
  void extend_chunks(std::span<const Text> texts) {
    pieces_.clear();
    for (const Index i : group_) {
      const Document& d = all_[i];
      const Index first = d.state.evaluated;
      const auto tokens = d.block.tokens().subspan(static_cast<std::size_t>(first));
      Scalar* const out = texts[static_cast<std::size_t>(i)].out;
      if (out == nullptr) continue;  // what nobody asks for yet is computed when somebody does
      if (d.next) out[0] = score(i, tokens[0]);
      if (tokens.size() > 1) pieces_.push_back({i, d.state.boundary() + first, tokens});
    }
    for (const Piece& piece : pieces_) {
      Document& d = all_[piece.place];
      d.change_keys(Documents::known_keys(d.state));
    }
    if (!pieces_.empty()) run(false);
    for (std::size_t s = 0; s < pieces_.size(); ++s) {
      deliver(texts, s, pieces_[s].position - all_[pieces_[s].place].state.boundary());
    }
    for (const Index i : group_) {
      Document& d = all_[i];
      const bool scored = texts[static_cast<std::size_t>(i)].out != nullptr;
      d.change_keys(scored ? std::ssize(d.block.tokens()) - 1 : d.state.evaluated);
    }
  }

  /// The scores of a piece, which begins at token `first` of its block, as far as they are new.
  void deliver(std::span<const Text> texts, std::size_t s, Index first) {
    const Index i = pieces_[s].place, pending = std::ssize(all_[i].state.pending);
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
    const Document& d = all_[i];
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
    const auto& tree = all_.fast().tree(parts);
    if (learn && has_closed_form<LearnerType>) {
      pass_.score(tree, all_.cache(), nll, &all_.fast().gradients(parts));
    } else if (learn) {
      const std::span<Scalar> all = std::span(loss_weights_).first(rows);
      std::ranges::fill(all, Scalar(0));
      for (const SequencePart& part : parts) {
        const Document& d = all_[part.place];
        if (!d.learns) continue;
        d.block.weigh(
            all.subspan(static_cast<std::size_t>(part.first), static_cast<std::size_t>(part.rows)));
      }
      const auto& gradients = all_.fast().gradients(parts);
      if constexpr (ahead) {
        const auto steps = [&](const B& machine, View<const Scalar> scores, GradientScale* found) {
          for (std::size_t s = 0; s < parts.size(); ++s) {
            if (!all_[parts[s].place].learns) continue;
            all_.fast().step(machine, parts[s].place, 0, scores, found + s);
          }
        };
        moved_.clear();
        for (const SequencePart& part : parts) {
          moved_.push_back(all_[part.place].learns ? all_.fast().vector(0, part.place) : nullptr);
        }
        pass_.gradient(tree, gradients, all_.cache(), all, nll, {steps, moved_}, found_);
      } else {
        pass_.gradient(tree, gradients, all_.cache(), all, nll);
      }
    } else {
      pass_.score(tree, all_.cache(), nll);
    }
    for (const SequencePart& part : parts) {
      for (Index row = 0; row < part.rows; ++row) {
        if (std::isfinite(nll[static_cast<std::size_t>(part.first + row)])) continue;
        forget();
        fail<NonFiniteError>("read: the score of the token at position " +
                             std::to_string(part.position + row + 1) + " of document " +
                             std::to_string(part.place) + " is not a finite number");
      }
    }
  }

  /// After a failed pass.
  void forget() {
    for (const Piece& piece : pieces_) all_.forget_keys(piece.place);
  }

  Documents all_;
  Pass pass_;

  // Of the round at work.
  std::vector<Index> group_;
  std::vector<Piece> pieces_;
  std::vector<Scalar> nll_;
  std::vector<Scalar> loss_weights_;
  std::vector<NextToken<Scalar>> nexts_;
  std::vector<GradientScale> found_;  // by piece
  std::vector<const void*> moved_;    // likewise: the weights that learn
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
