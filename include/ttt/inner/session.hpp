// SPDX-License-Identifier: MIT
/// \file
/// A document being read: scores first, then learns, in constant memory.
#pragma once

#include <algorithm>
#include <exception>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ttt/inner/inner_loop.hpp>
#include <ttt/inner/reader.hpp>
#include <ttt/inner/report.hpp>
#include <ttt/inner/session_file.hpp>
#include <ttt/model/sampler.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::inline TTT_ABI {

/// One document, read and continued by one model, on one thread at a time.
///
/// Tokens may come in pieces of any size: chunks lie at fixed positions of the document, each is
/// scored under what earlier ones taught and then learned from as one block, so after every
/// completed chunk the state has the same bits whatever the pieces were (to rounding, with
/// SessionOptions::read_ahead above 1). Scores of a piece that ends inside a chunk are computed
/// when asked for and agree to rounding.
///
/// All memory is taken by the constructor, except the weights that learn: those are copied from the
/// model when the first chunk completes. Arguments are checked before anything changes.
template <class WeightsType, class LearnerType = InnerLoop<Sgd>>
class Session {
  using Model = typename WeightsType::Model;
  using B = typename WeightsType::BackendType;
  static_assert(Learner<LearnerType, B>,
                "ttt: the learner lacks a member that Learner asks for: chunk, slots, "
                "learns(name), masks(token) or update(backend, update); see "
                "docs/concepts.md#learner");

 public:
  using Scalar = typename B::Scalar;
  using State = SessionState<B>;
  using Report = ReadReport<Scalar>;

  /// A state put aside: see snapshot().
  class Snapshot {
    friend class Session;
    explicit Snapshot(State state) : state_(std::move(state)) {}
    State state_;
  };

  /// Throws Error when the learner does not suit the model, a size is missing, or memory runs out.
  Session(WeightsType weights, LearnerType learner, SessionOptions options = {})
      : reader_(std::make_unique<detail::Reader<WeightsType, LearnerType>>(
            std::move(weights), std::move(learner), options)) {}

  /// Bytes that a session of this kind will take beside the weights, learning included; nothing is
  /// allocated to find out. Throws what the constructor would, memory apart.
  static Index required_bytes(const WeightsType& weights, const LearnerType& learner,
                              const SessionOptions& options = {}) {
    return detail::SessionPlan<WeightsType, LearnerType>(weights, learner, options).bytes(weights);
  }

  /// Bytes of what this document has taught and left: what a snapshot copies and a file holds.
  Index state_bytes() const {
    return state().cache_size * static_cast<Index>(sizeof(typename B::CacheScalar)) +
           state().learned_size * static_cast<Index>(sizeof(Scalar)) +
           static_cast<Index>(state().pending.size() * (sizeof(Token) + 1));
  }

  /// Scores tokens, then learns from every chunk they complete.
  ///
  /// Throws, before anything changes, when a token is outside the vocabulary, the text would
  /// outgrow max_tokens, or an option has the wrong size; NonFiniteError when a score is not
  /// finite. What fails after some of the tokens were consumed (also a callback) is thrown as
  /// ReadError, which says how many.
  Report read(std::span<const Token> tokens, const ReadOptions<Scalar>& options = {}) {
    return read_elements(tokens.data(), static_cast<Index>(tokens.size()), options);
  }

  /// The same for bytes, by a model whose tokens are bytes.
  Report read(std::string_view text, const ReadOptions<Scalar>& options = {}) {
    check_bytes();
    return read_elements(reinterpret_cast<const unsigned char*>(text.data()),
                         static_cast<Index>(text.size()), options);
  }
  Report read(std::span<const std::uint8_t> bytes, const ReadOptions<Scalar>& options = {}) {
    check_bytes();
    return read_elements(bytes.data(), static_cast<Index>(bytes.size()), options);
  }

  /// Logits of the next token under the current weights: read({t}) would report
  /// -log softmax(logits())[t]. Throws when nothing was read yet, NonFiniteError when one is not
  /// finite. The span is good until the session changes.
  std::span<const Scalar> logits() { return reader_->logits(); }

