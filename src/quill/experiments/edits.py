"""Edits of a fresh classic model from outside: parts that are silenced or replaced before training.

A silenced part keeps its place, and computes nothing. The model files stay as they are.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from quill.model.build import Model
from quill.model.cache import KVCache
from quill.model.gpt import GPT, Block

Norm = Literal["pre", "post", "none"]


class Chain(nn.Module):
    """A block without residual connections: attention, then feed-forward, each of which replaces its input."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.attention_norm, self.attention = block.attention_norm, block.attention
        self.feed_forward_norm, self.feed_forward = block.feed_forward_norm, block.feed_forward

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return what the feed-forward makes of what attention makes of x."""
        x_BTD = self.attention(self.attention_norm(x_BTD), cache)
        return self.feed_forward(self.feed_forward_norm(x_BTD))


class PostNormBlock(Chain):
    """A block that normalises after each addition (Vaswani et al. 2017; Xiong et al. 2020, figure 1a)."""

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return norm(y + feed-forward(y)), where y = norm(x + attention(x))."""
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, cache))
        return self.feed_forward_norm(x_BTD + self.feed_forward(x_BTD))


class Silent(nn.Module):
    """A part that adds nothing to the residual stream."""

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(x_BTD)


def blocks_of(model: Model) -> list[Block]:
    """Return the blocks of a classic model."""
    return list(model.blocks)  # type: ignore[arg-type]


def as_bigram(model: Model) -> None:
    """Leave only the token embedding and the head: logits depend on the last token alone."""
    model.blocks = nn.ModuleList()
    model.final_norm = nn.Identity()  # type: ignore[assignment]
    without_positions(model)


def without_positions(model: Model) -> None:
    """Set the position embedding to zero, for good."""
    assert isinstance(model, GPT)
    model.position_embedding.weight.requires_grad_(False).zero_()


def without_feed_forward(model: Model) -> None:
    """Silence the feed-forward networks; their norms go too."""
    for block in blocks_of(model):
        block.feed_forward, block.feed_forward_norm = Silent(), nn.Identity()  # type: ignore[assignment]


def without_attention(model: Model) -> None:
    """Silence attention; its norms go too."""
    for block in blocks_of(model):
        block.attention, block.attention_norm = Silent(), nn.Identity()  # type: ignore[assignment]


def without_residuals(model: Model) -> None:
    """Let each part replace its input. A silenced feed-forward passes its input on."""
    for block in blocks_of(model):
        if isinstance(block.feed_forward, Silent):
            block.feed_forward = nn.Identity()  # type: ignore[assignment]
    model.blocks = nn.ModuleList(Chain(block) for block in blocks_of(model))


def without_norms(model: Model) -> None:
    """Replace every norm, the final one too, by the identity."""
    for block in blocks_of(model):
        block.attention_norm = block.feed_forward_norm = nn.Identity()  # type: ignore[assignment]
    model.final_norm = nn.Identity()  # type: ignore[assignment]


def with_norm(model: Model, norm: Norm) -> None:
    """Make a pre-norm model a post-norm model, or one without norms. Post-norm needs no final norm."""
    if norm == "none":
        without_norms(model)
    elif norm == "post":
        model.blocks = nn.ModuleList(PostNormBlock(block) for block in blocks_of(model))
        model.final_norm = nn.Identity()  # type: ignore[assignment]


@torch.no_grad()
def with_unit_scale(model: Model, seed: int) -> None:
    """Draw embeddings from N(0, 1) and linear weights from N(0, 1 / inputs), so that signals keep their size.

    The weights that a GPT starts with are smaller, and rely on norms. Models with and without norms are compared fairly
    only if both start with weights that suit them. A head of its own starts at N(0, 0.02), so the first loss is ln V.
    """
    assert isinstance(model, GPT)
    tied = model.config.tie_weights
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            module.weight.normal_(generator=generator)
        elif isinstance(module, nn.Linear) and not (name == "head" and tied):
            std = 0.02 if name == "head" else 1 / math.sqrt(module.in_features)
            module.weight.normal_(std=std, generator=generator)


@torch.no_grad()
def with_depth_scaling(model: Model) -> None:
    """Multiply the weights that end a branch by 1 / √(2 n_layer) (Radford et al. 2019, section 2.3)."""
    factor = 1 / math.sqrt(2 * model.config.n_layer)
    for block in blocks_of(model):
        block.attention.output.weight.mul_(factor)
        block.feed_forward.output.weight.mul_(factor)
