"""Start-up time of commands: whole processes, from start to end, in turn.

    python benchmarks/startup.py --runs=10 [--run=out] [--nanogpt=PATH] [--json=startup.json]

`quill --help` should feel instant (under 0.4 s), so it must not import PyTorch. An empty Python is the lower limit;
importing torch, or transformers' GPT-2, is the cost of any tool that begins with it. nanoGPT has no help text; the
imports of its sampling script, before it reads a flag, take its place. With `--run`, also the time until a trained
model has generated one character.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import measure
from measure import Figures


def main() -> int:
    """Measure every command in turn, print a table and write JSON."""
    parser = measure.argument_parser("Start-up time of whole processes.", runs=10)
    parser.add_argument("--run", metavar="PATH", help="a run directory: also measure quill generate with it")
    arguments = parser.parse_args()
    if arguments.nanogpt and not (arguments.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt={arguments.nanogpt} has no model.py: give a checkout of nanoGPT")

    quill, python = quill_command(), [sys.executable, "-c"]
    turns = {
        "python -c pass": turn([*python, "pass"]),
        "quill --help": turn([*quill, "--help"]),
        "quill --version": turn([*quill, "--version"]),
        "quill train --help": turn([*quill, "train", "--help"]),
        "import quill": turn([*python, "import quill"]),
        "import torch": turn([*python, "import torch"]),
    }
    if importlib.util.find_spec("transformers"):
        turns["import transformers' GPT-2"] = turn([*python, "from transformers import GPT2LMHeadModel"])
    if arguments.nanogpt:
        turns["imports of nanoGPT's sample.py"] = turn([*python, "import pickle, torch, model"], arguments.nanogpt)
    if arguments.run:
        writing = [*quill, "generate", f"--out_dir={arguments.run}", "--prompt=A", "--max_new_tokens=1"]
        turns["quill generate, one character"] = turn(writing)
    for once in turns.values():
        once()  # fills the disk cache, and Python's cache of compiled modules
    results = measure.alternate(turns, arguments.runs, quiet=True)
    print(measure.describe_hardware())
    rows = [[name, str(f["seconds"]), f"{f['peak_megabytes'].median:,.0f}"] for name, f in results.items()]
    measure.print_table("Start-up", ["command", "seconds: median (range)", "peak MB"], rows)
    if arguments.json:
        measure.write_json(arguments.json, "startup", results)
    return 0


def quill_command() -> list[str]:
    """Return the command that starts Quill: the script next to this Python, or the module if it is not installed."""
    command = shutil.which("quill", path=str(Path(sys.executable).parent))
    return [command] if command else [sys.executable, "-m", "quill"]


def turn(command: list[str], folder: Path | None = None) -> Callable[[], Figures]:
    """Return a function that runs a command once in `folder` and returns its time and memory."""

    def once() -> Figures:
        result = measure.run_process(command, cwd=folder)
        return {"seconds": result.seconds, "peak_megabytes": result.peak_memory / 1e6}

    return once


if __name__ == "__main__":
    sys.exit(main())
