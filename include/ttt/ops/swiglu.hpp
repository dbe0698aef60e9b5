// SPDX-License-Identifier: MIT
/// \file
/// The gate of a SwiGLU (Shazeer 2020, arXiv 2002.05202): silu(gate) * up, alone and with the
/// products before it.
#pragma once

#include <ttt/ops/linear.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

template <class B>
Factor<typename B::Scalar> swiglu(Context<B>& c, View<const typename B::Scalar> gate,
                                  View<const typename B::Scalar> up) {
  const auto out = c.make_factor(gate.rows, gate.cols);
  c.backend.swiglu(gate, up, out);
  return out;
}
/// Both operands come from one x by two weights of one role: both move or neither does.
template <class B>
DualFactor<typename B::Scalar> swiglu(TangentContext<B>& c,
                                      const DualView<typename B::Scalar>& gate,
                                      const DualView<typename B::Scalar>& up) {
  TTT_ASSERT(gate.moves() == up.moves());
  const auto out = c.make_factor(gate.rows, gate.cols, gate.moves());
  if (gate.moves()) {
    c.backend.swiglu_tangent(gate.value, gate.tangent, up.value, up.tangent, out.tangent);
  }
  return out;
}

template <class Tensor>
struct Gated {
  Tensor gate, up;
  FactorOf<Tensor> hidden;
};

namespace detail {

template <class B>
Gated<View<typename B::Scalar>> make_gated(Context<B>& c, Index rows, Index hidden) {
  return {c.make(rows, hidden), c.make(rows, hidden), c.make_factor(rows, hidden)};
}
template <class B>
void gated(const B& backend, Factor<const typename B::Scalar> x,
           const StackedWeight<typename B::Scalar>& w1, const StackedWeight<typename B::Scalar>& w3,
           const Gated<View<typename B::Scalar>>& out) {
  if constexpr (requires { backend.gated(x, w1, w3, out.gate, out.up, out.hidden); }) {
    bool done = w1.sequences == w3.sequences;
    for (Index s = 0; done && s < w1.sequences; ++s) {
      const SequencePart own = w1.part(s, x.rows);
      done = backend.gated(own.of(x), w1.of(own.place), w3.of(own.place), own.of(out.gate),
                           own.of(out.up), own.of(out.hidden));
    }
    if (done) return;
  }
  products(backend, x, std::array{w1, w3}, std::array{out.gate, out.up});
  backend.swiglu(out.gate, out.up, out.hidden);
}

}  // namespace detail

/// silu(x · w1) * (x · w3), and both products. A backend may have all this of one sequence's rows
/// in one primitive, gated.
template <class B>
Gated<View<typename B::Scalar>> gated(Context<B>& c, Factor<const typename B::Scalar> x,
                                      const StackedWeight<typename B::Scalar>& w1,
                                      const StackedWeight<typename B::Scalar>& w3) {
  const auto out = detail::make_gated(c, x.rows, w1.cols);
  detail::gated(c.backend, x, w1, w3, out);
  return out;
}
/// (silu(x · w1) * (x · w3)) · w2, when nothing else of it is needed. A backend may have it in one
/// primitive, feed_forward, which gets memory for one matrix of x.rows x w1.cols.
template <class B>
View<typename B::Scalar> feed_forward(Context<B>& c, Factor<const typename B::Scalar> x,
                                      const StackedWeight<typename B::Scalar>& w1,
                                      const StackedWeight<typename B::Scalar>& w3,
                                      const StackedWeight<typename B::Scalar>& w2) {
  const auto inner = detail::make_gated(c, x.rows, w1.cols);
  const auto y = c.make(x.rows, w2.cols);
  if constexpr (requires { c.backend.feed_forward(x, w1, w3, w2, inner.gate.data, y); }) {
    const bool is_one = w1.sequences == 1 && w3.sequences == 1 && w2.sequences == 1;
    if (is_one && c.backend.feed_forward(x, w1, w3, w2, inner.gate.data, y)) return y;
  }
  detail::gated(c.backend, x, w1, w3, inner);
  detail::product(c.backend, inner.hidden, w2, y, Write::Replace);
  return y;
}
template <class B>
Gated<DualView<typename B::Scalar>> gated(TangentContext<B>& c,
                                          const DualFactor<typename B::Scalar>& x,
                                          const DualWeight<typename B::Scalar>& w1,
                                          const DualWeight<typename B::Scalar>& w3) {
  const auto [gate, up] = linears(c, x, w1, w3);
  return {gate, up, swiglu(c, gate, up)};
}

template <class Factor>
struct SwigluGradient {
  Factor gate;
  Factor up;
};

template <class B>
SwigluGradient<Factor<typename B::Scalar>> swiglu_backward(Context<B>& c,
                                                           View<const typename B::Scalar> gate,
                                                           View<const typename B::Scalar> up,
                                                           View<const typename B::Scalar> dout) {
  const SwigluGradient<Factor<typename B::Scalar>> d{c.make_factor(gate.rows, gate.cols),
                                                     c.make_factor(gate.rows, gate.cols)};
  c.backend.swiglu_backward(gate, up, dout, d.gate, d.up);
  return d;
}
template <class B>
SwigluGradient<DualFactor<typename B::Scalar>> swiglu_backward(
    TangentContext<B>& c, const DualView<typename B::Scalar>& gate,
    const DualView<typename B::Scalar>& up, const DualView<typename B::Scalar>& dout) {
  const SwigluGradient<DualFactor<typename B::Scalar>> d{c.make_factor(gate.rows, gate.cols, true),
                                                         c.make_factor(gate.rows, gate.cols, true)};
  if (gate.moves()) {
    c.backend.swiglu_backward_tangent(gate.value, gate.tangent, up.value, up.tangent, dout.value,
                                      dout.tangent, d.gate.tangent, d.up.tangent);
  } else {
    c.backend.swiglu_backward(gate.value, up.value, dout.tangent, d.gate.tangent, d.up.tangent);
  }
  return d;
}

/// From the gradient of gated's hidden values to dw1, dw3 and dx, as linear_backward gives them.
template <class C, class Tensor, class W>
void gated_backward(C& c, const FactorOf<Tensor>& x, const Gated<Tensor>& saved, const W& w1,
                    const W& w3, const Tensor& dhidden, View<typename C::Scalar> dw1,
                    View<typename C::Scalar> dw3, const Tensor& dx) {
  const auto d = swiglu_backward(c, saved.gate, saved.up, dhidden);
  linear_backward(c, x, w1, d.gate, dw1, dx);
  linear_backward(c, x, w3, d.up, dw3, dx, Write::Add);
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
