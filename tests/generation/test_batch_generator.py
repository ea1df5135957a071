"""Many readers of one engine: garbage collection, interruptions and slow readers change nobody's tokens."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from itertools import islice
from types import FrameType
from typing import Any

import pytest
import torch

from quill.engines.base import Engine
from quill.engines.cuda_engine import CudaEngine
from quill.engines.make import make_engine
from quill.engines.request import Request, SamplingConfig, TokenEvent
from quill.generation import batch_generator, scheduler
from quill.generation.batch_generator import LEAD, BatchGenerator
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig

CLASSIC = GPTConfig(vocab_size=11, block_size=16, n_layer=1, n_head=2, n_embd=16)
MODERN = ModernConfig(vocab_size=11, block_size=16, n_layer=1, n_head=2, n_embd=16, ngram_rows=97)
each_engine = pytest.mark.parametrize("name", ["torch", "numba", "cuda"])


def random_model(config: ModelConfig) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.4)
    return model


def engine_of(model: Model, name: str, slots: int) -> Engine:
    """Any engine on a CPU, where the one for GPUs does its steps one operation after another."""
    return CudaEngine(model, slots=slots) if name == "cuda" else make_engine(model, name, slots=slots)


def request(row: int, length: int) -> Request:
    how = SamplingConfig(0.9, frequency_penalty=0.1)
    return Request((1, 2, row), length, how, seed=3, row=row, logprobs=0)


def tokens_of(events: Iterator[tuple[int, TokenEvent]]) -> list[tuple[int, float | None]]:
    """Return the tokens with their log-probabilities: equal if computed in the same way, to the last bit."""
    return [(event.token.token_id, event.token.logprob) for _, event in events if event.token]


def alone(model: Model, name: str, one: Request, slots: int) -> list[tuple[int, float | None]]:
    return tokens_of(BatchGenerator(engine_of(model, name, slots)).follow([one]))


W1 = """
import gc, sys
import torch
from quill.generation.language_model import LanguageModel
from quill.model.config import GPTConfig
from quill.model.gpt import GPT
from quill.tokenizers.char import CharTokenizer

tokenizer = CharTokenizer("abcdefghij")
model = LanguageModel(GPT(GPTConfig(10, 16, 1, 2, 16)), tokenizer, engine=sys.argv[1])

class Page:
    def __init__(self, seed):
        self.pieces, self.itself = model.stream("a", max_new_tokens=400, seed=seed), self
        next(self.pieces)

expected = model.generate("b", max_new_tokens=20, seed=1)
gc.set_threshold(10, 2, 2)  # collect often, and so in every thread
for seed in range(60):
    Page(seed)  # half-read, and only the collector can delete it
    assert model.generate("b", max_new_tokens=20, seed=1) == expected
