# SPDX-License-Identifier: MIT
# Sourced by the tests of programs' command lines, with the program as its first argument: a folder
# with a space in its name, where streams go to the files out and err; complaints; and a report.
set -uo pipefail
program=$1
name=$(basename "$program")
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null; rm -rf "$work"' EXIT
mkdir "$work/with space"
cd "$work/with space" || exit 1
failures=0
cases=0

complain() {
  echo "$1"
  failures=$((failures + 1))
}
# run STATUS ARGUMENT...: standard input is passed on.
run() {
  local expected=$1 status=0
  shift
  cases=$((cases + 1))
  "$program" "$@" >out 2>err || status=$?
  sed -i '/built for baseline SSE2/d' err
  [ "$status" = "$expected" ] ||
    complain "$name $*: exit status $status instead of $expected: $(cat err)"
  [ "$status" != 0 ] || [ ! -s err ] || complain "$name $*: not silent in a pipe: $(cat err)"
}
# refuses STATUS WHAT-IT-SAYS ARGUMENT...: one sentence on standard error; nothing on the other for
# 2, a wrong command line, and where all_or_nothing is set for any.
refuses() {
  local says=$2
  run "$1" "${@:3}" </dev/null
  grep -qF -- "$says" err || complain "$name ${*:3}: should say: $says; says: $(cat err)"
  { [ "$1" != 2 ] && [ -z "${all_or_nothing:-}" ]; } || [ ! -s out ] || complain "$name ${*:3}: prints to standard output"
  [ "$1" = 2 ] || [ "$(wc -l <err)" = 1 ] || complain "$name ${*:3}: more than a line"
}
says() { # EXPRESSION: in the output
  grep -qE -- "$1" out || complain "should print $1; prints: $(cat out)"
}
report() {
  [ "$failures" = 0 ] && echo "$cases command lines do what they should"
  exit "$((failures > 0))"
}
