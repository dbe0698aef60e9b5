// SPDX-License-Identifier: MIT
/// \file
/// Remembers the tokens of words while a text is encoded.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include <ttt/fwd.hpp>
#include <ttt/io/vocabulary.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Words come again and again. A short one has one place in a table, where the last to come there
/// stays: word and tokens in one line of the processor's cache, as looking elsewhere for either
/// takes longer than cutting the word out of the text did.
class WordCache {
 public:
  /// For a text of so many bytes.
  explicit WordCache(std::size_t size)
      : entries_(std::bit_ceil(std::clamp<std::size_t>(size / 16, 8, 32768))) {}

  /// Appends the tokens of a word, which is not empty. make() appends them if they are not known.
  void append(std::string_view word, std::vector<Token>& out, const auto& make) {
    if (word.size() > longest) return make();
    const auto [first, last] = ends(word);
    Entry& entry = entries_[mix(mix(word.size(), first), last) >> 32 & (entries_.size() - 1)];
    if (entry.first == first && entry.last == last && entry.size == word.size()) {
      out.insert(out.end(), entry.tokens.begin(), entry.tokens.begin() + entry.count);
      return;
    }
    const std::size_t before = out.size();
    make();
    const std::size_t count = out.size() - before;
    if (count > entry.tokens.size()) return;
    entry.first = first;
    entry.last = last;
    entry.size = static_cast<std::uint8_t>(word.size());
    entry.count = static_cast<std::uint8_t>(count);
    std::copy(out.end() - static_cast<Index>(count), out.end(), entry.tokens.begin());
  }

 private:
  static constexpr std::size_t longest = 16;

  struct Ends {
    std::uint64_t first, last;
  };
  struct Entry {
    std::uint64_t first = 0, last = 0;
    std::uint8_t size = 0, count = 0;  // no word has the size 0
    std::array<Token, 10> tokens{};
  };
  static_assert(sizeof(Entry) == 64);

  /// The first and the last bytes, which overlap in the middle: with the size they are the word.
  static Ends ends(std::string_view word) {
    const char* const data = word.data();
    const std::size_t size = word.size();
    if (size >= 8) return {load<std::uint64_t>(data), load<std::uint64_t>(data + size - 8)};
    if (size >= 4) return {load<std::uint32_t>(data), load<std::uint32_t>(data + size - 4)};
    const auto byte = [data](std::size_t i) { return static_cast<unsigned char>(data[i]); };
    return {byte(0), byte(size / 2) * std::uint64_t{256} + byte(size - 1)};
  }
  template <class Word>
  static Word load(const char* data) {
    Word word;
    std::memcpy(&word, data, sizeof word);
    return word;
  }

  std::vector<Entry> entries_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
