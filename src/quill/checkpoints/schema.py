"""Types and bounds of the JSON in checkpoints. Each value is checked before anything is built from it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quill.errors import CheckpointError
from quill.validation import show

MOST_STEPS = 2**53  # the largest whole number that every JSON reader keeps exactly


@dataclass(frozen=True)
class Rule:
    """A test of values, and its description for messages."""

    accepts: Callable[[Any], bool]
    words: str


def whole(lowest: int, highest: int) -> Rule:
    """Return a rule that accepts whole numbers between two bounds, both included."""
    return Rule(lambda value: type(value) is int and lowest <= value <= highest, "a whole number within bounds")


def optional(rule: Rule) -> Rule:
    """Return a rule that also accepts null."""
    return Rule(lambda value: value is None or rule.accepts(value), f"{rule.words}, or null")


def one_of(*values: object) -> Rule:
    """Return a rule that accepts these values, with exactly their types."""
    accepts = lambda value: any(type(value) is type(each) and value == each for each in values)  # noqa: E731
    return Rule(accepts, " or ".join(map(repr, values)))


FINITE = Rule(
    lambda value: type(value) in (int, float) and abs(value) < 2**1000 and math.isfinite(value), "a finite number"
)
STEP = whole(0, MOST_STEPS)
OBJECT = Rule(lambda value: isinstance(value, dict), "a JSON object")
SHA256 = Rule(
    lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "a SHA-256 in hexadecimal",
)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_record(record: object, rules: Mapping[str, Rule], source: Path | str) -> dict[str, Any]:
    """Return `record` if it is an object with exactly these names and each value is accepted, else CheckpointError."""
    if not isinstance(record, dict):
        raise CheckpointError(f"{source} is damaged: a JSON object is expected, not {show(record)}")
    if missing := sorted(rules.keys() - record.keys()):
        raise CheckpointError(f"{source} is damaged: {missing[0]} is missing")
    if unknown := sorted(record.keys() - rules.keys()):
        raise CheckpointError(f"{source} is damaged, or of a newer Quill: {show(unknown[0])} is not known")
    for name, rule in rules.items():
        if not rule.accepts(record[name]):
            raise CheckpointError(f"{source} is damaged: {name}={show(record[name])} should be {rule.words}")
    return record
