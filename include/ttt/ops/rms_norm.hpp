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
template <class B>
Normed<DualView<typename B::Scalar>> rms_norm(TangentContext<B>& c,
                                              const DualView<typename B::Scalar>& x,
                                              Norm<typename B::Scalar> norm) {
  const Normed<DualView<typename B::Scalar>> out{c.make(x.rows, x.cols, x.moves()),
                                                 c.make(x.rows, 1, x.moves())};
  if (x.moves()) {
    c.backend.rms_norm_tangent(x.value, x.tangent, norm, out.inverse.value, absent<B>,
                               out.y.tangent, out.inverse.tangent);
  }
  return out;
}

/// h + rms_norm(x): a new matrix, or with `in_place` written over h.
template <class B>
Normed<View<typename B::Scalar>> add_rms_norm(Context<B>& c, View<typename B::Scalar> h,
                                              View<const typename B::Scalar> x,
                                              Norm<typename B::Scalar> norm,
                                              bool in_place = false) {
  const Normed<View<typename B::Scalar>> out{in_place ? h : c.make(x.rows, x.cols),
                                             c.make(x.rows, 1)};
  c.backend.add_rms_norm(h, x, norm, out.y, out.inverse);
  return out;
}
template <class B>
Normed<DualView<typename B::Scalar>> add_rms_norm(TangentContext<B>& c,
                                                  const DualView<typename B::Scalar>& h,
                                                  const DualView<typename B::Scalar>& x,
                                                  Norm<typename B::Scalar> norm, bool = false) {
  Normed<DualView<typename B::Scalar>> out{c.make(x.rows, x.cols, x.moves()),
                                           c.make(x.rows, 1, x.moves())};
  if (x.moves()) {
    c.backend.rms_norm_tangent(x.value, x.tangent, norm, out.inverse.value, h.tangent,
                               out.y.tangent, out.inverse.tangent);
  } else {
    out.y.tangent = h.tangent;
  }
  return out;
}

/// The gradient of x; dscale, where wanted, is added to.
template <class B>
View<typename B::Scalar> rms_norm_backward(Context<B>& c, View<const typename B::Scalar> x,
                                           Norm<typename B::Scalar> norm,
                                           View<const typename B::Scalar> inverse,
                                           View<const typename B::Scalar> dy,
                                           View<typename B::Scalar> dscale) {
  const auto dx = c.make(x.rows, x.cols);
  c.backend.rms_norm_backward(x, norm, inverse, dy, dx, Write::Replace, dscale);
  return dx;
}

namespace detail {

template <class B>
void rms_norm_backward(TangentContext<B>& c, const DualView<typename B::Scalar>& x,
                       Norm<typename B::Scalar> norm, const DualView<typename B::Scalar>& inverse,
                       const DualView<typename B::Scalar>& dy, View<typename B::Scalar> tdx,
                       Write write, View<typename B::Scalar> dscale) {
  if (x.moves()) {
    c.backend.rms_norm_backward_tangent(x.value, x.tangent, norm, inverse.value, inverse.tangent,
                                        dy.value, dy.tangent, tdx, write, dscale);
  } else {
    c.backend.rms_norm_backward(x.value, norm, inverse.value, dy.tangent, tdx, write, dscale);
  }
}

}  // namespace detail

template <class B>
DualView<typename B::Scalar> rms_norm_backward(TangentContext<B>& c,
                                               const DualView<typename B::Scalar>& x,
                                               Norm<typename B::Scalar> norm,
                                               const DualView<typename B::Scalar>& inverse,
                                               const DualView<typename B::Scalar>& dy,
                                               View<typename B::Scalar> dscale) {
  const auto dx = c.make(x.rows, x.cols, true);
  detail::rms_norm_backward(c, x, norm, inverse, dy, dx.tangent, Write::Replace, dscale);
  return dx;
}

/// dh + the gradient of x, over dh where nothing has to be remembered.
template <class B>
View<typename B::Scalar> add_rms_norm_backward(Context<B>& c, View<const typename B::Scalar> x,
                                               Norm<typename B::Scalar> norm,
                                               View<const typename B::Scalar> inverse,
                                               View<const typename B::Scalar> dy,
                                               View<typename B::Scalar> dh,
                                               View<typename B::Scalar> dscale) {
  const auto dx = c.over(dh);
  c.backend.rms_norm_backward(x, norm, inverse, dy, dx, Write::Add, dscale);
  return dx;
}
template <class B>
DualView<typename B::Scalar> add_rms_norm_backward(
    TangentContext<B>& c, const DualView<typename B::Scalar>& x, Norm<typename B::Scalar> norm,
    const DualView<typename B::Scalar>& inverse, const DualView<typename B::Scalar>& dy,
    const DualView<typename B::Scalar>& dh, View<typename B::Scalar> dscale) {
  const auto dx = c.over(dh);
  detail::rms_norm_backward(c, x, norm, inverse, dy, dx.tangent, Write::Add, dscale);
  return dx;
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
template <class B>
Normed<DualView<typename B::Scalar>> head_norm_rope(TangentContext<B>& c,
                                                    const DualView<typename B::Scalar>& x,
                                                    Norm<typename B::Scalar> norm,
                                                    View<const typename B::Scalar> angles,
                                                    RopeLayout layout) {
  const Normed<DualView<typename B::Scalar>> out{c.make(x.rows, x.cols, x.moves()),
                                                 c.make(x.rows, x.cols / angles.cols, x.moves())};
  if (!x.moves()) return out;
  if (norm.eps < 0) {  // turning is linear
    c.backend.head_norm_rope(x.tangent, norm, angles, layout, out.y.tangent, absent<B>);
  } else {
    c.backend.head_norm_rope_tangent(x.value, x.tangent, norm, out.inverse.value, angles, layout,
                                     out.y.tangent, out.inverse.tangent);
  }
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
template <class B>
DualView<typename B::Scalar> head_norm_rope_backward(
    TangentContext<B>& c, const DualView<typename B::Scalar>& x, Norm<typename B::Scalar> norm,
    const DualView<typename B::Scalar>& inverse, View<const typename B::Scalar> angles,
    RopeLayout layout, const DualView<typename B::Scalar>& dy, View<typename B::Scalar> dscale) {
  const auto dx = c.make(x.rows, x.cols, true);
  if (x.moves() && norm.eps >= 0) {
    c.backend.head_norm_rope_backward_tangent(x.value, x.tangent, norm, inverse.value,
                                              inverse.tangent, angles, layout, dy.value, dy.tangent,
                                              dx.tangent, dscale);
  } else {
    c.backend.head_norm_rope_backward(x.value, norm, inverse.value, angles, layout, dy.tangent,
                                      dx.tangent, dscale);
  }
  return dx;
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
