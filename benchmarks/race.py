"""The race: nanoGPT's own example for CPUs against `quill train --minutes=…`, on the same cores, text and split.

    python benchmarks/race.py --nanogpt=PATH --seeds=3 --json=race.json --plot=race.png

nanoGPT runs the command that its README gives for CPUs (4 layers, 4 heads, 128 wide, context 64, batch 12, 2000 steps,
learning rate 0.001). Quill runs laps, each with a given time and the recipe that `--minutes` chooses for it:

    sprint      a ninth of nanoGPT's time: how soon is its last loss reached?
    even        nanoGPT's own time: how much lower does Quill end?
    twelve      12 minutes
    hour        60 minutes

Each contestant is a fresh process, in turn for each seed. Two times are measured as in time_to_loss.py: start-up, which
for Quill includes measuring the machine, and training. Evaluation, samples and checkpoints do not count. Losses are
those over the whole validation split, in consecutive windows of each model's own context, each token scored once.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from dataclasses import replace
from typing import Any

import measure
import numpy as np
import time_to_loss
from measure import Summary
from time_to_loss import Curve, seconds_to

from quill.data.dataset import open_dataset, prepare_dataset
from quill.process import keep_freed_memory
from quill.training.config import TrainConfig

LAPS = ("sprint", "even", "twelve", "hour")
MINUTES = {"twelve": 12.0, "hour": 60.0}
NANOGPT = "nanoGPT"
LEARNING_RATE = 1e-3  # of the command in nanoGPT's README; Quill's preset of that shape has another


def main() -> int:
    """Run the race, print the table, and write JSON and the picture; or run as a worker."""
    parser = measure.argument_parser("nanoGPT's CPU example against quill train --minutes=…", runs=None)
    add = parser.add_argument
    add("--seeds", type=int, default=1, help="how many seeds; medians count (%(default)s)")
    add("--laps", default="sprint,even", help=f"which laps, of {','.join(LAPS)} (%(default)s)")
    add("--loss", help="the losses to reach, commas between them; nanoGPT's last one if not given")
    add("--dataset", default="shakespeare", help="text, as in quill train (%(default)s)")
    add("--sprint", type=float, default=9.0, help="the sprint has nanoGPT's time divided by this (%(default)s)")
    add("--device", default="cpu", help="where to train (%(default)s)")
    add("--plot", metavar="FILE", help="also draw the curves into this PNG")
    for hidden in ("--worker", "--folder"):
        add(hidden, help=SUPPRESS)
    for hidden in ("--seed", "--max_iters"):
        add(hidden, type=int, help=SUPPRESS)
    for hidden in ("--started", "--minutes"):
        add(hidden, type=float, help=SUPPRESS)
    add("--eval_interval", type=int, default=100, help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(race_nanogpt(arguments) if arguments.worker == NANOGPT else race_quill(arguments)))
        return 0
    laps = arguments.laps.split(",")
    goals = [float(loss) for loss in arguments.loss.split(",")] if arguments.loss else []
    if unknown := [lap for lap in laps if lap not in LAPS]:
        parser.error(f"--laps: there is no {unknown[0]!r}, only {', '.join(LAPS)}")
    if not arguments.nanogpt or not (arguments.nanogpt / "model.py").is_file():
        parser.error("--nanogpt=PATH must be a checkout of nanoGPT")

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dataset = prepare_dataset(arguments.dataset, data_dir=folder)
        for split in ("train", "val"):  # nanoGPT reads 16 bits a token
            getattr(dataset, split).astype(np.uint16).tofile(dataset.folder / f"{split}.uint16")
        arguments.folder = str(dataset.folder)
        curves: dict[str, list[Curve]] = {NANOGPT: [], **{lap: [] for lap in laps}}
        for seed in range(TrainConfig().seed, TrainConfig().seed + arguments.seeds):
            for name, runs in curves.items():
                minutes = None if name == NANOGPT else minutes_of(name, curves[NANOGPT], arguments.sprint)
                print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
                runs.append(start(name, arguments, seed, minutes))
                loss, seconds = runs[-1]["losses"][-1], whole_time(runs[-1])
                print(f"    {seconds:.1f} s, whole-split loss {loss:.4f}", file=sys.stderr, flush=True)
    print(measure.describe_hardware())
    goals = goals or [Summary.of([run["losses"][-1] for run in curves[NANOGPT]]).median]
    report(curves, goals)
    if arguments.plot:
        draw(curves, goals[0], measure.hardware(), arguments.plot)
    if arguments.json:
        measure.write_json(arguments.json, "race", curves, losses=goals, corpus=dataset.note, dataset=arguments.dataset)
    return 0


LABELS = {
    "sprint": "Quill, given a ninth of that time",
    "even": "Quill, given the same time",
    "twelve": "Quill, given 12 minutes",
    "hour": "Quill, given an hour",
}


def draw(curves: dict[str, list[Curve]], loss: float, hardware: dict[str, Any], path: str) -> None:
    """Draw the curves of all contestants under a title that names the machine."""
    vectors = "with AVX-512" if hardware["avx512"] else "without AVX-512"
    seeds = len(curves[NANOGPT])
    title = f"nanoGPT's CPU example and quill train --minutes, {hardware['cores']} cores {vectors}, "
    title += f"{seeds} seed{'s' * (seeds > 1)} each"
    time_to_loss.draw({LABELS.get(name, name): runs for name, runs in curves.items()}, loss, title, path)


def minutes_of(lap: str, nanogpt: list[Curve], sprint: float) -> float:
    """Return the time of a lap in minutes; nanoGPT's own is the median of its runs so far, start-up included."""
    if lap in MINUTES:
        return MINUTES[lap]
    seconds = statistics.median(whole_time(run) for run in nanogpt)
    return seconds / 60 / (sprint if lap == "sprint" else 1.0)


