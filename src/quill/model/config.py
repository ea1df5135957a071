"""The configuration of a GPT as frozen data. A checkpoint stores it, and `build_model` needs nothing else.

There are two architectures with a configuration each: the classic GPT-2 (gpt.py) and a modern one (modern.py). The
defaults of both are the full size: 6 layers, 6 heads, width 384, context 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quill.validation import check_fields, require


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and options of a classic GPT. An impossible value is a ConfigError that names it."""

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
    def kv_heads(self) -> int:
        """Number of key and value heads: every query head has its own."""
        return self.n_head

    @property
    def rolling_window(self) -> int:
        """0: learned positions are part of the cached keys, so a full cache cannot take another token."""
        return 0


@dataclass(frozen=True)
class ModernConfig:
    """Sizes and options of a modern GPT. An impossible value is a ConfigError that names it."""

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
    """longest n-gram of tokens that has an embedding of its own; 1 means single tokens only"""
    ngram_rows: int = 32749
    """largest number of rows in each n-gram table, best a prime; n-grams with the same hash share a row"""
    ngram_dropout: float = 0.4
    """share of n-gram embeddings dropped in training, because rare n-grams are memorised"""
    n_kv_head: int | None = None
    """number of key and value heads, each shared by n_head / n_kv_head query heads; None means n_head"""
    logit_softcap: float = 15.0
    """logits are limited to ± this value; 0 means no limit"""

    def __post_init__(self) -> None:
        check_fields(self)
        check_shape(self)
        check_sizes(self, {"ngram": 32, "ngram_rows": 1 << 28})
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
        require(0 <= self.logit_softcap <= 1e30, "logit_softcap", self.logit_softcap, "0 or more, and at most 1e30")

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_kv_head or self.n_head

    @property
    def ngram_sizes(self) -> list[int]:
        """Number of rows in the tables of bigrams, trigrams, …: never more than there are such n-grams."""
        return [min(self.ngram_rows, (self.vocab_size + 1) ** n) for n in range(2, self.ngram + 1)]

    @property
    def rolling_window(self) -> int:
        """How many of the last tokens are attended to once a sequence is longer than `block_size`.

        Three quarters of `block_size`: larger distances are rare in training, and attending to them raises the loss
        (docs/log.md).
        """
        return max(1, 3 * self.block_size // 4)


QK_GAIN = 1.2
"""Factor of a modern model's normalised queries and keys. Without it, attention scores are within ±√E."""

ModelConfig = GPTConfig | ModernConfig

CONFIGS: dict[str, type[GPTConfig] | type[ModernConfig]] = {"classic": GPTConfig, "modern": ModernConfig}


def architecture_of(config: ModelConfig) -> str:
    """Return the name of the configuration's architecture: classic or modern."""
    return next(name for name, kind in CONFIGS.items() if kind is type(config))


def check_shape(config: ModelConfig) -> None:
    """Check the sizes that every architecture has."""
    check_sizes(
        config, {"vocab_size": 1 << 24, "block_size": 1 << 20, "n_layer": 4096, "n_head": 4096, "n_embd": 1 << 16}
    )
    require(0 <= config.dropout < 1, "dropout", config.dropout, "at least 0 and less than 1")
    width, heads = config.n_embd, config.n_head
    better = max(1, round(width / heads)) * heads
    require(width % heads == 0, "n_embd", width, f"divisible by n_head={heads}; try n_embd={better}")


def check_sizes(config: ModelConfig, largest: dict[str, int]) -> None:
    """Check that sizes are from 1 to `largest`: far above what can be trained, and small enough to compute with."""
    for name, limit in largest.items():
        value = getattr(config, name)
        require(1 <= value <= limit, name, value, "1 or more" if value < 1 else f"at most {limit:,}")
