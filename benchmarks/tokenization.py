"""Speed of encoding and decoding: Quill and other tokenizers, in turn in the same process.

    python benchmarks/tokenization.py [--megabytes=4] [--runs=5] [--json=FILE]

Figures are megabytes of UTF-8 text a second, medians. The others are a dictionary in a Python loop, as in nanoGPT's
`data/shakespeare_char/prepare.py`, and `ByT5Tokenizer` of transformers (byte level, needs no download), which gets a
smaller part of the same text, because it would take minutes. Building a vocabulary does not count, and every
contestant must return the text that it was given.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from measure import Figures, alternate, describe_hardware, print_table, write_json

from quill.data.corpus import find_corpus
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer

BYT5_MEGABYTES = 0.2


def main() -> int:
    """Measure every tokenizer on every text, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--megabytes", type=float, default=4.0, help="size of each text in UTF-8 (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="turns of each contestant; the median counts (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    arguments = parser.parse_args()

    rows, results = [], {}
    for language, text in texts(int(arguments.megabytes * 1e6)).items():
        summaries = alternate(contestants(text), arguments.runs)
        results[language] = summaries
        for name, figures in summaries.items():
            rows.append([f"{language}: {name}", *(round(summary.median, 1) for summary in figures.values())])
    print(describe_hardware())
    print_table("Tokenization", ["text: tokenizer", "MB", "encode MB/s", "decode MB/s"], rows)
    if arguments.json:
        write_json(arguments.json, "tokenization", results)
    return 0


def texts(size: int) -> dict[str, str]:
    """Return an English (ASCII), a Chinese and an emoji text of about `size` bytes, the same on every machine."""
    draw = random.Random(0)
    english = find_corpus("pydoc").text.encode("ascii", "ignore").decode()
    hanzi = [chr(0x4E00 + i) for i in range(3000)]  # as many as a newspaper needs
    frequency = [1 / rank for rank in range(1, 3001)]  # Zipf's law
    faces = [*(chr(0x1F600 + i) for i in range(70)), *"aeinot \n"]
    return {
        "English": (english * (size // len(english) + 1))[:size],
        "Chinese": "".join(draw.choices([*hanzi, "，", "。\n"], [*frequency, 0.5, 0.2], k=size // 3)),
        "emoji": "".join(draw.choices(faces, k=size * 10 // 37)),
    }


def contestants(text: str) -> dict[str, Callable[[], Figures]]:
    """Return the turn of each contestant on this text, by name."""
    characters, in_bytes = CharTokenizer.from_text(text), ByteTokenizer()
    turns = {
        "Quill, characters": turn(partial(characters.encode, compact=True), characters.decode, text),
        "Quill, bytes": turn(partial(in_bytes.encode, compact=True), in_bytes.decode, text),
        "dictionary in a loop": turn(*dictionary_loop(text), text),
    }
    try:
        from transformers import ByT5Tokenizer
    except ImportError:
        print("transformers is not installed: pip install 'quill-gpt[benchmarks]' adds ByT5", file=sys.stderr)
        return turns
    byt5: Any = ByT5Tokenizer()
    share = text[: int(len(text) * min(1.0, BYT5_MEGABYTES * 1e6 / len(text.encode())))]
    turns["transformers, ByT5"] = turn(lambda text: byt5.encode(text, add_special_tokens=False), byt5.decode, share)
    return turns


def dictionary_loop(text: str) -> tuple[Callable[[str], np.ndarray], Callable[[Sequence[int] | np.ndarray], str]]:
    """Return nanoGPT's method: one dictionary lookup a character, into the uint16 array that training needs."""
    characters = sorted(set(text))
    numbers = {character: number for number, character in enumerate(characters)}

    def encode(text: str) -> np.ndarray:
        return np.array([numbers[character] for character in text], dtype=np.uint16)

    def decode(tokens: Sequence[int] | np.ndarray) -> str:
        return "".join([characters[number] for number in tokens])

    return encode, decode


def turn(encode: Callable[[str], Any], decode: Callable[[Any], str], text: str) -> Callable[[], Figures]:
    """Return a function that encodes and decodes a text once and returns the speeds."""
    megabytes = len(text.encode()) / 1e6

    def once() -> Figures:
        start = time.perf_counter()
        tokens = encode(text)
        middle = time.perf_counter()
        back = decode(tokens)
        end = time.perf_counter()
        if back != text:
            raise RuntimeError("a tokenizer did not return its text, so its speed means nothing")
        return {
            "megabytes": megabytes,
            "encode_mb_per_s": megabytes / (middle - start),
            "decode_mb_per_s": megabytes / (end - middle),
        }

    return once


if __name__ == "__main__":
    sys.exit(main())
