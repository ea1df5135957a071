"""Commands whose standard streams are closed, full, or left by their reader, in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="descriptors are closed by a POSIX shell")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(environment) -> Run:
    """Run `quill` with the redirections that a shell would make."""

    def run(*argv: object, redirect: str = "") -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-m", "quill", *map(str, argv)]
        return subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL, check=False
        )

    return run


@pytest.fixture
def written(trained) -> list[object]:
    return ["generate", f"--out_dir={trained.out}", "--prompt=KING", "--max_new_tokens=20", "--seed=1", "--device=cpu"]


def test_closed_standard_output_is_no_traceback(shell, written):  # W8
    done = shell(*written, redirect=">&-")
    assert (done.returncode, done.stdout) == (0, "") and "Traceback" not in done.stderr


def test_notes_are_not_printed_to_standard_output(shell, written):  # W8
    expected = shell(*written)
    assert expected.stderr.startswith("quill: ")
    done = shell(*written, redirect="2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, "")
    assert shell(*written, redirect="<&- 2>&-").stdout == expected.stdout


@pytest.mark.long
def test_with_all_streams_closed_files_are_written_whole(shell, quill, here, tiny):  # T7
    assert shell("train", "my.txt", *tiny, redirect="<&- >&- 2>&-").returncode == 0
    assert quill("info", "out")[1].count("SHA-256 agrees") == 2
    assert (here / "out" / "samples.txt").read_text(encoding="utf-8").count("──── step ") == 3


full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@full
def test_the_error_for_a_full_standard_output_names_it(shell, written):  # T7
    done = shell(*written, redirect="> /dev/full")
    assert done.returncode == 2 and "out_dir" not in done.stderr
    assert "standard output cannot be written: No space left on device" in done.stderr.splitlines()[-1]


@pytest.mark.long
@full
def test_a_run_continues_when_standard_output_is_full(shell, here, tiny):  # T7
    done = shell("train", "my.txt", *tiny, redirect="> /dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr == "quill: standard output: No space left on device; the run continues without it\n"
    assert (here / "out" / "last").read_text(encoding="utf-8").startswith("step-000006")


@pytest.mark.long
def test_a_run_continues_when_the_reader_of_its_pipe_exits(here, tiny, environment):  # T7: quill train | head
    command = [sys.executable, "-m", "quill", "train", "my.txt", *tiny]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(b"corpus")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert Path("out/last").read_text(encoding="utf-8").startswith("step-000006")


@pytest.mark.long
def test_a_run_whose_terminal_is_closed_saves_and_ends(here, tiny, changed, environment, signals):  # R16
    import pty

    ours, theirs = pty.openpty()
    flags = changed([*tiny, "--max_iters=1000000", "--eval_interval=1000000", "--log_interval=1"])
    process = subprocess.Popen(
        [sys.executable, "-m", "quill", "train", "my.txt", *flags], env=environment,
        preexec_fn=lambda: os.login_tty(theirs),
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while not re.search(rb"step [1-9]", shown):
        shown += os.read(ours, 65536)
    os.close(ours)
    assert process.wait() == 129
    assert Path("out/last").read_text(encoding="utf-8").startswith("step-")
