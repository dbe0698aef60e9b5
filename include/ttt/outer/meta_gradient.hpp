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
/// uses all threads. One meta-gradient costs about three times reading with learning.
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

  /// Bytes that a meta-gradient takes for each sequence at a time, beside the parameters and their
  /// gradient. Nothing is allocated to find out.
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
    const Index at_once = std::min(at_once_, batch);
    while (static_cast<Index>(workers_.size()) < at_once) {
      workers_.push_back(std::make_unique<Worker>(*this));
    }
    const auto length = static_cast<std::size_t>(plan_.length);
    for (Index first = 0; first < batch; first += at_once) {
      const Index count = std::min(at_once, batch - first);
      const auto one = [&](Index i) {
        Worker& worker = *workers_[static_cast<std::size_t>(i)];
        const auto n = static_cast<std::size_t>(first + i);
        try {
          Scalar* const own = batch == 1 ? gradient : worker.cleared(*this);
          result.sequences[n] = worker.pass.run(
              learner, parameters, tokens.subspan(n * (length + 1), length + 1),
              counts.empty() ? counts : counts.subspan(n * length, length), share, places_in(own));
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
        if (batch > 1) backend_.axpby(1.0, worker.gradient.data(), 1.0, gradient, size_);
      }
    }
    for (const SequenceLoss& sequence : result.sequences) result.loss += sequence.loss * share;
    return result;
  }

 private:
  /// Memory to compute one sequence in.
  struct Worker {
    explicit Worker(const MetaGradient& owner)
        : pass(owner.model_, owner.backend_, owner.plan_, owner.options_) {}

    /// A gradient of its own, set to zero: of one sequence of several.
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
