"""Quill: a GPT from scratch that people can read, run, look inside and trust.

import quill
print(quill.load("out").generate("KING", max_new_tokens=100, seed=1))

"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from quill.errors import QuillError

if TYPE_CHECKING:
    from quill.data.dataset import prepare_dataset
    from quill.evaluation.split_loss import evaluate_split
    from quill.generation.language_model import LanguageModel, load
    from quill.model.cache import KVCache
    from quill.model.config import GPTConfig
    from quill.model.gpt import GPT
    from quill.runs.settings import RunSettings
    from quill.runs.start import Run, run
    from quill.tokenizers.byte import ByteTokenizer
    from quill.tokenizers.char import CharTokenizer
    from quill.training.config import TrainConfig
    from quill.training.context import RunContext, resolve_context
    from quill.training.loop import train

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "ByteTokenizer",
    "CharTokenizer",
    "GPTConfig",
    "KVCache",
    "LanguageModel",
    "QuillError",
    "Run",
    "RunContext",
    "RunSettings",
    "TrainConfig",
    "evaluate_split",
    "load",
    "prepare_dataset",
    "resolve_context",
    "run",
    "train",
]

_HOMES = {
    "GPT": "model.gpt",
    "GPTConfig": "model.config",
    "KVCache": "model.cache",
    "ByteTokenizer": "tokenizers.byte",
    "CharTokenizer": "tokenizers.char",
    "prepare_dataset": "data.dataset",
    "TrainConfig": "training.config",
    "evaluate_split": "evaluation.split_loss",
    "RunContext": "training.context",
    "resolve_context": "training.context",
    "RunSettings": "runs.settings",
    "Run": "runs.start",
    "run": "runs.start",
    "train": "training.loop",
    "LanguageModel": "generation.language_model",
    "load": "generation.language_model",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: PyTorch takes over a second, and `quill --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quill.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
