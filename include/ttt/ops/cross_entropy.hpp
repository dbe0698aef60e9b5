// SPDX-License-Identifier: MIT
/// \file
/// Both ends of a language model: the embedding, and cross-entropy fused with the head.
#pragma once

#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

/// Row t is the table's row tokens[t]. `tokens` lies in the backend's memory.
template <class B>
View<typename B::Scalar> embedding(Context<B>& c, Weight<typename B::Scalar> table,
                                   const Token* tokens, Index count) {
  const auto out = c.make(count, table.cols);
  c.backend.embed(table, tokens, out);
  return out;
}

/// nll[t] = -log softmax(h[t] · head)[targets[t]] and, unless it is absent, dh = the gradient of
/// sum of weights[t] · nll[t] with respect to h. The logits exist for a block of rows at a time.
template <class B>
void cross_entropy(Context<B>& c, View<typename B::Scalar> h, Weight<typename B::Scalar> head,
                   const Token* targets, const typename B::Scalar* weights, typename B::Scalar* nll,
                   View<typename B::Scalar> dh) {
  const Index mark = c.workspace.used();
  const auto scratch = c.workspace.matrix(1, c.backend.cross_entropy_scratch(h.rows, head.cols));
  c.backend.cross_entropy(h, head, targets, weights, nll, dh, scratch.data);
  c.workspace.release(mark);
}
/// The same with a new place for the gradient, if it is wanted.
template <class B>
View<typename B::Scalar> cross_entropy(Context<B>& c, View<typename B::Scalar> h,
                                       Weight<typename B::Scalar> head, const Token* targets,
                                       const typename B::Scalar* weights, typename B::Scalar* nll,
                                       bool want_dh) {
  const auto dh = c.adjoint(h, want_dh);
  cross_entropy(c, h, head, targets, weights, nll, dh);
  return dh;
}
/// The tangent of that gradient, when the loss's own weight in the outer loss is `seed`; adds to
/// `dhead`, which has the shape of the head or of an embedding.
template <class B>
DualView<typename B::Scalar> cross_entropy(TangentContext<B>& c,
                                           const DualView<typename B::Scalar>& h,
                                           Weight<typename B::Scalar> head, const Token* targets,
                                           const typename B::Scalar* weights, double seed,
                                           View<typename B::Scalar> dhead) {
  const auto dh = c.adjoint(h);
  const Index mark = c.workspace.used();
  const auto scratch =
      c.workspace.matrix(1, c.backend.cross_entropy_tangent_scratch(h.rows, head.cols));
  c.backend.cross_entropy_tangent(h.value, h.tangent, head, targets, weights, seed, dh.tangent,
                                  dhead, scratch.data);
  c.workspace.release(mark);
  return dh;
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
