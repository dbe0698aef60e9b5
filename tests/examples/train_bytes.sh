#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# train_bytes.sh PROGRAM: what it writes, its exit statuses, and that a run which is stopped, killed
# at any moment and resumed ends with the bytes of an undisturbed one.
. "$(dirname "$0")/support.sh" "$1"
same() { # A B: files
  cmp "$1" "$2" || complain "$1 and $2 should be the same"
}
differ() {
  ! cmp -s "$1" "$2" || complain "$1 and $2 should differ"
}
rows() { # FILE: of a log, so far
  if [ -e "$1" ]; then wc -l <"$1"; else echo 0; fi
}
# begin ARGUMENT...: in the background, as $pid; and wait until the log has so many lines.
begin() {
  cases=$((cases + 1))
  "$program" "$@" >out 2>err </dev/null &
  pid=$!
}
until_rows() { # FILE COUNT: false if the run ended before
  while [ "$(rows "$1")" -lt "$2" ]; do
    kill -0 "$pid" 2>/dev/null || return 1
  done
}

for i in $(seq 200); do
  echo "$i. The gate is locked at $i in the evening, and the key of the gate hangs by the door."
done >text
mkdir texts
for i in 1 2 3 4; do head -n $((40 * i)) text | tail -n 40 >"texts/$i"; done
tiny=(--width 16 --heads 2 --hidden 16 --blocks 2 --learning-blocks 1 --window 8 --chunk 8
  --length 64 --batch 2 --rate 0.02)

# ---- the command line ---------------------------------------------------------------------------
run 0 --help
says '^usage: '
refuses 2 'which text'
refuses 2 'no option --nonsense' --nonsense text
refuses 2 'lacks its value' text --out
refuses 2 '--steps must be a number' --steps many text
refuses 2 '--plain takes no value' --plain=1 text
refuses 2 '--keep-chunks must be' --keep-chunks most text
refuses 2 '--resume takes --checkpoints' --resume text
refuses 2 '--plain has none' --plain --first-order text
refuses 2 'not a multiple of the chunk' --length 65 --chunk 8 text
refuses 2 'not an even number' --width 30 --heads 4 text
refuses 2 'part of the text' --log texts/log texts
refuses 2 'part of the text' --checkpoints ./texts/more/runs texts
refuses 2 'part of the text' --out text text
refuses 1 'missing: No such file' "${tiny[@]}" missing
refuses 1 'no text is long enough' "${tiny[@]}" --length 64000 text
refuses 1 'missing: No such file' --from missing text
refuses 1 'text' --from text texts
refuses 1 'cannot write missing/m' --out missing/m text
refuses 1 'cannot write missing/l' --log missing/l text
refuses 1 'cannot write missing/c' --chart missing/c text
refuses 1 'Not a directory' "${tiny[@]}" --checkpoints text/runs texts
refuses 1 'cannot write /dev/full: No space left' "${tiny[@]}" --steps 2 --log /dev/full text
refuses 1 ' of memory and the machine has ' --width 65536 --hidden 262144 --heads 512 text
[ ! -e missing ] || complain "folders are made for files"

# ---- an undisturbed run -------------------------------------------------------------------------
run 0 "${tiny[@]}" --steps 60 --evaluate-every 20 --out m --log log --chart 'a chart.svg' text
says '^step 20 of 60: [0-9.]+ bits per byte; validation: [0-9.]+ learning, [0-9.]+ frozen; '
says '^step 60 of 60: '
says '^ +all +[0-9]\.[0-9]+ +[0-9]\.[0-9]+ +-?[0-9.]+ %$'
header='step,loss,bits_per_byte,gradient_norm,rate,inner_multiplier,inner_steps'
header+=',clipped_inner_steps,skipped_inner_steps,validation_learning,validation_frozen'
[ "$(head -n 1 log)" = "$header" ] || complain "the log's first line is $(head -n 1 log)"
awk -F, 'NR > 1 {
    number = "^[0-9.e+-]+$"
    if (NF != 11 || $1 != NR - 2) exit 1
    for (i = 2; i <= 9; i++) if ($i !~ number) exit 1
    if (NR % 20 == 1 ? $10 !~ number || $11 !~ number : $10 $11 != "") exit 1
  }
  NR == 2 { first = $2 }
  END { exit !(NR == 61 && first > 5 && $2 < first - 2) }' log ||
  complain "the log does not have the right rows, or the loss does not go down: $(cat log)"
[ "$(head -c 4 'a chart.svg')" = '<svg' ] && [ "$(tail -n 1 'a chart.svg')" = '</svg>' ] ||
  complain "the chart is no SVG"

