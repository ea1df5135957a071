"""What a run will cost, before it starts: parameters, memory, arithmetic and time. Stands beside the training loop.

What the tensors take is traced (cost.py). What the process adds to that, and the time, come from a few real steps on
this very machine (trial.py), small enough to be quick, and safe where the real ones would not fit.

Why a heap holds more than what is in it: Wilson et al. 1995, "Dynamic Storage Allocation: A Survey".
"""

from __future__ import annotations

import math
import platform
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from quill.device import available_memory, resolve_device
from quill.model.build import build_model
from quill.model.config import ModelConfig
from quill.training.config import TrainConfig
from quill.training.cost import StepCost, trace_step
from quill.training.trial import Measurement, measure, memory_without_model


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


@dataclass(frozen=True)
class Overhead:
    """What a process holds besides tensors: `process` bytes, and in its allocator `waste` for each byte at work."""

    process: int
    waste: float

    def peak(self, cost: StepCost) -> int:
        """Return the most bytes that a run with such steps holds, whether it trains or evaluates."""
        working = max(cost.working + round(self.waste * cost.working), cost.evaluating)
        return self.process + cost.weights + cost.optimizer + working


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


def typical_overhead(config: TrainConfig, device: torch.device) -> Overhead:
    """Return what is usual where nothing can be measured.

    glibc's heap cannot use again all that was freed, the less so the more often large blocks come and go. Fitted to
    what benchmarks/estimate.py measures, with memory kept as commands have it (`keep_freed_memory`).
    """
    if device.type != "cpu":
        return Overhead(0, 0.0)
    waste = 2.0 if config.gradient_checkpointing else 0.55
    # Python with PyTorch, after its first step; and what other allocators waste is not known.
    return Overhead(265_000_000, waste if platform.libc_ver()[0] == "glibc" else 0.0)


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


def largest_batch_size(
    model_config: ModelConfig, config: TrainConfig, device: torch.device, overhead: Overhead, room: int
) -> int:
    """Return the largest micro-batch whose run takes at most `room` bytes, 0 if none does."""

    def needed(batch_size: int) -> int:
        return overhead.peak(trace_step(model_config, replace(config, batch_size=batch_size), device)) - fixed

    cost = trace_step(model_config, config, device)
    fixed = overhead.process + cost.weights + cost.optimizer
    left, size = room - fixed, config.batch_size
    for _ in range(6):  # memory is all but proportional to the batch: the second guess is mostly right
        guess = max(1, left * size // needed(size))
        if guess == size:
            break
        size = guess
    while size >= 1 and needed(size) > left:
        size -= math.ceil((needed(size) - left) / needed(size) * size)
    return max(0, size)


def safe_batch_size(cost: StepCost, config: TrainConfig, overhead: Overhead, room: int) -> int:
    """Return how many windows, up to those of the configuration, surely fit into `room` bytes; 0 if none does."""
    left = 0.8 * room - overhead.process - 2 * cost.weights - cost.optimizer
    return max(0, min(config.batch_size, int(left / (cost.working / config.batch_size * (1 + overhead.waste)))))


def memory_room(device: torch.device) -> int:
    """Return the bytes that this process may hold on the device in all: those it holds now, and those it could get."""
    if device.type == "cuda":
        return available_memory(device) + torch.cuda.memory_reserved(device)
    import psutil

    held = psutil.Process().memory_info()
    free = available_memory(device)
    with suppress(ImportError):  # Windows has no such limits
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free = min(free, max(0, limit - held.vms))
    return held.rss + free


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether this error means that memory ran out, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = (
        "defaultcpuallocator", "not enough memory", "out of memory", "cannot allocate memory", "bad_alloc",
        "alloc_failed",
    )  # fmt: skip
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)


def explain_out_of_memory(model_config: ModelConfig, config: TrainConfig) -> str:
    """Return one line for a run whose memory ran out: what it needs, what there is, and which flags make it fit."""
    try:
        device = resolve_device(config.device)
        return f"memory ran out: {describe_shortage(model_config, config, device, memory_room(device))}"
    except (RuntimeError, MemoryError):  # so little is left that nothing can be worked out
        return (
            f"memory ran out: batch_size={config.batch_size} is too much here; try a smaller --batch_size with more "
            f"--gradient_accumulation_steps, or --gradient_checkpointing=True"
        )


def foresee_out_of_memory(model_config: ModelConfig, config: TrainConfig, device: torch.device) -> str | None:
    """Return one line if this run will hardly fit, else None.

    Worth asking before a run on the CPU: there a system may end a process that takes too much without a word.
    """
    room, shape = memory_room(device), model_config
    # About 16 numbers a width and 4 an attention weight are kept: where that is far from all, nothing is traced.
    kept = shape.n_layer * (16 * shape.n_embd + 4 * shape.n_head * shape.block_size)
    if 4 * (4 * config.batch_size * shape.block_size * kept) < room:
        return None
    if typical_overhead(config, device).peak(trace_step(model_config, config, device)) <= room:
        return None
    return f"memory will hardly be enough: {describe_shortage(model_config, config, device, room)}"


def describe_shortage(model_config: ModelConfig, config: TrainConfig, device: torch.device, room: int) -> str:
    """Return what a run that does not fit into `room` bytes needs, and the flags that make it fit."""

    def need(changed: TrainConfig) -> int:
        return typical_overhead(changed, device).peak(trace_step(model_config, changed, device))

    there = f" and {format_bytes(room)} can be had" if room < need(config) else ""
    room = round(0.85 * min(room, need(config)))  # advice must help though the heap wastes more one time than another
    advice = []
    for checkpointing in (False, True)[config.gradient_checkpointing :]:
        changed = replace(config, gradient_checkpointing=checkpointing)
        if need(changed) > room:
            changed = split_batch(model_config, changed, device, room)
        if changed is not None:
            advice.append(f"{flags_between(config, changed)} needs {format_bytes(need(changed))}")
    if advice:
        way = ", or ".join(advice) + ", and trains the same"
    else:
        least = replace(config, batch_size=1, gradient_checkpointing=True)
        way = (
            f"{flags_between(config, least)} still needs {format_bytes(need(least))}, so choose a smaller "
            f"--block_size, --n_layer or --n_embd"
        )
    return f"batch_size={config.batch_size} needs about {format_bytes(need(config))}{there}; {way}"


def split_batch(model_config: ModelConfig, config: TrainConfig, device: torch.device, room: int) -> TrainConfig | None:
    """Return the same batch in as few micro-batches as fit into `room` bytes, or None if single windows do not."""
    several = replace(config, gradient_accumulation_steps=2)  # gradients then stay while the next ones are computed
    largest = largest_batch_size(model_config, several, device, typical_overhead(config, device), room)
    sizes = [size for size in range(1, min(largest, config.batch_size) + 1) if config.batch_size % size == 0]
    if not sizes:
        return None
    steps = config.gradient_accumulation_steps * config.batch_size // sizes[-1]
    return replace(config, batch_size=sizes[-1], gradient_accumulation_steps=steps)


def flags_between(config: TrainConfig, changed: TrainConfig) -> str:
    """Return the flags that turn one configuration into the other."""
    flags = (f"--{name}={value}" for name, value in vars(changed).items() if value != getattr(config, name))
    return " ".join(flags) or "this"


def format_bytes(size: float) -> str:
    """Return a size as people say it: 870 MB, 5.1 GB."""
    return f"{size / 1e9:.1f} GB" if abs(size) >= 999.5e6 else f"{size / 1e6:.0f} MB"
