// SPDX-License-Identifier: MIT
/// \file
/// What a depthwise convolution along a chunk's tokens goes through.
#pragma once

#include <ttt/core/view.hpp>

namespace ttt::inline TTT_ABI {
namespace reference::detail {

/// Calls f(t, c, k, from, tap) for every row, channel and tap: `from` is the row that the tap sees
/// from t, or -1 where that is outside t's chunk.
template <class S, class F>
void for_taps(Index rows, const Weight<S>& taps, Index chunk, const F& f) {
  taps.visit([&](auto stored) {
    for (Index t = 0; t < rows; ++t) {
      for (Index c = 0; c < taps.rows; ++c) {
        for (Index k = 0; k < taps.cols; ++k) {
          const Index from = t + k - taps.cols / 2;
          const bool inside = from >= 0 && from < rows && from / chunk == t / chunk;
          f(t, c, k, inside ? from : -1,
            static_cast<S>(taps.transposed ? stored(k, c) : stored(c, k)));
        }
      }
    }
  });
}

}  // namespace reference::detail
}  // namespace ttt::inline TTT_ABI
