"""The models that the instruments look at: small, of both architectures, with weights large enough to matter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lab_models import CONFIGS, LETTERS, Subject

from quill.model.build import build_model
from quill.model.config import ModelConfig
from quill.tokenizers.char import CharTokenizer


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Each variant of both architectures in turn."""
    return request.param


@pytest.fixture
def make_subject() -> Callable[..., Subject]:
    """Return a function that makes a model with random weights, large enough for every path to matter."""

    def make(config: ModelConfig, seed: int = 0, std: float = 0.5) -> Subject:
        torch.manual_seed(seed)
        model = build_model(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=std)
        return Subject(model, CharTokenizer.from_text(LETTERS))

    return make


@pytest.fixture
def subject(config: ModelConfig, make_subject: Callable[..., Subject]) -> Subject:
    """A random model of each variant."""
    return make_subject(config)
