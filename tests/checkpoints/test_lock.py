"""One process trains into a folder; the lock ends with it, however it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quill.checkpoints.lock import LOCK, lock_run
from quill.errors import ConfigError

HOLDER = """
import sys
from quill.checkpoints.lock import lock_run
with lock_run(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock of `out` until its standard input is closed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_in_use_is_refused_with_the_process_that_uses_it(
    holder: subprocess.Popen, tmp_path: Path
) -> None:  # R5
    with (
        pytest.raises(ConfigError, match=rf"out is in use: process {holder.pid} is training there"),
        lock_run(tmp_path / "out"),
    ):
        pass
    with lock_run(tmp_path / "another"):
        pass


def test_the_lock_ends_when_its_process_is_killed(holder: subprocess.Popen, tmp_path: Path) -> None:  # R5
    holder.kill()
    holder.wait()
    assert (tmp_path / "out" / LOCK).exists(), "the file stays, and holds nobody up"
    with lock_run(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_a_process_does_not_get_the_lock_twice(tmp_path: Path) -> None:
    with lock_run(tmp_path):
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"), lock_run(tmp_path):
            pass
        assert (tmp_path / LOCK).exists(), "a refusal leaves the lock with its holder"
    with lock_run(tmp_path):
        pass


def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock_run(tmp_path):
        raise KeyError
    with lock_run(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"), lock_run(tmp_path / "file" / "out"):
        pass
