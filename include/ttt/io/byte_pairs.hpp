// SPDX-License-Identifier: MIT
/// \file
/// Byte-pair encoding of one word: the merge of least rank first, of equal ones the leftmost.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>
#include <ttt/io/vocabulary.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// Two tokens that become one. What has a lower rank goes first.
struct Merge {
  Token left = -1, right = -1, whole = -1;
  std::uint32_t rank = 0;
};

}  // namespace io

namespace detail {

/// Finds merges by their pair.
class MergeTable {
 public:
  static constexpr std::uint32_t no_rank = std::numeric_limits<std::uint32_t>::max();

  struct Slot {
    std::uint64_t pair = ~std::uint64_t{0};
    std::uint32_t rank = no_rank;
    Token whole = -1;
  };

  /// Throws FormatError, opening with `what`, if two merges have one pair, or too many collide.
  MergeTable(std::span<const io::Merge> merges, std::string_view what)
      : slots_(std::bit_ceil(2 * merges.size() + 1)) {
    for (const io::Merge& merge : merges) {
      const std::uint64_t pair = pair_of(merge.left, merge.right);
      std::size_t at = place(pair);
      for (std::size_t probes = 0; slots_[at].whole >= 0; ++probes) {
        if (slots_[at].pair == pair)
          fail<FormatError>(std::string(what) + ": the merge of tokens " +
                            std::to_string(merge.left) + " and " + std::to_string(merge.right) +
                            " occurs twice");
        if (probes == most_probes)
          fail<FormatError>(std::string(what) + ": its merges are made to collide");
        at = (at + 1) & (slots_.size() - 1);
      }
      slots_[at] = {pair, merge.rank, merge.whole};
    }
  }

  /// The merge of two tokens; its rank is no_rank if there is none.
  const Slot& find(Token left, Token right) const {
    const std::uint64_t pair = pair_of(left, right);
    std::size_t at = place(pair);
    while (slots_[at].pair != pair && slots_[at].whole >= 0) at = (at + 1) & (slots_.size() - 1);
    return slots_[at];
  }

 private:
  static std::uint64_t pair_of(Token left, Token right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 |
           static_cast<std::uint32_t>(right);
  }
  std::size_t place(std::uint64_t pair) const { return mix(mix(0, pair), 0) & (slots_.size() - 1); }

  std::vector<Slot> slots_;
};

/// Merges the bytes of words. Immutable.
class BytePairs {
 public:
  /// The tokens that a byte begins as: its own, or those that it falls back to.
  struct Start {
    std::array<Token, 2> tokens = {-1, -1};
    std::size_t count = 0;
  };
  using Starts = std::array<Start, 256>;

  BytePairs(const Starts& starts, std::span<const io::Merge> merges, std::string_view what)
      : starts_(starts), merges_(merges, what) {}

  /// Appends the tokens of a word. O(n log n) for long ones.
  void append(std::string_view word, std::vector<Token>& out) const {
    if (word.size() <= few) {
      append_short(word, out);
    } else {
      append_long(word, out);
    }
  }

 private:
  static constexpr std::size_t few = 40;  // bytes, up to which searching all pairs is fastest
  static constexpr std::uint32_t no_rank = MergeTable::no_rank;

  void append_short(std::string_view word, std::vector<Token>& out) const {
    struct Part {
      Token token;
      Token whole;         // what it and the next become,
      std::uint32_t rank;  // and when
    };
    std::array<Part, 2 * few> parts;
    std::size_t count = 0;
    for (const char byte : word) {
      const Start& start = starts_[static_cast<unsigned char>(byte)];
      for (std::size_t k = 0; k < start.count; ++k) parts[count++].token = start.tokens[k];
    }
    const auto pair = [&](std::size_t i) {
      parts[i].rank = no_rank;
      if (i + 1 >= count) return;
      const MergeTable::Slot& found = merges_.find(parts[i].token, parts[i + 1].token);
      parts[i].rank = found.rank;
      parts[i].whole = found.whole;
    };
    for (std::size_t i = 0; i < count; ++i) pair(i);
    while (count > 1) {
      std::size_t best = 0;
      for (std::size_t i = 1; i + 1 < count; ++i)
        if (parts[i].rank < parts[best].rank) best = i;
      if (parts[best].rank == no_rank) break;
      parts[best].token = parts[best].whole;
      std::copy(parts.begin() + static_cast<Index>(best) + 2,
                parts.begin() + static_cast<Index>(count),
                parts.begin() + static_cast<Index>(best) + 1);
      --count;
      pair(best);
      if (best > 0) pair(best - 1);
    }
    for (std::size_t i = 0; i < count; ++i) out.push_back(parts[i].token);
  }

  /// The same with a list of parts and a heap of their ranks. An entry of the heap whose pair has
  /// changed meanwhile is passed over.
  void append_long(std::string_view word, std::vector<Token>& out) const {
    constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();
    struct Part {
      Token token;
      std::uint32_t before, after;
      std::uint32_t rank;  // of it and the next
    };
    if (word.size() > none / 2)
      fail("tokenizer: a word of " + std::to_string(word.size()) + " bytes, expected at most " +
           std::to_string(none / 2));
    std::vector<Part> parts;
    parts.reserve(word.size());
    for (const char byte : word) {
      const Start& start = starts_[static_cast<unsigned char>(byte)];
      for (std::size_t k = 0; k < start.count; ++k) {
        const auto at = static_cast<std::uint32_t>(parts.size());
        parts.push_back({start.tokens[k], at - 1, at + 1, no_rank});  // 0 - 1 is none
      }
    }
    parts.back().after = none;

    // Greatest first is what heaps do, so entries are complements: of the rank, then of the place.
    std::vector<std::uint64_t> heap;
    const auto pair = [&](std::uint32_t at) {
      Part& part = parts[at];
      part.rank =
          part.after == none ? no_rank : merges_.find(part.token, parts[part.after].token).rank;
      if (part.rank == no_rank) return false;
      heap.push_back(~(std::uint64_t{part.rank} << 32 | at));
      return true;
    };
    for (std::uint32_t at = 0; at < parts.size(); ++at) pair(at);
    std::make_heap(heap.begin(), heap.end());
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end());
      const std::uint64_t next = ~heap.back();
      heap.pop_back();
      const auto at = static_cast<std::uint32_t>(next);
      Part& part = parts[at];
      if (part.rank != next >> 32) continue;
      Part& gone = parts[part.after];
      part.token = merges_.find(part.token, gone.token).whole;
      part.after = gone.after;
      gone.rank = no_rank;
      if (part.after != none) parts[part.after].before = at;
      if (pair(at)) std::push_heap(heap.begin(), heap.end());
      if (part.before != none && pair(part.before)) std::push_heap(heap.begin(), heap.end());
    }
    for (std::uint32_t at = 0; at != none; at = parts[at].after) out.push_back(parts[at].token);
  }

  Starts starts_;
  MergeTable merges_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
