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
#include <ttt/layers/in_place_mlp.hpp>
#include <ttt/model/cache_shape.hpp>
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

/// A decoder-only transformer: `Prefix`, whose MLPs never learn at test time, then `Suffix`, whose
/// MLPs may (arXiv 2512.23675, section 2). A plain transformer has a prefix only.
///
/// It is run in two halves. The lower one, embedding, prefix and the first suffix block's
/// attention, does not depend on anything that learns at test time; the upper one, from the first
/// suffix block's MLPs on, does. The object holds sizes; parameters are passed in, so that any
/// number of sessions can share them.
template <class Prefix, class Suffix = Stack<0, typename Prefix::Block>, class Head = TiedHead>
class LanguageModel {
 public:
  using PrefixBlock = typename Prefix::Block;
  using SuffixBlock = typename Suffix::Block;
  static constexpr bool is_windowed =
      PrefixBlock::Attention::is_windowed && SuffixBlock::Attention::is_windowed;
  static constexpr bool is_mixed =
      PrefixBlock::Attention::is_mixed || SuffixBlock::Attention::is_mixed;
  static constexpr std::size_t prefix_depth = Prefix::depth;
  static constexpr std::size_t suffix_depth = Suffix::depth;
  static constexpr bool has_dynamic = SuffixBlock::FeedForward::has_dynamic;
  static constexpr bool has_in_place = PrefixBlock::FeedForward::has_in_place;
  static constexpr bool learns_embeddings = PrefixBlock::FeedForward::learns_embeddings;
  static constexpr bool has_tied_head = Head::tied;
  static_assert(
      !SuffixBlock::FeedForward::has_in_place,
      "ttt: an InPlaceMLP belongs to the prefix, for no gradient is taken through what it "
      "learns at test time: give the suffix another MLP, or use HostModel");

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

  /// What the way back through the upper half needs. Made once, refilled by every forward.
  template <class Tensor>
  struct Saved {
    std::vector<typename SuffixBlock::template Saved<Tensor>> suffix;
    Tensor h;
    ops::Normed<Tensor> output;
  };

  /// The same of the lower half's blocks: those of the prefix and, of the first suffix block, the
  /// attention.
  template <class Tensor>
  struct LowerSaved {
    std::vector<typename PrefixBlock::template Saved<Tensor>> prefix;
    typename SuffixBlock::template Saved<Tensor> first;
  };

