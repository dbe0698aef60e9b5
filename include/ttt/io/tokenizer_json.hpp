// SPDX-License-Identifier: MIT
/// \file
/// Reads tokenizer.json, Hugging Face's format: byte-level BPE as Llama-3, Qwen and GPT-2 use it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>
#include <ttt/io/bpe_tokenizer.hpp>
#include <ttt/io/json.hpp>
#include <ttt/io/mapped_file.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Walks the file. What could change results and is not understood is refused by its name.
class TokenizerJson {
 public:
  TokenizerJson(std::string_view text, std::string_view what)
      : what_(what), file_(io::Json::parse(text, what)) {}

  io::BpeParts read() {
    only(file_, "",
         {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
          "post_processor", "decoder", "model"});
    for (const char* const key : {"truncation", "padding"}) absent(file_, "", key);
    read_normalizer();
    read_pre_tokenizer();
    read_decoder();
    read_model();
    read_added_tokens();
    read_post_processor();
    return std::move(parts_);
  }

 private:
  using Json = io::Json;

  std::string named(std::string_view path) const {
    return what_ + (path.empty() ? "" : ": ") + std::string(path);
  }
  [[noreturn]] void reject(std::string_view path, const std::string& why) const {
    fail<FormatError>(named(path) + ": " + why);
  }

  /// The member, or nullptr if it is absent or null.
  const Json* find(const Json& object, std::string_view path, std::string_view key) const {
    const Json* const found = object.find(key, named(path));
    return found == nullptr || found->is_null() ? nullptr : found;
  }
  const Json& at(const Json& object, std::string_view path, std::string_view key) const {
    return object.at(key, named(path));
  }
  bool flag(const Json& object, std::string_view path, std::string_view key, bool otherwise) const {
    const Json* const found = find(object, path, key);
    return found == nullptr ? otherwise : found->boolean(named(path) + ": " + std::string(key));
  }
  const std::string& type(const Json& object, std::string_view path) const {
    return at(object, path, "type").string(named(path) + ": type");
  }

  void only(const Json& object, std::string_view path,
            std::initializer_list<std::string_view> known) const {
    for (const auto& [name, value] : object.object(named(path)).members())
      if (std::find(known.begin(), known.end(), name) == known.end())
        reject(path, "the setting " + detail::quoted(name) + " is not known here");
  }
  void absent(const Json& object, std::string_view path, std::string_view key) const {
    if (find(object, path, key) != nullptr)
      reject(path, detail::quoted(key) + " is not supported, expected null");
  }
  void wants(const Json& object, std::string_view path, std::string_view key, bool value,
             bool otherwise) const {
    if (flag(object, path, key, otherwise) != value)
      reject(path, detail::quoted(key) + " is " + (value ? "false" : "true") +
                       ", which is not supported");
  }
  [[noreturn]] void reject_type(const Json& object, std::string_view path,
                                const char* expected) const {
    reject(path, "the type " + detail::quoted(type(object, path)) + " is not supported, expected " +
                     expected);
  }

  void read_normalizer() {
    const Json* const normalizer = find(file_, "", "normalizer");
    if (normalizer == nullptr) return;
    only(*normalizer, "normalizer", {"type"});
    if (type(*normalizer, "normalizer") != "NFC")
      reject_type(*normalizer, "normalizer", "NFC or null");
    parts_.nfc = true;
  }

  /// Split by one of the known patterns and then ByteLevel, or ByteLevel with a pattern of its own.
  void read_pre_tokenizer() {
    const std::string_view path = "pre_tokenizer";
    const Json& pre = at(file_, "", path);
    if (type(pre, path) == "ByteLevel") {
      byte_level(pre, path, true);
      parts_.pattern = io::WordPattern::Gpt2;
      return;
    }
    if (type(pre, path) != "Sequence") reject_type(pre, path, "Sequence or ByteLevel");
    only(pre, path, {"type", "pretokenizers"});
    const Json::Array& steps = at(pre, path, "pretokenizers").array(named(path));
    if (steps.size() != 2 || type(steps[0], path) != "Split" || type(steps[1], path) != "ByteLevel")
      reject(path, "expected a Sequence of Split and ByteLevel");
    const Json& split = steps[0];
    only(split, path, {"type", "pattern", "behavior", "invert"});
    wants(split, path, "invert", false, false);
    if (const std::string& behavior = at(split, path, "behavior").string(named("behavior"));
        behavior != "Isolated")
      reject(path,
             "the behavior " + detail::quoted(behavior) + " is not supported, expected Isolated");
    const Json& pattern = at(split, path, "pattern");
    only(pattern, "pre_tokenizer: pattern", {"Regex"});
    const std::string& regex =
        at(pattern, "pre_tokenizer: pattern", "Regex").string(named("pre_tokenizer: Regex"));
    using enum io::WordPattern;
    const auto known = {Llama3, Qwen, Gpt2};
    const auto found = std::find_if(known.begin(), known.end(), [&](io::WordPattern candidate) {
      return regular_expression(candidate) == regex;
    });
    if (found == known.end())
      reject(path, "the pattern " + detail::quoted(regex) +
                       " is not known, expected that of Llama-3, Qwen or GPT-2");
    parts_.pattern = *found;
    byte_level(steps[1], path, false);
  }

