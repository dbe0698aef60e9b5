// SPDX-License-Identifier: MIT
/// \file
/// The gate of a SwiGLU (Shazeer 2020, arXiv 2002.05202): silu(gate) * up, alone and with the
/// products before it.
#pragma once

#include <ttt/ops/linear.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

template <class B>
View<typename B::Scalar> swiglu(Context<B>& c, View<const typename B::Scalar> gate,
                                View<const typename B::Scalar> up) {
  const auto out = c.make(gate.rows, gate.cols);
  c.backend.swiglu(gate, up, out);
  return out;
}
/// Both operands come from one x by two weights of one role: both move or neither does.
template <class B>
DualView<typename B::Scalar> swiglu(TangentContext<B>& c, const DualView<typename B::Scalar>& gate,
                                    const DualView<typename B::Scalar>& up) {
  TTT_ASSERT(gate.moves() == up.moves());
  const auto out = c.make(gate.rows, gate.cols, gate.moves());
  if (gate.moves()) {
    c.backend.swiglu_tangent(gate.value, gate.tangent, up.value, up.tangent, out.tangent);
  }
  return out;
}

template <class Tensor>
struct Gated {
  Tensor gate, up, hidden;
};

namespace detail {

template <class B>
Gated<View<typename B::Scalar>> make_gated(Context<B>& c, Index rows, Index hidden) {
  return {c.make(rows, hidden), c.make(rows, hidden), c.make(rows, hidden)};
}
template <class B>
void gated(const B& backend, View<const typename B::Scalar> x,
           const StackedWeight<typename B::Scalar>& w1, const StackedWeight<typename B::Scalar>& w3,
           const Gated<View<typename B::Scalar>>& out) {
  if constexpr (requires { backend.gated(x, w1, w3, out.gate, out.up, out.hidden); }) {
    const bool is_one = w1.sequences == 1 && w3.sequences == 1;
    if (is_one && backend.gated(x, w1, w3, out.gate, out.up, out.hidden)) return;
  }
  products(backend, x, std::array{w1, w3}, std::array{out.gate, out.up});
  backend.swiglu(out.gate, out.up, out.hidden);
}

}  // namespace detail

/// silu(x · w1) * (x · w3), and both products. A backend may have all this in one primitive, gated.
template <class B>
Gated<View<typename B::Scalar>> gated(Context<B>& c, View<const typename B::Scalar> x,
                                      const StackedWeight<typename B::Scalar>& w1,
                                      const StackedWeight<typename B::Scalar>& w3) {
  const auto out = detail::make_gated(c, x.rows, w1.cols);
  detail::gated(c.backend, x, w1, w3, out);
  return out;
}
/// (silu(x · w1) * (x · w3)) · w2, when nothing else of it is needed. A backend may have it in one
/// primitive, feed_forward, which gets memory for one matrix of x.rows x w1.cols.
template <class B>
View<typename B::Scalar> feed_forward(Context<B>& c, View<const typename B::Scalar> x,
                                      const StackedWeight<typename B::Scalar>& w1,
                                      const StackedWeight<typename B::Scalar>& w3,
                                      const StackedWeight<typename B::Scalar>& w2) {
  const auto inner = detail::make_gated(c, x.rows, w1.cols);
  const auto y = c.make(x.rows, w2.cols);
  if constexpr (requires { c.backend.feed_forward(x, w1, w3, w2, inner.hidden.data, y); }) {
    const bool is_one = w1.sequences == 1 && w3.sequences == 1 && w2.sequences == 1;
    if (is_one && c.backend.feed_forward(x, w1, w3, w2, inner.hidden.data, y)) return y;
  }
  detail::gated(c.backend, x, w1, w3, inner);
  detail::product(c.backend, inner.hidden, w2, y, Write::Replace);
  return y;
}
template <class B>
Gated<DualView<typename B::Scalar>> gated(TangentContext<B>& c,
                                          const DualView<typename B::Scalar>& x,
                                          const DualWeight<typename B::Scalar>& w1,
                                          const DualWeight<typename B::Scalar>& w3) {
  const auto [gate, up] = linears(c, x, w1, w3);
  return {gate, up, swiglu(c, gate, up)};
}

template <class Tensor>
struct SwigluGradient {
  Tensor gate;
  Tensor up;
};

template <class B>
SwigluGradient<DualView<typename B::Scalar>> swiglu_backward(
    TangentContext<B>& c, const DualView<typename B::Scalar>& gate,
    const DualView<typename B::Scalar>& up, const DualView<typename B::Scalar>& dout) {
  const SwigluGradient<DualView<typename B::Scalar>> d{c.make(gate.rows, gate.cols, true),
                                                       c.make(gate.rows, gate.cols, true)};
  if (gate.moves()) {
    c.backend.swiglu_backward_tangent(gate.value, gate.tangent, up.value, up.tangent, dout.value,
                                      dout.tangent, d.gate.tangent, d.up.tangent);
  } else {
    c.backend.swiglu_backward(gate.value, up.value, dout.tangent, d.gate.tangent, d.up.tangent);
  }
  return d;
}

/// From the gradient of gated's hidden values to dw1, dw3 and dx, as linear_backward gives them. A
/// backend may have all this in one primitive, gated_backward.
template <class B>
void gated_backward(Context<B>& c, View<const typename B::Scalar> x,
                    const Gated<View<typename B::Scalar>>& saved,
                    const StackedWeight<typename B::Scalar>& w1,
                    const StackedWeight<typename B::Scalar>& w3,
                    View<const typename B::Scalar> dhidden, View<typename B::Scalar> dw1,
                    View<typename B::Scalar> dw3, View<typename B::Scalar> dx) {
  const SwigluGradient<View<typename B::Scalar>> d{c.make(x.rows, w1.cols),
                                                   c.make(x.rows, w3.cols)};
  if constexpr (requires(GatedBackward<typename B::Scalar> work) {
                  c.backend.gated_backward(work);
                }) {
    const bool is_one = w1.sequences == 1 && w3.sequences == 1;
    const GatedBackward<typename B::Scalar> work{
        x, saved.gate, saved.up, dhidden, w1, w3, d.gate, d.up, dw1, dw3, dx, c.gradients};
    if (is_one && !c.keeps() && c.backend.gated_backward(work)) return;
  }
  c.backend.swiglu_backward(saved.gate, saved.up, dhidden, d.gate, d.up);
  linear_backward(c, x, w1, d.gate, dw1, dx);
  linear_backward(c, x, w3, d.up, dw3, dx, Write::Add);
}
template <class B>
void gated_backward(TangentContext<B>& c, const DualView<typename B::Scalar>& x,
                    const Gated<DualView<typename B::Scalar>>& saved,
                    const DualWeight<typename B::Scalar>& w1,
                    const DualWeight<typename B::Scalar>& w3,
                    const DualView<typename B::Scalar>& dhidden, View<typename B::Scalar> dw1,
                    View<typename B::Scalar> dw3, const DualView<typename B::Scalar>& dx) {
  const auto d = swiglu_backward(c, saved.gate, saved.up, dhidden);
  linear_backward(c, x, w1, d.gate, dw1, dx);
  linear_backward(c, x, w3, d.up, dw3, dx, Write::Add);
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
