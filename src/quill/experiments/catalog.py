"""The experiments by name. A module is imported when its experiment is run, so listing them costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from quill.errors import ConfigError
from quill.validation import nearest, show

if TYPE_CHECKING:
    from quill.experiments.experiment import Experiment

CATALOG = {
    "ladder": ("quill.experiments.trained.ladder", "what each part of a GPT adds, from a table of pairs upwards"),
    "communication": ("quill.experiments.inside.communication", "attention is communication between tokens"),
    "heads": ("quill.experiments.inside.heads", "several heads learn different things"),
    "mlp": ("quill.experiments.trained.mlp", "attention alone is not enough: is the feed-forward network worth it?"),
    "depth-stability": (
        "quill.experiments.trained.depth_stability",
        "LayerNorm stabilises depth: at which learning rates?",
    ),
    "dropout": ("quill.experiments.trained.dropout", "dropout helps to generalise: after how many epochs?"),
    "refinement": ("quill.experiments.inside.refinement", "depth is repeated refinement of a prediction"),
    "induction": ("quill.experiments.inside.induction", "copying takes two layers, or one that sees pairs"),
    "roofline": ("quill.experiments.hardware.roofline", "what limits a GPT on this machine: memory or arithmetic"),
    "batch": ("quill.experiments.hardware.batch", "what a batch buys in generation, and what it costs in training"),
}
"""Name: (module with EXPERIMENT, the lesson in a line)."""


def load_experiment(name: str) -> Experiment:
    """Return the experiment of this name; ConfigError with the nearest name if there is none."""
    if name not in CATALOG:
        raise ConfigError(
            f"unknown experiment {show(name)}{nearest(name, CATALOG)}; the experiments are {', '.join(CATALOG)}"
        )
    return importlib.import_module(CATALOG[name][0]).EXPERIMENT
