"""Download one known file within a deadline; its SHA-256 is checked. Ask whether a server answers.

The deadline is for the whole transfer, name resolution included. No timeout of a socket covers that, so the transfer
runs in a thread of its own, which is abandoned when time is up.

Reference: Python's `urllib.request`; RFC 9110 (HTTP semantics).
"""

from __future__ import annotations

import hashlib
import http.client
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from quill.errors import CorpusError

_CHUNK_BYTES = 1 << 16
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class RemoteFile:
    """A file with a public address, known by its size in bytes and its SHA-256."""

    name: str
    address: str
    size: int
    sha256: str

    def is_same(self, raw: bytes) -> bool:
        """Return whether these bytes are the file."""
        return hashlib.sha256(raw).hexdigest() == self.sha256

    def fetch(self, seconds: float, on_share: Callable[[float], None] = lambda share: None) -> bytes:
        """Return the file's bytes, checked; CorpusError with the reason if they do not arrive in `seconds`.

        `on_share` is called a few times a second with the share that has arrived.
        """
        outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        pieces: list[bytes] = []
        deadline = time.monotonic() + seconds

        def transfer() -> None:
            try:
                self._read(deadline, pieces)
                outcome.put(b"".join(pieces))
            except Exception as error:
                outcome.put(error)

        threading.Thread(target=transfer, name=f"download {self.name}", daemon=True).start()
        result = None
        while result is None:
            left = deadline - time.monotonic()
            try:
                result = outcome.get(timeout=max(0.0, min(_POLL_SECONDS, left)))
            except queue.Empty:
                on_share(min(1.0, sum(map(len, pieces)) / self.size))
                if left <= 0:
                    result = TimeoutError()
        if isinstance(result, Exception):
            raise CorpusError(_reason(result, seconds)) from result
        if len(result) != self.size:
            relation = "less" if len(result) < self.size else "more"
            raise CorpusError(f"{relation} arrived than the {self.size:,} bytes of the file")
        if not self.is_same(result):
            raise CorpusError(f"what arrived is not the file: its SHA-256 is not {self.sha256[:12]}…")
        return result

    def _read(self, deadline: float, pieces: list[bytes]) -> None:
        """Append the file's bytes to `pieces` as they arrive."""
        received = 0
        with urllib.request.urlopen(self.address, timeout=max(0.01, deadline - time.monotonic())) as response:
            while received <= self.size:  # a file that is too long is noticed one piece later
                if time.monotonic() > deadline:
                    raise TimeoutError
                piece = response.read1(_CHUNK_BYTES)
                if not piece:
                    break
                pieces.append(piece)
                received += len(piece)


def require_answer(address: str, seconds: float) -> None:
    """Raise CorpusError with the reason unless the server of an address answers within `seconds`."""
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
            outcome.put(None)
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=ask, name=f"ask {address}", daemon=True).start()
    try:
        error = outcome.get(timeout=max(0.0, seconds))
    except queue.Empty:
        error = TimeoutError()
    if error is not None:
        raise CorpusError(_reason(error, seconds)) from error


def _reason(error: Exception, seconds: float) -> str:
    """Return why a transfer failed, in a few words; an unexpected exception is a bug and is raised."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"the server answered {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"it did not arrive within {seconds:g} s"
    if isinstance(cause, OSError):
        return f"no connection: {cause.strerror or cause}"
    if isinstance(cause, http.client.HTTPException):
        return f"the answer was cut off or is not HTTP: {type(cause).__name__}"
    if isinstance(cause, str):
        return cause
    raise error
