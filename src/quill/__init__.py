"""Quill: a GPT from scratch that people can read, run, look inside and trust.

    import quill
    print(quill.load("out").generate("KING", max_new_tokens=100, seed=1))

The rooms, in the order that text takes: text → model → training → generation → cli.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from quill.errors import QuillError

if TYPE_CHECKING:
    from quill.generation.language_model import LanguageModel, load
    from quill.model.cache import KVCache
    from quill.model.config import GPTConfig
    from quill.model.gpt import GPT
    from quill.text.dataset import prepare_dataset
    from quill.text.tokenizer import ByteTokenizer, CharTokenizer
    from quill.training.config import TrainConfig
    from quill.training.evaluation import evaluate_split
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
    "TrainConfig",
    "evaluate_split",
    "load",
    "prepare_dataset",
    "train",
]

_HOMES = {
    "GPT": "model.gpt",
    "GPTConfig": "model.config",
    "KVCache": "model.cache",
    "ByteTokenizer": "text.tokenizer",
    "CharTokenizer": "text.tokenizer",
    "prepare_dataset": "text.dataset",
    "TrainConfig": "training.config",
    "evaluate_split": "training.evaluation",
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
