"""A few real training steps, small and quick, to measure the speed of this machine.

The steps are those of training/setup.py, on random tokens. No file is written, and the global RNG state is left
untouched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quill.acceleration.compile import compile_choice, compile_model
from quill.evaluation.loss import cross_entropy
from quill.model.cache import KVCache
from quill.model.config import GPTConfig
from quill.planning.planned_run import PlannedRun
from quill.training.context import RunContext
from quill.training.graph_step import suits_a_graph
from quill.training.setup import Session, build_session, train_step
from quill.training.step import TrainStep

QUICK_SECONDS = 0.25  # a step that takes longer is not tried with twice as many windows


@dataclass(frozen=True)
class Measurement:
    """Seconds of a few real steps with `batch_size` windows, and their peak memory."""

    batch_size: int
    micro_batch_seconds: float
    optimizer_seconds: float
    evaluation_seconds: float
    token_seconds: float
    bytes_peak: int


def measure_step(run: PlannedRun, largest: int) -> Measurement | None:
    """Return the measurement of a few real steps with up to `largest` windows, as many as are quick."""
    if largest < 1:
        return None
    device = run.context.device
    with keep_rng_state(device):
        session = build_session(run.model, run.config, run.context)
        step = train_step(session, session.model, replace(run.config, gradient_accumulation_steps=1), run.context)
        take_step(step, 1)
        batch_size = min(2, largest)  # a single window is slower than each of several
        while sum(take_step(step, batch_size)) < QUICK_SECONDS and batch_size < largest:
            batch_size = min(largest, 2 * batch_size)
        step = replace(step, forward=compiled_forward(session, run.context, batch_size))
        take_step(step, batch_size)
        micro_batches, updates = zip(*(take_step(step, batch_size) for _ in range(2)), strict=True)
        return Measurement(
            batch_size=batch_size,
            micro_batch_seconds=sum(micro_batches) / 2,
            optimizer_seconds=sum(updates) / 2,
            evaluation_seconds=evaluate_once(step, batch_size),
            token_seconds=generate_tokens(session, device, min(8, run.model.block_size)),
            bytes_peak=memory_held(device),
        )


def memory_without_model(context: RunContext, run: PlannedRun) -> int:
    """Return the memory of this process on the device after a step of a tiny model, in bytes."""
    device = context.device
    with keep_rng_state(device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        tiny = GPTConfig(vocab_size=2, block_size=2, n_layer=1, n_head=1, n_embd=2)
        eager = replace(context, compile=False)
        session = build_session(tiny, run.config, eager)
        step = train_step(session, session.model, replace(run.config, gradient_accumulation_steps=1), eager)
        take_step(step, 1)  # PyTorch loads libraries at its first step
        return memory_held(device)


def keep_rng_state(device: torch.device):
    """Return a context that leaves the global RNG state untouched."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def compiled_forward(session: Session, context: RunContext, batch_size: int) -> Callable[[Tensor], Tensor]:
    """Return the forward pass that the run will use: compiled if the run compiles."""
    choice = compile_choice(context.compile, captured=suits_a_graph(context))
    with context.autocast:
        return compile_model(session.model, choice, made_up_tokens(session, batch_size), lambda message: None)


def made_up_tokens(session: Session, batch_size: int) -> Tensor:
    """Return random tokens_BT. Unlike those of a text, they rarely use the same row of an n-gram table."""
    c, device = session.model.config, session.model.token_embedding.weight.device
    return torch.randint(c.vocab_size, (batch_size, c.block_size), device=device)


def now(device: torch.device) -> float:
    """Return the time in seconds once the device has finished its work."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def take_step(step: TrainStep, batch_size: int) -> tuple[float, float]:
    """Run a step with one micro-batch of `batch_size` windows; return the seconds of its gradients and its update."""
    c, device = step.model.config, step.model.token_embedding.weight.device
    tokens_BT = torch.randint(c.vocab_size, (batch_size, c.block_size), device=device)
    step, started = replace(step, micro_batch_size=batch_size), now(device)
    step.accumulate(tokens_BT, tokens_BT)
    computed = now(device)
    step.update()
    return computed - started, now(device) - computed


@torch.no_grad()
def evaluate_once(step: TrainStep, batch_size: int) -> float:
    """Return the seconds of evaluating one batch of `batch_size` windows."""
    c, device = step.model.config, step.model.token_embedding.weight.device
    step.model.eval()
    tokens_BT = torch.randint(c.vocab_size, (batch_size, c.block_size), device=device)
    started = now(device)
    with step.autocast:
        cross_entropy(step.model(tokens_BT), tokens_BT)
    return now(device) - started


@torch.no_grad()
def generate_tokens(session: Session, device: torch.device, count: int) -> float:
    """Return the seconds of generating one token, measured over `count` tokens."""
    cache, token_BT = KVCache(session.model.config, device=device), made_up_tokens(session, 1)[:, :1]
    started = now(device)
    for _ in range(count):
        session.model(token_BT, cache)
    return (now(device) - started) / count


def memory_held(device: torch.device) -> int:
    """Return the bytes that this process uses on the device now (on CUDA, its peak)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    import psutil

    return psutil.Process().memory_info().rss
