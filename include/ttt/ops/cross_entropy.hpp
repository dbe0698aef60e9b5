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

/// nll[t] = -log softmax(h[t] · head)[targets[t]], and, unless dh is absent,
/// dh = d(sum of weights[t] · nll[t]) / dh. The logits exist for a block of rows at a time.
template <class B>
void cross_entropy(Context<B>& c, View<const typename B::Scalar> h, Weight<typename B::Scalar> head,
                   const Token* targets, const typename B::Scalar* weights, typename B::Scalar* nll,
                   View<typename B::Scalar> dh) {
  const Scope scope(c.workspace);
  const auto scratch = c.make(1, c.backend.cross_entropy_scratch(h.rows, head.cols));
  c.backend.cross_entropy(h, head, targets, weights, nll, dh, scratch.data);
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
