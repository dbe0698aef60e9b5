// SPDX-License-Identifier: MIT
/// \file
/// Sizes and inputs for tests of a backend's primitives: on both sides of each packet, panel and
/// tile.
#pragma once

#include <algorithm>
#include <support/equivalence.hpp>
#include <support/matrix.hpp>
#include <support/random.hpp>
#include <utility>

#include <doctest/doctest.h>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/reference/backend.hpp>

namespace ttt::test {

inline constexpr Index row_counts[] = {1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 130, 257};
inline constexpr Index col_counts[] = {1, 3, 8, 17, 31, 33, 48, 61, 100};

/// Calls f(rows, cols) for every pair of the sizes above.
template <class F>
void for_shapes(const F& f) {
  for (Index rows : row_counts) {
    for (Index cols : col_counts) {
      CAPTURE(rows);
      CAPTURE(cols);
      f(rows, cols);
    }
  }
}

/// A norm whose scale is absent, wide or narrow.
template <class S>
struct TestNorm {
  StoredWeight<S> scale;
  bool has_scale;
  double eps;

  static TestNorm make(Random& random, Index width, int kind, double eps = 1e-6) {
    return {StoredWeight<S>(random, {1, width}, false, kind == 2), kind > 0, eps};
  }
  template <class U>
  TestNorm<U> as() const {
    return {scale.template as<U>(), has_scale, eps};
  }
  Norm<S> norm() const { return {has_scale ? scale.weight() : Weight<S>(), eps}; }
};

template <class B>
using ScalarOf = typename B::Scalar;

/// A block of queries, and a ring with the keys and values that they see and nothing else.
template <class S>
struct AttentionInputs {
  Index rows;
  AttentionShape shape;
  Index first;    // position of the first gradient of a key
  Index gap = 5;  // between rows of results
  Matrix<S> q, dout;
  Matrix<S> keys, values;    // (heads x slots, head_dim)
  Matrix<S> dkeys, dvalues;  // what the gradients are added to

  /// `before`: how many keys before the block have gradients too, if so many are seen.
  AttentionInputs(Random& random, Index rows_, AttentionShape shape_, Index spare, Index before = 0,
                  double scale = 1)
      : rows(rows_),
        shape(shape_),
        first(std::max(shape.first_key(shape.position), shape.position - before)),
        q(Matrix<S>::input(random, rows, shape.heads * shape.head_dim, 3, scale)),
        dout(Matrix<S>::input(random, rows, shape.heads * shape.head_dim, 1)),
        keys(Matrix<S>::input(shape.key_heads * (seen() + spare), shape.head_dim)),
        values(keys),
        dkeys(Matrix<S>::output(random, shape.position + rows - first,
                                shape.key_heads * shape.head_dim, 2)),
        dvalues(dkeys) {
    const auto new_keys = Matrix<S>::input(random, seen(), shape.key_heads * shape.head_dim, 2);
    const auto new_values = Matrix<S>::input(random, seen(), shape.key_heads * shape.head_dim, 2);
    const reference::Backend<S> b;
    const Index oldest = shape.first_key(shape.position);
    b.store(new_keys.view(), {keys.view().data, shape.key_heads, seen() + spare, shape.head_dim},
            oldest);
    b.store(new_values.view(),
            {values.view().data, shape.key_heads, seen() + spare, shape.head_dim}, oldest);
  }

  Index seen() const { return shape.position + rows - shape.first_key(shape.position); }

  /// Keys or values as a backend keeps them.
  template <class B>
  static auto kept(const Matrix<S>& m) {
    const View<const S> from = m.view();
    std::vector<typename B::CacheScalar> to;
    for (Index i = 0; i < from.rows; ++i) {
      for (Index j = 0; j < from.cols; ++j) {
        if constexpr (std::is_arithmetic_v<typename B::CacheScalar>) {
          to.push_back(static_cast<typename B::CacheScalar>(from(i, j)));
        } else {
          to.emplace_back(static_cast<float>(from(i, j)));
        }
      }
    }
    return to;
  }

  template <class T>
  Cache<const T> cache(const std::vector<T>& kept) const {
    return {kept.data(), shape.key_heads, keys.view().rows / shape.key_heads, shape.head_dim};
  }

