# SPDX-License-Identifier: MIT
# For other scripts to source. need_packages PACKAGE...: installs those Debian packages that are
# missing, as root or through sudo; where it cannot, says what to install and fails. Elsewhere than
# on Debian it asks for the programs only: CMake finds the libraries or fetches them.

ttt_have() { # PACKAGE
  case $1 in
    cmake) command -v cmake ;;
    ninja-build) command -v ninja ;;
    g++) command -v g++ || command -v "${CXX:-c++}" ;;
    clang) command -v clang++ ;;
    *) ! command -v dpkg-query || dpkg-query -W -f='${Status}' "$1" 2>&1 | grep -q ' installed$' ;;
  esac >/dev/null 2>&1
}

need_packages() {
  local missing=() package as_root=()
  for package; do
    ttt_have "$package" || missing+=("$package")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0

  if ! command -v apt-get >/dev/null; then
    echo "Please install what your system calls: ${missing[*]}" >&2
    return 1
  fi
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
      as_root=(sudo)
    else
      echo "Some packages are missing. As root, please run:" >&2
      echo "  apt-get update && apt-get install ${missing[*]}" >&2
      return 1
    fi
  fi

  echo "Installing ${missing[*]}" >&2
  local log
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    rm -f "$log"
    echo "Could not install: ${missing[*]}" >&2
    return 1
  fi
  rm -f "$log"
}