  void byte_level(const Json& step, std::string_view path, bool use_regex) const {
    only(step, path, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
    wants(step, path, "add_prefix_space", false, true);
    wants(step, path, "use_regex", use_regex, true);
  }

  void read_decoder() {
    const std::string_view path = "decoder";
    const Json& decoder = at(file_, "", path);
    const Json* last = &decoder;
    if (type(decoder, path) == "Sequence") {
      only(decoder, path, {"type", "decoders"});
      const Json::Array& steps = at(decoder, path, "decoders").array(named(path));
      if (steps.size() != 2 || type(steps[0], path) != "ByteFallback")
        reject(path, "expected ByteLevel, or a Sequence of ByteFallback and ByteLevel");
      only(steps[0], path, {"type"});
      parts_.decodes_fallback = true;
      last = &steps[1];
    }
    if (type(*last, path) != "ByteLevel") reject_type(*last, path, "ByteLevel");
    only(*last, path, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  }

  void read_model() {
    const std::string_view path = "model";
    const Json& model = at(file_, "", path);
    if (find(model, path, "type") != nullptr && type(model, path) != "BPE")
      reject_type(model, path, "BPE");
    only(model, path,
         {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
          "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
    if (const Json* dropout = find(model, path, "dropout"); dropout && dropout->number() != 0)
      reject(path, "\"dropout\" is not supported, expected null");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (const Json* text = find(model, path, key); text && !text->string(named(key)).empty())
        reject(path, detail::quoted(key) + " is not supported, expected null");
    parts_.encodes_fallback = flag(model, path, "byte_fallback", false);
    parts_.whole_words = flag(model, path, "ignore_merges", false);
    // Every byte has a token, so unk_token and fuse_unk never come to bear.

    const Json::Object& vocab = at(model, path, "vocab").object(named("model: vocab"));
    if (static_cast<std::int64_t>(vocab.members().size()) > io::max_vocabulary)
      reject("model: vocab", "has " + std::to_string(vocab.members().size()) +
                                 " tokens, expected at most " + std::to_string(io::max_vocabulary));
    spelled_ = StringIndex(vocab.members().size());
    for (const auto& [name, id] : vocab.members()) {
      const std::optional<std::string> bytes = read_spelling(name);
      add(name, id.integer(named("model: vocab: " + detail::quoted(name))),
          {.bytes = bytes.value_or(name), .known = true, .mergeable = bytes.has_value()});
      spelled_.insert(name, static_cast<Token>(id.integer()), named("model: vocab"));
    }
    read_merges(at(model, path, "merges").array(named("model: merges")));
  }

  /// Gives an id to a token that has none yet.
  void add(const std::string& name, std::int64_t id, io::VocabularyEntry entry) {
    if (id < 0 || id >= io::max_vocabulary)
      reject("", "the token " + detail::quoted(name) + " has the id " + std::to_string(id) +
                     ", expected 0 to " + std::to_string(io::max_vocabulary - 1));
    const auto at = static_cast<std::size_t>(id);
    if (at >= parts_.vocabulary.size()) parts_.vocabulary.resize(at + 1);
    if (parts_.vocabulary[at].known)
      reject("", "the token " + detail::quoted(name) + " has the id " + std::to_string(id) +
                     ", which another token has too");
    if (parts_.encodes_fallback || parts_.decodes_fallback) entry.fallback = read_fallback(name);
    parts_.vocabulary[at] = std::move(entry);
  }

  /// Pairs of strings, or strings with a space between the two.
  void read_merges(const Json::Array& merges) {
    parts_.merges.reserve(merges.size());
    std::string whole;
    for (const Json& merge : merges) {
      const auto number = [&] { return "merge " + std::to_string(parts_.merges.size()); };
      std::string_view left, right;
      if (merge.is_string()) {
        const std::string_view both = merge.string();
        const std::size_t space = both.find(' ');
        left = both.substr(0, space);
        right = space == both.npos ? "" : both.substr(space + 1);
        if (right.find(' ') != right.npos) right = {};
      } else {
        const std::string path = named("model: " + number());
        const Json::Array& both = merge.array(path);
        if (both.size() == 2) {
          left = both[0].string(path);
          right = both[1].string(path);
        }
      }
      if (left.empty() || right.empty())
        reject("model", number() + " is not two tokens, expected \"a b\" or [\"a\", \"b\"]");
      whole.assign(left) += right;
      const auto token = [&](std::string_view text) {
        const Token found = spelled_.find(text);
        if (found < 0)
          reject("model",
                 number() + " has " + detail::quoted(text) + ", which is not in the vocabulary");
        return found;
      };
      parts_.merges.push_back({token(left), token(right), token(whole),
                               static_cast<std::uint32_t>(parts_.merges.size())});
    }
  }

  void read_added_tokens() {
    const Json* const list = find(file_, "", "added_tokens");
    if (list == nullptr) return;
    for (const Json& item : list->array(named("added_tokens"))) {
      const std::string& text =
          at(item, "added_tokens", "content").string(named("added_tokens: content"));
      const std::string path = "added token " + detail::quoted(text);
      only(item, path,
           {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
      for (const char* key : {"single_word", "lstrip", "rstrip"})
        wants(item, path, key, false, false);
      const std::int64_t id = at(item, path, "id").integer(named(path));
      const bool special = flag(item, path, "special", false);
      const Token known = spelled_.find(text);
      if (known >= 0 && known != id)
        reject(path, "has the id " + std::to_string(id) + ", but " + std::to_string(known) +
                         " in the vocabulary");
      if (known < 0) add(text, id, {.bytes = read_spelling(text).value_or(text), .known = true});
      parts_.vocabulary[static_cast<std::size_t>(id)].special = special;
      io::AddedToken token{text, static_cast<Token>(id), special};
      if (flag(item, path, "normalized", !special)) {
        std::string buffer;
        if (parts_.nfc) token.text = io::to_nfc(text, buffer);
        parts_.normalized.push_back(std::move(token));
      } else {
        parts_.exact.push_back(std::move(token));
      }
    }
  }

  /// ByteLevel, which moves offsets alone, and a template for single texts.
  void read_post_processor() {
    const Json* const post = find(file_, "", "post_processor");
    if (post == nullptr) return;
    if (type(*post, "post_processor") != "Sequence") return read_processor(*post);
    only(*post, "post_processor", {"type", "processors"});
    for (const Json& step :
         at(*post, "post_processor", "processors").array(named("post_processor")))
      read_processor(step);
  }

  void read_processor(const Json& step) {
    const std::string_view path = "post_processor";
    if (type(step, path) == "ByteLevel")
      return only(step, path, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
    if (type(step, path) != "TemplateProcessing")
      reject_type(step, path, "ByteLevel or TemplateProcessing");
    if (!parts_.before.empty() || !parts_.after.empty()) reject(path, "has two templates");
    only(step, path, {"type", "single", "pair", "special_tokens"});
    bool seen_text = false;
    for (const Json& item : at(step, path, "single").array(named("post_processor: single"))) {
      only(item, path, {"SpecialToken", "Sequence"});
      if (const Json* special = find(item, path, "SpecialToken")) {
        const std::string& name = at(*special, path, "id").string(named(path));
        const Json& known = at(at(step, path, "special_tokens"), path, name);
        for (const Json& id : at(known, path, "ids").array(named(path)))
          (seen_text ? parts_.after : parts_.before).push_back(token(id.integer(named(path))));
      } else {
        const std::string& name = at(at(item, path, "Sequence"), path, "id").string(named(path));
        if (name != "A" || seen_text) reject(path, "expected the text A once in the template");
        seen_text = true;
      }
    }
    if (!seen_text) reject(path, "expected the text A once in the template");
  }

  Token token(std::int64_t id) const {
    if (!std::in_range<Token>(id))
      reject("post_processor", "token " + std::to_string(id) + " is not in the vocabulary");
    return static_cast<Token>(id);
  }

  std::string what_;
  Json file_;
  StringIndex spelled_;  // of the model's vocabulary
  io::BpeParts parts_;
};

}  // namespace detail

namespace io {

/// The tokenizer that a tokenizer.json describes. Throws FormatError, opening with `what`, if the
/// text is damaged, or says anything that would change results and is not done here.
inline BpeTokenizer parse_tokenizer_json(std::string_view text,
                                         std::string_view what = "tokenizer.json") {
  return BpeTokenizer(detail::TokenizerJson(text, what).read(), what);
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
