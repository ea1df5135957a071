"""loss.png: training and validation loss over the steps."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterable
from pathlib import Path

from quill.files import write_atomically
from quill.tracking.jsonl import events_until
from quill.tracking.tracker import Event, _is_number

SECONDS_BETWEEN_DRAWINGS = 30.0  # a drawing costs about 0.3 s, which a quick run should not pay at each evaluation


class LossPlot:
    """Draws training and validation loss over the steps into a PNG, now and then and at the end.

    A picture that cannot be written (one that a viewer holds open on Windows) does not stop the training.
    """

    def __init__(self, file: str | Path, history: Iterable[Event] = ()) -> None:
        self.file = Path(file)
        self._events = list(history)
        self._drawn_at = -math.inf

    def __call__(self, event: Event) -> None:
        if event["event"] == "start":
            self._events = events_until(self._events, event["step"])
        self._events.append(event)
        due = event["event"] == "evaluation" and event["seconds"] - self._drawn_at >= SECONDS_BETWEEN_DRAWINGS
        if (due or event["event"] == "end") and any(e["event"] in ("step", "evaluation") for e in self._events):
            self._drawn_at = event["seconds"]
            try:
                write_atomically(self.file, draw_losses(self._events))
            except PermissionError:
                logging.getLogger(__name__).info("%s cannot be written just now", self.file)


def draw_losses(events: Iterable[Event]) -> bytes:
    """Return a PNG of the losses in these events. Matplotlib's objects are used directly: pyplot is global state."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it chats about font caches on first use
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    events = list(events)
    evaluations = [e for e in events if e["event"] == "evaluation" and _is_number(e["val_loss"])]
    steps = [e for e in events if e["event"] == "step" and _is_number(e["train_loss"])]
    start: Event = next((e for e in reversed(events) if e["event"] == "start"), {})
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    lines = [("training batches", steps, "train_loss", {"color": "#9bb8d3", "lw": 1})]
    if evaluations:
        estimate = "" if evaluations[-1]["whole_split"] else " (estimate)"
        dots = {"marker": "o", "ms": 3, "lw": 1.5}
        lines.append((f"training{estimate}", evaluations, "train_loss", dots | {"color": "#2f6690"}))
        lines.append((f"validation{estimate}", evaluations, "val_loss", dots | {"color": "#d1495b"}))
    for label, points, name, style in lines:
        losses = [e[name] if _is_number(e[name]) else math.nan for e in points]
        axes.plot([e["step"] for e in points], losses, label=label, **style)
    if evaluations:
        best = min(evaluations, key=lambda e: e["val_loss"])
        axes.annotate(
            f"best {best['val_loss']:.4f}\nat step {best['step']}",
            (best["step"], best["val_loss"]), xytext=(0, 28), textcoords="offset points", ha="right",
            arrowprops={"arrowstyle": "-", "color": "#d1495b"}, color="#d1495b",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
    if start:
        axes.set_title(f"{start['dataset']}: {start['parameters'] / 1e6:.2f} M parameters", loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
