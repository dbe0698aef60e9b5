// SPDX-License-Identifier: MIT
/// \file
/// The command line of an example.
#pragma once

#include <charconv>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace examples {

/// A command line that means nothing: one sentence.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A command line, split into options and the rest: --name VALUE or --name=VALUE, --name alone,
/// and -- before a rest that may begin with a dash. What is given twice counts as given last.
class Arguments {
 public:
  struct Option {
    std::string_view name;  // with its dashes
    bool has_value = true;
  };

  /// Throws UsageError for options that are not among the known, or lack their value.
  Arguments(int argc, const char* const* argv, std::initializer_list<Option> known) {
    bool options_end = false;
    for (int i = 1; i < argc; ++i) {
      const std::string_view word = argv[i];
      if (options_end || word == "-" || !word.starts_with("-")) {
        rest_.emplace_back(word);
        continue;
      }
      if (word == "--") {
        options_end = true;
        continue;
      }
      const std::size_t equals = word.find('=');
      const std::string name(word.substr(0, equals));
      const Option* option = nullptr;
      for (const Option& candidate : known) {
        if (candidate.name == name) option = &candidate;
      }
      if (option == nullptr) throw UsageError("there is no option " + name);
      if (!option->has_value && equals != word.npos) throw UsageError(name + " takes no value");
      std::string value;
      if (equals != word.npos) {
        value = word.substr(equals + 1);
      } else if (option->has_value) {
        if (++i == argc) throw UsageError(name + " lacks its value");
        value = argv[i];
      }
      given_.emplace_back(name, std::move(value));
    }
  }

  bool has(std::string_view name) const { return find(name) != nullptr; }

  /// What is not an option.
  const std::vector<std::string>& rest() const { return rest_; }

  std::string text(std::string_view name, std::string otherwise = {}) const {
    const std::string* value = find(name);
    if (value != nullptr && value->empty()) throw UsageError(std::string(name) + " is empty");
    return value != nullptr ? *value : otherwise;
  }

  /// Throws UsageError unless the value is a number of this type from `least` to `most`.
  template <class Number>
  Number number(std::string_view name, Number otherwise, Number least, Number most) const {
    const std::string* value = find(name);
    if (value == nullptr) return otherwise;
    Number number{};
    const char* const end = value->data() + value->size();
    const auto [stop, error] = std::from_chars(value->data(), end, number);
    if (error != std::errc() || stop != end || !(number >= least && number <= most)) {
      throw UsageError(std::string(name) + " must be a number from " + shown(least) + " to " +
                       shown(most) + ", not \"" + *value + "\"");
    }
    return number;
  }

 private:
  const std::string* find(std::string_view name) const {
    const std::string* value = nullptr;
    for (const auto& [given, text] : given_) {
      if (given == name) value = &text;
    }
    return value;
  }

  template <class Number>
  static std::string shown(Number number) {
    char digits[32];
    return std::string(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
  }

  std::vector<std::pair<std::string, std::string>> given_;
  std::vector<std::string> rest_;
};

}  // namespace examples
