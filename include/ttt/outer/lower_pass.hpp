// SPDX-License-Identifier: MIT
/// \file
/// The part of a model that does not learn at test time, over a whole sequence: ordinary training.
#pragma once

#include <vector>

#include <ttt/model/language_model.hpp>
#include <ttt/ops/cross_entropy.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Runs the lower half of a model forwards over a sequence of fixed length, and backwards. Memory
/// is taken once and is linear in the length; with `recompute` a block keeps nothing but its input
/// and is run again on the way back.
template <class Model, class B>
class LowerPass {
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  using Tensor = View<Scalar>;

 public:
  using Tree = typename Model::template Parameters<Weight<Scalar>>;
  using Gradients = typename Model::template Parameters<Tensor>;

  /// Throws Error when memory runs out. Keeps references to the model and the backend. `rule` is
  /// what InPlaceMLPs will be run with, of which only the chunk matters here.
  LowerPass(const Model& model, const B& backend, Index length, bool recompute,
            const ops::InPlaceRule& rule = {})
      : caches_(cache_shape(model, length, recompute)),
        cache_(backend.template allocate<CacheScalar>(caches_.size())),
        workspace_(backend, scratch(model, backend, length, recompute, rule)),
        sweep_(model, {backend, workspace_, Write::Add}, caches_, cache_.data(), recompute),
        length_(length) {}

  /// Scalars that a pass takes.
  static Index size(const Model& model, const B& backend, Index length, bool recompute,
                    const ops::InPlaceRule& rule = {}) {
    const Index cached = cache_shape(model, length, recompute).size();
    return scalars_of<Scalar, CacheScalar>(cached) +
           scratch(model, backend, length, recompute, rule);
  }

  /// Tokens in the backend's memory to (length, width), which stay until the next forward.
  Tensor forward(const Tree& p, const Token* tokens, const ops::InPlaceRule& rule = {}) {
    return sweep_.forward(p, tokens, length_, rule);
  }

  /// Where the gradient of forward's result belongs, (length, width).
  Tensor gradient() const { return sweep_.dh; }

  /// From there to the gradients of the parameters, which are added to `d`.
  void backward(const Tree& p, const Token* tokens, const Gradients& d) {
    sweep_.backward(p, tokens, d);
  }

 private:
  template <class B2>
  struct Sweep {
    const Model& model;
    Context<B2> c;
    CacheShape<Scalar, CacheScalar> caches;
    CacheScalar* cache;
    bool recompute;
    typename Model::template LowerSaved<Tensor> saved;
    std::vector<Tensor> inputs;
    Positions<Scalar> at;
    InPlacePass<Scalar> pass;
    Tensor dh;

    Sweep(const Model& model_, Context<B2> c_, const CacheShape<Scalar, CacheScalar>& caches_,
          CacheScalar* cache_, bool recompute_)
        : model(model_),
          c(c_),
          caches(caches_),
          cache(cache_),
          recompute(recompute_),
          saved(model.template lower_saved<Tensor>()),
          inputs(static_cast<std::size_t>(model.lower_blocks())) {}

    ops::KeyValues<Scalar, CacheScalar> memory(Index i) const {
      return caches.at(cache, recompute ? 0 : i);
    }

    Tensor forward(const Tree& p, const Token* tokens, Index rows, const ops::InPlaceRule& rule) {
      c.workspace.release(0);
      at = model.positions(c, 0, rows);
      dh = c.make(rows, model.config().width);
      pass = {.rule = rule};
      if (Model::learns_embeddings && rule.learns(rows)) {
        pass.embeddings = ops::embedding(c, p.embedding, tokens, rows);
        pass.dembeddings = c.make(rows, model.config().width);
      }
      Tensor h = ops::embedding(c, p.embedding, tokens, rows);
      for (Index i = 0; i < model.lower_blocks(); ++i) {
        if (recompute) {
          Tensor& input = inputs[static_cast<std::size_t>(i)];
          input = c.make(h.rows, h.cols);
          c.backend.copy(h.data, input.data, h.rows * h.cols);
        }
        h = model.lower_forward(c, p, i, h, !recompute, saved, at, memory(i), pass);
      }
      return h;
    }

    void backward(const Tree& p, const Token* tokens, const Gradients& d) {
      Tensor dx = dh;
      const Tensor& dembeddings = pass.dembeddings;
      if (!dembeddings.empty()) {
        c.backend.fill(Scalar(0), dembeddings.data, dembeddings.shape().size());
      }
      for (Index i = model.lower_blocks() - 1; i >= 0; --i) {
        const Index mark = c.workspace.used();
        if (recompute) {
          const Tensor input = inputs[static_cast<std::size_t>(i)];
          model.lower_forward(c, p, i, input, true, saved, at, memory(i), pass);
        }
        dx = model.lower_backward(c, p, i, saved, dx, d, at, memory(i), pass);  // over dh
        c.workspace.release(mark);
      }
      if (d.embedding.empty()) return;
      c.backend.embed_backward(tokens, dx, d.embedding);
      if (!dembeddings.empty()) c.backend.embed_backward(tokens, dembeddings, d.embedding);
    }
  };

  static CacheShape<Scalar, CacheScalar> cache_shape(const Model& model, Index length,
                                                     bool recompute) {
    const Config& config = model.config();
    const Index blocks =
        recompute ? std::min<Index>(1, model.lower_blocks()) : model.lower_blocks();
    return {blocks, config.key_heads, length, config.head_dim};
  }

  static Index scratch(const Model& model, const B& backend, Index length, bool recompute,
                       const ops::InPlaceRule& rule) {
    const DryRun<B> dry(backend);
    Workspace<DryRun<B>> workspace(dry, most_elements);
    const CacheShape<Scalar, CacheScalar> caches = cache_shape(model, length, recompute);
    auto cache = dry.template allocate<CacheScalar>(caches.size());
    Sweep<DryRun<B>> sweep(model, {dry, workspace, Write::Add}, caches, cache.data(), recompute);
    const Tree tree = model.template shaped_tree<Weight<Scalar>>();
    const Gradients none = model.template tree<Tensor>();
    sweep.forward(tree, nullptr, length, rule);
    sweep.backward(tree, nullptr, none);
    return workspace.peak();
  }

  CacheShape<Scalar, CacheScalar> caches_;
  typename B::template Buffer<CacheScalar> cache_;
  Workspace<B> workspace_;
  Sweep<B> sweep_;
  Index length_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
