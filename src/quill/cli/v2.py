"""`quill v2`: the founding recipe whole. Trains as "Let's build GPT" does, then writes 500 characters.

The recipe is the preset `v2`; every flag of `quill train` goes on top of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from quill.cli import train
from quill.cli.arguments import Parser
from quill.files import write_atomically
from quill.generation.sample import opening
from quill.runs.presets import read_settings

LENGTH = 500
TEXT_FILE = "generated_text.txt"


def add_arguments(parser: Parser) -> None:
    """Give the parser what `quill v2` takes: the flags of `quill train`, with the recipe's values as defaults."""
    train.add_arguments(parser)
    parser.set_defaults(**read_settings("v2")[0])


def run(arguments: argparse.Namespace) -> int:
    """Train, write 500 characters to the screen as they come, and keep them in generated_text.txt."""
    from quill.generation.language_model import load

    result = train.train_run(arguments)
    if result is not None and result.reason == "interrupted":
        return train.say_how_to_go_on("v2", arguments.out_dir)
    model = load(arguments.out_dir, device=arguments.device, engine="torch")
    pieces = []
    print(f"\nwhat it writes, {LENGTH} characters:\n", flush=True)
    start = opening(model.tokenizer)
    for piece in model.stream(start, max_new_tokens=LENGTH, seed=arguments.seed):
        pieces.append(piece)
        print(piece, end="", flush=True)
    save_text("".join(pieces)[:LENGTH], Path(TEXT_FILE))
    print(f"\n\nthe same text is in {TEXT_FILE}")
    return 0


def save_text(text: str, file: Path) -> None:
    """Write the text whole or not at all."""
    write_atomically(file, text.encode("utf-8", "replace"))
