"""Models with some parts switched off: copies of a served model in which the weights of those parts are 0.

The id of such a model is that of the whole one, "~", and the parts: "out~head:0.3,feed_forward:1". As it differs in
weights only, every engine computes it at full speed.
"""

from __future__ import annotations

from dataclasses import replace

from quill.checkpoints.format import Checkpoint
from quill.errors import ConfigError
from quill.lab.ablation.ablating import zero_weights
from quill.lab.ablation.targets import targets_of
from quill.model.config import ModelConfig

MOST_KEPT = 4
"""Models with parts switched off that a server keeps, each with an engine of its own; the one used last stays."""


def whole_id(model_id: str) -> str:
    """Return the id of the model of which parts are switched off; the same id where none are."""
    return model_id.partition("~")[0]


def parts_in(model_id: str, config: ModelConfig) -> tuple[str, ...]:
    """Return the parts that an id switches off, in one order; ConfigError if it names none, or one that is not there.

    A position has no weights of its own, so it is a ConfigError too.
    """
    parts = tuple(sorted(map(str, targets_of(config, model_id.partition("~")[2]))))
    if not parts:
        raise ConfigError(f"the model {model_id!r} names no part: write for example {whole_id(model_id)}~head:0.0")
    if positions := [part for part in parts if part.startswith("position")]:
        raise ConfigError(f"{positions[0]} has no weights of its own, so it cannot be switched off")
    return parts


def without_parts(checkpoint: Checkpoint, parts: tuple[str, ...]) -> Checkpoint:
    """Return a copy of a checkpoint in which the weights of these parts are 0."""
    copied = replace(checkpoint, weights=dict(checkpoint.weights))
    zero_weights(copied.model, parts)  # the model has new memory, and so has `copied.weights` from now on
    return copied