  /// Continues the document by up to `count` tokens, each consumed as if it had been read: chunks
  /// fill up and are learned from, which makes the token that completes one slower than the rest.
  /// Ends early at a stop token. Throws as read() does; tokens made until then stay consumed.
  template <class S = Temperature>
  std::vector<Token> generate(Index count, const S& sampler = {},
                              const GenerateOptions& options = {}) {
    static_assert(Sampler<S>,
                  "ttt: the sampler lacks Token operator()(std::span<float>, Random&) const; see "
                  "docs/concepts.md#sampler");
    detail::check_generation(count, options.repetition_penalty);
    if (state().pending.empty()) detail::fail("generate: read at least one token first");
    if (options.seed) reader_->random() = Random{*options.seed};
    std::vector<Token> made;
    std::vector<float> scratch;
    while (static_cast<Index>(made.size()) < count && !options.stop.stop_requested()) {
      const Token token = next_token(sampler, made, options.repetition_penalty, scratch);
      read(std::span<const Token>(&token, 1));
      if (std::ranges::find(options.stop_tokens, token) != options.stop_tokens.end()) break;
      made.push_back(token);
      if (options.on_token) options.on_token(token);
    }
    return made;
  }

  /// From now on, score without learning: a chunk that holds a target read while frozen is never
  /// learned from. What was learned stays.
  void freeze() { frozen_ = true; }
  /// From now on, learn.
  void learn() { frozen_ = false; }
  bool frozen() const { return frozen_; }

  /// Puts the state aside. Costs a copy of state_bytes().
  Snapshot snapshot() const {
    reader_->settle();
    return Snapshot(state().clone(backend()));
  }

  /// Goes back to a snapshot of this session or of another with the same weights and learner.
  void restore(const Snapshot& snapshot) { adopt(snapshot.state_.clone(backend())); }

  /// A second session that goes on from here by itself. It shares the weights and nothing else.
  Session fork() const {
    reader_->settle();
    Session other(weights(), learner(), reader_->options());
    other.adopt(state().clone(backend()));
    other.frozen_ = frozen_;
    return other;
  }

  /// Writes the state to a file that only its owner may read: it holds the pending tokens as they
  /// are, and keys, values and weights from which much of the text can be guessed. Whole or not at
  /// all; throws as io::write_safetensors does.
  void save(const std::string& path) const {
    reader_->settle();
    detail::save_state(path, backend(), state(), identity());
  }

  /// Goes back to a saved state. Throws Error when the file cannot be read, FormatError when it is
  /// damaged or was made by another model, chunk or choice of what learns; then nothing has
  /// changed.
  void load(const std::string& path) {
    adopt(detail::StateReader<B>(path, backend(), identity()).read());
  }

  /// Forgets the document: the model's own weights, an empty window, the seed of the options.
  void reset() { reader_->reset(); }

  const Counters& counters() const { return state().counters; }
  const WeightsType& weights() const { return reader_->weights(); }
  const LearnerType& learner() const { return reader_->learner(); }
  const State& state() const { return reader_->state(); }

  /// Replaces the state by one made elsewhere (a file). Throws Error unless its sizes are this
  /// session's; then nothing has changed.
  void adopt(State state) { reader_->adopt(std::move(state)); }

  /// Scalars of what a state holds once something was learned: weights, then optimizer slots.
  Index learned_size() const { return reader_->plan().learned_size(); }

 private:
  const B& backend() const { return weights().backend(); }

  detail::StateIdentity identity() const {
    const auto& caches = reader_->plan().caches;
    io::Hash64 learns;
    Model::each(
        [&](const ParameterName& name, const Weight<Scalar>&) {
          if (learner().learns(name)) learns.update(to_string(name));
        },
        weights().parameters());
    return {model_hash(weights()),
            learns.value(),
            learner().chunk,
            weights().config().vocabulary,
            reader_->plan().most_tokens,
            {caches.blocks, 2, caches.heads, caches.slots, caches.head_dim},
            {1 + reader_->plan().slots, reader_->plan().learned}};
  }

