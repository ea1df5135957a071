"""Speed and memory of preparing a large text: Quill and a dictionary in a Python loop, each in a fresh process.

    python benchmarks/prepare.py [--megabytes=1000] [--loop_megabytes=20] [--runs=3] [--json=FILE]

Figures are megabytes of UTF-8 text a second of wall time and of processor time (user and system, all threads), and the
largest resident memory. The other method is that of nanoGPT's `data/shakespeare_char/prepare.py`: the whole text in
memory, a dictionary look-up for each character in a Python loop. It gets a smaller text, because its memory and time
grow with the text. The text repeats lines of Python's own documentation, with some characters that are not ASCII.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from functools import partial
from pathlib import Path

from measure import Figures, alternate, argument_parser, describe_hardware, print_table, run_process, write_json

from quill.data.corpus import find_corpus

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
    arguments = parser.parse_args()
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
    rows = [[name, *(summary.median for summary in figures.values())] for name, figures in results.items()]
    print(describe_hardware())
    print_table("Preparing", ["method", "MB", "MB/s", "MB per CPU second", "peak memory, MB"], rows)
    if arguments.json:
        write_json(arguments.json, "prepare", results)
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
