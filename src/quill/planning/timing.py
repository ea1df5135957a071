"""A few real training steps, small and quick, to learn how fast this machine is. Serves estimate.py and the dial.

The steps do what `train()` does, with made-up tokens where none are given; nothing is written and nobody's random
numbers change.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from quill.acceleration.apply import apply_acceleration
from quill.acceleration.compile import compile_choice, compile_model
from quill.device import resolve_dtype
from quill.evaluation.loss import cross_entropy
from quill.model.build import build_model
from quill.model.cache import KVCache
from quill.model.config import GPTConfig, ModelConfig
from quill.training.config import TrainConfig, acceleration_of
from quill.training.graph_step import suits_a_graph
from quill.training.parameter_groups import build_optimizer
from quill.training.step import clip_gradients

QUICK_SECONDS = 0.25  # a step that takes longer is not tried with twice as many windows


@dataclass(frozen=True)
class Measurement:
    """What a few real steps with `batch_size` windows took: seconds, and bytes at most."""

    batch_size: int
    micro_batch_seconds: float
    optimizer_seconds: float
    evaluation_seconds: float
    token_seconds: float
    bytes_peak: int


def measure(model_config: ModelConfig, config: TrainConfig, device: torch.device, largest: int) -> Measurement | None:
    """Take a few real steps with up to `largest` windows, as many as are quick, and return what they took."""
    if largest < 1:
        return None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # nobody's random numbers change
        trial = Trial(model_config, config, device)
        trial.step(trial.tokens(1))
        batch_size = min(2, largest)  # a single window is slower than each of several
        while sum(trial.step(trial.tokens(batch_size))) < QUICK_SECONDS and batch_size < largest:
            batch_size = min(largest, 2 * batch_size)
        trial.compile(batch_size)
        trial.step(trial.tokens(batch_size))
        micro_batches, optimizer_steps = zip(*(trial.step(trial.tokens(batch_size)) for _ in range(2)), strict=True)
        return Measurement(
            batch_size=batch_size,
            micro_batch_seconds=sum(micro_batches) / 2,
            optimizer_seconds=sum(optimizer_steps) / 2,
            evaluation_seconds=trial.evaluate(batch_size),
            token_seconds=trial.write(min(8, model_config.block_size)),
            bytes_peak=memory_held(device),
        )


def memory_without_model(config: TrainConfig, device: torch.device) -> int:
    """Return the bytes that this process holds on the device once it has taken a step, but for that step's tensors."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        tiny = GPTConfig(vocab_size=2, block_size=2, n_layer=1, n_head=1, n_embd=2)
        trial = Trial(tiny, replace(config, compile=False), device)
        trial.step(trial.tokens(1))  # loads what PyTorch loads at its first step
        return memory_held(device)


class Trial:
    """A run of a few steps."""

    def __init__(self, model_config: ModelConfig, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.model = build_model(model_config).to(device)
        self.optimizer = build_optimizer(self.model, config)
        apply_acceleration(self.model, device, **acceleration_of(config))
        self.forward = self.model
        self.dtype = dtype = resolve_dtype(config.dtype, device)
        self.autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)

    def compile(self, batch_size: int) -> None:
        """Compile the model if the run will."""
        choice = compile_choice(self.config.compile, captured=suits_a_graph(self.config, self.device, self.dtype))
        with self.autocast:
            self.forward = compile_model(self.model, choice, self.tokens(batch_size), lambda message: None)

    def tokens(self, batch_size: int) -> torch.Tensor:
        """Return made-up tokens_BT. Unlike those of a text they hardly ever share a row of an n-gram table."""
        c = self.model.config
        return torch.randint(c.vocab_size, (batch_size, c.block_size), device=self.device)

    def clock(self) -> float:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()
        return time.perf_counter()

    def step(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor | None = None) -> tuple[float, float]:
        """Return the seconds of a micro-batch forward and backward, and those of the optimizer."""
        started = self.clock()
        with self.autocast:
            loss = cross_entropy(self.forward(inputs_BT), inputs_BT if targets_BT is None else targets_BT)
        loss.backward()
        computed = self.clock()
        clip_gradients(self.model, self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return computed - started, self.clock() - computed

    @torch.no_grad()
    def evaluate(self, batch_size: int) -> float:
        """Return the seconds of evaluating one batch."""
        self.model.eval()
        tokens_BT, started = self.tokens(batch_size), self.clock()
        with self.autocast:
            cross_entropy(self.model(tokens_BT), tokens_BT)
        return self.clock() - started

    @torch.no_grad()
    def write(self, count: int) -> float:
        """Return the seconds of writing one token, of `count` that are written."""
        cache, token_BT = KVCache(self.model.config, device=self.device), self.tokens(1)[:, :1]
        started = self.clock()
        for _ in range(count):
            self.model(token_BT, cache)
        return (self.clock() - started) / count


def memory_held(device: torch.device) -> int:
    """Return the bytes that this process holds on the device now (on CUDA, the most that it held)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    import psutil

    return psutil.Process().memory_info().rss
