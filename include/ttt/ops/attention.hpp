// SPDX-License-Identifier: MIT
/// \file
/// Causal softmax attention over a window of cached keys and values.
#pragma once

#include <ttt/ops/rms_norm.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

/// Keys and values of one block: rotated keys, as attention uses them. In training also the outer
/// loss's gradient with respect to those that anybody sees yet, one row a position from `first` on.
///
/// Where rows of several sequences are stacked, these are the first sequence's, and every other's
/// lie `apart` scalars behind those of the one before, gradients `gradients_apart`. All have equal
/// parts of the rows and stand at the same position, unless `parts` lists what each has.
template <class Scalar, class CacheScalar = Scalar>
struct KeyValues {
  Cache<CacheScalar> keys;
  Cache<CacheScalar> values;
  View<Scalar> dkeys = {};    // (positions, key_heads * head_dim)
  View<Scalar> dvalues = {};  // (positions, key_heads * head_dim)
  Index first = 0;            // the position of their first row
  Index sequences = 1;
  Index apart = 0, gradients_apart = 0;
  std::span<const SequencePart> parts = {};

  /// Part s of so many rows, at `position` unless the list says otherwise.
  SequencePart part(Index s, Index rows, Index position) const {
    return SequencePart::find(parts, s, sequences, rows, position);
  }
  /// Those of one sequence.
  KeyValues of(Index s) const {
    KeyValues own = *this;
    own.sequences = 1;
    own.parts = {};
    if (s == 0) return own;
    own.keys.data += s * apart;
    own.values.data += s * apart;
    if (!dkeys.empty()) own.dkeys.data += s * gradients_apart;
    if (!dvalues.empty()) own.dvalues.data += s * gradients_apart;
    return own;
  }
};

template <class B>
using KeyValuesOf = KeyValues<typename B::Scalar, typename B::CacheScalar>;

template <class Tensor>
struct Attended {
  Tensor o;    // (tokens, heads * head_dim)
  Tensor lse;  // (heads, tokens), sequence by sequence: log of each row's sum of exponentials
};

template <class Tensor>
struct Heads {
  Normed<Tensor> rotated_q, rotated_k;
  Attended<Tensor> attended;
};

namespace detail {

template <class B>
void rotate(const B& backend, View<const typename B::Scalar> q, View<const typename B::Scalar> k,
            View<const typename B::Scalar> v, Norm<typename B::Scalar> q_norm,
            Norm<typename B::Scalar> k_norm, View<const typename B::Scalar> angles,
            RopeLayout layout, const Normed<View<typename B::Scalar>>& rq,
            const Normed<View<typename B::Scalar>>& rk, const KeyValuesOf<B>& cache,
            Index position) {
  if constexpr (requires {
                  backend.rotate_and_store(q, k, v, q_norm, k_norm, angles, layout, rq.y,
                                           rq.inverse, rk.inverse, cache.keys, cache.values,
                                           position);
                }) {
    if (backend.rotate_and_store(q, k, v, q_norm, k_norm, angles, layout, rq.y, rq.inverse,
                                 rk.inverse, cache.keys, cache.values, position)) {
      return;
    }
  }
  backend.head_norm_rope(q, q_norm, angles, layout, rq.y, rq.inverse);
  backend.head_norm_rope(k, k_norm, angles, layout, rk.y, rk.inverse);
  backend.store(rk.y, cache.keys, position);
  backend.store(v, cache.values, position);
}

/// One sequence's of Attended::lse, (heads, its rows).
template <class Scalar>
View<Scalar> statistics(View<Scalar> all, const AttentionShape& shape, const SequencePart& own) {
  return {all.data + shape.heads * own.first, shape.heads, own.rows};
}

}  // namespace detail

