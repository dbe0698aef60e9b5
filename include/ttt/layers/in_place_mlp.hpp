// SPDX-License-Identifier: MIT
/// \file
/// A gated MLP whose down projection learns while it reads (In-Place TTT, arXiv 2604.06169).
#pragma once

#include <vector>

#include <ttt/layers/block.hpp>
#include <ttt/ops/in_place.hpp>

namespace ttt::inline TTT_ABI {

/// Policies: what the down projection learns to answer with: what the MLP is given, normed hidden
/// states (for models that exist already), or the tokens' embeddings (for models from scratch).
struct FromInput {
  static constexpr bool embeddings = false;
};
struct FromEmbeddings {
  static constexpr bool embeddings = true;
};

/// What InPlaceMLPs are to do in a pass beside mapping rows. Nothing, by default: they are SwiGLU.
template <class Scalar>
struct InPlacePass {
  ops::InPlaceRule rule = {};     // training: how chunks of the rows learn from one another
  View<Scalar> embeddings = {};   // (tokens, width), for FromEmbeddings
  View<Scalar> dembeddings = {};  // on the way back: their gradient is added to it
  View<Scalar> update = {};       // (width, hidden), reading: vᵀ · h of the rows goes here; of
                                  // several sequences, as far apart as what learns
};

/// SwiGLU, y = h · w2 with h = silu(x · w1) ∘ (x · w3), whose w2 has a closed-form update in the
/// blocks of Config::in_place:
///
///     v = conv(t) · projection,   w2 += rate * hᵀ v   after each chunk
///
/// t is the target stream, conv a depthwise cross-correlation with 5 taps over the chunk's tokens,
/// zeros beyond its ends. It looks two tokens ahead, but what a chunk teaches is used by later
/// chunks only. A convolution of zeros teaches nothing: the model is its host.
///
/// With a rule, a pass is the whole of that over its rows, for training; without, w2 is what the
/// caller says it is by now, and `update` asks for the rows' own hᵀ v, as its transpose.
template <class Target = FromInput>
class InPlaceMLP {
 public:
  static constexpr Index taps = 5;

  template <class T>
  struct Parameters {
    T w1{};                 // (width, hidden)
    T w2{};                 // (hidden, width)
    T w3{};                 // (width, hidden)
    std::vector<T> target;  // in blocks that learn: (width, taps), and with it (width, width)
  };

  template <class F, class Tree, class... Trees>
  static void each(const ParameterName& name, F&& f, Tree& tree, Trees&... trees) {
    const bool learns = !tree.target.empty();
    f(name.of("w1"), tree.w1, trees.w1...);
    f((learns ? name.in(name.layer, Role::InPlaceMlp) : name).of("w2"), tree.w2, trees.w2...);
    f(name.of("w3"), tree.w3, trees.w3...);
    const ParameterName target = name.in(name.layer, Role::InPlaceTarget);
    if (learns) f(target.of("conv"), tree.target[0], trees.target[0]...);
    if (tree.target.size() > 1) f(target.of("projection"), tree.target[1], trees.target[1]...);
  }

  /// What the way back needs.
  template <class Tensor>
  struct Saved {
    Tensor x, gate, up;
    FactorOf<Tensor> hidden;
    Tensor mixed, v;  // after the convolution, and what is learned
  };

  explicit InPlaceMLP(const Config& config)
      : width_(config.width),
        hidden_(config.hidden),
        targets_(config.in_place.empty()      ? 0
                 : config.in_place_projection ? 2
                                              : 1) {}

  /// Parameters of the target, in this block: none where nothing learns.
  std::size_t targets() const { return targets_; }

  Parameters<Shape> shapes() const {
    Parameters<Shape> shapes{{width_, hidden_}, {hidden_, width_}, {width_, hidden_}, {}};
    if (targets_ > 0) shapes.target.push_back({width_, taps});
    if (targets_ > 1) shapes.target.push_back({width_, width_});
    return shapes;
  }

  template <class C, class Tensor, class Leaf, class Scalar>
  Tensor forward(C& c, const Parameters<Leaf>& p, Tensor x, Saved<Tensor>& saved,
                 const InPlacePass<Scalar>& pass) const {
    saved.x = x;
    const auto [gate, up, hidden] = ops::gated(c, x, p.w1, p.w3);
    saved.gate = gate;
    saved.up = up;
    saved.hidden = hidden;
    if (learns_between(x.rows, pass)) {
      learn(c, p, saved, pass, pass.rule.chunk);
      return ops::in_place_linear(c, saved.hidden, p.w2, saved.v, pass.rule);
    }
    const Tensor y = ops::linear(c, saved.hidden, p.w2);
    if (targets_ > 0 && !pass.update.empty()) {
      const StackedWeight<Scalar> learned = p.w2;  // sequences of as many rows
      learn(c, p, saved, pass, x.rows / learned.sequences);
      ops::detail::product_gradient(c.backend, saved.v, saved.hidden, learned, pass.update,
                                    Write::Replace);
    }
    return y;
  }

