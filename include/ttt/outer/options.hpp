// SPDX-License-Identifier: MIT
/// \file
/// Choices of the meta-gradient: what it is exact in, and what it keeps or computes again.
#pragma once

#include <algorithm>
#include <cmath>

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>
#include <ttt/layers/parameters.hpp>

namespace ttt::inline TTT_ABI {

/// Policy: the exact gradient, through every inner step (docs/outer_loop.md).
struct SecondOrder {
  static constexpr bool exact = true;
};

/// Policy: inner steps are taken for constants, as in first-order MAML (Finn et al. 2017, arXiv
/// 1703.03400). For comparison, and for optimizers without a vector-Jacobian product: costs an
/// eighth less on a processor, and is not the gradient of anything.
struct FirstOrder {
  static constexpr bool exact = false;
};

/// How much of a sequence's inner loop is kept for the way back. The loop is cut into segments: the
/// weights at the beginning of each are kept, and everything of one segment at a time; all segments
/// but the last run a second time. Results have the same bits whatever is kept.
struct Keep {
  Index chunks = 0;  // a segment's; 0: as many as make the sum smallest, about sqrt(chunks)

  /// Everything: the fastest.
  static constexpr Keep all() { return {Index{1} << 40}; }
  /// About sqrt(n) states and sqrt(n) chunks, for n chunks: the smallest.
  static constexpr Keep sqrt() { return {0}; }

  /// Chunks in a segment of a sequence of n, when a state takes `state` bytes and all that a
  /// segment keeps of a chunk `chunk` bytes.
  Index segment(Index n, Index state, Index chunk) const {
    if (chunks > 0) return std::min(chunks, n);
    const double best = std::sqrt(static_cast<double>(n) * static_cast<double>(state) /
                                  static_cast<double>(std::max<Index>(1, state + chunk)));
    return std::clamp<Index>(static_cast<Index>(std::lround(best)), 1, n);
  }
};

/// Which parameters train; nullptr: all.
using Trains = bool (*)(const ParameterName&);

/// Of models that learn in place: what says what they learn. Their host stays as it is.
inline bool trains_in_place_targets(const ParameterName& name) {
  return name.role == Role::InPlaceTarget;
}

struct MetaOptions {
  Keep keep = Keep::all();
  bool recompute = false;   // run each block of the prefix again on the way back
  Index sequences = 0;      // at a time, each with memory of its own; 0: one a thread
  Index stacked = 1;        // so many in the place of each of those, row under row in the upper half
  Trains trains = nullptr;  // the gradients of the others are zero and cost nothing
};

}  // namespace ttt::inline TTT_ABI
