"""What a process of a run of W processes needs: memory by part, and the bytes that it sends in a step.

Data parallel (DDP): every process has all weights, gradients and optimizer state, and a W-th of each batch. Gradients
are summed by an all-reduce. Fully sharded (FSDP): every process has a W-th of the three, and gathers the weights of a
block while it computes with them. A ring all-gather or reduce-scatter of n bytes sends (W - 1) / W · n from each
process, and an all-reduce is both (Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms").
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from quill.distributed.environment import require_divisible
from quill.model.config import ModernConfig
from quill.model.shapes import weight_shapes
from quill.planning.memory_budget import typical_overhead
from quill.planning.memory_trace import StepCost, trace_step
from quill.planning.planned_run import PlannedRun
from quill.training.config import has_ngram_updates

Parallel = Literal["ddp", "fsdp"]
FLOAT32 = 4  # bytes: weights, gradients and optimizer state
GLOO = 65_000_000
"""Bytes of torch.distributed and gloo in a process, fitted to benchmarks/estimate_processes.py."""


@dataclass(frozen=True)
class ProcessCost:
    """Bytes of one process of several: its memory by part at the peak of a step, and what it sends in a step."""

    weights: int
    gradients: int
    """0 if they replace activations: one process, one micro-batch a step"""
    optimizer: int
    gathered: int
    """FSDP only: whole weights and gradients of the blocks at work, and of the embeddings"""
    activations: int
    """besides those of the logits"""
    logits: int
    """what logits, softmax and their gradients add to the peak, which may come after they are freed"""
    sent_gradients: int
    """all-reduce (DDP) or reduce-scatter (FSDP) of gradients, and all-gather of the rows of sparse gradients"""
    sent_weights: int
    """all-gathers of FSDP"""
    sent_updates: int
    """Muon's updates, each computed in one process: all-gather of them (DDP), or all-to-all of matrices and back"""

    @property
    def peak(self) -> int:
        """Memory of the tensors of a step, without that of libraries."""
        state = self.weights + self.gradients + self.optimizer
        return state + self.gathered + self.activations + self.logits

    @property
    def sent(self) -> int:
        """Bytes that this process sends in an optimizer step."""
        return self.sent_gradients + self.sent_weights + self.sent_updates


def part_of_run(run: PlannedRun, world_size: int) -> PlannedRun:
    """Return the run that one of `world_size` processes computes: a part of each micro-batch. ConfigError if uneven."""
    require_divisible(run.config.batch_size, world_size)
    return run.change(batch_size=run.config.batch_size // world_size)


def trace_process(run: PlannedRun, world_size: int) -> StepCost:
    """Return the traced cost of one process's part of a step; its activations include gradients that are kept."""
    part = part_of_run(run, world_size)
    if keeps_gradients(run, world_size):  # as in the second of two micro-batches
        part = part.change(gradient_accumulation_steps=max(2, run.config.gradient_accumulation_steps))
    return trace_step(part)


def keeps_gradients(run: PlannedRun, world_size: int) -> bool:
    """Return whether gradients have memory of their own: with several processes, they are in buckets to be sent."""
    return world_size > 1 or run.config.gradient_accumulation_steps > 1


def process_cost(run: PlannedRun, world_size: int, parallel: Parallel = "ddp") -> ProcessCost:
    """Return the memory and the traffic of each of `world_size` processes that run this together."""
    W, cost = world_size, trace_process(run, world_size)
    kept = keeps_gradients(run, W)
    dense = cost.weights - sparse_bytes(run)
    smallest = run.change(vocab_size=1)
    without = trace_process(smallest, W)
    hidden = without.activations - kept * (without.weights - sparse_bytes(smallest))
    activations = cost.activations - kept * dense
    sparse_rows = (W - 1) * sparse_rows_bytes(run, W)
    split = (W - 1) / W
    if parallel == "fsdp" and W > 1:
        micro_batches = run.config.gradient_accumulation_steps
        outside, block = group_bytes(run)
        outside -= sparse_bytes(run)  # tables with sparse gradients are whole in every process
        # The weights of two blocks and the gradients of two are whole at a time: one at work, one being exchanged.
        gathered = 2 * outside + 4 * block
        gathers = micro_batches * (outside + 2 * (dense - outside))
        sent = (split * dense + sparse_rows, split * gathers, muon_bytes(run, W, parallel))
        weights, optimizer = sparse_bytes(run), sparse_state_bytes(run)
        weights += math.ceil(dense / W)
        optimizer += math.ceil((cost.optimizer - optimizer) / W)
        gradients = dense if micro_batches > 1 else math.ceil(dense / W)  # added up whole, and exchanged once a step
    else:
        gathered, gradients = 0, kept * dense
        weights, optimizer = cost.weights, cost.optimizer
        sent = (2 * split * dense + sparse_rows, 0, muon_bytes(run, W))
    return ProcessCost(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        gathered=gathered,
        activations=min(activations, hidden),
        logits=max(0, activations - hidden),
        sent_gradients=round(sent[0]),
        sent_weights=round(sent[1]),
        sent_updates=round(sent[2]),
    )


def peak_of_process(run: PlannedRun, cost: ProcessCost, world_size: int) -> int:
    """Return the peak memory of a process on this machine: its tensors, its libraries, and the allocator's overhead."""
    overhead = typical_overhead(run)
    libraries = overhead.process + (GLOO if world_size > 1 else 0)
    return cost.peak + libraries + round(overhead.fragmentation * (cost.activations + cost.logits))


def group_bytes(run: PlannedRun) -> tuple[int, int]:
    """Return the bytes of the weights outside all blocks, and of one block: what FSDP gathers at once."""
    shapes = weight_shapes(replace(run.model, n_layer=1))
    inside = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("blocks."))
    return FLOAT32 * (sum(map(math.prod, shapes.values())) - inside), FLOAT32 * inside


