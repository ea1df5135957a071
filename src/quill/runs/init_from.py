"""Fine-tuning: start a run from the weights of a trained model, on another text.

Characters outside the model's vocabulary are refused by name, or (vocab=extend) get new rows in the embedding and the
head. The row of an n-gram depends on the size of the vocabulary, so rows of n-gram tables are moved. If n-grams share
rows, that is impossible, and the table starts from zero.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quill.checkpoints.named import find_model
from quill.checkpoints.run_folder import load_checkpoint
from quill.errors import ConfigError
from quill.model.config import ModelConfig, ModernConfig, architecture_of
from quill.runs.settings import SHAPES, Settings
from quill.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from quill.checkpoints.format import Checkpoint
    from quill.model.build import Model

FREE = ("dropout", "ngram_dropout")
"""Fields of a model that may differ from those it was trained with."""


def shape_of(init_from: str) -> Settings:
    """Return the settings of a trained model's shape."""
    config = load_checkpoint(find_model(init_from)).config
    kind = architecture_of(config)
    return {"architecture": kind} | {name: getattr(config, name) for name in SHAPES[kind]}


def with_shape(given: Settings) -> Settings:
    """Return the given settings with the shape of the model that `init_from` names, if any.

    A given shape that differs is a ConfigError.
    """
    if given.get("init_from") is None:
        return given
    shape = shape_of(given["init_from"])
    for name, value in shape.items():
        if name in given and name not in FREE and given[name] != value:
            raise ConfigError(
                f"{name}={given[name]} is not the shape of {given['init_from']} ({name}={value}): leave it out"
            )
    return shape | given


def tokenizer_for(settings: Settings, text: str | None, resume: bool) -> str | Tokenizer:
    """Return the tokenizer of a run: that of the model it starts from, extended with vocab=extend, or else a name."""
    if settings["init_from"] is None:
        return settings["tokenizer"]
    if resume:
        return load_checkpoint(Path(settings["out_dir"]), checkpoint="last").tokenizer
    tokenizer = load_checkpoint(find_model(settings["init_from"])).tokenizer
    if settings["vocab"] == "same":
        return tokenizer
    from quill.data.corpus import find_corpus
    from quill.data.mixture import find_mixture

    mixture = find_mixture(settings["dataset"])
    dataset = [*mixture.paths] if mixture else settings["dataset"]
    corpus = text if text is not None else find_corpus(dataset, tokenizer=tokenizer.kind).text
    return tokenizer.extend(corpus)


def initializer(
    settings: Settings, tokenizer: Tokenizer, warn: Callable[[str], None]
) -> Callable[[Model], None] | None:
    """Return a function that copies the weights of the `init_from` model into a new model; None without `init_from`."""
    if settings["init_from"] is None:
        return None
    checkpoint = load_checkpoint(find_model(settings["init_from"]))
    return lambda model: copy_weights(checkpoint, model, tokenizer, warn)


def copy_weights(checkpoint: Checkpoint, model: Model, tokenizer: Tokenizer, warn: Callable[[str], None]) -> None:
    """Copy the weights of a checkpoint into a model, in place; rows of new tokens keep their initial values."""
    import torch

    before, after = checkpoint.config.vocab_size, model.config.vocab_size
    assert tokenizer.vocab_size == after >= before
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            old = checkpoint.weights[name]
            if before == after:
                parameter.copy_(torch.from_numpy(old))
            elif name.startswith("ngram_embedding."):
                table = moved_table(old, name, checkpoint.config, model.config)
                if table is None:
                    warn(f"{name} starts from zero: in a larger vocabulary its n-grams share rows in another way")
                    parameter.zero_()
                else:
                    parameter.copy_(torch.from_numpy(table))
            elif tuple(parameter.shape) != old.shape:
                parameter[:before].copy_(torch.from_numpy(old))
            else:
                parameter.copy_(torch.from_numpy(old))


def moved_table(old: np.ndarray, name: str, before: ModelConfig, after: ModelConfig) -> np.ndarray | None:
    """Return the rows of an n-gram table in the order of a larger vocabulary; None if n-grams share rows in either.

    Row of (t₀, t₋₁, …) = t₀ + (V+1) t₋₁ + (V+1)² t₋₂ + …; V stands for "before the text".
    """
    assert isinstance(before, ModernConfig) and isinstance(after, ModernConfig)
    n = int(name.split(".")[2]) + 2
    old_base, new_base = before.vocab_size + 1, after.vocab_size + 1
    rows = after.ngram_sizes[n - 2]
    if len(old) != old_base**n or rows != new_base**n:
        return None
    digits = [np.arange(old_base**n) // old_base**k % old_base for k in range(n)]
    new_rows = sum(np.where(d == before.vocab_size, after.vocab_size, d) * new_base**k for k, d in enumerate(digits))
    table = np.zeros((rows, old.shape[1]), old.dtype)
    table[new_rows] = old
    return table
