"""One GPU: the speed of a full-size step, its share of the GPU's limit, and the time to nanoGPT's best loss.

    python benchmarks/gpu.py --nanogpt=PATH --json=gpu.json --plot=gpu.png

Every contestant is a fresh process with empty compiler caches, in turn. nanoGPT trains by its own recipe (batch
64 × 256, 5,000 steps) in bfloat16, its batches pinned and copied ahead; Quill trains through `train()` itself.

    steps       tokens a second, and their share of the limit: a product of two 8192² bfloat16 matrices, measured in
                the same run. FLOPs of a token are 6 for each weight of a linear layer and 12 · layers · width ·
                context for attention (Chowdhery et al. 2022, "PaLM", appendix B), the same for all
    race        nanoGPT, compiled, to its best loss over the whole validation split; when does a recipe of Quill's pass
                that, and where does it end? Evaluation does not count, and comes at the same steps of each run

Time is given twice. With a cold start: from the start of the process. Without: the number of steps times the usual
seconds of a step (the median between `step` events), so that compiling, capturing and loading do not count.

Without a GPU it ends at once (exit code 2). `--device=cpu` runs it in miniature, to see that it works.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import time_to_loss
from measure import Figures, Summary
from time_to_loss import Curve

from quill.data.dataset import Dataset, open_dataset, prepare_dataset
from quill.model.config import ModelConfig
from quill.runs.presets import read_config
from quill.runs.settings import RunSettings, build_configs, default_settings
from quill.training.config import TrainConfig

LIMIT = "matrix product"
NANOGPT = "nanoGPT, compiled"
STEPS = {  # contestant: its preset, and how Quill takes the step
    "nanoGPT, eager": ("shakespeare", ""),
    NANOGPT: ("shakespeare", ""),
    "Quill classic, eager": ("shakespeare", "eager"),
    "Quill classic, graph": ("shakespeare", "graph"),
    "Quill classic, compiled graph": ("shakespeare", "compiled graph"),
    "Quill modern, eager": ("modern", "eager"),
    "Quill modern, graph": ("modern", "graph"),
    "Quill modern, compiled graph": ("modern", "compiled graph"),
}
MOST_PARAMETERS, TARGET = 10_700_000, 1.43  # of the one model whose best loss is quoted
TARGET_WITH, TARGET_WITHOUT = "1/3", "1/8"
PARTS = ("steps", "race")
TITLE = "Quill and nanoGPT on one GPU"
TINY = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 8, "max_iters": 20}  # --device=cpu


def main() -> int:
    """Measure, print both tables and write JSON; or run as a worker, with `--worker`."""
    parser = measure.argument_parser("Full-size training on one GPU against nanoGPT.", runs=3)
    add = parser.add_argument
    add("--seeds", type=int, default=1, help="how many seeds race; medians count (%(default)s)")
    add("--recipe", default="modern", help="preset or YAML file for Quill in the race (%(default)s)")
    add("--sprint", type=int, default=500, help="steps of Quill's short run, which gives the time (%(default)s)")
    add("--steps", type=int, default=200, help="steps of a turn of the first table (%(default)s)")
    add("--eval_interval", type=int, default=50, help="steps between evaluations in the race (%(default)s)")
    add("--device", default="cuda", help="cuda, cuda:1, …; cpu runs it in miniature (%(default)s)")
    add("--only", help=f"parts to measure: {','.join(PARTS)} (all)")
    add("--plot", metavar="FILE", help="also draw the curves of the race into this PNG")
    for hidden in ("--worker", "--folder"):
        add(hidden, help=SUPPRESS)
    for hidden in ("--seed", "--max_iters"):
        add(hidden, type=int, help=SUPPRESS)
    add("--started", type=float, help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(arguments)))
        return 0
    if not arguments.nanogpt or not (arguments.nanogpt / "model.py").is_file():
        parser.error("--nanogpt=PATH must be a checkout of nanoGPT")
    parts = arguments.only.split(",") if arguments.only else PARTS
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--only: there is no {unknown[0]!r}, only {', '.join(PARTS)}")
    facts = start("facts", arguments)
    if not facts["device"]:
        missing = f"no GPU here: PyTorch finds no {arguments.device} with bfloat16"
        print(f"{missing} (--device=cpu runs it in miniature)", file=sys.stderr)
        return 2

    tiny = arguments.device == "cpu"
    print(measure.describe_hardware())
    print(f"{facts['device']}{', in miniature: these figures mean nothing' if tiny else ''}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dataset = prepare_dataset("pydoc" if tiny else "shakespeare", data_dir=folder)
        for split in ("train", "val"):  # nanoGPT reads 16 bits a token
            getattr(dataset, split).astype(np.uint16).tofile(dataset.folder / f"{split}.uint16")
        arguments.folder = str(dataset.folder)
        if "steps" in parts:
            results["steps"] = measure_steps(arguments, dataset, tiny)
        if "race" in parts:
            curves = results["race"] = race(arguments, NANOGPT if not tiny else "nanoGPT, eager")
            facts |= report_race(curves)
            if arguments.plot:
                goal = best_of(next(iter(curves.values())))
                time_to_loss.draw(curves, goal, TITLE, arguments.plot)
    if arguments.json:
        measure.write_json(arguments.json, "gpu", results, **facts)
    return 0


def start(name: str, arguments: Namespace, **changes: Any) -> dict[str, Any]:
    """Run one contestant in a fresh process of this script with empty compiler caches, and return its figures."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as caches:
        known = ("folder", "device", "nanogpt", "eval_interval", "recipe")
        given = {flag: getattr(arguments, flag) for flag in known} | changes | {"started": time.time()}
        flags = [f"--{flag}={value}" for flag, value in given.items() if value is not None]
        environment = {"TORCHINDUCTOR_CACHE_DIR": caches, "TRITON_CACHE_DIR": caches}
        return measure.run_worker(__file__, f"--worker={name}", *flags, environment=environment)[0]


