// SPDX-License-Identifier: MIT
/// \file
/// What is computed on a block of tokens: scores, the gradient of their loss, or logits.
#pragma once

#include <span>
#include <vector>

#include <ttt/backend/workspace.hpp>
#include <ttt/model/language_model.hpp>

namespace ttt::inline TTT_ABI {

/// Runs a model forwards, and its suffix backwards, on blocks of at most `most_rows` tokens, in
/// memory that is taken once. Keys and values go into the caller's cache; nothing else of the
/// caller's changes, so a failure can be followed by another try.
template <class Model, class B>
class ChunkPass {
 public:
  using Scalar = typename B::Scalar;
  using Tree = typename Model::template Parameters<Weight<Scalar>>;
  using Gradients = typename Model::template Parameters<View<Scalar>>;
  using CacheScalar = typename B::CacheScalar;
  using Caches = CacheShape<Scalar, CacheScalar>;

  /// Throws Error when memory runs out. Keeps references to the model and the backend.
  ChunkPass(const Model& model, const B& backend, const Caches& caches, Index most_rows)
      : model_(model),
        backend_(backend),
        caches_(caches),
        workspace_(backend, scratch(model, backend, caches, most_rows)),
        tokens_(backend.template allocate<Token>(most_rows + 1)),
        nll_(backend.template allocate<Scalar>(most_rows)),
        loss_weights_(backend.template allocate<Scalar>(most_rows)),
        saved_(model) {}

  /// Scalars of scratch a pass over `rows` tokens needs, measured without allocating any.
  static Index scratch(const Model& model, const B& backend, const Caches& caches, Index rows) {
    const DryRun<B> dry(backend);
    auto cache = dry.template allocate<CacheScalar>(caches.size());
    Workspace<DryRun<B>> workspace(dry, detail::most_elements);
    const Tree tree = model.template shaped_tree<Weight<Scalar>>();
    const auto gradients = model.template tree<View<Scalar>>();
    auto updates = gradients;
    Model::each(
        [&](const ParameterName& name, View<Scalar>& leaf) {
          if (name.role == Role::InPlaceMlp)
            leaf = View<Scalar>(dry.template allocate<Scalar>(1).data(), 1, 1);
        },
        updates);
    Saved saved(model);
    const std::span<const Token> tokens(static_cast<const Token*>(nullptr),
                                        static_cast<std::size_t>(rows));
    Context<DryRun<B>> c{dry, workspace};
    const auto at = hidden(c, model, tree, tokens, 0, caches, cache.data(), true, saved);
    backward(c, model, tree, saved, at, nullptr, nullptr, gradients, caches, cache.data(), nullptr);
    workspace.release(0);
    hidden(c, model, tree, tokens, 0, caches, cache.data(), false, saved, &updates);
    c.make(1, model.config().vocabulary);
    return workspace.peak();
  }

  /// nll[t] = -log p(tokens[t + 1] | tokens up to t), for every token but the last.
  void score(const Tree& tree, CacheScalar* cache, std::span<const Token> tokens, Index position,
             std::span<Scalar> nll, const Gradients* updates = nullptr) {
    auto c = start(tokens);
    hidden(c, model_, tree, inputs(tokens), position, caches_, cache, false, saved_, updates);
    ops::cross_entropy(c, saved_.upper.output.y, model_.head(tree), tokens_.data() + 1, nullptr,
                       nll_.data(), false);
    backend_.to_host(nll_.data(), nll.data(), static_cast<Index>(nll.size()));
  }

  /// Scores likewise, and puts what the InPlaceMLPs learn from all tokens but the last into
  /// `updates`, as (out, in).
  void closed_form(const Tree& tree, const Gradients& updates, CacheScalar* cache,
                   std::span<const Token> tokens, Index position, std::span<Scalar> nll) {
    score(tree, cache, tokens, position, nll, &updates);
  }

