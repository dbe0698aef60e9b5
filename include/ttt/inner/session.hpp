// SPDX-License-Identifier: MIT
/// \file
/// A document being read: scores first, then learns, in constant memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ttt/inner/chunk_pass.hpp>
#include <ttt/inner/inner_loop.hpp>
#include <ttt/inner/report.hpp>
#include <ttt/inner/session_file.hpp>
#include <ttt/inner/state.hpp>
#include <ttt/model/sampler.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::inline TTT_ABI {

/// Options of a session.
struct SessionOptions {
  Index max_tokens = 0;    // the longest text; needed by models with full attention, else unused
  std::uint64_t seed = 0;  // of generation
};

/// One document, read and continued by one model, on one thread at a time.
///
/// Tokens may come in pieces of any size: chunks lie at fixed positions of the document, each is
/// scored under what earlier ones taught and then learned from as one block, so after every
/// completed chunk the state has the same bits whatever the pieces were. Scores of a piece that
/// ends inside a chunk are computed when asked for and agree to rounding.
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
      : weights_(std::move(weights)),
        learner_(std::move(learner)),
        options_(options),
        plan_(weights_, learner_, options_),
        pass_(std::make_unique<ChunkPass<Model, B>>(weights_.model(), backend(), plan_.caches,
                                                    learner_.chunk)),
        gradient_(backend().template allocate<Scalar>(plan_.learned)),
        gradients_(weights_.model().template tree<View<Scalar>>()),
        state_(fresh()) {
    std::size_t at = 0;
    auto shapes = weights_.model().shapes();
    Model::each(
        [&](const ParameterName& name, const Shape& shape, View<Scalar>& leaf) {
          if (!learner_.learns(name)) return;
          leaf = View<Scalar>(gradient_.data() + at, shape.rows, shape.cols);
          at += static_cast<std::size_t>(shape.size());
        },
        shapes, gradients_);
    point_tree();
    const auto chunk = static_cast<std::size_t>(learner_.chunk);
    block_.reserve(chunk + 1);
    marks_.reserve(chunk + 1);
    nll_.resize(chunk);
    loss_weights_.resize(chunk);
  }

  /// Bytes that a session of this kind will take beside the weights, learning included; nothing is
  /// allocated to find out. Throws what the constructor would, memory apart.
  static Index required_bytes(const WeightsType& weights, const LearnerType& learner,
                              const SessionOptions& options = {}) {
    const Plan plan(weights, learner, options);
    const Index scratch = ChunkPass<Model, B>::scratch(weights.model(), weights.backend(),
                                                       plan.caches, learner.chunk);
    return (plan.caches.size() + plan.learned * (2 + plan.slots) + scratch + 2 * learner.chunk) *
               static_cast<Index>(sizeof(Scalar)) +
           (learner.chunk + 1) * static_cast<Index>(sizeof(Token));
  }

  /// Bytes of what this document has taught and left: what a snapshot copies and a file holds.
  Index state_bytes() const {
    return (state_.cache_size + state_.learned_size) * static_cast<Index>(sizeof(Scalar)) +
           static_cast<Index>(state_.pending.size() * (sizeof(Token) + 1));
  }

  /// Scores tokens, then learns from every chunk they complete.
  ///
  /// Throws, before anything changes, when a token is outside the vocabulary, the text would
  /// outgrow max_tokens, or an option has the wrong size; NonFiniteError when a score is not
  /// finite. What fails later (also a callback) is thrown as ReadError with the state at a chunk
  /// boundary.
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
  std::span<const Scalar> logits() {
    const auto pending = static_cast<Index>(state_.pending.size());
    if (pending == 0) detail::fail("logits: read at least one token first");
    if (state_.evaluated < pending) {
      const Index first = state_.evaluated;
      state_.logits.resize(static_cast<std::size_t>(weights_.config().vocabulary));
      pass_->logits(tree_, state_.cache.data(),
                    std::span(state_.pending).subspan(static_cast<std::size_t>(first)),
                    state_.boundary() + first, state_.logits);
      for (const Scalar logit : state_.logits) {
        if (std::isfinite(logit)) continue;
        forget_keys();
        detail::fail<NonFiniteError>("logits: one is not finite");
      }
      state_.evaluated = pending;
    }
    return state_.logits;
  }

  /// Continues the document by up to `count` tokens, each consumed as if it had been read: chunks
  /// fill up and are learned from, which makes the token that completes one slower than the rest.
  /// Ends early at a stop token. Throws as read() does; tokens made until then stay consumed.
  template <class S = Temperature>
  std::vector<Token> generate(Index count, const S& sampler = {},
                              const GenerateOptions& options = {}) {
    static_assert(Sampler<S>,
                  "ttt: the sampler lacks Token operator()(std::span<float>, Random&) const; see "
                  "docs/concepts.md#sampler");
    if (!(options.repetition_penalty > 0) || !std::isfinite(options.repetition_penalty)) {
      detail::fail("generate: repetition_penalty must be positive and finite");
    }
    if (count < 0) detail::fail("generate: the count must not be negative");
    if (state_.pending.empty()) detail::fail("generate: read at least one token first");
    if (options.seed) state_.random = Random{*options.seed};
    std::vector<Token> made;
    std::vector<float> scratch(static_cast<std::size_t>(weights_.config().vocabulary));
    while (static_cast<Index>(made.size()) < count && !options.stop.stop_requested()) {
      std::ranges::transform(logits(), scratch.begin(),
                             [](Scalar logit) { return static_cast<float>(logit); });
      penalise(made, options.repetition_penalty, scratch);
      const Token token = sampler(std::span<float>(scratch), state_.random);
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
  Snapshot snapshot() const { return Snapshot(state_.clone(backend())); }

  /// Goes back to a snapshot of this session or of another with the same weights and learner.
  void restore(const Snapshot& snapshot) { adopt(snapshot.state_.clone(backend())); }

  /// A second session that goes on from here by itself. It shares the weights and nothing else.
  Session fork() const {
    Session other(weights_, learner_, options_);
    other.adopt(state_.clone(backend()));
    other.frozen_ = frozen_;
    return other;
  }

  /// Writes the state to a file that only its owner may read: it holds the pending tokens as they
  /// are, and keys, values and weights from which much of the text can be guessed. Whole or not at
  /// all; throws as io::write_safetensors does.
  void save(const std::string& path) const {
    detail::save_state(path, backend(), state_, identity());
  }

  /// Goes back to a saved state. Throws Error when the file cannot be read, FormatError when it is
  /// damaged or was made by another model, chunk or choice of what learns; then nothing has
  /// changed.
  void load(const std::string& path) {
    adopt(detail::StateReader<B>(path, backend(), identity()).read());
  }

  /// Forgets the document: the model's own weights, an empty window, the seed of the options.
  void reset() { adopt(fresh()); }

  const Counters& counters() const { return state_.counters; }
  const WeightsType& weights() const { return weights_; }
  const LearnerType& learner() const { return learner_; }
  const State& state() const { return state_; }

  /// Replaces the state by one made elsewhere (a file). Throws Error unless its sizes are this
  /// session's; then nothing has changed.
  void adopt(State state) {
    const auto pending = static_cast<Index>(state.pending.size());
    const bool has_logits = static_cast<Index>(state.logits.size()) == weights_.config().vocabulary;
    const bool fits =
        state.cache_size == plan_.caches.size() &&
        (state.learned_size == 0 || state.learned_size == learned_size()) &&
        pending <= learner_.chunk &&
        std::ranges::all_of(
            state.pending,
            [this](Token token) { return token >= 0 && token < weights_.config().vocabulary; }) &&
        state.marks.size() == state.pending.size() &&
        state.pending.empty() == (state.counters.tokens == 0) && state.counters.tokens >= pending &&
        state.boundary() % learner_.chunk == 0 &&
        (Model::is_windowed || state.counters.tokens <= options_.max_tokens) &&
        state.evaluated >= 0 && state.evaluated <= pending &&
        (state.evaluated < pending || pending == 0 || has_logits);
    if (!fits) detail::fail("session: the state was made by a different model or learner");
    reserve(state);
    state_ = std::move(state);
    point_tree();
  }

  /// Scalars of a state's learned weights with the optimizer's slots.
  Index learned_size() const { return plan_.learned * (1 + plan_.slots); }

 private:
  /// The sizes of everything, found before any of it is allocated.
  struct Plan {
    CacheShape<Scalar> caches;
    Index learned = 0;
    Index slots = static_cast<Index>(LearnerType::slots);

    Plan(const WeightsType& weights, const LearnerType& learner, const SessionOptions& options) {
      const auto& model = weights.model();
      const auto& config = model.config();
      const Index chunk = learner.chunk;
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
      const Index reach = Model::is_windowed ? model.window() - 1 + chunk : options.max_tokens;
      const Index slot = 2 * model.blocks() * config.key_heads * config.head_dim;
      if (reach > detail::most_elements / slot - chunk) {
        detail::fail("session: out of memory: the window is too large to address");
      }
      caches = {model.blocks(), config.key_heads, (reach + chunk - 1) / chunk * chunk,
                config.head_dim};
      auto shapes = model.shapes();
      Model::each(
          [&](const ParameterName& name, const Shape& shape) {
            if (!learner.learns(name)) return;
            const bool is_mlp = name.role == Role::Mlp || name.role == Role::DynamicMlp;
            if (!is_mlp || name.suffix_block < 0) {
              detail::fail("session: the learner asks for " + to_string(name) +
                           ", but only the MLPs of the suffix can learn at test time");
            }
            learned += shape.size();
          },
          shapes);
      if (learned == 0 && !std::is_same_v<LearnerType, NoLearning>) {
        detail::fail("session: the learner finds nothing in this model that learns at test time");
      }
    }
  };

  const B& backend() const { return weights_.backend(); }

  State fresh() const {
    State state;
    state.cache_size = plan_.caches.size();
    state.cache = backend().template allocate<Scalar>(state.cache_size);
    backend().fill(Scalar(0), state.cache.data(), state.cache_size);
    state.random = Random{options_.seed};
    reserve(state);
    return state;
  }

  /// So that consuming a token allocates nothing.
  void reserve(State& state) const {
    state.pending.reserve(static_cast<std::size_t>(learner_.chunk) + 1);
    state.marks.reserve(static_cast<std::size_t>(learner_.chunk) + 1);
    state.logits.reserve(static_cast<std::size_t>(weights_.config().vocabulary));
  }

  detail::StateIdentity identity() const {
    const CacheShape<Scalar>& caches = plan_.caches;
    io::Hash64 learns;
    Model::each(
        [&](const ParameterName& name, const Weight<Scalar>&) {
          if (learner_.learns(name)) learns.update(to_string(name));
        },
        weights_.parameters());
    return {model_hash(weights_),
            learns.value(),
            learner_.chunk,
            weights_.config().vocabulary,
            Model::is_windowed ? detail::most_count : options_.max_tokens,
            {caches.blocks, 2, caches.heads, caches.slots, caches.head_dim},
            {1 + plan_.slots, plan_.learned}};
  }

  /// The parameters as this session sees them: the model's, with what it has learned in place.
  void point_tree() {
    tree_ = weights_.parameters();
    if (state_.learned_size == 0) return;
    Index at = 0;
    Model::each(
        [&](const ParameterName& name, Weight<Scalar>& leaf) {
          if (!learner_.learns(name)) return;
          leaf = View<const Scalar>(state_.learned.data() + at, leaf.rows, leaf.cols);
          at += leaf.shape().size();
        },
        tree_);
  }

  /// Gives the session its own copy of what will learn.
  void own_learned_weights() {
    if (state_.learned_size > 0) return;
    auto learned = backend().template allocate<Scalar>(learned_size());
    Index at = 0;
    Model::each(
        [&](const ParameterName& name, const Weight<Scalar>& leaf) {
          if (!learner_.learns(name)) return;
          backend().widen(leaf, View<Scalar>(learned.data() + at, leaf.rows, leaf.cols));
          at += leaf.shape().size();
        },
        tree_);
    backend().fill(Scalar(0), learned.data() + at, learned_size() - at);
    state_.learned = std::move(learned);
    state_.learned_size = learned_size();
    point_tree();
  }

  void check_bytes() const {
    if (weights_.config().vocabulary != 256) {
      detail::fail("read: the model has a vocabulary of " +
                   std::to_string(weights_.config().vocabulary) +
                   " tokens, not of the 256 bytes: tokenize the text first");
    }
  }

  template <class Element>
  void check(const Element* tokens, Index size, const ReadOptions<Scalar>& options) const {
    const auto vocabulary = weights_.config().vocabulary;
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
    if (!Model::is_windowed && size > options_.max_tokens - state_.counters.tokens) {
      detail::fail("read: " + std::to_string(size) +
                   " more tokens would exceed max_tokens = " + std::to_string(options_.max_tokens));
    }
  }

  template <class Element>
  Report read_elements(const Element* tokens, Index size, const ReadOptions<Scalar>& options) {
    check(tokens, size, options);
    Report report;
    const Counters before = state_.counters;
    std::span<Scalar> out = options.nll;
    if (out.empty()) {
      report.nll.resize(static_cast<std::size_t>(size));
      out = report.nll;
    }
    try {
      while (report.tokens < size && !options.stop.stop_requested()) {
        const Index done = report.tokens;
        const Index taken =
            advance(tokens + done, size - done,
                    options.loss_mask.empty() ? nullptr : options.loss_mask.data() + done,
                    out.data() + done, report);
        report.tokens += taken;
        if (options.progress) options.progress(report.tokens, size);
      }
    } catch (const std::exception& error) {
      if (report.tokens == 0) throw;
      std::throw_with_nested(ReadError("ttt: read: stopped after " + std::to_string(report.tokens) +
                                           " tokens of " + std::to_string(size) + ": " +
                                           error.what(),
                                       report.tokens));
    }
    if (!report.nll.empty()) report.nll.resize(static_cast<std::size_t>(report.tokens));
    report.inner_steps = state_.counters.inner_steps - before.inner_steps;
    report.skipped_steps = state_.counters.skipped_steps - before.skipped_steps;
    return report;
  }

  /// Consumes tokens up to the end of the chunk that is filling; returns how many. Nothing has
  /// changed if it throws.
  template <class Element>
  Index advance(const Element* tokens, Index left, const std::uint8_t* counts, Scalar* out,
                Report& report) {
    const auto pending = static_cast<Index>(state_.pending.size());
    const Index unscored = pending == 0 ? 1 : 0;  // the document's first token
    const Index room = learner_.chunk + 1 - pending;
    const Index taken = std::min(left, room);
    block_.assign(state_.pending.begin(), state_.pending.end());
    marks_.assign(state_.marks.begin(), state_.marks.end());
    for (Index i = 0; i < taken; ++i) {
      const auto token = static_cast<Token>(tokens[i]);
      const bool counted = (counts == nullptr || counts[i] != 0) && !learner_.masks(token);
      block_.push_back(token);
      marks_.push_back(static_cast<std::uint8_t>((counted ? State::Counted : 0) |
                                                 (frozen_ ? State::Frozen : 0)));
    }
    if (unscored > 0) out[0] = std::numeric_limits<Scalar>::quiet_NaN();
    if (taken == room) {
      complete_chunk(out + unscored, taken - unscored);
    } else {
      extend_chunk(out + unscored, taken - unscored);
    }
    state_.counters.tokens += taken;
    for (Index i = 0; i < taken; ++i) {
      const auto mark = marks_[static_cast<std::size_t>(pending + i)];
      if ((pending + i == 0) || (mark & State::Counted) == 0) continue;
      report.total_nll += static_cast<double>(out[i]);
      ++report.scored;
    }
    if (taken == room) {
      state_.pending.assign(1, block_.back());
      state_.marks.assign(1, marks_.back());
    }
    return taken;
  }

  /// Scores the whole chunk as one block and, unless it may not, learns from it.
  void complete_chunk(Scalar* out, Index taken) {
    const Index chunk = learner_.chunk;
    const Index position = state_.boundary();
    Index counted = 0;
    bool learn = plan_.learned > 0;
    for (std::size_t i = 1; i < marks_.size(); ++i) {
      counted += (marks_[i] & State::Counted) != 0 ? 1 : 0;
      learn = learn && (marks_[i] & State::Frozen) == 0;
    }
    learn = learn && counted > 0;
    state_.evaluated = 0;  // the block overwrites what was computed piece by piece
    if (learn) {
      const Scalar weight = Scalar(1) / static_cast<Scalar>(counted);
      for (std::size_t i = 0; i < loss_weights_.size(); ++i) {
        loss_weights_[i] = (marks_[i + 1] & State::Counted) != 0 ? weight : Scalar(0);
      }
      pass_->gradient(tree_, gradients_, state_.cache.data(), block_, position, loss_weights_,
                      nll_);
    } else {
      pass_->score(tree_, state_.cache.data(), block_, position, nll_);
    }
    check_finite(nll_, position);
    if (learn) {
      own_learned_weights();
      take_step();
    }
    std::copy_n(nll_.data() + (chunk - taken), taken, out);
  }

  void take_step() {
    Scalar* slots[LearnerType::slots + 1] = {};
    for (std::size_t i = 0; i < LearnerType::slots; ++i) {
      slots[i] = state_.learned.data() + static_cast<Index>(i + 1) * plan_.learned;
    }
    Counters& counters = state_.counters;
    const Step step = learner_.update(backend(), Update<Scalar>{.gradient = gradient_.data(),
                                                                .step = counters.inner_steps,
                                                                .slots = slots,
                                                                .weights = state_.learned.data(),
                                                                .size = plan_.learned});
    counters.gradient_norm = step.gradient_norm;
    counters.inner_steps += step.taken ? 1 : 0;
    counters.skipped_steps += step.taken ? 0 : 1;
    counters.clipped_steps += step.clipped ? 1 : 0;
  }

  /// Scores the part of the chunk that is there, beginning where the last piece ended.
  void extend_chunk(Scalar* out, Index taken) {
    const auto pending = std::max<Index>(1, static_cast<Index>(state_.pending.size()));
    Index first = state_.evaluated;
    const Index targets_end = pending + taken;  // in block_
    if (first == pending) {
      out[0] = from_logits(state_.logits, block_[static_cast<std::size_t>(pending)]);
    }
    if (first < targets_end - 1) {
      const std::span<const Token> tokens(block_.data() + first,
                                          static_cast<std::size_t>(targets_end - first));
      const std::span<Scalar> nll(nll_.data(), tokens.size() - 1);
      state_.evaluated = std::min(first, pending - 1);
      pass_->score(tree_, state_.cache.data(), tokens, state_.boundary() + first, nll);
      check_finite(nll, state_.boundary() + first);
      // nll[j] scores block_[first + 1 + j]; the new tokens begin at block_[pending].
      for (Index i = std::max(pending, first + 1); i < targets_end; ++i) {
        out[i - pending] = nll[static_cast<std::size_t>(i - first - 1)];
      }
    }
    state_.pending.assign(block_.begin(), block_.end());
    state_.marks.assign(marks_.begin(), marks_.end());
    state_.evaluated = targets_end - 1;
    state_.logits.clear();
  }

  static Scalar from_logits(std::span<const Scalar> logits, Token token) {
    const Scalar most = *std::ranges::max_element(logits);
    double sum = 0;
    for (const Scalar logit : logits) sum += std::exp(static_cast<double>(logit - most));
    return static_cast<Scalar>(std::log(sum) + static_cast<double>(most) -
                               static_cast<double>(logits[static_cast<std::size_t>(token)]));
  }

  void check_finite(std::span<const Scalar> nll, Index position) {
    for (std::size_t i = 0; i < nll.size(); ++i) {
      if (std::isfinite(nll[i])) continue;
      forget_keys();
      detail::fail<NonFiniteError>("read: the score of the token at position " +
                                   std::to_string(position + static_cast<Index>(i) + 1) +
                                   " is not a finite number");
    }
  }

  /// Clears the keys and values of the unfinished chunk, where a failure may have left numbers that
  /// are not finite: nobody would look at them again, but a saved state must not hold any.
  void forget_keys() {
    const CacheShape<Scalar>& caches = plan_.caches;
    const Index first = state_.boundary() % caches.slots;
    for (Index row = 0; row < 2 * caches.blocks * caches.heads; ++row) {
      backend().fill(Scalar(0),
                     state_.cache.data() + (row * caches.slots + first) * caches.head_dim,
                     learner_.chunk * caches.head_dim);
    }
    state_.evaluated = 0;
  }

  static void penalise(std::span<const Token> made, float penalty, std::span<float> logits) {
    if (penalty == 1.0f) return;
    std::vector<Token> seen(made.begin(), made.end());
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (const Token token : seen) {
      float& logit = logits[static_cast<std::size_t>(token)];
      logit = logit > 0 ? logit / penalty : logit * penalty;
    }
  }

  WeightsType weights_;
  LearnerType learner_;
  SessionOptions options_;
  Plan plan_;
  std::unique_ptr<ChunkPass<Model, B>> pass_;
  typename B::template Buffer<Scalar> gradient_;
  typename ChunkPass<Model, B>::Gradients gradients_;
  typename ChunkPass<Model, B>::Tree tree_;
  State state_;
  bool frozen_ = false;

  // The block at work: pending tokens and new ones.
  std::vector<Token> block_;
  std::vector<std::uint8_t> marks_;
  std::vector<Scalar> nll_;
  std::vector<Scalar> loss_weights_;
};

}  // namespace ttt::inline TTT_ABI