def sparse_bytes(run: PlannedRun) -> int:
    """Return the bytes of n-gram tables whose gradients hold only the rows that a step used."""
    if not isinstance(run.model, ModernConfig) or not has_sparse_gradients(run):
        return 0
    return FLOAT32 * sum(run.model.ngram_sizes) * run.model.n_embd


def sparse_state_bytes(run: PlannedRun) -> int:
    """Return the bytes of the optimizer state of these tables: two numbers a row."""
    if not isinstance(run.model, ModernConfig) or not has_sparse_gradients(run):
        return 0
    return 2 * FLOAT32 * sum(run.model.ngram_sizes)


def has_sparse_gradients(run: PlannedRun) -> bool:
    """Return whether gradients of n-gram tables are sparse, as acceleration/apply.py decides."""
    return has_ngram_updates(run.config) and run.context.device.type == "cpu" and run.context.compile is not True


def sparse_rows_bytes(run: PlannedRun, world_size: int) -> int:
    """Return the most bytes of sparse gradients in a process: for each token and table a row and its int64 number."""
    if not isinstance(run.model, ModernConfig) or not has_sparse_gradients(run):
        return 0
    part = part_of_run(run, world_size)
    tokens = part.tokens_per_micro_batch * part.config.gradient_accumulation_steps
    return sum(min(tokens, rows) for rows in run.model.ngram_sizes) * (FLOAT32 * run.model.n_embd + 8)


def muon_bytes(run: PlannedRun, world_size: int, parallel: Parallel = "ddp") -> int:
    """Return the bytes of orthogonalized updates that a process sends to the others; 0 without Muon.

    The matrices of one shape are divided among processes (optim/muon.py). Queries, keys and values are matrices of
    their own. With FSDP a process sends its rows of the matrices that others compute, and the others' rows of its own.
    """
    if run.config.optimizer != "muon" or world_size == 1:
        return 0
    counts: Counter[tuple[int, ...]] = Counter()
    for name, shape in weight_shapes(replace(run.model, n_layer=1)).items():
        if name.startswith("blocks.") and len(shape) == 2:
            rows, columns = shape
            stacked = name.endswith("query_key_value.weight")
            parts = [columns, *2 * [(rows - columns) // 2]] if stacked else [rows]
            counts.update((part, columns) for part in parts)
    if parallel == "fsdp":
        matrices = run.model.n_layer * sum(n * math.prod(shape) for shape, n in counts.items())
        return round(2 * (world_size - 1) / world_size**2 * FLOAT32 * matrices)
    shares = (math.ceil(run.model.n_layer * n / world_size) * math.prod(shape) for shape, n in counts.items())
    return (world_size - 1) * FLOAT32 * sum(shares)
