# SPDX-License-Identifier: MIT
"""Tokenizers of Hugging Face and tiktoken, put together as Llama-3's, Qwen's and GPT-2's files have them."""

import base64
import json

import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
PATTERNS = {
    "llama3": HEAD + r"\p{N}{1,3}|" + REST,
    "qwen": HEAD + r"\p{N}|" + REST,
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
SPECIAL = {
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "gpt2": ["<|endoftext|>"],
}


def finish(tokenizer, kind):
    """Everything but the model."""
    level = {"add_prefix_space": False}
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**level, use_regex=True)
    else:
        split = pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(**level, use_regex=False)])
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_special(tokenizer, kind):
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL[kind]])
    if kind == "qwen":
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<tool_call>", "</tool_call>")])
    level = processors.ByteLevel(trim_offsets=False)
    if kind == "llama3":
        bos = SPECIAL[kind][0]
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([level, template])
    else:
        tokenizer.post_processor = level
    return tokenizer


def train(kind, texts, size):
    tokenizer = finish(Tokenizer(models.BPE(ignore_merges=kind == "llama3")), kind)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return add_special(tokenizer, kind)


def save(tokenizer, path, legacy_merges=False):
    """As compact as JSON goes, with merges as "a b" or as ["a", "b"]."""
    content = json.loads(tokenizer.to_str())
    if legacy_merges:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


def spelling():
    """The character that spells a byte in tokenizer.json."""
    others = iter(range(256, 512))
    return [chr(b if 33 <= b <= 126 or b >= 161 and b != 173 else next(others)) for b in range(256)]


def ranks_of(tokenizer):
    """The vocabulary as bytes: id, without what was added."""
    byte = {c: b for b, c in enumerate(spelling())}
    added = set(tokenizer.get_added_tokens_decoder())
    return {bytes(byte[c] for c in text): id for text, id in tokenizer.get_vocab().items() if id not in added}


def write_ranks(ranks, path):
    with open(path, "wb") as file:
        for text, rank in sorted(ranks.items(), key=lambda item: item[1]):
            file.write(base64.b64encode(text) + b" %d\n" % rank)


def read_ranks(path):
    with open(path, "rb") as file:
        return {base64.b64decode(text): int(rank) for text, rank in (line.split() for line in file if line.strip())}


def from_ranks(kind, ranks):
    """The tokenizer.json that stands for a rank file: every way to cut a token is a merge."""
    spelled = spelling()
    spell = lambda text: "".join(spelled[b] for b in text)
    merges = []
    for text, _ in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = [(text[:i], text[i:]) for i in range(1, len(text))]
        cuts = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        merges += [(spell(a), spell(b)) for a, b in sorted(cuts, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))]
    vocab = {spell(text): rank for text, rank in ranks.items()}
    return add_special(finish(Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=kind == "llama3")), kind), kind)


def encoding(kind, ranks):
    """tiktoken's tokenizer; special tokens come after the ranks."""
    first = max(ranks.values()) + 1
    return tiktoken.Encoding(kind, pat_str=PATTERNS[kind], mergeable_ranks=ranks,
                             special_tokens={t: first + i for i, t in enumerate(SPECIAL[kind])})
