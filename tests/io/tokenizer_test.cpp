// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "temporary.hpp"
#include <ttt/io/json.hpp>
#include <ttt/io/tokenizer.hpp>

using ttt::FormatError;
using ttt::Token;
using ttt::io::BpeTokenizer;
using ttt::io::Json;
using ttt::io::RankFileOptions;
using ttt::io::StreamDecoder;
using ttt::io::WordPattern;
using ttt_test::contains;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;
using Tokens = std::vector<Token>;

namespace {

std::string golden(const std::string& name) {
  return std::string(TTT_TEST_DATA) + "/" + name;
}

const Json& cases() {
  static const Json json =
      Json::parse(ttt_test::content_of(golden("tokenizer_cases.json")), "tokenizer_cases.json");
  return json;
}

Tokens tokens_of(const Json& list) {
  Tokens out;
  for (const Json& id : list.array()) out.push_back(static_cast<Token>(id.integer()));
  return out;
}

std::string stream(const BpeTokenizer& tokenizer, const Tokens& tokens, bool skip_special) {
  StreamDecoder decoder(tokenizer, {.skip_special = skip_special});
  std::string text;
  for (const Token token : tokens) {
    const std::string piece = decoder.push(token);
    CHECK(ttt::io::find_invalid_utf8(piece) == piece.size());
    text += piece;
  }
  return text + decoder.finish();
}

/// A tokenizer.json whose parts are JSON texts: every byte, "ab" and "abc", and what is asked for.
struct Small {
  std::string vocab = "", merges = R"("a b","ab c")", model = "", added = "";
  std::string normalizer = "null", post = "null", other = "";
  std::string pre = R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":true})";
  std::string decoder = R"({"type":"ByteLevel"})";
  std::string without = "";  // of the bytes

  std::string json() const {
    std::string text = R"({"version":"1.0","truncation":null,"padding":null,"normalizer":)" +
                       normalizer + R"(,"pre_tokenizer":)" + pre + R"(,"decoder":)" + decoder +
                       R"(,"post_processor":)" + post + R"(,"added_tokens":[)" + added + "]" +
                       other + R"(,"model":{"type":"BPE","merges":[)" + merges + "]" + model +
                       R"(,"vocab":{"ab":256,"abc":257)" + vocab;
    for (unsigned byte = 0; byte < 256; ++byte) {
      if (without.find(static_cast<char>(byte)) != without.npos) continue;
      std::string spelled;
      ttt::io::append_utf8(spelled, ttt::detail::byte_spelling[byte]);
      text += ",";
      ttt::io::append_json_string(text, spelled);
      text += ":" + std::to_string(byte);
    }
    return text + "}}}";
  }
  BpeTokenizer make() const { return ttt::io::parse_tokenizer_json(json(), "f.json"); }
};

std::string refused(const Small& small) {
  return thrown<FormatError>([&] { (void)small.make(); });
}

std::string added(const std::string& text, int id, const std::string& more = "") {
  return R"({"content":")" + text + R"(","id":)" + std::to_string(id) + more + "}";
}

const std::string special = R"(,"special":true,"normalized":false)";

}  // namespace

TEST_CASE("tokenizer: recorded encodings of difficult texts, and what they decode to") {
  for (const std::string name : {"llama3", "qwen"}) {
    CAPTURE(name);
    const BpeTokenizer tokenizer = ttt::io::load_tokenizer(golden("tokenizer_" + name + ".json"));
    for (const Json& item : cases().at(name).array()) {
      const Tokens ids = tokens_of(item.at("ids"));
      const Json* const text = item.find("text");
      const Json* const decoded = item.find("decoded");
      const std::string expected = (decoded != nullptr ? decoded : text)->string();
      CAPTURE(expected);
      CHECK(ttt::io::replace_invalid_utf8(tokenizer.decode(ids)) == expected);
      CHECK(stream(tokenizer, ids, true) == expected);
      if (const Json* all = item.find("with_special")) {
        CHECK(ttt::io::replace_invalid_utf8(tokenizer.decode(ids, {.skip_special = false})) ==
              all->string());
        CHECK(stream(tokenizer, ids, false) == all->string());
      }
      if (text == nullptr) continue;
      CHECK(tokenizer.encode(text->string()) == ids);
      const Json* const plain = item.find("plain");
      CHECK(tokenizer.encode(text->string(), {.add_special = false, .parse_special = false}) ==
            tokens_of(plain != nullptr ? *plain : item.at("ids")));
    }
  }
}