  /// Forward and backward: o, lse, dq, dkeys, dvalues.
  template <class B>
  auto run(const B& b) const {
    using T = ScalarOf<B>;
    const auto q_ = q.template as<T>(), dout_ = dout.template as<T>();
    const auto keys_ = kept<B>(keys), values_ = kept<B>(values);
    const auto k = cache(keys_), v = cache(values_);
    auto o = Matrix<T>::output(rows, shape.heads * shape.head_dim, gap), dq = o;
    auto lse = Matrix<T>::output(shape.heads, rows, 2);
    auto dk = dkeys.template as<T>(), dv = dvalues.template as<T>();
    b.attention(q_.view(), k, v, shape, o.view(), lse.view());
    b.attention_backward(q_.view(), k, v, shape, o.view(), lse.view(), dout_.view(), dq.view(),
                         dk.view(), dv.view(), first);
    return results(std::move(o), std::move(lse), std::move(dq), std::move(dk), std::move(dv));
  }
};

/// A block of queries that moves, with its keys and values.
template <class S>
struct AttentionTangentInputs {
  AttentionInputs<S> values;
  Matrix<S> tq, tdout, tkeys, tvalues;

  AttentionTangentInputs(Random& random, Index rows, const AttentionShape& shape, Index spare,
                         Index before = 0, double scale = 1)
      : values(random, rows, shape, spare, before, scale),
        tq(Matrix<S>::input(random, rows, shape.heads * shape.head_dim, 2)),
        tdout(Matrix<S>::input(random, rows, shape.heads * shape.head_dim, 4)),
        tkeys(Matrix<S>::input(random, rows, shape.key_heads * shape.head_dim, 3)),
        tvalues(Matrix<S>::input(random, rows, shape.key_heads * shape.head_dim, 1)) {}

  /// Forward and backward: to, tlse, tdq, tdkeys, tdvalues. Where `alone`, each output is computed
  /// without the others, too, and must be the same.
  template <class B>
  auto run(const B& b, bool alone = false) const {
    using T = ScalarOf<B>;
    const Index rows = values.rows, first = values.first;
    const AttentionShape& shape = values.shape;
    const auto q = values.q.template as<T>(), tq_ = tq.template as<T>();
    const auto dout = values.dout.template as<T>(), tdout_ = tdout.template as<T>();
    const auto tk = tkeys.template as<T>(), tv = tvalues.template as<T>();
    const auto keys = values.template kept<B>(values.keys);
    const auto cached_values = values.template kept<B>(values.values);
    const auto k = values.cache(keys), v = values.cache(cached_values);
    auto o = Matrix<T>::output(rows, shape.heads * shape.head_dim, values.gap), to = o, tdq = o;
    auto lse = Matrix<T>::output(shape.heads, rows, 2), tlse = lse;
    const auto dk = values.dkeys.template as<T>(), dv = values.dvalues.template as<T>();
    auto tdk = dk, tdv = dv;
    b.attention(q.view(), k, v, shape, o.view(), lse.view());
    const auto forward = [&](View<T> to_out, View<T> tlse_out) {
      b.attention_tangent(q.view(), tq_.view(), k, v, tk.view(), tv.view(), shape, o.view(),
                          lse.view(), to_out, tlse_out);
    };
    const auto backward = [&](View<T> dq_out, View<T> dk_out, View<T> dv_out) {
      b.attention_backward_tangent(q.view(), tq_.view(), k, v, tk.view(), tv.view(), shape,
                                   o.view(), to.view(), lse.view(), tlse.view(), dout.view(),
                                   tdout_.view(), dq_out, dk_out, dv_out, first);
    };
    forward(to.view(), tlse.view());
    backward(tdq.view(), tdk.view(), tdv.view());
    if (alone) {
      auto to1 = o, tlse1 = lse, tdq1 = o, tdk1 = dk, tdv1 = dv;
      forward(to1.view(), {});
      forward({}, tlse1.view());
      backward(tdq1.view(), {}, {});
      backward({}, tdk1.view(), {});
      backward({}, {}, tdv1.view());
      CHECK(to1.same_bits(to));
      CHECK(tlse1.same_bits(tlse));
      CHECK(tdq1.same_bits(tdq));
      CHECK(tdk1.same_bits(tdk));
      CHECK(tdv1.same_bits(tdv));
    }
    return results(std::move(to), std::move(tlse), std::move(tdq), std::move(tdk), std::move(tdv));
  }
};

}  // namespace ttt::test
