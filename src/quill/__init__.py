"""Quill: a GPT from scratch that people can read, run, look inside and trust.

    import quill
    print(quill.load("out").generate("KING", max_new_tokens=100, seed=1))

Public names are imported at their first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from quill.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    MissingDependencyError,
    QuillError,
    TokenizerError,
    TrainingError,
)

if TYPE_CHECKING:
    from quill.data.dataset import Dataset, prepare_dataset
    from quill.engines.request import SamplingConfig
    from quill.evaluation.split_loss import Evaluation, evaluate_split
    from quill.generation.completion import Completion
    from quill.generation.language_model import LanguageModel, load, save
    from quill.lab.trace import Trace, trace
    from quill.model.build import build_model
    from quill.model.cache import KVCache
    from quill.model.config import GPTConfig, ModernConfig
    from quill.model.gpt import GPT
    from quill.model.modern import ModernGPT
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
    "CheckpointError",
    "Completion",
    "ConfigError",
    "CorpusError",
    "Dataset",
    "Evaluation",
    "GPTConfig",
    "KVCache",
    "LanguageModel",
    "MissingDependencyError",
    "ModernConfig",
    "ModernGPT",
    "QuillError",
    "Run",
    "RunContext",
    "RunSettings",
    "SamplingConfig",
    "TokenizerError",
    "Trace",
    "TrainConfig",
    "TrainingError",
    "build_model",
    "evaluate_split",
    "load",
    "prepare_dataset",
    "resolve_context",
    "run",
    "save",
    "trace",
    "train",
]

_HOMES = {
    "Dataset": "data.dataset",
    "prepare_dataset": "data.dataset",
    "SamplingConfig": "engines.request",
    "Evaluation": "evaluation.split_loss",
    "evaluate_split": "evaluation.split_loss",
    "Completion": "generation.completion",
    "LanguageModel": "generation.language_model",
    "load": "generation.language_model",
    "save": "generation.language_model",
    "Trace": "lab.trace",
    "trace": "lab.trace",
    "build_model": "model.build",
    "KVCache": "model.cache",
    "GPTConfig": "model.config",
    "ModernConfig": "model.config",
    "GPT": "model.gpt",
    "ModernGPT": "model.modern",
    "RunSettings": "runs.settings",
    "Run": "runs.start",
    "run": "runs.start",
    "ByteTokenizer": "tokenizers.byte",
    "CharTokenizer": "tokenizers.char",
    "TrainConfig": "training.config",
    "RunContext": "training.context",
    "resolve_context": "training.context",
    "train": "training.loop",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: PyTorch takes over a second, and `quill --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quill.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
