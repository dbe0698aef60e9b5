#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Encodes and decodes much mixed text with this library, Hugging Face's tokenizers and tiktoken, and says
where they differ and how fast each is, in MB per second of processor time on one thread.

    python3 -m pip install tokenizers==0.23.3 tiktoken==0.14.0
    python3 tests/tokenizers/compare.py --text FOLDER [--code FOLDER] [--llama3 RANK_FILE] [--qwen RANK_FILE]

Takes up to 3 MB each of the texts in a folder and of the source code in another, and makes as much of
everything else: see mixed_text.py. Trains tokenizers on a part of it. A rank file, such as a model's
tokenizer.model, is tried as it is and as the tokenizer.json that it stands for.
"""

import argparse
import glob
import os
import subprocess
import struct
import sys
import tempfile
import time
import unicodedata

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer

from mixed_text import NASTY, every_character, pieces
from reference import SPECIAL, encoding, from_ranks, ranks_of, read_ranks, save, train, write_ranks

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "../..")
NAMES = ("*.txt", "*.md", "*.py", "*.c", "*.cpp", "*.hpp", "*.h", "*.cu", "*.cuh", "*.rs", "*.js")


def files_in(folder, limit):
    """Documents of about 100 KB, `limit` bytes together."""
    out, size = [], 0
    for path in sorted(p for name in NAMES for p in glob.glob(os.path.join(folder, "**", name), recursive=True)):
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            text = file.read()
        for begin in range(0, len(text), 100_000):
            if size > limit:
                return out
            out.append(text[begin:begin + 100_000])
            size += len(out[-1].encode())
    return out


def run_ours(program, tokenizer, texts, options, work):
    with open(os.path.join(work, "texts"), "wb") as file:
        for text in texts:
            data = text.encode()
            file.write(struct.pack("<I", len(data)) + data)
    results = os.path.join(work, "results")
    said = subprocess.run([program, tokenizer, file.name, results, *options], check=True, capture_output=True, text=True).stdout
    if "DIFFERS" in said:
        sys.exit("the stream decoder differs from decode()")
    with open(results, "rb") as file:
        data = file.read()
    out, at = [], 0

    def take(unit):
        nonlocal at
        size = struct.unpack_from("<I", data, at)[0] * unit
        at += 4 + size
        return data[at - size:at]

    ids = lambda part: list(struct.unpack(f"<{len(part) // 4}i", part))
    for _ in texts:
        out.append((ids(take(4)), ids(take(4)), take(1)))
    return out, [float(x) for x in said.split()]


def run_huggingface(tokenizer, texts):
    encoding_time = decoding_time = 0.0
    out = []
    for text in texts:
        start = time.process_time()
        ids = tokenizer.encode(text).ids
        middle = time.process_time()
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        decoding_time += time.process_time() - middle
        encoding_time += middle - start
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        out.append((ids, plain, decoded.encode()))
    return out, [encoding_time, decoding_time]


def run_tiktoken(tokenizer, texts):
    encoding_time = decoding_time = 0.0
    out = []
    for text in texts:
        start = time.process_time()
        ids = tokenizer.encode(text, allowed_special="all")
        middle = time.process_time()
        decoded = tokenizer.decode_bytes(ids)
        decoding_time += time.process_time() - middle
        encoding_time += middle - start
        out.append((ids, tokenizer.encode_ordinary(text), decoded))
    return out, [encoding_time, decoding_time]


def compare(name, groups, ours, theirs, log):
    wrong = 0
    for group, texts in groups.items():
        size = sum(len(t.encode()) for t in texts) / 1e6
        (a, times), (b, their_times) = ours(texts), theirs(texts)
        for text, x, y in zip(texts, a, b):
            if x != y:
                wrong += 1
                if wrong <= 5:
                    kinds = [what for what, p, q in zip(("tokens", "plain tokens", "text"), x, y) if p != q]
                    place = next((i for i, (p, q) in enumerate(zip(x[0], y[0])) if p != q), -1)
                    print(f"  {kinds} differ, token {place}: {x[0][place:place + 6]} {y[0][place:place + 6]} in {text[:80]!r}")
        tokens = sum(len(x[0]) for x in a)
        log.append(f"| {name} | {group} | {size:.1f} | {tokens} | {size / times[1]:.1f} | {size / their_times[0]:.1f} | "
                   f"{size / times[2]:.0f} | {size / their_times[1]:.0f} |")
    print(f"{name}: {wrong} texts differ", flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--code", default=os.path.join(ROOT, "include"))
    parser.add_argument("--llama3", help="a rank file with Llama-3's pattern")
    parser.add_argument("--qwen", help="a rank file with Qwen's pattern")
    parser.add_argument("--compiler", default="g++")
    given = parser.parse_args()

    mixed = pieces(1, 12_000)
    groups = {
        "prose": files_in(given.text, 3e6),
        "code": files_in(given.code, 3e6),
        "mixed": ["".join(mixed[i:i + 100]) for i in range(0, len(mixed), 100)],
        "mixed, short": pieces(2, 12_000) + NASTY,
        "every character": every_character(),
    }
    sizes = {name: round(sum(len(t.encode()) for t in texts) / 1e6, 1) for name, texts in groups.items()}
    print("MB:", sizes, "Python's Unicode:", unicodedata.unidata_version, flush=True)
    sample = groups["prose"][:10] + groups["code"][:10] + groups["mixed"][:20]

    wrong, log = 0, []
    with tempfile.TemporaryDirectory() as work:
        program = os.path.join(work, "tokenize")
        subprocess.run([given.compiler, "-std=c++20", "-O2", f"-I{ROOT}/include", f"{HERE}/tokenize.cpp", "-o", program], check=True)

        def against_json(name, tokenizer, **options):
            path = os.path.join(work, "tokenizer.json")
            save(tokenizer, path, **options)
            start = time.process_time()
            loaded = Tokenizer.from_file(path)
            their_load = time.process_time() - start
            our_load = run_ours(program, path, [""], [], work)[1][0]
            print(f"{name}: loads in {our_load:.2f} s, theirs in {their_load:.2f} s")
            return compare(name, groups, lambda t: run_ours(program, path, t, [], work), lambda t: run_huggingface(loaded, t), log)

        def against_tiktoken(name, kind, ranks):
            path = os.path.join(work, "tokenizer.model")
            write_ranks(ranks, path)
            theirs = encoding(kind, ranks)
            first = max(ranks.values()) + 1
            options = [kind, *(f"{t}={first + i}" for i, t in enumerate(SPECIAL[kind]))]
            return compare(name, groups, lambda t: run_ours(program, path, t, options, work), lambda t: run_tiktoken(theirs, t), log)

        for kind in ("llama3", "qwen", "gpt2"):
            trained = train(kind, sample, 8000)
            wrong += against_json(f"{kind}, trained", trained, legacy_merges=kind == "qwen")
            if kind != "gpt2":
                wrong += against_tiktoken(f"{kind}, trained, ranks", kind, ranks_of(trained))
        for kind, path in (("llama3", given.llama3), ("qwen", given.qwen)):
            if path:
                ranks = read_ranks(path)
                wrong += against_json(f"{kind}, its own", from_ranks(kind, ranks))
                wrong += against_tiktoken(f"{kind}, its own ranks", kind, ranks)
    print("\n| tokenizer | text | MB | tokens | encode, MB/s | theirs | decode, MB/s | theirs |\n|---|---|--:|--:|--:|--:|--:|--:|")
    print("\n".join(log))
    sys.exit(1 if wrong else 0)


main()
