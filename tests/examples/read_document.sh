#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# read_document.sh PROGRAM: its options, its exit statuses, and what goes to which stream.
all_or_nothing=yes
. "$(dirname "$0")/support.sh" "$1"
matches() { # FILE EXPRESSION: the file is one line, and this is all of it
  if [ "$(wc -l <"$1")" != 1 ] || ! grep -qE "^$2\$" "$1"; then
    complain "expected $2, found: $(cat "$1")"
  fi
}
value() { # NAME: of out, the first time
  grep -oE "\"$1\":[^,}]*" out | head -n 1 | cut -d: -f2
}
same() { # WHAT A B
  [ "$2" = "$3" ] || complain "$1: $2 is not $3"
}

for i in 1 2 3 4 5 6 7 8; do
  echo "$i. The gate is locked at $i in the evening, and the key of the gate hangs by the door."
done >text

run 0 --help
grep -q '^usage: ' out || complain "--help does not say how it is used"
[ ! -s err ] || complain "--help prints to standard error"

refuses 2 'which document'
refuses 2 'one document' text text
refuses 2 'no option --nonsense' --nonsense text
refuses 2 'no option -x' -x text
refuses 2 'lacks its value' text --chart
refuses 2 '--threads must be a number' --threads 0 text
refuses 2 '--threads must be a number' --threads=two text
refuses 2 '--json takes no value' --json=1 text

: >empty
printf x >byte
echo '{"format": "nothing of the kind"}' >nonsense
refuses 1 'missing: No such file' missing
refuses 1 'Is a directory' .
refuses 1 'empty is empty' empty
refuses 1 'standard input is empty' -
refuses 1 'one byte' byte
refuses 1 'missing' --model missing text
refuses 1 'nonsense' --model nonsense text
refuses 1 'missing' --load-state missing text
refuses 1 'nonsense' --load-state nonsense text
refuses 1 'cannot write missing/a.svg' --chart missing/a.svg text
refuses 1 'cannot write missing/state' --save-state missing/state text

run 0 text
grep -qE '^ +all +[0-9]\.[0-9]+ +[0-9]\.[0-9]+ +-?[0-9.]+ %$' out || complain "no table: $(cat out)"
[ ! -s err ] || complain "not silent on a standard error that is no terminal: $(cat err)"

number='-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?'
both="\"learning\":$number,\"frozen\":$number"
window="\{\"begin\":[0-9]+,\"end\":[0-9]+,$both\}"
object="\{\"bytes\":[0-9]+,\"complete\":(true|false),\"bits_per_byte\":\{$both\}"
object+=",\"windows\":\[$window(,$window)*\],\"seconds\":$number,\"tokens_per_second\":$number"
object+=",\"inner_steps\":[0-9]+,\"skipped_steps\":0,\"state_bytes\":[0-9]+"
object+=",\"peak_rss_bytes\":[0-9]+(,\"generated\":\".+\")?\}"
run 0 --json --threads 1 text
matches out "$object"
same "bytes" "$(value bytes)" "$(wc -c <text | tr -d ' ')"
same "inner steps" "$(value inner_steps)" "$((($(value bytes) - 1) / 64))"
[ ! -s err ] || complain "--json: not silent: $(cat err)"
learning=$(value learning) frozen=$(value frozen)

run 0 --json - <text
same "standard input" "$(value learning) $(value frozen)" "$learning $frozen"
run 0 --json -- text
run 0 --json <(head -c 300 text)
same "a pipe" "$(value bytes)" 300
head -c 5000 "$program" >binary
run 0 --json --generate 20 --temperature 9 --seed 3 binary
matches out "$object"
printf ab >two
run 0 two

run 0 --chart 'a chart.svg' text
[ "$(head -c 4 'a chart.svg')" = '<svg' ] && [ "$(tail -n 1 'a chart.svg')" = '</svg>' ] ||
  complain "the chart is no SVG"

# A text that was learned is easier the second time; the frozen reading knows nothing of it.
run 0 --json --save-state state text
run 0 --json --load-state state --save-state state text
same "frozen, behind a state" "$(value frozen)" "$frozen"
awk "BEGIN { exit !($(value learning) < $learning - 0.3) }" ||
  complain "a loaded state helps too little: $learning, then $(value learning)"

run 0 --generate 30 --seed 1 text
mv out one
run 0 --generate 30 --seed 1 --threads 1 text
[ "$(tail -c 31 one)" = "$(tail -c 31 out)" ] || complain "one seed, two texts"
[ "$(wc -c <one)" -gt 300 ] || complain "nothing was generated"

# The first SIGINT ends an endless reading, with results.
cases=$((cases + 1))
timeout --preserve-status -k 60 -s INT 4 "$program" --json - < <(yes) >out 2>err
same "the exit status after SIGINT" $? 130
matches out "$object"
same "complete, after SIGINT" "$(value complete)" false

report
