// SPDX-License-Identifier: MIT
/// \file
/// The gate of a SwiGLU (Shazeer 2020, arXiv 2002.05202): silu(gate) * up.
#pragma once

#include <ttt/ops/context.hpp>

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
struct SwigluGradient {
  Tensor gate;
  Tensor up;
};

template <class B>
SwigluGradient<View<typename B::Scalar>> swiglu_backward(Context<B>& c,
                                                         View<const typename B::Scalar> gate,
                                                         View<const typename B::Scalar> up,
                                                         View<const typename B::Scalar> dout) {
  const SwigluGradient<View<typename B::Scalar>> d{c.make(gate.rows, gate.cols),
                                                   c.make(gate.rows, gate.cols)};
  c.backend.swiglu_backward(gate, up, dout, d.gate, d.up);
  return d;
}
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

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
