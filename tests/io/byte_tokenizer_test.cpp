// SPDX-License-Identifier: MIT
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "temporary.hpp"
#include <ttt/io/byte_tokenizer.hpp>

using ttt::Token;
using ttt::io::ByteTokenizer;

TEST_CASE("byte tokenizer: every byte comes back") {
  static_assert(ByteTokenizer::vocabulary == 256);
  const ByteTokenizer tokenizer;
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  const std::vector<Token> tokens = tokenizer.encode(all);
  REQUIRE(tokens.size() == 256);
  for (Token i = 0; i < 256; ++i) CHECK(tokens[static_cast<std::size_t>(i)] == i);
  CHECK(tokenizer.decode(tokens) == all);
  CHECK(tokenizer.encode("").empty());
  CHECK(tokenizer.decode({}).empty());
  CHECK(tokenizer.encode("\xc3\xa9") == std::vector<Token>{0xc3, 0xa9});
}

TEST_CASE("byte tokenizer: what is no byte is refused") {
  for (const Token bad : {-1, 256, -2147483647 - 1, 2147483647}) {
    const std::vector<Token> tokens = {'a', bad};
    const std::string text =
        ttt_test::thrown<ttt::Error>([&] { (void)ByteTokenizer().decode(tokens); });
    CHECK(ttt_test::contains(text, "token " + std::to_string(bad) + " at position 1"));
  }
}
