#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# layout.sh [ROOT]: what lies at the top, how a header begins, and what our CMake leaves to others.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}"
bad=0
complain() {
  echo "$1"
  bad=1
}

# The top level, as git knows it where there is git; else as it lies on the disk.
top() {
  if [ "$(git rev-parse --show-toplevel 2>/dev/null)" = "$PWD" ]; then
    git ls-files | cut -d/ -f1 | sort -u
  else
    ls -A | grep -vE '^(\.git|build.*|out|CMakeUserPresets\.json)$'
  fi
}
for entry in $(top); do
  case $entry in
    CMakeLists.txt | include | examples | tests | bench | cmake | docs | README.md | LICENSE) ;;
    .clang-format | .clang-tidy | CMakePresets.json | .gitignore | .ci) ;;
    *) complain "$entry: not one of the things that lie at the top" ;;
  esac
done

while IFS= read -r header; do
  [ "$(head -n 1 "$header")" = "// SPDX-License-Identifier: MIT" ] ||
    complain "$header:1: the first line is not // SPDX-License-Identifier: MIT"
  case $header in
    *.ipp) ;;
    *) grep -q '^#pragma once$' "$header" || complain "$header: lacks #pragma once" ;;
  esac
  grep -n '^using namespace' "$header" && complain "$header: using namespace in a header"
done < <(find include -type f \( -name '*.hpp' -o -name '*.ipp' -o -name '*.cuh' \))

# What belongs to whoever builds, not to us. Presets, being the builder's, may set them.
theirs='(CMAKE_CXX_FLAGS|CMAKE_BUILD_TYPE|CMAKE_RUNTIME_OUTPUT_DIRECTORY|CMAKE_CUDA_ARCHITECTURES|BUILD_SHARED_LIBS|CMAKE_CXX_STANDARD)'
while IFS= read -r file; do
  grep -nE "(set|option|append|APPEND) *\(? *$theirs|^ *(add_compile_options|include_directories|link_libraries|add_definitions) *\(|\bCMAKE_SOURCE_DIR\b|\bCMAKE_BINARY_DIR\b" "$file" &&
    complain "$file: sets or uses what belongs to the whole build"
  grep -nE '^ *option\((TTT|EMBED)?' "$file" | grep -vE 'option\((TTT|EMBED)_' &&
    complain "$file: an option without its prefix"
done < <(find CMakeLists.txt cmake tests bench examples -name CMakeLists.txt -o -name '*.cmake')

[ "$bad" = 0 ] && echo "everything lies where it should"
exit "$bad"
