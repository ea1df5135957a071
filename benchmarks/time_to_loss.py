"""Time to a loss: nanoGPT's own example for CPUs, trained by Quill's preset `laptop` and by nanoGPT.

    python benchmarks/time_to_loss.py --nanogpt=PATH --json=time_to_loss.json --plot=time_to_loss.png

Both train the same model by the same recipe on the same token files, each in a fresh process, in turn for each seed.
Two times are measured: start-up (from the start of the process to the first step) and training (the steps themselves).
Evaluation, samples and checkpoints do not count. The loss is that over the whole validation split, each token scored
once (Quill's `evaluate_split`, and the same windows and formula for nanoGPT).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import measure
import numpy as np
from measure import Summary

from quill.data.dataset import Dataset, open_dataset, prepare_dataset
from quill.data.windows import evaluation_windows
from quill.model.config import GPTConfig, ModelConfig
from quill.runs.presets import read_config
from quill.training.config import TrainConfig

PRESET = "laptop"
COLORS = ("#1f5fa8", "#c2571a", "#3a8a4d", "#8a3a84", "#6b6b6b")
TITLE = "The same small model and recipe on {cores} CPU cores: Quill and nanoGPT"
Curve = dict[str, Any]
"""One run: `startup_seconds`, and lists of equal length: `steps`, `seconds` of training, `losses`; then
`parameters`, and `step_seconds`: the seconds of a step, averaged between two `step` events."""


def main() -> int:
    """Train the contestants in turn, print the curves, and write JSON and a plot; or run as a worker."""
    parser = measure.argument_parser("Validation loss over time, start-up included.", runs=None)
    add = parser.add_argument
    add("--seeds", type=int, default=1, help="how many seeds; medians count (%(default)s)")
    add("--loss", type=float, default=1.90, help="the loss to reach, in nats per token (%(default)s)")
    add("--dataset", default="shakespeare", help="what to train on, as in quill train (%(default)s)")
    add("--max_iters", type=int, help="steps of a run; the preset's if not given")
    add("--eval_interval", type=int, default=100, help="steps between evaluations (%(default)s)")
    add("--device", default="cpu", help="where to train (%(default)s)")
    add("--plot", metavar="FILE", help="also draw the curves into this PNG")
    for hidden in ("--worker", "--folder"):
        add(hidden, help=SUPPRESS)
    add("--seed", type=int, help=SUPPRESS)
    add("--started", type=float, help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps({"Quill": train_quill, "nanoGPT": train_nanogpt}[arguments.worker](arguments)))
        return 0
    if arguments.nanogpt and not (arguments.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt={arguments.nanogpt} has no model.py: give a checkout of nanoGPT")

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dataset = prepare_dataset(arguments.dataset, data_dir=folder)
        shape, recipe = configure(arguments, dataset, TrainConfig().seed)
        for split in ("train", "val"):  # nanoGPT reads 16 bits a token
            getattr(dataset, split).astype(np.uint16).tofile(dataset.folder / f"{split}.uint16")
        arguments.folder = str(dataset.folder)
        curves: dict[str, list[Curve]] = {name: [] for name in ["Quill", "nanoGPT"][: 1 + bool(arguments.nanogpt)]}
        for seed in range(TrainConfig().seed, TrainConfig().seed + arguments.seeds):
            for name, runs in curves.items():
                print(f"training with {name}, seed {seed}", file=sys.stderr, flush=True)
                runs.append(start_worker(name, arguments, seed))
    print(measure.describe_hardware())
    report(curves, arguments.loss, shape, recipe)
    if arguments.plot:
        draw(curves, arguments.loss, TITLE.format(cores=measure.hardware()["cores"]), arguments.plot)
    if arguments.json:
        facts = {"loss": arguments.loss, "model": asdict(shape), "training": asdict(recipe), "corpus": dataset.note}
        measure.write_json(arguments.json, "time_to_loss", curves, **facts)
    return 0


def configure(arguments: Namespace, dataset: Dataset, seed: int) -> tuple[GPTConfig, TrainConfig]:
    """Return the preset's shape and recipe, which all contestants use."""
    settings, _ = read_config(PRESET)
    settings |= {"seed": seed, "eval_interval": arguments.eval_interval, "patience": 0}
    if arguments.max_iters is not None:
        settings["max_iters"] = arguments.max_iters
    shape = {field.name: settings[field.name] for field in fields(GPTConfig) if field.name in settings}
    recipe = {field.name: settings[field.name] for field in fields(TrainConfig) if field.name in settings}
    return GPTConfig(**{**shape, "vocab_size": dataset.tokenizer.vocab_size}), TrainConfig(**recipe)


def start_worker(name: str, arguments: Namespace, seed: int) -> Curve:
    """Train once in a fresh process of this script, and return the curve."""
    names = ("folder", "device", "max_iters", "eval_interval", "nanogpt")
    flags = [f"--{flag}={getattr(arguments, flag)}" for flag in names if getattr(arguments, flag) is not None]
    flags += [f"--seed={seed}", f"--started={time.time()}"]
    curve, _ = measure.run_worker(__file__, f"--worker={name}", *flags)
    return curve


