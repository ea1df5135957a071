"""Both architectures behind one door: a configuration goes in, and the model that it is the shape of comes out."""

from __future__ import annotations

from quill.model.config import GPTConfig, ModelConfig
from quill.model.gpt import GPT
from quill.model.modern import ModernGPT

Model = GPT | ModernGPT


def build_model(config: ModelConfig) -> Model:
    """Return a model of this shape with fresh weights."""
    return GPT(config) if isinstance(config, GPTConfig) else ModernGPT(config)