  /// Fills in the gradients that are there; computes dx only where it is.
  template <class C, class Tensor, class Leaf, class Gradient, class Scalar>
  void backward(C& c, const Parameters<Leaf>& p, const Saved<Tensor>& saved, Tensor dy, Tensor dx,
                const Parameters<Gradient>& d, const InPlacePass<Scalar>& pass) const {
    const bool learned = learns_between(saved.x.rows, pass);
    const Tensor dhidden = c.adjoint(saved.hidden);
    Tensor dmixed{};
    if (learned) {
      dmixed = c.adjoint(saved.mixed);
      const Tensor dv = targets_ > 1 ? c.adjoint(saved.v) : dmixed;
      ops::in_place_linear_backward(c, saved.hidden, p.w2, saved.v, pass.rule, dy, d.w2, dhidden,
                                    dv);
      if (targets_ > 1) {
        ops::linear_backward(c, saved.mixed, p.target[1], dv, d.target[1], dmixed);
      }
    } else {
      ops::linear_backward(c, saved.hidden, p.w2, dy, d.w2, dhidden);
    }
    ops::gated_backward(c, saved.x, ops::Gated<Tensor>{saved.gate, saved.up, saved.hidden}, p.w1,
                        p.w3, dhidden, d.w1, d.w3, dx);
    if (!learned) return;
    const Tensor dtarget = Target::embeddings ? pass.dembeddings : dx;
    ops::chunk_conv_backward(c, target(saved, pass), p.target[0], pass.rule.chunk, dmixed, dtarget,
                             Write::Add, d.target[0]);
  }

 private:
  template <class Scalar>
  bool learns_between(Index rows, const InPlacePass<Scalar>& pass) const {
    return targets_ > 0 && pass.rule.learns(rows);
  }

  template <class Tensor, class Scalar>
  static Tensor target(const Saved<Tensor>& saved, const InPlacePass<Scalar>& pass) {
    return Target::embeddings ? pass.embeddings : saved.x;
  }

  template <class C, class Leaf, class Tensor, class Scalar>
  void learn(C& c, const Parameters<Leaf>& p, Saved<Tensor>& saved, const InPlacePass<Scalar>& pass,
             Index chunk) const {
    saved.mixed = ops::chunk_conv(c, target(saved, pass), p.target[0], chunk);
    saved.v = targets_ > 1 ? ops::linear(c, saved.mixed, p.target[1]) : saved.mixed;
  }

  Index width_, hidden_;
  std::size_t targets_;
};

namespace detail {

/// A block's second half that learns in place.
template <class Target, class Placement>
class FeedForward<InPlaceMLP<Target>, Placement> {
  using Sublayer = Residual<Placement, InPlaceMLP<Target>>;

 public:
  static constexpr bool has_dynamic = false;
  static constexpr bool has_in_place = true;
  static constexpr bool learns_embeddings = Target::embeddings;

  template <class T>
  struct Parameters {
    typename Sublayer::template Parameters<T> mlp{};
  };
  template <class F, class... Trees>
  static void each(const ParameterName& name, F&& f, Trees&... trees) {
    Sublayer::each(name.in("mlp", Role::Mlp), f, trees.mlp...);
  }
  template <class Tensor>
  struct Saved {
    typename Sublayer::template Saved<Tensor> mlp;
  };

  explicit FeedForward(const Config& config) : mlp_(config) {}
  Parameters<Shape> shapes() const { return {mlp_.shapes()}; }

  /// Gives a tree the leaves that this block has and others may not.
  template <class T>
  void grow(Parameters<T>& tree) const {
    tree.mlp.sublayer.target.resize(mlp_.sublayer().targets());
  }
  /// The place of this block's update in a tree of them.
  template <class T>
  static const T& update(const Parameters<T>& updates) {
    return updates.mlp.sublayer.w2;
  }

  template <class C, class Tensor, class Leaf, class Scalar>
  Tensor forward(C& c, const Parameters<Leaf>& p, Tensor h, bool keep, Saved<Tensor>& saved,
                 const InPlacePass<Scalar>& pass) const {
    return mlp_.forward(c, p.mlp, h, keep, saved.mlp, pass);
  }
  template <class C, class Tensor, class Leaf, class Gradient, class Scalar>
  Tensor backward(C& c, const Parameters<Leaf>& p, const Saved<Tensor>& saved, Tensor dh,
                  const Parameters<Gradient>& d, bool want_dh,
                  const InPlacePass<Scalar>& pass) const {
    return mlp_.backward(c, p.mlp, saved.mlp, dh, d.mlp, want_dh, pass);
  }

 private:
  Sublayer mlp_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