TEST_CASE("tokenizer: recorded encodings by a rank file") {
  const std::string path = golden("tokenizer_ranks.model");
  const BpeTokenizer tokenizer = ttt::io::load_tokenizer(
      path,
      {.pattern = WordPattern::Llama3,
       .special = {{"<|begin_of_text|>", 1100}, {"<|end_of_text|>", 1101}, {"<|eot_id|>", 1102}}});
  CHECK(tokenizer.vocabulary() == 1103);
  for (const Json& item : cases().at("ranks").array()) {
    const std::string& text = item.at("text").string();
    const Tokens ids = tokens_of(item.at("ids"));
    CAPTURE(text);
    CHECK(tokenizer.encode(text) == ids);
    CHECK(tokenizer.decode(ids, {.skip_special = false}) == text);
  }
}

TEST_CASE("tokenizer: any bytes come back") {
  const BpeTokenizer llama = ttt::io::load_tokenizer(golden("tokenizer_llama3.json"));
  const BpeTokenizer qwen = ttt::io::load_tokenizer(golden("tokenizer_qwen.json"));
  std::mt19937 random(23);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (auto n = random() % 200; n > 0; --n)
      text += static_cast<char>(random() % 3 == 0 ? random() : 'a' + random() % 26);
    CHECK(llama.decode(llama.encode(text)) == text);
    std::string buffer;
    CHECK(qwen.decode(qwen.encode(text)) == ttt::io::to_nfc(text, buffer));
  }
  // Cached words give what words give that are not: alone and amid others.
  std::string long_text;
  Tokens expected;
  for (int i = 0; i < 3000; ++i) {
    const std::string word = "\n" + std::to_string(random() % 700) + "x";
    long_text += word;
    const Tokens tokens = llama.encode(word, {.add_special = false});
    expected.insert(expected.end(), tokens.begin(), tokens.end());
  }
  CHECK(llama.encode(long_text, {.add_special = false}) == expected);
}

