// SPDX-License-Identifier: MIT
/// \file
/// A task that only learning from the document itself can solve.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>

#include <ttt/core/random.hpp>
#include <ttt/fwd.hpp>

namespace ttt::test {

/// Documents in one language, each in a cipher of its own.
///
/// A letter is followed by one of two, nine times of ten by the first: 0.33 nats a letter, the same
/// in all documents. But every document renames all letters by a permutation of its own, so nothing
/// can be known of it before it is read, and little from the few letters that a window shows.
struct Ciphers {
  static constexpr Index letters = 24;

  std::uint64_t seed = 1;

  static Index size() { return 0; }
  static constexpr Index length() { return 256; }
  void sample(Index index, std::span<Token> out) const {
    Random random{Random::at(seed, static_cast<std::uint64_t>(index))};
    const auto below = [&](Index n) {
      return static_cast<Index>(random.bits() % static_cast<std::uint64_t>(n));
    };
    std::array<Token, letters> cipher;
    std::iota(cipher.begin(), cipher.end(), 0);
    for (Index i = letters - 1; i > 0; --i) {
      std::swap(cipher[static_cast<std::size_t>(i)],
                cipher[static_cast<std::size_t>(below(i + 1))]);
    }
    Index letter = below(letters);
    for (Token& token : out) {
      token = cipher[static_cast<std::size_t>(letter)];
      letter = below(10) > 0 ? (letter + 1) % letters : (letter * 5 + 7) % letters;
    }
  }
};

}  // namespace ttt::test
