"""Build a model from its configuration, whichever architecture that describes."""

from __future__ import annotations

from quill.model.config import GPTConfig, ModelConfig
from quill.model.gpt import GPT
from quill.model.modern import ModernGPT

Model = GPT | ModernGPT


def build_model(config: ModelConfig) -> Model:
    """Return a model of this configuration with newly drawn weights."""
    return GPT(config) if isinstance(config, GPTConfig) else ModernGPT(config)
