"""What a run will cost, before it starts: parameters, memory, arithmetic and time. Stands beside the training loop.

What the tensors take is traced (cost.py). What the process adds to that, and the time, come from a few real steps on
this very machine (trial.py), small enough to be quick, and safe where the real ones would not fit.

Why a heap holds more than what is in it: Wilson et al. 1995, "Dynamic Storage Allocation: A Survey".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from quill.model.build import build_model
from quill.model.config import ModelConfig
from quill.planning.memory_budget import largest_batch_size, memory_room, safe_batch_size, typical_overhead
from quill.planning.memory_trace import StepCost, trace_step
from quill.planning.timing import Measurement, measure, memory_without_model
from quill.training.config import TrainConfig


@dataclass(frozen=True)
class Estimate:
    """What a run will need: bytes, FLOPs and seconds. Times are None where not even one window could be tried."""

    parameters: int
    parameters_without_positions: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    """most that a step holds besides weights and optimizer state; gradients take the place of activations"""
    process_bytes: int
    """Python and PyTorch themselves; on a GPU, workspaces of its libraries"""
    allocator_bytes: int
    """what the allocator holds without being able to use it; below 0 where a compiled model needs less than traced"""
    peak_bytes: int
    """most that the process holds at once (its resident set); on a GPU, most that PyTorch allocates there"""
    room_bytes: int
    """most that it may hold: what is free now, and what it holds already"""
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
    model_config: ModelConfig, config: TrainConfig, *, device: torch.device, val_tokens: int | None = None
) -> Estimate:
    """Return what this run will need on this device, after a few seconds that take little memory themselves.

    `val_tokens`, the length of the validation split, is for the time that evaluations take; without it they are
    taken to have all their `eval_iters` batches.
    """
    room, overhead, seconds = memory_room(device), typical_overhead(config, device), {}
    overhead = replace(
        overhead, process=memory_without_model(config, device)
    )  # before tracing loads what only it needs
    cost = trace_step(model_config, config, device)
    measured = measure(model_config, config, device, safe_batch_size(cost, config, overhead, room))
    if measured:
        tried = trace_step(model_config, replace(config, batch_size=measured.batch_size), device)
        if device.type == "cuda":  # there PyTorch counts exactly, and a compiled model may need less than was traced
            live = overhead.process + tried.weights + tried.optimizer + tried.working
            overhead = replace(overhead, waste=(measured.bytes_peak - live) / tried.working)
        seconds = run_times(model_config, config, cost, tried, measured, val_tokens)
    peak = overhead.peak(cost)
    with torch.device("meta"):
        model = build_model(model_config)
    return Estimate(
        parameters=model.count_parameters(),
        parameters_without_positions=model.count_parameters(positions=False),
        weights_bytes=cost.weights,
        gradients_bytes=cost.weights,
        optimizer_bytes=cost.optimizer,
        activations_bytes=cost.working,
        process_bytes=overhead.process,
        allocator_bytes=round(cost.working * overhead.waste),
        peak_bytes=peak,
        room_bytes=room,
        fits=peak <= room,
        largest_batch_size=largest_batch_size(model_config, config, device, overhead, room),
        flops_per_step=cost.flops * config.gradient_accumulation_steps,
        tokens_per_step=config.batch_size * config.gradient_accumulation_steps * model_config.block_size,
        measured_batch_size=measured.batch_size if measured else 0,
        **seconds,
    )


def run_times(
    model_config: ModelConfig,
    config: TrainConfig,
    cost: StepCost,
    tried: StepCost,
    measured: Measurement,
    val_tokens: int | None,
) -> dict[str, float]:
    """Return the times of an Estimate: those measured, as often as there are more FLOPs than in what was `tried`."""
    micro_batch = measured.micro_batch_seconds * cost.flops / tried.flops
    step = config.gradient_accumulation_steps * micro_batch + measured.optimizer_seconds
    windows = config.eval_iters * config.batch_size
    if val_tokens is not None:
        windows = min(windows, math.ceil(val_tokens / model_config.block_size))
    both_splits = 2 * windows / measured.batch_size * measured.evaluation_seconds
    evaluation = both_splits + config.sample_tokens * measured.token_seconds
    evaluations = 1 + math.ceil(config.max_iters / config.eval_interval)  # before the first step, and after the last
    return {
        "seconds_per_step": step,
        "tokens_per_second": config.batch_size * config.gradient_accumulation_steps * model_config.block_size / step,
        "evaluation_seconds": evaluation,
        "run_seconds": config.max_iters * step + evaluations * evaluation,
    }
