"""`quill demo`: within two minutes, on any machine, a small GPT learns and writes.

It takes Tiny Shakespeare if it can be had, and else the help texts inside Python; measures how quick this machine is,
so that the whole cosine of the learning rate fits the time; trains; writes; and says what to try next.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.cli import train
from quill.cli.arguments import MODEL_FIELDS, TRAIN_FIELDS, Parser, build_configs
from quill.cli.generate import opening
from quill.errors import ConfigError, require

if TYPE_CHECKING:
    from quill.text.dataset import Dataset

MARK = "# A run of `quill demo`, which may write over it.\n"
RECIPE = {
    "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0,
    "batch_size": 16, "learning_rate": 3e-3, "beta2": 0.99, "eval_iters": 4, "log_interval": 5, "sample_tokens": 120,
}  # fmt: skip
EVALUATIONS = 8
# What is left of the time after a margin: other programs also want the processor now and then.
MARGIN = 0.9
FEWEST_STEPS, MOST_STEPS = 20, 10_000
PROMPTS = {"shakespeare": "ROMEO:", "pydoc": "The "}


@dataclass(frozen=True)
class Budget:
    """How many steps fit the time, and how often to look at them."""

    max_iters: int
    eval_interval: int
    look_seconds: float
    """what one such look takes"""


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
    train.require_folder(out_dir)
    if train.holds_run(out_dir) and not is_demo(out_dir):
        raise ConfigError(
            f"{out_dir} holds a run that is no demo, and a demo would replace it: choose another --out_dir"
        )
    defaults = {
        "out_dir": str(out_dir),
        "data_dir": str(out_dir / "data"),
        "device": arguments.device,
        "seed": arguments.seed,
    }
    settings = default_settings() | RECIPE | defaults
    build_configs(settings)
    print("looking for Tiny Shakespeare …", flush=True)
    dataset = prepare_demo_text(settings)
    settings["dataset"] = dataset.name
    print("measuring how quick this machine is …", flush=True)
    budget = fit_budget(settings, dataset, arguments.seconds)
    settings |= {"max_iters": budget.max_iters, "eval_interval": budget.eval_interval}
    settings |= {"warmup_iters": min(100, budget.max_iters // 10)}
    result = train.start_training(
        settings, dataset, replace=True, stop=deadline(arguments.seconds, budget.look_seconds), mark=MARK
    )
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


def default_settings() -> dict[str, Any]:
    """Return the flat configuration with the default value of every field."""
    from quill.model.config import GPTConfig
    from quill.training.config import TrainConfig

    model, recipe = GPTConfig(vocab_size=1), TrainConfig()
    return {name: getattr(model, name) for name in MODEL_FIELDS} | {
        name: getattr(recipe, name) for name in TRAIN_FIELDS
    }


def prepare_demo_text(settings: dict[str, Any]) -> Dataset:
    """Return Tiny Shakespeare as tokens if it can be had, else pydoc; the corpus's note says which and why."""
    from quill.text.corpus import find_demo_corpus
    from quill.text.dataset import prepare_dataset

    corpus = find_demo_corpus()
    return prepare_dataset(corpus.name, data_dir=settings["data_dir"], corpus=corpus)


def fit_budget(settings: dict[str, Any], dataset: Dataset, seconds: float) -> Budget:
    """Return the steps that fit the time, from a few real steps and an evaluation of a model that is thrown away."""
    step_seconds, look_seconds = measure(settings, dataset, patience=min(2.0, seconds / 10))
    steps = int((seconds * MARGIN - EVALUATIONS * look_seconds) / step_seconds)
    steps = max(FEWEST_STEPS, min(MOST_STEPS, steps))
    return Budget(steps, max(1, -(-steps // EVALUATIONS)), look_seconds)


def measure(settings: dict[str, Any], dataset: Dataset, patience: float) -> tuple[float, float]:
    """Return the seconds of a step and of an evaluation with its sample, from about `patience` seconds of trying."""
    import torch

    from quill.device import resolve_device
    from quill.model.gpt import GPT
    from quill.training.evaluation import cross_entropy
    from quill.training.loop import evaluate, fetch_batch
    from quill.training.optimizer import build_optimizer
    from quill.training.state import Progress

    model_config, config = build_configs(settings, vocab_size=dataset.tokenizer.vocab_size)
    device = resolve_device(config.device)
    model = GPT(model_config).to(device)
    optimizer = build_optimizer(model, config)

    def step(number: int) -> None:
        inputs_BT, targets_BT = fetch_batch(dataset, model_config, config, number, device)
        cross_entropy(model(inputs_BT), targets_BT).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for number in range(3):  # the first steps also pay for memory and kernels that stay
        step(number)
    started, steps = wait(), 0
    while wait() - started < patience and steps < 200:
        step(steps)
        steps += 1
    step_seconds = (wait() - started) / steps
    sample = train.sampler(dataset, config.sample_tokens, config.seed)
    started = wait()
    evaluate(model, config, dataset, Progress(), torch.float32, lambda event: None, sample, started)
    return step_seconds, wait() - started


def deadline(seconds: float, look_seconds: float) -> Callable[[], str | None]:
    """Return what ends the training when its time is up, should the machine have become slower than it was."""
    # Another evaluation and sample follow the last step, and they count.
    ends = time.monotonic() + max(seconds / 2, seconds - look_seconds)
    return lambda: "time" if time.monotonic() >= ends else None


def write_sample(out_dir: Path, device: str, seed: int) -> None:
    """Let the model write, piece by piece."""
    from quill.generation.language_model import load
    from quill.training.display import printable

    model = load(out_dir, device=device)
    print("\nThis is how it writes now:\n", flush=True)
    for piece in model.stream(opening(model.tokenizer), max_new_tokens=500, temperature=0.8, seed=seed + 1):
        print(printable(piece), end="", flush=True)
    print("\n")


def print_scores(out_dir: Path, device: str, dataset: Dataset) -> None:
    """Print the loss over the whole validation split, its bits per character, and where the picture is."""
    from quill.device import resolve_device
    from quill.training.checkpoint import load_checkpoint
    from quill.training.evaluation import evaluate_split

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
