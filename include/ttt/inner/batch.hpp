// SPDX-License-Identifier: MIT
/// \file
/// Several documents read and continued together by one model.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <ttt/inner/batch_reader.hpp>
#include <ttt/inner/inner_loop.hpp>
#include <ttt/model/sampler.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::inline TTT_ABI {

/// Options of one read of a batch. Everything referred to must outlive the call, nothing longer.
struct BatchReadOptions {
  /// One a document, each with one entry a token, 0 to leave it out of the loss; or none at all.
  std::span<const std::span<const std::uint8_t>> loss_masks = {};
  std::stop_token stop = {};  // checked before every round
};

/// Options of one generation by a batch; see GenerateOptions.
struct BatchGenerateOptions {
  std::span<const Token> stop_tokens = {};  // consumed, not returned; that document ends
  float repetition_penalty = 1.0f;          // of what the document itself has made in this call
  std::optional<std::uint64_t> seed = {};   // document i's random numbers begin at seed + i
  FunctionRef<void(Index document, Token token)> on_token = {};
  std::stop_token stop = {};
};

/// Several documents, read and continued by one model on one thread at a time: what a Session is to
/// one. Everything that the documents share is computed for all of them at once, so decoding reads
/// the weights once for a token of each; each learns in weights of its own.
///
/// Documents may stand anywhere and be given texts of any length, none included. A read goes in
/// rounds: those that have the tokens complete a chunk each, in one pass; at last what remains of
/// all texts, shorter than a chunk, is one pass. So a document with a short text waits for the
/// others, and costs nothing meanwhile.
///
/// Every document comes to the state that a Session of the same options would come to, to rounding,
/// for products of other shapes add in another order. States are values: state() and adopt() move a
/// document between batches, sessions and their files.
template <class WeightsType, class LearnerType = InnerLoop<Sgd>>
class Batch {
  using Model = typename WeightsType::Model;
  using B = typename WeightsType::BackendType;
  using Reader = detail::BatchReader<WeightsType, LearnerType>;
  using Text = typename Reader::Text;
  static_assert(Learner<LearnerType, B>,
                "ttt: the learner lacks a member that Learner asks for: chunk, slots, "
                "learns(name), masks(token) or update(backend, update); see "
                "docs/concepts.md#learner");

 public:
  using Scalar = typename B::Scalar;
  using State = SessionState<B>;
  using Report = ReadReport<Scalar>;

  /// So many documents, not begun; the random numbers of document i begin at options.seed + i.
  /// Nothing is read ahead: options.read_ahead is for states to fit sessions of the same value. All
  /// memory is taken here, but for the weights that learn, of all documents: when the first learns,
  /// or when one that has is adopted.
  /// Throws Error when the learner does not suit the model, a size is missing, or memory runs out.
  Batch(WeightsType weights, LearnerType learner, Index sequences, SessionOptions options = {})
      : reader_(
            std::make_unique<Reader>(std::move(weights), std::move(learner), sequences, options)) {}

  /// Bytes that such a batch will take beside the weights, learning included; nothing is allocated
  /// to find out. Throws what the constructor would, memory apart.
  static Index required_bytes(const WeightsType& weights, const LearnerType& learner,
                              Index sequences, const SessionOptions& options = {}) {
    return Reader::bytes(weights, learner, sequences, options);
  }

  Index size() const { return documents().size(); }

