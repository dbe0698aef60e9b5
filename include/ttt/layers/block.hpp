// SPDX-License-Identifier: MIT
/// \file
/// A transformer block, and the pair of MLPs that remembers in one and learns in the other.
#pragma once

#include <ttt/layers/attention.hpp>
#include <ttt/layers/residual.hpp>
#include <ttt/layers/swiglu.hpp>

namespace ttt::inline TTT_ABI {

/// Two MLPs in sequence, each with norms of its own: the dynamic one, which learns at test time,
/// before the static one, which keeps what pre-training taught (arXiv 2512.23675, section 2).
///
/// The norms of the dynamic MLP do not learn at test time.
template <class Static, class Dynamic>
struct DualMLP {};

namespace detail {

/// A block's second half: one MLP on the residual stream ...
template <class Mlp, class Placement>
class FeedForward {
 public:
  static constexpr bool has_dynamic = false;
  static constexpr bool has_in_place = false;
  static constexpr bool learns_embeddings = false;

  template <class T>
  struct Parameters {
    typename Residual<Placement, Mlp>::template Parameters<T> mlp{};
  };
  template <class F, class... Trees>
  static void each(const ParameterName& name, F&& f, Trees&... trees) {
    Residual<Placement, Mlp>::each(name.in("mlp", Role::Mlp), f, trees.mlp...);
  }
  template <class Tensor>
  struct Saved {
    typename Residual<Placement, Mlp>::template Saved<Tensor> mlp;
  };

  explicit FeedForward(const Config& config) : mlp_(config) {}
  Parameters<Shape> shapes() const { return {mlp_.shapes()}; }

  template <class C, class Tensor, class Leaf>
  Tensor forward(C& c, const Parameters<Leaf>& p, Tensor h, bool keep, Saved<Tensor>& saved) const {
    return mlp_.forward(c, p.mlp, h, keep, saved.mlp);
  }
  template <class C, class Tensor, class Leaf, class Gradient>
  Tensor backward(C& c, const Parameters<Leaf>& p, const Saved<Tensor>& saved, Tensor dh,
                  const Parameters<Gradient>& d, bool want_dh) const {
    return mlp_.backward(c, p.mlp, saved.mlp, dh, d.mlp, want_dh);
  }

 private:
  Residual<Placement, Mlp> mlp_;
};

/// ... or two.
template <class Static, class Dynamic, class Placement>
class FeedForward<DualMLP<Static, Dynamic>, Placement> {
 public:
  static constexpr bool has_dynamic = true;
  static constexpr bool has_in_place = false;
  static constexpr bool learns_embeddings = false;

  template <class T>
  struct Parameters {
    typename Residual<Placement, Dynamic>::template Parameters<T> dynamic_mlp{};
    typename Residual<Placement, Static>::template Parameters<T> mlp{};
  };
  template <class F, class... Trees>
  static void each(const ParameterName& name, F&& f, Trees&... trees) {
    Residual<Placement, Dynamic>::each(name.in("dynamic_mlp", Role::DynamicMlp), f,
                                       trees.dynamic_mlp...);
    Residual<Placement, Static>::each(name.in("mlp", Role::Mlp), f, trees.mlp...);
  }
  template <class Tensor>
  struct Saved {
    typename Residual<Placement, Dynamic>::template Saved<Tensor> dynamic_mlp;
    typename Residual<Placement, Static>::template Saved<Tensor> mlp;
  };

  explicit FeedForward(const Config& config) : dynamic_mlp_(config), mlp_(config) {}
  Parameters<Shape> shapes() const { return {dynamic_mlp_.shapes(), mlp_.shapes()}; }

  template <class C, class Tensor, class Leaf>
  Tensor forward(C& c, const Parameters<Leaf>& p, Tensor h, bool keep, Saved<Tensor>& saved) const {
    const Tensor between = dynamic_mlp_.forward(c, p.dynamic_mlp, h, keep, saved.dynamic_mlp);
    return mlp_.forward(c, p.mlp, between, keep, saved.mlp);
  }
  template <class C, class Tensor, class Leaf, class Gradient>
  Tensor backward(C& c, const Parameters<Leaf>& p, const Saved<Tensor>& saved, Tensor dh,
                  const Parameters<Gradient>& d, bool want_dh) const {
    const Tensor between = mlp_.backward(c, p.mlp, saved.mlp, dh, d.mlp, true);
    return dynamic_mlp_.backward(c, p.dynamic_mlp, saved.dynamic_mlp, between, d.dynamic_mlp,
                                 want_dh);
  }

 private:
  Residual<Placement, Dynamic> dynamic_mlp_;
  Residual<Placement, Static> mlp_;
};

}  // namespace detail

/// Attention, then one MLP or a DualMLP, each on the residual stream with the norms of `Placement`.
///
/// The two halves can be run apart: what a dynamic MLP learns from begins at the first of them, so
/// the attention before it is ordinary forward work.
template <class AttentionType, class Mlp, class Placement = SandwichNorm>
class Block {
 public:
  using Attention = AttentionType;
  using FeedForward = detail::FeedForward<Mlp, Placement>;
  static constexpr bool has_post_norm = Placement::post;

  template <class T>
  struct Parameters {
    typename Residual<Placement, Attention>::template Parameters<T> attention{};
    typename FeedForward::template Parameters<T> feed_forward{};
  };
  template <class F, class... Trees>
  static void each(const ParameterName& name, F&& f, Trees&... trees) {
    Residual<Placement, Attention>::each(name.in("attention", Role::Attention), f,
                                         trees.attention...);
    FeedForward::each(name, f, trees.feed_forward...);
  }
  template <class Tensor>
  struct Saved {
    typename Residual<Placement, Attention>::template Saved<Tensor> attention;
    typename FeedForward::template Saved<Tensor> feed_forward;
  };

  explicit Block(const Config& config) : attention_(config), feed_forward_(config) {}

  const Residual<Placement, Attention>& attention() const { return attention_; }
  const FeedForward& feed_forward() const { return feed_forward_; }
  Parameters<Shape> shapes() const { return {attention_.shapes(), feed_forward_.shapes()}; }

 private:
  Residual<Placement, Attention> attention_;
  FeedForward feed_forward_;
};

}  // namespace ttt::inline TTT_ABI