# Other ways to compute the same.
run 0 "${tiny[@]}" --steps 60 --evaluate-every 20 --out other --log other.log --threads 1 \
  --sequences 1 --keep-chunks sqrt --recompute text
same log other.log
same m other

# Other trainings.
run 0 "${tiny[@]}" --steps 5 --plain --log plain.log text
[ "$(tail -n 1 plain.log | cut -d, -f7)" = 0 ] || complain "--plain takes inner steps"
run 0 "${tiny[@]}" --steps 5 --validation 0 --out exact text
run 0 "${tiny[@]}" --steps 5 --validation 0 --out first --first-order text
differ exact first
run 0 "${tiny[@]}" --steps 5 --validation 0 --slices --log slices.log texts
[ "$(rows slices.log)" = 6 ] && ! grep -q '[0-9]$' slices.log ||
  complain "without validation text, the log should have empty columns: $(cat slices.log)"

# A second stage, with the sizes of the first.
run 0 --from m --length 128 --batch 2 --steps 5 --log second.log --out second text
awk -F, 'NR == 2 { exit !($2 < 4 && $6 == 1) }' second.log ||
  complain "the second stage does not begin where the first ended: $(cat second.log)"
awk -F, 'NR == 2 { exit !($6 < 1) }' log || complain "the inner loop is not warmed up"
differ m second
refuses 2 '--width is 32, but m has 16' --from m --width 32 text
refuses 2 '--chunk is 16, but m has 8' --from m --chunk 16 text

# ---- stopped ------------------------------------------------------------------------------------
long=("${tiny[@]}" --steps 300 --evaluate-every 75 --checkpoint-every 7)
run 0 "${long[@]}" --log whole.log --out whole text
long+=(--checkpoints runs --log part.log --out part --chart part.svg text)
begin "${long[@]}"
until_rows part.log 20
kill -TERM "$pid"
wait "$pid" || complain "SIGTERM ends it with $?: $(cat err)"
pid=
run 0 "${long[@]}" --resume
says '^going on behind step [0-9]+$'
same whole.log part.log
same whole part
run 0 "${long[@]}" --resume # there is nothing left to do
same whole.log part.log
same whole part

rm -r runs part*
begin "${long[@]}" --steps 1000000
until_rows part.log 20
mv out of-the-first
refuses 1 'another run' "${long[@]}" --steps 1000000 --resume
kill -TERM "$pid"
wait "$pid" || complain "SIGTERM ends it with $?: $(cat err)"
pid=
mv of-the-first out
says '^stopped behind step [0-9]+ of 1000000; the same command with --resume goes on$'
[ ! -e part ] || complain "a stopped run writes a model, though it can be resumed"
refuses 1 '--resume goes on with it' "${long[@]}" --steps 1000000
cp part.log before.log
refuses 1 'cannot resume' "${long[@]}" --resume
refuses 1 'cannot resume' "${long[@]}" --steps 1000000 --seed 7 --resume
same part.log before.log

rm -r runs part*
cases=$((cases + 1))
timeout --preserve-status -s INT 4 "$program" "${tiny[@]}" --steps 1000000 --out part text >out 2>&1 ||
  complain "SIGINT ends it with $?: $(cat out)"
says 'without --checkpoints, it cannot be resumed'
[ -s part ] || complain "a stopped run that cannot be resumed writes no model"

# ---- killed -------------------------------------------------------------------------------------
kills=0
rm -rf runs part*
while [ "$kills" -lt 10 ]; do
  begin "${long[@]}" --resume
  until_rows part.log $(($(rows part.log) + 1 + RANDOM % 40)) && kill -9 "$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
  status=$?
  pid=
  if [ "$status" = 0 ]; then # too late; again
    same whole.log part.log
    same whole part
    rm -r runs part*
  elif [ "$status" = 137 ]; then
    kills=$((kills + 1))
  else
    complain "resumed behind a kill, it ends with $status: $(cat err)"
    break
  fi
done
run 0 "${long[@]}" --resume --threads 1 --keep-chunks 1
same whole.log part.log
same whole part
[ "$(ls runs | grep -c '^step-')" = 2 ] || complain "not two checkpoints are kept: $(ls runs)"

# ---- out of room: files of more than 8 KB cannot be written -------------------------------------
rm -r runs part*
cases=$((cases + 1))
(
  trap '' XFSZ
  ulimit -f 8
  exec "$program" "${long[@]}" >out 2>err </dev/null
)
[ $? = 1 ] && [ "$(wc -l <err)" = 1 ] && grep -q 'cannot write the checkpoint runs/' err ||
  complain "without room for a checkpoint: $(cat err)"
run 0 "${long[@]}" --resume # with room
same whole.log part.log
same whole part

report
