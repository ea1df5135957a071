"""Clients that come, wait and go at once do not disturb each other, and leave nothing behind."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from api_client import abandon, complete, events, metric, post, start_server

CLIENTS, REQUESTS = 32, 1000
BODY = {"prompt": "KING", "max_tokens": 10, "seed": 7, "logprobs": 2}


@pytest.fixture(scope="module")
def server(trained) -> Iterator[subprocess.Popen[str]]:
    """A server process of this module alone, whose connections are counted."""
    with start_server(str(trained.out), "--device=cpu") as process:
        yield process
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()


def bodies(count: int) -> list[dict[str, Any]]:
    """Return requests of every kind: lengths, settings, several texts, log-probabilities, echo, whole and streamed."""
    draw = random.Random(1)
    return [
        {
            "prompt": draw.choice(["KING", "\n", "1: ", "the win", [1, 2, 3]]),
            "max_tokens": draw.randint(1, 24),
            "temperature": draw.choice([0, 0.7, 1, 1.5]),
            "top_k": draw.choice([0, 1, 5]),
            "seed": draw.randint(0, 9),
            "n": draw.choice([1, 1, 1, 3]),
            "logprobs": draw.choice([None, 0, 2]),
            "echo": draw.random() < 0.2,
            "stop": draw.choice([None, "e", ["\n", "xyz"]]),
            "stream": draw.random() < 0.5,
        }
        for _ in range(count)
    ]


def until_idle(address: str) -> None:
    """Return when no text is open; each question gives the server time for a step."""
    for _ in range(10_000):
        if metric(address, "quill_texts_open") == 0 == metric(address, "quill_texts_running"):
            return
    counts = {name: metric(address, f"quill_texts_{name}") for name in ("open", "running")}
    pytest.fail(f"texts are still there: {counts}")


@pytest.mark.long
def test_texts_of_clients_that_join_and_abort_are_those_of_serial_runs(address: str) -> None:
    asked = bodies(REQUESTS)
    serial = [complete(address, body) for body in asked]
    assert len({str(each) for each in serial}) > REQUESTS / 4, "the texts differ from each other"
    disturbing = [body | {"max_tokens": 200, "stop": None, "n": 1} for body in bodies(REQUESTS // 4)]

    def disturb(number: int) -> None:
        if number % 2:
            abandon(address, disturbing[number])
        else:
            list(events(address, disturbing[number], most=1 + number % 5))

    with ThreadPoolExecutor(CLIENTS) as clients:
        together = [clients.submit(complete, address, body) for body in asked]
        aborts = [clients.submit(disturb, number) for number in range(len(disturbing))]
        found = [each.result() for each in together]
        for each in aborts:
            each.result()
    assert found == serial
    until_idle(address)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file descriptors to count")
def test_two_hundred_disconnects_leak_no_text_no_connection_and_no_thread(
    server: subprocess.Popen[str], address: str
) -> None:
    process = psutil.Process(server.pid)
    before = complete(address, BODY)
    long = BODY | {"max_tokens": 500}
    list(events(address, long, most=1))
    until_idle(address)
    descriptors, threads = process.num_fds(), process.num_threads()
    for number in range(200):
        if number % 2:
            abandon(address, long | {"stream": bool(number % 4 == 1)})
        else:
            list(events(address, long, most=1))
    until_idle(address)
    for _ in range(10_000):
        if process.num_fds() <= descriptors:
            break
        assert metric(address, "quill_texts_open") == 0
    assert process.num_fds() <= descriptors
    assert process.num_threads() < threads + 20, "a pool of the event loop may still grow by some"
    assert complete(address, BODY) == before


def test_a_text_that_nobody_reads_any_more_is_not_written_to_its_end(address: str) -> None:
    until_idle(address)
    before = metric(address, "quill_generated_tokens_total")
    for _ in range(20):
        list(events(address, BODY | {"max_tokens": 100_000, "logprobs": None}, most=1))
    until_idle(address)
    assert metric(address, "quill_generated_tokens_total") - before < 20 * 100_000 / 2


@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows gets no SIGINT from another")
@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_open_streams_with_an_error_and_then_the_server(trained, number: int, code: int) -> None:
    with start_server(str(trained.out), "--device=cpu", stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        stream = events(address, {"prompt": "KING", "max_tokens": 100_000})
        assert "choices" in next(stream)
        process.send_signal(number)
        last = list(stream)[-1]
        _, error = process.communicate()
    assert last["error"]["message"] == "the server is stopping"
    assert process.returncode == code and "Traceback" not in error


def test_texts_beyond_the_queue_are_refused_and_those_within_are_answered(address: str) -> None:
    many = {"prompt": ["KING"] * 32, "n": 4, "max_tokens": 40, "seed": 1}
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: post(address, "/v1/completions", many), range(8)))
    assert {status for status, _ in answers} == {200, 429}
    assert all(answer["error"]["code"] == "queue_full" for status, answer in answers if status == 429)
    texts = [[choice["text"] for choice in answer["choices"]] for status, answer in answers if status == 200]
    assert all(each == texts[0] for each in texts) and len(texts[0]) == 128
