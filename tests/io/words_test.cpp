// SPDX-License-Identifier: MIT
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/io/unicode.hpp>
#include <ttt/io/utf8.hpp>
#include <ttt/io/words.hpp>

using ttt::io::CharacterClass;
using ttt::io::WordPattern;

namespace {

std::vector<std::string> words(WordPattern pattern, std::string_view text) {
  std::vector<std::string> out;
  ttt::io::WordScanner scanner(pattern, text);
  for (std::string_view word = scanner.next(); !word.empty(); word = scanner.next())
    out.emplace_back(word);
  return out;
}

/// The regular expressions read letter by letter, as a matcher that tries the alternatives in turn
/// and steps back would: slow, and sharing nothing with the scanner but the classes.
class Literal {
 public:
  Literal(WordPattern pattern, std::string_view text) : pattern_(pattern) {
    for (std::size_t i = 0; i < text.size();) {
      ttt::io::Utf8 next = ttt::io::read_utf8(text, i);
      if (next.code == ttt::io::Utf8::invalid) next.length = 1;
      characters_.emplace_back(text.substr(i, next.length));
      codes_.push_back(next.code);
      i += next.length;
    }
  }

  std::vector<std::string> words() const {
    std::vector<std::string> out;
    for (std::size_t at = 0; at < codes_.size();) {
      const std::size_t end = at + match(at);
      REQUIRE(end > at);
      out.emplace_back();
      for (; at < end; ++at) out.back() += characters_[at];
    }
    return out;
  }

 private:
  bool is(std::size_t at, CharacterClass kind) const {
    return at < codes_.size() && ttt::io::class_of(codes_[at]) == kind;
  }
  bool letter(std::size_t at) const { return is(at, CharacterClass::Letter); }
  bool number(std::size_t at) const { return is(at, CharacterClass::Number); }
  bool space(std::size_t at) const { return is(at, CharacterClass::Space); }
  bool sign(std::size_t at) const { return is(at, CharacterClass::Other); }
  bool newline(std::size_t at) const {
    return at < codes_.size() && (codes_[at] == '\r' || codes_[at] == '\n');
  }
  std::size_t count(std::size_t at, bool (Literal::*one)(std::size_t) const) const {
    std::size_t n = 0;
    while ((this->*one)(at + n)) ++n;
    return n;
  }

  std::size_t contraction(std::size_t at) const {
    for (const std::string_view wanted : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
      std::size_t n = 0;
      while (n < wanted.size() && at + n < codes_.size()) {
        std::uint32_t code = codes_[at + n];
        if (pattern_ != WordPattern::Gpt2) {
          if (code >= 'A' && code <= 'Z') code += 'a' - 'A';
          if (code == 0x17f) code = 's';
        }
        if (code != static_cast<unsigned char>(wanted[n])) break;
        ++n;
      }
      if (n == wanted.size()) return n;
    }
    return 0;
  }

  /// \s+(?!\S)|\s+
  std::size_t spaces(std::size_t at) const {
    const std::size_t most = count(at, &Literal::space);
    for (std::size_t n = most; n > 0; --n)
      if (at + n == codes_.size() || space(at + n)) return n;
    return most;
  }

  std::size_t match(std::size_t at) const {
    if (const std::size_t n = contraction(at)) return n;
    const std::size_t blank = codes_[at] == ' ' ? 1 : 0;
    if (pattern_ == WordPattern::Gpt2) {
      for (const auto one : {&Literal::letter, &Literal::number, &Literal::sign})
        if (const std::size_t n = count(at + blank, one)) return blank + n;
      return spaces(at);
    }
    if (!newline(at) && !letter(at) && !number(at))
      if (const std::size_t n = count(at + 1, &Literal::letter)) return 1 + n;
    if (const std::size_t n = count(at, &Literal::letter)) return n;
    if (const std::size_t n = count(at, &Literal::number))
      return std::min<std::size_t>(n, pattern_ == WordPattern::Llama3 ? 3 : 1);
    if (const std::size_t n = count(at + blank, &Literal::sign))
      return blank + n + count(at + blank + n, &Literal::newline);
    for (std::size_t n = count(at, &Literal::space) + 1; n-- > 0;)
      if (const std::size_t m = count(at + n, &Literal::newline)) return n + m;
    return spaces(at);
  }

