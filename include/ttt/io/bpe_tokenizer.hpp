// SPDX-License-Identifier: MIT
/// \file
/// The tokenizer of models such as Llama-3 and Qwen: byte pairs merged in words.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>
#include <ttt/io/added_tokens.hpp>
#include <ttt/io/byte_pairs.hpp>
#include <ttt/io/nfc.hpp>
#include <ttt/io/utf8.hpp>
#include <ttt/io/vocabulary.hpp>
#include <ttt/io/word_cache.hpp>
#include <ttt/io/words.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// What a BpeTokenizer is made of. Files are read into it; fill it in to make one of your own.
struct BpeParts {
  std::vector<VocabularyEntry> vocabulary;  ///< by id
  std::vector<Merge> merges;
  WordPattern pattern = WordPattern::Llama3;
  bool nfc = false;               ///< texts are brought into normal form first
  bool whole_words = false;       ///< a word that is in the vocabulary is that token, merges or not
  bool encodes_fallback = false;  ///< a byte without a token is spelled as in tokenizer.json, and
                                  ///< the bytes of that character become <0xC4> and the like
  bool decodes_fallback = false;       ///< and these are put together again
  std::vector<AddedToken> exact;       ///< looked for in the text as it comes
  std::vector<AddedToken> normalized;  ///< looked for in normal form, in what is between those
  std::vector<Token> before, after;    ///< what is put round a text
};

/// Both on is what Hugging Face does unless told otherwise.
struct EncodeOptions {
  bool add_special = true;    ///< put round the text what the file says: Llama-3's BOS before it
  bool parse_special = true;  ///< take "<|eot_id|>" in the text for that token; off for text that
                              ///< nobody vouches for
};

struct DecodeOptions {
  bool skip_special = true;  ///< leave special tokens out
};

/// Byte-level byte-pair encoding: every byte of a text becomes part of some token, so any text goes
/// in, UTF-8 or not, and comes back as it was, unless the file wants it in normal form.
///
/// Immutable: share it between threads, copies are cheap. load_tokenizer() makes one of a file.
class BpeTokenizer {
 public:
  /// Throws FormatError, opening with `what`, if the parts do not belong together.
  explicit BpeTokenizer(BpeParts parts, std::string_view what = "tokenizer")
      : data_(std::make_shared<const Data>(std::move(parts), what)) {}

  /// One more than the largest id. A model may have more rows: they belong to no token.
  Index vocabulary() const { return static_cast<Index>(data_->parts.vocabulary.size()); }

  /// The tokens of a text, in time O(n log n). A byte that is not valid UTF-8 counts as a character
  /// of its own, neither letter nor space.
  std::vector<Token> encode(std::string_view text, const EncodeOptions& options = {}) const {
    std::vector<Token> out;
    out.reserve(text.size() / 3 + 8);
    if (options.add_special) out = data_->parts.before;
    Encoder(*data_, text.size(), out).encode(text, options.parse_special);
    if (options.add_special)
      out.insert(out.end(), data_->parts.after.begin(), data_->parts.after.end());
    return out;
  }

