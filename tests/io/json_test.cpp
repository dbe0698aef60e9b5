// SPDX-License-Identifier: MIT
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <sys/resource.h>
#include <vector>

#include <doctest/doctest.h>

#include "temporary.hpp"
#include <ttt/io/json.hpp>
#include <ttt/io/utf8.hpp>

using ttt::FormatError;
using ttt::io::Json;
using ttt::io::JsonLimits;
using ttt_test::contains;
using ttt_test::thrown;

namespace {

std::string refused(std::string_view text, const JsonLimits& limits = {}) {
  INFO("text: ", std::string(text.substr(0, 60)));
  return thrown<FormatError>([&] { (void)Json::parse(text, "file.json", limits); });
}

}  // namespace

TEST_CASE("json: every kind of value is read") {
  CHECK(Json::parse("null").is_null());
  CHECK(Json::parse(" true ").boolean());
  CHECK_FALSE(Json::parse("\t\r\nfalse").boolean());
  CHECK(Json::parse("-12").integer() == -12);
  CHECK(Json::parse("1.5e3").number() == 1500.0);
  CHECK(Json::parse(R"("a b")").string() == "a b");
  CHECK(Json::parse("[]").array().empty());
  CHECK(Json::parse("{ }").object().members().empty());
  const Json json = Json::parse(R"({"b": [1, 2.5, "x", null], "a": {"c": true}})");
  CHECK(json.at("b").array().size() == 4);
  CHECK(json.at("b").array()[1].number() == 2.5);
  CHECK(json.at("a").at("c").boolean());
  CHECK(json.find("z") == nullptr);
  REQUIRE(json.object().members().size() == 2);
  CHECK(json.object().members()[0].first == "b");  // as written, not as sorted
  CHECK(json.dump() == R"({"b":[1,2.5,"x",null],"a":{"c":true}})");
}

TEST_CASE("json: numbers keep what can be kept") {
  const Json integer = Json::parse("9007199254740993");  // 2^53 + 1, which no double holds
  CHECK(integer.is_integer());
  CHECK(integer.is_number());
  CHECK(integer.integer() == 9007199254740993);
  CHECK(integer.number() == 9007199254740992.0);
  CHECK(Json::parse("9223372036854775807").integer() == std::numeric_limits<std::int64_t>::max());
  CHECK(Json::parse("-9223372036854775808").integer() == std::numeric_limits<std::int64_t>::min());
  CHECK_FALSE(Json::parse("9223372036854775808").is_integer());
  CHECK(Json::parse("9223372036854775808").number() == 0x1p63);
  CHECK_FALSE(Json::parse("2.0").is_integer());
  CHECK_FALSE(Json::parse("2e0").is_integer());
  CHECK(Json::parse("0").integer() == 0);
  CHECK(std::signbit(Json::parse("-0").number()));
  CHECK(Json::parse("0.1").number() == 0.1);
  CHECK(Json::parse("1E-2").number() == 0.01);
  CHECK(Json::parse("1e+2").number() == 100.0);
  CHECK(Json::parse("5e-324").number() == std::numeric_limits<double>::denorm_min());
  for (const char* text :
       {"01", "-", "+1", "1.", ".5", "1e", "1e+", "--1", "0x10", "NaN", "Infinity", "-Infinity",
        "1e400", "-1e400", "1_000", "1 2", "00", "-01", "1.e2"})
    CHECK(contains(refused(text), "file.json: at byte "));
}

