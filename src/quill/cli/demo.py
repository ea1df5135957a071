"""`quill demo`: train a small GPT and generate text with it, within two minutes on any machine.

It uses Tiny Shakespeare if available, else the help texts inside Python. It measures the speed of this machine, so that
a complete training run fits the time, and prints what to try next.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.cli import train
from quill.cli.arguments import Parser
from quill.device import resolve_device
from quill.errors import ConfigError
from quill.files import expand_home
from quill.generation.sample import default_prompt
from quill.runs.settings import check_settings
from quill.validation import require

if TYPE_CHECKING:
    from quill.data.dataset import Dataset

MARK = "# A run of `quill demo`, which may write over it.\n"
ASKED: dict[str, Any] = {"log_interval": 5, "sample_tokens": 120}
PROMPTS = {"shakespeare": "ROMEO:", "pydoc": "The "}


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill demo` to the parser."""
    parser.add_argument("--seconds", type=float, default=60.0, help="longest time to train")
    parser.add_argument(
        "--out_dir", type=str, default="out-demo", help="folder of the run; an earlier demo there is replaced"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--seed", type=int, default=1337, help="determines initial weights, batches and the sample")


def run(arguments: argparse.Namespace) -> int:
    """Train for a minute, generate, evaluate, and print what to try next."""
    from quill.checkpoints.run_folder import holds_run, require_folder
    from quill.runs.observers import Observers
    from quill.runs.start import run_for_minutes

    require(0 < arguments.seconds < float("inf"), "seconds", arguments.seconds, "a number above 0")
    out_dir = expand_home(arguments.out_dir)
    require_folder(out_dir)
    if holds_run(out_dir) and not is_demo(out_dir):
        raise ConfigError(
            f"{out_dir} holds a run that is not a demo, and the demo would replace it: choose another --out_dir"
        )
    resolve_device(arguments.device)  # a missing device is reported first
    given = check_settings(ASKED | {"out_dir": str(out_dir), "data_dir": str(out_dir / "data")})
    given |= {"device": arguments.device, "seed": arguments.seed}
    print("looking for Tiny Shakespeare …", flush=True)
    dataset = prepare_demo_text(given["data_dir"])
    minutes = arguments.seconds / 60
    result = run_for_minutes(
        minutes, given | {"dataset": dataset.name}, Observers(), overwrite=True, dataset=dataset, late=1.0, mark=MARK
    )
    if result.reason == "interrupted":
        return train.say_how_to_resume("train", result)
    write_sample(out_dir, arguments.device, arguments.seed)
    print_scores(out_dir, arguments.device, dataset)
    print_next(out_dir, dataset)
    return 0


def is_demo(out_dir: Path) -> bool:
    """Return whether the run in this folder is a demo, by the comment that begins its config.yaml."""
    file = out_dir / "config.yaml"
    return file.is_file() and file.read_bytes().startswith(MARK.encode())


def prepare_demo_text(data_dir: str) -> Dataset:
    """Return the dataset of Tiny Shakespeare if it is available, else of pydoc; its note says which and why."""
    from quill.data.corpus import find_demo_corpus
    from quill.data.dataset import prepare_dataset

    corpus = find_demo_corpus()
    return prepare_dataset(corpus.name, data_dir=data_dir, corpus=corpus)


def write_sample(out_dir: Path, device: str, seed: int) -> None:
    """Print a generated text, piece by piece."""
    from quill.generation.language_model import load
    from quill.tracking.terminal import printable

    model = load(out_dir, device=device, engine="torch")  # one short text is not worth compiling for
    print("\ngenerated text:\n", flush=True)
    for piece in model.stream(default_prompt(model.tokenizer), max_new_tokens=500, temperature=0.8, seed=seed + 1):
        print(printable(piece), end="", flush=True)
    print("\n")


def print_scores(out_dir: Path, device: str, dataset: Dataset) -> None:
    """Print the loss over the whole validation split, its bits per character, and where the picture is."""
    from quill.checkpoints.run_folder import load_checkpoint
    from quill.evaluation.split_loss import evaluate_split

    model = load_checkpoint(out_dir, device=resolve_device(device)).model
    score = evaluate_split(model, dataset.val, dataset.tokenizer)
    print(
        f"validation loss  {score.loss:.4f} nats per token over the whole split ({score.tokens:,} tokens, "
        f"not used for training)"
    )
    print(f"that is          {score.bits_per_character:.4f} bits per character")
    print(f"the loss curve   {out_dir / 'loss.png'}")


def print_next(out_dir: Path, dataset: Dataset) -> None:
    """Print four commands worth trying, ready to be pasted; the last opens the page on the model."""
    folder = train.quote(out_dir)
    prompt = PROMPTS.get(dataset.name, "The ")
    commands = [
        (f'quill generate --out_dir={folder} --prompt="{prompt}"', "continues your prompt"),
        (
            "quill train --config=laptop --dataset=my.txt --out_dir=out-mine",
            "trains on your own text, my.txt",
        ),
        (f"quill info {folder}", "shows what is in the run"),
        (f"quill serve {folder}", "serves a page to write with the model"),
    ]
    width = max(len(command) for command, _ in commands)
    print("\nTry next:")
    for command, reason in commands:
        print(f"  {command:<{width}}   # {reason}")