  /// Scores texts[i] as the continuation of document i, then learns from every chunk they complete.
  ///
  /// Throws, before anything changes, when there is not one text a document, a token is outside the
  /// vocabulary, a text would outgrow max_tokens, or a mask has the wrong size; NonFiniteError when
  /// a score is not finite. A round that fails changes no document. What fails after some rounds is
  /// thrown as ReadError, which says how many tokens were consumed, of all documents together;
  /// counters(i).tokens says it of each.
  std::vector<Report> read(std::span<const std::span<const Token>> texts,
                           const BatchReadOptions& options = {}) {
    check(texts, options);
    std::vector<Report> reports(texts.size());
    std::vector<Text> work(texts.size());
    std::vector<Counters> before;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      reports[i].nll.resize(texts[i].size());
      work[i] = {texts[i].data(), std::ssize(texts[i]), nullptr, reports[i].nll.data(),
                 &reports[i]};
      if (!options.loss_masks.empty()) work[i].counts = options.loss_masks[i].data();
      before.push_back(counters(static_cast<Index>(i)));
    }
    consume(work, options.stop);
    for (std::size_t i = 0; i < reports.size(); ++i) {
      const Counters& now = counters(static_cast<Index>(i));
      reports[i].nll.resize(static_cast<std::size_t>(reports[i].tokens));
      reports[i].inner_steps = now.inner_steps - before[i].inner_steps;
      reports[i].skipped_steps = now.skipped_steps - before[i].skipped_steps;
    }
    return reports;
  }
  std::vector<Report> read(const std::vector<std::vector<Token>>& texts,
                           const BatchReadOptions& options = {}) {
    const std::vector<std::span<const Token>> all(texts.begin(), texts.end());
    return read(std::span(all), options);
  }

  /// Logits of document i's next token; the span is good until the document changes. What is not
  /// known yet is computed for all documents that have begun, in one pass. Throws when this one has
  /// not, NonFiniteError when a logit of any of them is not finite (state() and reset() take such a
  /// document out).
  std::span<const Scalar> logits(Index i) {
    check_begun("logits", check_index(i));
    reader_->evaluate(begun(), "logits");
    return reader_->logits(i);
  }
  /// The likeliest next token of every document, all of which must have begun; likewise.
  std::vector<Token> likeliest() {
    const std::vector<Index> all = everybody("likeliest");
    reader_->evaluate(all, "likeliest");
    std::vector<Token> tokens;
    for (const Index i : all) tokens.push_back(reader_->likeliest(i));
    return tokens;
  }

  /// Consumes one token of every document as read() does, but computes no scores: documents learn
  /// from the chunks that fill up, and the rest is left to logits() or likeliest().
  void step(std::span<const Token> tokens) {
    std::vector<std::span<const Token>> texts;
    for (const Token& token : tokens) texts.emplace_back(&token, 1);
    check(texts, {});
    std::vector<Text> work(tokens.size());
    for (std::size_t i = 0; i < work.size(); ++i) work[i] = {&tokens[i], 1};
    consume(work, {});
  }

  /// Continues every document by up to `count` tokens, one of each a pass, each consumed as if it
  /// had been read. A document ends early at a stop token or at max_tokens, and the others go on.
  /// Throws as read() does; tokens made until then stay consumed.
  template <class S = Temperature>
  std::vector<std::vector<Token>> generate(Index count, const S& sampler = {},
                                           const BatchGenerateOptions& options = {}) {
    static_assert(Sampler<S>,
                  "ttt: the sampler lacks Token operator()(std::span<float>, Random&) const; see "
                  "docs/concepts.md#sampler");
    detail::check_generation(count, options.repetition_penalty);
    std::vector<Index> active = everybody("generate");
    for (const Index i : active) {
      if (options.seed)
        documents()[i].state.random = Random{*options.seed + static_cast<std::uint64_t>(i)};
    }
    std::vector<std::vector<Token>> made(active.size());
    std::vector<Token> tokens(active.size());
    std::vector<float> scratch;
    std::vector<Random> random(active.size());
    for (Index n = 0; n < count && !options.stop.stop_requested(); ++n) {
      std::erase_if(active,
                    [&](Index i) { return counters(i).tokens >= documents().plan().most_tokens; });
      if (active.empty()) break;
      reader_->evaluate(active, "generate");
      std::vector<Text> work(made.size());
      for (const Index i : active) {
        const auto at = static_cast<std::size_t>(i);
        random[at] = documents()[i].state.random;
        tokens[at] =
            next_token(i, sampler, made[at], options.repetition_penalty, random[at], scratch);
        check_text(i, {&tokens[at], 1});
        work[at] = {&tokens[at], 1};
      }
      const auto keep_random = [&] {  // of those whose tokens are consumed
        for (const Index i : active) {
          const auto at = static_cast<std::size_t>(i);
          if (work[at].left == 0) documents()[i].state.random = random[at];
        }
      };
      try {
        consume(work, {});
      } catch (...) {
        keep_random();
        throw;
      }
      keep_random();
      std::erase_if(active, [&](Index i) {
        return std::ranges::count(options.stop_tokens, tokens[static_cast<std::size_t>(i)]) > 0;
      });
      for (const Index i : active) {
        made[static_cast<std::size_t>(i)].push_back(tokens[static_cast<std::size_t>(i)]);
        if (options.on_token) options.on_token(i, tokens[static_cast<std::size_t>(i)]);
      }
    }
    return made;
  }

  /// From now on, score without learning, and learn: as Session's, for all documents.
  void freeze() { frozen_ = true; }
  void learn() { frozen_ = false; }
  bool frozen() const { return frozen_; }

  /// Document i's state, for a session or another batch to adopt. Costs a copy.
  State state(Index i) const { return documents().state(check_index(i)); }
  /// Replaces it by a copy of one of a session or batch with the same weights. Throws Error unless
  /// its sizes are this batch's, or when memory runs out; then nothing has changed.
  void adopt(Index i, const State& state) { documents().adopt(check_index(i), state); }
  /// Forgets document i, or all.
  void reset(Index i) { documents().reset(check_index(i)); }
  void reset() {
    for (Index i = 0; i < size(); ++i) documents().reset(i);
  }

  const Counters& counters(Index i) const { return documents()[check_index(i)].state.counters; }
  const WeightsType& weights() const { return documents().weights(); }
  const LearnerType& learner() const { return documents().learner(); }

 private:
  Index check_index(Index i) const {
    if (i < 0 || i >= size()) {
      detail::fail("batch: there is no document " + std::to_string(i) + " of " +
                   std::to_string(size()));
    }
    return i;
  }
  void check_begun(const char* who, Index i) const {
    if (counters(i).tokens > 0) return;
    detail::fail(std::string(who) + ": document " + std::to_string(i) + " has read nothing yet");
  }
  std::vector<Index> begun() const {
    std::vector<Index> all;
    for (Index i = 0; i < size(); ++i) {
      if (counters(i).tokens > 0) all.push_back(i);
    }
    return all;
  }
  std::vector<Index> everybody(const char* who) const {
    for (Index i = 0; i < size(); ++i) check_begun(who, i);
    return begun();
  }

  void check(std::span<const std::span<const Token>> texts, const BatchReadOptions& options) const {
    const auto sequences = static_cast<std::size_t>(size());
    const auto& masks = options.loss_masks;
    if (texts.size() != sequences) {
      detail::fail("read: " + std::to_string(texts.size()) + " texts for a batch of " +
                   std::to_string(size()) + " documents");
    }
    if (!masks.empty() && masks.size() != sequences) {
      detail::fail("read: " + std::to_string(masks.size()) + " loss masks for a batch of " +
                   std::to_string(size()) + " documents");
    }
    for (std::size_t i = 0; i < sequences; ++i) {
      check_text(static_cast<Index>(i), texts[i]);
      if (masks.empty() || masks[i].size() == texts[i].size()) continue;
      detail::fail("read: the loss mask of document " + std::to_string(i) + " has " +
                   std::to_string(masks[i].size()) + " entries for " +
                   std::to_string(texts[i].size()) + " tokens");
    }
  }
  void check_text(Index i, std::span<const Token> tokens) const {
    const auto vocabulary = weights().config().vocabulary;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      if (tokens[t] >= 0 && tokens[t] < vocabulary) continue;
      detail::fail("read: token " + std::to_string(tokens[t]) + " at index " + std::to_string(t) +
                   " of document " + std::to_string(i) + " is outside the vocabulary of " +
                   std::to_string(vocabulary));
    }
    const Index most = documents().plan().most_tokens;
    if (std::ssize(tokens) > most - counters(i).tokens) {
      detail::fail("read: " + std::to_string(tokens.size()) + " more tokens of document " +
                   std::to_string(i) + " would exceed max_tokens = " + std::to_string(most));
    }
  }

  void consume(std::span<Text> work, const std::stop_token& stop) {
    const auto left = [&] {
      Index sum = 0;
      for (const Text& text : work) sum += text.left;
      return sum;
    };
    const Index total = left();
    try {
      while (!stop.stop_requested() && reader_->advance(work, frozen_)) {
      }
    } catch (const std::exception& error) {
      tell(total - left(), total, error.what());
    } catch (...) {
      tell(total - left(), total, "an exception of unknown type");
    }
  }

  /// Inside a handler: throws again, with how far it came if it came anywhere.
  [[noreturn]] static void tell(Index done, Index total, const std::string& why) {
    if (done == 0) throw;
    std::throw_with_nested(ReadError("ttt: read: stopped after " + std::to_string(done) +
                                         " tokens of " + std::to_string(total) + ": " + why,
                                     done));
  }

  template <class S>
  Token next_token(Index i, const S& sampler, std::span<const Token> made, float penalty,
                   Random& random, std::vector<float>& scratch) {
    if constexpr (std::is_same_v<S, Greedy>) {
      if (penalty == 1.0f) return reader_->likeliest(i);
    }
    const std::span<const Scalar> logits = reader_->logits(i);
    return detail::sample(sampler, logits, made, penalty, random, scratch);
  }

  auto& documents() { return reader_->documents(); }
  const auto& documents() const { return std::as_const(*reader_).documents(); }

  // Behind a pointer, so that a batch moves although its parts refer to one another.
  std::unique_ptr<Reader> reader_;
  bool frozen_ = false;
};

}  // namespace ttt::inline TTT_ABI