  WordPattern pattern_;
  std::vector<std::string> characters_;
  std::vector<std::uint32_t> codes_;
};

}  // namespace

TEST_CASE("unicode: classes of characters everywhere in the code space") {
  using enum CharacterClass;
  static_assert(ttt::io::class_of('a') == Letter);
  const auto check = [](CharacterClass kind, std::initializer_list<std::uint32_t> codes) {
    for (const std::uint32_t code : codes) {
      CAPTURE(code);
      CHECK(ttt::io::class_of(code) == kind);
    }
  };
  check(Letter, {'A',    'z',    0xaa,    0xb5,   0xe9,    0x2b0,   0x3b1,   0x430,  0x5d0,
                 0x627,  0x905,  0x1100,  0x3042, 0x3400,  0x4dbf,  0x4e00,  0x9fff, 0xac00,
                 0xd7a3, 0xfb01, 0x10000, 0x1c89, 0x20000, 0x2a6df, 0x2fa1d, 0x323af});
  check(Number, {'0', '9', 0xb2, 0xbd, 0x661, 0x967, 0x2160, 0x2460, 0x3007, 0x3021, 0x10107,
                 0x1d7ff, 0x1fbf9});
  check(Space, {' ', '\t', '\n', '\v', '\f', '\r', 0x85, 0xa0, 0x1680, 0x2000, 0x200a, 0x2028,
                0x2029, 0x202f, 0x205f, 0x3000});
  check(Other, {0,      '\'',    '_',     '~',     0x7f,     0x80,     0x300,     0x180e, 0x200b,
                0x20ac, 0x2603,  0x4dc0,  0xd7a4,  0xd800,   0xdfff,   0xe000,    0xfeff, 0xfffd,
                0xffff, 0x1f600, 0x323b0, 0xe0100, 0x10ffff, 0x110000, 0xffffffff});
}

TEST_CASE("words: what the patterns are known for") {
  using Words = std::vector<std::string>;
  CHECK(words(WordPattern::Llama3, "Hello  world's 12345!!\n\n  x") ==
        Words{"Hello", " ", " world", "'s", " ", "123", "45", "!!\n\n", " ", " x"});
  CHECK(words(WordPattern::Qwen, "a 12 (b)") == Words{"a", " ", "1", "2", " (", "b", ")"});
  CHECK(words(WordPattern::Gpt2, "a 12 (b)\n\n c'S") ==
        Words{"a", " 12", " (", "b", ")", "\n\n", " c", "'", "S"});
  CHECK(words(WordPattern::Llama3, "a \n \n  ") == Words{"a", " \n \n", "  "});
  CHECK(words(WordPattern::Llama3, "x'\xc5\xbf") == Words{"x", "'\xc5\xbf"});
  for (const WordPattern pattern : {WordPattern::Gpt2, WordPattern::Llama3, WordPattern::Qwen})
    CHECK(words(pattern, "").empty());
}

TEST_CASE("words: the scanner does what the expressions say") {
  const std::vector<std::string> parts = {" ",
                                          " ",
                                          "\n",
                                          "\r",
                                          "\t",
                                          "\xc2\xa0",
                                          "\xe3\x80\x80",
                                          "\xe2\x80\xa8",
                                          "a",
                                          "\xc3\xa9",
                                          "\xe4\xb8\xad",
                                          "s",
                                          "S",
                                          "\xc5\xbf",
                                          "l",
                                          "L",
                                          "r",
                                          "v",
                                          "e",
                                          "E",
                                          "m",
                                          "d",
                                          "T",
                                          "1",
                                          "\xd9\xa3",
                                          "\xf0\x9d\x9f\x97",
                                          "'",
                                          "'",
                                          "!",
                                          "\xcc\x81",
                                          "\xf0\x9f\x98\x80",
                                          "\xff",
                                          "\xe4\xb8",
                                          "\x80"};
  std::mt19937 random(3);
  for (int round = 0; round < 30000; ++round) {
    std::string text;
    for (auto n = random() % 14; n > 0; --n) text += parts[random() % parts.size()];
    for (const WordPattern pattern : {WordPattern::Gpt2, WordPattern::Llama3, WordPattern::Qwen}) {
      const auto expected = Literal(pattern, text).words();
      if (words(pattern, text) == expected) continue;
      CAPTURE(text);
      CHECK(words(pattern, text) == expected);
    }
  }
}
