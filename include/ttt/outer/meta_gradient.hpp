// SPDX-License-Identifier: MIT
/// \file
/// The loss of a batch of sequences and its gradient with respect to every parameter.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ttt/inner/inner_loop.hpp>
#include <ttt/model/flat.hpp>
#include <ttt/outer/sequence_pass.hpp>

namespace ttt::inline TTT_ABI {

/// What a batch did: each sequence, and their mean.
struct BatchLoss {
  double loss = 0;
  std::vector<SequenceLoss> sequences;
};

/// Computes L = mean over sequences of the mean over chunks of the chunk's loss, each chunk under
/// the weights that the inner loop made of the earlier ones, and dL/d(parameters), exactly, through
/// every inner step, the clipping and the cached keys and values (arXiv 2512.23675, equation 4). A
/// learner that learns nothing makes it the gradient of ordinary training.
///
/// Sequences are independent: several run at a time, each on a thread and in memory of its own;
/// their gradients are added in order, so results have the same bits however many do. A single one
/// uses all threads. With MetaOptions::stacked such a one is a few sequences that go through the
/// upper half together, row under row, each with weights of its own: large products for a GPU. One
/// meta-gradient costs about three times reading with learning.
template <class Model, class B, class LearnerType = InnerLoop<Sgd>, class Order = SecondOrder>
class MetaGradient {
  static_assert(Learner<LearnerType, B>,
                "ttt: the learner lacks a member that Learner asks for: chunk, slots, "
                "learns(name), masks(token) or update(backend, update); see "
                "docs/concepts.md#learner");
  static_assert(!Order::exact || has_closed_form<LearnerType> || LearnsBackwards<LearnerType, B>,
                "ttt: the learner lacks backward(backend, step, gradient), its update's "
                "vector-Jacobian product, which an exact meta-gradient needs; see "
                "docs/concepts.md#learner, or train with FirstOrder");
  using Pass = detail::SequencePass<Model, B, LearnerType, Order>;

 public:
  using Scalar = typename B::Scalar;
  using Tree = typename Model::template Parameters<Weight<Scalar>>;

  /// For sequences of `length` predictions, which must be a whole number of the learner's chunks.
  /// Takes all memory but a gradient for each sequence at a time, which the first batch of several
  /// takes; throws Error when there is too little, or a size does not fit.
  MetaGradient(const Model& model, const B& backend, LearnerType learner, Index length,
               MetaOptions options = {})
      : model_(model),
        backend_(backend),
        learner_(std::move(learner)),
        plan_(model_, backend_, learner_, options, length),
        at_once_(options.sequences > 0 ? options.sequences : backend.threads()),
        options_(options),
        size_(parameter_count(model_)) {
    workers_.push_back(std::make_unique<Worker>(*this));
  }
  MetaGradient(const MetaGradient&) = delete;
  MetaGradient& operator=(const MetaGradient&) = delete;

  /// Bytes that a meta-gradient takes for each sequence at a time, or for each
  /// MetaOptions::stacked of them, beside the parameters and their gradient. Nothing is allocated
  /// to find out.
  static Index required_bytes(const Model& model, const B& backend, const LearnerType& learner,
                              Index length, const MetaOptions& options = {}) {
    return typename Pass::Plan(model, backend, learner, options, length).size() *
           static_cast<Index>(sizeof(Scalar));
  }

  Index length() const { return plan_.length; }
  /// Scalars of all parameters, in the order of Model::each: of a flat gradient.
  Index size() const { return size_; }
  const LearnerType& learner() const { return learner_; }

  /// The loss of a batch and, in `gradient` (size() scalars in the backend's memory, replaced), its
  /// gradient. `tokens` are the sequences of length() + 1 tokens one after the other; `counts`, if
  /// not empty, has length() marks for each, 0 where a target is left out. Throws Error, before
  /// anything is computed, when a size is wrong or a token outside the vocabulary; NonFiniteError
  /// when a score is not finite, and then `gradient` may hold anything.
  BatchLoss operator()(const Tree& parameters, std::span<const Token> tokens,
                       std::span<const std::uint8_t> counts, Scalar* gradient) {
    return (*this)(parameters, tokens, counts, gradient, learner_);
  }

