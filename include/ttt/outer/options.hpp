// SPDX-License-Identifier: MIT
/// \file
/// Choices of the meta-gradient: what it is exact in, and what it keeps or computes again.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

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
/// but the last run a second time. Going backwards, weights that nobody needs any more make room,
/// so earlier segments are longer. Results have the same bits whatever is kept.
struct Keep {
  Index chunks = 0;  // the last segment's; 0: as many as make the sum smallest

  /// Everything: the fastest.
  static constexpr Keep all() { return {Index{1} << 40}; }
  /// About sqrt(n) states and sqrt(n) chunks, for n chunks: the smallest.
  static constexpr Keep sqrt() { return {0}; }

  /// The first chunk of every segment of a sequence of n, and n, when a state takes `state` bytes
  /// and all that a segment keeps of a chunk, `chunk` bytes.
  std::vector<Index> segments(Index n, Index state, Index chunk) const {
    // The i-th segment from the end may be longer by as many chunks as i states leave room for.
    const double more = static_cast<double>(state) / static_cast<double>(std::max<Index>(1, chunk));
    const auto cut = [&](Index last, const auto& at) {
      Index begin = n;
      for (Index i = 0; begin > 0; ++i) {
        begin -= std::min(begin, last + static_cast<Index>(static_cast<double>(i) * more));
        at(begin);
      }
    };
    Index last = std::min(chunks, n);
    if (chunks <= 0) {
      double least = std::numeric_limits<double>::infinity();
      for (Index i = 1; i <= n && static_cast<double>(i) < least; ++i) {
        double sum = static_cast<double>(i);  // in chunks
        cut(i, [&](Index) { sum += more; });
        if (sum < least) last = i;
        least = std::min(least, sum);
      }
    }
    std::vector<Index> begins = {n};
    cut(last, [&](Index begin) { begins.push_back(begin); });
    std::reverse(begins.begin(), begins.end());
    return begins;
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
  Index stacked = 1;        // so many in the place of each, row under row in the upper half
  Trains trains = nullptr;  // the gradients of the others are zero and cost nothing
};

}  // namespace ttt::inline TTT_ABI
