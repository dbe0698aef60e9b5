// SPDX-License-Identifier: MIT
/// \file
/// Finds the tokens that are taken out of a text before it is cut into words, special ones above
/// all.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>
#include <ttt/io/utf8.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// A token that stands in texts as it is written.
struct AddedToken {
  static constexpr std::size_t max_bytes = 1024;

  std::string text;
  Token id = -1;
  bool special = false;
};

}  // namespace io

namespace detail {

/// Looks for any of several tokens at once, in time linear in the text but for false starts.
class AddedTokens {
 public:
  AddedTokens() = default;

  /// Throws FormatError, opening with `what`, if a token is empty, too long or there twice.
  AddedTokens(std::vector<io::AddedToken> tokens, std::string_view what)
      : tokens_(std::move(tokens)) {
    std::sort(tokens_.begin(), tokens_.end(),
              [](const io::AddedToken& a, const io::AddedToken& b) { return a.text < b.text; });
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      const std::string& text = tokens_[i].text;
      if (text.empty() || text.size() > io::AddedToken::max_bytes)
        fail<FormatError>(std::string(what) + ": the added token " + detail::quoted(text) +
                          " has " + std::to_string(text.size()) + " bytes, expected 1 to " +
                          std::to_string(io::AddedToken::max_bytes));
      if (i > 0 && tokens_[i - 1].text == text)
        fail<FormatError>(std::string(what) + ": the added token " + detail::quoted(text) +
                          " occurs twice");
      Range& range = by_first_[static_cast<unsigned char>(text[0])];
      if (range.begin == range.end) range.begin = i;
      range.end = i + 1;
    }
  }

  bool empty() const { return tokens_.empty(); }

  /// The id of the token that is written so, or -1.
  Token find(std::string_view text) const {
    const io::AddedToken* const found = text.empty() ? nullptr : longest(text);
    return found != nullptr && found->text.size() == text.size() ? found->id : -1;
  }

  /// Calls text(piece) and token(id) for what a text consists of, in order. At each place the
  /// longest token counts. Special ones are left in the pieces unless `special` is true.
  void split(std::string_view text, bool special, auto&& on_text, auto&& on_token) const {
    std::size_t begin = 0;
    for (std::size_t at = empty() ? text.size() : 0; at < text.size();) {
      const Range& range = by_first_[static_cast<unsigned char>(text[at])];
      const io::AddedToken* const found =
          range.begin == range.end ? nullptr : longest(text.substr(at));
      if (found == nullptr) {
        ++at;
        continue;
      }
      const std::size_t end = at + found->text.size();
      if (special || !found->special) {
        if (at > begin) on_text(text.substr(begin, at - begin));
        on_token(found->id);
        begin = end;
      }
      at = end;
    }
    if (begin < text.size()) on_text(text.substr(begin));
  }

 private:
  struct Range {
    std::size_t begin = 0, end = 0;
  };

  /// The longest token that the text begins with, or nullptr. Narrows the range of those that have
  /// the first bytes in common with it.
  const io::AddedToken* longest(std::string_view text) const {
    auto [begin, end] = by_first_[static_cast<unsigned char>(text[0])];
    const io::AddedToken* found = nullptr;
    for (std::size_t depth = 1; begin < end; ++depth) {
      if (tokens_[begin].text.size() == depth) found = &tokens_[begin++];
      if (depth == text.size()) break;
      const auto wanted = static_cast<unsigned char>(text[depth]);
      const auto byte = [depth](const io::AddedToken& token) {
        return static_cast<unsigned char>(token.text[depth]);
      };
      const auto first = tokens_.begin() + static_cast<Index>(begin);
      const auto last = tokens_.begin() + static_cast<Index>(end);
      const auto low =
          std::partition_point(first, last, [&](const auto& t) { return byte(t) < wanted; });
      const auto high =
          std::partition_point(low, last, [&](const auto& t) { return byte(t) == wanted; });
      begin = static_cast<std::size_t>(low - tokens_.begin());
      end = static_cast<std::size_t>(high - tokens_.begin());
    }
    return found;
  }

  std::vector<io::AddedToken> tokens_;  // by text
  std::array<Range, 256> by_first_{};
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
