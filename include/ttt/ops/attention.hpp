// SPDX-License-Identifier: MIT
/// \file
/// Causal softmax attention over a window of cached keys and values.
#pragma once

#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

/// Keys and values of one block: rotated keys, as attention uses them.
template <class T>
struct KeyValues {
  Cache<T> keys;
  Cache<T> values;
};

template <class Tensor>
struct Attended {
  Tensor o;    // (tokens, heads * head_dim)
  Tensor lse;  // (heads, tokens): log of each row's sum of exponentials
};

/// Puts this block's keys and values into the cache, then attends to everything in the window.
/// 4 · head_dim operations a query, head and visible key.
template <class B>
Attended<View<typename B::Scalar>> attention(Context<B>& c, View<const typename B::Scalar> q,
                                             View<const typename B::Scalar> k,
                                             View<const typename B::Scalar> v,
                                             KeyValues<typename B::Scalar> cache,
                                             AttentionShape shape) {
  c.backend.store(k, cache.keys, shape.position);
  c.backend.store(v, cache.values, shape.position);
  const Attended<View<typename B::Scalar>> out{c.make(q.rows, q.cols), c.make(shape.heads, q.rows)};
  c.backend.attention(q, cache.keys, cache.values, shape, out.o, out.lse);
  return out;
}

template <class Tensor>
struct AttentionGradient {
  Tensor q, k, v;
};

/// Gradients for this block's queries, keys and values; keys and values of earlier blocks are
/// constants. 6 · head_dim operations a query, head and earlier key, 10 for the block's own.
template <class B>
AttentionGradient<View<typename B::Scalar>> attention_backward(
    Context<B>& c, View<const typename B::Scalar> q, KeyValues<typename B::Scalar> cache,
    AttentionShape shape, const Attended<View<typename B::Scalar>>& out,
    View<const typename B::Scalar> dout) {
  const Index width = shape.key_heads * shape.head_dim;
  const AttentionGradient<View<typename B::Scalar>> d{c.make(q.rows, q.cols), c.make(q.rows, width),
                                                      c.make(q.rows, width)};
  c.backend.attention_backward(q, cache.keys, cache.values, shape, out.o, out.lse, dout, d.q, d.k,
                               d.v);
  return d;
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
