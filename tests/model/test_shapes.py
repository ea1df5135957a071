"""What is known of a model without PyTorch is what PyTorch says."""

from typing import Any

import pytest

from quill.model.build import build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.model.shapes import weight_shapes

SMALL: dict[str, Any] = {"vocab_size": 7, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 12}


@pytest.mark.parametrize(
    "config",
    [
        GPTConfig(**SMALL),
        GPTConfig(**SMALL, bias=True),
        GPTConfig(**SMALL, tie_weights=False),
        GPTConfig(**SMALL, bias=True, tie_weights=False),
        ModernConfig(**SMALL),
        ModernConfig(**SMALL, ngram=1),
        ModernConfig(**SMALL, ngram_rows=10, n_kv_head=1),
    ],
)
def test_names_and_shapes_of_weights_are_those_of_the_model(config: ModelConfig) -> None:
    model = build_model(config)
    assert weight_shapes(config) == {name: tuple(weight.shape) for name, weight in model.named_parameters()}
