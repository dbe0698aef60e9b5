// SPDX-License-Identifier: MIT
/// \file
/// What a tokenizer's files say of tokens: their bytes, how files spell bytes, and finding a token
/// by its bytes.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>
#include <ttt/io/utf8.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// One more than the largest id that a file may give to a token.
inline constexpr std::int64_t max_vocabulary = std::int64_t{1} << 20;

/// One element of a vocabulary.
struct VocabularyEntry {
  std::string bytes;       ///< what it decodes to
  bool known = false;      ///< false where ids have a hole
  bool mergeable = false;  ///< byte pairs may become it, and a word may be it
  bool special = false;    ///< a mark of the format, which no text should contain
  std::optional<unsigned char> fallback = {};  ///< the byte that it stands for, spelled <0x0A>
};

}  // namespace io

namespace detail {

/// The next step of a hash: good enough for tables that count their collisions.
constexpr std::uint64_t mix(std::uint64_t hash, std::uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15;
  return hash ^ (hash >> 29);
}

/// How far from its place a key may lie in a table that is at most half full. By chance none comes
/// near it; a file made to slow us down is refused.
inline constexpr std::size_t most_probes = 256;

inline std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = text.size();
  std::uint64_t word = 0;
  for (; text.size() > sizeof word; text.remove_prefix(sizeof word)) {
    std::memcpy(&word, text.data(), sizeof word);
    hash = mix(hash, word);
  }
  word = 0;
  for (const char c : text) word = word << 8 | static_cast<unsigned char>(c);
  return mix(mix(hash, word), 0);
}

/// Finds numbers by strings, which live elsewhere.
class StringIndex {
 public:
  /// Room for that many.
  explicit StringIndex(std::size_t count = 0) : slots_(std::bit_ceil(2 * count + 1)) {}

  /// False if the string is there already. Throws FormatError, opening with `what`, if too many
  /// strings collide.
  bool insert(std::string_view text, Token number, std::string_view what) {
    const std::uint64_t hash = hash_of(text);
    std::size_t at = hash & (slots_.size() - 1);
    for (std::size_t probes = 0; slots_[at].text.data() != nullptr; ++probes) {
      if (slots_[at].text == text) return false;
      if (probes == most_probes)
        fail<FormatError>(std::string(what) + ": its strings are made to collide, near " +
                          detail::quoted(text));
      at = (at + 1) & (slots_.size() - 1);
    }
    slots_[at] = {text, static_cast<std::uint32_t>(hash >> 32), number};
    longest_ = text.size() > longest_ ? text.size() : longest_;
    return true;
  }

  /// The number of the string, or -1.
  Token find(std::string_view text) const {
    if (text.size() > longest_) return -1;
    const std::uint64_t hash = hash_of(text);
    std::size_t at = hash & (slots_.size() - 1);
    for (; slots_[at].text.data() != nullptr; at = (at + 1) & (slots_.size() - 1))
      if (slots_[at].tag == static_cast<std::uint32_t>(hash >> 32) && slots_[at].text == text)
        return slots_[at].number;
    return -1;
  }

 private:
  struct Slot {
    std::string_view text;
    std::uint32_t tag = 0;
    Token number = -1;
  };
  std::vector<Slot> slots_;
  std::size_t longest_ = 0;
};

/// How GPT-2 and its heirs spell bytes in JSON: what prints as itself, the others as the code
/// points from U+0100 on.
inline constexpr std::array<std::uint16_t, 256> byte_spelling = [] {
  std::array<std::uint16_t, 256> codes{};
  std::uint16_t other = 256;
  for (std::uint16_t b = 0; b < 256; ++b)
    codes[b] = (b >= '!' && b <= '~') || (b >= 0xa1 && b != 0xad) ? b : other++;
  return codes;
}();

/// The bytes that code points spell, or -1.
inline constexpr std::array<std::int16_t, 256 + 68> spelled_byte = [] {
  std::array<std::int16_t, 256 + 68> bytes{};
  bytes.fill(-1);
  for (std::size_t b = 0; b < 256; ++b) bytes[byte_spelling[b]] = static_cast<std::int16_t>(b);
  return bytes;
}();

/// The bytes that a token spells; nothing if one of its characters spells no byte.
inline std::optional<std::string> read_spelling(std::string_view spelled) {
  std::string bytes;
  for (std::size_t i = 0; i < spelled.size();) {
    const io::Utf8 next = io::read_utf8(spelled, i);
    if (next.code >= spelled_byte.size() || spelled_byte[next.code] < 0) return std::nullopt;
    bytes += static_cast<char>(spelled_byte[next.code]);
    i += next.length;
  }
  return bytes;
}

/// How a byte that has no token of its own is spelled: <0x0A>.
inline std::string spell_fallback(unsigned char byte) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  return {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
}

/// The byte that is spelled so, in digits of either case.
inline std::optional<unsigned char> read_fallback(std::string_view spelled) {
  std::string upper(spelled.size() == 6 ? spelled : "");
  for (std::size_t i = 3; i < upper.size(); ++i)
    if (upper[i] >= 'a' && upper[i] <= 'f') upper[i] = static_cast<char>(upper[i] - 'a' + 'A');
  for (unsigned byte = 0; byte < 256 && !upper.empty(); ++byte)
    if (upper == spell_fallback(static_cast<unsigned char>(byte)))
      return static_cast<unsigned char>(byte);
  return std::nullopt;
}

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
