#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# examples/quickstart.sh [FILE [OPTION...]]
#
# Builds one example and lets a small trained model read FILE (or the text of the GPL) twice in one
# go: as a plain language model, and learning while it reads. Prints how much better the second is,
# and draws it. Options go to read_document: --generate 300, say; --help lists them. On Debian it
# installs what is missing, if it may.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # called as sh quickstart.sh
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
build=$root/build/quickstart
chart=$build/reading.svg
log=$build/build.log

file=${1:-/usr/share/common-licenses/GPL-3}
if [ ! -r "$file" ] || [ -d "$file" ]; then
  echo "Cannot read $file. Name a text file of some pages: examples/quickstart.sh FILE" >&2
  exit 1
fi

. "$root/cmake/need_packages.sh"
need_packages cmake g++ ninja-build libeigen3-dev

logged() { # COMMAND...: silent, unless it fails
  "$@" >>"$log" 2>&1 </dev/null && return
  tail -n 60 "$log" >&2
  echo "That did not work; the whole of it is in $log" >&2
  exit 1
}
mkdir -p "$build"
: >"$log"
[ -x "$build/examples/read_document" ] || echo "Building (a minute or so, the first time) ..."
logged cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTTT_NATIVE=ON \
  -DTTT_BUILD_EXAMPLES=ON -DTTT_BUILD_TESTS=OFF -DTTT_INSTALL=OFF
logged cmake --build "$build" --target read_document

echo "Reading $file: bits per byte, the fewer the better predicted"
echo
"$build/examples/read_document" --model "$root/examples/models/books-byte.safetensors" \
  --chart "$chart" "${@:2}" -- "$file"
echo "chart: $chart"
