// SPDX-License-Identifier: MIT
/// \file
/// Cuts a text into the words that byte pairs are merged in, as the patterns of GPT-2, Llama-3 and
/// Qwen do.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <ttt/io/unicode.hpp>
#include <ttt/io/utf8.hpp>
#include <ttt/version.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// How a text is cut into words. Those of Llama-3 and Qwen differ in how many digits make a word:
/// up to three, and one. Llama-3's is also that of tiktoken's cl100k_base.
enum class WordPattern : std::uint8_t { Gpt2, Llama3, Qwen };

/// The regular expression that files state the pattern by.
constexpr std::string_view regular_expression(WordPattern pattern) {
  switch (pattern) {
    case WordPattern::Gpt2:
      return R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
    case WordPattern::Llama3:
      return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
             R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    case WordPattern::Qwen:
      return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
             R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  }
  return {};
}

/// Gives the words of a text one after the other; together they are the text.
///
/// Does what the regular expression says, in time linear in the text. A byte that is not valid
/// UTF-8 counts as a character that is neither letter, number nor space.
class WordScanner {
 public:
  WordScanner(WordPattern pattern, std::string_view text) : text_(text), pattern_(pattern) {}

  /// The next word; empty at the end of the text.
  std::string_view next() {
    if (at_ == text_.size()) return {};
    const std::size_t begin = at_;
    at_ = pattern_ == WordPattern::Gpt2 ? gpt2(begin) : llama(begin);
    return text_.substr(begin, at_ - begin);
  }

 private:
  /// A character and where the one after it begins. At the end of the text it is no character.
  struct Seen {
    CharacterClass kind;
    bool there;
    std::size_t end;

    bool is(CharacterClass wanted) const { return there && kind == wanted; }
  };

  static constexpr std::array<CharacterClass, 128> ascii = [] {
    std::array<CharacterClass, 128> classes{};
    for (std::uint32_t code = 0; code < 128; ++code) classes[code] = class_of(code);
    return classes;
  }();

  Seen look(std::size_t at) const {
    if (at >= text_.size()) return {CharacterClass::Other, false, at};
    const auto byte = static_cast<unsigned char>(text_[at]);
    if (byte < 128) return {ascii[byte], true, at + 1};
    const Utf8 read = read_utf8(text_, at);
    if (read.code == Utf8::invalid) return {CharacterClass::Other, true, at + 1};
    return {class_of(read.code), true, at + read.length};
  }

  bool is_newline(std::size_t at) const {
    return at < text_.size() && (text_[at] == '\n' || text_[at] == '\r');
  }

  /// Where characters of that class end.
  std::size_t skip(std::size_t at, CharacterClass kind) const {
    for (Seen seen = look(at); seen.is(kind); seen = look(at)) {
      at = seen.end;
      while (at < text_.size() && static_cast<unsigned char>(text_[at]) < 128 &&
             ascii[static_cast<unsigned char>(text_[at])] == kind)
        ++at;
    }
    return at;
  }

  /// Where 's, 't, 're, 've, 'm, 'll or 'd ends whose quote is before `at`; `at` if there is none.
  std::size_t contraction(std::size_t at, bool any_case) const {
    const auto letter = [&](std::size_t i) {
      const char c = i < text_.size() ? text_[i] : '\0';
      return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    const char first = letter(at), second = letter(at + 1);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 1;
    if (second == 'e' && (first == 'r' || first == 'v')) return at + 2;
    if (first == 'l' && second == 'l') return at + 2;
    // The long s is another case of s.
    if (any_case && text_.substr(at).starts_with("\xc5\xbf")) return at + 2;
    return at;
  }

  std::size_t gpt2(std::size_t begin) const {
    if (text_[begin] == '\'')
      if (const std::size_t end = contraction(begin + 1, false); end != begin + 1) return end;
    const std::size_t after_space = begin + (text_[begin] == ' ');
    const Seen first = look(after_space);
    if (first.there && first.kind != CharacterClass::Space) return skip(first.end, first.kind);
    return spaces(begin);
  }

  std::size_t llama(std::size_t begin) const {
    if (text_[begin] == '\'')
      if (const std::size_t end = contraction(begin + 1, true); end != begin + 1) return end;
    const Seen first = look(begin);
    if (first.is(CharacterClass::Letter)) return skip(first.end, CharacterClass::Letter);
    if (first.is(CharacterClass::Number)) return digits(first.end);
    const Seen second = look(first.end);
    if (!is_newline(begin) && second.is(CharacterClass::Letter))
      return skip(second.end, CharacterClass::Letter);
    const bool space = text_[begin] == ' ';
    if (const Seen sign = space ? second : first; sign.is(CharacterClass::Other)) {
      std::size_t end = skip(sign.end, CharacterClass::Other);
      while (is_newline(end)) ++end;
      return end;
    }
    return lines(begin);
  }

  /// \p{N}{1,3} or \p{N}, after the first.
  std::size_t digits(std::size_t at) const {
    const int more = pattern_ == WordPattern::Llama3 ? 2 : 0;
    for (int i = 0; i < more; ++i) {
      const Seen seen = look(at);
      if (!seen.is(CharacterClass::Number)) break;
      at = seen.end;
    }
    return at;
  }

  /// \s*[\r\n]+ or else spaces().
  std::size_t lines(std::size_t begin) const {
    const std::size_t end = skip(begin, CharacterClass::Space);
    for (std::size_t at = end; at > begin; --at)
      if (is_newline(at - 1)) return at;
    return spaces_to(begin, end);
  }

  /// \s+(?!\S) or else \s+: all of them, but the last is left to a word that follows.
  std::size_t spaces(std::size_t begin) const {
    return spaces_to(begin, skip(begin, CharacterClass::Space));
  }
  std::size_t spaces_to(std::size_t begin, std::size_t end) const {
    if (end == text_.size()) return end;
    std::size_t last = end - 1;
    while ((static_cast<unsigned char>(text_[last]) & 0xc0u) == 0x80u) --last;
    return last == begin ? end : last;
  }

  std::string_view text_;
  WordPattern pattern_;
  std::size_t at_ = 0;
};

}  // namespace io
}  // namespace ttt::inline TTT_ABI
