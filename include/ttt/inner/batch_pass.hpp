// SPDX-License-Identifier: MIT
/// \file
/// What is computed on blocks of several documents at once: scores, the gradients of their losses,
/// or logits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include <ttt/inner/chunk_pass.hpp>
#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Runs a model on a block of each of some documents, rows under rows. Blocks may differ in length
/// and position. Keys and values go into the caller's caches, one document's behind the other's;
/// nothing else of the caller's changes. All memory is taken by the constructor.
template <class Model, class B>
class BatchPass {
 public:
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  using Tree = typename Model::template Parameters<StackedWeight<Scalar>>;
  using Gradients = typename Model::template Parameters<View<Scalar>>;
  using Caches = CacheShape<Scalar, CacheScalar>;

  /// A document's tokens and where they stand. To be scored, the last of them is only a target.
  struct Piece {
    Index place = 0;
    Index position = 0;
    std::span<const Token> tokens = {};
  };

  /// For at most so many documents, and of each so many rows. Throws Error when memory runs out.
  /// Keeps references to the model and the backend.
  BatchPass(const Model& model, const B& backend, const Caches& caches, Index sequences, Index rows)
      : model_(model),
        backend_(backend),
        caches_(caches),
        workspace_(backend, scratch(model, backend, caches, sequences, rows)),
        tokens_(backend.template allocate<Token>(2 * sequences * rows)),
        results_(backend, sequences, sequences * rows),
        loss_weights_(backend.template allocate<Scalar>(sequences * rows)),
        logits_(backend.template allocate<Scalar>(sequences * model.config().vocabulary)),
        next_(backend.template allocate<NextToken<Scalar>>(sequences)),
        saved_(model),
        chunk_(rows),
        token_steps_(backend),
        chunk_steps_(backend) {
    host_tokens_.reserve(static_cast<std::size_t>(2 * sequences * rows));
    parts_.reserve(static_cast<std::size_t>(sequences));
  }

  /// Scalars of scratch, measured without allocating any.
  static Index scratch(const Model& model, const B& backend, const Caches& caches, Index sequences,
                       Index rows) {
    const DryRun<B> dry(backend);
    auto cache = dry.template allocate<CacheScalar>(caches.size());
    Workspace<DryRun<B>> workspace(dry, most_elements);
    const Tree tree = model.template shaped_tree<StackedWeight<Scalar>>();
    const auto gradients = model.template tree<View<Scalar>>();
    auto updates = gradients;
    Model::each(
        [&](const ParameterName& name, View<Scalar>& leaf) {
          if (name.role != Role::InPlaceMlp) return;
          leaf = View<Scalar>(dry.template allocate<Scalar>(1).data(), 1, 1);
        },
        updates);
    std::vector<SequencePart> parts;
    for (Index s = 0; s < sequences; ++s) parts.push_back({s, s * rows, rows, 0});
    Saved saved(model);
    Context<DryRun<B>> c{dry, workspace};
    const auto at = upper(c, model, tree, parts, nullptr, caches, cache.data(), true, saved);
    backward(c, model, tree, parts, saved, at, nullptr, nullptr, nullptr, gradients, caches,
             cache.data());
    workspace.release(0);
    upper(c, model, tree, parts, nullptr, caches, cache.data(), false, saved, &updates);
    workspace.matrix(sequences, model.config().width);
    workspace.matrix(sequences, model.config().vocabulary);
    return workspace.peak();
  }
  /// Bytes beside scratch.
  static Index bytes(const Model& model, Index sequences, Index rows) {
    return PassResults<B>::bytes(sequences, sequences * rows) +
           sequences * ((rows + model.config().vocabulary) * Index{sizeof(Scalar)} +
                        2 * rows * Index{sizeof(Token)} + Index{sizeof(NextToken<Scalar>)});
  }

  /// The pieces of the next pass, one a document; they lie under one another in this order. Its
  /// rows are all tokens, or where they are to be scored all but each one's last.
  void set(std::span<const Piece> pieces, bool scored) {
    parts_.clear();
    host_tokens_.clear();
    rows_ = 0;
    for (const Piece& piece : pieces) {
      const Index rows = std::ssize(piece.tokens) - (scored ? 1 : 0);
      parts_.push_back({piece.place, rows_, rows, piece.position});
      host_tokens_.insert(host_tokens_.end(), piece.tokens.begin(), piece.tokens.begin() + rows);
      rows_ += rows;
    }
    for (const Piece& piece : pieces) {
      if (scored)
        host_tokens_.insert(host_tokens_.end(), piece.tokens.begin() + 1, piece.tokens.end());
    }
  }
  std::span<const SequencePart> parts() const { return parts_; }
  Index rows() const { return rows_; }

