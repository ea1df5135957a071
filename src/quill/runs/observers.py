"""The observers of a run: progress display, trackers, and the user's callback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.errors import ConfigError
from quill.tracking.tracker import Tracker

if TYPE_CHECKING:
    from quill.training.events import Event

SECONDS_BETWEEN_LINES = 2.0


class Observers:
    """Progress, trackers and callback as `quill.run` takes them."""

    def __init__(
        self,
        progress: bool | Tracker = True,
        tracker: Tracker | Iterable[Tracker] | None = None,
        callback: Callable[[Event], str | None] | None = None,
    ) -> None:
        if tracker is None:
            given: list[Any] = []
        else:
            given = [tracker] if callable(tracker) or not isinstance(tracker, Iterable) else list(tracker)
        for each in (*given, *([callback] if callback is not None else [])):
            if not callable(each):
                raise ConfigError(f"{each!r} cannot be a tracker or callback: it must be callable with one event")
        self.progress, self.given, self.callback = progress, given, callback
        self.shown_at = 0.0
        self.reason: str | None = None
        self.step = 0
        self._emit: Callable[[Event], object] | None = None
        self._early: list[str] = []  # warnings before there was an `_emit`
        self._history: list[Event] = []

    def status(self, message: str) -> None:
        """Show a message about what happens before training begins."""
        if callable(self.progress):
            self.progress({"event": "status", "step": 0, "message": message})
        elif self.progress:
            print(message, flush=True)

    def warn(self, message: str) -> None:
        """Report a warning of the run, now or as soon as `attach` has been called."""
        if self._emit is None:
            self._early.append(message)
        else:
            self._emit({"event": "warning", "step": self.step, "message": message})

    def preparing(self, what: str, share: float) -> None:
        """Show the progress of preparing a text, every two seconds; `share` is the completed share, from 0 to 1."""
        now = time.monotonic()
        self.shown_at = self.shown_at or now
        if now - self.shown_at >= SECONDS_BETWEEN_LINES:
            self.shown_at = now
            self.status(f"{what}, {share:.0%} done")

    @contextmanager
    def trackers(self, out_dir: Path, resume: bool, *more: Tracker | None) -> Iterator[Tracker]:
        """Yield the tracker that passes each event of the run in this folder to all its observers."""
        from quill.tracking.jsonl import JsonLines, read_events
        from quill.tracking.loss_plot import LossPlot
        from quill.tracking.samples import SampleLog
        from quill.tracking.tracker import CompositeTracker

        self._history = read_events(out_dir / "metrics.jsonl", self.warn) if resume else []
        with self._display(self._history) as display:
            # The `end` event in metrics.jsonl means that the run is finished, so the picture is drawn before it.
            yield CompositeTracker(
                display, SampleLog(out_dir / "samples.txt", self._history), *more,
                LossPlot(out_dir / "loss.png", self._history, self.warn), JsonLines(out_dir / "metrics.jsonl"),
                self.watch,
            )  # fmt: skip

    def _display(self, history: list[Event]) -> AbstractContextManager[Any]:
        if self.progress is True:
            from quill.tracking.terminal import choose_display

            return choose_display(history=history)
        return nullcontext(self.progress if callable(self.progress) else lambda event: None)

    def attach(self, emit: Callable[[Event], object]) -> None:
        """Send warnings to `emit`, also those that came earlier."""
        self._emit = emit
        while self._early:
            self.warn(self._early.pop(0))

    def watch(self, event: Event) -> None:
        """Pass an event to the user's trackers, and an evaluation to the callback, which may end the run."""
        self.step = event["step"]
        for tracker in self.given:
            tracker(event)
        if event["event"] == "start":
            from quill.tracking.jsonl import find_gap

            if (gap := find_gap(self._history, event["step"])) is not None:
                self.warn(gap)
        if self.callback is not None and event["event"] == "evaluation":
            self.reason = self.callback(event) or self.reason
