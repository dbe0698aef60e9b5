// SPDX-License-Identifier: MIT
/// \file
/// Root-mean-square norms (Zhang and Sennrich 2019, arXiv 1910.07467), alone, added to a residual
/// stream, and per head with rotary positions behind (Su et al. 2021, arXiv 2104.09864).
#pragma once

#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

/// A norm's result and the inverse it multiplied by, one a row (and head), for the way back.
template <class Tensor, class Result = Tensor>
struct Normed {
  Result y;
  Tensor inverse;
};

namespace detail {

template <class B, class Result>
Normed<View<typename B::Scalar>, Result> rms_norm(Context<B>& c, View<const typename B::Scalar> x,
                                                  Norm<typename B::Scalar> norm, Result y) {
  const Normed<View<typename B::Scalar>, Result> out{y, c.make(x.rows, 1)};
  c.backend.rms_norm(x, norm, out.y, out.inverse);
  return out;
}
template <class B, class Result>
Normed<DualView<typename B::Scalar>, Result> rms_norm(TangentContext<B>& c,
                                                      const DualView<typename B::Scalar>& x,
                                                      Norm<typename B::Scalar> norm, Result y) {
  const Normed<DualView<typename B::Scalar>, Result> out{y, c.make(x.rows, 1, x.moves())};
  if (x.moves()) {
    c.backend.rms_norm_tangent(x.value, x.tangent, norm, out.inverse.value, absent<B>,
                               out.y.tangent, out.inverse.tangent);
  }
  return out;
}

}  // namespace detail

/// x / sqrt(mean(x²) + eps) * scale over the last axis.
template <class B>
auto rms_norm(Context<B>& c, View<const typename B::Scalar> x, Norm<typename B::Scalar> norm) {
  return detail::rms_norm(c, x, norm, c.make(x.rows, x.cols));
}
template <class B>
auto rms_norm(TangentContext<B>& c, const DualView<typename B::Scalar>& x,
              Norm<typename B::Scalar> norm) {
  return detail::rms_norm(c, x, norm, c.make(x.rows, x.cols, x.moves()));
}
/// The same for products to multiply, and nobody else to read.
template <class B>
auto rms_norm_factor(Context<B>& c, View<const typename B::Scalar> x,
                     Norm<typename B::Scalar> norm) {
  return detail::rms_norm(c, x, norm, c.make_factor(x.rows, x.cols));
}
template <class B>
auto rms_norm_factor(TangentContext<B>& c, const DualView<typename B::Scalar>& x,
                     Norm<typename B::Scalar> norm) {
  return detail::rms_norm(c, x, norm, c.make_factor(x.rows, x.cols, x.moves()));
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

namespace detail {

template <class B, class Result>
Result rms_norm_backward(Context<B>& c, View<const typename B::Scalar> x,
                         Norm<typename B::Scalar> norm, View<const typename B::Scalar> inverse,
                         View<const typename B::Scalar> dy, Result dx, Write write,
                         View<typename B::Scalar> dscale) {
  c.backend.rms_norm_backward(x, norm, inverse, dy, dx, write, dscale);
  return dx;
}
template <class B, class Result>
Result rms_norm_backward(TangentContext<B>& c, const DualView<typename B::Scalar>& x,
                         Norm<typename B::Scalar> norm, const DualView<typename B::Scalar>& inverse,
                         const DualView<typename B::Scalar>& dy, Result dx, Write write,
                         View<typename B::Scalar> dscale) {
  if (x.moves()) {
    c.backend.rms_norm_backward_tangent(x.value, x.tangent, norm, inverse.value, inverse.tangent,
                                        dy.value, dy.tangent, dx.tangent, write, dscale);
  } else {
    c.backend.rms_norm_backward(x.value, norm, inverse.value, dy.tangent, dx.tangent, write,
                                dscale);
  }
  return dx;
}

}  // namespace detail

/// The gradient of x; dscale, where wanted, is added to.
template <class C, class Tensor>
Tensor rms_norm_backward(C& c, const Tensor& x, Norm<typename C::Scalar> norm,
                         const Tensor& inverse, const Tensor& dy, View<typename C::Scalar> dscale) {
  return detail::rms_norm_backward(c, x, norm, inverse, dy, c.adjoint(x), Write::Replace, dscale);
}
/// The same for products to multiply, and nobody else to read.
template <class C, class Tensor>
FactorOf<Tensor> rms_norm_factor_backward(C& c, const Tensor& x, Norm<typename C::Scalar> norm,
                                          const Tensor& inverse, const Tensor& dy,
                                          View<typename C::Scalar> dscale) {
  return detail::rms_norm_backward(c, x, norm, inverse, dy, c.adjoint_factor(x), Write::Replace,
                                   dscale);
}

/// dh + the gradient of x, over dh where nothing has to be remembered.
template <class C, class Tensor>
Tensor add_rms_norm_backward(C& c, const Tensor& x, Norm<typename C::Scalar> norm,
                             const Tensor& inverse, const Tensor& dy, const Tensor& dh,
                             View<typename C::Scalar> dscale) {
  return detail::rms_norm_backward(c, x, norm, inverse, dy, c.over(dh), Write::Add, dscale);
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

/// The gradient of x, for products; dscale, where wanted, is added to.
template <class B>
Factor<typename B::Scalar> head_norm_rope_backward(
    Context<B>& c, View<const typename B::Scalar> x, Norm<typename B::Scalar> norm,
    View<const typename B::Scalar> inverse, View<const typename B::Scalar> angles,
    RopeLayout layout, View<const typename B::Scalar> dy, View<typename B::Scalar> dscale) {
  const auto dx = c.adjoint_factor(x);
  c.backend.head_norm_rope_backward(x, norm, inverse, angles, layout, dy, dx, dscale);
  return dx;
}
template <class B>
DualFactor<typename B::Scalar> head_norm_rope_backward(
    TangentContext<B>& c, const DualView<typename B::Scalar>& x, Norm<typename B::Scalar> norm,
    const DualView<typename B::Scalar>& inverse, View<const typename B::Scalar> angles,
    RopeLayout layout, const DualView<typename B::Scalar>& dy, View<typename B::Scalar> dscale) {
  const auto dx = c.adjoint_factor(x);
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
