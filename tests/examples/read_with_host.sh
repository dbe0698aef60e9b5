#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# read_with_host.sh PROGRAM: its options, its exit statuses, and what goes to which stream.
. "$(dirname "$0")/support.sh" "$1"
host=$tests/golden/byte_host

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

report
