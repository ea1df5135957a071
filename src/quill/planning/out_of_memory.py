"""What a run that does not fit into memory needs, and which flags make it fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from quill.device import resolve_device
from quill.errors import TrainingError
from quill.model.config import ModelConfig
from quill.planning.memory_budget import largest_batch_size, memory_room, typical_overhead
from quill.planning.memory_trace import trace_step
from quill.training.config import TrainConfig
from quill.units import format_bytes


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


@contextlib.contextmanager
def explaining_out_of_memory(model_config: ModelConfig, config: TrainConfig) -> Iterator[None]:
    """Turn whatever error a device raises when memory runs out into a TrainingError that says what would fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(explain_out_of_memory(model_config, config)) from error