  /// Scores likewise, and puts d(sum of loss_weights[t] · nll[t]) into `gradients`.
  void gradient(const Tree& tree, const Gradients& gradients, CacheScalar* cache,
                std::span<const Token> tokens, Index position, std::span<const Scalar> loss_weights,
                std::span<Scalar> nll) {
    auto c = start(tokens);
    backend_.to_device(loss_weights.data(), loss_weights_.data(),
                       static_cast<Index>(loss_weights.size()));
    const auto at = hidden(c, model_, tree, inputs(tokens), position, caches_, cache, true, saved_);
    backward(c, model_, tree, saved_, at, loss_weights_.data(), nll_.data(), gradients, caches_,
             cache, tokens_.data() + 1);
    backend_.to_host(nll_.data(), nll.data(), static_cast<Index>(nll.size()));
  }

  /// Logits of the token after the last; returns the log of the sum of their exponentials, which
  /// is a finite number if and only if every one is.
  Scalar logits(const Tree& tree, CacheScalar* cache, std::span<const Token> tokens, Index position,
                std::span<Scalar> logits) {
    auto c = start(tokens);
    const std::span<const Token> all(tokens_.data(), tokens.size());
    hidden(c, model_, tree, all, position, caches_, cache, false, saved_);
    const auto y = saved_.upper.output.y;
    const auto out = c.make(1, model_.config().vocabulary);
    c.backend.matmul(y.rows_at(y.rows - 1, 1), model_.head(tree), out, Write::Replace);
    c.backend.log_sum_exp(out, View<Scalar>(nll_.data(), 1, 1));
    backend_.to_host(out.data, logits.data(), out.cols);
    Scalar sum = 0;
    backend_.to_host(nll_.data(), &sum, 1);
    return sum;
  }

 private:
  struct Saved {
    explicit Saved(const Model& model)
        : lower(model.template lower_saved<View<Scalar>>()),
          upper(model.template saved<View<Scalar>>()) {}
    typename Model::template LowerSaved<View<Scalar>> lower;  // never looked at again
    typename Model::template Saved<View<Scalar>> upper;
  };

  /// Normed hidden states, in saved.upper.output.y.
  template <class B2>
  static Positions<Scalar> hidden(Context<B2>& c, const Model& model, const Tree& tree,
                                  std::span<const Token> tokens, Index position,
                                  const Caches& caches, CacheScalar* cache, bool keep, Saved& saved,
                                  const Gradients* updates = nullptr) {
    const Index rows = static_cast<Index>(tokens.size());
    InPlacePass<Scalar> pass;
    if (updates != nullptr && Model::learns_embeddings) {  // h will be written over
      pass.embeddings = ops::embedding(c, tree.embedding, tokens.data(), rows);
    }
    View<Scalar> h = ops::embedding(c, tree.embedding, tokens.data(), rows);
    const auto at = model.positions(c, position, rows);
    for (Index i = 0; i < model.lower_blocks(); ++i) {
      if (updates != nullptr) pass.update = model.in_place_update(*updates, i);
      h = model.lower_forward(c, tree, i, h, false, saved.lower, at, caches.at(cache, i), pass);
    }
    model.upper_forward(c, tree, h, keep, saved.upper, at,
                        [&](Index i) { return caches.at(cache, i); });
    return at;
  }

  template <class B2>
  static void backward(Context<B2>& c, const Model& model, const Tree& tree, const Saved& saved,
                       const Positions<Scalar>& at, const Scalar* loss_weights, Scalar* nll,
                       const Gradients& gradients, const Caches& caches, CacheScalar* cache,
                       const Token* targets) {
    const auto dy = ops::cross_entropy(c, saved.upper.output.y, model.head(tree), targets,
                                       loss_weights, nll, true);
    if (model.config().suffix_blocks == 0) return;
    model.upper_backward(c, tree, saved.upper, dy, gradients, false, at,
                         [&](Index i) { return caches.at(cache, i); });
  }

  Context<B> start(std::span<const Token> tokens) {
    workspace_.release(0);
    backend_.to_device(tokens.data(), tokens_.data(), static_cast<Index>(tokens.size()));
    return {backend_, workspace_};
  }
  std::span<const Token> inputs(std::span<const Token> tokens) const {
    return {tokens_.data(), tokens.size() - 1};
  }

  const Model& model_;
  const B& backend_;
  Caches caches_;
  Workspace<B> workspace_;
  typename B::template Buffer<Token> tokens_;
  typename B::template Buffer<Scalar> nll_;
  typename B::template Buffer<Scalar> loss_weights_;
  Saved saved_;
};

}  // namespace ttt::inline TTT_ABI