TEST_CASE("tokenizer: one object serves many threads") {
  const BpeTokenizer tokenizer = ttt::io::load_tokenizer(golden("tokenizer_qwen.json"));
  const std::string text = ttt_test::content_of(golden("README.md")) + "e\xcc\x81 <|im_end|>";
  const Tokens expected = tokenizer.encode(text);
  std::vector<Tokens> results(4);
  std::vector<std::thread> threads;
  for (Tokens& result : results)
    threads.emplace_back([&result, tokenizer, &text] { result = tokenizer.encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const Tokens& result : results) CHECK(result == expected);
}

TEST_CASE("tokenizer: the stream decoder holds back what is not a whole character") {
  const BpeTokenizer tokenizer = Small().make();
  StreamDecoder decoder(tokenizer);
  CHECK(decoder.push('x') == "x");
  CHECK(decoder.push(0xf0) == "");
  CHECK(decoder.push(0x9f) == "");
  CHECK(decoder.push(0x98) == "");
  CHECK(decoder.push(0x80) == "\xf0\x9f\x98\x80");
  CHECK(decoder.push(0xc3) == "");
  CHECK(decoder.push(256) ==
        "\xef\xbf\xbd"
        "ab");  // what can no longer become one
  CHECK(decoder.push(0x80) == "\xef\xbf\xbd");
  CHECK(decoder.push(0xe2) == "");
  CHECK(decoder.push(0x82) == "");
  CHECK(contains(thrown<ttt::Error>([&] { (void)decoder.push(258); }), "token 258 is not in"));
  CHECK(decoder.finish() == "\xef\xbf\xbd");
  CHECK(decoder.finish() == "");
  CHECK(decoder.push('y') == "y");
}

TEST_CASE("tokenizer: special tokens are found, added, skipped or left as text") {
  Small small;
  small.added = added("<s>", 258, special) + "," + added("<s>>", 259, special) + "," +
                added("<t>", 300, R"(,"special":false)");
  small.post = R"({"type":"TemplateProcessing","pair":[],"single":[
      {"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}},
      {"SpecialToken":{"id":"<t>","type_id":0}}],
      "special_tokens":{"<s>":{"id":"<s>","ids":[258],"tokens":["<s>"]},
                        "<t>":{"id":"<t>","ids":[300],"tokens":["<t>"]}}})";
  const BpeTokenizer tokenizer = small.make();
  CHECK(tokenizer.vocabulary() == 301);
  CHECK(tokenizer.encode("") == Tokens{258, 300});
  CHECK(tokenizer.encode("ab<s>>abc<s") == Tokens{258, 256, 259, 257, '<', 's', 300});
  CHECK(tokenizer.encode("<s><t>", {.add_special = false}) == Tokens{258, 300});
  CHECK(tokenizer.encode("<s><t>", {.add_special = false, .parse_special = false}) ==
        Tokens{'<', 's', '>', 300});
  CHECK(tokenizer.decode(Tokens{258, 256, 300}) == "ab<t>");
  CHECK(tokenizer.decode(Tokens{258, 256, 300}, {.skip_special = false}) == "<s>ab<t>");
  CHECK(tokenizer.find("<s>>") == 259);
  CHECK(tokenizer.find("abc") == 257);
  CHECK_FALSE(tokenizer.find("<u>").has_value());
  CHECK_FALSE(tokenizer.find("").has_value());
  CHECK(tokenizer.is_special(259));
  CHECK_FALSE(tokenizer.is_special(300));
  CHECK_FALSE(tokenizer.has(299));  // a hole
  for (const Token bad : {-1, 299, 301, 2147483647, -2147483647 - 1})
    CHECK(contains(thrown<ttt::Error>([&] {
                     (void)tokenizer.decode(Tokens{'a', bad});
                   }),
                   "token " + std::to_string(bad) + " at position 1 is not in"));
}

TEST_CASE("tokenizer: normal form comes before normalized tokens and after exact ones") {
  Small small;
  small.normalizer = R"({"type":"NFC"})";
  small.added = added("e\xcc\x81", 258, R"(,"normalized":true,"special":false)") + "," +
                added("o\xcc\x81", 259, special);
  const BpeTokenizer tokenizer = small.make();
  CHECK(tokenizer.encode("e\xcc\x81") == Tokens{258});
  CHECK(tokenizer.encode("\xc3\xa9") == Tokens{258});
  CHECK(tokenizer.encode("o\xcc\x81") == Tokens{259});
  CHECK(tokenizer.encode("\xc3\xb3") == Tokens{0xc3, 0xb3});
}

