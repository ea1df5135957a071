"""The interface of trackers: a tracker is a callable that is called with each event of a run.

    class PrintLoss:
        def __call__(self, event):
            if event["event"] == "step":
                print(event["step"], event["train_loss"])

An event is a dictionary. "event" is its kind, "step" the number of optimizer steps so far. `EVENT_FIELDS` lists the
other fields of each kind, and docs/architecture.md explains them. An event may have more fields.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # at run time it would import PyTorch
    from quill.training.events import Event

EVENT_FIELDS: dict[str, dict[str, type]] = {
    "start": {
        "max_iters": int, "parameters": int, "parameters_without_positions": int, "device": str, "dtype": str,
        "compile": bool, "dataset": str, "vocab_size": int, "train_tokens": int, "val_tokens": int,
        "tokens_per_step": int, "out_dir": str,
    },
    "step": {
        "train_loss": float, "learning_rate": float, "gradient_norm": float, "tokens_per_second": float,
        "seconds": float,
    },
    "evaluation": {
        "train_loss": float, "val_loss": float, "bits_per_character": float, "val_tokens": int, "whole_split": bool,
        "best": bool, "seconds": float,
    },
    "sample": {"text": str},
    "plan": {"max_iters": int},
    "warning": {"message": str},
    "end": {"reason": str, "best_step": int, "best_val_loss": float, "seconds": float, "checkpoint": str},
}  # fmt: skip
"""The fields of each kind of event besides "event" and "step". A float that is not finite is None in metrics.jsonl."""


class Tracker(Protocol):
    """Called with the events of a run, in order, in the process and thread that trains."""

    def __call__(self, event: Event, /) -> object:
        """Receive one event. An exception ends the run."""
        ...


class CompositeTracker:
    """Passes each event to several trackers, in order; None is ignored."""

    def __init__(self, *trackers: Tracker | None) -> None:
        self.trackers = [tracker for tracker in trackers if tracker is not None]

    def __call__(self, event: Event) -> None:
        for tracker in self.trackers:
            tracker(event)


def is_finite_number(value: Any) -> bool:
    """Return whether a value is a finite number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
