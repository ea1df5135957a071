"""How much memory a run may take, and the largest micro-batch that fits into it.

A heap holds more than what is in it: Wilson et al. 1995, "Dynamic Storage Allocation: A Survey".
"""

from __future__ import annotations

import math
import platform
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from quill.device import available_memory
from quill.model.config import ModelConfig
from quill.planning.memory_trace import StepCost, trace_step
from quill.training.config import TrainConfig


@dataclass(frozen=True)
class Overhead:
    """What a process holds besides tensors: `process` bytes, and in its allocator `waste` for each byte at work."""

    process: int
    waste: float

    def peak(self, cost: StepCost) -> int:
        """Return the most bytes that a run with such steps holds, whether it trains or evaluates."""
        working = max(cost.working + round(self.waste * cost.working), cost.evaluating)
        return self.process + cost.weights + cost.optimizer + working


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