def train_quill(arguments: Namespace) -> Curve:
    """Train with Quill's loop."""
    dataset = open_dataset(arguments.folder)
    shape, recipe = configure(arguments, dataset, arguments.seed)
    return follow_quill(shape, recipe, dataset, arguments.started, device=arguments.device)


def follow_quill(
    shape: ModelConfig,
    recipe: TrainConfig,
    dataset: Dataset,
    started: float,
    time_given: float | None = None,
    **where: Any,
) -> Curve:
    """Train by this recipe in a temporary folder; the events of the loop give both times.

    With `time_given`, in seconds from the start, the number of steps follows the pace, as in `quill train --minutes`.
    `where` holds device, dtype, compile and the like for `resolve_context`.
    """
    from quill.runs.time_budget import TimeBudget
    from quill.training.context import resolve_context
    from quill.training.loop import train

    curve: Curve = {"startup_seconds": 0.0, "steps": [], "seconds": [], "losses": [], "step_seconds": []}
    step, seconds, tokens_per_step = 0, 0.0, 0

    def report(event: dict[str, Any]) -> None:
        nonlocal step, seconds, tokens_per_step
        match event["event"]:
            case "start":
                curve["startup_seconds"] = time.time() - started
                tokens_per_step = event["tokens_per_step"]
                curve["parameters"] = event["parameters"]
            case "step":  # tokens_per_second counts the steps alone, without evaluation
                curve["step_seconds"].append(tokens_per_step / event["tokens_per_second"])
                seconds += (event["step"] - step) * curve["step_seconds"][-1]
                step = event["step"]
            case "evaluation":
                assert event["whole_split"], "eval_iters is too low to score the whole split"
                curve["steps"].append(event["step"])
                curve["seconds"].append(seconds)
                curve["losses"].append(event["val_loss"])

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out_dir:
        windows = len(dataset.val) // shape.block_size + 1
        whole = max(recipe.eval_iters, -(-windows // recipe.batch_size))
        clock = lambda: curve["startup_seconds"] + seconds  # noqa: E731
        pace = {"steps": recipe.max_iters, "eval_interval": recipe.eval_interval, "evaluation": 0.0, "clock": clock}
        plan = TimeBudget(0.0, time_given, **pace) if time_given else None
        context = resolve_context(out_dir, **where)
        train(shape, replace(recipe, eval_iters=whole), context, dataset, report=report, plan=plan)
    return curve


def train_nanogpt(arguments: Namespace) -> Curve:
    """Train nanoGPT's model by the preset's recipe, in float32."""
    dataset = open_dataset(arguments.folder)
    shape, recipe = configure(arguments, dataset, arguments.seed)
    return follow_nanogpt(shape, recipe, dataset, arguments)


def follow_nanogpt(
    shape: GPTConfig,
    recipe: TrainConfig,
    dataset: Dataset,
    arguments: Namespace,
    *,
    dtype: str = "float32",
    compiled: bool = False,
) -> Curve:
    """Train nanoGPT's model with the steps, schedule and batches of its training script.

    On a GPU batches are pinned and copied while it computes, and TF32 is on, as in that script.
    """
    import torch

    from quill.training.context import RunContext
    from quill.training.schedule import learning_rate_schedule

    device, rate_at, log_interval = (
        torch.device(arguments.device),
        learning_rate_schedule(recipe),
        RunContext.log_interval,
    )
    gpu = device.type == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    module = measure.import_file(arguments.nanogpt / "model.py", "nanogpt_model")
    torch.manual_seed(recipe.seed)
    names = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    with contextlib.redirect_stdout(io.StringIO()):
        config = module.GPTConfig(**{name: getattr(shape, name) for name in names})
        model = module.GPT(config).to(device)
        betas = (recipe.beta1, recipe.beta2)
        optimizer = model.configure_optimizers(recipe.weight_decay, recipe.learning_rate, betas, device.type)
    forward = torch.compile(model) if compiled else model
    autocast = torch.autocast(device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32")

    def draw_batch() -> list[torch.Tensor]:
        tokens = np.memmap(Path(arguments.folder) / "train.uint16", dtype=np.uint16, mode="r")
        starts = torch.randint(len(tokens) - shape.block_size, (recipe.batch_size,)).tolist()
        windows = [torch.from_numpy(tokens[s : s + shape.block_size + 1].astype(np.int64)) for s in starts]
        windows_BT = torch.stack(windows)
        halves = windows_BT[:, :-1].contiguous(), windows_BT[:, 1:].contiguous()
        return [(half.pin_memory() if gpu else half).to(device, non_blocking=True) for half in halves]

    def evaluate() -> float:
        with autocast:
            return evaluate_nanogpt(model, dataset, arguments.device)

    curve: Curve = {"startup_seconds": time.time() - arguments.started}
    curve |= {"steps": [0], "seconds": [0.0], "losses": [evaluate()], "step_seconds": []}
    curve["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    seconds, logged, started = 0.0, 0, time.perf_counter()
    batch = draw_batch()
    for step in range(1, recipe.max_iters + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step - 1)
        with autocast:
            loss = forward(*batch)[1]
        batch = draw_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        evaluating = step % recipe.eval_interval == 0 or step == recipe.max_iters
        if not evaluating and step - logged < log_interval:
            continue
        loss.item()  # as often as Quill reads its loss
        if gpu:
            torch.cuda.synchronize()
        passed = time.perf_counter() - started
        seconds += passed
        curve["step_seconds"].append(passed / (step - logged))
        if evaluating:
            curve["steps"].append(step)
            curve["seconds"].append(seconds)
            curve["losses"].append(evaluate())
        logged, started = step, time.perf_counter()
    return curve


def evaluate_nanogpt(model: Any, dataset: Dataset, device: str) -> float:
    """Return the loss of nanoGPT's model over the whole validation split, in the windows that Quill uses."""
    import torch

    from quill.evaluation.loss import cross_entropy

    nats, scored = 0.0, 0
    model.eval()
    for inputs, targets in evaluation_windows(dataset.val, block_size=model.config.block_size, batch_size=64):
        inputs_BT, targets_BT = torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
        with torch.no_grad():
            nats += cross_entropy(model(inputs_BT, targets_BT)[0], targets_BT, reduction="sum").item()
        scored += targets.size
    model.train()
    return nats / scored


def seconds_to(loss: float, curve: Curve) -> float | None:
    """Return the seconds to a loss, start-up included, interpolated between evaluations; None if never reached."""
    points = list(zip(curve["seconds"], curve["losses"], strict=True))
    for (before, higher), (after, lower) in itertools.pairwise(points):
        if higher > loss >= lower:
            return curve["startup_seconds"] + before + (after - before) * (higher - loss) / (higher - lower)
    return None


def report(curves: dict[str, list[Curve]], loss: float, shape: GPTConfig, recipe: TrainConfig) -> None:
    """Print the curves (medians over the seeds) and, for each contestant, its times and its last loss."""

    def median(values: Sequence[float]) -> float:
        return Summary.of(values).median

    rows = []
    for index, step in enumerate(next(iter(curves.values()))[0]["steps"]):
        row: list[object] = [str(step)]
        for runs in curves.values():
            row.append(f"{median([r['startup_seconds'] + r['seconds'][index] for r in runs]):.1f}")
            row.append(f"{median([r['losses'][index] for r in runs]):.4f}")
        rows.append(row)
    what = f"{shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide, context {shape.block_size}"
    columns = ["step", *(f"{name} {column}" for name in curves for column in ("seconds", "loss"))]
    measure.print_table(f"Validation loss, {what}, batch {recipe.batch_size}", columns, rows)
    rows = []
    for name, runs in curves.items():
        reached = [time for run in runs if (time := seconds_to(loss, run)) is not None]
        missed = f" ({len(reached)} of {len(runs)} runs)" if len(reached) < len(runs) else ""
        rows.append(
            [
                name,
                str(Summary.of([run["startup_seconds"] for run in runs])),
                str(Summary.of([run["seconds"][-1] for run in runs])),
                str(Summary.of([run["losses"][-1] for run in runs])),
                (str(Summary.of(reached)) if reached else "never") + missed,
            ]
        )
    columns = ["contestant", "start-up, s", "training, s", "last loss", f"seconds to {loss:g}, start-up included"]
    seeds = len(next(iter(curves.values())))
    measure.print_table(f"Time to loss, {seeds} seed{'s' if seeds > 1 else ''}: median (range)", columns, rows)


def draw(curves: dict[str, list[Curve]], loss: float, title: str, path: str) -> None:
    """Draw loss over seconds, start-up included, one line for each run; the legend gives medians.

    The first loss is that of a model that has learned nothing. It is left out so that the rest is large enough to read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, runs), color in zip(curves.items(), COLORS, strict=False):
        times = [[run["startup_seconds"] + second for second in run["seconds"]] for run in runs]
        last, end = (Summary.of(values).median for values in ([r["losses"][-1] for r in runs], [t[-1] for t in times]))
        for number, (run, seconds) in enumerate(zip(runs, times, strict=True)):
            label = f"{name}: {last:.3f} after {end:.0f} s" if number == 0 else None
            axes.plot(seconds, run["losses"], color=color, label=label)
    axes.axhline(loss, color="#888888", linewidth=0.8, linestyle="--", label=f"a loss of {loss:.2f}")
    axes.set_ylim(top=max(run["losses"][1] for runs in curves.values() for run in runs) + 0.1)
    axes.set_xlim(left=0)
    axes.set(xlabel="seconds since the start of the process, evaluation not counted")
    axes.set(ylabel="validation loss, whole split (nats per character)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
