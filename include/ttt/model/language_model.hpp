// SPDX-License-Identifier: MIT
/// \file
/// Embedding, two stacks of blocks, final norm and head: everything between tokens and their loss.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include <ttt/layers/block.hpp>
#include <ttt/ops/cross_entropy.hpp>

namespace ttt::inline TTT_ABI {

/// `Depth` blocks of one type; with `ttt::dynamic` the depth comes from the Config. Depth is a
/// count, never a list of types, so a deep model compiles as fast as a shallow one.
template <std::size_t Depth, class BlockType>
struct Stack {
  using Block = BlockType;
  static constexpr std::size_t depth = Depth;
};

/// Policy: logits = h · embeddingᵀ.
struct TiedHead {
  static constexpr bool tied = true;
};

/// Policy: logits = h · head, a matrix of its own.
struct SeparateHead {
  static constexpr bool tied = false;
};

/// Caches of one block for every block of a model, in one stretch of memory.
template <class Scalar>
struct CacheShape {
  Index blocks = 0;
  Index heads = 0;
  Index slots = 0;
  Index head_dim = 0;

  Index size() const { return 2 * blocks * heads * slots * head_dim; }
  ops::KeyValues<Scalar> at(Scalar* data, Index block) const {
    const Index half = heads * slots * head_dim;
    Scalar* const first = data + 2 * block * half;
    return {{first, heads, slots, head_dim}, {first + half, heads, slots, head_dim}};
  }
};

/// A decoder-only transformer: `Prefix`, whose MLPs never learn at test time, then `Suffix`, whose
/// MLPs may (arXiv 2512.23675, section 2). A plain transformer has a prefix only.
///
/// The object holds sizes; parameters are passed in, so that any number of sessions can share them.
template <class Prefix, class Suffix = Stack<0, typename Prefix::Block>, class Head = TiedHead>
class LanguageModel {
 public:
  using PrefixBlock = typename Prefix::Block;
  using SuffixBlock = typename Suffix::Block;
  static constexpr bool is_windowed =
      PrefixBlock::Attention::is_windowed && SuffixBlock::Attention::is_windowed;
  static constexpr std::size_t prefix_depth = Prefix::depth;
  static constexpr std::size_t suffix_depth = Suffix::depth;
  static constexpr bool has_dynamic = SuffixBlock::FeedForward::has_dynamic;
  static constexpr bool has_tied_head = Head::tied;

  template <class T>
  struct Parameters {
    T embedding{};  // (vocabulary, width)
    std::vector<typename PrefixBlock::template Parameters<T>> prefix;
    std::vector<typename SuffixBlock::template Parameters<T>> suffix;
    T norm{};  // (1, width)
    T head{};  // (width, vocabulary), with SeparateHead
  };

  /// Calls f(name, leaves...) for every parameter, in an order that never changes.
  template <class F, class Tree, class... Trees>
  static void each(F&& f, Tree& tree, Trees&... trees) {
    f(ParameterName{.tensor = "embedding", .role = Role::Embedding}, tree.embedding,
      trees.embedding...);
    const Index depth = static_cast<Index>(tree.prefix.size());
    for (std::size_t i = 0; i < tree.prefix.size(); ++i) {
      PrefixBlock::each({.block = static_cast<Index>(i)}, f, tree.prefix[i], trees.prefix[i]...);
    }
    for (std::size_t i = 0; i < tree.suffix.size(); ++i) {
      const Index index = static_cast<Index>(i);
      SuffixBlock::each({.block = depth + index, .suffix_block = index}, f, tree.suffix[i],
                        trees.suffix[i]...);
    }
    f(ParameterName{.tensor = "norm", .role = Role::Norm}, tree.norm, trees.norm...);
    if constexpr (!Head::tied) {
      f(ParameterName{.tensor = "head", .role = Role::Head}, tree.head, trees.head...);
    }
  }

