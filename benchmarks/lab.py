"""What looking inside costs at full size: a trace, each view of `quill inspect`, and training a tuned lens.

    python benchmarks/lab.py --runs=5 [--json=lab.json]

Models of full size have random weights, which changes no time. A view is timed twice: as a whole process, and inside a
process that has already shown one ("warm"), picture, numbers and page included.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
import torch
from measure import Figures
from startup import quill_command

import quill
from quill.lab.attention import attention_maps
from quill.lab.attribution import attribute
from quill.lab.finding import Finding
from quill.lab.logit_lens import lens
from quill.lab.subject import ModelAndTokenizer
from quill.lab.trace import trace
from quill.lab.tuned_lens import train_tuned_lens
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig

LETTERS = "\n !$&',-.3:;?" + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CONFIGS: dict[str, ModelConfig] = {
    "classic": GPTConfig(vocab_size=len(LETTERS), block_size=256),
    "modern": ModernConfig(vocab_size=len(LETTERS), block_size=256),
}
VIEWS = ("attention", "lens", "attribution")


def main() -> int:
    """Measure in turn, print tables and write JSON."""
    arguments = measure.argument_parser("What looking inside costs at full size.", runs=5).parse_args()
    print(measure.describe_hardware())
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in CONFIGS.items():
            results[name] = measure_model(config, Path(folder) / name, arguments.runs)
            rows = [[what, str(figures["seconds"])] for what, figures in results[name].items()]
            measure.print_table(f"{name}, full size, 256 characters", ["", "seconds: median (range)"], rows)
            forward, traced = (results[name][key]["seconds"].median for key in ("forward pass", "trace"))
            print(f"a trace takes {traced / forward:.2f} times a forward pass")
    if arguments.json:
        measure.write_json(arguments.json, "lab", results, runs=arguments.runs)
    return 0


def measure_model(config: ModelConfig, folder: Path, runs: int) -> dict[str, dict[str, measure.Summary]]:
    """Return seconds by what was done, for a model of this configuration."""
    torch.manual_seed(0)
    subject = ModelAndTokenizer(build_model(config), quill.CharTokenizer.from_text(LETTERS))
    quill.save(quill.LanguageModel(subject.model, subject.tokenizer), folder)
    text = (LETTERS * 4)[:256]
    tokens_1T = torch.from_numpy(subject.tokenizer.encode(text))[None]

    def forward() -> None:
        with torch.no_grad():
            subject.model.eval()(tokens_1T)

    views: dict[str, Callable[[], Finding]] = {
        "attention": lambda: attention_maps(subject, text),
        "lens": lambda: lens(subject, text),
        "attribution": lambda: attribute(subject, text),
    }
    windows = torch.randint(len(LETTERS), (64, 256), generator=torch.Generator().manual_seed(1))
    turns = {"forward pass": seconds_of(forward, 10), "trace": seconds_of(lambda: trace(subject, text), 10)}
    for name, find in views.items():
        turns[f"{name}, warm"] = seconds_of(lambda find=find: find().save(folder / "warm", "view"))
    for name in VIEWS:
        command = [*quill_command(), "inspect", str(folder), f"--prompt={text}", f"--show={name}"]
        turns[f"quill inspect --show={name}"] = process(command)
    for once in turns.values():
        once()  # fills caches
    found = measure.alternate(turns, runs, quiet=True)
    lens_turn = {"training a tuned lens": seconds_of(lambda: train_tuned_lens(subject, windows))}
    return {**found, **measure.alternate(lens_turn, 1, quiet=True)}


def seconds_of(function: Callable[[], object], repeat: int = 1) -> Callable[[], Figures]:
    """Return a function that measures the mean time of a call."""

    def once() -> Figures:
        started = time.perf_counter()
        for _ in range(repeat):
            function()
        return {"seconds": (time.perf_counter() - started) / repeat}

    return once


def process(command: list[str]) -> Callable[[], Figures]:
    """Return a function that measures the time of a whole process."""
    return lambda: {"seconds": measure.run_process(command).seconds}


if __name__ == "__main__":
    sys.exit(main())
