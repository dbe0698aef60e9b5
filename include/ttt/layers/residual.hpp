// SPDX-License-Identifier: MIT
/// \file
/// A sub-layer on the residual stream, with its norms.
#pragma once

#include <utility>

#include <ttt/layers/config.hpp>
#include <ttt/layers/parameters.hpp>
#include <ttt/ops/linear.hpp>
#include <ttt/ops/rms_norm.hpp>

namespace ttt::inline TTT_ABI {

/// Policy: h += post(sublayer(pre(h))), the paper's.
struct SandwichNorm {
  static constexpr bool post = true;
};

/// Policy: h += sublayer(pre(h)), the usual Llama block.
struct PreNorm {
  static constexpr bool post = false;
};

namespace detail {

/// Sub-layers that only multiply their input and the gradient of their result say takes_factors,
/// and are given them as such; any other gets matrices that it may read.
template <class Sublayer>
inline constexpr bool takes_factors = requires {
  requires Sublayer::takes_factors;
};

}  // namespace detail

/// One sub-layer with the norms its placement policy asks for.
template <class Placement, class Sublayer>
class Residual {
  static constexpr bool takes_factors = detail::takes_factors<Sublayer>;

 public:
  template <class T>
  struct Parameters {
    T norm{};       // (1, width)
    T post_norm{};  // (1, width), with SandwichNorm
    typename Sublayer::template Parameters<T> sublayer{};
  };

  template <class F, class... Trees>
  static void each(const ParameterName& name, F&& f, Trees&... trees) {
    f(name.norm("norm"), trees.norm...);
    if constexpr (Placement::post) f(name.norm("post_norm"), trees.post_norm...);
    Sublayer::each(name, f, trees.sublayer...);
  }

  /// What the sub-layer is given, and its gradient: factors, where it only multiplies them.
  template <class Tensor>
  using Input = std::conditional_t<takes_factors, FactorOf<Tensor>, Tensor>;

  template <class Tensor>
  struct Saved {
    Tensor h;
    ops::Normed<Tensor, Input<Tensor>> input;
    Tensor y, post_inverse;
    typename Sublayer::template Saved<Tensor> sublayer;
  };

  explicit Residual(const Config& config)
      : sublayer_(config), width_(config.width), eps_(config.eps) {}

  const Sublayer& sublayer() const { return sublayer_; }

  Parameters<Shape> shapes() const { return {{1, width_}, {1, width_}, sublayer_.shapes()}; }

  /// h + post_norm(sublayer(norm(h))); written over h unless `keep`, without which `saved` is of no
  /// use afterwards. `more` goes to the sub-layer.
  template <class C, class Tensor, class Leaf, class... More>
  Tensor forward(C& c, const Parameters<Leaf>& p, Tensor h, bool keep, Saved<Tensor>& saved,
                 const More&... more) const {
    saved.h = h;
    if constexpr (takes_factors) {
      saved.input = ops::rms_norm_factor(c, h, {p.norm, eps_});
    } else {
      saved.input = ops::rms_norm(c, h, {p.norm, eps_});
    }
    saved.y = [&] {
      if constexpr (requires { sublayer_.apply(c, p.sublayer, saved.input.y, more...); }) {
        if (!keep && !c.keeps()) return sublayer_.apply(c, p.sublayer, saved.input.y, more...);
      }
      return sublayer_.forward(c, p.sublayer, saved.input.y, saved.sublayer, more...);
    }();
    if constexpr (Placement::post) {
      const auto out = ops::add_rms_norm(c, h, saved.y, {p.post_norm, eps_}, !keep);
      saved.post_inverse = out.inverse;
      return out.y;
    } else {
      return ops::add(c, h, saved.y, !keep);
    }
  }

  /// From the gradient of forward's result, which it may overwrite, to that of h; without `want_dh`
  /// to those of the parameters only.
  template <class C, class Tensor, class Leaf, class Gradient, class... More>
  Tensor backward(C& c, const Parameters<Leaf>& p, const Saved<Tensor>& saved, Tensor dh,
                  const Parameters<Gradient>& d, bool want_dh, const More&... more) const {
    const Scope scope(c);
    Input<Tensor> dy = dh;
    if constexpr (Placement::post && takes_factors) {
      dy = ops::rms_norm_factor_backward(c, saved.y, {p.post_norm, eps_}, saved.post_inverse, dh,
                                         d.post_norm);
    } else if constexpr (Placement::post) {
      dy = ops::rms_norm_backward(c, saved.y, {p.post_norm, eps_}, saved.post_inverse, dh,
                                  d.post_norm);
    }
    const Tensor dx = c.adjoint(saved.input.y, want_dh);
    sublayer_.backward(c, p.sublayer, saved.sublayer, dy, dx, d.sublayer, more...);
    if (!want_dh) return c.adjoint(saved.h, false);
    return ops::add_rms_norm_backward(c, saved.h, {p.norm, eps_}, saved.input.inverse, dx, dh,
                                      d.norm);
  }

 private:
  Sublayer sublayer_;
  Index width_;
  double eps_;
};

}  // namespace ttt::inline TTT_ABI
