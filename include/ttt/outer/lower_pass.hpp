// SPDX-License-Identifier: MIT
/// \file
/// The part of a model that does not learn at test time, over a whole sequence: ordinary training.
#pragma once

#include <algorithm>
#include <vector>

#include <ttt/model/language_model.hpp>
#include <ttt/ops/cross_entropy.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Runs the lower half of a model forwards over a sequence of fixed length, and backwards. Memory
/// is linear in the length and comes from a workspace: what the way back needs stays there, the
/// rest is given back. With `recompute` a block keeps nothing but its input and is run again, what
/// is behind its attention some rows at a time.
template <class Model, class B>
class LowerPass {
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  using Tensor = View<Scalar>;

 public:
  using Tree = typename Model::template Parameters<Weight<Scalar>>;
  using Gradients = typename Model::template Parameters<Tensor>;

  /// Keeps references to the model, the backend and the workspace.
  LowerPass(const Model& model, const B& backend, Workspace<B>& workspace, Index length,
            bool recompute)
      : sweep_(model, {backend, workspace, Write::Add}, length, recompute) {}

  /// Scalars of the workspace.
  struct Size {
    Index kept = 0;  // between forward and backward
    Index most = 0;  // while either runs
  };
  /// `rule` is what InPlaceMLPs will be run with, of which only the chunk matters here.
  static Size size(const Model& model, const B& backend, Index length, bool recompute,
                   const ops::InPlaceRule& rule = {}) {
    const DryRun<B> dry(backend);
    Workspace<DryRun<B>> workspace(dry, most_elements);
    Sweep<DryRun<B>> sweep(model, {dry, workspace, Write::Add}, length, recompute);
    const Tree tree = model.template shaped_tree<Weight<Scalar>>();
    const Gradients none = model.template tree<Tensor>();
    sweep.forward(tree, nullptr, rule);
    const Index kept = workspace.used();
    sweep.backward(tree, nullptr, none);
    return {kept, workspace.peak()};
  }

  /// Tokens in the backend's memory to (length, width). That is where its gradient belongs too,
  /// once nobody needs it any more.
  Tensor forward(const Tree& p, const Token* tokens, const ops::InPlaceRule& rule = {}) {
    return sweep_.forward(p, tokens, rule);
  }

  /// From there to the gradients of the parameters, which are added to `d`.
  void backward(const Tree& p, const Token* tokens, const Gradients& d) {
    sweep_.backward(p, tokens, d);
  }

 private:
  static constexpr Index piece_rows = 8192;  // enough for any machine to be busy

  template <class B2>
  struct Sweep {
    const Model& model;
    Context<B2> c;
    Index rows;
    bool recompute;
    CacheShape<Scalar, CacheScalar> caches;  // with `recompute`, of the block that is being run
    CacheScalar* cache = nullptr;
    typename Model::template LowerSaved<Tensor> saved;
    std::vector<Tensor> inputs;  // of the blocks but the first, whose input the tokens are
    Positions<Scalar> at;
    InPlacePass<Scalar> pass;
    Tensor h;  // the result, then its gradient

    Sweep(const Model& model_, Context<B2> c_, Index rows_, bool recompute_)
        : model(model_),
          c(c_),
          rows(rows_),
          recompute(recompute_),
          caches{recompute ? std::min<Index>(1, model.lower_blocks()) : model.lower_blocks(),
                 model.config().key_heads, rows, model.config().head_dim},
          saved(model.template lower_saved<Tensor>()) {}

    ops::KeyValues<Scalar, CacheScalar> memory(Index i) const {
      return caches.at(cache, recompute ? 0 : i);
    }

    Tensor forward(const Tree& p, const Token* tokens, const ops::InPlaceRule& rule) {
      at = model.positions(c, 0, rows);
      pass = {.rule = rule};
      if (Model::learns_embeddings && rule.learns(rows)) {
        pass.embeddings = ops::embedding(c, p.embedding, tokens, rows);
        pass.dembeddings = c.make(rows, model.config().width);
      }
      h = ops::embedding(c, p.embedding, tokens, rows);
      inputs.clear();
      for (Index i = 1; recompute && i < model.lower_blocks(); ++i) {
        inputs.push_back(c.make(h.rows, h.cols));
      }
      const Index mark = c.workspace.used();
      cache = c.workspace.template vector<CacheScalar>(caches.size());
      for (Index i = 0; i < model.lower_blocks(); ++i) {
        if (recompute && i > 0) c.backend.copy(h.data, input(i).data, h.rows * h.cols);
        h = model.lower_attend(c, p, i, h, !recompute, saved, at, memory(i));
        if (recompute) {
          for_pieces([&](const auto& piece) {
            model.lower_feed(c, p, i, piece(h), false, saved, pass);  // over h
          });
        } else {
          h = model.lower_feed(c, p, i, h, true, saved, pass);
        }
      }
      if (recompute) c.workspace.release(mark);
      return h;
    }

    void backward(const Tree& p, const Token* tokens, const Gradients& d) {
      if (recompute) cache = c.workspace.template vector<CacheScalar>(caches.size());
      Tensor dx = h;
      const Tensor& dembeddings = pass.dembeddings;
      if (!dembeddings.empty()) {
        c.backend.fill(Scalar(0), dembeddings.data, dembeddings.shape().size());
      }
      for (Index i = model.lower_blocks() - 1; i >= 0; --i) {
        const Index mark = c.workspace.used();
        if (recompute) {
          const Tensor x = i > 0 ? input(i) : ops::embedding(c, p.embedding, tokens, rows);
          const Tensor between = model.lower_attend(c, p, i, x, true, saved, at, memory(i));
          for_pieces([&](const auto& piece) {
            model.lower_feed(c, p, i, piece(between), true, saved, pass);
            model.lower_feed_backward(c, p, i, saved, piece(dx), d, pass);  // over dx
          });
        } else {
          dx = model.lower_feed_backward(c, p, i, saved, dx, d, pass);  // over h
        }
        dx = model.lower_attend_backward(c, p, i, saved, dx, d, at, memory(i));
        c.workspace.release(mark);
      }
      if (d.embedding.empty()) return;
      c.backend.embed_backward(tokens, dx, d.embedding);
      if (!dembeddings.empty()) c.backend.embed_backward(tokens, dembeddings, d.embedding);
    }

    /// Calls f with what takes a matrix to some of its rows, for all rows in turn, and gives back
    /// what f took: in what goes row by row, activations of all rows need not exist at a time.
    template <class F>
    void for_pieces(const F& f) {
      const Index each = pass.rule.learns(rows) ? rows : piece_rows;
      for (Index first = 0; first < rows; first += each) {
        const Index mark = c.workspace.used();
        f([&](const Tensor& all) { return all.rows_at(first, std::min(each, rows - first)); });
        c.workspace.release(mark);
      }
    }

    Tensor input(Index i) const { return inputs[static_cast<std::size_t>(i - 1)]; }
  };

  Sweep<B> sweep_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
