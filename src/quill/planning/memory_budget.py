"""How much memory a run can use, and the largest micro-batch that fits into it.

On the fragmentation of heaps see Wilson et al. 1995, "Dynamic Storage Allocation: A Survey".
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
    """Memory of a process besides tensors."""

    process: int
    """bytes of Python and PyTorch themselves"""
    fragmentation: float
    """bytes that the allocator holds unused, for each byte of activations"""

    def peak(self, cost: StepCost) -> int:
        """Return the peak memory of a run with such steps, in bytes: the larger of training and evaluation."""
        activations = max(cost.activations + round(self.fragmentation * cost.activations), cost.evaluating)
        return self.process + cost.weights + cost.optimizer + activations


def typical_overhead(run: PlannedRun) -> Overhead:
    """Return the usual overhead, for cases in which it cannot be measured.

    glibc's heap cannot reuse all freed memory, in particular if large blocks are allocated and freed often. The numbers
    are fitted to measurements of benchmarks/estimate.py with `keep_freed_memory`, as in commands.
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
    for _ in range(6):  # memory is nearly proportional to the batch, so two rounds are usually enough
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
    """Return the bytes that this process can use on the device in all: those that it holds now, and those free."""
    if device.type == "cuda":
        return available_memory(device) + torch.cuda.memory_reserved(device)
    import psutil

    used = psutil.Process().memory_info()
    free = available_memory(device)
    with suppress(ImportError):  # Windows has no such limits
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free = min(free, max(0, limit - used.vms))
    return used.rss + free
