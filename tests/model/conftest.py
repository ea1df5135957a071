"""The models that tests look at: every variant of both architectures, and one with a block of somebody's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from quill.model import gpt
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig

CLASSIC = GPTConfig(vocab_size=11, block_size=16, n_layer=3, n_head=2, n_embd=8, dropout=0.0)
MODERN = ModernConfig(
    vocab_size=11, block_size=16, n_layer=3, n_head=2, n_embd=8, dropout=0.0, ngram_rows=97, ngram_dropout=0.0
)


class GatedFeedForward(nn.Module):
    """A block of somebody's own (Shazeer 2020, "GLU Variants Improve Transformer"), with other weights than ours."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.hidden = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.output = nn.Linear(3 * config.n_embd, config.n_embd, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.dropout(self.output(self.gate(x_BTD).sigmoid() * self.hidden(x_BTD)))


@dataclass(frozen=True)
class Variant:
    """A configuration, and whether its blocks have the feed-forward network above."""

    config: ModelConfig
    own_block: bool = False


VARIANTS = {
    "classic": Variant(CLASSIC),
    "bias": Variant(replace(CLASSIC, bias=True)),
    "untied": Variant(replace(CLASSIC, tie_weights=False)),
    "relu, bias, untied": Variant(replace(CLASSIC, activation="relu", bias=True, tie_weights=False)),
    "smallest": Variant(replace(CLASSIC, n_head=1, n_layer=1)),
    "modern": Variant(MODERN),
    "modern, shared keys": Variant(replace(MODERN, n_kv_head=1, ngram=2)),
    "modern, smallest": Variant(replace(MODERN, logit_softcap=0.0, n_head=1, n_layer=1, ngram=1)),
    "own block": Variant(CLASSIC, own_block=True),
}


@pytest.fixture(params=VARIANTS.values(), ids=list(VARIANTS))
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """Each variant in turn; while a test runs, models of its configuration are built with its blocks."""
    if request.param.own_block:
        monkeypatch.setattr(gpt, "FeedForward", GatedFeedForward)
    return request.param.config


@pytest.fixture
def random_model() -> Callable[..., Model]:
    """Return a model whose weights are large enough for every path to matter."""

    def build(config: ModelConfig, seed: int = 0) -> Model:
        torch.manual_seed(seed)
        model = build_model(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.5)
        return model

    return build


@pytest.fixture
def random_tokens() -> Callable[..., Tensor]:
    """Return tokens_BT of a configuration, as long as its context unless another length is given."""

    def draw(config: ModelConfig, batch_size: int = 2, length: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(config.vocab_size, (batch_size, length or config.block_size), generator=generator)

    return draw