  /// nll[r] = -log p(what follows row r). `updates` has places for what InPlaceMLPs learn from the
  /// rows, if that is wanted; then all pieces are of one length.
  void score(const Tree& tree, CacheScalar* cache, std::span<Scalar> nll,
             const Gradients* updates = nullptr) {
    places(tree, cache, updates == nullptr ? PassKind::Score : PassKind::ClosedForm);
    if (updates != nullptr) places_.template add_leaves<Model>(*updates);
    run([&](Context<B>& c) {
      upper(c, model_, tree, parts_, tokens_.data(), caches_, cache, false, saved_, updates);
      ops::cross_entropy(c, saved_.upper.output.y, model_.head(tree), tokens_.data() + rows_,
                         nullptr, results_.scores(), false);
    });
    results_.bring(nll);
  }

  /// Scores likewise, and puts d(sum of loss_weights[r] · nll[r]) into `gradients`, for each
  /// document's weights from its own rows. Then takes the steps behind, if there are any, and
  /// brings what they found, by piece. Everything is on its way before anything is waited for.
  void gradient(const Tree& tree, const Gradients& gradients, CacheScalar* cache,
                std::span<const Scalar> loss_weights, std::span<Scalar> nll,
                const StepsBehind<B>& behind = {}, std::span<GradientScale> found = {}) {
    backend_.to_device(loss_weights.data(), loss_weights_.data(), rows_);
    places(tree, cache, behind.take ? PassKind::Step : PassKind::Gradient);
    places_.template add_leaves<Model>(gradients);
    places_.add(behind.memory);
    run([&](Context<B>& c) {
      const auto at = upper(c, model_, tree, parts_, tokens_.data(), caches_, cache, true, saved_);
      backward(c, model_, tree, parts_, saved_, at, tokens_.data() + rows_, loss_weights_.data(),
               results_.scores(), gradients, caches_, cache);
      if (behind.take) behind.take(c.backend, {results_.scores(), 1, rows_}, results_.found());
    });
    results_.bring(nll, found);
  }

  /// What is known of the token behind each piece.
  void next(const Tree& tree, CacheScalar* cache, std::span<NextToken<Scalar>> out) {
    places(tree, cache, PassKind::Next);
    run([&](Context<B>& c) { find_next(c, tree, cache); });
    backend_.to_host(next_.data(), out.data(), std::ssize(parts_));
  }
  /// Some of the logits that next() has last found for the document at a place.
  void logits(Index place, Index first, std::span<Scalar> out) const {
    backend_.to_host(logits_.data() + place * model_.config().vocabulary + first, out.data(),
                     std::ssize(out));
  }

 private:
  using Parts = std::span<const SequencePart>;

  /// Caches of all documents, for rows of these parts.
  struct StackedCaches {
    const Caches& shape;
    Parts parts;
    ops::KeyValues<Scalar, CacheScalar> at(CacheScalar* data, Index block) const {
      auto all = shape.at(data, block);
      all.sequences = std::ssize(parts);
      all.apart = shape.size();
      all.parts = parts;
      return all;
    }
  };
  struct Saved {
    explicit Saved(const Model& model)
        : lower(model.template lower_saved<View<Scalar>>()),
          upper(model.template saved<View<Scalar>>()) {}
    typename Model::template LowerSaved<View<Scalar>> lower;  // never looked at again
    typename Model::template Saved<View<Scalar>> upper;
  };

  /// Calls pass(context). Passes over a token of each document, and over whole chunks, are steps of
  /// the backend: `places_` says which.
  template <class F>
  void run(const F& pass) {
    const auto step = [&](const B& machine) {
      workspace_.release(0);  // so that it has the same places
      Context<B> c{machine, workspace_};
      pass(c);
    };
    const auto take = [&](auto&& steps) {
      steps(places_, host_tokens_, tokens_.data(), parts_[0].position, step);
    };
    const Index count = std::ssize(parts_);
    if (rows_ == count) return take(token_steps_);
    if (rows_ == count * chunk_) return take(chunk_steps_);
    take(PlainSteps<B>(backend_));
  }

