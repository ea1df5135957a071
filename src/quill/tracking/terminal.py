"""Progress of a run in a terminal: a live picture, or short lines if it cannot be redrawn. Both are trackers."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO, cast

from quill.tracking.phase_display import moves_cursor
from quill.tracking.run_status import RunStatus, format_end, format_losses, format_start, printable
from quill.units import format_time_left

if TYPE_CHECKING:
    from quill.tracking.live_display import LiveDisplay
    from quill.training.events import Event

SECONDS_BETWEEN_LINES = 5.0
SAMPLE_LINES = 5


def choose_display(stream: TextIO | None = None, history: Iterable[Event] = ()) -> LiveDisplay | PlainDisplay:
    """Return a live display for a real terminal, and plain lines for pipes, notebooks, CI and dumb terminals."""
    stream = stream if stream is not None else cast(TextIO, sys.stdout)
    if not moves_cursor(stream):
        return PlainDisplay(stream)
    from rich.console import Console

    from quill.tracking.live_display import LiveDisplay

    console = Console(file=stream, highlight=False)
    # An old Windows console has neither the characters nor the cursor movements.
    return PlainDisplay(stream) if console.legacy_windows else LiveDisplay(console, history)


class PlainDisplay:
    """Prints short lines: the start, progress every few seconds, each evaluation with its sample, warnings, the end."""

    def __init__(self, stream: TextIO) -> None:
        self._status = RunStatus()
        self._stream = stream
        self._printed_at = -SECONDS_BETWEEN_LINES

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to clean up."""

    def __call__(self, event: Event) -> None:
        self._status.update(event)
        kind = event["event"]
        if kind == "start":
            self._print(*format_start(event))
        elif kind == "step" and event["seconds"] - self._printed_at >= SECONDS_BETWEEN_LINES:
            self._printed_at = event["seconds"]
            left = self._status.seconds_left()
            time_left = f"   {format_time_left(left)}" if left is not None else ""
            speed = f"{event['tokens_per_second']:,.0f} tokens/s"
            self._print(f"{self._step(event)}   loss {event['train_loss']:.3f}   {speed}{time_left}")
        elif kind == "evaluation":
            best = "   best so far" if event["best"] else ""
            losses = f"training loss {event['train_loss']:.3f}   validation loss {event['val_loss']:.3f}"
            self._print(f"{self._step(event)}   {losses}{self._status.estimate}{best}")
            if each := format_losses(event):
                self._print(f"    validation loss of {each}")
        elif kind == "sample":
            self._print(*(f"    | {line}" for line in printable(event["text"]).splitlines()[:SAMPLE_LINES]))
        elif kind == "warning":
            self._print(f"warning: {event['message']}")
        elif kind == "end":
            self._print(format_end(event, self._status.estimate))

    def _step(self, event: Event) -> str:
        total = str(self._status.max_iters)
        return f"step {event['step']:>{len(total)}} of {total}"

    def _print(self, *lines: str) -> None:
        print(*lines, sep="\n", file=self._stream, flush=True)
