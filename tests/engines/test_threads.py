"""Threads of the Numba engine: they end with the process, survive a fork, sleep where they wait, and keep whole."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quill.checkpoints.run_folder import save_checkpoint
from quill.engines import numba_engine
from quill.engines.base import PrefillInput
from quill.engines.make import arrays_of
from quill.engines.numba_engine import NumbaEngine
from quill.engines.numba_step.workspace import SLEEPS, Call
from quill.engines.request import Request
from quill.engines.thread_team import ThreadTeam
from quill.model.build import build_model
from quill.model.config import GPTConfig
from quill.tokenizers.byte import ByteTokenizer

CONFIG = GPTConfig(vocab_size=256, block_size=32, n_layer=1, n_head=2, n_embd=96)  # large enough for two threads


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    unused: dict[str, Any] = {"val_loss": None, "training_tensors": {}, "training_metadata": {}}
    save_checkpoint(folder, build_model(CONFIG), ByteTokenizer(), step=1, best=True, **unused)
    return folder


def two_threads(**options: Any) -> NumbaEngine:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NumbaEngine(CONFIG, arrays_of(build_model(CONFIG)), threads=2, **options)


# ── whole processes ──

LOAD = """
import atexit, os, sys, threading
import quill
from quill.engines import numba_engine
numba_engine.cpu_threads, numba_engine.SLEEPS_PER_STEP = (lambda: 2), 10**9  # whatever else this machine does
model = quill.load(sys.argv[1], device="cpu", engine="numba")
def write(): return model.generate("a", max_new_tokens=40, seed=1)
"""
AFTER_MAIN = """
first = write() if sys.argv[2] == "used" else None
main = threading.main_thread()
def later():
    main.join()
    text = write()
    print(len(text.encode()) > 0, text == (first or text), model.batch.engine.threads_for(1), flush=True)
threading.Thread(target=later).start()
"""
AT_EXIT = """
first = write() if sys.argv[2] == "used" else None
def last():
    text = write()
    print(len(text.encode()) > 0, text == (first or text), model.batch.engine.threads_for(1), flush=True)
