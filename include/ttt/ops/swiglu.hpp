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

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