print("done")
"""


# Why it cannot happen, without a process of its own: the test after it.
@pytest.mark.long
@pytest.mark.parametrize("name", ["numba", "torch"])
def test_half_read_streams_that_the_garbage_collector_deletes_change_no_other_text(name: str) -> None:
    # W1: the collector ran the stream's clean-up in an engine's thread, which waited for a lock for ever.
    done = subprocess.run(
        [sys.executable, "-c", W1, name], capture_output=True, text=True, timeout=300, check=False
    )  # the time limit ends a deadlock and measures nothing
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def test_closing_a_stream_takes_no_lock() -> None:
    # W1
    batch = BatchGenerator(engine_of(random_model(CLASSIC), "torch", 1))
    events = batch.follow([request(1, 100)])
    next(events)
    with batch._lock:
        closer = threading.Thread(target=events.close)
        closer.start()
        closer.join(timeout=60)
        assert not closer.is_alive()
    assert not batch.busy


class Interrupter:
    """Raises KeyboardInterrupt before the n-th line that is run in some files."""

    def __init__(self, files: set[str], line: int) -> None:
        self.files, self.left = files, line

    def __call__(self, frame: FrameType, event: str, _: Any) -> Interrupter | None:
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


FILES = {str(batch_generator.__file__), str(scheduler.__file__)}


@pytest.mark.parametrize(  # how many lines there are between two interruptions
    ("name", "stride"),
    [
        ("numba", 7), ("torch", 101), ("cuda", 101),
        *(pytest.param(name, 23, marks=pytest.mark.long) for name in ("torch", "cuda")),
    ],
)  # fmt: skip
def test_an_interruption_at_any_line_of_a_call_leaves_other_streams_as_they_are(name: str, stride: int) -> None:
    # W2. 2 slots and 3 streams, so that slots change hands too; past the context, so that they roll.
    model = random_model(MODERN if name == "numba" else CLASSIC)
    requests = [request(row, 20) for row in range(2)]
    expected = [alone(model, name, one, 2) for one in requests]
    engine = engine_of(model, name, 2)
    line, tries = 1, 0
    while True:
        batch = BatchGenerator(engine)
        streams = [batch.follow([one]) for one in requests]
        parts = [list(islice(stream, 5)) for stream in streams]
        before = sys.gettrace()
        sys.settrace(interrupter := Interrupter(FILES, line))
        try:
            list(batch.follow([request(9, 16)]))
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        written = [tokens_of(iter([*part, *stream])) for part, stream in zip(parts, streams, strict=True)]
        assert written == expected, f"interrupted at line {line}"
        assert not batch.busy
        if interrupter.left > 0:  # the call ended before that line
            break
        line, tries = line + stride, tries + 1
    assert tries > (20 if stride < 100 else 5)


@each_engine
@pytest.mark.parametrize("method", ["assign", "prefill", "decode", "release"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_engine_that_fails_in_one_call_leaves_other_streams_as_they_are(
    name: str, method: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # W2
    model = random_model(CLASSIC)
    expected = alone(model, name, request(0, 60), 2)
    batch = BatchGenerator(engine_of(model, name, 2))
    stream = batch.follow([request(0, 60)])
    part = list(islice(stream, 20))
    original = getattr(batch.engine, method)

    def failing(*arguments: Any) -> None:
        if when == "after":
            original(*arguments)
        raise MemoryError

    monkeypatch.setattr(batch.engine, method, failing)
    with pytest.raises(MemoryError):
        list(batch.follow([request(1, 40)]))
    monkeypatch.setattr(batch.engine, method, original)
    assert tokens_of(iter([*part, *stream])) == expected and not batch.busy


def test_the_step_after_a_failed_one_gives_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    # W2, for those who call `add` and `step` themselves
    model = random_model(CLASSIC)
    batch = BatchGenerator(engine_of(model, "numba", 2))
    expected = alone(model, "numba", request(0, 50), 2)
    batch.add(request(0, 50))
    events = [*batch.step(), *batch.step()]
    decode = batch.engine.decode
    monkeypatch.setattr(batch.engine, "decode", lambda slots, steps: (decode(slots, steps), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        batch.step()
    monkeypatch.setattr(batch.engine, "decode", decode)
    while batch.busy:
        events += batch.step()
    assert tokens_of((0, event) for event in events) == expected
    assert [event.finish_reason for event in events if event.finish_reason] == ["length"]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param("numba", CLASSIC, id="numba-classic"),
        pytest.param("numba", MODERN, id="numba-modern"),
        pytest.param("torch", CLASSIC, id="torch-classic"),
        *(
            pytest.param(name, config, id=f"{name}-{kind}", marks=pytest.mark.long)
            for name, config, kind in (
                ("torch", MODERN, "modern"), ("cuda", CLASSIC, "classic"), ("cuda", MODERN, "modern"),
            )
        ),
    ],
)  # fmt: skip
def test_half_read_streams_give_up_their_slots_and_lose_nothing(name: str, config: ModelConfig) -> None:
    # W12: the next request waited until an idle text was written to its end, with all of it kept in memory.
    model, length = random_model(config), LEAD + 72  # longer than what a reader that is behind may leave unread
    requests = [request(row, length) for row in range(4)]
    expected = [alone(model, name, one, 2) for one in [*requests, request(9, length)]]
    batch = BatchGenerator(engine_of(model, name, 2))
    streams = [batch.follow([one]) for one in requests]
    parts = [list(islice(stream, 3)) for stream in streams]
    assert tokens_of(batch.follow([request(9, length)])) == expected[4]
    unread = [len(inbox.events) for inbox in batch._inboxes.values()]
    assert max(unread) < LEAD + 1 + batch.engine.burst
    assert [tokens_of(iter([*part, *stream])) for part, stream in zip(parts, streams, strict=True)] == expected[:4]


def test_an_idle_stream_costs_a_bounded_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    # W12
    batch = BatchGenerator(engine_of(random_model(CLASSIC), "numba", 4))
    written: list[int] = []
    decode = batch.engine.decode
    monkeypatch.setattr(
        batch.engine, "decode", lambda slots, steps: written.append(len(slots) * steps) or decode(slots, steps)
    )
    idle = batch.follow([request(0, 10**9)])
    next(idle)
    for row in range(1, 4):
        assert len(tokens_of(batch.follow([request(row, 1000)]))) == 1000
    assert sum(written) <= 3 * 1000 + LEAD + batch.engine.burst
    idle.close()
    assert not batch.busy


@pytest.mark.parametrize("slots", [1, 3])
def test_streams_read_in_turn_get_the_same_tokens_as_alone(slots: int) -> None:
    # W12
    model = random_model(MODERN)
    requests = [request(row, 300) for row in range(7)]
    expected = [alone(model, "numba", one, slots) for one in requests]
    batch = BatchGenerator(engine_of(model, "numba", slots))
    streams = [batch.follow([one]) for one in requests]
    assert [tokens_of(iter(column)) for column in zip(*zip(*streams, strict=True), strict=True)] == expected


def test_a_slow_reader_of_many_rows_holds_up_no_other_reader() -> None:
    # W12: 200 rows in 2 slots, whose reader stops; another reader is not held up, and no row is lost.
    model = random_model(CLASSIC)
    rows = [request(row % 11, 20) for row in range(200)]
    expected = [alone(model, "numba", one, 2) for one in rows[:11]]
    batch = BatchGenerator(engine_of(model, "numba", 2))
    many = batch.follow(rows)
    first = list(islice(many, 5))
    assert len(tokens_of(batch.follow([request(9, 3000)]))) == 3000
    assert sum(len(batch._inboxes[i].events) for i in list(batch._inboxes)[:1]) < 2 * LEAD + 2 * 2 * batch.engine.burst
    texts: list[list[TokenEvent]] = [[] for _ in rows]
    for row, event in [*first, *many]:
        texts[row].append(event)
    assert all(tokens_of((0, event) for event in text) == expected[row % 11] for row, text in enumerate(texts))


def test_very_many_rows_are_cancelled_at_once() -> None:
    # W13, R16: leaving took 5 seconds for 16,000 rows and grew with the square of their number.
    batch = BatchGenerator(engine_of(random_model(CLASSIC), "torch", 2))
    events = batch.follow([request(1, 100)] * 50_000)
    next(events)
    events.close()
    assert not batch.busy and not batch._inboxes
    gc.collect()


def test_a_stream_that_was_never_read_starts_no_request() -> None:
    batch = BatchGenerator(engine_of(random_model(CLASSIC), "torch", 1))
    batch.follow([request(1, 100)])
    assert not batch.busy


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("name", ["torch", "numba"])
def test_a_child_forked_while_another_thread_generates_generates_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # W4: the child waited for a lock of a thread that it does not have
    model = random_model(CLASSIC)
    batch = BatchGenerator(engine_of(model, name, 2))
    expected = tokens_of(batch.follow([request(0, 40)]))
    decode, inside, go_on = batch.engine.decode, threading.Event(), threading.Event()

    def waiting(slots: Any, steps: int) -> Any:
        output = decode(slots, steps)
        inside.set()
        assert go_on.wait(60)
        return output

    monkeypatch.setattr(batch.engine, "decode", waiting)
    texts: list[Any] = []
    thread = threading.Thread(target=lambda: texts.append(tokens_of(batch.follow([request(0, 40)]))))
    thread.start()
    assert inside.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about threads and forks
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)  # ends a hang
            monkeypatch.setattr(batch.engine, "decode", decode)
            os._exit(0 if tokens_of(batch.follow([request(0, 40)])) == expected else 1)
        finally:
            os._exit(2)
    go_on.set()
    thread.join(60)
    assert os.waitpid(child, 0)[1] == 0 and texts == [expected]