TEST_CASE("json: what is not JSON is refused, and the byte is named") {
  for (const char* text : {"",
                           " ",
                           "nul",
                           "nulll",
                           "tru",
                           "True",
                           "'a'",
                           "[",
                           "]",
                           "{",
                           "}",
                           "[1",
                           "[1,",
                           "[1,]",
                           "[,1]",
                           "[1 2]",
                           "{\"a\"",
                           "{\"a\":",
                           "{\"a\":1",
                           "{\"a\":1,",
                           "{\"a\":1,}",
                           "{a:1}",
                           "{1:2}",
                           "{\"a\" 1}",
                           "{\"a\":1 \"b\":2}",
                           "[1}",
                           "{\"a\":1]",
                           "[] []",
                           "1,",
                           "// c\n1",
                           "/**/1",
                           "\"",
                           "\"a",
                           "\"\\\"",
                           "\"\\",
                           "\"a\nb\"",
                           "\"a\tb\"",
                           "\"\\x41\"",
                           "\"\\u12\"",
                           "\"\\u12g4\"",
                           "\"\\u-123\"",
                           "\"\\u 123\"",
                           "\"\\U0041\"",
                           "\xef\xbb\xbf{}",
                           "\v1",
                           "\f1"})
    CHECK(contains(refused(text), "file.json: at byte "));
  CHECK(contains(refused(std::string_view("\0", 1)), "byte 0"));
  CHECK(contains(refused(std::string_view("1\0", 2)), "byte 1"));
  CHECK(contains(refused(std::string_view("\"a\0b\"", 5)), "control character"));
  CHECK(contains(refused("[1, 2, x]"), "at byte 7: expected a value"));
  CHECK(contains(refused("[1] x"), "at byte 4: expected the end"));
}

TEST_CASE("json: a name may occur once in an object, wherever it stands") {
  CHECK(contains(refused(R"({"a": 1, "b": 2, "a": 3})"), "the name \"a\" occurs twice"));
  CHECK(contains(refused(R"([{"a": {"b": 1, "\u0062": 2}}])"), "the name \"b\" occurs twice"));
  CHECK(Json::parse(R"([{"a": 1}, {"a": 2, "A": {"a": 3}}])").array().size() == 2);
  CHECK(Json::parse(R"({"": 1, "a\u0000": 2, "a": 3})").at(std::string_view("a\0", 2)).integer() ==
        2);
}

TEST_CASE("json: escapes and UTF-8") {
  CHECK(Json::parse(R"("\"\\\/\b\f\n\r\t")").string() == "\"\\/\b\f\n\r\t");
  CHECK(Json::parse(R"("\u0041\u00e9\u20AC\uD83D\uDE00")").string() ==
        "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  CHECK(Json::parse(R"("\u0000")").string() == std::string(1, '\0'));
  CHECK(Json::parse(R"("\uffff\ud7ff\ue000\ud800\udc00\udbff\udfff")").string() ==
        "\xef\xbf\xbf\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf");
  for (const char* half :
       {R"("\ud800")", R"("\udc00")", R"("\ud800x")", R"("\ud800\n")", R"("\ud800\ud800")",
        R"("\ud800\u0041")", R"("\udc00\ud800")", R"("\udfff")"})
    CHECK(contains(refused(half), "surrogate"));
  CHECK(contains(refused(R"("\ud800\u12")"), "hexadecimal"));
  CHECK(
      Json::parse("\"\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf0\x90\x80\x80\"").is_string());
  for (const char* bad :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xe2\x82",
        "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf", "\xf0\x90\x80", "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80", "\xfe", "\xff"})
    CHECK(contains(refused(std::string("[\"a") + bad + "\"]"),
                   "at byte 3: the text is not valid UTF-8"));
}

