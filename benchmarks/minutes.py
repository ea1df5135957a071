"""`quill train --minutes=M` against two presets: the same text and the same time, start-up included.

    python benchmarks/minutes.py my.txt shakespeare --minutes=2 --json=minutes.json

`--minutes` goes first and chooses everything itself. Then each modern preset gets as many steps as fit into the time
that the first run took, and a schedule of that length. The time of its steps is measured before, and does not count.
The loss is that of the finished model over the whole validation split (`quill evaluate`).
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from startup import quill_command

PRESETS = ("modern-laptop", "modern")
QUIET = ["--sample_tokens=0", "--eval_iters=1"]
TIMED = 8  # seconds


def main() -> int:
    """Train each contestant on each text, print the table, and write JSON."""
    parser = measure.argument_parser("quill train --minutes=M against the modern presets at equal time.", runs=None)
    parser.add_argument("texts", nargs="+", help="texts, as in quill train --dataset")
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes of each run (%(default)s)")
    arguments = parser.parse_args()
    print(measure.describe_hardware())
    results, rows = [], []
    for text in arguments.texts:
        for result in compare(text, arguments.minutes):
            results.append(result)
            rows.append([result["text"], result["contestant"], f"{result['seconds']:.0f}", result["steps"]])
            rows[-1] += [f"{result['loss']:.4f}", f"{result['parameters'] / 1e6:.2f} M"]
            print(*rows[-1], sep="  ", flush=True)
    columns = ["text", "contestant", "seconds in all", "steps", "whole-split loss", "parameters"]
    measure.print_table(f"--minutes={arguments.minutes:g} against the presets", columns, rows)
    if arguments.json:
        measure.write_json(arguments.json, "minutes", results, minutes=arguments.minutes)
    return 0


def compare(text: str, minutes: float) -> list[dict[str, Any]]:
    """Return the results of --minutes and of each preset on one text."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        results = [trained(text, "--minutes", [f"--minutes={minutes}"], Path(folder))]
        for preset in PRESETS:
            steps = steps_within(results[0]["seconds"], text, preset, Path(folder))
            flags = [f"--config={preset}", f"--max_iters={steps}", f"--eval_interval={steps}", *QUIET]
            results.append(trained(text, preset, flags, Path(folder)))
        return results


def trained(text: str, name: str, flags: list[str], folder: Path) -> dict[str, Any]:
    """Train once, and return the time, the loss and the size."""
    out = folder / name.strip("-")
    seconds = run("train", f"--dataset={text}", f"--data_dir={folder / 'data'}", f"--out_dir={out}", *flags)
    scored = measure.run_process([*quill_command(), "evaluate", f"--out_dir={out}", "--checkpoint=last", "--json"])
    loss = json.loads(scored.output)["val_loss"]
    begun = next(event for event in events(out) if event["event"] == "start")
    facts = {"steps": begun["max_iters"], "parameters": begun["parameters"]}
    return {"text": Path(text).name, "contestant": name, "seconds": seconds, "loss": loss, **facts}


def steps_within(seconds: float, text: str, preset: str, folder: Path) -> int:
    """Return how many steps of a preset fit into this time with start-up, two evaluations and the last save."""
    step, _ = time_steps(4, text, preset, folder)
    step, rest = time_steps(max(4, int(TIMED / step)), text, preset, folder)
    return max(2, int((seconds - rest) / step))


def time_steps(steps: int, text: str, preset: str, folder: Path) -> tuple[float, float]:
    """Return the seconds of one step of a preset, and those of everything else in a run."""
    out = folder / f"{preset}-{steps}"
    flags = [f"--config={preset}", f"--max_iters={steps}", f"--eval_interval={steps}", "--log_interval=1", *QUIET]
    whole = run(
        "train", f"--dataset={text}", f"--data_dir={folder / 'data'}", f"--out_dir={out}", "--overwrite=True", *flags
    )
    ends = [event["seconds"] for event in events(out) if event["event"] == "step"]
    step = statistics.median(after - before for before, after in itertools.pairwise(ends[1:]))
    return step, whole - steps * step


def run(*words: str) -> float:
    """Run a quill command and return its seconds."""
    started = time.perf_counter()
    measure.run_process([*quill_command(), *words])
    return time.perf_counter() - started


def events(out: Path) -> list[dict[str, Any]]:
    """Return the events of a run."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