  /// The text of tokens: their bytes, which need not be valid UTF-8 when tokens were cut off or
  /// generated; replace_invalid_utf8() makes of it what Hugging Face's decode() gives. Throws Error
  /// if a token is not in the vocabulary.
  std::string decode(std::span<const Token> tokens, const DecodeOptions& options = {}) const {
    std::string text, run;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (!has(tokens[i]))
        detail::fail("tokenizer: token " + std::to_string(tokens[i]) + " at position " +
                     std::to_string(i) + " is not in the vocabulary of " +
                     std::to_string(vocabulary()));
      append(tokens[i], options, run, text);
    }
    end_run(run, text);
    return text;
  }

  /// Whether the id belongs to a token.
  bool has(Token token) const { return token >= 0 && token < vocabulary() && entry(token).known; }

  /// Whether the id belongs to a special token.
  bool is_special(Token token) const { return has(token) && entry(token).special; }

  /// The token that is written so, such as "<|eot_id|>", if there is one: an added token, or one
  /// whose bytes these are.
  std::optional<Token> find(std::string_view text) const {
    Token found = data_->exact.find(text);
    if (found < 0) found = data_->normalized.find(text);
    if (found < 0) found = data_->words.find(text);
    return found < 0 ? std::nullopt : std::optional(found);
  }

 private:
  friend class StreamDecoder;

  struct Data {
    Data(BpeParts given, std::string_view what)
        : parts(std::move(given)),
          pairs(check_starts(parts, what), parts.merges, what),
          words(parts.vocabulary.size()),
          exact(parts.exact, what),
          normalized(parts.normalized, what) {
      parts.merges = {};
      for (std::size_t i = 0; i < parts.vocabulary.size(); ++i) {
        const VocabularyEntry& entry = parts.vocabulary[i];
        if (entry.mergeable && !words.insert(entry.bytes, static_cast<Token>(i), what))
          detail::fail<FormatError>(std::string(what) + ": two tokens have the bytes " +
                                    detail::quoted(entry.bytes));
      }
    }

    /// Also looks at whatever else could lead out of the vocabulary.
    static detail::BytePairs::Starts check_starts(const BpeParts& parts, std::string_view what);

    BpeParts parts;
    detail::BytePairs pairs;
    detail::StringIndex words;
    detail::AddedTokens exact, normalized;
  };

  /// One call of encode().
  class Encoder {
   public:
    Encoder(const Data& data, std::size_t size, std::vector<Token>& out)
        : data_(data), out_(out), cache_(size) {}

    void encode(std::string_view text, bool special) {
      const auto token = [this](Token id) { out_.push_back(id); };
      const auto words = [this](std::string_view piece) { encode_words(piece); };
      data_.exact.split(
          text, special,
          [&](std::string_view piece) {
            if (data_.parts.nfc) piece = to_nfc(piece, buffer_);
            data_.normalized.split(piece, special, words, token);
          },
          token);
    }

   private:
    void encode_words(std::string_view text) {
      WordScanner words(data_.parts.pattern, text);
      for (std::string_view word = words.next(); !word.empty(); word = words.next())
        cache_.append(word, out_, [&] {
          const Token whole = data_.parts.whole_words ? data_.words.find(word) : -1;
          if (whole >= 0) {
            out_.push_back(whole);
          } else {
            data_.pairs.append(word, out_);
          }
        });
    }

    const Data& data_;
    std::vector<Token>& out_;
    detail::WordCache cache_;
    std::string buffer_;
  };

  const VocabularyEntry& entry(Token token) const {
    return data_->parts.vocabulary[static_cast<std::size_t>(token)];
  }

  /// Appends a token's bytes to the text. The bytes that tokens such as <0x0A> stand for wait in
  /// `run` for the end of their run, as together they must make characters that spell bytes.
  void append(Token token, const DecodeOptions& options, std::string& run,
              std::string& text) const {
    const VocabularyEntry& found = entry(token);
    if (found.special && options.skip_special) return;
    if (found.fallback && data_->parts.decodes_fallback) {
      run += static_cast<char>(*found.fallback);
    } else {
      end_run(run, text);
      text += found.bytes;
    }
  }

  static void end_run(std::string& run, std::string& text) {
    if (run.empty()) return;
    if (find_invalid_utf8(run) != run.size()) {
      for (std::size_t i = 0; i < run.size(); ++i) text += "\xef\xbf\xbd";
    } else {
      text += detail::read_spelling(run).value_or(run);
    }
    run.clear();
  }

  std::shared_ptr<const Data> data_;
};