TEST_CASE("tokenizer: bytes without a token fall back, spelled, and come back") {
  Small small;
  small.without = "z ";
  CHECK(contains(refused(small), "f.json: the vocabulary has no token for the byte 32"));
  small.model = R"(,"byte_fallback":true)";
  CHECK(contains(refused(small), "no token for the byte 32"));
  // A space is spelled U+0120.
  small.vocab = R"(,"<0xC4>":300,"<0xA0>":301,"<0x7A>":302)";
  const BpeTokenizer plain = small.make();
  CHECK(plain.encode("a z") == Tokens{'a', 300, 301, 302});
  CHECK(plain.decode(Tokens{'a', 300, 301, 302}) == "a<0xC4><0xA0><0x7A>");
  small.decoder =
      R"({"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"ByteLevel"}]})";
  const BpeTokenizer tokenizer = small.make();
  CHECK(tokenizer.decode(tokenizer.encode("a zab z")) == "a zab z");
  CHECK(stream(tokenizer, tokenizer.encode("a zab z"), true) == "a zab z");
  // As Hugging Face does: a run that is no UTF-8 is one U+FFFD a token.
  CHECK(tokenizer.decode(Tokens{300, 302, 'a', 301}) ==
        "\xef\xbf\xbd\xef\xbf\xbd"
        "a"
        "\xef\xbf\xbd");
}

TEST_CASE("tokenizer: what is not done is refused by its name") {
  const auto with = [](std::string Small::*part, const std::string& text) {
    Small small;
    small.*part = text;
    return refused(small);
  };
  CHECK(contains(with(&Small::normalizer, R"({"type":"Lowercase"})"),
                 "f.json: normalizer: the type \"Lowercase\" is not supported"));
  CHECK(contains(with(&Small::pre, R"({"type":"Whitespace"})"), "pre_tokenizer: the type"));
  CHECK(contains(with(&Small::pre, R"({"type":"ByteLevel","add_prefix_space":true})"),
                 "\"add_prefix_space\" is true"));
  CHECK(contains(with(&Small::pre, R"({"type":"ByteLevel"})"), "\"add_prefix_space\" is true"));
  const auto split = [](const std::string& regex, const std::string& behavior = "Isolated",
                        const std::string& level = "false") {
    std::string quoted;
    ttt::io::append_json_string(quoted, regex);
    return R"({"type":"Sequence","pretokenizers":[{"type":"Split","invert":false,"behavior":")" +
           behavior + R"(","pattern":{"Regex":)" + quoted +
           R"(}},{"type":"ByteLevel","add_prefix_space":false,"use_regex":)" + level + "}]}";
  };
  const std::string qwen(ttt::io::regular_expression(WordPattern::Qwen));
  CHECK(contains(with(&Small::pre, split("\\s+")), "the pattern \"\\s+\" is not known"));
  CHECK(contains(with(&Small::pre, split(qwen + " ")), "is not known"));
  CHECK(contains(with(&Small::pre, split(qwen, "Removed")), "the behavior \"Removed\""));
  CHECK(contains(with(&Small::pre, split(qwen, "Isolated", "true")), "\"use_regex\" is true"));
  CHECK(contains(with(&Small::decoder, R"({"type":"WordPiece"})"), "decoder: the type"));
  CHECK(contains(with(&Small::decoder, "null"), "decoder"));
  CHECK(contains(with(&Small::model, R"(,"dropout":0.1)"), "dropout"));
  CHECK(contains(with(&Small::model, R"(,"end_of_word_suffix":"</w>")"), "end_of_word_suffix"));
  CHECK(contains(with(&Small::model, R"(,"new":1)"), "the setting \"new\" is not known here"));
  CHECK(contains(with(&Small::other, R"(,"new":1)"), "the setting \"new\" is not known here"));
  CHECK(contains(with(&Small::post, R"({"type":"BertProcessing"})"), "post_processor: the type"));
  CHECK(contains(with(&Small::post, R"({"type":"TemplateProcessing","single":[]})"), "the text A"));
  for (const std::string flag : {"lstrip", "rstrip", "single_word"})
    CHECK(contains(with(&Small::added, added("<s>", 258, ",\"" + flag + "\":true")),
                   "added token \"<s>\": \"" + flag + "\" is true"));
  for (const std::string key : {"truncation", "padding"}) {
    std::string text = Small().json();
    const std::string null = "\"" + key + "\":null";
    text.replace(text.find(null), null.size(), "\"" + key + "\":{}");
    CHECK(contains(thrown<FormatError>([&] { (void)ttt::io::parse_tokenizer_json(text); }), key));
  }
  for (const WordPattern known : {WordPattern::Gpt2, WordPattern::Llama3, WordPattern::Qwen}) {
    Small small;
    small.pre = split(std::string(ttt::io::regular_expression(known)));
    CHECK(small.make().encode("ab ab") == Tokens{256, ' ', 256});
  }
}

