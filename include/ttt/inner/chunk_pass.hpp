// SPDX-License-Identifier: MIT
/// \file
/// What is computed on a block of tokens: scores, the gradient of their loss, or logits.
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include <ttt/backend/steps.hpp>
#include <ttt/backend/workspace.hpp>
#include <ttt/inner/look_ahead.hpp>
#include <ttt/inner/pass_places.hpp>
#include <ttt/inner/pass_results.hpp>
#include <ttt/model/language_model.hpp>

namespace ttt::inline TTT_ABI {

/// Runs a model forwards, and its suffix backwards, on blocks of at most `most_rows` tokens, in
/// memory that is taken once. Keys and values go into the caller's cache; nothing else of the
/// caller's changes, so a failure can be followed by another try. The lower half, which nothing
/// that learns by gradients reaches, can be run over `ahead` such blocks at once.
template <class Model, class B>
class ChunkPass {
 public:
  using Scalar = typename B::Scalar;
  using Tree = typename Model::template Parameters<Weight<Scalar>>;
  using Gradients = typename Model::template Parameters<View<Scalar>>;
  using CacheScalar = typename B::CacheScalar;
  using Caches = CacheShape<Scalar, CacheScalar>;

  /// Throws Error when memory runs out. Keeps references to the model and the backend.
  ChunkPass(const Model& model, const B& backend, const Caches& caches, Index most_rows,
            Index ahead = 1)
      : ChunkPass(model, backend, caches, most_rows, ahead,
                  needs(model, backend, caches, most_rows, ahead)) {}

  /// Scalars of scratch that passes over `rows` tokens need, measured without allocating any.
  static Index scratch(const Model& model, const B& backend, const Caches& caches, Index rows,
                       Index ahead) {
    const Needs all = needs(model, backend, caches, rows, ahead);
    return all.passes + all.ahead;
  }
  /// Bytes of what such passes take beside scratch.
  static Index bytes(const Model& model, Index rows, Index ahead) {
    return detail::PassResults<B>::bytes(1, rows) +
           (rows + model.config().vocabulary) * Index{sizeof(Scalar)} +
           (rows + 1 + Ahead::tokens(rows, ahead)) * Index{sizeof(Token)} +
           Index{sizeof(NextToken<Scalar>)};
  }

  /// The lower half of several blocks at once, see LookAhead: their keys and values go into the
  /// cache, and a pass over one of these blocks begins where that ended, until `forget` or a pass
  /// over another. A group is run when `start_ahead` says so, or with the next pass: then it is put
  /// behind the pass and before anybody waits for that, so that neither waits for the host. Both
  /// throw nothing but what the backend throws, of a group behind a pass with the next; then
  /// `forget` is to follow.
  void look_ahead(std::span<const Token> tokens, Index position) { ahead_.add(tokens, position); }
  void start_ahead(const Tree& tree, CacheScalar* cache) { ahead_.start(tree, cache); }
  /// The most tokens that look_ahead can be given beside the last, which is only a target, and
  /// whether it can be given some, when passes have come to `position`.
  Index most_ahead() const { return ahead_.most_rows(); }
  bool has_room_ahead(Index position) { return ahead_.has_room(position); }
  /// Where the blocks of the last look_ahead end; 0 if there are none.
  Index ahead() const { return ahead_.end(); }
  /// Drops what was computed ahead. Whatever comes next comes behind it.
  void forget() noexcept { ahead_.forget(); }

  /// nll[t] = -log p(tokens[t + 1] | tokens up to t), for every token but the last.
  void score(const Tree& tree, CacheScalar* cache, std::span<const Token> tokens, Index position,
             std::span<Scalar> nll, const Gradients* updates = nullptr) {
    places(tree, cache, updates == nullptr ? Kind::Score : Kind::ClosedForm);
    if (updates != nullptr) places_.template add_leaves<Model>(*updates);
    run(tokens, std::ssize(tokens) - 1, position, [&](Context<B>& c, const Input& in) {
      upper(c, model_, tree, in, caches_, cache, false, saved_, updates);
      ops::cross_entropy(c, saved_.upper.output.y, model_.head(tree), in.tokens + 1, nullptr,
                         results_.scores(), false);
    });
    ahead_.start_behind(tree, cache);
    results_.bring(nll);
  }