atexit.register(last)
"""
FORKED = """
first = write() if sys.argv[2] == "used" else None
child = os.fork()
if child == 0:
    text = write()
    print(len(text.encode()) > 0, text == (first or text), model.batch.engine.threads_for(1), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert write() == (first or write())
"""


@pytest.mark.parametrize(
    ("code", "used"),
    [
        pytest.param(AFTER_MAIN, "used", id="a thread that outlives the main thread-used"),
        pytest.param(AFTER_MAIN, "unused", id="a thread that outlives the main thread-unused", marks=pytest.mark.long),
        pytest.param(AT_EXIT, "used", id="atexit-used", marks=pytest.mark.long),
        pytest.param(AT_EXIT, "unused", id="atexit-unused"),
    ],
)
def test_the_engine_generates_while_the_interpreter_ends(code: str, used: str, run: Path) -> None:  # W3
    command = [sys.executable, "-c", LOAD + code, str(run), used]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    # Some versions of Python (3.12.0, 3.13) start no more threads then; one that is there already goes on.
    threads = [2] if used == "used" or sys.version_info < (3, 12) else [1, 2]
    assert process.stdout in [f"True True {count}\n" for count in threads]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("used", ["used", pytest.param("unused", marks=pytest.mark.long)])
def test_a_forked_child_generates_with_threads_of_its_own(used: str, run: Path) -> None:  # W4
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", LOAD + FORKED, str(run), used]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (process.returncode, process.stdout) == (0, "True True 2\n"), process.stderr


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_generates_with_the_torch_engine(run: Path) -> None:  # W4
    code = (LOAD + FORKED).replace('engine="numba"', 'engine="torch"').replace("model.batch.engine.threads_for(1)", "1")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(run), "used"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert (process.returncode, process.stdout) == (0, "True True 1\n"), process.stderr


# ── the team ──


def test_a_thread_team_calls_every_thread_and_raises_their_errors() -> None:
    team, called = ThreadTeam(3), []
    assert team.start() == 3
    team.run(called.append)
    assert sorted(called) == [0, 1, 2]

    def fail(thread: int) -> None:
        called.append(thread)
        if thread == 2:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        team.run(fail)
    team.run(called.append)
    assert sorted(called) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signal to a thread")
def test_an_interrupted_caller_leaves_when_all_threads_have_finished() -> None:  # W2
    team, raised, finished, main = ThreadTeam(2), threading.Event(), [], threading.get_ident()
    team.start()

    def interrupt(*_: object) -> None:
        if not raised.is_set():
            raised.set()
            raise KeyboardInterrupt

    def work(thread: int) -> None:
        while not raised.wait(0.05):  # a signal just before the caller begins to wait does not wake it
            signal.pthread_kill(main, signal.SIGINT)
        finished.append(thread)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            team.run(work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(finished) == [0, 1]
    team.run(finished.append)
    assert sorted(finished) == [0, 0, 1, 1]


def test_arrays_live_as_long_as_threads_may_write_to_them(monkeypatch: pytest.MonkeyPatch) -> None:  # W2
    engine, jobs, arrays = two_threads(), [], []

    def call(**arguments: Any) -> Call:
        arrays.append(weakref.ref(arguments["logits_TBV"]))
        return Call(**arguments)

    def interrupted(function: Any) -> None:
        jobs.append(function)  # what the threads hold
        raise KeyboardInterrupt  # a second Ctrl-C, while the caller waits for them

    monkeypatch.setattr(numba_engine, "Call", call)
    monkeypatch.setattr(engine.team, "run", interrupted)
    engine.assign(0, Request((1,), 5))
    with pytest.raises(KeyboardInterrupt):
        engine.prefill([PrefillInput(0, (1, 2, 3), 0)])
    gc.collect()
    assert arrays[0]() is not None
    jobs.clear()
    gc.collect()
    assert arrays[0]() is None


def test_threads_end_with_their_team() -> None:
    before, team = set(threading.enumerate()), ThreadTeam(3)
    team.start()
    started, alive = set(threading.enumerate()) - before, weakref.ref(team)
    assert len(started) == 3
    del team
    for thread in started:
        thread.join(60)
    assert alive() is None and not any(thread.is_alive() for thread in started)


def test_where_no_thread_can_be_started_the_engine_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = two_threads().logits([1, 2, 3])

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    engine = two_threads()
    assert engine.threads_for(1) == 1 and np.array_equal(engine.logits([1, 2, 3]), expected)


# ── waiting ──


def test_a_small_step_takes_one_thread_and_a_large_one_all(monkeypatch: pytest.MonkeyPatch) -> None:  # W11
    small = GPTConfig(vocab_size=256, block_size=32, n_layer=1, n_head=2, n_embd=32)
    monkeypatch.setattr("quill.engines.numba_engine.cpu_threads", lambda: 2)
    engine = NumbaEngine(small, arrays_of(build_model(small)))
    assert (engine.threads_for(1), engine.threads_for(32)) == (1, 2)
    assert NumbaEngine(CONFIG, arrays_of(build_model(CONFIG))).threads_for(1) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the state of a thread is read from /proc")
def test_a_thread_that_waits_for_long_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:  # W11
    engine, request = two_threads(), Request((1, 2, 3), 9)
    engine.assign(0, request)
    expected = engine.prefill([PrefillInput(0, request.prompt, 0)])
    engine.assign(0, request)
    step, started = engine.step, threading.Event()
    waiting: list[int] = []

    def late(thread: int, table: int) -> None:
        if thread == 0:
            waiting.append(threading.get_native_id())
            started.set()
        else:
            assert started.wait(60)
            status = Path(f"/proc/self/task/{waiting[0]}/stat")
            while status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "S":
                pass
        step(thread, table)

    monkeypatch.setattr(engine, "step", late)
    assert np.array_equal(engine.prefill([PrefillInput(0, request.prompt, 0)]).logits_TBV, expected.logits_TBV)


def test_threads_that_often_sleep_are_not_used_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:  # W11
    monkeypatch.setattr("quill.engines.numba_engine.cpu_threads", lambda: 2)
    engine, request = NumbaEngine(CONFIG, arrays_of(build_model(CONFIG))), Request((1, 2, 3), 30)
    engine.assign(0, request)
    engine.prefill([PrefillInput(0, request.prompt, 0)])
    assert engine.threads_for(1) == 2
    step = engine.step

    def slept(thread: int, table: int) -> None:
        step(thread, table)
        if thread == 0:
            engine.work.counters[8 + SLEEPS] += 100

    monkeypatch.setattr(engine, "step", slept)
    engine.decode([0], 4)
    assert [engine.threads_for(1) for _ in range(3)] == [1, 1, 1]
    assert [engine.threads_for(1) for _ in range(100)][-1] == 2