def measure_steps(arguments: Namespace, dataset: Dataset, tiny: bool) -> dict[str, dict[str, Summary]]:
    """Measure a training step of each contestant and the matrix product, and print the table."""
    names = [name for name in STEPS if not tiny or "compiled" not in name]
    contestants: dict[str, Callable[[], Figures]] = {
        name: lambda name=name: steps_of(start(name, arguments, max_iters=arguments.steps)) for name in names
    }
    contestants[LIMIT] = lambda: start(LIMIT, arguments)
    results = measure.alternate(contestants, arguments.runs)
    report_steps(results, {name: flops_per_token(name, arguments, dataset) for name in names})
    return results


def race(arguments: Namespace, nanogpt: str) -> dict[str, list[Curve]]:
    """Train nanoGPT and both runs of Quill's recipe, seed after seed, and return their curves."""
    short = f"Quill {arguments.recipe}, {arguments.sprint} steps"
    curves: dict[str, list[Curve]] = {nanogpt: [], short: [], f"Quill {arguments.recipe}": []}
    for seed in range(TrainConfig().seed, TrainConfig().seed + arguments.seeds):
        for name, runs in curves.items():
            print(f"race, seed {seed}: {name}", file=sys.stderr, flush=True)
            steps = arguments.sprint if name == short else None
            worker = nanogpt if name == nanogpt else "race"
            runs.append(start(worker, arguments, seed=seed, max_iters=steps))
    return curves


def steps_of(curve: Curve) -> Figures:
    """Return the figures of a step from a short run."""
    return {
        "tokens_per_second": curve["tokens_per_step"] / steady(curve),
        "cold_start_seconds": cold_start(curve),
        "peak_megabytes": curve["peak_megabytes"],
    }


def steady(curve: Curve) -> float:
    """Return the usual seconds of a step: the median between `step` events."""
    return statistics.median(curve["step_seconds"])


def cold_start(curve: Curve) -> float:
    """Return the seconds from the start of the process that were not steps: importing, compiling, capturing."""
    return curve["startup_seconds"] + curve["seconds"][-1] - curve["steps"][-1] * steady(curve)


def without_cold_start(curve: Curve) -> Curve:
    """Return the same run with the usual seconds for every step, and none before the first."""
    return curve | {"startup_seconds": 0.0, "seconds": [step * steady(curve) for step in curve["steps"]]}


def best_of(runs: list[Curve]) -> float:
    """Return the best whole-split loss of each run, the median over the seeds."""
    return statistics.median(min(run["losses"]) for run in runs)


# The contestants: each in a process of its own ----------------------------------------------------------------------


