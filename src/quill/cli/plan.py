"""What `quill estimate` prints for several processes, or for a GPU by its name: computed, not measured."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from quill.files import expand_home
from quill.model.config import ModelConfig
from quill.planning.gpus import GPU
from quill.planning.limits import count_weights
from quill.planning.parallel import Parallel, ProcessCost, part_of_run, peak_of_process, process_cost
from quill.planning.planned_run import PlannedRun
from quill.planning.utilisation import ASSUMPTIONS, ExpectedStep, compiles, expect_step, largest_steps
from quill.runs.session import resolve
from quill.runs.settings import RunSettings
from quill.training.config import TrainConfig, tokens_per_step
from quill.training.context import RunContext
from quill.units import format_bytes, format_duration

Lines = list[tuple[str, str]]
SIZES = (1, 8, 64)


def compute_plan(
    configs: tuple[ModelConfig, TrainConfig, RunSettings],
    arguments: argparse.Namespace,
    gpu: GPU | None,
    on_progress: Callable[[str, float], None],
) -> tuple[dict[str, Any], Lines]:
    """Return the plan of a run as JSON-ready facts, and as rows of a table. Without a GPU there are no times.

    `on_progress` is called with the name of each phase and the completed share of the work.
    """
    model, config, settings = configs
    world_size, parallel = arguments.world_size, settings.parallel
    run = PlannedRun(model, config, resolve(settings) if gpu is None else context_of(settings))
    on_progress("tracing the memory of a step", 0.0)
    cost = process_cost(run, world_size, parallel)
    parameters = count_weights(model)
    facts: dict[str, Any] = {"world_size": world_size, "parallel": parallel, "parameters": parameters}
    lines = describe_model(run, world_size, parallel, parameters)
    if gpu is None:
        peak = peak_of_process(run, cost, world_size)
        facts |= {"process": dataclasses.asdict(cost), "peak_bytes": peak, "sent_bytes": cost.sent}
        lines += [*describe_memory(cost), ("libraries and allocator", format_bytes(peak - cost.peak))]
        lines += [("peak memory", f"{format_bytes(peak)} in each process")]
        return facts, [*lines, *describe_traffic(cost)]
    step = expect_step(run, gpu, world_size, parallel)
    rows: list[tuple[int, ExpectedStep | None]] = []
    for size in SIZES:
        on_progress(f"computing a step on {size} GPU{'s' * (size > 1)}", (1 + len(rows)) / (1 + len(SIZES)))
        rows.append((size, expected_on(run, gpu, size, parallel)))
    facts |= {"gpu": dataclasses.asdict(gpu), "process": dataclasses.asdict(cost), "peak_bytes": cost.peak}
    facts |= {"sent_bytes": cost.sent, "step": dataclasses.asdict(step), "fits": step.fits}
    facts |= {"run_seconds": config.max_iters * step.seconds, "assumptions": ASSUMPTIONS}
    facts["expected"] = {size: dataclasses.asdict(each) if each else None for size, each in rows}
    compiled = ", compiled" if compiles(run, world_size, parallel) else ""
    enough = "fits" if step.fits else "does not fit"
    network = (
        f"{gpu.network / 1e9:g} GB/s from a node" if gpu.network else "no network of its vendor, so 100 Gbit/s a node"
    )
    limits = (
        f"{format_bytes(gpu.memory)}, {gpu.bfloat16 / 1e12:g} TFLOP/s (dense bfloat16), {gpu.bandwidth / 1e12:g} TB/s "
        f"of memory, {gpu.link / 1e9:g} GB/s to each other, {network}"
    )
    return facts, [
        ("device", f"{gpu.name}: {limits}"),
        ("source", gpu.source),
        *lines,
        ("number format", str(run.context.dtype).removeprefix("torch.") + compiled),
        *describe_memory(cost),
        ("peak memory", f"{format_bytes(cost.peak)} of tensors in each process: {enough}"),
        *describe_traffic(cost),
        ("time of a step", describe_step(step)),
        ("time of the run", f"{format_duration(config.max_iters * step.seconds)} for {config.max_iters:,} steps"),
        *((f"on {size} GPU{'s' * (size > 1)}", describe_expected(run, each)) for size, each in rows),
        *(("assumed", each) for each in ASSUMPTIONS),
    ]


def context_of(settings: RunSettings) -> RunContext:
    """Return the context of a run on a GPU that is not here: its number format is bfloat16 unless another is given."""
    dtype = torch.bfloat16 if settings.dtype in ("auto", "fastest") else getattr(torch, settings.dtype)
    return RunContext(
        expand_home(settings.out_dir), torch.device("cuda"), dtype, settings.compile, settings.gradient_checkpointing
    )


def expected_on(run: PlannedRun, gpu: GPU, size: int, parallel: Parallel) -> ExpectedStep | None:
    """Return the expected step of the same batch on this many GPUs, None if it cannot be divided."""
    planned = largest_steps(run, gpu, size, parallel)
    return None if planned is None else expect_step(planned, gpu, size, parallel)


def describe_model(run: PlannedRun, world_size: int, parallel: str, parameters: int) -> Lines:
    """Return the rows about the model and its batch."""
    c, config = run.model, run.config
    batch = f"{part_of_run(run, world_size).config.batch_size} × {c.block_size} tokens in each process"
    if config.gradient_accumulation_steps > 1:
        batch += f", {config.gradient_accumulation_steps} in each step"
    return [
        ("model", f"{c.n_layer} layers, {c.n_head} heads, width {c.n_embd}, context {c.block_size}"),
        ("vocabulary", f"{c.vocab_size:,} tokens"),
        ("parameters", f"{parameters:,}"),
        ("processes", f"{world_size} ({parallel})" if world_size > 1 else "1"),
        ("micro-batch", batch),
        ("batch", f"{tokens_per_step(c, config):,} tokens in each step, at any world size"),
    ]


def describe_memory(cost: ProcessCost) -> Lines:
    """Return the rows about the memory of each process, by part."""
    return [
        ("weights", format_bytes(cost.weights)),
        ("gradients", format_bytes(cost.gradients) if cost.gradients else "replace activations"),
        ("optimizer state", format_bytes(cost.optimizer)),
        *([("whole blocks", f"{format_bytes(cost.gathered)} while they compute")] if cost.gathered else []),
        ("activations", format_bytes(cost.activations)),
        ("logits at the peak", format_bytes(cost.logits)),
    ]


def describe_traffic(cost: ProcessCost) -> Lines:
    """Return the row about the bytes that each process sends in a step."""
    parts = {"gradients": cost.sent_gradients, "weights": cost.sent_weights, "updates of Muon": cost.sent_updates}
    named = ", ".join(f"{format_bytes(size)} of {name}" for name, size in parts.items() if size)
    return [("sent in a step", f"{format_bytes(cost.sent)} by each process" + (f": {named}" if named else ""))]


def describe_step(step: ExpectedStep) -> str:
    """Return the time, speed and utilisation of a step in words."""
    text = (
        f"{format_duration(step.seconds)}, {step.tokens_per_second:,.0f} tokens/s, utilisation {step.utilisation:.0%}"
    )
    if step.seconds_without_overlap > 1.005 * step.seconds:
        text += f" ({step.utilisation_without_overlap:.0%} if communication were never hidden)"
    return text


def describe_expected(run: PlannedRun, step: ExpectedStep | None) -> str:
    """Return the expected step of one number of GPUs in words, with the flags that divide the batch for it."""
    if step is None:
        windows = run.config.batch_size * run.config.gradient_accumulation_steps
        return f"{windows} windows cannot be divided"
    flags = f"--batch_size={step.batch_size} --gradient_accumulation_steps={step.gradient_accumulation_steps}"
    fits = "" if step.fits else ", does not fit"
    return f"{describe_step(step)}, {format_bytes(step.cost.peak)} in each{fits}: {flags}"
