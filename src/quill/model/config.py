"""The shape of a GPT, as frozen data: the first stop of the model room, and all that a checkpoint must remember of it.

The defaults are the founding size: 6 layers, 6 heads, 384 wide, context 256 (10.65 million parameters).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quill.errors import check_fields, require


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. An impossible value is a ConfigError that names it."""

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
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and less than 1")
        require(
            self.n_embd % self.n_head == 0,
            "n_embd",
            self.n_embd,
            f"divisible by n_head={self.n_head}; try n_embd={max(1, round(self.n_embd / self.n_head)) * self.n_head}",
        )