TEST_CASE("tokenizer: ids and merges that cannot be are refused") {
  const auto vocab = [](const std::string& text) {
    Small small;
    small.vocab = text;
    return refused(small);
  };
  CHECK(contains(vocab(R"(,"x1":-1)"), "the token \"x1\" has the id -1, expected 0 to"));
  CHECK(contains(vocab(R"(,"x1":1048576)"), "has the id 1048576, expected 0 to 1048575"));
  CHECK(contains(vocab(R"(,"x1":9223372036854775807)"), "has the id 9223372036854775807"));
  CHECK(contains(vocab(R"(,"x1":9223372036854775808)"), "expected an integer"));
  CHECK(contains(vocab(R"(,"x1":1.5)"), "expected an integer"));
  CHECK(contains(vocab(R"(,"x1":"1")"), "expected an integer, found a string"));
  CHECK(contains(vocab(R"(,"x1":256)"), "has the id 256, which another token has too"));
  CHECK(contains(vocab(R"(,"ab":300)"), "\"ab\" occurs twice"));
  CHECK(Small{.vocab = R"(,"x1":1048575)"}.make().vocabulary() == 1048576);  // a hole is no error
  const auto merges = [](const std::string& text) {
    Small small;
    small.merges = text;
    return refused(small);
  };
  CHECK(contains(merges(R"("a b","ab d")"), "merge 1 has \"abd\", which is not in the vocabulary"));
  CHECK(contains(merges(R"("a zz")"), "merge 0 has \"zz\""));
  CHECK(contains(merges(R"("a b","a b")"), "the merge of tokens 97 and 98 occurs twice"));
  for (const std::string bad : {R"("ab")", R"("a  b")", R"("a b c")", R"(" b")", R"("a ")", R"([])",
                                R"(["a"])", R"(["a","b","c"])", R"(["","b"])"})
    CHECK(contains(merges(bad), "merge 0 is not two tokens"));
  CHECK(contains(merges("1"), "expected an array"));
  CHECK(contains(merges(R"([1,2])"), "expected a string"));
  const auto tokens = [](const std::string& text) {
    Small small;
    small.added = text;
    return refused(small);
  };
  CHECK(contains(tokens(added("ab", 300)), "has the id 300, but 256 in the vocabulary"));
  CHECK(contains(tokens(added("<s>", 256)), "which another token has too"));
  CHECK(contains(tokens(added("<s>", -5)), "has the id -5"));
  CHECK(contains(tokens(added("<s>", 258) + "," + added("<s>", 259)), "occurs twice"));
  CHECK(contains(tokens(added("", 258)), "has 0 bytes, expected 1 to 1024"));
  CHECK(contains(tokens(added(std::string(1025, 'x'), 258)), "has 1025 bytes"));
  CHECK(Small{.added = added("ab", 256, special)}.make().is_special(256));
  Small small;
  small.post = R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}},
      {"Sequence":{"id":"A"}}],"special_tokens":{"x":{"ids":[4000000000000]}}})";
  CHECK(contains(refused(small), "token 4000000000000 is not in the vocabulary"));
  small.post.replace(small.post.find("4000000000000"), 13, "4000");
  CHECK(contains(refused(small), "4000 is not in the vocabulary"));
}

