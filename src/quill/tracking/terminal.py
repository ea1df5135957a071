"""What a person sees while a run trains: a live picture in a terminal, short lines everywhere else.

Both are consumers of events, as in `report.py`. The live picture is drawn with rich (https://rich.readthedocs.io),
its loss curve by `curve.py`.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from quill.tracking.jsonl import events_until
from quill.tracking.terminal_plot import QUIET, TRAINING, VALIDATION, draw_curve
from quill.tracking.tracker import Event
from quill.units import format_duration

SECONDS_BETWEEN_LINES = 5.0

SAMPLE_LINES = 5


def choose_display(stream: TextIO | None = None, history: Iterable[Event] = ()) -> LiveDisplay | PlainDisplay:
    """Return a live display for a real terminal, and plain lines for pipes, notebooks, CI and dumb terminals."""
    stream = stream if stream is not None else cast(TextIO, sys.stdout)
    # A notebook's `!quill demo` gives the command a terminal that cannot move its cursor; JPY_PARENT_PID gives it away.
    elsewhere = any(os.environ.get(name) for name in ("CI", "JPY_PARENT_PID")) or os.environ.get("TERM") == "dumb"
    if elsewhere or not stream.isatty():
        return PlainDisplay(stream)
    console = Console(file=stream, highlight=False)
    # An old Windows console has neither the characters nor the cursor movements.
    return PlainDisplay(stream) if console.legacy_windows else LiveDisplay(console, history)


class _Display:
    """What both displays remember of a run."""

    def __init__(self) -> None:
        self.start: Event = {}
        self.step: Event = {}
        self.first_step: Event = {}
        self.best: Event = {}
        self.estimate = ""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it should be, whatever happened."""

    def _remember(self, event: Event) -> None:
        if event["event"] == "start":
            self.start, self.step, self.first_step = event, {}, {}
        elif event["event"] == "plan":
            self.start = {**self.start, "max_iters": event["max_iters"]}
        elif event["event"] == "step":
            self.step = event
            self.first_step = self.first_step or event
        elif event["event"] == "evaluation":
            self.best = event if event["best"] else self.best
            self.estimate = "" if event["whole_split"] else " (estimate)"  # docs/architecture.md: never unlabelled

    def _seconds_left(self) -> float | None:
        if not self.step:
            return None
        steps_left = max(0, self.start["max_iters"] - self.step["step"])
        done = self.step["step"] - self.first_step["step"]
        if done == 0:  # no pace yet, only the speed of the very first steps
            return steps_left * self.start["tokens_per_step"] / self.step["tokens_per_second"]
        # Wall time between two lines holds evaluations and samples too, which the speed leaves out.
        return steps_left * (self.step["seconds"] - self.first_step["seconds"]) / done


