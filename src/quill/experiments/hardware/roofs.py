"""The two limits of this machine: operations a second, and bytes a second.

Roofs are measured apart from the model that is compared with them. Arithmetic: a product of large matrices by PyTorch,
and the engine's own linear maps on 256 rows of a model whose weights stay in the processor's cache. Memory: reading
as many bytes as the model's weights have, which may be faster than memory where they fit a shared cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from quill.engines.base import PrefillInput
from quill.engines.numba_engine import NumbaEngine
from quill.engines.request import Request
from quill.experiments.hardware.clock import fastest
from quill.experiments.hardware.work import linear_weights
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModelConfig

PRODUCT = 1024
"""Rows and columns of the matrices whose product gives the roof of float32 arithmetic."""

SHORT = GPTConfig(vocab_size=64, block_size=32, n_layer=1, n_head=6, n_embd=384, dropout=0.0)
"""A model that is almost only linear maps, and whose weights fit a cache."""

SLOTS = 8
"""Prompts of SHORT that are read at once: 8 · 32 = 256 rows."""


def make_numba_engine(config: ModelConfig, quantization: str | None, slots: int, seed: int = 0) -> NumbaEngine:
    """Return the fast engine for CPUs with random weights, drawn without the global random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
    arrays = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    return NumbaEngine(config, arrays, quantization=quantization, slots=slots)


def read_prompts(engine: NumbaEngine, prompts: list[tuple[int, ...]]) -> None:
    """Read a prompt into each slot from the first on."""
    for slot, prompt in enumerate(prompts):
        engine.assign(slot, Request(prompt, max_new_tokens=1))
    engine.prefill([PrefillInput(slot, prompt, 0) for slot, prompt in enumerate(prompts)])


def product_peak() -> Callable[[], float]:
    """Return a measurement of PyTorch's float32 operations a second."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(PRODUCT, PRODUCT, generator=generator) for _ in range(2))
    out = torch.empty(PRODUCT, PRODUCT)
    return lambda: 2.0 * PRODUCT**3 / fastest(lambda: torch.mm(a, b, out=out), 8)


def engine_peak(quantization: str | None) -> Callable[[], float]:
    """Return a measurement of the operations a second of the engine's linear maps on many rows."""
    engine = make_numba_engine(SHORT, quantization, SLOTS)
    generator = np.random.default_rng(0)
    prompts = [tuple(generator.integers(0, SHORT.vocab_size, SHORT.block_size).tolist()) for _ in range(SLOTS)]
    blocks = linear_weights(replace(SHORT, vocab_size=1)) - SHORT.n_embd  # without the head, which reads 8 rows
    operations = 2.0 * blocks * SHORT.block_size * SLOTS
    return lambda: operations / fastest(lambda: read_prompts(engine, prompts), 8)


def read_speed(size: int) -> Callable[[], float]:
    """Return a measurement of the bytes a second at which an array of `size` bytes is read, again and again.

    It is the fastest of three operations that read everything once. The threads of the first ones may still be asleep.
    """
    data = torch.ones(size // 4)
    reads: list[Callable[[], object]] = [data.amax, data.sum, lambda: torch.dot(data, data)]
    return lambda: size / min(fastest(read, 20) for read in reads)
