"""Estimate a run before it starts: parameters, memory, FLOPs and time.

The bytes of tensors are traced (memory_trace.py). The overhead of the process and the times are measured in a few real
steps on this machine (timing.py), with batches small enough to be quick and to fit into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from quill.model.build import build_model
from quill.planning.memory_budget import largest_batch_size, memory_limit, safe_batch_size, typical_overhead
from quill.planning.memory_trace import StepCost, trace_step
from quill.planning.planned_run import PlannedRun
from quill.planning.timing import Measurement, measure_step, memory_without_model
from quill.training.config import tokens_per_step


@dataclass(frozen=True)
class Estimate:
    """What a run will need: bytes, FLOPs and seconds. Times are None if not even one window fits."""

    parameters: int
    parameters_without_positions: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    """peak of a step besides weights and optimizer state; gradients replace activations"""
    process_bytes: int
    """Python and PyTorch themselves; on a GPU, workspaces of its libraries"""
    allocator_bytes: int
    """allocator overhead; below 0 where a compiled model needs less than was traced"""
    peak_bytes: int
    """peak of the process (its resident set); on a GPU, peak of PyTorch's allocations there"""
    available_bytes: int
    """memory that it can use: what is free now, and what it holds already"""
    fits: bool
    largest_batch_size: int
    """the largest micro-batch that fits, 0 if none does"""
    flops_per_step: int
    """of matrix products and attention, in all micro-batches of a step"""
    tokens_per_step: int
    measured_batch_size: int
    """windows in the real steps that the times come from; 0 if there were none"""
    seconds_per_step: float | None = None
    tokens_per_second: float | None = None
    evaluation_seconds: float | None = None
    """of one evaluation of both splits, with its sample"""
    run_seconds: float | None = None


def estimate_run(
    run: PlannedRun,
    *,
    val_tokens: int | None = None,
    sample_tokens: int = 0,
    on_progress: Callable[[str, float], None] = lambda what, share: None,
) -> Estimate:
    """Return what this run will need on its device. This takes a few seconds and little memory.

    `val_tokens` is the length of the validation split; without it an evaluation is assumed to have all its `eval_iters`
    batches. `sample_tokens` is the length of the sample at each evaluation. `on_progress` is called before each long
    phase with its name and the completed share of the work.
    """
    config, device = run.config, run.context.device
    available, seconds = memory_limit(device), {}
    on_progress("loading PyTorch", 0.0)
    process = memory_without_model(run.context, run)  # before tracing, which loads libraries that a run does not need
    overhead = replace(typical_overhead(run), process=process)
    on_progress("tracing the memory of a step", 0.1)
    cost = trace_step(run)
    on_progress("measuring a few steps", 0.4)
    measured = measure_step(run, safe_batch_size(cost, config.batch_size, overhead, available))
    if measured:
        on_progress("tracing the memory of the measured step", 0.7)
        tried = trace_step(run.change(batch_size=measured.batch_size))
        if device.type == "cuda":  # PyTorch counts exactly there, and a compiled model may need less than was traced
            live = overhead.process + tried.weights + tried.optimizer + tried.activations
            overhead = replace(overhead, fragmentation=(measured.bytes_peak - live) / tried.activations)
        seconds = run_times(run, cost, tried, measured, val_tokens, sample_tokens)
    on_progress("finding the largest batch that fits", 0.8)
    peak = overhead.peak(cost)
    with torch.device("meta"):
        model = build_model(run.model)
    return Estimate(
        parameters=model.count_parameters(),
        parameters_without_positions=model.count_parameters(positions=False),
        weights_bytes=cost.weights,
        gradients_bytes=cost.weights,
        optimizer_bytes=cost.optimizer,
        activations_bytes=cost.activations,
        process_bytes=overhead.process,
        allocator_bytes=round(cost.activations * overhead.fragmentation),
        peak_bytes=peak,
        available_bytes=available,
        fits=peak <= available,
        largest_batch_size=largest_batch_size(run, overhead, available),
        flops_per_step=cost.flops * config.gradient_accumulation_steps,
        tokens_per_step=tokens_per_step(run.model, config),
        measured_batch_size=measured.batch_size if measured else 0,
        **seconds,
    )


def run_times(
    run: PlannedRun,
    cost: StepCost,
    tried: StepCost,
    measured: Measurement,
    val_tokens: int | None,
    sample_tokens: int,
) -> dict[str, float]:
    """Return the times of an Estimate: those measured, scaled by the FLOPs of `cost` over those of `tried`."""
    config = run.config
    micro_batch = measured.micro_batch_seconds * cost.flops / tried.flops
    step = config.gradient_accumulation_steps * micro_batch + measured.optimizer_seconds
    windows = config.eval_iters * config.batch_size
    if val_tokens is not None:
        windows = min(windows, math.ceil(val_tokens / run.model.block_size))
    both_splits = 2 * windows / measured.batch_size * measured.evaluation_seconds
    evaluation = both_splits + sample_tokens * measured.token_seconds
    evaluations = 1 + math.ceil(config.max_iters / config.eval_interval)  # before the first step, and after the last
    return {
        "seconds_per_step": step,
        "tokens_per_second": tokens_per_step(run.model, config) / step,
        "evaluation_seconds": evaluation,
        "run_seconds": config.max_iters * step + evaluations * evaluation,
    }
