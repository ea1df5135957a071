"""loss.png: training and validation loss over the steps."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quill.errors import first_line, shorten
from quill.files import write_atomically
from quill.tracking.jsonl import events_until
from quill.tracking.tracker import is_finite_number
from quill.units import format_count

if TYPE_CHECKING:
    from quill.training.events import Event

SECONDS_BETWEEN_DRAWINGS = 30.0  # a drawing takes about 0.3 s
TRAINING, BATCHES, VALIDATION = "#2f6690", "#9bb8d3", "#d1495b"
OPENING = 0.1  # of the steps: the high losses of this part are not used for the range of the axis
FEWEST_STEPS = 5  # with losses after the opening; a shorter run is shown whole
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei",
    "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
)  # fmt: skip
"""Fonts for names in scripts that Matplotlib's own font lacks; those that are installed are used."""

log = logging.getLogger(__name__)


class LossPlot:
    """Draws training and validation loss into a PNG, every 30 seconds at most and at the end.

    A picture that cannot be drawn or written does not stop the training. `warn` gets one message about it.
    """

    def __init__(
        self, file: str | Path, history: Iterable[Event] = (), warn: Callable[[str], object] = log.info
    ) -> None:
        self.file = Path(file)
        self._warn: Callable[[str], object] | None = warn
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
            except Exception as error:  # a full disk, a viewer that holds the file open, a broken Matplotlib
                if self._warn is not None:
                    self._warn(f"{self.file} was not drawn: {first_line(error)}")
                self._warn = None


def draw_losses(events: Iterable[Event]) -> bytes:
    """Return a PNG of the losses in these events. It is drawn without pyplot, which has global state."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it logs about font caches at its first use
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    events = list(events)
    evaluations = [e for e in events if e["event"] == "evaluation" and is_finite_number(e["val_loss"])]
    steps = [e for e in events if e["event"] == "step" and is_finite_number(e["train_loss"])]
    start: Event = next((e for e in reversed(events) if e["event"] == "start"), {})
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    batches = [(e["step"], e["train_loss"]) for e in steps]
    training = [(e["step"], e["train_loss"]) for e in evaluations if is_finite_number(e["train_loss"])]
    validation = [(e["step"], e["val_loss"]) for e in evaluations]
    curves: list[tuple[list[tuple[int, float]], str, str, dict[str, Any]]] = [
        (batches, BATCHES, "training batches", {"lw": 1}),
        (training, TRAINING, f"training {describe_training(evaluations)}", evaluation_style(training)),
        (validation, VALIDATION, f"validation {describe_validation(evaluations, start)}", evaluation_style(validation)),
    ]
    for points, color, label, style in curves:
        if points:
            numbers, losses = zip(*points, strict=True)
            axes.plot(numbers, losses, color=color, label=label, **style)
    if validation:
        step, loss = min(validation, key=lambda point: point[1])
        ring: dict[str, Any] = {"ls": "", "marker": "o", "ms": 9, "mfc": "none", "mec": VALIDATION}
        axes.plot([step], [loss], label=f"lowest: {loss:.4f} at step {step:,}", **ring)
    points = [*batches, *training, *validation]
    if (shown := loss_range(points)) is not None:
        axes.set_ylim(*shown)
        step, loss = max(points, key=lambda point: point[1])
        axes.plot([], [], ls="", label=f"above the axis: up to {loss:.2f} (step {step:,})")
    if start:
        name = shorten(start["dataset"], 40)
        title = f"Loss of a GPT with {format_count(start['parameters'])} parameters on {name}"
        axes.set_title(title, loc="left", fontfamily=installed_fonts(), parse_math=False)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc=legend_corner([loss for _, loss in validation], axes.get_ylim()))
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # one for each character that no font has
        FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def legend_corner(losses: list[float], shown: tuple[float, float]) -> Literal["upper right", "lower left"]:
    """Return the corner of the legend: upper right, unless the validation loss has risen into it."""
    risen = losses[-1] - min(losses) if losses else 0.0
    return "lower left" if risen > 0.1 * (shown[1] - shown[0]) else "upper right"


def evaluation_style(points: list[tuple[int, float]]) -> dict[str, Any]:
    """Return how evaluations are drawn: as a line with points, or as points only if there are at most two."""
    return {"marker": "o", "ms": 3, "lw": 1.5} if len(points) > 2 else {"marker": "o", "ms": 5, "lw": 0}


def describe_validation(evaluations: list[Event], start: Event) -> str:
    """Return what the validation loss was measured on, for the legend."""
    if not evaluations:
        return ""
    last = evaluations[-1]
    if last["whole_split"]:
        return f"(whole split, {last['val_tokens']:,} tokens)"
    of = f" of {start['val_tokens']:,}" if start else ""
    return f"(estimate on {last['val_tokens']:,}{of} tokens)"


def describe_training(evaluations: list[Event]) -> str:
    """Return what the training loss was measured on: a part of the training split as long as the validation text."""
    return f"(estimate on about {evaluations[-1]['val_tokens']:,} tokens)" if evaluations else ""


def loss_range(points: list[tuple[int, float]]) -> tuple[float, float] | None:
    """Return the range of losses that the axis shows: those after the first tenth of the steps, with a margin.

    The first losses are near ln(vocabulary) and fall fast; if the axis showed them, later differences would not be
    visible. None if the first loss is not above that range, or the run is too short for a curve.
    """
    last = max((step for step, _ in points), default=0)
    late = [(step, loss) for step, loss in points if step >= OPENING * last]
    if len({step for step, _ in late}) < FEWEST_STEPS:
        return None
    low, high = min(loss for _, loss in points), max(loss for _, loss in late)
    space = 0.1 * (high - low)
    return (low - space, high + space) if min(points)[1] > high + space > low else None


def installed_fonts() -> list[str]:
    """Return Matplotlib's own font, and the installed ones of FALLBACK_FONTS."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
