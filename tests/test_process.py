"""Signals, in processes of their own, where each test waits for a line before it sends one; threads and forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from threading import Event, Thread

import pytest
from signals import default_signals

from quill import process

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
    pytest.mark.usefixtures("signals"),
]

# A call that no signal interrupts and that lets other threads run, as a long one into PyTorch: a deadlock in C.
BLOCK = """
import ctypes
def block():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""
ACKNOWLEDGED = "quill: stopping after this step; press Ctrl-C again to leave at once\n"


class Program(subprocess.Popen[str]):
    """A Python program that prints "ready" when it may be sent a signal."""

    def __init__(self, code: str, **keywords: object) -> None:
        super().__init__(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            **keywords,  # type: ignore[call-overload]
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        assert self.stdout is not None
        assert self.stdout.readline() == "ready\n", self.communicate()[1]

    def read_error_line(self) -> str:
        assert self.stderr is not None
        return self.stderr.readline()


@pytest.fixture
def start() -> Iterator[type[Program] | object]:
    """Start programs that are gone after the test."""
    programs: list[Program] = []

    def make(code: str, **keywords: object) -> Program:
        programs.append(Program(code, **keywords))
        programs[-1].wait_until_ready()
        return programs[-1]

    yield make
    for each in programs:
        with each:
            each.kill()


COMMAND = f"""
import sys
from types import SimpleNamespace
from quill import __main__ as program
from quill.cli import main as front
{BLOCK}
front.load_command = lambda name: SimpleNamespace(add_arguments=lambda parser: None, run=lambda arguments: BODY)
sys.exit(program.main(["info"]))
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "the terminal was closed"),
    ],
)
@pytest.mark.parametrize("body", ["block()", "print('ready', flush=True) or __import__('time').sleep(600)"])
def test_a_command_ends_on_one_signal_even_inside_a_long_call(start, number, code, word, body):  # U22, R16
    program = start(COMMAND.replace("BODY", body))
    program.send_signal(number)
    error = program.communicate()[1]
    assert error in (f"quill: {word}\n", f"quill info: {word}\n")
    assert program.returncode == code


def test_a_command_that_swallows_the_interrupt_ends_all_the_same(start):
    code = COMMAND.replace("BODY", "swallow()").replace(
        "front.load",
        "def swallow():\n    try:\n        block()\n    except BaseException:\n        block()\n\nfront.load",
    )
    program = start(code)
    program.send_signal(signal.SIGINT)
    program.communicate()
    assert program.returncode == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_the_program_starts_is_one_line(start, number, code):  # R16
    program = start("""
import signal, sys
import quill.__main__ as program

class Wait:
    def find_spec(self, name, path, target=None):
        if name == "quill.cli.main":
            print("ready", flush=True)
            while True:
                signal.pause()

sys.meta_path.insert(0, Wait())
program.main(["--help"])
""")
    program.send_signal(number)
    error = program.communicate()[1]
    assert (program.returncode, error.count("\n"), "Traceback" in error) == (code, 1, False)


TRAINING = f"""
from quill.process import catch_interrupts, end_on_signals
{BLOCK}
with end_on_signals(), catch_interrupts() as interrupted:
    BODY
print("saved", interrupted())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_acknowledged_and_lets_work_be_saved(start, number):  # U3, R16
    program = start(TRAINING.replace("BODY", "print('ready', flush=True)\n    while not interrupted(): pass"))
    program.send_signal(number)
    out, error = program.communicate()
    assert (program.returncode, out, error) == (0, f"saved {int(number)}\n", ACKNOWLEDGED)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_inside_a_long_call_the_first_signal_is_acknowledged_and_the_second_leaves(start, second):  # U3, U22
    program = start(TRAINING.replace("BODY", "block()"))
    program.send_signal(signal.SIGINT)
    assert program.read_error_line() == ACKNOWLEDGED
    program.send_signal(second)
    out, error = program.communicate()
    assert (program.returncode, out, error) == (128 + second, "", f"quill: {process.describe_signal(second)}\n")


def test_a_closing_terminal_may_send_its_signal_twice(start):
    program = start(TRAINING.replace("BODY", "block()"))
    program.send_signal(signal.SIGHUP)
    assert program.read_error_line() == ACKNOWLEDGED
    program.send_signal(signal.SIGHUP)
    program.send_signal(signal.SIGTERM)
    program.communicate()
    assert program.returncode == 128 + signal.SIGTERM  # and not of SIGHUP


def test_signals_that_are_ignored_stay_ignored(start):
    """`nohup quill train` survives its terminal."""
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    body = "print('ready', flush=True)\n    while not interrupted(): pass"
    program = start(TRAINING.replace("BODY", body), preexec_fn=ignore)
    program.send_signal(signal.SIGHUP)
    program.send_signal(signal.SIGTERM)
    assert program.communicate()[0] == f"saved {int(signal.SIGTERM)}\n"


def test_a_test_that_sends_signals_works_where_the_tests_were_started_with_signals_ignored():
    code = "import signal; print([signal.getsignal(n) is signal.SIG_IGN for n in (1, 2, 15)])"
    before = {number: signal.signal(number, signal.SIG_IGN) for number in process.SIGNALS}
    try:
        for block, ignored in ((default_signals(), False), (nullcontext(), True)):
            with block:
                out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            assert out == f"{[ignored] * 3}\n"
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in process.SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_in_a_python_program_the_second_ctrl_c_is_a_keyboard_interrupt(start):
    program = start("""
from quill.process import catch_interrupts
try:
    with catch_interrupts() as interrupted:
        print("ready", flush=True)
        while not interrupted(): pass
        print("first", flush=True)
        while True: pass
except KeyboardInterrupt:
    print("second")
""")
    program.send_signal(signal.SIGINT)
    assert program.stdout.readline() == "first\n"
    program.send_signal(signal.SIGINT)
    assert program.communicate() == ("second\n", ACKNOWLEDGED)
    assert program.returncode == 0


def test_signals_do_what_they_did_before_once_the_block_has_ended():
    before = {number: signal.getsignal(number) for number in process.SIGNALS}
    descriptor = signal.set_wakeup_fd(-1)
    with process.end_on_signals(), process.catch_interrupts(lambda text: None):
        assert all(signal.getsignal(number) is not before[number] for number in process.SIGNALS)
    assert {number: signal.getsignal(number) for number in process.SIGNALS} == before
    assert signal.set_wakeup_fd(descriptor) == -1


def test_an_announcement_goes_to_the_given_function():
    told: list[str] = []
    with process.catch_interrupts(told.append) as interrupted:
        signal.raise_signal(signal.SIGINT)
        while not told:
            pass
    assert interrupted() == signal.SIGINT and told == ["stopping after this step; press Ctrl-C again to leave at once"]
    process.received.clear()


WAITING = """
import os, sys
import quill
from quill.cli.main import main
before = os.environ.get("GOMP_SPINCOUNT")
assert before is None or len(sys.argv) > 1
def call(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except quill.ConfigError:
        pass
    print(os.environ.pop("GOMP_SPINCOUNT", None), "torch" in sys.modules, file=sys.stderr)
    if before:
        os.environ["GOMP_SPINCOUNT"] = before
call(main, ["--version"])
call(quill.run, resume=True, overwrite=True)
call(quill.load, device=0)
"""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "4000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_commands_run_and_load_let_waiting_threads_sleep(variables: dict[str, str], expected: str) -> None:  # T5
    known = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in known} | variables
    command = [sys.executable, "-c", WAITING, *variables]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stderr.splitlines() == [f"{expected} False"] * 3  # before PyTorch reads it


def test_a_lock_is_free_in_a_forked_child_unless_its_own_thread_holds_it():  # W4
    other, own, held, done = process.lock_freed_by_fork(), process.lock_freed_by_fork(), Event(), Event()

    def hold() -> None:
        with other:
            held.set()
            done.wait(60)

    thread = Thread(target=hold)
    thread.start()
    assert held.wait(60)
    with own, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about threads and forks
        if (child := os.fork()) == 0:
            os._exit(0 if other.acquire(blocking=False) and own._is_owned() else 1)  # type: ignore[attr-defined]
    done.set()
    thread.join(60)
    assert os.waitpid(child, 0)[1] == 0
