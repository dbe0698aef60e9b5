#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# bench/compile/compile_times.sh [HEADER...]
#
# Processor seconds that $CXX (g++) takes at -O0 for a unit that includes one header and nothing
# else: Eigen/Core, which is the yardstick, then the headers named (or all of ours), then the ten-
# line program of the README. Best of three; a Markdown table. EIGEN_INCLUDE says where Eigen lies.
set -euo pipefail
cd "$(dirname "$0")/../.."
cxx=${CXX:-g++}
eigen=${EIGEN_INCLUDE:-/usr/include/eigen3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

seconds() { # SOURCE: the least of three, user and system together
  local TIMEFORMAT='%U %S'
  for _ in 1 2 3; do
    { time "$cxx" -std=c++20 -O0 -DTTT_EXAMPLE_MODELS='""' -Iinclude -isystem "$eigen" \
      -c "$1" -o "$work/unit.o" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }; } 2>&1
  done | awk 'NF != 2 { print > "/dev/stderr"; bad = 1; next }
              { t = $1 + $2; if (!n++ || t < best) best = t }
              END { if (bad || n != 3) exit 1; printf "%.2f", best }'
}
of_header() { # NAME
  echo "#include <$1>" >"$work/unit.cpp"
  seconds "$work/unit.cpp"
}
row() { # NAME SECONDS
  awk -v name="$1" -v t="$2" -v core="$core" \
    'BEGIN { printf "| `%s` | %.2f | %.2f |\n", name, t, t / core }'
}

if [ $# -gt 0 ]; then
  headers=("$@")
else
  mapfile -t headers < <(cd include && find ttt -name '*.hpp' | sort)
fi

core=$(of_header Eigen/Core)
echo "| $("$cxx" --version | head -n 1), -O0 | seconds | of Eigen/Core |"
echo "|---|--:|--:|"
row Eigen/Core "$core"
for header in "${headers[@]}"; do
  t=$(of_header "$header")
  row "$header" "$t"
done
if [ $# = 0 ] && [ -f examples/ten_lines.cpp ]; then
  t=$(seconds examples/ten_lines.cpp)
  row examples/ten_lines.cpp "$t"
fi
