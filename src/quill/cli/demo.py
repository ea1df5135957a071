"""`quill demo`: within two minutes, on any machine, a small GPT learns and writes.

It takes Tiny Shakespeare if it can be had, and else the help texts inside Python; measures how quick this machine is,
so that a whole recipe fits the time; trains; writes; and says what to try next.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.checkpoints.run_folder import holds_run, require_folder
from quill.cli import train
from quill.cli.arguments import Parser
from quill.device import resolve_device
from quill.errors import ConfigError
from quill.generation.sample import opening
from quill.process import keep_freed_memory
from quill.runs.start import start_training
from quill.runs.time_budget import Pace, describe, fit_to_minutes
from quill.validation import require

if TYPE_CHECKING:
    from quill.data.dataset import Dataset

MARK = "# A run of `quill demo`, which may write over it.\n"
ASKED: dict[str, Any] = {"log_interval": 5, "sample_tokens": 120}
PROMPTS = {"shakespeare": "ROMEO:", "pydoc": "The "}


def add_arguments(parser: Parser) -> None:
    """Give the parser what `quill demo` takes."""
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to train at most")
    parser.add_argument(
        "--out_dir", type=str, default="out-demo", help="folder of the run; an earlier demo there is replaced"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--seed", type=int, default=1337, help="decides initial weights, batches and what is written")


def run(arguments: argparse.Namespace) -> int:
    """Train for a minute, write, measure, and say what to try next."""
    require(0 < arguments.seconds < float("inf"), "seconds", arguments.seconds, "a number above 0")
    out_dir = Path(arguments.out_dir)
    require_folder(out_dir)
    if holds_run(out_dir) and not is_demo(out_dir):
        raise ConfigError(
            f"{out_dir} holds a run that is no demo, and a demo would replace it: choose another --out_dir"
        )
    asked = ASKED | {"out_dir": str(out_dir), "data_dir": str(out_dir / "data")}
    asked |= {"device": arguments.device, "seed": arguments.seed}
    keep_freed_memory()
    resolve_device(arguments.device)  # one that is not there is found before anything else is done
    print("looking for Tiny Shakespeare …", flush=True)
    dataset = prepare_demo_text(asked["data_dir"])
    print("measuring how quick this machine is …", flush=True)
    started = time.monotonic()
    settings, speed = fit_to_minutes(dataset, arguments.seconds / 60, asked | {"dataset": dataset.name})
    print(describe(settings, arguments.seconds / 60), flush=True)
    plan = Pace(started, arguments.seconds, settings["max_iters"], speed.look)
    stop = deadline(started + arguments.seconds, arguments.seconds, speed.look)
    result = start_training(settings, dataset, replace=True, stop=stop, plan=plan, mark=MARK)
    if result.reason == "interrupted":
        return train.say_how_to_go_on("train", str(out_dir))
    write_sample(out_dir, arguments.device, arguments.seed)
    print_scores(out_dir, arguments.device, dataset)
    print_next(out_dir, dataset)
    return 0


def is_demo(out_dir: Path) -> bool:
    """Say whether the run in this folder is one of ours, by the mark on its configuration."""
    file = out_dir / "config.yaml"
    return file.is_file() and file.read_text(encoding="utf-8").startswith(MARK)


def prepare_demo_text(data_dir: str) -> Dataset:
    """Return Tiny Shakespeare as tokens if it can be had, else pydoc; the corpus's note says which and why."""
    from quill.data.corpus import find_demo_corpus
    from quill.data.dataset import prepare_dataset

    corpus = find_demo_corpus()
    return prepare_dataset(corpus.name, data_dir=data_dir, corpus=corpus)


def deadline(ends: float, seconds: float, look_seconds: float) -> Callable[[], str | None]:
    """Return what ends the training when its time is up, should the machine have become slower than it was."""
    # Another evaluation and sample follow the last step, and they count.
    last = ends - min(seconds / 2, look_seconds)
    return lambda: "time" if time.monotonic() >= last else None


def write_sample(out_dir: Path, device: str, seed: int) -> None:
    """Let the model write, piece by piece."""
    from quill.generation.language_model import load
    from quill.tracking.terminal import printable

    model = load(out_dir, device=device, engine="torch")  # one short text is not worth compiling for
    print("\nThis is how it writes now:\n", flush=True)
    for piece in model.stream(opening(model.tokenizer), max_new_tokens=500, temperature=0.8, seed=seed + 1):
        print(printable(piece), end="", flush=True)
    print("\n")


def print_scores(out_dir: Path, device: str, dataset: Dataset) -> None:
    """Print the loss over the whole validation split, its bits per character, and where the picture is."""
    from quill.checkpoints.run_folder import load_checkpoint
    from quill.evaluation.split_loss import evaluate_split

    model = load_checkpoint(out_dir, device=resolve_device(device)).model
    score = evaluate_split(model, dataset.val, dataset.tokenizer)
    print(
        f"validation loss  {score.loss:.4f} nats per token over the whole split ({score.tokens:,} tokens it never saw)"
    )
    print(f"that is          {score.bits_per_character:.4f} bits per character")
    print(f"the loss curve   {out_dir / 'loss.png'}")


def print_next(out_dir: Path, dataset: Dataset) -> None:
    """Print three commands worth trying, ready to be pasted."""
    folder = train.quote(out_dir)
    prompt = PROMPTS.get(dataset.name, "The ")
    commands = [
        (f'quill generate --out_dir={folder} --prompt="{prompt}"', "it goes on from your words"),
        (
            "quill train --config=laptop --dataset=my.txt --out_dir=out-mine",
            "a text of yours instead of my.txt",
        ),
        (f"quill info {folder}", "what is in the model you have just made"),
    ]
    width = max(len(command) for command, _ in commands)
    print("\nTry next:")
    for command, reason in commands:
        print(f"  {command:<{width}}   # {reason}")
