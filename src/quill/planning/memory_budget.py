"""How much memory a run may take, and the largest micro-batch that fits into it.

A heap holds more than what is in it: Wilson et al. 1995, "Dynamic Storage Allocation: A Survey".
"""

from __future__ import annotations

import math
import platform
from contextlib import suppress
from dataclasses import dataclass

import torch

from quill.device import available_memory
from quill.planning.memory_trace import StepCost, trace_step
from quill.planning.planned_run import PlannedRun


@dataclass(frozen=True)
class Overhead:
    """What a process holds beside tensors."""

    process: int
    """bytes of Python and PyTorch themselves"""
    fragmentation: float
    """bytes that the allocator holds unused, for each byte of activations"""

    def peak(self, cost: StepCost) -> int:
        """Return the most bytes that a run with such steps holds, whether it trains or evaluates."""
        activations = max(cost.activations + round(self.fragmentation * cost.activations), cost.evaluating)
        return self.process + cost.weights + cost.optimizer + activations


def typical_overhead(run: PlannedRun) -> Overhead:
    """Return the usual overhead, for where it cannot be measured.

    glibc's heap cannot reuse all that was freed, the less the more often large blocks come and go. Fitted to what
    benchmarks/estimate.py measures, with memory kept as commands have it (`keep_freed_memory`).
    """
    if run.context.device.type != "cpu":
        return Overhead(0, 0.0)
    fragmentation = 2.0 if run.context.gradient_checkpointing else 0.55
    # Python with PyTorch, after its first step. The fragmentation of other allocators is not known.
    return Overhead(265_000_000, fragmentation if platform.libc_ver()[0] == "glibc" else 0.0)


def largest_batch_size(run: PlannedRun, overhead: Overhead, available: int) -> int:
    """Return the largest micro-batch whose run takes at most `available` bytes, 0 if none does."""

    def needed(batch_size: int) -> int:
        return overhead.peak(trace_step(run.change(batch_size=batch_size))) - fixed

    cost = trace_step(run)
    fixed = overhead.process + cost.weights + cost.optimizer
    left, size = available - fixed, run.config.batch_size
    for _ in range(6):  # memory is nearly proportional to the batch: the second guess is mostly right
        guess = max(1, left * size // needed(size))
        if guess == size:
            break
        size = guess
    while size >= 1 and needed(size) > left:
        size -= math.ceil((needed(size) - left) / needed(size) * size)
    return max(0, size)


def safe_batch_size(cost: StepCost, batch_size: int, overhead: Overhead, available: int) -> int:
    """Return how many windows, up to `batch_size`, certainly fit into the available bytes; 0 if none does.

    `cost` is that of a step with `batch_size` windows.
    """
    left = 0.8 * available - overhead.process - 2 * cost.weights - cost.optimizer
    return max(0, min(batch_size, int(left / (cost.activations / batch_size * (1 + overhead.fragmentation)))))


def memory_limit(device: torch.device) -> int:
    """Return the bytes that this process may hold on the device in all: those it holds now, and those still free."""
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