class PlainDisplay(_Display):
    """Writes short lines: what starts, where it is every few seconds, each evaluation with its sample, how it ended."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._told_at = -SECONDS_BETWEEN_LINES

    def __call__(self, event: Event) -> None:
        self._remember(event)
        kind = event["event"]
        if kind == "start":
            self._write(*describe_start(event))
        elif kind == "step" and event["seconds"] - self._told_at >= SECONDS_BETWEEN_LINES:
            self._told_at = event["seconds"]
            left = self._seconds_left()
            rest = f"   {format_duration(left)} left" if left is not None else ""
            speed = f"{event['tokens_per_second']:,.0f} tokens/s"
            self._write(f"{self._where(event)}   loss {event['train_loss']:.3f}   {speed}{rest}")
        elif kind == "evaluation":
            best = "   best so far" if event["best"] else ""
            losses = f"training loss {event['train_loss']:.3f}   validation loss {event['val_loss']:.3f}"
            losses += self.estimate
            self._write(f"{self._where(event)}   {losses}{best}")
        elif kind == "sample":
            self._write(*(f"    | {line}" for line in printable(event["text"]).splitlines()[:SAMPLE_LINES]))
        elif kind == "warning":
            self._write(f"warning: {event['message']}")
        elif kind == "end":
            self._write(describe_end(event, self.estimate))

    def _where(self, event: Event) -> str:
        total = str(self.start.get("max_iters", ""))
        return f"step {event['step']:>{len(total)}} of {total}"

    def _write(self, *lines: str) -> None:
        print(*lines, sep="\n", file=self._stream, flush=True)


class LiveDisplay(_Display):
    """Redraws a picture in place: progress, the loss curve, speed, time left, the best loss and the newest sample."""

    def __init__(
        self, console: Console, history: Iterable[Event] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._console, self._history, self._clock = console, list(history), clock
        self._live: Any = None
        self._told_at = 0.0
        self._sample: Event = {}
        self._training: list[tuple[int, float]] = []
        self._validation: list[tuple[int, float]] = []

    def __call__(self, event: Event) -> None:
        self._told_at = self._clock()
        if event["event"] == "start":
            for old in events_until(self._history, event["step"]):
                self._add(old)
            self._console.print(*describe_start(event), sep="\n", markup=False)
            self._add(event)
            self._open()
        elif event["event"] == "warning":
            self._console.print(Text(f"warning: {event['message']}", style="yellow"))
        elif event["event"] == "end":
            self.close()
            self._console.print(describe_end(event, self.estimate), markup=False)
        else:
            self._add(event)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _open(self) -> None:
        from rich.live import Live

        self._live = Live(
            self, console=self._console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def _add(self, event: Event) -> None:
        self._remember(event)
        if event["event"] == "step":
            self._training.append((event["step"], _number(event["train_loss"])))
        elif event["event"] == "evaluation":
            self._validation.append((event["step"], _number(event["val_loss"])))
        elif event["event"] == "sample":
            self._sample = event

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = min(options.max_width, 100), console.size.height
        yield _one_line(self._progress(width), width)
        yield _one_line(self._numbers(), width)
        rows = min(10, height - SAMPLE_LINES - 6)  # a picture taller than the terminal cannot be redrawn in place
        if rows >= 3:
            yield from draw_curve(
                self._training,
                self._validation,
                width=width,
                height=rows,
                last_step=self._steps_in_view(),
            )
        yield Text("")
        yield from self._newest_sample(width)

    def _steps_in_view(self) -> int:
        """Return how many steps the curve spans: all of them, halved while that shows half of a picture or less."""
        span = self.start.get("max_iters", 1)
        while span // 2 >= max(1, self.step.get("step", 0)):
            span //= 2
        return span

    def _progress(self, width: int) -> Text:
        step, total = self.step.get("step", self.start.get("step", 0)), self.start.get("max_iters", 1)
        left = self._seconds_left()
        if left is not None:
            left = max(0.0, left - (self._clock() - self._told_at))
        time_left = f"  {format_duration(left)} left" if left is not None else ""
        label = f" step {step}/{total}{time_left}"
        bar = max(10, width - len(label))
        full = round(bar * min(1.0, step / max(1, total)))
        return Text.assemble(("━" * full, "green"), ("─" * (bar - full), QUIET), label)

    def _numbers(self) -> Text:
        parts: list[tuple[str, str]] = []
        if self.step:
            parts.append((f"training {self.step['train_loss']:.3f}", TRAINING))
        if self._validation:
            parts.append((f"validation {self._validation[-1][1]:.3f}{self.estimate}", VALIDATION))
        if self.best:
            parts.append((f"best {self.best['val_loss']:.3f} at step {self.best['step']}", "bold"))
        if self.step:
            parts.append((f"{self.step['tokens_per_second']:,.0f} tokens/s", ""))
        return Text("   ").join(Text(text, style=style) for text, style in parts) if parts else Text("starting …")

    def _newest_sample(self, width: int) -> Iterable[Text]:
        title = f"what it writes at step {self._sample['step']}" if self._sample else "it has not written yet"
        yield _one_line(Text(title, style=QUIET), width)
        lines = printable(self._sample.get("text", "")).strip("\n").splitlines()
        for line in (lines + [""] * SAMPLE_LINES)[:SAMPLE_LINES]:  # always as many, so that nothing below jumps
            yield _one_line(Text(line), width)


def _number(loss: float | None) -> float:
    """Return a loss as a number: one that was none (NaN, infinity) is stored as null."""
    return math.nan if loss is None else loss


def _one_line(text: Text, width: int) -> Text:
    text.no_wrap = True
    text.truncate(width, overflow="ellipsis")
    return text


def describe_start(event: Event) -> list[str]:
    """Return what a person wants to know when a run starts, in two or three lines."""
    size = f"{event['parameters'] / 1e6:.2f} M parameters"
    compiled = ", compiled" if event["compile"] is True else ""
    onwards = f", going on from step {event['step']}" if event["step"] else ""
    lines = [
        f"model    {size} on {event['device']}, {event['dtype']}{compiled}",
        f"text     {event['train_tokens']:,} tokens to learn from, {event['val_tokens']:,} to be tested on, "
        f"{event['vocab_size']} different ones",
        f"run      {event['max_iters']:,} steps of {event['tokens_per_step']:,} tokens, "
        f"into {event['out_dir']}{onwards}",
    ]
    return [f"corpus   {event['corpus_note']}", *lines] if event.get("corpus_note") else lines


def describe_end(event: Event, estimate: str = "") -> str:
    """Return how a run ended, in one line; `estimate` labels a loss that was not measured on the whole split."""
    how = {
        "patience": "stopped early, because the validation loss no longer improved,",
        "time": "stopped when its time was up,",
    }.get(event["reason"], event["reason"])
    line = f"{how} at step {event['step']} after {format_duration(event['seconds'])}"
    if event["best_val_loss"] is None:
        return line
    return f"{line}; best validation loss {event['best_val_loss']:.4f}{estimate} at step {event['best_step']}"


def printable(text: str) -> str:
    """Return text that is safe in a terminal: control characters, which could move its cursor, become "·"."""
    return "".join(c if c in "\n\t" or c.isprintable() else "·" for c in text)
