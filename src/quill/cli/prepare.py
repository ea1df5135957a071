"""`quill prepare`: text in, token files out. Optional, since training prepares what is missing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from quill.cli.arguments import Parser
    from quill.data.dataset import Dataset


def add_arguments(parser: Parser) -> None:
    """Give the parser what `quill prepare` takes."""
    parser.take_bare_word("dataset")
    parser.add_argument(
        "--dataset",
        type=str,
        default="shakespeare",
        help="shakespeare, tinystories, pydoc, or the path of your own text",
    )
    parser.add_argument(
        "--tokenizer", type=Literal["char", "byte"], default="char", help="char, or byte for any text in any language"
    )
    parser.add_argument("--data_dir", type=str, default="data", help="folder for prepared token files")
    parser.add_argument("--force", type=bool, default=False, help="write the files anew even if they are up to date")


def run(arguments: argparse.Namespace) -> int:
    """Prepare the tokens, and say what they are and where they lie."""
    from quill.data.dataset import prepare_dataset

    dataset = prepare_dataset(
        arguments.dataset, tokenizer=arguments.tokenizer, data_dir=arguments.data_dir, force=arguments.force
    )
    print(summary(dataset))
    return 0


def summary(dataset: Dataset) -> str:
    """Return what a person wants to know of prepared tokens, a fact a line."""
    tokenizer = dataset.tokenizer
    characters = getattr(tokenizer, "characters", "")
    shown = f": {characters[:80]!r}{'…' if len(characters) > 80 else ''}" if characters else ""
    return "\n".join(
        [
            f"corpus      {dataset.note}",
            f"vocabulary  {tokenizer.vocab_size:,} tokens ({tokenizer.kind}){shown}",
            f"training    {len(dataset.train):,} tokens",
            f"validation  {len(dataset.val):,} tokens",
            f"files       {dataset.folder}",
        ]
    )