  /// Scores likewise, and puts what the InPlaceMLPs learn from all tokens but the last into
  /// `updates`, as (out, in).
  void closed_form(const Tree& tree, const Gradients& updates, CacheScalar* cache,
                   std::span<const Token> tokens, Index position, std::span<Scalar> nll) {
    score(tree, cache, tokens, position, nll, &updates);
  }

  /// Scores likewise, and puts d(sum of loss_weights[t] · nll[t]) into `gradients`; then takes the
  /// step behind, if there is one, and returns what that found. Everything is on its way before
  /// anything is waited for.
  GradientScale gradient(const Tree& tree, const Gradients& gradients, CacheScalar* cache,
                         std::span<const Token> tokens, Index position,
                         std::span<const Scalar> loss_weights, std::span<Scalar> nll,
                         const StepsBehind<B>& behind = {}) {
    send(loss_weights);
    const Index rows = std::ssize(tokens) - 1;
    places(tree, cache, behind.take ? Kind::Step : Kind::Gradient);
    places_.template add_leaves<Model>(gradients);
    places_.add(behind.memory);
    run(tokens, rows, position, [&](Context<B>& c, const Input& in) {
      const auto at = upper(c, model_, tree, in, caches_, cache, true, saved_);
      backward(c, model_, tree, saved_, at, loss_weights_.data(), results_.scores(), gradients,
               caches_, cache, in.tokens + 1);
      if (behind.take) behind.take(c.backend, {results_.scores(), 1, rows}, results_.found());
    });
    ahead_.start_behind(tree, cache);
    GradientScale found;
    results_.bring(nll, std::span(&found, behind.take ? 1 : 0));
    return found;
  }

  /// What is known of the token after the last.
  NextToken<Scalar> next(const Tree& tree, CacheScalar* cache, std::span<const Token> tokens,
                         Index position) {
    const Index words = model_.config().vocabulary, rows = static_cast<Index>(tokens.size());
    const View<Scalar> logits(logits_.data(), 1, words);
    places(tree, cache, Kind::Next);
    forget();
    run(tokens, rows, position, [&](Context<B>& c, const Input& in) {
      upper(c, model_, tree, in, caches_, cache, false, saved_);
      const auto y = saved_.upper.output.y;
      c.backend.matmul(y.rows_at(y.rows - 1, 1), model_.head(tree), logits, Write::Replace);
      c.backend.next_token(logits, next_.data());
    });
    NextToken<Scalar> next;
    backend_.to_host(next_.data(), &next, 1);
    return next;
  }
  /// All logits of what next() was last asked for.
  void logits(std::span<Scalar> out) const {
    backend_.to_host(logits_.data(), out.data(), static_cast<Index>(out.size()));
  }

 private:
  using Ahead = detail::LookAhead<Model, B>;

  struct Needs {
    Index passes = 0;  // scalars of scratch
    Index ahead = 0;   // beside that
  };
  ChunkPass(const Model& model, const B& backend, const Caches& caches, Index most_rows,
            Index ahead, const Needs& needs)
      : model_(model),
        backend_(backend),
        caches_(caches),
        workspace_(backend, needs.passes),
        most_rows_(most_rows),
        tokens_(backend.template allocate<Token>(most_rows + 1)),
        results_(backend, 1, most_rows),
        loss_weights_(backend.template allocate<Scalar>(most_rows)),
        logits_(backend.template allocate<Scalar>(model.config().vocabulary)),
        next_(backend.template allocate<NextToken<Scalar>>(1)),
        saved_(model),
        token_steps_(backend),
        chunk_steps_(backend),
        ahead_(model, backend, caches, workspace_, most_rows, ahead, needs.ahead) {}

  static Needs needs(const Model& model, const B& backend, const Caches& caches, Index rows,
                     Index ahead) {
    const DryRun<B> dry(backend);
    auto cache = dry.template allocate<CacheScalar>(caches.size());
    Workspace<DryRun<B>> workspace(dry, detail::most_elements);
    Workspace<DryRun<B>> beside(dry, detail::most_elements);
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
    Context<DryRun<B>> c{dry, workspace};
    if (ahead > 1) {
      Ahead::measure(dry, workspace, beside, model, tree, caches, cache.data(), rows, ahead);
    }
    const auto input = [&] {
      return Input{nullptr, rows, 0, workspace.matrix(rows, model.config().width), false};
    };
    const auto at = upper(c, model, tree, input(), caches, cache.data(), true, saved);
    backward(c, model, tree, saved, at, nullptr, nullptr, gradients, caches, cache.data(), nullptr);
    workspace.release(0);
    upper(c, model, tree, input(), caches, cache.data(), false, saved, &updates);
    return {workspace.peak(), beside.peak()};
  }

