// SPDX-License-Identifier: MIT
/// \file
/// The tokenizer of models that read bytes.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// Every byte is a token, 0 to 255. Any text goes in, UTF-8 or not, and comes back as it was.
class ByteTokenizer {
 public:
  static constexpr Index vocabulary = 256;

  std::vector<Token> encode(std::string_view text) const {
    std::vector<Token> tokens(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) tokens[i] = static_cast<unsigned char>(text[i]);
    return tokens;
  }

  /// Throws Error if a token is not a byte.
  std::string decode(std::span<const Token> tokens) const {
    std::string text(tokens.size(), '\0');
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] < 0 || tokens[i] >= vocabulary)
        detail::fail("byte tokenizer: token " + std::to_string(tokens[i]) + " at position " +
                     std::to_string(i) + " is not a byte, expected 0 to 255");
      text[i] = static_cast<char>(tokens[i]);
    }
    return text;
  }
};

}  // namespace io
}  // namespace ttt::inline TTT_ABI
