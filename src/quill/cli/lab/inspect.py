"""`quill inspect`: look inside a trained model. Each view is a picture, its numbers as JSON, and a page with both."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quill.cli.lab.views import NOT_IN_ALL, VIEWS, Look, view
from quill.errors import ConfigError
from quill.files import expand_home
from quill.validation import require

if TYPE_CHECKING:
    from quill.cli.arguments import Parser
    from quill.data.mixed_dataset import AnyDataset

OPENING = 64
"""Tokens of the validation split that are looked at where no prompt is given."""


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill inspect` to the parser."""
    parser.take_bare_word("out_dir")
    add = parser.add_argument
    add("--out_dir", type=str, help="the run to look at, or tiny; by default the newest run in this folder")
    add("--prompt", type=str, help="the text to look at; by default the first characters of the run's validation split")
    listed = "; ".join(f"{name}: {text}" for name, (_, text) in VIEWS.items())
    add("--show", type=Literal[(*VIEWS, "all")], default="attention", help=f"{listed}; all: one after the other")
    add("--over_time", action="store_true", help="the same as --show=over-time")
    add("--layer", type=int | None, help="this layer only, from 0; for neurons the last one by default")
    add("--head", type=int | None, help="attention of this head only, from 0, large")
    add("--position", type=int | None, help="the token whose successor is explained, from 0; by default the last")
    add("--token", type=str | None, help="the successor that is explained; by default the likeliest")
    add(
        "--versus",
        type=str | None,
        help="compare with this token; by default attribution compares with the mean of all",
    )
    add("--corrupted", type=str | None, help="patching: a text as long as the prompt, with another continuation")
    add(
        "--target",
        type=str,
        action="append",
        default=[],
        help="ablation: what to remove, together if repeated: head:0.3, attention:1, feed_forward:2, block:0, ngrams",
    )
    add(
        "--method",
        type=Literal["zero", "mean", "resample"],
        default="zero",
        help="ablation: replace by zero, by the mean over windows, or by the same of another window",
    )
    add("--windows", type=int, default=32, help="ablation: windows of the text on which the loss is measured")
    add("--seed", type=int, default=0, help="decides every random choice")
    add("--checkpoint", type=Literal["best", "last"], default="best", help="which checkpoint of the run")
    add("--device", type=str, default="cpu", help="auto, cpu, cuda, cuda:1 or mps")
    add(
        "--to",
        type=str,
        help="folder for the files; by default inspect in the run, for tiny in this folder",
    )
    add("--json", action="store_true", help="print the numbers as JSON and write no file")


def run(arguments: argparse.Namespace) -> int:
    """Compute a view of a run, write its files, and print where they are."""
    from quill.checkpoints.named import find_model, tiny_model
    from quill.checkpoints.run_folder import load_checkpoint, require_folder
    from quill.device import resolve_device
    from quill.lab.subject import ModelAndTokenizer
    from quill.tracking.phase_display import PhaseDisplay

    if arguments.over_time:
        arguments.show = "over-time"
    require(0 <= arguments.seed < 2**31, "seed", arguments.seed, "from 0 to 2**31 - 1")
    require(2 <= arguments.windows <= 10**4, "windows", arguments.windows, "from 2 to 10000")
    if arguments.json and arguments.show == "all":
        raise ConfigError("json prints one view: choose one by --show")
    folder = find_model(arguments.out_dir or None)
    checkpoint = load_checkpoint(folder, resolve_device(arguments.device), arguments.checkpoint)
    subject = ModelAndTokenizer(checkpoint.model, checkpoint.tokenizer)
    root = folder if folder.is_dir() else folder.parent
    root = Path() if root == tiny_model() else root  # no command writes into the package
    target = expand_home(arguments.to) if arguments.to else root / "inspect"
    if not arguments.json:
        require_folder(target)
    with PhaseDisplay() as display:

        def read_dataset() -> AnyDataset:
            from quill.runs.run_text import text_of_run

            return text_of_run(folder, checkpoint, None, display)

        prompt = arguments.prompt
        if prompt is None and arguments.show in ("heads", "ablation", "neurons", "over-time"):
            prompt = "\n"  # they look at other texts
        elif prompt is None:
            length = min(OPENING, checkpoint.config.block_size)
            prompt = subject.tokenizer.decode(read_dataset().val[:length])
        look = Look(subject, folder, prompt, arguments, read_dataset, display)
        names = [name for name in VIEWS if name not in NOT_IN_ALL] if arguments.show == "all" else [arguments.show]
        for name in names:
            arguments.show = name
            finding = view(name, look)
            if arguments.json:
                display.clear()
                sys.stdout.write(finding.to_json())
                return 0
            files = finding.save(target, name)
            display.clear()
            print(f"{finding.title}")
            print(*(f"  {file}" for file in files), sep="\n")
    return 0
