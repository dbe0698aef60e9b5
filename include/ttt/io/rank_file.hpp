// SPDX-License-Identifier: MIT
/// \file
/// Reads rank files, tiktoken's format: a line has a token in base64, a space and its id.
#pragma once

#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>
#include <ttt/io/bpe_tokenizer.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// What a rank file does not say.
struct RankFileOptions {
  std::optional<WordPattern> pattern = {};                  ///< must be given
  std::vector<std::pair<std::string, Token>> special = {};  ///< special tokens with their ids
  std::vector<Token> before = {};                           ///< put before a text: BOS
  bool nfc = false;  ///< bring texts into normal form first, as Qwen does
};

}  // namespace io

namespace detail {

/// The bytes that base64 (RFC 4648, padded) stands for, or nothing.
inline std::optional<std::string> decode_base64(std::string_view text) {
  static constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  static constexpr std::array<std::int8_t, 256> values = [] {
    std::array<std::int8_t, 256> made{};
    made.fill(-1);
    for (std::size_t i = 0; i < 64; ++i)
      made[static_cast<unsigned char>(digits[i])] = static_cast<std::int8_t>(i);
    return made;
  }();
  if (text.size() % 4 != 0) return std::nullopt;
  std::size_t padding = 0;
  while (padding < 2 && text.ends_with('=')) {
    text.remove_suffix(1);
    ++padding;
  }
  std::string bytes;
  std::uint32_t bits = 0;
  unsigned count = 0;
  for (const char c : text) {
    const int value = values[static_cast<unsigned char>(c)];
    if (value < 0) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xff);
  }
  return (bits & ((1u << count) - 1)) == 0 ? std::optional(std::move(bytes)) : std::nullopt;
}

/// Every way to cut a token into two, which is what tiktoken merges by: the rank of two parts is
/// the id of what they make.
inline std::vector<io::Merge> merges_of(const std::vector<io::VocabularyEntry>& vocabulary,
                                        std::string_view what) {
  // Several times what the largest vocabularies in use have.
  constexpr std::size_t most = std::size_t{1} << 22;
  StringIndex index(vocabulary.size());
  for (std::size_t i = 0; i < vocabulary.size(); ++i)
    if (vocabulary[i].mergeable && !index.insert(vocabulary[i].bytes, static_cast<Token>(i), what))
      fail<FormatError>(std::string(what) + ": two tokens have the bytes " +
                        detail::quoted(vocabulary[i].bytes));
  std::vector<io::Merge> merges;
  for (std::size_t i = 0; i < vocabulary.size(); ++i) {
    if (!vocabulary[i].mergeable) continue;
    const std::string_view whole = vocabulary[i].bytes;
    for (std::size_t cut = 1; cut < whole.size(); ++cut) {
      const Token left = index.find(whole.substr(0, cut));
      const Token right = left < 0 ? -1 : index.find(whole.substr(cut));
      if (right < 0) continue;
      if (merges.size() == most)
        fail<FormatError>(std::string(what) + ": its tokens can be cut into tokens in more than " +
                          std::to_string(most) + " ways");
      merges.push_back({left, right, static_cast<Token>(i), static_cast<std::uint32_t>(i)});
    }
  }
  return merges;
}

}  // namespace detail

namespace io {

/// The tokenizer of a rank file. Throws FormatError, opening with `what`, if the text is damaged,
/// and if the options do not go with it.
inline BpeTokenizer parse_rank_file(std::string_view text, const RankFileOptions& options,
                                    std::string_view what = "rank file") {
  // As tokens are cut at every byte. The longest in use have 128.
  constexpr std::size_t max_token_bytes = 512;
  std::size_t line_number = 0;
  const auto reject = [&](const std::string& why) {
    detail::fail<FormatError>(std::string(what) + ": line " + std::to_string(line_number) + ": " +
                              why);
  };
  if (!options.pattern)
    detail::fail(std::string(what) +
                 ": a rank file does not say how texts are cut into words; give a pattern");
  BpeParts parts;
  parts.pattern = *options.pattern;
  parts.nfc = options.nfc;
  parts.whole_words = true;
  const auto place = [&](std::int64_t id) -> VocabularyEntry& {
    if (id < 0 || id >= max_vocabulary)
      reject("the id " + std::to_string(id) + ", expected 0 to " +
             std::to_string(max_vocabulary - 1));
    const auto at = static_cast<std::size_t>(id);
    if (at >= parts.vocabulary.size()) parts.vocabulary.resize(at + 1);
    if (parts.vocabulary[at].known) reject("the id " + std::to_string(id) + " occurs twice");
    return parts.vocabulary[at];
  };
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
    ++line_number;
    if (line.empty()) continue;
    const std::size_t space = line.find(' ');
    const std::string_view digits = space == line.npos ? "" : line.substr(space + 1);
    std::int64_t id = 0;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), id);
    if (error != std::errc() || stop != digits.data() + digits.size())
      reject("expected a token in base64, a space and an id, found " + detail::quoted(line));
    std::optional<std::string> bytes = detail::decode_base64(line.substr(0, space));
    if (!bytes || bytes->empty()) reject(detail::quoted(line.substr(0, space)) + " is not base64");
    if (bytes->size() > max_token_bytes)
      reject("a token of " + std::to_string(bytes->size()) + " bytes, expected at most " +
             std::to_string(max_token_bytes));
    place(id) = {.bytes = std::move(*bytes), .known = true, .mergeable = true};
  }
  line_number = 0;
  for (const auto& [name, id] : options.special) {
    if (id >= 0 && id < static_cast<Index>(parts.vocabulary.size()) &&
        parts.vocabulary[static_cast<std::size_t>(id)].known)
      detail::fail(std::string(what) + ": the special token " + detail::quoted(name) +
                   " has the id " + std::to_string(id) + ", which another token has too");
    place(id) = {.bytes = name, .known = true, .special = true};
    parts.exact.push_back({name, id, true});
  }
  parts.before = options.before;
  parts.merges = detail::merges_of(parts.vocabulary, what);
  return BpeTokenizer(std::move(parts), what);
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
