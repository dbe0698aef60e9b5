// SPDX-License-Identifier: MIT
/// \file
/// A small strict JSON reader for files nobody vouches for, and the writer that goes with it.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/io/utf8.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// What a JSON text may cost: by default 400 MB beside its strings, enough for any tokenizer.
struct JsonLimits {
  std::size_t depth = 128;                    ///< arrays and objects inside one another
  std::size_t values = std::size_t{1} << 22;  ///< values altogether, the containers included
};

/// One JSON value: null, a boolean, a number, a string, an array or an object.
///
/// Made whole, by parse() or from C++ values, and not changed afterwards. The accessors throw
/// FormatError when the value is of another kind; `what` opens their message, so pass the name of
/// the setting that is being read.
class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;

  /// Members in the order they were written, found by name in O(log n).
  class Object {
   public:
    Object() = default;

    /// Throws FormatError, opening with `what`, if two members have one name. O(n log n).
    explicit Object(std::vector<Member> members, std::string_view what = "JSON");

    std::span<const Member> members() const { return members_; }

    /// The value of that name, or nullptr.
    const Json* find(std::string_view name) const;

   private:
    std::vector<Member> members_;
    std::vector<std::uint32_t> by_name_;
  };

  Json() = default;
  Json(std::nullptr_t) {}
  template <std::same_as<bool> Bool>
  Json(Bool value) : value_(value) {}
  template <std::integral Integer>
  requires(!std::same_as<Integer, bool>) Json(Integer value)
      : value_(static_cast<std::int64_t>(value)) {
    if (!std::in_range<std::int64_t>(value))
      detail::fail("JSON: the integer is past 64 signed bits");
  }
  template <std::floating_point Real>
  Json(Real value) : value_(static_cast<double>(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}

  /// Reads one value that fills the text (RFC 8259, no extensions: valid UTF-8 only, no comments,
  /// no NaN, no repeated names, surrogates in pairs, numbers that fit a double).
  ///
  /// Takes O(n log n) time at worst and memory within `limits`. Throws FormatError, opening with
  /// `what` and naming the byte.
  static Json parse(std::string_view text, std::string_view what = "JSON",
                    const JsonLimits& limits = {});

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_boolean() const { return std::holds_alternative<bool>(value_); }
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value_); }
  /// Whether it is a number written without fraction or exponent that fits 64 signed bits.
  bool is_integer() const { return std::holds_alternative<std::int64_t>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  bool boolean(std::string_view what = "JSON") const { return get<bool>(what); }
  std::int64_t integer(std::string_view what = "JSON") const { return get<std::int64_t>(what); }
  double number(std::string_view what = "JSON") const {
    return is_integer() ? static_cast<double>(integer()) : get<double>(what);
  }
  const std::string& string(std::string_view what = "JSON") const { return get<std::string>(what); }
  const Array& array(std::string_view what = "JSON") const { return get<Array>(what); }
  const Object& object(std::string_view what = "JSON") const { return get<Object>(what); }

  /// The member of that name of an object, or nullptr.
  const Json* find(std::string_view name, std::string_view what = "JSON") const {
    return object(what).find(name);
  }

  /// The member of that name of an object; throws FormatError if there is none.
  const Json& at(std::string_view name, std::string_view what = "JSON") const {
    if (const Json* found = find(name, what)) return *found;
    detail::fail<FormatError>(std::string(what) + ": " + detail::quoted(name) + " is missing");
  }

  /// The value as JSON text without spaces; reading it gives the value back, doubles to the bit.
  /// Throws Error for what JSON cannot say: a number that is not finite, a string not UTF-8.
  std::string dump() const {
    std::string out;
    append_to(out);
    return out;
  }

 private:
  class Parser;
  using Value =
      std::variant<std::monostate, bool, std::int64_t, double, std::string, Array, Object>;

  template <class T>
  const T& get(std::string_view what) const {
    if (const T* value = std::get_if<T>(&value_)) return *value;
    constexpr const char* names[] = {"null",     "a boolean", "an integer", "a real number",
                                     "a string", "an array",  "an object"};
    detail::fail<FormatError>(std::string(what) + ": expected " +
                              names[Value(std::in_place_type<T>).index()] + ", found " +
                              names[value_.index()]);
  }

  void append_to(std::string& out) const;

  Value value_;
};

