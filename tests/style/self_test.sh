#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Shows that each check accepts a tree that keeps the rules and refuses one that breaks one.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
failures=0

header() { # PATH [LINE...]: a proper header with these lines
  mkdir -p "$(dirname "$tree/include/ttt/$1")"
  { printf '%s\n' '// SPDX-License-Identifier: MIT' '#pragma once' "${@:2}"; } >"$tree/include/ttt/$1"
}
put() { # PATH LINE...
  mkdir -p "$(dirname "$tree/$1")"
  printf '%s\n' "${@:2}" >"$tree/$1"
}
fresh() {
  rm -rf "$tree"
  header ttt.hpp '#include <ttt/core/a.hpp>' '#include <ttt/backend/eigen/a.hpp>'
  header core/a.hpp '#include <vector>' '#include <ttt/fwd.hpp>'
  header backend/eigen/a.hpp '#include <Eigen/Core>' '#include <ttt/backend/reference/a.hpp>'
  header ops/a.hpp '  #  include <ttt/core/a.hpp>'
  header io/a.hpp '#include <fstream>'
  put CMakeLists.txt 'option(TTT_A "a" OFF)'
  mkdir -p "$tree"/{cmake,tests,bench}
  put examples/a.cpp 'int main() {' '  //! [answer]' '  int a = 42;' '' '  if (a)' '    return 0;' \
    '  //! [/answer]' '}'
  put tests/CMakeLists.txt '#! [link]' 'link(a)' '#! [/link]'
  put README.md 'text' '```cpp example=answer' 'int a = 42;' '' 'if (a)' '  return 0;' '```' \
    '```cmake example=link' 'link(a)' '```' '```sh' 'ls' '```'
}
accepts() { # CHECK
  bash "$here/$1.sh" "$tree" >"$work/log" 2>&1 && return
  echo "$1 refuses a good tree:"
  cat "$work/log"
  failures=1
}
refuses() { # CHECK WHAT-IT-SAYS
  if bash "$here/$1.sh" "$tree" >"$work/log" 2>&1; then
    echo "$1 accepts a tree where it should say: $2"
    failures=1
  elif ! grep -qF -- "$2" "$work/log"; then
    echo "$1 should say: $2; it says:"
    cat "$work/log"
    failures=1
  fi
  fresh
}

fresh
accepts includes
accepts layout
accepts docs

header ops/a.hpp '#include <ttt/layers/a.hpp>'
refuses includes 'ops is left of layers'
header core/a.hpp '#include <ttt/backend/a.hpp>'
refuses includes 'core is left of backend'
header model/a.hpp '#include <Eigen/Core>'
refuses includes 'only backend/eigen includes Eigen'
header backend/reference/a.hpp '#include <ttt/backend/eigen/a.hpp>'
refuses includes 'only backend/eigen may include this'
header backend/concepts.hpp '#include <ttt/backend/reference/a.hpp>'
refuses includes 'what all backends share knows none of them'
header inner/a.hpp '#include <functional>'
refuses includes 'too slow'
header model/a.hpp '#include <fstream>'
refuses includes 'files begin in io'
header model/a.hpp '#include <ttt/ttt.hpp>'
refuses includes 'umbrella'
header model/a.hpp '#include "b.hpp"'
refuses includes 'angle brackets'
header ttt.hpp '#include <ttt/backend/cuda/a.hpp>'
refuses includes 'free of CUDA'
header attic/a.hpp '#include <vector>'
refuses includes 'not a room'

put notes.txt 'a'
refuses layout 'notes.txt: not one of the things'
put include/ttt/core/b.hpp '#pragma once'
refuses layout 'the first line is not'
put include/ttt/core/b.hpp '// SPDX-License-Identifier: MIT'
refuses layout 'lacks #pragma once'
header core/b.hpp 'using namespace std;'
refuses layout 'using namespace'
put CMakeLists.txt 'set(CMAKE_CXX_FLAGS -O3)'
refuses layout 'belongs to the whole build'
put tests/CMakeLists.txt 'add_compile_options(-O3)'
refuses layout 'belongs to the whole build'
put CMakeLists.txt 'option(TESTS "a" ON)'
refuses layout 'an option without its prefix'

put docs/a.md '```cpp' 'int a;' '```'
refuses docs 'docs/a.md:1: a cpp block without example=NAME'
put docs/a.md '```c++ example=answer' 'int a;' '```'
refuses docs 'call the language cpp'
put docs/a.md '```cpp example=question' 'int a;' '```'
refuses docs 'no region question'
put docs/a.md '```cpp example=answer' 'int a = 43;' '```'
refuses docs 'differs from the region answer'
put docs/a.md '```cmake example=answer' 'int a = 42;' '```'
refuses docs 'no region answer'
put docs/a.md '```cpp example=answer' 'int a;'
refuses docs 'a code block that does not end'
put examples/b.cpp '//! [answer]' '//! [/answer]'
refuses docs 'a second region answer'
put examples/b.cpp '//! [b]'
refuses docs 'a region that does not end'

[ "$failures" = 0 ] && echo "every check refuses what it should"
exit "$failures"
