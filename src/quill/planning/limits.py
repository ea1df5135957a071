"""Refuse sizes that cannot work before the first tensor is made, in one line with the numbers.

Everything here is arithmetic on lower bounds, so it is instant for any size.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from quill.errors import ConfigError
from quill.model.config import ModelConfig, ModernConfig
from quill.model.shapes import weight_shapes
from quill.planning.memory_budget import memory_limit
from quill.planning.planned_run import PlannedRun
from quill.training.config import TrainConfig, tokens_per_step
from quill.units import format_bytes, format_duration

LONGEST_STEP = 3600.0  # seconds
LONG_RUN = 3600.0  # seconds: a longer run gives a warning
SLOW, FAST = 2e9, 1e15  # FLOP/s: slower than any current CPU, and faster than a GPU at these sizes
EFFICIENCY = 0.6  # speed of a training step on a CPU, relative to a large matrix product (docs/results.md)


def check_size(run: PlannedRun) -> None:
    """Raise ConfigError if the run certainly does not fit into memory, or if one step takes more than an hour."""
    needed, available = least_memory(run), memory_limit(run.context.device)
    if needed > available:
        raise ConfigError(
            f"{describe_size(run)} needs at least {format_bytes(needed)} of memory and {format_bytes(available)} is "
            f"available: choose a smaller {or_list(run)}"
        )
    flops = step_flops(run)
    if flops > LONGEST_STEP * SLOW:
        seconds = flops / flops_per_second(run.context.device)
        if seconds > LONGEST_STEP:
            raise ConfigError(
                f"{describe_size(run)} takes about {format_duration(seconds)} for one step of "
                f"{tokens_per_step(run.model, run.config):,} tokens: choose a smaller {or_list(run)}"
            )


def warn_of_long_run(run: PlannedRun) -> str | None:
    """Return a warning if the steps of this run take more than an hour on this CPU, else None."""
    flops = run.config.max_iters * step_flops(run)
    if run.context.device.type != "cpu" or flops < LONG_RUN * SLOW:
        return None
    seconds = flops / flops_per_second(run.context.device)
    if seconds < LONG_RUN:
        return None
    return (
        f"this will take about {format_duration(seconds)} on this CPU: quill train --minutes=5 trains as well as it "
        f"can in five minutes, and quill train --config=laptop is a small model"
    )


def warn_of_long_warmup(config: TrainConfig) -> str | None:
    """Return a warning if the run ends before its warm-up does, else None."""
    if config.warmup_iters < config.max_iters:
        return None
    return (
        f"warmup_iters={config.warmup_iters} is not shorter than the run (max_iters={config.max_iters}): the learning "
        f"rate never reaches {config.learning_rate:g}; choose a smaller warmup_iters"
    )


def describe_size(run: PlannedRun) -> str:
    """Return the settings that decide the size of a step."""
    shape, config = run.model, run.config
    text = (
        f"n_layer={shape.n_layer}, n_embd={shape.n_embd}, block_size={shape.block_size}, batch_size={config.batch_size}"
    )
    if config.gradient_accumulation_steps > 1:
        text += f", gradient_accumulation_steps={config.gradient_accumulation_steps}"
    if isinstance(shape, ModernConfig) and shape.ngram > 1:
        text += f", ngram={shape.ngram}, ngram_rows={shape.ngram_rows}"
    return text


def or_list(run: PlannedRun) -> str:
    """Return the settings to make smaller, as a list in words."""
    names = ["n_layer", "n_embd", "block_size", "batch_size"]
    names += ["gradient_accumulation_steps"] if run.config.gradient_accumulation_steps > 1 else []
    names += ["ngram_rows"] if isinstance(run.model, ModernConfig) and run.model.ngram > 1 else []
    return ", ".join(names[:-1]) + f" or {names[-1]}"


def count_weights(shape: ModelConfig) -> int:
    """Return the number of weights of a shape in constant time for any number of layers."""

    def count(layers: int) -> int:
        total = 0
        for sizes in weight_shapes(replace(shape, n_layer=layers)).values():
            product = 1
            for size in sizes:
                product *= size
            total += product
        return total

    one, two = count(1), count(2)
    return one + (shape.n_layer - 1) * (two - one)


def least_memory(run: PlannedRun) -> int:
    """Return a lower bound of the bytes of training: weights, gradients, optimizer state, part of the activations."""
    shape, config, context = run.model, run.config, run.context
    state = 4 * count_weights(shape) * (3 if config.optimizer == "muon" else 4)
    tokens = run.tokens_per_micro_batch
    kept = 1 if context.gradient_checkpointing else 8  # tensors of width n_embd that each block keeps, at least
    number = 4 if context.dtype == torch.float32 else 2
    activations = tokens * shape.n_layer * shape.n_embd * kept * number + tokens * shape.vocab_size * 4
    return state + activations


def step_flops(run: PlannedRun) -> float:
    """Return the FLOPs of matrix products and attention in one optimizer step, all micro-batches, both passes."""
    shape = run.model
    D, L, T, V = shape.n_embd, shape.n_layer, shape.block_size, shape.vocab_size
    return 6.0 * tokens_per_step(shape, run.config) * (L * (12 * D * D + D * T) + V * D)


def flops_per_second(device: torch.device) -> float:
    """Return about how many FLOP/s training reaches on this device; on a CPU a matrix product is timed."""
    if device.type != "cpu":
        return FAST
    size = 512
    a, b = torch.ones(size, size), torch.ones(size, size)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return EFFICIENCY * 2 * size**3 / best
