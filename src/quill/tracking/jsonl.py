"""metrics.jsonl: one event a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from quill.files import write_atomically
from quill.tracking.tracker import Event


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
            write_atomically(self.file, "".join(map(_to_line, kept)).encode())
        # Opened for each line: nothing is lost in a crash, and Windows lets others read the file meanwhile.
        with open(self.file, "a", encoding="utf-8", newline="\n") as opened:
            opened.write(_to_line(event))


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
