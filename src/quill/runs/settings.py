"""Flat settings, by name, and the frozen configurations that are made of them."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from quill.model.config import CONFIGS, ModelConfig
from quill.training.config import TrainConfig

# The vocabulary is the corpus's and its tokenizer's to decide, so it is no flag.
# `architecture` says which of the two models the others are the shape of.
SHAPES = {
    name: tuple(f.name for f in dataclasses.fields(config) if f.name != "vocab_size")
    for name, config in CONFIGS.items()
}

MODEL_FIELDS = ("architecture", *dict.fromkeys(itertools.chain(*SHAPES.values())))

TRAIN_FIELDS = tuple(f.name for f in dataclasses.fields(TrainConfig))


def default_settings(architecture: str) -> dict[str, Any]:
    """Return the flat settings of an architecture, each with its default value."""
    fields = (*dataclasses.fields(CONFIGS[architecture]), *dataclasses.fields(TrainConfig))
    return {"architecture": architecture} | {f.name: f.default for f in fields if f.name != "vocab_size"}


def build_configs(settings: dict[str, Any], vocab_size: int = 1) -> tuple[ModelConfig, TrainConfig]:
    """Return the two frozen configurations of a flat one; impossible values are ConfigErrors."""
    kind = settings["architecture"]
    model = CONFIGS[kind](vocab_size=vocab_size, **{name: settings[name] for name in SHAPES[kind]})
    return model, TrainConfig(**{name: settings[name] for name in TRAIN_FIELDS})
