"""samples.txt: what the model wrote at each evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quill.files import write_atomically
from quill.tracking.jsonl import events_until
from quill.tracking.tracker import Event


class Samples:
    """Writes what the model wrote at each evaluation into a text file, under a line that names the step."""

    def __init__(self, file: str | Path, history: Iterable[Event] = ()) -> None:
        self.file = Path(file)
        self._history = list(history)

    def __call__(self, event: Event) -> None:
        if event["event"] == "start":
            kept = [e for e in events_until(self._history, event["step"]) if e["event"] == "sample"]
            write_atomically(self.file, "".join(map(self._format, kept)).encode("utf-8", "replace"))
        elif event["event"] == "sample":
            with open(self.file, "a", encoding="utf-8", errors="replace", newline="\n") as opened:
                opened.write(self._format(event))

    @staticmethod
    def _format(event: Event) -> str:
        return f"──── step {event['step']} ────\n{event['text']}\n\n"
