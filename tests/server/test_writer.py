"""The thread that owns the batch: what ends early has left its slot before the next step."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from quill.engines.request import BusyError, Request, TokenEvent
from quill.generation.batch_generator import BatchGenerator
from quill.generation.language_model import LanguageModel
from quill.server.errors import ServerStoppingError, api_error
from quill.server.writer import Generation, Writer


class Steps(BatchGenerator):
    """A batch that notes which requests are open at each step."""

    def __init__(self, batch: BatchGenerator) -> None:
        super().__init__(batch.engine)
        self.open_at: list[set[int]] = []

    def step(self) -> list[TokenEvent]:
        self._apply_cancellations()
        self.open_at.append({*self.scheduler.running, *self.scheduler.waiting})
        return super().step()


@contextlib.asynccontextmanager
async def paused(writer: Writer) -> AsyncIterator[None]:
    """Hold a writer between two steps."""
    reached, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(batch: BatchGenerator) -> None:
        loop.call_soon_threadsafe(reached.set)
        gate.wait()

    held = asyncio.create_task(writer.call(hold))
    await reached.wait()
    yield
    gate.set()
    await held


@pytest.fixture
def batch(model: LanguageModel) -> Steps:
    return Steps(model.batch)


def request(length: int, row: int = 0) -> Request:
    return Request((1, 2), length, seed=1, row=row)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


async def tokens_of(generation: Generation) -> list[int]:
    with generation:
        return [event.token.token_id async for step in generation.steps() for _, event in step if event.token]


def test_a_generation_that_is_closed_has_left_its_slot_before_the_next_step(batch: Steps) -> None:
    async def work() -> None:
        writer = Writer(lambda: batch, most_waiting=9)
        other, closed = writer.start([request(300)]), writer.start([request(10**6)])
        async with aclosing(closed.steps()) as steps:
            assert await anext(steps)
        async with paused(writer):
            closed.close()
            num_steps = len(batch.open_at)
        assert len(await tokens_of(other)) == 300
        assert batch.open_at[num_steps - 1] == {0, 1}
        assert set(map(frozenset, batch.open_at[num_steps:])) == {frozenset({0})}
        assert writer.num_open == 0
        writer.stop()

    run(work())


def test_a_row_that_is_ended_gives_no_more_events_and_the_others_go_on(batch: Steps) -> None:
    async def work() -> None:
        writer = Writer(lambda: batch, most_waiting=9)
        rows: list[int] = []
        with writer.start([request(1000, 0), request(5, 1)]) as generation:
            async for step in generation.steps():
                generation.end(0)
                rows += [row for row, event in step if event.token]
        assert rows.count(1) == 5 and rows.count(0) <= 2
        writer.stop()

    run(work())


def test_texts_beyond_the_queue_are_refused_with_a_time_to_come_again(batch: Steps) -> None:
    async def work() -> None:
        writer = Writer(lambda: batch, most_waiting=2)
        await writer.call(lambda batch: None)
        with writer.start([request(9, row) for row in range(writer.slots + 2)]):
            with pytest.raises(BusyError) as caught:
                writer.start([request(9)])
            answer = api_error(caught.value).response()
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert "x-should-retry" not in answer.headers
        assert len(await tokens_of(writer.start([request(9)]))) == 9
        writer.stop()

    run(work())


def test_stopping_ends_every_text_with_an_error(batch: Steps) -> None:
    async def work() -> None:
        writer = Writer(lambda: batch, most_waiting=9)
        generation = writer.start([request(1000)])
        writer.stop()
        with pytest.raises(ServerStoppingError):
            await tokens_of(generation)

    run(work())


def test_an_error_of_a_step_ends_what_is_open_and_the_next_text_is_whole(
    batch: Steps, model: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work() -> None:
        writer = Writer(lambda: batch, most_waiting=9)
        expected = await tokens_of(writer.start([request(6)]))
        with monkeypatch.context() as patch:
            patch.setattr(batch.engine, "prefill", lambda prompts: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await tokens_of(writer.start([request(6)]))
        assert await tokens_of(writer.start([request(6)])) == expected
        writer.stop()

    run(work())
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_engine_that_cannot_be_made_is_the_error_of_each_request_and_tried_again(batch: Steps) -> None:
    broken = [True]

    def make() -> BatchGenerator:
        if broken[0]:
            raise BusyError("no engine")
        return batch

    async def work() -> None:
        writer = Writer(make, most_waiting=9)
        with pytest.raises(BusyError):
            await tokens_of(writer.start([request(6)]))
        with pytest.raises(BusyError):
            await writer.call(lambda batch: None)
        broken[0] = False
        assert len(await tokens_of(writer.start([request(6)]))) == 6
        writer.stop()

    run(work())


def test_a_retired_writer_completes_its_texts_and_then_ends_its_thread(batch: Steps) -> None:
    async def work() -> None:
        writer = Writer(lambda: batch, most_waiting=9)
        generation = writer.start([request(6)])
        await writer.call(lambda batch: None)
        writer.retire()
        assert len(await tokens_of(generation)) == 6
        while writer.slots > 1:  # it still has its batch
            await asyncio.sleep(0)
        assert len(await tokens_of(writer.start([request(6)]))) == 6  # a late request gets a new thread

    run(work())


def test_after_a_silence_an_empty_step_is_given(batch: Steps) -> None:
    async def work() -> None:
        writer = Writer(lambda: batch, most_waiting=9)
        async with paused(writer):
            generation = writer.start([request(3)])
            steps = generation.steps(ping_seconds=0.001)
            assert await anext(steps) == []
        with generation:
            assert [event async for step in steps for _, event in step if event.token]
        writer.stop()

    run(work())


def test_a_step_waits_for_readers_that_pass_on_its_tokens_and_not_for_one_that_stands_still(batch: Steps) -> None:
    async def work() -> None:
        writer = Writer(lambda: batch, 10)
        tokens = [(0, TokenEvent(0, None, None))]
        async with paused(writer):
            with writer.start([request(5)]) as reads, writer.start([request(5)]) as stands_still:
                steps = reads.steps()
                asked = asyncio.create_task(anext(steps))
                await asyncio.sleep(0)  # until it waits for tokens
                for _ in range(2):
                    writer._all_answered.clear()
                    writer._deliver([(reads, tokens), (stands_still, tokens)])
                    assert not writer._all_answered.is_set(), "its tokens are not passed on yet"
                    await asked
                    assert not writer._all_answered.is_set()
                    asked = asyncio.create_task(anext(steps))
                    await asyncio.sleep(0)
                    assert writer._all_answered.is_set(), "it asks for more"
                writer._all_answered.clear()
                writer._deliver([(stands_still, tokens)])
                assert writer._all_answered.is_set(), "nobody is waited for"
                writer._all_answered.clear()
                writer._deliver([(reads, tokens)])
                asked.cancel()
                reads.close()
                assert writer._all_answered.is_set(), "a text that is ended is not waited for"
        writer.retire()

    run(work())
