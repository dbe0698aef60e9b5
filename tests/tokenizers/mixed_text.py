# SPDX-License-Identifier: MIT
"""Texts that tokenizers are compared on. Pure functions of a seed."""

import random
import unicodedata

NASTY = [
    "", " ", "  ", "\n", "\r\n", "\t", "a", " a", "a ", "  a", "a  b", "a\n b", "a \n b", "a \n\n  b\t\r\n ",
    "\n\n  \n x", "   \t\u00a0\u2003\u3000x \u00a0", "\u0085\u2028\u2029 x\u1680", "\u200b\u180e\ufeff x",
    "I'm you're he'll they've it's don't I'd", "I'M YOU'RE HE'LL THEY'VE IT'S DON'T I'D", "'s's'S'\u017f's x'\u017fx",
    "'re 'rE 'Re 'r 'e 'l 'll 'LL 'lL'' ''s don''t", "it\u2019s rock'n'roll 'tis 'twas o'clock",
    "1 12 123 1234 12345 1234567890123 3.14159 1,000,000 0x1F 1e-5", "\u0661\u0662\u0663\u0664 \u0967\u0968\u0969\u096a \u00bd\u00b2\u2167\u3007\u4e00\u2460",
    "x1y22z333w4444", "2nd 3rd 4th", "!!!??? ...\n\n...\r\n --- \n", "a!b?c;d:e{f}g[h]i(j)k", " !\n !\r\n\n!", "$100 #tag @user 50%",
    "int main(int argc, char** argv) {\n\tfor (int i = 0; i < 10; ++i) printf(\"%d\\n\", i);\n}\n",
    "def f(x):\n    return [y**2 for y in range(x) if y % 2]\n\n\n", "<html><body class=\"x\">&nbsp;</body></html>",
    "https://example.com/a/b?c=d&e=f#g", "C:\\Users\\x\\y.txt", "SELECT * FROM t WHERE a<>'b';",
    "caf\u00e9 cafe\u0301 na\u00efve nai\u0308ve \u00c5ngstro\u0308m \u212b A\u030a \u1e9b\u0323 q\u0307\u0323 q\u0323\u0307",
    "\u0344 \u0958 \u0931\u093c \u09c7\u09be \u0cc6\u0cc2\u0cd5 \u1112\u1161\u11ab \ud55c \uac00\u11a8 \u1100\u1161\u11a7 \u1100\u1161\u11a8\u11a8",
    "a\u0301\u0300\u0323\u0345\u0334\u0327 \u0300\u0301 a\u0315\u0300\u05ae\u0300b e\u0302\u0301 o\u0328\u0304 u\u0308\u0304",
    "\uf900 \u2126 \u212a \u2329 \ufb1d \ufb2a \U0002f800 \U0001d15e \U0001d1bb \U000110ab \U00011131\U00011127",
    "\U000105c9 \U000105d2\U00000307 \U00011382\U000113c9 \u0897\u0301 \u1abf\u0323",
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f \u0031\ufe0f\u20e3",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f\u4e16\u754c \u30c6\u30b9\u30c8 \uc548\ub155\ud558\uc138\uc694 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0438\u0306\u0438\u0306 \u0418\u0306 \u0393\u03b5\u03b9\u03ac \u03b9\u0301 \u0928\u092e\u0938\u094d\u0924\u0947 \u0ba8\u0bbf \u1019\u103c\u1014\u103a",
    "\u0000\u0001\u001f\u007f\u0080\u00ad\ufffd\ufffe\uffff\U0010ffff\ue000", "\ud7ff\ue000\U00010000\U0001f9ff",
    "<|begin_of_text|>x<|eot_id|> <|eot_id|><|eot_id|>\n<|end_of_text|", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>e<|im_end|>\u0301<|endoftext|>",
    "<tool_call>{\"a\": 1}</tool_call> <tool_call >", "<|im_start|<|im_start|>|>", "a" * 300, "ab" * 200, " " * 300 + "x" + " " * 77, "\n" * 130,
    "\u00e9" * 150, "\u4e00" * 200, "1" * 100, "=" * 200 + "\n", "-_" * 90, "\u0301" * 120, "a" + "\u0323\u0301" * 60, "\u1100" * 50 + "\u1161" * 50,
    "Supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis Donaudampfschifffahrtsgesellschaft",
]


