// SPDX-License-Identifier: MIT
#include <string>
#include <string_view>

#include <doctest/doctest.h>

#include <ttt/io/utf8.hpp>

using ttt::io::read_utf8;
using ttt::io::replace_invalid_utf8;
using ttt::io::Utf8;

TEST_CASE("utf8: one replacement for what could have begun a character") {
  const std::string r = "\xef\xbf\xbd";
  CHECK(replace_invalid_utf8("").empty());
  CHECK(replace_invalid_utf8("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80") ==
        "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  CHECK(replace_invalid_utf8("\x80"
                             "a\xff") == r + "a" + r);
  CHECK(replace_invalid_utf8("\xf0\x9f\x98") == r);
  CHECK(replace_invalid_utf8("\xf0\x9f\x98(") == r + "(");
  CHECK(replace_invalid_utf8("\xe2\x82\xe2\x82\xac") == r + "\xe2\x82\xac");
  CHECK(replace_invalid_utf8("\xc0\x80") == r + r);
  CHECK(replace_invalid_utf8("\xe0\x80\x80") == r + r + r);
  CHECK(replace_invalid_utf8("\xed\xa0\x80") == r + r + r);
  CHECK(replace_invalid_utf8("\xf4\x90\x80\x80") == r + r + r + r);
  CHECK(replace_invalid_utf8("\xc2\xc2\xa0") == r + "\xc2\xa0");
}

TEST_CASE("utf8: a character that is cut off is told from one that is wrong") {
  static_assert(read_utf8("\xe2\x82\xac", 0).code == 0x20ac);
  for (const std::string_view cut :
       {"\xc3", "\xe2", "\xe2\x82", "\xf0", "\xf0\x9f", "\xf0\x9f\x98"}) {
    const Utf8 found = read_utf8(cut, 0);
    CHECK(found.code == Utf8::invalid);
    CHECK(found.cut);
    CHECK(found.length == cut.size());
  }
  for (const std::string_view wrong :
       {"\x80", "\xc1", "\xe0\x80", "\xed\xa0", "\xf0\x80", "\xf4\x90", "\xf5", "\xc3("}) {
    CHECK(read_utf8(wrong, 0).code == Utf8::invalid);
    CHECK_FALSE(read_utf8(wrong, 0).cut);
  }
}