def whole_time(run: Curve) -> float:
    """Return the seconds from the start of the process to the last step, without evaluation."""
    return run["startup_seconds"] + run["seconds"][-1]


def start(name: str, arguments: Namespace, seed: int, minutes: float | None) -> Curve:
    """Run one contestant in a fresh process of this script, and return its curve."""
    flags = [f"--{flag}={getattr(arguments, flag)}" for flag in ("folder", "device", "nanogpt", "eval_interval")]
    flags += [f"--seed={seed}", f"--started={time.time()}"]
    flags += [f"--minutes={minutes}"] if minutes else []
    curve, _ = measure.run_worker(__file__, f"--worker={name}", *flags)
    return curve


def race_nanogpt(arguments: Namespace) -> Curve:
    """Train nanoGPT by the command of its README."""
    configure = time_to_loss.configure

    def example(*given: Any) -> Any:
        shape, recipe = configure(*given)
        return shape, replace(recipe, learning_rate=LEARNING_RATE)

    time_to_loss.configure = example
    return time_to_loss.train_nanogpt(arguments)


def race_quill(arguments: Namespace) -> Curve:
    """Train with the recipe that --minutes chooses; the events give both times."""
    from quill.runs.settings import build_configs
    from quill.runs.time_budget import fit_to_minutes

    keep_freed_memory()  # as the command does
    dataset = open_dataset(arguments.folder)
    left = arguments.minutes * 60 - (time.time() - arguments.started)
    settings, _ = fit_to_minutes(dataset, left / 60, {"device": arguments.device}, evaluations=0)
    settings |= {"seed": arguments.seed, "sample_tokens": 0}
    settings["eval_interval"] = max(1, settings["max_iters"] // 12)
    shape, recipe, run = build_configs(settings, vocab_size=dataset.tokenizer.vocab_size)
    where = {"device": run.device, "dtype": run.dtype, "compile": run.compile, "log_interval": run.log_interval}
    curve = time_to_loss.follow_quill(shape, recipe, dataset, arguments.started, arguments.minutes * 60, **where)
    return curve | {"settings": settings}


def loss_at(seconds: float, run: Curve) -> float:
    """Return the loss at the last evaluation within a number of seconds, start-up included."""
    return next(
        loss
        for at, loss in zip(reversed(run["seconds"]), reversed(run["losses"]), strict=True)
        if run["startup_seconds"] + at <= seconds or at == 0
    )


def report(curves: dict[str, list[Curve]], goals: list[float]) -> None:
    """Print a row for each contestant: its time, its last loss, its loss in nanoGPT's time, and when it reached goals.

    nanoGPT's time is that of its run with the same seed for the loss, and the median of its runs for ratios.
    """
    theirs = curves[NANOGPT]
    usual = Summary.of([whole_time(run) for run in theirs]).median
    rows = []
    for name, runs in curves.items():
        size = runs[0].get("settings")
        shape = f"{size['n_layer']} × {size['n_embd']}, context {size['block_size']}" if size else "4 × 128, context 64"
        in_time = [loss_at(whole_time(their), run) for their, run in zip(theirs, runs, strict=True)]
        samples = ([whole_time(run) for run in runs], [run["losses"][-1] for run in runs], in_time)
        cells = [str(Summary.of(sample)) for sample in samples]
        for goal in goals:
            reached = [seconds for run in runs if (seconds := seconds_to(goal, run)) is not None]
            cell = str(Summary.of(reached)) if reached else "never"
            cell += f", {len(reached)} of {len(runs)} runs" if len(reached) < len(runs) else ""
            cells.append(cell + (f": 1/{usual / Summary.of(reached).median:.1f}" if reached and size else ""))
        rows.append([LABELS.get(name, name), shape, *cells])
    columns = ["contestant", "shape", "seconds in all", "last loss", "loss in nanoGPT's time"]
    columns += [f"seconds to {goal:.3f}: of nanoGPT's time" for goal in goals]
    measure.print_table(f"The race, {len(theirs)} seed{'s' if len(theirs) > 1 else ''}: median (range)", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