  /// The same with a learner of other rates, for this batch; what learns, and in which chunks, must
  /// be the same.
  BatchLoss operator()(const Tree& parameters, std::span<const Token> tokens,
                       std::span<const std::uint8_t> counts, Scalar* gradient,
                       const LearnerType& learner) {
    const Index batch = check(tokens, counts);
    check_head(parameters);
    const double share = 1.0 / static_cast<double>(batch);
    BatchLoss result;
    result.sequences.resize(static_cast<std::size_t>(batch));
    backend_.fill(Scalar(0), gradient, size_);
    // Groups of stacked sequences; the last may have fewer.
    const Index groups = (batch + options_.stacked - 1) / options_.stacked;
    const Index at_once = std::min(at_once_, groups);
    while (static_cast<Index>(workers_.size()) < at_once) {
      workers_.push_back(std::make_unique<Worker>(*this));
    }
    for (Index first = 0; first < groups; first += at_once) {
      const Index count = std::min(at_once, groups - first);
      const auto one = [&](Index i) {
        Worker& worker = *workers_[static_cast<std::size_t>(i)];
        worker.failure = nullptr;  // of a batch before, where another was told
        const Index begin = (first + i) * options_.stacked;
        const Index size = std::min(options_.stacked, batch - begin);
        const auto part = [&](const auto& all, Index each) {
          return all.empty() ? all
                             : all.subspan(static_cast<std::size_t>(begin * each),
                                           static_cast<std::size_t>(size * each));
        };
        try {
          Scalar* const own = groups == 1 ? gradient : worker.cleared(*this);
          worker.pass.run(learner, parameters, part(tokens, plan_.length + 1),
                          part(counts, plan_.length), share, places_in(own),
                          part(std::span(result.sequences), 1));
        } catch (...) {
          worker.failure = std::current_exception();
        }
      };
      if (count == 1) {
        one(0);  // its operations get the threads
      } else {
        backend_.run(count, one);
      }
      for (Index i = 0; i < count; ++i) {
        Worker& worker = *workers_[static_cast<std::size_t>(i)];
        if (worker.failure) std::rethrow_exception(std::exchange(worker.failure, nullptr));
        if (groups > 1) backend_.axpby(1.0, worker.gradient.data(), 1.0, gradient, size_);
      }
    }
    for (const SequenceLoss& sequence : result.sequences) result.loss += sequence.loss * share;
    return result;
  }

 private:
  /// Memory to compute one sequence in, or one group.
  struct Worker {
    explicit Worker(const MetaGradient& owner)
        : pass(owner.model_, owner.backend_, owner.plan_, owner.options_) {}

    /// A gradient of its own, set to zero: of one of several.
    Scalar* cleared(const MetaGradient& owner) {
      if (!has_gradient) gradient = owner.backend_.template allocate<Scalar>(owner.size_);
      has_gradient = true;
      owner.backend_.fill(Scalar(0), gradient.data(), owner.size_);
      return gradient.data();
    }

    typename B::template Buffer<Scalar> gradient;
    bool has_gradient = false;
    Pass pass;
    std::exception_ptr failure;
  };

  /// Where gradients go in a flat one; nowhere for what does not train.
  auto places_in(Scalar* flat) const {
    auto tree = flat_tree<View<Scalar>>(model_, flat);
    if (options_.trains == nullptr) return tree;
    Model::each(
        [&](const ParameterName& name, View<Scalar>& leaf) {
          if (!options_.trains(name)) leaf = {};
        },
        tree);
    return tree;
  }

  /// A square head of its own that a file holds as [out, in]: nobody could tell how its gradient is
  /// to lie.
  void check_head(const Tree& parameters) const {
    const auto head = model_.head(parameters);
    if (Model::has_tied_head || !head.transposed || head.rows != head.cols) return;
    detail::fail("training: a square head stored as [out, in] must be copied first");
  }

  Index check(std::span<const Token> tokens, std::span<const std::uint8_t> counts) const {
    const auto each = static_cast<std::size_t>(plan_.length) + 1;
    if (tokens.empty() || tokens.size() % each != 0) {
      detail::fail("training: a batch has " + std::to_string(tokens.size()) +
                   " tokens, expected a whole number of sequences of " + std::to_string(each));
    }
    const std::size_t batch = tokens.size() / each;
    if (!counts.empty() && counts.size() != batch * (each - 1)) {
      detail::fail("training: a batch has " + std::to_string(counts.size()) + " marks, expected " +
                   std::to_string(batch * (each - 1)));
    }
    const Index vocabulary = model_.config().vocabulary;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] >= 0 && tokens[i] < vocabulary) continue;
      detail::fail("training: token " + std::to_string(tokens[i]) + " at place " +
                   std::to_string(i) + " is outside the vocabulary of " +
                   std::to_string(vocabulary));
    }
    return static_cast<Index>(batch);
  }

  Model model_;
  B backend_;
  LearnerType learner_;
  typename Pass::Plan plan_;
  Index at_once_;
  MetaOptions options_;
  Index size_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace ttt::inline TTT_ABI
