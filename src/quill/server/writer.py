"""One thread that owns the batch of a model: it adds and ends requests between two steps, and passes on their tokens.

The event loop never waits for a step. It sends commands through a queue, which the thread empties before each step, so
a request that ends early has left its slot before the next one. The tokens of a step go to the event loop in one call.
A reader may be slow: what it has not read is kept, at most the tokens of its request.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from quill.engines.request import BusyError, Request, TokenEvent
from quill.generation.batch_generator import BatchGenerator
from quill.server.errors import ServerStoppingError, report_bug

T = TypeVar("T")
LONGEST_WAIT = 0.02
"""Seconds that the next step waits for the event loop to pass on the tokens of the last.

A step uses all cores. Where the event loop works at the same time, the threads of the step wait for each other, which
costs more than a pause (docs/log.md).
"""
RowEvents = list[tuple[int, TokenEvent]]
"""events of one step for one generation, each with the index of its request"""


class Generation:
    """The texts of some requests while they are generated. Iterate over `steps`, then `close`, both in the event loop.

    Use it in a `with` statement, which closes it in any case.
    """

    def __init__(self, writer: Writer, requests: Sequence[Request]) -> None:
        self.writer, self.requests = writer, requests
        self.loop = asyncio.get_running_loop()
        self.open_rows = set(range(len(requests)))
        self.inbox: asyncio.Queue[RowEvents | Exception] = asyncio.Queue()
        self.is_waiting = False  # for the events of the next step

    async def steps(self, ping_seconds: float | None = None) -> AsyncGenerator[RowEvents]:
        """Yield the events of each step until all texts have ended; an empty list after `ping_seconds` without any."""
        while self.open_rows:
            events = await self._next(ping_seconds)
            if events is None:
                yield []
                continue
            if isinstance(events, Exception):
                raise events
            events = [(row, event) for row, event in events if row in self.open_rows]
            self.open_rows -= {row for row, event in events if event.finish_reason is not None}
            if events:
                yield events

    async def _next(self, seconds: float | None) -> RowEvents | Exception | None:
        """Return the events of the next step; None after this time without any.

        asyncio.wait_for loses a cancellation that comes together with a result (before Python 3.12). Where steps come
        faster than they are sent, each does, and a text whose client has gone would be written to its end.
        """
        if self.inbox.empty():
            self.is_waiting = True
            self.writer.has_answered(self)
        getting = asyncio.ensure_future(self.inbox.get())
        try:
            done, _ = await asyncio.wait([getting], timeout=seconds)
        finally:
            self.is_waiting = False
            getting.cancel()
        return getting.result() if done else None

    def end(self, row: int) -> None:
        """End the text of one row before the next step."""
        if row in self.open_rows:
            self.open_rows.discard(row)
            self.writer.end(self, row)

    def close(self) -> None:
        """End all texts before the next step."""
        self.writer.close(self)
        self.open_rows.clear()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Writer:
    """Generates texts in a thread of its own. `make_batch` is called in it, at the first use."""

    def __init__(self, make_batch: Callable[[], BatchGenerator], most_waiting: int) -> None:
        self._make_batch, self._most_waiting = make_batch, most_waiting
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._has_thread = self._retired = False
        self.num_tokens = 0
        """number of tokens that were generated"""
        self._answering: set[Generation] = set()  # pass on the last step's events; used by the event loop only
        self._all_answered = threading.Event()
        self._generations: set[Generation] = set()  # used by the event loop only
        self._batch: BatchGenerator | None = None  # this and the next two are used by the thread only
        self._open: dict[int, tuple[Generation, int]] = {}
        self._ids: dict[tuple[Generation, int], int] = {}

    @property
    def num_open(self) -> int:
        """Number of texts that are generated or wait."""
        return sum(len(generation.open_rows) for generation in self._generations)

    @property
    def num_running(self) -> int:
        """Number of texts that have a slot."""
        batch = self._batch
        # A slot whose text was ended is freed when the next text comes, or before the next step.
        return min(len(batch.scheduler.running), len(self._open)) if batch else 0

    @property
    def slots(self) -> int:
        """Number of texts that are generated at once; 1 before the engine is made."""
        batch = self._batch
        return batch.engine.slots if batch else 1

    def start(self, requests: Sequence[Request]) -> Generation:
        """Begin to generate these requests; BusyError if too many texts wait. Call it in the event loop."""
        if self.num_open and self.num_open + len(requests) > self._most_waiting + self.slots:
            raise BusyError(f"{self.num_open} texts are generated or wait already: try again later")
        generation = Generation(self, requests)
        self._generations.add(generation)
        self._command(lambda: self._add(generation))
        return generation

    async def call(self, function: Callable[[BatchGenerator], T]) -> T:
        """Return function(batch), called in the thread between two steps."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = function(self._get_batch())
            except Exception as error:
                _send(loop, _settle, future, None, error)
            else:
                _send(loop, _settle, future, result, None)

        self._command(run)
        return await future

    def end(self, generation: Generation, row: int) -> None:
        """End the text of one row of a generation before the next step."""
        self._command(lambda: self._cancel(generation, [row]))

    def close(self, generation: Generation) -> None:
        """End all texts of a generation before the next step."""
        self._generations.discard(generation)
        self.has_answered(generation)
        if generation.open_rows:
            self._command(lambda: self._cancel(generation, range(len(generation.requests))))

    def has_answered(self, generation: Generation) -> None:
        """Note that a generation has passed on all its events. Call it in the event loop."""
        self._answering.discard(generation)
        if not self._answering:
            self._all_answered.set()

    def stop(self) -> None:
        """End all texts with a ServerStoppingError. Call it in the event loop."""
        for generation in self._generations:
            generation.inbox.put_nowait(ServerStoppingError())
        self.retire()

    def retire(self) -> None:
        """End the thread and free the memory of the batch whenever no text is open. May be called in any thread."""
        with self._lock:
            self._retired = True
            self._commands.put(lambda: None)  # wakes the thread, if it waits

    def _command(self, run: Callable[[], None]) -> None:
        with self._lock:
            self._commands.put(run)
            if not self._has_thread:
                self._has_thread = True
                threading.Thread(target=self._work, name="writer", daemon=True).start()

    def _work(self) -> None:
        while not self._has_ended():
            try:
                command = self._commands.get(block=not self._open)
            except Empty:
                self._step()
            else:
                command()

    def _has_ended(self) -> bool:
        with self._lock:  # so that no command is left behind
            if self._retired and not self._open and self._commands.empty():
                self._has_thread = False
                self._batch = None
            return not self._has_thread

    def _get_batch(self) -> BatchGenerator:
        if self._batch is None:
            self._batch = self._make_batch()
        return self._batch

    def _add(self, generation: Generation) -> None:
        try:
            batch = self._get_batch()
            for row, request in enumerate(generation.requests):
                request_id = batch.add(request)
                self._open[request_id] = generation, row
                self._ids[generation, row] = request_id
        except Exception as error:
            self._cancel(generation, range(len(generation.requests)))
            report_bug(error)
            _send(generation.loop, generation.inbox.put_nowait, error)

    def _cancel(self, generation: Generation, rows: Sequence[int]) -> None:
        for row in rows:
            request_id = self._ids.pop((generation, row), None)
            if request_id is not None:
                del self._open[request_id]
                self._get_batch().cancel(request_id)

    def _step(self) -> None:
        generations: dict[Generation, RowEvents] = {}
        try:
            for event in self._get_batch().step():
                self.num_tokens += event.token is not None
                if (place := self._open.get(event.request_id)) is None:
                    continue
                generations.setdefault(place[0], []).append((place[1], event))
                if event.finish_reason is not None:
                    del self._open[event.request_id], self._ids[place]
        except Exception as error:  # the batch restarts by itself; what was running has failed
            report_bug(error)
            for generation in {generation for generation, _ in self._open.values()}:
                self._cancel(generation, range(len(generation.requests)))
                _send(generation.loop, generation.inbox.put_nowait, error)
            return
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Generation, RowEvents]]] = {}
        for generation, events in generations.items():
            by_loop.setdefault(generation.loop, []).append((generation, events))
        self._all_answered.clear()
        for loop, deliveries in by_loop.items():
            _send(loop, self._deliver, deliveries)
        if by_loop and self._get_batch().engine.prefers_idle_cores:
            self._all_answered.wait(LONGEST_WAIT)

    def _deliver(self, deliveries: list[tuple[Generation, RowEvents]]) -> None:
        # A generation whose client does not read is busy with earlier events, and is not waited for.
        self._answering = {generation for generation, _ in deliveries if generation.is_waiting}
        for generation, events in deliveries:
            generation.inbox.put_nowait(events)
        if not self._answering:
            self._all_answered.set()


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _send(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function in the event loop; do nothing if the loop has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