  /// Logits by place, and what sums them up by part.
  void find_next(Context<B>& c, const Tree& tree, CacheScalar* cache) {
    upper(c, model_, tree, parts_, tokens_.data(), caches_, cache, false, saved_);
    const Index count = std::ssize(parts_), words = model_.config().vocabulary;
    View<Scalar> last = saved_.upper.output.y;
    if (rows_ > count) {
      last = c.make(count, last.cols);
      for (Index s = 0; s < count; ++s) {
        const SequencePart& part = parts_[static_cast<std::size_t>(s)];
        const auto* const from = saved_.upper.output.y.row(part.first + part.rows - 1);
        c.backend.copy(from, last.row(s), last.cols);
      }
    }
    const bool in_order = lie_in_order();
    View<Scalar> logits(logits_.data() + parts_[0].place * words, count, words);
    if (!in_order) logits = c.make(count, words);
    c.backend.matmul(last, model_.head(tree), logits, Write::Replace);
    c.backend.next_token(logits, next_.data());
    for (Index s = 0; s < count && !in_order; ++s) {
      const Index place = parts_[static_cast<std::size_t>(s)].place;
      c.backend.copy(logits.row(s), logits_.data() + place * words, words);
    }
  }

  /// Rows that documents have, and how far apart these stand, must not change either.
  void places(const Tree& tree, const CacheScalar* cache, PassKind kind) {
    places_.begin(kind);
    for (const SequencePart& part : parts_) {
      places_.add(cache + part.place * caches_.size());
      places_.add_number(static_cast<std::uintptr_t>(part.rows));
      places_.add_number(static_cast<std::uintptr_t>(part.position - parts_[0].position));
    }
    places_.template add_leaves<Model>(tree);
  }

  /// Whether documents stand one behind the other.
  bool lie_in_order() const {
    return std::ranges::adjacent_find(parts_, [](const auto& a, const auto& b) {
             return b.place != a.place + 1;
           }) == parts_.end();
  }

  /// Normed hidden states, in saved.upper.output.y.
  template <class B2>
  static Positions<Scalar> upper(Context<B2>& c, const Model& model, const Tree& tree, Parts parts,
                                 const Token* tokens, const Caches& caches, CacheScalar* cache,
                                 bool keep, Saved& saved, const Gradients* updates = nullptr) {
    const StackedCaches all{caches, parts};
    const Index rows = parts.back().first + parts.back().rows;
    const auto at = model.positions(c, 0, rows, std::ssize(parts), parts);
    const View<Scalar> h = c.make(rows, model.config().width);
    lower_half(c, model, tree, tokens, h, at, all, cache, saved.lower, updates);
    model.upper_forward(c, tree, h, keep, saved.upper, at,
                        [&](Index i) { return all.at(cache, i); });
    return at;
  }

  template <class B2>
  static void backward(Context<B2>& c, const Model& model, const Tree& tree, Parts parts,
                       const Saved& saved, const Positions<Scalar>& at, const Token* targets,
                       const Scalar* loss_weights, Scalar* nll, const Gradients& gradients,
                       const Caches& caches, CacheScalar* cache) {
    const StackedCaches all{caches, parts};
    const auto dy = ops::cross_entropy(c, saved.upper.output.y, model.head(tree), targets,
                                       loss_weights, nll, true);
    if (model.config().suffix_blocks == 0) return;
    model.upper_backward(c, tree, saved.upper, dy, gradients, false, at,
                         [&](Index i) { return all.at(cache, i); });
  }

  const Model& model_;
  const B& backend_;
  Caches caches_;
  Workspace<B> workspace_;
  typename B::template Buffer<Token> tokens_;  // of the rows, then their targets
  PassResults<B> results_;
  typename B::template Buffer<Scalar> loss_weights_;
  typename B::template Buffer<Scalar> logits_;           // by place
  typename B::template Buffer<NextToken<Scalar>> next_;  // by part
  Saved saved_;
  std::vector<SequencePart> parts_;
  Index rows_ = 0;
  std::vector<Token> host_tokens_;
  Index chunk_;
  PassPlaces places_;  // of the pass at work
  StepsOf<B> token_steps_, chunk_steps_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