  /// A copy waits for all that the backend was given: what is there already is not copied, and the
  /// rest comes first in a pass, when that is least.
  void send(std::span<const Scalar> loss_weights) {
    if (loss_weights.size() == sent_.size() &&
        std::memcmp(loss_weights.data(), sent_.data(), loss_weights.size_bytes()) == 0) {
      return;
    }
    sent_.clear();
    backend_.to_device(loss_weights.data(), loss_weights_.data(),
                       static_cast<Index>(loss_weights.size()));
    sent_.assign(loss_weights.begin(), loss_weights.end());
  }

  using Kind = detail::PassKind;
  void places(const Tree& tree, const CacheScalar* cache, Kind kind) {
    places_.begin(kind);
    places_.add(cache);
    places_.template add_leaves<Model>(tree);
  }

  struct Saved {
    explicit Saved(const Model& model)
        : lower(model.template lower_saved<View<Scalar>>()),
          upper(model.template saved<View<Scalar>>()) {}
    typename Model::template LowerSaved<View<Scalar>> lower;  // never looked at again
    typename Model::template Saved<View<Scalar>> upper;
  };

  /// A block at work: its tokens in the backend's memory, and what the lower half makes of them, or
  /// has made already.
  struct Input {
    const Token* tokens;
    Index rows;
    Index position;
    View<Scalar> h;
    bool begun;
  };

  /// Normed hidden states, in saved.upper.output.y.
  template <class B2>
  static Positions<Scalar> upper(Context<B2>& c, const Model& model, const Tree& tree,
                                 const Input& in, const Caches& caches, CacheScalar* cache,
                                 bool keep, Saved& saved, const Gradients* updates = nullptr) {
    const auto at = model.positions(c, in.position, in.rows);
    if (!in.begun) {
      detail::lower_half(c, model, tree, in.tokens, in.h, at, caches, cache, saved.lower, updates);
    }
    model.upper_forward(c, tree, in.h, keep, saved.upper, at,
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

  /// Calls pass(context, input) for the first `rows` of the tokens. Passes over one token, and over
  /// whole chunks, are steps of the backend: `places_` says which.
  template <class F>
  void run(std::span<const Token> tokens, Index rows, Index position, const F& pass) {
    const auto block = ahead_.take(position, rows);
    const bool begun = !block.h.empty();
    if (!begun) {
      forget();
      workspace_.release(0);
    }
    const View<Scalar> h = workspace_.matrix(rows, model_.config().width);
    const Index mark = workspace_.used();
    places_.add(h.data);
    if (begun) tokens = {};
    const auto bring = [&] {  // to where every step finds it, and writes over it
      if (!begun) return;
      backend_.copy(block.tokens, tokens_.data(), rows + 1);
      backend_.copy(block.h.data, h.data, h.shape().size());
    };
    const auto step = [&](const B& machine) {
      workspace_.release(mark);
      Context<B> c{machine, workspace_};
      pass(c, Input{tokens_.data(), rows, position, h, begun});
    };
    const auto take = [&](auto&& steps) {
      steps(places_, tokens, tokens_.data(), position, step, bring);
    };
    if (rows == 1) return take(token_steps_);
    if (rows == most_rows_) return take(chunk_steps_);
    take(PlainSteps<B>(backend_));
  }

  const Model& model_;
  const B& backend_;
  Caches caches_;
  Workspace<B> workspace_;
  Index most_rows_;
  typename B::template Buffer<Token> tokens_;
  detail::PassResults<B> results_;
  typename B::template Buffer<Scalar> loss_weights_;
  std::vector<Scalar> sent_;                    // what these are
  typename B::template Buffer<Scalar> logits_;  // of the next token
  typename B::template Buffer<NextToken<Scalar>> next_;
  Saved saved_;
  detail::PassPlaces places_;  // of the pass at work
  StepsOf<B> token_steps_, chunk_steps_;
  Ahead ahead_;  // the last, so that it is joined before any memory goes
};

}  // namespace ttt::inline TTT_ABI