  /// Throws when the Config lacks a size, disagrees with the type or asks for the impossible.
  explicit LanguageModel(const Config& config) : config_(with_depths(detail::complete(config))) {
    check_attention();
    if (config_.in_place.end() > (has_in_place ? config_.prefix_blocks : 0)) {
      detail::fail(has_in_place
                       ? "Config: in_place has block " +
                             std::to_string(config_.in_place.end() - 1) + ", but the prefix has " +
                             std::to_string(config_.prefix_blocks)
                       : "Config: in_place is for models with InPlaceMLP");
    }
    if (config_.in_place.empty()) config_.in_place_projection = false;
    for (Index i = 0; i < blocks(); ++i) {
      Config block = config_;
      if (config_.full_attention.has(i)) block.window = 0;
      if (!config_.in_place.has(i)) block.in_place = {};
      if (i < config_.prefix_blocks) {
        prefix_.emplace_back(block);
      } else {
        suffix_.emplace_back(block);
      }
    }
    const bool sees_all = config_.full_attention == BlockSet::first(blocks());
    if (!is_mixed || sees_all) config_.window = is_windowed ? window() : 0;
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
      const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config_.head_dim);
      frequencies_.push_back(config_.rope_scaling(std::pow(config_.rope_base, exponent)));
    }
  }

  const Config& config() const { return config_; }
  Index blocks() const { return config_.prefix_blocks + config_.suffix_blocks; }

  /// The longest reach of any block.
  Index window() const {
    Index most = 0;
    for (const auto& block : prefix_) most = std::max(most, block.attention().sublayer().window());
    for (const auto& block : suffix_) most = std::max(most, block.attention().sublayer().window());
    return most;
  }

  Parameters<Shape> shapes() const {
    Parameters<Shape> shapes = tree<Shape>();
    shapes.embedding = {config_.vocabulary, config_.width};
    for (std::size_t i = 0; i < prefix_.size(); ++i) shapes.prefix[i] = prefix_[i].shapes();
    for (std::size_t i = 0; i < suffix_.size(); ++i) shapes.suffix[i] = suffix_[i].shapes();
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
    if constexpr (has_in_place) {
      for (std::size_t i = 0; i < prefix_.size(); ++i) {
        prefix_[i].feed_forward().grow(tree.prefix[i].feed_forward);
      }
    }
    return tree;
  }
  /// One whose leaves have their shapes and no data: what a dry run computes with.
  template <class T>
  Parameters<T> shaped_tree() const {
    auto shapes = this->shapes();
    Parameters<T> tree = this->template tree<T>();
    each(
        [](const ParameterName&, const Shape& shape, T& leaf) {
          leaf.rows = shape.rows;
          leaf.cols = shape.cols;
        },
        shapes, tree);
    return tree;
  }
  template <class Tensor>
  Saved<Tensor> saved() const {
    Saved<Tensor> saved;
    saved.suffix.resize(static_cast<std::size_t>(config_.suffix_blocks));
    return saved;
  }
  template <class Tensor>
  LowerSaved<Tensor> lower_saved() const {
    LowerSaved<Tensor> saved;
    saved.prefix.resize(static_cast<std::size_t>(config_.prefix_blocks));
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

  /// Where rows stand: each sequence's from `first` on, or as `parts` says. Angles are scratch.
  template <class C>
  Positions<typename C::Scalar> positions(C& c, Index first, Index rows, Index sequences = 1,
                                          std::span<const SequencePart> parts = {}) const {
    const View<typename C::Scalar> angles = c.workspace.matrix(rows, config_.head_dim);
    for (Index s = 0; s < sequences; ++s) {
      const SequencePart own = SequencePart::find(parts, s, sequences, rows, first);
      c.backend.rope_angles(own.position, frequencies_.data(), own.of(angles));
    }
    return {first, angles};
  }

  /// Blocks of the lower half, counting the first suffix block's attention as one.
  Index lower_blocks() const { return config_.prefix_blocks + (config_.suffix_blocks > 0 ? 1 : 0); }

  /// The place of what block i of the prefix learns in closed form, in a tree of such; an empty
  /// leaf for one that does not.
  template <class T>
  T in_place_update(const Parameters<T>& updates, Index i) const {
    if constexpr (has_in_place) {
      if (config_.in_place.has(i)) {
        return PrefixBlock::FeedForward::update(
            updates.prefix[static_cast<std::size_t>(i)].feed_forward);
      }
    }
    return {};
  }

  /// Block i of the lower half, (tokens, width) to the same; over h unless `keep`: its attention,
  /// whose keys and values go into the cache at the positions ...
  template <class C, class Tensor, class Leaf, class Scalar, class CacheScalar>
  Tensor lower_attend(C& c, const Parameters<Leaf>& p, Index i, Tensor h, bool keep,
                      LowerSaved<Tensor>& saved, const Positions<Scalar>& at,
                      const ops::KeyValues<Scalar, CacheScalar>& cache) const {
    if (i == config_.prefix_blocks) {
      return attend(c, suffix_.front(), p.suffix.front(), h, keep, saved.first, at, cache);
    }
    const auto n = static_cast<std::size_t>(i);
    return attend(c, prefix_[n], p.prefix[n], h, keep, saved.prefix[n], at, cache);
  }
  /// ... and what is behind it, if anything, which goes row by row unless an InPlaceMLP learns;
  /// `pass` is for such. With `keep`, `saved` is good for the way back.
  template <class C, class Tensor, class Leaf, class Scalar>
  Tensor lower_feed(C& c, const Parameters<Leaf>& p, Index i, Tensor h, bool keep,
                    LowerSaved<Tensor>& saved, const InPlacePass<Scalar>& pass) const {
    if (i == config_.prefix_blocks) return h;
    const auto n = static_cast<std::size_t>(i);
    if constexpr (has_in_place) {
      return feed(c, prefix_[n], p.prefix[n], h, keep, saved.prefix[n], pass);
    } else {
      return feed(c, prefix_[n], p.prefix[n], h, keep, saved.prefix[n]);
    }
  }

  /// From the gradient of lower_feed's result to that of what it was given, over it ...
  template <class C, class Tensor, class Leaf, class Gradient, class Scalar>
  Tensor lower_feed_backward(C& c, const Parameters<Leaf>& p, Index i,
                             const LowerSaved<Tensor>& saved, Tensor dh,
                             const Parameters<Gradient>& d, const InPlacePass<Scalar>& pass) const {
    if (i == config_.prefix_blocks) return dh;
    const auto n = static_cast<std::size_t>(i);
    const auto back = [&](const auto&... more) {
      return prefix_[n].feed_forward().backward(c, p.prefix[n].feed_forward,
                                                saved.prefix[n].feed_forward, dh,
                                                d.prefix[n].feed_forward, true, more...);
    };
    if constexpr (has_in_place) {
      return back(pass);
    } else {
      return back();
    }
  }
  /// ... and from that of lower_attend's.
  template <class C, class Tensor, class Leaf, class Gradient, class Scalar, class CacheScalar>
  Tensor lower_attend_backward(C& c, const Parameters<Leaf>& p, Index i,
                               const LowerSaved<Tensor>& saved, Tensor dh,
                               const Parameters<Gradient>& d, const Positions<Scalar>& at,
                               const ops::KeyValues<Scalar, CacheScalar>& cache) const {
    const auto back = [&](const auto& block, const auto& own, const auto& of, const auto& to) {
      return block.attention().backward(c, own.attention, of.attention, dh, to.attention, true, at,
                                        cache);
    };
    if (i == config_.prefix_blocks) {
      return back(suffix_.front(), p.suffix.front(), saved.first, d.suffix.front());
    }
    const auto n = static_cast<std::size_t>(i);
    return back(prefix_[n], p.prefix[n], saved.prefix[n], d.prefix[n]);
  }

  /// The upper half: from the lower half's result to normed hidden states, (tokens, width), ready
  /// for the head. `caches(i)` are the keys and values of block i of the model. With `keep`,
  /// `saved` is good for upper_backward; without, h is overwritten.
  template <class C, class Tensor, class Leaf, class Scalar, class Caches>
  Tensor upper_forward(C& c, const Parameters<Leaf>& p, Tensor h, bool keep, Saved<Tensor>& saved,
                       const Positions<Scalar>& at, const Caches& caches) const {
    for (Index i = 0; i < config_.suffix_blocks; ++i) {
      const auto n = static_cast<std::size_t>(i);
      auto& s = saved.suffix[n];
      if (i > 0) {
        h = attend(c, suffix_[n], p.suffix[n], h, keep, s, at, caches(config_.prefix_blocks + i));
      }
      h = feed(c, suffix_[n], p.suffix[n], h, keep, s);
    }
    saved.h = h;
    saved.output = ops::rms_norm(c, h, {p.norm, config_.eps});
    return saved.output.y;
  }

  /// From the gradient of upper_forward's result to the gradients of the parameters that `d` has a
  /// place for and, with `want_dh`, to that of its input.
  template <class C, class Tensor, class Leaf, class Gradient, class Scalar, class Caches>
  Tensor upper_backward(C& c, const Parameters<Leaf>& p, const Saved<Tensor>& saved, Tensor dy,
                        const Parameters<Gradient>& d, bool want_dh, const Positions<Scalar>& at,
                        const Caches& caches) const {
    Tensor dh =
        ops::rms_norm_backward(c, saved.h, {p.norm, config_.eps}, saved.output.inverse, dy, d.norm);
    for (Index i = config_.suffix_blocks - 1; i >= 0; --i) {
      const auto n = static_cast<std::size_t>(i);
      const SuffixBlock& block = suffix_[n];
      dh = block.feed_forward().backward(c, p.suffix[n].feed_forward, saved.suffix[n].feed_forward,
                                         dh, d.suffix[n].feed_forward, want_dh || i > 0);
      if (i == 0) break;
      dh = block.attention().backward(c, p.suffix[n].attention, saved.suffix[n].attention, dh,
                                      d.suffix[n].attention, true, at,
                                      caches(config_.prefix_blocks + i));
    }
    return dh;
  }

 private:
  static Config with_depths(Config config) {
    config.prefix_blocks =
        detail::resolve_extent<Prefix::depth>("prefix_blocks", config.prefix_blocks);
    config.suffix_blocks =
        detail::resolve_extent<Suffix::depth>("suffix_blocks", config.suffix_blocks);
    const Index prefix = config.prefix_blocks, suffix = config.suffix_blocks;
    constexpr Index most = BlockSet::most;
    if (prefix < 0 || suffix < 0 || prefix > most || suffix > most - prefix ||
        prefix + suffix == 0) {
      detail::fail("Config: prefix_blocks is " + std::to_string(prefix) + " and suffix_blocks " +
                   std::to_string(suffix) + ": the model must have from 1 to 4096 blocks");
    }
    return config;
  }

  void check_attention() const {
    const Index full = config_.full_attention.end();
    if (full > (is_mixed ? blocks() : 0)) {
      detail::fail(is_mixed ? "Config: full_attention has block " + std::to_string(full - 1) +
                                  ", but the model has " + std::to_string(blocks())
                            : "Config: full_attention is for models with MixedAttention");
    }
    if (is_mixed && !(config_.full_attention == BlockSet::first(blocks()))) {
      detail::check_positive("window", static_cast<double>(config_.window));
    }
  }

  /// A block's first half and its second; without `keep` their scratch is given back at once.
  template <class C, class Block, class Params, class Tensor, class SavedBlock, class Scalar,
            class CacheScalar>
  static Tensor attend(C& c, const Block& block, const Params& p, Tensor h, bool keep,
                       SavedBlock& saved, const Positions<Scalar>& at,
                       const ops::KeyValues<Scalar, CacheScalar>& cache) {
    const Index mark = c.workspace.used();
    h = block.attention().forward(c, p.attention, h, keep, saved.attention, at, cache);
    if (!keep) c.workspace.release(mark);
    return h;
  }
  template <class C, class Block, class Params, class Tensor, class SavedBlock, class... More>
  static Tensor feed(C& c, const Block& block, const Params& p, Tensor h, bool keep,
                     SavedBlock& saved, const More&... more) {
    const Index mark = c.workspace.used();
    h = block.feed_forward().forward(c, p.feed_forward, h, keep, saved.feed_forward, more...);
    if (!keep) c.workspace.release(mark);
    return h;
  }

  Config config_;
  std::vector<PrefixBlock> prefix_;
  std::vector<SuffixBlock> suffix_;
  std::vector<double> frequencies_;  // base^(-2i/head_dim), scaled
};

}  // namespace ttt::inline TTT_ABI
