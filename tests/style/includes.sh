#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# includes.sh [ROOT]: who may include whom in include/ttt. Arrows point one way:
#   core <- backend <- ops <- layers <- model <- io <- inner <- outer
# detail/ and core/ stand on nothing but the headers beside them; backend/concepts.hpp and the like
# know no backend, and the backends do not know each other, except that all may use reference/.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}/include/ttt"

find . -type f \( -name '*.hpp' -o -name '*.ipp' -o -name '*.cuh' \) | sed 's|^\./||' | sort |
  while IFS= read -r file; do
    # path, line, included name with its brackets
    awk -v file="$file" '/^[ \t]*#[ \t]*include[ \t]*[<"]/ {
      match($0, /[<"][^>"]*[>"]/)
      print file "\t" FNR "\t" substr($0, RSTART, RLENGTH)
    }' "$file"
  done |
  awk -F '\t' '
    BEGIN {
      n = split("core backend ops layers model io inner outer", names, " ")
      for (i = 1; i <= n; i++) rank[names[i]] = i
      rank["detail"] = 1
      slow = " iostream regex ranges random functional format source_location "
    }
    function room(path) { return path ~ /\// ? substr(path, 1, index(path, "/") - 1) : "" }
    function machine(path,   parts) { return split(path, parts, "/") > 2 ? parts[2] : "" }
    function complain(why) { print "include/ttt/" $1 ":" $2 ": " $3 ": " why; bad++ }
    {
      here = room($1); name = substr($3, 2, length($3) - 2)
      if (here != "" && !(here in rank)) complain("the folder " here " is not a room")
      if ($3 ~ /^"/) { complain("use angle brackets and the full path"); next }

      if (name ~ /^ttt\//) {
        target = substr(name, 5); there = room(target)
        if (here == "") {
          if (there != "" && $1 != "ttt.hpp" && $1 != "train.hpp") complain("only ttt.hpp and train.hpp gather the rooms")
          if (target ~ /^backend\/cuda\//) complain("ttt.hpp stays free of CUDA")
        } else if (there == "") {
          if (target == "ttt.hpp" || target == "train.hpp") complain("a room may not include the umbrella header")
        } else if (!(there in rank)) {
          complain("there is no such room")
        } else if (rank[there] > rank[here]) {
          complain(here " is left of " there)
        } else if (here == "backend" && there == "backend") {
          if (machine(target) != "" && machine(target) != "reference" && machine(target) != machine($1))
            complain("only backend/" machine(target) " may include this")
          if (machine($1) == "" && machine(target) != "")
            complain("what all backends share knows none of them")
        }
      } else if (name ~ /^(unsupported\/)?Eigen\//) {
        if ($1 !~ /^backend\/eigen\//) complain("only backend/eigen includes Eigen")
      } else if (index(slow, " " name " ")) {
        if (here ~ /^(core|detail|backend|ops|layers|inner)$/)
          complain("too slow to compile, or missing from a compiler, for " here)
      } else if (name == "fstream") {
        if (here in rank && rank[here] < rank["io"]) complain("files begin in io")
      }
    }
    END {
      if (NR == 0) { print "no includes found"; exit 1 }
      if (bad) { print bad " includes break the rules"; exit 1 }
      print NR " includes keep the rules"
    }'
