// SPDX-License-Identifier: MIT
#include <chrono>
#include <cstddef>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "temporary.hpp"
#include <ttt/io/byte_pairs.hpp>

using ttt::Token;
using ttt::detail::BytePairs;
using ttt::io::Merge;

namespace {

BytePairs::Starts bytes() {
  BytePairs::Starts starts;
  for (std::size_t i = 0; i < 256; ++i) starts[i] = {{static_cast<Token>(i), -1}, 1};
  return starts;
}

/// Searches all pairs for the least rank, again and again.
std::vector<Token> merge_plainly(const std::string& word, const std::vector<Merge>& merges) {
  std::vector<Token> tokens;
  for (const char c : word) tokens.push_back(static_cast<unsigned char>(c));
  for (;;) {
    const Merge* best = nullptr;
    std::size_t where = 0;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i)
      for (const Merge& merge : merges)
        if (merge.left == tokens[i] && merge.right == tokens[i + 1] &&
            (best == nullptr || merge.rank < best->rank)) {
          best = &merge;
          where = i;
        }
    if (best == nullptr) return tokens;
    tokens[where] = best->whole;
    tokens.erase(tokens.begin() + static_cast<ttt::Index>(where) + 1);
  }
}

}  // namespace

TEST_CASE("byte pairs: short and long words are merged as the definition says") {
  std::mt19937 random(17);
  for (int round = 0; round < 60; ++round) {
    // Merges of what there is so far, over three letters; ranks in any order.
    std::vector<Merge> merges;
    std::vector<Token> known = {'a', 'b', 'c'};
    for (std::uint32_t i = 0; i < 30; ++i) {
      const Merge merge{known[random() % known.size()], known[random() % known.size()],
                        static_cast<Token>(256 + i), (i * 7 + 3) % 30};
      bool twice = false;
      for (const Merge& other : merges)
        twice = twice || (other.left == merge.left && other.right == merge.right);
      if (twice) continue;
      merges.push_back(merge);
      known.push_back(merge.whole);
    }
    const BytePairs pairs(bytes(), merges, "test");
    for (const std::size_t length : {1u, 2u, 3u, 8u, 39u, 40u, 41u, 42u, 150u}) {
      std::string word;
      while (word.size() < length) word += static_cast<char>('a' + random() % 3);
      std::vector<Token> tokens = {-7};  // what is there stays
      pairs.append(word, tokens);
      tokens.erase(tokens.begin());
      CHECK(tokens == merge_plainly(word, merges));
    }
  }
}

TEST_CASE("byte pairs: a byte may begin as two tokens") {
  BytePairs::Starts starts = bytes();
  starts['x'] = {{300, 301}, 2};
  const std::vector<Merge> merges = {{301, 'a', 302, 0}, {300, 301, 303, 1}};
  const BytePairs pairs(starts, merges, "test");
  for (const std::size_t more : {std::size_t{0}, std::size_t{60}}) {
    std::vector<Token> tokens;
    pairs.append("xa" + std::string(more, 'b') + "x", tokens);
    REQUIRE(tokens.size() == 3 + more);
    CHECK(tokens[0] == 300);
    CHECK(tokens[1] == 302);
    CHECK(tokens.back() == 303);
  }
}

TEST_CASE("byte pairs: a word of a megabyte is no trouble, a pair with two merges is refused") {
  std::vector<Merge> merges;
  for (Token i = 0; i < 12; ++i) {
    const Token part = i == 0 ? 'a' : 255 + i;
    merges.push_back({part, part, 256 + i, static_cast<std::uint32_t>(i)});
  }
  const BytePairs pairs(bytes(), merges, "test");
  std::vector<Token> tokens;
  const auto start = std::chrono::steady_clock::now();
  pairs.append(std::string(std::size_t{1} << 20, 'a'), tokens);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
  CHECK(tokens == std::vector<Token>(256, 267));

  merges.push_back({'a', 'a', 260, 100});
  CHECK(ttt_test::contains(
      ttt_test::thrown<ttt::FormatError>([&] { BytePairs(bytes(), merges, "f.json"); }),
      "f.json: the merge of tokens 97 and 97 occurs twice"));
}
