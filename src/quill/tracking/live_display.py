"""The live picture of a run: progress, losses, speed, the loss curve and the newest sample, redrawn in place."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from quill.tracking.jsonl import events_until
from quill.tracking.live_region import LiveRegion
from quill.tracking.run_status import RunStatus, format_end, format_losses, format_start, printable
from quill.tracking.terminal_plot import QUIET, TRAINING, VALIDATION, draw_curve
from quill.units import format_time_left

if TYPE_CHECKING:
    from quill.training.events import Event

SECONDS_BETWEEN_FRAMES = 0.25
WIDEST = 100  # columns
CURVE_LINES, FEWEST_CURVE_LINES, SAMPLE_LINES, SHORTEST_BAR = 10, 3, 5, 6
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class LiveDisplay:
    """A tracker that redraws a picture in place, in a thread of its own. As a context manager it ends the thread.

    `history` holds the events of the run before it was resumed.
    """

    def __init__(
        self, console: Console, history: Iterable[Event] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._status = RunStatus()
        self._console, self._history, self._clock = console, list(history), clock
        self._region = LiveRegion(console)
        self._lock = threading.RLock()  # one thread at a time writes to the terminal
        self._ended: threading.Event | None = None  # of the thread that draws
        self._event_at = clock()
        self._sample: Event = {}
        self._evaluation: Event = {}
        self._training: list[tuple[int, float]] = []
        self._validation: list[tuple[int, float]] = []

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._event_at = self._clock()
            if event["event"] == "start":
                for old in events_until(self._history, event["step"]):
                    self._add(old)
                self._region.print_above(*map(Text, format_start(event)))
                self._add(event)
                self._open()
            elif event["event"] == "warning":
                self._region.print_above(Text(f"warning: {event['message']}", style="yellow"))
                self._draw()
            elif event["event"] == "end":
                self.close()
                self._region.print_above(Text(format_end(event, self._status.estimate)))
            else:
                self._add(event)

    def close(self) -> None:
        """Stop drawing. The last frame stays."""
        with self._lock:
            if self._ended is not None:
                self._ended.set()
                self._ended = None
                self._region.draw(self.frame())
                self._region.finish()

    def _open(self) -> None:
        if self._ended is None:
            self._ended = threading.Event()
            self._draw()
            threading.Thread(target=self._redraw, args=(self._ended,), daemon=True).start()

    def _redraw(self, ended: threading.Event) -> None:
        while not ended.wait(SECONDS_BETWEEN_FRAMES):
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            if self._ended is not None:
                self._region.draw(self.frame())

    def _add(self, event: Event) -> None:
        self._status.update(event)
        if event["event"] == "step":
            self._training.append((event["step"], _number(event["train_loss"])))
        elif event["event"] == "evaluation":
            self._validation.append((event["step"], _number(event["val_loss"])))
            self._evaluation = event
        elif event["event"] == "sample":
            self._sample = event

    def frame(self) -> list[Text]:
        """Return the lines of the picture: fewer than the rows of the terminal, and narrower than its columns."""
        width, height = min(self._console.width - 1, WIDEST), self._console.height - 1
        each = format_losses(self._evaluation, width)
        lines = [self._progress(width), self._numbers(width), *([Text(each)] if each and height > 3 else [])]
        sample = max(0, min(SAMPLE_LINES, height - len(lines) - 2))
        below = sample + 2 if sample else 0
        if (rows := min(CURVE_LINES, height - len(lines) - below)) >= FEWEST_CURVE_LINES:
            size = {"width": width, "height": rows, "last_step": self._steps_in_view()}
            lines += draw_curve(self._training, self._validation, **size)
        if sample:
            lines += [Text(""), *self._newest_sample(sample)]
        return [_one_line(line, width) for line in lines]

    def _steps_in_view(self) -> int:
        """Return how many steps the curve spans: all of them, halved while the curve would fill less than half."""
        span = self._status.max_iters
        while span // 2 >= max(1, self._status.steps):
            span //= 2
        return span

    def _progress(self, width: int) -> Text:
        """Return bar, step and time left; where that is too wide, without the bar, then without the time."""
        step, total = self._status.steps, self._status.max_iters
        label = f"step {step}/{total}"
        if (left := self._status.seconds_left()) is not None:
            left = max(0.0, left - (self._clock() - self._event_at))
            timed = f"{label}  {format_time_left(left)}"
            label = timed if len(timed) <= width else label
        if (bar := width - len(label) - 1) < SHORTEST_BAR:
            return Text(label)
        full = round(bar * min(1.0, step / max(1, total)))
        return Text.assemble(("━" * full, "green"), ("─" * (bar - full), QUIET), " " + label)

    def _numbers(self, width: int) -> Text:
        """Return losses and speed, whole ones only: the less important are left out if the terminal is narrow."""
        status, parts = self._status, {}
        if self._validation:
            parts[1] = (f"validation {self._validation[-1][1]:.3f}{status.estimate}", VALIDATION)
        if status.step:
            parts[0] = (f"training {_number(status.step['train_loss']):.3f}", TRAINING)
        if status.best:
            parts[2] = (f"best {status.best['val_loss']:.3f} at step {status.best['step']}", "bold")
        if status.step:
            parts[3] = (f"{status.step['tokens_per_second']:,.0f} tokens/s", "")
        if not parts:
            return Text(f"{SPINNER[int(self._clock() * 8) % len(SPINNER)]} starting …")
        shown: dict[int, tuple[str, str]] = {}
        for position, part in parts.items():  # by importance
            if len("   ".join(text for text, _ in [*shown.values(), part])) <= width:
                shown[position] = part
        return Text("   ").join(Text(text, style=style) for _, (text, style) in sorted(shown.items()))

    def _newest_sample(self, count: int) -> Iterable[Text]:
        yield Text(f"sample at step {self._sample['step']}" if self._sample else "no sample yet", style=QUIET)
        lines = printable(self._sample.get("text", "")).strip("\n").expandtabs().splitlines()
        for line in (lines + [""] * count)[:count]:  # always as many, so that the height stays
            yield Text(line)


def _number(loss: float | None) -> float:
    """Return a loss as a number; one that was not finite is stored as null."""
    return math.nan if loss is None else loss


def _one_line(text: Text, width: int) -> Text:
    text.no_wrap = True
    text.truncate(width, overflow="ellipsis")
    return text