  /// What the way back through the suffix needs. Made once, refilled by every forward.
  template <class Tensor>
  struct Saved {
    std::vector<typename SuffixBlock::template Saved<Tensor>> suffix;
    Tensor h;
    ops::Normed<Tensor> output;
    Positions<Tensor> positions;
  };

  /// Throws when the Config lacks a size, disagrees with the type or asks for the impossible.
  explicit LanguageModel(const Config& config)
      : config_(with_depths(detail::complete(config))), prefix_(config_), suffix_(config_) {
    config_.window = is_windowed ? window() : 0;
    double parameters = 0;
    auto sizes = shapes();
    each(
        [&](const ParameterName&, const Shape& shape) {
          parameters += static_cast<double>(shape.rows) * static_cast<double>(shape.cols);
        },
        sizes);
    if (parameters > static_cast<double>(detail::most_elements)) {
      detail::fail("Config: the model has more parameters than fit any memory");
    }
    for (Index i = 0; i < config_.head_dim / 2; ++i) {
      frequencies_.push_back(
          std::pow(config_.rope_base,
                   -2.0 * static_cast<double>(i) / static_cast<double>(config_.head_dim)));
    }
  }

  const Config& config() const { return config_; }
  Index blocks() const { return config_.prefix_blocks + config_.suffix_blocks; }

  /// The longest reach of any block.
  Index window() const {
    const Index prefix = config_.prefix_blocks > 0 ? prefix_.attention().sublayer().window() : 0;
    const Index suffix = config_.suffix_blocks > 0 ? suffix_.attention().sublayer().window() : 0;
    return std::max(prefix, suffix);
  }

  Parameters<Shape> shapes() const {
    Parameters<Shape> shapes = tree<Shape>();
    shapes.embedding = {config_.vocabulary, config_.width};
    for (auto& block : shapes.prefix) block = prefix_.shapes();
    for (auto& block : shapes.suffix) block = suffix_.shapes();
    shapes.norm = {1, config_.width};
    shapes.head = {config_.width, config_.vocabulary};
    return shapes;
  }

  /// A tree of this model's depth with empty leaves.
  template <class T>
  Parameters<T> tree() const {
    Parameters<T> tree;
    tree.prefix.resize(static_cast<std::size_t>(config_.prefix_blocks));
    tree.suffix.resize(static_cast<std::size_t>(config_.suffix_blocks));
    return tree;
  }
  template <class Tensor>
  Saved<Tensor> saved() const {
    Saved<Tensor> saved;
    saved.suffix.resize(static_cast<std::size_t>(config_.suffix_blocks));
    return saved;
  }

  template <class Leaf>
  Leaf head(const Parameters<Leaf>& p) const {
    if constexpr (Head::tied) {
      return p.embedding.transpose();
    } else {
      return p.head;
    }
  }

  /// Tokens to normed hidden states, (tokens, width), ready for the head. Keys and values go into
  /// the caches at `position`. With `keep`, `saved` is good for backward until the workspace is
  /// released; without, the workspace holds little more than one sub-layer.
  template <class B, class Leaf>
  typename Context<B>::Tensor forward(Context<B>& c, const Parameters<Leaf>& p,
                                      std::span<const Token> tokens, Index position,
                                      const CacheShape<typename B::Scalar>& caches,
                                      typename B::Scalar* cache_data, bool keep,
                                      Saved<typename Context<B>::Tensor>& saved) const {
    using Tensor = typename Context<B>::Tensor;
    const Index rows = static_cast<Index>(tokens.size());
    Tensor h = ops::embedding(c, p.embedding, tokens.data(), rows);
    saved.positions = {position, c.make(rows, config_.head_dim)};
    c.backend.rope_angles(position, frequencies_.data(), saved.positions.angles);
    for (Index i = 0; i < config_.prefix_blocks; ++i) {
      const auto& block = p.prefix[static_cast<std::size_t>(i)];
      typename PrefixBlock::template Saved<Tensor> forgotten;
      attend(c, prefix_, block, h, h, false, forgotten, saved.positions, caches.at(cache_data, i));
      const Scope scope(c.workspace);
      prefix_.feed_forward().forward(c, block.feed_forward, h, h, forgotten.feed_forward);
    }
    for (Index i = 0; i < config_.suffix_blocks; ++i) {
      const auto& block = p.suffix[static_cast<std::size_t>(i)];
      auto& s = saved.suffix[static_cast<std::size_t>(i)];
      // Nothing that learns lies before the first suffix block's attention.
      const bool keep_attention = keep && i > 0;
      const Tensor attended = keep_attention ? c.make(rows, config_.width) : h;
      attend(c, suffix_, block, h, attended, keep_attention, s, saved.positions,
             caches.at(cache_data, config_.prefix_blocks + i));
      if (keep) {
        h = c.make(rows, config_.width);
        suffix_.feed_forward().forward(c, block.feed_forward, attended, h, s.feed_forward);
      } else {
        const Scope scope(c.workspace);
        suffix_.feed_forward().forward(c, block.feed_forward, h, h, s.feed_forward);
      }
    }
    saved.h = h;
    saved.output = ops::rms_norm(c, h, {p.norm, config_.eps});
    return saved.output.y;
  }

