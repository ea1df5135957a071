"""`quill v2`: the recipe of "Let's build GPT", then 500 characters of generated text.

The recipe is the preset `v2`; every flag of `quill train` overrides it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from quill.cli import train
from quill.cli.arguments import Parser
from quill.files import write_atomically
from quill.generation.sample import default_prompt
from quill.runs.presets import read_settings

LENGTH = 500
TEXT_FILE = "generated_text.txt"


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill v2` to the parser: those of `quill train`, with the recipe's values as defaults."""
    train.add_arguments(parser)
    parser.set_defaults(**read_settings("v2")[0])


def run(arguments: argparse.Namespace) -> int:
    """Train, print 500 generated characters, and save them in generated_text.txt."""
    from quill.runs.start import run as start_run

    recipe = {"out_dir": arguments.out_dir} if arguments.resume else {"config": "v2"}
    result = start_run(**(recipe | arguments.given))
    if result.reason == "interrupted":
        return train.say_how_to_resume("v2", result)
    model = result.load(device=arguments.device, engine="torch")
    pieces = []
    print(f"\ngenerated text, {LENGTH} characters:\n", flush=True)
    for piece in model.stream(default_prompt(model.tokenizer), max_new_tokens=LENGTH, seed=arguments.seed):
        pieces.append(piece)
        print(piece, end="", flush=True)
    write_atomically(Path(TEXT_FILE), "".join(pieces)[:LENGTH].encode("utf-8", "replace"))
    print(f"\n\nthe same text is in {TEXT_FILE}")
    return 0
