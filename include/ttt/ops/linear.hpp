// SPDX-License-Identifier: MIT
/// \file
/// Linear maps without bias, and the residual sum.
#pragma once

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

/// dw = xᵀ · dy (replaced or added to, as the context says) and dx (+)= dy · wᵀ; an absent one is
/// not computed.
template <class B>
void linear_backward(Context<B>& c, View<const typename B::Scalar> x, Weight<typename B::Scalar> w,
                     View<const typename B::Scalar> dy, View<typename B::Scalar> dw,
                     View<typename B::Scalar> dx, Write write_dx = Write::Replace) {
  if (!dw.empty()) c.backend.matmul_gradient(x, dy, dw, c.gradients);
  if (!dx.empty()) c.backend.matmul(dy, w.transpose(), dx, write_dx);
}

/// out = a + b; out may be a.
template <class B>
void add(Context<B>& c, View<const typename B::Scalar> a, View<const typename B::Scalar> b,
         View<typename B::Scalar> out) {
  c.backend.add(a, b, out);
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
