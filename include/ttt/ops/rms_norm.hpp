// SPDX-License-Identifier: MIT
/// \file
/// Root-mean-square norms (Zhang and Sennrich 2019, arXiv 1910.07467), alone, added to a residual
/// stream, and per head with rotary positions behind (Su et al. 2021, arXiv 2104.09864).
#pragma once

#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

/// A norm's result and the inverse it multiplied by, one a row (and head), for the way back.
template <class Tensor>
struct Normed {
  Tensor y;
  Tensor inverse;
};

/// x / sqrt(mean(x²) + eps) * scale over the last axis.
template <class B>
Normed<View<typename B::Scalar>> rms_norm(Context<B>& c, View<const typename B::Scalar> x,
                                          Norm<typename B::Scalar> norm) {
  const Normed<View<typename B::Scalar>> out{c.make(x.rows, x.cols), c.make(x.rows, 1)};
  c.backend.rms_norm(x, norm, out.y, out.inverse);
  return out;
}

/// out = h + rms_norm(x); out may be h. Returns the inverse.
template <class B>
View<typename B::Scalar> add_rms_norm(Context<B>& c, View<const typename B::Scalar> h,
                                      View<const typename B::Scalar> x,
                                      Norm<typename B::Scalar> norm, View<typename B::Scalar> out) {
  const auto inverse = c.make(x.rows, 1);
  c.backend.add_rms_norm(h, x, norm, out, inverse);
  return inverse;
}

/// dx (+)= the gradient; dscale, where wanted, is added to.
template <class B>
void rms_norm_backward(Context<B>& c, View<const typename B::Scalar> x,
                       Norm<typename B::Scalar> norm, View<const typename B::Scalar> inverse,
                       View<const typename B::Scalar> dy, View<typename B::Scalar> dx, Write write,
                       View<typename B::Scalar> dscale) {
  c.backend.rms_norm_backward(x, norm, inverse, dy, dx, write, dscale);
}

/// Every head of x normed (unless norm.eps < 0) and turned by its position's angles.
template <class B>
Normed<View<typename B::Scalar>> head_norm_rope(Context<B>& c, View<const typename B::Scalar> x,
                                                Norm<typename B::Scalar> norm,
                                                View<const typename B::Scalar> angles,
                                                RopeLayout layout) {
  const Normed<View<typename B::Scalar>> out{c.make(x.rows, x.cols),
                                             c.make(x.rows, x.cols / angles.cols)};
  c.backend.head_norm_rope(x, norm, angles, layout, out.y, out.inverse);
  return out;
}

/// The gradient of x; dscale, where wanted, is added to.
template <class B>
View<typename B::Scalar> head_norm_rope_backward(
    Context<B>& c, View<const typename B::Scalar> x, Norm<typename B::Scalar> norm,
    View<const typename B::Scalar> inverse, View<const typename B::Scalar> angles,
    RopeLayout layout, View<const typename B::Scalar> dy, View<typename B::Scalar> dscale) {
  const auto dx = c.make(x.rows, x.cols);
  c.backend.head_norm_rope_backward(x, norm, inverse, angles, layout, dy, dx, dscale);
  return dx;
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