def assigned(first, last):
    return [chr(c) for c in range(first, last + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]


def pieces(seed, count):
    """So many snippets of everything at once, each of about 60 characters."""
    rng = random.Random(seed)
    blocks = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x591, 0x5F4), (0x600, 0x6FF),
              (0x900, 0x97F), (0x980, 0x9FF), (0xC80, 0xCFF), (0xE00, 0xE7F), (0xF00, 0xFFF), (0x1000, 0x109F), (0x1100, 0x11FF),
              (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2100, 0x218F), (0x2190, 0x22FF), (0x2460, 0x24FF), (0x3000, 0x30FF),
              (0x4E00, 0x4FFF), (0xAC00, 0xB000), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFE00, 0xFFEF), (0x1D100, 0x1D1FF),
              (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF), (0x20000, 0x20100), (0x2F800, 0x2FA1D)]
    letters = [assigned(*block) for block in blocks]
    marks = [chr(c) for c in range(0x110000) if unicodedata.combining(chr(c)) or unicodedata.category(chr(c)) == "Mn"]
    spaces = [" ", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\n\n", " \n ", "\r", "\x0b", "\x85"]
    emoji = assigned(0x1F300, 0x1F64F)
    ends = ["'s", "'T", "'re", "'LL", "'", "\u2019s", "'\u017f"]
    out = []
    for _ in range(count):
        kind = rng.randrange(9)
        if kind == 0:  # words of one script
            block = rng.choice(letters)
            text = "".join(rng.choice(block) if rng.random() < 0.8 else rng.choice(spaces) for _ in range(60))
        elif kind == 1:  # any block
            text = "".join(rng.choice(rng.choice(letters)) for _ in range(60))
        elif kind == 2:  # any code point at all
            text = "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(40))
        elif kind == 3:  # marks
            text = "".join(rng.choice(rng.choice(letters)) + "".join(rng.choice(marks) for _ in range(rng.randrange(4))) for _ in range(25))
            if rng.random() < 0.5:
                text = unicodedata.normalize("NFD", text)
        elif kind == 4:  # spaces
            text = "".join(rng.choice(spaces) if rng.random() < 0.7 else rng.choice(["x", "1", "!", "\u00e9", "word"]) for _ in range(60))
        elif kind == 5:  # contractions and numbers
            text = "".join(rng.choice([str(rng.randrange(10 ** rng.randrange(1, 12))), "you", "DON", "\u00e9t\u00e9", "x"]) + rng.choice(ends) + rng.choice(["", " "])
                           for _ in range(12))
        elif kind == 6:  # emoji
            text = "".join(rng.choice(emoji) + rng.choice(["", "\u200d", "\ufe0f", " ", "\U0001f3fd"]) for _ in range(30))
        elif kind == 7:  # random bytes
            text = rng.randbytes(60).decode("utf-8", "replace" if rng.random() < 0.5 else "ignore") + rng.randbytes(40).decode("latin-1")
        else:  # jamo and special tokens
            text = "".join(rng.choice([chr(rng.randrange(0x1100, 0x1200)), chr(rng.randrange(0xAC00, 0xD7A4)), "<|eot_id|>", "<|im_end|>", "<tool_call>", "e\u0301"])
                           for _ in range(25))
        out.append(text)
    return out


def every_character():
    """Each code point of the planes in use, between what shows its class and how it composes."""
    codes = [c for c in [*range(0x33400), *range(0xE0000, 0xE0200), 0x10FFFF] if not 0xD800 <= c <= 0xDFFF]
    shown = [f"a{chr(c)}1{chr(c)}\u0301\u0323 {chr(c)}! \u1100{chr(c)}\u11a8'{chr(c)}" for c in codes]
    return ["".join(shown[i:i + 2000]) for i in range(0, len(shown), 2000)]
