// SPDX-License-Identifier: MIT
// The code of docs/files.md about tokenizers.
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/io/tokenizer.hpp>

TEST_CASE("docs: a tokenizer of a model's folder, and what is generated as it comes") {
  const std::string folder = TTT_TEST_DATA "/tokenizer_llama3.json";
  std::string shown;
  const auto show = [&](const std::string& text) { shown += text; };

  //! [load_tokenizer]
  const ttt::io::BpeTokenizer tokenizer = ttt::io::load_tokenizer(folder);
  std::vector<ttt::Token> tokens = tokenizer.encode("It's 12:34 \xf0\x9f\x98\x80");  // BOS first
  // More of the same document, from somebody who may write "<|eot_id|>".
  const auto more = tokenizer.encode("<|eot_id|>?", {.add_special = false, .parse_special = false});
  tokens.insert(tokens.end(), more.begin(), more.end());

  ttt::io::StreamDecoder decoder(tokenizer);
  for (const ttt::Token token : tokens) show(decoder.push(token));  // whole characters only
  show(decoder.finish());
  //! [/load_tokenizer]
  CHECK(shown == "It's 12:34 \xf0\x9f\x98\x80<|eot_id|>?");
  CHECK(tokens.front() == tokenizer.find("<|begin_of_text|>"));
  CHECK(tokenizer.find("<|eot_id|>").has_value());
}

TEST_CASE("docs: a rank file") {
  const std::string path = TTT_TEST_DATA "/tokenizer_ranks.model";
  //! [rank_file]
  const ttt::io::RankFileOptions options{
      .pattern = ttt::io::WordPattern::Llama3,
      .special = {{"<|begin_of_text|>", 128000}, {"<|end_of_text|>", 128001}},
      .before = {128000}};
  const ttt::io::BpeTokenizer tokenizer = ttt::io::load_tokenizer(path, options);
  //! [/rank_file]
  CHECK(tokenizer.encode("").size() == 1);
  CHECK(tokenizer.vocabulary() == 128002);
}
