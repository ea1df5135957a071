"""The state of a run as displays show it (progress, pace, time left), and the first and last lines of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quill.units import format_count, format_duration

if TYPE_CHECKING:
    from quill.training.events import Event

PACE_SECONDS = 900.0  # the pace is that of the last quarter of an hour at most


class RunStatus:
    """Summary of the events so far."""

    def __init__(self) -> None:
        self.start: Event = {}
        self.step: Event = {}
        self.best: Event = {}
        self.estimate = ""
        """" (estimate)" if the losses were not measured on the whole split"""
        self._pace: list[tuple[int, float]] = []  # step and seconds of each `step` event
        self._deadline: float | None = None

    def update(self, event: Event) -> None:
        """Update the summary with an event."""
        kind = event["event"]
        if kind == "start":
            self.start, self.step, self._pace = event, {}, []
            self._deadline = event.get("deadline")
        elif kind == "plan":
            self.start = {**self.start, "max_iters": event["max_iters"]}
        elif kind == "step":
            self.step = event
            self._pace.append((event["step"], event["seconds"]))
        elif kind == "evaluation":
            self.best = event if event["best"] else self.best
            self.estimate = "" if event["whole_split"] else " (estimate)"

    @property
    def steps(self) -> int:
        """The number of steps so far."""
        return self.step.get("step", self.start.get("step", 0))

    @property
    def max_iters(self) -> int:
        """The number of steps of the whole run, as planned now."""
        return self.start.get("max_iters", 1)

    def seconds_left(self) -> float | None:
        """Return the seconds that the run will take from the last `step` event on; None before the first one.

        The pace is that of the second half of the time so far, so a machine that slows down is noticed. It includes
        evaluations and samples, which `tokens_per_second` leaves out. A deadline (an optional field of `start`, in
        seconds) is never exceeded.
        """
        if not self.step:
            return None
        steps_left = max(0, self.max_iters - self.steps)
        now = self.step["seconds"]
        left = steps_left * self._seconds_per_step(now)
        return left if self._deadline is None else min(left, max(0.0, self._deadline - now))

    def _seconds_per_step(self, now: float) -> float:
        since = max(now / 2, now - PACE_SECONDS)
        while len(self._pace) > 2 and self._pace[1][1] <= since:
            del self._pace[0]
        step, seconds = self._pace[0]
        if self.steps == step:  # only the speed of the first steps is known
            return self.start["tokens_per_step"] / self.step["tokens_per_second"]
        return (now - seconds) / (self.steps - step)


def format_start(event: Event) -> list[str]:
    """Return the lines that open a run: the model, the data, the run."""
    size = f"{format_count(event['parameters'])} parameters"
    compiled = ", compiled" if event["compile"] is True else ""
    resumed = f", resumed from step {event['step']:,}" if event["step"] else ""
    lines = [
        f"model    {size} on {event['device']}, {event['dtype']}{compiled}",
        f"data     {event['train_tokens']:,} train / {event['val_tokens']:,} val tokens, "
        f"vocabulary {event['vocab_size']:,}",
        f"run      {event['max_iters']:,} steps of {event['tokens_per_step']:,} tokens, in {event['out_dir']}{resumed}",
    ]
    return [f"corpus   {event['corpus_note']}", *lines] if event.get("corpus_note") else lines


def format_losses(event: Event, width: int = 10**6) -> str:
    """Return the validation loss of each text of a mixture, in one line; nothing for a single text.

    As many texts are named as fit into `width`.
    """
    losses = event.get("val_losses") or {}
    each = [f"{name} {math.nan if loss is None else loss:.3f}" for name, loss in losses.items()]
    for count in range(len(each), 0, -1):
        more = f" and {len(each) - count} more" if count < len(each) else ""
        if len(line := f"each text: {', '.join(each[:count])}{more}") <= width:
            return line
    return ""


def format_end(event: Event, estimate: str = "") -> str:
    """Return how a run ended, in one line; `estimate` labels a loss that was not measured on the whole split."""
    how, why = {
        "patience": ("stopped early", " (the validation loss no longer improved)"),
        "time": ("stopped", " (its time was up)"),
    }.get(event["reason"], (event["reason"], ""))
    line = f"{how} at step {event['step']} after {format_duration(event['seconds'])}{why}"
    if event["best_val_loss"] is None:
        return line
    return f"{line}; best validation loss {event['best_val_loss']:.4f}{estimate} at step {event['best_step']}"


def printable(text: str) -> str:
    """Return text that is safe in a terminal: control characters, which could move its cursor, become "·"."""
    return "".join(c if c in "\n\t" or c.isprintable() else "·" for c in text)
