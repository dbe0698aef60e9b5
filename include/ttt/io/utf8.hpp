// SPDX-License-Identifier: MIT
/// \file
/// UTF-8 checked and written, and names from files made fit for error messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <ttt/version.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// The offset of the first byte that is not part of valid UTF-8, or text.size(). Overlong forms,
/// surrogates and what lies past U+10FFFF are not valid.
constexpr std::size_t find_invalid_utf8(std::string_view text) {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  for (std::size_t i = 0; i < text.size();) {
    const unsigned lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (lead < 0xc2 || lead > 0xf4 || text.size() - i < length) return i;
    const unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (byte(i + 1) < low || byte(i + 1) > high) return i;
    for (std::size_t k = 2; k < length; ++k)
      if ((byte(i + k) & 0xc0u) != 0x80u) return i;
    i += length;
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
