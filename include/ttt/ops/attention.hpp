// SPDX-License-Identifier: MIT
/// \file
/// Causal softmax attention over a window of cached keys and values.
#pragma once

#include <ttt/ops/rms_norm.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

/// Keys and values of one block: rotated keys, as attention uses them. In training also the outer
/// loss's gradient with respect to each of them, one row a position from the document's first.
template <class Scalar, class CacheScalar = Scalar>
struct KeyValues {
  Cache<CacheScalar> keys;
  Cache<CacheScalar> values;
  View<Scalar> dkeys = {};    // (positions, key_heads * head_dim)
  View<Scalar> dvalues = {};  // (positions, key_heads * head_dim)
};

template <class B>
using KeyValuesOf = KeyValues<typename B::Scalar, typename B::CacheScalar>;

template <class Tensor>
struct Attended {
  Tensor o;    // (tokens, heads * head_dim)
  Tensor lse;  // (heads, tokens): log of each row's sum of exponentials
};

template <class Tensor>
struct Rotated {
  Normed<Tensor> q, k;
};

/// Queries and keys with every head normed and turned by its position's angles; keys and values go
/// into the cache. What becomes of rotated keys outside it is the backend's affair: nobody reads
/// them there. A backend may have all this in one primitive, rotate_and_store.
template <class B>
Rotated<View<typename B::Scalar>> rotate(Context<B>& c, View<const typename B::Scalar> q,
                                         View<const typename B::Scalar> k,
                                         View<const typename B::Scalar> v,
                                         Norm<typename B::Scalar> q_norm,
                                         Norm<typename B::Scalar> k_norm,
                                         View<const typename B::Scalar> angles, RopeLayout layout,
                                         const KeyValuesOf<B>& cache, Index position) {
  const auto make = [&](View<const typename B::Scalar> x) {
    return Normed<View<typename B::Scalar>>{c.make(x.rows, x.cols),
                                            c.make(x.rows, x.cols / angles.cols)};
  };
  const auto rq = make(q), rk = make(k);
  const Rotated<View<typename B::Scalar>> out{rq, rk};
  if constexpr (requires {
                  c.backend.rotate_and_store(q, k, v, q_norm, k_norm, angles, layout, rq.y,
                                             rq.inverse, rk.inverse, cache.keys, cache.values,
                                             position);
                }) {
    if (c.backend.rotate_and_store(q, k, v, q_norm, k_norm, angles, layout, rq.y, rq.inverse,
                                   rk.inverse, cache.keys, cache.values, position)) {
      return out;
    }
  }
  c.backend.head_norm_rope(q, q_norm, angles, layout, rq.y, rq.inverse);
  c.backend.head_norm_rope(k, k_norm, angles, layout, rk.y, rk.inverse);
  c.backend.store(rk.y, cache.keys, position);
  c.backend.store(v, cache.values, position);
  return out;
}
/// The cache holds the values of keys and values.
template <class B>
Rotated<DualView<typename B::Scalar>> rotate(
    TangentContext<B>& c, const DualView<typename B::Scalar>& q,
    const DualView<typename B::Scalar>& k, const DualView<typename B::Scalar>&,
    Norm<typename B::Scalar> q_norm, Norm<typename B::Scalar> k_norm,
    View<const typename B::Scalar> angles, RopeLayout layout, const KeyValuesOf<B>&, Index) {
  const auto rq = head_norm_rope(c, q, q_norm, angles, layout);
  return {rq, head_norm_rope(c, k, k_norm, angles, layout)};
}

/// Attends to everything in the window, this block's own keys and values included, which are in the
/// cache. 4 · head_dim operations a query, head and visible key.
template <class B>
Attended<View<typename B::Scalar>> attention(Context<B>& c, View<const typename B::Scalar> q,
                                             View<const typename B::Scalar>,
                                             View<const typename B::Scalar>,
                                             const KeyValuesOf<B>& cache, AttentionShape shape) {
  const Attended<View<typename B::Scalar>> out{c.make(q.rows, q.cols), c.make(shape.heads, q.rows)};
  c.backend.attention(q, cache.keys, cache.values, shape, out.o, out.lse);
  return out;
}
/// The cache holds the values. Keys and values of earlier blocks are constants, whose tangents
/// would be zero. 6 · head_dim operations a query, head and earlier key, 10 for the block's own.
template <class B>
Attended<DualView<typename B::Scalar>> attention(TangentContext<B>& c,
                                                 const DualView<typename B::Scalar>& q,
                                                 const DualView<typename B::Scalar>& k,
                                                 const DualView<typename B::Scalar>& v,
                                                 const KeyValuesOf<B>& cache,
                                                 AttentionShape shape) {
  TTT_ASSERT(q.moves() == k.moves() && q.moves() == v.moves());
  const Attended<DualView<typename B::Scalar>> out{c.make(q.rows, q.cols, q.moves()),
                                                   c.make(shape.heads, q.rows, q.moves())};
  if (q.moves()) {
    c.backend.attention_tangent(q.value, q.tangent, cache.keys, cache.values, k.tangent, v.tangent,
                                shape, out.o.value, out.lse.value, out.o.tangent, out.lse.tangent);
  }
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
    Context<B>& c, View<const typename B::Scalar> q, View<const typename B::Scalar> k,
    View<const typename B::Scalar> v, const KeyValuesOf<B>& cache, AttentionShape shape,
    const Attended<View<typename B::Scalar>>& out, View<const typename B::Scalar> dout) {
  const AttentionGradient<View<typename B::Scalar>> d{
      c.make(q.rows, q.cols), c.make(k.rows, k.cols), c.make(v.rows, v.cols)};
  c.backend.fill(typename B::Scalar(0), d.k.data, d.k.shape().size());
  c.backend.fill(typename B::Scalar(0), d.v.data, d.v.shape().size());
  c.backend.attention_backward(q, cache.keys, cache.values, shape, out.o, out.lse, dout, d.q, d.k,
                               d.v, shape.position);
  return d;
}
/// The outer gradient reaches earlier keys and values too: cache.dkeys and cache.dvalues are added
/// to, and what they hold then for this block's own is the tangent of d.k and d.v. 18 · head_dim
/// operations a query, head and earlier key, 24 for the block's own.
template <class B>
AttentionGradient<DualView<typename B::Scalar>> attention_backward(
    TangentContext<B>& c, const DualView<typename B::Scalar>& q,
    const DualView<typename B::Scalar>& k, const DualView<typename B::Scalar>& v,
    const KeyValuesOf<B>& cache, AttentionShape shape,
    const Attended<DualView<typename B::Scalar>>& out, const DualView<typename B::Scalar>& dout) {
  AttentionGradient<DualView<typename B::Scalar>> d{
      c.make(q.rows, q.cols, true), c.make(k.rows, k.cols, false), c.make(v.rows, v.cols, false)};
  d.k.tangent = cache.dkeys.rows_at(shape.position, k.rows);
  d.v.tangent = cache.dvalues.rows_at(shape.position, v.rows);
  if (q.moves()) {
    c.backend.attention_backward_tangent(q.value, q.tangent, cache.keys, cache.values, k.tangent,
                                         v.tangent, shape, out.o.value, out.o.tangent,
                                         out.lse.value, out.lse.tangent, dout.value, dout.tangent,
                                         d.q.tangent, cache.dkeys, cache.dvalues, 0);
  } else {
    c.backend.attention_backward(q.value, cache.keys, cache.values, shape, out.o.value,
                                 out.lse.value, dout.tangent, d.q.tangent, cache.dkeys,
                                 cache.dvalues, 0);
  }
  return d;
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
