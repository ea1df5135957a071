"""What a run leaves behind for people and programs: metrics.jsonl, samples.txt, loss.png, TensorBoard.

Training tells what happens as events: plain dicts with an "event" and a "step". Everything here is a callable that
takes one event, so a run's report is a list of such callables; `display.py` beside this file is the one that draws in
the terminal. Reference: JSON Lines, https://jsonlines.org.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from quill.errors import MissingDependencyError

Event = dict[str, Any]
Consumer = Callable[[Event], None]

SECONDS_BETWEEN_DRAWINGS = 30.0  # a drawing costs about 0.3 s, which a quick run should not pay at each evaluation


def fan_out(*consumers: Consumer | None) -> Consumer:
    """Return one callable that hands each event to all consumers, in order; None stands for nobody."""
    present = [consumer for consumer in consumers if consumer is not None]

    def report(event: Event) -> None:
        for consumer in present:
            consumer(event)

    return report


def read_events(file: str | Path) -> list[Event]:
    """Return the events in a metrics.jsonl, oldest first; a missing file has none, a line cut by a crash is skipped."""
    try:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    events = []
    for line in text.split("\n"):  # splitlines() would also split at characters that JSON leaves as they are
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event and "step" in event:
            events.append(event)
    return events


def events_until(events: Iterable[Event], step: int) -> list[Event]:
    """Return the events of a run that goes on from this step: what a crash left behind later than that never counts."""
    return [event for event in events if event["step"] <= step] if step else []


class JsonLines:
    """Writes each event as a line of JSON. A run that goes on from a checkpoint first drops the lines after it."""

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)

    def __call__(self, event: Event) -> None:
        if event["event"] == "start":
            kept = events_until(read_events(self.file), event["step"])
            _write_whole(self.file, "".join(map(_to_line, kept)).encode())
        # Opened for each line: nothing is lost in a crash, and Windows lets others read the file meanwhile.
        with open(self.file, "a", encoding="utf-8", newline="\n") as opened:
            opened.write(_to_line(event))


class Samples:
    """Writes what the model wrote at each evaluation into a text file, under a line that names the step."""

    def __init__(self, file: str | Path, history: Iterable[Event] = ()) -> None:
        self.file = Path(file)
        self._history = list(history)

    def __call__(self, event: Event) -> None:
        if event["event"] == "start":
            kept = [e for e in events_until(self._history, event["step"]) if e["event"] == "sample"]
            _write_whole(self.file, "".join(map(self._format, kept)).encode("utf-8", "replace"))
        elif event["event"] == "sample":
            with open(self.file, "a", encoding="utf-8", errors="replace", newline="\n") as opened:
                opened.write(self._format(event))

    @staticmethod
    def _format(event: Event) -> str:
        return f"──── step {event['step']} ────\n{event['text']}\n\n"


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
                _write_whole(self.file, draw_losses(self._events))
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


class TensorBoard:
    """Writes the numbers of each event as TensorBoard scalars; MissingDependencyError where it is not installed."""

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "--tensorboard=True needs TensorBoard: pip install tensorboard, or leave the flag out"
            ) from error
        self._open = lambda step: SummaryWriter(str(folder), purge_step=step or None)
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        if event["event"] == "start":
            self._writer = self._open(event["step"])
        if self._writer is None:
            return
        if event["event"] in ("step", "evaluation"):
            for name, value in event.items():
                if name != "step" and _is_number(value):
                    self._writer.add_scalar(f"{event['event']}/{name}", value, event["step"])
        elif event["event"] == "sample":
            self._writer.add_text("sample", "    " + event["text"].replace("\n", "\n    "), event["step"])
        elif event["event"] == "end":
            self._writer.close()


def _to_line(event: Event) -> str:
    # NaN and infinity are no JSON: a program that reads the file should meet null, not a parse error.
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
    # Lone surrogates (bytes that are no text) are no UTF-8: those are written as escapes.
    line = json.dumps(finite, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(finite, allow_nan=False)
    return line + "\n"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _write_whole(file: Path, data: bytes) -> None:
    draft = file.with_name(f".{file.name}.draft")
    draft.write_bytes(data)
    os.replace(draft, file)
