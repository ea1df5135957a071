"""The shape of a GPT, as frozen data: the first stop of the model room, and all that a checkpoint must remember of it.

There are two architectures, each with a configuration of its own: the classic GPT-2 (gpt.py) and the modern one
(modern.py). The defaults of both are the founding size: 6 layers, 6 heads, 384 wide, context 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quill.validation import check_fields, require


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a classic GPT. An impossible value is a ConfigError that names it."""

    vocab_size: int
    """how many different tokens there are; the corpus and its tokenizer decide it"""
    block_size: int = 256
    """context: how many tokens the model sees at once"""
    n_layer: int = 6
    """number of Transformer blocks"""
    n_head: int = 6
    """attention heads in each block"""
    n_embd: int = 384
    """width of the residual stream, divisible by n_head"""
    dropout: float = 0.2
    """share of activations dropped in training, from 0 up to 1"""
    bias: bool = False
    """whether linear layers and LayerNorms have biases"""
    activation: Literal["gelu", "relu"] = "gelu"
    """non-linearity of the feed-forward networks"""
    tie_weights: bool = True
    """whether the output projection shares the token embedding's weights"""

    def __post_init__(self) -> None:
        check_fields(self)
        check_shape(self)

    @property
    def rolling_window(self) -> int:
        """0: learned positions are part of the cached keys, so a full cache cannot go on by one token."""
        return 0


@dataclass(frozen=True)
class ModernConfig:
    """The shape of a modern GPT. An impossible value is a ConfigError that names it."""

    vocab_size: int
    """how many different tokens there are; the corpus and its tokenizer decide it"""
    block_size: int = 256
    """context: how many tokens the model sees at once"""
    n_layer: int = 6
    """number of Transformer blocks"""
    n_head: int = 6
    """attention heads in each block"""
    n_embd: int = 384
    """width of the residual stream, divisible by n_head"""
    dropout: float = 0.2
    """share of activations dropped in training, from 0 up to 1"""
    ngram: int = 4
    """modern: longest run of tokens that has an embedding of its own; 1 leaves it at single tokens"""
    ngram_rows: int = 32749
    """modern: most rows in each table of such runs, best a prime number; longer runs share rows"""
    ngram_dropout: float = 0.4
    """modern: share of these embeddings dropped in training, because rare runs are learnt by heart"""
    n_kv_head: int | None = None
    """modern: heads of keys and values, each shared by n_head / n_kv_head queries; None means n_head"""
    logit_softcap: float = 15.0
    """modern: logits stay between minus this and this; 0 leaves them free"""

    def __post_init__(self) -> None:
        check_fields(self)
        check_shape(self)
        for name in ("ngram", "ngram_rows"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(0 <= self.ngram_dropout < 1, "ngram_dropout", self.ngram_dropout, "at least 0 and less than 1")
        kv_heads = self.n_kv_head
        require(
            kv_heads is None or (kv_heads >= 1 and self.n_head % kv_heads == 0),
            "n_kv_head",
            kv_heads,
            f"a divisor of n_head={self.n_head}, or None",
        )
        size = self.n_embd // self.n_head
        require(size % 2 == 0, "n_embd", self.n_embd, f"an even number for each of n_head={self.n_head} heads")
        require(0 <= self.logit_softcap < float("inf"), "logit_softcap", self.logit_softcap, "0 or more")

    @property
    def ngram_sizes(self) -> list[int]:
        """How many rows the tables of pairs, triples, … have: never more than there are such runs."""
        return [min(self.ngram_rows, (self.vocab_size + 1) ** n) for n in range(2, self.ngram + 1)]

    @property
    def rolling_window(self) -> int:
        """How many of the latest tokens a text that is longer than `block_size` goes on to see.

        Three quarters: training has seldom seen the longest distances, and with them the loss is higher (docs/log.md).
        """
        return max(1, 3 * self.block_size // 4)


SHARPNESS = 1.2  # of a modern model's normalised queries and keys, each: their products would stay within ±√E otherwise

ModelConfig = GPTConfig | ModernConfig

CONFIGS: dict[str, type[GPTConfig] | type[ModernConfig]] = {"classic": GPTConfig, "modern": ModernConfig}


def architecture_of(config: ModelConfig) -> str:
    """Return the name of the architecture that this is the shape of: classic or modern."""
    return next(name for name, kind in CONFIGS.items() if kind is type(config))


def check_shape(config: ModelConfig) -> None:
    """Check what every architecture asks of its sizes."""
    for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
        require(getattr(config, name) >= 1, name, getattr(config, name), "1 or more")
    require(0 <= config.dropout < 1, "dropout", config.dropout, "at least 0 and less than 1")
    width, heads = config.n_embd, config.n_head
    better = max(1, round(width / heads)) * heads
    require(width % heads == 0, "n_embd", width, f"divisible by n_head={heads}; try n_embd={better}")
