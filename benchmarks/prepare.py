"""Preparing a large text and reading it in training: Quill and a dictionary in a Python loop, in fresh processes.

    python benchmarks/prepare.py [--megabytes=1000] [--loop_megabytes=20] [--steps=400] [--runs=3] [--json=FILE]

Figures are megabytes of UTF-8 text a second of wall time and of processor time (user and system, all threads), and the
largest resident memory. The other method is that of nanoGPT's `data/shakespeare_char/prepare.py`: the whole text in
memory, a dictionary look-up for each character in a Python loop. It gets a smaller text, because its memory and time
grow with the text. The text repeats lines of Python's own documentation, with some characters that are not ASCII.

Then the `laptop` model is trained on the tokens of the large text, and of one of 1 MB: tokens a second of training
steps, in shuffled order. "Not in memory" means that the system's page cache was emptied of the tokens after they were
opened, as it is when a text is larger than memory. The ratio to the small text is the median over the runs, each
compared with the run of the small text beside it: the speed of a shared machine changes from minute to minute.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from functools import partial
from operator import truediv
from pathlib import Path

from measure import (
    Figures,
    alternate,
    argument_parser,
    describe_hardware,
    print_table,
    run_process,
    run_worker,
    write_json,
)

from quill.data.corpus import find_corpus
from quill.data.dataset import prepare_dataset

LOOP = """
import sys
import numpy as np
with open(sys.argv[1], encoding="utf-8") as file:
    data = file.read()
characters = sorted(set(data))
numbers = {character: number for number, character in enumerate(characters)}
def encode(text):
    return [numbers[character] for character in text]
cut = int(len(data) * 0.9)
np.array(encode(data[:cut]), dtype=np.uint16).tofile("train.bin")
np.array(encode(data[cut:]), dtype=np.uint16).tofile("val.bin")
"""


def main() -> int:
    """Measure every method, print a table and write JSON."""
    parser = argument_parser((__doc__ or "").split("\n")[0], runs=3)
    parser.add_argument("--megabytes", type=float, default=1000.0, help="size of Quill's text (%(default)s)")
    parser.add_argument("--loop_megabytes", type=float, default=20.0, help="size of the loop's text (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="training steps on the tokens (%(default)s)")
    parser.add_argument(
        "--read", nargs=2, metavar=("TEXT", "EMPTY"), help="only train on a prepared text, and print JSON"
    )
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(train_steps(arguments.read[0], arguments.steps, empty=arguments.read[1] == "empty")))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder, "large.txt"), Path(folder, "small.txt")
        write_text(large, arguments.megabytes)
        write_text(small, arguments.loop_megabytes)
        contestants = {
            "Quill, characters": partial(prepare, large, "char"),
            "Quill, bytes": partial(prepare, large, "byte"),
            "dictionary in a loop": partial(loop, small),
        }
        results = alternate(contestants, arguments.runs)
        little = Path(folder, "little.txt")
        write_text(little, 1)
        train = partial(train_on, steps=arguments.steps)
        readers = {"small text": partial(train, little), "large text": partial(train, large)}
        if hasattr(os, "posix_fadvise"):
            readers["large text, not in memory"] = partial(train, large, empty=True)
        for text in (little, large):
            prepare_tokens(text)
        reading = alternate(readers, arguments.runs)
    rows = [[name, *(summary.median for summary in figures.values())] for name, figures in results.items()]
    print(describe_hardware())
    print_table("Preparing", ["method", "MB", "MB/s", "MB per CPU second", "peak memory, MB"], rows)
    base = reading["small text"]["tokens_per_s"].runs
    speeds = {name: figures["tokens_per_s"] for name, figures in reading.items()}
    rows = [[name, speed.median, statistics.median(map(truediv, speed.runs, base))] for name, speed in speeds.items()]
    print_table("Training on prepared tokens", ["tokens of", "tokens/s", "of the small text's"], rows)
    if arguments.json:
        write_json(arguments.json, "prepare", results, reading=reading)
    return 0


def write_text(path: Path, megabytes: float) -> None:
    """Write a text of about this size, the same on every machine."""
    draw, lines, size = random.Random(0), find_corpus("pydoc").text.splitlines(keepends=True), 0
    with path.open("w", encoding="utf-8", newline="") as file:
        while size < megabytes * 1e6:
            text = "".join(draw.choices(lines, k=20_000)) + "é—“naïve” 红楼梦\n"
            file.write(text)
            size += len(text.encode())


def prepare(text: Path, tokenizer: str) -> Figures:
    """Run `quill prepare` once."""
    with tempfile.TemporaryDirectory(dir=text.parent) as folder:
        return measured(text, "-m", "quill", "prepare", text, f"--tokenizer={tokenizer}", f"--data_dir={folder}")


def prepare_tokens(text: Path) -> None:
    """Prepare a text for `train_on`, outside of the memory of this process."""
    run_process([sys.executable, "-m", "quill", "prepare", text, "--tokenizer=byte"], cwd=text.parent)


def train_on(text: Path, steps: int, empty: bool = False) -> Figures:
    """Train on a prepared text in a fresh process, and return its figures."""
    words = ["--read", str(text), "empty" if empty else "keep", f"--steps={steps}"]
    return run_worker(__file__, *words, cwd=text.parent)[0]


def train_steps(text: str, steps: int, *, empty: bool) -> Figures:
    """Run training steps on a prepared text, and return their tokens a second."""
    from quill.process import keep_freed_memory
    from quill.runs.presets import read_settings
    from quill.runs.session import resolve
    from quill.runs.settings import build_configs, resolve_settings
    from quill.training.config import tokens_per_step
    from quill.training.setup import build_session, build_step

    keep_freed_memory()  # as `quill train` does
    dataset = prepare_dataset(text, tokenizer="byte")
    settings = resolve_settings({"device": "cpu", "data_order": "shuffled"}, read_settings("laptop")[0])
    model_config, config, run = build_configs(settings, dataset.tokenizer.vocab_size)
    context = resolve(run)
    step, _ = build_step(build_session(model_config, config, context), dataset.train, config, context, print)
    for number in range(20):
        step(number)
    if empty:
        with (dataset.folder / "train.bin").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    for number in range(20, 20 + steps):
        step(number)
    return {"tokens_per_s": steps * tokens_per_step(model_config, config) / (time.perf_counter() - started)}


def loop(text: Path) -> Figures:
    """Run nanoGPT's method once."""
    return measured(text, "-c", LOOP, text)


def measured(text: Path, *command: str | Path) -> Figures:
    """Run a Python program in a fresh process and return its figures."""
    before = os.times()
    result = run_process([sys.executable, *command], cwd=text.parent)
    after = os.times()
    processor = after.children_user - before.children_user + after.children_system - before.children_system
    megabytes = text.stat().st_size / 1e6
    return {
        "megabytes": megabytes,
        "mb_per_s": megabytes / result.seconds,
        "mb_per_cpu_s": megabytes / processor,
        "peak_memory_mb": result.peak_memory / 1e6,
    }


if __name__ == "__main__":
    sys.exit(main())
