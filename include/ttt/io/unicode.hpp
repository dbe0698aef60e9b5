// SPDX-License-Identifier: MIT
/// \file
/// The classes of characters that tokenizers' patterns speak of.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>

#include <ttt/io/unicode_tables.hpp>
#include <ttt/version.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// For every 256 code points, which entry of a table of runs holds at the first of them, counted
/// from one: 0 is before the table. A search starts there.
template <unsigned Shift, std::size_t Count>
constexpr std::array<std::uint16_t, 0x1101> index_runs(const std::uint32_t (&runs)[Count]) {
  static_assert(Count < 0x10000);
  std::array<std::uint16_t, 0x1101> index{};
  std::size_t entry = 0;
  for (std::size_t page = 0; page < index.size(); ++page) {
    while (entry < Count && runs[entry] >> Shift <= page << 8) ++entry;
    index[page] = static_cast<std::uint16_t>(entry);
  }
  return index;
}

/// What the run says that a code point, U+0000 to U+10FFFF, is in.
template <unsigned Shift, std::size_t Count>
constexpr std::uint32_t find_run(const std::uint32_t (&runs)[Count],
                                 const std::array<std::uint16_t, 0x1101>& index,
                                 std::uint32_t code) {
  const std::uint32_t* first = runs + index[code >> 8];
  const std::uint32_t* const last = runs + index[(code >> 8) + 1];
  const std::uint32_t most = code << Shift | ((1u << Shift) - 1);
  first = std::upper_bound(first, last, most);
  return first == runs ? 0 : first[-1] & ((1u << Shift) - 1);
}

inline constexpr auto class_index = index_runs<2>(class_runs);

}  // namespace detail

namespace io {

/// Of a character: category L, category N, White_Space, or none of them.
enum class CharacterClass : std::uint8_t { Other, Letter, Number, Space };

/// The class of a code point in Unicode 16.0.0. What is past U+10FFFF is Other.
constexpr CharacterClass class_of(std::uint32_t code) {
  if (code > 0x10ffff) return CharacterClass::Other;
  return static_cast<CharacterClass>(
      detail::find_run<2>(detail::class_runs, detail::class_index, code));
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