inline detail::BytePairs::Starts BpeTokenizer::Data::check_starts(const BpeParts& parts,
                                                                  std::string_view what) {
  const auto reject = [what](const std::string& why) {
    detail::fail<FormatError>(std::string(what) + ": " + why);
  };
  const std::vector<VocabularyEntry>& vocabulary = parts.vocabulary;
  if (!std::in_range<Token>(vocabulary.size()) ||
      static_cast<std::int64_t>(vocabulary.size()) > max_vocabulary)
    reject("a vocabulary of " + std::to_string(vocabulary.size()) + ", expected at most " +
           std::to_string(max_vocabulary));
  const auto check = [&](Token token, const char* role) {
    if (token < 0 || token >= static_cast<Index>(vocabulary.size()) ||
        !vocabulary[static_cast<std::size_t>(token)].known)
      reject(std::string(role) + " " + std::to_string(token) + " is not in the vocabulary");
  };
  for (const Merge& merge : parts.merges)
    for (const Token token : {merge.left, merge.right, merge.whole})
      check(token, "a merge's token");
  for (const std::vector<AddedToken>* added : {&parts.exact, &parts.normalized})
    for (const AddedToken& token : *added) check(token.id, "the added token");
  for (const std::vector<Token>* around : {&parts.before, &parts.after})
    for (const Token token : *around) check(token, "the token put round texts,");

  detail::BytePairs::Starts starts;
  std::array<Token, 256> fallback;
  fallback.fill(-1);
  for (std::size_t i = 0; i < vocabulary.size(); ++i) {
    const VocabularyEntry& entry = vocabulary[i];
    if (parts.encodes_fallback && entry.known && entry.fallback &&
        entry.bytes == detail::spell_fallback(*entry.fallback))
      fallback[*entry.fallback] = static_cast<Token>(i);
    if (!entry.known || !entry.mergeable || entry.bytes.size() != 1) continue;
    starts[static_cast<unsigned char>(entry.bytes[0])] = {{static_cast<Token>(i), -1}, 1};
  }
  for (std::size_t byte = 0; byte < 256; ++byte) {
    if (starts[byte].count != 0) continue;
    std::string spelled;
    append_utf8(spelled, detail::byte_spelling[byte]);
    for (const char c : spelled) {
      const Token token = fallback[static_cast<unsigned char>(c)];
      if (token < 0) reject("the vocabulary has no token for the byte " + std::to_string(byte));
      starts[byte].tokens[starts[byte].count++] = token;
    }
  }
  return starts;
}

/// Makes text of tokens as they come, in whole characters.
///
/// A character may need several tokens: its bytes wait until it is whole. What can never become one
/// is replaced by U+FFFD, so everything handed out is valid UTF-8, and together, with finish(), it
/// is replace_invalid_utf8() of what decode() makes of all tokens.
class StreamDecoder {
 public:
  explicit StreamDecoder(BpeTokenizer tokenizer, const DecodeOptions& options = {})
      : tokenizer_(std::move(tokenizer)), options_(options) {}

  /// What the token completes, which may be nothing. Throws Error if it is not in the vocabulary.
  std::string push(Token token) {
    if (!tokenizer_.has(token))
      detail::fail("stream decoder: token " + std::to_string(token) +
                   " is not in the vocabulary of " + std::to_string(tokenizer_.vocabulary()));
    tokenizer_.append(token, options_, run_, waiting_);
    // A character that is cut off begins in the last three bytes.
    std::size_t end = waiting_.size() < 3 ? 0 : waiting_.size() - 3;
    while (end < waiting_.size() && !read_utf8(waiting_, end).cut) ++end;
    std::string whole = replace_invalid_utf8(std::string_view(waiting_).substr(0, end));
    waiting_.erase(0, end);
    return whole;
  }

  /// What is left when no token follows; the decoder begins anew.
  std::string finish() {
    BpeTokenizer::end_run(run_, waiting_);
    return replace_invalid_utf8(std::exchange(waiting_, {}));
  }

 private:
  BpeTokenizer tokenizer_;
  DecodeOptions options_;
  std::string run_;      // bytes by fallback whose run has not ended
  std::string waiting_;  // the beginning of a character
};

}  // namespace io
}  // namespace ttt::inline TTT_ABI
