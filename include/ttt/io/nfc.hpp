// SPDX-License-Identifier: MIT
/// \file
/// The composed normal form of Unicode texts, NFC, which Qwen's tokenizer begins with.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include <ttt/io/nfc_tables.hpp>
#include <ttt/io/unicode.hpp>
#include <ttt/io/utf8.hpp>
#include <ttt/version.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

inline constexpr auto nfc_index = index_runs<9>(nfc_runs);

/// What normal form knows of a character; all zero for those that it leaves alone wherever they
/// are.
struct NfcProperties {
  std::uint32_t bits = 0;

  bool inert() const { return bits == 0; }
  std::uint32_t combining_class() const { return bits >> 1; }
  /// Whether it may have to change: decompose, or compose with what is before it.
  bool may_change() const { return (bits & 1) != 0; }
};

constexpr NfcProperties nfc_properties(std::uint32_t code) {
  return {code > 0x10ffff ? 0 : find_run<9>(nfc_runs, nfc_index, code)};
}

/// Hangul syllables, in which lead, vowel and tail are digits.
struct Hangul {
  static constexpr std::uint32_t syllables = 0xac00, leads = 0x1100, vowels = 0x1161,
                                 tails = 0x11a7;
  static constexpr std::uint32_t lead_count = 19, vowel_count = 21, tail_count = 28;
  static constexpr std::uint32_t count = lead_count * vowel_count * tail_count;
};

/// The character that the two compose into, or 0.
inline std::uint32_t compose(std::uint32_t first, std::uint32_t second) {
  using H = Hangul;
  if (first - H::leads < H::lead_count && second - H::vowels < H::vowel_count)
    return H::syllables +
           ((first - H::leads) * H::vowel_count + second - H::vowels) * H::tail_count;
  // The first of the tails stands for none.
  if (first - H::syllables < H::count && (first - H::syllables) % H::tail_count == 0 &&
      second - H::tails - 1 < H::tail_count - 1)
    return first + second - H::tails;
  const auto key = [](std::uint32_t a, std::uint32_t b) { return std::uint64_t{a} << 32 | b; };
  const auto found =
      std::lower_bound(std::begin(compositions), std::end(compositions), key(first, second),
                       [&](std::uint16_t at, std::uint64_t wanted) {
                         return key(decompositions[at].first, decompositions[at].second) < wanted;
                       });
  if (found == std::end(compositions)) return 0;
  const Decomposition& whole = decompositions[*found];
  return whole.first == first && whole.second == second ? whole.code : 0;
}

/// Brings pieces of text into normal form. Keeps its memory from piece to piece.
class NfcComposer {
 public:
  /// Appends the normal form of a piece, which is valid UTF-8.
  void append(std::string_view piece, std::string& out) {
    characters_.clear();
    for (std::size_t i = 0; i < piece.size();) {
      const io::Utf8 next = io::read_utf8(piece, i);
      decompose(next.code);
      i += next.length;
    }
    sort_marks();
    recompose();
    for (const Character& c : characters_) io::append_utf8(out, c.code);
  }

 private:
  struct Character {
    std::uint32_t code, combining_class;
  };

  void put(std::uint32_t code) {
    characters_.push_back({code, nfc_properties(code).combining_class()});
  }

  void decompose(std::uint32_t code) {
    using H = Hangul;
    if (const std::uint32_t syllable = code - H::syllables; syllable < H::count) {
      put(H::leads + syllable / H::tail_count / H::vowel_count);
      put(H::vowels + syllable / H::tail_count % H::vowel_count);
      if (syllable % H::tail_count != 0) put(H::tails + syllable % H::tail_count);
      return;
    }
    const auto found = std::lower_bound(
        std::begin(decompositions), std::end(decompositions), code,
        [](const Decomposition& d, std::uint32_t wanted) { return d.code < wanted; });
    if (found == std::end(decompositions) || found->code != code) return put(code);
    decompose(found->first);
    if (found->second != 0) put(found->second);  // seconds do not decompose
  }

  /// Marks that follow each other go by their class; those of one class keep their order.
  void sort_marks() {
    const auto starts = [](const Character& c) { return c.combining_class == 0; };
    const auto lower = [](const Character& a, const Character& b) {
      return a.combining_class < b.combining_class;
    };
    for (auto begin = characters_.begin(); begin != characters_.end();) {
      begin = std::find_if_not(begin, characters_.end(), starts);
      const auto end = std::find_if(begin, characters_.end(), starts);
      if (!std::is_sorted(begin, end, lower)) std::stable_sort(begin, end, lower);
      begin = end;
    }
  }

  /// Each character joins the last starter before it, unless one that stayed between them has its
  /// class or a higher one.
  void recompose() {
    std::size_t kept = 0, starter = 0;
    bool any = false;  // whether there is a starter
    for (const Character c : characters_) {
      const bool adjacent = starter + 1 == kept;
      if (any && (adjacent || characters_[kept - 1].combining_class < c.combining_class)) {
        if (const std::uint32_t whole = compose(characters_[starter].code, c.code); whole != 0) {
          characters_[starter].code = whole;
          continue;
        }
      }
      if (c.combining_class == 0) {
        starter = kept;
        any = true;
      }
      characters_[kept++] = c;
    }
    characters_.resize(kept);
  }

  std::vector<Character> characters_;
};

}  // namespace detail

namespace io {

/// The text in NFC as of Unicode 9.0.0 (characters that are younger stay as they are): `text`
/// itself where a look at each character finds nothing that could change, else `buffer` with the
/// result.
///
/// A byte that is not valid UTF-8 stays, and nothing composes across it. O(n log n) at worst, in
/// memory of a few times the longest run of combining marks.
inline std::string_view to_nfc(std::string_view text, std::string& buffer) {
  buffer.clear();
  detail::NfcComposer composer;
  std::size_t copied = 0;    // what is before is in the buffer
  std::size_t boundary = 0;  // the last character that those to come may join
  for (std::size_t i = 0; i < text.size();) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      boundary = i++;
      continue;
    }
    Utf8 next = read_utf8(text, i);
    detail::NfcProperties found = detail::nfc_properties(next.code);
    if (found.inert()) {
      boundary = next.code == Utf8::invalid ? i + next.length : i;
      i += next.length;
      continue;
    }
    bool work = false;
    for (std::uint32_t last = 0; !found.inert();) {
      const std::uint32_t mark = found.combining_class();
      work = work || found.may_change() || (mark != 0 && mark < last);
      last = mark;
      i += next.length;
      if (i == text.size()) break;
      next = read_utf8(text, i);
      found = detail::nfc_properties(next.code);
    }
    if (!work) continue;
    buffer += text.substr(copied, boundary - copied);
    composer.append(text.substr(boundary, i - boundary), buffer);
    copied = i;
  }
  if (copied == 0) return text;
  buffer += text.substr(copied);
  return buffer;
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