/// Appends the text as a JSON string, quotes included. Throws Error if it is not UTF-8.
inline void append_json_string(std::string& out, std::string_view text) {
  if (find_invalid_utf8(text) != text.size())
    detail::fail("JSON: the string " + detail::quoted(text) + " is not valid UTF-8");
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      (out += '\\') += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      (out += c < 0x10 ? "\\u000" : "\\u001") += "0123456789abcdef"[c & 0xf];
    } else {
      out += c;
    }
  }
  out += '"';
}

inline Json::Object::Object(std::vector<Member> members, std::string_view what)
    : members_(std::move(members)), by_name_(members_.size()) {
  for (std::size_t i = 0; i < by_name_.size(); ++i) by_name_[i] = static_cast<std::uint32_t>(i);
  // Sorting has no bad case that a file could aim at, as hashing has.
  const auto name = [this](std::uint32_t i) -> const std::string& { return members_[i].first; };
  std::sort(by_name_.begin(), by_name_.end(),
            [&](std::uint32_t a, std::uint32_t b) { return name(a) < name(b); });
  for (std::size_t i = 1; i < by_name_.size(); ++i)
    if (name(by_name_[i - 1]) == name(by_name_[i]))
      detail::fail<FormatError>(std::string(what) + ": the name " +
                                detail::quoted(name(by_name_[i])) + " occurs twice in one object");
}

inline const Json* Json::Object::find(std::string_view name) const {
  const auto found = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [this](std::uint32_t i, std::string_view wanted) { return members_[i].first < wanted; });
  const bool there = found != by_name_.end() && members_[*found].first == name;
  return there ? &members_[*found].second : nullptr;
}

inline void Json::append_to(std::string& out) const {
  if (is_null()) {
    out += "null";
  } else if (is_boolean()) {
    out += boolean() ? "true" : "false";
  } else if (is_number()) {
    if (!std::isfinite(number())) detail::fail("JSON: the number to write is not finite");
    char digits[32];
    const auto end = is_integer() ? std::to_chars(digits, digits + sizeof digits, integer())
                                  : std::to_chars(digits, digits + sizeof digits, number());
    out.append(digits, end.ptr);
  } else if (is_string()) {
    append_json_string(out, string());
  } else if (is_array()) {
    const char* separator = "[";
    for (const Json& item : array()) {
      out += std::exchange(separator, ",");
      item.append_to(out);
    }
    out += array().empty() ? "[]" : "]";
  } else {
    const char* separator = "{";
    for (const auto& [name, value] : object().members()) {
      out += std::exchange(separator, ",");
      append_json_string(out, name);
      out += ':';
      value.append_to(out);
    }
    out += object().members().empty() ? "{}" : "}";
  }
}

/// Recursive descent, one function per kind of value; at_ is always the next byte to read.
class Json::Parser {
 public:
  Parser(std::string_view text, std::string_view what, const JsonLimits& limits)
      : text_(text), what_(what), limits_(limits) {}

  Json document() {
    at_ = find_invalid_utf8(text_);
    if (at_ != text_.size()) error("the text is not valid UTF-8");
    at_ = 0;
    Json result = value(0);
    peek_token();
    if (at_ != text_.size()) error("expected the end of the text");
    return result;
  }

 private:
  [[noreturn]] void error(const std::string& why) const {
    detail::fail<FormatError>(std::string(what_) + ": at byte " + std::to_string(at_) + ": " + why);
  }