  /// From the gradient of forward's result to the gradients of the suffix's parameters that `d` has
  /// a place for. It stops at the first suffix block's MLPs. Overwrites dy.
  template <class B, class Leaf, class Gradient>
  void backward_suffix(Context<B>& c, const Parameters<Leaf>& p,
                       const Saved<typename Context<B>::Tensor>& saved,
                       typename Context<B>::Tensor dy, const Parameters<Gradient>& d,
                       const CacheShape<typename B::Scalar>& caches,
                       typename B::Scalar* cache_data) const {
    const auto dh = c.make(dy.rows, dy.cols);
    ops::rms_norm_backward(c, saved.h, {p.norm, config_.eps}, saved.output.inverse, dy, dh,
                           Write::Replace, d.norm);
    for (Index i = config_.suffix_blocks - 1; i >= 0; --i) {
      const auto at = static_cast<std::size_t>(i);
      suffix_.feed_forward().backward(c, p.suffix[at].feed_forward, saved.suffix[at].feed_forward,
                                      dh, d.suffix[at].feed_forward, i > 0);
      if (i == 0) break;
      suffix_.attention().backward(c, p.suffix[at].attention, saved.suffix[at].attention, dh,
                                   d.suffix[at].attention, true, saved.positions,
                                   caches.at(cache_data, config_.prefix_blocks + i));
    }
  }

 private:
  static Config with_depths(Config config) {
    config.prefix_blocks =
        detail::resolve_extent<Prefix::depth>("prefix_blocks", config.prefix_blocks);
    config.suffix_blocks =
        detail::resolve_extent<Suffix::depth>("suffix_blocks", config.suffix_blocks);
    const Index prefix = config.prefix_blocks, suffix = config.suffix_blocks;
    constexpr Index most = 4096;
    if (prefix < 0 || suffix < 0 || prefix > most || suffix > most - prefix ||
        prefix + suffix == 0) {
      detail::fail("Config: prefix_blocks is " + std::to_string(prefix) + " and suffix_blocks " +
                   std::to_string(suffix) + ": the model must have from 1 to 4096 blocks");
    }
    return config;
  }

  template <class B, class Block, class Params, class Tensor, class SavedBlock>
  void attend(Context<B>& c, const Block& block, const Params& p, Tensor h, Tensor out, bool keep,
              SavedBlock& saved, const Positions<Tensor>& at,
              ops::KeyValues<typename B::Scalar> cache) const {
    const Index mark = c.workspace.used();
    block.attention().forward(c, p.attention, h, out, saved.attention, at, cache);
    if (!keep) c.workspace.release(mark);
  }

  Config config_;
  PrefixBlock prefix_;
  SuffixBlock suffix_;
  std::vector<double> frequencies_;  // base^(-2i/head_dim)
};

}  // namespace ttt::inline TTT_ABI