def work(arguments: Namespace) -> dict[str, Any]:
    """Run the worker named by `--worker`, and return its figures."""
    import torch

    from quill.device import describe_device, resolve_dtype

    name, device = arguments.worker, torch.device(arguments.device)
    there = device.type == "cpu" or (
        torch.cuda.device_count() > (device.index or 0) and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if name == "facts":
        return {"device": describe_device(device) if there else "", "torch": torch.__version__}
    if name == LIMIT:
        from training import multiply_matrices

        size = 8192 if device.type == "cuda" else 256
        return {"flops_per_second": multiply_matrices(device, torch.bfloat16, size)}
    dataset = open_dataset(arguments.folder)
    preset, way = (arguments.recipe, "graph") if name == "race" else STEPS[name]
    shape, recipe, run = configure(preset, arguments, dataset.tokenizer.vocab_size)
    if way:
        curve = train_quill(shape, recipe, run, dataset, way, arguments.started)
    else:
        dtype = str(resolve_dtype(run.dtype, device)).removeprefix("torch.")
        compiled = name == NANOGPT
        curve = time_to_loss.follow_nanogpt(shape, recipe, dataset, arguments, dtype=dtype, compiled=compiled)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else measure.peak_memory()
    return curve | {"tokens_per_step": recipe.batch_size * shape.block_size, "peak_megabytes": peak / 1e6}


def configure(preset: str, arguments: Namespace, vocab_size: int) -> tuple[Any, TrainConfig, RunSettings]:
    """Return the configurations of a preset; in the first table without evaluations before the end."""
    asked = read_config(preset)[0]
    settings = default_settings(asked.get("architecture", "classic")) | asked
    tiny = TINY if arguments.device == "cpu" else {}
    settings |= tiny | {"device": arguments.device, "sample_tokens": 0, "patience": 0}
    racing = arguments.seed is not None
    settings["seed"] = arguments.seed if racing else TrainConfig().seed
    settings["max_iters"] = arguments.max_iters or settings["max_iters"]
    settings["eval_interval"] = arguments.eval_interval if racing else settings["max_iters"]
    return build_configs(settings, vocab_size=vocab_size)


def train_quill(
    shape: ModelConfig, recipe: TrainConfig, run: RunSettings, dataset: Dataset, way: str, started: float
) -> Curve:
    """Train through `train()` with its plain step, captured, or compiled and captured."""
    from quill.training import setup

    if way == "eager":
        setup.can_be_captured = lambda *_: False
    where = {"device": run.device, "dtype": run.dtype, "compile": way.startswith("compiled")}
    return time_to_loss.follow_quill(shape, recipe, dataset, started, **where)


# Results -----------------------------------------------------------------------------------------------


def flops_per_token(name: str, arguments: Namespace, dataset: Dataset) -> float:
    """Return the floating-point operations of a token's forward and backward pass: PaLM's formula (see the top)."""
    shape, _, _ = configure(STEPS[name][0], arguments, dataset.tokenizer.vocab_size)
    kv_heads = getattr(shape, "n_kv_head", None) or shape.n_head
    maps = 1 + 2 * kv_heads / shape.n_head + 1 + 4 + 4  # of a block, in squares of its width
    weights = shape.n_layer * maps * shape.n_embd**2 + shape.vocab_size * shape.n_embd
    return 6 * weights + 12 * shape.n_layer * shape.n_embd * shape.block_size


def report_steps(results: dict[str, dict[str, Summary]], flops: dict[str, float]) -> None:
    """Print the speed of a step and its share of the limit."""
    limit = results[LIMIT]["flops_per_second"].median
    reference = next(name for name in (NANOGPT, "nanoGPT, eager") if name in results)
    theirs = results[reference]["tokens_per_second"].median
    rows = []
    for name, per_token in flops.items():
        figures = results[name]
        speed = figures["tokens_per_second"]
        used = speed.median * per_token
        cold = figures["cold_start_seconds"]
        row = [name, str(speed), f"{speed.median / theirs:.2f}", f"{used / 1e12:,.3g}", f"{used / limit:.2%}"]
        rows.append([*row, str(cold), str(figures["peak_megabytes"])])
    rows.append([LIMIT, "", "", f"{limit / 1e12:,.3g}", "100%", "", ""])
    columns = ["contestant", "tokens/s: median (range)", f"× {reference}", "TFLOP/s", "of the bfloat16 limit"]
    measure.print_table("A training step", [*columns, "cold start, s", "peak MB"], rows)


def report_race(curves: dict[str, list[Curve]]) -> dict[str, Any]:
    """Print when each run reached nanoGPT's best loss, and return how it compares with the targets."""
    nanogpt, goal = next(iter(curves)), best_of(next(iter(curves.values())))
    times: dict[str, list[float | None]] = {}
    rows = []
    for name, runs in curves.items():
        clocks = (runs, [without_cold_start(run) for run in runs])
        times[name] = [median_or_none([time_to_loss.seconds_to(goal, run) for run in clock]) for clock in clocks]
        row = [name, runs[0]["parameters"], f"{best_of(runs):.4f}", step_of_best(runs[0])]
        row.append(f"{statistics.median(map(cold_start, runs)):.2f}")
        for theirs, ours in zip(times[nanogpt], times[name], strict=True):
            row.append(f"{ours:.2f}{one_in(theirs, ours)}" if ours is not None else "never")
        rows.append(row)
    columns = ["contestant", "parameters", "best loss", "at step", "cold start, s"]
    reached = [f"s to {goal:.4f}, {clock}" for clock in ("cold start included", "excluded")]
    measure.print_table("The race: whole-split loss, nats per token", [*columns, *reached], rows)
    small = [runs for runs in curves.values() if runs[0]["parameters"] <= MOST_PARAMETERS][1:]
    best = min(map(best_of, small), default=None)
    size = f"{MOST_PARAMETERS / 1e6:.1f} M parameters"
    print(f"best of one model with at most {size}: {measure.format_number(best) or 'none'} (target: {TARGET})")
    print(f"time to {goal:.4f}, targets: {TARGET_WITH} of nanoGPT's with both cold starts, {TARGET_WITHOUT} without")
    return {"goal": goal, "seconds_to_goal": times, "best_loss": best}


def median_or_none(values: list[float | None]) -> float | None:
    """Return the median, or None if a run has no value."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if len(there) == len(values) else None


def step_of_best(curve: Curve) -> int:
    """Return the step at which a run was best."""
    return curve["steps"][curve["losses"].index(min(curve["losses"]))]


def one_in(theirs: float | None, ours: float) -> str:
    """Return this time as a fraction of the other, as " (1/8.0)"; nothing for the other itself."""
    return f" (1/{theirs / ours:.1f})" if theirs and ours and theirs != ours else ""


if __name__ == "__main__":
    sys.exit(main())
