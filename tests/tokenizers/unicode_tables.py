#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes include/ttt/io/unicode_tables.hpp and nfc_tables.hpp.

    python3 -m pip install unicodedata2==16.0.0
    python3 tests/tokenizers/unicode_tables.py

The classes are those of Unicode 16.0.0: the regular expressions of Hugging Face's tokenizers 0.23 and
of tiktoken 0.14 know exactly these (every code point was asked). The normaliser of tokenizers is one
of Unicode 9.0.0. Decompositions and combining classes never change once a character exists, so its
tables are those of 16.0.0 less the characters that are younger and have either.
"""

import os
import sys

import unicodedata2 as unicode

VERSION = "16.0.0"
# What came after 9.0.0 and has a combining class or a decomposition.
YOUNGER = """
07fd 0897-089f 08ca-08d3 09fe 0c3c 0d3b-0d3c 0eba 1715 1abf-1ace 1df6-1dfa a82c 105c9 105e4
10d24-10d27 10d69-10d6d 10eab-10eac 10efd-10eff 10f46-10f50 10f82-10f85 11070 1133b 11383 11385
1138e 11391 113c5 113c7-113c8 113ce-113d0 1145e 11839-1183a 11938 1193d-1193e 11943 119e0 11a34
11a47 11a99 11d42 11d44-11d45 11d97 11f41-11f42 16121-16128 1612f 16d68-16d6a 16ff0-16ff1 1e08f
1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef
"""
LETTER, NUMBER, SPACE = 1, 2, 3
SPACES = {*range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)}
SPACES |= {0x2028, 0x2029, 0x202F, 0x205F, 0x3000}  # White_Space
CODES = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
FOLDER = os.path.join(os.path.dirname(__file__), "../../include/ttt/io")


def young():
    codes = set()
    for part in YOUNGER.split():
        first, _, last = part.partition("-")
        codes |= set(range(int(first, 16), int(last or first, 16) + 1))
    return codes


def runs(value, shift):
    """Where the value changes, as first code point << shift | value."""
    out, last = [], 0
    for code in range(0x110000):
        now = 0 if 0xD800 <= code <= 0xDFFF else value(code)
        if now != last:
            out.append(code << shift | now)
            last = now
    return out


def array(kind, name, values, comment):
    lines, line = [], "   "
    for value in values:
        text = " " + (value if isinstance(value, str) else hex(value)) + ","
        if len(line) + len(text) > 100:
            lines.append(line)
            line = "   "
        line += text
    body = "\n".join([*lines, line])
    return f"{comment}\ninline constexpr {kind} {name}[] = {{\n{body}\n}};\n"


def header(name, about, parts):
    text = f"""// SPDX-License-Identifier: MIT
/// \\file
{about}
/// Written by tests/tokenizers/unicode_tables.py: change that, not this.
#pragma once

#include <cstdint>

#include <ttt/version.hpp>

namespace ttt::inline TTT_ABI {{
namespace detail {{

// clang-format off
{chr(10).join(parts)}// clang-format on

}}  // namespace detail
}}  // namespace ttt::inline TTT_ABI
"""
    with open(os.path.join(FOLDER, name), "w", encoding="ascii", newline="\n") as file:
        file.write(text)


def class_of(code):
    if code in SPACES:
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicode.category(chr(code))[0], 0)


def main():
    if unicode.unidata_version != VERSION:
        sys.exit(f"unicodedata2 knows Unicode {unicode.unidata_version}, expected {VERSION}")

    header("unicode_tables.hpp",
           f"/// Which characters are letters, numbers and spaces in Unicode {VERSION}.",
           [array("std::uint32_t", "class_runs", runs(class_of, 2),
                  "/// Where the class changes: first code point << 2 | class (1 letter, 2 number, 3 space).")])

    ignored = young()
    old = [c for c in CODES if c not in ignored]
    combining = {c: unicode.combining(chr(c)) for c in old}
    parts = {}  # code point: its canonical decomposition, one step of it
    for code in old:
        text = unicode.decomposition(chr(code))
        if text and not text.startswith("<"):
            parts[code] = [int(part, 16) for part in text.split()]
    assert all(len(p) == 1 or len(p) == 2 and p[1] not in parts for p in parts.values())
    # A pair composes unless Unicode excludes it, which shows in what NFC makes of it.
    primary = {c: p for c, p in parts.items()
               if len(p) == 2 and unicode.normalize("NFC", chr(c)) == chr(c)}
    seconds = {p[1] for p in primary.values()} | {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}

    def properties(code):
        if code not in combining:
            return 0
        changes = code in parts and code not in primary
        return combining[code] << 1 | (changes or code in seconds)

    codes = sorted(parts)
    rows = ["{%s}" % ",".join(map(str, [c, *parts[c]])) for c in codes]
    order = sorted((parts[c], i) for i, c in enumerate(codes) if c in primary)
    header("nfc_tables.hpp",
           "/// What the composed normal form NFC needs to know of characters, as in Unicode 9.0.0.",
           [array("std::uint32_t", "nfc_runs", runs(properties, 9),
                  "/// Where it changes: first code point << 9 | combining class << 1 | whether the character\n"
                  "/// may not stand in normal form or may compose with one before it."),
            "/// A character and what it decomposes into; a second of 0 is none.\n"
            "struct Decomposition {\n  std::uint32_t code, first, second = 0;\n};\n",
            array("Decomposition", "decompositions", rows, "/// By code. Hangul syllables are arithmetic."),
            array("std::uint16_t", "compositions", [str(i) for _, i in order],
                  "/// Those that compose again, as places in `decompositions`, by first and second.")])
    print(f"Unicode {VERSION}: {len(rows)} decompositions, {len(order)} compositions")


main()
