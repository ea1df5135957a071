"""`quill prepare`: write the token files of a text. Optional, since training prepares what is missing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from quill.cli.arguments import Parser
    from quill.data.mixed_dataset import AnyDataset


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill prepare` to the parser."""
    parser.take_bare_word("dataset", several=True)
    parser.add_argument(
        "--dataset",
        type=str,
        default="shakespeare",
        help="shakespeare, tinystories, pydoc, or the path of your own text: a file, a folder, a glob, or a mixture "
        "(a.txt:0.7,b/:0.3)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Literal["char", "byte"],
        default="char",
        help="how text becomes tokens: char (its own characters) or byte (any text, any language)",
    )
    parser.add_argument("--data_dir", type=str, default="data", help="folder for prepared token files")
    parser.add_argument("--force", type=bool, default=False, help="rewrite the files even if they are up to date")


def run(arguments: argparse.Namespace) -> int:
    """Prepare the tokens, and print facts about them."""
    from quill.data.mixed_dataset import prepare_any
    from quill.process import keep_freed_memory
    from quill.tracking.phase_display import PhaseDisplay

    keep_freed_memory()
    with PhaseDisplay() as display:
        dataset = prepare_any(
            arguments.dataset, tokenizer=arguments.tokenizer, data_dir=arguments.data_dir, force=arguments.force,
            on_progress=display,
        )  # fmt: skip
    print(summary(dataset))
    return 0


def summary(dataset: AnyDataset) -> str:
    """Return the facts about prepared tokens, one a line."""
    from quill.data.mixed_dataset import MixedDataset

    tokenizer = dataset.tokenizer
    characters = getattr(tokenizer, "characters", "")
    parts = dataset.sources if isinstance(dataset, MixedDataset) else (dataset,)
    notes = dataset.notes if isinstance(dataset, MixedDataset) else [dataset.note]
    shown = f": {characters[:80]!r}{'…' if len(characters) > 80 else ''}" if characters else ""
    return "\n".join(
        [
            *_rows("corpus", notes),
            f"vocabulary  {tokenizer.vocab_size:,} tokens ({tokenizer.kind}){shown}",
            f"training    {len(dataset.train):,} tokens",
            f"validation  {len(dataset.val):,} tokens",
            *_rows("files", [str(part.folder) for part in parts]),
        ]
    )


def _rows(name: str, values: list[str]) -> list[str]:
    return [f"{'' if number else name:12}{value}" for number, value in enumerate(values)]
