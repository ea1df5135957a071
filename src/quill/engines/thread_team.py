"""Threads that call one function together, for the compiled step, whose threads wait for each other.

The caller is not one of them. So an exception in the caller, such as KeyboardInterrupt in the main thread, never stops
a thread that others wait for. The threads are daemons: they run until the interpreter ends, also after the main thread
has ended and in `atexit`. A forked child process has none of its parent's threads and starts its own.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Function = Callable[[int], None]


class ThreadTeam:
    """Up to `size` threads, started when they are first needed and ended with this object."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._reset()
        _teams.add(self)

    def _reset(self) -> None:
        self._inbox: SimpleQueue[Any] | None = None
        self._unfinished = False  # whether the threads may still work for a caller that was interrupted

    def start(self) -> int:
        """Start the threads if they are not running, and return their number, or 1 if they cannot be started."""
        if self.size > 1 and self._inbox is None:
            inbox: SimpleQueue[Any] = SimpleQueue()
            followers: list[SimpleQueue[Any]] = [SimpleQueue() for _ in range(self.size - 1)]
            end = weakref.finalize(self, _end, [inbox, *followers])
            end.atexit = False
            try:
                for queue in followers:
                    threading.Thread(target=_follow, args=(queue,), name="quill-follower", daemon=True).start()
                threading.Thread(target=_lead, args=(inbox, followers), name="quill-leader", daemon=True).start()
            except RuntimeError:  # the interpreter is ending, or the system allows no more threads
                end()
                return 1
            self._inbox = inbox
        return self.size

    def run(self, function: Function) -> None:
        """Call function(0) … function(size - 1), each on its own thread, and return when all are done."""
        self.wait()
        assert self._inbox is not None, "start() comes first"
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._unfinished = True
        try:
            self._inbox.put((function, done))  # one call that a signal cannot interrupt in the middle
            error = done.get()
        except BaseException:  # Ctrl-C: threads that still run would write into the arrays of the next call
            self.wait()
            raise
        self._unfinished = False
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait until no thread runs for an interrupted caller."""
        if self._unfinished and self._inbox is not None:
            done: SimpleQueue[BaseException | None] = SimpleQueue()
            self._inbox.put((None, done))
            done.get()
            self._unfinished = False


def _lead(inbox: SimpleQueue[Any], followers: list[SimpleQueue[Any]]) -> None:
    while (job := inbox.get()) is not None:
        function, done = job
        error = None
        if function is not None:
            finished: SimpleQueue[BaseException | None] = SimpleQueue()
            for thread, queue in enumerate(followers, start=1):
                queue.put((function, thread, finished))
            error = _call(function, 0)
            for _ in followers:
                error = finished.get() or error
        done.put(error)
        del job, function, done  # or they would live until the next one


def _follow(queue: SimpleQueue[Any]) -> None:
    while (job := queue.get()) is not None:
        function, thread, finished = job
        finished.put(_call(function, thread))
        del job, function, finished


def _call(function: Function, thread: int) -> BaseException | None:
    try:
        function(thread)
    except BaseException as error:
        return error
    return None


def _end(queues: list[SimpleQueue[Any]]) -> None:
    for queue in queues:
        queue.put(None)


_teams: weakref.WeakSet[ThreadTeam] = weakref.WeakSet()


def _forget_threads() -> None:
    for team in _teams:
        team._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
