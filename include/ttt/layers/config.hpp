// SPDX-License-Identifier: MIT
/// \file
/// The sizes of a model that are not in its type.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>
#include <ttt/layers/block_set.hpp>

namespace ttt::inline TTT_ABI {

/// How Llama 3.1 stretches RoPE over longer texts than it was first trained on: angular frequencies
/// whose wave is longer than positions / low are divided by `factor`, those whose wave is shorter
/// than positions / high stay, and those between are mixed of both.
struct RopeScaling {
  double factor = 0;    // 0: no scaling
  double low = 0;       // low_freq_factor
  double high = 0;      // high_freq_factor, above low
  Index positions = 0;  // original_max_position_embeddings

  /// The frequency to use in the place of one.
  double operator()(double frequency) const {
    if (factor == 0) return frequency;
    const double waves = static_cast<double>(positions) * frequency / (2 * std::numbers::pi);
    const double kept = std::clamp((waves - low) / (high - low), 0.0, 1.0);
    return (1 - kept) * frequency / factor + kept * frequency;
  }
  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

/// Sizes and constants of a model. Types choose the structure, this fills in the numbers; what the
/// type fixes (a window, a depth) may stay 0 here, or must agree with it.
///
/// Nothing that would change results silently has a default: heads, RoPE base and eps must be set.
struct Config {
  Index vocabulary = 0;
  Index width = 0;          // of the residual stream
  Index heads = 0;          // of queries
  Index key_heads = 0;      // of keys and values; 0: as many as heads
  Index head_dim = 0;       // 0: width / heads
  Index hidden = 0;         // of every MLP, dynamic ones included
  Index prefix_blocks = 0;  // blocks whose MLPs never learn at test time
  Index suffix_blocks = 0;  // blocks behind them, whose MLPs may
  Index window = 0;         // of sliding-window attention, the token itself included
  double rope_base = 0;
  double eps = 0;   // of every norm
  Index chunk = 0;  // the chunk the model was trained to learn in; a hint for the learner
  RopeScaling rope_scaling = {};
  BlockSet full_attention = {};      // of MixedAttention: the blocks that see everything
  BlockSet in_place = {};            // of InPlaceMLP: the blocks that learn
  bool in_place_projection = false;  // whether those project what they learn
};

/// A size that is either part of a type or stored. Takes no room when it is part of the type.
template <std::size_t Static>
struct Extent {
  constexpr explicit Extent(Index) {}
  static constexpr Index value() { return static_cast<Index>(Static); }
};
template <>
struct Extent<dynamic> {
  constexpr explicit Extent(Index size) : value_(size) {}
  constexpr Index value() const { return value_; }

 private:
  Index value_;
};

namespace detail {

/// The most elements of anything that is allocated: beyond every memory, and far enough from
/// overflow that a few of them can be added up and counted in bytes.
inline constexpr Index most_elements = Index{1} << 50;

/// Throws unless `got` is positive. `what` is the Config's member.
inline void check_positive(const char* what, double got) {
  if (!(got > 0) || !std::isfinite(got)) {
    fail(std::string("Config: ") + what + " must be set and positive");
  }
}

/// The size to use: the type's, or the Config's, which must agree where both speak.
template <std::size_t Static>
Index resolve_extent(const char* what, Index configured) {
  if constexpr (Static == dynamic) {
    return configured;
  } else {
    if (configured != 0 && configured != static_cast<Index>(Static)) {
      fail(std::string("Config: ") + what + " is " + std::to_string(configured) +
           ", but the model's type says " + std::to_string(Static));
    }
    return static_cast<Index>(Static);
  }
}

/// Fills in what follows from the rest, and checks what every model needs.
inline Config complete(Config config) {
  check_positive("vocabulary", static_cast<double>(config.vocabulary));
  check_positive("width", static_cast<double>(config.width));
  check_positive("heads", static_cast<double>(config.heads));
  check_positive("hidden", static_cast<double>(config.hidden));
  check_positive("rope_base", config.rope_base);
  check_positive("eps", config.eps);
  constexpr Index most = Index{1} << 30;  // so that products of two sizes cannot overflow
  constexpr Index most_head_dim = Index{1} << 16;
  for (Index size : {config.vocabulary, config.width, config.heads, config.key_heads,
                     config.head_dim, config.hidden, config.window, config.chunk}) {
    if (size < 0 || size > most) fail("Config: a size is negative or beyond 2^30");
  }
  if (config.key_heads == 0) config.key_heads = config.heads;
  if (config.head_dim == 0) {
    if (config.width % config.heads != 0) fail("Config: width is not a multiple of heads");
    config.head_dim = config.width / config.heads;
  }
  if (config.head_dim > most_head_dim) fail("Config: head_dim is beyond 2^16");
  if (config.heads * config.head_dim > most) fail("Config: heads * head_dim is beyond 2^30");
  if (config.heads % config.key_heads != 0) fail("Config: heads is not a multiple of key_heads");
  if (config.head_dim % 2 != 0) fail("Config: head_dim is odd, but RoPE turns pairs");
  if (const RopeScaling& s = config.rope_scaling; s.factor != 0) {
    check_positive("rope_scaling.factor", s.factor);
    check_positive("rope_scaling.low", s.low);
    check_positive("rope_scaling.high - low", s.high - s.low);
    check_positive("rope_scaling.positions", static_cast<double>(s.positions));
  }
  return config;
}

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