TEST_CASE("tokenizer: rank files that are not sound are refused, and the line is named") {
  std::string good;
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (unsigned byte = 0; byte < 256; ++byte)
    good += std::string{digits[byte >> 2], digits[byte << 4 & 63]} + "== " + std::to_string(byte) +
            "\n";
  const RankFileOptions options{
      .pattern = WordPattern::Qwen, .special = {{"<s>", 400}}, .nfc = true};
  const auto parse = [&](const std::string& text) {
    return ttt::io::parse_rank_file(text, options, "r.model");
  };
  const BpeTokenizer tokenizer = parse(good + "\nYWI= 256\nYWJj 300");
  CHECK(tokenizer.encode("abcab<s>e\xcc\x81") == Tokens{300, 256, 400, 0xc3, 0xa9});
  const auto refuse = [&](const std::string& text) {
    return thrown<FormatError>([&] { (void)parse(text); });
  };
  CHECK(contains(refuse(""), "r.model: the vocabulary has no token for the byte 0"));
  for (const std::string line : {"YWI=", "YWI=256", "YWI= ", "YWI= x", "YWI= 256 ", "YWI= 256\r",
                                 "YWI= 1e3", "YWI= 99999999999999999999", "YWI=\t256", "\xff\xff"})
    CHECK(contains(refuse(good + line), "line 257: expected a token in base64"));
  for (const std::string bad : {"YWI 256", "YW=I 256", "Y=== 256", "YWJ= 256", "YW\xc3\xa9 256",
                                " 256", "==== 256", "YW-_ 256"})
    CHECK(contains(refuse(good + bad), "is not base64"));
  CHECK(contains(refuse(good + "YWI= -1"), "line 257: the id -1, expected 0 to"));
  CHECK(contains(refuse(good + "YWI= 1048576"), "the id 1048576"));
  CHECK(contains(refuse(good + "YWI= 255"), "the id 255 occurs twice"));
  CHECK(contains(refuse(good + "YWI= 256\nYWI= 257"), "two tokens have the bytes \"ab\""));
  std::string longest;
  for (int i = 0; i < 172; ++i) longest += "YWFh";
  CHECK(contains(refuse(good + longest + " 256"), "a token of 516 bytes, expected at most 512"));
  CHECK(contains(thrown<ttt::Error>([&] {
                   (void)ttt::io::parse_rank_file(
                       good, {.pattern = WordPattern::Qwen, .special = {{"<s>", 97}}});
                 }),
                 "the special token \"<s>\" has the id 97, which another token has too"));
  CHECK(contains(thrown<ttt::Error>([&] { (void)ttt::io::parse_rank_file(good, {}); }),
                 "give a pattern"));
}

TEST_CASE("tokenizer: a model's folder has one of two files") {
  const TemporaryFolder folder;
  const std::string path = folder.path("");
  CHECK(contains(thrown<ttt::Error>([&] { (void)ttt::io::load_tokenizer(path); }),
                 "has neither tokenizer.json nor tokenizer.model"));
  const RankFileOptions options{.pattern = WordPattern::Llama3};
  folder.file("tokenizer.model", ttt_test::content_of(golden("tokenizer_ranks.model")));
  CHECK(ttt::io::load_tokenizer(path, options).vocabulary() == 1100);
  CHECK(
      contains(thrown<ttt::Error>([&] { (void)ttt::io::load_tokenizer(path); }), "give a pattern"));
  folder.file("tokenizer.json", Small().json());
  CHECK(ttt::io::load_tokenizer(path).vocabulary() == 258);
  CHECK_THROWS_AS((void)ttt::io::load_tokenizer(folder.path("none.json")), ttt::Error);
  const std::string huge = folder.file("huge.json", "{");
  std::filesystem::resize_file(huge, std::uintmax_t{1} << 40);
  CHECK(contains(thrown<FormatError>([&] { (void)ttt::io::load_tokenizer(huge); }),
                 "has 1099511627776 bytes, expected at most 268435456"));
  folder.file("tokenizer.model", "\x0a\x0e\x0a\x05<unk>\x15\x00\x00");  // SentencePiece's
  CHECK(contains(thrown<FormatError>([&] {
                   (void)ttt::io::load_tokenizer(folder.path("tokenizer.model"), options);
                 }),
                 "expected a token in base64"));
}