  void check_bytes() const {
    if (weights().config().vocabulary != 256) {
      detail::fail("read: the model has a vocabulary of " +
                   std::to_string(weights().config().vocabulary) +
                   " tokens, not of the 256 bytes: tokenize the text first");
    }
  }

  template <class Element>
  void check(const Element* tokens, Index size, const ReadOptions<Scalar>& options) const {
    const auto vocabulary = weights().config().vocabulary;
    if constexpr (std::is_same_v<Element, Token>) {
      for (Index i = 0; i < size; ++i) {
        if (tokens[i] < 0 || tokens[i] >= vocabulary) {
          detail::fail("read: token " + std::to_string(tokens[i]) + " at index " +
                       std::to_string(i) + " is outside the vocabulary of " +
                       std::to_string(vocabulary));
        }
      }
    }
    if (!options.loss_mask.empty() && static_cast<Index>(options.loss_mask.size()) != size) {
      detail::fail("read: the loss mask has " + std::to_string(options.loss_mask.size()) +
                   " entries for " + std::to_string(size) + " tokens");
    }
    if (!options.nll.empty() && static_cast<Index>(options.nll.size()) < size) {
      detail::fail("read: the nll buffer has room for " + std::to_string(options.nll.size()) +
                   " scores of " + std::to_string(size));
    }
    if (!Model::is_windowed && size > reader_->options().max_tokens - state().counters.tokens) {
      detail::fail("read: " + std::to_string(size) + " more tokens would exceed max_tokens = " +
                   std::to_string(reader_->options().max_tokens));
    }
  }

  template <class Element>
  Report read_elements(const Element* tokens, Index size, const ReadOptions<Scalar>& options) {
    check(tokens, size, options);
    reader_->settle();
    Report report;
    const Counters before = state().counters;
    std::span<Scalar> out = options.nll;
    if (out.empty()) {
      report.nll.resize(static_cast<std::size_t>(size));
      out = report.nll;
    }
    struct Piece {
      detail::Reader<WeightsType, LearnerType>& reader;
      ~Piece() { reader.settle(); }
    } const piece{*reader_};
    try {
      while (report.tokens < size && !options.stop.stop_requested()) {
        const Index done = report.tokens;
        const Index taken =
            reader_->advance(tokens + done, size - done,
                             options.loss_mask.empty() ? nullptr : options.loss_mask.data() + done,
                             frozen_, out.data() + done, report);
        report.tokens += taken;
        if (options.progress) options.progress(report.tokens, size);
      }
    } catch (const std::exception& error) {
      if (report.tokens == 0) throw;
      std::throw_with_nested(stopped(report.tokens, size, error.what()));
    } catch (...) {
      if (report.tokens == 0) throw;
      std::throw_with_nested(stopped(report.tokens, size, "an exception of unknown type"));
    }
    if (!report.nll.empty()) report.nll.resize(static_cast<std::size_t>(report.tokens));
    report.inner_steps = state().counters.inner_steps - before.inner_steps;
    report.skipped_steps = state().counters.skipped_steps - before.skipped_steps;
    return report;
  }

  static ReadError stopped(Index done, Index size, const std::string& why) {
    return {"ttt: read: stopped after " + std::to_string(done) + " tokens of " +
                std::to_string(size) + ": " + why,
            done};
  }

  template <class S>
  Token next_token(const S& sampler, std::span<const Token> made, float penalty,
                   std::vector<float>& scratch) {
    if constexpr (std::is_same_v<S, Greedy>) {
      if (penalty == 1.0f) return reader_->likeliest();
    }
    return detail::sample(sampler, logits(), made, penalty, reader_->random(), scratch);
  }

  // Behind a pointer, so that a session moves although its parts refer to one another.
  std::unique_ptr<detail::Reader<WeightsType, LearnerType>> reader_;
  bool frozen_ = false;
};

}  // namespace ttt::inline TTT_ABI
