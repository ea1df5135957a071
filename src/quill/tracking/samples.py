"""samples.txt: the text that the model generated at each evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from quill.tracking.jsonl import append_text, events_until, replace_text

if TYPE_CHECKING:
    from quill.training.events import Event


class SampleLog:
    """Appends each sample to a text file, under a line with its step.

    A resumed run begins with the samples of `history` up to its checkpoint.
    """

    def __init__(self, file: str | Path, history: Iterable[Event] = ()) -> None:
        self.file = Path(file)
        self._history = list(history)

    def __call__(self, event: Event) -> None:
        if event["event"] == "start":
            kept = [e for e in events_until(self._history, event["step"]) if e["event"] == "sample"]
            replace_text(self.file, "".join(map(self._format, kept)))
        elif event["event"] == "sample":
            append_text(self.file, self._format(event))

    @staticmethod
    def _format(event: Event) -> str:
        return f"──── step {event['step']} ────\n{event['text']}\n\n"
