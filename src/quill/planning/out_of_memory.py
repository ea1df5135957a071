"""Messages about a run that does not fit into memory: what it needs, and which flags make it fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from quill.errors import TrainingError
from quill.planning.memory_budget import largest_batch_size, memory_limit, typical_overhead
from quill.planning.memory_trace import trace_step
from quill.planning.planned_run import PlannedRun
from quill.units import format_bytes


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether this error means that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = (
        "defaultcpuallocator", "not enough memory", "out of memory", "cannot allocate memory", "bad_alloc",
        "alloc_failed",
    )  # fmt: skip
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)


def explain_out_of_memory(run: PlannedRun) -> str:
    """Return one line for a run whose memory ran out: what it needs, what is available, and which flags make it fit."""
    try:
        return f"memory ran out: {describe_shortage(run, memory_limit(run.context.device))}"
    except (RuntimeError, MemoryError):  # too little memory is left to compute advice
        return (
            f"memory ran out: batch_size={run.config.batch_size} is too much here; try a smaller --batch_size with "
            f"more --gradient_accumulation_steps, or --gradient_checkpointing=True"
        )


def foresee_out_of_memory(run: PlannedRun) -> str | None:
    """Return one line if this run will probably not fit into memory, else None.

    Call it before a run on the CPU: the system may kill a process that uses too much, without a message.
    """
    available, shape = memory_limit(run.context.device), run.model
    # Far below the limit, by a rough estimate (16 numbers per unit of width, 4 per attention weight), skip the trace.
    kept = shape.n_layer * (16 * shape.n_embd + 4 * shape.n_head * shape.block_size)
    if 4 * (4 * run.tokens_per_micro_batch * kept) < available:
        return None
    if typical_overhead(run).peak(trace_step(run)) <= available:
        return None
    return f"memory will hardly be enough: {describe_shortage(run, available)}"


def describe_shortage(run: PlannedRun, available: int) -> str:
    """Return what a run needs that does not fit into the available bytes, and the flags that make it fit."""

    def need(changed: PlannedRun) -> int:
        return typical_overhead(changed).peak(trace_step(changed))

    there = f" and {format_bytes(available)} is available" if available < need(run) else ""
    # A margin, so that the advice works although the heap's fragmentation varies.
    available = round(0.85 * min(available, need(run)))
    advice = []
    for checkpointing in (False, True)[run.context.gradient_checkpointing :]:
        changed = run.change(gradient_checkpointing=checkpointing)
        if need(changed) > available:
            changed = split_batch(changed, available)
        if changed is not None:
            advice.append(f"{flags_between(run, changed)} needs {format_bytes(need(changed))}")
    if advice:
        way = ", or ".join(advice) + ", and trains the same"
    else:
        least = run.change(batch_size=1, gradient_checkpointing=True)
        way = (
            f"{flags_between(run, least)} still needs {format_bytes(need(least))}, so choose a smaller "
            f"--block_size, --n_layer or --n_embd"
        )
    return f"batch_size={run.config.batch_size} needs about {format_bytes(need(run))}{there}; {way}"


def split_batch(run: PlannedRun, available: int) -> PlannedRun | None:
    """Return the same batch in as few micro-batches as fit into the available bytes, or None if no window fits."""
    batch_size, accumulation = run.config.batch_size, run.config.gradient_accumulation_steps
    several = run.change(gradient_accumulation_steps=2)  # gradients then stay in memory during the next pass
    largest = largest_batch_size(several, typical_overhead(run), available)
    sizes = [size for size in range(1, min(largest, batch_size) + 1) if batch_size % size == 0]
    if not sizes:
        return None
    return run.change(batch_size=sizes[-1], gradient_accumulation_steps=accumulation * batch_size // sizes[-1])


def flags_between(run: PlannedRun, changed: PlannedRun) -> str:
    """Return the flags that turn one run into the other."""
    before, after = ({**vars(each.config), **vars(each.context)} for each in (run, changed))
    flags = (f"--{name}={value}" for name, value in after.items() if value != before[name])
    return " ".join(flags) or "this"


@contextlib.contextmanager
def explaining_out_of_memory(run: PlannedRun) -> Iterator[None]:
    """Turn the error that a device raises when memory runs out into a TrainingError that says what would fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(explain_out_of_memory(run)) from error
