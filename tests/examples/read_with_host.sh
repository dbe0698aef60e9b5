#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# read_with_host.sh PROGRAM: its options, its exit statuses, and what goes to which stream.
set -uo pipefail
program=$1
host=$(cd "$(dirname "$0")/../golden/byte_host" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/with space"
cd "$work/with space" || exit 1
failures=0
cases=0

complain() {
  echo "$1"
  failures=$((failures + 1))
}
# run STATUS ARGUMENT...: streams go to the files out and err.
run() {
  local expected=$1 status=0
  shift
  cases=$((cases + 1))
  "$program" "$@" >out 2>err || status=$?
  [ "$status" = "$expected" ] ||
    complain "read_with_host $*: exit status $status instead of $expected: $(cat err)"
}
# refuses STATUS WHAT-IT-SAYS ARGUMENT...: one sentence on standard error.
refuses() {
  local says=$2
  run "$1" "${@:3}" </dev/null
  grep -qF -- "$says" err || complain "read_with_host ${*:3}: should say: $says; says: $(cat err)"
  [ "$1" = 2 ] || [ "$(wc -l <err)" = 1 ] || complain "read_with_host ${*:3}: more than a line"
}
says() { # EXPRESSION: in the output
  grep -qE -- "$1" out || complain "should print $1; prints: $(cat out)"
}

for i in 1 2 3 4 5 6 7 8; do
  echo "$i. The gate is locked at $i in the evening, and the key of the gate hangs by the door."
done >text

run 0 --help
grep -q '^usage: ' out || complain "--help does not say how it is used"

refuses 2 'which model' "$host"
refuses 2 'no option --nonsense' --nonsense "$host" text
refuses 2 '--chunk must be a number' --chunk 0 "$host" text
refuses 1 'config.json' . text
refuses 1 'cannot open absent' "$host" absent
refuses 1 'cannot open gone' --targets gone "$host" text
: >empty
refuses 1 'shorter than two tokens' "$host" empty

cp -r "$host" broken
sed -i 's/"hidden_size": 16/"hidden_size": 24/' broken/config.json
refuses 1 'has the shape' broken text
sed -i 's/"model_type": "qwen3"/"model_type": "gpt2"/' broken/config.json
refuses 1 'expected llama or qwen3' broken text

cp -r "$host" silent
rm silent/tokenizer.json
refuses 1 'has neither tokenizer.json nor tokenizer.model' silent text

run 0 --frozen "$host" text
says '0 chunks learned from'
frozen=$(grep '^all' out)
run 0 "$host" text
says 'nothing was trained for it'
[ "$(grep '^all' out)" = "$frozen" ] || complain "a host without targets is not frozen"
run 0 --every 1 --chunk 64 "$host" text
says 'a convolution of zeros'
[ "$(grep '^all' out)" = "$frozen" ] || complain "targets of zeros change the scores"
run 0 --targets "$host/targets.safetensors" --chunk 64 --generate 3 "$host" text
says 'learns in place'
says '1[0-9] chunks learned from'
says 'It might go on like this'
[ "$(grep '^all' out)" != "$frozen" ] || complain "targets do not change the scores"

[ "$failures" = 0 ] && echo "$cases cases are as they should be"
exit "$((failures > 0))"
