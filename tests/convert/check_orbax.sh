#!/bin/sh
# SPDX-License-Identifier: MIT
# Converts the sample Orbax checkpoint and compares the result with Orbax's own restore and with
# tests/golden/orbax_converted.safetensors. By hand only: it installs Orbax and JAX (CPU) from PyPI
# into a virtual environment, a temporary one unless the first argument names one to keep.
set -eu

root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${1:-$work/venv}

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet -r "$root/examples/convert/requirements.txt"
tar xJf "$root/tests/golden/orbax_checkpoint.tar.xz" -C "$work"

out=$work/out.safetensors
config=$root/tests/convert/orbax_config.json
convert() { "$venv/bin/python" "$root/examples/convert/orbax_to_safetensors.py" "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

# refuses KEYWORD ARGUMENTS...: the conversion must fail, name the keyword and leave no file behind.
refuses() {
  word=$1
  shift
  if convert "$@" >/dev/null 2>"$work/message"; then fail "accepted $*"; fi
  grep -q "^orbax_to_safetensors: " "$work/message" || fail "no plain message for $*"
  grep -q "$word" "$work/message" || fail "the message for $* does not name $word"
  for left in "$work"/out.safetensors "$work"/.out.safetensors*; do
    [ ! -e "$left" ] || fail "left $left behind after $*"
  done
}

for key in num_attention_heads rope_theta rms_norm_eps; do
  grep -v "\"$key\"" "$config" > "$work/short.json"
  refuses "$key" "$work/ck" "$out" --config "$work/short.json"
done
refuses q_norm "$work/ck" "$out" --config "$config" num_attention_heads=8
refuses hidden_size "$work/ck" "$out" --config "$config" hidden_size=64
refuses tie_word_embeddings "$work/ck" "$out" --config "$config" tie_word_embeddings=false
refuses rope_thetas "$work/ck" "$out" --config "$config" rope_thetas=10000
refuses model_weights "$work" "$out" --config "$config"

convert "$work/ck" "$work/narrow.safetensors" --config "$config" --dtype bfloat16 --check
for place in "$work/ck" "$work/ck/0" "$work/ck/0/model_weights"; do
  rm -f "$out"
  convert "$place" "$out" --config "$config" --check
  cmp "$out" "$root/tests/golden/orbax_converted.safetensors" || fail "not the recorded file"
done
echo "check_orbax: all good"
