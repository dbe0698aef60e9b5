// SPDX-License-Identifier: MIT
/// \file
/// The gated MLP.
#pragma once

#include <ttt/layers/config.hpp>
#include <ttt/layers/parameters.hpp>
#include <ttt/ops/linear.hpp>
#include <ttt/ops/swiglu.hpp>

namespace ttt::inline TTT_ABI {

/// y = (silu(x · w1) ∘ (x · w3)) · w2. Stores nothing but its sizes.
class SwiGLU {
 public:
  static constexpr bool takes_factors = true;  // see Residual; what derives from it says so too

  template <class T>
  struct Parameters {
    T w1{};  // (width, hidden)
    T w2{};  // (hidden, width)
    T w3{};  // (width, hidden)
  };

  template <class F, class... Trees>
  static void each(const ParameterName& name, F&& f, Trees&... trees) {
    f(name.of("w1"), trees.w1...);
    f(name.of("w2"), trees.w2...);
    f(name.of("w3"), trees.w3...);
  }

  /// What the way back needs.
  template <class Tensor>
  struct Saved {
    FactorOf<Tensor> x;
    Tensor gate, up;
    FactorOf<Tensor> hidden;
  };

  explicit SwiGLU(const Config& config) : width_(config.width), hidden_(config.hidden) {}

  Parameters<Shape> shapes() const {
    return {{width_, hidden_}, {hidden_, width_}, {width_, hidden_}};
  }

  template <class C, class Tensor, class Leaf>
  Tensor forward(C& c, const Parameters<Leaf>& p, FactorOf<Tensor> x, Saved<Tensor>& saved) const {
    saved.x = x;
    const auto [gate, up, hidden] = ops::gated(c, x, p.w1, p.w3);
    saved.gate = gate;
    saved.up = up;
    saved.hidden = hidden;
    return ops::linear(c, saved.hidden, p.w2);
  }

  /// The same where there is no way back.
  template <class B, class Leaf>
  View<typename B::Scalar> apply(Context<B>& c, const Parameters<Leaf>& p,
                                 Factor<typename B::Scalar> x) const {
    return ops::feed_forward(c, x, p.w1, p.w3, p.w2);
  }

  /// Fills in the gradients that are there; computes dx only where it is.
  template <class C, class Tensor, class Leaf, class Gradient>
  void backward(C& c, const Parameters<Leaf>& p, const Saved<Tensor>& saved, FactorOf<Tensor> dy,
                Tensor dx, const Parameters<Gradient>& d) const {
    const Tensor dhidden = c.adjoint(saved.hidden);
    ops::linear_backward(c, saved.hidden, p.w2, dy, d.w2, dhidden);
    ops::gated_backward(c, saved.x, ops::Gated<Tensor>{saved.gate, saved.up, saved.hidden}, p.w1,
                        p.w3, dhidden, d.w1, d.w3, dx);
  }

 private:
  Index width_;
  Index hidden_;
};

}  // namespace ttt::inline TTT_ABI
