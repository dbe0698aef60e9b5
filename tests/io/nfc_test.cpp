// SPDX-License-Identifier: MIT
#include <chrono>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/io/nfc.hpp>
#include <ttt/io/utf8.hpp>

namespace {

std::string utf8(std::initializer_list<std::uint32_t> codes) {
  std::string text;
  for (const std::uint32_t code : codes) ttt::io::append_utf8(text, code);
  return text;
}

std::string nfc(std::string_view text) {
  std::string buffer;
  return std::string(ttt::io::to_nfc(text, buffer));
}

/// The same whatever stands round it that has nothing to do with it.
void check(std::initializer_list<std::uint32_t> given,
           std::initializer_list<std::uint32_t> wanted) {
  for (const std::string_view around : {"", "(", "\xff", "\xe4\xb8\xad", "\n"}) {
    const std::string a(around);
    CAPTURE(a);
    CHECK(nfc(a + utf8(given) + a) == a + utf8(wanted) + a);
  }
}

}  // namespace

TEST_CASE("nfc: compositions, orders, singletons, exclusions") {
  check({0x41, 0x30a}, {0xc5});
  check({0x212b}, {0xc5});                         // the Angstrom sign is a singleton
  check({0x1e9b, 0x323}, {0x1e9b, 0x323});         // long s with a dot above
  check({0x73, 0x307, 0x323}, {0x1e69});           // marks by class, then two compositions
  check({0x1e0b, 0x323}, {0x1e0d, 0x307});         // which composes otherwise
  check({0x61, 0x315, 0x300, 0x5ae, 0x300, 0x62},  // one of the standard's tests of order
        {0xe0, 0x5ae, 0x300, 0x315, 0x62});
  check({0x61, 0x300, 0x301}, {0xe0, 0x301});  // the second is blocked
  check({0x344}, {0x308, 0x301});              // decomposes and stays so
  check({0x958}, {0x915, 0x93c});              // excluded from composition
  check({0x9c7, 0x9be}, {0x9cb});              // two starters
  check({0xcc6, 0xcc2, 0xcd5}, {0xccb});
  check({0x2126, 0xf900, 0x2f800}, {0x3a9, 0x8c48, 0x4e3d});
  check({0xfb1d}, {0x5d9, 0x5b4});
  check({0x1d15e}, {0x1d157, 0x1d165});
  check({0x11131, 0x11127}, {0x1112e});
  check({0x301, 0x323}, {0x323, 0x301});      // no starter at all
  check({0x105d2, 0x307}, {0x105d2, 0x307});  // younger than the tables
  check({0x897, 0x323}, {0x897, 0x323});
}

TEST_CASE("nfc: Hangul is arithmetic") {
  for (std::uint32_t l = 0; l < 19; ++l)
    for (std::uint32_t v = 0; v < 21; ++v)
      for (std::uint32_t t = 0; t < 28; ++t) {
        const std::uint32_t syllable = 0xac00 + (l * 21 + v) * 28 + t;
        std::string jamo = utf8({0x1100 + l, 0x1161 + v});
        if (t > 0) jamo += utf8({0x11a7 + t});
        if (nfc(jamo) != utf8({syllable})) CHECK(nfc(jamo) == utf8({syllable}));
      }
  check({0xac00, 0x11a8}, {0xac01});
  check({0xac01, 0x11a8}, {0xac01, 0x11a8});
  check({0xac00, 0x11a7}, {0xac00, 0x11a7});
  check({0x1100, 0x1100, 0x1161}, {0x1100, 0xac00});
}

TEST_CASE("nfc: every pair that composes does, and what it makes decomposes to it") {
  for (const std::uint16_t at : ttt::detail::compositions) {
    const ttt::detail::Decomposition& whole = ttt::detail::decompositions[at];
    CAPTURE(whole.code);
    CHECK(nfc(utf8({whole.first, whole.second})) == utf8({whole.code}));
    CHECK(nfc(utf8({whole.code})) == utf8({whole.code}));
  }
}

TEST_CASE("nfc: normal text is handed back where it lies, and bytes that are no text stay") {
  std::string buffer;
  for (const std::string_view text :
       {"", "plain", "caf\xc3\xa9 \xe4\xb8\xad\xe6\x96\x87 \xed\x95\x9c \xf0\x9f\x98\x80",
        "\xff\xfe\x80 x \xe4\xb8", "\xd7\xa9\xd6\xb8\xd7\x81"})
    CHECK(ttt::io::to_nfc(text, buffer).data() == text.data());
  CHECK(nfc("q\xcc\xa3\xcc\x87") == "q\xcc\xa3\xcc\x87");
  CHECK(nfc("e\xff\xcc\x81") == "e\xff\xcc\x81");
  CHECK(nfc("\xff"
            "e\xcc\x81\xff") == "\xff\xc3\xa9\xff");
  CHECK(nfc("e\xcc\x81\xcc") == "\xc3\xa9\xcc");
}

TEST_CASE("nfc: once is enough, and long runs of marks take no long time") {
  std::mt19937 random(5);
  const std::vector<std::uint32_t> likely = {'a',    'e',   0xe9,  0x300,  0x301,  0x323,  0x345,
                                             0x334,  0x5b4, 0x93c, 0x1100, 0x1161, 0x11a8, 0xac00,
                                             0xac01, 0x9c7, 0x9be, 0x1e69, 0x212b, 0x1d165};
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (auto n = random() % 12; n > 0; --n) {
      ttt::io::append_utf8(text, likely[random() % likely.size()]);
      if (random() % 20 == 0) text += static_cast<char>(random());
    }
    const std::string once = nfc(text);
    if (nfc(once) != once) CHECK(nfc(once) == once);
  }
  std::string marks = "a";
  for (int i = 0; i < 200000; ++i) marks += "\xcc\x81\xcc\xa3";
  const auto start = std::chrono::steady_clock::now();
  CHECK(nfc(marks).starts_with("\xe1\xba\xa1\xcc\xa3"));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));
}