TEST_CASE("tokenizer: damaged files never do worse than throw FormatError") {
  Small small;
  small.added = added("<s>", 258, special);
  small.post = R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},
      {"Sequence":{"id":"A"}}],"special_tokens":{"<s>":{"ids":[258]}}})";
  const std::string json = small.json();
  const std::string ranks = ttt_test::content_of(golden("tokenizer_ranks.model"));
  const std::string text = "abc <s> e\xcc\x81 123\n";
  const auto attempt = [&](const std::string& damaged, bool is_json) {
    try {
      const BpeTokenizer tokenizer =
          is_json ? ttt::io::parse_tokenizer_json(damaged)
                  : ttt::io::parse_rank_file(damaged, {.pattern = WordPattern::Llama3});
      (void)tokenizer.decode(tokenizer.encode(text));
    } catch (const FormatError&) {
    }
  };
  std::mt19937 random(29);
  for (int i = 0; i < 300; ++i) {
    CHECK_THROWS_AS((void)ttt::io::parse_tokenizer_json(
                        std::string_view(json).substr(0, random() % json.size())),
                    FormatError);
    attempt(ranks.substr(0, random() % ranks.size()), false);
  }
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = json;
    for (std::size_t i = 0; i <= random() % 3; ++i) {
      const std::size_t at = random() % damaged.size();
      // Half of the time another piece of the same file, which stays closer to what is read.
      if (random() % 2 == 0) {
        damaged[at] = static_cast<char>(random());
      } else {
        damaged.replace(at, random() % 6, json, random() % json.size(), random() % 6);
      }
    }
    attempt(damaged, true);
  }
  for (int round = 0; round < 300; ++round) {
    std::string damaged = ranks;
    for (std::size_t i = 0; i <= random() % 3; ++i)
      damaged[random() % damaged.size()] = "A/= \n19x"[random() % 8];
    attempt(damaged, false);
  }
}

TEST_SUITE("slow") {
  TEST_CASE("tokenizer: 100 MB of anything is one exception") {
    constexpr std::size_t size = 100'000'000;
    const auto repeat = [](std::string text, const std::string& part) {
      while (text.size() < size) text += part;
      return text;
    };
    for (const std::string start : {"", "{\"model\":{\"vocab\":{\"", "{\"added_tokens\":[\""})
      CHECK_THROWS_AS((void)ttt::io::parse_tokenizer_json(repeat(start, "garbage 1, ")),
                      FormatError);
    const RankFileOptions options{.pattern = WordPattern::Llama3};
    for (const std::string part : {"garbage ", "YWI= ", "YWI= 256\n", "\n"})
      CHECK_THROWS_AS((void)ttt::io::parse_rank_file(repeat("", part), options), FormatError);
  }

  TEST_CASE("tokenizer: a file made for the most merges costs what it may") {
    // Runs of one letter: every cut of each is two tokens.
    constexpr std::string_view digits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    int id = 0;
    for (unsigned byte = 0; byte < 256; ++byte)
      for (std::size_t length = 1; length <= 512; ++length) {
        unsigned bits = 0;
        int count = 0;
        for (std::size_t i = 0; i < length; ++i) {
          bits = (bits << 8 | byte) & 0xffff;
          for (count += 8; count >= 6; count -= 6) text += digits[bits >> (count - 6) & 63];
        }
        if (count > 0) text += digits[bits << (6 - count) & 63];
        while (text.size() % 4 != 0) text += '=';
        text += " " + std::to_string(id++) + "\n";
        while (text.size() % 4 != 0) text += "\n";
      }
    CHECK(contains(thrown<FormatError>([&] {
                     (void)ttt::io::parse_rank_file(text, {.pattern = WordPattern::Llama3});
                   }),
                   "can be cut into tokens in more than"));
  }
}
