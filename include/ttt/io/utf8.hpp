// SPDX-License-Identifier: MIT
/// \file
/// UTF-8 checked, read and written, and names from files made fit for error messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <ttt/version.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// What a text has at some place: a code point, or the beginning of one that is not there whole.
struct Utf8 {
  static constexpr std::uint32_t invalid = 0xffffffff;

  std::uint32_t code;  ///< or `invalid`
  std::size_t length;  ///< bytes of it; of an invalid one those that a code point could begin with
  bool cut = false;    ///< invalid only because the text ends
};

/// Reads the code point at `text[i]`. Overlong forms, surrogates and what lies past U+10FFFF are
/// not valid. An invalid one is as long as what the Unicode standard replaces by one U+FFFD.
constexpr Utf8 read_utf8(std::string_view text, std::size_t i) {
  const auto byte = [text](std::size_t at) { return static_cast<unsigned char>(text[at]); };
  const std::uint32_t lead = byte(i);
  if (lead < 0x80) return {lead, 1};
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if (lead < 0xc2 || lead > 0xf4) return {Utf8::invalid, 1};
  unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  std::uint32_t code = lead & (0x7fu >> length);
  for (std::size_t k = 1; k < length; ++k) {
    if (i + k == text.size()) return {Utf8::invalid, k, true};
    const std::uint32_t next = byte(i + k);
    if (next < low || next > high) return {Utf8::invalid, k};
    code = (code << 6) | (next & 0x3f);
    low = 0x80;
    high = 0xbf;
  }
  return {code, length};
}

/// The offset of the first byte that is not part of valid UTF-8, or text.size().
constexpr std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const Utf8 next = read_utf8(text, i);
    if (next.code == Utf8::invalid) return i;
    i += next.length;
  }
  return text.size();
}

/// Appends a code point, U+0000 to U+10FFFF.
inline void append_utf8(std::string& out, std::uint32_t code) {
  const auto put = [&out](std::uint32_t byte) { out += static_cast<char>(byte); };
  const auto put_tail = [&](unsigned shift) { put(0x80 | ((code >> shift) & 0x3f)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xc0 | (code >> 6));
  } else if (code < 0x10000) {
    put(0xe0 | (code >> 12));
    put_tail(6);
  } else {
    put(0xf0 | (code >> 18));
    put_tail(12);
    put_tail(6);
  }
  put_tail(0);
}

/// The text with U+FFFD in place of what is not valid UTF-8: what a screen can show of it.
inline std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const Utf8 next = read_utf8(text, i);
    if (next.code == Utf8::invalid) {
      out += "\xef\xbf\xbd";
    } else {
      out += text.substr(i, next.length);
    }
    i += next.length;
  }
  return out;
}

}  // namespace io

namespace detail {

/// A name as error messages show it: quoted, harmless and short, whatever the file said.
inline std::string quoted(std::string_view name) {
  constexpr std::size_t most = 100;
  std::string result = "\"";
  for (const char c : name.substr(0, most)) result += c >= ' ' && c <= '~' ? c : '?';
  return result + (name.size() > most ? "...\"" : "\"");
}

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
