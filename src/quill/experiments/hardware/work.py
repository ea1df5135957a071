"""Arithmetic and memory traffic of a GPT, counted from its shape.

Only the least traffic is counted: each weight is read once for all rows of a step, each cached key and value once for
each row. A multiplication and an addition are two operations (FLOP). Williams et al. 2009, "Roofline", section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from quill.model.config import ModelConfig

BYTES = {"float32": 4, "int8": 1}
"""Bytes of a weight, by number format."""


@dataclass(frozen=True)
class Work:
    """What a piece of work takes: operations, and bytes between memory and the processor."""

    operations: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.operations / self.bytes

    def seconds(self, peak: float, bandwidth: float) -> float:
        """Return the least time: whichever of arithmetic and traffic takes longer, both overlapping."""
        return max(self.operations / peak, self.bytes / bandwidth)

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)


def linear_weights(config: ModelConfig) -> int:
    """Return the number of weights of all linear maps that a token passes: those of the blocks and the head."""
    size = config.n_embd // config.n_head
    projections = (config.n_head + 2 * config.kv_heads) * size + config.n_embd
    return config.n_embd * (config.n_layer * (projections + 8 * config.n_embd) + config.vocab_size)


def linear_work(config: ModelConfig, rows: int, dtype: str = "float32") -> Work:
    """Return the work of all linear maps on so many rows together."""
    weights = linear_weights(config)
    return Work(2.0 * weights * rows, float(weights * BYTES[dtype]))


def attention_work(config: ModelConfig, rows: int, length: int) -> Work:
    """Return the work of `rows` new tokens, each of a sequence of its own, that attend to `length` tokens.

    Keys and values are float32 in every number format. Each is used once: for its product and its sum.
    """
    cached = 2 * length * config.n_layer * config.kv_heads * (config.n_embd // config.n_head)
    operations = 4.0 * length * config.n_layer * config.n_embd * rows
    return Work(operations, 4.0 * cached * rows)


def prefill_work(config: ModelConfig, length: int, dtype: str = "float32") -> Work:
    """Return the work of reading one prompt: each weight is used for all its tokens; the head for the last one."""
    linear, head = linear_work(config, length, dtype), config.n_embd * config.vocab_size
    causal = 2.0 * length * (length + 1) * config.n_layer * config.n_embd
    cached = 8.0 * length * config.n_layer * config.n_embd
    return Work(linear.operations - 2.0 * head * (length - 1) + causal, linear.bytes + cached)


def training_work(config: ModelConfig, parameters: int, batch_size: int) -> Work:
    """Return the work of a training step in float32 with AdamW.

    The backward pass takes twice the products of the forward pass (Kaplan et al. 2020, section 2.1). Traffic: weights
    read forward and backward, gradients written, and by AdamW four arrays read and three written; activations of each
    layer (about 16 D a token, of which 4 D are hidden, and attention's) written once and read once.
    """
    tokens = batch_size * config.block_size
    forward = 2.0 * linear_weights(config) * tokens + 2.0 * tokens * config.block_size * config.n_layer * config.n_embd
    activations = tokens * config.n_layer * 16.0 * config.n_embd
    return Work(3 * forward, 4.0 * (10 * parameters + 2 * activations))
