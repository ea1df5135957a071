"""A server process for tests, and a small HTTP client of its API, with a connection for each request."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

SECONDS = 120  # longest wait for an answer on a busy machine


def start_server(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start `quill serve` at a free port; its first line on standard output is the address."""
    command = [sys.executable, "-m", "quill", "serve", "--port=0", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", **options)


def post(address: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Return the status and the JSON of an answer."""
    with_body = _request(address, path, body)
    try:
        answer = with_body.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        with_body.close()


def complete(address: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the choices of an answer; those of a stream are put together from its events."""
    if not body.get("stream"):
        status, answer = post(address, "/v1/completions", body)
        assert status == 200, answer
        choices: list[dict[str, Any]] = answer["choices"]
        return choices
    joined: dict[int, dict[str, Any]] = {}
    for event in events(address, body):
        for choice in event["choices"]:
            whole = joined.setdefault(choice["index"], {"text": "", "index": choice["index"], "logprobs": None})
            whole["text"] += choice["text"]
            whole["finish_reason"] = choice["finish_reason"]
            if (more := choice["logprobs"]) is not None:
                before = whole["logprobs"] or {name: [] for name in more}
                whole["logprobs"] = {name: before[name] + more[name] for name in more}
    return [joined[index] for index in sorted(joined)]


def events(address: str, body: dict[str, Any], most: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream, at most this many; the connection is closed after the last."""
    connection = _request(address, "/v1/completions", body | {"stream": True})
    try:
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        count = 0
        for line in answer:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            yield json.loads(line.removeprefix(b"data: "))
            count += 1
            if count == most:
                return
    finally:
        connection.close()


def abandon(address: str, body: dict[str, Any]) -> None:
    """Send a request, and close the connection without waiting for the answer."""
    _request(address, "/v1/completions", body).close()


def metric(address: str, name: str) -> float:
    """Return the sum of a metric over its labels."""
    with urlopen(address.rstrip("/") + "/metrics", timeout=SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def _request(address: str, path: str, body: dict[str, Any]) -> http.client.HTTPConnection:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=SECONDS)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection
