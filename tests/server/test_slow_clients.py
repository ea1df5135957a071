"""Clients that send a byte now and then, or read nothing, hold up nobody and are sent away."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from api_client import complete, metric

from quill.server.app import create_app
from quill.server.connection.running import open_socket, run_app
from quill.server.served_models import EngineSettings, ServedModels
from quill.server.settings import Limits, ServerSettings

DRIPPING = 200
BODY = {"prompt": "KING", "max_tokens": 20, "seed": 3, "logprobs": 1}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@contextmanager
def serving(trained: Any, limits: Limits) -> Iterator[str]:
    """The address of a server in a thread of this process, with these limits."""
    served = ServedModels(trained.out, EngineSettings(device="cpu", engine="torch"))
    app = create_app(served, ServerSettings(limits=limits))
    stopping, started = threading.Event(), threading.Event()
    with open_socket("127.0.0.1", 0) as opened:
        thread = threading.Thread(target=run_app, args=(app, opened, stopping.is_set, started.set))
        thread.start()
        started.wait()
        yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
        stopping.set()
        thread.join()


def connect(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname or "", parts.port or 0))


def drip(client: socket.socket, data: bytes) -> bytes:
    """Send a byte each twentieth of a second until the server closes the connection; return what it answered."""
    for index in range(len(data)):
        readable, _, _ = select.select([client], [], [], 0.05)
        if readable:
            break
        client.sendall(data[index : index + 1])
    else:
        pytest.fail("the server read it all")
    answer = b""
    while more := client.recv(65_536):
        answer += more
    return answer


@pytest.mark.parametrize(
    "start",
    [b"", HEAD + b"X-Slow: ", HEAD + b"Content-Length: 100000\r\n\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n"],
    ids=["first line", "headers", "body", "chunks"],
)
def test_a_request_that_comes_too_slowly_is_refused_at_the_deadline(trained, start: bytes) -> None:
    slowly = {b"": HEAD * 50, HEAD + b"Transfer-Encoding: chunked\r\n\r\n": b"1\r\n{\r\n" * 500}.get(start, b" " * 5000)
    with serving(trained, Limits(receive_seconds=0.5)) as address, connect(address) as client:
        client.sendall(start)
        answer = drip(client, slowly)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"


def test_two_hundred_dripping_connections_hold_up_nobody(trained: Any) -> None:
    with serving(trained, Limits()) as address, ExitStack() as stack:
        alone = [complete(address, BODY | {"seed": seed}) for seed in range(10)]
        slow = [stack.enter_context(connect(address)) for _ in range(DRIPPING)]
        data = HEAD + b"Content-Length: 100000\r\n\r\n" + b" " * 500
        found, sent = [], 0
        for seed in range(10):
            for _ in range(20):  # a byte of each between two requests, and twenty at once
                for client in slow:
                    client.sendall(data[sent : sent + 1])
                sent += 1
            found.append(complete(address, BODY | {"seed": seed}))
        assert found == alone
        assert all(not select.select([client], [], [], 0)[0] for client in slow), "all of them are still connected"


def test_connections_beyond_the_limit_are_refused_and_come_back_when_others_go(trained: Any) -> None:
    with serving(trained, Limits(connections=5)) as address:
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(connect(address)).sendall(b"GET")
            with connect(address) as late:
                refused = late.recv(65_536)
        assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") and b"Retry-After" in refused
        for _ in range(1000):
            with connect(address) as client:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if client.recv(65_536).startswith(b"HTTP/1.1 200"):
                    break
        else:
            pytest.fail("no connection became free")


def test_a_client_that_reads_nothing_holds_up_nobody(trained: Any) -> None:
    body = json.dumps({"prompt": "KING", "max_tokens": 3000, "logprobs": 5, "stream": True, "n": 4}).encode()
    with serving(trained, Limits()) as address:
        alone = complete(address, BODY)
        with ExitStack() as stack:
            for _ in range(3):
                client = stack.enter_context(connect(address))
                client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert client.recv(10).startswith(b"HTTP/1.1 2")
            assert complete(address, BODY) == alone
        for _ in range(10_000):
            if metric(address, "quill_texts_open") == 0:
                break
        else:
            pytest.fail("a text whose client has gone is still open")
