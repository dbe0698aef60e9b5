// SPDX-License-Identifier: MIT
/// \file
/// Linear maps without bias, and the residual sum.
#pragma once

#include <array>

#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

/// x · w, (tokens, in) · (in, out). 2 · tokens · in · out operations.
template <class B>
View<typename B::Scalar> linear(Context<B>& c, View<const typename B::Scalar> x,
                                Weight<typename B::Scalar> w) {
  const auto y = c.make(x.rows, w.cols);
  c.backend.matmul(x, w, y, Write::Replace);
  return y;
}

/// y' = x' · w + x · w'.
template <class B>
DualView<typename B::Scalar> linear(TangentContext<B>& c, const DualView<typename B::Scalar>& x,
                                    const DualWeight<typename B::Scalar>& w) {
  const auto y = c.make(x.rows, w.cols, x.moves() || w.moves());
  if (x.moves()) c.backend.matmul(x.tangent, w, y.tangent, Write::Replace);
  if (w.moves()) {
    c.backend.matmul(x.value, w.tangent, y.tangent, x.moves() ? Write::Add : Write::Replace);
  }
  return y;
}

/// x · w of each weight, as linear gives them one after the other. A backend may have them in one
/// primitive, matmul_each.
template <class B, class... Weights>
std::array<View<typename B::Scalar>, sizeof...(Weights)> linears(Context<B>& c,
                                                                 View<const typename B::Scalar> x,
                                                                 const Weights&... weights) {
  const std::array<Weight<typename B::Scalar>, sizeof...(Weights)> w{weights...};
  const std::array<View<typename B::Scalar>, sizeof...(Weights)> y{c.make(x.rows, weights.cols)...};
  if constexpr (requires { c.backend.matmul_each(x, w, y); }) {
    if (c.backend.matmul_each(x, w, y)) return y;
  }
  for (std::size_t i = 0; i < w.size(); ++i) c.backend.matmul(x, w[i], y[i], Write::Replace);
  return y;
}
template <class B, class... Weights>
std::array<DualView<typename B::Scalar>, sizeof...(Weights)> linears(
    TangentContext<B>& c, const DualView<typename B::Scalar>& x, const Weights&... weights) {
  return {linear(c, x, weights)...};
}

/// dw = xᵀ · dy (replaced or added to, as the context says) and dx (+)= dy · wᵀ; an absent one is
/// not computed.
template <class B>
void linear_backward(Context<B>& c, View<const typename B::Scalar> x, Weight<typename B::Scalar> w,
                     View<const typename B::Scalar> dy, View<typename B::Scalar> dw,
                     View<typename B::Scalar> dx, Write write_dx = Write::Replace) {
  if (!dw.empty()) c.backend.matmul_gradient(x, dy, dw, c.gradients);
  if (!dx.empty()) c.backend.matmul(dy, w.transpose(), dx, write_dx);
}

/// dw += x'ᵀ · dy + xᵀ · dy' and dx' (+)= dy' · wᵀ + dy · w'ᵀ.
template <class B>
void linear_backward(TangentContext<B>& c, const DualView<typename B::Scalar>& x,
                     const DualWeight<typename B::Scalar>& w,
                     const DualView<typename B::Scalar>& dy, View<typename B::Scalar> dw,
                     const DualView<typename B::Scalar>& dx, Write write_dx = Write::Replace) {
  if (!dw.empty()) {
    if (x.moves()) c.backend.matmul_gradient(x.tangent, dy.value, dw, Write::Add);
    c.backend.matmul_gradient(x.value, dy.tangent, dw, Write::Add);
  }
  c.backend.matmul(dy.tangent, w.transpose(), dx.tangent, write_dx);
  if (w.moves()) c.backend.matmul(dy.value, w.tangent.transpose(), dx.tangent, Write::Add);
}

/// a + b: a new matrix, or with `in_place` written over a.
template <class B>
View<typename B::Scalar> add(Context<B>& c, View<typename B::Scalar> a,
                             View<const typename B::Scalar> b, bool in_place = false) {
  const auto out = in_place ? a : c.make(a.rows, a.cols);
  c.backend.add(a, b, out);
  return out;
}
template <class B>
DualView<typename B::Scalar> add(TangentContext<B>& c, const DualView<typename B::Scalar>& a,
                                 const DualView<typename B::Scalar>& b, bool = false) {
  auto out = c.make(a.rows, a.cols, a.moves() && b.moves());
  if (a.moves() && b.moves()) {
    c.backend.add(a.tangent, b.tangent, out.tangent);
  } else {
    out.tangent = a.moves() ? a.tangent : b.tangent;
  }
  return out;
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
