#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes tests/golden/tokenizer_*: two small tokenizers, a rank file, and what becomes of difficult texts.

    python3 -m pip install tokenizers==0.23.3 tiktoken==0.14.0
    python3 tests/tokenizers/make_golden.py
"""

import glob
import json
import os
import random

from mixed_text import NASTY, pieces
from reference import SPECIAL, encoding, ranks_of, save, train, write_ranks

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "../golden")


def training_texts():
    for path in sorted(glob.glob(os.path.join(HERE, "../../docs/*.md"))):
        with open(path, encoding="utf-8") as file:
            yield file.read()
    yield from NASTY


def record(tokenizer, texts, rng):
    out = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        decoded = tokenizer.decode(ids)
        out.append({"text": text, "ids": ids})
        if plain != ids:
            out[-1]["plain"] = plain
        if decoded != text:
            out[-1]["decoded"] = decoded
    # Tokens that no text gives: characters cut off.
    for _ in range(40):
        ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(12)]
        out.append({"ids": ids, "decoded": tokenizer.decode(ids), "with_special": tokenizer.decode(ids, skip_special_tokens=False)})
    return out


def main():
    rng = random.Random(5)
    texts = list(NASTY) + pieces(11, 30)
    cases = {}
    for kind in ("llama3", "qwen"):
        tokenizer = train(kind, training_texts(), 1100)
        save(tokenizer, os.path.join(GOLDEN, f"tokenizer_{kind}.json"), legacy_merges=kind == "qwen")
        cases[kind] = record(tokenizer, texts, rng)
    ranks = ranks_of(train("llama3", training_texts(), 1100))
    write_ranks(ranks, os.path.join(GOLDEN, "tokenizer_ranks.model"))
    tiktoken = encoding("llama3", ranks)
    cases["ranks"] = [{"text": text, "ids": tiktoken.encode(text, allowed_special="all")} for text in texts[::2]]
    with open(os.path.join(GOLDEN, "tokenizer_cases.json"), "w", encoding="ascii") as file:
        json.dump(cases, file, separators=(",", ":"))
        file.write("\n")


main()