/// Queries and keys with every head normed and turned by its position's angles, keys and values put
/// into the cache, and attention to everything in the window, this block's own included. What
/// becomes of rotated keys outside the cache is the backend's affair: nobody reads them there. 4 ·
/// head_dim operations a query, head and visible key.
///
/// A backend may have all before attention in one primitive, rotate_and_store. A sequence's
/// attention comes right behind it, so that one may do the other's work.
template <class B>
Heads<View<typename B::Scalar>> attend(Context<B>& c, View<const typename B::Scalar> q,
                                       View<const typename B::Scalar> k,
                                       View<const typename B::Scalar> v,
                                       Norm<typename B::Scalar> q_norm,
                                       Norm<typename B::Scalar> k_norm,
                                       View<const typename B::Scalar> angles, RopeLayout layout,
                                       const KeyValuesOf<B>& cache, AttentionShape shape) {
  const auto make = [&](View<const typename B::Scalar> x) {
    return Normed<View<typename B::Scalar>>{c.make(x.rows, x.cols),
                                            c.make(x.rows, x.cols / angles.cols)};
  };
  const auto rotated_q = make(q), rotated_k = make(k);
  const Index n = cache.parts.empty() ? cache.sequences : 1;
  const Attended<View<typename B::Scalar>> out{c.make(q.rows, q.cols),
                                               c.make(n * shape.heads, q.rows / n)};
  if (std::ssize(cache.parts) > 1 && std::ssize(cache.parts) == q.rows) {
    if constexpr (requires {
                    c.backend.attend_each(q, k, v, q_norm, k_norm, angles, layout, rotated_q.y,
                                          rotated_q.inverse, rotated_k.inverse, cache.keys,
                                          cache.values, cache.apart, cache.parts, shape, out.o,
                                          out.lse);
                  }) {
      const View<typename B::Scalar> lse(out.lse.data, q.rows, shape.heads);
      if (c.backend.attend_each(q, k, v, q_norm, k_norm, angles, layout, rotated_q.y,
                                rotated_q.inverse, rotated_k.inverse, cache.keys, cache.values,
                                cache.apart, cache.parts, shape, out.o, lse)) {
        return {rotated_q, rotated_k, out};
      }
    }
  }
  for (Index s = 0; s < cache.sequences; ++s) {
    const SequencePart own = cache.part(s, q.rows, shape.position);
    const auto memory = cache.of(own.place);
    const Normed<View<typename B::Scalar>> rq{own.of(rotated_q.y), own.of(rotated_q.inverse)},
        rk{own.of(rotated_k.y), own.of(rotated_k.inverse)};
    shape.position = own.position;
    detail::rotate(c.backend, own.of(q), own.of(k), own.of(v), q_norm, k_norm, own.of(angles),
                   layout, rq, rk, memory, shape.position);
    c.backend.attention(rq.y, memory.keys, memory.values, shape, own.of(out.o),
                        detail::statistics(out.lse, shape, own));
  }
  return {rotated_q, rotated_k, out};
}
/// The cache holds the values. Keys and values of earlier blocks are constants, whose tangents
/// would be zero. 6 · head_dim operations a query, head and earlier key, 10 for the block's own.
template <class B>
Heads<DualView<typename B::Scalar>> attend(TangentContext<B>& c,
                                           const DualView<typename B::Scalar>& q,
                                           const DualView<typename B::Scalar>& k,
                                           const DualView<typename B::Scalar>& v,
                                           Norm<typename B::Scalar> q_norm,
                                           Norm<typename B::Scalar> k_norm,
                                           View<const typename B::Scalar> angles, RopeLayout layout,
                                           const KeyValuesOf<B>& cache, AttentionShape shape) {
  TTT_ASSERT(q.moves() == k.moves() && q.moves() == v.moves());
  const auto rq = head_norm_rope(c, q, q_norm, angles, layout);
  const auto rk = head_norm_rope(c, k, k_norm, angles, layout);
  const Index n = cache.sequences;
  const Attended<DualView<typename B::Scalar>> out{c.make(q.rows, q.cols, q.moves()),
                                                   c.make(n * shape.heads, q.rows / n, q.moves())};
  for (Index s = 0; q.moves() && s < n; ++s) {
    const auto own = [&](const auto& x) { return x.part(s, n); };
    const auto memory = cache.of(s);
    c.backend.attention_tangent(own(rq.y.value), own(rq.y.tangent), memory.keys, memory.values,
                                own(rk.y.tangent), own(v.tangent), shape, own(out.o.value),
                                own(out.lse.value), own(out.o.tangent), own(out.lse.tangent));
  }
  return {rq, rk, out};
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
  for (Index s = 0; s < cache.sequences; ++s) {
    const SequencePart own = cache.part(s, q.rows, shape.position);
    const auto memory = cache.of(own.place);
    shape.position = own.position;
    c.backend.attention_backward(own.of(q), memory.keys, memory.values, shape, own.of(out.o),
                                 detail::statistics(out.lse, shape, own), own.of(dout), own.of(d.q),
                                 own.of(d.k), own.of(d.v), shape.position);
  }
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
  const Index n = cache.sequences, rows = q.rows / n;
  for (Index s = 0; s < n; ++s) {
    const auto own = [&](const auto& x) { return x.part(s, n); };
    const auto memory = cache.of(s);
    if (q.moves()) {
      c.backend.attention_backward_tangent(
          own(q.value), own(q.tangent), memory.keys, memory.values, own(k.tangent), own(v.tangent),
          shape, own(out.o.value), own(out.o.tangent), own(out.lse.value), own(out.lse.tangent),
          own(dout.value), own(dout.tangent), own(d.q.tangent), memory.dkeys, memory.dvalues,
          memory.first);
    } else {
      c.backend.attention_backward(own(q.value), memory.keys, memory.values, shape,
                                   own(out.o.value), own(out.lse.value), own(dout.tangent),
                                   own(d.q.tangent), memory.dkeys, memory.dvalues, memory.first);
    }
  }
  if (n == 1) {
    d.k.tangent = cache.dkeys.rows_at(shape.position - cache.first, rows);
    d.v.tangent = cache.dvalues.rows_at(shape.position - cache.first, rows);
    return d;
  }
  d.k.tangent = c.workspace.matrix(k.rows, k.cols);
  d.v.tangent = c.workspace.matrix(v.rows, v.cols);
  for (Index s = 0; s < n; ++s) {
    const auto memory = cache.of(s);
    const auto gather = [&](View<typename B::Scalar> all, View<typename B::Scalar> to) {
      c.backend.copy(all.row(shape.position - cache.first), to.part(s, n).data, rows * to.cols);
    };
    gather(memory.dkeys, d.k.tangent);
    gather(memory.dvalues, d.v.tangent);
  }
  return d;
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