  /// The next byte; at the end a zero, which no JSON text contains.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  /// The next byte that is not space, and at_ moves there.
  char peek_token() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t') ++at_;
    return peek();
  }

  Json value(std::size_t depth) {
    if (values_++ == limits_.values)
      error("more than the " + std::to_string(limits_.values) + " values allowed");
    switch (peek_token()) {
      case '{': return object(depth);
      case '[': return array(depth);
      case '"': return string();
      case 't': return literal("true", true);
      case 'f': return literal("false", false);
      case 'n': return literal("null", Json());
      default: return number();
    }
  }

  Json literal(std::string_view word, Json meaning) {
    if (!text_.substr(at_).starts_with(word)) error("expected " + std::string(word));
    at_ += word.size();
    return meaning;
  }

  Json array(std::size_t depth) {
    Array items;
    for (bool more = open(depth, ']'); more; more = next(']')) items.push_back(value(depth + 1));
    return Json(std::move(items));
  }

  Json object(std::size_t depth) {
    std::vector<Member> members;
    for (bool more = open(depth, '}'); more; more = next('}')) {
      if (peek_token() != '"') error("expected a name in quotes");
      std::string name = string();
      if (peek_token() != ':') error("expected ':'");
      ++at_;
      members.emplace_back(std::move(name), value(depth + 1));
    }
    return Object(std::move(members), what_);
  }

  /// Steps into a container; false if it is empty, and then past it.
  bool open(std::size_t depth, char close) {
    if (depth == limits_.depth)
      error("nested deeper than the " + std::to_string(depth) + " levels allowed");
    ++at_;
    if (peek_token() != close) return true;
    ++at_;
    return false;
  }

  /// Steps past the comma or the bracket after an item; true if it was the comma.
  bool next(char close) {
    const char c = peek_token();
    if (c != ',' && c != close) error(std::string("expected ',' or '") + close + "'");
    ++at_;
    return c == ',';
  }

  Json number() {
    const std::size_t begin = at_;
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
    } else {
      digits("expected a value");
    }
    const std::size_t whole = at_;
    if (peek() == '.') {
      ++at_;
      digits("expected a digit after the point");
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits("expected a digit in the exponent");
    }
    const std::string_view token = text_.substr(begin, at_ - begin);
    const char* const end = token.data() + token.size();
    std::int64_t integer = 0;
    if (at_ == whole && token != "-0" &&
        std::from_chars(token.data(), end, integer).ec == std::errc())
      return integer;
    double real = 0;
    if (std::from_chars(token.data(), end, real).ec != std::errc())
      error("the number does not fit a double");
    return real;
  }

  void digits(const char* expected) {
    const std::size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    if (at_ == begin) error(expected);
  }

  std::string string() {
    std::string out;
    ++at_;
    for (;;) {
      const std::size_t begin = at_;
      while (static_cast<unsigned char>(peek()) >= 0x20 && peek() != '"' && peek() != '\\') ++at_;
      out += text_.substr(begin, at_ - begin);
      if (peek() == '\\') {
        append_escape(out);
      } else if (peek() == '"') {
        ++at_;
        return out;
      } else {
        error(at_ == text_.size() ? "the string does not end" : "a control character in a string");
      }
    }
  }

  void append_escape(std::string& out) {
    constexpr std::string_view names = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    ++at_;
    const char c = peek();
    if (const std::size_t i = names.find(c); i != names.npos) {
      ++at_;
      out += meanings[i];
    } else if (c == 'u') {
      append_utf8(out, code_point());
    } else {
      error("an unknown escape in a string");
    }
  }

  /// Reads uXXXX, or the surrogate pair uXXXX\uXXXX.
  std::uint32_t code_point() {
    const std::uint32_t first = code_unit();
    if (first < 0xd800 || first > 0xdfff) return first;
    if (first < 0xdc00 && text_.substr(at_).starts_with("\\u")) {
      ++at_;
      const std::uint32_t second = code_unit();
      if (second >= 0xdc00 && second <= 0xdfff)
        return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    }
    error("half of a surrogate pair in a string");
  }

  std::uint32_t code_unit() {
    const std::string_view hex = text_.substr(at_ + 1, 4);
    std::uint32_t unit = 0;
    const char* const end = std::from_chars(hex.data(), hex.data() + hex.size(), unit, 16).ptr;
    if (hex.size() < 4 || end != hex.data() + 4) error("expected four hexadecimal digits");
    at_ += 5;
    return unit;
  }

  std::string_view text_;
  std::string_view what_;
  JsonLimits limits_;
  std::size_t at_ = 0;
  std::size_t values_ = 0;
};

inline Json Json::parse(std::string_view text, std::string_view what, const JsonLimits& limits) {
  return Parser(text, what, limits).document();
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