TEST_CASE("utf8: validity agrees with a decoder written from the definition") {
  // Decodes whatever the lead byte announces, then asks whether the code point may exist and was
  // written as short as it can be.
  const auto valid = [](std::string_view text) {
    while (!text.empty()) {
      const auto lead = static_cast<unsigned char>(text[0]);
      const int ones = std::countl_one(lead);
      const std::size_t length = ones == 0 ? 1 : static_cast<std::size_t>(ones);
      if (ones == 1 || ones > 4 || length > text.size()) return false;
      std::uint32_t code = lead & (0xffu >> ones);
      for (std::size_t i = 1; i < length; ++i) {
        const auto next = static_cast<unsigned char>(text[i]);
        if (std::countl_one(next) != 1) return false;
        code = code * 64 + (next & 63u);
      }
      const std::uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
      if (code < least[length] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
        return false;
      text.remove_prefix(length);
    }
    return true;
  };
  // Every pair and triple of bytes that could be one code point, and quadruples at the borders.
  std::string text;
  std::size_t disagreements = 0;
  const auto compare = [&] {
    disagreements += valid(text) != (ttt::io::find_invalid_utf8(text) == text.size());
  };
  for (int a = 0; a < 256; ++a) {
    text = {static_cast<char>(a)};
    compare();
    for (int b = 0; b < 256 && a >= 0x80; ++b) {
      text = {static_cast<char>(a), static_cast<char>(b)};
      compare();
      for (const int c : {0x00, 0x7f, 0x80, 0xbf, 0xc0, 0xff}) {
        if (b < 0x80) continue;
        text = {static_cast<char>(a), static_cast<char>(b), static_cast<char>(c)};
        compare();
        text += '\x80';
        compare();
      }
    }
  }
  CHECK(disagreements == 0);
  for (std::uint32_t code = 0; code < 0x110000; code += code < 0x1000 ? 1 : 97) {
    if (code >= 0xd800 && code <= 0xdfff) continue;
    std::string out;
    ttt::io::append_utf8(out, code);
    disagreements += !valid(out);
  }
  CHECK(disagreements == 0);
}

TEST_CASE("json: depth and number of values have limits") {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  CHECK(Json::parse(nested(128)).is_array());
  CHECK(contains(refused(nested(129)), "at byte 128: nested deeper than the 128 levels"));
  CHECK(contains(refused(R"({"a":{"b":{}}})", {.depth = 2}), "2 levels"));
  CHECK(Json::parse("[1,2,3]", "x", {.values = 4}).is_array());
  CHECK(contains(refused("[1,2,3,4]", {.values = 4}), "more than the 4 values"));
}

TEST_CASE("json: the wrong kind of value is named") {
  const Json json = Json::parse(R"({"a": "x", "b": 1.5})");
  const auto text = [](auto&& call) { return thrown<FormatError>(call); };
  CHECK(text([&] { (void)json.at("a").integer("config: a"); }) ==
        "ttt: config: a: expected an integer, found a string");
  CHECK(text([&] { (void)json.at("b").integer("b"); }) ==
        "ttt: b: expected an integer, found a real number");
  CHECK(text([&] { (void)json.at("a").number("a"); }) ==
        "ttt: a: expected a real number, found a string");
  CHECK(text([&] { (void)json.at("c", "config"); }) == "ttt: config: \"c\" is missing");
  CHECK(text([&] { (void)json.array(); }) == "ttt: JSON: expected an array, found an object");
  CHECK(text([&] { (void)Json().find("a"); }) == "ttt: JSON: expected an object, found null");
  CHECK(text([&] { (void)Json(1).boolean(); }) ==
        "ttt: JSON: expected a boolean, found an integer");
  // What a file says cannot flood or garble a message.
  const std::string longest(1 << 20, 'n');
  CHECK(text([&] { (void)json.at(longest); }).size() < 200);
  CHECK(contains(text([&] { (void)json.at("\x1b[2J\xff"); }), "\"?[2J?\""));
}

TEST_CASE("json: values made in C++ are written and read back") {
  const Json json = Json::Object({{"null", nullptr},
                                  {"yes", true},
                                  {"least", std::numeric_limits<std::int64_t>::min()},
                                  {"size", std::size_t{7}},
                                  {"half", 0.5f},
                                  {"text", "a\"\\\x01\x1f\n\x7f/\xe2\x82\xac"},
                                  {"list", Json::Array{1, "two", Json::Array(), Json::Object()}}});
  CHECK(json.dump() ==
        "{\"null\":null,\"yes\":true,\"least\":-9223372036854775808,\"size\":7,\"half\":0.5,"
        "\"text\":\"a\\\"\\\\\\u0001\\u001f\\u000a\x7f/\xe2\x82\xac\",\"list\":[1,\"two\",[],{}]}");
  CHECK(Json::parse(json.dump()).dump() == json.dump());
  Json copy = json;
  copy = Json::Array{copy, json};
  CHECK(copy.array()[0].dump() == json.dump());

  CHECK_THROWS_AS((void)Json(std::numeric_limits<double>::infinity()).dump(), ttt::Error);
  CHECK_THROWS_AS((void)Json(std::nan("")).dump(), ttt::Error);
  CHECK_THROWS_AS((void)Json("\xff").dump(), ttt::Error);
  CHECK_THROWS_AS((void)Json(std::numeric_limits<std::uint64_t>::max()), ttt::Error);
  CHECK_THROWS_AS((void)Json::Object({{"a", 1}, {"a", 2}}), FormatError);

  std::mt19937_64 random(7);
  for (int i = 0; i < 10000; ++i) {
    const auto bits = random();
    const double value = std::bit_cast<double>(bits);
    if (std::isfinite(value))
      CHECK(std::bit_cast<std::uint64_t>(Json::parse(Json(value).dump()).number()) == bits);
    const auto integer = static_cast<std::int64_t>(bits);
    CHECK(Json::parse(Json(integer).dump()).integer() == integer);
  }
}

TEST_CASE("json: damaged text never does worse than throw FormatError") {
  const std::string good =
      R"({"a": [1, -2.5e3, true, false, null, "x\u00e9\ud83d\ude00\n"], "b": {"c": {}, "d": []}})";
  for (std::size_t i = 0; i < good.size(); ++i) (void)refused(std::string_view(good).substr(0, i));
  std::mt19937 random(11);
  for (int round = 0; round < 20000; ++round) {
    std::string text = good;
    for (unsigned i = 0; i <= random() % 4; ++i)
      text[random() % text.size()] = static_cast<char>(random());
    try {
      const Json json = Json::parse(text);
      CHECK(Json::parse(json.dump()).dump() == json.dump());
    } catch (const FormatError&) {
    }
  }
}

TEST_CASE("json: large objects are found by name") {
  std::vector<Json::Member> members;
  members.reserve(50000);
  for (int i = 0; i < 50000; ++i) members.emplace_back("n" + std::to_string((i * 7919) % 50000), i);
  const Json json = Json::parse(Json(Json::Object(std::move(members))).dump());
  for (int i = 0; i < 50000; ++i)
    CHECK(json.at("n" + std::to_string((i * 7919) % 50000)).integer() == i);
}

TEST_SUITE("slow") {
  TEST_CASE("json: 100 MB of anything costs seconds and a few times its size") {
    constexpr std::size_t size = 100'000'000;
    const auto repeat = [](std::string text, std::string_view part, std::string_view tail) {
      std::string block;
      while (block.size() < size / 100) block += part;
      while (text.size() < size) text += block;
      return text += tail;
    };
    const auto cost = [](const std::string& text) {
      const auto peak = [] {  // in KiB
        rusage usage = {};
        ::getrusage(RUSAGE_SELF, &usage);
        return usage.ru_maxrss;
      };
      const long before = peak();
      const auto start = std::chrono::steady_clock::now();
      bool accepted = true;
      try {
        (void)Json::parse(text);
      } catch (const FormatError&) {
        accepted = false;
      }
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      CHECK(seconds.count() < 100);
      if (!ttt_test::sanitized) CHECK(peak() - before < 700 * 1024);
      return accepted;
    };
    CHECK(cost(repeat("\"", "a", "\"")));
    CHECK(cost(repeat("\"", "\\u0041", "\"")));
    CHECK(cost(repeat("1", " ", "")));
    CHECK(cost(repeat("0.", "1", "")));
    CHECK_FALSE(cost(repeat("", "1", "")));      // past every double
    CHECK_FALSE(cost(repeat("", "[", "")));      // too deep
    CHECK_FALSE(cost(repeat("[0", ",0", "]")));  // too many values
    CHECK_FALSE(cost(repeat("[{\"\":0}", ",{\"\":0}", "]")));
    CHECK_FALSE(cost(repeat("{\"a\":0", ",\"a\":0", "}")));

    // The most values that are allowed, and names that agree for long.
    std::string numbers = "[0";
    for (std::size_t i = 2; i < JsonLimits().values; ++i) numbers += ",0";
    CHECK(cost(numbers + "]"));
    const std::string prefix(80, 'p');
    std::string names = "{\"\":0";
    for (std::size_t i = 0; names.size() < size; ++i)
      names += ",\"" + prefix + std::to_string(i * 7919 % 10'000'019) + "\":0";
    CHECK(cost(names + "}"));
    CHECK_FALSE(cost(names + ",\"" + prefix + "7919\":0}"));  // one of a million, again
  }
}
