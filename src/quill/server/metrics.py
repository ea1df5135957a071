"""GET /metrics: numbers about the server in the text format of Prometheus.

Reference: Prometheus, "Exposition formats", version 0.0.4.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from quill.server.served_models import ServedModels

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""upper bounds of the buckets of a histogram"""

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


@dataclass
class Histogram:
    """How many durations were at most as long as each bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Add a duration."""
        self.counts[bisect.bisect_left(SECONDS, seconds)] += 1
        self.total += seconds


class Metrics:
    """What is counted in the event loop. The writers count the rest."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}
        self.first_token: dict[str, Histogram] = {}
        self.prompt_tokens: dict[str, int] = {}

    def count_request(self, path: str, status: int) -> None:
        """Count an answered request; `path` is that of the route."""
        self.requests[path, status] = self.requests.get((path, status), 0) + 1

    def count_prompt(self, model_id: str, tokens: int) -> None:
        """Count the tokens of the prompts of a request."""
        self.prompt_tokens[model_id] = self.prompt_tokens.get(model_id, 0) + tokens

    def observe_first_token(self, model_id: str, seconds: float) -> None:
        """Add the time from the start of a generation to its first token."""
        self.first_token.setdefault(model_id, Histogram()).observe(seconds)


async def metrics(request: Request) -> Response:
    """Answer GET /metrics."""
    lines = _lines(request.app.state.metrics, request.app.state.served)
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


def _lines(counted: Metrics, served: ServedModels) -> Iterator[str]:
    yield from _about("quill_requests_total", "counter", "Requests answered.")
    for (path, status), count in sorted(counted.requests.items()):
        yield f"quill_requests_total{_labels(route=path, status=str(status))} {count}"
    models = served.loaded()
    yield from _about("quill_prompt_tokens_total", "counter", "Tokens of prompts.")
    for model_id, count in sorted(counted.prompt_tokens.items()):
        yield f"quill_prompt_tokens_total{_labels(model=model_id)} {count}"
    for name, kind, text, values in (
        ("quill_generated_tokens_total", "counter", "Tokens generated.", [m.writer.num_tokens for m in models]),
        ("quill_texts_running", "gauge", "Texts that are being generated.", [m.writer.num_running for m in models]),
        ("quill_texts_open", "gauge", "Texts that run or wait for a slot.", [m.writer.num_open for m in models]),
        ("quill_slots", "gauge", "Texts that can be generated at once.", [m.writer.slots for m in models]),
    ):
        yield from _samples(name, kind, text, [model.id for model in models], values)
    name = "quill_time_to_first_token_seconds"
    yield from _about(name, "histogram", "Time from the start of a generation to its first token.")
    for model_id, histogram in sorted(counted.first_token.items()):
        below = 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), histogram.counts, strict=True):
            below += count
            yield f"{name}_bucket{_labels(model=model_id, le=bound)} {below}"
        yield f"{name}_sum{_labels(model=model_id)} {histogram.total}"
        yield f"{name}_count{_labels(model=model_id)} {below}"


def _about(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _samples(name: str, kind: str, text: str, models: Sequence[str], values: Sequence[int]) -> Iterator[str]:
    yield from _about(name, kind, text)
    for model_id, value in zip(models, values, strict=True):
        yield f"{name}{_labels(model=model_id)} {value}"


def _labels(**labels: str) -> str:
    escaped = {
        key: value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for key, value in labels.items()
    }
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped.items()) + "}"
