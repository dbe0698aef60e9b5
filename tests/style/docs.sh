#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# docs.sh [ROOT]: every code block of README.md and docs/*.md is code that is built.
#
# A block opens with ```cpp example=NAME or ```cmake example=NAME and must equal the region NAME,
# which a source file marks with comments on lines of their own:
#   //! [NAME]  ...  //! [/NAME]    in a .cpp or .hpp under examples/ or tests/docs/
#   #! [NAME]   ...  #! [/NAME]     in a CMakeLists.txt or .cmake under examples/ or tests/
# Common indentation and blank lines at either end do not count. Regions may nest or overlap.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}"

list() { # FIND-ARGUMENTS... : the files, sorted; a folder that is not there is empty
  find "$@" 2>/dev/null | sort || true
}
mapfile -t sources < <(
  list examples tests/docs -type f \( -name '*.cpp' -o -name '*.hpp' \)
  list examples tests -type f \( -name CMakeLists.txt -o -name '*.cmake' \)
)
mapfile -t pages < <(list README.md docs -type f -name '*.md')
[ "${#pages[@]}" -gt 0 ] || {
  echo "no pages yet"
  exit 0
}

awk '
  # The text less the indentation that all its lines share, blank ends and trailing blanks.
  function plain(text,   lines, n, i, indent, least, out, first, last) {
    n = split(text, lines, "\n"); least = -1; first = 0; last = 0
    for (i = 1; i <= n; i++) {
      sub(/[ \t\r]+$/, "", lines[i])
      if (lines[i] == "") continue
      if (!first) first = i
      last = i
      match(lines[i], /^ */); indent = RLENGTH
      if (least < 0 || indent < least) least = indent
    }
    out = ""
    for (i = first; first && i <= last; i++) out = out substr(lines[i], least + 1) "\n"
    return out
  }
  function complain(where, why) { print where ": " why; bad++ }
  function close_page() {
    if (block) complain(page ":" opened, "a code block that does not end")
    block = 0
    for (name in open) { complain(source ": " name, "a region that does not end"); delete open[name] }
  }

  FNR == 1 { close_page(); is_page = FILENAME ~ /\.md$/; page = source = FILENAME }

  !is_page && /^[ \t]*(\/\/|#)! \[\/?[A-Za-z0-9_.-]+\][ \t]*$/ {
    name = $2; gsub(/[][]/, "", name)
    kind = $1 == "//!" ? "cpp" : "cmake"
    if (name ~ /^\//) {
      key = kind " " substr(name, 2)
      if (!(key in open)) complain(FILENAME ":" FNR, "closes a region that is not open")
      delete open[key]
    } else {
      key = kind " " name
      if (key in region) complain(FILENAME ":" FNR, "a second region " name ", also in " from[key])
      region[key] = ""; from[key] = FILENAME; open[key] = 1
    }
    next
  }
  !is_page { for (key in open) region[key] = region[key] $0 "\n"; next }

  !block && /^[ ]*```/ {
    block = 1; opened = FNR; text = ""; info = $0; sub(/^[ ]*```+[ ]*/, "", info)
    language = info; sub(/[ \t{].*/, "", language)
    next
  }
  block && /^[ ]*```+[ \t]*$/ {
    block = 0
    where = FILENAME ":" opened
    if (tolower(language) ~ /^(c\+\+|cxx|cc|hpp|c)$/) {
      complain(where, "call the language cpp")
    } else if (language == "cpp" || language == "cmake") {
      blocks++
      if (info !~ /(^| )example=[A-Za-z0-9_.-]+$/) {
        complain(where, "a " language " block without example=NAME"); next
      }
      name = info; sub(/.*example=/, "", name); key = language " " name
      if (!(key in region)) {
        complain(where, "no region " name " in the examples or tests")
      } else if (plain(region[key]) != plain(text)) {
        complain(where, "differs from the region " name " of " from[key] ", which is:")
        print plain(region[key])
      }
    }
    next
  }
  block { text = text $0 "\n" }

  END {
    close_page()
    if (bad) { print bad " things are wrong"; exit 1 }
    print blocks + 0 " code blocks are code that is built"
  }
' "${sources[@]}" "${pages[@]}"
