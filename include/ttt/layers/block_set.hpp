// SPDX-License-Identifier: MIT
/// \file
/// Some of a model's blocks, as a value: which have full attention, which learn in place.
#pragma once

#include <array>
#include <cstdint>

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// A set of blocks, by number from 0. Any pattern has a place in a Config this way, and a model
/// stays a stack of one type of block.
class BlockSet {
 public:
  /// The most blocks of a model.
  static constexpr Index most = 4096;

  constexpr BlockSet() = default;

  /// Blocks [0, count).
  static constexpr BlockSet first(Index count) { return every(1, count); }
  /// Blocks 0, step, 2 * step, ... below `end`. Throws Error unless step is positive.
  static constexpr BlockSet every(Index step, Index end) {
    if (step < 1) detail::fail("BlockSet: the step must be positive");
    BlockSet set;
    for (Index i = 0; i < end; i += step) set.add(i);
    return set;
  }

  /// Throws Error for a number that no block can have.
  constexpr void add(Index block) {
    if (block < 0 || block >= most) detail::fail("BlockSet: a block is negative or beyond 4095");
    words_[static_cast<std::size_t>(block / 64)] |= std::uint64_t{1} << (block % 64);
  }
  constexpr bool has(Index block) const {
    return block >= 0 && block < most &&
           (words_[static_cast<std::size_t>(block / 64)] >> (block % 64) & 1) != 0;
  }
  constexpr bool empty() const { return end() == 0; }

  /// One more than the last block of the set; 0 without any.
  constexpr Index end() const {
    Index i = most;
    while (i > 0 && !has(i - 1)) --i;
    return i;
  }

  friend constexpr bool operator==(const BlockSet&, const BlockSet&) = default;

 private:
  std::array<std::uint64_t, most / 64> words_ = {};
};

}  // namespace ttt::inline TTT_ABI
