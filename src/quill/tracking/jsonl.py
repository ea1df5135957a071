"""metrics.jsonl: the events of a run, one line of JSON each."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.errors import CheckpointError, TrainingError
from quill.files import write_atomically
from quill.tracking.tracker import EVENT_FIELDS

if TYPE_CHECKING:
    from quill.training.events import Event

DURABLE = ("evaluation", "end")  # events after which the file is flushed to disk: a checkpoint follows


def read_events(file: str | Path, warn: Callable[[str], object] = lambda message: None) -> list[Event]:
    """Return the events of a metrics.jsonl, oldest first; none if the file is missing.

    Lines that are not an event are left out, and `warn` is called with one message that names the first of them. A last
    line that a crash cut is left out silently.
    """
    try:
        data = Path(file).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    *lines, rest = data.split(b"\n")  # splitlines() would also split at characters that JSON leaves as they are
    events, damaged = [], []
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        if (event := _parse(line)) is not None:
            events.append(event)
        elif number <= len(lines):
            damaged.append(number)
    if damaged:
        more = f" and {len(damaged) - 1} more are not events" if len(damaged) > 1 else " is not an event"
        warn(f"{file} is damaged: line {damaged[0]}{more}, and left out")
    return events


def events_until(events: Iterable[Event], step: int) -> list[Event]:
    """Return the events up to this step, from which a run is resumed; none if it is 0, for a new run."""
    return [event for event in events if event["step"] <= step] if step else []


def find_gap(events: Iterable[Event], step: int) -> str | None:
    """Return a message if events up to `step`, from which a run is resumed, are missing; else None.

    A run reports a `start` first, and a `step` event at every checkpoint.
    """
    before = events_until(events, step)
    if step == 0:
        return None
    if not before:
        return f"metrics.jsonl has no events of this run before step {step}"
    last = max((event["step"] for event in before if event["event"] in ("step", "evaluation")), default=0)
    if last < step:
        return f"lines of metrics.jsonl are missing: it ends at step {last}, and the checkpoint is of step {step}"
    if before[0]["event"] != "start":
        return f"lines of metrics.jsonl are missing: it begins with step {before[0]['step']}"
    return None


class JsonLines:
    """Appends each event as a line of JSON. A resumed run first drops the lines after its checkpoint."""

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)

    def __call__(self, event: Event) -> None:
        if event["event"] == "start":
            kept = events_until(read_events(self.file), event["step"])
            replace_text(self.file, "".join(map(_to_line, kept)))
        # Opened for each line: a crash loses nothing, and on Windows other programs can read the file.
        append_text(self.file, _to_line(event), durable=event["event"] in DURABLE)


def replace_text(file: Path, text: str) -> None:
    """Write a file whole or not at all; lone surrogates become "?". TrainingError if it cannot be written."""
    try:
        write_atomically(file, text.encode("utf-8", "replace"))
    except OSError as error:
        raise TrainingError(f"{file} cannot be written: {error.strerror or error}") from error


def append_text(file: Path, text: str, *, durable: bool = False) -> None:
    """Append text to a file; lone surrogates become "?". TrainingError if the file cannot be written."""
    try:
        with open(file, "ab") as opened:
            opened.write(text.encode("utf-8", "replace"))
            if durable:
                opened.flush()
                os.fsync(opened.fileno())
    except OSError as error:
        raise TrainingError(f"{file} cannot be written: {error.strerror or error}") from error


def _parse(line: bytes) -> Event | None:
    """Return the event on a line, or None if the line is not an event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    fields = {"step": int} | EVENT_FIELDS.get(event["event"], {})
    return event if event_fits(event, fields) else None


def event_fits(event: dict[str, Any], fields: dict[str, type]) -> bool:
    """Return whether an event has these fields, each of its type; a float may be None or a whole number."""
    for name, kind in fields.items():
        value = event.get(name)
        if kind is float:
            fits = name in event and (value is None or type(value) in (int, float))
        else:
            fits = type(value) is kind
        if not fits or (isinstance(value, int) and value < 0):
            return False
    return True


def _to_line(event: Event) -> str:
    # NaN and infinity are not valid JSON: they become null, so that other programs can read the file.
    line = json.dumps(_finite(event), ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # lone surrogates are not valid UTF-8: they become escapes
        line = json.dumps(_finite(event), allow_nan=False)
    return line + "\n"


def _finite(value: Any) -> Any:
    """Return a value of an event with each float that is not finite replaced by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
